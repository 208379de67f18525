"""The names of the output's files, and which tensors stand in which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.outputs.layout import OutputLayout, plan_layout
from monosoup_cli.sources.locate import open_checkpoint

TENSORS = {"b": torch.zeros(8), "a": torch.zeros(4, 4), "c": torch.zeros(3, dtype=torch.bfloat16)}


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    else:
        torch.save(tensors, path)


def planned(path: Path, output: str = "out", shard_bytes: int | None = None, **dtypes: str) -> OutputLayout:
    with open_checkpoint(path) as checkpoint:
        stored = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
        return plan_layout(checkpoint.files, {**stored, **dtypes}, output, shard_bytes)


def shown(layout: OutputLayout) -> dict[str, list[str]]:
    return {file.name: list(file.header.tensors) for file in layout.files}


NAMES = {
    "model.safetensors": "model.safetensors",
    "open_clip_model.safetensors": "open_clip_model.safetensors",
    "model.fp16.safetensors": "model.fp16.safetensors",
    "anything.safetensors": "anything.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "pytorch_model.fp16.bin": "model.fp16.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
    "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
    "model.pt": "model.safetensors",
    "model_0.pt": "model.safetensors",
    "epoch=3.ckpt": "model.safetensors",
    "consolidated.00.pth": "model.safetensors",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_folders_file_is_called_as_libraries_look_for_it(tmp_path, name, expected):
    write(tmp_path / "in" / name, TENSORS)
    layout = planned(tmp_path / "in")
    assert ([file.name for file in layout.files], layout.index) == ([expected], None)
    assert not layout.is_single_file
    assert layout.names == {expected}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
        ("pytorch_model.bin", "unet/model.safetensors"),
        ("weights.pt", "unet/model.safetensors"),
    ],
)
def test_of_a_pipeline_the_file_stays_in_its_part(tmp_path, name, expected):
    write(tmp_path / "in" / "unet" / name, TENSORS)
    (tmp_path / "in" / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    assert [file.name for file in planned(tmp_path / "in").files] == [expected]
    assert [file.name for file in planned(tmp_path / "in", "out.safetensors").files] == ["out.safetensors"]


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "diffusion_pytorch_model.bin"])
def test_a_single_file_becomes_a_folders_model(tmp_path, name):
    write(tmp_path / name, TENSORS)
    assert [file.name for file in planned(tmp_path / name).files] == ["model.safetensors"]
    layout = planned(tmp_path / name, "x.y.safetensors")
    assert ([file.name for file in layout.files], layout.is_single_file) == (["x.y.safetensors"], True)


def shards(folder: Path, stem: str, suffix: str, inner: str = "", **more: object) -> Path:
    """A folder of two shards and an index whose order is not that of the files."""
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    write(folder / inner / names[0], {"b": TENSORS["b"], "a": TENSORS["a"]}, note="first")
    write(folder / inner / names[1], {"c": TENSORS["c"]})
    weight_map = {"c": names[1], "b": names[0], "a": names[0]}
    index = {"metadata": {"total_size": 1, "x": "y"}, "weight_map": weight_map, **more}
    (folder / inner / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


SHARDS = [
    ("model", "safetensors", "model", "model.safetensors.index.json"),
    ("pytorch_model", "bin", "model", "model.safetensors.index.json"),
    (
        *("diffusion_pytorch_model", "bin", "diffusion_pytorch_model"),
        "diffusion_pytorch_model.safetensors.index.json",
    ),
    ("model.fp16", "safetensors", "model.fp16", "model.safetensors.index.fp16.json"),
    ("part.1", "safetensors", "part.1", "part.1.safetensors.index.json"),
]


@pytest.mark.parametrize("inner", ["", "unet/"])
@pytest.mark.parametrize(("stem", "suffix", "expected", "index_name"), SHARDS)
def test_shards_come_out_as_shards_with_their_index(tmp_path, stem, suffix, expected, index_name, inner):
    folder = shards(tmp_path / "in", stem, suffix, inner, more=[1])
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    layout = planned(folder)
    first, second = (f"{expected}-0000{number}-of-00002.safetensors" for number in (1, 2))
    found = {name: set(tensors) for name, tensors in shown(layout).items()}
    assert found == {inner + first: {"a", "b"}, inner + second: {"c"}}
    name, content = layout.index.name, layout.index.text
    index = json.loads(content)
    assert name == f"{inner}{index_name}"
    assert index["weight_map"] == {"a": first, "b": first, "c": second}
    assert index["metadata"] == {"total_size": 32 + 64 + 6, "x": "y"}
    assert index["more"] == [1]
    assert (list(index["weight_map"]) == ["c", "b", "a"]) == (suffix == "safetensors")
    assert layout.names == {inner + first, inner + second, name}
    places = layout.places()
    assert {tensor: file.name for tensor, (file, _) in places.items()} == {
        tensor: inner + shard for tensor, shard in index["weight_map"].items()
    }


def test_shards_become_one_file_if_that_is_asked_for(tmp_path):
    folder = shards(tmp_path / "in", "pytorch_model", "bin")
    assert {name: set(names) for name, names in shown(planned(folder, "o.safetensors")).items()} == {
        "o.safetensors": {"a", "b", "c"}
    }
    layout = planned(folder, shard_bytes=1000)
    assert (list(shown(layout)), layout.index) == (["model.safetensors"], None)


@pytest.mark.parametrize(
    ("shard_bytes", "expected"),
    [
        (1, [["a"], ["b"], ["c"]]),
        (37, [["a"], ["b"], ["c"]]),
        (38, [["a"], ["b", "c"]]),
        (95, [["a"], ["b", "c"]]),
        (96, [["a", "b"], ["c"]]),
        (101, [["a", "b"], ["c"]]),
        (102, [["a", "b", "c"]]),
    ],
)
@pytest.mark.parametrize("inner", ["", "unet/"])
def test_shards_hold_as_much_as_is_asked_for(tmp_path, inner, shard_bytes, expected):
    """Of 64, 32 and 6 bytes in this order."""
    folder = shards(tmp_path / "in", "diffusion_pytorch_model", "safetensors", inner)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    layout = planned(folder, shard_bytes=shard_bytes)
    stem, count = f"{inner}diffusion_pytorch_model", len(expected)
    names = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    assert shown(layout) == dict(zip(names if count > 1 else [f"{stem}.safetensors"], expected, strict=True))
    assert layout.files[0].header.metadata == {"format": "pt", "note": "first"}
    if count > 1:
        index = json.loads(layout.index.text)
        assert set(index["weight_map"].values()) == {name.removeprefix(inner) for name in names}
    else:
        assert layout.index is None


def test_a_header_that_does_not_change_is_the_same_to_the_byte(tmp_path):
    write(tmp_path / "in" / "model.safetensors", TENSORS, note="x")
    with open_checkpoint(tmp_path / "in") as checkpoint:
        raw = checkpoint.files.shards[0].header.raw
    assert planned(tmp_path / "in").files[0].header.raw == raw
    changed = planned(tmp_path / "in", a="BF16").files[0]
    assert changed.header.raw != raw
    assert changed.header.metadata == {"format": "pt", "note": "x"}
    assert changed.header.tensors["a"].dtype == "BF16"
    assert changed.nbytes == len(changed.header.raw) + 32 + 32 + 6


def test_wide_elements_come_first_where_dtypes_change(tmp_path):
    """Every tensor then starts at a multiple of its element, as those who map files into memory need."""
    names = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(5), "d": torch.zeros(1)}
    write(tmp_path / "model.pt", names)
    for layout in (planned(tmp_path / "model.pt"), planned(tmp_path / "model.pt", d="BF16")):
        tensors = sorted(layout.files[0].header.tensors.values(), key=lambda tensor: tensor.start)
        assert [tensor.dtype for tensor in tensors] == sorted((t.dtype for t in tensors), reverse=True)
