"""The shared options as keyword arguments of Python, for type checkers; a test holds the two together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from monosoup_cli.options import Dtype, Mismatch, Setting, Strictness, StrPath

__all__ = [
    "ComputeKeywords",
    "LayerKeywords",
    "OutputKeywords",
    "RunKeywords",
    "SelectionKeywords",
    "StorageKeywords",
]


class SelectionKeywords(TypedDict, total=False):
    """`SelectionOptions` as keyword arguments; a test holds the two together."""

    include: str | Sequence[str]
    exclude: str | Sequence[str]
    rename: str | Sequence[str]
    state_dict: str | None
    parts: str | Sequence[str]
    on_mismatch: Mismatch
    on_nonfinite: Strictness
    partial: bool


class ComputeKeywords(TypedDict, total=False):
    """`ComputeOptions` as keyword arguments."""

    device: str
    workers: int | None


class StorageKeywords(TypedDict, total=False):
    """`StorageOptions` as keyword arguments."""

    dtype: Dtype
    max_shard_size: str | int | None
    side_files: str | Sequence[str]
    carry_base: str | Sequence[str]


class OutputKeywords(TypedDict, total=False):
    """`OutputOptions` as keyword arguments."""

    report: StrPath | None
    overwrite: bool
    resume: bool
    push: str | None
    public: bool
    part: str | None
    engine: str
    insecure_cluster: bool
    strict: bool


class LayerKeywords(TypedDict, total=False):
    """`LayerOptions` as keyword arguments."""

    layers: Mapping[str, Mapping[str, Setting]] | None


class RunKeywords(
    SelectionKeywords, StorageKeywords, ComputeKeywords, OutputKeywords, LayerKeywords, total=False
):
    """The keyword arguments that all writing commands share; `layers` is for those that have such settings.

    `progress` is a class of progress bars, such as tqdm; or a function that worker threads call with a tensor
    and a flag: False when they start it, True when they finish it.
    """

    progress: Callable[[Any, bool], None] | type[Any] | None
