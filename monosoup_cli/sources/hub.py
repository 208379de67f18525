"""Repositories on the Hub.

The commit is looked up once, and everything is read from that commit. Headers are read by range requests, so
a run can be refused before anything is downloaded. The files that it needs are then downloaded into the Hub's
cache; if it needs little of a file, only those parts are downloaded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import Advance, CheckpointFile, Download, InputFile, read_into
from monosoup_cli.formats.foreign import OTHER_SUFFIXES
from monosoup_cli.formats.table import CHUNKS, WEIGHTS
from monosoup_cli.sources.folders import Folder, LocalFolder, is_plain_name
from monosoup_cli.sources.hub_errors import hub_errors
from monosoup_cli.sources.hub_ids import SCHEME, HubId, to_fill_the_cache
from monosoup_cli.sources.transfer import Parts, RemoteFolder

__all__ = ["HubFolder", "RemoteFile", "open_repository", "open_typed", "sha256_on_hub"]

HEAD_BYTES = 1 << 16
"""The size of the first request for a file. Most headers fit into it."""

PART_BYTES = 4 << 20
"""The largest range request."""


def open_repository(source: str, where: HubId) -> Folder:
    """Open a repository, or a folder in it, at the current commit of its revision.

    In the library's offline mode these are the files in its cache.

    Args:
        source: What the user typed; errors name it.
        where: The same, parsed.

    Raises:
        CheckpointError: The repository or the folder does not exist, or cannot be read.
    """
    from huggingface_hub import HfApi, RepoFile, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    api, inner = HfApi(library_name="monosoup"), where.inner.split("/") if where.inner else []
    if not all(map(is_plain_name, inner)):
        raise CheckpointError("not a folder of a repository", path=source)
    with hub_errors(source):
        try:
            revision = api.resolve_revision(where.repository, revision=where.revision)
        except Exception as error:
            if HF_HUB_OFFLINE and type(error).__name__ == "RevisionResolutionError":
                _refuse_unnamed_snapshot(source, where)
            raise
        if HF_HUB_OFFLINE:  # every file is ignored, so none can be missing
            snapshot = snapshot_download(
                where.repository, revision=revision, local_files_only=True, ignore_patterns=["*"]
            )
            place = Path(snapshot, *inner)
            if not place.is_dir():
                raise CheckpointError(
                    "offline, and there is no such folder in the cache",
                    path=source,
                    hint=to_fill_the_cache(source),
                )
            return LocalFolder(place, source, where.repository, revision.resolved)
        tree = api.list_repo_tree(where.repository, revision=revision.resolved, recursive=True)
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        sizes = {file.path: file.size for file in files}
        sha256s = {file.path: file.lfs.sha256 for file in files if file.lfs is not None}
    for name in sizes:
        if name.startswith("/") or {"", ".", ".."}.intersection(name.replace("\\", "/").split("/")):
            raise CheckpointError(
                "the repository lists a file outside its folder", path=source, found=repr(name)[:200]
            )
    # ignore names that not every system allows
    sizes = {name: size for name, size in sizes.items() if all(map(is_plain_name, name.split("/")))}
    prefix = f"{where.inner}/" if inner else ""
    sizes = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
    if inner and not sizes:
        raise CheckpointError("no such folder in the repository", path=source)
    sha256s = {
        name.removeprefix(prefix): sha256 for name, sha256 in sha256s.items() if name.startswith(prefix)
    }
    return HubFolder(source, where.repository, revision.resolved, sizes, sha256s, prefix)


def open_typed(source: str, where: HubId) -> Folder:
    """`open_repository` for what a user typed, and may have meant as a path."""
    try:
        return open_repository(source, where)
    except CheckpointError as error:
        if not source.startswith(SCHEME):
            error.problem = f"no such file or folder; as an id on the Hub: {error.problem}"
        raise


def sha256_on_hub(folder: Folder, name: str) -> str | None:
    """The SHA-256 under which the Hub stores a large file; None for other files and folders on the disk."""
    return folder._sha256s.get(name) if isinstance(folder, HubFolder) else None


def _refuse_unnamed_snapshot(source: str, where: HubId) -> None:
    """Raise CheckpointError if the Hub's cache has the repository, but not under this revision."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE, repo_folder_name(repo_id=where.repository, repo_type="model"), "snapshots")
    commits = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if commits:
        revision = where.revision or "main"
        raise CheckpointError(
            f"offline, and the cache does not say which commit {revision!r} is",
            path=source,
            hint=f"name a commit that is in the cache: {where.repository}@{commits[-1]}",
        )


