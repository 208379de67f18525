"""A program that calls what monosoup_cli exports. `make release-check` has mypy check it against the wheel.

Without py.typed in the wheel, mypy knows nothing of the functions: every line that expects a type or an error
is then one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import monosoup_cli

if TYPE_CHECKING:
    from typing_extensions import assert_type

    assert_type(monosoup_cli.__version__, str)
    assert_type(monosoup_cli.edit("base", "ft", "out", energy=0.8), dict[str, Any])
    assert_type(monosoup_cli.wise("base", "ft", "out", alpha=0.5), dict[str, Any])
    assert_type(monosoup_cli.verify("out"), dict[str, Any])
    monosoup_cli.edit("base", "ft", 1)  # type: ignore[arg-type]
    monosoup_cli.edit("base", "ft", "out", enrgy=0.8)  # type: ignore[call-arg]
    raise monosoup_cli.errors.MonosoupError("a sentence")
