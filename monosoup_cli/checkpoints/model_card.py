"""The README.md of an output folder: what it is made of, with metadata that the Hub accepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from monosoup_cli import __version__

__all__ = ["model_card"]


def model_card(
    title: str, method: str, command: str, base: str | None, finetuned: Sequence[str], citation: str
) -> bytes:
    """A model card in Markdown. Local paths are named by their last component only.

    `method` is a sentence or two, `command` the line that makes the output again.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(tags=["monosoup", "merge"])
    parents = [] if base is None else [("base", base)]
    parents += [("fine-tuned", source) for source in finetuned]
    names = "\n".join(f"- {role}: `{_name(source)}`" for role, source in parents)
    return f"""---
{data.to_yaml()}
---

# {_plain(title)}

{method}

{names}

Made with `monosoup` {__version__}:

    {_plain(command)}

## Citation

```bibtex
{citation.strip()}
```
""".encode()


def _name(source: str) -> str:
    return _plain(PurePath(source).name)


def _plain(text: str) -> str:
    """On one line, with escapes for what does not print: file names may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
