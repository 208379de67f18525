"""What the real client sees of the Hub on loopback, in this process but for the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from tests.conftest import small_tensors
from tests.hub import Hub

NAME = "org/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    save_file(small_tensors(1), weights, metadata={"format": "pt"})
    with Hub(tmp_path / "hub") as hub:
        hub.add(
            NAME, {"config.json": b"{}", "unet/model.safetensors": weights, "large.txt": b"x" * 3_000_000}
        )
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    def fetch(file, **options):
        options = {"token": False, "cache_dir": tmp_path / "cache", "endpoint": hub.url} | options
        return Path(hf_hub_download(NAME, file, **options))

    return fetch


def test_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_foreign")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    fetch = f"import huggingface_hub as hub; print(hub.snapshot_download({NAME!r}))"
    command = [sys.executable, "-c", fetch]
    env = hub.env(tmp_path / "home")
    folder = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert {str(path.relative_to(folder)) for path in Path(folder).rglob("*.*")} == hub.files(NAME).keys()
    assert not any(request.had_authorization for request in hub.requests)
    assert not hub.strays
    assert hub.monosoup("--version", home=tmp_path / "home").returncode == 0


def api(hub, token=False):
    return HfApi(endpoint=hub.url, token=token)


def test_list_and_resolve(hub):
    first = api(hub).model_info(NAME).sha
    second = hub.add(NAME, {f"{i}.txt": b"" for i in range(1500)})
    hub.add(NAME, {"config.json": b"{}"}, revision="v1")
    assert api(hub).model_info(NAME).sha == second != first
    assert api(hub).list_repo_files(NAME, revision=first) == [
        "config.json",
        "large.txt",
        "unet/model.safetensors",
    ]
    assert api(hub).list_repo_files(NAME, revision="v1") == ["config.json"]
    assert len(list(api(hub).list_repo_tree(NAME))) == 1500
    (weights,) = api(hub).get_paths_info(NAME, "unet/model.safetensors", revision=first)
    assert weights.lfs.sha256 == hub.files(NAME, first)["unet/model.safetensors"].name
    hub.hostile_tree(NAME, ["../evil.safetensors"])
    assert "../evil.safetensors" in api(hub).list_repo_files(NAME)
    assert not hub.strays


def test_download(hub, fetch):
    hub.repositories[NAME].private = True
    for file, path in hub.files(NAME).items():
        assert fetch(file, token=hub.token).read_bytes() == path.read_bytes()
    assert hub.bytes_sent(f"{NAME}/*") == sum(path.stat().st_size for path in hub.files(NAME).values())
    cdn = [request for request in hub.requests if request.origin == "cdn"]
    assert {request.subject for request in cdn} == {f"{NAME}/large.txt", f"{NAME}/unet/model.safetensors"}
    assert not any(request.had_authorization for request in cdn)
    assert all(request.had_authorization for request in hub.requests if request.route == "file")


def test_ranges(hub):
    with HfFileSystem(endpoint=hub.url, token=False).open(f"{NAME}/large.txt", block_size=1000) as file:
        file.seek(1_500_000)
        assert file.read(10) == b"x" * 10
    assert 10 <= hub.bytes_sent(f"{NAME}/large.txt") < 100_000
    (got,) = [request for request in hub.requests if request.origin == "cdn"]
    assert (got.status, got.range.split("-")[0]) == (206, "bytes=1500000")


def test_refusals(hub, fetch):
    with pytest.raises(RevisionNotFoundError):
        fetch("config.json", revision="gone")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch("gone.json")
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info("org/none")
    assert [request.repository for request in hub.strays] == ["org/none"]
    hub.repositories[NAME].gated = True
    assert api(hub).model_info(NAME).gated == "manual"
    for token in (False, hub.guest_token):
        with pytest.raises(GatedRepoError):
            fetch("config.json", token=token)
    hub.repositories[NAME].private = True
    for token in (False, hub.guest_token):
        with pytest.raises(RepositoryNotFoundError):
            api(hub, token).model_info(NAME)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "hf_wrong").whoami()
    assert api(hub, hub.token).whoami()["name"] == "owner"


def test_strays(hub):
    index = {"metadata": {}, "weight_map": {"w": "../../../../org/secret/resolve/main/model.safetensors"}}
    hub.add(NAME, {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(HfHubHTTPError):
        api(hub).get_safetensors_metadata(NAME)
    assert hub.strays
    assert {stray.repository for stray in hub.strays} == {"org/secret"}


def test_renamed(hub, fetch):
    hub.rename(NAME, "org/moved")
    assert api(hub).model_info(NAME).id == "org/moved"
    assert fetch("config.json").read_bytes() == b"{}"
    assert not hub.strays


def test_faults(hub, fetch):
    hub.limit(f"{NAME}*", times=1)
    with pytest.raises(HfHubHTTPError, match="rate limit"):
        api(hub).model_info(NAME)
    assert api(hub).model_info(NAME).id == NAME
    hub.fail("*.json", 500, times=1)
    assert fetch("config.json").read_bytes() == b"{}"
    assert [request.status for request in hub.requests if request.route == "file"] == [500, 200, 200]
    hub.clear()
    hub.cut("*/large.txt", times=1)
    assert fetch("large.txt").stat().st_size == 3_000_000
    got = [(request.range, request.sent) for request in hub.requests if request.origin == "cdn"]
    assert got == [(None, 1_500_000), (None, 3_000_000)]


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_upload(hub, tmp_path):
    name = "owner/new"
    owner = api(hub, hub.token)
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, hub.guest_token).create_repo(name)
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, hub.guest_token).upload_folder(repo_id=NAME, folder_path=tmp_path / "model")
    assert owner.create_repo(name, private=True) == f"{hub.url}/{name}"
    with pytest.raises(HfHubHTTPError, match="409"):
        owner.create_repo(name)
    owner.create_repo(name, exist_ok=True)
    folder = tmp_path / "model"
    save_file(small_tensors(2), folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "old.json").write_text("{}")
    first = owner.upload_folder(repo_id=name, folder_path=folder).oid
    (folder / "old.json").unlink()
    owner.upload_folder(repo_id=name, folder_path=folder, delete_patterns=["*"])
    assert hub.repositories[name].private
    assert set(owner.list_repo_files(name)) == {".gitattributes", "README.md", "model.safetensors"}
    assert "old.json" in owner.list_repo_files(name, revision=first)
    written = hub.files(name)["model.safetensors"]
    assert written.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [request.status for request in hub.requests if request.route == "upload"] == [200]
