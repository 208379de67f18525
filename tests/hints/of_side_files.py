"""What hints on side files lead to: the file that is carried."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from monosoup_cli.outputs import side_files
from tests.hints.table import Trial, follows


def folder_with_a_voice(at: Trial) -> tuple[object, ...]:
    folder = at.tmp / "model"
    (folder / "voices").mkdir(parents=True)
    shutil.copy(at.finetuned, folder / "model.safetensors")
    (folder / "voices" / "voice [1].npz").write_bytes(bytes(101))
    return "edit", at.base, folder, "-o", at.out


@follows("outputs/side_files.py", "a pattern must match a whole name, as")
def a_part_of_a_name(at: Trial) -> None:
    command = folder_with_a_voice(at)
    at.refused(*command, "--side-files", "voice", "--side-files", "voice ?1?.npz")
    for pattern in re.findall(r"'(.*?)'", at.hint):
        pattern = pattern.replace("voice.pt", "voice ?1?.npz").replace("*.pt", "*.npz")
        at.loads(*command, "--side-files", pattern)
        assert (at.out / "voices" / "voice [1].npz").is_file()
        shutil.rmtree(at.out)


@follows("pipeline/destination.py", "--side-files needs a folder")
def side_files_of_a_file(at: Trial) -> None:
    command = folder_with_a_voice(at)
    at.refused(*command[:-1], at.tmp / "out.safetensors", "--side-files", "all")
    at.loads(*command, "--side-files", "all")


@follows("pipeline/notices.py", "--side-files … carries it")
def a_large_file(at: Trial) -> None:
    """The limit is made to be low."""
    patch: pytest.MonkeyPatch = at.request.getfixturevalue("monkeypatch")
    patch.setattr(side_files, "MAX_SIDE_FILE_BYTES", 100)
    command = folder_with_a_voice(at)
    at.noted(*command)
    (option,) = re.findall(r"--side-files .*(?= carries it)", at.hint)
    at.loads(*command, *shlex.split(option), "--overwrite")
    assert (at.out / "voices" / "voice [1].npz").is_file()
