"""Runs docs/tutorial.ipynb, and turns it into Markdown for the site.

python docs/notebook_page.py        runs it anew, and keeps what it prints
python docs/notebook_page.py PATH   the same for another notebook
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"


def as_markdown(path: Path = NOTEBOOK) -> str:
    """Return the text of a notebook, its code, and what the code printed."""
    return "\n\n".join(_blocks(json.loads(path.read_text("utf-8"))))


def _blocks(notebook: Any) -> Iterator[str]:
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for output in cell.get("outputs", ()):
            yield f"```{{code-block}} none\n:class: output\n\n{''.join(output['text']).rstrip()}\n```"


def run(path: Path) -> None:
    """Run a notebook in a kernel of its own, and keep what it prints in the place of what it has."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    config = Config(KernelManager={"transport": "ipc"})  # no port that others can reach
    NotebookClient(notebook, config=config, record_timing=False, coalesce_streams=True, timeout=300).execute()
    notebook["metadata"].pop("language_info", None)  # the version of Python
    nbformat.write(notebook, path)


if __name__ == "__main__":
    run(Path(*sys.argv[1:]) if sys.argv[1:] else NOTEBOOK)
