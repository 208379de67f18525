"""A small family of checkpoints, and a real score command with a known optimum.

A score is how near a checkpoint is to another one, which has the best score. The command
writes down what it scores. It fails, or kills the run that asks, at a score of choice.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SCRIPT = """
import hashlib, json, os, signal, struct, sys
from pathlib import Path

def load(file):  # by hand: importing NumPy takes far longer than a score
    data = Path(file).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    codes = {"F32": "f", "F16": "e"}
    for name, one in header.items():
        start, stop = (end + place for place in one["data_offsets"])
        code = codes[one["dtype"]]
        yield name, struct.unpack(f"<{(stop - start) // struct.calcsize(code)}{code}", data[start:stop])

name, target, given = sys.argv[1], sys.argv[2], Path(sys.argv[3])
here = Path(__file__).parent
file = given / "model.safetensors" if given.is_dir() else given
with open(here / "log", "a") as log:
    beside = sorted(path.name for path in given.iterdir()) if given.is_dir() else []
    run = {"name": name, "path": str(given), "siblings": sorted(os.listdir(given.parent))}
    run["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    log.write(json.dumps({**run, "beside": beside}) + "\\n")
number = len((here / "log").read_text().splitlines())
if (here / f"fail at {number}").exists():
    sys.exit("no luck today")
if (here / f"kill at {number}").exists():
    asking = int(Path(f"/proc/{os.getsid(0)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(asking, signal.SIGKILL)
    sys.exit(1)
found, wanted = dict(load(file)), dict(load(target))
print("scored", file)
print(-sum((a - b) ** 2 for name in wanted for a, b in zip(found[name], wanted[name], strict=True)))
"""


class Landscape:
    """Files in a folder: `base`, `ft` and further fine-tunes, and the score command."""

    def __init__(self, folder: Path, finetuned: int = 1) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "score.py").write_text(SCRIPT)
        self.base = folder / "base"
        self.finetuned = [folder / f"ft{number or ''}" for number in range(finetuned)]
        base = _tensors(0)
        shared = _tensors(1, rank=2)
        _save(base, self.base)
        for number, path in enumerate(self.finetuned):
            own = _tensors(10 + number)
            tuned = {name: base[name] + shared[name] + 0.3 * own[name] for name in base}
            _save(tuned, path)

    @property
    def ft(self) -> Path:
        return self.finetuned[0]

    def command(self, target: Path, name: str = "score") -> str:
        """Scores a checkpoint by its distance from `target`, which has the best score, 0."""
        file = target / "model.safetensors" if target.is_dir() else target
        words = [sys.executable, "-I", "-S", str(self.folder / "score.py"), name, str(file)]
        return f"{shlex.join(words)} {{}}"

    def at(self, number: int, what: str) -> Path:
        """Make the run of this number fail, or kill; removing the file mends it."""
        path = self.folder / f"{what} at {number}"
        path.touch()
        return path

    @property
    def runs(self) -> list[dict[str, Any]]:
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget(self) -> None:
        (self.folder / "log").unlink(missing_ok=True)


def _tensors(seed: int, rank: int | None = None) -> dict[str, torch.Tensor]:
    """Float32 tensors; of low rank where one is given."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        if rank is None:
            return torch.randn(rows, columns, generator=generator)
        left, right = (
            torch.randn(rows, rank, generator=generator),
            torch.randn(rank, columns, generator=generator),
        )
        return left @ right

    made = {f"blocks.{block}.proj.weight": matrix(16, 12) for block in range(3)}
    return made | {"blocks.0.bias": torch.randn(16, generator=generator), "head.weight": matrix(5, 12)}


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "mine"}')
