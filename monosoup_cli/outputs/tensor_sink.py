"""A tensor that is stored whole: edited by blocks, averaged, interpolated, or copied as bytes."""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.devices.held import Held
from monosoup_cli.formats.dtypes import (
    BITS,
    FLOATING,
    bytes_of,
    check_finite,
    count_nonfinite,
    overflow_error,
)
from monosoup_cli.outputs.form import Target
from monosoup_cli.outputs.scatter import Scatter
from monosoup_cli.outputs.scatter import held_bytes as scattered_bytes
from monosoup_cli.outputs.writers import FlatWriter, MatrixWriter, Slot, Writes
from monosoup_cli.sources.source import Source
from monosoup_cli.tensors.chunks import stored_chunks
from monosoup_cli.tensors.ingredients import check_unread
from monosoup_cli.tensors.method import Edit, Layer, Wanted
from monosoup_cli.tensors.plan import PlannedTensor
from monosoup_cli.tensors.worker import Worker

__all__ = ["TensorSink", "move"]


class TensorSink:
    """Writes a tensor whole, under its own name or under the one that the output has for it."""

    wanted = Wanted()

    def __init__(
        self, tensor: PlannedTensor, target: Target, worker: Worker, stored_name: str | None = None
    ) -> None:
        self._tensor, self._worker = tensor, worker
        self._stored_name = stored_name or tensor.name
        self._target, self._output = target, _by_parts(tensor, target.output)

    @staticmethod
    def held(tensor: PlannedTensor, variants: int, resident_bytes: int) -> Held:
        """How much memory the sink takes: the buffers of its writers, for every variant."""
        if tensor.matrices is None:
            return Held()  # counted with the ranges that it is read in
        cut, item_bytes = tensor.matrices.cut, BITS[tensor.stored_dtype] // 8
        return Held(
            host=variants * scattered_bytes(tensor.stored_dtype, tensor.matrices.pieces),
            device=MatrixWriter.held_bytes(cut, item_bytes, variants, resident_bytes),
        )

    def put(self, index: int, edit: Edit) -> None:
        """Write the blocks of matrix `index`, or the ranges of the tensor."""
        writers = [self._writer(variant.folder, index) for variant in self._target.variants]
        with self._worker.channel.storing():
            for start, stop, results in edit.blocks:
                for writer, result in zip(writers, results, strict=True):
                    writer.put(start, stop, result)

    def _writer(self, folder: str, index: int) -> FlatWriter | MatrixWriter:
        matrices, slot = self._tensor.matrices, self._slot(folder)
        if matrices is None:
            return FlatWriter(slot)
        part = matrices.part(index)
        return MatrixWriter(slot, part.cut, part.first)

    def _slot(self, folder: str) -> Slot:
        dtype = self._tensor.stored_dtype
        return Slot(self._output, folder, self._stored_name, dtype, self._worker.channel)

    def keep(self, index: int, layer: Layer | None = None) -> None:
        """Write matrix `index` of the rows that all inputs have, or a whole kept tensor, as fine-tuned: the
        mean, interpolated where the variant says so. Bytes are copied where nothing is computed."""
        tensor, target, worker = self._tensor, self._target, self._worker
        sources = target.ingredients.kept_from(tensor)
        wises = [variant.wise_for(tensor.name) if tensor.reads.base else None for variant in target.variants]
        is_several = tensor.matrices is not None and tensor.matrices.is_several
        if not is_several and len(sources) == 1 and all(wise is None for wise in wises):
            self._copy(sources[0], 0, None if tensor.shared_rows is None else tensor.elements)
            return
        import torch

        flat = target.ingredients.flat(tensor, worker)
        first, size = 0, tensor.elements
        if tensor.matrices is not None and is_several:
            part = tensor.matrices.part(index)
            first, size = part.first, part.cut.elements
        writers = [FlatWriter(self._slot(variant.folder)) for variant in target.variants]
        with worker.channel.storing():
            for start, stop in flat.ranges(first, first + size):
                if all(wise is None for wise in wises):
                    base = mean = flat.mean(start, stop, target.variants[0].weights)
                else:
                    base, mean = flat.pair(start, stop)
                for number, (writer, wise) in enumerate(zip(writers, wises, strict=True)):
                    weights = target.variants[number].weights
                    if number and weights is not None:
                        base = mean = flat.mean(start, stop, weights)
                    result = base if wise == 0.0 else mean  # to the last bit
                    if wise is not None and wise not in (0.0, 1.0):
                        result = torch.lerp(base, mean, wise, out=flat.memory.buffer("result", stop - start))
                    writer.put(start, stop, result)

    def finish(self, *, is_edited: bool) -> None:
        """Write the rows that not every input has."""
        if self._tensor.shared_rows is not None:
            self._copy(self._target.ingredients.copied_from(self._tensor), self._tensor.elements)

    def copy(self) -> None:
        """Write a kept tensor, after a look for NaN and Inf in what is not written."""
        check_unread(self._target.ingredients, self._tensor, self._worker)
        self.keep(0)
        self.finish(is_edited=False)

    def restore(self) -> None:
        """Write the tensor as fine-tuned, NaN and Inf included."""
        self._output = _by_parts(self._tensor, self._target.output)  # without what is held of the edit
        self._copy(self._target.ingredients.copied_from(self._tensor), is_checked=False)

    def _copy(
        self, source: Source, start: int = 0, stop: int | None = None, *, is_checked: bool = True
    ) -> None:
        stored = self._stored_name, self._tensor.stored_dtype
        name, target, worker = self._tensor.name, self._target, self._worker
        move(source, name, target, worker, *stored, start, stop, is_checked, output=self._output)


