"""What a run works on vanishes or is exchanged: it is refused, and what OUT was stays."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from monosoup_cli.outputs.writer import PartialOutput
from tests.conftest import Pair, Run, everything_in

LOST: dict[str, Callable[[Path], object]] = {
    "OUT.partial": shutil.rmtree,
    "OUT.partial moved": lambda partial: partial.rename(partial.with_name("elsewhere")),
    "files": lambda partial: shutil.rmtree(partial / "files"),
    "the weights": lambda partial: weights_in(partial).unlink(),
    "the weights, for a copy": lambda partial: exchange(weights_in(partial)),
    "the weights, for a link to them": lambda partial: exchange(weights_in(partial), is_link=True),
    "the weights, cut": lambda partial: os.truncate(weights_in(partial), 10),
    "OUT.partial, for a copy": lambda partial: exchange(partial),
    "the journal": lambda partial: (partial / "journal").unlink(),
    "the lock": lambda partial: (partial / "lock").unlink(),
}


def weights_in(partial: Path) -> Path:
    return next((partial / "files").rglob("*.safetensors"))


def exchange(path: Path, *, is_link: bool = False) -> None:
    """Put a copy of a file or folder, or a link to it, in its place."""
    away = path.rename(path.with_name("moved away"))
    if is_link:
        path.symlink_to(away)
    elif away.is_dir():
        shutil.copytree(away, path)
    else:
        shutil.copy2(away, path)


COMMANDS = {
    "folder": ("edit", "out"),
    "file": ("edit", "out.safetensors"),
    "sweep": ("wise", "out", "--alpha", "0.3,0.5"),
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))


@every_command
@pytest.mark.parametrize(("step", "has_old"), [("seal", False), ("publish", True)], ids=["new", "old"])
@pytest.mark.parametrize("lost", LOST.values(), ids=list(LOST))
def test_nothing_is_published(run: Run, pair: Pair, tmp_path, lost, step, has_old, command):
    verb, name, *options = command
    words = [verb, *pair, *options, "--device", "cpu", "--quiet", "-o"]
    (tmp_path / "work").mkdir()
    out = tmp_path / "work" / name
    replacing = ["--overwrite"] if has_old else []
    if has_old:
        assert run(*words, out, "--exclude", "head*").code == 0
    before = everything_in(out.parent)
    plain = getattr(PartialOutput, step)

    def losing(self: PartialOutput, *more: object) -> object:
        lost(self.workplace.path)
        return plain(self, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialOutput, step, losing)
        result = run(*words, out, *replacing)
    assert result.code == 1, result
    assert "during the run" in result.err
    assert before.items() <= everything_in(out.parent).items()
    assert out.exists() == has_old
    assert "--resume" in result.err
    assert run(*words, out, *replacing, *re.findall(r"--\w+", result.err)[:1]).code == 0
    assert run(*words, tmp_path / name).code == 0
    assert weights_of(out) == weights_of(tmp_path / name)


def weights_of(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in ([out] if out.is_file() else sorted(out.rglob("*.safetensors")))]
