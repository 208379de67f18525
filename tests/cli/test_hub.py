"""Ids on the Hub as inputs and as outputs: the real command and client, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub import Hub

LAYERS = 8
LARGE = 200_000_000  # bytes
ON_CPU = ("--device", "cpu")
"""Where a process is compared with this one, which may see cards that the process does not."""
FOUND = {"model_type": "llama"}
REPORT = "monosoup_report.json"


def tensors(seed: int, layers: int = LAYERS, side: int = 96) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"model.layers.{number}.mlp.weight": torch.randn(side, side, generator=generator)
        for number in range(layers)
    }
    return {**weights, "model.norm.weight": torch.randn(side, generator=generator)}


def near(base: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: each + 0.05 * torch.randn(each.shape, generator=generator) for name, each in base.items()}


def folder(path: Path, weights: dict[str, torch.Tensor], *, config: object = FOUND, shards: int = 1) -> Path:
    """A folder as libraries write it; some of the files beside the weights are wanted, and some not."""
    path.mkdir()
    names = list(weights)
    if shards == 1:
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for number in range(shards):
            shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[number::shards]}
            save_file(part, path / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "README.md").write_text("---\nlicense: mit\n---\n# ours\n")
    torch.save(weights, path / "pytorch_model.bin")
    (path / "original").mkdir()
    (path / "original" / "consolidated.pth").write_bytes(b"x" * 1000)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Local folders: a base, fine-tunes of one file and of three shards."""
    place = tmp_path_factory.mktemp("made")
    base = tensors(0)
    return {
        "base": folder(place / "base", base),
        "ft": folder(place / "ft", near(base, 1)),
        "sharded": folder(place / "sharded", near(base, 2), shards=3),
    }


@pytest.fixture
def hub(tmp_path, made):
    with Hub(tmp_path / "hub") as hub:
        for name, path in made.items():
            hub.add(f"org/{name}", path)
        yield hub


@pytest.fixture
def edit(hub, tmp_path):
    """Run `edit` on ids, with a cache of its own; the output must appear whole or not at all."""

    def edit(*words, output="out", code=0, **env):
        result = hub.monosoup("edit", *words, "-o", tmp_path / output, home=tmp_path / "home", **env)
        assert result.returncode == code, result
        assert hub.token not in result.stdout + result.stderr
        if code:
            lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
            assert not (tmp_path / output).exists()
            assert lines[-1].startswith("error: "), result
            assert len(lines) == 1 or lines[:-1] == [line for line in lines if line.startswith("downloading")]
            return lines[-1]
        return result

    return edit


def sent(hub: Hub, pattern: str = "*") -> int:
    return hub.bytes_sent(pattern)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ft", "sharded"])
def test_ids_give_what_local_folders_give(hub, made, edit, run, tmp_path, name):
    assert run("edit", made["base"], made[name], "-o", tmp_path / "local", *ON_CPU).code == 0
    edit("org/base", f"org/{name}", *ON_CPU)
    local, out = tmp_path / "local", tmp_path / "out"
    weights = sorted(path.name for path in local.glob("model*"))
    assert sorted(path.name for path in out.glob("model*")) == weights
    for file in [*weights, "tokenizer.json", "config.json"]:
        assert (out / file).read_bytes() == (local / file).read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir(local))
    fetched = {
        request.subject for request in hub.requests if request.method == "GET" and "/" in request.subject
    }
    assert not [
        each for each in fetched if each.endswith((".bin", ".pth")) or each == "org/base/tokenizer.json"
    ]


def test_the_commit_is_found_once_and_told(hub, edit, tmp_path):
    edit("org/base", "org/ft@main")
    commit = hub.repositories["org/ft"].revisions["main"]
    resolved = [r for r in hub.requests if r.route == "model" and r.repository == "org/ft"]
    assert len(resolved) == 1
    assert all(commit in r.path for r in hub.requests if r.route in ("file", "tree") and "org/ft" in r.path)
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert report["inputs"][1]["revision"] == commit
    assert report["inputs"][1]["source"] == "org/ft@main"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"org/ft@{commit}" in card
    assert "license: mit" in card


