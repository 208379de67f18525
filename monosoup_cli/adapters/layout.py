"""Lay out the updates of a whole model as a LoRA adapter that peft can load.

Only names and shapes decide. We assume that a name in the file is that of the module and its parameter, as
`save_pretrained` writes it for most models, that convolutions with more than one input channel are not
grouped, and that only tables of a vocabulary are tied.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from monosoup_cli.adapters.lora import LINEAR, TRANSPOSED, FactorLayout, LoraPair
from monosoup_cli.adapters.module_names import (
    CONV1D,
    EMBEDDINGS,
    HEADLESS,
    HEADS,
    MAMBA,
    MAYBE_EMBEDDINGS,
    MOVED,
    NUMBERS,
    RENAMED,
    SHARED,
    TRANSPOSED_CONVOLUTION,
    WORDS,
)

__all__ = ["AdapterLayout", "factor_shapes", "lay_out_adapter"]

PREFIX = "base_model.model."
REGULAR = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""Module names that match themselves when peft uses them as regular expressions."""


@dataclass(frozen=True)
class AdapterLayout:
    """How the updates of a whole model are stored as a LoRA adapter.

    Attributes:
        config: The content of adapter_config.json.
        pairs: The names, ranks and layouts of the factors, by the tensor of the base. All scales are 1.
        carried: The tensors of the fine-tuned model that are stored whole, mapped to the adapter's names.
        left: The tensors that no adapter can hold.
    """

    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    carried: Mapping[str, str]
    left: tuple[str, ...]


def lay_out_adapter(
    shapes: Mapping[str, tuple[int, ...]],
    ranks: Mapping[str, int],
    others: Collection[str],
    model_config: Mapping[str, Any] | None,
    base_name: str | None,
) -> AdapterLayout:
    """Lay out an adapter that holds as much as peft can load.

    A matrix for which peft makes no factors is stored whole if it belongs to a module. peft loads no adapter
    without pairs.

    Args:
        shapes: The shapes of all tensors of the fine-tuned model.
        ranks: The ranks of the updates of matrices, at most the smaller side of each.
        others: The tensors that changed or are new, and have no factors.
        model_config: The content of the model's config.json.
        base_name: What the configuration names as the base.
    """
    task = _task(model_config)
    modules = _Modules(shapes, model_config, HEADS if task in ("SEQ_CLS", "TOKEN_CLS") else ())
    layouts = {name: modules.layout_of(name) for name, rank in ranks.items() if rank > 0}
    factored = {_module(name) for name, layout in layouts.items() if layout is not None}
    wanted = [name for name, rank in ranks.items() if rank > 0 and layouts[name] is None]
    wanted += [name for name in others if name not in ranks]
    biases = {
        name: f"{PREFIX}{_module(name)}.base_layer.bias" for name in wanted if _module(name) in factored
    }
    holders = {name: modules.head_of(name) or _module(name) for name in shapes}
    whole = modules.whole_ones(modules.held_anyway | {holders[name] for name in wanted} - factored, factored)
    carried = biases | {name: PREFIX + name for name in shapes if holders[name] in whole}
    pairs = {
        name: _pair(name, shapes[name], ranks[name], layout)
        for name, layout in layouts.items()
        if layout is not None
    }
    left = tuple(name for name in wanted if name not in carried)
    config = {
        "base_model_name_or_path": base_name,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": any("lora_A" in pair.a and pair.layout == TRANSPOSED for pair in pairs.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(whole) or None,
        "peft_type": "LORA",
        "target_modules": modules.pattern_of(factored),
        "task_type": task,
        "use_dora": False,
        "use_rslora": False,
        **_ranks_of(pairs),
    }
    return AdapterLayout(config, pairs, carried, left)


