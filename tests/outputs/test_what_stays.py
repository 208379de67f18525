"""What is not an output of ours, and what a run may not touch: it stays, and the message says what to do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import monosoup_cli
from monosoup_cli.errors import OutputError
from tests.conftest import Pair, Refuse, Run, everything_in, nobody

REPORT = "monosoup_report.json"


def make(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")


FOREIGN = {
    "models and notes": ("llama/model.safetensors", "mine/model.safetensors", "notes.txt"),
    "models": ("llama/model.safetensors", "llama/config.json", "mine/model.safetensors"),
    "an adapter and photos": ("lora.safetensors", "photos/a.jpg"),
    "adapters": ("a.safetensors", "b.safetensors"),
    "a sweep and another model": (REPORT, f"alpha-0/{REPORT}", "llama/model.safetensors"),
    "a sweep and notes": (REPORT, f"alpha-0/{REPORT}", "alpha-0/model.safetensors", "notes.txt"),
    "a program": ("config.json", "main.py"),
    "what is hidden": (".cache/model.safetensors", ".git/HEAD"),
}
CHECKPOINTS = {
    "a model": ("config.json", "model.safetensors", "onnx/model.onnx", "notes.txt"),
    "shards": ("model-00001-of-00001.safetensors", "model.safetensors.index.json"),
    "a variant of shards": ("model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"),
    "a pipeline": ("model_index.json", "unet/diffusion_pytorch_model.safetensors"),
    "a sentence transformer": ("modules.json", "0_Transformer/model.safetensors", "1_Pooling/config.json"),
    "an adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "a model of open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "a model of Mistral": ("params.json", "consolidated.safetensors"),
    "weights": ("model.safetensors",),
    "weights with a card": ("model.safetensors", "README.md"),
    "an output": ("model.safetensors", REPORT, "voices/a.pt"),
    "an output without its weights": ("config.json", REPORT, "voices/a.pt"),
    "a sweep": (REPORT, f"alpha-0/{REPORT}", f"alpha-1/{REPORT}", "alpha-1/model.safetensors"),
    "a sweep with its report elsewhere": (f"alpha-0/{REPORT}", "alpha-0/model.safetensors", ".DS_Store"),
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=list(FOREIGN))
def test_a_folder_that_is_no_checkpoint(pair: Pair, refuse: Refuse, tmp_path, names):
    make(tmp_path / "out", names)
    said = refuse(*pair, "--overwrite")
    assert "not a checkpoint" in said
    assert names[-1].partition("/")[0] in said


@pytest.mark.parametrize("names", CHECKPOINTS.values(), ids=list(CHECKPOINTS))
def test_a_folder_that_is_a_checkpoint(pair: Pair, run: Run, tmp_path, names):
    make(tmp_path / "out", names)
    assert run("edit", *pair, "-o", tmp_path / "out", "--overwrite").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "model.safetensors", REPORT}


STRANGE = (
    "precious/thesis.txt",
    "draft-thesis.txt",
    "draft-1.txt",
    "outside-notes",
    "replaced.txt",
    ".git/HEAD",
)


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]], ids=["plain", "resume", "overwrite"])
@pytest.mark.parametrize("name", STRANGE)
def test_a_folder_of_somebody_else_in_the_place_of_work(pair: Pair, refuse: Refuse, tmp_path, name, options):
    make(tmp_path / "out.partial", ["lock", "files/model.safetensors", name])
    assert f"out.partial/{name.partition('/')[0]}: " in refuse(*pair, *options)


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_a_lock_that_is_a_link(pair: Pair, refuse: Refuse, tmp_path, options):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lock").symlink_to(tmp_path / "elsewhere")
    assert "out.partial/lock: is in the place of unfinished work" in refuse(*pair, *options)


@pytest.mark.parametrize("name", ["replaced/thesis.txt", "files/thesis.txt", "files", "journal", "draft-1"])
def test_work_is_not_dropped_unasked(pair: Pair, refuse: Refuse, run: Run, tmp_path, name):
    make(tmp_path / "out.partial", ["lock", name])
    assert "unfinished work" in refuse(*pair)
    assert run("edit", *pair, "-o", tmp_path / "out", "--overwrite").code == 0
    assert not (tmp_path / "out.partial").exists()


def test_a_workplace_without_work_is_no_hindrance(pair: Pair, run: Run, tmp_path):
    make(tmp_path / "out.partial", ["lock"])
    (tmp_path / "out.partial" / "files").mkdir()
    assert run("edit", *pair, "-o", tmp_path / "out").code == 0


# -- reports -----------------------------------------------------------------------------------


class Enough(Exception):
    """Stands for whatever stops a run."""


def interrupt(pair: Pair, out: Path) -> None:
    def stop(tensor: object, is_done: bool) -> None:
        if is_done:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*pair, out, workers=1, progress=stop)


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_resume_replaces_no_other_file_by_a_report(
    pair: Pair, refuse: Refuse, run: Run, tmp_path, is_interrupted
):
    precious = tmp_path / "precious.json"
    if is_interrupted:
        interrupt(pair, tmp_path / "out")
        precious.write_text('{"a": 1}')
    else:  # a report, but not of what is resumed
        assert run("edit", *pair, "-o", tmp_path / "first", "--report", precious).code == 0
    assert "report already exists" in refuse(*pair, "--resume", "--report", precious)


def test_resume_replaces_its_own_report(pair: Pair, run: Run, tmp_path):
    report = tmp_path / "report.json"
    assert run("edit", *pair, "-o", tmp_path / "first", "--report", report).code == 0
    interrupt(pair, tmp_path / "out")
    assert run("edit", *pair, "-o", tmp_path / "out", "--resume", "--report", report).code == 0


def test_resume_replaces_the_report_of_an_output_that_is_gone(pair: Pair, run: Run, tmp_path):
    command = ("edit", *pair, "-o", tmp_path / "out.safetensors")
    assert run(*command).code == 0
    (tmp_path / "out.safetensors").unlink()
    assert run(*command).code == 1
    assert run(*command, "--resume").code == 0


def test_a_file_that_is_made_meanwhile_is_not_replaced_by_the_report(pair: Pair, run: Run, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    with pytest.raises(OutputError, match="report already exists"):
        monosoup_cli.edit(*pair, out, report=report, progress=lambda *_: report.write_text("mine"))
    assert report.read_text() == "mine"
    assert not out.exists()
    assert run("edit", *pair, "-o", out, "--resume", "--report", tmp_path / "another.json").code == 0


@pytest.mark.once
def test_a_report_is_replaced_where_an_input_is_gone_meanwhile(pair: Pair, run: Run, tmp_path):
    report = tmp_path / "report.json"
    report.write_text("old")

    def remove(*_: object) -> None:
        pair[1].unlink(missing_ok=True)

    monosoup_cli.edit(*pair, tmp_path / "out", report=report, overwrite=True, progress=remove)
    assert run("verify", tmp_path / "out", "--report", report).code == 0


# -- rights ------------------------------------------------------------------------------------


@pytest.fixture
def work(pair: Pair) -> Iterator[Path]:
    """A folder in which every user may write, with the inputs in it."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        for path in pair:
            path.rename(Path(place, path.name)).chmod(0o644)
        yield Path(place)


