"""State dicts against torch's own reader, and files that lie: refused in one line, nothing run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import distributed as group
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats import pickles, strided
from monosoup_cli.formats.files import InputFile
from monosoup_cli.formats.header import parse_header
from monosoup_cli.formats.state_dict import read_state_dict
from monosoup_cli.formats.strided import contiguous


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


@pytest.fixture
def read(path):
    """Reads back what is at `path`: the state dict, and the bytes of each tensor in it."""

    def read():
        file = InputFile(path)
        try:
            found = read_state_dict(file)
            content = path.read_bytes()
            elements = {
                name: bytes(contiguous(file, tensor, found.strided[name]))
                if name in found.strided
                else content[tensor.start : tensor.stop]
                for name, tensor in found.tensors.items()
            }
        finally:
            file.close()
        return found, elements

    return read


@pytest.fixture
def refused(path, read, tmp_path, recwarn):
    """The one line that refuses what is at `path`; nothing is created, warned of or advised against."""

    def refused():
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError) as caught:
            read()
        line = str(caught.value)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        assert "weights_only=False" not in line
        assert "safe_globals" not in line
        assert sorted(tmp_path.iterdir()) == before
        assert not recwarn.list
        return line.removeprefix(f"{path}: ")

    return refused


def same(tensors, read):
    """Check what is read against safetensors' own record of the same tensors."""
    found, elements = read()
    assert list(found.tensors) == list(tensors)
    for name, tensor in tensors.items():
        content = save({name: tensor.detach().clone(memory_format=torch.contiguous_format)})
        (header_bytes,) = struct.unpack("<Q", content[:8])
        expected = parse_header(content[: 8 + header_bytes], len(content), "x").tensors[name]
        info = found.tensors[name]
        assert (info.name, info.dtype, info.shape) == (name, expected.dtype, expected.shape)
        assert info.nbytes == expected.nbytes == len(elements[name])
        assert elements[name] == content[8 + header_bytes :], name
    return found


