"""Distributed checkpoints of torch (DCP): saved by real ranks, cut in every way, damaged, and refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from transformers import AutoModelForCausalLM

import monosoup_cli
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import InputFile
from monosoup_cli.formats.gathered import Chunk, Gathered, chunked, problem_of
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.locate import open_checkpoint
from tests import sampling
from tests.models import MODELS, build

RANKS = 4
RUN = """
import sys, warnings
import torch
from torch import distributed as group
from torch.distributed import checkpoint
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

warnings.simplefilter("ignore")
rank, port, full, out = int(sys.argv[1]), sys.argv[2], torch.load(sys.argv[3]), sys.argv[4]
group.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=4)
mesh = init_device_mesh("cpu", (2, 2))
ways = {
    "layers.0.weight": [Shard(0), Shard(1)],
    "layers.1.weight": [Shard(1), Shard(1)],
    "experts.weight": [Shard(1), Shard(2)],
    "norm.weight": [Shard(0), Replicate()],
    "few.weight": [Shard(0), Shard(0)],
}
parts = {
    name: distribute_tensor(one, mesh, ways[name]) if name in ways else one for name, one in full.items()
}
states = {"optimizer": {"state": {"few.weight": parts["few.weight"]}, "lr": 0.1}, "step": 5}
checkpoint.save({"model": parts, **states}, checkpoint_id=f"{out}/nested")
checkpoint.save({**parts, **states}, checkpoint_id=f"{out}/flat")
group.destroy_process_group()
"""
"""A rank of a run over a mesh of two by two."""


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "layers.0.weight": (37, 50),
        "layers.1.weight": (9, 17),
        "experts.weight": (3, 10, 6),
        "norm.weight": (33,),
        "few.weight": (3, 5),  # fewer rows than ranks
        "scalar": (),
    }
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "experts.weight": made["experts.weight"].bfloat16()}


@pytest.fixture(scope="module")
def run_of_ranks(tmp_path_factory):
    """A folder with what four ranks saved, and with the same tensors whole."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(weights(1), folder / "full.pt")
    save_file(weights(1), folder / "whole.safetensors")
    save_file(
        {name: one + 0.1 * torch.randn_like(one) for name, one in weights(1).items()},
        folder / "base.safetensors",
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = [str(port), str(folder / "full.pt"), str(folder)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RUN, str(rank), *words], stderr=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    assert [(rank.communicate(timeout=100)[1], rank.returncode)[1] for rank in ranks] == [0] * RANKS
    return folder


def saved(folder: Path, content: dict) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def bytes_of(source, name: str) -> bytes:
    found = bytearray(source.tensors[name].nbytes)
    source.reader(name).read_into(memoryview(found), 0)
    return bytes(found)


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_what_ranks_saved_is_edited_as_the_whole_model(run_of_ranks, run, tmp_path, form):
    """The same bytes, whichever of base and fine-tune it is; the optimizer is left out."""
    base, whole, ranks = (run_of_ranks / name for name in ("base.safetensors", "whole.safetensors", form))
    for number, words in enumerate([(base, whole, ranks), (whole, base, ranks)]):
        pairs = [words[:2], (words[0], words[2])] if number == 0 else [words[:2], (words[2], words[1])]
        outs = [tmp_path / f"{number}-{one}" for one in ("whole", "ranks")]
        for pair, out in zip(pairs, outs, strict=True):
            result = run("edit", *pair, "-o", out)
            assert result.code == 0, result.err
        one, two = (load_file(out / "model.safetensors") for out in outs)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert "left out: optimizer, step" in result.err
    assert run("diff", whole, ranks).code == 0
    report = json.loads((outs[1] / "monosoup_report.json").read_text())
    listed = {file["name"]: file["bytes"] for file in report["inputs"][0]["files"]}
    assert listed == {path.name: path.stat().st_size for path in ranks.iterdir()}
    assert run("verify", outs[1], "--inputs").code == 0


def test_every_range_of_what_ranks_saved(run_of_ranks):
    with open_checkpoint(run_of_ranks / "nested") as source:
        file = source.files.shards[0].file
        whole = file.read(file.nbytes)
        for name, one in weights(1).items():
            assert bytes_of(source, name) == one.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        chance = random.Random(0)
        for _ in range(300):
            start, stop = sorted(chance.choices(range(file.nbytes + 1), k=2))
            assert file.read(stop - start, start) == whole[start:stop]


def cuts(chance: random.Random, size: int) -> list[tuple[int, int]]:
    places = sorted({0, size, *(chance.randrange(size + 1) for _ in range(chance.randrange(3)))})
    return [(start, stop - start) for start, stop in pairwise(places)]


@pytest.mark.parametrize("seed", sampling.first(20, range(60)))
def test_a_tensor_that_is_cut_anyhow(tmp_path, seed):
    """As grids, and cut again within: against slices. Rows are narrow, or wide enough to be read alone."""
    chance = random.Random(seed)
    dims = chance.randrange(1, 5)
    shape = (*(chance.randrange(1, 7) for _ in range(dims - 1)), chance.choice([5, 40, 40_000]))
    tensor = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
    chunks = [Chunk((), ())]
    for size in shape:
        chunks = [
            Chunk((*one.offsets, at), (*one.sizes, length))
            for one in chunks
            for at, length in cuts(chance, size)  # other cuts in each
        ]
    chance.shuffle(chunks)
    assert problem_of(shape, chunks) == ""
    path, content, places = tmp_path / "x", bytearray(b"  "), []
    for one in chunks:
        places.append(len(content))
        part = tensor[tuple(slice(at, at + n) for at, n in zip(*one, strict=True))]
        content += part.contiguous().numpy().tobytes()
    path.write_bytes(content)
    stored = InputFile(path)
    info = TensorInfo("x", "I32", shape, 0, 4 * tensor.numel())
    file = Gathered(stored, [stored], [chunked(info, chunks, [(stored, place) for place in places])])
    whole = tensor.numpy().tobytes()
    assert file.read(file.nbytes) == whole
    for _ in range(20):
        start, stop = sorted(chance.choices(range(file.nbytes + 1), k=2))
        assert file.read(stop - start, start) == whole[start:stop]
        file.prefetch(start, stop - start)
    file.close()


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([((0, 0), (4, 3))], "its chunks are not the whole tensor"),
        ([((0, 0), (4, 3)), ((0, 2), (4, 2))], "its chunks are not the whole tensor"),
        ([((0, 0), (2, 4)), ((1, 0), (2, 4))], "its chunks are not the whole tensor"),
        ([((0, 0), (2, 3)), ((0, 3), (4, 1)), ((1, 0), (2, 3))], "its chunks are not the whole tensor"),
        ([((0, 0), (4, 5))], "a chunk reaches beyond its tensor"),
        ([((2, 0), (4, 4))], "a chunk reaches beyond its tensor"),
        ([((0,), (16,))], "a chunk has other dimensions than its tensor"),
        ([], "its chunks are not the whole tensor"),
    ],
)
def test_chunks_that_are_not_the_tensor(chunks, problem):
    assert problem_of((4, 4), [Chunk(*one) for one in chunks]) == problem


