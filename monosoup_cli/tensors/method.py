"""What a method is to the pipeline: the protocol that every file in methods/ implements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from monosoup_cli.devices.held import Held
from monosoup_cli.errors import ResultOverflowError
from monosoup_cli.names import FileForm
from monosoup_cli.sources.source import Factors
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.matrix import MatrixLayer, Wanted
from monosoup_cli.tensors.ranks import RankRule

if TYPE_CHECKING:
    import torch

__all__ = [
    "Access",
    "AdapterOrder",
    "Edit",
    "Group",
    "Kept",
    "Layer",
    "Measure",
    "Method",
    "Order",
    "Paper",
    "PlainMethod",
    "Together",
    "Variant",
    "Wanted",
    "overflow_in",
]

Layer: TypeAlias = "MatrixLayer | FlatLayer"
"""What a method sees of a tensor."""

Kept = Literal["finetuned", "first", "base"]
"""Whose kept tensors are."""
Group = Literal["Edit", "Combine", "Adapters"]
"""What people want of a command that writes an output."""

Access = Literal["matrix", "flat"]
"""How a method sees a layer: as a `MatrixLayer` or as a `FlatLayer`."""


@contextmanager
def overflow_in(layer: Layer, tensor: str) -> Iterator[None]:
    """Name the tensor where computing on its layer overflows, or the input whose NaN or Inf is the cause.

    Raises:
        NonfiniteError: An input has NaN or Inf.
        ResultOverflowError: A result does not fit float64 or its stored dtype.
    """
    try:
        yield
    except ResultOverflowError:
        layer.check()
        raise
    except FloatingPointError:
        layer.check()
        raise ResultOverflowError("the update overflows float64", tensor=tensor) from None


@dataclass(frozen=True)
class Edit:
    """What a method makes of one layer.

    Args:
        measures: What was measured, for each variant; read after the last block. The keys are names of
            the method's `Measure`s.
        blocks: Yields (start, stop, results): the range of elements or of the longer side, and the edited
            block for each variant. A result is stored before the next one is made.
        factors: The edited updates instead of `blocks`, where `Wanted` asks for factors: (left, right) for
            each variant, (length, rank) and (rank, side) in float64, in the orientation of blocks.
    """

    measures: Sequence[Mapping[str, Any]]
    blocks: Iterator[tuple[int, int, Iterable[torch.Tensor]]]
    factors: Iterable[Factors] = ()


@dataclass(frozen=True)
class Together:
    """What a method makes of several small matrices of one shape.

    Args:
        numbers: Which of the matrices it has edited. The others need an `edit` of their own.
        measures: What was measured, for each of these the measures of every variant.
        results: The edited matrices for each variant, (matrices, rows, columns). A result is stored before
            the next one is made.
    """

    numbers: Sequence[int]
    measures: Sequence[Sequence[Mapping[str, Any]]]
    results: Iterator[torch.Tensor]


@dataclass(frozen=True)
class Measure:
    """One number that a method reports of each layer.

    Args:
        name: Its key in the report.
        label: What tables and pages call it; "" for what they do not show as a number.
        unit: Its unit; None for a plain number.
        summary: How the report's summary combines the layers; None leaves it out.
        is_stored: Whether the report has it. Others follow from those that it has.
        is_comparable: Whether its mean over layers of different sizes says anything.
    """

    name: str
    label: str = ""
    unit: str | None = None
    summary: Literal["mean", "sum"] | None = None
    is_stored: bool = True
    is_comparable: bool = True


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Args:
        summary: A sentence or two for the model card: what the weights are.
        citation: The BibTeX entry.
        updates: One sentence for the card of an adapter: what its updates are. A method that cannot be
            written as an adapter needs none.
    """

    summary: str
    citation: str
    updates: str = ""


@dataclass(frozen=True)
class Variant:
    """One checkpoint of the output; a sweep writes several.

    Args:
        folder: Its folder inside OUT; "" is OUT itself.
        arguments: The arguments that differ from the other variants, for its report and its card.
        wise: How far kept tensors go from the base (0) to the fine-tuned checkpoint (1); None copies them.
        wise_of: The same for single tensors, by name, where it is another.
        weights: The weights of the mean that kept tensors are; None for those of the order.
    """

    folder: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    wise: float | None = None
    weights: Sequence[float] | None = None
    wise_of: Mapping[str, float | None] = field(default_factory=dict)

    def wise_for(self, name: str) -> float | None:
        """How far a tensor goes where it is kept."""
        return self.wise_of.get(name, self.wise)


