"""The methods other than MonoSoup by the plainest route: float64 NumPy, written from their formulas.

Nothing of the package is used here.
"""

import math
from itertools import combinations

import numpy as np

HEADS = {"lm_head", "score", "classifier", "fc", "head", "heads", "classification_head"}


def unit(update):
    """The update scaled to norm 1, by way of its largest element, so that no square leaves float64."""
    largest = np.abs(update).max(initial=0.0)
    if largest == 0:
        return np.zeros(update.size)
    scaled = update.reshape(-1) / largest
    return scaled / np.linalg.norm(scaled)


def cosine(one, other):
    return float(unit(one) @ unit(other))


def stock_ratio(updates, *, clamp=True):
    """(c, t, whether t has been clamped) of one group of weights. c is the mean over pairs, one by
    one; t = N c / (1 + (N − 1) c), 0 where updates cancel out."""
    count = len(updates)
    mean = sum(cosine(*pair) for pair in combinations(updates, 2)) / math.comb(count, 2)
    denominator = 1 + (count - 1) * mean
    ratio = 0.0 if abs(denominator) < 1e-12 else count * mean / denominator
    is_clamped = clamp and ratio < 0
    return mean, 0.0 if is_clamped else ratio, is_clamped


def stock(base, finetuned, *, granularity="tensor", clamp=True):
    """(weights, measures) of Model Stock on one tensor; measures is None where nothing moved."""
    if all((each == base).all() for each in finetuned):
        return base, None
    mean = sum(finetuned) / len(finetuned)
    if base.ndim == 0:
        return mean, {"cosine": None, "ratio": 1.0, "clamped": 0}
    is_by_row = granularity == "filter" and base.ndim > 1
    view = (base.shape[0], -1) if is_by_row else (1, -1)
    result = base.reshape(view).copy()
    found = []
    for number, row in enumerate(base.reshape(view)):
        found.append(stock_ratio([each.reshape(view)[number] - row for each in finetuned], clamp=clamp))
        result[number] += found[-1][1] * (mean.reshape(view)[number] - row)
    cosines, ratios, clamped = zip(*found, strict=True)
    measures = {"cosine": np.mean(cosines), "ratio": np.mean(ratios), "clamped": sum(clamped)}
    return result.reshape(base.shape), measures


def soup(members, weights=None):
    weights = weights or [1] * len(members)
    return sum(weight * member for weight, member in zip(weights, members, strict=True)) / sum(weights)


def wise(base, finetuned, alpha):
    return (1 - alpha) * base + alpha * finetuned


def lines_scale(name, stacks, alpha, beta, head="last"):
    """s of LiNeS, where `stacks` maps the prefix of each list of blocks to its length."""
    for prefix, length in stacks.items():
        if name.startswith(f"{prefix}."):
            block = int(name.removeprefix(f"{prefix}.").split(".")[0])
            return alpha + beta * (block / (length - 1) if length > 1 else 1)
    if HEADS & set(name.split(".")):
        return {"last": alpha + beta, "alpha": alpha, "ft": 1.0}[head]
    return alpha


def similarity(base, finetuned, names):
    """C_ij over the layers called `names`; checkpoints are mappings of names to arrays."""
    count = len(finetuned)
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            pairs = [(finetuned[i][name] - base[name], finetuned[j][name] - base[name]) for name in names]
            cosines = [cosine(*pair) for pair in pairs if pair[0].any() or pair[1].any()]
            matrix[i, j] = sum(cosines) / len(cosines) if cosines else 0.0
    return matrix


def filtered(matrix, order, threshold):
    """(members, [(candidate, mean similarity, joined)]) of the similarity-filtered greedy soup."""
    members, decisions = [order[0]], []
    for candidate in order[1:]:
        mean = math.fsum(matrix[candidate][member] for member in members) / len(members)
        decisions.append((candidate, mean, mean >= threshold))
        members += [candidate] if mean >= threshold else []
    return members, decisions
