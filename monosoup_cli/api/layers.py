"""Settings that differ from layer to layer: the argument `layers` of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monosoup_cli.declaration import DeclaredOption
from monosoup_cli.errors import UsageError, crop
from monosoup_cli.tensors.method import Method
from monosoup_cli.tensors.patterns import LAYERS
from monosoup_cli.values import check_keys

__all__ = ["by_layer", "checked_layers"]


def checked_layers(layers: Any, example: str) -> dict[str, dict[str, Any]]:
    """The argument `layers`, as reports have it; `example` is one for the command.

    Raises:
        UsageError: It does not map globs to settings.
    """
    given = layers or {}
    if not isinstance(given, Mapping) or not all(
        isinstance(glob, str) and isinstance(settings, Mapping) for glob, settings in given.items()
    ):
        raise UsageError(
            "layers must map globs to settings", expected=f"such as {example}", found=crop(repr(layers))
        )
    return {glob: dict(settings) for glob, settings in given.items()}


def by_layer(
    layers: Mapping[str, dict[str, Any]],
    method: Method,
    declared: Mapping[str, DeclaredOption],
    keywords: Mapping[str, Any],
    method_for: Callable[[Mapping[str, Any]], Method],
) -> Method:
    """The method of a call whose layers have settings: for the tensors of each glob, that of the same call
    with these settings.

    Args:
        layers: The settings, by glob; made plain, as the report has them.
        method: That of all other tensors.
        declared: The command's own options.
        keywords: The keyword arguments of the call.
        method_for: Takes other keyword arguments, and returns the method of the call.

    Raises:
        UsageError: Layers cannot have such settings.
    """
    from monosoup_cli.methods.by_name import ByName

    sets = {name: one.option.of_layer for name, one in declared.items() if one.option.of_layer}
    folders = [variant.folder for variant in method.variants()]
    methods = {}
    for glob, settings in layers.items():
        try:
            check_keys("a layer has no", settings, sets, expected=", ".join(sets))
            for name, value in settings.items():
                settings[name] = declared[name].taken(value)
                if isinstance(value, str) and declared[name].accepts(0.5) and _is_number(value):
                    raise UsageError(f"{name} is text, where a number has no quotes", found=crop(repr(value)))
            replaced = {sets[name] for name in settings}
            rest = {name: value for name, value in keywords.items() if sets.get(name) not in replaced}
            methods[glob] = method_for({**rest, **settings, LAYERS: None})
            own = [variant.folder for variant in methods[glob].variants()]
            if own != folders:
                raise UsageError(
                    "several values of a setting" if own[0] else "sets what the whole call sweeps over",
                    found=", ".join(own if own[0] else folders),
                    hint="give one value, or sweep over options that no layer sets",
                )
        except UsageError as error:
            error.problem = f"{LAYERS} {crop(repr(glob))}: {error.problem}"
            raise
    return ByName(method, methods)


def _is_number(text: str) -> bool:
    """Whether text is one number, as the shell has it."""
    try:
        float(text)
    except ValueError:
        return False
    return True
