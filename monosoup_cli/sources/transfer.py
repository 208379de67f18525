"""Download files and parts of files from the Hub, several at once."""

from __future__ import annotations

import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import Advance, Download
from monosoup_cli.sources.hub_errors import hub_errors, quiet_hub

__all__ = ["Parts", "RemoteFolder", "fetch", "new_bar"]

ATTEMPTS = 3
"""How often a range is requested if the connection drops."""

READ_BYTES = 1 << 18
"""How many bytes of a download are held in memory at once."""

AT_ONCE = 4
"""How many downloads run at once."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a repository at one commit, as the Hub and its cache have it.

    Args:
        source: What the user typed; errors name it.
        repository: The id on the Hub.
        revision: The commit.
        prefix: The folder in the repository: "", or "unet/".
    """

    source: str
    repository: str
    revision: str
    prefix: str = ""

    def find_cached(self, name: str) -> str | None:
        """Return the path of a file in the cache; None if it has not been downloaded."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repository, self.prefix + name, revision=self.revision)
        return path if isinstance(path, str) else None

    def download(self, name: str, advance: Advance) -> str:
        """Download a file into the cache, and return its path there."""
        from huggingface_hub import hf_hub_download

        with hub_errors(self.source):
            return hf_hub_download(
                self.repository,
                self.prefix + name,
                revision=self.revision,
                tqdm_class=new_bar(advance),
                library_name="monosoup",
            )

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read the bytes start:stop of a file. Requests them again if the connection drops."""
        for attempt in range(ATTEMPTS):
            with hub_errors(self.source):
                part, failure = self._read_range(name, start, stop)
                if failure is not None and attempt == ATTEMPTS - 1:
                    raise failure
            if failure is None:
                break
        if len(part) != stop - start:
            raise CheckpointError("the server sent a different range than requested", path=self._shown(name))
        return part

    def _read_range(self, name: str, start: int, stop: int) -> tuple[bytes, Exception | None]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.repository, self.prefix + name, revision=self.revision)
        headers = build_hf_headers(library_name="monosoup")
        headers |= {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
        pieces: list[bytes] = []
        with http_stream_backoff("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise CheckpointError("the server does not support range requests", path=self._shown(name))
            try:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    if sum(map(len, pieces)) > stop - start:
                        break
            except Exception as failure:  # do not raise here: the library would handle it as its own
                return b"", failure
        return b"".join(pieces), None

    def _shown(self, name: str) -> str:
        return f"{self.source}/{name}".rstrip("/")


class Parts:
    """Parts of a remote file, in a sparse temporary file, each at its own offset."""

    def __init__(self, nbytes: int, shown: str) -> None:
        self._shown, self._lock = shown, threading.Lock()
        self._held: list[tuple[int, int]] = []
        with self._system_errors():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            self.descriptor = self._file.fileno()
            try:
                os.ftruncate(self.descriptor, nbytes)
            except OSError:
                self._file.close()
                raise

    def add(self, part: bytes, start: int) -> None:
        """Store the bytes of the file from `start` on."""
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
                f"cannot keep parts of it in the temporary folder: {error.strerror}",
                path=self._shown,
                hint="free some space there, or set TMPDIR to another folder",
            ) from error

    def holds(self, start: int, stop: int) -> bool:
        held = self._held
        number = bisect_right(held, start, key=lambda part: part[0]) - 1
        return number >= 0 and held[number][0] <= start and stop <= held[number][1]

    def close(self) -> None:
        self._file.close()


def fetch(downloads: list[Download], advance: Advance | None = None) -> None:
    """Run downloads, several at once, and empty the list.

    After an error or an interrupt, the running downloads stop.

    Args:
        downloads: The downloads.
        advance: Called with the number of bytes that have arrived, from several threads.
    """
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
                error = ended.get()  # a queue that signals can interrupt safely
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
    """Make the library download in small pieces. Its own are 10 MB, held several times over for each file."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = READ_BYTES
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


class _Dropped(Exception):
    """Stops a download that is no longer needed."""


def new_bar(advance: Advance) -> type[Any]:
    """Make a class that the library uses as its progress bar, which only passes on the number of bytes."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

        # with these two the library makes one bar, not one for the transfer and one for the reconstruction
        def update_transfer(self, n: float) -> None:
            pass

        def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
            pass

    return Bar
