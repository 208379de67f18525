"""What hints on the output and on interrupted runs lead to."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, redirect_stdout
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file

from monosoup_cli.cli.process import Stdout
from tests.conftest import no_file_beyond, nobody
from tests.hints.table import Trial, follows
from tests.models import step, unet_pipeline

LIMIT = 1 << 20  # bytes
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root makes folders of somebody else")


def full_disk() -> AbstractContextManager[None]:
    """No file may be larger than LIMIT, which the system refuses as it does where the disk is full."""
    return no_file_beyond(LIMIT)


def folders(at: Trial, size: int = 0) -> tuple[object, ...]:
    """An edit whose last file, a vocabulary of some size, is written after the tensors."""
    folder = at.tmp / "model"
    folder.mkdir()
    shutil.copy(at.finetuned, folder / "model.safetensors")
    (folder / "vocab.txt").write_bytes(bytes(size))
    return "edit", at.base, folder, "-o", at.out


def interrupted(at: Trial) -> tuple[object, ...]:
    """An edit that a full disk has stopped after the tensors were written."""
    command = folders(at, 2 * LIMIT)
    with full_disk():
        assert at.run(*command).code == 1
    assert (at.tmp / "out.partial" / "journal").is_file()
    return command


def in_shell(at: Trial, folder: Path | None = None) -> None:
    """Run the command that the hint has."""
    (command,) = re.findall("`(.*)`", at.hint)
    subprocess.run(command, shell=True, check=True, cwd=folder)


@follows("outputs/writer.py", "cannot write")
def a_full_disk(at: Trial) -> None:
    command = folders(at, 2 * LIMIT)
    with full_disk():
        at.refused(*command)
    at.loads(*command, *at.options())


@follows("outputs/workplace.py", "an interrupted run left unfinished work")
def unfinished_work(at: Trial) -> None:
    command = interrupted(at)
    at.refused(*command)
    at.loads(*command, *at.options(0))
    shutil.rmtree(at.out)
    at.tmp.joinpath("model", "vocab.txt").unlink()
    shutil.rmtree(at.tmp / "model")
    command = interrupted(at)
    at.refused(*command)
    at.loads(*command, *at.options(1))


@follows("outputs/journal.py", "rerun with the same arguments")
def other_arguments(at: Trial) -> None:
    command = interrupted(at)
    at.refused(*command, "--resume", "--energy", "0.5")
    at.loads(*command, "--resume")
    shutil.rmtree(at.out)
    shutil.rmtree(at.tmp / "model")
    command = interrupted(at)
    at.refused(*command, "--resume", "--energy", "0.5")
    at.loads(*command, *at.options(), "--energy", "0.5")


@follows("outputs/journal.py", "these files have changed since")
def other_files(at: Trial) -> None:
    command = interrupted(at)
    weights, vocabulary = (at.tmp / "model" / name for name in ("model.safetensors", "vocab.txt"))
    for path in (weights, vocabulary):
        path.write_bytes(path.read_bytes())
    at.refused(*command, "--resume")
    in_shell(at, at.tmp)
    at.loads(*command, "--resume")
    shutil.rmtree(at.out)
    shutil.rmtree(at.tmp / "model")
    command = interrupted(at)
    weights.touch()
    at.refused(*command, "--resume")
    at.loads(*command, *at.options())


@follows("outputs/journal.py", "the journal is damaged")
def a_damaged_journal(at: Trial) -> None:
    command = interrupted(at)
    (at.tmp / "out.partial" / "journal").write_bytes(b"[]\n")
    at.refused(*command, "--resume")
    at.loads(*command, *at.options())


@follows("outputs/writer.py", "something else was created here during the run")
def something_in_the_way(at: Trial) -> None:
    """The score command makes it."""
    script = f"import os; os.makedirs({str(at.out)!r}, exist_ok=True); print(1)"
    made = shlex.join([sys.executable, "-c", script, "{}"])
    command = ("soup", at.base, at.finetuned, "-o", at.out, "--greedy", "--score-command", made)
    at.refused(*command)
    at.out.rename(at.tmp / "away")
    at.loads(*command, *at.options())


@follows("cli/writing.py", "run it again with --overwrite")
def a_report_that_nobody_could_take(at: Trial) -> None:
    command = (*at.edit, "--report", "-")
    with TextIOWrapper(BufferedWriter(Stdout("/dev/full", "w"))) as full, redirect_stdout(full):
        at.refused(*command)
    assert (at.out / "model.safetensors").is_file()
    at.loads(*command, *at.options())


@follows("cli/writing.py", "rerun the command with --resume", "rerun the command with --overwrite")
def a_signal(at: Trial) -> None:
    """The score command of the first run interrupts it."""
    stop = at.tmp / "stop"
    stop.touch()
    kill = f"(os.kill({os.getpid()}, signal.SIGINT), time.sleep(9))"
    script = f"import os, signal, time; os.path.exists({str(stop)!r}) and {kill}; print(1)"
    scored = shlex.join([sys.executable, "-c", script, "{}"])
    command = ("soup", at.base, at.finetuned, "-o", at.out, "--greedy", "--score-command", scored)
    replaces = ["--overwrite"] if "--overwrite" in at.site.words else []
    at.refused(*command, *replaces)
    stop.unlink()
    at.loads(*command, *at.options(0), *(at.options(1) if replaces else []))


@follows("errors.py", "fix what it runs, then rerun with --resume")
@follows("errors.py", "fix it, then run monosoup again")
def a_score_command_that_fails(at: Trial) -> None:
    """The script fails at once, or after the first of two scores; it is mended, and the run goes on."""
    has_scores, script = "--resume" in at.site.hint, at.tmp / "score.py"
    broken = (
        f"import sys\nsys.exit(sys.argv[1] != {str(at.base)!r})" if has_scores else "import sys\nsys.exit(1)"
    )
    script.write_text(f"print(1)\n{broken}\n")
    scored = shlex.join([sys.executable, str(script), "{}"])
    command = ("soup", at.base, at.finetuned, "-o", at.out, "--greedy", "--score-command", scored)
    at.refused(*command)
    script.write_text("print(1)\n")
    at.loads(*command, *(at.options() if has_scores else ()))


@follows("pipeline/score_command.py", "have it work on a copy, then rerun with --resume")
def a_score_command_that_changes_a_draft(at: Trial) -> None:
    command = [*at.edit, "--score", "echo >> {}/model.safetensors; echo 1"]
    at.refused(*command)
    command[-1] = f"cp -r {{}} {at.tmp}/copy; echo >> {at.tmp}/copy/model.safetensors; echo 1"
    at.loads(*command, *at.options())


def spoiling(at: Trial, spoilt: str) -> str:
    """A score command that spoils a file at its third run."""
    script = at.tmp / "score.sh"
    script.write_text(
        f"echo >> {at.tmp}/log; test $(wc -l < {at.tmp}/log) = 3 && echo | tee -a {spoilt}; echo 1"
    )
    return f"sh {script} {{}}"


def scores_on(at: Trial, *command: object) -> None:
    """The command is mended, and no score that is done is done again."""
    (at.tmp / "score.sh").write_text(f"echo >> {at.tmp}/log; cp -r $1 {at.tmp}/copy; echo 1")
    at.loads(*command, *at.options())
    assert len((at.tmp / "log").read_text()) == 5


@follows("pipeline/score_command.py", "put it back with its old time")
def a_score_command_that_changes_an_input(at: Trial) -> None:
    before = at.finetuned.read_bytes()
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "0:0.9:0.3", "--score")
    score = spoiling(at, str(at.finetuned))
    at.refused(*command, score)
    at.finetuned.write_bytes(before)
    in_shell(at)
    scores_on(at, *command, score)


@follows("api/search.py", "rerun with the same arguments")
def another_choice_of_a_search(at: Trial) -> None:
    """Something in the way stops the first run after it has written; then another score wants another."""
    command = ("search", at.base, at.finetuned, "-o", at.out, "--budget", "2", "--score")
    first, last = "echo 1; : {}", f"echo >> {at.tmp}/log; wc -l < {at.tmp}/log; : {{}}"
    for end in ((first, "--resume"), (last, "--overwrite")):
        assert at.run(*command, f"mkdir -p {at.out}; {first}").code == 1
        at.out.rmdir()
        at.refused(*command, last, "--resume")
        assert end[1] in ("--resume", *at.options())
        at.loads(*command, *end)
        shutil.rmtree(at.out)


@follows("outputs/output_path.py", "the output already exists")
def an_output_that_exists(at: Trial) -> None:
    at.works(*at.edit)
    at.refused(*at.edit)
    at.loads(*at.edit, *at.options())
    at.loads(*at.edit[:-1], at.tmp / "another", output=at.tmp / "another")


@follows("outputs/output_path.py", "the report already exists")
def a_report_that_exists(at: Trial) -> None:
    report = at.tmp / "report.json"
    report.write_text("{}")
    at.refused(*at.edit, "--report", report)
    at.loads(*at.edit, "--report", report, *at.options())
    shutil.rmtree(at.out)
    at.loads(*at.edit, "--report", at.tmp / "another.json")


@follows("outputs/output_path.py", "pass --overwrite --resume")
def work_that_was_to_replace_the_output(at: Trial) -> None:
    at.works(*at.edit)
    command = folders(at, 2 * LIMIT)
    with full_disk():
        assert at.run(*command, "--overwrite").code == 1
    for options in ([], ["--resume"]):
        at.refused(*command, *options)
        assert "or --overwrite to start over" in at.hint
    at.loads(*command, *at.options(0), *at.options(1))


@follows("outputs/open_files.py", "what is still there is kept")
@follows("outputs/open_files.py", "nothing is left of its work")
@follows("outputs/open_files.py", "was exchanged or cut during the run")
def work_that_is_lost(at: Trial) -> None:
    """The score command loses it once."""
    lost = at.tmp / "lost"
    place = f"{at.out}.partial" + ("/journal" if "still there" in at.site.hint else "")
    script = f"import os, shutil; os.path.exists({str(lost)!r}) or shutil.move({place!r}, {str(lost)!r})"
    if "exchanged" in at.site.problem:
        script += f"; os.path.exists({place!r}) or shutil.copytree({str(lost)!r}, {place!r})"
    scored = shlex.join([sys.executable, "-c", f"{script}; print(1)", "{}"])
    command = ("soup", at.base, at.finetuned, "-o", at.out, "--greedy", "--score-command", scored)
    at.refused(*command)
    at.loads(*command, *at.options())


@follows("outputs/open_files.py", "appeared among the files of the run")
def a_file_that_appeared(at: Trial) -> None:
    """The score command makes it."""
    stray = Path(f"{at.out}.partial", "files", "stray.bin")
    script = f"open({str(stray)!r}, 'w').close(); print(1)"
    scored = shlex.join([sys.executable, "-c", script, "{}"])
    command = ("soup", at.base, at.finetuned, "-o", at.out, "--greedy", "--score-command", scored)
    at.refused(*command)
    stray.rename(at.tmp / "away")
    at.loads(*command, *at.options())


@follows("outputs/output_path.py", "the output's folder does not exist")
def a_missing_folder(at: Trial) -> None:
    output = at.tmp / "runs" / "first" / "out"
    at.refused(*at.edit[:-1], output)
    Path(at.blanks[0]).mkdir(parents=True)
    at.loads(*at.edit[:-1], output, output=output)


@follows("outputs/output_path.py", "the output is a symbolic link")
def an_output_that_is_a_link(at: Trial) -> None:
    at.out.symlink_to(at.tmp / "real")
    at.refused(*at.edit)
    at.loads(*at.edit[:-1], at.out.readlink(), output=at.tmp / "real")


@follows("outputs/output_path.py", "is in the place of unfinished work")
def a_path_that_is_taken(at: Trial) -> None:
    taken = at.tmp / "out.partial"
    taken.write_text("mine")
    at.refused(*at.edit)
    taken.rename(at.tmp / "away")
    at.loads(*at.edit)


@follows("outputs/workplace.py", "cannot be removed", marks=(AS_ROOT,))
@follows("cli/writing.py", "cannot be removed whole", marks=(AS_ROOT,))
def what_the_system_does_not_remove(at: Trial) -> None:
    """A folder of root's in an output of somebody else."""
    with TemporaryDirectory() as place:
        base, finetuned, out = (Path(place, name) for name in ("a.safetensors", "b.safetensors", "out"))
        os.chmod(place, 0o777)
        shutil.copy(at.base, base)
        shutil.copy(at.finetuned, finetuned)
        for path in (base, finetuned):
            path.chmod(0o644)
        command = ("edit", base, finetuned, "-o", out, "--overwrite")
        with nobody():
            at.works(*command)
        (out / "sub").mkdir()
        (out / "sub" / "file").touch()
        with nobody():
            result = at.noted(*command) if at.site.file.startswith("cli") else at.works(*command)
            assert "out.partial cannot be removed whole" in result.err
            if not at.site.file.startswith("cli"):
                at.refused(*command)
        shutil.rmtree(out.with_name("out.partial"))
        with nobody():
            assert "removed" not in at.loads(*command, output=out).err