def _by_parts(tensor: PlannedTensor, output: Writes) -> Writes:
    """What takes a tensor's elements in the order of its parts, if that is how they come."""
    if tensor.matrices is None or not tensor.matrices.pieces:
        return output
    return Scatter(output, tensor.stored_dtype, tensor.matrices.pieces)


def move(
    source: Source,
    name: str,
    target: Target,
    worker: Worker,
    stored_name: str,
    stored_dtype: str,
    start: int = 0,
    stop: int | None = None,
    is_checked: bool = True,
    *,
    output: Writes | None = None,
) -> None:
    """Write the bytes of a tensor, or of its elements start:stop, to every variant, chunk by chunk.

    Args:
        source: Where the tensor is read.
        name: Its name there.
        target: Where it is written.
        worker: Whose buffers are used.
        stored_name: Its name in the output.
        stored_dtype: Its dtype in the output; the tensor is cast where it has another.
        start: The first element.
        stop: The end of the elements; None for all of them.
        is_checked: Whether NaN or Inf is an error.
        output: What takes the bytes; None for the output of `target`.

    Raises:
        NonfiniteError: The tensor has NaN or Inf.
        ResultOverflowError: A finite element does not fit the output's dtype.
    """
    reader = source.reader(name)
    written = start * BITS[stored_dtype] // 8
    for chunk in stored_chunks(source, name, worker, start, stop):
        if is_checked and reader.dtype in FLOATING:
            check_finite(chunk, source.path, name)
        if stored_dtype != reader.dtype:
            nonfinite = count_nonfinite(chunk)
            chunk = worker.channel.host.take("output", stored_dtype, len(chunk)).copy_(chunk)
            if (overflowing := count_nonfinite(chunk) - nonfinite) > 0:
                raise overflow_error(overflowing, stored_dtype, name)
        data = bytes_of(chunk)
        for variant in target.variants:
            (output or target.output).write(stored_name, data, written, variant.folder)
        written += len(data)


def copy_within(target: Target, written: str, twins: Sequence[str]) -> None:
    """Write a tensor that is already in the output again under other names."""
    for variant in target.variants:
        for twin in twins:
            offset = 0
            for chunk in target.output.read(variant.folder, written):
                target.output.write(twin, chunk, offset, variant.folder)
                offset += len(chunk)
