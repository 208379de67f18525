"""Digits: a small convolutional network, pretrained broadly, fine-tuned on clean digits of a few writers.

scikit-learn's 1797 digits stand in the order in which people wrote them, on forms that all begin with
0 to 9 three times.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from docs.evidence.study import Recipe

BASE_FORMS, TUNED_FORMS = 5, 5
"""Forms to pretrain on, and to fine-tune and test on; those that are left are other hands."""

HELD_OUT, VALIDATED = 50, 20
"""Digits of every form of the fine-tunes that are only tested on, and that are only chosen by."""

MAX_DEGREES, MAX_PIXELS, NOISE = 20.0, 1.0, 0.3
"""How far digits are turned and moved; the standard deviation of a sensor's noise (ink is 0 to 1)."""


RECIPES = {
    "gentle": Recipe(3e-4, 10),
    "usual": Recipe(1e-3, 10),
    "long": Recipe(1e-3, 30),
    "fast": Recipe(3e-3, 10),
    "overtrained": Recipe(1e-2, 30),
}


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) with ink from 0 to 1, and which digit each of them shows."""

    images: Tensor
    labels: Tensor


class Parts(NamedTuple):
    """The digits of a seed: forms are dealt out at random."""

    pretraining: Digits
    finetuning: Digits
    validation: Digits
    held_out: Digits
    other_hands: Digits


def forms(labels: list[int]) -> list[slice]:
    """Where each form begins and ends."""
    opening = list(range(10)) * 3
    starts = [at for at in range(len(labels)) if labels[at : at + 30] == opening]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(labels)], strict=True)]


def digits_of(seed: int) -> Parts:
    """The parts of scikit-learn's digits for a seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    ink = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    every = [Digits(ink[form], torch.tensor(labels[form])) for form in forms(labels.tolist())]
    generator = torch.Generator().manual_seed(seed)
    dealt = [every[at] for at in torch.randperm(len(every), generator=generator)]
    tuned = dealt[BASE_FORMS : BASE_FORMS + TUNED_FORMS]
    orders = [torch.randperm(len(form.labels), generator=generator) for form in tuned]
    return Parts(
        joined(dealt[:BASE_FORMS]),
        *(
            joined([chosen(form, order[part]) for form, order in zip(tuned, orders, strict=True)])
            for part in (
                slice(HELD_OUT + VALIDATED, None),
                slice(HELD_OUT, HELD_OUT + VALIDATED),
                slice(HELD_OUT),
            )
        ),
        joined(dealt[BASE_FORMS + TUNED_FORMS :]),
    )


def joined(parts: list[Digits]) -> Digits:
    """Several sets as one."""
    return Digits(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def chosen(digits: Digits, order: Tensor) -> Digits:
    """Some of them."""
    return Digits(digits.images[order], digits.labels[order])


class Network(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(1024, 128)]
        )
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Ten logits an image."""
        first, second, third = self.blocks
        maps = functional.max_pool2d(second(first(images).relu()).relu(), 2)
        return self.head(third(maps.flatten(1)).relu())


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned and moved by random amounts."""
    count = len(images)
    angle = (2 * torch.rand(count, generator=generator) - 1) * math.radians(MAX_DEGREES)
    move = (2 * torch.rand(count, 2, generator=generator) - 1) * MAX_PIXELS * 2 / images.shape[-1]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    grid = functional.affine_grid(
        torch.cat([turn, move[:, :, None]], dim=2), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, align_corners=False)


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images as a poor sensor sees them."""
    return images + NOISE * torch.randn(images.shape, generator=generator)


def make_base(seed: int, path: Path) -> None:
    """A network that saw digits moved, turned and noisy."""
    torch.manual_seed(seed)
    network = Network()
    train(network, digits_of(seed).pretraining, Recipe(1e-3, 60), seed, broad=True)
    save_file(network.state_dict(), path)


def fine_tune(seed: int, recipe: str, base: Path, path: Path) -> None:
    """Every weight of the base, on clean digits of other writers."""
    network = Network()
    network.load_state_dict(load_file(base))
    train(network, digits_of(seed).finetuning, RECIPES[recipe], seed, broad=False)
    save_file(network.state_dict(), path)


def train(network: Network, digits: Digits, recipe: Recipe, seed: int, *, broad: bool) -> None:
    """AdamW, the rate falling linearly to 0."""
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(digits.labels) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (recipe.epochs * batches))
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(digits.labels), generator=generator).split(32):
            images = digits.images[batch]
            images = noisy(moved(images, generator), generator) if broad else images
            functional.cross_entropy(network(images), digits.labels[batch]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


class Scorer:
    """Scores checkpoints on all tasks of a seed."""

    def __init__(self, seed: int) -> None:
        parts = digits_of(seed)
        self.validation = parts.validation
        self.network = Network()
        generator = torch.Generator().manual_seed(1000 + seed)
        self.tasks = {
            "same hands": parts.held_out,
            "other hands": parts.other_hands,
            "moved": Digits(moved(parts.held_out.images, generator), parts.held_out.labels),
            "noisy": Digits(noisy(parts.held_out.images, generator), parts.held_out.labels),
        }

    def load(self, weights: dict[str, Tensor]) -> None:
        """Score this checkpoint from now on."""
        self.network.load_state_dict(weights)

    @torch.inference_mode()
    def right(self, digits: Digits) -> list[bool]:
        """For every digit, whether the network is right."""
        return (self.network(digits.images).argmax(1) == digits.labels).tolist()
