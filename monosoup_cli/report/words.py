"""Numbers and names for display.

Names and paths come from untrusted files; `printable` makes them safe to print.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.errors import MAX_CROPPED, crop, without_tokens

__all__ = [
    "ROLES",
    "duration",
    "in_column",
    "joined_label",
    "name_parts",
    "parameters",
    "plural",
    "printable",
    "rough",
    "scale_words",
    "settings_words",
    "shortened",
    "shown",
    "size",
    "updates_words",
]


ROLES = {"base": "base", "finetuned": "fine-tuned", "onto": "onto"}
"""What people call the inputs, by their roles in the report."""


def printable(text: object, limit: int = MAX_CROPPED) -> str:
    """Return `text` on one line, safe to print.

    Control, format and surrogate characters become escapes, tokens of the Hub are removed, and the middle of
    a text of more than `limit` characters is cut out.
    """
    unescaped = crop(without_tokens(str(text)), 2 * limit)
    if unescaped.isprintable():
        return crop(unescaped, limit)
    return crop("".join(_escape(char) if _is_unsafe(char) else char for char in unescaped), limit)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def name_parts(name: str) -> tuple[str, str, str, str, str]:
    """Split a layer's name: before the first number, the number, before the last word, that word, `.weight`.

    Together they are the name. Where there is little room, the first, the third and the last part give way.

    >>> name_parts("model.layers.10.self_attn.q_proj.weight")
    ('model.layers.', '10.', 'self_attn.', 'q_proj', '.weight')
    """
    start = re.search(r"(?<![^.])[0-9]+\.", name)
    before, block = (name[: start.start()], start[0]) if start else ("", "")
    rest = name[len(before) + len(block) :]
    own = rest.removesuffix(".weight") or rest
    at = own.rfind(".") + 1 or (0 if block else len(own) // 2)
    return before, block, own[:at], own[at:], rest[len(own) :]


def shortened(name: str, width: int) -> str:
    """Shorten a layer's name to `width` cells: its block and its end stay, as far as they fit."""
    from rich.cells import cell_len

    def start_of(text: str, width: int) -> str:
        while text and cell_len(text) > width:
            text = text[:-1]
        return text

    def end_of(text: str, width: int) -> str:
        while text and cell_len(text) > width:
            text = text[1:]
        return text

    if cell_len(name) <= width:
        return name
    before, block, *_ = name_parts(name)
    own = name[len(before) + len(block) :]
    start = f"…{block}" if before else block
    room = width - cell_len(start)
    if block and cell_len(own) <= room:
        return start + own
    if block and room > width // 2:
        # blocks have names that begin alike and names that end alike
        first = start_of(own, (room - 1) // 3)
        return f"{start}{first}…{end_of(own, room - 1 - cell_len(first))}"
    return f"…{end_of(name, width - 1)}"


def size(nbytes: float) -> str:
    """Format bytes in powers of ten: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def duration(seconds: float) -> str:
    """Format seconds: 1.5 s, 2 min 5 s, 1 h 4 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rough(seconds: float) -> str:
    """Format an estimate of seconds with two digits: 1.5 s, 3.2 min, 11 h."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 99.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 3600:.2g} h" if seconds < 99.5 * 3600 else f"{seconds / 3600:,.0f} h"


def in_column(values: Sequence[float]) -> list[str]:
    """Format scores as `shown` does, or with as many digits as the decimal points need to line up."""
    texts = [shown(value) for value in values]
    if any("e" in text or "n" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:.{decimals}f}" for value in values]


def shown(score: float) -> str:
    """Format a score with four significant digits; with six from 1,000 on."""
    return f"{score:.{4 if abs(score) < 1000 else 6}g}"


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: 1 tensor, 2 tensors."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def parameters(edited: int, total: int | None) -> str:
    """Format how many parameters were edited, of how many if that is known: 3.1 M of 7 M parameters (44%).

    The share is 0% or 100% only of none and all.
    """
    if total is None:
        return f"{_count(edited)} parameters"
    share = 100 * edited / max(total, 1)
    if 0 < edited < total:
        share = min(max(share, 0.1), 99.9)
    return f"{_count(edited)} of {_count(total)} parameters ({share:.3g}%)"


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def joined_label(joined: bool) -> str:
    """Say whether a candidate joined the soup."""
    return "joined" if joined else "left out"


def settings_words(settings: Mapping[str, Any]) -> str:
    """Name settings with their values, as a recipe has them: "energy 0.8, clamp false"."""
    words = {
        name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()
    }
    return ", ".join(f"{name} {value}" for name, value in words.items())


def scale_words(arguments: Mapping[str, Any]) -> str:
    """Say by what updates are multiplied: "times 0.5, 1"; nothing where that is 1 for all."""
    scale = arguments.get("scale", 1.0)
    scales = [one for one in (scale if isinstance(scale, list) else [scale]) if isinstance(one, (int, float))]
    return "" if {*scales} <= {1.0} else f"times {', '.join(f'{one:g}' for one in scales)}"


def updates_words(command: str, arguments: Mapping[str, Any], count: int) -> tuple[str, str] | None:
    """Say what is made of several checkpoints, and what updates are multiplied by.

    Args:
        command: The command.
        arguments: Its arguments.
        count: How many fine-tuned checkpoints there are.

    Returns:
        The word for it, and the rest; None where there is nothing to say.
    """
    weights = ", ".join(f"{one:g}" for one in arguments.get("weights") or ())
    mean = [f"the mean of {count}", *([f"weighted {weights}"] if weights else [])]
    if command == "soup":
        return ("soup", ", ".join(mean)) if weights else None
    is_sum, words = command in ("merge", "transplant") and count > 1, []
    if is_sum:
        words = [f"{count}, added up, not averaged", *([f"times {weights}"] if weights else [])]
    if command in ("edit", "extract") and count > 1:
        words = mean
    if command in ("merge", "extract", "transplant") and scale_words(arguments):
        words.append(f"{'all ' if command == 'merge' and count > 1 else ''}{scale_words(arguments)}")
    return ("updates" if is_sum else "update", ", ".join(words)) if words else None
