"""The rules of the house: which room may import which, how large things may get, and what stays in one room.

Every check takes the folder of a package and yields a line for each fault. `test_the_package_keeps_the_rules`
runs the checks on the package; `test_checks_see_faults` runs each on a small made-up package with the fault.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import monosoup_cli

PACKAGE = Path(monosoup_cli.__file__).parent

BOTTOM = {"version", "errors", "names", "declaration", "options", "keywords", "signals", "system", "values"}
ROOMS = {
    "version": set(),
    "errors": set(),
    "names": {"errors"},
    "signals": set(),
    "system": set(),
    "values": {"errors"},
    "declaration": {"errors"},
    "options": {"errors", "declaration", "values"},
    "keywords": {"options"},
    "formats": BOTTOM,
    "sources": BOTTOM | {"formats"},
    "encodings": BOTTOM | {"formats", "sources"},
    "layouts": BOTTOM | {"formats", "sources"},
    "devices": BOTTOM | {"formats"},
    "evaluation": BOTTOM | {"formats", "sources"},
    "spectral": {"errors"},
    "tensors": BOTTOM | {"formats", "sources", "layouts", "devices"},
    "adapters": BOTTOM | {"formats", "sources", "layouts", "spectral"},
    "methods": BOTTOM | {"formats", "sources", "devices", "spectral", "tensors"},
    "report": BOTTOM | {"tensors", "methods"},
    "outputs": BOTTOM | {"formats", "sources", "layouts", "devices", "tensors", "adapters"},
    "pipeline": BOTTOM
    | {"formats", "sources", "encodings", "layouts", "devices", "tensors", "adapters", "report", "outputs"},
    "api": BOTTOM
    | {"formats", "sources", "evaluation", "spectral", "tensors", "adapters", "methods", "report"}
    | {"outputs", "pipeline"},
    "__init__": {"errors", "version", "api"},
    "cli": BOTTOM | {"formats", "sources", "tensors", "methods", "report", "outputs", "pipeline", "api"},
    "__main__": {"errors", "cli"},
}
"""From the lowest to the highest, each with the rooms that it may import."""

MAX_LINES = 450
MAX_MEMBERS = 12

OUTPUT_CLASS = re.compile(r"(Kind|Form|Draft|Sink)$")

CASTS = "formats/dtypes.py"
FLOAT64_ROOMS = {"spectral", "methods"}
"""They convert tensors that the caller holds, never stored bytes, and so may call .to and .double."""


def modules_in(folder: Path) -> dict[str, Path]:
    """Map the dotted name of every module below a package's folder to its file."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def trees_in(folder: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield the path inside the package, the room and the syntax tree of every module."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        yield inside.as_posix(), inside.with_suffix("").parts[0], ast.parse(path.read_text())


def imports_of(folder: Path) -> dict[str, set[str]]:
    """Map every module to the modules of the package that it imports, wherever the import is written."""
    modules = modules_in(folder)
    return {name: set(_imports(name, path, modules)) - {name} for name, path in modules.items()}


