"""Layers over real files, against the same tensors held whole."""

import math

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.held import Held
from monosoup_cli.errors import NonfiniteError
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.tensors.chunks import check_stored, stored_chunks
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import HELD_BYTES, FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer, Wanted, matrix_layer
from monosoup_cli.tensors.worker import Worker

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


class Interrupted(Exception):
    """What an interrupt raises in these tests."""


@pytest.fixture
def worker():
    return Worker(Cpu().channel(0), lambda: None)


@pytest.fixture
def checkpoints(tmp_path):
    """Open files with one tensor "w" each."""
    opened = []

    def make(*tensors):
        for tensor in tensors:
            path = tmp_path / f"{len(opened)}.safetensors"
            save_file({"w": tensor}, path)
            opened.append(open_checkpoint(str(path)))
        return opened[-len(tensors) :]

    yield make
    for checkpoint in opened:
        checkpoint.files.close()


@pytest.fixture(params=["whole", "by blocks"])
def sizes(request, monkeypatch):
    """Tensors as they are, and the same as if they were too large for the buffers."""
    if request.param == "by blocks":
        for name, value in {
            "cut.BLOCK_ELEMENTS": 50,
            "cut.MIN_BLOCK_LENGTH": 3,
            "matrix.MEAN_BYTES": 60,
            "flat.FLAT_ELEMENTS": 37,
            "flat.ROWS_ELEMENTS": 40,
            "flat.MIN_ROW_ELEMENTS": 11,
            "flat.HELD_BYTES": 100,
            "chunks.CHUNK_BYTES": 32,
        }.items():
            monkeypatch.setattr(f"monosoup_cli.tensors.{name}", value)
        monkeypatch.setattr("monosoup_cli.devices.cpu.RESIDENT_BYTES", 60)
    return request.param


