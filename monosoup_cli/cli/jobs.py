"""What people want to do, and the command for it: what `monosoup` alone prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["JOBS", "lines_of_jobs"]

JOBS: Mapping[str, str] = {
    "look at a checkpoint": "info CHECKPOINT",
    "preview an edit": "inspect-spectrum BASE FINETUNED",
    "edit a fine-tune": "edit BASE FINETUNED -o OUT",
    "edit an adapter": "edit - ADAPTER -o OUT --as-adapter",
    "go halfway to the base": "wise BASE FINETUNED -o OUT --alpha 0.5",
    "let scores choose": "search BASE FINETUNED -o OUT --score COMMAND",
    "combine fine-tunes": "stock BASE FINETUNED FINETUNED -o OUT",
    "average them": "soup FINETUNED FINETUNED -o OUT",
    "merge an adapter": "merge BASE ADAPTER -o OUT",
    "extract an adapter": "extract BASE FINETUNED -o ADAPTER --rank 32",
    "see whether it helped": "scores BASE FINETUNED EDITED",
    "compare two outputs": "compare OUT OUT",
    "show it to others": "report OUT --html PAGE.html",
    "run several steps": "run RECIPE.yaml",
}
"""In the order in which a newcomer meets them."""


def lines_of_jobs() -> Iterator[str]:
    """Yield the jobs as a table of at most 80 columns, and where to read on."""
    width = max(map(len, JOBS)) + 2
    yield "What do you want to do?"
    yield ""
    for job, command in JOBS.items():
        yield f"  {job:<{width}}monosoup {command}"
    yield ""
    yield "BASE and FINETUNED are files of weights, folders, or ids on the Hub."
    yield "Options of a command: monosoup COMMAND --help"
    yield "All commands:         monosoup --help"
