"""Files on the Hub, read and fetched in this process by the real client; what is transferred is counted."""

from __future__ import annotations

import json
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

import monosoup_cli
from monosoup_cli.api.edit import edit
from monosoup_cli.errors import CheckpointError, NonfiniteError
from monosoup_cli.formats.files import Download
from monosoup_cli.pipeline.execute import execute
from monosoup_cli.pipeline.ready import make_ready
from monosoup_cli.sources import hub as hub_module
from monosoup_cli.sources import transfer
from monosoup_cli.sources.derived import renamed
from monosoup_cli.sources.folders import LocalFolder
from monosoup_cli.sources.hub import HubFolder, RemoteFile, open_repository
from monosoup_cli.sources.hub_ids import HubId, to_fill_the_cache
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.transfer import fetch
from tests.hub import Handler, Hub

NAME = "model.safetensors"
CONTENT = bytes(number * 7 % 251 for number in range(10_000))


@pytest.fixture(autouse=True)
def hub(tmp_path, client):
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        yield hub


def opened(source: str = "org/name") -> HubFolder:
    where = HubId.parse(source)
    assert where is not None
    folder = open_repository(source, where)
    assert isinstance(folder, HubFolder)
    return folder


@pytest.fixture
def remote(hub):
    """A file of 10 kB that is far away, with nothing of it read."""
    hub.add("org/name", {NAME: CONTENT, "config.json": b"{}"})
    file = opened().open(NAME)
    hub.clear()
    yield file
    file.close()


def ranges(hub: Hub) -> list[tuple[int, int]]:
    """(start, stop) of what was asked of large files."""
    texts = [request.range for request in hub.requests if request.route == "blob"]
    ends = [text.removeprefix("bytes=").split("-") for text in texts if text]
    return [(int(first), int(last) + 1) for first, last in ends]


def asked(hub: Hub) -> set[str | None]:
    """What was asked for, but for what the client asks once in a process."""
    return {request.route for request in hub.requests} - {"harnesses"}


@pytest.fixture
def small(monkeypatch):
    """Heads and parts of few bytes."""
    monkeypatch.setattr(hub_module, "HEAD_BYTES", 100)
    monkeypatch.setattr(hub_module, "PART_BYTES", 1000)


# -- ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None, "")),
        ("org/name.v1-x_y", ("org/name.v1-x_y", None, "")),
        ("org/name@main", ("org/name", "main", "")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1", "")),
        ("org/name@feature/x", ("org/name", "feature/x", "")),
        ("hf://org/name", ("org/name", None, "")),
        ("hf://org/name/", ("org/name", None, "")),
        ("hf://org/name@main", ("org/name", "main", "")),
        ("hf://org/name@refs/pr/1", ("org/name", "refs/pr/1", "")),
        ("hf://org/name@refs/convert/x/unet", ("org/name", "refs/convert/x", "unet")),
        ("hf://org/name@main/unet/a.safetensors", ("org/name", "main", "unet/a.safetensors")),
        ("hf://org/name/unet", ("org/name", None, "unet")),
        ("hf://org/name/unet/", ("org/name", None, "unet")),
        ("hf://org/name/a/b.safetensors", ("org/name", None, "a/b.safetensors")),
        ("hf://gpt2", ("gpt2", None, "")),
        ("hf://gpt2@main/x", ("gpt2", "main", "x")),
    ],
)
def test_what_ids_say(source, expected):
    where = HubId.parse(source)
    assert where is not None
    assert (where.repository, where.revision, where.inner) == expected