def rewritten(path, change: Callable[[str, bytes], bytes | None] = lambda name, content: content, **more):
    """Write the archive at `path` anew with other records; None leaves a record out."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            changed = change(name.partition("/")[2], content)
            if changed is not None:
                archive.writestr(name, changed)
        for name, content in more.items():
            archive.writestr(name, content)


def with_pickle(path, content: bytes):
    torch.save({"a": torch.arange(4.0)}, path)
    rewritten(path, lambda name, old: content if name == "data.pkl" else old)


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_that_safetensors_has(path, read, dtype):
    codes = torch.randint(0, 2 if dtype is torch.bool else 120, (24, dtype.itemsize), dtype=torch.uint8)
    tensors = {"plain": codes.view(dtype).view(4, 6), "turned": codes.view(dtype).view(4, 6).T}
    torch.save(tensors, path)
    assert set(same(tensors, read).strided) == {"turned"}


def views():
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(6, 5, 4, generator=generator)
    convolution = torch.randn(8, 3, 3, 3, generator=generator)
    return {
        "whole": big,
        "rows": big[2:5],
        "row": big[4],
        "columns": big[:, 1:3],
        "every other": big[::2, :, 1],
        "permuted": big.permute(2, 0, 1),
        "transposed": torch.randn(7, 5, generator=generator).T,
        "channels_last": convolution.to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "item": big[1, 2, 3],
        "empty": torch.zeros(0, 3),
        "empty view": big[3:3],
        "no storage": torch.empty(0),
        "ones": torch.randn(1, 5, 1, generator=generator).as_strided((1, 5, 1), (999, 1, 77)),
        "expanded to one": torch.randn(5, generator=generator).expand(1, 5),
        "double": big.double()[:, 2],
    }


def test_views_of_every_kind(path, read):
    torch.save(views(), path)
    found = same(views(), read)
    assert set(found.strided) == {
        "columns",
        "every other",
        "permuted",
        "transposed",
        "channels_last",
        "double",
    }
    assert not found.tied
    assert found.left_out == ()
    with zipfile.ZipFile(path) as archive:
        assert found.pickle == archive.read("x/data.pkl")


def test_elements_far_apart_are_read_without_all_that_lies_between(path, monkeypatch):
    far = torch.arange(40.0 * 3 * 50).view(40, 3, 50)[:, :, 7]
    torch.save({"far": far}, path)
    monkeypatch.setattr(strided, "PIECE", 64)
    file = InputFile(path)
    found = read_state_dict(file)
    before, longest = file.bytes_read, []
    read_into = file.read_into
    monkeypatch.setattr(
        file, "read_into", lambda buffer, offset: (longest.append(len(buffer)), read_into(buffer, offset))
    )
    assert bytes(contiguous(file, found.tensors["far"], found.strided["far"])) == far.numpy().tobytes()
    assert file.bytes_read - before == far.numel() * 4
    assert max(longest) == 4
    file.close()


def test_the_same_elements_under_two_names_are_tied(path, read):
    shared = torch.randn(4, 4)
    tensors = {
        "embedding": shared,
        "turned": shared.T,
        "head": shared,
        "again": shared[:],
        "flat": shared.view(16),
        "equal": shared.clone(),
        "turned too": shared.T,
        "empty": torch.zeros(0),
    }
    tensors["empty too"] = tensors["empty"]
    torch.save(tensors, path)
    found = same(tensors, read)
    assert found.tied == {"head": "embedding", "again": "embedding", "turned too": "turned"}
    assert found.tensors["head"].start == found.tensors["embedding"].start


def test_a_module_saved_as_modules_are(path, read):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), path)
    same(module.state_dict(), read)
    parameters = OrderedDict(module.named_parameters())
    torch.save(parameters, path)
    same(parameters, read)


@pytest.mark.parametrize("old", ["byteorder", ".format_version"])
def test_files_of_older_releases(path, read, old):
    torch.save(views(), path)
    rewritten(path, lambda name, content: None if name in (old, ".storage_alignment") else content)
    same(views(), read)


def test_a_storage_that_was_on_another_device(path, read):
    tensors = {"a": torch.arange(6.0)}
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        saved = archive.read("x/data.pkl")
    moved = saved.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3")
    assert moved != saved
    rewritten(path, lambda name, content: moved if name == "data.pkl" else content)
    same(tensors, read)


BESIDE = {
    "epoch": 3,
    "best": 0.5,
    "lr": [1e-3, (0.9, 0.999)],
    "milestones": Counter([3, 5]),
    "none": None,
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "shape": torch.Size([2, 3])}}},
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
}


ALLOWED = {
    "set": {1, "a"},
    "bytes": b"raw",
    "array": bytearray(b"raw"),
    "complex": 1 + 2j,
    "layout": torch.strided,
    "size": torch.Size([2, 3]),
    "kind": torch.device("meta"),
    "nested": [{"of": ({"bytes": {b"x"}},)}],
}
"""What torch's `weights_only=True` reads besides."""


class Config(dict):
    """A class of somebody's own, with items and attributes."""


class Names(list):
    """Likewise."""


FOREIGN = {
    "args": Namespace(path=PurePosixPath("/data"), lr=0.1),
    "config": Config(a=Config(b=torch.zeros(3))),
    "names": Names(["a"]),
    "score": np.float64(0.5),
    "history": np.arange(3),
    "frozen": frozenset([1]),
    "module": torch.nn.Linear(2, 2),
    "type": torch.optim.Adam,
    "sparse": torch.zeros(2).to_sparse(),
    "meta": torch.zeros(2, device="meta"),
}
"""What it does not."""


def test_what_torch_reads_with_weights_only_is_read(path, read):
    """Nothing is said of it but its name."""
    tensors = {"a": torch.randn(3)}
    torch.save({**BESIDE, **ALLOWED, "model": tensors}, path)
    torch.load(path, weights_only=True)
    found = same(tensors, read)
    assert found.left_out == (*BESIDE, *ALLOWED)
    assert found.notes == ()