def test_a_second_run_downloads_nothing_and_offline_works(hub, made, edit, tmp_path):
    edit("org/base", "org/ft")
    hub.clear()
    edit("org/base", "org/ft", output="again")
    assert not [request for request in hub.requests if request.route in ("file", "blob")]
    hub.clear()
    edit("org/base", "org/ft", output="offline", HF_HUB_OFFLINE="1")
    assert not hub.requests
    first, *others = (tmp_path / name / "model.safetensors" for name in ("out", "again", "offline"))
    assert all(other.read_bytes() == first.read_bytes() for other in others)
    report = json.loads((tmp_path / "offline" / "monosoup_report.json").read_text())
    assert report["inputs"][0]["revision"] == hub.repositories["org/base"].revisions["main"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, made, edit, tmp_path):
    old = hub.repositories["org/ft"].revisions["main"]
    hub.add("org/ft", made["sharded"], revision="v2")
    hub.add("org/ft", made["base"])
    edit("org/base", f"org/ft@{old}", output="commit")
    edit("org/base", "org/ft@v2", output="branch")
    edit("org/base", "hf://org/ft@v2", output="uri")
    expected = {"commit": "model.safetensors", "branch": "model-00001-of-00003.safetensors"}
    assert all((tmp_path / output / name).exists() for output, name in expected.items())
    names = [path.name for path in (tmp_path / "branch").glob("*.safetensors")]
    assert all(
        (tmp_path / d / n).read_bytes() == (tmp_path / "uri" / n).read_bytes()
        for d in ["branch"]
        for n in names
    )


