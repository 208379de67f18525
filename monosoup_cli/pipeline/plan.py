"""Which tensors are edited and which are kept, and why: decided from headers alone."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.header import BITS, FLOATING, TensorInfo
from monosoup_cli.pipeline.options import Mismatch
from monosoup_cli.tensors.cut import Cut

__all__ = ["Plan", "PlannedTensor", "Reason", "Selection", "View", "make_plan", "stored_dtype"]

Reason = Literal[
    "vector", "unchanged", "not_in_base", "shape_mismatch", "excluded", "not_floating", "nonfinite"
]

View = Literal["matrix", "flat"]
"""How a method sees a layer: `MatrixLayer` or `FlatLayer`."""

Headers = Mapping[str, TensorInfo]
STORED = {torch_name: stored for stored, torch_name in FLOATING.items()}


@dataclass(frozen=True)
class Selection:
    """What the user said about tensors; the options of the same names (`include_option`: what that of
    `include` is called)."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    on_mismatch: Mismatch = "error"
    dtype: str = "keep"
    include_option: str = "include"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: edited (as a matrix, a stack of them, or element by element) or kept.

    `cut` is the matrix's (None: element by element), `stack` the number of matrices along dim 0
    (None: not stacked). `dtype` is the fine-tuned checkpoint's and `stored_dtype` the output's, in
    the words of the format. `is_shared`: all fine-tuned checkpoints have it alike, and their mean
    is taken; `has_base`: the base's tensor is read. `shared_rows`: of the leading rows only so many,
    which all inputs have, are edited, averaged or interpolated, and the others are as fine-tuned
    (None: all rows).
    """

    name: str
    dtype: str
    stored_dtype: str
    shape: tuple[int, ...]
    reason: Reason | None
    stack: int | None
    cut: Cut | None
    is_shared: bool
    has_base: bool
    shared_rows: int | None = None

    @property
    def is_edited(self) -> bool:
        return self.reason is None

    @property
    def matrices(self) -> int:
        return 1 if self.stack is None else self.stack

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """Of the rows that all inputs have."""
        return self.shape if self.shared_rows is None else (self.shared_rows, *self.shape[1:])

    @property
    def elements(self) -> int:
        """In the rows that all inputs have."""
        return math.prod(self.shared_shape)

    @property
    def nbytes(self) -> int:
        """In the fine-tuned checkpoint."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """Every tensor of the output in the fine-tuned checkpoint's order."""

    tensors: tuple[PlannedTensor, ...]
    dtypes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtypes", {tensor.name: tensor.stored_dtype for tensor in self.tensors})

    @property
    def edited(self) -> tuple[PlannedTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.is_edited)


def make_plan(
    base: Headers | None,
    finetuned: Sequence[Headers],
    selection: Selection,
    *,
    view: View = "matrix",
    wise: bool = False,
    hint: str | None = None,
    unchanged: Container[str] = (),
) -> Plan:
    """Decide about every tensor of the first fine-tuned checkpoint (docs/method.md, section 1).

    A layer is floating and stands in every input with one shape; in the matrix view it has two
    dimensions or more. Where inputs may overlap, its shape is that of the rows that all of them have.
    `base`: None for methods without one. `wise`: kept tensors are interpolated with the base. `hint`:
    what to try where no name matches. `unchanged`: names whose tensors are known to be the base's.
    Raises MismatchError where inputs do not belong together, UsageError for patterns that match nothing.
    """
    first, *others = finetuned
    if base is not None and first and not first.keys() & base.keys():
        raise MismatchError(
            "base and fine-tuned checkpoint have no tensor name in common",
            expected=f"a name like {next(iter(base), 'none')!r}",
            found=repr(next(iter(first))),
            hint=hint and f"try {hint}",
        )
    _check_patterns(finetuned, selection)
    _check_names(first, others, selection)
    rest = others if base is None else [base, *others]
    _check_shapes(first, rest, selection)
    rows = _shared_rows(first, rest, selection)
    base = None if base is None else _cropped(base, rows)
    others = [_cropped(headers, rows) for headers in others]
    tensors = []
    for tensor in _cropped(first, rows).values():
        is_floating = tensor.dtype in FLOATING
        has_twin = is_floating and base is not None and _alike(tensor, base)
        is_unchanged = tensor.name in unchanged
        reason = _reason(tensor, base, others, selection, view)
        if reason is None and is_unchanged:
            reason = "unchanged"
        stack, cut = None, None
        if reason is None and view == "matrix":
            stack, cut = matrix_view(tensor, selection.stacked)
        tensors.append(
            PlannedTensor(
                tensor.name,
                tensor.dtype,
                stored_dtype(tensor.dtype, selection.dtype),
                first[tensor.name].shape,
                reason,
                stack,
                cut,
                is_shared=is_floating and not is_unchanged and all(_alike(tensor, each) for each in others),
                has_base=has_twin and not is_unchanged and (reason is None or wise),
                shared_rows=rows.get(tensor.name),
            )
        )
    return Plan(tuple(tensors))