def test_foreign_objects_beside_the_state_dict_are_named(path, read):
    tensors = {"a": torch.randn(3)}
    for name, value in FOREIGN.items():
        torch.save({"model": tensors, name: value}, path)
        found = same(tensors, read)
        assert found.left_out == (name,)
        if name not in ("type", "sparse", "meta"):
            with pytest.raises(pickle.UnpicklingError):
                torch.load(path, weights_only=True)
            (note,) = found.notes
            kind = type(value)
            assert "holds objects that are not read" in note
            assert name in ("score", "history") or f"{kind.__module__}.{kind.__name__}".split(".")[-1] in note


def test_tensors_with_attributes_and_of_every_release(path, read):
    """As torch reads them; the attributes are nothing that a file of weights has."""
    weight = torch.nn.Parameter(torch.randn(3, 2))
    weight.tensor_model_parallel = True
    plain = torch.randn(4)
    plain.untyped_storage_ = plain.scale = 3
    tensors = {"parameter": weight, "tensor": plain, "frozen": torch.nn.Parameter(plain, requires_grad=False)}
    torch.save(tensors, path)
    assert torch.load(path, weights_only=True)["tensor"].scale == 3
    same(tensors, read)


def test_what_modules_keep_beside_their_tensors_is_left_out(path, read):
    tensors = {"a.weight": torch.randn(3), "b.weight": torch.randn(2)}
    for extra in None, io.BytesIO(b"x"), {"scale": torch.ones(1)}:
        torch.save({"a.weight": tensors["a.weight"], "a._extra_state": extra, **tensors}, path)
        assert same(tensors, read).left_out == ("a._extra_state",)


EMA = {
    "epoch": 3,
    "model": {"module.a": torch.zeros(3)},
    "model_ema": {"a": torch.ones(3)},
    "nets": {"generator": {"ema": {"g": torch.ones(2)}, "live.now": {"g": torch.zeros(2)}}},
}


@pytest.mark.parametrize(
    ("wanted", "tensors"),
    [
        (None, EMA["model"]),
        ("model", EMA["model"]),
        ("model_ema", EMA["model_ema"]),
        ("nets.generator.ema", EMA["nets"]["generator"]["ema"]),
        ("nets.generator.live.now", EMA["nets"]["generator"]["live.now"]),
    ],
)
def test_a_state_dict_is_chosen_by_its_path(path, wanted, tensors):
    torch.save(EMA, path)
    file = InputFile(path)
    found = read_state_dict(file, wanted)
    content = path.read_bytes()
    assert {name: content[one.start : one.stop] for name, one in found.tensors.items()} == {
        name: one.numpy().tobytes() for name, one in tensors.items()
    }
    assert found.path == (wanted or "model")
    assert {found.path, *found.others} == {
        "model",
        "model_ema",
        "nets.generator.ema",
        "nets.generator.live.now",
    }
    (note,) = found.notes
    assert note.startswith(f"the tensors of '{found.path}' are read; --state-dict chooses others: ")
    file.close()


def test_a_choice_that_a_file_of_several_does_not_have(path):
    torch.save(EMA, path)
    file = InputFile(path)
    with pytest.raises(CheckpointError, match="no state dict 'ema': found 'model', 'model_ema', 'nets"):
        read_state_dict(file, "ema")
    torch.save({"model": EMA["model"], "epoch": 3}, path)
    only = InputFile(path)
    assert read_state_dict(only, "ema").path == "model"  # a base without an average
    file.close()
    only.close()


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
def test_what_training_scripts_save(path, read, wrapper):
    tensors = {"module.a": torch.randn(3), "b": torch.randn(2, 2)}
    torch.save({**BESIDE, wrapper: OrderedDict(tensors)}, path)
    assert same(tensors, read).left_out == tuple(BESIDE)
    torch.save({"epoch": 1, wrapper: {"model": tensors, "lr": 2}}, path)
    assert same(tensors, read).left_out == ("epoch", f"{wrapper}.lr")


