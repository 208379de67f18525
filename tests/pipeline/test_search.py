"""`search`: real candidates, scored by a real command whose optimum is known; killed and resumed."""

import hashlib
import json
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch

import monosoup_cli
from monosoup_cli.errors import ScoreError, UsageError
from monosoup_cli.outputs.workplace import partial_path
from monosoup_cli.spectral.eigen import eigh
from tests.landscape import Landscape
from tests.outputs.forks import Forks


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The family, and checkpoints that are known to be the best by their scores."""
    land = Landscape(tmp_path_factory.mktemp("land") / "land", finetuned=3)
    monosoup_cli.wise(land.base, land.ft, land.folder / "at 0.75", alpha=0.75, device="cpu")
    monosoup_cli.edit(land.base, land.ft, land.folder / "edited", split="energy-entropy", device="cpu")
    return land


@pytest.fixture
def land(inputs):
    inputs.forget()
    yield inputs
    for path in (*inputs.folder.glob("fail at *"), *inputs.folder.glob("kill at *")):
        path.unlink()


def report_of(out):
    path = out / "monosoup_report.json" if out.is_dir() else out.with_name(f"{out.stem}.report.json")
    return json.loads(path.read_text())


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "monosoup_report.json"
    }


def test_the_best_is_found_made_and_made_again(run, land, tmp_path):
    """α = 0.75 is not in the coarse pass. The command in the report makes OUT again, byte for byte."""
    out, best = tmp_path / "out", land.folder / "at 0.75"
    words = ("search", land.base, land.ft, "-o", out, "--budget", "19", "--device", "cpu")
    done = run(*words, "--score", land.command(best))
    assert done.code == 0, done.err
    report = report_of(out)
    search = report["search"]
    assert search["chosen"] == "wise --alpha 0.75"
    assert (out / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    scored = [each["sha256"] for each in land.runs]
    assert len(scored) == len({*scored}) <= 19
    assert len(scored) == sum("same_as" not in one for one in search["candidates"])
    for each in land.runs:  # one candidate on the disk at a time, whole
        assert len([name for name in each["siblings"] if name.startswith("draft-")]) == 1
        assert {"README.md", "config.json", "model.safetensors"} < {*each["beside"]}
    assert search["finetuned"][0]["scores"] == search["candidates"][0]["scores"]
    assert "wise --alpha 0.75" in done.err
    assert (
        "the score 'score' chose the output, so it is likely too high for it: report a score on other data"
        in done.err
    )
    assert not partial_path(out).exists()
    shown = run("report", out).out
    assert "chosen  wise --alpha 0.75\n" in shown
    assert "note: the score 'score' chose the output" in shown

    before = contents(out)
    shutil.rmtree(out)
    assert run(*shlex.split(search["command"])[1:], "--device", "cpu").code == 0
    assert contents(out) == before
    own = report_of(out)
    assert {**own, "timing": 0, "inputs": 0, "search": search} == {**report, "timing": 0, "inputs": 0}
    assert f"monosoup wise base ft --alpha 0.75 -o {out.name}" in before["README.md"].decode()


def test_two_scores_of_several(run, land, tmp_path):
    """The choice and the front are those of all candidates in the report, by brute force."""
    out = tmp_path / "out.safetensors"
    scores = [
        f"{name}={land.command(land.folder / best, name)}" for name, best in (("in", "ft"), ("out", "edited"))
    ]
    words = ["search", land.base, *land.finetuned, "-o", out, "--budget", "8", "--device", "cpu"]
    words += ["--score", scores[0], "--score", scores[1], "--prefer", "out", "--max-loss", "in=45"]
    words += ["--final-score", land.command(land.base, "final")]
    done = run(*words)
    assert done.code == 0, done.err
    report = report_of(out)
    search = report["search"]
    tried = {one["candidate"]: one["scores"] for one in search["candidates"]}
    assert "stock" in tried
    alone = [one["scores"]["in"] for one in search["finetuned"]]
    assert max(alone) == 0.0
    within = {label: scores for label, scores in tried.items() if scores["in"] >= max(alone) - 45}
    best = max(tried, key=lambda label: tried[label]["out"])
    assert within
    assert min(alone) - 45 <= tried[best]["in"] < max(alone) - 45  # so the best of them counts
    assert search["chosen"] == max(within, key=lambda label: within[label]["out"])
    front = {
        label
        for label, one in tried.items()
        if not any(
            other != one and other["in"] >= one["in"] and other["out"] >= one["out"]
            for other in tried.values()
        )
    }
    assert {*search["front"]} == front
    names = [each["name"] for each in land.runs]
    assert names.count("in") == names.count("out") == 8 + 3
    assert names.count("final") == 2  # the choice, and the best of the fine-tuned
    finals = [each["sha256"] for each in land.runs if each["name"] == "final"]
    assert finals[1] == report["output"]["files"][0]["sha256"]
    assert finals[0] != finals[1]
    assert [("final_scores" in one) for one in search["finetuned"]].count(True) == 1
    assert report["output"]["scores"].keys() == {"score"}
    assert [one["source"] for one in search["finetuned"]] == [str(path) for path in land.finetuned]
    shown = run("report", out.with_name("out.report.json"), "--plot", tmp_path / "x.svg")
    assert "front, chosen" in shown.out
    assert "Pareto front" in (tmp_path / "x.svg").read_text()


def test_candidates_share_their_decompositions(run, land, tmp_path, monkeypatch):
    """Each matrix is decomposed once by the search, and once for the output; nothing is left of it."""
    from safetensors.torch import save_file

    from monosoup_cli.spectral import kept

    generator = torch.Generator().manual_seed(0)
    base = {f"{name}.weight": torch.randn(320, 260, generator=generator) for name in ("one", "two")}
    tuned = {name: one + 0.1 * torch.randn(one.shape, generator=generator) for name, one in base.items()}
    for name, tensors in (("base", base), ("ft", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    solved = []
    monkeypatch.setattr(kept, "eigh", lambda matrix: solved.append(matrix.shape) or eigh(matrix))
    inputs, out = [tmp_path / "base.safetensors", tmp_path / "ft.safetensors"], tmp_path / "out.safetensors"
    plan = run("search", *inputs, "-o", out, "--score", "echo {}", "--dry-run", "--format", "json")
    shared = json.loads(plan.out)["shared_bytes"]
    failing = land.at(4, "fail")
    words = {"score": land.command(inputs[0]), "budget": 9, "device": "cpu"}
    with pytest.raises(ScoreError):  # after the first edit
        monosoup_cli.search(*inputs, out, **words)
    assert not (partial_path(out) / "eigenvectors").exists()
    failing.unlink()
    solved.clear()
    report = monosoup_cli.search(*inputs, out, **words, resume=True)
    edits = [
        one["candidate"] for one in report["search"]["candidates"] if one["candidate"].startswith("edit")
    ]
    assert len(edits) >= 4
    assert solved == [(260, 260)] * 2
    assert "eigenvectors" in land.runs[0]["siblings"]
    assert shared == 8 * 260 * 261 * 2
    assert not partial_path(out).exists()
    scored = {each["sha256"] for each in land.runs}
    for number, edit in enumerate(edits[:2]):  # the first one decomposes, the second one finds it
        alone = tmp_path / f"alone-{number}.safetensors"
        assert run(*shlex.split(edit), *inputs, "-o", alone, "--device", "cpu").code == 0
        assert hashlib.sha256(alone.read_bytes()).hexdigest() in scored


def test_equal_weights_are_scored_once(run, land, tmp_path):
    """Of an update of rank 1, every rule keeps one direction: most edits are the same."""
    from safetensors.torch import load_file, save_file

    base = {name: one.round() for name, one in load_file(land.base / "model.safetensors").items()}
    tuned = {  # whole numbers, so that the rank is exact
        name: one + (one[:, :1] * (one[:1] + 1) if one.ndim > 1 else 1) for name, one in base.items()
    }
    for name, tensors in (("base", base), ("ft", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    words = ("search", tmp_path / "base.safetensors", tmp_path / "ft.safetensors", "-o", tmp_path / "out")
    done = run(*words, "--budget", "7", "--device", "cpu", "--score", land.command(land.base))
    assert done.code == 0, done.err
    scored = [each["sha256"] for each in land.runs]
    assert len(scored) == len({*scored}) == 7
    tried = {one["candidate"]: one for one in report_of(tmp_path / "out")["search"]["candidates"]}
    same = {label: one["same_as"] for label, one in tried.items() if "same_as" in one}
    assert "edit --energy 0.8" in same
    assert all(tried[label]["scores"] == tried[other]["scores"] for label, other in same.items())
    counted = [line.rpartition(", ")[2] for line in done.err.splitlines() if " of at most 7" in line]
    assert [*dict.fromkeys(counted)] == [f"{number} of at most 7" for number in range(1, 8)]
    assert "edit --energy 0.8, the same weights as edit: score " in done.err
    table = done.err.partition("made by")[0].rpartition("score\n")[2]
    assert not [line for line in table.splitlines() if line.startswith("edit --energy 0.8 ")]


def test_fine_tunes_with_the_same_weights_count_as_one(run, land, tmp_path, monkeypatch):
    """And a checkpoint may be called as a candidate is."""
    copies = [tmp_path / "wise --alpha 1", tmp_path / "edit"]
    for copy in copies:
        shutil.copytree(land.ft, copy)
    monkeypatch.chdir(tmp_path)
    words = ["search", land.base, *(copy.name for copy in copies), "-o", "out", "--budget", "4"]
    done = run(*words, "--device", "cpu", "--score", land.command(land.base))
    assert done.code == 0, done.err
    counted = [line.rpartition(", ")[2] for line in done.err.splitlines() if " of at most 4" in line]
    assert [*dict.fromkeys(counted)] == [f"{number} of at most 4" for number in range(1, 5)]
    candidates = report_of(tmp_path / "out")["search"]["candidates"]
    tried = {one["candidate"]: one for one in candidates}
    assert tried["wise --alpha 1"]["same_as"] == copies[0].name
    assert tried["edit"]["scores"] != tried["wise --alpha 1"]["scores"]
    assert len(land.runs) == 5 == 1 + sum("same_as" not in one for one in candidates)


def cheap(folder):
    """A score from the bytes, in no time, that notes what it scored; a file makes it kill the run."""
    log = shlex.quote(str(folder / "log"))
    kill = f'test -e {shlex.quote(str(folder))}/"kill at "$(wc -l < {log})'
    return (
        f"F={{}}; test -d $F && F=$F/model.safetensors; SUM=$(cksum < $F); echo $SUM >> {log};"
        f" {kill} && kill -9 $PPID; echo -$((${{SUM%% *}} % 997))"
    )


def small(land, folder, out, *more):
    """A search that takes no time for scores."""
    folder.mkdir(exist_ok=True)
    words = ("search", land.base, land.ft, "-o", out, "--budget", "8", "--device", "cpu", "--workers", "2")
    return (*words, "--score", cheap(folder), "--final-score", f"{cheap(folder)} # finally", *more)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory, forks):
    """A search that nothing stops: its output, what was scored, and its system calls."""
    folder = tmp_path_factory.mktemp("whole")
    ended = forks.run(*small(inputs, folder / "log", folder / "out"))
    assert ended.code == 0, ended.err
    return folder / "out", (folder / "log" / "log").read_text().splitlines(), ended.calls


def assert_resumed(whole, out, log, repeated):
    """The same choice and the same bytes, and nothing was scored twice but what was being scored."""
    expected, scored, _ = whole
    assert contents(out) == contents(expected)
    found = report_of(out)["search"]
    assert {**found, "command": ""} == {**report_of(expected)["search"], "command": ""}
    lines = (log / "log").read_text().splitlines()
    assert len(lines) - len(scored) == repeated
    assert sorted({*lines}) == sorted({*scored})
    assert not partial_path(out).exists()


def test_killed_while_scoring(whole, inputs, tmp_path, forks):
    """At the first and a later candidate, at the last one, and at both final scores."""
    count = len(whole[1])
    assert count == 8 + 2
    for number in (1, 4, 8, 9, 10):
        folder, out = tmp_path / str(number), tmp_path / f"{number}" / "out"
        folder.mkdir()
        (folder / f"kill at {number}").touch()
        assert forks.run(*small(inputs, folder, out)).code == -signal.SIGKILL
        assert not out.exists()
        ended = forks.run(*small(inputs, folder, out, "--resume"))
        assert ended.code == 0, ended.err
        assert_resumed(whole, out, folder, repeated=1)


def stopped_at(number, whole, inputs, folder, forks):
    folder.mkdir()
    out = folder / "out"
    ended = forks.run(*small(inputs, folder, out), at=number)
    if ended.code == 0 or out.exists():  # some runs make fewer calls
        return
    assert ended.code == -signal.SIGKILL
    ended = forks.run(*small(inputs, folder, out, "--resume"))
    assert ended.code == 0, ended.err
    repeated = len((folder / "log").read_text().splitlines()) - len(whole[1])
    assert repeated <= 1
    assert_resumed(whole, out, folder, repeated)


@pytest.mark.slow
def test_killed_at_system_calls(whole, inputs, tmp_path, forks):
    """While drafts are written, scores are noted, and the output is written and moved."""
    calls = len(whole[2])
    for number in sorted({2, 9, *range(20, calls, calls // 8), calls - 12, calls - 4}):
        stopped_at(number, whole, inputs, tmp_path / str(number), forks)


@pytest.mark.thorough
def test_killed_at_many_system_calls(whole, inputs, tmp_path, forks):
    """At every one of the last, which publish, and at some sixty of the others."""
    calls = len(whole[2])
    for number in sorted({*range(1, calls, calls // 60), *range(calls - 40, calls + 1)}):
        stopped_at(number, whole, inputs, tmp_path / str(number), forks)
        shutil.rmtree(tmp_path / str(number))


def test_a_command_that_fails_loses_nothing(run, land, tmp_path):
    out = tmp_path / "out"
    mended = land.at(3, "fail")
    words = (
        "search",
        land.base,
        land.ft,
        "-o",
        out,
        "--budget",
        "4",
        "--device",
        "cpu",
        "--score",
        land.command(land.base),
    )
    failed = run(*words)
    assert failed.code == 1
    assert "no luck today" in failed.err
    assert "what is finished is kept" in failed.err
    mended.unlink()
    assert run(*words, "--resume").code == 0
    scored = [each["sha256"] for each in land.runs]
    assert len(scored) == 5
    assert len({*scored}) == 4


def test_the_resumed_search_may_want_something_else(run, land, tmp_path):
    """Another command, after a mistake in the first; less of the budget, to end with the best so far."""
    out = tmp_path / "out"
    words = ["search", land.base, land.ft, "-o", out, "--device", "cpu", "--budget"]
    mistaken = run(*words, "9", "--score", "python3 -S no-such-file {}")
    assert mistaken.code == 1
    assert "rerun with --resume" in mistaken.err
    mended = land.at(5, "fail")
    target = land.folder / "at 0.75"
    assert run(*words, "9", "--score", land.command(target), "--resume").code == 1
    mended.unlink()
    done = run(*words, "4", "--score", land.command(target), "--resume")
    assert done.code == 0, done.err
    assert len(land.runs) == 5
    assert "4 of them scored" in done.err
    assert "wise --alpha 0, kept: score " in done.err
    assert "scoring wise --alpha 0" not in done.err
    assert "\nmade by: monosoup " in done.err
    search = report_of(out)["search"]
    best = max(search["candidates"], key=lambda one: one["scores"]["score"])
    assert search["chosen"] == best["candidate"]


def test_an_output_that_is_begun_has_one_choice(run, land, tmp_path):
    """What is written of the first choice is no part of another one."""
    out = tmp_path / "out"
    words = ["search", land.base, land.ft, "-o", out, "--device", "cpu", "--budget", "4", "--score"]
    in_the_way = f"mkdir -p {shlex.quote(str(out))}; "
    failed = run(*words, in_the_way + land.command(land.ft))
    assert "something else was created here" in failed.err
    out.rmdir()
    other = (*words, land.command(land.base), "--resume")
    refused = run(*other)
    assert refused.code == 1
    assert "expected wise --alpha 1, found wise --alpha 0" in refused.err
    assert run(*words, land.command(land.ft), "--resume").code == 0


@pytest.mark.parametrize("number", [2, 5])
def test_a_final_command_fails_early_and_may_be_another_one(run, land, tmp_path, number):
    """The fine-tuned model gets its final score first, and the choice in the same form, whatever OUT's."""
    tuned, out = land.ft / "model.safetensors", tmp_path / "out"
    mended = land.at(number, "fail")
    words = ["search", land.base, tuned, "-o", out, "--budget", "3", "--device", "cpu"]
    words += ["--score", land.command(land.base), "--final-score"]
    failed = run(*words, land.command(land.base, "wrong"))
    assert failed.code == 1
    assert "no luck today" in failed.err
    assert len(land.runs) == number
    mended.unlink()
    done = run(*words, land.command(land.base, "right"), "--resume")
    assert done.code == 0, done.err
    names = [each["name"] for each in land.runs]
    assert (names.count("score"), names.count("right")) == (3, 2)
    assert {Path(each["path"]).suffix for each in land.runs} == {".safetensors"}
    finals = [each["sha256"] for each in land.runs if each["name"] == "right"]
    assert finals[1] == report_of(out)["output"]["files"][0]["sha256"]
    assert f"final score  {report_of(out)['output']['scores']['score']:.4g}; {tuned}: " in done.err
    finals = "scoring wise --alpha 1 with --final-score"
    assert (failed.err.count(finals), done.err.count(finals)) == (1, 1)
    assert "scoring wise --alpha 1, " in failed.err
    assert "scoring wise --alpha 1, " not in done.err  # its score was kept


