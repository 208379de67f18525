"""`python -m tests.benchmarks.compare OURS THEIRS`: how far apart two checkpoints are."""

import sys
from pathlib import Path

from safetensors.torch import load_file

TOLERANCE = 1e-5


def load(folder):
    tensors = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: tensor.double() for name, tensor in tensors.items()}


def main():
    ours, theirs = (load(folder) for folder in sys.argv[1:])
    if ours.keys() != theirs.keys():
        raise SystemExit(f"names differ: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    worst = max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in ours)
    print(f"{worst:.1e}")
    if worst > TOLERANCE:
        raise SystemExit(f"above {TOLERANCE}")


if __name__ == "__main__":
    main()