def edit(work: Path) -> tuple[object, ...]:
    return "edit", work / "base.safetensors", work / "finetuned.safetensors", "-o", work / "out"


@pytest.mark.parametrize("mode", [0, 0o500, 0o555])
def test_an_old_output_with_folders_that_are_read_only(run: Run, work: Path, mode):
    with nobody():
        make(work / "out", ["config.json", "model.safetensors", "sub/deep/file"])
        for name in ("sub/deep", "sub"):
            (work / "out" / name).chmod(mode)
        assert run(*edit(work), "--overwrite").code == 0
    assert not (work / "out" / "sub").exists()
    assert not (work / "out.partial").exists()


def test_an_output_that_is_read_only(run: Run, work: Path):
    with nobody():
        make(work / "out", ["config.json", "model.safetensors"])
        (work / "out").chmod(0o555)
        before = everything_in(work)
        result = run(*edit(work), "--overwrite")
    assert "out: this user may not replace it" in result.err
    assert everything_in(work) == before


def test_a_lock_that_is_read_only(run: Run, work: Path):
    with nobody():
        make(work / "out.partial", ["lock"])
        (work / "out.partial" / "lock").chmod(0o444)
        result = run(*edit(work))
    assert result.code == 1
    assert "out.partial/lock: cannot write: Permission denied" in result.err


# -- an output that was not put in place -------------------------------------------------------


@pytest.fixture
def killed(pair: Pair, run: Run, tmp_path: Path) -> Path:
    """An output whose run was killed after it had moved the old one aside."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    assert run("edit", *pair, "-o", out).code == 0
    make(partial, ["lock", "replaced/model.safetensors"])
    out.rename(partial / "files")
    return out


def test_what_writes_nothing_puts_nothing_in_place(killed: Path, pair: Pair, refuse: Refuse, run: Run):
    before = everything_in(killed.parent)
    for option in ("--overwrite", "--resume"):
        result = run("edit", *pair, "-o", killed, option, "--dry-run")
        assert result.code == 0
        assert "left a complete output" in result.err
    assert "unfinished work" in refuse(*pair)
    assert everything_in(killed.parent) == before


def test_resume_puts_it_in_place(killed: Path, pair: Pair, run: Run):
    before = everything_in(killed.parent / "out.partial" / "files")
    result = run("edit", *pair, "-o", killed, "--resume")
    assert "the output is complete" in result.err
    assert sorted(before.values(), key=str) == sorted(everything_in(killed).values(), key=str)
    assert not killed.with_name("out.partial").exists()


def test_overwrite_replaces_it_in_turn(killed: Path, pair: Pair, run: Run):
    assert run("edit", *pair, "-o", killed, "--overwrite", "--exclude", "head*").code == 0
    assert not killed.with_name("out.partial").exists()
