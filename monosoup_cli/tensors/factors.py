"""Refuse factors of an adapter beside whole weights."""

from __future__ import annotations

from collections.abc import Sequence

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.other_adapters import MERGE, factors_in
from monosoup_cli.tensors.plan import Headers, Selection

__all__ = ["check_merged"]


def check_merged(base: Headers | None, finetuned: Sequence[Headers], selection: Selection) -> None:
    """Check that no input has factors of an adapter beside whole weights.

    Edited or averaged each for itself, their product is not the edited one, nor the mean of products.

    Args:
        base: The headers of the base; None where there is none.
        finetuned: The headers of the fine-tuned checkpoints. Adapters are merged.
        selection: Which tensors the user wants edited.

    Raises:
        MismatchError: An input has factors that are not left out.
    """
    names = dict.fromkeys(name for headers in [base or {}, *finetuned] for name in headers)
    for name, kind in factors_in(names):
        if len(finetuned) == 1 and selection.leaves_out(name):
            continue  # of several, what is left out is averaged, too
        keep = f"--exclude '*{kind}*' keeps such tensors as fine-tuned; merging them first edits their update"
        raise MismatchError(
            "an input has an adapter in it that is not merged into its weights",
            tensor=name,
            hint=keep if len(finetuned) == 1 else MERGE,
        )