def test_a_folder_of_that_name_is_taken_before_the_hub_unless_told(hub, made, tmp_path):
    (tmp_path / "org").mkdir()
    folder(tmp_path / "org" / "ft", near(tensors(0), 9))
    code = "import sys; from monosoup_cli.cli.app import main; sys.exit(main(sys.argv[1:]))"

    def source(name):
        words = [
            "edit",
            str(made["base"]),
            name,
            "-o",
            str(tmp_path / "out"),
            "--dry-run",
            "--format",
            "json",
        ]
        hub.clear()
        result = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=hub.env(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(result.stdout)["download_bytes"], len(hub.requests)

    assert source("org/ft") == (0, 0)
    assert source("hf://org/ft")[0] > 0


def test_parts_of_a_repository_are_named_after_its_id(hub, edit, tmp_path):
    base = tensors(0)
    parts = {"unet/config.json": b"{}"}
    for name, weights in (("parts-base", base), ("parts-ft", near(base, 1))):
        save_file(weights, tmp_path / "x.safetensors", metadata={"format": "pt"})
        content = (tmp_path / "x.safetensors").read_bytes()
        hub.add(
            f"org/{name}",
            {**parts, "unet/a.safetensors": content, "b.safetensors": content, "c.safetensors": content},
        )
    edit("hf://org/parts-base/unet", "hf://org/parts-ft@main/unet", output="part")
    edit("hf://org/parts-base/b.safetensors", "hf://org/parts-ft@main/b.safetensors", output="file")
    written = [tmp_path / "part" / "a.safetensors", tmp_path / "file" / "model.safetensors"]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert sorted(os.listdir(tmp_path / "part")) == ["README.md", "a.safetensors", "config.json", REPORT]
    for output in ("part", "file"):
        report = json.loads((tmp_path / output / REPORT).read_text())
        commits = [hub.repositories[f"org/parts-{name}"].revisions["main"] for name in ("base", "ft")]
        assert [entry["revision"] for entry in report["inputs"]] == commits
        assert f"org/parts-ft@{commits[1]}" in (tmp_path / output / "README.md").read_text()
    assert "no such folder" in edit("hf://org/parts-base/vae", "org/parts-ft", output="x", code=1)
    assert "more than one file of weights" in edit("org/parts-base", "org/parts-ft", output="x", code=1)


def test_state_dicts_are_read_where_there_is_no_safetensors(hub, made, edit, run, tmp_path):
    for name in ("base", "ft"):
        files = {file: (made[name] / file).read_bytes() for file in ("pytorch_model.bin", "config.json")}
        hub.add(f"org/old-{name}", files)
    edit("org/old-base", "org/old-ft", *ON_CPU)
    assert run("edit", made["base"], made["ft"], "-o", tmp_path / "local", *ON_CPU).code == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(tmp_path / "local" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_score_command_gets_whole_folders(hub, made, tmp_path):
    command = "ls {}/config.json {}/tokenizer.json {}/model*.safetensors >&2 && echo 1"
    result = hub.monosoup(
        "soup",
        "org/ft",
        "org/base",
        "-o",
        tmp_path / "out",
        "--greedy",
        "--score-command",
        command,
        home=tmp_path / "home",
    )
    assert result.returncode == 0, result


def test_a_search_of_ids(hub, tmp_path):
    """Every file is downloaded once, and candidates are whole folders."""
    score = "ls {}/config.json {}/tokenizer.json >&2 && cksum < {}/model.safetensors | cut -c -3"
    words = (
        "-o",
        tmp_path / "out",
        "--budget",
        "3",
        "--score",
        score,
        "--final-score",
        f"{score} #",
        *ON_CPU,
    )
    result = hub.monosoup("search", "org/base", "org/ft", *words, home=tmp_path / "home")
    assert result.returncode == 0, result
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert len(report["search"]["candidates"]) == 3
    assert " org/base org/ft " in report["search"]["command"]
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sent(hub, "*.safetensors") < 2.5 * size


@pytest.mark.parametrize(
    "card",
    ["base_model: org/ft\n", "base_model:\n- org/ft\n", "base_model:\n  - 'org/ft'\n", "license: mit\n"],
)
def test_a_repository_of_gguf_files_says_what_they_were_made_from(hub, edit, card):
    files = {"model-Q4_K_M.gguf": b"GGUF" + bytes(2_000_000), "config.json": b"{}"}
    hub.add("org/gguf", {**files, "README.md": f"---\n{card}---\n# GGUF\n".encode()})
    error = edit("org/base", "org/gguf", code=1)
    made_from = "org/ft" if "org/ft" in card else "the checkpoint that they were made from"
    assert error == (
        "error: org/gguf: a repository of GGUF files, which have no weights to edit; edit "
        f"{made_from}, and convert the result with llama.cpp's convert_hf_to_gguf.py"
    )
    assert sent(hub, "*.gguf") == 0
    edit("org/base", "org/ft")


# -- only what is needed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Hub with a pair of 200 MB each, of 48 layers."""
    place = tmp_path_factory.mktemp("large")
    side = 1440
    base = tensors(0, 24, side)
    size = sum(each.nbytes for each in base.values())
    assert size > 0.99 * LARGE
    with Hub(place / "hub") as hub:
        for name, weights in (("base", base), ("ft", near(base, 1))):
            made = place / name
            made.mkdir()
            save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
            (made / "config.json").write_text("{}")
            hub.add(f"org/{name}", made)
        yield hub, place


def test_a_dry_run_transfers_less_than_a_hundredth(large, tmp_path):
    hub, place = large
    hub.clear()
    words = ["edit", "org/base", "org/ft", "-o", tmp_path / "out", "--dry-run", "--format", "json"]
    result = hub.monosoup(*words, home=tmp_path / "home")
    assert result.returncode == 0, result
    sizes = [(place / name / "model.safetensors").stat().st_size for name in ("base", "ft")]
    assert json.loads(result.stdout)["download_bytes"] == sum(sizes)
    assert 0 < sent(hub) < 0.01 * 2 * LARGE


def test_one_layer_costs_little_more_than_its_bytes(large, tmp_path, run):
    hub, place = large
    hub.clear()
    words = ["--layer", "*layers.7.mlp*", "--format", "json", *ON_CPU]
    result = hub.monosoup("inspect-spectrum", "org/base", "org/ft", *words, home=tmp_path / "home")
    assert result.returncode == 0, result
    assert 0 < sent(hub) < 0.05 * 2 * LARGE
    local = run("inspect-spectrum", place / "base", place / "ft", *words)
    assert json.loads(result.stdout)["layers"] == json.loads(local.out)["layers"]


def test_of_the_base_only_what_is_included_is_fetched(large, tmp_path, run):
    hub, place = large
    hub.clear()
    words = ["--include", "*layers.7.mlp*", *ON_CPU]
    result = hub.monosoup(
        "edit", "org/base", "org/ft", "-o", tmp_path / "out", *words, home=tmp_path / "home"
    )
    assert result.returncode == 0, result
    assert sent(hub, "org/base*") < 0.06 * LARGE
    assert run("edit", place / "base", place / "ft", "-o", tmp_path / "local", *words).code == 0
    written = [tmp_path / name / "model.safetensors" for name in ("out", "local")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_what_an_adapter_compares_first_is_fetched_once(hub, edit, tmp_path):
    """The vectors of the base are compared before the adapter is laid out; then its layers are read."""
    layers = {f"model.layers.{number}.self_attn.q_proj.weight": torch.randn(400, 400) for number in range(4)}
    vectors = {f"model.layers.{number}.norm.weight": torch.randn(60_000) for number in range(4)}
    for name, weights in {"wide": {**layers, **vectors}, "wide-ft": near({**layers, **vectors}, 1)}.items():
        hub.add(f"org/{name}", folder(tmp_path / name, weights))
    edit("org/wide", "org/wide-ft", "--as-adapter", "--adapter-rank", 4)
    compared = sum(vector.nbytes for vector in vectors.values())
    whole = (tmp_path / "wide" / "model.safetensors").stat().st_size
    assert whole < sent(hub, "org/wide/*model.safetensors") < 1.1 * (whole + compared)


def test_what_headers_tell_is_refused_before_the_download(hub, edit):
    hub.add("org/other", {"config.json": b"{}", "model.safetensors": _with_other_shapes()})
    assert "the shapes differ" in edit("org/base", "org/other", code=1)
    assert sent(hub, "*.safetensors") < 140_000  # two heads of 64 KiB


def _with_other_shapes() -> bytes:
    from safetensors.torch import save

    return save({name: torch.zeros(8, 8) for name in tensors(0)})


@pytest.mark.slow
def test_two_ids_take_the_memory_of_two_files(large, tmp_path):
    """But for the client's own code, which is the same for a model of any size."""
    hub, place = large

    def peak(base, finetuned, output):
        code = (
            "import resource, subprocess, sys;"
            "subprocess.run([sys.executable, '-m', 'monosoup_cli', *sys.argv[1:]], check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        words = ["wise", str(base), str(finetuned), "-o", str(tmp_path / output), "--quiet", "--alpha", "0.5"]
        result = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=hub.env(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=True,
        )
        return int(result.stdout) * 1024

    local = peak(place / "base", place / "ft", "local")
    assert peak("org/base", "org/ft", "out") - local < 32 << 20


# -- what goes wrong ---------------------------------------------------------------------------------


def private(hub):
    hub.repositories["org/ft"].private = True


def gated(hub):
    hub.repositories["org/ft"].gated = True


def no_more(hub):
    del hub.repositories["org/ft"]


def limited(hub):
    hub.limit("org/ft", wait=7)


def cut(hub):
    hub.cut("org/ft/model.safetensors")


def cut_config(hub):
    hub.cut("org/ft/config.json")


def climbing(hub):
    hub.hostile_tree("org/ft", ["../evil.safetensors"])


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (private, ["not on the Hub, or private", "hf auth login"]),
        (no_more, ["not on the Hub, or private", "check the name"]),
        (gated, ["gated on the Hub", "accept the conditions"]),
        (limited, ["too many requests", "in 7 s"]),
        (cut, ["cut short", "run it again"]),
        (cut_config, ["cut short", "run it again"]),
        (climbing, ["the repository lists a file outside its folder"]),
    ],
)
def test_trouble_is_told_in_a_line(hub, edit, trouble, words):
    trouble(hub)
    error = edit("org/base", "org/ft", code=1)
    assert error.startswith("error: org/ft: ")
    assert all(word in error for word in words), error


def test_a_missing_revision_and_an_empty_cache(hub, edit):
    assert "no such revision" in edit("org/base", "org/ft@gone", code=1)
    error = edit("org/base", "org/ft", code=1, HF_HUB_OFFLINE="1", HF_HOME="")
    assert "offline" in error
    assert "HF_HUB_OFFLINE" in error


def test_a_token_opens_what_is_private_and_is_never_shown(hub, edit, tmp_path):
    private(hub)
    result = edit("org/base", "org/ft", HF_TOKEN=hub.token)
    assert result.returncode == 0
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or hub.token.encode() not in path.read_bytes()
    assert not [request for request in hub.requests if request.origin == "cdn" and request.had_authorization]
    source = f"hf://user:{hub.token}@org/ft"
    assert hub.token not in edit("org/base", source, output="x", code=1)


def test_a_renamed_repository_is_found(hub, edit):
    hub.rename("org/ft", "org/newer")
    edit("org/base", "org/ft")


@pytest.mark.parametrize(
    "name", ["../../../../priv/secret/resolve/main/model.safetensors", "/etc/x.safetensors"]
)
def test_an_index_may_not_lead_out_of_its_repository(hub, edit, name):
    hub.add("priv/secret", {"model.safetensors": b"x"})
    index = {"metadata": {}, "weight_map": {"a": name}}
    hub.add("org/hostile", {"model.safetensors.index.json": json.dumps(index).encode(), "config.json": b"{}"})
    assert "the index must name" in edit("org/base", "org/hostile", code=1, HF_TOKEN=hub.token)
    assert not hub.strays
    assert {request.repository for request in hub.requests} <= {"org/base", "org/hostile", None, ""}


def test_an_interrupted_download_ends_at_once(large, tmp_path):
    hub, _ = large
    hub.clear()
    words = [sys.executable, "-m", "monosoup_cli", "edit", "org/base", "org/ft", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(words, env=hub.env(tmp_path / "home"), stderr=subprocess.PIPE, text=True)
    while not any(request.route == "blob" and not request.range for request in hub.requests):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_from_the_same_commit_alone(large, tmp_path):
    hub, place = large
    repository, home = hub.repositories["org/ft"], tmp_path / "home"
    old = repository.revisions["main"]
    words = ["wise", "org/base", "org/ft", "-o", tmp_path / "out", "--alpha", "0.5", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "monosoup_cli", *map(str, words)], env=hub.env(home))
    journal = tmp_path / "out.partial" / "journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    try:
        hub.add("org/ft", place / "base")
        moved = hub.monosoup(*words, "--resume", home=home)
        words[2] = f"org/ft@{old}"
        resumed = hub.monosoup(*words, "--resume", home=home, HF_HUB_OFFLINE="1")
    finally:
        repository.revisions["main"] = old
    assert moved.returncode == 1
    assert "differs in FINETUNED 1's model.safetensors (commit)" in moved.stderr
    assert f"rerun with its old commit, @{old}" in moved.stderr
    assert resumed.returncode == 0, resumed


def test_a_snapshot_that_no_branch_names(hub, edit, tmp_path):
    edit("org/base", "org/ft")
    (refs,) = (tmp_path / "home").rglob("models--org--base/refs")
    shutil.rmtree(refs)
    error = edit("org/base", "org/ft", output="again", code=1, HF_HUB_OFFLINE="1")
    assert "offline, and the cache does not say which commit 'main' is; name a commit" in error
    found = re.search(r"in the cache: (\S+)", error)
    edit(found[1], "org/ft", output="again", HF_HUB_OFFLINE="1")
    first, again = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("org/base/", "org/base"),
        ("org/base/model.safetensors", "hf://org/base/model.safetensors"),
        ("https://hub.example/org/base", "org/base"),
        ("https://hub.example/org/base/tree/main", "org/base"),
        ("https://hub.example/org/base/tree/v2/", "org/base@v2"),
        ("https://hub.example/org/base/blob/v2/model.safetensors", "hf://org/base@v2/model.safetensors"),
        (
            "https://hub.example/org/base/resolve/main/model.safetensors?download=true",
            "hf://org/base/model.safetensors",
        ),
    ],
)
def test_what_is_no_id_gets_the_id_that_is_meant(hub, made, edit, typed, meant):
    hub.add("org/base", made["base"], revision="v2")
    error = edit(typed, "org/ft", code=1)
    assert error == f"error: {typed}: no such file or folder; if it is on the Hub: {meant}"
    edit(meant, "org/ft", "--dry-run")


