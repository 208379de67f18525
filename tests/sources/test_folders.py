"""Folders on the disk: what stands in them, how far links lead, and whether they are the Hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.folders import LocalFolder, local_folder, notes_of, read_config, targets_outside
from tests.hub import cloned


@pytest.fixture
def folder(tmp_path):
    for name in ("b.json", "a.txt", "unet/c.json", "unet/deep/d.json"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}')
    return LocalFolder(tmp_path / "in", "./in")


def test_what_stands_in_a_folder(folder):
    assert folder.names() == ["a.txt", "b.json", "unet"]
    assert folder.names("unet") == ["c.json", "deep"]
    assert folder.names("unet/deep") == ["d.json"]
    assert [folder.is_folder(name) for name in ("unet", "unet/deep", "a.txt")] == [True, True, False]
    assert folder.nbytes("unet/deep/d.json") == 8
    assert folder.select(["a.txt"]) == []
    assert (folder.source, folder.repository, folder.revision) == ("./in", None, None)
    with pytest.raises(CheckpointError, match="not a regular file"):
        folder.nbytes("unet")
    with pytest.raises(CheckpointError, match="cannot list") as caught:
        folder.names("a.txt")
    assert caught.value.path == str(folder.root / "a.txt")


def test_a_file_is_opened_under_the_name_that_was_asked_for(folder):
    (folder.root / "link").symlink_to("unet/c.json")
    file = folder.open("link")
    assert (file.shown, file.read(8)) == (str(folder.root / "link"), b'{"a": 1}')
    assert file.path == (folder.root / "unet" / "c.json").resolve()
    file.close()


def link_outside(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    (root / "outside").symlink_to(tmp_path / "out")
    (root / "unet" / "outside").symlink_to(tmp_path / "out")


@pytest.mark.parametrize("name", ["../out", "unet/../../out", "outside", "outside/x", "unet/outside"])
@pytest.mark.parametrize("asked", ["names", "is_folder", "nbytes", "open", "path"])
@pytest.mark.parametrize("place", ["opened by its id", "snapshot", "clone"])
def test_nothing_outside_of_what_is_from_the_hub_is_looked_at(folder, tmp_path, name, asked, place):
    path = folder.root
    if place == "snapshot":
        path = tmp_path / "models--org--name" / "snapshots" / "1f2e3d"
        path.parent.mkdir(parents=True)
        folder.root.rename(path)
    elif place == "clone":
        cloned(path)
    link_outside(path, tmp_path)
    (path.parent / "out").mkdir(exist_ok=True)
    of_id = ("org/name", "1f2e3d") if place == "opened by its id" else ()
    with pytest.raises(CheckpointError, match="out of the folder"):
        getattr(LocalFolder(path, "org/name", *of_id), asked)(name)


@pytest.mark.parametrize("name", ["../out", "unet/../../out", "outside/../../out", "/etc"])
@pytest.mark.parametrize("asked", ["names", "is_folder", "nbytes", "open", "path"])
def test_no_name_leads_out_of_a_folder(folder, tmp_path, name, asked):
    link_outside(folder.root, tmp_path)
    with pytest.raises(CheckpointError, match=r"out of the folder|a broken link"):
        getattr(folder, asked)(name)


def test_the_links_that_users_put_into_their_own_folder_are_followed(folder, tmp_path):
    link_outside(folder.root, tmp_path)
    (tmp_path / "out" / "back").symlink_to(folder.root)
    (tmp_path / "out" / "self").symlink_to(".")
    assert folder.names("outside") == folder.names("unet/outside") == ["back", "self", "x"]
    assert folder.names("outside/back") == folder.names("outside/self") == []
    assert folder.nbytes("unet/outside/x") == 1
    places = targets_outside(folder, ["a.txt", "outside/x", "unet"])
    assert places == {"outside/x": tmp_path.resolve() / "out" / "x"}
    os.mkfifo(tmp_path / "out" / "pipe")
    for name in ("outside/pipe", "outside"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            folder.nbytes(name)


@pytest.mark.parametrize(
    ("config", "host"),
    [
        ('[remote "origin"]\n\turl = https://huggingface.co/org/name\n\tfetch = +refs/*\n', "huggingface.co"),
        ('[core]\n[Remote "o"]\n URL=https://me:hf_x@HuggingFace.co/org/name', "huggingface.co"),
        ('[remote "o"] url = "git@hf.co:org/name"', "hf.co"),
        ('[remote "o"]\n\tpushurl = ssh://git@hf.co/org/name', "hf.co"),
        ('[remote "o"]\n\turl = http://hub.example:5000/org/name', "hub.example"),
        ('[remote "o"]\n\turl = https://github.com/huggingface.co/name', None),
        ('[remote "o"]\n\turl = https://nothuggingface.co/name', None),
        ('[submodule "o"]\n\turl = https://huggingface.co/org/name', None),
        ('[remote "o"]\n\turl = /srv/name\n[branch "main"]\n\tremote = huggingface.co', None),
        ("\xff[", None),
        (None, None),
    ],
)
def test_a_clone_is_from_the_hub_where_its_remote_is(folder, tmp_path, monkeypatch, config, host):
    """Most folders in which people train are under git."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:5000")
    (folder.root / ".git").mkdir()
    if config is not None:
        (folder.root / ".git" / "config").write_text(config, encoding="latin-1")
    link_outside(folder.root, tmp_path)
    opened = LocalFolder(folder.root, "in")
    if host is None:
        assert opened.nbytes("outside/x") == 1
        return
    with pytest.raises(CheckpointError, match="out of the folder") as caught:
        opened.nbytes("outside/x")
    assert caught.value.hint.startswith(f".git/config names {host}, and links in what is from the Hub")


