"""MonoSoup over the layers of a checkpoint: one decomposition for all splits and all steps from the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from monosoup_cli.devices.held import Held
from monosoup_cli.methods.monosoup import (
    MEASURES,
    PAPER,
    Edits,
    LayerSpectrum,
    MonoSoup,
    edit_product,
    edit_update,
    measure,
    relative_update,
)
from monosoup_cli.methods.splits import ROUNDING
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import Access, Edit, Layer, PlainMethod, Together, Variant, Wanted
from monosoup_cli.tensors.ranks import RanksApart

if TYPE_CHECKING:
    import torch

    from monosoup_cli.sources.source import Factors

__all__ = ["RanksByEnergy", "SpectralEdit"]

Measures = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SpectralEdit(PlainMethod):
    """The edit of a layer for every split, and for every step from the base to the edited weights.

    Attributes:
        splits: How the spectrum is split and weighted.
        steps: How far to go from the base to each edited update; 1.0 for all the way.
        sweep: The checkpoints of the output: for every split every step.
        min_update: Layers whose update is smaller than this, relative to the base, stay as fine-tuned.
    """

    splits: Sequence[MonoSoup]
    steps: Sequence[float] = (1.0,)
    sweep: Sequence[Variant] = (Variant(),)
    min_update: float = 0.0

    verb = "edit"
    paper = PAPER
    measures = MEASURES
    access: ClassVar[Access] = "matrix"

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the sweep."""
        return self.sweep

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """The decomposition, or afterwards the edited blocks or the factors of every edit, which is more."""
        if cut is None:
            return Held()
        edits = len(self.splits)
        stepped = 2 if wanted.factors and self.steps != (1.0,) else 0  # one, and the one before it
        if rank is not None:
            from monosoup_cli.spectral import low_rank

            sums = 2 * 8 * cut.block_length * cut.side  # a result, and the one before it
            return Held(device=low_rank.held_bytes(cut.length, cut.side, rank, edits + stepped) + sums)
        from monosoup_cli.spectral import spectrum, truncation

        if wanted.rank is not None:
            held = truncation.held_bytes(cut.length, cut.side, wanted.rank, edits + stepped)
        else:
            # the update's part in the directions; or an edited update, a result, and the one before it
            blocks = 1 if edits == len(self.steps) == 1 else 3
            held = 8 * blocks * cut.block_length * cut.side
        vectors = 8 * cut.side**2
        return Held(device=max(spectrum.held_bytes(cut.block_length, cut.side), vectors + held))

    def edit(self, layer: Layer) -> Edit | None:
        """Edit one matrix by the factors of its update, or by blocks where it has none.

        Where the output wants factors and the update has none, the edited update is approximated.
        """
        assert isinstance(layer, MatrixLayer)
        if layer.factors is not None:
            return self._edit_product(layer, *layer.factors)
        if layer.wanted.rank is not None:
            return self._approximate(layer, layer.wanted.rank)
        edits = self._edits(layer)
        measures = self._measures([spectrum for spectrum, _ in edits or ()], layer.base_norm)
        if not edits or measures is None:
            return None
        applies = [apply for _, apply in edits]
        blocks = (
            (start, stop, self._results(base, update, applies)) for start, stop, base, update in layer.pairs()
        )
        return Edit(measures, blocks)

    def _edits(self, layer: MatrixLayer) -> Edits | None:
        return edit_update(layer.updates, layer.cut.length, layer.cut.side, self.splits)

    def edit_together(
        self, base: torch.Tensor, update: torch.Tensor, names: Sequence[str]
    ) -> Together | None:
        """Edit small matrices of one shape in one go, as far as their updates have full rank."""
        from monosoup_cli.methods.together import edit_together

        return edit_together(base, update, self.splits, self.steps, self.min_update)

    def _measures(self, spectra: Sequence[LayerSpectrum], base_norm: float) -> Measures | None:
        """What is reported for every split and step; None where the update is smaller than wanted."""
        if base_norm and spectra and spectra[0].update_norm / base_norm < self.min_update:
            return None
        return [
            {**vars(spectrum), "relative_update": relative_update(spectrum, base_norm)}
            for spectrum in spectra
            for _ in self.steps
        ]

    def _results(
        self,
        base: torch.Tensor | None,
        update: torch.Tensor,
        applies: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> Iterator[torch.Tensor]:
        """W0 + step · apply(Δ), for every split and step. The last ones overwrite Δ and W0."""
        assert base is not None
        for split, apply in enumerate(applies, start=1):
            is_last_split = split == len(applies)
            edited = apply(update if is_last_split else update.clone())
            for number, step in enumerate(self.steps, start=1):
                is_last = is_last_split and number == len(self.steps)
                yield base.add_(edited, alpha=step) if is_last else base.add(edited, alpha=step)
            del edited  # before the next one is made

    def _edit_product(self, layer: MatrixLayer, left: torch.Tensor, right: torch.Tensor) -> Edit | None:
        layer.measure_base()
        edits = edit_product(left, right, self.splits)
        measures = self._measures([spectrum for spectrum, _ in edits or ()], layer.base_norm)
        if not edits or measures is None:
            return None
        products = [factors for _, factors in edits]
        if layer.wanted.factors:
            return Edit(measures, iter(()), self._stepped(products))
        blocks = (
            (start, stop, self._sums(base, [(left[start:stop], right) for left, right in products]))
            for start, stop, base in layer.bases()
        )
        return Edit(measures, blocks)

    def _sums(self, base: torch.Tensor, products: Sequence[Factors]) -> Iterator[torch.Tensor]:
        """W0 + step · left @ right, for the factors of every split and for every step."""
        for left, right in products:
            for step in self.steps:
                yield base.addmm(left, right, alpha=step)

    def _stepped(self, products: Sequence[Factors]) -> Iterator[Factors]:
        for left, right in products:
            for step in self.steps:
                yield (left if step == 1.0 else left * step), right

    def _approximate(self, layer: MatrixLayer, rank: int) -> Edit | None:
        from monosoup_cli.spectral.spectrum import decompose, has_moved
        from monosoup_cli.spectral.truncation import truncate

        spectrum = decompose(layer.updates, layer.cut.side)
        values = spectrum.singular_values
        if not has_moved(values):
            return None
        layers = [measure(values, layer.cut.length, split) for split in self.splits]
        measures = self._measures(layers, layer.base_norm)
        if measures is None:
            return None
        edited = [one.edited(values) for one in layers]
        truncated = truncate(layer.updates, layer.cut.length, spectrum, edited, rank)
        errors = [one.error for one in truncated for _ in self.steps]
        return Edit(
            [{**of_one, "adapter_error": error} for of_one, error in zip(measures, errors, strict=True)],
            iter(()),
            self._stepped([(one.left, one.right) for one in truncated]),
        )


@dataclass(frozen=True)
class RanksByEnergy(RanksApart):
    """The ranks of factors that hold a share of every edited update (a `RankRule`).

    Attributes:
        splits: How spectra are split and weighted.
        energy: The share of ‖edited‖_F², in (0, 1]. The rank is the smallest that suffices for every split.
    """

    splits: Sequence[MonoSoup]
    energy: float

    def measure(self, layer: MatrixLayer) -> int | None:
        """The rank for one layer; None for an update of zeros."""
        from monosoup_cli.spectral.spectrum import has_moved, singular_values
        from monosoup_cli.spectral.truncation import rank_holding

        values = singular_values(layer.updates, layer.cut.side)
        if not has_moved(values):
            return None
        ratios = values / values[0]
        edited = [measure(values, layer.cut.length, split).edited(ratios) for split in self.splits]
        return max(rank_holding(weighted, self.energy * (1.0 - ROUNDING)) for weighted in edited)
