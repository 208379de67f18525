"""The options that every writing command shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from monosoup_cli.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Dtype", "Mismatch", "RunKeywords", "RunOptions", "Strictness", "as_list", "parse_size"]

Dtype = Literal["keep", "float32", "bfloat16", "float16"]
Strictness = Literal["error", "keep"]
Mismatch = Literal["error", "keep", "overlap"]

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(text: str | int) -> int:
    """Bytes from "5GB" (10^9), "5GiB" (2^30) or a number. Raises UsageError."""
    digits = str(text).strip()
    number = digits.rstrip("KMGTIBkmgtib ")
    unit = digits[len(number) :].strip().upper()
    try:
        nbytes = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise UsageError("not a size", expected="a number and a unit, as 5GB", found=repr(text))
    return nbytes


class RunKeywords(TypedDict, total=False):
    """`RunOptions` as keyword arguments (a test holds the two together), and `progress`, which is
    called when a tensor is begun and when it is finished."""

    progress: Callable[[Any, bool], None] | None

    include: Sequence[str]
    exclude: Sequence[str]
    rename: Sequence[str]
    on_mismatch: Mismatch
    on_nonfinite: Strictness
    device: str
    workers: int | None
    dtype: Dtype
    max_shard_size: str | int | None
    report: str | os.PathLike[str] | None
    overwrite: bool
    resume: bool
    push: str | None
    public: bool


@dataclass(frozen=True)
class RunOptions:
    """The options that every writing command shares; docs/cli.md says what each does."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    rename: Sequence[str] = ()
    on_mismatch: Mismatch = "error"
    on_nonfinite: Strictness = "error"
    dtype: Dtype = "keep"
    max_shard_size: str | int | None = None
    device: str = "auto"
    workers: int | None = None
    report: str | os.PathLike[str] | None = None
    overwrite: bool = False
    resume: bool = False
    push: str | None = None
    public: bool = False

    @property
    def shard_bytes(self) -> int | None:
        return None if self.max_shard_size is None else parse_size(self.max_shard_size)

    @classmethod
    def given(cls, **options: Unpack[RunKeywords]) -> RunOptions:
        """From a command's keywords, of which `progress` is no option."""
        options.pop("progress", None)
        return cls(**options)  # type: ignore[misc]

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "rename"):
            object.__setattr__(self, name, as_list(getattr(self, name)))
        for name, allowed in (("on_mismatch", Mismatch), ("on_nonfinite", Strictness), ("dtype", Dtype)):
            words = get_args(allowed)
            if getattr(self, name) not in words:
                raise UsageError(f"unknown {name}", expected=", ".join(words), found=getattr(self, name))
        if self.public and self.push is None:
            raise UsageError("--public is for --push")
        if self.workers is not None and self.workers < 1:
            raise UsageError("workers is out of range", expected="at least 1", found=self.workers)


def as_list(patterns: str | Sequence[str]) -> list[Any]:
    """One pattern, or several."""
    return [patterns] if isinstance(patterns, str) else list(patterns)
