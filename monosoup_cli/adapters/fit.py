"""Whether what an adapter stores fits the base, where a vocabulary had other rows in the training, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosoup_cli.adapters.keys import PREFIX, ModuleFactors
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import FLOATING, TensorInfo
from monosoup_cli.names import is_head
from monosoup_cli.sources.source import Source

__all__ = ["check_fit", "lacks_rows", "resized_shape", "row_numbers"]


def check_fit(tensor: TensorInfo, wanted: TensorInfo, path: str, *, may_differ: bool) -> None:
    """Raise CheckpointError for a tensor of the adapter that cannot take the place of the base's.

    `may_differ` allows another number of rows, as of a vocabulary or labels.
    """
    if wanted.dtype not in FLOATING:
        raise CheckpointError(
            "changes a base tensor of a dtype that cannot be edited",
            path=path,
            tensor=tensor.name,
            expected=" or ".join(FLOATING),
            found=wanted.dtype,
        )
    is_alike = len(tensor.shape) == len(wanted.shape) and tensor.shape[1:] == wanted.shape[1:]
    if tensor.shape != wanted.shape and not (may_differ and is_alike):
        raise CheckpointError(
            "does not fit the base",
            path=path,
            tensor=tensor.name,
            expected=list(wanted.shape),
            found=list(tensor.shape),
        )


def resized_shape(
    factors: ModuleFactors, wanted: TensorInfo, copy: str | None, own: Source
) -> tuple[int, ...] | None:
    """Return the shape of a vocabulary that was resized before the training; None where it was not.

    More rows than the base has are in the copy that peft saves of an embedding.
    """
    a, b = factors.a, factors.b
    shape = (a[1], b[0]) if factors.is_embedding else (b[0], *a[1:])
    if factors.parameters or factors.layouts(wanted.shape) or shape[1:] != wanted.shape[1:]:
        return None
    if copy is not None and own.tensors[copy].shape == shape:
        return shape
    if not (factors.is_embedding or is_head(factors.module)):
        return None
    if shape[0] > wanted.shape[0]:
        raise lacks_rows(factors.keys["a"], wanted.shape, shape, own.path)
    return shape


def lacks_rows(key: str, wanted: tuple[int, ...], found: tuple[int, ...], path: str) -> CheckpointError:
    """The error for an adapter that was trained with rows that neither it nor the base has."""
    return CheckpointError(
        "was trained with more rows than the base has, and the adapter does not have these rows",
        path=path,
        tensor=key,
        expected=list(wanted),
        found=list(found),
        hint="save the adapter with peft's save_pretrained(OUT, save_embedding_layers=True)",
    )


def row_numbers(config: Mapping[str, Any], key: str, shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """The indices in trainable_token_indices of the rows that a tensor replaces."""
    numbers = config.get("trainable_token_indices")
    if isinstance(numbers, Mapping):
        module = key.removeprefix(PREFIX).removesuffix(".token_adapter.trainable_tokens_delta")
        named = [numbers[name] for name in numbers if f".{module}".endswith(f".{name}")]
        numbers = named[0] if len(named) == 1 else None
    if (
        not isinstance(numbers, list)
        or not all(type(number) is int and number >= 0 for number in numbers)
        or len(set(numbers)) != len(numbers)
        or (len(numbers), 2) != (shape[0] if shape else 0, len(shape))
    ):
        raise CheckpointError(
            "its rows do not match trainable_token_indices",
            path=path,
            tensor=key,
            expected="the index of an embedding row for each row",
            found=list(shape),
        )
    return tuple(numbers)