@pytest.mark.parametrize(
    "source", ["name", "name@main", "a/b/c", "/org/name", "org/name@", "org/na me", "org/name\n", "~/x", ""]
)
def test_what_is_no_id(source):
    assert HubId.parse(source) is None


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("name/", "; if it is on the Hub: hf://name"),
        ("org/name/", "; if it is on the Hub: org/name"),
        ("./org/name/", ""),
        ("a/b/c/", "; if it is on the Hub: hf://a/b/c"),
        ("/org/name/", ""),
    ],
)
def test_a_path_with_a_slash_at_its_end_is_no_id(hub, source, meant):
    assert HubId.parse(source) is None
    with pytest.raises(CheckpointError, match=rf"no such file or folder{meant}$"):
        open_checkpoint(source)
    assert not hub.requests


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("org/name", "hf download org/name"),
        ("org/name@v1", "hf download org/name --revision v1"),
        ("hf://org/name@refs/pr/3/unet", "hf download org/name --revision refs/pr/3"),
        ("hf://org/name/model.safetensors", "hf download org/name"),
        ("hf://org/name@v 1;x", "hf download org/name --revision 'v 1;x'"),
    ],
)
def test_the_command_that_fills_the_cache(source, command):
    assert to_fill_the_cache(source) == f"run `{command}` without HF_HUB_OFFLINE"


# -- the repository --------------------------------------------------------------------------------


def test_a_repository_is_a_folder(hub):
    commit = hub.add(
        "org/name", {NAME: CONTENT, "unet/a.safetensors": b"x", "unet/deep/b.json": b"{}", "c.json": b"[1]"}
    )
    folder = opened()
    assert (folder.repository, folder.revision, folder.root) == ("org/name", commit, None)
    assert folder.names() == ["c.json", NAME, "unet"]
    assert folder.names("unet") == ["a.safetensors", "deep"]
    assert folder.names("unet/deep") == ["b.json"]
    assert folder.names("absent") == folder.names(NAME) == []
    found = [folder.is_folder(name) for name in ("unet", "unet/deep", "", NAME, "absent", "une")]
    assert found == [True, True, True, False, False, False]
    assert folder.nbytes(NAME) == len(CONTENT)
    with pytest.raises(CheckpointError, match=r"org/name/absent\.json: no such file"):
        folder.open("absent.json")
    assert asked(hub) == {"model", "tree"}


def test_a_small_file_is_downloaded_when_it_is_opened_and_weights_are_not(hub):
    hub.add(
        "org/name", {"a/c.json": b"[1]", **dict.fromkeys(("w.bin", "w.pt", "w.pth", "w.ckpt", NAME), CONTENT)}
    )
    folder = opened()
    hub.clear()
    weights = [folder.open(name) for name in ("w.bin", "w.pt", "w.pth", "w.ckpt", NAME)]
    assert not hub.requests
    assert all(isinstance(file, RemoteFile) and file.path is None for file in weights)
    file = folder.open("a/c.json")
    assert file.read(3) == b"[1]"
    assert file.shown == "org/name/a/c.json"
    assert (folder.root / "a" / "c.json").read_bytes() == b"[1]"
    file.close()
    hub.clear()
    again = opened()
    again.open("a/c.json").close()
    assert not [request for request in hub.requests if request.route == "file"]
    assert again.root == folder.root


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../x.json", "/x.json", "a//x.json", "a/", "a/./x.json", "..", "a\\..\\x.json"]
)
def test_a_listing_of_names_that_climb_is_refused(hub, tmp_path, name):
    hub.add("org/name", {NAME: CONTENT})
    hub.hostile_tree("org/name", [name])
    with pytest.raises(CheckpointError, match="the repository lists a file outside its folder") as caught:
        opened()
    assert str(caught.value).isprintable()
    assert asked(hub) == {"model", "tree"}


@pytest.mark.parametrize("name", ["C:x.json", "a/\0.json", "a\\x.json"])
def test_files_that_not_every_system_can_name_are_left_alone(hub, name):
    hub.add("org/name", {NAME: CONTENT})
    hub.hostile_tree("org/name", [name])
    assert opened().names() == [NAME]


