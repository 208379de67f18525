"""How Sphinx builds the site from these pages: `make docs`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.logging import getLogger

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from builder_page import form  # noqa: E402
from keywords_page import shared_keywords  # noqa: E402
from notebook_page import NOTEBOOK, as_markdown  # noqa: E402
from schema_page import fields_of_report  # noqa: E402

import monosoup_cli  # noqa: E402

project = "monosoup"
release = version = monosoup_cli.__version__
language = "en"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"  # where a fence names no language
smartquotes = False  # `--option` stays what it is
nitpicky = True

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = {"math"}  # what code-hosting sites render, too
myst_heading_anchors = 4

default_role = "code"  # docstrings are prose with `names`
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [  # annotations: types from elsewhere, and aliases without an entry of their own
    ("py:class", r"(torch|collections\.abc|os|typing|typing_extensions)\..*"),
    ("py:class", r"[A-Z]\w*|tqdm"),
]

html_theme = "furo"
html_title = f"monosoup {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["report.schema.json"]  # at the root of the site: its address is stable
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_math_renderer = "mathml"


FOR_LATEX2MATHML = [
    (r"\\([lr])brace", lambda found: {"l": r"\{", "r": r"\}"}[found[1]]),
    (r"\\lVert", r"\\left\\|"),  # an index then belongs to the norm, not to its last bar
    (r"\\rVert", r"\\right\\|"),
    (r"\\lvert", r"\\left|"),
    (r"\\rvert", r"\\right|"),
    (r"\\_", "_"),
    (r"\\ln\b", r"\\,\\ln\\,"),
]
"""What it does not know, or draws less well than what stands beside it."""


def _equation(latex: str, display: str) -> str:
    """MathML, which browsers draw by themselves, offline."""
    latex = latex.strip()
    for pattern, replacement in FOR_LATEX2MATHML:
        latex = re.sub(pattern, replacement, latex)
    mathml = convert(latex, display=display)
    mathml = mathml.replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")  # a prime
    if "\\" in mathml:  # it prints what it does not know
        getLogger(__name__).warning("an equation that latex2mathml does not know: %s", latex)
    return mathml.replace("<mi>&#x00394;</mi>", '<mi mathvariant="normal">&#x00394;</mi>')  # an upright Δ


def _visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_equation(node.astext(), "inline"))
    raise nodes.SkipNode


def _visit_math_block(translator: Any, node: nodes.math_block) -> None:
    tag = re.search(r"\\tag\{(.*?)\}", node.astext())
    latex = re.sub(r"\\tag\{.*?\}", "", node.astext())
    number = f'<span class="eqno">({tag[1]})</span>' if tag else ""
    translator.body.append(f'<div class="equation"><div>{_equation(latex, "block")}</div>{number}</div>\n')
    raise nodes.SkipNode


class SchemaAtItsAddress(SphinxTransform):
    """Links to the schema lead to its stable address, not to a copy under `_downloads`."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        for node in list(self.document.findall(addnodes.download_reference)):
            if node["reftarget"] == "report.schema.json":
                node.replace_self(nodes.reference("", "", *node.children, refuri="report.schema.json"))


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    """What the pages' own text lacks: the fields of the report; the keywords that commands share; the form
    that builds a command line; the notebook; code in help texts, which are plain text."""
    if page == "api":
        source[0] = source[0].replace("<!-- keywords -->", shared_keywords())
    if page == "build":
        app.env.note_reread()  # its data are the program's
        source[0] = source[0].replace("<!-- form -->", form())
    if page == "tutorial":
        app.env.note_dependency(str(NOTEBOOK))
        source[0] = source[0].replace("<!-- notebook -->", as_markdown())
    if page == "cli":
        source[0] = re.sub(r"^(Example: )(.*)", r"\1`\2`", source[0], flags=re.MULTILINE)
        source[0] = re.sub(r" (\*\w+\*) ", r" `\1` ", source[0])
    if page == "report":
        for name in ("report.schema.json", "schema_page.py"):
            app.env.note_dependency(str(HERE / name))  # read again when they change
        source[0] = source[0].replace("<!-- fields -->", fields_of_report(HERE / "report.schema.json"))


def _mark_up(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are prose: what is indented is a drawing or an example; errors and pages become links."""
    for number in range(len(lines) - 1, 0, -1):
        if lines[number].startswith("    ") and not lines[number - 1] and lines[number - 2][:1] != " ":
            lines[number:number] = ["::", ""]
    for number, line in enumerate(lines):
        line = re.sub(r"`(monosoup_cli\.errors\.\w+)`", r":exc:`~\1`", line)
        line = re.sub(r"docs/report\.schema\.json", r":doc:`report`", line)
        lines[number] = re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md <\1>`", line)


def _sign(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """The commands have the signature of what prepares them, but for what comes back. Errors have one of
    their own, or none."""
    if what == "exception" and "__init__" not in vars(obj):
        return "", None
    return (signature, "dict[str, Any]") if name.removeprefix("monosoup_cli.") in COMMANDS else None


def _finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let long names wrap after what joins their words; let the search page quote other pages offline."""
    if page == "search":
        app.add_js_file("offline_search.js")
    if "body" in context:
        context["body"] = re.sub(
            r'(?<=<span class="pre">)[^<]{17,}(?=</span>)',
            lambda name: re.sub(r"(?<=[\w\]][_./=-])(?=\w)", '</span><wbr><span class="pre">', name[0]),
            context["body"],
        )


def _write_pages(app: Sphinx, exception: Exception | None) -> None:
    """Write what `offline_search.js` reads: the articles of all pages."""
    articles = {}
    for name in sorted(app.env.found_docs if exception is None else ()):
        page = Path(app.builder.get_outfilename(name))
        article = re.search(r"<article.*</article>", page.read_text("utf-8"), re.DOTALL)
        articles[page.name] = article[0] if article else ""
    (app.outdir / "_static" / "pages.js").write_text(f"const PAGES = {json.dumps(articles)};\n", "utf-8")


COMMANDS = {name for name in monosoup_cli.__all__ if not name.startswith("_")}


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.add_transform(SchemaAtItsAddress)
    app.connect("source-read", _complete)
    app.connect("autodoc-process-docstring", _mark_up)
    app.connect("autodoc-process-signature", _sign)
    app.connect("html-page-context", _finish_page)
    app.connect("build-finished", _write_pages)