def values(seed, shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(blocks, cut):
    """A matrix from its blocks."""
    joined = torch.cat([block.clone() for block in blocks])
    return joined.T if cut.is_wide else joined


# -- matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(13, 7), (7, 13), (8, 8), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, BF16, F16), (BF16, F64)])
def test_updates_of_a_matrix(checkpoints, worker, sizes, shape, dtypes):
    tensors = [values(number, shape, dtype) for number, dtype in enumerate(dtypes)]
    base, *finetuned = checkpoints(*tensors)
    layer = matrix_layer("w", Cut(*shape), 0, base, finetuned, worker)
    mean = torch.stack([each.double() for each in tensors[1:]]).sum(0) / len(finetuned)
    seen = []
    update = whole(layer.updates(lambda *pair: seen.append(pair)), layer.cut)
    assert torch.equal(update, mean - tensors[0].double())
    assert layer.base_norm == pytest.approx(float(tensors[0].double().norm()), rel=1e-14)
    assert len(seen) == len(list(layer.cut.ranges()))
    assert torch.equal(whole((each for _, _, each in layer.bases()), layer.cut), tensors[0].double())
    assert layer.factors is None


def test_the_norm_of_a_base_without_its_update(checkpoints, worker, sizes):
    base, finetuned = checkpoints(values(0, (9, 5), F32), values(1, (9, 5), F32))
    layer = matrix_layer("w", Cut(9, 5), 0, base, [finetuned], worker, Wanted(factors=True, rank=2))
    assert layer.base_norm == 0.0
    layer.measure_base()
    assert layer.base_norm == pytest.approx(float(values(0, (9, 5), F64).float().double().norm()), rel=1e-12)
    assert layer.wanted == Wanted(factors=True, rank=2)


def test_matrices_of_a_stack_without_a_base(checkpoints, worker, sizes):
    stack = values(3, (4, 6, 11), BF16)
    (checkpoint,) = checkpoints(stack)
    for index in range(4):
        layer = matrix_layer("w", Cut(6, 11), index, None, [checkpoint], worker)
        assert torch.equal(whole(layer.updates(), layer.cut), stack[index].double())


def test_an_interrupt_comes_before_every_block(checkpoints, worker, monkeypatch):
    monkeypatch.setattr("monosoup_cli.tensors.cut.BLOCK_ELEMENTS", 10)
    monkeypatch.setattr("monosoup_cli.tensors.cut.MIN_BLOCK_LENGTH", 2)
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted

    base, finetuned = checkpoints(values(0, (9, 5), F32), values(1, (9, 5), F32))
    layer = matrix_layer("w", Cut(9, 5), 0, base, [finetuned], Worker(worker.channel, interrupt))
    blocks = layer.updates()
    next(blocks)
    next(blocks)
    with pytest.raises(Interrupted):
        next(blocks)


@pytest.mark.parametrize("shape", [(13, 7), (7, 13)])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nonfinite_matrices(checkpoints, worker, sizes, shape, where):
    tensors = [values(number, shape, F32) for number in range(3)]
    tensors[where][-1, -1] = math.nan
    base, *finetuned = checkpoints(*tensors)
    layer = matrix_layer("w", Cut(*shape), 0, base, finetuned, worker)
    assert not all(block.isfinite().all() for block in layer.updates())
    with pytest.raises(NonfiniteError) as caught:
        layer.check()
    assert caught.value.path == (base, *finetuned)[where].path
    assert caught.value.tensor == "w"


def test_nan_in_the_base_is_the_bases_and_shows_without_its_update(checkpoints, worker, sizes):
    values_with_nan = values(0, (9, 5), F32)
    values_with_nan[4, 3] = math.nan
    base, merged = checkpoints(values_with_nan, values_with_nan)
    layer = matrix_layer("w", Cut(9, 5), 0, base, [merged], worker)
    for look in (layer.measure_base, layer.check):
        with pytest.raises(NonfiniteError) as caught:
            look()
        assert caught.value.path == base.path


def test_what_a_layer_holds():
    small, embedding = Cut(300, 200), Cut(256_000, 4096)

    def held(cut, count, rank=None, resident_bytes=32 << 20, item_bytes=(2, 2)):
        return MatrixLayer.held(cut, item_bytes, count, rank, resident_bytes=resident_bytes)

    assert held(small, 1) == Held(device=2 * 2 * 60_000 + 2 * 8 * 60_000)
    assert held(small, 1, item_bytes=(4, 2)) == held(small, 1) + Held(device=2 * 60_000)
    assert held(small, 5) == held(small, 1) + Held(device=8 * 60_000)
    # two buffers of 32 MiB for what is stored, two blocks in float64; no more with a longer side
    block = embedding.block_length * 4096
    assert held(embedding, 1) == Held(device=2 * (32 << 20) + 2 * 8 * block)
    assert held(Cut(2**40, 4096), 1) == held(embedding, 1)
    assert held(embedding, 1, resident_bytes=1 << 30) == Held(device=2 * (1 << 30) + 2 * 8 * block)
    factors = Held(device=8 * 16 * (300 + 200))
    assert held(small, 1, 16) == held(small, 1) + factors
    # the factors of a mean once more, until they are side by side
    assert held(small, 5, 16) == held(small, 5) + factors + factors


def test_what_a_flat_tensor_holds_is_mostly_on_the_device(checkpoints, worker):
    held = FlatLayer.held(1)
    (one,) = checkpoints(values(0, (100,), F32))
    memory = FlatLayer("w", (100,), None, [one, one], None, worker).memory
    largest = memory.held(HELD_BYTES // 8)
    assert held.device > largest.numel() * largest.element_size() == HELD_BYTES
    assert 0 < held.host < held.device


# -- flat tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [(F32,) * 4, (BF16,) * 4, (F32, BF16, F16, F64)])
def test_ranges_of_a_flat_tensor(checkpoints, worker, sizes, dtypes):
    tensors = [values(number, (5, 29), dtype) for number, dtype in enumerate(dtypes)]
    base, *finetuned = checkpoints(*tensors)
    layer = FlatLayer("w", (5, 29), base, finetuned, None, worker)
    exact = [each.double().flatten() for each in tensors]
    assert (layer.size, layer.count, layer.has_moved) == (145, 3, False)
    for start, stop in layer.ranges():
        total = sum(each[start:stop] for each in exact[1:])
        assert torch.allclose(layer.total(start, stop).double(), total, rtol=1e-15, atol=1e-15)
        before, mean = layer.pair(start, stop)
        assert torch.equal(before, exact[0][start:stop])
        assert torch.allclose(mean, total / 3, rtol=1e-6, atol=1e-7)
    assert layer.has_moved
    updates = [(start, stop, each.double().clone()) for start, stop, each in layer.updates.ranges()]
    assert [start for start, _, _ in updates] == [0, *(stop for _, stop, _ in updates)][:-1]
    together = torch.cat([each for _, _, each in updates], dim=1)
    assert torch.equal(together, torch.stack([each - exact[0] for each in exact[1:]]))
    assert layer.updates.sums == ("F32" if dtypes == (BF16,) * 4 else "F64")


def test_weights_and_rows_that_are_not_shared(checkpoints, worker, sizes):
    tensors = [values(0, (5, 8), F32), values(1, (7, 8), F32)]
    layer = FlatLayer("w", (5, 8), None, checkpoints(*tensors), [0.25, 0.75], worker)
    assert layer.has_moved
    assert layer.size == 40
    first, second = (each.double().flatten()[:40] for each in tensors)
    for start, stop in layer.ranges(row=8):
        assert (start % 8, stop % 8) == (0, 0)
        expected = 0.25 * first[start:stop] + 0.75 * second[start:stop]
        assert torch.allclose(layer.mean(start, stop), expected, rtol=1e-15, atol=1e-15)


def test_updates_that_overflow_float32_are_computed_in_float64(checkpoints, worker):
    large = torch.full((10,), 3e38, dtype=BF16)
    base, *finetuned = checkpoints(-large, large, large)
    layer = FlatLayer("w", (10,), base, finetuned, None, worker)
    ((_, _, updates),) = layer.updates.ranges()
    assert updates.isinf().all()
    layer.updates.widen()
    assert layer.updates.sums == "F64"
    ((_, _, updates),) = layer.updates.ranges()
    assert torch.equal(updates, (2 * large.double()).expand(2, 10))
    with pytest.raises(FloatingPointError):
        layer.updates.widen()


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nonfinite_flat_tensors(checkpoints, worker, sizes, where):
    tensors = [values(number, (100,), BF16) for number in range(3)]
    tensors[where][77] = math.inf
    base, *finetuned = checkpoints(*tensors)
    layer = FlatLayer("w", (100,), base, finetuned, None, worker)
    for refuse in (
        layer.updates.check,
        layer.updates.widen,
        lambda: [layer.pair(*r) for r in layer.ranges()],
    ):
        with pytest.raises(NonfiniteError) as caught:
            refuse()
        assert caught.value.path == (base, *finetuned)[where].path
    layer.updates.check(0, 77)


def test_sums_are_held_as_far_as_they_fit(checkpoints, worker, monkeypatch):
    monkeypatch.setattr("monosoup_cli.tensors.flat.HELD_BYTES", 400)
    (one,) = checkpoints(values(0, (100,), BF16))
    memory = FlatLayer("w", (100,), None, [one, one], None, worker).memory
    assert memory.sums == "F32"
    assert memory.held(100).shape == (1, 100)
    assert memory.held(101) is None


# -- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 50), (59, 60), (7, 7)])
def test_chunks_are_the_bytes(checkpoints, worker, sizes, dtype, start, stop):
    tensor = (values(0, (60,), F32) * 3).to(dtype)
    (checkpoint,) = checkpoints(tensor)
    chunks = [
        chunk.view(torch.uint8).clone() for chunk in stored_chunks(checkpoint, "w", worker, start, stop)
    ]
    expected = tensor[start:stop].view(torch.uint8)
    assert torch.equal(torch.cat([*chunks, expected[:0]]), expected)


def test_stored_tensors_are_checked(checkpoints, worker, sizes):
    broken = values(0, (60,), F16)
    broken[40] = -math.inf
    fine, wrong, codes = checkpoints(values(0, (60,), F16), broken, torch.arange(9))
    check_stored(fine, "w", worker)
    check_stored(codes, "w", worker)
    check_stored(wrong, "no such tensor", worker)
    with pytest.raises(NonfiniteError, match="NaN or Inf"):
        check_stored(wrong, "w", worker)
