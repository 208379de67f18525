"""Where the journal or the partial output of an interrupted run was damaged, --resume ends with the same
bytes, or is refused with the reason and a way out."""

import json
import os
import random
import shutil

import pytest

from tests.faults.commands import COMMANDS


class Left:
    """What a killed run left, to be damaged."""

    def __init__(self, place, seed):
        self.place, self.chance = place, random.Random(seed)
        self.journal = place.partial / "journal"
        self.files = place.partial / "files"
        self.weights = sorted(self.files.rglob("*.safetensors"))[0]

    def lines(self):
        return self.journal.read_bytes().splitlines(keepends=True)

    def write(self, lines):
        self.journal.write_bytes(b"".join(lines))

    def change_entry(self, change):
        """Change a tensor's entry in the journal."""
        lines = self.lines()
        number = next(n for n, line in enumerate(lines) if b'"tensor"' in line and b"records" in line)
        entry = json.loads(lines[number])
        change(entry)
        lines[number] = json.dumps(entry).encode() + b"\n"
        self.write(lines)


def flipped(left, path, first=0):
    content = bytearray(path.read_bytes())
    content[left.chance.randrange(first, len(content))] ^= 1 << left.chance.randrange(8)
    path.write_bytes(content)


def cut(left, path):
    os.truncate(path, left.chance.randrange(path.stat().st_size))


def replaced(left, path, make):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def on_journal(make):
    return lambda left: replaced(left, left.journal, make)


def base(left):
    return next((left.place.work / "in").glob("base.safetensors"))


DAMAGES = {
    "journal: a bit flipped": lambda left: flipped(left, left.journal),
    "journal: cut": lambda left: cut(left, left.journal),
    "journal: emptied": lambda left: left.write([]),
    "journal: gone": lambda left: left.journal.unlink(),
    "journal: zeros after it": lambda left: left.write([*left.lines(), bytes(512)]),
    "journal: garbage after it": lambda left: left.write([*left.lines(), left.chance.randbytes(99), b"\n"]),
    "journal: no first line": lambda left: left.write(left.lines()[1:]),
    "journal: the first line alone": lambda left: left.write(left.lines()[:1]),
    "journal: a line twice": lambda left: left.write([*left.lines(), left.lines()[-1]]),
    "journal: lines in another order": lambda left: left.write([left.lines()[0], *left.lines()[:0:-1]]),
    "journal: two lines in one": lambda left: left.write([b"".join(left.lines()).replace(b"\n", b"", 1)]),
    "journal: nested without end": lambda left: left.write([*left.lines(), b"[" * 100_000 + b"\n"]),
    "journal: null": lambda left: left.write([b"null\n"]),
    "journal: identity null": lambda left: left.write([b'{"identity": null}\n']),
    "journal: records of another type": lambda left: left.change_entry(lambda entry: entry.update(records=7)),
    "journal: no records": lambda left: left.change_entry(lambda entry: entry.update(records=[])),
    "journal: NaN": lambda left: left.change_entry(lambda e: e["records"][0].update(rho=float("nan"))),
    "journal: another checksum": lambda left: left.change_entry(lambda e: e.update(checksums=[1])),
    "journal: an unknown tensor": lambda left: left.change_entry(lambda e: e.update(tensor="nobody")),
    "journal: another number": lambda left: left.change_entry(lambda e: e["records"][0].update(dtype="F99")),
    "journal: a folder": on_journal(lambda path: path.mkdir()),
    "journal: a pipe": on_journal(lambda path: os.mkfifo(path)),
    "journal: a link": on_journal(lambda path: path.symlink_to("../in/base.safetensors")),
    "journal: a link to nowhere": on_journal(lambda path: path.symlink_to("nowhere")),
    "weights: a bit flipped": lambda left: flipped(left, left.weights),
    "weights: cut": lambda left: cut(left, left.weights),
    "weights: longer": lambda left: left.weights.write_bytes(left.weights.read_bytes() + b"more"),
    "weights: zeros": lambda left: left.weights.write_bytes(bytes(left.weights.stat().st_size)),
    "weights: gone": lambda left: left.weights.unlink(),
    "weights: a folder": lambda left: replaced(left, left.weights, lambda path: path.mkdir()),
    "weights: a pipe": lambda left: replaced(left, left.weights, os.mkfifo),
    "weights: a link": lambda left: replaced(left, left.weights, lambda path: path.symlink_to(base(left))),
    "weights: an input's second name": lambda left: replaced(
        left, left.weights, lambda path: os.link(base(left), path)
    ),
    "files: gone": lambda left: shutil.rmtree(left.files),
    "files: a file": lambda left: replaced(left, left.files, lambda path: path.touch()),
    "files: a link": lambda left: replaced(
        left, left.files, lambda path: path.symlink_to(left.place.work / "in")
    ),
    "files: another beside": lambda left: (left.files / "model-00009.safetensors").write_bytes(b"stray"),
    "lock: gone": lambda left: (left.place.partial / "lock").unlink(),
    "lock: a folder": lambda left: replaced(left, left.place.partial / "lock", lambda path: path.mkdir()),
    "lock: a pipe": lambda left: replaced(left, left.place.partial / "lock", os.mkfifo),
    "lock alone": lambda left: (shutil.rmtree(left.files), left.journal.unlink()),
    "workplace: a link for the report": lambda left: (left.place.partial / "outside-0").symlink_to(
        "../in/base.safetensors"
    ),
    "workplace: empty": lambda left: replaced(left, left.place.partial, lambda path: path.mkdir()),
}

THOROUGH = ("edit several", "edit sweep again", "edit a file again", "soup, greedy", "extract by energy")


def is_weights(step):
    return "/files/" in step and step.split()[-2].endswith(".safetensors")


def damage(bench, command, name, seed=0):
    place = bench.place(command)
    steps = bench.reference(command).steps
    sealed = next(step for step in reversed(steps) if step.startswith("fsync") and is_weights(step))
    killed = place.run(fault={"at": sealed, "signals": [9]})
    assert killed.code == -9
    place.check(killed, [-9])
    DAMAGES[name](Left(place, f"{command.name} {name} {seed}"))
    place.finish(may_refuse=True)
    place.clear()


SOME = (
    *(
        "journal: a bit flipped",
        "journal: a pipe",
        "weights: a bit flipped",
        "weights: an input's second name",
    ),
    *("files: a link", "files: another beside", "lock: gone", "workplace: empty"),
)


@pytest.mark.parametrize("name", SOME)
def test_some_damage(bench, injected, name):
    damage(bench, COMMANDS["edit several"], name)
    injected(name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("command", THOROUGH)
def test_every_damage(bench, injected, command, name):
    for seed in range(3 if "flipped" in name or "cut" in name else 1):
        damage(bench, COMMANDS[command], name, seed)
        injected(name)
