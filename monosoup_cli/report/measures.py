"""What reports measure, collected from the methods that measure it."""

from __future__ import annotations

from monosoup_cli.methods import MEASURES
from monosoup_cli.tensors.method import Measure

__all__ = ["ABOVE_ROUNDING", "COMPARABLE", "LABELS", "WITH_UNIT", "label_of"]

ABOVE_ROUNDING = ("rounding_sigma", "rank_above_rounding", "rounding_share", "gap_above_rounding")
"""What an inspection measures beyond what the methods do (spectral/rounding.py)."""

_ALL = (*MEASURES, Measure("rank_above_rounding", "above rounding", unit="directions", is_comparable=False))

LABELS = {measure.name: measure.label for measure in _ALL if measure.label}
"""What people read for the report's measures, in the order in which they are shown."""

COMPARABLE = {measure.name for measure in _ALL if measure.label and measure.is_comparable}
"""Measures whose mean over layers of different sizes says something."""

WITH_UNIT = {measure.name for measure in _ALL if measure.unit is not None}
"""Measures whose differences are taken relative to the larger of two."""


def label_of(name: str) -> str:
    """What people read for a measure; its name where it is of a method that is not known here."""
    return LABELS.get(name, name)
