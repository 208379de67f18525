"""Exactly what a run made is published, and its report tells the bytes that were written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monosoup_cli.outputs.writer import PartialOutput
from tests.conftest import Pair, Run


@contextmanager
def before(step: str, then: Callable[[Path], object]) -> Iterator[None]:
    """Something happens to the workplace before a step of the writer."""
    plain = getattr(PartialOutput, step)

    def stepping(self: PartialOutput, *more: object) -> object:
        then(self.workplace.path)
        return plain(self, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialOutput, step, stepping)
        yield


@pytest.fixture
def tuned(pair: Pair, tmp_path: Path) -> Path:
    folder = tmp_path / "tuned"
    folder.mkdir()
    shutil.copy(pair.finetuned, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a b c")
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/config.json", "empty/"])
@pytest.mark.parametrize("step", ["seal", "publish"])
@pytest.mark.parametrize("options", [["edit"], ["wise", "--alpha", "0.3,0.5"]], ids=["edit", "sweep"])
def test_what_appeared_is_not_published(run: Run, pair: Pair, tuned, tmp_path, name, step, options):
    def appear(partial: Path) -> None:
        stray = partial / "files" / name
        stray.parent.mkdir(exist_ok=True)
        stray.mkdir() if name.endswith("/") else stray.touch()

    out, words = tmp_path / "out", [*options, pair.base, tuned, "--quiet", "-o", tmp_path / "out"]
    with before(step, appear):
        result = run(*words)
    assert result.code == 1
    assert "appeared among the files of the run" in result.err
    assert not out.exists()
    assert run(*words, "--resume").code == 0
    assert not (out / name).exists()


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_side_file_that_changed_during_the_run(run: Run, pair: Pair, tuned, tmp_path, monkeypatch, name):
    """It is called what the user calls it."""
    monkeypatch.chdir(tuned.parent)
    words = ["edit", pair.base, tuned.name, "--quiet", "-o", tmp_path / "out"]
    with before("seal", lambda _: (tuned / name).write_text('{"changed": 1}')):
        result = run(*words)
    assert result.code == 1
    assert f"error: {tuned.name}/{name}: the file changed during the run" in result.err
    assert not (tmp_path / "out").exists()
    assert run(*words).code == 0


def test_a_side_file_that_vanished_during_the_run(run: Run, pair: Pair, tuned, tmp_path):
    words = ["edit", pair.base, tuned, "--quiet", "-o", tmp_path / "out"]
    with before("seal", lambda _: (tuned / "vocab.txt").rename(tmp_path / "away")):
        result = run(*words)
    assert result.code == 1
    assert "vocab.txt: " in result.err
    (tmp_path / "away").rename(tuned / "vocab.txt")
    assert run(*words, "--resume").code == 0


@pytest.mark.once
def test_a_side_file_that_changed_after_it_was_copied(run: Run, pair: Pair, tuned, tmp_path):
    """The output is as its report says, which `run` verifies."""
    with before("publish", lambda _: (tuned / "vocab.txt").write_text("other words")):
        assert run("edit", pair.base, tuned, "--quiet", "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a b c"
