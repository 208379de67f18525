"""The SHA-256 of files that are being written: each is read behind its tensors as they are finished."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from monosoup_cli.outputs.hashes import has_hashes, with_true_hashes
from monosoup_cli.outputs.layout import OutputFile

__all__ = ["Digests", "Read"]

Read: TypeAlias = Callable[[str, OutputFile, int, int], Iterator[memoryview]]
"""Reads the bytes start:stop of a file's data in a folder, chunk by chunk."""


class Digests:
    """Computes the SHA-256 of every file in every folder, in threads of its own.

    Args:
        folders: The folders.
        whole_of: The name under which a tensor is finished, where that is not its own.
        read: Reads what is written.
        put_header: Writes the header of a file in a folder anew, with the hashes of its tensors.
        is_finished: Whether a tensor is.
    """

    def __init__(
        self,
        folders: Sequence[str],
        whole_of: Mapping[str, str],
        read: Read,
        put_header: Callable[[str, OutputFile, bytes], None],
        is_finished: Callable[[str], bool],
    ) -> None:
        self._folders, self._whole_of = folders, whole_of
        self._read, self._put_header, self._is_finished = read, put_header, is_finished
        self._news = threading.Condition()
        self._is_left = False
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="sha256")
        self._found: list[Future[list[str]]] = []

    def start(self, file: OutputFile, known: Sequence[str | None]) -> None:
        """Begin with a file that is there, whose SHA-256 in some folders may be known."""
        found: Future[list[str]] = Future()
        if None in known:
            found = self._pool.submit(self._digest, file)
        else:
            found.set_result([one for one in known if one is not None])
        self._found.append(found)

    def go_on(self) -> None:
        """Look again which tensors are finished."""
        with self._news:
            self._news.notify_all()

    def results(self) -> list[list[str]]:
        """For each file, its SHA-256 in every folder, once all tensors are finished."""
        return [future.result() for future in self._found]

    def stop(self) -> None:
        """End early."""
        with self._news:
            self._is_left = True
            self._news.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def _digest(self, file: OutputFile) -> list[str]:
        is_hashed = has_hashes(file.header.metadata)
        head = b"" if is_hashed else file.header.raw
        digests = {folder: hashlib.sha256(head) for folder in self._folders}
        tensors = sorted(file.header.tensors.values(), key=lambda tensor: tensor.start)
        names = [self._whole_of.get(tensor.name, tensor.name) for tensor in tensors]
        first = 0
        while first < len(tensors):
            stop = first
            with self._news:
                while not self._is_finished(names[first]) and not self._is_left:
                    self._news.wait()
            if self._is_left:
                return []
            while stop < len(tensors) and self._is_finished(names[stop]):
                stop += 1
            for folder, digest in digests.items():
                for chunk in self._read(folder, file, tensors[first].start, tensors[stop - 1].stop):
                    if self._is_left:
                        return []
                    digest.update(chunk)
            first = stop
        if is_hashed:
            return [self._with_hashes(folder, file, digest.hexdigest()) for folder, digest in digests.items()]
        return [digest.hexdigest() for digest in digests.values()]

    def _with_hashes(self, folder: str, file: OutputFile, sha256: str) -> str:
        """Write the header again with the hashes of the tensors, and return the SHA-256 of the whole file."""
        header = with_true_hashes(
            file.header,
            sha256,
            lambda start, stop: b"".join(map(bytes, self._read(folder, file, start, stop))),
        )
        self._put_header(folder, file, header.raw)
        whole = hashlib.sha256(header.raw)
        for chunk in self._read(folder, file, 0, header.data_bytes):
            if self._is_left:
                break
            whole.update(chunk)
        return whole.hexdigest()