@follows("outputs/output_path.py", "is inside the Hub's cache")
def an_output_in_the_cache(at: Trial) -> None:
    snapshot = at.tmp / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    at.refused(*at.edit[:-1], snapshot / "out")
    at.loads(*at.edit)


@follows("outputs/output_path.py", "will not replace a folder that is not a checkpoint")
def a_folder_of_something_else(at: Trial) -> None:
    at.out.mkdir()
    (at.out / "notes.txt").write_text("mine")
    at.refused(*at.edit, "--overwrite")
    at.loads(*at.edit[:-1], at.tmp / "another", output=at.tmp / "another")
    shutil.rmtree(at.out)
    at.loads(*at.edit, "--overwrite")


@follows("pipeline/destination.py", "several values make several checkpoints, which need a folder")
@follows("pipeline/destination.py", "--max-shard-size needs a folder")
@follows("outputs/extracted_adapter.py", "an adapter needs a folder")
def a_file_where_a_folder_is_needed(at: Trial) -> None:
    options = {
        "several": ["--wise", "0.5,1"],
        "--max": ["--max-shard-size", "1GB"],
        "an adapter": ["--as-adapter", "--adapter-rank", "2", "--include", "block.weight"],
    }
    words = next(option for start, option in options.items() if at.site.hint.startswith(start))
    at.refused(*at.edit[:-1], at.tmp / "out.safetensors", *words)
    at.loads(*at.edit, *words)


