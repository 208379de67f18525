"""What hints on memory, threads and descriptors lead to, with limits that the system really sets."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

import torch
from safetensors.torch import save_file

from tests.conftest import Result
from tests.features import random_features, save
from tests.hints.table import Trial, follows

SMALL_MEMORY = "ulimit -v 200000"
LARGE_STACKS = "ulimit -s 60000000; ulimit -v 40000000"
"""So that the stack of a thread does not fit into the memory."""


def limited(at: Trial, limits: str, *options: str, command: Sequence[object] = ()) -> Result:
    """Run a command, or else the edit, in a shell that has set limits."""
    words = [sys.executable, "-m", "monosoup_cli", *map(str, command or at.edit), *options]
    script = f'export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1; {limits}; exec "$@"'
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def done(at: Trial, result: Result) -> None:
    assert result.code == 0, result
    at.ended(at.out)


@follows("cli/process.py", "^free some memory, then run it again", "^…; free some memory, then run it again")
def no_memory(at: Trial) -> None:
    """Of a command without --workers."""
    features = [save(at.tmp / f"{name}.npy", random_features(20, 4)) for name in "ab"]
    result = at.look(limited(at, SMALL_MEMORY, command=["cka", *features]))
    assert "ran out of memory; free" in result.err
    assert "--" not in result.err
    at.works("cka", *features)


@follows(
    "cli/process.py",
    "^…; or rerun with --workers 1, to need less",
    "^…; …; or rerun with --workers 1, to need less",
)
def no_memory_for_workers(at: Trial) -> None:
    at.look(limited(at, SMALL_MEMORY))
    done(at, limited(at, "true", *at.options()))


@follows(
    "cli/process.py", "^raise `ulimit -u`, then run it again", "^…; raise `ulimit -u`, then run it again"
)
def no_threads(at: Trial) -> None:
    at.look(limited(at, LARGE_STACKS))
    resume = ["--resume"] if at.out.with_name("out.partial").exists() else []
    done(at, limited(at, "true", *resume))


@follows("cli/process.py", "^raise `ulimit -n` to 1024", "^…; raise `ulimit -n` to 1024")
def no_descriptors(at: Trial) -> None:
    at.look(limited(at, "ulimit -n 5"))
    done(at, limited(at, "ulimit -n 1024"))


@follows("outputs/output_path.py", "raise the limit")
def few_descriptors(at: Trial) -> None:
    """Of an output in many shards."""
    tensors = {f"layers.{number}.weight": torch.randn(64, 64) for number in range(40)}
    for path in (at.base, at.finetuned):
        save_file(tensors, path)
    shards = ("--max-shard-size", "17KB")
    at.look(limited(at, "ulimit -n 64", *shards))
    command = re.search("`(.+)`", at.hint)
    assert command is not None
    done(at, limited(at, command[1], *shards))


@follows("devices/device.py", "use --device cpu")
def a_gpu_without_float64(at: Trial) -> None:
    at.refused(*at.edit, "--device", "mps")
    at.loads(*at.edit, *at.options())
