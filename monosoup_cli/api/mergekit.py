"""Read configurations of mergekit (github.com/arcee-ai/mergekit), of the methods that are here."""

from __future__ import annotations

import filecmp
import glob
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, UsageError, crop
from monosoup_cli.values import check_keys

__all__ = ["METHODS", "is_mergekit", "step_of_mergekit"]

DTYPES = ("float32", "bfloat16", "float16")
NO_WEIGHT = 1e-8
"""A sum of weights by which mergekit does not divide."""
LINEAR, ARITHMETIC, STOCK = "linear", "task_arithmetic", "model_stock"


def is_mergekit(content: Mapping[str, Any]) -> bool:
    """Whether this is a configuration of mergekit."""
    return "merge_method" in content


def step_of_mergekit(content: Mapping[str, Any]) -> dict[str, Any]:
    """The step that does what a configuration says.

    Args:
        content: The configuration, as YAML has it.

    Returns:
        A step of a recipe, without its output.

    Raises:
        UsageError: It asks for what is not here.
    """
    method = content["merge_method"]
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(
            f"only mergekit has merge_method {crop(repr(method))}",
            expected=", ".join(METHODS),
            hint="merge with mergekit, and use the result as an input here",
        )
    known = {"merge_method", "models", "base_model", "dtype", "out_dtype", "parameters", "tokenizer_source"}
    _refuse_others(content, known, "the configuration")
    models = content.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(one, dict) for one in models):
        raise UsageError("needs models: a list, each with model: PATH")
    parameters = _mapping(content.get("parameters"))
    step: dict[str, Any] = METHODS[method](content, models, parameters)
    _check_tokenizer(content, [one["model"] for one in models], step)
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError("unknown dtype", expected=", ".join(DTYPES), found=crop(repr(dtype)))
    return {**step, **({} if dtype is None else {"dtype": dtype})}


def _refuse_others(given: Mapping[str, Any], known: set[str], what: str) -> None:
    check_keys(
        f"{what} has what monosoup does not do:",
        given,
        known,
        hint="take it out, or merge with mergekit and use the result as an input here",
    )


def _check_tokenizer(content: Mapping[str, Any], models: Sequence[str], step: Mapping[str, Any]) -> None:
    """Raise UsageError for a tokenizer that the output does not have, or that not all models have: mergekit
    would move rows of embeddings.

    mergekit's "base" is the tokenizer of base_model, or else of the first model.
    """
    source, base = content.get("tokenizer_source"), content.get("base_model") or models[0]
    if source is None:
        return
    first = next((one for one in models if one != base or step["command"] == "soup"), base)
    model, _, adapter = step.get("onto", first).partition("+")
    ours = adapter if adapter and _has_tokenizer(adapter) else model
    is_base = ours == base.partition("+")[0]
    named = base if source == "base" else str(source)
    is_input = named in (base, *models)
    other = _other_file(named, ours) if is_input else None
    if named.partition("+")[0] != ours and not (is_input and other is None):
        raise UsageError(
            f"tokenizer_source {crop(repr(source))} is not the tokenizer that the output has",
            expected=f"base or {ours}" if is_base else ours,
            found=None if not other else f"another {other} in {named}",
            hint="take it out, or merge with mergekit and use the result as an input here",
        )
    _check_vocabularies([part for one in (base, *models) for part in one.split("+")])


def _has_tokenizer(folder: str) -> bool:
    return bool(_tokenizer_files(folder))


def _tokenizer_files(folder: str) -> list[str]:
    from monosoup_cli.outputs.side_files import TOKENIZER

    return sorted({name for pattern in TOKENIZER for name in glob.glob(pattern, root_dir=folder)})


def _other_file(one: str, other: str) -> str | None:
    """The first file of a tokenizer in which two local folders differ; "" where one has no tokenizer,
    and None where all files are the same to the byte."""
    names, others = _tokenizer_files(one), _tokenizer_files(other)
    if not names or not others:
        return ""
    try:
        return next(
            (
                name
                for name in sorted({*names, *others})
                if name not in names
                or name not in others
                or not filecmp.cmp(Path(one, name), Path(other, name), shallow=False)
            ),
            None,
        )
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=error.filename) from None


def _check_vocabularies(folders: Sequence[str]) -> None:
    """Raise UsageError for folders that have other vocabularies; only files of the same name are compared."""
    from monosoup_cli.sources.tokenizers import MODELS, VOCABULARIES

    try:
        for name in (*VOCABULARIES, *MODELS):
            first, *others = [one for one in folders if Path(one, name).is_file()] or [""]
            for other in others:
                if not filecmp.cmp(Path(first, name), Path(other, name), shallow=False):
                    raise UsageError(
                        "tokenizer_source needs one tokenizer in all models",
                        found=f"another {name} in {other} than in {first}",
                        hint="take it out if the same rows of the embeddings stand for the same tokens, or"
                        " merge with mergekit and use the result as an input here",
                    )
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=error.filename) from None


