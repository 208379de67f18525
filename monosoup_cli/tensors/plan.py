"""Decide from headers alone which tensors are edited, which are kept, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Literal, NamedTuple

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.dtypes import BITS, FLOATING
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.arrangement import Piece
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.method import Access
from monosoup_cli.tensors.patterns import CARRY_BASE, LAYERS, check_effects, check_patterns
from monosoup_cli.tensors.rows import are_grids, crop, overlap
from monosoup_cli.tensors.stacks import Stacks, find_stacks

__all__ = [
    "Headers",
    "Matrices",
    "Part",
    "Plan",
    "PlannedTensor",
    "Reads",
    "Reason",
    "Selection",
    "make_plan",
    "output_dtype",
]

Reason = Literal[
    "vector",
    "unchanged",
    "not_in_base",
    "shape_mismatch",
    "excluded",
    "not_floating",
    "nonfinite",
    "carried",
    "no_room",
]

Headers = Mapping[str, TensorInfo]
NOTHING: Mapping[str, str] = {}
DTYPE_NAMES = {torch_name: dtype for dtype, torch_name in FLOATING.items()}


@dataclass(frozen=True)
class Selection:
    """Which tensors the user wants edited, and how those that do not fit are treated.

    Attributes:
        include: Globs over tensor names; when there are any, every other tensor is kept.
        exclude: Globs over the names of tensors that are kept.
        stacked: Globs over the names of tensors that stack one matrix per index of dimension 0.
        experts: The numbers of experts in the configuration, by whose shapes further stacks are recognised.
        on_mismatch: What to do where the shapes of a tensor differ: "error", "keep" or "overlap".
        dtype: The dtype of the written floating-point tensors in torch's words, or "keep".
        carry_base: Globs over the names of tensors that only the base has, and that are written too.
        include_option: The name of the option that `include` comes from, for messages.
        layers: Globs over the names of tensors that have settings of their own.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    experts: frozenset[int] = frozenset()
    on_mismatch: Literal["error", "keep", "overlap"] = "error"
    dtype: str = "keep"
    carry_base: tuple[str, ...] = ()
    include_option: str = "include"
    layers: tuple[str, ...] = ()

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The globs of every option that has some."""
        return {
            self.include_option: self.include,
            "exclude": self.exclude,
            "stacked": self.stacked,
            CARRY_BASE: self.carry_base,
            LAYERS: self.layers,
        }

    def leaves_out(self, name: str) -> bool:
        """Whether `include` and `exclude` keep a tensor of this name from being edited."""
        if self.include and not any(fnmatchcase(name, pattern) for pattern in self.include):
            return True
        return self.excludes(name)

    def excludes(self, name: str) -> bool:
        """Whether `exclude` names a tensor."""
        return bool(self.exclude) and any(fnmatchcase(name, pattern) for pattern in self.exclude)


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a fused tensor: gate, up, q, k or v.

    Attributes:
        name: The name that it has where it is stored by itself.
        cut: The matrix.
        first: Its first element, with the parts one after the other.
    """

    name: str
    cut: Cut
    first: int


@dataclass(frozen=True, slots=True)
class Matrices:
    """How an edited tensor is seen as matrices: `count` matrices of one `cut`, or `parts` of several.

    `is_stack` is True for a tensor that stacks one matrix per index of dimension 0, even if only one. With
    `parts`, `cut` is the largest one. `pieces` are their places in the tensor, where it does not store the
    parts one after the other; sources and sinks of the tensor then have its elements in the order of parts.
    """

    cut: Cut
    count: int = 1
    is_stack: bool = False
    parts: tuple[Part, ...] = ()
    pieces: tuple[Piece, ...] = ()

    @property
    def is_several(self) -> bool:
        """Whether each matrix has measures of its own."""
        return self.is_stack or bool(self.parts)

    def part(self, index: int) -> Part:
        """Matrix `index` of the tensor, without a name unless it is a part."""
        return self.parts[index] if self.parts else Part("", self.cut, index * self.cut.elements)


