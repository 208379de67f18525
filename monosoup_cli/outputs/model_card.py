"""The README.md of an output folder: what it is made of, with metadata that the Hub accepts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from monosoup_cli.errors import without_tokens
from monosoup_cli.sources.folders import Folder
from monosoup_cli.version import __version__

__all__ = ["CARD_NAME", "Parent", "has_card", "library_of", "model_card", "read_card_metadata"]

INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What stays true of edited weights; results and tags are of the model that was measured."""

CARD_NAME = "README.md"
MAX_CARD_BYTES = 1 << 20
MAX_METADATA = 1 << 13  # of the inherited fields; hundreds of languages need a third of it
MAX_TEXT = 500
MARKDOWN = re.compile(r"([\\`*_\[\]<>&#|~$])")


def has_card(folder: Folder) -> bool:
    """Whether the folder has a model card of its own, and not one too long to be read."""
    return CARD_NAME in folder.names() and folder.nbytes(CARD_NAME) <= MAX_CARD_BYTES


@dataclass(frozen=True)
class Parent:
    """One input: `role` is "base" or "fine-tuned", `source` what was typed.

    `repository` is its id on the Hub and `revision` its commit, where they are known.
    """

    role: str
    source: str
    repository: str | None = None
    revision: str | None = None


def model_card(
    title: str,
    method: str,
    command: str,
    parents: Sequence[Parent],
    citation: str,
    *,
    inherited: Mapping[str, Any],
    library: str | None,
) -> bytes:
    """A model card in Markdown. Local paths are named by their last component only.

    `method` is a sentence or two, `command` the line that makes the output again. `inherited` is
    the metadata of the fine-tuned checkpoint's own card.
    """
    from huggingface_hub import ModelCardData

    by_closeness = sorted(parents, key=lambda parent: parent.role == "base")
    known = list(dict.fromkeys(parent.repository for parent in by_closeness if parent.repository))
    data = ModelCardData(
        base_model=known or None,
        # said, for of a single known one the Hub would think that it was trained further
        base_model_relation="merge" if known else None,
        library_name=library,
        tags=["monosoup", "merge"],
        **{name: inherited[name] for name in INHERITED if name in inherited},
    )
    heading = MARKDOWN.sub(r"\\\1", _plain(title))
    names = "\n".join(f"- {parent.role}: {_code(_shown(parent))}" for parent in parents)
    return f"""---
{data.to_yaml()}
---

# {heading}

{_plain(method)}

{names}

Made with `monosoup` {__version__}:

    {_plain(command)}

## Citation

```bibtex
{citation.strip()}
```
""".encode()


def read_card_metadata(text: str) -> dict[str, Any]:
    """What a card may hand on: of its front matter, the fields that hold text or lists of text.

    Empty for a card without, or one that is malformed. The card may be anybody's.
    """
    import yaml  # type: ignore[import-untyped]

    fields = "\n".join(_inherited_lines(text[:MAX_CARD_BYTES]))
    if len(fields) > MAX_METADATA:
        return {}
    try:
        # all scalars are text, as to the Hub: `no` is a language. The C parser dies of deep nesting.
        found = yaml.load(fields, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in INHERITED if _is_text(found.get(name))}


def library_of(config: Mapping[str, Any] | None, names: Collection[str]) -> str | None:
    """The library, by its name on the Hub, that reads a folder of these files with this config.json."""
    for name, library in TOLD_BY_FILE.items():
        if name in names:
            return library
    for keys, library in TOLD_BY_CONFIG:
        if config is not None and any(config.get(key) for key in keys):
            return library
    return None


TOLD_BY_FILE = {
    "adapter_config.json": "peft",
    "modules.json": "sentence-transformers",
    "model_index.json": "diffusers",
    "open_clip_config.json": "open_clip",
}
TOLD_BY_CONFIG = [
    (("_class_name", "_diffusers_version"), "diffusers"),
    (("pretrained_cfg",), "timm"),
    (("model_type", "architectures"), "transformers"),
]


def _inherited_lines(card: str) -> Iterator[str]:
    """The lines of the front matter's inherited fields: what else there is may be very long."""
    lines = re.split(r"\r\n|\r|\n", card.lstrip("\ufeff \t\r\n"))
    ends = [number for number, line in enumerate(lines) if line.rstrip(" \t") == "---"]
    if len(ends) < 2 or ends[0] != 0:
        return
    is_inherited = False
    for line in lines[1 : ends[1]]:
        if line[:1].strip(" \t-#]}"):  # starts a field, and does not go on with one
            is_inherited = line.partition(":")[0].strip(" \"'") in INHERITED
        if is_inherited:
            yield line


def _is_text(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and _is_text(each) for each in value)
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _shown(parent: Parent) -> str:
    if parent.repository is None:
        return PurePath(parent.source).name or parent.source
    return parent.repository if parent.revision is None else f"{parent.repository}@{parent.revision}"


def _code(text: str) -> str:
    """A code span that its text cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, room = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{room}{_plain(text)}{room}{fence}"


def _plain(text: str) -> str:
    """On one line, without tokens, with escapes for what does not print: names may hold anything."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in without_tokens(text)
    )