def test_a_wrapper_s_name_that_is_no_wrapper(path, read):
    tensors = {"model": torch.randn(3), "a": torch.randn(2)}
    torch.save(tensors, path)
    assert same(tensors, read).left_out == ()
    torch.save({"model": "resnet50", "state_dict": tensors}, path)
    assert same(tensors, read).left_out == ("model",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (torch.zeros(2), "not a state dict: found a Tensor"),
        ([torch.zeros(2)], "not a state dict: found a list"),
        ({}, "the state dict is empty"),
        ({"state_dict": {}}, "the state dict is empty"),
        ({1: torch.zeros(2)}, "a name in the state dict is not text: found 1"),
        ({("a",) * 9: torch.zeros(2)}, "a name in the state dict is not text: found tuple"),
        ({"a": torch.zeros(2), "b": 3}, "'b' is not a tensor: found a int"),
        ({"model": {"a": [torch.zeros(2)]}}, "'model.a' is not a tensor: found a list"),
        (
            {"model": {"model": {"model": {"a": torch.zeros(2)}}}},
            "its tensors are under 'model.model.model'; choose: --state-dict model.model.model",
        ),
        ({"net": {"a": torch.zeros(2)}, "epoch": 3}, "its tensors are under 'net'; choose: --state-dict net"),
        ({"model": {"a": torch.zeros(2)}, "module": {}}, "holds several state dicts: model, module"),
        ({"": torch.zeros(2)}, "tensor '': a name that safetensors does not allow"),
        ({"__metadata__": torch.zeros(2)}, "tensor '__metadata__': a name that safetensors does not allow"),
        ({"\ud800": torch.zeros(2)}, "the name '\\ud800' is not valid Unicode"),
        (
            {"a": torch.zeros(2, dtype=torch.complex128)},
            "tensor 'a': a dtype that safetensors does not have: found complex128",
        ),
        (
            {"a": torch.zeros(2, dtype=torch.complex64).conj()},
            "tensor 'a': a view that conjugates or negates",
        ),
        (
            {"a": torch.zeros(2, dtype=torch.complex64).conj().imag},
            "tensor 'a': a view that conjugates or negates",
        ),
        ({"a": torch.zeros(2).to_sparse()}, "holds a sparse tensor"),
        ({"a": torch.zeros(1).expand(5)}, "tensor 'a': a view whose elements overlap: found strides (0,)"),
        ({"a": torch.zeros(9).unfold(0, 3, 1)}, "tensor 'a': a view whose elements overlap"),
        ({"a": torch.zeros((1,) * 65)}, "tensor 'a': too many dimensions: expected at most 64, found 65"),
        ({"a": torch.zeros(2, device="meta")}, "holds a tensor without data"),
        (
            {"a": torch.nn.Linear(2, 2)},
            "holds an object that is not a tensor: 'torch.nn.modules.linear.Linear'; save the state dict"
            " alone",
        ),
        ({"a": torch.zeros(2), "b": b"raw"}, "holds an object that is not a tensor: '_codecs.encode'"),
        ({"a": torch.zeros(2), "b": {1, 2}}, "holds an object that is not a tensor: '__builtin__.set'"),
        ({"a": torch.zeros(2), "b": Namespace()}, "holds an object that is not a tensor: 'argparse.Names"),
        (
            Namespace(),
            "holds an object that is not a tensor: 'argparse.Namespace'; save the state dict alone",
        ),
    ],
    ids=str,
)
def test_what_is_no_state_dict_is_refused(path, refused, content, line):
    torch.save(content, path)
    assert refused().startswith(line)


