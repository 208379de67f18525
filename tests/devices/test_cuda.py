"""What a run does on cards: bytes over the bus, waits, memory, faults. On emulated cards, which count that.

Every script runs in a process of its own, because cards are for a whole process.
"""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.card.state import STATE
from tests.sampling import first

has_cuda = torch.version.cuda is not None and not STATE.cards
pytestmark = pytest.mark.skipif(has_cuda, reason="needs a torch without CUDA")

PRELUDE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from tests.card.install import install, remove
import monosoup_cli
from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.cuda import Cuda

folder = Path(sys.argv[1])
MIB, BF16 = 1 << 20, torch.bfloat16

def pair(name, **tensors):
    generator = torch.Generator().manual_seed(0)
    base = {key: torch.randn(shape, generator=generator).to(dtype) for key, (shape, dtype) in tensors.items()}
    finetuned = {
        key: (one.double() + 0.1 * torch.randn(one.shape, generator=generator)).to(one.dtype)
        for key, one in base.items()
    }
    save_file(base, folder / f"{name}-base.safetensors")
    save_file(finetuned, folder / f"{name}-ft.safetensors")
    return folder / f"{name}-base.safetensors", folder / f"{name}-ft.safetensors"

def edit(pair, name="out", method=monosoup_cli.edit, **options):
    out = folder / f"{name}.safetensors"
    report = method(*pair, out, overwrite=True, **options)
    return out.read_bytes(), report

LAYERS = {"tall": ((300, 70), BF16), "wide": ((70, 300), torch.float32), "square": ((90, 90), torch.float16)}
LAYERS["double"] = (80, 60), torch.float64
STACK = {"mlp.experts.gate_up_proj": ((3, 40, 30), BF16), "norm": ((50,), BF16)}
"""


def on_cards(folder, script):
    """Run a script with these names; return what it prints as JSON, if anything."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) if done.stdout else None


def test_cards_give_the_cpus_bytes_whenever_they_work(tmp_path):
    """The emulated cards compute as the CPU does, so that every other byte is a race or a wrong copy."""
    on_cards(
        tmp_path,
        """
        from monosoup_cli.devices import cuda
        from monosoup_cli.tensors import cut
        cuda.STAGED_BYTES = 4096  # several copies for each tensor
        cut.BLOCK_ELEMENTS, cut.MIN_BLOCK_LENGTH = 4000, 16
        files = pair("a", **LAYERS, **STACK)
        more = [files[1], pair("b", **LAYERS, **STACK)[1]]

        def moved(base, two, out, **on):
            return monosoup_cli.transplant(base, two[0], two[1], out, scale=0.5, **on)

        def averaged(base, two, out, **on):
            return monosoup_cli.soup(two, out, schedule="linear", **on)

        runs = {
            "edit": lambda **on: edit(files, **on),
            "soup of edits": lambda **on: edit((files[0], more), **on),
            "stock": lambda **on: edit((files[0], more), method=monosoup_cli.stock, **on),
            "wise": lambda **on: edit(files, method=monosoup_cli.wise, alpha=0.3, **on),
            "transplant": lambda **on: edit((files[0], more), method=moved, **on),
            "soups of a run": lambda **on: edit((files[0], more), method=averaged, **on),
        }
        for resident in (1 << 30, 5000):
            cuda.RESIDENT_BYTES = resident
            expected = {name: run(device="cpu")[0] for name, run in runs.items()}
            for when, seed in [("late", 0), ("early", 0), *(("random", seed) for seed in range(10))]:
                install(2, when=when, seed=seed)
                for name, run in runs.items():
                    if name == "edit" or seed < 2:
                        found = run(device="cuda", workers=4)[0]
                        assert found == expected[name], (name, when, seed, resident)
                remove()
        """,
    )