def test_files_and_not_folders_are_selected_and_those_in_the_cache_are_not(hub):
    hub.add("org/name", {"a.json": b"[1]", "b/c.json": b"[12]", "d.json": b"x"})
    folder = opened()
    told: list[int] = []
    downloads = folder.select(["a.json", "b/c.json"])
    assert [each.nbytes for each in downloads] == [3, 4]
    fetch(downloads, told.append)
    assert (downloads, sum(told)) == ([], 7)
    assert folder.path("b/c.json").read_bytes() == b"[12]"
    assert [each.nbytes for each in folder.select(["a.json", "d.json"])] == [1]
    folder.path("d.json")
    assert folder.select(["d.json"]) == []


@pytest.mark.parametrize("source", ["org/name@v1", "hf://org/name@v1"])
def test_offline_the_cache_is_read_as_a_folder(hub, monkeypatch, source):
    commit = hub.add("org/name", {"a.json": b"[1]", NAME: save({"a": torch.ones(3)})}, revision="v1")
    folder = opened(source)
    assert folder.revision == commit
    fetch(folder.select(["a.json", NAME]))
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = open_repository(source, HubId.parse(source))
    assert isinstance(offline, LocalFolder)
    assert (offline.source, offline.repository, offline.revision) == (source, "org/name", commit)
    assert offline.root == folder.root
    assert offline.names() == ["a.json", NAME]
    with open_checkpoint(source) as checkpoint:
        assert (checkpoint.files.place.repository, checkpoint.files.place.revision) == ("org/name", commit)
        assert checkpoint.select(None) == []
    assert not hub.requests


