"""Files of other formats are called by their names, in whatever place they stand, and the hints lead on."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from sklearn.linear_model import LogisticRegression

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.foreign import OTHER_FORMATS, OTHER_SUFFIXES
from monosoup_cli.sources.locate import open_checkpoint

WEIGHTS = {"a": np.arange(4000, dtype=np.float32)}


def in_memory(write, *arguments, **options) -> bytes:
    made = io.BytesIO()
    write(made, *arguments, **options)
    return made.getvalue()


def zipped(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, b"x" * 40)
    return made.getvalue()


def tarred(*members: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


FITTED = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
EXAMPLES: dict[str, tuple[str, bytes]] = {
    "a git-lfs pointer": ("x", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
    "a git-xet pointer": ("x", b"# xet version 0\nfilesize = 3\nhash = '00'\n"),
    "a web page": ("x", b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>"),
    "an XML document": (
        "x",
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    ),
    "a GGUF file": ("x", b"GGUF\x03\0\0\0" + bytes(64)),
    "an HDF5 file": ("x", b"\x89HDF\r\n\x1a\n" + bytes(64)),
    "a Keras archive": ("x", zipped("metadata.json")),
    "an archive of NumPy arrays": ("x", in_memory(np.savez, **WEIGHTS)),
    "a single NumPy array": ("x", in_memory(np.save, WEIGHTS["a"])),
    "an ONNX graph": ("x", b"\x08\x08\x12\x07pytorch\x1a\x052.13.0:\xc2\x01\n\x05graph"),
    "a TensorFlow Lite model": ("x", b"\x1c\0\0\0TFL3" + bytes(64)),
    "a part of a TensorFlow checkpoint": ("model.ckpt.data-00000-of-00001", bytes(64) + b"\xff" * 64),
    "the weights of an OpenVINO graph": ("openvino_model.bin", b"\xff" * 64),
    "a msgpack file": ("x", b"\x82\xabtransformer\x81\xa1h\x81\xa10\x80\xa7lm_head\x80"),
    "a tar archive, as torch wrote": ("x", tarred(("pickle", b"x"), ("storages", b""))),
    "a tar archive, such as": ("x", tarred(("./model_config.yaml", b"x: 1"), ("./model_weights.ckpt", b""))),
    "compressed by gzip": ("x", gzip.compress(save({"a": torch.zeros(9)}))),
    "compressed by bzip2": ("x", bz2.compress(b"weights")),
    "compressed by xz": ("x", lzma.compress(b"weights")),
    "compressed by zstd": ("x", b"\x28\xb5\x2f\xfd\x04\0" + bytes(64)),
    "compressed by zlib": ("x", in_memory(lambda made: joblib.dump(FITTED, made, compress=("zlib", 3)))),
    "a pickle of scikit-learn": ("x", pickle.dumps(FITTED)),
    "a pickle that torch.save did not write": ("x", pickle.dumps({"a": [1, 2]})),
    "a JSON file": ("x", b'{"error": "Repository not found"}'),
    "a server's error": ("x", b"Entry not found"),
    "text, not weights": ("x", b"# A model\n\nIt is not found in the wild.\n"),
}


@pytest.mark.parametrize(
    "answer",
    [
        *(b"Entry not found", b"Invalid username or password.", b"Access denied", b"404: Not Found"),
        b"Access to model a/b is restricted. You must have access to it and be authenticated.",
        *(b"Too Many Requests\n", b"502 Bad Gateway", b"Internal Server Error"),
    ],
)
def test_only_what_a_server_answers_is_to_be_downloaded_again(tmp_path, answer):
    (tmp_path / "model.bin").write_bytes(answer)
    assert hint_for(tmp_path / "model.bin").endswith("download it again")
    for text in (b"# My model\n\n" + answer, answer + b"\n" + b"More about that. " * 30, b"import torch\n"):
        (tmp_path / "model.bin").write_bytes(text)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path / "model.bin")
        assert str(caught.value).endswith("text, not weights")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("what", EXAMPLES)
def test_a_file_of_another_format_is_called_by_its_name(tmp_path, what, suffix):
    name, content = EXAMPLES[what]
    path = tmp_path / (name if name != "x" else f"model{suffix}")
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: {what}")


def test_every_row_of_the_table_has_an_example():
    for other in OTHER_FORMATS:
        assert any(other.what.startswith(what) for what in EXAMPLES), other.what


def test_weights_of_ours_are_no_other_format(tmp_path):
    """Headers of every length that starts like one of the table's."""
    for length in (0x178, 0x15B, 0x8B1F, 0x7B22):
        content = save({"a": torch.zeros(3)}, {"pad": "x"})
        short = length - int.from_bytes(content[:8], "little")
        path = tmp_path / "model.safetensors"
        path.write_bytes(save({"a": torch.zeros(3)}, {"pad": "x" * (short - short % 8 + 8)}))
        padded = bytearray(path.read_bytes())
        header = int.from_bytes(padded[:8], "little")
        spaces = (length - header) % 2**16
        if spaces < 4096:
            padded[8 + header : 8 + header] = b" " * spaces
            padded[:8] = (header + spaces).to_bytes(8, "little")
            path.write_bytes(padded)
        open_checkpoint(path).files.close()
        shutil.copy(path, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="a safetensors file under another name"):
            open_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".gguf", ".h5", ".onnx", ".msgpack", ".npz", ".nemo", ".pkl", ".joblib"])