def test_the_way_out_of_tensors_that_are_not_dense(path, read, refused, recwarn):
    dense = torch.tensor([0.0, 1.0])
    quantised = torch.quantize_per_tensor(dense, 1.0, 0, torch.qint8)
    for tensor in (dense.to_sparse(), quantised):
        torch.save({"a": tensor}, path)
        recwarn.clear()
        call = refused().partition("; save what .")[2].partition("()")[0]
        torch.save({"a": getattr(tensor, call)()}, path)
        same({"a": dense}, read)


def test_a_part_of_a_distributed_tensor(path, read, refused):
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        part = distribute_tensor(torch.arange(4.0), DeviceMesh("cpu", [0]), [Shard(0)])
        torch.save({"a": part}, path)
        assert "holds one rank's part of a distributed tensor; save what .full_tensor() returns" in refused()
        torch.save({"a": part.full_tensor()}, path)
        same({"a": torch.arange(4.0)}, read)
    finally:
        group.destroy_process_group()


def test_quantised_and_nested_tensors_are_refused(path, refused, recwarn):
    quantised = torch._empty_affine_quantized([2], scale=0.1, zero_point=0, dtype=torch.qint8)
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    for tensor, what in (quantised, "quantised"), (nested, "nested"):
        torch.save({"a": tensor}, path)
        recwarn.clear()
        assert refused().startswith(f"holds a {what} tensor")


def test_files_of_other_formats_are_refused_with_the_cure(path, refused, recwarn):
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    line = refused()
    assert line.startswith("in torch's legacy format")
    assert line.endswith("torch.save(torch.load(OLD, weights_only=True), NEW)")
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    assert refused().startswith("a tar archive")
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    assert refused().startswith("a pickle that torch.save did not write")
    save_file({"a": torch.zeros(2)}, path)
    assert refused() == "a safetensors file under another name; rename it to end in .safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert refused() == "a git-lfs pointer, not the file itself; run `git lfs pull`"
    path.write_bytes(b"")
    assert refused() == "the file is empty"
    path.write_bytes(b"\0" * 600)
    assert refused() == "not a PyTorch file"


# Hostile archives


def test_a_compressed_record_is_refused(path, refused):
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if "data/0" in name else None)
    assert refused().startswith("the record 'data/0' is compressed; save it again")


@pytest.mark.parametrize("kept", [10, 100, 1000, -1, -22, -30])
def test_a_truncated_archive_is_refused(path, refused, kept):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert refused() == "the zip archive is damaged or truncated; download or copy it again"


def central(path, name, offset, value):
    """Change a field of the record's entry in the archive's directory."""
    content = bytearray(path.read_bytes())
    entry = content.rfind(name.encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + offset : entry + offset + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize("where", [0, 1, 64, 2**31, 2**32 - 2])
def test_a_record_that_is_not_where_the_directory_says_is_refused(path, refused, where):
    torch.save({"a": torch.arange(100.0)}, path)
    central(path, "x/data/0", 42, struct.pack("<I", where))
    assert refused().endswith("is not where the zip archive says")


def test_a_record_that_reaches_into_the_next_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0), "b": torch.arange(100.0)}, path)
    central(path, "x/data/0", 20, struct.pack("<II", 500, 500))
    with zipfile.ZipFile(path) as archive:
        saved = archive.read("x/data.pkl")
    content = path.read_bytes().replace(saved, saved.replace(b"Kd", b"K\x7d"))
    path.write_bytes(content)
    assert refused() == "the record 'x/data/0' is not where the zip archive says"


def test_records_that_the_directory_calls_by_each_other_s_names_are_refused(path, refused):
    torch.save({"a": torch.arange(100.0), "b": torch.arange(100.0)}, path)
    for name, other in ("x/data/1", b"x/data/2"), ("x/data/0", b"x/data/1"), ("x/data/2", b"x/data/0"):
        central(path, name, 46, other)
    assert refused() == "the record 'x/data/0' is not where the zip archive says"


