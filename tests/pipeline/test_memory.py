"""How much memory a plan foresees: as much as a run takes, on the host and on every card."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import ResourceError
from monosoup_cli.pipeline.memory import allot

MEASURED = """
import sys
from pathlib import Path
import monosoup_cli

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, names, options = Path(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[3])
peaks = []
for size in ("small", "large"):
    if "adapter_rank" in options:
        options["adapter_rank"] = 8 if size == "small" else 256
    base, *finetuned, out = (folder / f"{size}-{name}" for name in (*names, "out"))
    monosoup_cli.edit(base, finetuned, out, workers=1, **options)
    peaks.append(peak())
print(peaks[1] - peaks[0])
"""


SWEEP = {"energy": [0.5, 0.8, 0.9], "wise": [0.5, 1.0]}

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs and adapters for one tall matrix, and for a small matrix, to load all libraries first; and a
    square update whose spectrum falls over six decades."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = torch.Generator().manual_seed(0)
    for size, side in {"small": 40, "large": 1280}.items():
        graded = torch.randn(side, side, generator=generator) * 10.0 ** -torch.linspace(0, 6, side)
        for name, tensor in (("zeros", torch.zeros(side, side)), ("graded", graded)):
            (folder / f"{size}-{name}").mkdir()
            save_file({f"{MODULE}.weight": tensor}, folder / f"{size}-{name}" / "model.safetensors")
    for size, shape in {"small": (40, 30), "large": (60_000, 384)}.items():
        base = torch.randn(shape, generator=generator)
        finetuned = base + 0.1 * torch.randn(shape, generator=generator)
        for name, tensor in (("base", base), ("ft", finetuned)):
            (folder / f"{size}-{name}").mkdir()
            path = folder / f"{size}-{name}" / "model.safetensors"
            save_file({f"{MODULE}.weight": tensor.bfloat16()}, path)
        for name in ("lora-1", "lora-2"):
            rank, (rows, columns) = 256 if size == "large" else 8, shape
            a, b = (torch.randn(of, generator=generator) for of in ((rank, columns), (rows, rank)))
            (folder / f"{size}-{name}").mkdir()
            factors = {f"base_model.model.{MODULE}.lora_{key}.weight": of for key, of in (("A", a), ("B", b))}
            save_file(factors, folder / f"{size}-{name}" / "adapter_model.safetensors")
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": 1, "target_modules": ["up_proj"]}
            (folder / f"{size}-{name}" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (["base", "ft"], {}),
        (["base", "ft"], SWEEP),
        (["zeros", "graded"], {"weighting": "low"}),
        (["base", "ft"], {"as_adapter": True, "adapter_rank": 256}),
        (["base", "ft"], {"as_adapter": True, "adapter_rank": 256, **SWEEP}),
        (["base", "ft"], {"as_adapter": True, "adapter_energy": 0.99}),
        (["base", "lora-1"], {}),
        (["base", "lora-1"], SWEEP),
        (["base", "lora-1", "lora-2"], {}),
        (["base", "lora-1"], {"as_adapter": True}),
        (["base", "lora-1"], {"as_adapter": True, "energy": SWEEP["energy"]}),
    ],
    ids=[
        *("whole", "sweep", "low part", "rank", "rank, sweep", "energy"),
        *("merged", "merged, sweep", "merged, mean", "adapter", "adapter, sweep"),
    ],
)
def test_a_run_takes_no_more_than_its_plan_says(pairs, tmp_path, run, inputs, options):
    words = []
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    out = ["-o", tmp_path / "out", "--workers", "1", "--dry-run", "--format", "json"]
    plan = run("edit", *(pairs / f"large-{name}" for name in inputs), *out, *words)
    assert plan.code == 0, plan.err
    for old in pairs.glob("*-out"):
        subprocess.run(["rm", "-r", old], check=True)
    command = [sys.executable, "-c", MEASURED, pairs, repr(inputs), repr(options)]
    growth = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    planned = json.loads(plan.out)["memory_bytes"]
    assert growth <= planned
    assert planned <= 5 * max(growth, 40_000_000), "a plan that foresees far too much costs workers"


@dataclass(frozen=True)
class Card:
    """A card with some free memory, as far as plans ask one."""

    free: int
    is_host: bool = False
    workers: int = 3

    def free_bytes(self):
        return self.free


GIB = 1 << 30


@pytest.mark.parametrize(("on_host", "expected"), [(1 * GIB, 24), (4 * GIB, 14), (20 * GIB, 2)])
def test_the_host_holds_what_the_workers_of_all_cards_read(monkeypatch, on_host, expected):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 64 * GIB)
    needs = [Held(host=on_host, device=10 * GIB)] * 100
    resources = allot(needs, [Card(80 * GIB)] * 8, None)
    assert resources.workers == expected
    assert resources.host_bytes == expected * on_host <= 64 * GIB
    assert resources.device_bytes == -(-expected // 8) * 10 * GIB <= 80 * GIB


def test_a_card_holds_what_its_own_workers_compute(monkeypatch):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 64 * GIB)
    needs = [Held(host=1, device=10 * GIB)] * 100
    assert allot(needs, [Card(80 * GIB), Card(25 * GIB)], None).workers == 4
    with pytest.raises(ResourceError, match="does not fit"):
        allot(needs, [Card(80 * GIB), Card(9 * GIB)], None)


def test_on_the_host_everything_is_the_hosts(monkeypatch):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 10 * GIB)
    needs = [Held(host=1 * GIB, device=2 * GIB)] * 5
    resources = allot(needs, [Cpu()], 2)
    assert (resources.workers, resources.host_bytes, resources.device_bytes) == (2, 6 * GIB, 0)
