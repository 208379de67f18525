"""Read PEFT adapters: which tensors of the base they change, and how.

Only the configuration and the headers are read; factors are read later. Adapters that are not LoRA, or that
change the base itself, are refused.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from monosoup_cli.adapters.keys import (
    INNER,
    MAX_NESTED,
    PREFIX,
    WRAPPED,
    ModuleFactors,
    read_factors,
    sort_keys,
)
from monosoup_cli.adapters.lora import (
    ADAPTER_CONFIG,
    EXPERTS,
    LINEAR,
    TRANSPOSED,
    Adapter,
    FactorLayout,
    LoraPair,
)
from monosoup_cli.adapters.patterns import Settings
from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.header import BITS, FLOATING, TensorInfo
from monosoup_cli.sources.alignment import Rename, align, tied_names
from monosoup_cli.sources.checkpoint import Checkpoint

__all__ = ["read_adapter"]


INITS = ("gaussian", "eva", "orthogonal", "mica")
"""The initializations that leave the base unchanged. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
subtract the first update from the base, so the factors do not belong to the original base."""
KNOWN_OPTIONS = {"use_dora", "use_rslora", "eva_config", "runtime_config"}
NOT_LORA = {"layer_replication", "alora_invocation_tokens", "enable_lora"}
OPTION = re.compile(r"use_.*|.*_config", re.DOTALL)
FLAGS = ("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias")

MAX_NAMED = 3


def read_adapter(
    own: Checkpoint,
    config: Mapping[str, Any],
    base: Mapping[str, TensorInfo] | None,
    renames: Sequence[Rename] = (),
) -> Adapter:
    """Find what an adapter changes in its base.

    Args:
        own: The adapter's own file.
        config: The content of adapter_config.json.
        base: The tensors of the base, whose names the result has; None to use the adapter's names.
        renames: The renames that the user asked for.

    Raises:
        CheckpointError: The adapter is malformed, is not LoRA, or does not fit the base.
    """
    path = own.path
    _check_config(config, path)
    modules, others = sort_keys(own)
    factors, deltas = read_factors(own, modules, config)
    settings = Settings(config, [one.subject(target) for one in factors for target in one.targets], path)

    kept: dict[str, str] = {}
    copies: dict[str, str] = {}
    targets = {target for one in factors for target in one.targets}
    for name, key in others.items():
        is_copy = WRAPPED.search(key) is not None and name in targets
        (copies if is_copy else kept)[name] = key
    if not (factors or deltas or kept):
        raise CheckpointError("holds no update", path=path)

    shapes = {name: own.tensors[key].shape for name, key in (*kept.items(), *copies.items())}
    for module, key in deltas.items():
        shapes.setdefault(f"{module}.weight", own.tensors[key].shape)
    for one in factors:
        for target in one.targets:
            shapes[target] = _without_base(one, target, config, settings)[1]
        if "bias" in one.keys:
            shapes[f"{one.module}.bias"] = own.tensors[one.keys["bias"]].shape
    read_as, notes, unused = _align_names(shapes, base, renames, path)
    optional = {target for one in factors if len(one.targets) > 1 for target in one.targets}
    parameters = {target for one in factors if one.parameters for target in one.targets}
    twins = {}
    for name, holder in _twins(kept, read_as, base, own).items():
        twins[holder] = kept.pop(name)
        del shapes[name]
    _check_present([name for name in shapes if name not in optional], read_as, base, parameters, path)

    def fit_to_base(kind: Mapping[str, str], is_whole: bool) -> dict[str, str]:
        """Map names in the base to keys, of tensors with its shape or with some of its rows."""
        for name, key in kind.items():
            shape, wanted = own.tensors[key].shape, None if base is None else base[read_as[name]].shape
            if base is not None and base[read_as[name]].dtype not in FLOATING:
                raise CheckpointError(
                    "changes a base tensor of a dtype that cannot be edited",
                    path=path,
                    tensor=key,
                    expected=" or ".join(FLOATING),
                    found=base[read_as[name]].dtype,
                )
            if wanted is not None and (shape if is_whole else shape[1:]) != wanted[0 if is_whole else 1 :]:
                raise CheckpointError(
                    "does not fit the base", path=path, tensor=key, expected=list(wanted), found=list(shape)
                )
        return {read_as[name]: key for name, key in kind.items()}

    pairs: dict[str, LoraPair] = {}
    biases: dict[str, str] = {}
    scales: dict[str, float] = {}
    known = _known_layouts(factors, base, read_as)
    for one, target in _named_factors(factors, base, read_as, path):
        pair = _pair(one, target, read_as.get(target, target), base, known, config, settings, path)
        if pair.name in pairs:
            raise _twice(pair.name, pair.a, path)
        pairs[pair.name] = pair
        if "bias" in one.keys:
            bias = f"{one.module}.bias"
            biases[bias], scales[read_as[bias]] = one.keys["bias"], pair.scale
        if pair.magnitude is not None:
            size, found = pair.shape[0 if pair.layout == LINEAR else -1], own.tensors[pair.magnitude]
            if found.elements != size:
                raise CheckpointError(
                    "does not fit the factors",
                    path=path,
                    tensor=found.name,
                    expected=f"{size} elements",
                    found=found.elements,
                )
    rows = {}
    for name, key in fit_to_base({f"{module}.weight": key for module, key in deltas.items()}, False).items():
        limit = math.inf if base is None else base[name].shape[0]
        rows[name] = key, _row_numbers(config, key, own.tensors[key].shape, limit, path)
    replaced = fit_to_base(kept, True)
    added = {name: (key, scales[name]) for name, key in fit_to_base(biases, True).items()}
    changed: set[str] = set()
    for kind in (pairs, replaced, rows, added):
        for name in kind:
            if name in changed:
                raise _twice(name, None, path)
            changed.add(name)
    return Adapter(own, config, pairs, replaced, rows, added, notes, unused, fit_to_base(copies, True), twins)


def _twice(name: str, key: str | None, path: str) -> CheckpointError:
    return CheckpointError(f"the adapter changes {crop(repr(name))} twice", path=path, tensor=key)


def _check_config(config: object, path: str) -> None:
    """Raise CheckpointError for a configuration that is malformed, is not LoRA, or changes the base."""

    def refuse(what: str, hint: str | None = None) -> CheckpointError:
        return CheckpointError(f"{ADAPTER_CONFIG}: {what}", path=path, hint=hint)

    if not isinstance(config, Mapping):
        raise refuse("is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise refuse(
            f"peft_type is {crop(repr(config.get('peft_type')))}, but only LORA adapters are supported"
        )
    for name in FLAGS:
        if not isinstance(config.get(name), bool | None):
            raise refuse(f"{name} must be true or false")
    init = config.get("init_lora_weights", True)
    if not (isinstance(init, bool | None) or (isinstance(init, str) and init.lower() in INITS)):
        raise refuse(
            f"init_lora_weights is {crop(repr(init))}, which may have changed the base",
            "peft's save_pretrained converts some of these with path_initial_model_for_weight_conversion",
        )
    for name, value in config.items():
        is_unknown = name in NOT_LORA or (OPTION.fullmatch(name) and name not in KNOWN_OPTIONS)
        if is_unknown and value not in (None, False, [], {}):
            raise refuse(f"{crop(name)} is set, which is more than plain LoRA")


def _without_base(
    factors: ModuleFactors, target: str, config: Mapping[str, Any], settings: Settings
) -> tuple[FactorLayout, tuple[int, ...]]:
    """Return the layout and shape by the factors alone. The rank determines the number of experts."""
    shape = factors.b[0], *factors.a[1:]
    if factors.parameters:
        experts = factors.a[0] // int(settings.rank(factors.subject(target)))
        return (EXPERTS, (experts, *shape)) if experts > 1 else (LINEAR, shape)
    if factors.is_embedding or (len(shape) == 2 and config.get("fan_in_fan_out")):
        return TRANSPOSED, shape[::-1]
    return LINEAR, shape


def _align_names(
    shapes: Mapping[str, tuple[int, ...]],
    base: Mapping[str, TensorInfo] | None,
    renames: Sequence[Rename],
    path: str,
) -> tuple[dict[str, str], tuple[str, ...], tuple[Rename, ...]]:
    """Return the adapter's names mapped to the base's, what was recognised, and renames without effect."""
    if base is None:
        return {name: name for name in shapes}, (), tuple(renames)
    headers = {name: TensorInfo(name, "F32", shape, 0, 0) for name, shape in shapes.items()}
    alignment = align(headers, base, renames, path)
    return {own: name for name, own in alignment.stored.items()}, alignment.notes, alignment.unused


def _check_present(
    names: Sequence[str],
    read_as: Mapping[str, str],
    base: Mapping[str, TensorInfo] | None,
    parameters: Collection[str],
    path: str,
) -> None:
    """Raise CheckpointError if the base lacks a tensor. `parameters` are those of target_parameters."""
    missing = [name for name in names if base is not None and read_as[name] not in base]
    if base is None or not missing:
        return
    tied = tied_names(base, {"tie_word_embeddings": True}, {}, {})
    holder = next((tied[read_as[name]] for name in missing if read_as[name] in tied), None)
    if holder is not None:
        hint = f"the base ties it to {holder!r}, which would change with it"
    elif missing[0] in parameters:
        hint = "if the base stores experts one by one, fuse them: transformers' save_original_format=False"
    else:
        hint = "is it the adapter of another model? --rename maps names to the base's"
    named = ", ".join(crop(repr(read_as[name])) for name in missing[:MAX_NAMED])
    more = f" and {len(missing) - MAX_NAMED:,} more" if len(missing) > MAX_NAMED else ""
    raise CheckpointError(f"changes tensors that the base does not have: {named}{more}", path=path, hint=hint)


def _twins(
    kept: Mapping[str, str],
    read_as: Mapping[str, str],
    base: Mapping[str, TensorInfo] | None,
    own: Checkpoint,
) -> dict[str, str]:
    """Find tied tensors that the adapter has twice: peft saves a tied tensor under each of its names.

    Returns:
        The names that the base lacks, mapped to the names in the base that they are tied to.
    """
    lacking = [name for name in kept if base is not None and read_as[name] not in base]
    if base is None or not lacking:
        return {}
    keys = {read_as[name]: key for name, key in kept.items()}
    tied = tied_names(base, {"tie_word_embeddings": True}, {}, {})
    holders = {name: tied[read_as[name]] for name in lacking if read_as[name] in tied}
    return {
        name: holder
        for name, holder in holders.items()
        if holder in keys and _are_same(own, kept[name], keys[holder])
    }


def _are_same(own: Checkpoint, one: str, other: str) -> bool:
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


def _named_factors(
    factors: Sequence[ModuleFactors],
    base: Mapping[str, TensorInfo] | None,
    read_as: Mapping[str, str],
    path: str,
) -> Iterator[tuple[ModuleFactors, str]]:
    """Yield all factors, each with the name of the tensor that it changes.

    Shapes say which of several parameters of a module factors belong to. Without a base such factors get the
    name of their wrapper.
    """
    modules: dict[str, list[ModuleFactors]] = defaultdict(list)
    for one in factors:
        modules[one.module].append(one)
    for group in modules.values():
        first = group[0]
        if len(first.targets) == 1:
            yield first, first.targets[0]
            continue
        if base is None:
            yield from ((one, one.module + one.depth * INNER) for one in group)
            continue
        present = [target for target in first.targets if read_as[target] in base]
        if len(present) < len(group):
            _check_present(first.targets, read_as, base, first.targets, path)
        fitting = [
            chosen
            for chosen in permutations(present[: MAX_NESTED + 1], len(group))
            if all(
                one.layouts(base[read_as[target]].shape) for one, target in zip(group, chosen, strict=True)
            )
        ]
        if len(fitting) != 1 or len(present) > MAX_NESTED:
            raise CheckpointError(
                "the shapes do not say which parameters the factors belong to"
                if fitting
                else "does not fit the base",
                path=path,
                tensor=first.keys["a"],
                found=f"factors for {len(group)} of {', '.join(map(repr, first.parameters[:MAX_NESTED]))}",
            )
        yield from zip(group, fitting[0], strict=True)


def _known_layouts(
    factors: Sequence[ModuleFactors], base: Mapping[str, TensorInfo] | None, read_as: Mapping[str, str]
) -> set[FactorLayout]:
    """Find the layouts of weights that are not square. Square weights are assumed to have the same.

    A matrix's bias is as long as its output. The configuration's flag is no help: a model may have both kinds
    of layers, and peft saves the flag of the last one. For experts, the factors of those that are not square
    say it.
    """
    known: set[FactorLayout] = set()
    for name, tensor in (base or {}).items():
        bias = (base or {}).get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1]:
            known |= {
                (LINEAR, TRANSPOSED)[tensor.shape.index(size)] for size in bias.shape if size in tensor.shape
            }
    for one in factors:
        for name in (read_as[target] for target in one.targets if one.parameters):
            layouts = one.layouts(base[name].shape) if base is not None and name in base else []
            known.update(layouts if len(layouts) == 1 and LINEAR not in layouts else ())
    return known


def _pair(
    factors: ModuleFactors,
    target: str,
    name: str,
    base: Mapping[str, TensorInfo] | None,
    known: set[FactorLayout],
    config: Mapping[str, Any],
    settings: Settings,
    path: str,
) -> LoraPair:
    a, b = factors.keys["a"], factors.keys["b"]
    if base is None:
        layout, shape = _without_base(factors, target, config, settings)
    else:
        shape = base[name].shape
        if base[name].dtype not in FLOATING:
            raise CheckpointError(
                "changes a base tensor that is quantized or not floating-point",
                path=path,
                tensor=a,
                expected=" or ".join(FLOATING),
                found=base[name].dtype,
            )
        layouts = factors.layouts(shape)
        if not layouts:
            raise CheckpointError(
                "does not fit the base",
                path=path,
                tensor=a,
                expected=list(shape),
                found=f"A {list(factors.a)} and B {list(factors.b)}",
                hint="is it the adapter of another model?",
            )
        if len(layouts) == 2 and layouts[0] == LINEAR and known.isdisjoint(layouts):
            layouts = [TRANSPOSED if config.get("fan_in_fan_out") else LINEAR]
        elif len(layouts) == 2:
            layouts = [layout for layout in layouts if layout in known]
        if len(layouts) != 1:
            raise CheckpointError(
                "the weight is square: its shape does not say whether it is stored transposed",
                path=path,
                tensor=a,
            )
        layout = layouts[0]
    experts = shape[0] if layout.is_stack else 1
    rank, subjects = factors.a[0] // experts, {factors.subject(target)}
    if base is None and len(factors.targets) > 1:
        subjects = set(factors.targets)
    wanted = {(settings.rank(subject), settings.alpha(subject)) for subject in subjects}
    if len(wanted) > 1:
        raise CheckpointError("its rank and scale are unknown without a base", path=path, tensor=a)
    [(expected, alpha)] = wanted
    if rank != expected:
        raise CheckpointError(
            f"the rank differs from {ADAPTER_CONFIG}", path=path, tensor=a, expected=expected, found=rank
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(name, shape, a, b, rank, scale, layout, factors.keys.get("magnitude"))


def _row_numbers(
    config: Mapping[str, Any], key: str, shape: tuple[int, ...], limit: float, path: str
) -> tuple[int, ...]:
    """The indices in trainable_token_indices of the rows that a tensor replaces, all below `limit`."""
    numbers = config.get("trainable_token_indices")
    if isinstance(numbers, Mapping):
        module = key.removeprefix(PREFIX).removesuffix(".token_adapter.trainable_tokens_delta")
        named = [numbers[name] for name in numbers if f".{module}".endswith(f".{name}")]
        numbers = named[0] if len(named) == 1 else None
    if (
        not isinstance(numbers, list)
        or not all(type(number) is int and 0 <= number < limit for number in numbers)
        or len(set(numbers)) != len(numbers)
        or (len(numbers), 2) != (shape[0] if shape else 0, len(shape))
    ):
        raise CheckpointError(
            "its rows do not match trainable_token_indices",
            path=path,
            tensor=key,
            expected="the index of an embedding row for each row",
            found=list(shape),
        )
    return tuple(numbers)
