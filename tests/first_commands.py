"""The first commands of the README, by the `monosoup` of the PATH, with the standard library alone.

`make release-check` runs this with the wheel alone in an environment. `make test-slow` does it with the
wheel's files.

    python tests/first_commands.py     in any folder: it works in one of its own
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from glob import glob
from itertools import pairwise
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
SHAPES = {f"layers.{n}.{part}": (24, 16) for n in range(2) for part in ("attn.weight", "mlp.weight")} | {
    "lm_head.weight": (32, 24),
    "lm_head.bias": (32,),
}
BASES = ("base.safetensors", "base-model/model.safetensors", "demo/base.safetensors")
FINETUNED = tuple(f"{name}.safetensors" for name in ("ft", "ft1", "ft2", "ft3", "ft-model/model")) + tuple(
    f"demo/finetuned{number}.safetensors" for number in ("", *(f"-{n}" for n in range(2, 6)))
)
"""The names that the README's examples have for what somebody trained."""
FIRST = 5
"""How many of the README's commands are run."""
ALWAYS = (
    "monosoup edit base.safetensors ft.safetensors -o always",
    "monosoup inspect-spectrum base.safetensors ft.safetensors",
    "monosoup verify always",
    "monosoup report always --html always.html",
    "monosoup run always/monosoup_report.json -o again",
)
"""What is run whatever the README has."""


def write_checkpoint(path: Path, seed: int) -> None:
    """Write a file in the safetensors format: the same base for every seed, and an update of its own.

    Without torch: the environment of a release has no NumPy, which safetensors needs to write tensors.
    """
    base, update = random.Random(0), random.Random(seed)
    header, body = {}, b""
    for name, shape in SHAPES.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [base.gauss(0, 1) + (update.gauss(0, 0.1) if seed else 0) for _ in range(size)]
        packed = struct.pack(f"<{size}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (len(body), len(body) + len(packed))}
        body += packed
    head = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def write_inputs(folder: Path) -> None:
    """Write what the README's examples read."""
    for seed, name in enumerate(FINETUNED, 1):
        write_checkpoint(folder / name, seed)
    for name in BASES:
        write_checkpoint(folder / name, 0)


def commands(text: str) -> Iterator[str]:
    """Every command line of `monosoup` in a block of code, without what only one machine has."""
    joined = re.sub(r" *\\\n *", " ", text)
    for block in re.findall(r"^```(?:console|sh|bash)?\n(.*?)^```", joined, re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^ *(?:\$ )?(monosoup [a-z].*)$", block, re.MULTILINE):
            if "--score" not in line and "--push" not in line:
                yield line


def has_inputs(line: str, folder: Path) -> bool:
    """Whether all that a command line reads is there: what comes after the command, up to an option."""
    words = shlex.split(line)[2:]
    inputs = words[: next((at for at, word in enumerate(words) if word[:1] in "-><|&;"), None)]
    return all(word == "-" or glob(str(folder / word)) for word in inputs) and bool(inputs)


def run(line: str, folder: Path) -> None:
    """Run a command line. What an earlier one left in the place of its output makes way."""
    words = shlex.split(line)
    for option, value in pairwise(words):
        if option == "-o":
            shutil.rmtree(folder / value, ignore_errors=True)
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    print(f"{done.returncode}  {line}", flush=True)
    if done.returncode != 0:
        raise SystemExit(f"failed: {line}\n{done.stdout}{done.stderr}")


def main() -> None:
    """Run them all; one that fails ends it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        count = 0
        for line in dict.fromkeys(commands(README.read_text())):
            if count < FIRST and has_inputs(line, folder):
                run(line, folder)
                count += 1
        if count < FIRST:
            raise SystemExit(f"{README}: {count} commands whose inputs are known, expected {FIRST}")
        for line in ALWAYS:
            run(line, folder)
        made, again = (folder / out / "model.safetensors" for out in ("always", "again"))
        if made.read_bytes() != again.read_bytes():
            raise SystemExit("monosoup run made other bytes than the run of its report")
        if "<script>" not in (folder / "always.html").read_text():
            raise SystemExit("always.html has no script: are its assets in the wheel?")


if __name__ == "__main__":
    main()
