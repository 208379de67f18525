"""The notebook docs/tutorial.ipynb: a kernel runs it, and it has what it prints."""

import copy
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def page():
    spec = importlib.util.spec_from_file_location("notebook_page", DOCS / "notebook_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_prints_what_the_notebook_has(page):
    committed = nbformat.read(page.NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    empty = copy.deepcopy(committed)
    for cell in empty.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for a socket's name
        again = Path(folder, "again.ipynb")
        nbformat.write(empty, again)
        places = dict.fromkeys(("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), folder)
        subprocess.run(
            [sys.executable, page.__file__, again], env={**os.environ, **places}, check=True, timeout=120
        )
        assert nbformat.read(again, as_version=4) == committed, "run `make docs`"
    assert sum(len(cell.get("outputs", ())) for cell in committed.cells) >= 9
    assert str(Path.home()) not in page.NOTEBOOK.read_text()


def test_the_page_has_the_text_the_code_and_the_output_of_every_cell(page):
    text = page.as_markdown()
    at = 0
    for cell in nbformat.read(page.NOTEBOOK, as_version=4).cells:
        for part in (cell.source, *(output.text.rstrip() for output in cell.get("outputs", ()))):
            at = text.index(part, at)
