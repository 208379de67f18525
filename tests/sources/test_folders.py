"""Folders on the disk: what stands in them, how far links lead, and whether they are the Hub's cache."""

from __future__ import annotations

import os

import pytest

from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.folders import LocalFolder, read_config


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


@pytest.mark.parametrize("name", ["../out", "unet/../../out", "outside", "outside/x", "unet/outside"])
@pytest.mark.parametrize("asked", ["names", "is_folder", "nbytes", "open", "path"])
def test_nothing_outside_is_looked_at(folder, tmp_path, name, asked):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    (folder.root / "outside").symlink_to("../out")
    (folder.root / "unet" / "outside").symlink_to(tmp_path / "out")
    with pytest.raises(CheckpointError, match="out of the folder"):
        getattr(folder, asked)(name)


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
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.nbytes("a.txt")
    (folder.root / "unet").chmod(0)
    with pytest.raises(CheckpointError, match="cannot list"):
        folder.names("unet")
