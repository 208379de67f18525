"""Which tensors are edited and which are kept, and why: decided from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from monosoup_cli.checkpoints.header import BITS, FLOATING, TensorInfo
from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.pipeline.blocks import Cut

__all__ = ["Plan", "PlannedTensor", "Reason", "Selection", "make_plan"]

Reason = Literal[
    "vector", "unchanged", "not_in_base", "shape_mismatch", "excluded", "not_floating", "nonfinite"
]

Headers = Mapping[str, TensorInfo]
STORED = {torch_name: stored for stored, torch_name in FLOATING.items()}


@dataclass(frozen=True)
class Selection:
    """What the user said about tensors; the options of the same names."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    on_mismatch: Literal["error", "keep"] = "error"
    dtype: str = "keep"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: edited as a matrix, or as a stack of them, or kept.

    `cut` is the matrix's, `stack` the number of matrices along dim 0 (None: not stacked).

    `dtype` is the fine-tuned checkpoint's and `stored_dtype` the output's, in the words of the
    format. `sources`: how many fine-tuned checkpoints it is the mean of; `has_base`: whether the
    base's tensor is read. `is_copied`: moved as bytes; a kept tensor that is not (a mean, another
    dtype, `--wise`) is computed element by element.
    """

    name: str
    dtype: str
    stored_dtype: str
    shape: tuple[int, ...]
    reason: Reason | None
    stack: int | None
    cut: Cut
    sources: int
    has_base: bool
    is_copied: bool

    @property
    def is_edited(self) -> bool:
        return self.reason is None

    @property
    def matrices(self) -> int:
        return 1 if self.stack is None else self.stack

    @property
    def nbytes(self) -> int:
        """In the fine-tuned checkpoint."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """Every tensor of the output in the fine-tuned checkpoint's order.

    `only_in_base`: names that the fine-tuned checkpoint has not; they are not written.
    """

    tensors: tuple[PlannedTensor, ...]
    only_in_base: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtypes", {tensor.name: tensor.stored_dtype for tensor in self.tensors})

    @property
    def edited(self) -> tuple[PlannedTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.is_edited)


def make_plan(
    base: Headers, finetuned: Sequence[Headers], selection: Selection, *, wise: float | None = None
) -> Plan:
    """Decide about every tensor of the first fine-tuned checkpoint (docs/method.md, section 1).

    A layer is floating, has two dimensions or more, and stands in every input with one shape.
    Raises MismatchError where inputs do not belong together, UsageError for patterns that match
    nothing.
    """
    first, *others = finetuned
    if first and not first.keys() & base.keys():
        raise MismatchError(
            "base and fine-tuned checkpoint have no tensor name in common",
            expected=f"a name like {next(iter(base), 'none')!r}", found=repr(next(iter(first))),
        )  # fmt: skip
    _check_patterns(finetuned, selection)
    _check_names(first, others, selection)
    if selection.on_mismatch == "error":
        _check_shapes(first, base, others, selection)
    tensors = tuple(_plan_tensor(tensor, base, others, selection, wise) for tensor in first.values())
    return Plan(tensors, tuple(name for name in base if name not in first))


def _plan_tensor(
    tensor: TensorInfo,
    base: Headers,
    others: Sequence[Headers],
    selection: Selection,
    wise: float | None,
) -> PlannedTensor:
    name = tensor.name
    is_floating = tensor.dtype in FLOATING
    is_shared = all(_alike(tensor, headers) for headers in others)
    has_base = is_floating and _alike(tensor, base)
    reason = _reason(tensor, base, others, selection)
    stored_dtype = tensor.dtype
    if is_floating and selection.dtype != "keep":
        stored_dtype = STORED[selection.dtype]
    stack, cut = None, Cut(tensor.elements, 1)
    if reason is None:
        stack, cut = matrix_view(tensor, selection.stacked)
    is_interpolated = wise is not None and has_base
    is_averaged = bool(others) and is_floating and is_shared
    return PlannedTensor(
        name,
        tensor.dtype,
        stored_dtype,
        tensor.shape,
        reason,
        stack,
        cut,
        sources=1 + len(others) if is_averaged else 1,
        has_base=reason is None or is_interpolated,
        is_copied=reason is not None
        and not (is_averaged or is_interpolated)
        and stored_dtype == tensor.dtype,
    )


def _alike(tensor: TensorInfo, headers: Headers) -> bool:
    """Whether the tensor can be averaged with, or subtracted from, its namesake."""
    twin = headers.get(tensor.name)
    return twin is not None and twin.shape == tensor.shape and twin.dtype in FLOATING


def _reason(
    tensor: TensorInfo, base: Headers, others: Sequence[Headers], selection: Selection
) -> Reason | None:
    name = tensor.name
    namesakes = [headers[name] for headers in (base, *others) if name in headers]
    if any(namesake.dtype not in FLOATING for namesake in (tensor, *namesakes)):
        return "not_floating"
    if _left_out(name, selection):
        return "excluded"
    if any(namesake.shape != tensor.shape for namesake in namesakes):
        return "shape_mismatch"
    if name not in base:
        return "not_in_base"
    return "vector" if len(tensor.shape) <= 1 else None


def _check_names(first: Headers, others: Sequence[Headers], selection: Selection) -> None:
    """Raise MismatchError where the fine-tuned checkpoints do not hold the same names."""
    for number, other in enumerate(others, start=2):
        for name in first.keys() ^ other.keys():
            if not _left_out(name, selection):
                holder = "the first" if name in first else f"number {number}"
                raise MismatchError(
                    f"of the fine-tuned checkpoints 1 and {number} only {holder} has it",
                    tensor=name,
                    hint="--exclude leaves such tensors as they are in the first",
                )


def _check_shapes(first: Headers, base: Headers, others: Sequence[Headers], selection: Selection) -> None:
    """Raise MismatchError where a tensor has different shapes in the inputs."""
    wrong = [
        (tensor, headers[tensor.name])
        for tensor in first.values()
        for headers in (base, *others)
        if tensor.name in headers
        and headers[tensor.name].shape != tensor.shape
        and not _left_out(tensor.name, selection)
    ]
    if not wrong:
        return
    tensor, namesake = wrong[0]
    more = ", ".join(dict.fromkeys(repr(tensor.name) for tensor, _ in wrong[1:4]))
    raise MismatchError(
        "the shapes differ" + (f" (also of {more}{', …' if len(wrong) > 4 else ''})" if more else ""),
        tensor=tensor.name,
        expected=list(namesake.shape),
        found=list(tensor.shape),
        hint="--on-mismatch keep leaves such tensors as fine-tuned",
    )


def _left_out(name: str, selection: Selection) -> bool:
    if selection.include and not any(fnmatchcase(name, pattern) for pattern in selection.include):
        return True
    return any(fnmatchcase(name, pattern) for pattern in selection.exclude)


def matrix_view(tensor: TensorInfo, stacked: Sequence[str]) -> tuple[int | None, Cut]:
    """The matrix (shape[0], −1); of stacked experts their number and the matrix of each."""
    shape = tensor.shape
    is_experts = len(shape) == 3 and "experts" in tensor.name
    if is_experts or any(fnmatchcase(tensor.name, pattern) for pattern in stacked):
        if len(shape) < 3:
            raise UsageError(
                "--stacked needs three dimensions or more", tensor=tensor.name, found=list(shape)
            )  # fmt: skip
        return shape[0], Cut(shape[1], math.prod(shape[2:]))
    return None, Cut(shape[0], math.prod(shape[1:]))


def _check_patterns(finetuned: Sequence[Headers], selection: Selection) -> None:
    names = {name for headers in finetuned for name in headers}
    for option in ("include", "exclude", "stacked"):
        for pattern in getattr(selection, option):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"--{option} {pattern!r} matches no tensor")
