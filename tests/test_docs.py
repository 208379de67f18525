"""What the build of the site does not see: that code compiles, and that links and fields exist."""

import importlib.util
import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monosoup_cli.api.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_python_compile(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        compile(code, page.name, "exec")


def test_the_demo_installs_what_it_needs_and_no_more(tmp_path):
    made = subprocess.run(
        ["make", "-n", "demo", f"VENV={tmp_path}/venv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.findall(r"-e '(.*)'", made.stdout) == [".[demo]"]


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_readme_is_read_in_ten_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


def described(part: Any) -> Iterator[str]:
    """Every name in a JSON Schema that has a description, by a plain walk through it."""
    if isinstance(part, dict):
        for name, field in part.get("properties", {}).items():
            if isinstance(field, dict) and "description" in field:
                yield name
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from described(each)


def module_of(name: str) -> Any:
    """A module in docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_functions_has_every_keyword_that_commands_share():
    shared = [
        {name for name, one in inspect.signature(command).parameters.items() if one.kind is one.KEYWORD_ONLY}
        for command in COMMANDS.values()
    ]
    listed = re.findall(r"^- `(\w+)`$", module_of("keywords_page").shared_keywords(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == set.intersection(*shared)
    assert "<!-- keywords -->" in (ROOT / "docs" / "api.md").read_text()


def test_the_page_of_the_report_has_every_field_of_the_schema():
    schema = ROOT / "docs" / "report.schema.json"
    page = module_of("schema_page")
    fields = re.findall(r"^\| `(.*?)` \|", page.fields_of_report(schema), re.MULTILINE)
    assert set(described(json.loads(schema.read_text()))) <= {field.split(".")[-1] for field in fields}
    assert {"layers[].k", "layers[].slices[].k", "selection.trials[].score"} <= set(fields)