class Reads(NamedTuple):
    """Which inputs go into a tensor of the output.

    `base` is True where the base's tensor is read. `mean` is True where the mean of all fine-tuned
    checkpoints is taken; otherwise the tensor comes from one of them. `is_checked` is False where they may
    have NaN and Inf, because `--exclude` names the tensor.
    """

    base: bool
    mean: bool
    is_checked: bool = True


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output, edited or kept.

    Attributes:
        name: The name in the (first) fine-tuned checkpoint, or in the base if only that has the tensor.
        dtype: The dtype in that checkpoint, in the words of the format.
        stored_dtype: The dtype in the output.
        shape: The shape, which input and output share.
        reason: Why the tensor is kept; None for a tensor that is edited.
        matrices: How an edited tensor is seen as matrices; None for a method that goes element by element.
        reads: Which inputs go into the tensor.
        shared_rows: How many leading rows every input has, where the inputs differ in their number. Only
            these rows are edited, averaged or interpolated. None where all inputs have all rows.
    """

    name: str
    dtype: str
    stored_dtype: str
    shape: tuple[int, ...]
    reason: Reason | None
    matrices: Matrices | None
    reads: Reads
    shared_rows: int | None = None

    @property
    def is_edited(self) -> bool:
        """Whether the tensor is edited."""
        return self.reason is None

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """The shape of the rows that every input has."""
        return self.shape if self.shared_rows is None else (self.shared_rows, *self.shape[1:])

    @property
    def elements(self) -> int:
        """The number of elements in the rows that every input has."""
        return math.prod(self.shared_shape)

    @property
    def nbytes(self) -> int:
        """The size in the checkpoint that has it, in bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Plan:
    """Every tensor of the output, in the order of the fine-tuned checkpoint; last those of the base alone."""

    tensors: tuple[PlannedTensor, ...]
    dtypes: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtypes", {tensor.name: tensor.stored_dtype for tensor in self.tensors})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def edited(self) -> tuple[PlannedTensor, ...]:
        """The tensors that are edited."""
        return tuple(tensor for tensor in self.tensors if tensor.is_edited)


