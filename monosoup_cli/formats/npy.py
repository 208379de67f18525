"""NumPy's .npy files: one array, after a header in Python's notation."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from monosoup_cli.errors import CheckpointError, crop
from monosoup_cli.formats.files import CheckpointFile
from monosoup_cli.formats.foreign import recognise
from monosoup_cli.formats.header import BITS, TensorInfo

__all__ = ["SUFFIX", "Array", "read_npy", "swapped"]

SUFFIX = ".npy"
MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}
"""How many bytes the length of the header has, by version."""
MAX_HEADER_BYTES = 10_000
"""As in NumPy."""
GAP = r"[ \t\n]*"
SIZE = rf"{GAP}(?:0|[1-9][0-9]{{0,17}}){GAP}"
SHAPE = rf"\((?:(?:{SIZE},)+(?:{SIZE}|{GAP}))?\)"
FIELD = rf"{GAP}'(\w+)'{GAP}:{GAP}('[^'\n]*'|True|False|{SHAPE}){GAP}"
HEADER = re.compile(rf"\{{{FIELD},{FIELD},{FIELD}(?:,{GAP})?\}} *\n?")
DTYPES = {"f2": "F16", "f4": "F32", "f8": "F64"}
AS_FLOATS = "save it again: numpy.save(NEW, numpy.ascontiguousarray(numpy.load(OLD), 'float32'))"


@dataclass(frozen=True)
class Array:
    """The array of a file. Its offsets count from the start of the file.

    Attributes:
        tensor: Where its bytes are.
        is_swapped: Whether they are in the byte order of other machines.
    """

    tensor: TensorInfo
    is_swapped: bool


def read_npy(file: CheckpointFile) -> Array:
    """Read the header of an .npy file. Only floating-point arrays in C order are taken.

    Raises:
        CheckpointError: The file is malformed, or has another array. Objects in it are never unpickled.
    """

    def refuse(problem: str, **facts: str) -> CheckpointError:
        return CheckpointError(problem, path=file.shown, **facts)

    start = file.read(min(file.nbytes, 12))
    if not start.startswith(MAGIC):
        raise recognise(file, PurePosixPath(file.shown).name) or refuse("not an .npy file")
    length_bytes = LENGTH_BYTES.get(start[6:8])
    if length_bytes is None or len(start) < 12:
        raise refuse("an .npy file of an unknown version, or cut short")
    begin = 8 + length_bytes
    header_bytes = int.from_bytes(start[8:begin], "little")
    if header_bytes > min(MAX_HEADER_BYTES, file.nbytes - begin):
        raise refuse("the header of the .npy file is too long, or cut short", found=f"{header_bytes:,} bytes")
    found = HEADER.fullmatch(file.read(header_bytes, begin).decode("latin-1"))
    fields = {} if found is None else dict(zip(found.groups()[::2], found.groups()[1::2], strict=True))
    if fields.keys() != {"descr", "fortran_order", "shape"} or fields["shape"][0] != "(":
        raise refuse("the header of the .npy file is malformed, or of a structured array")
    kind = fields["descr"].strip("'")
    order, dtype = kind[:1], DTYPES.get(kind[1:])
    if kind.startswith("|O"):
        raise refuse("the .npy file has pickled objects, which are never loaded")
    if order not in ("<", ">") or dtype is None:
        raise refuse("not floating-point numbers of 16, 32 or 64 bits", found=crop(kind, 40), hint=AS_FLOATS)
    if fields["fortran_order"] != "False":
        raise refuse("the array is in Fortran order", hint=AS_FLOATS)
    shape = tuple(map(int, re.findall("[0-9]+", fields["shape"])))
    first = begin + header_bytes
    last = first + math.prod(shape) * BITS[dtype] // 8
    if last != file.nbytes:
        raise refuse(
            "the file is truncated" if last > file.nbytes else "bytes follow the array",
            expected=f"{last:,} bytes",
            found=f"{file.nbytes:,}",
        )
    tensor = TensorInfo(PurePosixPath(file.shown).stem, dtype, shape, first, last)
    return Array(tensor, is_swapped=(order == "<") != (sys.byteorder == "little"))


def swapped(data: bytearray, element_bytes: int) -> bytearray:
    """Reverse the bytes of every element."""
    found = bytearray(len(data))
    for place in range(element_bytes):
        found[place::element_bytes] = data[element_bytes - 1 - place :: element_bytes]
    return found
