"""From a path to a checkpoint: which file, which index, and how far links may lead."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from monosoup_cli.errors import CheckpointError, MonosoupError
from monosoup_cli.formats.files import InputFile
from monosoup_cli.sources.files import PeftAdapter
from monosoup_cli.sources.folders import resolve_inside
from monosoup_cli.sources.locate import open_checkpoint
from tests.hub import cloned

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def content(*names: str) -> bytes:
    return save({name: torch.full((2,), float(number)) for number, name in enumerate(names)})


def fill(folder: Path, files: dict[str, object]) -> Path:
    """A folder of these files: bytes as they are, a list as a checkpoint, the rest as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in files.items():
        data = content(*made) if isinstance(made, list) else made
        (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return folder


def index(**weight_map: str) -> dict[str, object]:
    return {"metadata": {"total_size": 0}, "weight_map": weight_map}


def read(path: Path) -> dict[str, float]:
    """name → first element of every tensor."""
    with open_checkpoint(path) as checkpoint:
        values = {}
        for name in checkpoint.tensors:
            data = bytearray(8)
            checkpoint.reader(name).read_into(memoryview(data), 0)
            values[name] = float(torch.frombuffer(data, dtype=torch.float32)[0])
    return values


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "anything.safetensors",
        "model.fp16.safetensors",
        "x y [z].safetensors",
    ],
)
def test_a_folder_of_one_file(tmp_path, name):
    folder = fill(tmp_path / "in", {name: ["a", "b"], "config.json": {}, "notes.txt": b""})
    assert read(folder) == read(folder / name) == {"a": 0.0, "b": 1.0}
    with open_checkpoint(folder) as checkpoint:
        assert (checkpoint.files.place.folder.root, checkpoint.files.index) == (folder, None)
        assert [shard.name for shard in checkpoint.files.shards] == [name]


def test_a_file_of_any_name(tmp_path):
    path = fill(tmp_path, {"weights": ["a"]}) / "weights"
    assert read(path) == {"a": 0.0}
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.files.place.folder is None


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "model.fp16"])
def test_shards_are_found_by_their_index(tmp_path, stem):
    first, second = f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"
    map_ = {"c": second, "b": first, "a": first}
    folder = fill(
        tmp_path / "in", {first: ["b", "a"], second: ["c"], f"{stem}.safetensors.index.json": index(**map_)}
    )
    assert read(folder) == {"b": 0.0, "a": 1.0, "c": 0.0}
    with open_checkpoint(folder) as checkpoint:
        assert [shard.name for shard in checkpoint.files.shards] == [first, second]
        assert {
            name: shard.name for shard in checkpoint.files.shards for name in shard.header.tensors
        } == map_
        assert checkpoint.files.index.content == index(**map_)
        assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == 24


def test_what_an_index_does_not_name_is_left_alone_unless_it_looks_like_a_shard(tmp_path):
    files = {A: ["a"], "vae.safetensors": ["v"], "model.safetensors.index.json": index(a=A)}
    assert read(fill(tmp_path, files)) == {"a": 0.0}
    with open_checkpoint(fill(tmp_path, {B: ["b"]})) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.files.notes == (f"files that the index does not name are not read: {B}",)


def test_a_standard_name_is_taken_before_others(tmp_path):
    folder = fill(tmp_path, {"model.safetensors": ["a"], "other.safetensors": ["b"], A: ["c"]})
    assert read(folder) == {"a": 0.0}


def test_an_index_of_nothing_but_the_file_beside_it_is_no_second_checkpoint(tmp_path):
    """As mlx-lm writes it."""
    name = "model.safetensors"
    folder = fill(tmp_path / "in", {name: ["a"], f"{name}.index.json": index(a=name)})
    assert read(folder) == {"a": 0.0}
    for content in (index(a=A), {"weight_map": 3}, b"{"):
        fill(folder, {f"{name}.index.json": content, A: ["a"]})
        with pytest.raises(CheckpointError, match="more than one file of weights in this folder"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_format_is_told_by_name_and_content(tmp_path, name):
    fill(tmp_path, {name: ["a"]})
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match="a safetensors file"):
            open_checkpoint(path)


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "tf_model.h5"])
def test_other_formats_are_not_read(tmp_path, name):
    fill(tmp_path, {name: b"x"})
    with pytest.raises(CheckpointError, match=f"no weights in this folder, only {name}"):
        open_checkpoint(tmp_path)