class HubFolder:
    """A repository at one commit, or a folder in it; a `Folder`.

    Args:
        source: What the user typed; errors name it.
        repository: The id on the Hub.
        revision: The commit.
        sizes: The size of every file in bytes, by name.
        sha256s: The SHA-256 of every large file.
        prefix: The folder in the repository: "", or "unet/".
    """

    def __init__(
        self,
        source: str,
        repository: str,
        revision: str,
        sizes: dict[str, int],
        sha256s: dict[str, str],
        prefix: str = "",
    ) -> None:
        self.source, self.repository, self.revision = source, repository, revision
        self._sizes, self._sha256s = sizes, sha256s
        self._remote = RemoteFolder(source, repository, revision, prefix)
        self._children: dict[str, set[str]] = {"": set()}
        for name in sizes:
            for path in (PurePosixPath(name), *PurePosixPath(name).parents):
                if path.name:
                    inner = "" if path.parent.name == "" else str(path.parent)
                    self._children.setdefault(inner, set()).add(path.name)
        self._downloaded: LocalFolder | None = None

    @property
    def root(self) -> Path | None:
        """The path in the Hub's cache; None until something is downloaded."""
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
        nbytes, cached = self.nbytes(name), self._cached(name)
        if name.endswith((*WEIGHTS, CHUNKS, *OTHER_SUFFIXES)):
            return RemoteFile(self, self._remote, name, nbytes, cached)
        # other files are small: download them
        return InputFile(cached or self.path(name), self.shown(name))

    def _cached(self, name: str) -> Path | None:
        cached = self._remote.find_cached(name)
        return None if cached is None else self._place(name, cached)

    def path(self, name: str) -> Path:
        return self.download(name, lambda nbytes: None)

    def select(self, names: Iterable[str]) -> list[Download]:
        missing = [name for name in names if self._cached(name) is None]
        return [Download(self.nbytes(name), partial(self._fetch, name)) for name in missing]

    def _fetch(self, name: str, advance: Advance) -> None:
        self.download(name, advance)

    def download(self, name: str, advance: Advance) -> Path:
        """Download a file into the cache, and return its path there."""
        return self._place(name, self._remote.download(name, advance))

    def _place(self, name: str, found: str) -> Path:
        if self._downloaded is None:
            root = Path(found).parents[name.count("/")]
            self._downloaded = LocalFolder(root, self.source, self.repository, self.revision)
        return self._downloaded.path(name)

    def shown(self, name: str) -> str:
        return f"{self.source}/{name}".rstrip("/")


class RemoteFile:
    """A file on the Hub; a `CheckpointFile`. Read by range requests until it is downloaded."""

    is_remote = True

    def __init__(
        self, folder: HubFolder, remote: RemoteFolder, name: str, nbytes: int, cached: Path | None
    ) -> None:
        self._folder, self._remote, self._name = folder, remote, name
        self.shown = folder.shown(name)
        self._nbytes, self._arrived = nbytes, 0
        self._counting = threading.Lock()
        self._local = None if cached is None else InputFile(cached, self.shown)
        self._head = b""
        self._parts: Parts | None = None
        if self._local is not None and self._local.nbytes != nbytes:
            raise CheckpointError(
                "the file in the Hub's cache is incomplete",
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
        return {"commit": self._folder.revision}

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
            buffer[:] = self._read_remote(offset, offset + len(buffer))

    def _read_remote(self, start: int, stop: int) -> bytes:
        if not self._head and self._nbytes:
            self._head = self._remote.read_range(self._name, 0, min(HEAD_BYTES, self._nbytes))
            self._count(len(self._head))
        found = [self._head[start:stop]]
        for first in range(start + len(found[0]), stop, PART_BYTES):
            found.append(self._remote.read_range(self._name, first, min(first + PART_BYTES, stop)))
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
        self._parts = self._parts or Parts(self.nbytes, self.shown)
        wanted = [
            (first, min(first + PART_BYTES, stop))
            for start, stop in sorted(set(parts))
            for first in range(start, stop, PART_BYTES)
        ]
        return [Download(stop - start, partial(self._fetch_part, start, stop)) for start, stop in wanted]

    def _fetch(self, advance: Advance) -> None:
        self._local = InputFile(self._folder.download(self._name, advance), self.shown)
        if self._local.nbytes != self._nbytes or self._local.read(len(self._head)) != self._head:
            raise CheckpointError("the download differs from the file that the Hub listed", path=self.shown)

    def _fetch_part(self, start: int, stop: int, advance: Advance) -> None:
        assert self._parts is not None
        part = self._remote.read_range(self._name, start, stop)
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
