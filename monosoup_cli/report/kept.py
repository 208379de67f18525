"""What is said of the tensors that a command does not edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["kept_line"]

FATES: Mapping[str, Mapping[str, str]] = {
    "merge": {"excluded": "as in base"},
    "transplant": {"excluded": "as in onto"},
    "extract": {"excluded": "not in the adapter"},
    "inspect-spectrum": {},
}
"""What becomes of tensors that are not edited, by command and reason, where they are not as fine-tuned."""
NOT_KEPT = ("extract", "inspect-spectrum")
"""The commands that keep nothing."""


def kept_line(
    reasons: Mapping[Any, int], command: str, roles: Sequence[str], *, verb: str = "kept"
) -> tuple[str, str]:
    """What the tensors are called, and how many there are for which reason, with what becomes of them.

    Args:
        reasons: How many tensors are not edited, by reason.
        command: The command.
        roles: The roles of its inputs.
        verb: What the command does with them.
    """
    is_mean = roles.count("finetuned") > 1
    fates = FATES.get(command, {"excluded": "averaged where all have them in one shape"} if is_mean else {})
    words = {why: f" ({fate})" for why, fate in fates.items()}
    counts = [f"{why} {count:,}{words.get(why, '')}" for why, count in sorted(reasons.items())]
    return "others" if command in NOT_KEPT else verb, ", ".join(counts) or "none"
