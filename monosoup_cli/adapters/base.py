"""What an adapter finds in its base: under which names, and which tensors are tied there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from monosoup_cli.adapters.keys import ModuleFactors
from monosoup_cli.adapters.lora import Adapter
from monosoup_cli.adapters.module_names import HEADLESS
from monosoup_cli.errors import CheckpointError, MismatchError, crop, some
from monosoup_cli.formats.header import BITS, TensorInfo
from monosoup_cli.layouts.fused import in_another_form
from monosoup_cli.sources.alignment import Rename, align, count_of, reading
from monosoup_cli.sources.files import Files, metadata_of
from monosoup_cli.sources.read import read_float64
from monosoup_cli.sources.source import Source
from monosoup_cli.sources.ties import tied_names

__all__ = [
    "align_names",
    "are_same",
    "are_same_update",
    "check_present",
    "check_ties",
    "doubts_on_base",
    "lone_uses",
    "notes_on_new",
    "ties_in",
    "twins_of",
]

Headers = Mapping[str, TensorInfo]

MAX_NAMED = 3


UNTIE = (
    "import sys, torch, transformers as t; old, new = sys.argv[1:];"
    " m = t.{kind}.from_pretrained(old, dtype='auto');"
    " m.config.tie_word_embeddings = m.config.get_text_config().tie_word_embeddings = False;"
    " h = m.get_output_embeddings(); h.weight = torch.nn.Parameter(h.weight.detach().clone());"
    " m.save_pretrained(new); t.AutoTokenizer.from_pretrained(old).save_pretrained(new)"
)
TASKS = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
}
"""peft's names of tasks with a head of their own, mapped to those in the names of transformers' classes."""


def ties_in(base: Headers | None, model: Files | None) -> dict[str, str]:
    """Map names that the base leaves out to those they are tied to. Without a config, heads may be tied."""
    if base is None:
        return {}
    config = None if model is None else model.config
    noted = {} if model is None else {key: kept for one in model.shards for key, kept in one.tied.items()}
    metadata = {} if model is None else metadata_of(model)
    return tied_names(base, {"tie_word_embeddings": True} if config is None else config, metadata, noted)


def check_ties(adapter: Adapter, base: Headers, model: Files) -> None:
    """Raise CheckpointError where a merge changes a matrix that the base uses twice, for one use alone.

    A checkpoint with the base's names and configuration cannot express that. peft ties trained rows itself.
    """
    for missing, own in lone_uses(adapter, base, model):
        raise CheckpointError(
            f"changes weights that the base ties to {missing!r}, which would not follow",
            path=adapter.own.path,
            tensor=own,
            hint=_untying(missing, base, model),
        )


def lone_uses(adapter: Adapter, base: Headers, model: Files) -> Iterator[tuple[str, str]]:
    """Yield the names that `base` leaves out and ties to a matrix that an adapter changes for one use alone,
    each with the adapter's tensor."""
    if adapter.config.get("task_type") in (*TASKS, "FEATURE_EXTRACTION") or not _has_head(model.config):
        return
    for missing, holder in ties_in(base, model).items():
        own = adapter.pairs[holder].a if holder in adapter.pairs else adapter.replaced.get(holder)
        is_matrix = len(base[holder].shape) > 1
        if own is not None and is_matrix and holder not in adapter.fit.tied:
            yield missing, own


def _has_head(config: Mapping[str, Any] | None) -> bool:
    architectures = (config or {}).get("architectures")
    kinds = architectures if isinstance(architectures, list) else []
    return config is not None and not any(HEADLESS.search(str(kind)) for kind in kinds)


def _untying(missing: str, base: Headers, model: Files | None) -> str | None:
    """The command that saves the base with its head apart; None if something else is tied."""
    if (
        model is None
        or model.config is None
        or missing in tied_names(base, {"tie_word_embeddings": False}, {}, {})
    ):
        return None
    architectures = model.config.get("architectures")
    kind = architectures[0] if isinstance(architectures, list) and architectures else None
    if not (isinstance(kind, str) and kind.isidentifier()):
        kind = "AutoModelForCausalLM"
    where = shlex.quote(model.place.repository or model.place.source)
    command = f'python -c "{UNTIE.format(kind=kind)}" {where} UNTIED'
    return f"save the base with the two apart, and merge into that: {command}"