def test_the_configuration_of_git_is_not_waited_for(folder):
    (folder.root / ".git").mkdir()
    os.mkfifo(folder.root / ".git" / "config")
    assert LocalFolder(folder.root, "in").names() == [".git", "a.txt", "b.json", "unet"]


REPOSITORY = "models--org--name"


@pytest.mark.parametrize(
    ("commits", "main", "expected"),
    [
        (["1f", "2e"], "2e", "2e"),
        (["1f", "2e"], "1f\n", "1f"),
        (["1f"], None, "1f"),
        (["1f"], "2e", "1f"),
        (["1f"], "../../other", "1f"),
        (["1f", "2e"], None, None),
        (["1f", "2e"], "3d", None),
        (["1f", "2e", "3d", "4c"], "..", None),
        ([], "1f", None),
    ],
)
@pytest.mark.parametrize("typed", [REPOSITORY, f"{REPOSITORY}/snapshots", "link"])
def test_a_repository_in_the_cache_is_its_snapshot(tmp_path, commits, main, expected, typed):
    for place in ("refs", "snapshots", *(f"snapshots/{commit}" for commit in commits)):
        (tmp_path / REPOSITORY / place).mkdir(parents=True, exist_ok=True)
    if main is not None:
        (tmp_path / REPOSITORY / "refs" / "main").write_text(main)
    (tmp_path / "link").symlink_to(REPOSITORY)
    source = str(tmp_path / typed)
    if expected is None:
        with pytest.raises(CheckpointError, match="a repository in the Hub's cache") as caught:
            local_folder(tmp_path / typed, source)
        if commits:
            assert caught.value.found.startswith("1f, 2e")
            hint = caught.value.hint.removeprefix("pass one of them: ")
            assert local_folder(Path(hint), hint).revision == "1f"
        return
    folder = local_folder(tmp_path / typed, source)
    assert (folder.repository, folder.revision, folder.source) == ("org/name", expected, source)
    assert folder.root.resolve() == (tmp_path / REPOSITORY / "snapshots" / expected).resolve()
    assert notes_of(folder, []) == [f"a repository in the Hub's cache, read at its commit {expected}"]


@pytest.mark.parametrize("name", ["models--org--name", "snapshots", "in/snapshots/1f2e3d"])
def test_other_folders_are_what_they_are(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    folder = local_folder(tmp_path / name, str(tmp_path / name))
    assert (folder.root, folder.repository, notes_of(folder, [])) == (tmp_path / name, None, [])


@pytest.mark.parametrize(
    ("place", "target", "inner"),
    [
        ("unet/up", "..", "unet/up"),
        ("self", ".", "self"),
        ("unet/self", ".", "unet/self"),
        ("unet/deep/up", "..", "unet/deep/up"),
        ("unet/deep/top", "../..", "unet/deep/top"),
        ("unet/deep/top", "../..", "unet/deep/top/unet"),
    ],
)
def test_a_link_that_leads_up_again_ends_there(folder, place, target, inner):
    (folder.root / place).symlink_to(target)
    assert folder.is_folder(place)
    assert folder.names(inner) == []


def test_links_to_and_fro_end(folder):
    for name, target in (("one", "../two"), ("two", "../one")):
        (folder.root / name).mkdir()
        (folder.root / name / "link").symlink_to(target)
    assert folder.names("one/link") == ["link"]
    assert folder.names("one/link/link") == []


def test_a_link_to_a_neighbour_is_a_folder(folder):
    (folder.root / "like").symlink_to("unet")
    assert folder.names("like") == ["c.json", "deep"]
    assert folder.names("like/deep") == ["d.json"]


def test_a_link_that_leads_to_itself(folder):
    (folder.root / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="a broken link"):
        folder.is_folder("loop")


def test_a_config_is_read_where_there_is_one(folder):
    assert read_config(folder, "b.json") == read_config(folder, "unet/deep/d.json") == {"a": 1}
    assert read_config(folder, "absent.json") is None
    assert read_config(folder, "unet/b.json") is None
    (folder.root / "b.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"b\.json"):
        read_config(folder, "b.json")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("models--org--name/snapshots/1f2e3d", ("org/name", "1f2e3d")),
        ("models--org--name/snapshots/1f2e3d/unet/deep", ("org/name", "1f2e3d")),
        ("models--gpt2/snapshots/1f2e3d", ("gpt2", "1f2e3d")),
        ("models--org--name/snapshots", (None, None)),
        ("models--org--name/1f2e3d", (None, None)),
        ("org--name/snapshots/1f2e3d", (None, None)),
        ("datasets--org--name/snapshots/1f2e3d", (None, None)),
        ("models--org--name/refs/1f2e3d", (None, None)),
    ],
)
def test_a_snapshot_of_the_cache_says_what_it_is_of(tmp_path, monkeypatch, place, expected):
    path = tmp_path / place
    path.mkdir(parents=True)
    folder = LocalFolder(path, str(path))
    assert (folder.repository, folder.revision) == expected
    monkeypatch.chdir(path.parent)
    folder = LocalFolder(type(path)(path.name), path.name)
    assert (folder.repository, folder.revision) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_what_may_not_be_read(folder):
    (folder.root / "a.txt").chmod(0)
    with pytest.raises(CheckpointError, match="cannot open: Permission denied"):
        folder.nbytes("a.txt")
    (folder.root / "unet").chmod(0)
    with pytest.raises(CheckpointError, match="cannot list"):
        folder.names("unet")