class Method(Protocol):
    """A way to edit the layers of a checkpoint, with its settings. Implemented by frozen dataclasses."""

    @property
    def verb(self) -> str:
        """What it does to a layer, in the words of the plan: "edit", "average"."""

    @property
    def paper(self) -> Paper:
        """Where it comes from."""

    @property
    def measures(self) -> Sequence[Measure]:
        """What it reports of each layer, in the order of the report."""

    @property
    def access(self) -> Access:
        """How it sees a layer."""

    @property
    def needs_base(self) -> bool:
        """Whether layers are edited against a base."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What it adds at the top of the report."""

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the output, one or more."""

    def for_names(self, names: Sequence[str]) -> Method:
        """The same method, prepared for a checkpoint with these names.

        Raises:
            MonosoupError: The names lack what the method needs.
        """

    def edit(self, layer: Layer) -> Edit | None:
        """Edit one layer; None where it stays as fine-tuned because it has not changed.

        Raises:
            NonfiniteError: The layer has NaN or Inf.
            FloatingPointError: A norm overflows float64.
        """

    def edit_together(
        self, base: torch.Tensor, update: torch.Tensor, names: Sequence[str]
    ) -> Together | None:
        """Edit small matrices of one shape as `edit` does each; None where it cannot.

        Args:
            base: W0 of every matrix, (matrices, rows, columns) float64.
            update: Δ of every matrix, of the same shape. NaN and Inf have not been looked for.
            names: The names of their tensors.
        """

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """How much memory `edit` takes in addition to the layer's own buffers.

        Args:
            cut: How the matrix is cut into blocks; None for a `FlatLayer`.
            wanted: What the output takes.
            rank: The rank of the update's factors; None where it has none.
        """

    def planned_measures(self, name: str) -> Mapping[str, Any]:
        """The measures of a tensor that are known before it is read."""


class PlainMethod:
    """Defaults for `Method`. A method inherits them and overrides what differs."""

    needs_base = True
    access: ClassVar[Access] = "flat"

    @property
    def details(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def planned_measures(self, name: str) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def edit_together(
        self, base: torch.Tensor, update: torch.Tensor, names: Sequence[str]
    ) -> Together | None:
        """Nothing: every matrix needs an `edit` of its own."""
        return None

    def variants(self) -> Sequence[Variant]:
        """One checkpoint."""
        return (Variant(),)

    def for_names(self, names: Sequence[str]) -> Any:
        """The same: names do not matter."""
        return self

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """Nothing but the layer's own buffers."""
        return Held()


@dataclass(frozen=True)
class Order:
    """What a call of a command asks for.

    Args:
        method: What is computed.
        finetuned: The fine-tuned checkpoints, as the user typed them.
        output: The path of the output.
        base: The base as the user typed it; None where there is none.
        stacked: Globs over the names of tensors that stack matrices.
        split_fused: Whether fused matrices are edited each for itself.
        weights: The weights of a mean, which sum to 1; None for an even mean.
        base_is_option: Whether the shell has an option `--base` in place of an argument.
        kept: Whose kept tensors are: the mean of the fine-tuned checkpoints; those of the first, to which the
            updates of the others are added, and which is the last argument in the shell; or the base's where
            it has them.
        takes_adapters_only: Whether whole checkpoints are refused.
        arguments: Arguments that the report shows in a different form.
        scores: The commands that score every checkpoint of the output, by name.
    """

    method: Method
    finetuned: Sequence[str]
    output: str
    base: str | None = None
    stacked: Sequence[str] = ()
    split_fused: bool = False
    weights: Sequence[float] | None = None
    base_is_option: bool = False
    kept: Kept = "finetuned"
    takes_adapters_only: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterOrder:
    """Asks for a new LoRA adapter that approximates the updates, in place of a whole checkpoint.

    Attributes:
        order: What is computed, and of what.
        ranks: The rank of all factors, or what finds the rank of each.
        opening: The first sentence of the model card.
        form: None for a folder for peft, or whose names a single file has: "diffusers" or "kohya".
        holds_excluded: Whether it stores what is left out, as fine-tuned, if that changed.
    """

    order: Order
    ranks: int | RankRule
    opening: str
    form: FileForm | None = None
    holds_excluded: bool = True
