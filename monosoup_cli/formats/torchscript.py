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
from monosoup_cli.formats.archive import Record, inflate, quote
from monosoup_cli.formats.header import MAX_TENSORS
from monosoup_cli.formats.pickles import Foreign, PickledTensor
from monosoup_cli.formats.strided import Bytes

__all__ = ["is_script", "script_tensors"]

CLASS = re.compile(r"^class (\S+)\(Module\):\n((?:[ \t].*\n?|\n)*)", re.MULTILINE)
LISTS = re.compile(r"^ +__(?:parameters|buffers)__ = \[(.*?)\]", re.MULTILINE)
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
BUFFERS = "__buffers__"
MAX_DEPTH = 100


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
    listed: dict[str, Mapping[str, list[str] | None]] = {}
    tensors: dict[str, PickledTensor] = {}
    left = [("", content, 0)]
    visited = 0
    while left:
        prefix, module, depth = left.pop()
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_TENSORS:
            raise CheckpointError("its modules are nested without end", path=file.shown)
        attributes = module.state
        room, _, name = module.name.partition(" ")
        if room not in listed:
            listed[room] = _listed(file, records, room)
        names = listed[room].get(name)
        own = names if names is not None else [one for one in attributes if isinstance(one, str)]
        for one in own:
            if isinstance(attributes.get(one), PickledTensor):
                tensors[f"{prefix}{one}"] = attributes[one]
        inner = [(key, value) for key, value in attributes.items() if _is_module(value)]
        left += [(f"{prefix}{key}.", value, depth + 1) for key, value in reversed(inner)]
    return tensors


def _is_module(value: object) -> bool:
    return isinstance(value, Foreign) and value.name.startswith("__torch__") and isinstance(value.state, dict)


def _listed(file: Bytes, records: Mapping[str, Record], room: str) -> dict[str, list[str] | None]:
    """Read which tensors are parameters or buffers, by the names of the classes in a file of code.

    None stands for all: before torch 1.7, buffers were not listed.
    """
    name = f"code/{room.replace('.', '/')}.py"
    if name not in records:
        raise CheckpointError(f"the code {quote(name)} is missing", path=file.shown)
    text = inflate(file, records[name]).decode(errors="replace")
    return {
        kind: [one for names in LISTS.findall(body) for one in TEXT.findall(names)]
        if BUFFERS in body
        else None
        for kind, body in CLASS.findall(text)
    }
