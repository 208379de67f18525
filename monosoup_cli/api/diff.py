"""`diff`: what differs between two checkpoints, first by their headers, then by their values."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from monosoup_cli.api.look import Look, look
from monosoup_cli.errors import UsageError, some
from monosoup_cli.formats.dtypes import BITS, FLOATING, count_different
from monosoup_cli.options import CHECKPOINT, Option, ReadParts, StateDict, StrPath, as_list
from monosoup_cli.report.sheet import Column, Sheet
from monosoup_cli.report.words import plural, printable
from monosoup_cli.sources.read import RangesInFloat64, read_stored

if TYPE_CHECKING:
    from monosoup_cli.formats.files import Advance, Download
    from monosoup_cli.formats.header import TensorInfo
    from monosoup_cli.sources.source import Source

__all__ = ["diff"]

COMPARED_BYTES = 1 << 20
"""How many bytes of two tensors are compared at a time: few enough for the caches."""
MEASURED_ELEMENTS = 1 << 18
"""How many elements of two tensors that differ are measured at a time."""
WORDLESS = (
    "transformers_version",
    "_name_or_path",
    "peft_version",
    "base_model_name_or_path",
    "inference_mode",
)
"""Entries of config.json and adapter_config.json that say nothing about the weights."""
APART = "two adapters are compared by their own tensors; to compare updates, merge each into the base first"
ABSENT = object()
"""Stands for the value of an entry that a configuration does not have."""


NAMED = 4
"""How many names a line has."""
SMALLEST = 0.001
"""The smallest share that is shown as a number."""


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "A", found["a"]
    yield "B", found["b"]
    for key in ("a", "b"):
        if names := found[f"only_in_{key}"]:
            yield f"only in {key.upper()}", f"{plural(len(names), 'tensor')}: {_some(names)}"
    if rows := found["shapes"]:
        moves = _some(f"{one['name']} {_shown(one['a'])} → {_shown(one['b'])}" for one in rows)
        yield "shapes", f"{plural(len(rows), 'tensor')}: {moves}"
    if rows := found["dtypes"]:
        counts = Counter((one["a"], one["b"]) for one in rows)
        yield "dtypes", _some(f"{plural(count, 'tensor')} {a} → {b}" for (a, b), count in counts.items())
    if rows := found["config"]:
        yield "config", _some(f"{one['key']} {_value(one, 'a')} → {_value(one, 'b')}" for one in rows)
    values, compared = found["values"], found["compared"]
    if compared is None:
        yield "values", "not compared"
    elif not compared:
        yield "values", "none to compare"
    elif not values:
        yield "values", f"equal in {plural(compared, 'tensor')}"
    else:
        yield "values", f"differ in {len(values):,} of {plural(compared, 'tensor')}"
    if found["same"]:
        yield "", "nothing differs"
    elif found["same"] is None:
        yield "headers", "nothing differs"


def _some(words: Iterable[str]) -> str:
    return some([printable(one) for one in words], NAMED)


def _shown(value: object) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(one: Mapping[str, Any], side: str) -> str:
    if side not in one:
        return "(absent)"
    value = one[side]
    return printable(value if isinstance(value, str) else json.dumps(value), 60)


def _changed(one: Mapping[str, Any]) -> str:
    """The share of the elements that changed, never rounded to none."""
    share = one["changed"] / max(math.prod(one["shape"]), 1)
    return "<0.1%" if 0 < share < SMALLEST else f"{share:.1%}"


def _size(one: Mapping[str, Any]) -> float:
    """What tensors are sorted by, the most changed first."""
    return math.inf if one["relative"] is None else float(one["relative"])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


SHEET = Sheet(
    _lines,
    "values",
    (
        Column("name", "tensor", lambda one: str(one["name"])),
        Column("shape", "shape", lambda one: _shown(one["shape"])),
        Column("changed", "changed", _changed),
        Column("max_abs", "max |Δ|", lambda one: _number(one["max_abs"])),
        Column("relative", "‖Δ‖/‖A‖", lambda one: _number(one["relative"])),
    ),
    order=_size,
)


@look(
    SHEET,
    returns="`same`: whether nothing differs; None if headers do not differ and values were not compared."
    " `only_in_a`, `only_in_b`, `shapes`, `dtypes` and `config`: what differs by headers. `values`: the"
    " tensors whose values differ, each with how many elements are `changed`, `max_abs`, the largest absolute"
    " difference, and `relative`, the norm of the difference over that of A; both are None where they are no"
    " number. `compared`: how many tensors were compared; None with `headers`. `a` and `b`: what was"
    " compared, and `notes` on how it was read. File layout does not count.",
    verdict="same",
)
def diff(
    a: Annotated[StrPath, replace(CHECKPOINT, metavar="A")],
    b: Annotated[StrPath, replace(CHECKPOINT, metavar="B", help="Another one.")],
    *,
    headers: Annotated[bool, Option("Compare headers and configs; read no values.")] = False,
    rename: Annotated[
        str | Sequence[str],
        Option(
            "Replace OLD with NEW in the names of one, so that they match. Repeatable.",
            metavar="OLD=NEW",
            shell=list[str],
        ),
    ] = (),
    state_dict: StateDict = None,
    parts: ReadParts = (),
) -> Iterator[Look]:
    """Show what differs between two checkpoints.

    First the headers: names, shapes, dtypes and config.json. Then the values: which tensors differ, and by
    how much. A model and an adapter are compared as if the adapter were merged. The exit code is 0 if nothing
    differs, 1 if something does, and 2 if they cannot be compared.

    Example: monosoup diff base.safetensors ft.safetensors
    """
    from monosoup_cli.pipeline.inputs import Inputs, open_inputs
    from monosoup_cli.sources.locate import open_checkpoint

    renames, chosen = as_list(rename), as_list(parts)
    with ExitStack() as held:
        first, second = (
            held.enter_context(open_checkpoint(os.fspath(path), state_dict, chosen)) for path in (a, b)
        )
        are_adapters = [one.files.kind.is_adapter for one in (first, second)]
        if all(are_adapters):  # they are compared by their own tensors
            inputs = Inputs(None, [first, second], [None, None], notices=[APART])
            pair: tuple[Source, Source] = first, second
        else:  # names are those of the one that is called fine-tuned
            base, finetuned = (first, second) if are_adapters[1] else (second, first)
            is_swapped = are_adapters[1]
            try:
                inputs = open_inputs(base, [finetuned], renames, state_dict=state_dict, parts=chosen)
            except UsageError:
                if not renames or any(are_adapters):
                    raise
                inputs = open_inputs(finetuned, [base], renames, state_dict=state_dict, parts=chosen)
                is_swapped = not is_swapped
            held.enter_context(inputs)
            assert inputs.base is not None
            pair = inputs.finetuned[0], inputs.base
            pair = pair[::-1] if is_swapped else pair
            if any(are_adapters):
                inputs.notices.append(f"{finetuned.path} is compared as merged into {base.path}")
            if inputs.hint:
                inputs.notices.append(f"{inputs.hint} would match more names")
        kinds = [source.files.kind.settings if all(are_adapters) else source.model.config for source in pair]
        found = _of_headers(*pair, inputs.notices, [settings or {} for settings in kinds])

        def run(advance: Advance) -> dict[str, Any]:
            if not headers:
                found.compare(advance)
            return _as_json(found)

        nbytes = 0 if headers else sum(tensor.nbytes for tensor in found.waiting)
        yield Look(run, [] if headers else found.downloads, nbytes, "comparing", "compared")


@dataclass(frozen=True)
class _ValueDifference:
    """How the values of one tensor differ.

    Attributes:
        name: The name of the tensor.
        shape: Its shape.
        changed: How many elements differ.
        max_abs: The largest |b − a|; None where it is not a number, or no float is.
        relative: ‖b − a‖ / ‖a‖; None where that does not exist.
    """

    name: str
    shape: Sequence[int]
    changed: int
    max_abs: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class _HeaderDifference:
    """What differs by headers and configs.

    Attributes:
        only_in_a: The names that the other checkpoint has not.
        only_in_b: The names that the first one has not.
        shapes: The tensors that have other shapes: name, shape in a, shape in b.
        dtypes: The tensors that have other dtypes.
        config: The entries of config.json that differ.
    """

    only_in_a: Sequence[str]
    only_in_b: Sequence[str]
    shapes: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    dtypes: Sequence[tuple[str, str, str]]
    config: Sequence[tuple[str, Any, Any]]

    def __bool__(self) -> bool:
        return any((self.only_in_a, self.only_in_b, self.shapes, self.dtypes, self.config))


@dataclass
class _Difference:
    """Two opened checkpoints, and what differs between them.

    Attributes:
        a: The first one, whose names are used.
        b: The other one, read under the names of the first.
        notices: How names and layouts are read.
        headers: What differs by headers and configs.
        shared: The tensors whose values can be compared.
        known: Those of them that are known to be equal without reading them.
        values: The tensors whose values differ, once `compare` has run.
        is_compared: Whether it has.
    """

    a: Source
    b: Source
    notices: Sequence[str]
    headers: _HeaderDifference
    shared: Sequence[TensorInfo]
    known: frozenset[str]
    values: Sequence[_ValueDifference] = ()
    is_compared: bool = field(default=False, init=False)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, as far as it was compared."""
        return not self.headers and not self.values

    @property
    def waiting(self) -> list[TensorInfo]:
        """The tensors that have to be read."""
        return [tensor for tensor in self.shared if tensor.name not in self.known]

    @property
    def downloads(self) -> list[Download]:
        """What has to be downloaded first."""
        names = [tensor.name for tensor in self.waiting]
        return [download for source in (self.a, self.b) for download in source.select(names)]

    def compare(self, advance: Advance) -> None:
        """Compare the values of all shared tensors; `advance` gets the bytes of each that is done.

        Raises:
            CheckpointError: A file cannot be read, or has changed since it was opened.
        """
        buffers = threading.local()

        def look(tensor: TensorInfo) -> _ValueDifference | None:
            found = _compared(self.a, self.b, tensor, buffers)
            advance(tensor.nbytes)
            return found

        found = _in_threads(look, self.waiting)
        for source in (self.a, self.b):
            source.check_unchanged()
        self.values, self.is_compared = [one for one in found if one is not None], True


