"""Read single-file LoRAs, which diffusers and kohya's trainers write for image models.

These files have no adapter_config.json. Shapes say what the rank is. Alpha is a tensor next to the factors,
or in the metadata that diffusers writes; without an alpha the scale is 1.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.adapters.fused_names import Spot
from monosoup_cli.adapters.lora import TRANSPOSED, Adapter, BaseFit, FactorLayout, LoraPair, Piece
from monosoup_cli.adapters.lora_metadata import METADATA, noted_config
from monosoup_cli.adapters.pipeline_names import FLAT, PARTS, ROOTS, Wanted, finder, is_same_part
from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.dtypes import FLOATING, NUMBERS, number_in
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.lora_names import ENDS, end_of
from monosoup_cli.sources.alignment import Rename, align
from monosoup_cli.sources.library_files import ADAPTER_CONFIG
from monosoup_cli.sources.source import Source

__all__ = ["read_lora_file"]

Modules = dict[tuple[str, str], dict[str, str]]
"""Tensors by (prefix, module), and in each group by their kinds in ENDS."""
EVERYTHING = Wanted()
PEFT = "base_model.model."

PROCESSOR = re.compile(r"\.(?:processor\.)?to_(q|k|v|out)$")


def read_lora_file(
    own: Source, base: Mapping[str, TensorInfo], renames: Sequence[Rename] = (), wanted: Wanted = EVERYTHING
) -> Adapter:
    """Find what a single-file LoRA changes in its base.

    Args:
        own: The file.
        base: The tensors of the base, whose names the result has.
        renames: The renames that the user asked for, applied to the file's names.
        wanted: The parts of the pipeline that are edited.

    Raises:
        CheckpointError: The file is malformed, is not LoRA, does not fit the base, or changes several parts
            of a pipeline's folder.
        MismatchError: A rename maps two names to one.
    """
    aligned = align(own.tensors, base, renames, own.path)
    modules, notes = _wanted_modules(_modules(aligned.stored, own.path), wanted, own.path)
    finders = {prefix: finder(base, prefix) for prefix, _ in modules}
    configs = {prefix: {} if prefix in FLAT else noted_config(own, PARTS[prefix]) for prefix in finders}
    found = {(prefix, module): finders[prefix](module) for prefix, module in modules}
    at_hand = {prefix for (prefix, _), places in found.items() if places}
    pieces: dict[str, list[Piece]] = defaultdict(list)
    layouts: dict[str, FactorLayout] = {}
    for (prefix, module), parts in modules.items():
        tensor, places = next(iter(parts.values())), found[prefix, module]
        for factor in "AB":
            if factor not in parts:
                raise CheckpointError(
                    f"factor {factor} of the same module is missing", path=own.path, tensor=tensor
                )
        if not places:
            fitting = sorted({PARTS[one] for one in at_hand} - {""})
            raise _not_in_base(own.path, tensor, PARTS[prefix], module, fitting, prefix in at_hand)
        if len(places) > 1:
            raise CheckpointError(
                "may belong to more than one module of the base",
                path=own.path,
                tensor=tensor,
                found=" and ".join(crop(repr(spots[0].tensor)) for spots in places[:2]),
            )
        scale, spots = None, places[0]
        for spot in spots:
            rank = _fitting_rank(own, parts, base[spot.tensor], spot, spots)
            scale = _scale(own, parts, configs[prefix], module, rank) if scale is None else scale
            piece = Piece(parts["A"], parts["B"], rank, scale, spot.rows, spot.own_rows)
            twin = next((one for one in pieces[spot.tensor] if one.overlaps(piece)), None)
            if twin is not None:
                raise CheckpointError(
                    f"changes the base's {crop(repr(spot.tensor))}, which another tensor changes, too",
                    path=own.path,
                    tensor=tensor,
                    found=crop(repr(twin.a)),
                )
            pieces[spot.tensor].append(piece)
            layouts[spot.tensor] = spot.layout
    pairs = {
        name: LoraPair.of(name, base[name].shape, tuple(made), layouts[name]) for name, made in pieces.items()
    }
    fit = BaseFit(notes=tuple(notes))
    return Adapter(own, {}, pairs, read_as=aligned.notes, unused=aligned.unused, fit=fit)


def _wanted_modules(modules: Modules, wanted: Wanted, path: str) -> tuple[Modules, tuple[str, ...]]:
    """Leave out the modules of other parts than those that are wanted, with a note on them.

    Raises:
        CheckpointError: Nothing is wanted, or the base is one part of a pipeline and others are changed, too.
    """
    present = list(dict.fromkeys(PARTS[prefix] for prefix, _ in modules))
    if not wanted.parts:
        _check_folder(present, wanted, path)
        return modules, ()
    left = [part for part in present if part and not any(is_same_part(part, one) for one in wanted.parts)]
    kept = {key: parts for key, parts in modules.items() if PARTS[key[0]] not in left}
    if not kept:
        raise CheckpointError(
            "changes nothing of the parts that --parts names",
            path=path,
            expected=f"--parts {' or '.join(left)}",
            found=", ".join(wanted.parts),
        )
    words = f"what it changes of the {_listed(left)} is left out, as --parts says"
    return kept, (words,) if left else ()


def _check_folder(present: Sequence[str], wanted: Wanted, path: str) -> None:
    """Raise CheckpointError where the base is one part of a pipeline, and the file changes others."""
    here = [wanted.folder] if any(is_same_part(part, wanted.folder) for part in present) else []
    others = [one for one in wanted.others if any(is_same_part(part, one) for part in present)]
    if not others:
        return
    first, *rest = [*here, *others]
    steps = [f"run it with --parts {first}", *(f"with --parts {part} over that output" for part in rest)]
    raise CheckpointError(
        f"changes the pipeline's {_listed([*here, *others])}, and a run edits one part of a folder",
        path=path,
        hint=", then ".join(steps),
    )


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _modules(stored: Mapping[str, str], path: str) -> Modules:
    """Group the tensors by (prefix, module), and in each group by their kinds in ENDS."""
    modules: Modules = defaultdict(dict)
    for name, tensor in stored.items():
        if name.startswith(PEFT):
            raise CheckpointError(
                "a PEFT adapter, whose scale is in its configuration",
                path=path,
                tensor=tensor,
                hint=f"pass the folder that holds it and {ADAPTER_CONFIG}",
            )
        end = end_of(name)
        if end is None:
            raise CheckpointError("neither a LoRA factor nor an alpha", path=path, tensor=tensor)
        module = name.removesuffix(end)
        prefix = next(one for one in PARTS if module.startswith(one))
        module = module.removeprefix(prefix)
        if end.startswith("_"):
            module = PROCESSOR.sub(_text_projection if PARTS[prefix] in ROOTS else _projection, module)
        parts = modules[prefix, module]
        if ENDS[end] in parts:
            raise CheckpointError(
                "its module has two such tensors", path=path, tensor=tensor, found=repr(parts[ENDS[end]])
            )
        parts[ENDS[end]] = tensor
    return dict(modules)


def _projection(match: re.Match[str]) -> str:
    return ".to_out.0" if match[1] == "out" else f".to_{match[1]}"


def _text_projection(match: re.Match[str]) -> str:
    return f".{match[1]}_proj"


def _not_in_base(
    path: str, tensor: str, part: str, module: str, fitting: Sequence[str], is_at_hand: bool
) -> CheckpointError:
    if is_at_hand or not part:
        return CheckpointError(
            f"the base has no module {crop(repr(module))}",
            path=path,
            tensor=tensor,
            hint="is it an adapter of another model?",
        )
    what = part.replace("_", " ")
    alone = f", or take the {fitting[0]} alone with --parts {fitting[0]}" if fitting else ""
    return CheckpointError(
        f"changes the {what}'s {crop(repr(module))}, but the base has no {what}",
        path=path,
        tensor=tensor,
        hint=f"use a base that holds all parts, such as the model's single file{alone}",
    )


def _fitting_rank(
    own: Source, parts: Mapping[str, str], target: TensorInfo, spot: Spot, spots: Sequence[Spot]
) -> int:
    """Return the rank of the factors of a module, once they are known to fit a tensor of the base."""
    a, b = own.tensors[parts["A"]], own.tensors[parts["B"]]
    for factor in (a, b):
        if factor.dtype not in FLOATING or len(factor.shape) < 2:
            raise CheckpointError(
                "not a LoRA factor",
                path=own.path,
                tensor=factor.name,
                expected=f"a matrix or a kernel of {', '.join(FLOATING)}",
                found=f"{list(factor.shape)} of {factor.dtype}",
            )
    rank = a.shape[0]
    if b.shape[1] != rank or rank == 0:
        raise CheckpointError(
            "the factors differ in rank",
            path=own.path,
            tensor=b.name,
            found=f"{list(b.shape)} × {list(a.shape)}",
        )
    shape, wanted = (b.shape[0], *a.shape[1:]), _update_shape(target, spot, spots)
    if _without_ones(shape) != _without_ones(wanted) or math.prod(b.shape[2:]) != 1:
        raise CheckpointError(
            "the factors do not fit the base",
            path=own.path,
            tensor=b.name,
            expected=f"{list(wanted)} of {crop(repr(target.name))}",
            found=f"{list(b.shape)} × {list(a.shape)}",
        )
    if target.dtype not in FLOATING:
        raise CheckpointError(
            f"the base's {crop(repr(target.name))} cannot be changed",
            path=own.path,
            tensor=b.name,
            expected=", ".join(FLOATING),
            found=target.dtype,
        )
    return rank


def _update_shape(target: TensorInfo, spot: Spot, spots: Sequence[Spot]) -> tuple[int, ...]:
    """The shape of the whole update of a module, of which a tensor of the base may take some rows."""
    if spot.layout == TRANSPOSED:
        return target.shape[::-1]
    if spot.own_rows is not None:
        return (max(one.own_rows[1] for one in spots if one.own_rows is not None), *target.shape[1:])
    return target.shape if spot.rows is None else (spot.rows[1] - spot.rows[0], *target.shape[1:])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing ones, because a 1×1 convolution is a linear layer."""
    return shape[:2] if set(shape[2:]) == {1} else shape