def test_nothing_is_written_late_over_a_tensor_that_is_kept(tmp_path):
    """In its first row the edited `a` overflows, which is seen when its other rows are on their way."""
    on_cards(
        tmp_path,
        """
        from monosoup_cli.devices import cuda
        from monosoup_cli.tensors import cut
        cuda.STAGED_BYTES, cut.BLOCK_ELEMENTS, cut.MIN_BLOCK_LENGTH = 4096, 1000, 16
        files, F16 = pair("a", a=((300, 64), torch.float16), b=((80, 64), torch.float16)), torch.float16
        base = load_file(files[0])
        update = 500 * torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
        base["a"][0, :32], update[0, :32] = 65504, 0
        finetuned = load_file(files[1]) | {"a": (base["a"] + update).to(F16)}
        for tensors, path in zip((base, finetuned), files):
            save_file(tensors, path)
        options = dict(on_nonfinite="keep", weighting="high")
        expected, report = edit(files, device="cpu", **options)
        reasons = {layer["name"]: layer["reason"] for layer in report["layers"]}
        assert reasons == {"a": "nonfinite", "b": None}, reasons
        install(1)
        assert edit(files, device="cuda", workers=1, **options)[0] == expected
        """,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bus_carries_each_byte_once(tmp_path, dtype):
    """At most six waits for a layer: the norm of Δ, eigh, the singular values, the norm of W0, the result."""
    found = on_cards(
        tmp_path,
        f"""
        files = pair("a", layer=((1024, 300), torch.{dtype}))
        wide = pair("b", layer=((300, 1024), torch.{dtype}))
        three = pair("c", **{{f"layer{{number}}": ((1024, 300), torch.{dtype}) for number in range(3)}})
        cards = install(1)
        counts = []
        for one in (files, wide, files, three):
            cards.stats.clear()
            edit(one, device="cuda")
            counts.append(dict(cards.stats))
        print(json.dumps(counts))
        """,
    )
    stored = 1024 * 300 * (4 if dtype == "float32" else 2)
    singular_values, count_of_nonfinite = 300 * 8, 8
    for counts in found[:3]:
        assert counts["h2d_pinned_bytes"] == 2 * stored
        assert counts["d2h_pinned_bytes"] == stored + count_of_nonfinite
        assert counts["d2h_pageable_bytes"] == singular_values
        assert counts.get("host_temporary_bytes", 0) == 0
    # the rest is the same for a run of one layer and of three
    assert (found[3]["syncs"] - found[2]["syncs"]) / 2 <= 6
    assert found[3].get("h2d_pageable_bytes", 0) == found[2].get("h2d_pageable_bytes", 0) <= 4 * 8


def test_only_the_named_card_is_touched(tmp_path):
    contexts = on_cards(
        tmp_path,
        """
        files = pair("a", **LAYERS, **STACK)
        cards = install(3)
        cards.contexts.clear()
        edit(files, device="cuda:1")
        both = [files[1], pair("b", **LAYERS, **STACK)[1]]
        edit((files[0], both), method=monosoup_cli.stock, device="cuda:1")
        print(json.dumps(cards.contexts))
        """,
    )
    assert contexts == [1]


def test_a_second_run_in_the_process_finds_the_card_as_the_first_did(tmp_path):
    found = on_cards(
        tmp_path,
        """
        files = pair("a", **{f"layer{number}": ((2000, 700), BF16) for number in range(4)})
        cards = install(1, capacity=700 * MIB)
        seen = []
        for _ in range(3):
            _, report = edit(files, device="cuda")
            seen.append([report["arguments"]["workers"], len(cards.cards[0].streams)])
        print(json.dumps(seen))
        """,
    )
    workers, streams = found[0]
    assert workers > 1
    assert streams == workers + 1, "each has its own, beside the default stream"
    assert found == [found[0]] * 3


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((30_000, 256), "float32", {}),
        ((256, 30_000), "bfloat16", {}),
        ((700, 700), "bfloat16", {}),
        ((700, 700), "float64", {"weighting": "low"}),
        ((700, 700), "bfloat16", {"energy": [0.5, 0.8, 0.9], "wise": [0.3, 0.6]}),
    ],
    ids=["tall", "wide", "square", "low", "sweep"],
)
@pytest.mark.parametrize("resident", first(1, [1 << 20, 1 << 30]))
def test_memory_on_the_card_is_within_the_plan(tmp_path, shape, dtype, options, resident):
    peak, planned = on_cards(
        tmp_path,
        f"""
        from monosoup_cli.devices import cuda
        cuda.RESIDENT_BYTES = {resident}
        from monosoup_cli.pipeline.ready import make_ready
        files = pair("a", layer=({shape}, torch.{dtype}))
        options = dict(device="cuda", workers=1, **{options})
        card = install(1).cards[0]
        with monosoup_cli.edit.prepare(*files, folder / "out", **options) as planned:
            ready = make_ready(planned)
        before = card.live
        monosoup_cli.edit(*files, folder / "out", **options)
        print(json.dumps([card.peak - before, ready.resources.device_bytes]))
        """,
    )
    assert peak <= planned <= 5 * peak + (48 << 20)


