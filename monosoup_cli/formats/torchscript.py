"""Read the parameters and buffers in archives of `torch.jit.save`, such as OpenAI's files of CLIP.

Such an archive holds a module as `torch.save` would, and the code of its classes. The code is not run. Of its
text, only the lists of the names of parameters and buffers are read: other tensors are not part of the state
dict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.archive import MAX_CODE_BYTES, Record, inflate, quote
from monosoup_cli.formats.pickles import Foreign, PickledTensor
from monosoup_cli.formats.strided import Bytes

__all__ = ["is_script", "script_tensors"]

CODE_LINE = re.compile(
    r"^(?:class ([^\s(]+)\(Module\):| +__(parameters|buffers)__ = \[([^\n]*)\])", re.MULTILINE
)
"""The start of a class of modules, or a list of the names of its tensors; the parameters come first."""
TEXT = re.compile(r'"([^"\\]*)"')
MAX_DEPTH = 100
MAX_WORK = 5_000_000
"""How many attributes and characters of names may be visited. A module may be part of many others."""


def is_script(records: Mapping[str, Record]) -> bool:
    """Return whether `torch.jit.save` wrote this archive."""
    return "constants.pkl" in records or any(name.startswith("code/") for name in records)


def script_tensors(file: Bytes, records: Mapping[str, Record], content: Any) -> dict[str, PickledTensor]:
    """Find the parameters and buffers of a module and of the modules in it.

    Args:
        file: The archive.
        records: Its records.
        content: What its pickle holds.

    Returns:
        The tensors by name, as `state_dict` of the loaded module names and orders them.

    Raises:
        CheckpointError: The archive holds no module, or one without end.
    """
    if not _is_module(content):
        raise CheckpointError("a TorchScript archive without a module", path=file.shown)
    code = _Code(file, records)
    tensors: dict[str, PickledTensor] = {}
    left = [("", content, 0)]
    work = 0
    while left:
        prefix, module, depth = left.pop()
        attributes = module.state
        names = code.listed(module.name)
        own = [
            name
            for name in (attributes if names is None else names)
            if isinstance(name, str) and isinstance(attributes.get(name), PickledTensor)
        ]
        inner = [(key, value) for key, value in attributes.items() if _is_module(value)]
        work += len(attributes) + len(own) + len(inner)
        work += sum(len(prefix) + len(name) for name in [*own, *(key for key, _ in inner)])
        if depth > MAX_DEPTH or work > MAX_WORK:  # before the names are made, which may be long
            raise CheckpointError("its modules are nested without end", path=file.shown)
        tensors |= {f"{prefix}{name}": attributes[name] for name in own}
        left += [(f"{prefix}{key}.", value, depth + 1) for key, value in reversed(inner)]
    if not tensors:
        raise CheckpointError("a TorchScript archive without parameters", path=file.shown)
    return tensors


def _is_module(value: object) -> bool:
    return isinstance(value, Foreign) and value.name.startswith("__torch__") and isinstance(value.state, dict)


class _Code:
    """The text of the classes in an archive."""

    def __init__(self, file: Bytes, records: Mapping[str, Record]) -> None:
        self._file, self._records = file, records
        self._listed: dict[str, dict[str, list[str] | None]] = {}
        self._left = MAX_CODE_BYTES

    def listed(self, kind: str) -> list[str] | None:
        """Read which tensors are parameters or buffers of a class, which is named as in a pickle.

        None stands for all: before torch 1.7, buffers were not listed.
        """
        room, _, name = kind.partition(" ")
        if room not in self._listed:
            self._listed[room] = self._read(f"code/{room.replace('.', '/')}.py")
        return self._listed[room].get(name)

    def _read(self, name: str) -> dict[str, list[str] | None]:
        if name not in self._records:
            raise CheckpointError(f"the code {quote(name)} is missing", path=self._file.shown)
        text = inflate(self._file, self._records[name]).decode(errors="replace")
        self._left -= len(text)
        if self._left < 0:
            raise CheckpointError("its code is too large", path=self._file.shown)
        found: dict[str, list[str] | None] = {}
        kind, names = "", list[str]()
        for start, what, listed in CODE_LINE.findall(text):
            if start:
                kind, names = start, []
                continue
            names += TEXT.findall(listed)
            if what == "buffers":
                found[kind] = names
        return found
