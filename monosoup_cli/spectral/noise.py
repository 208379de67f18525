"""The largest singular value that noise of unknown level is likely to have: the optimal hard threshold.

Gavish and Donoho, "The optimal hard threshold for singular values is 4/√3", IEEE Transactions on Information
Theory 60(8), 2014 (arXiv 1305.5870), for a matrix of low rank with white noise. The median singular value,
which the low rank does not reach, tells the level of the noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

__all__ = ["edge_by_median", "median_of_noise"]

HALVINGS = 60
"""After so many halvings an interval of length π is shorter than the rounding of float64."""


@lru_cache(maxsize=1024)
def edge_by_median(short: int, long: int) -> float:
    """Return the threshold τ as a multiple of the median singular value, ω(β)/μ_β in the paper.

    Args:
        short: The smaller side of the matrix, at least 1.
        long: The larger side.
    """
    ratio = short / long
    root = math.sqrt(ratio**2 + 14.0 * ratio + 1.0)
    return math.sqrt(2.0 * (ratio + 1.0) + 8.0 * ratio / (ratio + 1.0 + root)) / median_of_noise(ratio)


def median_of_noise(ratio: float) -> float:
    """Return the median singular value of pure noise, μ_β: exact to 1e-12 for β >= 1e-8.

    This is for a large matrix of ratio β = short/long whose independent entries have the variance 1/long. It
    is the square root of the median of the law of Marchenko and Pastur on [(1 − √β)², (1 + √β)²].

    With x = 1 + β − 2√β cos θ, the law's density over [0, π] is 2 sin²θ/(π x). Its integral is elementary, so
    it needs no quadrature.
    """
    s = math.sqrt(ratio)

    def share_below(angle: float) -> float:
        turn = math.atan2(s * math.sin(angle), 1.0 - s * math.cos(angle))
        return (angle + math.sin(angle) / s - (1.0 - ratio) / ratio * turn) / math.pi

    low, high = 0.0, math.pi
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if share_below(middle) < 0.5 else (low, middle)
    return math.hypot(1.0 - s, 2.0 * math.sqrt(s) * math.sin(low / 2.0))
