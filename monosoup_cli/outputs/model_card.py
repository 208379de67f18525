"""The README.md of an output folder: its inputs, its command, and metadata that the Hub accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from monosoup_cli.errors import without_tokens
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.folders import Folder, is_broken
from monosoup_cli.sources.library_files import CARD_NAME, MAX_CARD_BYTES
from monosoup_cli.version import __version__

__all__ = [
    "Parent",
    "has_card",
    "library_of",
    "markdown",
    "model_card",
    "own_metadata",
    "plain",
    "read_card_metadata",
]

INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Fields that stay true after an edit. Results and tags do not: they describe the model that was measured."""

MAX_METADATA = 1 << 13  # of the inherited fields; hundreds of languages need a third of it
MAX_TEXT = 500
NO_LAYERS: Mapping[str, Mapping[str, Any]] = {}
MARKDOWN = re.compile(r"([\\`*_\[\]<>&#|~$])")


def has_card(folder: Folder) -> bool:
    """Whether the folder has a model card that is short enough to be read."""
    is_there = CARD_NAME in folder.names() and not is_broken(folder, CARD_NAME)
    return is_there and folder.nbytes(CARD_NAME) <= MAX_CARD_BYTES


@dataclass(frozen=True)
class Parent:
    """One input of the output.

    Attributes:
        role: "base" or "fine-tuned".
        source: What the user typed.
        repository: Its id on the Hub, if it has one.
        revision: Its commit there, if known.
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
    updates: tuple[str, str] | None = None,
    layers: Mapping[str, Mapping[str, Any]] = NO_LAYERS,
) -> bytes:
    """Write a model card in Markdown. It names local paths by their last component only.

    Args:
        title: The heading.
        method: A sentence or two about what was done.
        command: The shell command that makes the same output.
        parents: The inputs, in the order of the command line.
        citation: The paper, in BibTeX.
        inherited: The metadata of the fine-tuned checkpoint's own card.
        library: The library that reads the output, by its name on the Hub.
        updates: A word, and what is made of several inputs or what updates are multiplied by.
        layers: The settings of layers, by globs, which only a recipe can say.

    Returns:
        The card, in UTF-8.
    """
    from huggingface_hub import ModelCardData

    by_closeness = sorted(parents, key=lambda parent: parent.role == "base")
    known = list(dict.fromkeys(parent.repository for parent in by_closeness if parent.repository))
    data = ModelCardData(
        base_model=known or None,
        # without a relation, the Hub would take a single base model as fine-tuned, not merged
        base_model_relation="merge" if known else None,
        library_name=library,
        tags=["monosoup", "merge"],
        **{name: inherited[name] for name in INHERITED if name in inherited},
    )
    heading = markdown(title)
    facts = [(parent.role, _code(_shown(parent))) for parent in parents]
    names = "\n".join(f"- {word}: {rest}" for word, rest in (*facts, *([updates] if updates else ())))
    return f"""---
{data.to_yaml()}
---

# {heading}

{plain(method)}

{names}

Made with `monosoup` {__version__}:

    {plain(command)}
{_recipe(layers)}
## Citation

```bibtex
{citation.strip()}
```
""".encode()


def _recipe(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """What the command lacks, as a recipe has it: JSON is YAML, too."""
    if not layers:
        return ""
    lines = [f"      {json.dumps(glob)}: {json.dumps(settings)}" for glob, settings in layers.items()]
    return "\n".join(
        ["\nin a recipe (`monosoup run`), with\n", "    layers:", *map(without_tokens, lines), ""]
    )


def read_card_metadata(text: str) -> dict[str, Any]:
    """Read the fields of a card's front matter that the output inherits, if they are text or lists of text.

    The card is not trusted. The result is empty if there is no front matter or it is malformed.
    """
    import yaml  # type: ignore[import-untyped]

    fields = "\n".join(_inherited_lines(text[:MAX_CARD_BYTES]))
    if len(fields) > MAX_METADATA:
        return {}
    try:
        # BaseLoader reads every scalar as text, as the Hub does: `no` is a language. The C parser crashes on
        # deep nesting.
        metadata = yaml.load(fields, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(metadata, dict):
        return {}
    return {name: metadata[name] for name in INHERITED if _is_text(metadata.get(name))}


def own_metadata(files: Files) -> dict[str, Any]:
    """What the card of a model passes on; empty if it has none."""
    folder = files.place.folder
    if folder is None or not has_card(folder):
        return {}
    card = folder.open(CARD_NAME)
    try:
        return read_card_metadata(card.read(card.nbytes).decode(errors="replace"))
    finally:
        card.close()


def library_of(config: Mapping[str, Any] | None, names: Collection[str]) -> str | None:
    """The library that reads a folder with this config.json and these files, by its name on the Hub."""
    for name, library in LIBRARY_OF_FILE.items():
        if name in names:
            return library
    for keys, library in LIBRARY_OF_CONFIG:
        if config is not None and any(config.get(key) for key in keys):
            return library
    return None


LIBRARY_OF_FILE = {
    "modules.json": "sentence-transformers",
    "model_index.json": "diffusers",
    "open_clip_config.json": "open_clip",
}
LIBRARY_OF_CONFIG = [
    (("_class_name", "_diffusers_version"), "diffusers"),
    (("pretrained_cfg",), "timm"),
    (("model_type", "architectures"), "transformers"),
]


def _inherited_lines(card: str) -> Iterator[str]:
    """The lines of the inherited fields. The others are not parsed, since they may be very long."""
    lines = re.split(r"\r\n|\r|\n", card.lstrip("\ufeff \t\r\n"))
    ends = [number for number, line in enumerate(lines) if line.rstrip(" \t") == "---"]
    if len(ends) < 2 or ends[0] != 0:
        return
    is_inherited = False
    for line in lines[1 : ends[1]]:
        if line[:1].strip(" \t-#]}"):  # starts a field, rather than continuing one
            is_inherited = line.partition(":")[0].strip(" \"'") in INHERITED
        if is_inherited:
            yield line


def _is_text(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) and _is_text(item) for item in value)
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _shown(parent: Parent) -> str:
    if parent.repository is None:
        return PurePath(parent.source).name or parent.source
    return parent.repository if parent.revision is None else f"{parent.repository}@{parent.revision}"


def _code(text: str) -> str:
    """A code span with enough backticks that its text cannot close it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, room = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{room}{plain(text)}{room}{fence}"


def markdown(text: str) -> str:
    """The text on one line as Markdown shows it."""
    return MARKDOWN.sub(r"\\\1", plain(text))


def plain(text: str) -> str:
    """The text on one line, without tokens, and with escapes for what does not print."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in without_tokens(text)
    )
