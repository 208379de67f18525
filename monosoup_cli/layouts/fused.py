"""The parts of fused tensors: gate and up, or q, k and v, of every expert where they are packed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.layouts.attention import is_fused
from monosoup_cli.layouts.layout import Facts, Reading, facts_of
from monosoup_cli.layouts.match import modules_of
from monosoup_cli.layouts.table import all_readings
from monosoup_cli.sources.source import Source

__all__ = ["in_another_form", "readings_of_fused"]

INTERLEAVED = ("gpt_oss",)
"""The models whose gate and up have their rows in turn."""
HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
"""The keys of a configuration for the width of the model, which projections down have as rows."""


def readings_of_fused(
    source: Source, tensors: Mapping[str, TensorInfo], known: Mapping[str, Reading]
) -> dict[str, Reading]:
    """Say what fused tensors consist of, by their names, their shapes and the configuration.

    Args:
        source: The checkpoint.
        tensors: Those of its tensors that are asked for.
        known: The readings that values have decided, because another input stores these tensors otherwise.

    Returns:
        The known or likeliest reading of every tensor that has several atoms.

    Raises:
        MismatchError: A tensor may be read in several ways, and there is no configuration.
    """
    facts = facts_of(source, {})
    found = {name: one for name, one in known.items() if name in tensors and len(one.atoms) > 1}
    for module in modules_of(tensors, source, {}).values():
        for name, all_of_it in module.readings.items():  # layers may have other sizes, and so other readings
            if name in found:
                continue
            readings = [one for one in all_of_it.values() if not one.is_guess]
            is_told = any(len(one.atoms) > 1 for one in readings) or not is_fused(name, tensors[name])
            if (len(readings) > 1 or not is_told) and not facts.config:
                raise MismatchError(
                    "--split-fused needs config.json to tell the parts of a fused tensor",
                    path=source.path,
                    tensor=name,
                    hint="give the folder that has it",
                )
            if readings:
                found[name] = min(readings, key=lambda reading: _unlikeliness(reading, facts))
    return {name: reading for name, reading in found.items() if len(reading.atoms) > 1}


def in_another_form(name: str, names: Collection[str]) -> str | None:
    """The weight that is another form of one, as their names say: fused with others, or a part of it.

    Args:
        name: The name of a weight that a checkpoint does not have.
        names: The names that it has.
    """
    outer = name.removesuffix(".weight").rpartition(".")[0]
    parts = _parts(name)
    others = (other for other in names if other.startswith(f"{outer}.")) if parts else ()
    return next((other for other in others if not parts.isdisjoint(_parts(other))), None)


def _parts(name: str) -> set[str]:
    """The names in common of the projections that a matrix of this name has; of others none."""
    of_any_size = TensorInfo(name, "F32", (6, 1), 0, 24)  # q, k and v, or gate and up
    return {atom.name for one in all_readings(name, of_any_size, Facts({}, {})) for atom in one.atoms}


def _unlikeliness(reading: Reading, facts: Facts) -> int:
    """How many things speak against a reading. Of those that are equal in this, the first one counts."""
    is_expected = facts.config.get("model_type") in INTERLEAVED
    count = int(("interleaved" in reading.words) != is_expected)
    hidden = facts.number(*HIDDEN)
    for atom in islice(reading.atoms, 4):
        if hidden and len(atom.shape) > 1:
            count += atom.shape[0 if "down_proj" in atom.name else -1] != hidden
    return count