def test_a_folder_of_another_format_says_which(tmp_path, suffix):
    assert suffix in OTHER_SUFFIXES
    whats = {".gguf": "a GGUF", ".h5": "an HDF5", ".onnx": "an ONNX", ".msgpack": "a msgpack"}
    whats |= {".npz": "an archive of", ".nemo": "a tar archive, such as", ".pkl": "a pickle of sc"}
    what = next(one for one in EXAMPLES if one.startswith(whats.get(suffix, "compressed by zlib")))
    (tmp_path / f"model{suffix}").write_bytes(EXAMPLES[what][1])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"no weights in this folder, only model{suffix}, {what}" in str(caught.value)
    hint = next(other.hint for other in OTHER_FORMATS if other.what.startswith(what))
    assert hint is None or str(caught.value).endswith(hint)


def hint_for(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return caught.value.hint


def opened(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return list(checkpoint.tensors)


def test_the_way_out_of_numpy(tmp_path):
    np.savez(tmp_path / "old.npz", **WEIGHTS)
    line = hint_for(tmp_path / "old.npz").removeprefix("convert it: ")
    line = line.replace("OLD", repr(str(tmp_path / "old.npz"))).replace(
        "NEW", repr(str(tmp_path / "new.safetensors"))
    )
    subprocess.run([sys.executable, "-c", f"import numpy, safetensors.numpy; {line}"], check=True)
    assert opened(tmp_path / "new.safetensors") == ["a"]
    assert torch.equal(load_file(tmp_path / "new.safetensors")["a"], torch.from_numpy(WEIGHTS["a"]))


@pytest.mark.parametrize(("program", "compress"), [("gzip", gzip), ("bzip2", bz2), ("xz", lzma)])
def test_the_way_out_of_a_compressed_file(tmp_path, program, compress):
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    old.write_bytes(compress.compress(save({"a": torch.zeros(9)})))
    command = hint_for(old).removeprefix("decompress it: ")
    subprocess.run(command.replace("OLD", str(old)).replace("NEW", str(new)), shell=True, check=True)
    assert opened(new) == ["a"]


def test_the_way_out_of_nemo(tmp_path):
    weights = in_memory(lambda made: torch.save({"a": torch.zeros(3)}, made))
    (tmp_path / "old.nemo").write_bytes(
        tarred(("./model_config.yaml", b"x: 1"), ("./model_weights.ckpt", weights))
    )
    assert hint_for(tmp_path / "old.nemo").startswith("unpack it (tar -xf OLD)")
    subprocess.run(["tar", "-xf", "old.nemo"], cwd=tmp_path, check=True)
    assert opened(tmp_path / "model_weights.ckpt") == ["a"]


def test_the_way_out_of_a_pickle(tmp_path):
    model = torch.nn.Linear(2, 2)
    (tmp_path / "old.pt").write_bytes(pickle.dumps(model))
    line = hint_for(tmp_path / "old.pt").removeprefix("save the state dict alone: ")
    eval(line, {"torch": torch, "model": model, "PATH": tmp_path / "new.pt"})
    assert opened(tmp_path / "new.pt") == ["weight", "bias"]


def test_the_way_out_of_torch_s_legacy_format(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    line = hint_for(tmp_path / "old.pt").partition(": ")[2]
    eval(line, {"torch": torch, "OLD": tmp_path / "old.pt", "NEW": tmp_path / "new.pt"})
    assert opened(tmp_path / "new.pt") == ["a"]


def test_the_way_out_of_other_names(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert hint_for(tmp_path / "x.safetensors") == "if it is a state dict, rename it to end in .pt"
    shutil.move(tmp_path / "x.safetensors", tmp_path / "x.pt")
    assert opened(tmp_path / "x.pt") == ["a"]
    save_file({"a": torch.zeros(2)}, tmp_path / "y.pt")
    assert hint_for(tmp_path / "y.pt") == "rename it to end in .safetensors"
    shutil.move(tmp_path / "y.pt", tmp_path / "y.safetensors")
    assert opened(tmp_path / "y.safetensors") == ["a"]
