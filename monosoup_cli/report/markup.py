"""HTML: the frame of every page, and what pages without scripts have: escaped text, lists, tables, bars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from monosoup_cli.report.files import asset
from monosoup_cli.report.words import printable
from monosoup_cli.version import __version__

__all__ = ["Markup", "bar", "frame", "glossary", "header", "items", "prose", "table", "text"]


OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
CODE = re.compile("`([^`]+)`")


class Markup(str):
    """HTML that is put into a page as it is."""

    __slots__ = ()


def text(value: object, limit: int = 2000) -> Markup:
    """Return a value as HTML; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(escape(printable(value, limit)))


def prose(value: object) -> Markup:
    """Return sentences as HTML: options are not broken, and what is in backticks is code."""
    escaped = CODE.sub(r"<code>\1</code>", text(value))
    return Markup(OPTION.sub(r'<span class="option">\g<0></span>', escaped))


def frame(
    title: str, command: str, body: str, *, css: Sequence[str] = ("page.css",), has_scripts: bool = False
) -> str:
    """Return a whole page.

    Args:
        title: What it is about.
        command: The command that wrote it.
        body: Its HTML.
        css: The names of its style sheets in assets/; of rules alike, the last one's hold.
        has_scripts: Whether the scripts in it may run. Nothing else may load or run anything.
    """
    return Template(asset("frame.html")).substitute(
        title=text(title),
        command=text(command),
        css="\n".join(map(asset, css)),
        scripts="script-src 'unsafe-inline'; " if has_scripts else "",
        body=body,
    )


def header(title: str, command: str, lead: str) -> Markup:
    """Return the head of a page: its title, what wrote it, and its first sentences, as HTML."""
    made_by = f"monosoup {command}, version {__version__}"
    return Markup(f"<header>\n<h1>{text(title)}<small>{text(made_by)}</small></h1>\n{lead}\n</header>\n")


def items(sentences: Sequence[str]) -> Markup:
    """Return sentences as a list; nothing where there are none."""
    inside = "".join(f"<li>{prose(one)}</li>" for one in sentences)
    return Markup(f'<ul class="sentences">{inside}</ul>' if inside else "")


def table(head: Sequence[str], body: Sequence[Sequence[object]], *, is_wide: bool = False) -> Markup:
    """Return a table that scrolls by itself where it does not fit. The first cell of a row is its heading.

    Args:
        head: What columns are called.
        body: The rows.
        is_wide: Whether rows become lists, with the columns' names, where the screen is narrow.
    """
    heads = "".join(f'<th scope="col">{text(one)}</th>' for one in head)
    names = [f' data-head="{text(one)}"' if is_wide else "" for one in head]
    rows = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(
            f'<td class="number"{name}>{text(cell)}</td>'
            for name, cell in zip(names[1:], row[1:], strict=True)
        )
        + "</tr>\n"
        for row in body
    )
    kind = ' class="wide"' if is_wide else ""
    return Markup(
        f'<div class="scroll"><table{kind}><thead><tr>{heads}</tr></thead><tbody>\n'
        f"{rows}</tbody></table></div>"
    )


def bar(share: float, words: str) -> Markup:
    """Return a bar that is filled to a share of its length, with words beside it."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return Markup(
        f'<span class="bar"><i style="width: {width}"></i></span><span class="value">{text(words)}</span>'
    )


def glossary(meanings: Mapping[str, str]) -> Markup:
    """Return what words mean, as a list that opens."""
    inside = "".join(f"<dt>{text(word)}</dt><dd>{prose(meaning)}</dd>" for word, meaning in meanings.items())
    return Markup(f"<details><summary>What the words mean</summary><dl>{inside}</dl></details>")