@pytest.mark.parametrize("is_offline", [False, True])
@pytest.mark.parametrize("inner", ["absent", "absent/deep", "unet/absent"])
def test_a_folder_that_the_repository_has_not(hub, monkeypatch, inner, is_offline):
    hub.add("org/name", {"unet/config.json": b"{}"})
    opened().path("unet/config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    with pytest.raises(CheckpointError, match=r"no such folder in the (repository|cache)"):
        open_checkpoint(f"hf://org/name/{inner}")


@pytest.mark.parametrize("inner", ["../other", "unet/../..", "/unet", "unet//deep", "unet\\..", "./unet"])
def test_what_can_be_no_folder_of_a_repository_is_not_asked_for(hub, inner):
    with pytest.raises(CheckpointError, match="not a folder of a repository"):
        open_checkpoint(f"hf://org/name/{inner}")
    assert not hub.requests


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_folder_of_a_repository_is_read_like_a_folder(hub, monkeypatch, is_offline):
    weights = save({"a": torch.ones(3)})
    commit = hub.add(
        "org/name", {f"unet/deep/{NAME}": weights, "unet/deep/x/c.json": b"[]", "unet/deeper.json": b"{}"}
    )
    if is_offline:
        for name in (f"unet/deep/{NAME}", "unet/deep/x/c.json"):
            opened().path(name)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with open_checkpoint("hf://org/name@main/unet/deep") as checkpoint:
        folder = checkpoint.files.place.folder
        fetch([*checkpoint.select(None), *folder.select(["x/c.json"])])
        assert (checkpoint.files.place.inner, checkpoint.files.place.revision, folder.repository) == (
            "",
            commit,
            "org/name",
        )
        assert (folder.names(), folder.names("x")) == ([NAME, "x"], ["c.json"])
        assert folder.root.parts[-3:] == (commit, "unet", "deep")
        assert folder.path("x/c.json").read_bytes() == b"[]"
        assert (Path(checkpoint.files.place.path) / NAME).read_bytes() == weights
    with open_checkpoint("hf://org/name@main/unet/deep") as checkpoint:
        assert checkpoint.select(None) == checkpoint.files.place.folder.select(["x/c.json"]) == []
    with open_checkpoint(f"hf://org/name/unet/deep/{NAME}") as checkpoint:
        assert (
            checkpoint.files.place.folder,
            checkpoint.files.place.revision,
            checkpoint.files.place.repository,
        ) == (None, commit, "org/name")


def test_the_commit_of_a_single_file_is_known(hub):
    commit = hub.add("org/name", {NAME: save({"a": torch.ones(3)})})
    with open_checkpoint(f"hf://org/name/{NAME}") as checkpoint:
        assert checkpoint.files.place.revision == commit


def test_all_is_of_the_commit_that_was_found_first(hub):
    old, new = ({NAME: bytes([digit]) * 3000, "a.json": b"[%d]" % digit} for digit in (1, 2))
    hub.add("org/name", old)
    folder = opened()
    hub.add("org/name", new)
    file = folder.open(NAME)
    assert file.read(3000) == old[NAME]
    fetch([*file.select(None), *folder.select(["a.json"])])
    assert (file.read(3000), folder.path("a.json").read_bytes()) == (old[NAME], old["a.json"])
    file.close()


# -- reading from afar -----------------------------------------------------------------------------


def test_the_head_is_asked_for_once(hub, remote, small):
    assert remote.read(8) == CONTENT[:8]
    assert remote.read(40, 60) == CONTENT[60:100]
    assert ranges(hub) == [(0, 100)]
    assert remote.read(30, 90) == CONTENT[90:120]
    assert ranges(hub) == [(0, 100), (100, 120)]
    assert remote.bytes_read == 120
    assert remote.read(0, 50) == b""
    assert remote.read(20, 5000) == CONTENT[5000:5020]
    assert ranges(hub) == [(0, 100), (100, 120), (5000, 5020)]
    assert remote.bytes_read == hub.bytes_sent("*") == 140


def test_a_long_reading_is_of_several_requests(hub, remote, small):
    assert remote.read(len(CONTENT)) == CONTENT
    assert ranges(hub) == [
        (0, 100),
        *((first, min(first + 1000, 10_000)) for first in range(100, 10_000, 1000)),
    ]
    assert remote.bytes_read == 10_000


def test_a_file_smaller_than_its_head(hub):
    hub.add("org/name", {NAME: b"abc", "w.bin": b""})
    folder = opened()
    assert folder.open(NAME).read(2, 1) == b"bc"
    hub.clear()
    assert folder.open("w.bin").read(0) == b""
    assert not hub.requests


def test_several_threads_read_at_once(remote, small):
    places = [(offset * 37 % 9000, offset * 13 % 900 + 100) for offset in range(60)]
    remote.read(1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: remote.read(place[1], place[0]), places))
    assert found == [CONTENT[start : start + count] for start, count in places]
    known = sum(max(0, min(100, start + count) - start) for start, count in places)
    assert remote.bytes_read == 100 + sum(count for _, count in places) - known


def test_a_file_on_the_hub_says_what_it_is(remote):
    assert remote.shown == f"org/name/{NAME}"
    assert (remote.nbytes, remote.path) == (10_000, None)
    assert remote.version == {"commit": opened().revision}
    remote.prefetch(0, 100)
    remote.check_unchanged()
    assert remote.bytes_read == 0


def answering(monkeypatch, status: int, start: int, stop: int) -> None:
    """The server answers requests for parts with another status, or with other bytes."""

    def answer(self, blob, headers):
        if self.command == "HEAD":
            return self.start(200, blob.size, headers)
        self.start(status, stop - start, headers)
        return self.write(CONTENT[start:stop])

    monkeypatch.setattr(Handler, "answer_content", answer)


def test_a_server_that_sends_no_parts(monkeypatch, remote):
    answering(monkeypatch, 200, 0, 10_000)
    with pytest.raises(CheckpointError, match="does not support range requests") as caught:
        remote.read(8)
    assert caught.value.path == f"org/name/{NAME}"