def test_an_adapter_comes_with_its_configuration(tmp_path):
    """Its own file alone, even beside a whole model."""
    files = {"adapter_model.safetensors": ["a"], "adapter_config.json": {"r": 4}, "model.safetensors": ["b"]}
    with open_checkpoint(fill(tmp_path, files)) as opened:
        assert (opened.files.kind, list(opened.tensors)) == (PeftAdapter({"r": 4}), ["a"])


@pytest.mark.parametrize("config", [{}, []])
def test_an_adapter_without_a_configuration_is_refused(tmp_path, config):
    folder = fill(tmp_path, {"adapter_model.safetensors": ["a"], "adapter_config.json": config})
    with pytest.raises(CheckpointError, match="adapter"):
        open_checkpoint(folder)


def test_an_adapter_without_weights_is_refused(tmp_path):
    folder = fill(tmp_path, {"model.safetensors": ["a"], "adapter_config.json": {"r": 4}})
    with pytest.raises(CheckpointError, match=r"without weights.*adapter_model\.safetensors"):
        open_checkpoint(folder)


# -- links ----------------------------------------------------------------------------------------


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_links_to_a_checkpoint_are_followed(tmp_path):
    folder = fill(tmp_path / "in", {"model.safetensors": ["a"]})
    link(tmp_path / "folder", folder)
    link(tmp_path / "file.safetensors", folder / "model.safetensors")
    assert read(tmp_path / "folder") == read(tmp_path / "file.safetensors") == {"a": 0.0}


@pytest.mark.parametrize("target", ["stored", "deep/stored", "../in/stored", "chain"])
def test_a_link_inside_the_folder_is_followed(tmp_path, target):
    folder = fill(tmp_path / "in", {"stored": ["a"]})
    fill(folder / "deep", {"stored": ["a"]})
    link(folder / "chain", folder / "deep" / "stored")
    link(folder / "model.safetensors", target)
    assert read(folder) == {"a": 0.0}


@pytest.mark.parametrize(
    "target", ["../model.safetensors", "../in2/model.safetensors", "chain", "up/model.safetensors"]
)
def test_a_link_out_of_a_clone_is_refused(tmp_path, target):
    fill(tmp_path, {"model.safetensors": ["a"]})
    fill(tmp_path / "in2", {"model.safetensors": ["a"]})  # starts with the folder's own name
    folder = fill(tmp_path / "in", {})
    link(folder / "chain", tmp_path / "model.safetensors")
    link(folder / "up", "..")
    link(folder / "model.safetensors", target)
    assert read(folder) == {"a": 0.0}  # the user's own
    cloned(folder)
    with pytest.raises(CheckpointError, match="out of the folder") as caught:
        read(folder)
    assert caught.value.path == str(folder / "model.safetensors")


