"""The keys of a PEFT adapter: which factors belong to which module."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monosoup_cli.adapters.lora import EXPERTS, LINEAR, TRANSPOSED, TRANSPOSED_EXPERTS, FactorLayout
from monosoup_cli.adapters.patterns import MAX_WORK
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import FLOATING
from monosoup_cli.sources.library_files import ADAPTER_CONFIG
from monosoup_cli.sources.source import Source

__all__ = [
    "INNER",
    "MAX_NESTED",
    "PREFIX",
    "WRAPPED",
    "ModuleFactors",
    "SortedKeys",
    "read_factors",
    "sort_keys",
]

PREFIX = "base_model.model."
INNER = ".base_layer"
"""The name of a module that peft has wrapped. It wraps experts once for each parameter but the first."""
WRAPPED = re.compile(rf"{re.escape(INNER)}(?=\.)")
PARTS = {
    "lora_A.weight": "a",
    "lora_embedding_A": "a",
    "lora_B.weight": "b",
    "lora_embedding_B": "b",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "token_adapter.trainable_tokens_delta": "rows",
}
PART = re.compile(rf"(.+)\.({'|'.join(map(re.escape, PARTS))})", re.DOTALL)
SAVED = re.compile(r"\.modules_to_save(?=\.[^.]+$)")
ORIGINAL = re.compile(r"\.(original_module|token_adapter\.base_layer)(?=\.[^.]+$)")
"""What peft puts before the parameters of a module that is trained whole, and of its copy from before. It
saves both with `save_embedding_layers`, beside the key that it reads."""
FOREIGN = re.compile(r"(^|\.)(lora_|token_adapter\.|modules_to_save\.|original_module\.)")

MAX_NESTED = 4


@dataclass(frozen=True)
class ModuleFactors:
    """The factors of one tensor.

    Attributes:
        module: The module in the base.
        depth: How many wrappers are between the factors and the module. The innermost wrapper is that of the
            first parameter.
        keys: The keys in the adapter of what belongs to the factors: "a", "b", "bias", "magnitude".
        a: The shape of the factor A.
        b: The shape of the factor B.
        is_embedding: Whether the factors are those of an embedding.
        parameters: The parameters of the module that the factors may belong to; empty for its weight.
    """

    module: str
    depth: int
    keys: Mapping[str, str]
    a: tuple[int, ...]
    b: tuple[int, ...]
    is_embedding: bool
    parameters: tuple[str, ...]

    @property
    def targets(self) -> list[str]:
        """The tensors that the factors may belong to."""
        return [f"{self.module}.{parameter}" for parameter in self.parameters or ("weight",)]

    def subject(self, target: str) -> str:
        """Return what the patterns of the configuration are matched with."""
        return target if self.parameters else self.module

    def layouts(self, shape: tuple[int, ...]) -> list[FactorLayout]:
        """List the layouts that fit a tensor of this shape: none, one, or two for a square one."""
        layouts: list[FactorLayout] = []
        if self.parameters and len(shape) == 3:
            if shape[0] and self.a[0] % shape[0] == 0:
                layouts += [EXPERTS] if shape[1:] == (self.b[0], self.a[1]) else []
                layouts += [TRANSPOSED_EXPERTS] if shape[1:] == (self.a[1], self.b[0]) else []
            return layouts
        if not self.is_embedding and shape == (self.b[0], *self.a[1:]):
            layouts.append(LINEAR)
        if not self.parameters and len(self.a) == 2 and shape == (self.a[1], self.b[0]):
            layouts.append(TRANSPOSED)
        return layouts


@dataclass(frozen=True)
class SortedKeys:
    """The keys of an adapter.

    Attributes:
        modules: Those of what peft adds to modules, by module and part.
        others: Those of other saved tensors, by name.
        saved: Those of tensors that may be in `others` a second time, by name.
        copies: Those of copies from before the training, by name.
    """

    modules: Mapping[str, Mapping[str, str]]
    others: Mapping[str, str]
    saved: Mapping[str, str]
    copies: Mapping[str, str]


def sort_keys(own: Source) -> SortedKeys:
    """Sort the keys of the adapter.

    Raises:
        CheckpointError: A key is not one of a LoRA adapter, or appears twice.
    """
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    others: dict[str, str] = {}
    saved: dict[str, str] = {}
    copies: dict[str, str] = {}
    for key, tensor in own.tensors.items():
        if tensor.dtype not in FLOATING:
            raise CheckpointError(
                "unsupported dtype in an adapter",
                path=own.path,
                tensor=key,
                expected=" or ".join(FLOATING),
                found=tensor.dtype,
            )
        name = key.removeprefix(PREFIX)
        if match := PART.fullmatch(name):
            module, part = match[1], PARTS[match[2]]
            keys = modules[module]
        elif ORIGINAL.search(name):
            part, keys = ORIGINAL.sub("", name), copies
        elif SAVED.search(name):
            part, keys = SAVED.sub("", name), saved
        else:
            if FOREIGN.search(name):
                raise CheckpointError("not a key of a LoRA adapter", path=own.path, tensor=key)
            part, keys = WRAPPED.sub("", name), others
        if part in keys:
            raise CheckpointError(
                "appears twice in the adapter", path=own.path, tensor=key, found=repr(keys[part])
            )
        keys[part] = key
    return SortedKeys(modules, others, saved, copies)


def read_factors(
    own: Source, modules: Mapping[str, Mapping[str, str]], config: Mapping[str, Any]
) -> tuple[list[ModuleFactors], dict[str, str]]:
    """Find the factors of all modules.

    Returns:
        The factors; and, by module, the keys of the rows that replace rows of an embedding.

    Raises:
        CheckpointError: Factors are missing, or do not fit each other or the configuration.
    """
    path = own.path
    wanted = config.get("target_parameters") or []
    if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
        raise CheckpointError(f"{ADAPTER_CONFIG}: target_parameters must be a list of names", path=path)
    if len(wanted) * len(modules) * 10 > MAX_WORK:
        raise CheckpointError(f"{ADAPTER_CONFIG}: too many target_parameters", path=path)
    found: list[ModuleFactors] = []
    deltas: dict[str, str] = {}
    for wrapped, parts in modules.items():
        keys = dict(parts)
        if "rows" in keys:
            deltas[wrapped] = keys.pop("rows")
            if not keys:
                continue
        module, depth = wrapped, 0
        while module.endswith(INNER) and depth < MAX_NESTED:
            module, depth = module.removesuffix(INNER), depth + 1
        for part, twin in (("a", "b"), ("b", "a")):
            if part not in keys:
                raise CheckpointError(
                    f"factor {part.upper()} of the same module is missing",
                    path=path,
                    tensor=keys.get(twin, next(iter(keys.values()))),
                )
        is_embedding = keys["a"].endswith("lora_embedding_A")
        for part, option in (("magnitude", "use_dora"), ("bias", "lora_bias")):
            if (part in keys) != bool(config.get(option)):
                raise CheckpointError(
                    f"has {'a' if part in keys else 'no'} {part}, but {ADAPTER_CONFIG} says otherwise",
                    path=path,
                    tensor=keys.get(part, keys["b"]),
                    expected=f"{option} {part in keys}".lower(),
                )
        a, b = own.tensors[keys["a"]].shape, own.tensors[keys["b"]].shape
        if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or any(size != 1 for size in b[2:]):
            raise CheckpointError(
                "the factors do not fit each other",
                path=path,
                tensor=keys["b"],
                expected=f"{a[0] if a else 'as many'} columns, one for each row of A {list(a)}",
                found=list(b),
            )
        if 0 in (*a, *b):
            raise CheckpointError(
                "a factor is empty or has rank 0", path=path, tensor=keys["a"], found=list(a)
            )
        if is_embedding and (len(a) != 2 or not keys["b"].endswith("lora_embedding_B")):
            raise CheckpointError("not a factor of an embedding", path=path, tensor=keys["b"])
        parameters = dict.fromkeys(_parameters(module, wanted)) if not is_embedding else {}
        found.append(ModuleFactors(module, depth, keys, a, b, is_embedding, tuple(parameters)))
    depths: dict[str, set[int]] = defaultdict(set)
    for one in found:
        depths[one.module].add(one.depth)
    for one in found:
        count = len(depths[one.module])
        if max(depths[one.module]) != count - 1 or not count <= min(max(len(one.parameters), 1), MAX_NESTED):
            raise CheckpointError(
                "has more wrappers than target_parameters has parameters", path=path, tensor=one.keys["a"]
            )
        if one.parameters and ("magnitude" in one.keys or "bias" in one.keys or len(one.a) != 2):
            raise CheckpointError("not a factor of target_parameters", path=path, tensor=one.keys["a"])
    return found, deltas


def _parameters(module: str, wanted: Sequence[str]) -> Iterator[str]:
    """The parameters of this module that target_parameters names, in its order."""
    for one in wanted:
        where, _, parameter = one.rpartition(".")
        if not where or f".{module}".endswith(f".{where}"):
            yield parameter
