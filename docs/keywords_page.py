"""The keywords that every writing command shares, for the page of the Python functions."""

from __future__ import annotations

from monosoup_cli.api.command import PROGRESS
from monosoup_cli.options import RunOptions


def shared_keywords() -> str:
    """A list in Markdown."""
    return "\n".join(f"- `{name}`" for name in (*RunOptions.declared(), PROGRESS.name))