def test_a_card_that_is_full_gives_way_to_the_cpu_for_that_tensor(tmp_path):
    layers, expected, bytes_ = on_cards(
        tmp_path,
        """
        files = pair("a", small=((90, 80), BF16), large=((900, 800), BF16), other=((70, 60), BF16))
        expected = edit(files, device="cpu")[0]
        cards = install(1)
        Cuda(0).warm_up()
        monosoup_cli.edit(*files, folder / "warm.safetensors", workers=1)
        taken = cards.cards[0].live

        def shrink(tensor, is_done):  # somebody else's program takes the memory
            torch.cuda.empty_cache()
            cards.cards[0].capacity = taken + (4 * MIB if tensor.name == "large" else 1 << 30)

        found, report = edit(files, workers=1, progress=shrink)
        print(json.dumps([report["layers"], found == expected, report["arguments"]["device"]]))
        """,
    )
    assert {layer["name"]: layer.get("computed_on") for layer in layers} == {
        "small": None,
        "large": "cpu",
        "other": None,
    }
    assert expected
    assert bytes_ == "cuda:0"


@pytest.mark.parametrize(("device", "is_refused"), [("auto", False), ("cuda", True), ("cuda:0", True)])
def test_a_card_that_is_too_small(tmp_path, device, is_refused):
    used = on_cards(
        tmp_path,
        f"""
        from monosoup_cli.errors import ResourceError
        files = pair("a", layer=((900, 800), BF16))
        install(1, capacity=40 * MIB)
        try:
            print(json.dumps(edit(files, device={device!r})[1]["arguments"]["device"]))
        except ResourceError as error:
            print(json.dumps(str(error)))
        """,
    )
    if is_refused:
        assert used.startswith("the largest matrix does not fit into the memory of cuda:0: expected about ")
    else:
        assert used == "cpu"


def test_pinned_memory_does_not_grow_with_the_matrix(tmp_path):
    peaks = on_cards(
        tmp_path,
        """
        files = [pair(str(rows), layer=((rows, 256), torch.float32)) for rows in (300, 30_000)]
        cards = install(1)
        peaks = []
        for one in files:
            edit(one, device="cuda", workers=1)
            peaks.append(cards.pinned_peak)
        print(json.dumps([peaks, Cuda(0).sizes.overhead.host]))
        """,
    )
    assert peaks == [[16 << 20] * 2, 16 << 20]


@pytest.mark.parametrize(
    ("fault", "place", "auto", "cuda"),
    [
        ("BUSY", "mem_get_info", "cpu", "cuda:0 cannot be used: CUDA error: CUDA-capable device"),
        ("OUT_OF_MEMORY", "_linalg_eigh", "cpu", "cuda:0 cannot be used: CUDA out of memory"),
        ("BLAS_LACKS_MEMORY", "addmm_", "cuda:0 and cpu", "tensor 'layer': ran out of memory on cuda:0"),
        ("NOT_PINNED", "pin", "cuda:0", None),
    ],
)
def test_faults_of_a_card_are_one_line_or_the_cpus_work(tmp_path, fault, place, auto, cuda):
    found = on_cards(
        tmp_path,
        f"""
        from monosoup_cli.errors import MonosoupError
        from tests.card import faults
        files = pair("a", layer=((90, 80), BF16))
        expected = edit(files, device="cpu")[0]
        install(1)
        edits = []
        for device in ("auto", "cuda"):
            with faults.failing(faults.{fault}, {place!r}) as fault:
                try:
                    bytes_, report = edit(files, device=device)
                    (layer,) = report["layers"]
                    edits.append(report["arguments"]["device"])
                    edits[-1] += " and cpu" if layer.get("computed_on") else ""
                    assert bytes_ == expected
                except MonosoupError as error:
                    edits.append(str(error))
            assert fault.raised
        print(json.dumps(edits))
        """,
    )
    assert found[0] == auto
    assert found[1].startswith(cuda or "cuda:0")
    assert "\n" not in found[1]