def change(folder, edit):
    path = folder / ".metadata"
    content = pickle.loads(path.read_bytes())
    edit(content)
    path.write_bytes(pickle.dumps(content))


def first(content, key="model.layers.0.weight"):
    return content.state_dict_metadata[key]


def other_offset(content):
    (index,) = (one for one in content.storage_data if one.fqn == "model.layers.0.weight")
    content.storage_data[MetadataIndex(index.fqn, torch.Size([1, 0]))] = content.storage_data.pop(index)


DAMAGE = {
    "a chunk is in no file": other_offset,
    "its chunks are not the whole tensor": lambda content: first(content).chunks.clear(),
    "a chunk reaches beyond its tensor": lambda content: first(content).chunks.append(
        ChunkStorageMetadata(torch.Size([30, 0]), torch.Size([9, 50]))
    ),
    "a chunk is not what it should be": lambda content: setattr(
        first(content), "properties", type(first(content).properties)(dtype=torch.float64)
    ),
    "a dtype that safetensors does not have": lambda content: setattr(
        first(content), "properties", type(first(content).properties)(dtype=torch.complex128)
    ),
    "does not describe a distributed checkpoint": lambda content: next(
        iter(content.storage_data.values())
    ).__dict__.update(relative_path="../x.distcp"),
    "the zip archive is damaged": lambda content: next(iter(content.storage_data.values())).__dict__.update(
        length=100
    ),
    "a key within a tensor": lambda content: content.planner_data.update(
        {"model.norm.weight": ("model", "layers.0.weight", "x")}
    ),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_what_lies_is_refused_in_a_line(tmp_path, run, refuse, words):
    folder = saved(tmp_path / "run", {"model": weights(1)})
    change(folder, DAMAGE[words])
    save_file(weights(0), tmp_path / "base.safetensors")
    assert words in refuse(tmp_path / "base.safetensors", folder)


def test_bytes_that_were_changed_anywhere_are_an_error_or_the_same_tensors(tmp_path):
    """Of the description: of one in ten bytes, every bit flipped. Nothing in it is run."""
    folder = saved(tmp_path / "run", {"model": {"a": torch.arange(6.0).view(2, 3)}})
    path = folder / ".metadata"
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 10):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            with open_checkpoint(folder) as source:
                for name in source.tensors:
                    assert bytes_of(source, name) == torch.arange(6.0).numpy().tobytes()
        except CheckpointError:
            refused += 1
    assert refused > 20


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_nothing_in_the_description_is_run(tmp_path, monkeypatch, refuse):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "run", {"model": weights(1)})
    change(folder, lambda content: setattr(content, "planner_data", Evil()))
    save_file(weights(0), tmp_path / "base.safetensors")
    refuse(tmp_path / "base.safetensors", folder)
    assert not (tmp_path / "evil").exists()


