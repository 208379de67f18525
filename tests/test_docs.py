"""What the build of the site does not see: that code compiles, and that links and fields exist."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_python_compile(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(code, page.name, "exec")


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def described(part: Any) -> Iterator[str]:
    """Every name in a JSON Schema that has a description, by a plain walk through it."""
    if isinstance(part, dict):
        for name, field in part.get("properties", {}).items():
            if isinstance(field, dict) and "description" in field:
                yield name
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from described(each)


def test_the_page_of_the_report_has_every_field_of_the_schema():
    schema = ROOT / "docs" / "report.schema.json"
    spec = importlib.util.spec_from_file_location("schema_page", ROOT / "docs" / "schema_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    fields = re.findall(r"^\| `(.*?)` \|", page.fields_of_report(schema), re.MULTILINE)
    assert set(described(json.loads(schema.read_text()))) <= {field.split(".")[-1] for field in fields}
    assert {"layers[].k", "layers[].slices[].k", "selection.trials[].score"} <= set(fields)
