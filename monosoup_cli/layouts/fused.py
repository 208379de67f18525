"""The parts of fused tensors: gate and up, or q, k and v, of every expert where they are packed."""

from __future__ import annotations

from collections.abc import Mapping

from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.layout import Reading
from monosoup_cli.layouts.match import modules_of
from monosoup_cli.sources.source import Source

__all__ = ["readings_of_fused"]


def readings_of_fused(source: Source, tensors: Mapping[str, TensorInfo]) -> dict[str, Reading]:
    """Say what fused tensors consist of, by their names, their shapes and the configuration.

    Args:
        source: The checkpoint.
        tensors: Those of its tensors that are asked for.

    Returns:
        The likeliest reading of every tensor that has several atoms.
    """
    found = {}
    for module in modules_of(tensors, source, {}).values():
        for way in module.ways[:1]:
            for name, readings in module.readings.items():
                if len(readings[way].atoms) > 1:
                    found[name] = readings[way]
    return found
