"""Repositories on the Hub: their files are read from afar until they are downloaded.

A commit is looked up once, and everything is read from that commit. Headers are read by range
requests, so that a run can be refused before anything is downloaded; what it then needs is
downloaded into the Hub's cache whole, or, of a file of which it needs little, in parts.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import Advance, CheckpointFile, Download, InputFile, read_into
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.sources.folders import Folder, LocalFolder, is_plain_name
from monosoup_cli.sources.hub_errors import hub_errors, quiet_hub

__all__ = ["HubFolder", "HubId", "RemoteFile", "fetch", "open_repository"]

SCHEME = "hf://"
OTHER_KINDS = ("datasets/", "spaces/", "kernels/")
ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
URI_WITH_REVISION = re.compile(r"([\w./-]+)@(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.+))?")
HEAD_BYTES = 1 << 16
"""What is asked for first: it holds most headers."""

PART_BYTES = 4 << 20
"""Of one range request."""

ATTEMPTS = 3
"""To read a part, where the connection drops meanwhile."""

READ_BYTES = 1 << 18
"""Of a download, held at once."""

AT_ONCE = 4
"""Downloads."""


@dataclass(frozen=True)
class HubId:
    """`org/name`, `org/name@revision`, `hf://org/name@revision/folder`: what they say."""

    repository: str
    revision: str | None = None
    inner: str = ""

    @classmethod
    def parse(cls, source: str) -> HubId | None:
        """None for what is no id of a model on the Hub."""
        rest = source.removeprefix(SCHEME).rstrip("/")
        if not source.startswith(SCHEME):
            found = ID.fullmatch(source)
            where = None if found is None else cls(found[1], found[2])
        elif found := URI_WITH_REVISION.fullmatch(rest):
            where = cls(found[1], found[2], found[3] or "")
        else:
            organisation, _, name = rest.partition("/")
            name, _, inner = name.partition("/")
            where = cls(f"{organisation}/{name}".rstrip("/"), None, inner)
        if where is None or where.repository.startswith(OTHER_KINDS):
            return None
        parts = [*where.repository.split("/"), *(where.revision or "main").split("/")]
        return None if {"", ".", ".."}.intersection(parts) else where


def open_repository(source: str, where: HubId) -> Folder:
    """The files of a repository, or of a folder in it, at the commit that its revision means now.

    In the library's offline mode these are the files in its cache. Raises CheckpointError.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    api, inner = HfApi(library_name="monosoup"), where.inner.split("/") if where.inner else []
    if not all(map(is_plain_name, inner)):
        raise CheckpointError("no folder of a repository", path=source)
    with hub_errors(source):
        revision = api.resolve_revision(where.repository, revision=where.revision)
        if HF_HUB_OFFLINE:  # nothing is asked for, so nothing can be missing
            snapshot = snapshot_download(
                where.repository, revision=revision, local_files_only=True, ignore_patterns=["*"]
            )
            place = Path(snapshot, *inner)
            if not place.is_dir():
                raise CheckpointError(
                    "offline, and there is no such folder in the cache",
                    path=source,
                    hint="run it once without HF_HUB_OFFLINE",
                )
            return LocalFolder(place, source, where.repository, revision.resolved)
        tree = api.list_repo_tree(where.repository, revision=revision.resolved, recursive=True)
        sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size")}
    for name in sizes:
        if name.startswith("/") or {"", ".", ".."}.intersection(name.replace("\\", "/").split("/")):
            raise CheckpointError("lists a file that would lie outside", path=source, found=repr(name)[:200])
    # what is no name of a file on every system is not of any use here, and left alone
    sizes = {name: size for name, size in sizes.items() if all(map(is_plain_name, name.split("/")))}
    prefix = f"{where.inner}/" if inner else ""
    sizes = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
    if inner and not sizes:
        raise CheckpointError("no such folder in the repository", path=source)
    return HubFolder(source, where.repository, revision.resolved, sizes, prefix)


