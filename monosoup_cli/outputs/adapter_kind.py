"""Asks for an adapter: of an adapter, the same one with edited updates; of whole checkpoints, a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from monosoup_cli.errors import UsageError
from monosoup_cli.outputs.edited_adapter import EditedAdapterDraft
from monosoup_cli.outputs.extracted_adapter import ExtractedAdapterKind
from monosoup_cli.outputs.form import Draft, OutputContext
from monosoup_cli.tensors.ranks import RankRule

__all__ = ["AdapterKind"]


@dataclass(frozen=True)
class AdapterKind:
    """What the user asked of an adapter.

    Attributes:
        ranks: The rank of the factors that approximate a whole checkpoint's updates, or what finds the rank
            of each. An adapter keeps its own ranks and takes none.
    """

    ranks: int | RankRule | None = None
    takes_no_base: ClassVar[bool] = True
    can_carry_base: ClassVar[bool] = False

    @property
    def keeps_finetuned(self) -> bool:
        """Whether it is the same adapter again; a new one only has updates of low rank."""
        return self.ranks is None

    def draft(self, opened: OutputContext) -> Draft:
        """The adapter that fits the inputs.

        Raises:
            UsageError: The options are not for these inputs, or the output's path is not for an adapter.
            CheckpointError: The edited adapter would be of another kind.
        """
        adapter = opened.adapters[0]
        if adapter is None:
            path = opened.first.path
            if opened.base is None:
                raise UsageError("--as-adapter of a whole checkpoint needs a base", path=path)
            if self.ranks is None:
                raise UsageError(
                    "--as-adapter of a whole checkpoint needs --adapter-rank or --adapter-energy", path=path
                )
            return ExtractedAdapterKind(self.ranks).draft(opened)
        count = len(opened.finetuned)
        if count > 1:
            raise UsageError(
                f"--as-adapter takes one adapter, found {count}: without it, their mean is merged into the"
                " base, and `monosoup extract` makes one adapter of several, without an edit"
            )
        if self.ranks is not None:
            raise UsageError(
                "--adapter-rank and --adapter-energy are for whole checkpoints: an adapter keeps its ranks"
            )
        return EditedAdapterDraft.of(opened, adapter)
