"""monosoup: better checkpoints from the ones you have, by editing the spectra of their updates.

The functions here are the commands, with the same words: `edit`. They load torch when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monosoup_cli.api import edit

__all__ = ["__version__", "edit"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "edit":
        from monosoup_cli.api import edit

        return edit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
