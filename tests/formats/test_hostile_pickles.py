"""Files of a megabyte that would take gigabytes or hours to read: refused in bounded memory and time."""

import struct
import subprocess
import sys
import zipfile

import pytest

START = b"\x80\x02"
MANY = 20_000
LONG = "k" * 1_000_000

LIMITED = """if True:
    import resource, sys

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    from monosoup_cli.cli.app import main

    sys.exit(main(["inspect-spectrum", sys.argv[1], sys.argv[1]]))
"""


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"j" + struct.pack("<I", number)


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
ORDERED = b"ccollections\nOrderedDict\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x89" + ORDERED + b"tR"
FIRST = b"ctorch._utils\n_rebuild_parameter\n"
OF_TYPE = b"ctorch._tensor\n_rebuild_from_type_v2\n"
REBUILDERS = OF_TYPE + put(2) + b"0" + FIRST + put(3) + b"0ctorch\nTensor\n" + put(4) + b"0"
WITHIN = b"(" + get(3) + get(4) + get(1) + b"}t"
TUPLE = b"(" + b"K\x00" * 100_000 + b"t" + put(1) + b"0"
NUMBERS = b"".join(text(str(number)) + b"K\x00" for number in range(MANY))
ALIASES = b"".join(text(str(number)) + get(1) for number in range(2000))


PICKLES = {
    "a long path to many values": b"}" + text(LONG) + b"}(" + NUMBERS + text("t") + TENSOR + b"us",
    "a long path to many dicts": b"}" + text(LONG) + b"}(" + NUMBERS.replace(b"K\x00", b"}") + b"us",
    "names joined": b"]" + text(LONG) + put(1) + b"0(" + (get(1) + get(1) + b"\x93") * MANY + b"e",
    "a long tuple as arguments": b"](" + TUPLE + FIRST + put(2) + b"0" + (get(2) + get(1) + b"R0") * MANY,
    "a long tuple within": b"](" + TUPLE + REBUILDERS + (get(2) + WITHIN + b"R0") * MANY + b"e",
    "long names of objects": b"]c" + LONG.encode() + b"\nx\n" + put(2) + b"0" + (get(2) + b")R0") * MANY,
}


def module(state, kind=""):
    return f"c__torch__.m{kind}\nM\n)\x81".encode("latin1") + state + b"b"


SHARED = module(b"}(" + text(LONG) + module(b"}(" + text("w") + TENSOR + b"u") + b"u")
WIDE = module(b"}(" + NUMBERS * 5 + b"u")
ROOMS = b"".join(text(str(number)) + module(b"}", number) for number in range(30))
EMPTY = "class X(Module):\n"
LISTS = "class M(Module):\n  __buffers__ = [" + '"ab",' * 3_000_000 + "]\n"
SCRIPTS = {
    "modules with a long name": (b"}(" + text("first") + SHARED + put(1) + ALIASES + b"u", {"": EMPTY}),
    "modules with many attributes": (b"}(" + text("first") + WIDE + put(1) + ALIASES + b"u", {"": EMPTY}),
    "much code": (b"}(" + ROOMS + b"u", {"": EMPTY, **dict.fromkeys(map(str, range(30)), LISTS)}),
    "an open string": (b"}", {"": 'class M(Module):\n  __buffers__ = ["' + '\\"' * 1_000_000 + "x]\n"}),
    "many lines": (b"}", {"": "class M(Module):\n" + " \n" * 7_900_000}),
}


def write(path, pickle, code=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickle, "byteorder": "little", "version": "3"}.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/data/0", bytes(4))
        if code is not None:
            archive.writestr("archive/constants.pkl", "")
        for name, content in (code or {}).items():
            archive.writestr(f"archive/code/__torch__/m{name}.py", content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 3_000_000


def refused(path):
    command = [sys.executable, "-c", LIMITED, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 2000


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_takes_more_than_its_size_warrants(tmp_path, name):
    write(tmp_path / "a.pt", START + PICKLES[name] + b".")
    refused(tmp_path / "a.pt")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_takes_more_than_its_size_warrants(tmp_path, name):
    state, code = SCRIPTS[name]
    write(tmp_path / "a.pt", START + module(state) + b".", code)
    refused(tmp_path / "a.pt")
