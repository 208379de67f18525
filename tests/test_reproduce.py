"""docs/reproduce.md: its commands run on small stand-ins of the public checkpoints, as bash expands them."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from monosoup_cli.cli.writing import WRITING
from tests import public
from tests.features import random_features, save
from tests.hub import Hub
from tests.lm_eval_files import of_lm_eval
from tests.models import MODELS, build, step

PAGE = (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text()
SCRIPTS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RECORD = """
set -eu
monosoup() { printf '%q ' "$BLOCK" "$PWD" "$@" >> "$CALLS"; echo >> "$CALLS"; }
for other in wget git lm_eval python rm; do eval "$other() { :; }"; done
"""
"""What bash makes of `monosoup …` is written down, and run by the test."""
SCORER = '#!/bin/sh\necho x >> scored\necho "scores of $2"\nwc -l < scored | sed s/^/-/\n'
"""Every score is lower than the last one."""
CLIP = {"words": 30, "classes": 10, "width": 16, "patch": 4, "positions": 5, "output": 8}
TASKS = ("gsm8k", "gsm_plus", "gsm8k_platinum", "sciq", "mmlu_pro_math")
CONVNEXT = {"depths": (1, 1, 3, 1), "widths": (8, 16, 24, 32)}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with the files that the page takes for granted."""
    room = tmp_path_factory.mktemp("reproduce")
    for folder in ("soups", "zs", "model-soups", "bin"):
        (room / folder).mkdir()
    for names, layers in (
        ([f"soups/model_{number}.pt" for number in range(72)], 3),
        (["zs/zero-shot.pt", "zs/ft1.pt", "zs/ft2.pt"], 3),
        (["soups/zero-shot-vit-l14.pt", "soups/checkpoint-4-vit-l14.pt"], 4),
    ):
        base = public.weights(public.clip_shapes(layers=layers, **CLIP))
        torch.save(base, room / names[0])
        for seed, name in enumerate(names[1:], 1):
            frozen = ("model.positional_embedding", "model.text_projection", "model.token_embedding")
            torch.save(public.finetuned(base, seed, frozen), room / name)
    lines = [json.dumps({"model_name": f"model_{n}", "ImageNet2p": 0.8 - n / 1000}) for n in range(72)]
    (room / "model-soups/individual_model_results.jsonl").write_text("\n".join(lines) + "\n")
    edited = [f"{number}{name}" for number in (14, 61) for name in ("", "-monosoup", "-high", "-low")]
    for shift in ("ImageNet", "ImageNetA"):
        for seed, name in enumerate(("pretrained", *edited)):
            for block in range(3):
                path = room / f"features/{shift}/{name}/block-{block:02}.npy"
                save(path, random_features(20, 8, seed * block))
    qwen = build(*MODELS["qwen3, tied"]).bfloat16()
    for folder in ("hub/Qwen3-0.6B-Base", "m1", "m2", "m3"):
        qwen.save_pretrained(room / folder, max_shard_size="20KB")
        step(qwen)
    edits = [f"out/table2/m{number}-{name}" for number in (1, 2, 3) for name in ("monosoup", "R0.8", "lines")]
    for right, name in enumerate(("Qwen/Qwen3-0.6B-Base", "m1", "m2", "m3", *edits)):
        tasks = dict.fromkeys(TASKS, ("exact_match", True, ("1" * right).ljust(20, "0")))
        of_lm_eval(room / "results" / name / name.replace("/", "__"), **tasks)
    for seed, (folder, classes) in enumerate({"in12k": 30, "in12k_ft_in1k": 10}.items()):
        (room / "hub" / folder).mkdir()
        tensors = public.weights(public.convnext_shapes(classes=classes, **CONVNEXT))
        save_file(public.finetuned(tensors, seed), room / "hub" / folder / "model.safetensors")
        config = {"architecture": "convnext_small", "num_classes": classes}
        (room / "hub" / folder / "config.json").write_text(json.dumps(config))
    (room / "bin/python").write_text(SCORER)
    (room / "bin/python").chmod(0o755)
    return room


@pytest.fixture(scope="module")
def calls(room):
    """The words of every command, with the folder that it runs in and the number of its block."""
    for number, script in enumerate(SCRIPTS):
        assert "monosoup" in script or number < 2, script
    script = RECORD + "".join(f"BLOCK={number}\n{script}\n" for number, script in enumerate(SCRIPTS))
    environment = {**os.environ, "CALLS": str(room / "calls")}
    subprocess.run(["bash", "-c", script], cwd=room, env=environment, check=True)
    return [shlex.split(line) for line in (room / "calls").read_text().splitlines()]


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.slow
def test_every_command_runs(room, calls, run, monkeypatch, tmp_path, client):
    assert len(calls) > 2415, "Fig. 1 has all pairs of 70"
    monkeypatch.setenv("PATH", f"{room / 'bin'}:{os.environ['PATH']}")
    done = set()
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        hub.add("Qwen/Qwen3-0.6B-Base", room / "hub/Qwen3-0.6B-Base")
        for name in ("in12k", "in12k_ft_in1k"):
            hub.add(f"timm/convnext_small.{name}", room / "hub" / name)
        for block, folder, *words in calls:
            form = (block, words[0], *options_of(words))
            if form in done:
                continue  # the same with other checkpoints
            done.add(form)
            monkeypatch.chdir(folder)
            result = run(*words)
            assert result.code == 0, (words, result.err)
            if words[0] == "scores":
                check_scores(result, Path(words[-1]))
            if words[0] in WRITING and "--dry-run" not in words:
                check_output(Path(words[words.index("-o") + 1]))
    assert {words[0] for _, _, *words in calls} >= {
        *("edit", "stock", "soup", "sfgs", "wise", "lines", "cka", "scores")
    }


def options_of(words):
    """The options without the output, and their values but for numbers."""
    first = (
        words.index("-o") + 2
        if "-o" in words
        else next(n for n, word in enumerate(words) if word[:2] == "--")
    )
    return [word for word in words[first:] if not re.fullmatch(r"[\d.,:]+", word)]


def check_scores(result, page):
    """Every task is compared, in one of the two groups, and the page has an arrow for each edit."""
    assert "in (2 tasks)" in result.out
    assert "out (3 tasks)" in result.out
    assert result.err == f"wrote {page}\n"
    assert page.read_text().count("<polygon") == 3


def check_output(output):
    """What was written loads, and has a value for every name."""
    files = [output] if output.is_file() else sorted(output.rglob("*.safetensors"))
    assert files
    for file in files:
        with safe_open(file, "pt") as opened:
            assert all(opened.get_tensor(name).isfinite().all() for name in opened.keys())  # noqa: SIM118


def test_the_models_that_the_page_names_are_those_of_its_loops():
    table = re.findall(r"^\| (?:ID|OOD)\S* .*?`model_(\d+)\.pt`", PAGE, re.MULTILINE)
    assert table == ["43", "31", "61", "14"]
    assert PAGE.count("for number in 61 14 43 31; do") == 2
