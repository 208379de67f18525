"""What hints on the files of ranks lead to: one checkpoint of all of them."""

from __future__ import annotations

import pickle
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint

from tests.hints.table import Trial, follows
from tests.pipeline.test_library_files import RANK_FILES


@follows(
    "sources/shards.py",
    "python -m verl.model_merger merge",
    "convert it with convert_llama_weights_to_hf.py",
    "gather them, in the folder above: python zero_to_fp32.py . NEW",
    "gather them, in this folder: python zero_to_fp32.py . NEW",
    "with Megatron Bridge",
    "use the model that it was made from",
)
def files_of_ranks(at: Trial) -> None:
    """The programs that gather them are not at hand: what they write is put in the place of NEW."""
    ranks, new = at.tmp / "ranks", at.tmp / "NEW"
    in_hint = {
        "verl": "verl",
        "llama": "Meta",
        "folder above": "DeepSpeed",
        "Megatron": "Megatron",
        "made from": "vLLM",
    }
    program = next((program for words, program in in_hint.items() if words in at.site.hint), None)
    ranks.mkdir()
    for name in RANK_FILES[program] if program else ("latest", "zero_to_fp32.py"):
        if name.endswith(".safetensors"):
            save_file(load_file(at.finetuned), ranks / name)
        elif name.endswith((".pt", ".pth")):
            torch.save(load_file(at.finetuned), ranks / name)
        else:
            (ranks / name).write_text("")
    at.refused("edit", at.base, ranks, "-o", at.out)
    if "--local_dir" in at.hint:
        assert shlex.split(at.hint)[-3] == str(ranks)
    new.mkdir()
    shutil.copy(at.finetuned, new / "model.safetensors")
    at.loads("edit", at.base, new, "-o", at.out)


@follows("sources/shards.py", "pass its folder: …", "pass that folder: …/…")
def a_distributed_checkpoint(at: Trial) -> None:
    folder = at.tmp / "a folder"
    inner = "pytorch_model_fsdp_0" if "…/…" in at.site.hint else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": load_file(at.finetuned)}, checkpoint_id=folder / inner, no_dist=True)
    at.refused("edit", at.base, folder if inner else folder / "__0_0.distcp", "-o", at.out)
    (place,) = re.findall("folder: (.*)", at.hint)
    at.loads("edit", at.base, *shlex.split(place), "-o", at.out)


def saved(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": weights}, storage_writer=checkpoint.FileSystemWriter(folder), no_dist=True)


@follows("sources/locate.py", "a distributed checkpoint of torch (DCP) without")
@follows(
    "formats/distributed.py",
    "reaches beyond the end of its file",
    "does not describe a distributed checkpoint",
    "its chunks are compressed",
    "its chunks are not in torch's own format",
    "files of chunks are missing",
)
def what_is_saved_or_copied_again(at: Trial) -> None:
    folder = at.tmp / "run"
    saved(folder, load_file(at.finetuned))
    described = folder / ".metadata"
    if "beyond" in at.site.problem:
        with (folder / "__0_0.distcp").open("r+b") as file:
            file.truncate(1000)
    elif "describe" in at.site.problem:
        described.write_bytes(pickle.dumps({"state_dict_metadata": {}}))
    elif "missing" in at.site.problem:
        (folder / "__0_0.distcp").rename(folder / "__1_0.distcp")
    elif "own format" in at.site.problem:
        with (folder / "__0_0.distcp").open("r+b") as file:
            file.write(b"safetensors")
    elif "without" in at.site.problem:
        described.unlink()
    else:
        content = pickle.loads(described.read_bytes())
        for info in content.storage_data.values():
            info.transform_descriptors = ["stream.zstd"]
        described.write_bytes(pickle.dumps(content))
    at.refused("edit", at.base, folder, "-o", at.out)
    shutil.rmtree(folder)
    saved(folder, load_file(at.finetuned))
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("formats/distributed.py", "a chunk whose elements are not in order")
def chunks_that_are_not_in_order(at: Trial) -> None:
    """And the command of the hint, which gathers them."""
    folder = at.tmp / "a folder"
    weights = load_file(at.finetuned)
    turned = {name: one.t().contiguous().t() if one.ndim == 2 else one for name, one in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": turned}, checkpoint_id=folder, no_dist=True)
    at.refused("edit", at.base, folder, "-o", at.out)
    (command,) = re.findall(r"python -m (.*)", at.hint)
    module, *words = shlex.split(command.replace("FOLDER", shlex.quote(str(folder))))
    patch: pytest.MonkeyPatch = at.request.getfixturevalue("monkeypatch")
    patch.setattr(sys, "argv", [module, *words])
    patch.chdir(at.tmp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_module(module, run_name="__main__")
    at.loads("edit", at.base, at.tmp / "NEW.pt", "-o", at.out)
