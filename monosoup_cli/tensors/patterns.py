"""Whether the patterns that the user gave match names of tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from monosoup_cli.errors import UsageError

__all__ = ["CARRY_BASE", "check_patterns"]

CARRY_BASE = "carry-base"


def check_patterns(
    patterns: Mapping[str, Sequence[str]],
    names: Collection[str],
    only_in_base: Collection[str],
    tied: Mapping[str, str],
) -> None:
    """Refuse patterns that match nothing.

    Args:
        patterns: The globs of every option, by its name.
        names: The names that the globs are for.
        only_in_base: Those that `--carry-base` is for.
        tied: Names that the first fine-tuned checkpoint leaves out, and what they are tied to.

    Raises:
        UsageError: A pattern matches no tensor.
    """
    for option, pattern in ((option, one) for option, globs in patterns.items() for one in globs):
        candidates, kind = names, "tensor"
        if option == CARRY_BASE:
            candidates, kind = only_in_base, "tensor that only the base has"
        if any(fnmatchcase(name, pattern) for name in candidates):
            continue
        found = next((one for one in tied if fnmatchcase(one, pattern)), None)
        if option == CARRY_BASE and found is not None:
            raise UsageError(
                f"--{option} {pattern!r} matches no {kind}",
                found=f"{found!r}, which the fine-tuned checkpoint ties to {tied[found]!r}",
            )
        raise UsageError(
            f"--{option} {pattern!r} matches no {kind}",
            hint="a pattern must match the whole name, as '*layers.3.*' does",
        )
