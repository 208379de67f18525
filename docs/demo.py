"""Train a small network, fine-tune it until it has lost robustness, edit it, and compare the three.

The base learns digits that are moved, turned and noisy; fine-tuning goes on with clean, centred
digits alone, at a high learning rate. Both checkpoints are written to demo/, `monosoup edit` is run
on them as a user would run it, and all three are scored on digits that none of them was trained on.

Four more fine-tunes of the base are left beside it, for the commands that want several, and
`--score` is a score command for them.

    make demo                          (or, with monosoup and scikit-learn installed:)
    python docs/demo.py --seed 3       another split, another network, in demo/seed-3
    python docs/demo.py --score PATH   accuracy of a checkpoint, mean of clean and shifted digits
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "monosoup edit {0}/base.safetensors {0}/finetuned.safetensors -o {0}/edited --overwrite"

MAX_DEGREES, MAX_PIXELS, NOISE = 30.0, 1.0, 0.15
"""How far a shifted digit is turned and moved; the standard deviation of its noise (ink is 0 to 1)."""

SHIFTED_COPIES = 5
"""How often every test digit is shifted anew, so that the score depends little on one draw."""

MORE_FINETUNES = {2: 1e-3, 3: 1e-3, 4: 2e-3, 5: 5e-3}
"""Learning rates of finetuned-2 to finetuned-5, each on another half of the fine-tuning digits."""

Weights = dict[str, torch.Tensor]


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) with ink from 0 to 1, and which digit each of them shows."""

    images: torch.Tensor
    labels: torch.Tensor


class Score(NamedTuple):
    """Accuracy in percent on clean and on shifted digits."""

    clean: float
    shifted: float


