"""The only module that prints: messages go to stderr, data to stdout.

Names and paths come from untrusted files; `printable` makes them safe to print.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from monosoup_cli.errors import OutputError, without_tokens
from monosoup_cli.report.words import duration, printable, size

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

    from monosoup_cli.cli.trials import Show
    from monosoup_cli.formats.files import Advance, Download
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["Console", "restore_terminal"]

SECONDS_BETWEEN_LINES = 10.0
PIPE_WIDTH = 10_000
TERMINAL_WIDTH = 80
"""Of a terminal that does not tell its own."""
MAX_DETAIL_LINES = 20


class Console:
    """Where a command prints.

    Args:
        quiet: Whether to print only errors and data.
        live: Whether to show a progress bar in a terminal.
    """

    def __init__(self, *, quiet: bool = False, live: bool = True) -> None:
        self.quiet = quiet
        self._is_live = live and not quiet and _has_terminal() and os.environ.get("TERM") != "dumb"
        self._live: Live | None = None
        self._has_bar = False

    def error(self, message: object) -> None:
        self._say(f"{_folded(f'error: {printable(message, 2000)}')}\n")

    def note(self, message: object, *, is_to_copy: bool = False) -> None:
        """Print a line on stderr, folded in a terminal; a command that is to be copied stays in one piece."""
        if not self.quiet:
            text = printable(message, 1000)
            self._say(f"{text if is_to_copy else _folded(text)}\n")

    def detail(self, text: str) -> None:
        """Print the last lines of another program's output, below an error."""
        for line in text.strip().splitlines()[-MAX_DETAIL_LINES:]:
            self._say(f"  {printable(line, 1000)}\n")

    def _say(self, text: str) -> None:
        """Write to stderr. What nobody can read is dropped: it must not make a run fail."""
        if sys.stderr is not None:
            with suppress(OSError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def data(self, text: str) -> None:
        if sys.stdout is None:
            raise OutputError("stdout is closed")
        sys.stdout.write(without_tokens(text))
        sys.stdout.flush()

    def text(self, *lines: str) -> None:
        """Print paragraphs on stdout, folded in a terminal."""
        from rich.text import Text

        for line in lines:
            self.table(Text(printable(line, 1000)), to_stdout=True)

    @property
    def width(self) -> int | None:
        """Characters in a line of stdout; None if it is not a terminal, where lines have any length."""
        console = self._rich(stderr=False)
        return console.width if console.is_terminal else None

    def table(self, renderable: RenderableType, *, to_stdout: bool = False) -> None:
        """Print a rich renderable. A terminal folds it to its width; a pipe gets one line per row."""
        if self.quiet and not to_stdout:
            return
        console = self._rich(stderr=not to_stdout)
        if console.is_terminal:
            console.print(renderable)
            return
        console.width, console.file = PIPE_WIDTH, io.StringIO()
        console.print(renderable)
        text = "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())
        if to_stdout:
            self.data(text)
        else:
            self._say(text)

    def _rich(self, *, stderr: bool) -> RichConsole:
        from rich.console import Console as RichConsole

        system: Literal["auto"] | None = (
            None if os.environ.get("NO_COLOR") else "auto"
        )  # None: no bold either
        return RichConsole(stderr=stderr, markup=False, highlight=False, emoji=False, color_system=system)

    @contextmanager
    def growing_table(self) -> Iterator[Show]:
        """Show a table that grows, live or as a line each time, through the callback it yields."""

        def show(table: Callable[[], RenderableType], line: str) -> None:
            if not self._is_live or self._has_bar:
                self.note(line)
                return
            from rich.live import Live

            if self._live is None:
                self._live = Live(console=self._rich(stderr=True))
                self._live.start()
            self._live.update(table(), refresh=True)

        try:
            yield show
        finally:
            self._end_live()

    def _end_live(self) -> None:
        """Stop the live table and leave it on screen, because only one display can be live."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def download_progress(self, downloads: Sequence[Download]) -> AbstractContextManager[Advance]:
        """Show the progress of downloads through the callback it yields."""
        total = sum(download.nbytes for download in downloads)
        if total and not self._is_live:
            self.note(f"downloading {size(total)}")
        return self.count_progress(total, "downloading", "downloaded")

    @contextmanager
    def count_progress(
        self, total: int, doing: str, done: str, *, of_bytes: bool = True
    ) -> Iterator[Advance]:
        """Show how many of so many bytes, or of other things, are done, through the callback it yields."""
        if not total or self.quiet:
            yield lambda count: None
        elif not self._is_live:
            yield _CountLines(self, total, size if of_bytes else "{:,}".format, done)
        else:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = [DownloadColumn(), TransferSpeedColumn()] if of_bytes else [MofNCompleteColumn()]
            bar = Progress(
                TextColumn(doing),
                BarColumn(bar_width=14),
                *columns,
                TimeRemainingColumn(compact=True),
                console=self._rich(stderr=True),
                transient=True,
            )
            with bar:
                task = bar.add_task("", total=total)
                yield lambda count: bar.update(task, advance=count)

    @contextmanager
    def progress(self, tensors: Sequence[PlannedTensor], doing: str = "") -> Iterator[Progress]:
        """Show the progress of a run, or of `doing` a phase of it, through the callback it yields."""
        if self._is_live:
            with self._bar(tensors, doing) as callback:
                yield callback
        elif self.quiet:
            yield lambda tensor, is_done: None
        else:
            yield _Lines(self, tensors, doing)

    @contextmanager
    def _bar(self, tensors: Sequence[PlannedTensor], doing: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
        from rich.text import Text

        class CurrentTensor(TextColumn):
            def render(self, task: object) -> Text:
                return Text(task.fields["current"], overflow="ellipsis", no_wrap=True)  # type: ignore[attr-defined]

        current: dict[str, None] = {}
        lock, done = threading.Lock(), 0
        bar = Progress(
            *([TextColumn(doing)] if doing else []),
            BarColumn(bar_width=14),
            DownloadColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeRemainingColumn(compact=True),
            CurrentTensor("", table_column=Column(ratio=1, no_wrap=True)),
            console=self._rich(stderr=True),
            transient=True,
            expand=True,
        )
        task = bar.add_task("", total=sum(tensor.nbytes for tensor in tensors), count="", current="")

        def callback(tensor: PlannedTensor, is_done: bool) -> None:
            nonlocal done
            with lock:
                if not bar.live.is_started:
                    self._end_live()
                    self._has_bar = True
                    bar.start()
                if is_done:
                    done += 1
                    current.pop(tensor.name, None)
                else:
                    current[tensor.name] = None
                bar.update(
                    task,
                    advance=tensor.nbytes if is_done else 0,
                    count=f"{done}/{len(tensors)}",
                    current=printable(next(iter(current), ""), 80),
                )

        try:
            yield callback
        finally:
            bar.stop()
            self._has_bar = False


def _has_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _folded(text: str) -> str:
    """Fold a message at its words in a terminal; in a pipe it stays one line."""
    if not _has_terminal():
        return text
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else os.get_terminal_size(sys.stderr.fileno()).columns
    return textwrap.fill(text, width or TERMINAL_WIDTH, break_long_words=False, break_on_hyphens=False)


def restore_terminal() -> None:
    """End the line and show the cursor, which a progress bar hides. Safe to call in a signal handler."""
    if _has_terminal():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")


class _CountLines:
    """The progress of something that is counted in logs: a line every few seconds."""

    def __init__(self, console: Console, total: int, shown: Callable[[int], str], done: str) -> None:
        self._console, self._total, self._shown, self._done = console, total, shown, done
        self._count = 0
        self._started = self._last_note = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._count += count
            now = time.monotonic()
            if now - self._last_note < SECONDS_BETWEEN_LINES or self._count >= self._total:
                return
            self._last_note = now
            share = self._count / self._total
            left = (now - self._started) * (1 - share) / max(share, 1e-9)
            counts = f"{self._shown(self._count)} of {self._shown(self._total)}"
            self._console.note(f"{share:4.0%}  {counts} {self._done}, {duration(left)} left")


class _Lines:
    """The progress of a run in logs: a line every few seconds."""

    def __init__(self, console: Console, tensors: Iterable[PlannedTensor], doing: str) -> None:
        self._console, self._doing = console, f"{doing} " if doing else ""
        nbytes = [tensor.nbytes for tensor in tensors]
        self._total, self._count = sum(nbytes), len(nbytes)
        self._bytes = self._done = 0
        self._started = self._last_note = 0.0
        self._lock = threading.Lock()

    def __call__(self, tensor: PlannedTensor, is_done: bool) -> None:
        with self._lock:
            if not self._started:
                self._started = self._last_note = time.monotonic()
            if not is_done:
                return
            self._bytes += tensor.nbytes
            self._done += 1
            now = time.monotonic()
            if now - self._last_note < SECONDS_BETWEEN_LINES or self._done == self._count:
                return
            self._last_note = now
            share = self._bytes / max(self._total, 1)
            left = (now - self._started) * (1 - share) / max(share, 1e-9)
            self._console.note(
                f"{self._doing}{share:4.0%}  {size(self._bytes)} of {size(self._total)},"
                f" {self._done} of {self._count} tensors, {duration(left)} left, {printable(tensor.name, 60)}"
            )
