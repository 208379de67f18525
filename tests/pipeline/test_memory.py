"""How much memory a plan foresees: as much as a run takes, on the host and on every card."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.held import Held, Sizes
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
            scales = torch.full((-(-shape[0] // 128), -(-shape[1] // 128)), 0.02)
            parts = {".weight": (tensor * 50).to(torch.float8_e4m3fn), ".weight_scale_inv": scales}
            (folder / f"{size}-{name}-fp8").mkdir()
            path = folder / f"{size}-{name}-fp8" / "model.safetensors"
            save_file({f"{MODULE}{end}": part for end, part in parts.items()}, path)
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
        (["base-fp8", "ft-fp8"], {}),
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
        *("whole", "fp8", "sweep", "low part", "rank", "rank, sweep", "energy"),
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


SIZES = Sizes(1 << 30, 16, Held(host=1, device=2))


@dataclass(frozen=True)
class Card:
    """A card with some free memory, as far as plans ask one."""

    number: int
    free: int
    name: str = "some card"
    rate: float = 1e15
    fault: str | None = None
    is_host: bool = False
    workers: int = 3
    sizes: Sizes = SIZES
    torch: ClassVar = property(lambda self: f"cuda:{self.number}")

    def warm_up(self):
        if self.fault is not None:
            raise ResourceError(f"{self.torch} cannot be used: {self.fault}")

    def model(self):
        return self.name

    def float64_rate(self):
        return self.rate

    def free_bytes(self):
        return self.free


GIB = 1 << 30
NEEDS = [Held(host=1, device=10 * GIB)] * 100


@pytest.fixture(autouse=True)
def _host_of_64_gib(monkeypatch):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 64 * GIB)


@pytest.mark.parametrize(("on_host", "expected"), [(1 * GIB, 24), (4 * GIB, 14), (20 * GIB, 2)])
def test_the_host_holds_what_the_workers_of_all_cards_read(on_host, expected):
    needs = [Held(host=on_host, device=10 * GIB)] * 100
    resources = allot(lambda device: needs, [Card(number, 80 * GIB) for number in range(8)], None)
    assert resources.workers == expected
    assert len(resources.devices) == min(expected, 8), "workers are spread over the cards"
    assert resources.host_bytes == expected * (on_host + 1) <= 64 * GIB
    of_one = -(-expected // 8)
    assert resources.device_bytes == of_one * (10 * GIB + 2) <= 80 * GIB


def test_a_card_holds_what_its_own_workers_compute():
    large, small = Card(0, 80 * GIB), Card(1, 25 * GIB)
    places = allot(lambda device: NEEDS, [large, small], None).places
    assert places == [large, small, large, small, large]


@pytest.mark.parametrize(
    ("second", "note"),
    [
        (Card(1, 9 * GIB), "cuda:1 is left out: the largest matrix does not fit into the memory of cuda:1"),
        (Card(1, 80 * GIB, fault="all busy"), "cuda:1 is left out: cuda:1 cannot be used: all busy"),
        (Card(1, 80 * GIB, "other"), "cuda:1 is left out: its results may differ from those of some card"),
    ],
    ids=["too small", "unusable", "another model"],
)
def test_cards_that_are_left_out(second, note):
    first = Card(0, 80 * GIB)
    resources = allot(lambda device: NEEDS, [first, second], None)
    assert (resources.devices, resources.notes) == ((first,), [note])


@pytest.mark.parametrize(
    ("card", "access", "note"),
    [
        (Card(0, 9 * GIB), "matrix", "cuda:0 is left out"),
        (Card(0, 80 * GIB, fault="busy"), "matrix", "cuda:0 is left out: cuda:0 cannot be used: busy"),
        (Card(0, 80 * GIB, rate=1e3), "matrix", "the CPU computes: it is faster in float64 than some card"),
        (Card(0, 80 * GIB), "flat", "the CPU computes, because the disk is the limit here"),
    ],
    ids=["too small", "unusable", "slow", "bound by the disk"],
)
def test_the_cpu_takes_over_where_the_device_is_chosen_automatically(card, access, note):
    needs = [Held(host=1, device=GIB if access == "flat" else 10 * GIB)] * 100
    resources = allot(lambda device: needs, [card, Cpu()], None, access)
    assert resources.devices == (Cpu(),)
    assert resources.notes[0].startswith(note)
    assert resources.substitute is None


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ([Card(0, 9 * GIB)], "does not fit into the memory of cuda:0: expected about 10,737"),
        ([Card(0, 80 * GIB, fault="busy")], "cuda:0 cannot be used: busy"),
        ([Card(0, GIB), Card(1, GIB)], "no card can be used; cuda:0 is left out: .*; cuda:1 is left out"),
    ],
)
def test_cards_that_were_asked_for_are_not_replaced(cards, message):
    with pytest.raises(ResourceError, match=message):
        allot(lambda device: NEEDS, cards, None)


def test_workers_that_were_asked_for_are_spread_over_the_cards_that_stay():
    cards = [Card(0, 80 * GIB), Card(1, 80 * GIB, "other"), Cpu()]
    assert allot(lambda device: NEEDS, cards, 4).places == [cards[0]] * 4


def test_the_cpu_is_no_substitute_for_what_the_host_cannot_hold():
    card, needs = Card(0, 80 * GIB), [Held(host=GIB, device=20 * GIB)] * 2
    resources = allot(lambda device: needs, [card, Cpu()], None)
    assert (resources.substitute, resources.host_bytes) == (Cpu(), 2 * (GIB + 1) + 21 * GIB)
    needs = [Held(host=GIB, device=60 * GIB)]
    resources = allot(lambda device: needs, [card, Cpu()], None)
    assert (resources.substitute, resources.host_bytes) == (None, GIB + 1)


def test_the_cpu_is_the_substitute_of_cards_that_were_not_asked_for():
    card = Card(0, 80 * GIB)
    assert allot(lambda device: NEEDS, [card, Cpu()], None).substitute == Cpu()
    assert allot(lambda device: NEEDS, [card], None).substitute is None


def test_host_and_cards_have_plans_of_their_own(monkeypatch):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 8 * GIB)
    needs = [Held(host=GIB // 5, device=20 * GIB)]
    resources = allot(lambda device: needs, [Card(0, 80 * GIB)], None)
    assert resources.host_bytes == GIB // 5 + 1
    with pytest.raises(ResourceError, match="does not fit into the memory of the host"):
        allot(lambda device: needs, [Cpu()], None)


@pytest.mark.parametrize("devices", [[Card(0, 25 * GIB)], [Cpu()]], ids=["card", "host"])
def test_workers_that_were_asked_for_must_fit(monkeypatch, devices):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 25 * GIB)
    assert allot(lambda device: NEEDS, devices, 2).workers == 2
    with pytest.raises(ResourceError, match="5 workers do not fit into memory; --workers 2 fits"):
        allot(lambda device: NEEDS, devices, 5)


def test_on_the_host_everything_is_the_hosts(monkeypatch):
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 10 * GIB)
    needs = [Held(host=1 * GIB, device=2 * GIB)] * 5
    resources = allot(lambda device: needs, [Cpu()], 2)
    assert (resources.workers, resources.host_bytes, resources.device_bytes) == (2, 6 * GIB, 0)
