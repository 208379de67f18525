"""What hints on files lead to: a file that is read, and an output that loads."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

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


@follows("pipeline/inputs.py", "no input has a state dict")
def no_state_dict(at: Trial) -> None:
    at.refused(*at.edit, *("--state-dict", "ema"))
    assert "without --state-dict" in at.hint
    at.loads(*at.edit)


@follows(
    "formats/foreign.py",
    *(f"^{other.what}; " for other in OTHER_FORMATS if other.hint and "-dc" not in other.hint),
)
def another_format(at: Trial) -> None:
    """What converts the file is run where it is at hand; otherwise the model is put in its place."""
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
