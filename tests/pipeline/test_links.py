"""Files that users link from another disk, and repositories in the Hub's cache by their path."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

SHARDS = {
    "model-00001-of-00002.safetensors": "layers.0.weight",
    "model-00002-of-00002.safetensors": "layers.1.weight",
}


def write(folder, seed):
    """A folder with two shards, an index, a configuration and a tokenizer."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for file, name in SHARDS.items():
        save_file({name: torch.randn(8, 6, generator=generator)}, folder / file)
    weight_map = {name: file for file, name in SHARDS.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def linked(folder, disk):
    """Move the files of a folder to another, and link them."""
    disk.mkdir()
    for path in list(folder.iterdir()):
        path.rename(disk / path.name)
        path.symlink_to(disk / path.name)
    return folder


@pytest.mark.parametrize("command", ["edit", "inspect-spectrum"])
def test_shards_that_are_linked_from_another_disk_are_read_and_named(run, tmp_path, command):
    base, finetuned = write(tmp_path / "base", 0), write(tmp_path / "ft", 1)
    words = ["-o", tmp_path / "plain"] if command == "edit" else []
    assert "links" not in run(command, base, finetuned, *words).err
    disk = tmp_path / "disk"
    words = ["-o", tmp_path / "out"] if command == "edit" else []
    result = run(command, base, linked(finetuned, disk), *words)
    assert result.code == 0, result.err
    first, second = SHARDS
    note = f"note: {finetuned}: links out of the folder are followed: {first} at {disk / first}, {second} at"
    assert note in result.err
    if command == "edit":
        assert (
            f"note: copied through links out of the folder: config.json at {disk / 'config.json'}"
            in result.err
        )
        for name in (*SHARDS, "tokenizer.json"):
            written = tmp_path / "out" / name
            assert not written.is_symlink()
            assert written.read_bytes() == (tmp_path / "plain" / name).read_bytes()
        result = run(command, base, finetuned, "-o", disk, "--overwrite")
        assert result.code == 1  # a file of the input is there
        assert "an input" in result.err


@pytest.mark.parametrize("command", ["edit", "soup"])
def test_a_repository_in_the_hubs_cache_is_an_input_by_its_path(run, tmp_path, command):
    base = write(tmp_path / "base", 0)
    repository = tmp_path / "hub" / "models--org--ft"
    snapshot = repository / "snapshots" / "1f2e3d"
    write(snapshot, 1)
    linked(snapshot, repository / "blobs")
    result = run(command, base, repository, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    note = f"note: {repository}: a repository in the Hub's cache, read at its commit 1f2e3d\n"
    assert note in result.err
    assert "links out" not in result.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert report["inputs"][1]["revision"] == "1f2e3d"
    assert run(command, base, snapshot, "-o", tmp_path / "other").code == 0
    for name in SHARDS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert "org/ft" in (tmp_path / "out" / "README.md").read_text()


def test_of_several_snapshots_the_message_says_which_to_pass(run, tmp_path):
    base = write(tmp_path / "base", 0)
    repository = tmp_path / "models--org--ft"
    for seed, commit in enumerate(["1f2e3d", "4c5b6a"]):
        write(repository / "snapshots" / commit, seed)
    result = run("edit", base, repository, "-o", tmp_path / "out")
    assert result.code == 1
    assert "found 1f2e3d, 4c5b6a; pass one of them: " in result.err
    path = result.err.strip().rpartition("pass one of them: ")[2]
    assert run("edit", base, path, "-o", tmp_path / "out").code == 0


def test_a_program_that_scores_gets_the_snapshot(run, tmp_path):
    """The folder of the repository is none that a library can load."""
    repository = tmp_path / "models--org--ft"
    write(repository / "snapshots" / "1f2e3d", 1)
    others = write(tmp_path / "other", 2)
    score = tmp_path / "score.sh"
    score.write_text('test -f "$1/config.json" && echo 1')
    words = (
        "soup",
        repository,
        others,
        "-o",
        tmp_path / "out",
        "--greedy",
        "--score-command",
        f"sh {score} {{}}",
    )
    result = run(*words)
    assert result.code == 0, result.err
    assert load_file(tmp_path / "out" / next(iter(SHARDS)))


def test_a_folder_in_a_clone_of_the_hub_is_from_there_too(run, tmp_path):
    base = write(tmp_path / "base", 0)
    finetuned = write(tmp_path / "clone" / "sub" / "ft", 1)
    (tmp_path / "clone" / ".git").mkdir()
    (tmp_path / "clone" / ".git" / "config").write_text('[remote "origin"]\nurl = https://hf.co/org/name\n')
    (tmp_path / "secret").write_text("SECRET")
    (finetuned / "notes.txt").symlink_to(tmp_path / "secret")
    result = run("edit", base, finetuned, "-o", tmp_path / "out")
    assert result.code == 1
    assert "notes.txt: a link that leads out of the folder; .git/config names hf.co" in result.err


def test_a_glob_enters_a_linked_folder_only_where_it_spells_it_out(run, tmp_path):
    base, finetuned = write(tmp_path / "base", 0), write(tmp_path / "ft", 1)
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    for name in ("voice.txt", "deep/other.txt"):
        (tmp_path / "disk" / name).write_text(name)
    (finetuned / "disk").symlink_to(tmp_path / "disk")
    (finetuned / "voice.txt").write_text("its own")
    for globs, carried in {
        ("voice.txt",): [],
        ("*",): [],
        ("all",): [],
        ("disk/voice.txt",): ["voice.txt"],
        ("disk",): ["deep/other.txt", "voice.txt"],
    }.items():
        words = [word for glob in globs for word in ("--side-files", glob)]
        result = run("edit", base, finetuned, "-o", tmp_path / "out", "--overwrite", *words)
        assert result.code == 0, result.err
        disk = tmp_path / "out" / "disk"
        found = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())
        assert found == carried
        assert (tmp_path / "out" / "voice.txt").exists()
