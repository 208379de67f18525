"""What hints on files lead to: a file that is read, and an output that loads."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

import numpy
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as group
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

from monosoup_cli.formats.foreign import OTHER_FORMATS
from tests.formats.test_foreign import EXAMPLES, tarred
from tests.formats.test_state_dict import rewritten
from tests.hints.table import Trial, follows


class Block(torch.nn.Module):
    """A module with the names of the small pair."""

    def __init__(self, at: Trial) -> None:
        super().__init__()
        self.block, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4, bias=False)
        self.load_state_dict(load_file(at.finetuned))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x))


def tensors(at: Trial) -> dict[str, torch.Tensor]:
    return load_file(at.finetuned)


def edit(at: Trial, finetuned: Path) -> tuple[object, ...]:
    return "edit", at.base, finetuned, "-o", at.out


def saved_again(at: Trial, old: Path, **names: object) -> None:
    """The edit of OLD is refused, the code in the hint is run, and what it writes is edited."""
    new = at.tmp / "new.pt"
    at.refused(*edit(at, old))
    at.code(**{"OLD": old, "NEW": new, "PATH": new, **names})
    at.loads(*edit(at, new))


def chosen(at: Trial) -> None:
    """The state dict that the hint names is read."""
    at.refused(*edit(at, at.tmp / "old.pt"))
    (choice,) = re.findall(r"(--state-dict) (\S+)", at.hint)
    at.loads(*edit(at, at.tmp / "old.pt"), *choice)


@follows("formats/archive.py", "its numbers are not little-endian")
def big_endian(at: Trial) -> None:
    """torch reads such a file on this machine, which is little-endian, and so writes it as such."""
    old, new = at.tmp / "old.pt", at.tmp / "new.pt"
    torch.save({name: each.float() for name, each in tensors(at).items()}, old)

    def swapped(name: str, content: bytes) -> bytes:
        is_data = name.startswith("data/")
        return (
            b"big"
            if name == "byteorder"
            else torch.frombuffer(bytearray(content), dtype=torch.int32).numpy().byteswap().tobytes()
            if is_data
            else content
        )

    rewritten(old, swapped)
    at.refused(*edit(at, old))
    torch.save(torch.load(old, weights_only=True), new)
    assert torch.equal(torch.load(new)["block.weight"], tensors(at)["block.weight"])
    at.loads(*edit(at, new))


@follows("formats/header.py", "download or copy it again")
@follows("formats/files.py", "its header length is impossible")
@follows("formats/archive.py", "the zip archive is damaged or truncated")
def truncated(at: Trial) -> None:
    """Of a download that was cut off, the rest is missing."""
    cut = at.tmp / ("cut.pt" if "zip" in at.site.problem else "cut.safetensors")
    if cut.suffix == ".pt":
        torch.save(tensors(at), cut)
    else:
        shutil.copy(at.finetuned, cut)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: 100 if "header" in at.site.problem else -9])
    at.refused(*edit(at, cut))
    cut.write_bytes(whole)
    at.loads(*edit(at, cut))


@follows("formats/archive.py", "is compressed")
def compressed(at: Trial) -> None:
    old = at.tmp / "old.pt"
    torch.save(tensors(at), old)
    with zipfile.ZipFile(old) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(old, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    saved_again(at, old)


@follows("formats/state_dict.py", "in torch's legacy format")
def legacy(at: Trial) -> None:
    torch.save(tensors(at), at.tmp / "old.pt", _use_new_zipfile_serialization=False)
    saved_again(at, at.tmp / "old.pt")


@follows("formats/state_dict.py", "not a state dict; save")
def a_list(at: Trial) -> None:
    torch.save(list(tensors(at).values()), at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "holds several state dicts")
def two_state_dicts(at: Trial) -> None:
    torch.save({"model": tensors(at), "state_dict": tensors(at)}, at.tmp / "old.pt")
    chosen(at)


@follows("formats/state_dict.py", "… is not a tensor; save")
def an_epoch_beside_tensors(at: Trial) -> None:
    torch.save({**tensors(at), "epoch": 3}, at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "its tensors are under")
def under_a_name(at: Trial) -> None:
    torch.save({"state_dict": {"generator": tensors(at)}, "epoch": 3}, at.tmp / "old.pt")
    chosen(at)


@follows("formats/state_dict.py", "--state-dict chooses others")
def an_average_beside_the_weights(at: Trial) -> None:
    live = {name: each + 1 for name, each in tensors(at).items()}
    torch.save({"state_dict": live, "ema": tensors(at)}, at.tmp / "old.pt")
    at.noted(*edit(at, at.tmp / "old.pt"))
    option, name = re.findall(r"(--state-dict) chooses others: '(\w+)'", at.hint)[0]
    at.loads(*edit(at, at.tmp / "old.pt"), option, name, "--overwrite")
    expected = at.tmp / "expected"
    at.loads(*at.edit[:-1], expected, output=expected)
    found, wanted = (load_file(folder / "model.safetensors") for folder in (at.out, expected))
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


@follows("pipeline/inputs.py", "no input has a state dict")
def no_state_dict(at: Trial) -> None:
    at.refused(*at.edit, *("--state-dict", "ema"))
    assert "without --state-dict" in at.hint
    at.loads(*at.edit)


def compressed_by(at: Trial, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    old, new = at.tmp / "old.safetensors", at.tmp / "new.safetensors"
    old.write_bytes(subprocess.run([program, "-c", at.finetuned], check=True, capture_output=True).stdout)
    at.refused(*edit(at, old))
    command = at.hint.removeprefix("decompress it: ")
    subprocess.run(command.replace("OLD", str(old)).replace("NEW", str(new)), shell=True, check=True)
    at.loads(*edit(at, new))


@follows("formats/foreign.py", *(f"^{other.what}; " for other in OTHER_FORMATS if other.hint))
def another_format(at: Trial) -> None:
    """What converts the file is run where it is at hand; otherwise the model is put in its place."""
    if at.site.problem.startswith("compressed by ") and "decompress" in at.site.hint:
        compressed_by(at, at.site.problem.split()[-1])
        return
    what = next(start for start in EXAMPLES if at.site.problem.startswith(start))
    name, content = EXAMPLES[what]
    old, new = at.tmp / ("old.pt" if name == "x" else name), at.tmp / "new.safetensors"
    old.write_bytes(content)
    if "numpy" in at.site.hint:
        arrays = io.BytesIO()
        numpy.savez(arrays, **{name: each.float().numpy() for name, each in tensors(at).items()})
        old.write_bytes(arrays.getvalue())
    if ".nemo" in at.site.hint:
        weights = io.BytesIO()
        torch.save(tensors(at), weights)
        old.write_bytes(
            tarred(("./model_config.yaml", b"x: 1"), ("./model_weights.ckpt", weights.getvalue()))
        )
    at.refused(*edit(at, old))
    if "numpy" in at.hint:
        line = at.hint.removeprefix("convert it: ")
        exec(line, {"safetensors": safetensors, "numpy": numpy, "OLD": old, "NEW": new})
    elif ".nemo" in at.hint:
        subprocess.run(["tar", "-xf", old], cwd=at.tmp, check=True)
        new = at.tmp / "model_weights.ckpt"
    elif "torch.save(" in at.hint:
        new = at.tmp / "new.pt"
        at.code(model=Block(at), PATH=new)
    else:
        shutil.copy(at.finetuned, new)
    at.loads(*edit(at, new))


@follows("formats/state_dict.py", "a safetensors file under another name")
@follows("formats/files.py", "a PyTorch pickle, not a safetensors file")
def another_suffix(at: Trial) -> None:
    suffix = ".safetensors" if at.site.hint.endswith(".pt") else ".pt"
    old = at.tmp / f"old{suffix}"
    if suffix == ".pt":
        save_file(tensors(at), old)
    else:
        torch.save(tensors(at), old)
    at.refused(*edit(at, old))
    (wanted,) = re.findall(r"rename it to end in (\.\w+)", at.hint)
    at.loads(*edit(at, old.rename(old.with_suffix(wanted))))


@follows("formats/state_dict.py", "a view that conjugates or negates")
def a_conjugated_view(at: Trial) -> None:
    old, new = at.tmp / "old.pt", at.tmp / "new.pt"
    state = {**tensors(at), "phase": torch.ones(2, dtype=torch.complex64).conj()}
    torch.save(state, old)
    at.refused(*edit(at, old))
    (calls,) = re.findall(r"save what (\S+) returns", at.hint)
    torch.save({name: eval(f"each{calls}", {"each": each}) for name, each in state.items()}, new)
    at.loads(*edit(at, new))


class Coded(torch.Tensor):
    """A tensor that holds others, and no elements of its own, as libraries for quantisation make them."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> Coded:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, *_: object) -> NoReturn:
        raise NotImplementedError

    def dequantize(self) -> torch.Tensor:
        return self.codes.float()


