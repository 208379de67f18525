"""What takes over the name, the content and even the inode of something of the run's is told from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from monosoup_cli.errors import OutputError
from monosoup_cli.outputs.open_files import OpenFiles


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