def test_a_record_of_another_size_than_the_storage_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    rewritten(path, lambda name, content: content[:396] if name == "data/0" else content)
    assert refused().startswith("tensor 'a': it reaches beyond its storage: expected at most 396 bytes")
    rewritten(path, lambda name, content: content + bytes(8) if name == "data/0" else content)
    assert refused() == (
        "tensor 'a': its storage and its record differ in size: expected 400 bytes, found 404"
    )


def test_the_place_of_a_tensor_is_not_taken_from_the_directory(path, read):
    """The headers before the records count: their extra fields differ in length."""
    tensors = {"a": torch.arange(100.0), "b": torch.arange(7)}
    torch.save(tensors, path)
    rewritten(path)  # zipfile does not pad
    found = same(tensors, read)
    assert found.tensors["a"].start % 64


def test_a_duplicate_record_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data/0", bytes(400))
    assert refused() == "the zip archive has the record 'data/0' twice"


def test_an_archive_without_records_is_refused(path, refused):
    path.write_bytes(b"PK\x03\x04" + bytes(8) + b"PK\x05\x06" + bytes(18))
    assert refused() == "a zip archive that torch.save did not write"


def test_a_record_after_the_end_of_the_file_is_refused_unread(path, refused):
    torch.save({"a": torch.arange(4.0)}, path)
    content = path.read_bytes()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/byteorder"))
    path.write_bytes(content[: entry + 42] + struct.pack("<I", 2**30) + content[entry + 46 :])
    assert refused() == "the record 'x/byteorder' is not where the zip archive says"


def test_a_second_folder_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    rewritten(path, **{"y/extra": b""})
    assert refused() == "a zip archive that torch.save did not write"


def test_a_missing_record_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    rewritten(path, lambda name, content: None if name == "data/0" else content)
    assert refused() == "tensor 'a': its elements are not in the file"


def test_big_endian_numbers_are_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    rewritten(path, lambda name, content: b"big" if name == "byteorder" else content)
    assert refused().startswith("its numbers are not little-endian")


def test_an_encrypted_record_is_refused(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    central(path, "x/data/0", 8, b"\x01\x08")
    assert refused() == "the record 'data/0' is encrypted"


def test_a_pickle_that_is_too_large_is_refused_unread(path, refused):
    torch.save({"a": torch.arange(100.0)}, path)
    central(path, "x/data.pkl", 20, struct.pack("<II", 200_000_000, 200_000_000))
    assert refused() == "the pickle is too large: expected at most 100,000,000 bytes, found 200,000,000"


def test_a_directory_that_is_too_large_is_refused_unread(path, refused):
    with path.open("wb") as sparse:
        sparse.write(b"PK\x03\x04")
        sparse.truncate(1 << 40)
        sparse.seek(1 << 40)
        sparse.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 9, 9, 2**31, 2**31, 0))
    assert refused().startswith("the directory of the zip archive is too large: expected at most 16,000,000")


# Hostile pickles


class Creates:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_payload_is_not_run(path, refused, tmp_path):
    torch.save({"a": torch.zeros(2), "b": Creates(tmp_path / "created")}, path)
    assert refused().startswith("holds an object that is not a tensor: 'posix.mkdir'")
    assert not (tmp_path / "created").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "created").exists(), "the payload would not have run in any case"


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORED = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def rebuilt(offset: bytes, shape: bytes, strides: bytes, stored: bytes = STORED) -> bytes:
    """A pickle of {"a": a tensor of these}."""
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"\x80\x02}X\x01\x00\x00\x00a"
        + TENSOR
        + b"("
        + stored
        + offset
        + shape
        + strides
        + b"\x89"
        + hooks
        + b"tRs."
    )


def long(value: int) -> bytes:
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


MILLION = b"J" + struct.pack("<i", 10**6)


