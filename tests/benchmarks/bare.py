"""Model Stock with nothing around it, to see how fast it could be on two cores: no checks, no checksums,
no report, and two processes, so that none waits for the other's interpreter. 16-bit files of one layout.

`python -m tests.benchmarks.bare BASE FINETUNED FINETUNED… OUT` prints the seconds without its imports.
"""

import os
import sys
import time

import torch
from safetensors import safe_open

from monosoup_cli.formats.dtypes import bytes_of
from monosoup_cli.formats.files import InputFile, read_header

LENGTH = 1 << 16
HELD = 1 << 24


def merge(descriptors, out, places):
    """Each place is (offset in bytes, elements) of a tensor."""
    count = len(descriptors) - 1
    stored = torch.empty(count + 1, LENGTH, dtype=torch.bfloat16)
    buffers = [bytes_of(row) for row in stored]
    rows, exact = torch.empty(count + 1, LENGTH), torch.empty(count, LENGTH, dtype=torch.float64)
    held, ones = torch.empty(1, HELD), torch.ones(1, count)
    base, move = (torch.empty(LENGTH, dtype=torch.float64) for _ in range(2))
    result = torch.empty(LENGTH, dtype=torch.bfloat16)

    def updates(offset, size):
        for descriptor, buffer in zip(descriptors, buffers, strict=True):
            os.preadv(descriptor, [buffer[: 2 * size]], offset)
        rows[:, :size].copy_(stored[:, :size])
        return rows[1:, :size].sub_(rows[0, :size])

    for place, elements in places:
        is_held, gram = elements <= HELD, torch.zeros(count, count, dtype=torch.float64)
        ranges = [(start, min(LENGTH, elements - start)) for start in range(0, elements, LENGTH)]
        for start, size in ranges:
            some = updates(place + 2 * start, size)
            all_exact = exact[:, :size].copy_(some)
            for first in range(0, count, 2):
                part, last = all_exact[first : first + 2], min(first + 2, count)
                gram[first:last, :last].addmm_(part, all_exact[:last].T)
            if is_held:
                torch.mm(ones, some, out=held[:, start : start + size])
        gram = gram.tril() + gram.tril(-1).T
        norms = gram.diagonal().sqrt()
        cosine = ((gram / norms / norms.unsqueeze(1)).sum() - count) / (count * (count - 1))
        ratio = float(cosine / (1 + (count - 1) * cosine))
        for start, size in ranges:
            total = held[0, start : start + size]
            if is_held:
                os.preadv(descriptors[0], [buffers[0][: 2 * size]], place + 2 * start)
            else:
                total = torch.mm(ones, updates(place + 2 * start, size), out=held[:, :size])[0]
            base[:size].copy_(stored[0, :size]).add_(move[:size].copy_(total), alpha=ratio)
            result[:size].copy_(base[:size])
            os.pwrite(out, bytes_of(result)[: 2 * size], place + 2 * start)


def main():
    *paths, target = sys.argv[1:]
    torch.set_num_threads(1)
    started = time.perf_counter()
    header = read_header(InputFile(paths[0]))
    places = [(len(header.raw) + each.start, each.nbytes // 2) for each in header.tensors.values()]
    shares, loads = ([], []), [0, 0]
    for place, elements in sorted(places, key=lambda place: -place[1]):
        lighter = loads.index(min(loads))
        shares[lighter].append((place, elements))
        loads[lighter] += elements
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    os.pwrite(out, header.raw, 0)
    child = os.fork()
    if child == 0:
        merge(descriptors, out, shares[0])
        os._exit(0)
    merge(descriptors, out, shares[1])
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the other half failed")
    os.sync()
    print(f"{time.perf_counter() - started:.2f}")
    with safe_open(target, "pt"):
        pass


if __name__ == "__main__":
    main()