@follows("outputs/adapter_kind.py", "--as-adapter of a whole checkpoint needs a base")
@follows("outputs/adapter_kind.py", "--as-adapter of a whole checkpoint needs --adapter-rank")
def an_adapter_of_a_whole_checkpoint(at: Trial) -> None:
    given = ["--as-adapter", "--include", "block.weight"]
    if at.site.hint.endswith("a base"):
        at.refused("edit", "-", at.finetuned, "-o", at.out, *given, "--adapter-rank", "2")
        at.loads(*at.edit, *given, "--adapter-rank", "2")
        return
    at.refused(*at.edit, *given)
    at.loads(*at.edit, *given, *at.options(1), "2")
    at.loads(*at.edit, *given, *at.options(2), "0.9", "--overwrite")


@follows("api/edit.py", "an extracted adapter cannot leave")
@follows("api/edit.py", "an adapter cannot interpolate what it keeps")
@follows("api/edit.py", "--adapter-rank and --adapter-energy need --as-adapter")
@follows("pipeline/task.py", "--on-nonfinite keep writes a whole checkpoint")
def an_adapter_or_not(at: Trial) -> None:
    rank, adapter = ["--adapter-rank", "2"], ["--as-adapter", "--include", "block.weight"]
    if at.site.hint.endswith("need --as-adapter"):
        at.refused(*at.edit, *rank, "--include", "block.weight")
        at.loads(*at.edit, *rank, *adapter)
    elif at.site.file == "api/edit.py":
        first = ["--wise", "0.5"] if "interpolate" in at.site.problem else rank
        at.refused(*at.edit, *first, *adapter, "--min-update", "0.1")
        options = first if first != rank else []
        at.loads(*at.edit, *options, "--include", "block.weight", "--min-update", "0.1")
    else:
        from tests.hints.of_inputs import with_nan

        with_nan(at.finetuned, "block.weight")
        at.refused(*at.edit, *rank, *adapter)
        (option,) = re.findall(r"--on-nonfinite keep", at.hint)
        at.loads(*at.edit, *option.split(), "--include", "block.weight")


