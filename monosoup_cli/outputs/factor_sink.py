"""A tensor whose update an adapter stores as two factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from monosoup_cli.adapters.lora import LoraPair
from monosoup_cli.devices.held import Held
from monosoup_cli.formats.dtypes import bytes_of, cast
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.outputs.form import Target
from monosoup_cli.sources.source import Factors
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import Edit, Layer, Wanted
from monosoup_cli.tensors.plan import PlannedTensor

if TYPE_CHECKING:
    import torch

__all__ = ["FactorSink"]


class FactorSink:
    """Collects the factors of a tensor's update in every variant, and writes them when they are complete.

    Matrices of a stack that did not change keep the factors they were read with, or get zeros.

    Args:
        tensor: The tensor whose update is stored.
        pair: The tensors of the adapter that hold the factors, and how they lie in them.
        target: Where they are written.
        copy: Writes what the output has of the tensor where it is not edited.
    """

    def __init__(
        self, tensor: PlannedTensor, pair: LoraPair, target: Target, copy: Callable[[bool], None]
    ) -> None:
        self.wanted = Wanted(factors=True, rank=pair.rank)
        self._tensor, self._pair, self._target, self._copy = tensor, pair, target, copy
        self._variants: list[_StoredFactors] = []

    @staticmethod
    def held(shapes: tuple[tuple[int, ...], tuple[int, ...]], variants: int) -> Held:
        """How much memory the sink takes: both factors in float64 for every variant, a product of the larger
        one, and its cast copy."""
        sizes = [math.prod(shape) for shape in shapes]
        return Held(host=8 * (variants * sum(sizes) + 2 * max(sizes)))

    def put(self, index: int, edit: Edit) -> None:
        """Take the edited update of matrix `index`, for every variant."""
        self._put(index, edit.factors)

    def keep(self, index: int, layer: Layer | None) -> None:
        """Take the factors with which matrix `index` was read, where it has any."""
        if isinstance(layer, MatrixLayer) and layer.factors is not None:
            self._put(index, [layer.factors] * len(self._target.variants))

    def _put(self, index: int, updates: Iterable[Factors]) -> None:
        if not self._variants:
            self._variants = [
                _StoredFactors(self._pair, self._place(self._pair.a), self._place(self._pair.b))
                for _ in self._target.variants
            ]
        is_wide = self._tensor.matrices is not None and self._tensor.matrices.cut.is_wide
        for factors, (left, right) in zip(self._variants, updates, strict=True):
            factors.put(index, right.T, left.T) if is_wide else factors.put(index, left, right)

    def _place(self, name: str) -> TensorInfo:
        return self._target.output.place(name)

    def finish(self, *, is_edited: bool) -> None:
        """Write the factors; or what the output has of a tensor that did not change."""
        if not is_edited:
            self.copy()
            return
        for variant, factors in zip(self._target.variants, self._variants, strict=True):
            factors.write(self._target, variant.folder)

    def copy(self) -> None:
        """Write what the output has of the tensor where it is not edited."""
        self._copy(True)

    def restore(self) -> None:
        """The same, NaN and Inf included."""
        self._copy(False)


class _StoredFactors:
    """The two factors of one tensor as an adapter stores them, in float64 until they are written."""

    def __init__(self, pair: LoraPair, a: TensorInfo, b: TensorInfo) -> None:
        import torch

        self._pair, self._infos = pair, (a, b)
        self._a, self._b = (torch.zeros(info.shape, dtype=torch.float64) for info in (a, b))

    def put(self, index: int, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take left (m, s) and right (s, n) with s <= rank as the update of matrix `index`."""
        pair = self._pair
        half = math.sqrt(abs(pair.scale))
        left, right = left.cpu() * math.copysign(1.0 / half, pair.scale), right.cpu() / half
        b, a = (right.T, left.T) if pair.layout.is_transposed else (left, right)
        if pair.layout.is_stack:
            experts = pair.shape[0]
            self._a.view(experts, pair.rank, -1)[index, : len(a)] = a
            self._b.view(len(b), pair.rank, experts)[:, : b.shape[1], index] = b
        else:
            self._a.view(pair.rank, -1)[: len(a)] = a
            self._b.view(len(b), -1)[:, : b.shape[1]] = b

    def write(self, target: Target, folder: str) -> None:
        """Cast the factors to their stored dtypes and write them.

        Raises:
            ResultOverflowError: A factor is finite in float64 and not in its stored dtype.
        """
        for factor, info in zip((self._a, self._b), self._infos, strict=True):
            part = cast(factor, info.dtype, self._pair.name)
            target.output.write(info.name, bytes_of(part), 0, folder)