class HubFolder:
    """The files of a repository at one commit, or those in the folder `prefix` of it ("" or "unet/");
    `sizes` in bytes, by their names there."""

    def __init__(
        self, source: str, repository: str, revision: str, sizes: dict[str, int], prefix: str = ""
    ) -> None:
        self.source, self.repository, self.revision = source, repository, revision
        self._sizes, self._prefix = sizes, prefix
        self._children: dict[str, set[str]] = {"": set()}
        for name in sizes:
            for path in (PurePosixPath(name), *PurePosixPath(name).parents):
                if path.name:
                    inner = "" if path.parent.name == "" else str(path.parent)
                    self._children.setdefault(inner, set()).add(path.name)
        self._downloaded: LocalFolder | None = None

    @property
    def root(self) -> Path | None:
        return None if self._downloaded is None else self._downloaded.root

    def names(self, inner: str = "") -> list[str]:
        return sorted(self._children.get(inner, ()))

    def is_folder(self, name: str) -> bool:
        return name in self._children

    def nbytes(self, name: str) -> int:
        if name not in self._sizes:
            raise CheckpointError("no such file", path=self.shown(name))
        return self._sizes[name]

    def open(self, name: str) -> CheckpointFile:
        nbytes, cached = self.nbytes(name), self.cached(name)
        if name.endswith(WEIGHTS):
            return RemoteFile(self, name, nbytes, cached)
        # others are small, and downloaded
        return InputFile(cached or self.path(name), self.shown(name))

    def cached(self, name: str) -> Path | None:
        """Where the file lies if it has been downloaded before."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self._prefix + name, revision=self.revision)
        return self._place(name, found) if isinstance(found, str) else None

    def path(self, name: str) -> Path:
        return self.download(name, lambda nbytes: None)

    def select(self, names: Iterable[str]) -> list[Download]:
        missing = [name for name in names if self.cached(name) is None]
        return [Download(self.nbytes(name), partial(self._fetch, name)) for name in missing]

    def _fetch(self, name: str, advance: Advance) -> None:
        self.download(name, advance)

    def download(self, name: str, advance: Advance) -> Path:
        """Have the file in the cache; returns where it lies."""
        from huggingface_hub import hf_hub_download

        with hub_errors(self.source):
            found = hf_hub_download(
                self.repository,
                self._prefix + name,
                revision=self.revision,
                tqdm_class=_bar(advance),
                library_name="monosoup",
            )
        return self._place(name, found)

    def _place(self, name: str, found: str) -> Path:
        if self._downloaded is None:
            root = Path(found).parents[name.count("/")]
            self._downloaded = LocalFolder(root, self.source, self.repository, self.revision)
        return self._downloaded.path(name)

    def shown(self, name: str) -> str:
        return f"{self.source}/{name}".rstrip("/")

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes start:stop of a file; where the connection drops, they are asked for again."""
        for attempt in range(ATTEMPTS):
            with hub_errors(self.source):
                part, failure = self._read_range(name, start, stop)
                if failure is not None and attempt == ATTEMPTS - 1:
                    raise failure
            if failure is None:
                break
        if len(part) != stop - start:
            raise CheckpointError("the server sent another part than was asked for", path=self.shown(name))
        return part

    def _read_range(self, name: str, start: int, stop: int) -> tuple[bytes, Exception | None]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.repository, self._prefix + name, revision=self.revision)
        headers = build_hf_headers(library_name="monosoup")
        headers |= {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
        pieces: list[bytes] = []
        with http_stream_backoff("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise CheckpointError("the server does not send parts of files", path=self.shown(name))
            try:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if sum(map(len, pieces)) > stop - start:
                        break
            except Exception as failure:  # in here, the library would take it for one of its own
                return b"", failure
        return b"".join(pieces), None


class RemoteFile:
    """A file on the Hub: read by range requests, until `select` and `fetch` have brought it here."""

    is_remote = True

    def __init__(self, folder: HubFolder, name: str, nbytes: int, cached: Path | None) -> None:
        self.folder, self.name = folder, name
        self.shown = folder.shown(name)
        self._nbytes, self._arrived = nbytes, 0
        self._counting = threading.Lock()
        self._local = None if cached is None else InputFile(cached, self.shown)
        self._head = b""
        self._parts: _Parts | None = None
        if self._local is not None and self._local.nbytes != nbytes:
            raise CheckpointError(
                "the file in the Hub's cache is not whole",
                path=self.shown,
                expected=f"{nbytes:,} bytes",
                found=f"{self._local.nbytes:,}",
                hint="remove it from the cache and run again",
            )

    @property
    def path(self) -> Path | None:
        return None if self._local is None else self._local.path

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def version(self) -> dict[str, Any]:
        return {"commit": self.folder.revision}

    @property
    def bytes_read(self) -> int:
        return self._arrived + (0 if self._local is None else self._local.bytes_read)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if self._local is not None:
            self._local.read_into(buffer, offset)
        elif self._parts is not None and self._parts.holds(offset, offset + len(buffer)):
            read_into(self._parts.descriptor, buffer, offset)
            self._count(len(buffer))
        else:
            buffer[:] = self._from_afar(offset, offset + len(buffer))

    def _from_afar(self, start: int, stop: int) -> bytes:
        if not self._head and self._nbytes:
            self._head = self.folder.read_range(self.name, 0, min(HEAD_BYTES, self._nbytes))
            self._count(len(self._head))
        found = [self._head[start:stop]]
        for first in range(start + len(found[0]), stop, PART_BYTES):
            found.append(self.folder.read_range(self.name, first, min(first + PART_BYTES, stop)))
            self._count(len(found[-1]))
        return b"".join(found)

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self._arrived += nbytes

    def read(self, nbytes: int, offset: int = 0) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def prefetch(self, offset: int, nbytes: int) -> None:
        if self._local is not None:
            self._local.prefetch(offset, nbytes)

    def select(self, parts: Sequence[tuple[int, int]] | None) -> list[Download]:
        if self._local is not None or parts == []:
            return []
        if parts is None:
            return [Download(self.nbytes, self._fetch)]
        self._parts = self._parts or _Parts(self.nbytes, self.shown)
        wanted = [
            (first, min(first + PART_BYTES, stop))
            for start, stop in sorted(set(parts))
            for first in range(start, stop, PART_BYTES)
        ]
        return [Download(stop - start, partial(self._fetch_part, start, stop)) for start, stop in wanted]

    def _fetch(self, advance: Advance) -> None:
        self._local = InputFile(self.folder.download(self.name, advance), self.shown)
        if self._local.nbytes != self._nbytes or self._local.read(len(self._head)) != self._head:
            raise CheckpointError("the download is not the file that was announced", path=self.shown)

    def _fetch_part(self, start: int, stop: int, advance: Advance) -> None:
        assert self._parts is not None
        part = self.folder.read_range(self.name, start, stop)
        self._parts.add(part, start)
        advance(len(part))

    def check_unchanged(self) -> None:
        if self._local is not None:
            self._local.check_unchanged()

    def close(self) -> None:
        if self._local is not None:
            self._local.close()
        if self._parts is not None:
            self._parts.close()
            self._parts = None


class _Parts:
    """Parts of a file that is far away, in a temporary file with holes, each at its own place."""

    def __init__(self, nbytes: int, shown: str) -> None:
        self._shown, self._lock = shown, threading.Lock()
        self._held: list[tuple[int, int]] = []
        with self._system_errors():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            self.descriptor = self._file.fileno()
            os.ftruncate(self.descriptor, nbytes)

    def add(self, part: bytes, start: int) -> None:
        """Keep the bytes from `start` on."""
        offset, left = start, part
        with self._system_errors():
            while left:
                count = os.pwrite(self.descriptor, left, offset)
                left, offset = left[count:], offset + count
        with self._lock:
            merged: list[tuple[int, int]] = []
            for first, last in sorted([*self._held, (start, start + len(part))]):
                if merged and first <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
                else:
                    merged.append((first, last))
            self._held = merged

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"no place for parts of it in the temporary folder: {error.strerror}",
                path=self._shown,
                hint="make room there, or name another with TMPDIR",
            ) from None

    def holds(self, start: int, stop: int) -> bool:
        held = self._held
        number = bisect_right(held, start, key=lambda part: part[0]) - 1
        return number >= 0 and held[number][0] <= start and stop <= held[number][1]

    def close(self) -> None:
        self._file.close()


def fetch(downloads: list[Download], advance: Advance | None = None) -> None:
    """Bring all of it, several at once, and empty the list. After an error or an interrupt what is under way
    is dropped."""
    if not downloads:
        return
    stop, lock, waiting = threading.Event(), threading.Lock(), iter(downloads)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def tell(nbytes: int) -> None:
        if stop.is_set():
            raise _Dropped
        if advance is not None:
            advance(nbytes)

    def drain() -> None:
        try:
            while not stop.is_set():
                with lock:
                    next_one = next(waiting, None)
                if next_one is None:
                    break
                next_one.run(tell)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    threads = [
        threading.Thread(target=drain, name="download", daemon=True)
        for _ in range(min(AT_ONCE, len(downloads)))
    ]
    try:
        with quiet_hub(), _small_pieces():
            for thread in threads:
                thread.start()
            for _ in threads:
                error = ended.get()  # a queue that is proof against signals
                if error is not None:
                    raise error
    except BaseException:
        stop.set()
        for thread in threads:
            with suppress(RuntimeError):
                thread.join(timeout=5)
        raise
    downloads.clear()


@contextmanager
def _small_pieces() -> Iterator[None]:
    """The library holds pieces of 10 MB, each several times over, for every file that it downloads."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = READ_BYTES
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


class _Dropped(Exception):
    """The download in hand is not wanted any more."""


def _bar(advance: Advance) -> type[Any]:
    """What the library takes for a progress bar: it only tells how many bytes came."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

        # with these two there is one bar, not one for what arrives and one for what is put together of it
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
            pass

    return Bar
