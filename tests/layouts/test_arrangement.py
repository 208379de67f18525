"""Blocks of elements that are read from, and written to, where a packed or fused tensor has them."""

import random
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.arrangement import Arranged, Piece, row_major
from monosoup_cli.outputs.scatter import Scatter, held_bytes
from monosoup_cli.sources.derived import Derived
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.read import read_stored


def views(kind):
    """The shape of a fused tensor, and its parts as views of it: experts, gate and up, heads."""
    experts, inner, outer = 3, 4, 6
    if kind == "stacked":
        return (experts, 2 * inner, outer), lambda one: [
            part for expert in one for part in (expert[:inner], expert[inner:])
        ]
    if kind == "interleaved":
        return (experts, 2 * inner, outer), lambda one: [
            part for expert in one for part in (expert[0::2], expert[1::2])
        ]
    if kind == "stacked, transposed":
        return (experts, outer, 2 * inner), lambda one: [
            part for expert in one for part in (expert[:, :inner].T, expert[:, inner:].T)
        ]
    if kind == "interleaved, transposed":
        return (experts, outer, 2 * inner), lambda one: [
            part for expert in one for part in (expert[:, 0::2].T, expert[:, 1::2].T)
        ]
    if kind == "per head":
        return (5 * 3 * 2, outer), lambda one: [one.view(5, 3, 2, outer)[:, part] for part in range(3)]
    return (2 * inner + 3, outer), lambda one: [one[:inner], one[inner : 2 * inner], one[2 * inner :]]


KINDS = ("stacked", "interleaved", "stacked, transposed", "interleaved, transposed", "per head", "rows")


def pieces_of(shape, parts):
    """The parts one after the other."""
    pieces, at = [], 0
    for view in parts(torch.arange(torch.Size(shape).numel()).view(shape)):
        pieces.append(
            Piece("w", tuple(view.shape), int(view.flatten()[0]), view.stride(), at, row_major(view.shape))
        )
        at += view.numel()
    return pieces


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_fused_tensor_is_read_in_the_order_of_its_parts(tmp_path, kind, dtype):
    shape, parts = views(kind)
    fused = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"w": fused}, tmp_path / "model.safetensors")
    expected = torch.cat([part.flatten() for part in parts(fused)])
    with open_checkpoint(tmp_path / "model.safetensors") as stored:
        source = Derived(stored, {"w": Arranged(stored.tensors["w"], pieces_of(shape, parts))})
        whole = torch.frombuffer(read_stored(source, "w", 0, expected.numel()), dtype=dtype)
        assert torch.equal(whole, expected)
        chance = random.Random(0)
        for _ in range(50):
            start, stop = sorted(chance.sample(range(expected.numel() + 1), 2))
            part = torch.frombuffer(read_stored(source, "w", start, stop), dtype=dtype)
            assert torch.equal(part, expected[start:stop])


@pytest.mark.parametrize("kind", KINDS)
def test_separate_tensors_are_read_as_one_fused_tensor(tmp_path, kind):
    shape, parts = views(kind)
    fused = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file(
        {str(number): part.contiguous() for number, part in enumerate(parts(fused))},
        tmp_path / "model.safetensors",
    )
    pieces = [
        Piece(str(number), piece.shape, 0, piece.steps, piece.first, piece.strides)
        for number, piece in enumerate(pieces_of(shape, parts))
    ]
    with open_checkpoint(tmp_path / "model.safetensors") as stored:
        info = TensorInfo("w", "F32", shape, 0, 4 * fused.numel())
        source = Derived(stored, {"w": Arranged(info, pieces)})
        assert torch.equal(
            torch.frombuffer(read_stored(source, "w", 0, fused.numel()), dtype=torch.float32), fused.flatten()
        )


class Written(dict):
    """The bytes of tensors, as they are written in any order."""

    def write(self, tensor, data, offset=0, folder=""):
        self[folder][offset : offset + len(data)] = data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_parts_are_written_where_the_fused_tensor_has_them(kind, order):
    shape, parts = views(kind)
    fused = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    data = memoryview(torch.cat([part.flatten() for part in parts(fused)]).numpy()).cast("B")
    written = Written({folder: bytearray(len(data)) for folder in ("a", "b")})
    scatter = Scatter(written, "F32", pieces_of(shape, parts))
    cuts = [0, *sorted(random.Random(1).sample(range(4, len(data), 4), 9)), len(data)]
    runs = list(pairwise(cuts))
    if order == "descending":
        runs.reverse()
    if order == "random":
        random.Random(2).shuffle(runs)
    for start, stop in runs:
        for folder in written:
            scatter.write("w", data[start:stop], start, folder)
    for folder in written:
        assert bytes(written[folder]) == fused.numpy().tobytes()
    assert not scatter._held


def test_only_what_interleaves_is_held():
    sizes = {kind: held_bytes("F32", pieces_of(*views(kind))) for kind in KINDS}
    expert, heads = 2 * 4 * 6, 30 * 6
    assert sizes == {
        "stacked": 0,
        "rows": 0,
        "interleaved": 2 * 4 * expert,
        "stacked, transposed": 2 * 4 * expert,
        "interleaved, transposed": 2 * 4 * expert,
        "per head": 2 * 4 * heads,
    }
