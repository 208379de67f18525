"""The rooms of the package, and the one direction of imports between them."""

import ast
from pathlib import Path

import pytest

import monosoup_cli

PACKAGE = Path(monosoup_cli.__file__).parent
MAY_IMPORT = {
    "version": set(),
    "errors": set(),
    "names": {"errors"},
    "devices": {"formats", "errors"},
    "spectral": {"errors"},
    "methods": {"spectral", "names", "errors"},
    "formats": {"errors"},
    "sources": {"formats", "errors"},
    "tensors": {"sources", "devices", "formats", "errors"},
    "adapters": {"sources", "formats", "errors"},
    "outputs": {"sources", "formats", "errors", "version"},
    "report": {"names", "errors"},
    "pipeline": {"outputs", "adapters", "sources", "formats", "report", "errors", "version"},
    "api": {
        "tensors",
        "pipeline",
        "methods",
        "spectral",
        "outputs",
        "adapters",
        "sources",
        "formats",
        "report",
        "errors",
    },
    "cli": {"api", "pipeline", "report", "errors", "version"},
}


def imports(path):
    """Rooms that a module imports at run time, wherever in the file."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types and node.module:
            package, _, rest = node.module.partition(".")
            if package == "monosoup_cli" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    folder = PACKAGE / room
    modules = list(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    assert modules
    for module in modules:
        assert set(imports(module)) <= MAY_IMPORT[room] | {room}, module


def test_every_room_is_known():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__main__", "__pycache__"} == set(MAY_IMPORT)
