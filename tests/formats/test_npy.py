"""Arrays that NumPy writes are read as NumPy reads them, in any byte order and in pieces."""

import itertools

import numpy as np
import pytest

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import InputFile
from monosoup_cli.formats.npy import read_npy
from monosoup_cli.sources.features import open_npy
from tests.features import save


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_every_piece_is_what_numpy_reads(tmp_path, dtype, version):
    array = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    opened = open_npy(str(save(tmp_path / "a.npy", array, version)))
    assert opened.shape == (7, 5)
    for start, stop, left, right in itertools.product((0, 3), (4, 7), (0, 2), (3, 5)):
        read = opened.read(range(start, stop), range(left, right)).numpy()
        assert np.array_equal(read, array[start:stop, left:right].astype(np.float64))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
        "{'shape':(2,3),'fortran_order':False,'descr':'<f4'}  \n",
        "{ 'fortran_order' : False,\n 'shape': ( 2 , 3 , ) , 'descr': '<f4' , }",
    ],
)
def test_headers_of_other_writers(tmp_path, header):
    path = tmp_path / "a.npy"
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    path.write_bytes(content + np.arange(6, dtype="<f4").tobytes())
    assert np.array_equal(np.load(path), np.arange(6).reshape(2, 3))
    assert read_npy(InputFile(path)).tensor.shape == (2, 3)


@pytest.mark.parametrize(
    "shape", ["(2, 3", "(2,, 3)", "(02, 3)", "(2 3)", "(-2, 3)", "(2, '3')", "6", "[2, 3]"]
)
def test_shapes_that_are_none(tmp_path, shape):
    path, header = tmp_path / "a.npy", f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    path.write_bytes(content + bytes(24))
    with pytest.raises(CheckpointError, match="malformed"):
        read_npy(InputFile(path))


def test_a_header_that_goes_on_after_its_line_is_none(tmp_path):
    """Python reads an indent there, and NumPy refuses the file."""
    path, header = tmp_path / "a.npy", b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n  "
    path.write_bytes(b"\x93NUMPY\3\0" + len(header).to_bytes(4, "little") + header + bytes(24))
    with pytest.raises(ValueError, match="Cannot parse header"):
        np.load(path)
    with pytest.raises(CheckpointError, match="malformed"):
        read_npy(InputFile(path))