def test_after_a_dry_run_the_weights_are_missed_offline(hub, edit):
    edit("org/base", "org/ft", "--dry-run")
    error = edit("org/base", "org/ft", code=1, HF_HUB_OFFLINE="1")
    assert (
        "org/base: offline, and its weights are not in the cache; run `hf download org/base` without" in error
    )
    error = edit("hf://org/base/model.safetensors", "org/ft", code=1, HF_HUB_OFFLINE="1")
    assert "hf://org/base/model.safetensors: offline, and its weights are not in the cache" in error
    edit("org/sharded", "org/base", "--dry-run")
    error = edit("org/sharded", "org/base", code=1, HF_HUB_OFFLINE="1")
    assert "org/sharded: offline, and its weights are not in the cache" in error


@pytest.mark.parametrize("words", [["--report", "{}/config.json", "--overwrite"], ["-o", "{}/out"]])
def test_the_cache_is_no_place_to_write_to(hub, edit, tmp_path, words):
    edit("org/base", "org/ft")
    cache = tmp_path / "home" / "hub" / "models--org--ft"
    (snapshot,) = (cache / "snapshots").iterdir()
    for place in (snapshot, cache / "blobs"):
        before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
        result = hub.monosoup(
            "edit",
            "org/base",
            "org/ft",
            "-o",
            tmp_path / "again",
            *(word.format(place) for word in words),
            home=tmp_path / "home",
        )
        assert result.returncode == 1
        assert "is inside the Hub's cache" in result.stderr
        assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before


