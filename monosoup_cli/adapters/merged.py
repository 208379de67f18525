"""Read a base and an adapter as the checkpoint that merging them would make."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING

from monosoup_cli.adapters.lora import TRANSPOSED, Adapter, LoraPair
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.dtypes import BITS, FLOATING, float64_in
from monosoup_cli.formats.files import Download
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.folders import read_config
from monosoup_cli.sources.library_files import ADAPTER_CONFIG
from monosoup_cli.sources.read import RangesInFloat64, read_float64
from monosoup_cli.sources.source import DENSE, UNCHANGED, Factors, LowRank, Reader, Source, Update

if TYPE_CHECKING:
    from monosoup_cli.spectral.lora import MergedTensor

__all__ = ["MergedSource"]


class MergedSource:
    """A base with an adapter merged into it; a `Source`.

    Tensors have the base's names, shapes and dtypes. Those that the adapter updates are read in float64.
    Those that it replaces are the adapter's bytes, and all others are the base's.

    Args:
        adapter: The adapter.
        base: The base. Without one, only the factors and the tensors that the adapter replaces can be read.
    """

    def __init__(self, adapter: Adapter, base: Source | None) -> None:
        self._adapter, self._base = adapter, base
        files = adapter.own.files
        notes = files.notes + adapter.fit.notes + adapter.fit.doubts
        self.files: Files = replace(files, read_as=adapter.read_as, notes=notes)
        self.path = adapter.own.path
        self.tensors: Mapping[str, TensorInfo] = (
            _pairs_alone(adapter) if base is None else _with_shapes(adapter, base.tensors)
        )
        self._last = threading.local()

    @property
    def model(self) -> Files:
        """The base's files; without a base, the adapter's."""
        return self.files if self._base is None else self._base.model

    def update(self, name: str) -> Update:
        """Return the factors of a tensor whose update is nothing but their product."""
        pair = self._adapter.pairs.get(name)
        if pair is not None and pair.magnitude is None and name not in self._adapter.fit.shapes:
            return LowRank(
                pair.rank, pair.scale, lambda index, rows, columns: self._factors(pair, index, rows, columns)
            )
        return DENSE if self._changes(name) else UNCHANGED

    def _changes(self, name: str) -> bool:
        adapter = self._adapter
        return any(name in part for part in (adapter.pairs, adapter.replaced, adapter.rows, adapter.biases))

    def _factors(self, pair: LoraPair, index: int, rows: int, columns: int) -> Factors | None:
        last = self._last
        if getattr(last, "factored", None) != pair.name:  # for a stack: the factors of all its matrices
            last.factors, last.factored = None, None
            last.factors, last.factored = _factors_of(self._adapter, pair, is_checked=True), pair.name
        factors: list[Factors] = last.factors
        left, right = factors[index] if index < len(factors) else (factors[0][0][:0], factors[0][1])
        is_same_cut = (left.shape[0], right.shape[1]) == (rows, columns)
        return (left, right) if is_same_cut else None

    def reader(self, name: str) -> Reader:
        """Return a reader of the merged tensor in float64, or of the bytes of an unmerged one."""
        adapter = self._adapter
        if name in adapter.replaced:
            return adapter.own.reader(adapter.replaced[name])
        if self._base is None:
            return Reader("F64", _refuse)
        if not self._changes(name):
            return self._base.reader(name)
        return Reader("F64", lambda buffer, offset: self._read_into(name, buffer, offset))

    def _read_into(self, name: str, buffer: memoryview, offset: int) -> None:
        last = self._last
        if getattr(last, "name", None) != name:  # each thread caches the last tensor's factors
            last.tensor, last.name = None, None
            last.tensor, last.name = self._merged(name), name
        if not len(buffer):
            return
        tensor: MergedTensor = last.tensor
        tensor.fill(float64_in(buffer), offset // 8)

    def _merged(self, name: str) -> MergedTensor:
        from monosoup_cli.spectral.lora import MergedTensor

        adapter, own, base = self._adapter, self._adapter.own, self._base
        assert base is not None
        pair, shape = adapter.pairs.get(name), self.tensors[name].shape
        rows = shape[0] * (shape[1] if pair is not None and pair.layout.is_stack else 1)
        before: Source = base
        held = name
        if name in adapter.fit.shapes and name in adapter.copies:  # the only one that has all rows
            before, held = own, adapter.copies[name]
        merged = MergedTensor(RangesInFloat64(before, held), rows, math.prod(shape) // max(rows, 1))
        if pair is not None:
            merged.factors = _factors_of(adapter, pair, is_checked=False)
        if name in adapter.rows:
            stored, numbers = adapter.rows[name]
            values = read_float64(own, stored, is_checked=False)
            merged.replaced = dict(zip(numbers, values, strict=True))
        if name in adapter.biases:
            stored, scale = adapter.biases[name]
            merged.added = read_float64(own, stored, is_checked=False).mul_(scale).view(rows, -1)
        if pair is not None and pair.magnitude is not None:
            magnitude = read_float64(own, pair.magnitude, is_checked=False).flatten()
            merged.scale_to(magnitude, by_column=pair.layout == TRANSPOSED)
        return merged

    def prefetch(self, name: str, limit: int) -> None:
        """Do nothing: the adapter is small, and the base prefetches its own tensors."""

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """List the download of the adapter's file, which is needed as a whole."""
        return self._adapter.own.select(None)

    def is_at_hand(self, name: str) -> bool:
        """Return whether the base has the tensor and `select` did not leave it on the Hub."""
        return self._base is not None and self._base.is_at_hand(name)

    @cached_property
    def held_bytes(self) -> int:
        """What reading takes: of the largest change its tensors in float64, and a merged block."""
        adapter = self._adapter
        names = {*adapter.pairs, *adapter.rows, *adapter.biases} & self.tensors.keys()  # no others are read
        return max(map(self._held_for, names), default=0) + adapter.own.held_bytes

    def _held_for(self, name: str) -> int:
        from monosoup_cli.spectral.lora import held_bytes

        adapter, shape = self._adapter, self.tensors[name].shape
        pair, kept = adapter.pairs.get(name), []
        if pair is not None and pair.magnitude is not None:
            kept.append(pair.magnitude)
        if name in adapter.rows:
            kept.append(adapter.rows[name][0])
        if name in adapter.biases:
            kept.append(adapter.biases[name][0])
        elements = adapter.own.tensors
        return held_bytes(
            math.prod(shape[1:]) if pair is None or not pair.layout.is_stack else math.prod(shape[2:]),
            factors=() if pair is None else _factor_sizes(pair, elements),
            others=[elements[own].elements for own in kept],
        )

    def forget(self) -> None:
        """Drop the factors that the calling thread caches."""
        self._last.__dict__.clear()
        self._adapter.own.forget()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the adapter or its configuration has changed since it was opened."""
        self.files.check_unchanged()
        place, settings = self.files.place, self.files.kind.settings
        if place.folder is None or settings is None:
            return
        name = f"{place.inner}{ADAPTER_CONFIG}"
        if read_config(place.folder, name) != settings:
            raise CheckpointError("the file changed while it was read", path=place.folder.shown(name))


def _pairs_alone(adapter: Adapter) -> dict[str, TensorInfo]:
    """The tensors that an adapter updates, in the dtypes of its factors."""
    tensors = {}
    for pair in adapter.pairs.values():
        dtype = adapter.own.tensors[pair.a].dtype
        nbytes = math.prod(pair.shape) * BITS[dtype] // 8
        tensors[pair.name] = TensorInfo(pair.name, dtype, pair.shape, 0, nbytes)
    return tensors


def _with_shapes(adapter: Adapter, base: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors of the base, with the shapes and the further tensors that the adapter has.

    What is new has the dtype of most of the base's weights, as in a model that peft merges.
    """
    dtypes = Counter(tensor.dtype for tensor in base.values() if tensor.dtype in FLOATING)
    usual = dtypes.most_common(1)[0][0] if dtypes else "F32"
    tensors = dict(base)
    for name, shape in adapter.fit.shapes.items():
        dtype = base[name].dtype if name in base else usual
        tensors[name] = TensorInfo(name, dtype, shape, 0, math.prod(shape) * BITS[dtype] // 8)
    return tensors


def _refuse(buffer: memoryview, offset: int) -> None:
    raise AssertionError("without a base only the adapter's own tensors can be read")


def _factor_sizes(pair: LoraPair, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """The elements of A and of B, which pieces make with zeros."""
    if pair.pieces:
        return sum(tensors[name].elements for name in {one.a for one in pair.pieces}), pair.shape[
            0
        ] * pair.rank
    return tensors[pair.a].elements, tensors[pair.b].elements


def _factors_of(adapter: Adapter, pair: LoraPair, *, is_checked: bool) -> list[Factors]:
    from monosoup_cli.spectral.lora import joined_factors, lora_factors

    if pair.pieces:
        groups = [(names, list(group)) for names, group in groupby(pair.pieces, lambda one: (one.a, one.b))]
        read = partial(read_float64, adapter.own, is_checked=is_checked)
        parts = [
            (read(a), read(b), [(one.scale, one.rows, one.own_rows) for one in group])
            for (a, b), group in groups
        ]
        return [joined_factors(parts, pair.shape[0])]
    a, b = (read_float64(adapter.own, name, is_checked=is_checked) for name in (pair.a, pair.b))
    return lora_factors(
        a,
        b,
        pair.scale,
        rank=pair.rank,
        experts=pair.shape[0] if pair.layout.is_stack else None,
        is_transposed=pair.layout.is_transposed,
    )