def test_a_loss_of_the_limit_is_no_loss_too_many(run, land, tmp_path):
    """The fine-tuned model has 0.8, all others have 0.7: in floats, that is a little more than 0.1 less."""
    seen = shlex.quote(str(tmp_path / "seen"))
    scores = (
        f"in=test -e {seen} && echo 0.7 || echo 0.8; : {{}}",
        f"out=echo >> {seen}; wc -l < {seen}; : {{}}",
    )
    words = ["search", land.base, land.ft, "-o", tmp_path / "out", "--budget", "3", "--device", "cpu"]
    words += ["--score", scores[0], "--score", scores[1], "--prefer", "out", "--max-loss", "in=0.1"]
    done = run(*words)
    assert done.code == 0, done.err
    search = report_of(tmp_path / "out")["search"]
    chosen = {one["candidate"]: one["scores"] for one in search["candidates"]}[search["chosen"]]
    assert chosen == {"in": 0.7, "out": 3.0}
    assert search["is_within"]
    assert "no candidate stays within" not in done.err


def test_without_blocks_and_with_nothing_better(run, land, tmp_path):
    """The fine-tuned model itself may be the choice; lines cannot be tried on names without blocks."""
    from safetensors.torch import load_file, save_file

    for name, source in (("base", land.base), ("ft", land.ft)):
        tensors = load_file(source / "model.safetensors")
        save_file(
            {each.replace("blocks.", "b"): one for each, one in tensors.items()},
            tmp_path / f"{name}.safetensors",
        )
    tuned, out = tmp_path / "ft.safetensors", tmp_path / "out.safetensors"
    words = ("search", tmp_path / "base.safetensors", tuned, "-o", out, "--budget", "5", "--device", "cpu")
    done = run(*words, "--score", land.command(tuned), "--final-score", land.command(tuned, "final"))
    assert done.code == 0, done.err
    assert load_file(out).keys() == load_file(tuned).keys()
    assert all((one == load_file(tuned)[name]).all() for name, one in load_file(out).items())
    assert "no candidate is better than the fine-tuned model" in done.err
    assert "lines was not tried" in done.err
    assert [each["name"] for each in land.runs].count("final") == 1  # the choice is the fine-tuned model


