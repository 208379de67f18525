"""What hints on cards lead to, on emulated ones in a process of their own: the same command on the CPU."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.card.state import STATE
from tests.conftest import Result
from tests.hints.table import Trial, follows

HAS_CUDA = torch.version.cuda is not None and not STATE.cards
EMULATED = (pytest.mark.skipif(HAS_CUDA, reason="the faults are those of emulated cards"),)


def on_cards(count: int, place: str, *argv: object) -> Result:
    """Run the command line where cards are busy at a certain place."""
    script = f"""
        import sys
        from monosoup_cli.cli.app import main
        from tests.card import faults
        from tests.card.install import install
        install({count})
        with faults.failing(faults.BUSY, {place!r}):
            sys.exit(main(sys.argv[1:]))
    """
    words = [sys.executable, "-c", textwrap.dedent(script), *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@follows("devices/cuda.py", "--device cpu computes without it", marks=EMULATED)
@follows("pipeline/memory.py", "try --device cpu", marks=EMULATED)
@follows("pipeline/engine.py", "failed: …; rerun with …--device cpu", marks=EMULATED)
def busy_cards(at: Trial) -> None:
    """The only one, or both, from the start; or one that fails in the middle of the run."""
    for path in (at.base, at.finetuned):
        save_file({"layer": torch.randn(90, 80).bfloat16()}, path)
    count, place = {
        "devices/cuda.py": (1, "mem_get_info"),
        "pipeline/memory.py": (2, "mem_get_info"),
        "pipeline/engine.py": (1, "addmm_"),
    }[at.site.file]
    result = on_cards(count, place, *at.edit, "--device", "cuda")
    assert result.code == 1, result
    at.look(result)
    options = [at.options(number) for number in range(at.hint.count("--"))]
    at.loads(*at.edit, *(word for option in options for word in option))
