"""Asks for an adapter: of an adapter, the same one with edited updates; of whole checkpoints, a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from monosoup_cli.errors import UsageError
from monosoup_cli.outputs.edited_adapter import EditedAdapterDraft
from monosoup_cli.outputs.extracted_adapter import ExtractedAdapterDraft, RankOf
from monosoup_cli.outputs.form import Draft, OutputContext

__all__ = ["AdapterKind"]


@dataclass(frozen=True)
class AdapterKind:
    """What the user asked of an adapter.

    Attributes:
        rank: The rank of the factors that approximate a whole checkpoint's updates.
        rank_of: Finds that rank for each layer instead, 0 where the layer did not change. An adapter keeps
            its own ranks and takes neither.
        interpolates: Whether the edited weights are interpolated with the base.
    """

    rank: int | None = None
    rank_of: RankOf | None = None
    interpolates: bool = False
    takes_no_base: ClassVar[bool] = True
    can_carry_base: ClassVar[bool] = False

    @property
    def keeps_finetuned(self) -> bool:
        """Whether it is the same adapter again; a new one only has updates of low rank."""
        return self.rank is None and self.rank_of is None

    def draft(self, opened: OutputContext) -> Draft:
        """The adapter that fits the inputs.

        Raises:
            UsageError: The options are not for these inputs, or the output's path is not for an adapter.
            CheckpointError: The edited adapter would be of another kind.
        """
        adapter = opened.adapters[0]
        if adapter is None:
            return ExtractedAdapterDraft.of(opened, self.rank, self.rank_of)
        count = len(opened.finetuned)
        if count > 1:
            raise UsageError(
                f"--as-adapter takes one adapter, found {count}: without it, their mean is merged into the"
                " base"
            )
        if self.rank is not None or self.rank_of is not None:
            raise UsageError(
                "--adapter-rank and --adapter-energy are for whole checkpoints: an adapter keeps its ranks"
            )
        return EditedAdapterDraft.of(opened, adapter, interpolates=self.interpolates)
