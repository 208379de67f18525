"""CPU time and error of one edit in memory, ours and the rival's in turn, and CPU time of our inspection of
the same matrix and of the kernels that edit and inspection consist of; JSON on stdout."""

import json
import sys
import time

import numpy as np
import torch

from monosoup_cli.methods.monosoup import MonoSoup, edit_matrix, inspect_update
from monosoup_cli.spectral.rounding import Rounding, above_rounding
from monosoup_cli.spectral.spectrum import gram
from tests import oracle
from tests.benchmarks import straightforward
from tests.benchmarks.pairs import BLOCK, matrix_pair


def timed(function, *arguments):
    started = time.process_time()
    result = function(*arguments)
    return time.process_time() - started, result


def inspect(base, finetuned):
    """All that `inspect-spectrum` computes of a matrix."""
    rounding = Rounding(torch.finfo(base.dtype))
    base, finetuned = (
        weights.T if base.shape[0] < base.shape[1] else weights for weights in (base, finetuned)
    )
    base, update = base.double(), finetuned.double().sub_(base)
    rounding.add(base, update)
    spectrum, values = inspect_update(lambda: (update,), *update.shape, MonoSoup())
    return spectrum, above_rounding(values, rounding.sigma(spectrum.update_norm))


KERNELS = ("gram", "eigh", "eigvalsh", "products")


def kernels(base, finetuned, k):
    """The CPU time of each kernel alone: the Gram product, the eigenproblem with and without vectors, and the
    projector's products."""
    update = finetuned.double().sub_(base.double())
    update = update.T if base.shape[0] < base.shape[1] else update
    side = update.shape[1]
    gram_time, matrix = timed(gram, [update], side)
    vectors_time, (_, vectors) = timed(torch.linalg.eigh, matrix, "U")
    values_time, _ = timed(torch.linalg.eigvalsh, matrix, "U")
    directions = vectors[:, : min(k, side - k)].clone()
    times = [gram_time, vectors_time, values_time]
    first_time, projected = timed(torch.mm, directions.T, update.T)
    second_time, _ = timed(update.addmm_, projected.T, directions.T)
    return dict(zip(KERNELS, [*times, first_time + second_time], strict=True))


def main():
    torch.set_num_threads(1)
    repeats = int(sys.argv[1])
    generator = torch.Generator().manual_seed(0)
    results, totals = [], {"name": "whole block", "our_error": 0.0, "their_error": 0.0}
    for name, shape in BLOCK.items():
        base, finetuned = (weights.bfloat16() for weights in matrix_pair(shape, generator))
        reference, _ = oracle.edit(base.double().numpy(), finetuned.double().numpy())
        ours, theirs, looks, alone = [], [], [], []
        for number in range(repeats + 1):
            our_time, (edited, layer) = timed(edit_matrix, base, finetuned)
            their_time, rival = timed(straightforward.edit, base, finetuned)
            look_time, _ = timed(inspect, base, finetuned)
            kernel_times = kernels(base, finetuned, layer.k)
            if number:
                looks.append(look_time)
                ours.append(our_time)
                theirs.append(their_time)
                alone.append(kernel_times)
        errors = [
            np.abs(found.double().numpy() - reference).max() / np.abs(reference).max()
            for found in (edited, rival)
        ]
        results.append(
            {
                "name": f"{name} {shape[0]} × {shape[1]}",
                "ours": ours,
                "theirs": theirs,
                "looks": looks,
                **{kernel: [times[kernel] for times in alone] for kernel in KERNELS},
                "our_error": errors[0],
                "their_error": errors[1],
            }
        )
    for side in ("ours", "theirs", "looks", *KERNELS):
        totals[side] = [sum(times) for times in zip(*(result[side] for result in results), strict=True)]
    for side in ("our_error", "their_error"):
        totals[side] = max(result[side] for result in results)
    json.dump([*results, totals], sys.stdout)


if __name__ == "__main__":
    main()
