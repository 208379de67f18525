"""Commands whose output is interrupted in some way, and the ways on from what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import small_tensors
from tests.outputs.forks import Ended, Forks

Content = dict[str, object]
"""What is in the files of a folder, by path."""


class Kind(NamedTuple):
    """An output of some kind: its command, its name, and where its report is."""

    words: tuple[str, ...]
    out: str = "out"
    report: str = "out/monosoup_report.json"


KINDS = {
    "folder": Kind(("edit", "base.safetensors", "tuned")),
    "file": Kind(("edit", "base.safetensors", "tuned"), "out.safetensors", "out.report.json"),
    "shards": Kind(("edit", "base.safetensors", "tuned", "--max-shard-size", "100B")),
    "sweep": Kind(("wise", "base.safetensors", "tuned", "--alpha", "0.3,0.5")),
    "adapter": Kind(
        (
            "edit",
            "base.safetensors",
            "tuned",
            "--as-adapter",
            "--adapter-rank",
            "2",
            "--include",
            "block.weight",
        )
    ),
    "state dict": Kind(("edit", "base.safetensors", "tuned.pt")),
    "report elsewhere": Kind(
        ("edit", "base.safetensors", "tuned", "--report", "work/report.json"), report="report.json"
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


class Place:
    """A folder with inputs, and one, `work`, in which OUT is made, killed and made again."""

    def __init__(self, root: Path, forks: Forks) -> None:
        self.root, self.forks, self.work = root, forks, root / "work"
        for seed, path in enumerate((root / "base.safetensors", root / "tuned" / "model.safetensors")):
            path.parent.mkdir(exist_ok=True)
            save_file(small_tensors(seed), path, {"format": "pt"})
        (root / "tuned" / "config.json").write_text("{}")
        torch.save(small_tensors(1), root / "tuned.pt")

    def run(self, kind: Kind, *options: str, **fault: object) -> Ended:
        words = [str(self.root / word) if (self.root / word).exists() else word for word in kind.words]
        words = [str(self.root / word) if word.startswith("work/") else word for word in words]
        words += ["-o", str(self.work / kind.out), "--device", "cpu", "--workers", "1", "--quiet"]
        return self.forks.run(*words, *options, **fault)

    def content(self, kind: Kind) -> Content:
        """What the output is, by path; of reports what does not change from run to run."""
        return {
            path.relative_to(self.work).as_posix(): lasting(path)
            if path.suffix == ".json"
            else path.read_bytes()
            for path in sorted(self.work.rglob("*"))
            if path.is_file() and f"{kind.out}.partial" not in path.parts
        }

    def keep(self, name: str) -> None:
        """Keep the state of `work` under a name."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        shutil.copytree(self.work, self.root / name)

    def restore(self, name: str) -> None:
        """Put `work` into a state that was kept."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.root / name, self.work)


def lasting(path: Path) -> object:
    content = json.loads(path.read_bytes())
    return {name: content[name] for name in content.keys() & {"layers", "outputs", "output"}} or content


def prepare(place: Place, kind: Kind, *, has_old: bool) -> Content:
    """Keep `start`, without an output or with an old one, and return what a whole run makes of it."""
    place.work.mkdir()
    if has_old:
        assert place.run(kind._replace(words=(*kind.words, "--exclude", "head*"))).code == 0
    place.keep("start")
    whole = place.run(kind, "--overwrite")
    assert whole.code == 0, whole.err
    content = place.content(kind)
    place.keep("whole")
    return content


def recover(place: Place, kind: Kind, old: Content, new: Content) -> None:
    """From the state `crashed`, commands make the output, or say that it exists or how to go on."""

    def is_one_of(*whole: Content) -> bool:
        """Whether the output is whole; a report elsewhere is moved just before the output is."""
        now, *wanted = (
            {name: some[name] for name in some if name.startswith(kind.out) and name != kind.report}
            for some in (place.content(kind), *whole)
        )
        return now in wanted

    assert is_one_of(old, new, {})
    for options in ([], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]):
        place.restore("crashed")
        ended = place.run(kind, *options)
        if ended.code == 0:
            assert place.content(kind) == new
            assert not (place.work / f"{kind.out}.partial").exists()
        else:
            assert ended.code == 1, ended
            assert "--overwrite" not in options, ended
            if "--resume" not in options and "unfinished work" in ended.err:
                assert is_one_of(old, {})
            else:
                said = ("output already exists", "output is complete", "would replace this output")
                assert any(words in ended.err for words in said), ended
                assert is_one_of(old, new)