def _as_json(found: _Difference) -> dict[str, Any]:
    """The differences as JSON has them."""
    headers = found.headers
    return {
        "a": found.a.path,
        "b": found.b.path,
        "same": found.is_same if found.is_compared or found.headers else None,
        "notes": list(found.notices),
        "only_in_a": list(headers.only_in_a),
        "only_in_b": list(headers.only_in_b),
        "shapes": [{"name": name, "a": list(a), "b": list(b)} for name, a, b in headers.shapes],
        "dtypes": [{"name": name, "a": a, "b": b} for name, a, b in headers.dtypes],
        "config": [
            {"key": key, **{side: one for side, one in (("a", a), ("b", b)) if one is not ABSENT}}
            for key, a, b in headers.config
        ],
        "compared": len(found.shared) if found.is_compared else None,
        "values": [{**vars(one), "shape": list(one.shape)} for one in found.values],
    }


def _of_headers(
    a: Source, b: Source, notices: Sequence[str], configs: Sequence[Mapping[str, Any]]
) -> _Difference:
    """Compare headers, and configurations where both have one: a single file has none."""
    # a tensor that is read under another name has its stored one
    both = [
        (replace(one, name=name), b.tensors[name]) for name, one in a.tensors.items() if name in b.tensors
    ]
    alike = [(one, other) for one, other in both if one.shape == other.shape]
    headers = _HeaderDifference(
        [name for name in a.tensors if name not in b.tensors],
        [name for name in b.tensors if name not in a.tensors],
        [(one.name, one.shape, other.shape) for one, other in both if one.shape != other.shape],
        [(one.name, one.dtype, other.dtype) for one, other in both if one.dtype != other.dtype],
        list(_of_configs(configs[0], configs[1])) if all(configs) else [],
    )
    shared = [
        one
        for one, other in alike
        if one.dtype == other.dtype or (one.dtype in FLOATING and other.dtype in FLOATING)
    ]
    return _Difference(a, b, notices, headers, shared, _known(a, b))


