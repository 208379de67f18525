"""How the time of a tensor follows from its shape.

A matrix (length, side) takes c0 + c1·length·side + c2·length·side² + c3·side³: Python's steps, what is done
to every element, products, decompositions. A tensor that is not seen as matrices takes c0 + c1·elements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["Law"]

TIE = 1e-6
"""Of fits that are nearly as good, the one with fewer constants is taken."""


@dataclass(frozen=True)
class Law:
    """The constants c0, c1, … of one way to make tensors."""

    constants: Sequence[float]

    @classmethod
    def of(cls, samples: Iterable[tuple[PlannedTensor, float]]) -> Law:
        """Fit constants to the seconds of samples: none below 0, and with the least relative error."""
        import torch

        rows = [[term / seconds for term in _terms(sample)] for sample, seconds in samples]
        matrix = torch.tensor(rows, dtype=torch.float64)
        count, size = matrix.shape
        ones = torch.ones(count, 1, dtype=torch.float64)
        best, constants = math.inf, [0.0] * size
        numbers = range(1, min(count, size) + 1)
        for chosen in chain.from_iterable(combinations(range(size), number) for number in numbers):
            part = matrix[:, list(chosen)]
            scale = part.amax(0)
            found = torch.linalg.lstsq(part / scale, ones).solution
            error = float((part / scale @ found - ones).square().sum())
            if (found >= 0.0).all() and error < best - TIE:
                values = dict(zip(chosen, (found[:, 0] / scale).tolist(), strict=True))
                best, constants = error, [values.get(number, 0.0) for number in range(size)]
        return cls(constants)

    def seconds(self, tensor: PlannedTensor) -> float:
        """How long one worker takes for a tensor."""
        terms = _terms(tensor)
        return math.fsum(constant * term for constant, term in zip(self.constants, terms, strict=True))


def _terms(tensor: PlannedTensor) -> list[float]:
    if tensor.matrices is None:
        return [1.0, float(tensor.elements)]
    matrices, terms = tensor.matrices, [0.0] * 4
    cuts = Counter(part.cut for part in matrices.parts) or {matrices.cut: matrices.count}
    for cut, count in cuts.items():
        length, side = cut.length, cut.side
        of_one = 1, length * side, length * side**2, side**3
        terms = [total + count * term for total, term in zip(terms, of_one, strict=True)]
    return terms