def _linear(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Σ w_i W_i / Σ w_i, which is a soup with weights.

    With negative ones it is no mean, but W_1 + Σ w_i (W_i − W_1) / Σ w_i: a transplant onto the first model.
    """
    _refuse_others(parameters, {"normalize", "weight"}, "parameters")
    sources, weights = _weighed(models, parameters)
    if content.get("base_model") not in (None, *sources):
        raise UsageError(
            "linear with a base_model that is not among the models averages it, too",
            hint="take it out, or name it among the models",
        )
    if not _is_set(parameters, "normalize", default=True) and abs(sum(weights) - 1.0) > 1e-6:
        raise UsageError(
            "normalize: false needs weights that sum to 1",
            found=sum(weights),
            hint="scale them, or merge with mergekit and use the result as an input here",
        )
    own, base = _adapters_apart(sources, None)
    if min(weights) >= 0.0:
        return {
            "command": "soup",
            "finetuned": own,
            "weights": weights,
            **({} if base is None else {"base": base}),
        }
    if base is not None:
        raise UsageError(
            "linear with negative weights reads no MODEL+ADAPTER; `monosoup merge` makes a model of it"
        )
    total, (first, *others) = sum(weights), sources
    if abs(total) < NO_WEIGHT:
        raise UsageError("the weights of linear sum to 0, by which they are divided", found=weights)
    scales = [weight / total for weight in weights[1:]]
    return {"command": "transplant", "base": first, "finetuned": others, "onto": first, "scale": scales}


def _arithmetic(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """W_0 + λ Σ w_i (W_i − W_0), over Σ w_i if normalised: a transplant onto the base itself."""
    _refuse_others(parameters, {"normalize", "weight", "lambda", "int8_mask"}, "parameters")  # it has no mask
    base = _base(content)
    sources, weights = _weighed([one for one in models if one.get("model") != base], parameters)
    scale = _number(parameters.get("lambda", 1.0), "lambda")
    if _is_set(parameters, "normalize", default=False):
        total = sum(weights)
        scale /= total if abs(total) >= NO_WEIGHT else 1.0
    scales = [scale * weight for weight in weights]
    own, _ = _adapters_apart(sources, base)
    return {"command": "transplant", "base": base, "finetuned": own, "onto": base, "scale": scales}


def _stock(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    _refuse_others(parameters, {"filter_wise"}, "parameters")
    base = _base(content)
    sources, _ = _weighed([one for one in models if one.get("model") != base], {}, 1.0)
    granularity = "filter" if _is_set(parameters, "filter_wise", default=False) else "tensor"
    own, _ = _adapters_apart(sources, base)
    return {"command": "stock", "base": base, "finetuned": own, "granularity": granularity}


METHODS: Mapping[str, Callable[..., dict[str, Any]]] = {
    LINEAR: _linear,
    ARITHMETIC: _arithmetic,
    STOCK: _stock,
}
"""What mergekit calls its methods, and what makes steps of them."""


def _base(content: Mapping[str, Any]) -> str:
    base = content.get("base_model")
    if not isinstance(base, str):
        raise UsageError(f"{content['merge_method']} needs base_model: PATH")
    return base


def _weighed(
    models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any], default: float | None = None
) -> tuple[list[str], list[float]]:
    """The models, and the weight of each, which has to be there if there is no default."""
    sources, weights = [], []
    for one in models:
        _refuse_others(one, {"model", "parameters"}, "a model")
        if not isinstance(one.get("model"), str):
            raise UsageError("a model is a path or an id", found=crop(repr(one.get("model"))))
        own = _mapping(one.get("parameters"))
        _refuse_others(own, {"weight"}, "a model's parameters")
        sources.append(one["model"])
        weights.append(_number(own.get("weight", parameters.get("weight", default)), "weight"))
    return sources, weights


def _adapters_apart(sources: Sequence[str], base: str | None) -> tuple[list[str], str | None]:
    """The checkpoints, of MODEL+ADAPTER the adapter alone; and the MODEL of all adapters, or None.

    Raises:
        UsageError: An adapter is on another model than the base, or than another adapter.
    """
    pairs = [source.partition("+") for source in sources]
    models = {model for model, plus, _ in pairs if plus}
    if len(models | {base} - {None}) > 1 and models:
        raise UsageError(
            "an adapter is on another model; `monosoup merge` makes a model of the two",
            found=crop(", ".join(sorted(models))),
        )
    return [adapter if plus else model for model, plus, adapter in pairs], next(iter(models), None)


def _mapping(parameters: Any) -> Mapping[str, Any]:
    if parameters is not None and not isinstance(parameters, dict):
        raise UsageError("parameters must have names and values", found=crop(repr(parameters)))
    return parameters or {}


def _is_set(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, for all tensors", found=crop(repr(value)))
    return value


def _number(value: Any, what: str) -> float:
    with suppress(ValueError, OverflowError):
        number = (
            float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        )
        if math.isfinite(number):
            return number
    if value is None:
        raise UsageError(f"a model has no {what}", expected=f"parameters: {{{what}: NUMBER}}")
    by_depth = "`monosoup lines` scales an update by depth, and `layers` of a recipe sets scales by name; or "
    mergekit = "merge with mergekit, and use the result as an input here"
    raise UsageError(
        f"{what} must be a number, the same for all tensors",
        found=crop(repr(value)),
        hint=by_depth + mergekit if isinstance(value, list) else mergekit,
    )