@pytest.mark.parametrize("status", [404, 403, 416])
def test_a_server_that_refuses_a_part(monkeypatch, remote, status):
    """The library fails in a context manager around our own frame, which does not make the error ours."""

    def answer(self, blob, headers):
        self.start(status, 0, {**headers, "X-Error-Code": "EntryNotFound"} if status == 404 else headers)

    monkeypatch.setattr(Handler, "answer_content", answer)
    with pytest.raises(CheckpointError) as caught:
        remote.read(8)
    assert caught.value.path == "org/name"


@pytest.mark.parametrize("length", [0, 99, 101, 10_000])
def test_a_server_that_sends_another_length(monkeypatch, remote, small, length):
    other = opened().open(NAME)
    other.read(8)
    answering(monkeypatch, 206, 0, length)
    readings = (
        lambda: remote.read(8),
        lambda: fetch(remote.select([(500, 600)])),
        lambda: other.read(100, 500),
    )
    for read in readings:
        with pytest.raises(CheckpointError, match="a different range than requested"):
            read()


# -- fetching --------------------------------------------------------------------------------------


def test_what_was_fetched_in_parts_is_read_here(hub, remote, small):
    downloads = remote.select([(3000, 3500), (500, 2600), (3500, 3600), (500, 2600), (600, 700)])
    assert sorted(each.nbytes for each in downloads) == [100, 100, 100, 500, 1000, 1000]
    told: list[int] = []
    fetch(downloads, told.append)
    assert sum(told) == 2800
    transferred = ranges(hub)
    assert sorted(transferred) == [
        (500, 1500),
        (600, 700),
        (1500, 2500),
        (2500, 2600),
        (3000, 3500),
        (3500, 3600),
    ]
    before = remote.bytes_read
    for start, stop in ((500, 2600), (500, 501), (2599, 2600), (1400, 1600), (3400, 3600), (3000, 3600)):
        assert remote.read(stop - start, start) == CONTENT[start:stop]
    assert ranges(hub) == transferred
    assert remote.bytes_read == before + 2100 + 1 + 1 + 200 + 200 + 600
    assert remote.path is None
    for start, stop in ((499, 600), (2500, 2601), (2700, 2800), (3599, 3601), (0, 100), (2500, 3100)):
        hub.requests.clear()
        assert remote.read(stop - start, start) == CONTENT[start:stop]
        assert ranges(hub) or stop <= 100


def test_parts_that_did_not_arrive_are_not_taken_for_zeros(hub, remote, small):
    hub.cut("org/name/*")
    with pytest.raises(CheckpointError, match="cut short"):
        fetch(remote.select([(8000, 8400)]))
    hub.clear()
    assert remote.read(100, 8000) == CONTENT[8000:8100]
    assert (8000, 8100) in ranges(hub)


