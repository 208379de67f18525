"""Read PEFT adapters: which tensors of the base they change, and how.

Only the configuration and the headers are read; factors are read later. Adapters that are not LoRA, or that
change the base itself, are refused.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from monosoup_cli.adapters.base import (
    align_names,
    are_same,
    are_same_update,
    check_present,
    doubts_on_base,
    notes_on_new,
    ties_in,
    twins_of,
)
from monosoup_cli.adapters.fit import check_fit, lacks_rows, resized_shape, row_numbers
from monosoup_cli.adapters.keys import INNER, MAX_NESTED, WRAPPED, ModuleFactors, read_factors, sort_keys
from monosoup_cli.adapters.lora import EXPERTS, LINEAR, TRANSPOSED, Adapter, BaseFit, FactorLayout, LoraPair
from monosoup_cli.adapters.patterns import Settings
from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.header import FLOATING, TensorInfo
from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.library_files import ADAPTER_CONFIG
from monosoup_cli.sources.source import Source

__all__ = ["read_adapter"]


INITS = ("gaussian", "eva", "orthogonal", "mica")
"""The initializations that leave the base unchanged. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
subtract the first update from the base, so the factors do not belong to the original base."""
KNOWN_OPTIONS = {"use_dora", "use_rslora", "eva_config", "runtime_config"}
NOT_LORA = {"layer_replication", "alora_invocation_tokens", "enable_lora"}
OPTION = re.compile(r"use_.*|.*_config", re.DOTALL)
FLAGS = ("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias")


def read_adapter(
    own: Source,
    config: Mapping[str, Any],
    base: Mapping[str, TensorInfo] | None,
    renames: Sequence[Rename] = (),
    model: Files | None = None,
) -> Adapter:
    """Find what an adapter changes in its base.

    Args:
        own: The adapter's own file.
        config: The content of adapter_config.json.
        base: The tensors of the base, whose names the result has; None to use the adapter's names.
        renames: The renames that the user asked for.
        model: The files of the base, which say what it ties.

    Raises:
        CheckpointError: The adapter is malformed, is not LoRA, or does not fit the base.
    """
    path = own.path
    _check_config(config, path)
    keys = sort_keys(own)
    factors, deltas = read_factors(own, keys.modules, config)
    settings = Settings(config, [one.subject(target) for one in factors for target in one.targets], path)

    kept: dict[str, str] = {}
    copies: dict[str, str] = dict(keys.copies)
    targets = {target for one in factors for target in one.targets}
    for name, key in keys.others.items():
        is_copy = WRAPPED.search(key) is not None and name in targets
        (copies if is_copy else kept)[name] = key
    again = {name: (key,) for name, key in keys.saved.items() if kept.setdefault(name, key) != key}
    for name, (key,) in again.items():
        if not are_same(own, key, kept[name]):
            raise CheckpointError("is there twice, and differs", path=path, tensor=key, found=kept[name])
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
    saved = [f".{module}." for module in config.get("modules_to_save") or ()]

    def is_saved(name: str) -> bool:
        return name in kept and any(module in f".{name}" for module in saved)

    read_as, notes, unused = align_names(shapes, base, renames, is_saved, path)
    ties = ties_in(base, model)
    twins = _drop_twins(own, kept, again, deltas, factors, lambda names: twins_of(names, read_as, base, ties))
    twins = {read_as[name]: twice for name, twice in twins.items()}
    tied = frozenset(ties.values() & twins.keys())
    new = [name for name in kept if base is not None and read_as[name] not in base]
    new = [name for name in new if is_saved(name) and read_as[name] not in ties]
    needed = [name for name in kept if name not in new] + [f"{module}.weight" for module in deltas]
    for one in factors:
        needed += [
            *(one.targets if len(one.targets) == 1 else ()),
            *([f"{one.module}.bias"] * ("bias" in one.keys)),
        ]
    parameters = {target for one in factors if one.parameters for target in one.targets}
    check_present(needed, read_as, base, ties, parameters, path, model)
    copies = {name: key for name, key in copies.items() if base is None or read_as[name] in base}

    def fit_to_base(kind: Mapping[str, str]) -> dict[str, str]:
        """Map names in the base to keys. Of matrices and what is trained whole, rows may differ in number."""
        for name, key in kind.items():
            if base is not None and name not in new:
                may_differ = len(own.tensors[key].shape) > 1 or is_saved(name)
                check_fit(own.tensors[key], base[read_as[name]], path, may_differ=may_differ)
        return {read_as[name]: key for name, key in kind.items()}

    before = {read_as[name]: key for name, key in copies.items()}
    changed_shapes: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, LoraPair] = {}
    biases: dict[str, str] = {}
    scales: dict[str, float] = {}
    known = _known_layouts(factors, base, read_as)
    for one, target in _named_factors(factors, base, read_as, path):
        name = read_as.get(target, target)
        shape = None if base is None else resized_shape(one, base[name], before.get(name), own)
        if shape is not None:
            changed_shapes[name] = shape
        pair = _pair(one, target, name, base, known, config, settings, path, shape)
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
    for name, key in fit_to_base({f"{module}.weight": key for module, key in deltas.items()}).items():
        rows[name] = key, row_numbers(config, key, own.tensors[key].shape, path)
        if base is not None:
            shape = own.tensors[before[name]].shape if name in before else base[name].shape
            if max(rows[name][1], default=0) >= shape[0]:
                raise lacks_rows(key, base[name].shape, own.tensors[key].shape, path)
            if shape != base[name].shape:
                changed_shapes[name] = shape
    replaced = fit_to_base(kept)
    for name, key in replaced.items():
        if base is not None and (name not in base or own.tensors[key].shape != base[name].shape):
            changed_shapes[name] = own.tensors[key].shape
    added = {name: (key, scales[name]) for name, key in fit_to_base(biases).items()}
    for name, key in before.items():
        if base is not None:
            resized = replace(base[name], shape=changed_shapes.get(name, base[name].shape))
            check_fit(own.tensors[key], resized, path, may_differ=False)
    changed: set[str] = set()
    for kind in (pairs, replaced, rows, added):
        for name in kind:
            if name in changed:
                raise _twice(name, None, path)
            changed.add(name)
    return Adapter(
        own,
        config,
        pairs,
        replaced,
        rows,
        added,
        notes,
        unused,
        before,
        twins,
        BaseFit(
            tied,
            changed_shapes,
            notes_on_new({read_as[name]: own.tensors[kept[name]].shape for name in new}, config),
            doubts_on_base(config, model, len(replaced)),
        ),
    )


def _drop_twins(
    own: Source,
    kept: dict[str, str],
    again: Mapping[str, tuple[str, ...]],
    deltas: dict[str, str],
    factors: list[ModuleFactors],
    find: Callable[[Mapping[str, object]], Mapping[str, str]],
) -> dict[str, tuple[str, ...]]:
    """Take out what the adapter has a second time for a tensor that the base ties: peft saves both.

    Args:
        own: The adapter's own file.
        kept: The keys of saved tensors.
        again: Further keys of some of them.
        deltas: The keys of rows, by module.
        factors: The factors of all modules.
        find: Finds names that the base ties to others of the names, see `twins_of`.

    Returns:
        The adapter's names of the tensors that stay, mapped to the keys of the same again.
    """
    twins = defaultdict(tuple, again)
    for name, holder in find(kept).items():
        if are_same(own, kept[name], kept[holder]):
            twins[holder] = (*twins[holder], kept.pop(name), *twins.pop(name, ()))
    modules = {f"{module}.weight": module for module in deltas}
    for name, holder in find(modules).items():
        if are_same(own, deltas[modules[name]], deltas[modules[holder]]):
            twins[holder] = (*twins[holder], deltas.pop(modules[name]))
    by_name = {one.targets[0]: one for one in factors if len(one.targets) == 1}
    for name, holder in find(by_name).items():
        if are_same_update(own, by_name[name], by_name[holder]):
            factors.remove(by_name[name])
            twins[holder] = (*twins[holder], *by_name[name].keys.values())
    return dict(twins)


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
    whole = config.get("modules_to_save")
    if whole is not None and not (isinstance(whole, list) and all(isinstance(one, str) for one in whole)):
        raise refuse("modules_to_save must be a list of names")
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
            check_present(first.targets, read_as, base, {}, first.targets, path, None)
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
    resized: tuple[int, ...] | None,
) -> LoraPair:
    a, b = factors.keys["a"], factors.keys["b"]
    if base is None:
        layout, shape = _without_base(factors, target, config, settings)
    else:
        shape = resized or base[name].shape
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
    if not alpha:
        raise CheckpointError(
            f"{ADAPTER_CONFIG}: lora_alpha is 0, with which the adapter changes nothing",
            path=path,
            tensor=a,
            hint=f"set lora_alpha in {ADAPTER_CONFIG} to that of the training, which verl does not save",
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraPair(name, shape, a, b, rank, scale, layout, factors.keys.get("magnitude"))