@pytest.mark.parametrize("target", ["absent", "model.safetensors", "../absent"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, target):
    link(tmp_path / "in" / "model.safetensors", target)
    for path in (tmp_path / "in", tmp_path / "in" / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"nowhere|Too many levels"):
            read(path)


def test_a_file_that_turned_into_a_link_is_not_opened(tmp_path):
    fill(tmp_path, {"model.safetensors": ["a"]})
    link(tmp_path / "link", tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        InputFile(tmp_path / "link")


# -- the Hub's cache ------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot as the Hub's client leaves it: links into the blobs of its repository."""
    repository = tmp_path / "hub" / "models--org--name"
    fill(repository / "blobs", {"0a": ["a"], "0b": ["b"], "0c": index(a=A, b=B), "0d": {}})
    folder = repository / "snapshots" / "1f2e3d"
    for name, blob in ((A, "0a"), (B, "0b"), ("model.safetensors.index.json", "0c"), ("config.json", "0d")):
        link(folder / name, f"../../blobs/{blob}")
    return folder


def test_a_snapshot_is_read_through_its_links(snapshot):
    assert read(snapshot) == {"a": 0.0, "b": 0.0}
    assert read(snapshot / A) == {"a": 0.0}


def test_a_snapshot_may_share_its_blobs_with_others(snapshot, tmp_path):
    blob = snapshot.parent.parent / "blobs" / "0a"
    fill(tmp_path / "hub" / "blobs" / "aa", {"aabb": blob.read_bytes()})
    blob.unlink()
    link(blob, "../../blobs/aa/aabb")
    assert read(snapshot) == {"a": 0.0, "b": 0.0}


def test_a_cache_behind_a_link_is_still_a_cache(snapshot, tmp_path):
    link(tmp_path / "home", tmp_path / "hub")
    assert read(tmp_path / "home" / snapshot.relative_to(tmp_path / "hub")) == {"a": 0.0, "b": 0.0}


def test_a_folder_of_a_snapshot_is_part_of_the_snapshot(snapshot):
    link(snapshot / "unet" / "diffusion_pytorch_model.safetensors", "../../../blobs/0a")
    assert read(snapshot / "unet") == {"a": 0.0}


@pytest.mark.parametrize("name", [A, "model.safetensors.index.json", "config.json"])
def test_a_snapshot_may_not_lead_out_of_the_cache(snapshot, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes((snapshot / name).read_bytes())
    (snapshot / name).unlink()
    link(snapshot / name, outside)
    with pytest.raises(CheckpointError, match="out of the folder") as caught:
        read(snapshot)
    assert caught.value.path == str(snapshot / name)


@pytest.mark.parametrize(
    "folder",
    ["hub/models--org--name/revisions/1f2e3d", "hub/name/snapshots/1f2e3d", "models--org--name/1f2e3d"],
)
def test_only_the_layout_of_the_cache_opens_it(tmp_path, folder):
    path = tmp_path / folder
    fill(path.parent.parent / "blobs", {"0a": ["a"]})
    link(path / "model.safetensors", "../../blobs/0a")
    cloned(path)
    with pytest.raises(CheckpointError, match="out of the folder"):
        read(path)


def test_a_name_is_resolved_to_a_real_path(snapshot):
    assert resolve_inside(snapshot, A) == (snapshot.parent.parent / "blobs" / "0a").resolve()


# -- files that stay open -------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_nothing_stays_open(tmp_path):
    good = fill(tmp_path / "good", {A: ["a"], B: ["b"], "model.safetensors.index.json": index(a=A, b=B)})
    bad = [
        fill(tmp_path / "torn", {A: ["a"], B: b"x", "model.safetensors.index.json": index(a=A, b=B)}),
        fill(tmp_path / "twice", {A: ["a"], B: ["a"], "model.safetensors.index.json": index(a=A, b=B)}),
        fill(tmp_path / "text", {"model.safetensors": b"not a checkpoint"}),
    ]
    before = len(os.listdir("/proc/self/fd"))
    read(good)
    assert len(os.listdir("/proc/self/fd")) == before
    for path in bad:
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
        assert len(os.listdir("/proc/self/fd")) == before, path


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 200)
        with pytest.raises(CheckpointError, match="became shorter"):
            checkpoint.reader("a").read_into(memoryview(bytearray(4000)), 0)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.check_unchanged()


def test_the_root_of_the_cache_names_its_repositories(snapshot, tmp_path):
    fill(tmp_path / "hub" / "models--org--empty" / "snapshots" / "1f2e3d", {"config.json": {}})
    for commit in "12":
        fill(tmp_path / "hub" / "models--org--two" / "snapshots" / commit, {"model.safetensors": ["a"]})
    link(tmp_path / "hub" / "models--org--gone", "gone")
    with pytest.raises(CheckpointError, match="no weights in this folder") as caught:
        open_checkpoint(tmp_path / "hub")
    path = caught.value.hint.removeprefix("pass one that has some: ")
    assert path == str(snapshot.parent.parent)
    assert read(Path(path)) == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("beside", ["config.json", "model.safetensors", "adapter_config.json", None])
@pytest.mark.parametrize("held", ["run.log", None])
def test_a_folder_beside_a_model_is_no_id(tmp_path, monkeypatch, beside, held):
    """`ft/wandb` stands in a checkpoint, and `org/name` may be the folder of nothing but a name."""
    folder = fill(tmp_path / "ft" / "wandb", {} if held is None else {held: {}})
    fill(folder.parent, {} if beside is None else {beside: {}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no weights in this folder") as caught:
        open_checkpoint("ft/wandb")
    is_id = beside is None or held is None
    assert caught.value.hint == ("for the repository on the Hub: hf://ft/wandb" if is_id else None)


def test_what_people_type_by_mistake(tmp_path):
    fill(tmp_path / "folder", {A: ["a"], "model.safetensors.index.json": index(a=A)})
    with pytest.raises(MonosoupError, match="is empty"):
        open_checkpoint("")
    with pytest.raises(CheckpointError, match="pass its folder"):
        open_checkpoint(tmp_path / "folder" / "model.safetensors.index.json")
    for path in ("org/model.safetensors", "org/model.bin", "./org/name", "name", "a/b/c", "/org/name"):
        with pytest.raises(CheckpointError, match=r"no such file or folder"):
            open_checkpoint(path)


@pytest.mark.parametrize("listed", [b"{", b"3", b"[]", b"{}", b"\xff", b'{"unet": 3}', b'[{"path": 1}]'])
@pytest.mark.parametrize("name", ["model_index.json", "modules.json"])
def test_weights_beside_a_list_of_parts_that_is_none(run, tmp_path, name, listed):
    folder = fill(tmp_path / "in", {"model.safetensors": ["a"], name: listed})
    assert read(folder) == {"a": 0.0}
    base = fill(tmp_path / "base", {"model.safetensors": ["a"]})
    result = run("wise", base, folder, "--alpha", 1, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / name).read_bytes() == listed


@pytest.mark.parametrize(
    "state",
    [
        *("optimizer.safetensors", "optimizer_0.safetensors", "scheduler.safetensors", "sampler.bin"),
        *("random_states_0.safetensors", "training_args.safetensors", "lr_scheduler.safetensors"),
    ],
)
def test_state_of_training_is_no_second_file_of_weights(run, tmp_path, state):
    """By one list, which also says what is left out of an output."""
    folder = fill(tmp_path / "in", {"mine.safetensors": ["a"], state: ["b"]})
    assert read(folder) == {"a": 0.0}
    base = fill(tmp_path / "base", {"mine.safetensors": ["a"]})
    result = run("wise", base, folder, "--alpha", 1, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert not (tmp_path / "out" / state).exists()
    (folder / "mine.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights in this folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("listed", [b"{", b"3", b"{}", b'{"unet": 3}', b'{"unet": ["diffusers", "UNet"]}'])
def test_no_weights_beside_a_list_of_parts_that_is_none(tmp_path, listed):
    """A folder that is not listed can be passed."""
    folder = fill(tmp_path / "in", {"model_index.json": listed})
    fill(folder / "other", {"model.safetensors": ["a"]})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    line = str(caught.value)
    assert ("model_index.json is not valid JSON" in line) is (listed == b"{")
    assert listed == b"{" or line.endswith("no weights in this folder; pass one that has some: other")
    for listed_too in ([], ["unet"]):
        with pytest.raises(CheckpointError) as again:
            open_checkpoint(folder, parts=listed_too)
        assert str(again.value) == line
