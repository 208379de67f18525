"""What is said of the tensors that a command does not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.report.steps import has_step, moves_all

__all__ = ["kept_line", "moved_by_step"]

FATES: Mapping[str, Mapping[str, str]] = {
    "merge": {"excluded": "as in base"},
    "transplant": {"excluded": "as in onto"},
    "extract": {"excluded": "not in the adapter"},
    "inspect-spectrum": {},
}
"""What becomes of tensors that are not edited, by command and reason, where they are not as fine-tuned."""
NOT_KEPT = ("extract", "inspect-spectrum")
"""The commands that keep nothing."""
AVERAGED = {"excluded": "averaged where all have them in one shape"}
"""The same of a mean, of any command."""


def kept_line(
    reasons: Mapping[Any, int],
    command: str,
    arguments: Mapping[str, Any],
    roles: Sequence[str],
    *,
    verb: str = "kept",
) -> tuple[str, str]:
    """What the tensors are called, and how many there are for which reason, with what becomes of them.

    Args:
        reasons: How many tensors are not edited, by reason.
        command: The command.
        arguments: Its arguments.
        roles: The roles of its inputs.
        verb: What the command does with them.
    """
    is_mean = roles.count("finetuned") > 1
    fates = FATES.get(command, AVERAGED if is_mean else {})
    moved = moved_by_step(command, arguments)
    told = {why: "; ".join(filter(None, [fates.get(why), moved.get(why)])) for why in {**fates, **moved}}
    words = {why: f" ({fate})" for why, fate in told.items()}
    counts = [f"{why} {count:,}{words.get(why, '')}" for why, count in sorted(reasons.items())]
    return "others" if command in NOT_KEPT else verb, ", ".join(counts) or "none"


def moved_by_step(command: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """What `edit --wise` does to tensors that the edit keeps, by reason; docs/method.md, section 5."""
    if command != "edit" or arguments.get("as_adapter") or not has_step(arguments):
        return {}
    is_of_all = moves_all(arguments)
    by = "moved by --wise" if is_of_all else "moved where their settings say so"
    if_possible = {"excluded": "the base has them", "shape_mismatch": "the base has that shape"}
    reasons = ["vector", *if_possible, *(["unchanged"] if arguments.get("min_update") else [])]
    # without --min-update, the update of what is unchanged is zero
    return {
        why: f"{by}, where {if_possible[why]}" if is_of_all and why in if_possible else by for why in reasons
    }
