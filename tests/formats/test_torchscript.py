"""Archives of torch.jit.save: the state dict is that of the loaded module, and no code is run."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats import archive
from monosoup_cli.sources.locate import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("kept", torch.rand(2))
        self.register_buffer("passing", torch.rand(2), persistent=False)
        self.plain = torch.rand(4)
        self.scale = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.kept * self.scale + self.plain.sum()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 2).half())
        self.turned = torch.nn.Parameter(torch.randn(3, 5).T)
        self.one = Inner()
        self.two = self.one
        self.many = torch.nn.ModuleList([Inner(), torch.nn.Linear(2, 2)])
        self.embedding = torch.nn.Embedding(3, 2)
        self.head = torch.nn.Linear(2, 3)
        self.head.weight = self.embedding.weight
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) @ self.weight.float() + self.many[0](x)


def made(seed: int, way: str) -> torch.jit.ScriptModule:
    torch.manual_seed(seed)
    model = Model()
    return torch.jit.script(model) if way == "script" else torch.jit.trace(model, torch.zeros(2, 3))


@pytest.mark.parametrize("way", ["script", "trace"])
def test_the_state_dict_is_that_of_the_loaded_module(tmp_path, way):
    path = tmp_path / "model.pt"
    torch.jit.save(made(0, way), path, _extra_files={"note.txt": "x" * 999})
    expected = torch.jit.load(path).state_dict()
    assert "one.passing" in expected
    assert "one.plain" not in expected
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.files.shards[0].notes
        names = [tensor.name for tensor in checkpoint.files.shards[0].header.tensors.values()]
        assert names == list(expected)
        for name, tensor in expected.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(tensor.shape)
            data = bytearray(info.nbytes)
            checkpoint.reader(name).read_into(memoryview(data), 0)
            assert bytes(data) == tensor.contiguous().numpy().tobytes(), name


def test_a_script_is_edited_like_its_state_dict(run, tmp_path):
    for seed, name in enumerate(("base", "finetuned")):
        module = made(seed, "script")
        torch.jit.save(module, tmp_path / f"{name}.pt")
        weights = {key: one.clone().contiguous() for key, one in module.state_dict().items()}
        save_file(weights, tmp_path / f"{name}.safetensors")
    words = ["--exclude", "*kept", "--exclude", "*passing"]
    for suffix in ("pt", "safetensors"):
        inputs = [tmp_path / f"{name}.{suffix}" for name in ("base", "finetuned")]
        result = run("edit", *inputs, "-o", tmp_path / f"{suffix}-out.safetensors", *words)
        assert result.code == 0, result.err
    found, expected = (load_file(tmp_path / f"{one}-out.safetensors") for one in ("pt", "safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


CODE = "code/__torch__/tests/formats/test_torchscript.py"


def rewritten(path, change):
    with zipfile.ZipFile(path) as old:
        records = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for info, content in records:
            changed = change(info.filename.partition("/")[2], content)
            if changed is not None:
                new.writestr(info.filename, changed, info.compress_type)


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_damaged_archives_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(made(0, "script"), path)

    make()
    rewritten(path, lambda name, content: None if name == CODE else content)
    assert refused(path) == f"the code '{CODE}' is missing"
    make()
    rewritten(path, lambda name, content: b"\x80\x02}." if name == "data.pkl" else content)
    assert refused(path) == "a TorchScript archive without a module"
    make()
    rewritten(path, lambda name, content: None if name == "data/0" else content)
    assert refused(path) == "tensor 'weight': its elements are not in the file"
    make()
    monkeypatch.setattr(archive, "MAX_CODE_BYTES", 600)  # as text; less when stored
    assert f"{CODE}' is damaged, or too large" in refused(path)


# a module that holds itself, and one of 2^60 paths
ENDLESS = (
    b"\x80\x02c__torch__.tests.formats.test_torchscript\nModel\nq\x00)\x81q\x01}(X\x01\x00\x00\x00ah\x01ub."
)
MANY = (
    b"\x80\x02c__torch__.tests.formats.test_torchscript\nModel\nq\x00)\x81}bq\x01"
    + b"h\x00)\x81}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ubq\x01" * 60
    + b"."
)


@pytest.mark.parametrize("pickled", [ENDLESS, MANY], ids=["endless", "many"])
def test_modules_without_end_are_refused(tmp_path, monkeypatch, pickled):
    monkeypatch.setattr("monosoup_cli.formats.torchscript.MAX_WORK", 10_000)
    path = tmp_path / "model.pt"
    torch.jit.save(made(0, "script"), path)
    rewritten(path, lambda name, content: pickled if name == "data.pkl" else content)
    assert refused(path) == "its modules are nested without end"


def test_torch_is_not_needed(tmp_path):
    """Nothing of the file can run where nothing that could run it is loaded."""
    path = tmp_path / "model.pt"
    torch.jit.save(made(0, "script"), path)
    code = (
        "import sys; from monosoup_cli.sources.locate import open_checkpoint\n"
        f"open_checkpoint({str(path)!r}).files.close(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