def main() -> int:
    """Train, edit through the command line, and print the comparison."""
    parser = argparse.ArgumentParser(description="MonoSoup on a small network, from training to score.")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the network and its training")
    parser.add_argument(
        "--score",
        type=Path,
        metavar="PATH",
        help="score this checkpoint on the held-out digits of the seed, and do nothing else",
    )
    arguments = parser.parse_args()
    seed = arguments.seed
    torch.set_default_dtype(torch.float64)  # in float32, every processor would train other networks
    if arguments.score is not None:
        torch.manual_seed(seed)
        file = arguments.score / "model.safetensors" if arguments.score.is_dir() else arguments.score
        found = score({"": load_file(file)}, split_digits()[2])[""]
        print(f"{(found.clean + found.shifted) / 2:.2f}")
        return 0
    if shutil.which("monosoup") is None:
        print("monosoup is not on the PATH: run `make demo`, or install it first", file=sys.stderr)
        return 1
    torch.set_num_threads(1)  # the network is too small to gain from more
    torch.manual_seed(seed)
    folder = f"demo/seed-{seed}" if seed else "demo"
    (ROOT / folder).mkdir(parents=True, exist_ok=True)

    pretraining, finetuning, held_out = split_digits()
    network = make_network()
    print(f"base: {len(pretraining.labels)} digits, moved, turned and noisy", flush=True)
    train(network, pretraining, epochs=80, learning_rate=1e-3, weight_decay=0.01, augment=shift)
    save(network, ROOT / folder / "base.safetensors")
    print(f"fine-tuned: {len(finetuning.labels)} other digits, clean and centred", flush=True)
    train(network, finetuning, epochs=30, learning_rate=3e-3, weight_decay=0.3)
    save(network, ROOT / folder / "finetuned.safetensors")

    command = COMMAND.format(folder)
    print(f"\n$ {command}", flush=True)
    finished = subprocess.run(command.split(), cwd=ROOT)
    if finished.returncode != 0:
        return finished.returncode

    files = {"base": "base", "fine-tuned": "finetuned", "edited": "edited/model"}
    checkpoints = {name: load_file(ROOT / folder / f"{stem}.safetensors") for name, stem in files.items()}
    print_comparison(score(checkpoints, held_out), len(held_out.labels))

    for number, learning_rate in MORE_FINETUNES.items():
        network.load_state_dict(checkpoints["base"])
        half = torch.randperm(len(finetuning.labels))[: len(finetuning.labels) // 2]
        part = Digits(finetuning.images[half], finetuning.labels[half])
        train(network, part, epochs=20, learning_rate=learning_rate, weight_decay=0.1)
        save(network, ROOT / folder / f"finetuned-{number}.safetensors")
    print(f"\n{len(MORE_FINETUNES)} more fine-tunes are in {folder}/, for soup, stock and sfgs.")
    return 0


def split_digits() -> tuple[Digits, Digits, Digits]:
    """scikit-learn's 1797 digits in three disjoint parts: pre-training, fine-tuning, held out."""
    images, labels = load_digits(return_X_y=True)
    digits = Digits(torch.tensor(images / 16, dtype=torch.float64).reshape(-1, 1, 8, 8), torch.tensor(labels))
    order = torch.randperm(len(labels))
    first, second, third = (Digits(*(part[chosen] for part in digits)) for chosen in order.split(599))
    return first, second, third


def make_network() -> nn.Sequential:
    """Three linear layers, which is enough for 8 × 8 pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def shift(images: torch.Tensor) -> torch.Tensor:
    """Each image moved and turned by random amounts, with noise added."""
    count = len(images)
    angle = (2 * torch.rand(count) - 1) * math.radians(MAX_DEGREES)
    move = (2 * torch.rand(count, 2) - 1) * MAX_PIXELS * 2 / images.shape[-1]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    grid = functional.affine_grid(
        torch.cat([turn, move[:, :, None]], dim=2), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, align_corners=False)
    return moved + NOISE * torch.randn_like(moved)


def train(
    network: nn.Sequential,
    digits: Digits,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    augment: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
) -> None:
    """Every parameter, with AdamW and batches of 64."""
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.labels)).split(64):
            loss = functional.cross_entropy(network(augment(digits.images[batch])), digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def save(network: nn.Sequential, path: Path) -> None:
    """Write its weights in float32."""
    save_file({name: weights.float() for name, weights in network.state_dict().items()}, path)


@torch.no_grad()
def score(checkpoints: dict[str, Weights], digits: Digits) -> dict[str, Score]:
    """Every checkpoint on the same digits, as they are and under the same shifts."""
    shifted = Digits(
        shift(digits.images.repeat(SHIFTED_COPIES, 1, 1, 1)), digits.labels.repeat(SHIFTED_COPIES)
    )
    network, scores = make_network(), {}
    for name, weights in checkpoints.items():
        network.load_state_dict(weights)
        scores[name] = Score(*(accuracy(network, part) for part in (digits, shifted)))
    return scores


def accuracy(network: nn.Sequential, digits: Digits) -> float:
    """In percent."""
    return 100 * float((network(digits.images).argmax(1) == digits.labels).float().mean())


def print_comparison(scores: dict[str, Score], count: int) -> None:
    """The table, and in one sentence what it shows."""
    print(f"\naccuracy in percent on {count} held-out digits")
    print(f"{'':<12}{'clean':>8}{'shifted':>10}{'mean':>8}")
    for name, (clean, shifted) in scores.items():
        print(f"{name:<12}{clean:>8.1f}{shifted:>10.1f}{(clean + shifted) / 2:>8.1f}")
    base, finetuned, edited = (scores[name] for name in ("base", "fine-tuned", "edited"))
    print(
        f"\nFine-tuning moved accuracy by {finetuned.clean - base.clean:+.1f} points on clean digits and by"
        f" {finetuned.shifted - base.shifted:+.1f} on shifted ones;\nthe edit, which saw no data, moved it"
        f" from there by {edited.clean - finetuned.clean:+.1f} and {edited.shifted - finetuned.shifted:+.1f}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