def _scale(own: Source, parts: Mapping[str, str], config: Mapping[str, Any], module: str, rank: int) -> float:
    alphas: dict[str, Any] = {}
    if "alpha" in parts:
        alphas[parts["alpha"]] = _number(own, parts["alpha"])
    if config:
        fitting = (alpha for pattern, alpha in config["alpha_pattern"].items() if pattern.match(module))
        alphas[METADATA] = next(fitting, config.get("lora_alpha"))
    for alpha in alphas.values():
        # also refuses other types, and integers beyond float64
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise CheckpointError(
                "alpha is not a finite number",
                path=own.path,
                tensor=parts.get("alpha", parts["A"]),
                found=crop(repr(alpha)),
            )
    if len(set(alphas.values())) > 1:
        raise CheckpointError(
            f"alpha differs from the file's {METADATA}",
            path=own.path,
            tensor=parts["alpha"],
            expected=alphas[METADATA],
            found=alphas[parts["alpha"]],
        )
    alpha = next(iter(alphas.values()), rank)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") and METADATA in alphas else rank)


def _number(own: Source, name: str) -> float:
    tensor = own.tensors[name]
    if tensor.elements != 1 or tensor.dtype not in NUMBERS:
        raise CheckpointError(
            "alpha is not a number",
            path=own.path,
            tensor=name,
            expected="one number",
            found=f"{list(tensor.shape)} of {tensor.dtype}",
        )
    data = bytearray(tensor.nbytes)
    own.reader(name).read_into(memoryview(data), 0)
    return number_in(data, tensor.dtype)