class Named(torch.Tensor):
    """A tensor of a class of its own that holds its elements as others do."""


@contextmanager
def distributed(weights: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor over the ranks of a run; here there is one."""
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        yield distribute_tensor(weights, DeviceMesh("cpu", [0]), [Shard(0)])
    finally:
        group.destroy_process_group()


@follows("formats/state_dict.py", "save what .dequantize() returns")
@follows("formats/state_dict.py", "such as .dequantize() returns")
@follows("formats/state_dict.py", "save what .to_dense() returns")
@follows("formats/state_dict.py", "save what .full_tensor() returns")
def not_dense(at: Trial) -> None:
    old, new, weights = at.tmp / "old.pt", at.tmp / "new.pt", tensors(at)
    dense = weights["block.weight"].float().round()
    made = {
        "save what .dequantize()": lambda: quantised(dense),
        "save plain": lambda: Coded(dense.char()),
        "save what .to_dense()": dense.to_sparse,
    }
    start = next((start for start in made if at.site.hint.startswith(start)), None)
    with distributed(dense) if start is None else nullcontext(made[start]()) as tensor:
        torch.save({**weights, "block.weight": tensor}, old)
        at.refused(*edit(at, old))
        (call,) = re.findall(r"\.(\w+)\(\) returns", at.hint)
        torch.save({**weights, "block.weight": getattr(tensor, call)()}, new)
    at.loads(*edit(at, new))


def quantised(dense: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch moves this to another library
        return torch.quantize_per_tensor(dense, 1.0, 0, torch.qint8)


@follows("formats/state_dict.py", "save what .unbind() returns")
def nested(at: Trial) -> None:
    """In each of torch's two layouts."""
    for layout in (torch.strided, torch.jagged):
        old, new = at.tmp / "old.pt", at.tmp / "new.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch may yet change the layout
            tensor = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
            torch.save({**tensors(at), "lengths": tensor}, old)
        at.refused(*edit(at, old))
        (call,) = re.findall(r"\.(\w+)\(\)", at.hint)
        parts = {f"lengths.{number}": each.clone() for number, each in enumerate(getattr(tensor, call)())}
        torch.save({**tensors(at), **parts}, new)
        at.loads(*edit(at, new), "--overwrite")


@follows("formats/state_dict.py", "save what .as_subclass(torch.Tensor) returns")
def of_a_class(at: Trial) -> None:
    old, new, weights = at.tmp / "old.pt", at.tmp / "new.pt", tensors(at)
    torch.save({**weights, "block.weight": weights["block.weight"].as_subclass(Named)}, old)
    at.refused(*edit(at, old))
    (call,) = re.findall(r"save what (\S+) returns", at.hint)
    saved = torch.load(old, weights_only=False)
    plain = {name: eval(f"each{call}", {"each": each, "torch": torch}) for name, each in saved.items()}
    torch.save(plain, new)
    at.loads(*edit(at, new))


@follows("formats/state_dict.py", "load the weights before they are saved")
def without_data(at: Trial) -> None:
    """A model that was built on the meta device, and given no weights."""
    old, new = at.tmp / "old.pt", at.tmp / "new.pt"
    with torch.device("meta"):
        model = torch.nn.ModuleDict(
            {"block": torch.nn.Linear(6, 8), "head": torch.nn.Linear(8, 4, bias=False)}
        )
    torch.save(model.state_dict(), old)
    at.refused(*edit(at, old))
    model.load_state_dict(tensors(at), assign=True)
    torch.save(model.state_dict(), new)
    at.loads(*edit(at, new))


@follows("formats/state_dict.py", "^holds …; save the state dict alone")
def a_module(at: Trial) -> None:
    """The whole model, pickled as an object."""
    torch.save(Block(at), at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/dtypes.py", "--dtype float32 or bfloat16 can represent it")
@follows("formats/dtypes.py", "--dtype keep and --exclude leave the tensor as fine-tuned")
def an_overflow(at: Trial) -> None:
    """Of an edited matrix, and of a vector that is kept, in float16; of both from float64, in float32."""
    is_half = "float32" in at.site.hint
    kind, size = (torch.float32, 1e6) if is_half else (torch.float64, 1e300)
    for name, shape in (("matrix", (4, 4)), ("vector", (4,))):
        save_file({name: torch.zeros(shape, dtype=kind)}, at.base)
        save_file({name: torch.full(shape, size, dtype=kind)}, at.finetuned)
        at.refused(*at.edit, "--overwrite", "--dtype", "float16" if is_half else "float32")
        if is_half:
            flag, *others = re.findall(r"--dtype|\w+(?= or )|(?<= or )\w+", at.hint)
            for other in others:
                at.loads(*at.edit, flag, other, "--overwrite")
        else:
            at.loads(*at.edit, *at.options(0), at.options(1)[0], name, "--overwrite")
            assert torch.equal(load_file(at.out / "model.safetensors")[name], load_file(at.finetuned)[name])


@follows("formats/dtypes.py", "holds NaN or Inf")
def not_finite(at: Trial) -> None:
    save_file({**tensors(at), "block.weight": torch.full((8, 6), torch.nan)}, at.finetuned)
    at.refused(*at.edit)
    at.loads(*at.edit, *at.options())