def _imports(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                start = ".".join([*package, *([node.module] if node.module else [])])
            inner = [f"{start}.{alias.name}" for alias in node.names]
            wanted = [each if each in modules else start for each in inner]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            wanted = [each.value for each in node.args if isinstance(each, ast.Constant)]
        else:
            continue
        yield from (each for each in wanted if each in modules)


def room_of(module: str) -> str:
    """Return the room of a module: the folder or the top-level module after the package's name."""
    return module.split(".")[1] if "." in module else "__init__"


def wrong_imports(folder: Path) -> Iterator[str]:
    """Find imports of a room that `ROOMS` does not allow, and rooms that it does not name."""
    for module, imported in imports_of(folder).items():
        if room_of(module) not in ROOMS:
            yield f"{module} is in a room without a place in ROOMS"
            continue
        for other in sorted(imported):
            if room_of(other) not in {room_of(module), *ROOMS[room_of(module)]}:
                yield f"{module} imports {other}"


def import_circles(folder: Path) -> Iterator[str]:
    """Find a circle of modules that import each other."""
    try:
        TopologicalSorter(imports_of(folder)).prepare()
    except CycleError as error:
        yield " → ".join(error.args[1])


def long_files(folder: Path) -> Iterator[str]:
    """Find files of more than `MAX_LINES` lines."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".js", ".css", ".html"}):
        count = len(path.read_text().splitlines())
        if count > MAX_LINES:
            yield f"{path.relative_to(folder).as_posix()} has {count} lines"


def members_of(node: ast.ClassDef) -> set[str]:
    """Return the public names that a class defines: methods, fields, and attributes that it sets on self."""
    names = set()
    for part in node.body:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(part.name)
            names |= {
                inner.attr
                for inner in ast.walk(part)
                if isinstance(inner, ast.Attribute)
                and isinstance(inner.ctx, ast.Store)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == "self"
            }
        elif isinstance(part, ast.AnnAssign):
            names.add(ast.unparse(part.target))
        elif isinstance(part, ast.Assign):
            names |= {ast.unparse(target) for target in part.targets}
    return {name for name in names if not name.startswith("_")}


def wide_classes(folder: Path) -> Iterator[str]:
    """Find classes with more than `MAX_MEMBERS` public members."""
    for path, _, tree in trees_in(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and len(members_of(node)) > MAX_MEMBERS:
                members = sorted(members_of(node))
                yield f"{path}: {node.name} has {len(members)} members: {', '.join(members)}"


def concrete_checks(folder: Path) -> Iterator[str]:
    """Find tests for a concrete source, or for a class of outputs/, outside of the room that defines it."""
    classes = [
        (room, node)
        for _, room, tree in trees_in(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    # a concrete source is any other class with all members of the protocol, or a subclass of Kind
    protocol = next((node for _, node in classes if node.name == "Source"), None)
    home = {
        node.name: room
        for room, node in classes
        if (room == "outputs" and OUTPUT_CLASS.search(node.name))
        or (protocol is not None and node is not protocol and members_of(protocol) <= members_of(node))
        or "Kind" in map(ast.unparse, node.bases)
    }
    for path, room, tree in trees_in(folder):
        for node in ast.walk(tree):
            tested = [each for each in _classes_tested(node) if home.get(each, room) != room]
            yield from (f"{path}:{node.lineno} tests for {each}" for each in tested)


def _classes_tested(node: ast.AST) -> Iterator[str]:
    """Yield the names that isinstance, issubclass, a class pattern or a comparison with type() tests for."""
    tested: list[ast.AST] = []
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "issubclass"}:
        tested = list(node.args[1:])
    elif isinstance(node, ast.MatchClass):
        tested = [node.cls]
    elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
        tested = list(node.comparators)
    for part in tested:
        for inner in ast.walk(part):
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Attribute):
                yield inner.attr


def device_questions(folder: Path) -> Iterator[str]:
    """Find `device.type` and `torch.cuda` outside of devices/."""
    for path, room, tree in trees_in(folder):
        for node in ast.walk(tree):
            if room == "devices":
                continue
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                if (node.attr == "type" and "device" in owner) or (node.attr == "cuda" and owner == "torch"):
                    yield f"{path}:{node.lineno} uses {owner}.{node.attr}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                names = [f"{base}{alias.name}" for alias in node.names]
                if any(f"{name}.".startswith("torch.cuda.") for name in names):
                    yield f"{path}:{node.lineno} imports torch.cuda"


def casts(folder: Path) -> Iterator[str]:
    """Find what turns stored bytes or names of dtypes into torch's outside of formats/dtypes.py."""
    for path, room, tree in trees_in(folder):
        if path == CASTS:
            continue
        for node in ast.walk(tree):
            for cast in _casts_at(node, is_float64_room=room in FLOAT64_ROOMS):
                yield f"{path}:{node.lineno} casts by {cast}"


def _casts_at(node: ast.AST, *, is_float64_room: bool) -> Iterator[str]:
    if isinstance(node, ast.Subscript) and re.fullmatch(r"(.+\.)?FLOATING", ast.unparse(node.value)):
        yield "FLOATING[]"
    elif isinstance(node, ast.Attribute):
        if node.attr == "get" and re.fullmatch(r"(.+\.)?FLOATING", ast.unparse(node.value)):
            yield "FLOATING.get"
        elif node.attr == "frombuffer":
            yield "frombuffer"
    elif isinstance(node, ast.ImportFrom) and node.module == "torch":
        yield from (alias.name for alias in node.names if alias.name == "frombuffer")
    elif isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        words = [ast.unparse(each) for each in (*node.args, *(word.value for word in node.keywords))]
        if function == "getattr" and words[:1] == ["torch"]:
            yield "getattr"
        elif isinstance(node.func, ast.Attribute) and not is_float64_room:
            to_float64 = node.func.attr in {"to", "type"} and "torch.float64" in words
            if to_float64 or (node.func.attr == "double" and not words):
                yield f".{node.func.attr}"


def format_skips(folder: Path) -> Iterator[str]:
    """Find comments that keep the formatter off."""
    for path in sorted(folder.rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT and re.search(r"#\s*fmt:\s*(skip|off)", token.string):
                yield f"{path.relative_to(folder).as_posix()}:{token.start[0]} {token.string}"


def open_ports(folder: Path) -> Iterator[str]:
    """Nothing listens for others to connect, also on a node of a cluster."""
    for module, path, tree in trees_in(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in ("listen", "create_server", "start_server", "serve_forever", "HTTPServer"):
                    yield f"{path}:{node.lineno}: {module} opens a port: {name}"


CHECKS = [
    wrong_imports,
    import_circles,
    long_files,
    wide_classes,
    concrete_checks,
    device_questions,
    casts,
    open_ports,
    format_skips,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rules(check):
    assert not list(check(PACKAGE))


def test_tests_leave_the_formatter_on():
    assert not list(format_skips(Path(__file__).parent))


def test_every_room_exists():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__pycache__"} == set(ROOMS)
    assert (PACKAGE / CASTS).is_file()


MEMBERS = "".join(f"    field_{number}: int\n" for number in range(MAX_MEMBERS))
METHOD = "    def __init__(self):\n        self.{name} = 1\n"
SINK = {"outputs/sinks.py": "class FileSink: ...\n", "outputs/use.py": "isinstance(0, FileSink)\n"}
KIND = {"sources/files.py": "class Kind: ...\nclass PeftAdapter(Kind): ...\n"}
READ = "    def read(self): ...\n"
SOURCE = {
    "sources/source.py": f"class Source(Protocol):\n{READ}    path: str\n",
    "sources/one.py": f"class Checkpoint:\n{READ}{METHOD.format(name='path')}",
    "sources/use.py": "isinstance(0, (int, Checkpoint))\nisinstance(0, Source)\nisinstance(0, File)\n",
    "sources/file.py": f"class File:\n{READ}",
    "api/use.py": "isinstance(0, (Source, File))\n",
}
FAULTS = [
    # check, a package without the fault, the files that add it, how many faults they are
    (
        wrong_imports,
        {"formats/a.py": "from tree.errors import Fault\nimport torch\n", "errors.py": ""},
        {"errors.py": "def f():\n    from tree.formats.a import b\n"},
        1,
    ),
    (
        wrong_imports,
        {"formats/a.py": "", "cli/b.py": "import tree.formats.a\n"},
        {"formats/a.py": "if TYPE_CHECKING:\n    from tree.cli import b\n    import tree.cli.b\n"},
        1,
    ),
    (wrong_imports, {"api/a.py": "", "cli/a.py": ""}, {"api/a.py": "from ..cli.a import b\n"}, 1),
    (wrong_imports, {"api/a.py": "", "cli/a.py": ""}, {"api/a.py": "import_module('tree.cli.a')\n"}, 1),
    (wrong_imports, {"api/a.py": ""}, {"attic/a.py": ""}, 1),
    (
        wrong_imports,
        {
            "methods/a.py": "import tree.spectral.a\n",
            "spectral/a.py": "",
            "sources/a.py": "",
            "pipeline/a.py": "",
        },
        {
            "pipeline/b.py": "from tree.methods.a import f\n",
            "spectral/b.py": "import tree.sources.a\n",
            "report/b.py": "from tree import __version__\n",
            "__init__.py": "",
        },
        3,
    ),
    (
        import_circles,
        {"api/a.py": "from tree.api.b import x\n", "api/b.py": "from tree.api import c\n", "api/c.py": ""},
        {"api/c.py": "def f():\n    from tree.api.a import x\n"},
        1,
    ),
    (
        import_circles,
        {"api/a.py": "from tree.api import b\n", "api/b.py": ""},
        {"api/b.py": "from . import a\n"},
        1,
    ),
    (long_files, {"api/a.py": "\n" * MAX_LINES}, {"api/b.js": "\n" * (MAX_LINES + 1)}, 1),
    (
        wide_classes,
        {"api/a.py": f"class A:\n{MEMBERS}{METHOD.format(name='_own')}"},
        {
            "api/a.py": f"class A:\n{MEMBERS}{METHOD.format(name='one_more')}",
            "api/b.py": f"def f():\n    class _B:\n{MEMBERS}    @property\n    def more(self): ...\n".replace(
                "    field", "        field"
            ).replace("    @property\n    def", "        @property\n        def"),
            "api/c.py": f"class C(A):\n{MEMBERS}    more = 1\n",
        },
        3,
    ),
    (concrete_checks, SINK, {"pipeline/a.py": "isinstance(0, outputs.FileSink)\n"}, 1),
    (concrete_checks, SINK, {"pipeline/a.py": "match 0:\n    case FileSink(): ...\n"}, 1),
    (concrete_checks, KIND, {"pipeline/a.py": "isinstance(0, PeftAdapter)\n"}, 1),
    (concrete_checks, KIND, {"sources/a.py": "isinstance(0, PeftAdapter)\n"}, 0),
    (concrete_checks, SINK, {"pipeline/a.py": "type(0) is FileSink\n"}, 1),
    (concrete_checks, SOURCE, {"tensors/a.py": "isinstance(0, int | Checkpoint)\n"}, 1),
    (
        concrete_checks,
        SOURCE,
        {
            "adapters/a.py": f"class MergedSource:\n{READ}    path = 1\n",
            "api/a.py": "issubclass(0, MergedSource)",
        },
        1,
    ),
    (
        device_questions,
        {"devices/a.py": "device.type\ntorch.cuda.mem_get_info()\n", "api/a.py": "action.type\n"},
        {
            "api/a.py": "self.device.type\ntorch.cuda.synchronize()\n",
            "api/b.py": "import torch.cuda\nfrom torch import cuda\n",
        },
        4,
    ),
    (
        casts,
        {
            CASTS: "torch.frombuffer(a)\n",
            "spectral/a.py": "a.double()\na.to(torch.float64)\n",
            "api/a.py": "1 in FLOATING\n",
        },
        {
            "api/a.py": "FLOATING[a]\nFLOATING.get(a)\ntorch.frombuffer(a)\n",
            "api/b.py": "getattr(torch, a)\na.double()\na.to(torch.float64)\n",
        },
        6,
    ),
    (
        casts,
        {CASTS: "getattr(torch, a)\nfrombuffer(a)\n"},
        {
            "formats/strided.py": "getattr(torch, a)\ntorch.frombuffer(a)\nFLOATING[a]\n",
            "api/a.py": "from torch import frombuffer\n",
        },
        4,
    ),
    (
        open_ports,
        {"api/a.py": "socket.create_connection(a)\nsignature.bind(a)\n"},
        {"api/a.py": "a.listen()\n", "api/b.py": "socketserver.TCPServer(a, b).serve_forever()\n"},
        2,
    ),
    (format_skips, {"api/a.py": "a = '# fmt: skip'\n"}, {"api/a.py": "a = 1  # fmt: " + "skip\n"}, 1),
]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("check", "sound", "faulty", "count"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_checks_see_faults(tmp_path, check, sound, faulty, count):
    folder = tmp_path / "tree"
    write(folder, sound)
    assert not list(check(folder))
    write(folder, faulty)
    assert len(list(check(folder))) == count


def test_every_check_has_a_fault_to_see():
    assert {check for check, *_ in FAULTS} == set(CHECKS)
