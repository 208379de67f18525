"""The parser of headers against the reference reader: agreement on what is valid, and nothing but
CheckpointError on what is not."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import InputFile, read_header
from monosoup_cli.formats.header import BITS, Header, build_header

quick = settings(deadline=None, max_examples=150)


Found = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Header]:
    """Reads the header of a file with this content."""
    path = tmp_path_factory.mktemp("header") / "x.safetensors"

    def parse(content: bytes) -> Header:
        path.write_bytes(content)
        file = InputFile(path)
        try:
            return read_header(file)
        finally:
            file.close()

    return parse


def reference(content: bytes) -> Found:
    """What the reference reader finds in it: name → dtype, shape, bytes."""
    return {
        name: (found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for name, found in safetensors.deserialize(content)
    }


@pytest.fixture(scope="module")
def ours(parse: Callable[[bytes], Header]) -> Callable[[bytes], Found]:
    """What our reader finds, in the same form; raises CheckpointError."""

    def ours(content: bytes) -> Found:
        header = parse(content)
        start = len(header.raw)
        return {
            name: (tensor.dtype, tensor.shape, content[start + tensor.start : start + tensor.stop])
            for name, tensor in header.tensors.items()
        }

    return ours


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
metadata = st.none() | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), names, max_size=3)


@st.composite
def specifications(draw: st.DrawFn) -> list[tuple[str, str, tuple[int, ...]]]:
    """Some (name, dtype, shape), small, of whole bytes."""
    made = []
    for name in draw(st.lists(names, unique=True, max_size=6)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=5))
        if math.prod(shape) * BITS[dtype] % 8:
            shape.append(8)
        made.append((name, dtype, tuple(shape)))
    return made


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A valid file as any writer might have made it: order, escapes and white space are free."""
    entries, end = {}, 0
    for name, dtype, shape in draw(specifications()):
        start, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    entries = dict(draw(st.permutations(list(entries.items()))))
    if draw(st.booleans()):
        entries["__metadata__"] = draw(metadata)
    text = json.dumps(
        entries, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2))
    ).encode() + b" " * draw(st.integers(0, 9))
    return struct.pack("<Q", len(text)) + text + draw(st.binary(min_size=end, max_size=end))


@quick
@given(files())
def test_it_agrees_with_the_reference_on_valid_files(ours, content):
    assert ours(content) == reference(content)


@quick
@given(files())
def test_it_agrees_with_safe_open(parse, tmp_path_factory, content):
    header = parse(content)
    path = tmp_path_factory.getbasetemp() / "agrees.safetensors"
    path.write_bytes(content)
    with safetensors.safe_open(path, "pt") as opened:
        assert header.tensors.keys() == set(opened.keys())
        assert (header.metadata or {}) == (opened.metadata() or {})
        for name, tensor in header.tensors.items():
            found = opened.get_slice(name)
            assert (tensor.dtype, list(tensor.shape)) == (found.get_dtype(), found.get_shape())


@quick
@given(specifications(), metadata)
def test_the_reference_reads_what_is_built(parse, specification, metadata):
    header = build_header(specification, metadata)
    content = header.raw + bytes(header.data_bytes)
    found = reference(content)
    assert {name: (dtype, shape) for name, dtype, shape in specification} == {
        name: (dtype, shape) for name, (dtype, shape, _) in found.items()
    }
    assert len(header.raw) % 8 == 0
    assert parse(content) == header
    assert list(header.tensors) == [name for name, _, _ in specification]


TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"0",
    b"1",
    b"9" * 30,
    b"1e3",
    b".5",
    b"NaN",
    b"null",
    b"true",
    b"\\ud800",
    b"\\u0000",
    b"\\",
    b"\n",
    b"\0",
    b"\xff",
    b"/**/",
    b'"t":',
    b"{}",
    b"[]",
    b'"dtype":"F32",',
    b'"shape":[0],',
    b'"data_offsets":[0,0]',
    b'"__metadata__":{},',
]
edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 8), st.sampled_from(TOKENS) | st.binary(max_size=3)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=700)
@given(files(), edits, st.booleans())
def test_a_mutated_file_is_refused_or_read_as_the_reference_reads_it(ours, content, edits, is_length_kept):
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length], content[8 + length :]
    for position, removed, inserted in edits:
        position %= len(text) + 1
        text = text[:position] + inserted + text[position + removed :]
    content = struct.pack("<Q", length if is_length_kept else len(text)) + text + data
    try:
        found = ours(content)
    except CheckpointError:
        return
    assert found == reference(content)


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=300) | st.binary(max_size=300).map(lambda text: struct.pack("<Q", len(text)) + text)
)
def test_any_bytes_raise_nothing_but_checkpoint_errors(parse, content):
    try:
        parse(content)
    except CheckpointError:
        return
    assert content[8:9] == b"{"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(json_values, st.sampled_from(["dtype", "shape", "data_offsets", "", "entry", "__metadata__"]))
