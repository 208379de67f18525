"""What hints on the inputs and on the choice of tensors lead to."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint

from tests.hints.table import Trial, follows
from tests.hub import cloned
from tests.peft_adapters import make


def with_nan(path: Path, name: str) -> None:
    weights = load_file(path)
    weights[name][0, 0] = torch.nan
    save_file(weights, path)


def changed(path: Path, shapes: dict[str, tuple[int, ...] | None]) -> None:
    """Give tensors other shapes, take them out, or add them."""
    weights = load_file(path)
    for name, shape in shapes.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.ones(shape)
    save_file(weights, path)


def named_tensor(err: str) -> str:
    (name,) = re.findall(r"tensor '(.*?)'", err)
    return str(name)


@follows("tensors/plan.py", "such tensors as they are, overlap edits")
def rows_that_differ(at: Trial) -> None:
    changed(at.finetuned, {"head.weight": (6, 8)})
    at.refused(*at.edit)
    option, keep = at.options()
    (other,) = re.findall(r"(\w+) edits the rows", at.hint)
    at.loads(*at.edit, option, keep)
    at.loads(*at.edit, option, other, "--overwrite")


@follows("tensors/plan.py", "the shapes differ…; --on-mismatch keep leaves such tensors as they are$")
def shapes_that_differ(at: Trial) -> None:
    changed(at.finetuned, {"head.weight": (4, 9)})
    at.refused(*at.edit)
    at.loads(*at.edit, *at.options())


@follows("tensors/plan.py", "only the number of rows may differ")
def columns_that_differ(at: Trial) -> None:
    changed(at.finetuned, {"head.weight": (4, 9)})
    result = at.refused(*at.edit, "--on-mismatch", "overlap")
    at.loads(*at.edit, "--on-mismatch", "overlap", *at.options(), named_tensor(result.err))


@follows("tensors/plan.py", "has it; --exclude takes such tensors", "has it; give number … first to keep it")
def names_that_differ(at: Trial) -> None:
    """In two fine-tuned checkpoints."""
    other = at.tmp / "other.safetensors"
    shutil.copy(at.finetuned, other)
    is_of_first = "takes" in at.site.hint
    changed(at.finetuned if is_of_first else other, {"extra.weight": (2, 2)})
    command, out = ("edit", at.base, at.finetuned, other), ("-o", at.out, "--overwrite")
    result = at.refused(*command, *out)
    excluded = [*at.options(), named_tensor(result.err)]
    at.loads(*command, *out, *excluded)
    assert ("extra.weight" in load_file(at.out / "model.safetensors")) is is_of_first
    if not is_of_first:
        (number,) = map(int, re.findall(r"give number (\d+) first", at.hint))
        swapped = ("edit", at.base, command[number + 1], at.finetuned)
        assert "--exclude takes such tensors from the first" in at.run(*swapped, *out).err
        at.loads(*swapped, *out, *excluded)
        assert "extra.weight" in load_file(at.out / "model.safetensors")


@follows("tensors/plan.py", "has it; try …; --exclude takes", "has it; try …; give number")
def names_that_a_rename_matches(at: Trial) -> None:
    """In two fine-tuned checkpoints, of which the first one's names are the base's."""
    other, layers = at.tmp / "other.safetensors", ["--exclude", "model.layers.*"]
    renamed(at, 4, all_of_them=False)
    shutil.copy(at.base, other)
    shutil.copy(at.finetuned, at.base)
    given = [] if "takes" in at.site.hint else layers
    command = ("edit", at.base, at.finetuned, other, "-o", at.out, "--overwrite", *given)
    at.refused(*command)
    at.loads(*command, *at.options())
    at.loads(*command, *layers, *at.options(1), "h.*")


@follows("tensors/patterns.py", "a pattern must match the whole name")
def a_part_of_a_name(at: Trial) -> None:
    at.refused(*at.edit, "--exclude", "block")
    (pattern,) = re.findall(r"'(\*.*\*)'", at.hint)
    at.loads(*at.edit, "--exclude", pattern.replace("layers.3", "block"))


def renamed(at: Trial, count: int, *, all_of_them: bool) -> None:
    """Layers whose names differ in the two checkpoints, beside one that is the same."""
    shared = {} if all_of_them else {"norm.weight": torch.ones(4)}
    for path, prefix in ((at.base, "h"), (at.finetuned, "model.layers")):
        weights = {f"{prefix}.{number}.mlp.weight": torch.randn(4, 4) for number in range(count)}
        save_file({**weights, **shared}, path)


@follows("pipeline/kinship.py", "no matrix name in common; try …")
def no_name_in_common(at: Trial) -> None:
    renamed(at, 4, all_of_them=True)
    at.refused(*at.edit)
    at.loads(*at.edit, *at.options())


@follows("pipeline/notices.py", "would match more of them")
def names_only_in_the_finetuned(at: Trial) -> None:
    renamed(at, 4, all_of_them=False)
    for path in (at.base, at.finetuned):
        save_file(load_file(path) | {"head.weight": torch.randn(4, 4)}, path)
    assert "not in the base" in at.noted(*at.edit, "--partial").err
    assert "not in the base" not in at.loads(*at.edit, *at.options(), "--overwrite").err


@follows("sources/alignment.py", "use a longer OLD")
def a_rename_of_two_names_to_one(at: Trial) -> None:
    save_file({"a.x.weight": torch.ones(4, 4), "b.x.weight": torch.ones(4, 4)}, at.base)
    save_file({"x.weight": torch.ones(4, 4), "b.x.weight": torch.ones(4, 4)}, at.finetuned)
    save_file(
        {"a.weight": torch.ones(4, 4), "b.a.weight": torch.ones(4, 4), "a.b.weight": torch.ones(4, 4)},
        at.base,
    )
    save_file({"b.weight": torch.ones(4, 4), "b.b.weight": torch.ones(4, 4)}, at.finetuned)
    at.refused(*at.edit, "--rename", "a=b")
    at.loads(*at.edit, "--rename", "a.weight=b.weight")


@follows("names.py", "use --block-pattern")
def no_blocks(at: Trial) -> None:
    weights = {f"stage{number}x.weight": torch.randn(4, 4) for number in range(3)}
    for path in (at.base, at.finetuned):
        save_file(weights, path)
    command = ("lines", at.base, at.finetuned, "-o", at.out, "--alpha", "0.3", "--beta", "0.7")
    at.refused(*command)
    at.loads(*command, *at.options(), r"stage(\d+)")


@follows("methods/wise_ft.py", "--extrapolate allows other values")
def beyond_the_finetuned(at: Trial) -> None:
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "1.5")
    at.refused(*command)
    at.loads(*command, *at.options())


@follows("api/soup.py", "--greedy needs --score-command")
@follows("api/soup.py", "--score-command, --scores and --accept need --greedy")
@follows("methods/score_option.py", "… needs {} where")
def a_greedy_soup(at: Trial) -> None:
    command = ("soup", at.base, at.finetuned, "-o", at.out)
    score = ("--score-command", "test -e {} && echo 1")
    lacking = {
        "--greedy needs --score-command": ("--greedy",),
        "--score-command, --scores": score,
        "… needs {}": ("--greedy", "--score-command", "echo 1"),
    }
    at.refused(*command, *next(words for start, words in lacking.items() if at.site.hint.startswith(start)))
    at.loads(*command, "--greedy", *score)


@follows("api/search.py", "add --prefer …, and for example --max-loss …=0.5")
def two_scores_of_a_search(at: Trial) -> None:
    command = ("search", at.base, at.finetuned, "-o", at.out, "--budget", "2")
    score = "test -e {} && echo 1"
    scores = ("--score", f"in={score}", "--score", f"out={score}")
    at.refused(*command, *scores)
    prefer, other = at.blanks
    at.loads(*command, *scores, "--prefer", prefer, "--max-loss", f"{other}=0.5")


@follows("methods/score_option.py", "is not in lower-case")
def a_name_in_capitals(at: Trial) -> None:
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "0.5", "--score")
    at.refused(*command, "Top_1=python3 -c 'print(1)' {}")
    (name,) = re.findall("--score ([a-z0-9-]+)=", at.hint)
    report = at.loads(*command, f"{name}=python3 -c 'print(1)' {{}}", "--report", "-").out
    assert json.loads(report)["output"]["scores"] == {"top-1": 1}


@follows("methods/score_option.py", "… NAME=COMMAND names a score")
def two_scores_without_names(at: Trial) -> None:
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "0.5")
    score = "test -e {} && echo 1"
    at.refused(*command, "--score", score, "--score", score)
    at.loads(*command, "--score", f"in={score}", "--score", f"out={score}")


@follows("pipeline/inspection.py", "a whole checkpoint needs a base")
@follows("api/edit.py", "give the base, or add --as-adapter")
@follows("pipeline/inputs.py", "- means that there is no base")
def no_base(at: Trial) -> None:
    if at.site.file == "pipeline/inputs.py":
        for command in (
            ("wise", "-", at.finetuned, "--alpha", "0.5"),
            ("lines", "-", at.finetuned, "--alpha", "0.5", "--beta", "0.5"),
            ("search", "-", at.finetuned, "--score", "echo 1 {}"),
            ("stock", "-", at.finetuned, at.base),
            ("sfgs", "-", at.finetuned, at.base, "--threshold", "0"),
            ("soup", "--base", "-", at.finetuned, at.base),
        ):
            at.refused(*command, "-o", at.out)
        at.loads("wise", at.base, at.finetuned, "--alpha", "0.5", "-o", at.out)
    elif at.site.file == "api/edit.py":
        at.refused("edit", "-", at.finetuned, "-o", at.out)
        at.loads(*at.edit)
    else:
        at.refused("inspect-spectrum", "-", at.finetuned)
        at.works("inspect-spectrum", at.base, at.finetuned)


@follows("pipeline/memory.py", "--workers … fits")
def too_many_workers(at: Trial) -> None:
    """The memory of this machine is made to look small."""
    from monosoup_cli.devices.cpu import Cpu

    for path in (at.base, at.finetuned):
        save_file({f"layers.{number}.weight": torch.randn(64, 64) for number in range(9)}, path)
    patch = at.request.getfixturevalue("monkeypatch")
    patch.setattr(Cpu, "free_bytes", lambda self: 20 << 20)
    at.refused(*at.edit, "--workers", "9")
    at.loads(*at.edit, *at.options())


@follows("pipeline/engine.py", "ran out of memory on the host")
@follows("pipeline/engine.py", "--exclude keeps the tensor as fine-tuned")
def what_fails_in_torch(at: Trial) -> None:
    """A decomposition is made to fail, or to lack memory, as long as its matrix is the one that is named."""
    is_memory = "memory" in at.site.problem

    def failing(solve: Callable[..., object], matrix: torch.Tensor, **options: object) -> object:
        if matrix.shape[-1] != 6:
            return solve(matrix, **options)
        raise MemoryError if is_memory else torch.linalg.LinAlgError("linalg.eigh: failed to converge")

    patch = at.request.getfixturevalue("monkeypatch")
    with patch.context() as patched:
        for name in ("eigh", "eigvalsh"):
            patched.setattr(torch.linalg, name, partial(failing, getattr(torch.linalg, name)))
        result = at.refused(*at.edit)
        if is_memory:
            at.refused("inspect-spectrum", *at.edit[1:3], "--sort", "k")
            assert "rerun with --workers 1, or" in at.hint, "it has no --resume"
            at.look(result)
        else:
            at.loads(*at.edit, *at.options(), named_tensor(result.err), "--overwrite")
    if is_memory:
        at.loads(*at.edit, *at.options(0), *at.options(1))
        at.loads(*at.edit, *at.options(2), "--overwrite")


@follows("pipeline/inputs.py", "zero_to_fp32.py")
def weights_that_were_not_gathered(at: Trial) -> None:
    """Kept as fine-tuned they would be empty. The file that DeepSpeed's script writes is written here."""
    weights, folder = load_file(at.finetuned), at.tmp / "OUT"
    save_file({**weights, "block.weight": torch.empty(0), "head.weight": torch.empty(0)}, at.finetuned)
    for options in ([], ["--on-mismatch", "keep"], ["--exclude", "*.weight"]):
        at.refused(*at.edit, *options)
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("pipeline/inputs.py", "CHECKPOINT/pytorch_model_fsdp_0")
def weights_that_are_flat(at: Trial) -> None:
    """The folder is as accelerate writes it."""
    weights, run = load_file(at.finetuned), at.tmp / "run"
    save_file({**weights, "block.weight": weights["block.weight"].flatten()}, at.finetuned)
    for options in ([], ["--on-mismatch", "keep"], ["--exclude", "*.weight"]):
        at.refused(*at.edit, *options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": weights}, checkpoint_id=run / "pytorch_model_fsdp_0", no_dist=True)
    (folder,) = re.findall("CHECKPOINT/[^,]*", at.hint)
    at.loads("edit", at.base, folder.replace("CHECKPOINT", str(run)), "-o", at.out)


def sharded(at: Trial) -> Path:
    """A folder of three shards and their index."""
    folder = at.tmp / "model"
    folder.mkdir()
    weights = load_file(at.finetuned)
    names = {name: f"model-0000{number}-of-00003.safetensors" for number, name in enumerate(weights, 1)}
    for name, file in names.items():
        save_file({name: weights[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


@follows("sources/locate.py", "an index, not a checkpoint")
def an_index(at: Trial) -> None:
    folder = sharded(at)
    at.refused("edit", at.base, folder / "model.safetensors.index.json", "-o", at.out)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("sources/locate.py", "move one of the two elsewhere, or pass …")
def an_index_and_a_file(at: Trial) -> None:
    folder = sharded(at)
    shutil.copy(at.finetuned, folder / "model.safetensors")
    at.refused("edit", at.base, folder, "-o", at.out, "--overwrite")
    at.loads("edit", at.base, at.blanks[0].strip(), "-o", at.out, "--overwrite")
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (folder / name).rename(at.tmp / name)
        at.loads("edit", at.base, folder, "-o", at.out, "--overwrite")
        (at.tmp / name).rename(folder / name)


@follows("sources/locate.py", "move those that do not belong to the model elsewhere")
def two_files(at: Trial) -> None:
    folder = at.tmp / "model"
    folder.mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(at.finetuned, folder / name)
    at.refused("edit", at.base, folder, "-o", at.out)
    (folder / "two.safetensors").rename(at.tmp / "two.safetensors")
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("sources/shards.py", "shards are missing")
@follows("sources/shards.py", "download or copy the missing shard")
def a_missing_shard(at: Trial) -> None:
    folder = sharded(at)
    if "shards are" in at.site.problem:
        (folder / "model.safetensors.index.json").unlink()
    file = folder / "model-00002-of-00003.safetensors"
    file.rename(at.tmp / "elsewhere")
    at.refused("edit", at.base, folder, "-o", at.out)
    shutil.copy(at.tmp / "elsewhere", file)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("sources/shards.py", "^download or copy it again$", "the index has no weight_map; download")
def a_damaged_index(at: Trial) -> None:
    folder = sharded(at)
    file = folder / "model.safetensors.index.json"
    whole = file.read_bytes()
    file.write_bytes(b"{}" if at.site.problem else whole[:-9])
    at.refused("edit", at.base, folder, "-o", at.out)
    file.write_bytes(whole)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("sources/locate.py", "pass one that has some")
@follows("sources/locate.py", "a pipeline without a part called transformer or unet")
def weights_in_a_part(at: Trial) -> None:
    folder = at.tmp / "model"
    (folder / "prior").mkdir(parents=True)
    shutil.copy(at.finetuned, folder / "prior" / "model.safetensors")
    if "pipeline" in at.site.problem:
        (folder / "model_index.json").write_text(json.dumps({"prior": ["diffusers", "PriorTransformer"]}))
    at.refused("edit", at.base, folder, "-o", at.out)
    part = at.blanks[0].split(", ")[0]
    if "pipeline" in at.site.problem:
        at.loads("edit", at.base, folder, "-o", at.out, "--parts", part)
    else:
        at.loads("edit", at.base, folder / part, "-o", at.out)


@follows("pipeline/inputs.py", "--include GLOB chooses tensors by name")
def parts_of_a_file(at: Trial) -> None:
    at.refused(*at.edit, "--parts", "unet")
    at.loads(*at.edit, "--include", "block*")


@follows("sources/locate.py", "it holds the scale of the adapter")
def an_adapter_without_its_configuration(at: Trial) -> None:
    from tests.peft_adapters import make

    made = make("linear", at.tmp)
    config = made.adapter / "adapter_config.json"
    config.rename(at.tmp / "config.json")
    command = ("edit", made.base, made.adapter, "-o", at.out)
    at.refused(*command)
    (at.tmp / "config.json").rename(config)
    at.loads(*command)


@follows("pipeline/memory.py", "because the disk is the limit here", marks=(pytest.mark.cuda,))
@follows("pipeline/memory.py", "it is faster in float64 than …", marks=(pytest.mark.cuda,))
def a_card_that_is_not_used(at: Trial) -> None:
    """A card is made to be slow in float64, as most are."""
    from monosoup_cli.devices.cuda import Cuda

    command = ("soup", at.base, at.finetuned, "-o", at.out)
    if "float64" in at.site.hint:
        patch = at.request.getfixturevalue("monkeypatch")
        patch.setattr(Cuda, "float64_rate", lambda self: 1.0)
        command = at.edit
    at.noted(*command)
    assert "the CPU computes" not in at.loads(*command, *at.options(), "--overwrite").err
    report = json.loads((at.out / "monosoup_report.json").read_text())
    assert report["arguments"]["device"].startswith("cuda")


@follows("sources/folders.py", "with several snapshots, of which refs/main names none")
def several_snapshots(at: Trial) -> None:
    repository = at.tmp / "models--org--ft"
    for commit in ("1f2e3d", "4c5b6a"):
        (repository / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(at.finetuned, repository / "snapshots" / commit / "model.safetensors")
    at.refused("edit", at.base, repository, "-o", at.out)
    at.loads("edit", at.base, at.hint.removeprefix("pass one of them: "), "-o", at.out)


@follows(
    "sources/folders.py", "out of the folder; links in what is from the Hub", ".git/config names …, and links"
)
def a_link_out_of_what_is_from_the_hub(at: Trial) -> None:
    """In its cache, or in a clone."""
    is_clone = ".git" in at.site.hint
    folder = at.tmp / ("clone" if is_clone else "models--org--ft/snapshots/1f2e3d")
    folder.mkdir(parents=True)
    if is_clone:
        cloned(folder)
    link = folder / "model.safetensors"
    link.symlink_to(at.finetuned)
    at.refused("edit", at.base, folder, "-o", at.out)
    link.unlink()
    shutil.copy(at.finetuned, link)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("api/diff.py", "would match more names")
def names_of_another_library(at: Trial) -> None:
    weights = load_file(at.base)
    save_file({f"other.{name}": one for name, one in weights.items()}, at.tmp / "other.safetensors")
    at.refused("diff", at.base, at.tmp / "other.safetensors")
    (option,) = re.findall(r"--rename (\S+)", at.hint)
    at.works("diff", at.base, at.tmp / "other.safetensors", "--rename", option)


@follows("api/diff.py", "to compare updates, merge each into the base first")
def two_adapters(at: Trial) -> None:
    folders = [make("linear", at.tmp / name) for name in ("one", "two")]
    at.noted("diff", *(each.adapter for each in folders), "--exit-zero")
    for each in folders:
        words = ("merge", each.base, each.adapter, "-o", at.tmp / f"{each.adapter.parent.name}-merged")
        assert at.run(*words).code == 0
    merged = [at.tmp / f"{each.adapter.parent.name}-merged" for each in folders]
    assert "equal in" in at.works("diff", *merged).out  # they are made alike


@follows("pipeline/ready.py", "without --strict, this is a note")
def another_base(at: Trial) -> None:
    save_file({name: torch.randn(one.shape) for name, one in load_file(at.base).items()}, at.base)
    at.refused(*at.edit, "--strict")
    at.loads(*at.edit)