def test_a_disk_that_takes_no_more_parts(remote, small):
    downloads = remote.select([(8000, 8400)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            fetch(downloads)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(caught.value)


def test_parts_are_given_up_when_the_file_is_closed(hub, remote, small):
    """And with them their temporary file: one that stays open would be warned of."""
    fetch(remote.select([(500, 600)]))
    remote.close()
    hub.clear()
    assert remote.read(100, 500) == CONTENT[500:600]
    assert (500, 600) in ranges(hub)
    remote.close()


def test_a_whole_file_is_read_from_the_cache(hub, remote, small):
    remote.read(8)
    (download,) = remote.select(None)
    assert download.nbytes == 10_000
    told: list[int] = []
    fetch([download], told.append)
    assert sum(told) == 10_000
    assert remote.path is not None
    assert remote.path.read_bytes() == CONTENT
    hub.clear()
    assert remote.read(10_000) == CONTENT
    assert not hub.requests
    assert remote.select(None) == remote.select([(0, 5)]) == []
    remote.path.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        remote.check_unchanged()


def test_nothing_is_fetched_of_a_file_of_which_nothing_is_wanted(hub, remote):
    assert remote.select([]) == []
    assert not hub.requests


@pytest.mark.parametrize("place", [0, 99, 100])
def test_a_download_that_begins_otherwise_than_its_head_did_is_refused(hub, remote, small, place):
    remote.read(8)
    repository = hub.repositories["org/name"]
    other = CONTENT[:place] + b"\xff" + CONTENT[place + 1 :]
    commit = repository.commits[repository.revisions["main"]]
    commit[NAME] = hub.blob(NAME, hub.store([other]))
    if place < 100:
        with pytest.raises(CheckpointError, match="the download differs from the file that the Hub listed"):
            fetch(remote.select(None))
    else:
        fetch(remote.select(None))


def test_a_download_of_another_size_than_the_listing_said_is_refused(hub, remote):
    repository = hub.repositories["org/name"]
    commit = repository.commits[repository.revisions["main"]]
    commit[NAME] = hub.blob(NAME, hub.store([CONTENT + b"more"]))
    with pytest.raises(CheckpointError, match="the download differs from the file that the Hub listed"):
        fetch(remote.select(None))


def test_a_file_in_the_cache_that_is_not_whole_is_refused(remote):
    fetch(remote.select(None))
    os.truncate(remote.path, 9_999)
    with pytest.raises(CheckpointError) as caught:
        opened().open(NAME)
    line = str(caught.value)
    assert line.startswith(f"org/name/{NAME}: the file in the Hub's cache is incomplete")
    assert "expected 10,000 bytes, found 9,999" in line
    assert "remove it" in line


def test_downloads_run_at_once_and_all_are_told(monkeypatch):
    together = threading.Barrier(transfer.AT_ONCE, timeout=20)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 12_345)

    def bring(advance):
        assert transfer.READ_BYTES == constants.DOWNLOAD_CHUNK_SIZE
        together.wait()
        advance(5)

    told: list[int] = []
    downloads = [Download(5, bring)] * (2 * transfer.AT_ONCE)
    fetch(downloads, told.append)
    assert (downloads, told) == ([], [5] * 8)
    assert constants.DOWNLOAD_CHUNK_SIZE == 12_345
    fetch(downloads)


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("error", [CheckpointError("no"), KeyboardInterrupt(), OSError("disk")])
def test_an_error_stops_the_other_downloads(monkeypatch, error, tells):
    """Those under way when they next tell of bytes, and others before they begin."""
    has_failed, begun, ended = threading.Event(), [], []
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 12_345)

    def fail(advance):
        has_failed.set()
        raise error

    def bring(advance):
        assert has_failed.wait(20)
        begun.append(1)
        for _ in range(20):
            threading.Event().wait(0.005)
            if tells:
                advance(1)
        ended.append(1)

    downloads = [Download(1, fail), *[Download(1, bring)] * 30]
    with pytest.raises(type(error)) as caught:
        fetch(downloads)
    assert caught.value is error
    assert len(begun) < transfer.AT_ONCE
    assert len(ended) == (0 if tells else len(begun))
    assert len(downloads) == 31
    assert constants.DOWNLOAD_CHUNK_SIZE == 12_345
    assert not [thread for thread in threading.enumerate() if thread.name == "download"]


# -- checkpoints -----------------------------------------------------------------------------------


def halves(difference: int = 0) -> bytes:
    """A file of which tensor `a` is half, but for so many bytes, and `b` and `c` are little."""
    header_bytes = (
        len(save({"a": torch.zeros(10_000), "b": torch.zeros(4000), "c": torch.zeros(5000)})) - 76_000
    )
    rest = 10_000 - header_bytes // 4
    tensors = {"a": torch.ones(10_000 + difference), "b": torch.ones(4000), "c": torch.ones(rest - 4000)}
    content = save(tensors)
    assert len(content) == 80_000 + 4 * difference
    return content