def test_any_json_in_place_of_a_value_is_refused_or_agreed_on(ours, value, place):
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    entries = {place: value} if place in {"entry", "__metadata__"} else {"t": {**entry, place: value}}
    text = json.dumps(entries).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(1)
    try:
        found = ours(content)
    except CheckpointError:
        return
    assert found == reference(content)


def nested(depth: int) -> str:
    return '[{"a":' * (depth // 2) + "[]" * (depth % 2) + "0" * (1 - depth % 2) + "}]" * (depth // 2)


@pytest.mark.parametrize(
    ("value", "is_read"),
    [
        *[("1e400", False), ("-1e400", False), ("1e308", True), ("1.8e308", False), ("1e-400", True)],
        *[("9" * 308, True), ("9" * 309, False), ("1" * 400, False), ("-" + "1" * 5000, False)],
        *[("1" + "0" * 400 + "e-300", True), ("0e999999999999", True), ("-0", True), ("-0.0", True)],
        *[("[" * 125 + "]" * 125, True), ("[" * 126 + "]" * 126, False), ("[" * 5000 + "]" * 5000, False)],
        *[(nested(125), True), (nested(126), False), ('[[], [1, "a", {"b": [null, true]}]]', True)],
        *[('"\\ud800"', False), ('{"\\udc00": 1}', False), ('"\\ud83d\\ude00"', True), ("NaN", False)],
        *[("01", False), ("+1", False), (".5", False), ("1.", False), ("Infinity", False), ('"\t"', False)],
    ],
    ids=lambda value: str(value)[:12],
)
def test_fields_that_the_format_does_not_have_are_read_as_the_reference_reads_them(ours, value, is_read):
    text = b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":%s}}' % value.encode()
    content = struct.pack("<Q", len(text)) + text + b"x"
    if is_read:
        assert ours(content) == reference(content) == {"t": ("U8", (1,), b"x")}
        return
    with pytest.raises(safetensors.SafetensorError):
        reference(content)
    with pytest.raises(CheckpointError):
        ours(content)


@pytest.mark.parametrize("value", ['{"a":1,"a":2}', '1,"more":2'])
def test_a_field_that_repeats_is_refused_as_the_format_has_it(ours, value):
    text = b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":%s}}' % value.encode()
    with pytest.raises(CheckpointError, match="twice"):
        ours(struct.pack("<Q", len(text)) + text + b"x")


@pytest.mark.parametrize("padding", [b"", b" ", b"\n", b"\t" * 3, b" " * 1000])
def test_white_space_after_the_json_is_fine(ours, padding):
    text = b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}' + padding
    content = struct.pack("<Q", len(text)) + text + b"x"
    assert ours(content) == reference(content) == {"t": ("U8", (1,), b"x")}


def test_the_header_is_kept_as_it_stands(parse):
    text = b'{ "t" : {"shape":[1],"dtype":"U8","data_offsets":[0,1],"more":"" } }  '
    content = struct.pack("<Q", len(text)) + text + b"x"
    assert parse(content).raw == content[:-1]


def test_files_with_the_same_header_share_it_unless_one_is_damaged(parse):
    content = build_header([("w", "F32", (3,))], {"format": "pt"}).raw + bytes(12)
    first = parse(content)
    assert parse(content[:-12] + b"other values") is first
    for wrong in (content[:-1], content + b"x"):
        with pytest.raises(CheckpointError, match=r"truncated|bytes follow"):
            parse(wrong)


def test_a_million_tensors_is_the_limit(parse, monkeypatch):
    monkeypatch.setattr("monosoup_cli.formats.header.MAX_TENSORS", 3)
    three, four = (build_header([(f"{n}", "U8", (0,)) for n in range(count)], {}) for count in (3, 4))
    assert parse(three.raw) == three
    with pytest.raises(CheckpointError, match="too many tensors: expected at most 3"):
        parse(four.raw)


def test_a_long_header_is_read(parse):
    padding = b" " * 19_999_998
    assert parse(struct.pack("<Q", 20_000_000) + b"{}" + padding).tensors == {}