def test_a_file_that_is_missing_or_changes(tmp_path, refuse):
    folder = saved(tmp_path / "run", {"model": weights(1)})
    save_file(weights(0), tmp_path / "base.safetensors")
    with open_checkpoint(folder) as source:
        os.utime(folder / "__0_0.distcp", (1, 1))
        with pytest.raises(CheckpointError, match="changed while it was read"):
            source.check_unchanged()
    (folder / "__0_0.distcp").rename(tmp_path / "x")
    (folder / "__1_0.distcp").write_bytes(b"")
    assert "files of chunks are missing: __0_0.distcp" in refuse(tmp_path / "base.safetensors", folder)
    (tmp_path / "x").rename(folder / "__0_0.distcp")
    (folder / ".metadata").unlink()
    assert "without .metadata, which says what is where" in refuse(tmp_path / "base.safetensors", folder)


def test_the_state_dict_is_chosen(tmp_path, run):
    content = {"student": weights(1), "teacher": weights(2), "optimizer": {"a": torch.ones(2)}}
    folder = saved(tmp_path / "run", content)
    save_file(weights(2), tmp_path / "two.safetensors")
    result = run("diff", tmp_path / "two.safetensors", folder)
    assert (result.code, "choose: --state-dict student" in result.err) == (2, True)
    assert run("diff", tmp_path / "two.safetensors", folder, "--state-dict", "teacher").code == 0


def test_its_configuration_goes_along_and_its_chunks_do_not(tmp_path, run):
    folder = saved(tmp_path / "run", {"model": weights(1)})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(weights(0), tmp_path / "base.safetensors")
    assert run("edit", tmp_path / "base.safetensors", folder, "-o", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "monosoup_report.json"}
    found = monosoup_cli.info(folder)
    assert (found["model_type"], found["tensors"]) == ("llama", len(weights(1)))
    assert found["formats"] == [".distcp"]
    assert {one["name"]: one["bytes"] for one in found["files"]} == {
        name: (folder / name).stat().st_size for name in (".metadata", "__0_0.distcp")
    }
    assert "a distributed checkpoint of torch (DCP), in chunks" in run("info", folder).out
    words = ("edit", tmp_path / "base.safetensors", folder, "--side-files", "all", "-o", tmp_path / "all")
    assert run(*words).code == 0
    assert not list((tmp_path / "all").glob("*.distcp"))


def test_a_model_of_transformers_loads_with_the_configuration_of_its_base(tmp_path, run):
    """Which does not go along, and is named."""
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "base")
    tuned = {name: one + 0.01 * torch.randn_like(one) for name, one in model.state_dict().items()}
    folder = saved(tmp_path / "run", {"model": tuned, "optimizer": {"x": torch.ones(2)}})
    result = run("edit", tmp_path / "base", folder, "-o", tmp_path / "out")
    assert result.code == 0
    assert "OUT has no config.json, because" in result.err
    assert "left out    __" not in result.err
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert not torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert run("extract", tmp_path / "base", folder, "-o", tmp_path / "lora", "--rank", "2").code == 0
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"


def test_what_has_no_model(tmp_path, refuse):
    save_file(weights(0), tmp_path / "base.safetensors")
    folder = saved(tmp_path / "run", {"optimizer": {"x": torch.ones(2)}})
    line = refuse(tmp_path / "base.safetensors", folder)
    assert "has no model, only what a run keeps beside it: optimizer" in line