def stored_dtype(dtype: str, wanted: str) -> str:
    """How a tensor is stored where `--dtype` is `wanted`."""
    return dtype if wanted == "keep" or dtype not in FLOATING else STORED[wanted]


def _alike(tensor: TensorInfo, headers: Headers) -> bool:
    """Whether the tensor can be averaged with, or subtracted from, its namesake."""
    twin = headers.get(tensor.name)
    return twin is not None and twin.shape == tensor.shape and twin.dtype in FLOATING


def _reason(
    tensor: TensorInfo, base: Headers | None, others: Sequence[Headers], selection: Selection, view: View
) -> Reason | None:
    name = tensor.name
    namesakes = [headers[name] for headers in (base or {}, *others) if name in headers]
    if any(namesake.dtype not in FLOATING for namesake in (tensor, *namesakes)):
        return "not_floating"
    if _left_out(name, selection):
        return "excluded"
    if any(namesake.shape != tensor.shape for namesake in namesakes):
        return "shape_mismatch"
    if base is not None and name not in base:
        return "not_in_base"
    return "vector" if view == "matrix" and len(tensor.shape) <= 1 else None


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


def _check_shapes(first: Headers, rest: Sequence[Headers], selection: Selection) -> None:
    """Raise MismatchError where a tensor has shapes in the inputs that may not differ as they do."""
    if selection.on_mismatch == "keep":
        return
    may_overlap = selection.on_mismatch == "overlap"
    wrong = [
        (tensor, headers[tensor.name])
        for tensor in first.values()
        for headers in rest
        if tensor.name in headers
        and headers[tensor.name].shape != tensor.shape
        and not (may_overlap and _overlap(tensor, headers[tensor.name]))
        and not _left_out(tensor.name, selection)
    ]
    if not wrong:
        return
    tensor, namesake = wrong[0]
    more = ", ".join(dict.fromkeys(repr(tensor.name) for tensor, _ in wrong[1:4]))
    hint = "--on-mismatch keep leaves such tensors as fine-tuned"
    if may_overlap:
        hint = "only the number of rows may differ; --exclude leaves such tensors as fine-tuned"
    elif all(_overlap(*pair) for pair in wrong):
        hint += ", overlap edits the rows that all inputs have"
    raise MismatchError(
        "the shapes differ" + (f" (also of {more}{', …' if len(wrong) > 4 else ''})" if more else ""),
        tensor=tensor.name,
        expected=list(namesake.shape),
        found=list(tensor.shape),
        hint=hint,
    )


def _overlap(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of different shapes differ only in the number of rows."""
    return len(one.shape) == len(other.shape) and one.shape[1:] == other.shape[1:]


def _shared_rows(first: Headers, rest: Sequence[Headers], selection: Selection) -> dict[str, int]:
    """How many rows all inputs have of the tensors in whose number of rows they differ."""
    found: dict[str, int] = {}
    if selection.on_mismatch != "overlap":
        return found
    for name, tensor in first.items():
        namesakes = [tensor, *(headers[name] for headers in rest if name in headers)]
        shapes = {namesake.shape for namesake in namesakes}
        are_floating = all(namesake.dtype in FLOATING for namesake in namesakes)
        if len(shapes) > 1 and are_floating and not _left_out(name, selection):
            found[name] = min(shapes)[0]
    return found


def _cropped(headers: Headers, rows: Mapping[str, int]) -> Headers:
    """As if the tensors named had only so many rows."""
    if not rows:
        return headers
    return {
        name: replace(tensor, shape=(rows[name], *tensor.shape[1:])) if name in rows else tensor
        for name, tensor in headers.items()
    }


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
            )
        return shape[0], Cut(shape[1], math.prod(shape[2:]))
    return None, Cut(shape[0], math.prod(shape[1:]))


def _check_patterns(finetuned: Sequence[Headers], selection: Selection) -> None:
    names = {name for headers in finetuned for name in headers}
    for option in ("include", "exclude", "stacked"):
        for pattern in getattr(selection, option):
            if not any(fnmatchcase(name, pattern) for name in names):
                said = selection.include_option if option == "include" else option
                raise UsageError(
                    f"--{said} {pattern!r} matches no tensor",
                    hint="globs stand for whole names, as '*layers.3.*'",
                )