def make_plan(
    base: Headers | None,
    finetuned: Sequence[Headers],
    selection: Selection,
    *,
    access: Access = "matrix",
    interpolates: Callable[[str], bool] = lambda name: False,
    hint: str | None = None,
    unchanged: Container[str] = (),
    left_out: Iterable[str] = (),
    uses_base: bool = True,
    tied: Mapping[str, str] = NOTHING,
    has_target: bool = False,
) -> Plan:
    """Decide about every tensor of the first fine-tuned checkpoint (docs/method.md, section 1).

    A layer is a floating-point tensor that every input has in one shape. For a method that sees matrices, a
    layer has two dimensions or more. Where inputs may overlap, the shape is that of the rows they all have.

    Args:
        base: The headers of the base; None where there is none.
        finetuned: The headers of the fine-tuned checkpoints.
        selection: Which tensors the user wants edited.
        access: How the method sees a layer.
        interpolates: Whether a tensor, where it is kept, is interpolated with the base, or its own.
        hint: What to try when no name matches.
        unchanged: The names of tensors that are known to be the base's.
        left_out: Names of copies that are in no header, and that patterns may match too.
        uses_base: Whether the method edits layers against the base, which otherwise only has what is carried.
        tied: Names that the first fine-tuned checkpoint leaves out, and what they are tied to. They are not
            carried.
        has_target: Whether the first fine-tuned checkpoint is what the updates of the others are added to.

    Raises:
        MismatchError: The inputs do not belong together.
        UsageError: A pattern matches no tensor.
    """
    first, *others = finetuned
    only_in_base = {
        name: tensor for name, tensor in (base or {}).items() if name not in first and name not in tied
    }
    base = base if uses_base else None
    carried = [tensor.name for tensor in _carried(only_in_base, selection)]  # --exclude: not checked
    names = dict.fromkeys(name for names in (*finetuned, left_out, carried) for name in names)
    check_patterns(selection.patterns, names, only_in_base, tied)
    _check_names(first, others, selection, hint, has_target=has_target)
    rest = others if base is None else [base, *others]
    _check_shapes(first, rest, selection)
    stacks = find_stacks(first, selection.stacked, selection.experts) if access == "matrix" else Stacks()
    rows = _shared_rows(first, rest, selection)
    base = None if base is None else crop(base, rows)
    others = [crop(headers, rows) for headers in others]
    tensors, reads = [], cache(Reads)
    for tensor in crop(first, rows).values():
        is_floating = tensor.dtype in FLOATING
        has_twin = is_floating and base is not None and _has_twin(tensor, base)
        is_unchanged = tensor.name in unchanged
        is_vector = access == "matrix" and (len(tensor.shape) <= 1 or tensor.name in stacks.vectors)
        reason = _reason(tensor, base, others, selection) or ("vector" if is_vector else None)
        if reason is None and is_unchanged:
            reason = "unchanged"
        is_matrix = reason is None and access == "matrix"
        tensors.append(
            PlannedTensor(
                tensor.name,
                tensor.dtype,
                output_dtype(tensor.dtype, selection.dtype),
                first[tensor.name].shape,
                reason,
                _matrices(tensor, is_stack=tensor.name in stacks.matrices) if is_matrix else None,
                reads(
                    base=has_twin and not is_unchanged and (reason is None or interpolates(tensor.name)),
                    mean=is_floating and not is_unchanged and all(_has_twin(tensor, one) for one in others),
                    is_checked=not selection.excludes(tensor.name),
                ),
                rows.get(tensor.name),
            )
        )
    if selection.layers:
        stays = {one.name: None if one.reads.base else one.reason for one in tensors}
        check_effects(selection.layers, stays)
    return Plan((*tensors, *_carried(only_in_base, selection)))


def _carried(only_in_base: Headers, selection: Selection) -> list[PlannedTensor]:
    """The tensors of the base alone that are written too, as they are there."""
    return [
        PlannedTensor(
            name,
            tensor.dtype,
            output_dtype(tensor.dtype, selection.dtype),
            tensor.shape,
            "carried",
            None,
            Reads(base=False, mean=False, is_checked=not selection.excludes(name)),
        )
        for name, tensor in only_in_base.items()
        if any(fnmatchcase(name, pattern) for pattern in selection.carry_base)
    ]


def output_dtype(dtype: str, wanted: str) -> str:
    """The dtype in which a tensor is written when `--dtype` is `wanted`."""
    return dtype if wanted == "keep" or dtype not in FLOATING else DTYPE_NAMES[wanted]


def _has_twin(tensor: TensorInfo, headers: Headers) -> bool:
    """Whether `headers` have a tensor that can be averaged with this one, or subtracted from it."""
    twin = headers.get(tensor.name)
    return twin is not None and twin.shape == tensor.shape and twin.dtype in FLOATING


def _reason(
    tensor: TensorInfo, base: Headers | None, others: Sequence[Headers], selection: Selection
) -> Reason | None:
    name = tensor.name
    namesakes = [headers[name] for headers in (base or {}, *others) if name in headers]
    if any(namesake.dtype not in FLOATING for namesake in (tensor, *namesakes)):
        return "not_floating"
    if selection.leaves_out(name):
        return "excluded"
    if any(namesake.shape != tensor.shape for namesake in namesakes):
        return "shape_mismatch"
    if base is not None and name not in base:
        return "not_in_base"
    return None