@pytest.mark.parametrize(("difference", "is_whole"), [(0, True), (-1, False)])
def test_of_a_file_half_of_which_is_needed_all_is_fetched(hub, small, difference, is_whole):
    content = halves(difference)
    hub.add("org/name", {NAME: content})
    with open_checkpoint("org/name") as checkpoint:
        downloads = checkpoint.select(["a"])
        assert sum(each.nbytes for each in downloads) == (80_000 if is_whole else 39_996)
        assert [checkpoint.is_at_hand(name) for name in "abcd"] == [True, is_whole, is_whole, False]
        fetch(downloads)
        hub.clear()
        buffer = bytearray(checkpoint.tensors["a"].nbytes)
        checkpoint.reader("a").read_into(memoryview(buffer), 0)
        assert bytes(buffer) == b"\0\0\x80\x3f" * (10_000 + difference)
        assert not hub.requests
        assert (checkpoint.files.shards[0].file.path is not None) == is_whole


def test_of_a_state_dict_tensors_that_do_not_lie_in_order_are_fetched_with_the_file(hub, tmp_path):
    saved = {"a": torch.ones(100), "b": torch.ones(10_000), "c": torch.ones(4, 6).t()}
    torch.save(saved, tmp_path / "a.pt")
    hub.add("org/name", {"a.pt": tmp_path / "a.pt"})
    size = (tmp_path / "a.pt").stat().st_size
    with open_checkpoint("org/name") as checkpoint:
        assert checkpoint.select([]) == []
        assert not checkpoint.is_at_hand("b")
    with open_checkpoint("org/name") as checkpoint:
        assert [each.nbytes for each in checkpoint.select(["a"])] == [400]
        assert not checkpoint.is_at_hand("b")
    with open_checkpoint("org/name") as checkpoint:
        assert [each.nbytes for each in checkpoint.select(["c"])] == [size]
        assert checkpoint.is_at_hand("b")


