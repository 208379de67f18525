"""What hints on files lead to: a file that is read, and an output that loads."""

from __future__ import annotations

import pickle
import re
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monosoup_cli.formats import pickles
from tests.formats.test_state_dict import rewritten
from tests.hints.table import Trial, follows

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


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


@follows("formats/archive.py", "a TorchScript archive, which holds code")
def torchscript(at: Trial) -> None:
    old = at.tmp / "old.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Block(at)), old)
        saved_again(at, old, model=torch.jit.load(old))


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


@follows("formats/pickles.py", "pickled in protocol")
def another_protocol(at: Trial) -> None:
    """Which torch does not read with weights_only=True, either."""
    torch.save(tensors(at), at.tmp / "old.pt", pickle_protocol=4)
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "in torch's legacy format")
def legacy(at: Trial) -> None:
    torch.save(tensors(at), at.tmp / "old.pt", _use_new_zipfile_serialization=False)
    saved_again(at, at.tmp / "old.pt")


@follows("formats/pickles.py", "its pickle has too many parts")
def too_many_parts(at: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickles, "MAX_OPERATIONS", 1000)
        torch.save({**tensors(at), "log": [[] for _ in range(1000)]}, at.tmp / "old.pt")
        saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/pickles.py", "its pickle is nested too deeply")
def too_deep(at: Trial) -> None:
    log: tuple[object, ...] = ()
    for _ in range(200):
        log = (log,)
    torch.save({**tensors(at), "log": log}, at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/pickles.py", "holds an object that is not a tensor")
def a_whole_module(at: Trial) -> None:
    torch.save(Block(at), at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=torch.load(at.tmp / "old.pt", weights_only=False))


@follows("formats/pickles.py", "holds …;")
def a_parameter_with_attributes(at: Trial) -> None:
    model = Block(at)
    model.head.weight.kind = "ours"  # type: ignore[assignment]
    torch.save(dict(model.named_parameters()), at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=model)


@follows("formats/state_dict.py", "a pickle that torch.save did not write")
def a_pickle(at: Trial) -> None:
    old = at.tmp / "old.pt"
    old.write_bytes(pickle.dumps(Block(at), protocol=2))
    saved_again(at, old, model=pickle.loads(old.read_bytes()))


@follows("formats/state_dict.py", "torch cannot read its pickle")
def an_incomplete_archive(at: Trial) -> None:
    old = at.tmp / "old.pt"
    torch.save(tensors(at), old)
    rewritten(old, lambda name, content: None if name == "data/0" else content)
    saved_again(at, old, model=Block(at))


@follows("formats/state_dict.py", "not a state dict; save")
def a_list(at: Trial) -> None:
    torch.save(list(tensors(at).values()), at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "holds several state dicts")
def two_state_dicts(at: Trial) -> None:
    torch.save({"model": tensors(at), "state_dict": tensors(at)}, at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "… is not a tensor; save")
def an_epoch_beside_tensors(at: Trial) -> None:
    torch.save({**tensors(at), "epoch": 3}, at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt", model=Block(at))


@follows("formats/state_dict.py", "its tensors are under")
def under_a_name(at: Trial) -> None:
    torch.save({"state_dict": {"generator": tensors(at)}, "epoch": 3}, at.tmp / "old.pt")
    saved_again(at, at.tmp / "old.pt")


@follows("formats/state_dict.py", "a tar archive, as torch wrote before 2018")
def a_tar_archive(at: Trial) -> None:
    with tarfile.open(at.tmp / "old.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    saved_again(at, at.tmp / "old.pt", model=Block(at))


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


@follows("formats/state_dict.py", "a git-lfs pointer")
@follows("formats/files.py", "a git-lfs pointer")
def a_pointer(at: Trial) -> None:
    """`git lfs pull` puts the file in the place of the pointer; Git LFS itself is not at hand."""
    old = at.tmp / ("old.pt" if at.site.file.endswith("state_dict.py") else "old.safetensors")
    old.write_bytes(LFS_POINTER)
    at.refused(*edit(at, old))
    assert "`git lfs pull`" in at.hint
    torch.save(tensors(at), old) if old.suffix == ".pt" else save_file(tensors(at), old)
    at.loads(*edit(at, old))


@follows("formats/state_dict.py", "a view that conjugates or negates")
def a_conjugated_view(at: Trial) -> None:
    old, new = at.tmp / "old.pt", at.tmp / "new.pt"
    state = {**tensors(at), "phase": torch.ones(2, dtype=torch.complex64).conj()}
    torch.save(state, old)
    at.refused(*edit(at, old))
    (calls,) = re.findall(r"save what (\S+) returns", at.hint)
    torch.save({name: eval(f"each{calls}", {"each": each}) for name, each in state.items()}, new)
    at.loads(*edit(at, new))


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
