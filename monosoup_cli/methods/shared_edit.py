"""MonoSoup for a run that edits the same updates by many rules, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from monosoup_cli.devices.held import Held
from monosoup_cli.methods.monosoup import Edits, edit_update
from monosoup_cli.methods.spectral_edit import SpectralEdit
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.matrix import MatrixLayer
from monosoup_cli.tensors.method import Wanted

if TYPE_CHECKING:
    from monosoup_cli.spectral.eigen import Solver

__all__ = ["SharedEdit"]


@dataclass(frozen=True)
class SharedEdit(SpectralEdit):
    """`SpectralEdit` whose Gram matrices are decomposed by `solve`, which may know them already.

    Attributes:
        solve: See `spectral.kept.KeptEigenvectors`; None for `eigh`.
    """

    solve: Solver | None = None

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """Also a Gram matrix and its eigenvectors on the host, on their way to a file or back."""
        held = super().held(cut, wanted, rank)
        return held if cut is None else held + Held(host=2 * 8 * cut.side**2)

    def _edits(self, layer: MatrixLayer) -> Edits | None:
        return edit_update(layer.updates, layer.cut.length, layer.cut.side, self.splits, self.solve)