def _check_names(
    first: Headers, others: Sequence[Headers], selection: Selection, missing: str | None, *, has_target: bool
) -> None:
    """Raise MismatchError where the fine-tuned checkpoints do not have the same names."""
    for number, other in enumerate(others, start=2):
        ours = [name for name in first if name not in other]
        theirs = [name for name in other if name not in first]
        name = next((name for name in (*ours, *theirs) if not selection.leaves_out(name)), None)
        if name is not None:
            holder, hint = "the first", "--exclude takes such tensors from the first"
            if name not in first:
                holder = f"number {number}"
                hint = f"give number {number} first to keep it; --exclude drops such tensors"
            if missing:
                hint = f"try {missing}; {hint}"
            both = f"the fine-tuned checkpoints 1 and {number}"
            if has_target:
                both, holder = f"ONTO and FINETUNED number {number - 1}", "ONTO"
                hint = "--exclude leaves such tensors as in ONTO"
                if name not in first:
                    holder, hint = "FINETUNED", "--exclude drops such tensors"
            raise MismatchError(f"of {both}, only {holder} has it", tensor=name, hint=hint)


def _check_shapes(first: Headers, rest: Sequence[Headers], selection: Selection) -> None:
    """Raise MismatchError where the shapes of a tensor differ in a way that is not allowed."""
    if selection.on_mismatch == "keep":
        return
    may_overlap = selection.on_mismatch == "overlap"
    wrong = [
        (tensor, headers[tensor.name])
        for tensor in first.values()
        for headers in rest
        if tensor.name in headers
        and headers[tensor.name].shape != tensor.shape
        and not (may_overlap and overlap(tensor, headers[tensor.name]))
        and not selection.leaves_out(tensor.name)
    ]
    if not wrong:
        return
    tensor, namesake = wrong[0]
    more = ", ".join(dict.fromkeys(repr(tensor.name) for tensor, _ in wrong[1:4]))
    hint = "--on-mismatch keep leaves such tensors as they are"
    if may_overlap:
        hint = "only the number of rows may differ; --exclude leaves such tensors as they are"
        if are_grids(tensor, namesake):
            hint = "rows are other places of the image there; --exclude leaves such tensors as they are"
    elif all(overlap(*pair) for pair in wrong):
        hint += ", overlap edits the rows that all inputs have"
    raise MismatchError(
        "the shapes differ" + (f" (also of {more}{', …' if len(wrong) > 4 else ''})" if more else ""),
        tensor=tensor.name,
        expected=list(namesake.shape),
        found=list(tensor.shape),
        hint=hint,
    )


def _shared_rows(first: Headers, rest: Sequence[Headers], selection: Selection) -> dict[str, int]:
    """How many rows all inputs have, for every tensor in whose number of rows they differ."""
    rows: dict[str, int] = {}
    if selection.on_mismatch != "overlap":
        return rows
    for name, tensor in first.items():
        namesakes = [tensor, *(headers[name] for headers in rest if name in headers)]
        shapes = {namesake.shape for namesake in namesakes}
        are_floating = all(namesake.dtype in FLOATING for namesake in namesakes)
        if len(shapes) > 1 and are_floating and not selection.leaves_out(name):
            rows[name] = min(shapes)[0]
    return rows


def _matrices(tensor: TensorInfo, *, is_stack: bool) -> Matrices:
    if is_stack and len(tensor.shape) < 3:
        raise UsageError(
            "--stacked needs a tensor of three dimensions or more",
            tensor=tensor.name,
            found=list(tensor.shape),
        )
    return _matrices_of(tensor.shape, is_stack=is_stack)


@lru_cache(maxsize=1 << 12)  # models have few kinds of matrices
def _matrices_of(shape: tuple[int, ...], *, is_stack: bool) -> Matrices:
    """The matrix (shape[0], −1), or of a stack one matrix per index of dimension 0."""
    if is_stack:
        return Matrices(Cut(shape[1], math.prod(shape[2:])), shape[0], is_stack=True)
    return Matrices(Cut(shape[0], math.prod(shape[1:])))