def test_the_pickles_written_here_are_read_where_they_are_honest(path, read):
    with_pickle(path, rebuilt(b"K\x01", b"K\x03\x85", b"K\x01\x85"))
    same({"a": torch.arange(1.0, 4.0)}, read)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (rebuilt(b"K\x00", MILLION * 2 + b"\x86", b"K\x00K\x00\x86"), "a view whose elements overlap"),
        (rebuilt(b"K\x00", MILLION * 2 + b"\x86", MILLION + b"K\x01\x86"), "it reaches beyond its storage"),
        (rebuilt(b"K\x02", b"K\x03\x85", b"K\x01\x85"), "it reaches beyond its storage"),
        (rebuilt(b"K\x00", b"K\x02\x85", b"K\x04\x85"), "it reaches beyond its storage"),
        (
            rebuilt(b"K\x00", b"K\x00" + long(2**40) * 2 + b"\x87", b"K\x01K\x01K\x01\x87"),
            "the shape overflows",
        ),
        (rebuilt(b"K\x00", long(2**40) * 2 + b"\x86", b"K\x00K\x00\x86"), ""),
        (rebuilt(b"K\x00", long(2**1000) + b"\x85", b"K\x01\x85"), ""),
        (rebuilt(b"K\x00", long(-1) + b"\x85", b"K\x01\x85"), ""),
        (rebuilt(long(-4), b"K\x03\x85", b"K\x01\x85"), ""),
        (rebuilt(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(b"K\x04", long(2**70))), ""),
        (
            rebuilt(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(b"K\x04", long(2**40))),
            "its storage and its record differ in size",
        ),
        (rebuilt(b"K\x00", b"K\x04\x85", b"K\x01\x85", STORED.replace(b"\x000X", b"\x001X")), ""),
    ],
)
def test_tensors_that_lie_are_refused(path, refused, content, line):
    with_pickle(path, content)
    assert line in refused()


N = 100_000
BOMBS = {
    # a name that would take 2^60 steps to hash
    "hash": b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    # a name so deep that hashing it overflows the stack of the process
    "depth": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    # one list of pairs, copied over and over
    "copies": b"\x80\x02]("
    + b"K\x01K\x02\x86" * N
    + b"e\x85q\x00(ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x00R" * N
    + b"t.",
    # the same, of a list that grows only when it stands in the arguments
    "growth": b"\x80\x02]q\x01\x85q\x00h\x01("
    + b"K\x01K\x02\x86" * N
    + b"e(ccollections\nOrderedDict\nq\x02"
    + b"h\x02h\x00R" * N
    + b"t.",
    "storage": b"\x80\x02ctorch.storage\nUntypedStorage\n" + long(2**36) + b"\x85R.",
    "array": b"\x80\x02c__builtin__\nbytearray\n" + long(2**36) + b"\x85R.",
    "text": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    "memo": b"\x80\x02}r\xff\xff\xff\x7f(e.",
    # numbers of one hash, which a dict would compare with each other
    "keys": b"\x80\x02}(" + b"".join(long(number * (2**61 - 1)) + b"K\x01" for number in range(N)) + b"u.",
    # a dict of dicts of dicts, each the same one a hundred thousand times over
    "choices": b"\x80\x02](}q\x00"
    + b"".join(b"X\x06\x00\x00\x00%06dh\x00s" % number for number in range(100))
    + b"e.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_take_more_work_than_their_size_warrants_are_refused(path, refused, bomb):
    with_pickle(path, BOMBS[bomb])
    lines = {
        "hash": "a name in the state dict is not text: found tuple",
        "depth": "a name in the state dict is not text: found tuple",
        "keys": "a name in the state dict is not text: found 0",
        "storage": "holds an object that is not a tensor: 'torch.storage.UntypedStorage'",
        "array": "holds an object that is not a tensor: '__builtin__.bytearray'",
        "text": "holds an object that is not a tensor: '_codecs.encode'",
        "memo": "its pickle is malformed",
        "choices": "not a state dict: found a list",
    }
    assert refused().startswith(lines.get(bomb, "its pickle takes far more work than its size warrants"))


@pytest.mark.parametrize("other", [STORED.replace(b"Float", b"Int"), STORED.replace(b"K\x04", b"K\x02")])
def test_a_record_is_not_two_storages(path, refused, other):
    """torch reads the second tensor with the dtype of the first, and does not write such files."""
    first, second = (
        tensor.removeprefix(b"\x80\x02}").removesuffix(b"s.")
        for tensor in (
            rebuilt(b"K\x00", b"K\x02\x85", b"K\x01\x85"),
            rebuilt(b"K\x00", b"K\x02\x85", b"K\x01\x85", other),
        )
    )
    with_pickle(path, b"\x80\x02}" + first + b"s" + second.replace(b"a", b"b", 1) + b"s.")
    assert refused() == "its pickle is malformed"


def test_a_storage_is_not_given_another_state(path, refused):
    with_pickle(path, b"\x80\x02" + STORED + b"}b.")
    assert refused() == "its pickle is malformed"


def test_a_pickle_of_too_many_parts_is_refused(path, refused, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
    with_pickle(path, b"\x80\x02" + b"]" * 1001 + b".")
    assert refused().startswith("its pickle has too many parts")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02s.",
        b"\x80\x02h\x00.",
        b"\x80\x02t.",
        b"\x80\x02}b.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02ctorch\n",
        b"\x80\x02}}R.",
        b"\x80\x02Q.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02" + STORED + b"}b.",
        b"\x80\x04\x95",
        b"\x80\x02}(K\x01e.",
        b"\x80\x02I" + b"9" * 9999 + b"\n.",
    ],
)
def test_malformed_pickles_are_refused(path, refused, content):
    with_pickle(path, content)
    assert refused()


