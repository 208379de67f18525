"""`monosoup inspect-spectrum`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from monosoup_cli.api.inspect_spectrum import SHARED, prepare_inspect_spectrum
from monosoup_cli.cli.display import Display, display_options, show
from monosoup_cli.cli.options import add_options, shell_help
from monosoup_cli.cli.writing import import_torch
from monosoup_cli.options import declared_in
from monosoup_cli.sources.hub import fetch

__all__ = ["inspect_spectrum"]


def _inspect(arguments: dict[str, Any], display: Display) -> None:
    def make() -> dict[str, Any]:
        with prepare_inspect_spectrum(layer=display.view.layer, **arguments) as inspected:
            inspection = inspected.inspection
            with display.console.downloading(inspection.downloads) as advance:
                fetch(inspection.downloads, advance)
            import_torch()
            for notice in inspection.inputs.notices:
                display.console.note(f"note: {notice}")
            with display.console.progress(inspection.plan.edited) as progress:
                return inspected.run(progress)

    show(make, display)


def _with_view(arguments: dict[str, Any], **options: Any) -> None:
    _inspect(arguments, display_options(**options))


_with_view.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("arguments", inspect.Parameter.POSITIONAL_ONLY),
        *(
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in inspect.signature(display_options, eval_str=True).parameters.values()
        ),
    ]
)
_DECLARED = {**declared_in(prepare_inspect_spectrum), **SHARED}
_DECLARED.pop("layer")  # one of the options of `display_options`

inspect_spectrum: Callable[..., None] = add_options(
    _with_view, "inspect_spectrum", shell_help(prepare_inspect_spectrum), _DECLARED
)
"""The shell command."""
