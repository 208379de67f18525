"""The Python functions behind the commands, with the same words; `prepare_…` stops before the first byte."""

from __future__ import annotations

from monosoup_cli.api.edit import edit, prepare_edit

__all__ = ["edit", "prepare_edit"]