def test_options_reach_every_candidate(land, tmp_path):
    report = monosoup_cli.search(
        land.base,
        land.ft,
        tmp_path / "out",
        score=land.command(land.ft),
        budget=3,
        exclude="head*",
        dtype="float16",
        device="cpu",
    )
    assert report["arguments"]["exclude"] == ["head*"]
    assert {layer["reason"] for layer in report["layers"] if layer["name"] == "head.weight"} == {"excluded"}
    assert "--exclude 'head*' --dtype float16" in report["search"]["command"]


def test_a_dry_run_counts_and_writes_nothing(run, land, tmp_path):
    words = ("search", land.base, *land.finetuned, "-o", tmp_path / "out", "--budget", "9", "--dry-run")
    scores = ("--score", f"a={land.command(land.base)}", "--score", "b=echo {}", "--prefer", "a")
    done = run(*words, *scores, "--final-score", "echo {} #")
    assert "at most 26 times for 9 candidates, " in done.out  # 9 + 3, twice; and 2
    plan = json.loads(run(*words, *scores, "--format", "json").out)
    assert (plan["candidates"], plan["scorings"]) == (9, 24)
    matrices = [layer["shape"] for layer in plan["layers"] if layer["action"] == "edited"]
    assert plan["shared_bytes"] == sum(8 * min(shape) * (min(shape) + 1) for shape in matrices) > 0
    assert ", about 3.98 kB that they share" in done.out
    assert land.runs == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": ()}, "score is needed once or twice"),
        ({"score": ["a={}", "b={}", "c={}"]}, "score is needed once or twice"),
        ({"score": ["a={}", "b={}"]}, "one must be preferred"),
        ({"score": "a={}", "prefer": "b"}, "prefer names no score"),
        ({"score": "a={}", "max_loss": "a=1"}, "max_loss needs a second score"),
        ({"score": ["a={}", "b={}"], "prefer": "a", "max_loss": "c=1"}, "max_loss names no score"),
        ({"score": ["a={}", "b={}"], "prefer": "a", "max_loss": "b"}, "does not say how much"),
        ({"score": ["a={}", "b={}"], "prefer": "a", "max_loss": "b=-1"}, "does not say how much"),
        ({"score": ["a={}", "b={}"], "prefer": "a", "max_loss": "b=nan"}, "does not say how much"),
        ({"score": "a={}", "budget": 1}, "budget is out of range"),
        ({"score": "true"}, "score needs {}"),
        ({"score": "in=echo {}", "final_score": "test=echo {}"}, "final_score runs the same command"),
        ({"score": "a={}", "final_score": "true"}, "final_score needs {}"),
    ],
)
def test_bad_calls_are_refused_at_once(land, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        monosoup_cli.search(land.base, land.ft, tmp_path / "out", **options)
    assert [*tmp_path.iterdir()] == []


def test_it_is_verified_without_scoring(run, land, tmp_path):
    out = tmp_path / "out"
    words = ("search", land.base, land.ft, "-o", out, "--budget", "3", "--device", "cpu")
    assert run(*words, "--score", land.command(land.base)).code == 0
    land.forget()
    assert run("verify", out, "--again").code == 0
    assert land.runs == []


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("form", "out"), [("state dicts", "out"), ("adapters", "out.safetensors")])
def test_other_inputs_are_searched_as_the_chosen_command_reads_them(run, land, tmp_path, form, out, device):
    """The first candidate that is no input is scored best; its command makes OUT again, byte for byte."""
    import torch
    from safetensors.torch import load_file, save_file

    if form == "state dicts":
        base, tuned = tmp_path / "base.pt", [tmp_path / "ft.pt"]
        for path, source in ((base, land.base), (tuned[0], land.ft)):
            torch.save({"state_dict": load_file(source / "model.safetensors")}, path)
    else:
        base, tuned = land.base, [tmp_path / "adapter 0", tmp_path / "adapter 1"]
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["proj"]}
        for seed, path in enumerate(tuned):
            path.mkdir()
            draw = torch.Generator().manual_seed(seed)
            weights = {
                f"base_model.model.blocks.{block}.proj.lora_{name}.weight": torch.randn(shape, generator=draw)
                for block in range(3)
                for name, shape in (("A", (2, 12)), ("B", (16, 2)))
            }
            save_file(weights, path / "adapter_model.safetensors")
            (path / "adapter_config.json").write_text(json.dumps(config))
    seen = shlex.quote(str(tmp_path / "seen"))
    score = f"test -{'f' if form == 'state dicts' else 'd'} {{}} && echo >> {seen} && wc -l < {seen}"
    words = ["search", base, *tuned, "-o", tmp_path / out, "--budget", "4", "--device", device]
    done = run(*words, "--score", score, "--final-score", f"{score} #")
    assert done.code == 0, done.err
    report = report_of(tmp_path / out)
    search, other = report["search"], tmp_path / f"other {out}"
    assert search["chosen"] == [one for one in search["candidates"] if "same_as" not in one][-1]["candidate"]
    again = shlex.split(search["command"])[1:-1]
    assert run(*again, other, "--device", device).code == 0
    made = "model.safetensors" if out == "out" else ""
    assert (other / made).read_bytes() == (tmp_path / out / made).read_bytes()


def test_no_number_is_an_error(land, tmp_path):
    with pytest.raises(ScoreError, match="printed no number"):
        monosoup_cli.search(land.base, land.ft, tmp_path / "out", score="echo good {}", device="cpu")
