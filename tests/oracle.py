"""MonoSoup by the plainest route: NumPy's float64 singular value decomposition, written from the equations.

Nothing of the package is used here.
"""

import functools
import math

import numpy as np
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10}
SMALLEST_EXPONENT = {torch.bfloat16: -126, torch.float16: -14}


def entropy_rank(sigma):
    """Equations 3 and 4 of the paper; a value within 1e-9 above an integer counts as that integer."""
    p = sigma / sigma.sum()
    p = p[p > 0]
    effective = math.exp(-(p * np.log(p)).sum())
    return min(math.ceil(effective * (1 - 1e-9)), len(sigma)), effective


def energy_rank(sigma, share):
    """Equation 2 of the paper."""
    if share == 1:
        return len(sigma)
    return int(np.argmax(np.cumsum(sigma**2) / (sigma**2).sum() >= share * (1 - 1e-9))) + 1


def noise_rank(sigma, shape):
    """The threshold of Gavish and Donoho (2014) for unknown noise, with the median by quadrature."""
    short, long = sorted(shape)
    beta = short / long
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    zero = long * np.finfo(float).eps * sigma[0]  # as numpy.linalg.matrix_rank
    median = np.median(sigma)
    edge = zero if median <= zero else omega * median / math.sqrt(marchenko_pastur_median(beta))
    return int((sigma > edge).sum())


@functools.cache
def marchenko_pastur_median(beta):
    """The median of the Marchenko-Pastur law, by quadrature of its density."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def mass_above(x):  # from above, where the density has no pole even if beta is 1
        # t**2 = high - y takes the root at the upper end away
        return quad(
            lambda t: (
                2
                * t**2
                * math.sqrt(max(high - t**2 - low, 0))
                / (2 * math.pi * beta * max(high - t**2, 1e-300))
            ),
            0,
            math.sqrt(high - x),
            epsabs=1e-13,
            limit=500,
        )[0]

    return brentq(lambda x: mass_above(x) - 0.5, low, high, xtol=1e-14)


def edit(
    base,
    finetuned,
    *,
    split="entropy",
    energy=None,
    rank=None,
    rank_fraction=None,
    weighting="monosoup",
    wise=1.0,
):
    """(edited weights, measures) of one float64 matrix; measures is None where nothing changed."""
    update = finetuned - base
    if not update.any():
        return finetuned, None
    u, sigma, vt = np.linalg.svd(update, full_matrices=False)
    r = len(sigma)
    k, effective = entropy_rank(sigma)
    if split == "noise":
        k = noise_rank(sigma, update.shape)
    if split == "energy-entropy":
        k = entropy_rank(sigma**2)[0]
    if energy is not None:
        k = energy_rank(sigma, energy)
    if rank is not None:
        k = min(rank, r)
    if rank_fraction is not None:
        k = math.ceil(rank_fraction * r * (1 - 1e-9))
    rho = (sigma[k] / sigma[0]) ** 2 if k < r else 0.0
    total = (sigma**2).sum()
    cos_alpha = math.sqrt((sigma[k:] ** 2).sum() / total)
    equation_8 = rho + (1 - rho) * cos_alpha
    ablations = {"spectral": rho, "alignment": cos_alpha, "uniform": 0.5, "high": 0.0, "low": 1.0}
    low = equation_8 if weighting == "monosoup" else ablations[weighting]
    high_part = (u[:, :k] * sigma[:k]) @ vt[:k]
    low_part = (u[:, k:] * sigma[k:]) @ vt[k:]
    edited_update = (1 - low) * high_part + low * low_part
    measures = {
        "rank": r,
        "k": k,
        "effective_rank": effective,
        "rho": rho,
        "cos_alpha": cos_alpha,
        "lambda_high": 1 - low,
        "lambda_low": low,
        "energy_high": (sigma[:k] ** 2).sum() / total,
        # by their definitions rather than by a formula: the nearest multiple of the update, and
        # how far from it the edit is
        "equivalent_alpha": (edited_update * update).sum() / (update**2).sum(),
        "sigma_max": sigma[0],
        "update_norm": np.linalg.norm(update),
    }
    rest = edited_update - measures["equivalent_alpha"] * update
    measures["anisotropy"] = np.linalg.norm(rest) / np.linalg.norm(update)
    return base + wise * edited_update, measures


def assert_weights_equal(found, reference):
    """`found` (any floating dtype) is the float64 `reference`, as closely as its dtype can be."""
    scale = np.abs(reference).max()
    values = found.double().numpy()
    if found.dtype in (torch.float32, torch.float64):
        assert np.abs(values - reference).max() <= 1e-6 * scale
        return
    rounded = torch.from_numpy(reference).to(found.dtype).double().numpy()
    exponent = np.floor(np.log2(np.maximum(np.abs(reference), 1e-300)))
    exponent = np.maximum(exponent, SMALLEST_EXPONENT[found.dtype])
    unit = 2.0 ** (exponent - MANTISSA_BITS[found.dtype])
    assert (np.abs(values - rounded) <= np.maximum(unit, 1e-9 * scale)).all()
    # a zero of the matrix is rounding noise in the reference, which 16 bits would show
    is_noise = np.maximum(np.abs(values), np.abs(reference)) <= 1e-14 * scale
    assert ((values == rounded) | is_noise).mean() >= 0.999


def assert_measures_equal(found, reference):
    """k exactly, ρ, cos α and λ to 1e-7 absolute, norms to 1e-9 relative."""
    assert found["k"] == reference["k"]
    assert found["rank"] == reference["rank"]
    for name in (
        "rho",
        "cos_alpha",
        "lambda_high",
        "lambda_low",
        "energy_high",
        "equivalent_alpha",
        "anisotropy",
    ):
        assert abs(found[name] - reference[name]) <= 1e-7, name
    for name in ("sigma_max", "update_norm"):
        assert abs(found[name] - reference[name]) <= 1e-9 * reference[name], name
