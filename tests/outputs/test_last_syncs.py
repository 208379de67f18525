"""The disk fails as the last names are synced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from monosoup_cli.outputs import writer
from tests.conftest import Pair, Run
from tests.outputs.test_vanished import every_command, weights_of


class Failing:
    """Syncs of a folder fail from the moment that there is a path."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, path: Path) -> None:
        self.folder, self.path, self.plain = folder, path, os.fsync
        patch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        if self.path.exists() and os.path.samestat(os.fstat(descriptor), self.folder.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.plain(descriptor)


@every_command
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_the_name_of_a_complete_output(run: Run, pair: Pair, tmp_path, command, has_old):
    verb, name, *options = command
    words = [verb, *pair, *options, "--device", "cpu", "--quiet", "-o"]
    work, reports = tmp_path / "work", tmp_path / "reports"
    work.mkdir()
    reports.mkdir()
    out, report = work / name, ["--report", reports / "report.json", "--overwrite"]
    if has_old:
        assert run(*words, out, *report, "--exclude", "head*").code == 0
    assert run(*words, tmp_path / name).code == 0
    with pytest.MonkeyPatch.context() as patch:
        plain = writer.Workplace.move_into_place

        def moving(*more: object) -> None:
            plain(*more)
            Failing(patch, work, out)

        patch.setattr(writer.Workplace, "move_into_place", moving)
        result = run(*words, out, *report)
    assert result.code == 1
    assert f"{out}: the output is complete, but may not survive a power failure: Input/output" in result.err
    assert os.listdir(work) == [name]
    assert weights_of(out) == weights_of(tmp_path / name)


def test_the_name_of_a_report_elsewhere(run: Run, pair: Pair, tmp_path):
    reports, out = tmp_path / "reports", tmp_path / "out"
    reports.mkdir()
    words = ["edit", *pair, "--quiet", "--report", reports / "report.json", "-o"]
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, reports, reports / "report.json")
        result = run(*words, out)
    assert result.code == 1
    assert "cannot write: Input/output error" in result.err
    assert not out.exists()
    assert run(*words, out, "--resume").code == 0