def factor_shapes(pair: LoraPair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the factors A and B, as peft stores them."""
    if pair.layout == TRANSPOSED:
        return (pair.rank, pair.shape[0]), (pair.shape[1], pair.rank)
    return (pair.rank, *pair.shape[1:]), (pair.shape[0], pair.rank, *(1 for _ in pair.shape[2:]))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _word(module: str) -> str:
    """The last component that is not a number."""
    return _last(NUMBERS.sub("", module))


class _Modules:
    """The modules of a model, by the names and shapes of its tensors and its configuration."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None, heads: tuple[str, ...]
    ) -> None:
        self._shapes, self._heads = shapes, heads
        self._own: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for name, shape in shapes.items():
            self._own[_module(name)][_last(name)] = shape
        self._parents = {
            ".".join(parts[:end])
            for parts in (name.split(".") for name in self._own)
            for end in range(len(parts))
        }
        model_type = (config or {}).get("model_type")
        self._is_renamed, self._is_mamba = model_type in RENAMED, model_type in MAMBA
        self._has_experts = any("experts" in module.split(".") for module in self._own)
        # a Conv1D's bias is as long as its columns; square ones are assumed to be like the others
        self._has_conv1d = any(
            _last(module) in CONV1D and _is_across(tensors) for module, tensors in self._own.items()
        )
        self._has_head = HEADLESS.search(_architecture(config or {})) is None

    @cached_property
    def _all(self) -> set[str]:
        return (self._own.keys() | self._parents) - {""}

    @cached_property
    def held_anyway(self) -> set[str]:
        return {head for head in map(self.head_of, self._shapes) if head is not None}

    def _is_named(self, module: str) -> bool:
        """Whether the loaded model has a module of this name, and no other with the same weights."""
        if self._is_renamed or not REGULAR.fullmatch(module) or self._is_tied(module):
            return False
        if not self._has_experts:
            return True
        parts = module.split(".")
        beside = ".".join([*parts[:-1], "experts"])
        return "experts" not in parts and beside not in self._all and parts[-1] not in MOVED

    def _is_tied(self, module: str) -> bool:
        """Whether other modules share its weights, as a head shares those of an embedding.

        A head has its own weights if the file has a second matrix of that shape.
        """
        last, shape = _word(module), self._own.get(module, {}).get("weight")
        if not SHARED.isdisjoint(module.split(".")):
            return True
        if last not in WORDS or shape is None:
            return False
        twins = (other for other, tensors in self._own.items() if tensors.get("weight") == shape)
        return self._has_head and all(_word(twin) in EMBEDDINGS for twin in twins)

    def _is_plain(self, module: str) -> bool:
        """Whether the module has weights, contains no modules, and is not a stack of experts."""
        shape = self._own.get(module, {}).get("weight")
        return shape is not None and module not in self._parents and (len(shape) != 3 or "conv" in module)

    def head_of(self, name: str) -> str | None:
        """Return the outermost module around a tensor that peft always saves whole, or None."""
        parts = name.split(".")
        ends = range(1, len(parts)) if self._heads else ()
        return next((".".join(parts[:end]) for end in ends if parts[end - 1].endswith(self._heads)), None)

    def layout_of(self, name: str) -> FactorLayout | None:
        """Return the layout of the factors of a tensor; None if peft makes none for it."""
        module, tensors = _module(name), self._own[_module(name)]
        shape, last = self._shapes[name], _word(module)
        if (
            _last(name) != "weight"
            or tensors.keys() - {"weight", "bias"}
            or module in self._parents
            or self.head_of(name) is not None
            or not self._is_named(module)
        ):
            return None
        if last == "out_proj" and (self._is_mamba or f"{_module(module)}.in_proj_weight" in self._shapes):
            return None  # the model uses its weights without calling the module
        if len(shape) == 2:
            if last in EMBEDDINGS and "bias" not in tensors:
                return TRANSPOSED
            if MAYBE_EMBEDDINGS.search(last):
                return None
            if last in CONV1D and self._has_conv1d:
                return TRANSPOSED
        elif (
            len(shape) not in (4, 5)  # models read the stride of a Conv1d, which peft's does not have
            or shape[1] == 1 < shape[0]  # depthwise
            or TRANSPOSED_CONVOLUTION.search(module)
        ):
            return None
        return LINEAR if tensors.get("bias", shape[:1]) == shape[:1] else None

    def whole_ones(self, wanted: set[str], factored: set[str]) -> set[str]:
        """Return the wanted modules that `modules_to_save` can name without catching others.

        peft saves every module whose name has the same ending. It makes no factors for modules in which the
        name, as a regular expression, matches whole components.
        """
        whole = {
            module
            for module in wanted
            if self._is_named(module)
            and (
                _last(module).endswith(self._heads)
                if self._heads and module in self._parents
                else self._is_plain(module)
            )
        }
        every, with_factors = ("\n".join(("", *names, "")) for names in (self._all, sorted(factored)))
        while True:
            taken = "\n".join(("", *whole, ""))
            caught = {
                module
                for module in whole
                if every.count(f"{module}\n") != taken.count(f"{module}\n")
                or re.search(rf"[\n.]{module}[\n.]", with_factors)
            }
            if not caught:
                return whole
            whole -= caught

    def pattern_of(self, factored: set[str]) -> list[str] | str:
        """Return target_modules: the names, or a regular expression if another module's name ends in one."""
        is_exact = not any(
            ".".join(parts[start:]) in factored
            for parts in (module.split(".") for module in self._all - factored)
            for start in range(1, len(parts))
        )
        return sorted(factored) if is_exact else "|".join(map(re.escape, sorted(factored)))


def _is_across(tensors: Mapping[str, tuple[int, ...]]) -> bool:
    weight, bias = tensors.get("weight", ()), tensors.get("bias")
    return len(weight) == 2 and weight[0] != weight[1] and bias == weight[1:]


def _pair(name: str, shape: tuple[int, ...], rank: int, layout: FactorLayout) -> LoraPair:
    module = PREFIX + _module(name)
    if layout == TRANSPOSED and _word(module) in EMBEDDINGS:
        a, b = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    else:
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    return LoraPair(name, shape, a, b, rank, 1.0, layout)


def _ranks_of(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """The ranks in the configuration. Every alpha equals its rank, so every scale is 1."""
    ranks = Counter(pair.rank for pair in pairs.values())
    rank = max(ranks, key=lambda rank: (ranks[rank], rank), default=1)
    # peft adds `(.*\.)?` in front: only ^ keeps a pattern from matching names with the same ending
    pattern = {f"^{re.escape(_module(name))}": pair.rank for name, pair in pairs.items() if pair.rank != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": pattern, "alpha_pattern": pattern}


def _task(config: Mapping[str, Any] | None) -> str | None:
    """peft's name for the task of a model; None if its class for that task would not fit."""
    if config is None:
        return None
    kind = _architecture(config)
    for end, task in (("ForSequenceClassification", "SEQ_CLS"), ("ForTokenClassification", "TOKEN_CLS")):
        if kind.endswith(end):
            return task
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if "vocab_size" not in config or "num_mel_bins" in config:  # images or sound go in
        return None
    if config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM" if kind.endswith(("ForConditionalGeneration", "MTModel")) else None
    return "FEATURE_EXTRACTION" if kind.endswith("Model") else None


def _architecture(config: Mapping[str, Any]) -> str:
    """The class that the model was saved from; "" if the config does not say."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""
