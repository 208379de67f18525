"""The site of docs/conf.py, opened as files: long names wrap in tables, and the search quotes pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from monosoup_cli.api.mergekit import METHODS

DOCS = Path(__file__).parents[1] / "docs"
NAME = "test_" + "a_name_of_many_words_" * 4 + "end"
TREE = "```{toctree}\nother\ntutorial\nedit\n```\n"
PAGES = {
    "index.md": f"# Start\n\n| name | of |\n|---|---|\n| `{NAME}` | it |\n\n{TREE}",
    "tutorial.md": "<!-- notebook -->\n",
    "edit.md": "# Edit\n",
    "other.md": "# Other\n\nSomething else.\n\n## Part\n\nWithin this part a heron stands & waits.\n",
}
OF_SPHINX = {"genindex", "py-modindex", "search"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A few pages with the configuration of the real ones."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in PAGES.items():
        (source / name).write_text(text)
    subprocess.run([sys.executable, "-m", "sphinx", "-qWc", DOCS, source, built], check=True)
    return built


@pytest.fixture
def view(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda request: page.wrong.append(request.url))
    yield page
    page.close()
    assert page.wrong == []


@pytest.mark.parametrize(("query", "excerpt"), [("heron", "a heron stands & waits"), ("part", "Part")])
def test_the_search_quotes_pages_that_are_opened_as_files(site, view, query, excerpt):
    view.goto(f"{(site / 'search.html').as_uri()}?q={query}")
    found = view.locator("#search-results li", has_text="Other").first
    found.locator(".context").wait_for()
    assert excerpt in found.locator(".context").inner_text()


@pytest.mark.parametrize("width", [1200, 500])
def test_long_names_in_tables_wrap_and_stay_what_they_are(site, view, width):
    view.set_viewport_size({"width": width, "height": 900})
    view.goto((site / "index.html").as_uri())
    table = view.locator(".table-wrapper")
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") == 0
    code = table.locator("code")
    assert code.text_content() == NAME
    assert code.evaluate("code => code.getClientRects().length") > 1  # else it was short enough to begin with


def test_what_a_notebook_printed_wraps(site, view):
    view.goto((site / "tutorial.html").as_uri())
    printed = view.locator(".output pre")
    assert any(len(line) > 200 for text in printed.all_inner_texts() for line in text.splitlines())
    hidden = "parts => parts.map(part => part.scrollWidth - part.clientWidth)"
    assert not any(printed.evaluate_all(hidden))


def test_no_page_has_the_name_of_one_that_sphinx_writes():
    assert {path.stem for path in DOCS.glob("*.md")} & OF_SPHINX == set()


def test_the_page_for_users_of_mergekit_names_every_method_that_run_reads():
    words = (DOCS / "mergekit.md").read_text().split("## Words")[0]
    assert set(re.findall(r"`([a-z_]+)`", words)) == {*METHODS, "run"}