def notes_on_new(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say about tensors that are new to the base, and that its configuration does not describe."""
    if not shapes:
        return ()
    named = some([crop(repr(name)) for name in shapes], MAX_NAMED)
    task, labels = str(config.get("task_type")), [shape[0] for shape in shapes.values() if len(shape) > 1]
    count = f", num_labels={min(labels)}" if labels and task != "QUESTION_ANS" else ""
    kind = f"AutoModelFor{TASKS[task]}" if task in TASKS else "the class that it was trained with"
    return (
        f"adds {named}, of which the base's config.json knows nothing: load the output with"
        f" transformers' {kind}.from_pretrained(OUT{count})",
    )


def align_names(
    shapes: Mapping[str, tuple[int, ...]],
    base: Headers | None,
    renames: Sequence[Rename],
    is_new: Callable[[str], bool],
    path: str,
) -> tuple[dict[str, str], tuple[str, ...], tuple[Rename, ...]]:
    """Match the names of an adapter with those of its base.

    Renames are applied to the names of the base, as to those of any base, unless more names match without
    them.

    Args:
        shapes: What the adapter changes, by its own names.
        base: The tensors of the base; None to use the adapter's names.
        renames: The renames that the user asked for.
        is_new: Whether a name may be that of a module that the base lacks.
        path: The path of the adapter, for errors.

    Returns:
        The adapter's names mapped to the base's, what was recognised, and renames without effect.
    """
    if base is None:
        return {name: name for name in shapes}, (), tuple(renames)
    stored, changed_by = _renamed(base, renames, shapes, path)
    first = {name: base[old] for name, old in stored.items()}
    headers = {name: TensorInfo(name, "F32", shape, 0, 0) for name, shape in shapes.items()}
    # once the base is read under the names of a first checkpoint, only this adapter has the old ones
    is_read_otherwise = any(name != tensor.name for name, tensor in base.items())
    alignment = align(headers, first, renames if is_read_otherwise else (), path)
    found = {own: name for name, own in alignment.stored.items()}
    notes = list(alignment.notes)
    needed = [name for name in shapes if not (is_new(name) and found[name] not in first)]
    if needed and not any(found[name] in first for name in needed):
        moved, words = _with_other_prefix(needed, first)
        found |= moved
        notes += words
    used = set(found.values())
    for rename, changed in changed_by.items():
        if count := len(changed & used):
            notes.append(f"{reading(rename.new, rename.old)} {count_of(count)}")
    left = alignment.unused if is_read_otherwise else renames
    unused = tuple(rename for rename in left if not changed_by.get(rename))
    return {own: stored.get(name, name) for own, name in found.items()}, tuple(notes), unused


def _renamed(
    base: Headers, renames: Sequence[Rename], wanted: Collection[str], path: str
) -> tuple[dict[str, str], dict[Rename, set[str]]]:
    """The base's names after the renames mapped to those before; and the names that each rename changed."""
    names, changed = list(base), []
    for rename in renames:
        before, names = names, rename.apply(names)
        changed.append([old != new for old, new in zip(before, names, strict=True)])
    if sum(name in wanted for name in names) < sum(name in wanted for name in base):
        return {name: name for name in base}, {}
    if len(set(names)) < len(names):
        raise MismatchError("--rename maps two names to one of the base", path=path)
    return dict(zip(names, base, strict=True)), {
        rename: {name for name, is_changed in zip(names, flags, strict=True) if is_changed}
        for rename, flags in zip(renames, changed, strict=True)
    }


def _with_other_prefix(names: Sequence[str], base: Headers) -> tuple[dict[str, str], list[str]]:
    """Match names of a bare model with those of the same model inside of one with a head, or the reverse."""
    [outer, *others] = {name.partition(".")[0] for name in names}
    bare = {name: name.partition(".")[2] for name in names}
    if not others and all(name in base for name in bare.values()):
        return bare, [f"{reading(outer, '')} {count_of(len(names))}"]
    for prefix in dict.fromkeys(name.partition(".")[0] for name in base):
        inside = {name: f"{prefix}.{name}" for name in names}
        if all(name in base for name in inside.values()):
            return inside, [f"{reading('', prefix)} {count_of(len(names))}"]
    return {}, []


def doubts_on_base(config: Mapping[str, Any], model: Files | None, whole: int) -> tuple[str, ...]:
    """What to say where an adapter names another base than the one that it is merged into.

    Args:
        config: The content of adapter_config.json.
        model: The files of the base.
        whole: How many tensors of the base the adapter replaces.
    """
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if model is None or not isinstance(named, str) or not named:
        return ()
    place = model.place
    given = place.repository or place.source
    folder = place.source.rpartition("/")[0] if place.file_name else ""
    known_as = (given, place.source, folder, (model.config or {}).get("_name_or_path"))
    if not any(_are_same_model(named, one) for one in known_as if isinstance(one, str) and one):
        found = f"{crop(repr(named))}, not {crop(repr(given))}"
    elif (
        isinstance(revision, str)
        and place.revision
        and revision not in (place.revision, place.source.partition("@")[2] or "main")
    ):
        found = f"revision {crop(repr(revision))} of {crop(repr(named))}, not {place.revision}"
    else:
        return ()
    doubt = f"names as its base {found}; check that they are the same weights"
    if not place.repository:
        doubt += " (a link, made with ln -s, may give yours that name)"
    if whole:
        doubt += (
            f". What it stores whole {count_of(whole)} is no difference from that base, and replaces what"
            " this one has"
        )
    return (doubt,)


def _are_same_model(one: str, other: str) -> bool:
    """Whether two names may be of one model. A folder may be anywhere, so only its own name is compared."""
    first, second = _parts(one), _parts(other)
    are_ids = len(first) == len(second) == 2
    return first == second if are_ids else first[-1:] == second[-1:]


def _parts(name: str) -> list[str]:
    """The parts of an id on the Hub, also of one in a cache, or of a path; in small letters."""
    name = name.casefold().replace("\\", "/").removeprefix("hf://").rstrip("/")
    cached = re.search(r"(^|/)models--([^/]+)", name)
    if cached:
        return cached[2].split("--")
    return [*(["/"] if name.startswith(("/", ".")) else []), *name.partition("@")[0].strip("/").split("/")]


def check_present(
    names: Sequence[str],
    read_as: Mapping[str, str],
    base: Headers | None,
    ties: Mapping[str, str],
    parameters: Collection[str],
    path: str,
    model: Files | None,
) -> None:
    """Raise CheckpointError if the base lacks a tensor.

    Args:
        names: The tensors that are changed, as the adapter names them.
        read_as: Their names in the base.
        base: The headers of the base; None for an adapter that is read without one.
        ties: The tensors that the base ties to others.
        parameters: Those of target_parameters.
        path: The adapter.
        model: The files of the base.
    """
    missing = [name for name in names if base is not None and read_as[name] not in base]
    if base is None or not missing:
        return
    tied = next((read_as[name] for name in missing if read_as[name] in ties), None)
    if tied is not None:
        raise CheckpointError(
            f"changes {tied!r}, which the base ties to {ties[tied]!r}: that would change with it",
            path=path,
            hint=None if base is None else _untying(tied, base, model),
        )
    if missing[0] in parameters:
        hint = "if the base stores experts one by one, fuse them: transformers' save_original_format=False"
    elif other := in_another_form(read_as[missing[0]], base):
        hint = (
            f"the base has them as {crop(repr(other))}: give it in the form that the adapter was trained on"
        )
    else:
        hint = "is it the adapter of another model? --rename OLD=NEW replaces OLD in the names of the base"
    named = some([crop(repr(read_as[name])) for name in missing], MAX_NAMED)
    raise CheckpointError(f"changes tensors that the base does not have: {named}", path=path, hint=hint)


def twins_of(
    keys: Mapping[str, object], read_as: Mapping[str, str], base: Headers | None, ties: Mapping[str, str]
) -> dict[str, str]:
    """Find names that the base lacks because it ties them to tensors that the adapter changes, too.

    Returns:
        The names, mapped to the adapter's names of the tensors that they are tied to.
    """
    if base is None:
        return {}
    holders = {read_as[name]: name for name in keys}
    lacking = [name for name in keys if read_as[name] not in base]
    return {name: holders[ties[read_as[name]]] for name in lacking if ties.get(read_as[name]) in holders}


def are_same(own: Source, one: str, other: str) -> bool:
    """Whether two tensors of the adapter are the same, byte for byte."""
    first, second = own.tensors[one], own.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    size = first.elements * BITS[first.dtype] // 8
    for start in range(0, size, 1 << 20):
        blocks = [bytearray(min(1 << 20, size - start)) for _ in range(2)]
        for name, block in zip((one, other), blocks, strict=True):
            own.reader(name).read_into(memoryview(block), start)
        if blocks[0] != blocks[1]:
            return False
    return True


def are_same_update(own: Source, one: ModuleFactors, other: ModuleFactors) -> bool:
    """Whether the factors of a head are those of an embedding, transposed: peft's `ensure_weight_tying`."""
    if one.keys.keys() != {"a", "b"} or other.keys.keys() != {"a", "b"}:
        return False
    pairs = [("a", "b"), ("b", "a")] if one.is_embedding != other.is_embedding else [("a", "a"), ("b", "b")]
    for part, twin in pairs:
        first, second = (
            read_float64(own, keys, is_checked=False) for keys in (one.keys[part], other.keys[twin])
        )
        if one.is_embedding != other.is_embedding:
            second = second.T
        if first.shape != second.shape or not bool((first == second).all()):
            return False
    return True
