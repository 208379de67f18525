"""A row of the catalogue: how an input is made, the command lines that get it, and what they answer."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from tests.conftest import Result, small_tensors

Make = Callable[[], object]
"""Makes the input in the working folder, where `base.safetensors` and `finetuned.safetensors` are."""

AS_FINETUNED = "edit base.safetensors {0} -o out"
AS_BASE = "edit {0} finetuned.safetensors -o out"
AS_SECOND = "soup finetuned.safetensors {0} -o out.safetensors"
INSPECTED = "inspect-spectrum {0} finetuned.safetensors"
ROLES = (AS_FINETUNED, AS_BASE, AS_SECOND, INSPECTED)
BAD = "bad.safetensors"


class Row(NamedTuple):
    """One input.

    Attributes:
        name: What is special about it.
        make: Makes it.
        lines: The command lines that get it, one after the other.
        code: How each of them ends.
        words: What each of them says on stderr.
        after: Further checks of what it printed and wrote.
        seconds: How much time of the processor each may take; other processes do not count.
        as_nobody: Whether they run as a user without rights, where root runs the tests.
    """

    name: str
    make: Make
    lines: tuple[str, ...]
    code: int
    words: tuple[str, ...]
    after: Callable[[Result], object] | None = None
    seconds: float = 2
    as_nobody: bool = False


def refused(
    name: str, make: Make, *words: str, lines: Sequence[str], code: int = 1, seconds: float = 2
) -> Row:
    """An input that is refused with a message that has these words."""
    return Row(name, make, tuple(lines), code, words, seconds=seconds)


def accepted(
    name: str, make: Make, *words: str, lines: Sequence[str], after: Callable[[Result], object] | None = None
) -> Row:
    """An input that is taken, perhaps with a note that has these words."""
    return Row(name, make, tuple(lines), 0, words, after)


def given(path: str, roles: Sequence[str] = ROLES) -> list[str]:
    """The command lines that get this path in each of the roles."""
    return [role.format(path) for role in roles]


def refused_files(
    table: Mapping[str, tuple[bytes | Make, str]], path: str = BAD, roles: Sequence[str] = (AS_FINETUNED,)
) -> list[Row]:
    """Rows of one file each, by its content or what makes it, which all these roles refuse by its path."""
    return [
        refused(
            name, content if callable(content) else file(content, path), path, words, lines=given(path, roles)
        )
        for name, (content, words) in table.items()
    ]


def file(content: bytes | str, path: str = BAD) -> Make:
    """Makes a file."""

    def make() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def both(*makes: Make) -> Make:
    """Makes one thing after the other."""

    def make() -> None:
        for one in makes:
            one()

    return make


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header (JSON as it is where bytes), whatever a reader thinks of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> bytes:
    """A file of one tensor, `t`."""
    return raw({"t": entry(dtype, shape, offsets)}, bytes(8))


def sparse(header: object, data_bytes: int, path: str = BAD) -> Make:
    """Makes a file whose tensors' bytes take no room on the disk."""

    def make() -> None:
        content = raw(header)
        Path(path).write_bytes(content)
        os.truncate(path, len(content) + data_bytes)

    return make


def tensors(path: str = BAD, seed: int = 1, **changes: torch.Tensor | None) -> Make:
    """Makes a file of the small tensors with these instead, or without those that are None.

    In the names, a double underscore stands for a dot."""

    def make() -> None:
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        merged = {**small_tensors(seed), **named}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor for name, tensor in merged.items() if tensor is not None}, path)

    return make


def written() -> dict[str, torch.Tensor]:
    """The tensors of the output."""
    from safetensors.torch import load_file

    return load_file("out/model.safetensors" if Path("out").is_dir() else "out.safetensors")
