"""CPU time and error of one edit in memory, ours and the rival's in turn, and CPU time of our inspection
of the same matrix; JSON on stdout."""

import json
import sys
import time

import numpy as np
import torch

from monosoup_cli.methods.monosoup import MonoSoup, edit_matrix, inspect_update
from monosoup_cli.spectral.rounding import Rounding, above_rounding
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
    spectrum, values = inspect_update(lambda: (update,), update.shape[1], MonoSoup())
    return spectrum, above_rounding(values, rounding.sigma(spectrum.update_norm))


def main():
    torch.set_num_threads(1)
    repeats = int(sys.argv[1])
    generator = torch.Generator().manual_seed(0)
    results, totals = [], {"name": "whole block", "our_error": 0.0, "their_error": 0.0}
    for name, shape in BLOCK.items():
        base, finetuned = (weights.bfloat16() for weights in matrix_pair(shape, generator))
        reference, _ = oracle.edit(base.double().numpy(), finetuned.double().numpy())
        ours, theirs, looks = [], [], []
        for number in range(repeats + 1):
            our_time, (edited, _) = timed(edit_matrix, base, finetuned)
            their_time, rival = timed(straightforward.edit, base, finetuned)
            look_time, _ = timed(inspect, base, finetuned)
            if number:
                looks.append(look_time)
                ours.append(our_time)
                theirs.append(their_time)
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
                "our_error": errors[0],
                "their_error": errors[1],
            }
        )
    for side in ("ours", "theirs", "looks"):
        totals[side] = [sum(times) for times in zip(*(result[side] for result in results), strict=True)]
    for side in ("our_error", "their_error"):
        totals[side] = max(result[side] for result in results)
    json.dump([*results, totals], sys.stdout)


if __name__ == "__main__":
    main()
