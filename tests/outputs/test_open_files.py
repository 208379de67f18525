"""What takes over the name, the content and even the inode of something of the run's is told from it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from monosoup_cli.errors import OutputError
from monosoup_cli.outputs.open_files import OpenFiles, as_time, to_set_time
from tests.schema import SCHEMA


@pytest.fixture
def files(tmp_path: Path) -> Iterator[OpenFiles]:
    files = OpenFiles(tmp_path)
    files.open("files/part/model.safetensors", 5)
    files.write("files/part/README.md", [b"ours"])
    (tmp_path / "journal").touch()
    files.add("journal")
    files.prove()
    yield files
    files.close()


@pytest.mark.parametrize("name", ["files/part/README.md", "files/part/model.safetensors", "journal"])
def test_a_file_that_was_made_anew(files, tmp_path, name):
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(OutputError, match=f"{name}: was exchanged"):
        files.prove()


def test_a_folder_that_was_made_anew(files, tmp_path):
    folder = tmp_path / "files" / "part"
    (tmp_path / "kept").mkdir()
    for path in folder.iterdir():
        path.rename(tmp_path / "kept" / path.name)
    folder.rmdir()
    folder.mkdir()
    for path in (tmp_path / "kept").iterdir():
        path.rename(folder / path.name)
    with pytest.raises(OutputError, match="part: was exchanged"):
        files.prove()


def test_a_file_that_was_written_again(files, tmp_path):
    path = tmp_path / "files" / "part" / "README.md"
    path.write_bytes(b"mine")
    os.utime(path, ns=(0, 1))
    with pytest.raises(OutputError, match="was exchanged"):
        files.prove()


@pytest.mark.parametrize("mtime_ns", [0, -1, 1_764_521_412_444_543_948, 2**62, 10**25])
def test_a_time_is_told_to_the_nanosecond_and_touch_takes_it(tmp_path, mtime_ns):
    """Also where its year has no four digits, as the times of damaged file systems."""
    path = tmp_path / "file"
    path.touch()
    time = as_time(mtime_ns)
    assert re.fullmatch(SCHEMA["$defs"]["modified"]["pattern"], time)
    if mtime_ns < 2**62:
        subprocess.run(shlex.split(to_set_time(time, str(path))), check=True)
        assert path.stat().st_mtime_ns == mtime_ns
