"""The output while it is being made: fixed places, a journal, and a rename at the end.

Everything happens in OUT.partial (workplace.py). Every tensor has its place in a file there before the
first one is computed, so workers write in any order and a later run continues where this one stopped.
A tensor enters the journal (journal.py), with its checksum, after its bytes are on the disk. OUT itself
appears by one rename, once everything in it is synced.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from monosoup_cli.errors import CheckpointError, MismatchError, MonosoupError, NonfiniteError, OutputError
from monosoup_cli.formats.files import read_into
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.outputs.digests import Digests
from monosoup_cli.outputs.durable import move_file, sync_folder, write_all
from monosoup_cli.outputs.journal import Journal, finished_line, note_line, read_journal
from monosoup_cli.outputs.layout import OutputFile, OutputLayout, Sealed
from monosoup_cli.outputs.workplace import Workplace, refuse_unfinished, unfinished_run
from monosoup_cli.system import sync, sync_data

__all__ = ["Adopted", "PartialOutput", "place_of"]

CHUNK_BYTES = 1 << 20

SYNCING_SHARE = 0.2
"""The share of the time that may be spent on syncs: what is finished in between shares the next one."""

MAX_UNJOURNALLED_SECONDS = 0.25
"""How long finished tensors wait for a sync, at most."""


class Adopted(NamedTuple):
    """A whole file that was made elsewhere, and its SHA-256."""

    path: Path
    sha256: str


@dataclass
class Spent:
    """What a run has spent: bytes of tensors that it has written, and seconds of score commands."""

    bytes_written: int = 0
    score_seconds: float = 0.0


class PartialOutput:
    """An output in the making: a context manager that holds its lock and its open files.

    If the context is left before `publish`, what a resumed run needs stays on the disk, unless this run made
    all of it and the inputs themselves were at fault. Any thread may call the methods, except `publish`, but
    the bytes of one tensor are written by one thread at a time. Every method raises OutputError if the system
    refuses a write.

    Args:
        output: The path at which the output appears.
        layout: The files of each checkpoint.
        identity: What the result depends on: inputs, options, versions and device.
        folders: The folder of each checkpoint inside OUT; "" if OUT is the only one.
        parts: The names under which several tensors of the layout are finished at once, with these tensors.
        adopted: Whole files that were made elsewhere, by where they go in the workplace. They stay where they
            are, too, and are not written to.
        resume: Continue an interrupted run. Entering the context raises ResumeError if its journal has
            another identity.
        overwrite: Replace an existing OUT, and drop the work of an interrupted run.

    Attributes:
        workplace: Where it is made.
        finished: The records of each finished tensor, one for each folder.
        notes: What `note` has journalled, in this run and in the one that it resumes.
        spent: What this run has spent so far.
    """

    def __init__(
        self,
        output: Path,
        layout: OutputLayout,
        identity: Mapping[str, Any],
        *,
        folders: Sequence[str] = ("",),
        parts: Mapping[str, Sequence[str]] | None = None,
        adopted: Mapping[str, Adopted] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._output = output
        self._layout = layout
        self._folders = folders
        self.finished: dict[str, list[dict[str, Any]]] = {}
        self.notes: dict[str, Any] = {}
        self.spent = Spent()
        self._counting = threading.Lock()
        self._identity = json.loads(json.dumps(identity))
        self._resume, self._overwrite = resume, overwrite
        self.workplace = Workplace(output)
        self._files = self.workplace.open_files
        self._places = layout.places()
        self._parts, self._adopted = parts or {}, adopted or {}
        self._whole_of = {part: name for name, parts in self._parts.items() for part in parts}
        self._checksums: dict[tuple[str, str], tuple[int, int]] = {}
        self._done: queue.SimpleQueue[Mapping[str, list[dict[str, Any]]] | None] = queue.SimpleQueue()
        self._is_ending = threading.Event()
        self._open_journal = ExitStack()
        self._failure: BaseException | None = None
        self._committer = threading.Thread(target=self._commit_all, name="journal", daemon=True)
        self._is_resumed = self._has_journalled = False
        self._digests = Digests(
            folders, self._whole_of, self._read, self._put_header, self.finished.__contains__
        )

    # -- opening ------------------------------------------------------------------------------

    def __enter__(self) -> PartialOutput:
        with self._system_errors():
            self.workplace.take()
            has_work = unfinished_run(self._output)
            try:
                self._open()
                self._committer.start()
                known = {place: one.sha256 for place, one in self._adopted.items()}
                for file in self._layout.files:
                    self._digests.start(file, [known.get(place_of(one, file.name)) for one in self._folders])
            except BaseException:
                self._end_threads()
                self._close(keeps_work=has_work)
                raise
        return self

    def _open(self) -> None:
        journal = self.workplace.path / "journal"
        is_resumed = self._resume and unfinished_run(self._output)
        entries, kept = read_journal(journal, self._identity) if is_resumed else ([], 0)
        if not kept:
            refuse_unfinished(self._output, resume=self._resume, overwrite=self._overwrite)
        files = {
            place_of(inner, each.name): each for inner, each in product(self._folders, self._layout.files)
        }
        self.workplace.clear(kept=["journal", *files] if kept else [])
        for place, file in files.items():
            if place in self._adopted:
                self._files.link_here(self._adopted[place].path, place)
                continue
            descriptor = self._files.open(place, file.nbytes)
            write_all(descriptor, memoryview(file.header.raw), 0)
        self._journal = Journal(journal)
        self._open_journal.callback(self._journal.close)
        self._files.add("journal")
        for entry in entries:
            self._accept(entry)
        self._is_resumed = bool(self.finished or self.notes)
        self._journal.start(kept, self._identity)
        self._files.sync_folders()
        sync_folder(self._output.parent)

    def _accept(self, entry: Mapping[str, Any]) -> None:
        """Count a journalled tensor as finished if its bytes on the disk still match its checksum."""
        with suppress(KeyError, TypeError):
            if "note" in entry:
                self.notes[entry["note"]] = entry["content"]
                return
            is_whole = len(entry["records"]) == len(self._folders)
            if is_whole and self._checksums_of(entry["tensor"]) == entry["checksums"]:
                self.finished[entry["tensor"]] = entry["records"]

    def place(self, tensor: str) -> TensorInfo:
        """The shape and dtype of a tensor of the layout, and its place in its file."""
        return self._places[tensor][1]

    # -- writing ------------------------------------------------------------------------------

    def write(self, tensor: str, data: memoryview, offset: int = 0, folder: str = "") -> None:
        """Write bytes of a tensor, starting `offset` bytes after its first one."""
        file, place = self._places[tensor]
        start = len(file.header.raw) + place.start + offset
        with self._system_errors():
            write_all(self._files[place_of(folder, file.name)], data, start)
        end, checksum = self._checksums.pop((folder, tensor), (0, 0)) if offset else (0, 0)
        if end == offset:  # written in order from the start; in any other order, `commit` reads it again
            self._checksums[folder, tensor] = (end + len(data), zlib.crc32(data, checksum))
        with self._counting:
            self.spent.bytes_written += len(data)

    def write_together(self, tensors: Sequence[str], data: memoryview, folder: str = "") -> None:
        """Write whole tensors of one size, from their bytes one after the other.

        Those that are neighbours in a file are written in one call.
        """
        size, first = len(data) // len(tensors), 0
        places = [self._places[tensor] for tensor in tensors]
        while first < len(tensors):
            (file, place), stop = places[first], first + 1
            while stop < len(tensors) and places[stop][0] is file:
                if places[stop][1].start != place.start + (stop - first) * size:
                    break
                stop += 1
            with self._system_errors():
                start = len(file.header.raw) + place.start
                part = data[first * size : stop * size]
                write_all(self._files[place_of(folder, file.name)], part, start)
            first = stop
        for number, tensor in enumerate(tensors):
            checksum = zlib.crc32(data[number * size : (number + 1) * size])
            self._checksums[folder, tensor] = (size, checksum)
        with self._counting:
            self.spent.bytes_written += len(data)

    def read(self, folder: str, tensor: str) -> Iterator[memoryview]:
        """Read a tensor's bytes back, chunk by chunk; every chunk uses the same buffer."""
        file, place = self._places[tensor]
        return self._read(folder, file, place.start, place.stop)

    def _read(self, folder: str, file: OutputFile, start: int, stop: int) -> Iterator[memoryview]:
        """Read the bytes start:stop of a file's data."""
        buffer = memoryview(bytearray(min(CHUNK_BYTES, stop - start)))
        with self._system_errors():
            for offset in range(start, stop, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, stop - offset)]
                read_into(self._files[place_of(folder, file.name)], chunk, len(file.header.raw) + offset)
                yield chunk

    def _checksum(self, folder: str, tensor: str) -> int:
        """CRC-32 of a tensor's bytes in the output."""
        end, value = self._checksums.pop((folder, tensor), (0, 0))
        if end != self._places[tensor][1].nbytes:
            value = 0
            for chunk in self.read(folder, tensor):
                value = zlib.crc32(chunk, value)
        return value

    def _parts_of(self, name: str) -> Sequence[str]:
        return self._parts.get(name, (name,))

    def _checksums_of(self, name: str) -> list[int]:
        return [self._checksum(folder, part) for folder in self._folders for part in self._parts_of(name)]

    def commit(self, records: Mapping[str, list[dict[str, Any]]], *, is_journalled: bool = True) -> None:
        """Count written tensors as finished.

        A thread in the background syncs and journals them.

        Args:
            records: The name of each tensor, or the name of its parts, with what to note about it: one record
                for each folder.
            is_journalled: Whether a resumed run needs to know: not where it can have them again at no cost.
        """
        if self._failure is not None:
            raise self._failure
        self.finished.update(records)
        self._has_journalled |= is_journalled
        self._done.put(records if is_journalled else {})

    def note(self, name: str, content: Any) -> None:
        """Journal something that need not be done again; a resumed run finds it in `notes`."""
        with self._system_errors():
            self._files.prove(["files", "journal"])
            self._journal.append(note_line(name, content))
        self.notes[name] = content

    def _commit_all(self) -> None:
        """Journal finished tensors until the run ends; those of a short while share a sync."""
        try:
            ended, pause = False, 0.0
            while not ended:
                batch = [self._done.get()]
                self._is_ending.wait(min(pause, MAX_UNJOURNALLED_SECONDS))
                started = time.monotonic()
                with suppress(queue.Empty):
                    while True:
                        batch.append(self._done.get_nowait())
                ended = None in batch
                self._journal_all({name: of_one for some in batch for name, of_one in (some or {}).items()})
                self._digests.go_on()
                pause = (time.monotonic() - started) * (1 / SYNCING_SHARE - 1)
        except BaseException as error:
            self._failure = error

    def _journal_all(self, records: Mapping[str, list[dict[str, Any]]]) -> None:
        """Wait until some finished tensors are on the disk, then enter them in the journal."""
        with self._system_errors():
            lines = [
                finished_line(name, self._checksums_of(name), of_one) for name, of_one in records.items()
            ]
            names = {self._places[part][0].name for tensor in records for part in self._parts_of(tensor)}
            places = [place_of(folder, name) for folder in self._folders for name in names]
            for place in places:
                sync_data(self._files[place])
            if lines:
                self._files.prove([*places, "journal"])
                self._journal.append(b"".join(lines))

    def _end_journal(self) -> None:
        """Have everything that is finished journalled, and wait for it."""
        self._is_ending.set()
        self._done.put(None)
        self._committer.join()

    # -- finishing ----------------------------------------------------------------------------

    def seal(self, beside: Mapping[str, Mapping[str, Iterable[bytes | memoryview]]]) -> Sealed:
        """Wait until every tensor is on the disk, and write what goes along with the weights.

        Args:
            beside: For each folder, the content of these files by name.
        """
        self._end_journal()
        if self._failure is not None:
            raise self._failure
        with self._system_errors():
            for inner, file in product(self._folders, self._layout.files):
                sync(self._files[place_of(inner, file.name)])
            self._files.prove()
        digests = self._digests.results()
        weights = {
            folder: [
                {"name": file.name, "bytes": file.nbytes, "sha256": digest[number]}
                for file, digest in zip(self._layout.files, digests, strict=True)
            ]
            for number, folder in enumerate(self._folders)
        }
        others = {
            folder: [self._add(folder, *one) for one in sorted(contents.items())]
            for folder, contents in beside.items()
        }
        return Sealed(weights, others)

    def _add(self, folder: str, name: str, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
        with self._system_errors():
            nbytes, sha256 = self._files.write(place_of(folder, name), blocks)
        return {"name": name, "bytes": nbytes, "sha256": sha256}

    def _put_header(self, folder: str, file: OutputFile, raw: bytes) -> None:
        descriptor = self._files[place_of(folder, file.name)]
        with self._system_errors():
            write_all(descriptor, memoryview(raw), 0)
            sync(descriptor)

    def publish(self, inside: Mapping[str, bytes], outside: Mapping[Path, bytes]) -> None:
        """Add the reports, then rename everything into place.

        Args:
            inside: Files by their names inside OUT.
            outside: Files elsewhere that belong to OUT (the report). They appear just before OUT does.
        """
        with self._system_errors():
            self._files.prove()
            for name, content in inside.items():
                self._files.write(f"files/{name}", [content])
            drafts = {f"outside-{number}": target for number, target in enumerate(outside)}
            for draft, target in drafts.items():
                self._files.write(draft, [outside[target]])
            self._files.sync_folders()
            if not self._overwrite and os.path.lexists(self._output):
                raise OutputError(
                    "something else was created here during the run",
                    path=self._output,
                    hint="move it away, then continue with --resume",
                )
            self._files.prove()
            self._files.prove_alone()
            self._files.forget(drafts)
            for draft, target in drafts.items():
                move_file(self.workplace.path / draft, target)
            self.workplace.move_into_place(self._layout.files[0].name if self._layout.is_single_file else "")
        try:
            sync_folder(self._output.parent)
        except OSError as error:
            raise OutputError(
                f"the output is complete, but may not survive a power failure: {error.strerror}",
                path=self._output,
            ) from error
        finally:
            self._close(keeps_work=False)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._end_threads()
        keeps_work = True
        if isinstance(error, MonosoupError) and not self._is_resumed:
            keeps_work = not _is_of_inputs(error) and (self._has_journalled or bool(self.notes))
        self._close(keeps_work=keeps_work)

    def _end_threads(self) -> None:
        if self._committer.is_alive():
            self._end_journal()
        self._digests.stop()

    def _close(self, *, keeps_work: bool) -> None:
        self._open_journal.close()
        if not keeps_work:
            self.workplace.remove()
        self.workplace.close()

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._files.prove()  # if a file is gone, that is what to say
            raise OutputError(
                f"cannot write: {error.strerror or error}",
                path=self._output,
                hint="finished tensors are kept; rerun with --resume"
                if self.finished or self.notes
                else None,
            ) from error


def _is_of_inputs(error: MonosoupError) -> bool:
    """Whether an error comes again as long as the inputs are as they are; one of the system may not."""
    is_of_system = isinstance(error.__cause__, OSError)
    return isinstance(error, (CheckpointError, MismatchError, NonfiniteError)) and not is_of_system


def place_of(folder: str, name: str) -> str:
    """A file's path in the workplace."""
    return f"files/{folder}/{name}" if folder else f"files/{name}"
