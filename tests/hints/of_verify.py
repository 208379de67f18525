"""What hints of `verify` lead to: an output that is as its report says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.hints.of_outputs import interrupted
from tests.hints.table import Trial, follows

REPORT = "monosoup_report.json"


@follows("pipeline/verify.py", "the file is missing")
@follows("pipeline/verify.py", "another size than in the report")
@follows("pipeline/verify.py", "the SHA-256 is not the one in the report")
@follows("pipeline/verify.py", "^is missing")
@follows("pipeline/verify.py", "the index has no weight_map")
@follows("pipeline/verify.py", "the index does not fit the headers")
def a_damaged_output(at: Trial) -> None:
    """A copy that was kept elsewhere restores it, and so does the run itself."""
    sweep = [] if at.site.problem != "is missing" else ["--wise", "0.5,1"]
    at.works(*at.edit, "--max-shard-size", "100B", *sweep)
    if "index" in at.site.problem:  # which is looked at where the report has no checksum of it
        report = json.loads((at.out / REPORT).read_text())
        del report["output"]["other_files"]
        (at.out / REPORT).write_text(json.dumps(report))
    shutil.copytree(at.out, at.tmp / "copy")
    file = {
        "is missing": at.out / "wise-0.5" / REPORT,
        "the index has no weight_map": at.out / "model.safetensors.index.json",
        "the index does not fit the headers of the files": at.out / "model.safetensors.index.json",
    }.get(at.site.problem, at.out / "model-00001-of-00003.safetensors")
    good = file.read_bytes()
    if "missing" in at.site.problem:
        file.unlink()
    elif "SHA-256" in at.site.problem:
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif "fit" in at.site.problem:
        file.write_bytes(good.replace(b"00001-of", b"00002-of"))
    else:
        file.write_bytes(b"{}" if file.suffix == ".json" else good[:-1])
    at.refused("verify", at.out)
    shutil.copy(at.tmp / "copy" / file.relative_to(at.out), file)
    at.works("verify", at.out)
    file.unlink()
    at.loads(*at.edit, "--max-shard-size", "100B", *sweep, "--overwrite")
    at.works("verify", at.out)


@follows("pipeline/verify.py", "and a loader may read it")
def a_stray_file(at: Trial) -> None:
    at.works(*at.edit)
    shutil.copy(at.finetuned, at.out / "model-00001-of-00001.safetensors")
    at.refused("verify", at.out)
    (at.out / "model-00001-of-00001.safetensors").rename(at.tmp / "elsewhere.safetensors")
    at.works("verify", at.out)


@follows("pipeline/verify_output.py", "if it is elsewhere")
def a_report_elsewhere(at: Trial) -> None:
    at.works(*at.edit, "--report", at.tmp / "report.json")
    at.refused("verify", at.out)
    at.works("verify", at.out, at.options()[0], at.tmp / "report.json")


@follows("pipeline/verify_inputs.py", "run this in a folder from which this path leads to it")
@follows("pipeline/verify_inputs.py", "if it was moved, link it")
def an_input_of_another_folder(at: Trial) -> None:
    """The command runs where the path is right, also where all were moved; and a link makes it right."""
    patch = at.request.getfixturevalue("monkeypatch")
    is_relative = "in a folder" in str(at.site.hint)
    base, finetuned = (Path(one.name) if is_relative else one for one in (at.base, at.finetuned))
    patch.chdir(at.tmp)
    at.works("edit", base, finetuned, "-o", at.out)
    if is_relative:
        patch.chdir("/")
        at.refused("verify", at.out, "--inputs")
        patch.chdir(at.tmp)
        at.works("verify", at.out, "--inputs")
        patch.chdir("/")
    moved = at.base.rename(at.tmp / "moved.safetensors")
    patch.chdir(at.tmp)
    at.refused("verify", at.out, "--inputs")
    os.symlink(*shlex.split(at.hint.split("`")[1].replace("WHERE_IT_IS", str(moved)))[2:])
    at.works("verify", at.out, "--inputs", "--again")


@follows("api/again.py", "go back to what the run had, or make the output again")
def an_input_that_changed(at: Trial) -> None:
    at.works(*at.edit)
    good = at.base.read_bytes()
    tensors = load_file(at.base)
    save_file({name: tensor + torch.randn(tensor.shape) for name, tensor in tensors.items()}, at.base)
    at.refused("verify", at.out, "--again")
    assert f"{at.base} (" in at.hint
    changed = at.base.read_bytes()
    at.base.write_bytes(good)
    at.works("verify", at.out, "--again")
    at.base.write_bytes(changed)
    at.loads(*at.edit, "--overwrite")
    at.works("verify", at.out, "--again")


@follows("pipeline/verify_output.py", "give the output")
def a_report(at: Trial) -> None:
    at.works(*at.edit)
    at.refused("verify", at.out / REPORT)
    (line,) = at.blanks
    assert shlex.split(line) == ["monosoup", "verify", str(at.out)]
    at.works("verify", at.out)


@follows("pipeline/verify_output.py", "the run is unfinished")
def an_unfinished_run(at: Trial) -> None:
    command = interrupted(at)
    at.refused("verify", at.out)
    at.works(*command, *at.options())
    at.works("verify", at.out)


@follows("pipeline/verify.py", "the checkpoint is missing")
def a_missing_checkpoint(at: Trial) -> None:
    sweep = (*at.edit, "--wise", "0.5,1")
    at.works(*sweep)
    (at.out / "wise-0.5").rename(at.tmp / "elsewhere")
    at.refused("verify", at.out)
    shutil.copytree(at.tmp / "elsewhere", at.out / "wise-0.5")
    at.works("verify", at.out)
    shutil.rmtree(at.out / "wise-0.5")
    at.loads(*sweep, "--overwrite")
    at.works("verify", at.out)