def test_every_byte_of_a_small_file_may_be_wrong(path, read):
    """Whatever is changed: the file is refused in our own words, or what is read lies inside it."""
    torch.save({"a": torch.arange(6.0).view(2, 3).T, "b": torch.zeros(1)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickled = content.index(archive.read("x/data.pkl"))
    for position in [*range(pickled, pickled + 330), *range(len(content) - 500, len(content))]:
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found, _ = read()
        except CheckpointError:
            continue
        for name, tensor in found.tensors.items():
            span = found.strided[name].span if name in found.strided else tensor.nbytes
            assert 0 <= tensor.start <= tensor.start + span <= len(content)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols_that_torch_does_not_use_itself(path, read, protocol):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(3)}
    torch.save({**BESIDE, **ALLOWED, **FOREIGN, "model": tensors}, path, pickle_protocol=protocol)
    assert same(tensors, read).left_out == (*BESIDE, *ALLOWED, *FOREIGN)


def test_little_of_a_file_is_read(path):
    torch.save({f"layer.{i}": torch.zeros(250_000) for i in range(50)}, path)
    file = InputFile(path)
    read_state_dict(file)
    assert file.nbytes > 50_000_000
    assert file.bytes_read < 20_000
    file.close()


def test_a_file_is_read_where_it_has_no_path():
    """As one on a server has none: only reads at offsets are needed."""

    class Remote:
        shown = "org/name: x.bin"
        content = io.BytesIO()

        @property
        def nbytes(self) -> int:
            return len(self.content.getvalue())

        def read(self, nbytes: int, offset: int = 0) -> bytes:
            found = self.content.getvalue()[offset : offset + nbytes]
            assert len(found) == nbytes
            return found

        def read_into(self, buffer: memoryview, offset: int) -> None:
            buffer[:] = self.read(len(buffer), offset)

    file, turned = Remote(), torch.arange(6.0).view(2, 3).T
    torch.save({"a": turned}, file.content)
    found = read_state_dict(file)
    elements = contiguous(file, found.tensors["a"], found.strided["a"])
    assert bytes(elements) == turned.contiguous().numpy().tobytes()