def test_large_ones_are_written_in_shards(tmp_path, run, monkeypatch):
    """Of 5 GB; here of 4 kB, as no test should write that much."""
    monkeypatch.setattr("monosoup_cli.outputs.layout.OF_CHUNKS", 4000)
    folder = saved(tmp_path / "run", {"model": weights(1)})
    save_file(weights(0), tmp_path / "base.safetensors")
    assert run("edit", tmp_path / "base.safetensors", folder, "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1


def test_from_the_hub(hub, tmp_path, run):
    """Only the chunks of the model are downloaded."""
    content = {"model": {"a.weight": torch.randn(700, 600)}, "optimizer": {"b": torch.randn(900, 900)}}
    hub.add("org/run", saved(tmp_path / "run", content))
    save_file(content["model"], tmp_path / "whole.safetensors")
    result = run("diff", tmp_path / "whole.safetensors", "org/run")
    assert result.code == 0, result.err
    assert hub.bytes_sent("*.distcp") < 2_500_000


@pytest.mark.parametrize("other", ["model.pt", "model.safetensors", "pytorch_model.bin"])
def test_beside_other_files(tmp_path, run, other):
    """Weights by their name are what is read; a pickle of some name is not."""
    folder = saved(tmp_path / "run", {"model": weights(1)})
    torch.save(weights(2), folder / other) if not other.endswith("s") else save_file(
        weights(2), folder / other
    )
    save_file(weights(1 if other == "model.pt" else 2), tmp_path / "expected.safetensors")
    assert run("diff", tmp_path / "expected.safetensors", folder).code == 0


def test_megatrons_own_is_called_what_it_is(tmp_path, refuse):
    folder = saved(tmp_path / "run", {"decoder.layers.weight": torch.ones(2, 3, 4)})
    (folder / "common.pt").write_bytes(b"")
    save_file(weights(0), tmp_path / "base.safetensors")
    assert "Megatron" in refuse(tmp_path / "base.safetensors", folder)


def test_a_models_own_tensors_are_never_called_training(tmp_path, run):
    """Whatever their names begin with; of dicts, those that are called as a run calls them."""
    own = ("scaler.mean", "rng_proj.weight", "lr_head.weight", "optimal.weight", "sched.weight", "optimizer")
    tensors = {name: torch.randn(3, 2) for name in own}
    save_file(tensors, tmp_path / "whole.safetensors")
    for form in ({**tensors, "optim": {"x": torch.ones(2)}}, {"model": tensors, "lr_scheduler": {"x": 1}}):
        folder = saved(tmp_path / f"run{len(form)}", form)
        assert run("diff", tmp_path / "whole.safetensors", folder).code == 0


def test_other_state_dicts_are_named(tmp_path, run):
    folder = saved(tmp_path / "run", {"model": weights(1), "model_ema": weights(2)})
    save_file(weights(1), tmp_path / "one.safetensors")
    result = run("diff", tmp_path / "one.safetensors", folder)
    assert result.code == 0
    assert "the tensors of 'model' are read; --state-dict chooses others: 'model_ema'" in result.err


def test_a_resumed_run_knows_its_chunks(tmp_path, run):
    folder = saved(tmp_path / "run", {"model": weights(1)})
    save_file(weights(0), tmp_path / "base.safetensors")
    words = ("edit", tmp_path / "base.safetensors", folder, "-o", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosoup_cli.outputs.writer.PartialOutput.publish", failing)
        with pytest.raises(KeyError):
            run(*words)
    content = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(content.replace(content[2000:2040], bytes(40)))
    refused = run(*words, "--resume")
    assert (refused.code, "__0_0.distcp" in refused.err) == (1, True)


def failing(*_):
    raise KeyError


def test_a_report_does_not_replace_a_chunk(tmp_path, run):
    folder = saved(tmp_path / "run", {"model": weights(1)})
    (folder / "__0_0.distcp").rename(tmp_path / "chunks")
    (folder / "__0_0.distcp").symlink_to(tmp_path / "chunks")
    save_file(weights(0), tmp_path / "base.safetensors")
    words = ("edit", tmp_path / "base.safetensors", folder, "-o", tmp_path / "out", "--overwrite")
    refused = run(*words, "--report", tmp_path / "chunks")
    assert "the report would replace an input" in refused.err
    assert "links out of the folder" in run(*words).err + run("info", folder).err


def test_chunks_in_the_format_of_safetensors_are_called_so(tmp_path, refuse):
    writer = checkpoint.FileSystemWriter(
        tmp_path / "run", serialization_format=checkpoint.filesystem.SerializationFormat.SAFETENSORS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": weights(1)}, storage_writer=writer, no_dist=True)
    save_file(weights(0), tmp_path / "base.safetensors")
    assert "not in torch's own format" in refuse(tmp_path / "base.safetensors", tmp_path / "run")


def test_a_folder_with_metadata_of_something_else(tmp_path, run):
    """Eclipse keeps its workspace under that name."""
    for name in ("base", "ft"):
        (tmp_path / name / ".metadata").mkdir(parents=True)
        save_file(weights(len(name)), tmp_path / name / "model.safetensors")
    assert run("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out").code == 0
    (tmp_path / "ft" / "model.safetensors").unlink()
    assert "no weights in this folder" in run("info", tmp_path / "ft").err


def test_chunks_on_the_hub_are_no_proof_of_equal_tensors(hub, tmp_path, run):
    """Where the description alone is stored under one SHA-256."""
    for name, seed in (("one", 1), ("two", 2)):
        folder = saved(
            tmp_path / name, {"model": {f"{n}.weight": weights(seed)["norm.weight"] for n in range(9)}}
        )
        change(folder, lambda content: setattr(content, "storage_meta", "x" * 1_100_000))
        hub.add(f"org/{name}", folder)
    assert run("diff", "org/one", "org/two").code == 1


class Recorded(InputFile):
    """A file that is said to be remote, and writes down what is to be downloaded or read ahead."""

    is_remote = True

    def __init__(self, path):
        super().__init__(path)
        self.asked = []

    def select(self, parts):
        self.asked = [(0, self.nbytes)] if parts is None else list(parts)
        return []

    def prefetch(self, offset, nbytes):
        self.asked.append((offset, offset + nbytes))


@pytest.mark.parametrize("seed", sampling.first(8, range(20)))
def test_what_is_fetched_is_what_is_read(tmp_path, seed):
    """Of any range of a tensor that is cut anyhow: byte by byte, by where each element is stored."""
    chance = random.Random(seed)
    shape = tuple(chance.randrange(1, 6) for _ in range(chance.randrange(1, 4)))
    chunks = [Chunk((), ())]
    for size in shape:
        chunks = [
            Chunk((*one.offsets, at), (*one.sizes, length))
            for one in chunks
            for at, length in cuts(chance, size)
        ]
    where, places, end = torch.zeros(shape, dtype=torch.int64), [], 10
    for one in chunks:
        places.append(end)
        part = tuple(slice(at, at + n) for at, n in zip(*one, strict=True))
        where[part] = end + torch.arange(math.prod(one.sizes)).view(one.sizes)
        end += math.prod(one.sizes) + 7
    (tmp_path / "x").write_bytes(bytes(4 * end))
    stored = Recorded(tmp_path / "x")
    info = TensorInfo("x", "U8", shape, 0, math.prod(shape))
    file = Gathered(stored, [stored], [chunked(info, chunks, [(stored, place) for place in places])])
    for start in range(file.nbytes):
        stop = chance.randrange(start, file.nbytes) + 1
        needed = set(where.view(-1)[start:stop].tolist())
        for select in (True, False):
            stored.asked = []
            file.select([(start, stop)]) if select else file.prefetch(start, stop - start)
            got = {at for begin, ended in stored.asked for at in range(begin, ended)}
            assert needed <= got
            assert not got.intersection(range(10))
    file.close()


def test_a_wide_tensor_with_a_narrow_chunk_is_read_once(tmp_path):
    """Rows that are wider than a block are not put together in memory."""
    shape = (2, 300_001, 3)
    tensor = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
    chunks = [Chunk((0, 0, 0), (2, 300_000, 3)), Chunk((0, 300_000, 0), (2, 1, 3))]
    parts = [tensor[:, :300_000].contiguous(), tensor[:, 300_000:].contiguous()]
    (tmp_path / "x").write_bytes(b"".join(one.numpy().tobytes() for one in parts))
    stored = InputFile(tmp_path / "x")
    info = TensorInfo("x", "I32", shape, 0, 4 * tensor.numel())
    places = [(stored, 0), (stored, 4 * parts[0].numel())]
    file = Gathered(stored, [stored], [chunked(info, chunks, places)])
    found = b"".join(file.read(min(10_000, file.nbytes - at), at) for at in range(0, file.nbytes, 10_000))
    assert found == tensor.numpy().tobytes()
    assert stored.bytes_read == file.nbytes
    file.close()


def test_a_grid_of_many_chunks_is_checked_fast():
    for shape in ((4096, 64), (64, 4096), (64, 64)):
        sizes = (1, 64) if shape[0] > 64 else (64, 1) if shape[1] > 64 else (1, 1)
        chunks = [
            Chunk((row, column), sizes)
            for row in range(0, shape[0], sizes[0])
            for column in range(0, shape[1], sizes[1])
        ]
        assert problem_of(shape, chunks) == ""
        assert problem_of(shape, [*chunks[:-1], chunks[0]]) == "its chunks are not the whole tensor"
