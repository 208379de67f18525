"""Read configurations of mergekit (github.com/arcee-ai/mergekit), of the methods that are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monosoup_cli.errors import UsageError, crop, some

__all__ = ["METHODS", "is_mergekit", "step_of_mergekit"]

IGNORED = ("chat_template", "parameters")
"""The keys that say nothing about the weights, or that are looked into."""
DTYPES = ("float32", "bfloat16", "float16")
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
    if method not in METHODS:
        raise UsageError(
            f"merge_method {crop(repr(method))} is mergekit's alone",
            expected=", ".join(METHODS),
            hint="merge with mergekit, and use the result as an input here",
        )
    known = {"merge_method", "models", "base_model", "dtype", "out_dtype", *IGNORED}
    _refuse_others(content, known, "the configuration")
    models = content.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(one, dict) for one in models):
        raise UsageError("needs models: a list, each with model: PATH")
    parameters = content.get("parameters") or {}
    step: dict[str, Any] = METHODS[method](content, models, parameters)
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError("unknown dtype", expected=", ".join(DTYPES), found=crop(repr(dtype)))
    return {**step, **({} if dtype is None else {"dtype": dtype})}


def _refuse_others(given: Mapping[str, Any], known: set[str], what: str) -> None:
    others = [crop(str(key)) for key in given if key not in known]
    if others:
        raise UsageError(
            f"{what} has what monosoup does not do: {some(others, 4)}",
            hint="take it out, or merge with mergekit and use the result as an input here",
        )


def _linear(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Σ w_i W_i / Σ w_i, which is a soup with weights."""
    _refuse_others(parameters, {"normalize", "weight"}, "parameters")
    sources, weights = _weighed(models, parameters)
    if not parameters.get("normalize", True) and abs(sum(weights) - 1.0) > 1e-6:
        raise UsageError(
            "normalize: false needs weights that sum to 1",
            found=sum(weights),
            hint="scale them, or merge with mergekit and use the result as an input here",
        )
    return {"command": "soup", "finetuned": sources, "weights": weights}


def _arithmetic(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """W_0 + λ Σ w_i (W_i − W_0), over Σ w_i if normalised: a transplant onto the base itself."""
    _refuse_others(parameters, {"normalize", "weight", "lambda"}, "parameters")
    base = _base(content)
    sources, weights = _weighed([one for one in models if one.get("model") != base], parameters)
    scale = _number(parameters.get("lambda", 1.0), "lambda")
    if parameters.get("normalize", False):
        scale /= sum(weights)
    scales = [scale * weight for weight in weights]
    return {"command": "transplant", "base": base, "finetuned": sources, "onto": base, "scale": scales}


def _stock(
    content: Mapping[str, Any], models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    _refuse_others(parameters, {"filter_wise"}, "parameters")
    base = _base(content)
    sources, _ = _weighed([one for one in models if one.get("model") != base], {})
    granularity = "filter" if parameters.get("filter_wise", False) else "tensor"
    return {"command": "stock", "base": base, "finetuned": sources, "granularity": granularity}


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
    models: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> tuple[list[str], list[float]]:
    """The models, and the weight of each."""
    sources, weights = [], []
    for one in models:
        _refuse_others(one, {"model", "parameters"}, "a model")
        if not isinstance(one.get("model"), str):
            raise UsageError("a model is a path or an id", found=crop(repr(one.get("model"))))
        own = one.get("parameters") or {}
        _refuse_others(own, {"weight"}, "a model's parameters")
        sources.append(one["model"])
        weights.append(_number(own.get("weight", parameters.get("weight", 1.0)), "weight"))
    return sources, weights


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(
            f"{what} must be a number, the same for all tensors",
            found=crop(repr(value)),
            hint="merge with mergekit, and use the result as an input here",
        )
    return float(value)