def sharded() -> dict[str, bytes]:
    files = {
        f"model-0000{n}-of-00002.safetensors": save({f"{n}.a": torch.ones(300), f"{n}.b": torch.zeros(900)})
        for n in (1, 2)
    }
    weight_map = {f"{n}.{name}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2) for name in "ab"}
    return {**files, "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def test_of_shards_those_that_are_needed_are_fetched(hub):
    hub.add("org/name", sharded())
    with open_checkpoint("org/name") as checkpoint:
        downloads = checkpoint.select(["1.b", "2.a"])
        size = len(sharded()["model-00001-of-00002.safetensors"])
        assert [each.nbytes for each in downloads] == [size, checkpoint.tensors["2.a"].nbytes]
        assert [name for name in checkpoint.tensors if not checkpoint.is_at_hand(name)] == ["2.b"]
    with open_checkpoint("org/name") as checkpoint:
        assert [each.nbytes for each in checkpoint.select(None)] == [size, size]
        assert all(map(checkpoint.is_at_hand, checkpoint.tensors))
    with open_checkpoint("org/name") as checkpoint:
        assert checkpoint.select(["2.b"]) != []
        assert [name for name in checkpoint.tensors if not checkpoint.is_at_hand(name)] == ["1.a", "1.b"]


def test_names_under_which_tensors_are_read_are_those_that_are_at_hand(hub):
    hub.add("org/name", {NAME: halves(-1)})
    with open_checkpoint("org/name") as checkpoint:
        other = renamed(checkpoint, {"A": "a", "B": "b", "c": "c"}, ("so",))
        other.select(["A"])
        assert [other.is_at_hand(name) for name in ("A", "B", "c", "a")] == [True, False, False, False]


def test_where_other_programs_find_it(hub, tmp_path, monkeypatch):
    hub.add("org/name", {NAME: save({"a": torch.ones(3)}), "config.json": b"{}"})
    with open_checkpoint("org/name") as checkpoint:
        fetch(checkpoint.select(None))
        assert Path(checkpoint.files.place.path) == checkpoint.files.place.folder.root
        assert (Path(checkpoint.files.place.path) / NAME).is_file()
    with open_checkpoint(f"hf://org/name/{NAME}") as checkpoint:
        assert load_file(checkpoint.files.place.path).keys() == {"a"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.safetensors").write_bytes(save({"a": torch.ones(3)}))
    with open_checkpoint("here.safetensors") as checkpoint:
        assert checkpoint.files.place.path == "here.safetensors"


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(("wanted", "is_found"), [("little", False), ("large", True)])
def test_nan_is_found_in_what_is_fetched_of_the_base(hub, tmp_path, wanted, is_found):
    """What is left on the Hub is not fetched to be checked."""
    base = {"little": torch.randn(8, 8), "large": torch.randn(64, 64), "other": torch.full((9, 9), torch.nan)}
    finetuned = {name: torch.randn(each.shape) for name, each in base.items()}
    hub.add("org/base", {NAME: save(base)})
    hub.add("org/name", {NAME: save(finetuned)})
    hub.clear()
    if is_found:
        with pytest.raises(NonfiniteError, match=r"org/base: tensor 'other'"):
            monosoup_cli.edit("org/base", "org/name", tmp_path / "out", include=[wanted])
    else:
        monosoup_cli.edit("org/base", "org/name", tmp_path / "out", include=[wanted])
        assert (
            hub.bytes_sent("org/base/*") == len(save(base)) + 8 * 8 * 4
        )  # the head is all of so small a file


def test_only_files_of_the_output_are_fetched(hub, tmp_path):
    weights = {"a": torch.randn(8, 8), "b": torch.randn(4)}
    for name in ("base", "name", "second"):
        hub.add(
            f"org/{name}",
            {
                NAME: save({n: torch.randn(t.shape) for n, t in weights.items()}),
                "config.json": b"{}",
                "tokenizer.json": b"[]",
                "README.md": b"---\nlicense: mit\n---\n",
                "original/x.txt": b"x",
                "model.onnx": b"x",
            },
        )
    hub.clear()
    with edit.prepare("org/base", ["org/name", "org/second"], tmp_path / "out") as planned:
        ready = make_ready(planned)
        fetch(ready.downloads)
        before = len(hub.requests)
        execute(ready)
        assert not [r for r in hub.requests[before:] if r.route == "file"]
    fetched = {r.subject for r in hub.requests if r.route == "file" and r.method == "GET"}
    weights_of = {f"org/{name}/{NAME}" for name in ("base", "name", "second")}
    configs = {f"org/{name}/config.json" for name in ("base", "name", "second")}
    assert fetched == weights_of | configs | {"org/name/tokenizer.json", "org/name/README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    commits = [hub.repositories[f"org/{name}"].revisions["main"] for name in ("base", "name", "second")]
    assert "monosoup edit org/base@{} org/name@{} org/second@{} -o out".format(*commits) in card
    assert "license: mit" in card
    again = tmp_path / "again.safetensors"
    hub.clear()
    monosoup_cli.edit("org/base", "org/name", again)
    assert not [r for r in hub.requests if r.route == "file"]


def test_bytes_that_come_in_chunks_of_their_own_storage_count_once():
    """The library has two bars for such a file: for what arrives, and for what is put together of it."""
    from types import SimpleNamespace

    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    told: list[int] = []
    reporter = XetDownloadProgressReporter(
        reconstruction_desc="", total=100, log_level=30, tqdm_class=transfer.new_bar(told.append)
    )
    facts = {
        "total_bytes": 100,
        "total_bytes_completion_rate": 1.0,
        "total_transfer_bytes_completion_rate": 1.0,
    }
    with reporter:
        for arrived, done in ((40, 10), (90, 60), (90, 100)):
            group = SimpleNamespace(
                total_bytes_completed=done, total_transfer_bytes_completed=arrived, **facts
            )
            reporter.update_progress(group)
    assert told == [10, 50, 40]
