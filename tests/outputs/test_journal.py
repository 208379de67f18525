"""The journal of an interrupted run: what does not hold is made again, or the run is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import zlib
from pathlib import Path

import pytest

import monosoup_cli
from monosoup_cli.errors import ResumeError
from monosoup_cli.outputs.journal import Journal, finished_line, note_line, read_journal

IDENTITY = {"version": 1, "inputs": {"base": {"commit": "0" * 40}}}
LINES = (
    note_line("score a", 0.5),
    finished_line("a", [1], [{"lambda_high": 1.25, "name": "é"}]),
    finished_line("b", [2], [{"lambda_high": 0.75, "name": "b"}]),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three lines after the first."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.start(0, IDENTITY)
    for line in LINES:
        journal.append(line)
    journal.close()
    return path


def test_what_was_written_is_read(path):
    entries, kept = read_journal(path, IDENTITY)
    assert entries == [
        {"note": "score a", "content": 0.5},
        {"tensor": "a", "checksums": [1], "records": [{"lambda_high": 1.25, "name": "é"}]},
        {"tensor": "b", "checksums": [2], "records": [{"lambda_high": 0.75, "name": "b"}]},
    ]
    assert kept == path.stat().st_size


def test_every_line_is_json_with_the_checksum_last(path):
    assert all(list(json.loads(line))[-1] == "crc32" for line in path.read_bytes().splitlines())


def test_any_flipped_bit_drops_its_line_and_all_after_it(path):
    entries, _ = read_journal(path, IDENTITY)
    text = path.read_bytes()
    start = len(text) - len(b"".join(LINES))
    ends = [start + len(b"".join(LINES[:count])) for count in range(4)]
    for place in range(0, 8 * len(text), 3):
        damaged = bytearray(text)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        if place // 8 < start:
            with pytest.raises(ResumeError, match=r"the journal is damaged.* --overwrite"):
                read_journal(path, IDENTITY)
        else:
            whole = max(count for count in range(4) if ends[count] <= place // 8)
            assert read_journal(path, IDENTITY) == (entries[:whole], ends[whole])


def test_a_journal_cut_anywhere_keeps_its_whole_lines(path):
    entries, _ = read_journal(path, IDENTITY)
    text = path.read_bytes()
    start = len(text) - len(b"".join(LINES))
    for size in range(len(text)):
        path.write_bytes(text[:size])
        whole = text[:size].count(b"\n")
        end = text[:size].rfind(b"\n") + 1
        assert read_journal(path, IDENTITY) == ((entries[: whole - 1], end) if size >= start else ([], 0))


@pytest.mark.parametrize(
    "head", [b"[]", b"{", b'{"identity": 3}', b'{"note": 1}', b'{"a":' * 5000, b"NaN", b"\xff"]
)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_first_line_of_another_shape_is_refused(path, head, is_sealed):
    path.write_bytes((sealed(head) if is_sealed else head + b"\n") + LINES[0])
    with pytest.raises(ResumeError, match="start over with --overwrite"):
        read_journal(path, IDENTITY)


@pytest.mark.parametrize(
    "inputs", [None, 7, [], {"base": 7}, {"base": {"commit": []}}, {"base": {"commit": "1"}}]
)
def test_an_identity_of_another_shape_is_another_one(path, inputs):
    path.write_bytes(sealed(json.dumps({"identity": {**IDENTITY, "inputs": inputs}}).encode()))
    with pytest.raises(ResumeError, match=r"differs in (inputs|its identity).* --overwrite"):
        read_journal(path, IDENTITY)


@pytest.mark.parametrize("line", [b"[]", b"7", b"{", b'{"a":' * 5000, b"[" * 5000, b'{"a": 1e}'])
def test_a_line_with_a_checksum_but_of_another_shape_is_dropped(path, line):
    entries, kept = read_journal(path, IDENTITY)
    path.write_bytes(path.read_bytes() + sealed(line) + LINES[0])
    assert read_journal(path, IDENTITY) == (entries, kept)


def sealed(text: bytes) -> bytes:
    """A line with the checksum that belongs to it."""
    text = text.removesuffix(b"}")
    return b'%s, "crc32": %d}\n' % (text, zlib.crc32(text))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "files")


def make_second_name(path: Path) -> None:
    path.hardlink_to(path.parent.parent / "base.safetensors")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zeros without end
    except PermissionError:
        pytest.skip("only root makes devices")


class Enough(Exception):
    pass


@pytest.fixture
def interrupted(pair, tmp_path):
    """The arguments of a run that stopped after two tensors, and its journal."""
    made = []

    def stop(tensor, is_done):
        made.append(tensor)
        if is_done and len(made) > 3:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*pair, tmp_path / "out", workers=1, progress=stop)
    return (*pair, tmp_path / "out"), tmp_path / "out.partial" / "journal"


@pytest.mark.parametrize(
    "make", [make_fifo, make_socket, make_link, make_second_name, make_folder, make_device]
)
def test_what_is_not_a_file_is_refused_and_overwritten(interrupted, make):
    run, path = interrupted
    path.unlink()
    make(path)
    with pytest.raises(ResumeError, match=r"the journal is damaged.* overwrite"):
        monosoup_cli.edit(*run, resume=True)
    monosoup_cli.edit(*run, overwrite=True)
    assert sorted(os.listdir(run[-1].parent)) == ["base.safetensors", "finetuned.safetensors", "out"]


def test_no_damage_to_the_journal_reaches_the_output(interrupted, tmp_path):
    """A byte of a record is changed, or one elsewhere: the output is that of one run, or refused."""
    run, path = interrupted
    whole = monosoup_cli.edit(*run[:-1], tmp_path / "whole")
    text, kept = path.read_bytes(), tmp_path / "kept"
    path.parent.rename(kept)
    assert text.count(b'"tensor"') >= 2
    start = text.index(b'"lambda_high"')
    places = [*range(start, start + 40, 3), *range(0, len(text), len(text) // 12)]
    outcomes = []
    for place in places:
        shutil.copytree(kept, path.parent)
        damaged = bytearray(text)
        damaged[place] = ord("7") if damaged[place] != ord("7") else ord("8")
        path.write_bytes(damaged)
        try:
            result = monosoup_cli.edit(*run, resume=True)
        except ResumeError:
            outcomes.append("refused")
            shutil.rmtree(path.parent)
            continue
        outcomes.append("made")
        assert result["layers"] == whole["layers"]
        assert (run[-1] / "model.safetensors").read_bytes() == (
            tmp_path / "whole" / "model.safetensors"
        ).read_bytes()
        shutil.rmtree(run[-1])
    assert {"refused", "made"} == set(outcomes)


@pytest.mark.parametrize("records", [7, [], [1, 2], None, {}])
def test_records_of_another_shape_are_made_again(interrupted, tmp_path, records):
    run, path = interrupted
    head, *lines = path.read_bytes().splitlines(keepends=True)
    entry = json.loads(next(line for line in lines if b'"lambda_high"' in line))
    forged = finished_line(entry["tensor"], entry["checksums"], records)
    path.write_bytes(head + forged)
    whole = monosoup_cli.edit(*run[:-1], tmp_path / "whole")
    assert monosoup_cli.edit(*run, resume=True)["layers"] == whole["layers"]
