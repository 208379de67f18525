"""Break the code for cards on purpose, and see whether the tests notice.

    python -m tests.card.mutants [NUMBER…] [--list] [--tests PATH…]

Each mutant is one small edit of the package. It is made in a copy of the tree, where the tests for cards then
run on two emulated cards, "late", until the first one fails. A mutant that no test notices has survived, and
the exit code is 1. The unchanged copy must pass first (number 0). Add a mutant to MUTANTS for every new way
in which the code waits, frees, copies, or chooses a card. `--list` only checks that all can be made.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).parents[2]
TESTS = ["tests/devices", "tests/spectral", "tests/methods", "tests/tensors", "tests/pipeline"]

CUDA = "monosoup_cli/devices/cuda.py"


class Mutant(NamedTuple):
    """An edit of one file, and what goes wrong with it."""

    fault: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "a pinned buffer is filled again before its bytes have arrived",
        CUDA,
        "        if not self._arrival.query():\n            self._arrival.synchronize()\n        then,",
        "        then,",
    ),
    Mutant("the event is not recorded", CUDA, "        self._arrival.record()\n", ""),
    Mutant(
        "results are written before the last copies have arrived",
        CUDA,
        "            for staging in self._stagings:  # the one that was used first is the first\n"
        "                staging.wait()",
        "            for staging in self._stagings:\n"
        "                then, staging._then = staging._then, None\n"
        "                if then is not None:\n"
        "                    then()",
    ),
    Mutant(
        "the last bytes are dropped",
        CUDA,
        "            for staging in self._stagings:  # the one that was used first is the first\n"
        "                staging.wait()",
        "            pass",
    ),
    Mutant(
        "the buffers are not taken in turn",
        CUDA,
        "        staging = self._stagings.pop(0)\n"
        "        self._stagings.append(staging)\n"
        "        staging.wait()",
        "        staging = self._stagings[0]",
    ),
    Mutant(
        "a copy to the card waits",
        CUDA,
        "to[start : start + len(data)].copy_(data, non_blocking=True)",
        "to[start : start + len(data)].copy_(data)",
    ),
    Mutant("a copy from the card waits", CUDA, "data.copy_(source, non_blocking=True)", "data.copy_(source)"),
    Mutant(
        "memory is not pinned",
        CUDA,
        "buffer = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)",
        "buffer = torch.empty(PINNED_BYTES, dtype=torch.uint8)",
    ),
    Mutant(
        "the thread keeps the device and the stream that it had",
        CUDA,
        "        torch.cuda.set_device(self.torch)\n"
        "        torch.cuda.set_stream(_stream(self.number, number))\n",
        "",
    ),
    Mutant(
        "the event is of another stream",
        CUDA,
        "        self._arrival.record()\n",
        '        self._arrival.record(__import__("torch").cuda.default_stream())\n',
    ),
    Mutant(
        "workers share the default stream",
        CUDA,
        "        torch.cuda.set_stream(_stream(self.number, number))\n",
        "",
    ),
    Mutant("every run takes new streams", CUDA, "@cache\ndef _stream(", "def _stream("),
    Mutant(
        "tensors are made on the first card",
        CUDA,
        "return torch.empty(shape, dtype=torch_dtype(dtype), device=self.device)",
        'return torch.empty(shape, dtype=torch_dtype(dtype), device="cuda:0")',
    ),
    Mutant(
        "tensors are made on the host",
        CUDA,
        "return torch.empty(shape, dtype=torch_dtype(dtype), device=self.device)",
        "return torch.empty(shape, dtype=torch_dtype(dtype))",
    ),
    Mutant(
        "float32 in place of float64 on the card",
        CUDA,
        "take(purpose, dtype, *stored.shape).copy_(stored)",
        "take(purpose, dtype, *stored.shape).copy_(stored.float())",
    ),
    Mutant(
        "NaN and overflow in results are not looked for",
        CUDA,
        "                if nonfinite := int(staging.count):\n                    refuse(nonfinite)\n",
        "",
    ),
    Mutant(
        "the count of NaN is that of the buffer's last use",
        CUDA,
        "            staging.count.copy_(count, non_blocking=True)\n",
        "",
    ),
    Mutant(
        "the second range is copied over the first",
        CUDA,
        "to[start : start + len(data)].copy_(",
        "to[: len(data)].copy_(",
    ),
    Mutant(
        "a failed decomposition is not tried on the CPU",
        "monosoup_cli/spectral/eigen.py",
        "        return solve(on_cpu)",
        "        raise",
    ),
    Mutant(
        "a factor stays on the host",
        CUDA,
        "        self.fill(target, read)\n        return target",
        "        self.fill(target, read)\n        return values",
    ),
    Mutant(
        "what was handed over before an error is written later",
        CUDA,
        "                staging.drop()",
        "                pass",
    ),
    Mutant(
        "the first card in place of the named one",
        CUDA,
        'return torch.device("cuda", self.number)',
        'return torch.device("cuda", 0)',
    ),
    Mutant(
        "a matrix is copied to the card again for every pass",
        "monosoup_cli/tensors/matrix.py",
        "self._is_held = is_held and",
        "self._is_held = False and",
    ),
    Mutant(
        "a block is overwritten where its upcast is used",
        CUDA,
        "take(purpose, dtype, *stored.shape)",
        'take("one for all", dtype, *stored.shape)',
    ),
    Mutant("what cuBLAS keeps piles up from run to run", CUDA, "            _clear_workspaces()\n", ""),
    Mutant("what torch has cached counts as taken", CUDA, "return free + int(cached)", "return free"),
    Mutant(
        "a card without memory is an error where the CPU could compute",
        "monosoup_cli/pipeline/engine.py",
        "if self.substitute is None or not lacks_memory(error):",
        "if True:",
    ),
]


def check(mutants):
    """Raise ValueError for a mutant whose old text is not in its file exactly once."""
    for mutant in mutants:
        if (found := (TREE / mutant.file).read_text().count(mutant.old)) != 1:
            raise ValueError(f"{mutant.fault}: its old text is {found} times in {mutant.file}:\n{mutant.old}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="list them, and run nothing")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="only these tests")
    options = parser.parse_args()
    check(MUTANTS)
    unchanged = Mutant("nothing is changed", CUDA, "", "")
    survivors = 0
    for number, mutant in enumerate([unchanged, *MUTANTS]):
        if options.numbers and number not in options.numbers:
            continue
        print(f"{number:2} {mutant.fault}", end="\n" if options.list else ": ", flush=True)
        if options.list:
            continue
        start = time.monotonic()
        failed = first_failure(mutant, options.tests)
        print(f"{failed or 'SURVIVED' if number else failed or 'passes'} ({time.monotonic() - start:.0f} s)")
        if not number and failed:
            sys.exit("the tests must pass before a mutant can fail them")
        survivors += bool(number and not failed)
    sys.exit(survivors > 0)


def first_failure(mutant, tests):
    """Run the tests on a copy of the tree with an edit.

    Returns:
        The first test that failed, or None.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("monosoup_cli", "tests", "docs"):
            shutil.copytree(TREE / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(TREE / name, tree / name)
        path = tree / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new, 1))
        # -k also chooses tests that install cards of their own, by the name of their file
        words = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--cards", "2", "-k", "cuda", *tests]
        environment = {**os.environ, "PYTHONPATH": folder, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed is None:
        sys.exit(f"pytest did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


if __name__ == "__main__":
    main()