@follows("report/notes.py", "raise --adapter-rank or --adapter-energy")
def factors_that_leave_something_out(at: Trial) -> None:
    """A rank as large as the matrix leaves nothing out, and nothing is said."""
    adapter = ["--as-adapter", "--include", "block.weight"]
    at.noted(*at.edit, *adapter, "--adapter-rank", "1")
    rank, energy = (at.options(number)[0] for number in (0, 1))
    for option in ([rank, "6"], [energy, "1"]):
        assert "leave out" not in at.loads(*at.edit, *adapter, *option, "--overwrite").err


@follows("report/rounded.py", "add --dtype float32 to keep it")
def an_edit_that_is_rounded_away(at: Trial) -> None:
    """One step of bfloat16 in every weight, of which the edit takes a part."""
    steps = torch.randint(-1, 2, (24, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    weights = torch.linspace(1.0, 2.0, 384).reshape(24, 16).bfloat16()
    tuned = (weights.view(torch.int16) + steps).view(torch.bfloat16)
    for content, file in ((weights, at.base), (tuned, at.finetuned)):
        save_file({"block.weight": content}, file)
    assert "note: 1 of 1 update: rounding to bfloat16 undoes most" in at.run(*at.edit).err
    assert torch.equal(load_file(at.out / "model.safetensors")["block.weight"], tuned)
    at.look(at.run("report", at.out), "edit")
    at.loads(*at.edit, "--dtype", "float32", "--overwrite")
    edited = load_file(at.out / "model.safetensors")["block.weight"]
    assert (edited != tuned).float().mean() > 0.5


@follows("methods/extraction.py", "--rank 32 is a start")
def a_rank_to_start_with(at: Trial) -> None:
    given = ["extract", at.base, at.finetuned, "-o", at.out, "--include", "block.weight"]
    at.refused(*given)
    at.loads(*given, *at.options())


@follows("api/soup.py", "--ema-decay needs --schedule ema")
def a_decay_without_its_schedule(at: Trial) -> None:
    given = ["soup", at.base, at.finetuned, "-o", at.out, "--ema-decay", "0.5"]
    at.refused(*given)
    at.loads(*given, "--schedule", "ema")


@follows("sources/runs.py", "two checkpoints have the same step in their names")
@follows("sources/runs.py", "its name has no step")
def steps_that_names_do_not_say(at: Trial) -> None:
    other = "checkpoint-5" if "two" in at.site.problem else "final"
    folders = [at.tmp / "one" / "checkpoint-5", at.tmp / "two" / other]
    for folder, file in zip(folders, (at.base, at.finetuned), strict=True):
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "model.safetensors")
    given = ["soup", *folders, "-o", at.out, "--schedule", "ema"]
    at.refused(*given)
    at.loads(*given, "--steps", "5,10")


@follows("api/soup.py", "--steps needs --schedule or --window")
def steps_without_a_schedule(at: Trial) -> None:
    given = ["soup", at.base, at.finetuned, "-o", at.out, "--steps", "1,2"]
    at.refused(*given)
    at.loads(*given, "--schedule", "linear")


@follows("tensors/plan.py", "only … has it; --exclude leaves such tensors as in ONTO")
@follows("tensors/plan.py", "only … has it; --exclude drops such tensors")
def a_tensor_that_only_one_has(at: Trial) -> None:
    more = at.tmp / "more.safetensors"
    save_file({**load_file(at.base), "new.weight": torch.ones(2, 2)}, more)
    is_onto = "as in ONTO" in at.site.hint
    others = (at.finetuned, more) if is_onto else (more, at.finetuned)
    given = ["transplant", at.base, *others, "-o", at.out]
    at.refused(*given)
    at.loads(*given, *at.options(), "new*")


@follows("adapters/file_names.py", "--form diffusers has one")
@follows("outputs/extracted_adapter.py", "without --form, it is a folder for peft")
def a_file_of_a_part_without_a_name(at: Trial) -> None:
    unet_pipeline().save_pretrained(at.tmp / "pipeline")
    place = at.tmp / "pipeline"
    file, rank = at.out.with_suffix(".safetensors"), ("--rank", "2")
    if at.site.file.startswith("adapters"):
        tuned = unet_pipeline()
        step(tuned.vae)
        tuned.save_pretrained(at.tmp / "tuned")
        given = ["extract", place, at.tmp / "tuned", "-o", file, *rank, "--parts", "vae"]
        at.refused(*given, "--form", "kohya")
        at.loads(*given, "--form", "diffusers", output=file)
        return
    given = ["extract", at.base, at.finetuned, *rank, "--include", "block.weight"]
    at.refused(*given, "-o", file, "--form", "kohya")
    at.loads(*given, "-o", at.out)