# -- push --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [False, True])
def test_a_finished_output_is_pushed(hub, edit, tmp_path, public):
    words = ["--push", "owner/edited", *(["--public"] if public else [])]
    result = edit("org/base", "org/ft", *words, HF_TOKEN=hub.token)
    assert f"pushed to {hub.url}/owner/edited" in result.stderr
    assert hub.repositories["owner/edited"].private is not public
    pushed = {name: path.read_bytes() for name, path in hub.files("owner/edited").items()}
    out = tmp_path / "out"
    assert pushed.pop(".gitattributes", None) is not False
    report = json.loads(pushed.pop("monosoup_report.json"))
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    assert report["output"]["files"] == json.loads(kept.pop("monosoup_report.json"))["output"]["files"]
    assert report["output"]["path"] == "out"
    assert pushed == kept


def test_a_pushed_card_has_what_the_hub_accepts_of_the_models_own(hub, made, edit, tmp_path):
    card = "---\nlanguage:\n- English\nlicense: my-own\npipeline_tag: text-generation\n---\n# ours\n"
    shutil.copytree(made["ft"], tmp_path / "english")
    (tmp_path / "english" / "README.md").write_text(card)
    hub.add("org/english", tmp_path / "english")
    words = ["edit", "org/base", "org/english", "--push", "owner/english", "-o", tmp_path / "out"]
    run = {"home": tmp_path / "home", "HF_TOKEN": hub.token}
    note = "note: the Hub does not accept this in a model card, so it is left out: "
    for result in (hub.monosoup(*words, "--dry-run", **run), hub.monosoup(*words, **run)):
        assert (result.returncode, note in result.stderr) == (0, True)
        assert "left out: license: my-own, language: ['English']" in " ".join(result.stderr.split())
    pushed = hub.files("owner/english")["README.md"].read_text()
    assert "pipeline_tag: text-generation" in pushed
    assert "language" not in pushed
    assert "license" not in pushed