def _of_configs(
    a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The entries that differ, those of nested objects under dotted names."""
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key, ABSENT), b.get(key, ABSENT)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _of_configs(one, other, f"{prefix}{key}.")
        elif one != other and key not in WORDLESS:
            yield f"{prefix}{key}", one, other


def _known(a: Source, b: Source) -> frozenset[str]:
    """The tensors of files that the Hub stores under the same SHA-256."""
    from monosoup_cli.sources.hub import sha256_on_hub

    def stored(source: Source) -> dict[str, str]:
        folder = source.files.place.folder or source.files.place.origin
        if folder is None or source.files.decoded:  # what codes mean depends on the configuration, too
            return {}
        whole = [shard for shard in source.files.shards if not shard.chunks]
        sums = {shard.name: sha256_on_hub(folder, shard.name) for shard in whole}
        return {
            name: f"{sums[shard.name]}"
            for shard in whole
            for name in shard.header.tensors
            if sums[shard.name] is not None and name in source.tensors
        }

    ours, theirs = stored(a), stored(b)
    return frozenset(name for name, sha256 in ours.items() if theirs.get(name) == sha256)


def _in_threads(
    look: Callable[[TensorInfo], _ValueDifference | None], tensors: Sequence[TensorInfo]
) -> list[_ValueDifference | None]:
    """Call a function for every tensor, on all cores. After a failure or a signal, what waits is dropped."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return list(pool.map(look, tensors))
    finally:
        pool.shutdown(cancel_futures=True)


def _compared(a: Source, b: Source, tensor: TensorInfo, buffers: threading.local) -> _ValueDifference | None:
    """How the values of a tensor differ; None for the same bytes, or where dtypes differ the same numbers."""
    name = tensor.name
    one, other = a.reader(name), b.reader(name)
    if one.dtype == other.dtype:
        if not hasattr(buffers, "pair"):
            buffers.pair = bytearray(COMPARED_BYTES), bytearray(COMPARED_BYTES)
        ours, theirs = buffers.pair
        nbytes = -(-tensor.elements * BITS[one.dtype] // 8)  # as it is read, which may be decoded
        for start in range(0, nbytes, COMPARED_BYTES):
            size = min(COMPARED_BYTES, nbytes - start)
            one.read_into(memoryview(ours)[:size], start)
            other.read_into(memoryview(theirs)[:size], start)
            is_same = ours == theirs if size == COMPARED_BYTES else ours[:size] == theirs[:size]
            if not is_same:
                break
        else:
            return None
    if one.dtype not in FLOATING or other.dtype not in FLOATING:
        return _ValueDifference(name, tensor.shape, _changed_codes(a, b, tensor))
    found = _measured(a, b, tensor)
    return found if found.changed or one.dtype == other.dtype else None


def _changed_codes(a: Source, b: Source, tensor: TensorInfo) -> int:
    """In how many elements two tensors without floating-point numbers differ."""
    count = 0
    for start in range(0, tensor.elements, MEASURED_ELEMENTS):
        stop = min(start + MEASURED_ELEMENTS, tensor.elements)
        ours, theirs = (read_stored(source, tensor.name, start, stop) for source in (a, b))
        count += count_different(ours, theirs, stop - start)
    return count


def _measured(a: Source, b: Source, tensor: TensorInfo) -> _ValueDifference:
    """How the numbers of a tensor differ. NaN is like NaN."""
    import torch

    read = [RangesInFloat64(source, tensor.name) for source in (a, b)]
    buffers = torch.empty(2, MEASURED_ELEMENTS, dtype=torch.float64)
    changed, largest, square, total = 0, 0.0, 0.0, 0.0
    for start in range(0, tensor.elements, MEASURED_ELEMENTS):
        size = min(MEASURED_ELEMENTS, tensor.elements - start)
        one, other = (fill(buffer[:size], start) for fill, buffer in zip(read, buffers, strict=True))
        is_other = (one != other) & ~(one.isnan() & other.isnan())
        changed += int(is_other.sum())
        distance = torch.where(is_other, other - one, 0.0)
        largest = max(largest, float(distance.abs().max())) if distance.isfinite().all() else math.inf
        square += float(distance.square().sum())
        total += float(one.square().sum())
    is_number = math.isfinite(largest) and math.isfinite(square)
    relative = math.sqrt(square / total) if is_number and total and math.isfinite(total) else None
    return _ValueDifference(tensor.name, tensor.shape, changed, largest if is_number else None, relative)
