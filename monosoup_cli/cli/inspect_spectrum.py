"""`monosoup inspect-spectrum`."""

from __future__ import annotations

import inspect
from typing import Any

from monosoup_cli.api.inspect_spectrum import inspect_spectrum as function
from monosoup_cli.cli.display import display_options, show
from monosoup_cli.cli.options import add_options, shell_help

__all__ = ["inspect_spectrum"]


def _inspect(arguments: dict[str, Any], **options: Any) -> None:
    display = display_options(**options)

    def make() -> dict[str, Any]:
        from monosoup_cli.cli.writing import import_torch
        from monosoup_cli.sources.transfer import fetch

        with function.prepare(layer=display.view.layer, **arguments) as inspected:
            inspection = inspected.inspection
            with display.console.download_progress(inspection.downloads) as advance:
                fetch(inspection.downloads, advance)
            import_torch()
            for notice in inspection.inputs.notices:
                display.console.note(f"note: {notice}")
            with display.console.progress(inspection.plan.edited) as progress:
                return inspected.run(progress)

    show(make, display)


_inspect.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("arguments", inspect.Parameter.POSITIONAL_ONLY),
        *(
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in inspect.signature(display_options, eval_str=True).parameters.values()
        ),
    ]
)

inspect_spectrum = add_options(
    _inspect,
    function.__name__,
    shell_help(function),
    {name: option for name, option in function.declared.items() if name != "layer"},
)
"""The shell command. `--layer` is one of the options of `display_options`."""