def test_a_push_that_cannot_be_is_refused_before_the_work(hub, edit):
    words = ["--push", "org/ft", "--overwrite"]
    assert "cannot push to an input" in edit("org/base", "org/ft", *words, code=1, HF_TOKEN=hub.token)
    assert "without a token" in edit("org/base", "org/ft", "--push", "owner/edited", code=1)
    words = ["--push", "others/edited"]
    assert "not a member of others" in edit("org/base", "org/ft", *words, code=1, HF_TOKEN=hub.token)
    hub.orgs = ["org"]
    assert "already holds files" in edit(
        "org/base", "org/ft", "--push", "org/sharded", code=1, HF_TOKEN=hub.token
    )
    assert sent(hub, "*.safetensors") < 530_000  # four times two heads


def test_the_way_to_send_a_folder_is_told_only_of_a_result(hub, edit, tmp_path):
    words = ["edit", "org/base", "org/ft", "--push", "owner/edited", "-o", tmp_path / "out"]
    run = {"home": tmp_path / "home", "HF_TOKEN": hub.token}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "hf upload" not in hub.monosoup(*words, **run).stderr
    assert "hf upload" not in hub.monosoup(*words, "--overwrite", **run).stderr
    edit("org/base", "org/ft", output="done")
    words[-1] = tmp_path / "done"
    upload = f"`hf upload owner/edited {tmp_path / 'done'} --exclude '*monosoup_report.json' --private`"
    assert upload in hub.monosoup(*words, **run).stderr
    assert upload in hub.monosoup(*words, "--resume", **run).stderr


def test_a_failed_push_leaves_the_output(hub, tmp_path):
    hub.fail("owner/edited", 403, method="POST")
    result = hub.monosoup(
        "edit",
        "org/base",
        "org/ft",
        "-o",
        tmp_path / "out",
        "--push",
        "owner/edited",
        home=tmp_path / "home",
        HF_TOKEN=hub.token,
    )
    assert result.returncode == 1
    assert f"`hf upload owner/edited {tmp_path / 'out'}" in result.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
