"""A base and an adapter over it, read as the one checkpoint that merging them would make."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from monosoup_cli.adapters.adapter import ADAPTER_CONFIG, Adapter, LoraPair
from monosoup_cli.errors import CheckpointError, NonfiniteError
from monosoup_cli.formats.files import Download
from monosoup_cli.formats.header import BITS, FLOATING, TensorInfo
from monosoup_cli.sources.checkpoint import Checkpoint, Factors
from monosoup_cli.sources.folders import read_config

if TYPE_CHECKING:
    import torch

__all__ = ["MergedCheckpoint", "factors_of"]

BLOCK_ELEMENTS = 1 << 19
"""Of a tensor, what is merged at a time."""


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint(Checkpoint):
    """What merging `adapter` into `base` would make; the adapter's file is its own, the rest the base's.

    Tensors have the base's names, shapes and dtypes. Those that the adapter changes are read in float64,
    or as it holds them where it replaces them (`read_dtype`); of all others the base's bytes are read.
    """

    adapter: Adapter
    base: Checkpoint | None
    _last: threading.local = field(init=False, default_factory=threading.local)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self._pairs_alone() if self.base is None else self.base.tensors
        object.__setattr__(self, "tensors", whole)

    @classmethod
    def of(cls, base: Checkpoint | None, adapter: Adapter) -> MergedCheckpoint:
        """Without a base there are the factors alone, and no tensor can be read."""
        own = adapter.own
        return cls(
            own.source,
            own.shards,
            own.folder,
            own.inner,
            origin=own.origin,
            config=None if base is None else base.config,
            read_as=adapter.read_as,
            adapter=adapter,
            base=base,
        )

    def _pairs_alone(self) -> dict[str, TensorInfo]:
        pairs = self.adapter.pairs.values()
        dtypes = [self.adapter.own.tensors[pair.a].dtype for pair in pairs]
        return {
            pair.name: TensorInfo(pair.name, dtype, pair.shape, 0, math.prod(pair.shape) * BITS[dtype] // 8)
            for pair, dtype in zip(pairs, dtypes, strict=True)
        }

    @property
    def model(self) -> Checkpoint:
        return self.adapter.own if self.base is None else self.base

    def select(self, names: Iterable[str] | None) -> list[Download]:
        return self.adapter.own.select(None)

    def changes(self, name: str) -> bool:
        adapter = self.adapter
        return any(name in part for part in (adapter.pairs, adapter.replaced, adapter.rows, adapter.biases))

    def read_dtype(self, name: str) -> str:
        if name in self.adapter.replaced:
            return self.adapter.own.tensors[self.adapter.replaced[name]].dtype
        return "F64" if self.changes(name) or self.base is None else self.base.read_dtype(name)

    def reader(self, name: str) -> Callable[[memoryview, int], None]:
        if name in self.adapter.replaced:
            return self.adapter.own.reader(self.adapter.replaced[name])
        assert self.base is not None
        if not self.changes(name):
            return self.base.reader(name)
        if getattr(self._last, "name", None) != name:  # each thread keeps the last one's factors
            self._last.tensor, self._last.name = None, None
            self._last.tensor = _Merged(self, name)
            self._last.name = name
        merged: _Merged = self._last.tensor
        return merged.read_into

    def factors(self, name: str, index: int, rows: int, columns: int) -> Factors | None:
        pair = self.adapter.pairs.get(name)
        if pair is None or pair.magnitude is not None:
            return None
        if getattr(self._last, "factored", None) != name:  # of a stack, those of all its matrices
            self._last.factors, self._last.factored = None, None
            self._last.factors, self._last.factored = factors_of(self.adapter.own, pair), name
        found: list[Factors] = self._last.factors
        left, right = found[index] if index < len(found) else (found[0][0][:0], found[0][1])
        is_this = (left.shape[0], right.shape[1]) == (rows, columns)  # unless it is cut in another way
        return (left, right) if is_this else None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.adapter.config

    def check_unchanged(self) -> None:
        super().check_unchanged()
        folder, name = self.folder, f"{self.inner}{ADAPTER_CONFIG}"
        config = self.adapter.config
        if folder is not None and config and read_config(folder, name) != config:
            raise CheckpointError("the file changed while it was read", path=folder.shown(name))

    def update_of(self, name: str) -> dict[str, Any]:
        """What the report says of the update of one tensor: rank and scale, where it is of low rank."""
        pair = self.adapter.pairs.get(name)
        if pair is None or pair.magnitude is not None:
            return {}
        return {"adapter_rank": pair.rank, "adapter_scale": pair.scale}

    def is_at_hand(self, name: str) -> bool:
        return self.base is not None and self.base.is_at_hand(name)

    def prefetch(self, name: str, limit: int) -> None:
        pass  # what it changes is small, and the base is asked for the rest

    def forget(self) -> None:
        self._last.__dict__.clear()


class _Merged:
    """One tensor that an adapter changes, as rows of (shape[0], −1); of experts, of (experts · rows, −1).

    NaN and Inf go through: whoever reads looks for them.
    """

    def __init__(self, merged: MergedCheckpoint, name: str) -> None:
        adapter, own = merged.adapter, merged.adapter.own
        shape = merged.tensors[name].shape
        assert merged.base is not None
        self._base, self._name = merged.base, name
        self._pair = adapter.pairs.get(name)
        self._factors: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
        self._is_stack = False
        if self._pair is not None:
            self._factors = factors_of(own, self._pair, is_checked=False)
            self._is_stack = self._pair.layout.endswith("experts")
        self._rows = shape[0] * (shape[1] if self._is_stack else 1)
        self._columns = math.prod(shape) // max(self._rows, 1)
        self._replaced: dict[int, torch.Tensor] = {}
        if name in adapter.rows:
            stored, numbers = adapter.rows[name]
            self._replaced = dict(zip(numbers, read_float64(own, stored, is_checked=False), strict=True))
        self._added: torch.Tensor | None = None
        if name in adapter.biases:
            stored, scale = adapter.biases[name]
            self._added = read_float64(own, stored, is_checked=False).mul_(scale).view(self._rows, -1)
        self._by_row: torch.Tensor | None = None
        self._by_column: torch.Tensor | None = None
        if self._pair is not None and self._pair.magnitude is not None:
            self._scale_to(read_float64(own, self._pair.magnitude, is_checked=False).flatten())

    def _scale_to(self, magnitude: torch.Tensor) -> None:
        """Prepare the factors that DoRA scales the sum of base and update by, one pass over it."""
        import torch

        assert self._pair is not None
        by_column = self._pair.layout == "transposed"
        squares = torch.zeros(self._columns if by_column else self._rows, dtype=torch.float64)
        step = max(BLOCK_ELEMENTS // max(self._columns, 1), 1)
        for start in range(0, self._rows, step):
            block = self.rows(start, min(start + step, self._rows)).square()
            if by_column:
                squares += block.sum(0)
            else:
                squares[start : start + step] = block.sum(1)
        scales = magnitude / squares.sqrt()
        if by_column:
            self._by_column = scales
        else:
            self._by_row = scales[:, None]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, (rows, columns) float64."""
        elements = start * self._columns, stop * self._columns
        block = read_float64(self._base, self._name, *elements, is_checked=False)
        block = block.view(stop - start, self._columns)
        size = self._rows // max(len(self._factors), 1)
        for index, (left, right) in enumerate(self._factors):
            first, last = max(start, index * size), min(stop, (index + 1) * size)
            if first < last:
                block[first - start : last - start].addmm_(
                    left[first - index * size : last - index * size], right
                )
        if self._added is not None:
            block += self._added[start:stop]
        if self._by_row is not None:
            block *= self._by_row[start:stop]
        if self._by_column is not None:
            block *= self._by_column
        for number, row in self._replaced.items():
            if start <= number < stop:
                block[number - start] = row
        return block

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with float64 elements from byte `offset` on."""
        import torch

        target = torch.frombuffer(buffer, dtype=torch.float64) if len(buffer) else None
        start, step = offset // 8, max(BLOCK_ELEMENTS // max(self._columns, 1), 1)
        stop, done = start + len(buffer) // 8, 0
        while target is not None and start < stop:
            row = start // self._columns
            block = self.rows(row, min(row + step, -(-stop // self._columns))).view(-1)
            part = block[start - row * self._columns : stop - row * self._columns]
            target[done : done + len(part)] = part
            start, done = start + len(part), done + len(part)


def read_float64(
    checkpoint: Checkpoint, name: str, start: int = 0, stop: int | None = None, *, is_checked: bool = True
) -> torch.Tensor:
    """A floating tensor, or its elements start:stop, flat, in float64. `is_checked`: raise NonfiniteError for
    NaN or Inf."""
    import torch

    tensor, dtype = checkpoint.tensors[name], checkpoint.read_dtype(name)
    end = tensor.elements if stop is None else stop
    item_bytes = BITS[dtype] // 8
    stored = torch.empty((end - start) * item_bytes, dtype=torch.uint8)
    if stored.numel():
        checkpoint.read_into(name, stored.numpy().data, start * item_bytes)
    found = stored.view(getattr(torch, FLOATING[dtype])).to(torch.float64)
    if is_checked and not math.isfinite(found.sum()) and not found.isfinite().all():
        raise NonfiniteError(
            f"holds NaN or Inf ({int((~found.isfinite()).sum()):,} or more elements)",
            path=checkpoint.source,
            tensor=name,
            hint="--on-nonfinite keep leaves such tensors as fine-tuned",
        )
    return found if stop is not None else found.view(tensor.shape)


def factors_of(own: Checkpoint, pair: LoraPair, *, is_checked: bool = True) -> list[Factors]:
    """The update as left (m, rank) times right (rank, n), the scale in left, in float64: of a matrix, or of
    every expert's."""
    a, b = (read_float64(own, name, is_checked=is_checked) for name in (pair.a, pair.b))
    if pair.layout in ("linear", "transposed"):
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        pairs = [(b, a)]
    else:
        experts = pair.shape[0]
        a, b = a.reshape(experts, pair.rank, -1), b.reshape(b.shape[0], pair.rank, experts)
        pairs = [(b[:, :, index], a[index]) for index in range(experts)]
    if pair.layout.startswith("transposed"):
        pairs = [(a.T, b.T) for b, a in pairs]
    return [(left * pair.scale, right) for left, right in pairs]
