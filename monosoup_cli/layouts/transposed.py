"""Matrices that are stored as (in, out), as GPT-2's `Conv1D` has them, or as (out, in)."""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Atom, Facts, Reading, same, starred

__all__ = ["Transposed"]


class Transposed:
    """A matrix whose sides are the other way round in the other checkpoint."""

    def readings(self, name: str, tensor: TensorInfo, facts: Facts) -> Sequence[Reading]:
        """As it is, or (in, out)."""
        if facts.rows.get(starred(name)) != (tensor.shape or (None,))[-1]:
            return []
        if len(tensor.shape) == 1:  # a bias, which has the words of its weight
            return [same(name, tensor), Reading("transposed", same(name, tensor).atoms)]
        if len(tensor.shape) != 2:
            return []
        rows, columns = tensor.shape
        return [same(name, tensor), Reading("transposed", (Atom(name, (columns, rows), 0, (1, columns)),))]
