"""Where a run writes: the output, its report, and the repository it is pushed to."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from monosoup_cli.errors import OutputError, OutputExistsError, UsageError
from monosoup_cli.formats.foreign import OTHER_SUFFIXES
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.options import Call, OutputOptions, RunOptions
from monosoup_cli.outputs.output_path import check_output_path, check_report_path
from monosoup_cli.outputs.push import check_push, push, upload_command
from monosoup_cli.outputs.workplace import (
    is_in_use,
    parts_in_the_way,
    parts_path,
    refuse_unfinished,
    unfinished_run,
)
from monosoup_cli.pipeline.published import published_reports
from monosoup_cli.report.files import REPORT_NAME, is_report, report_beside
from monosoup_cli.sources.source import Source

__all__ = ["STDOUT", "Destination", "Part", "check_parts", "part_of", "part_path", "work_path"]

STDOUT = "-"
"""As the path of a report: stdout."""


@dataclass(frozen=True)
class Part:
    """One of the parts in which several machines make an output."""

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> Part:
        """A part that the user typed: "3/8".

        Raises:
            UsageError: It is none.
        """
        found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
        part = cls(*map(int, found.groups())) if found else None
        if part is None or not 1 <= part.number <= part.count:
            raise UsageError("--part takes I/N", expected="I from 1 to N, such as 3/8", found=text)
        return part

    @property
    def words(self) -> str:
        """As the user types it."""
        return f"{self.number}/{self.count}"


def check_parts(output: Path) -> None:
    """Refuse what is in the place of parts, and no run made.

    Raises:
        OutputError: There is something.
    """
    foreign = parts_in_the_way(output)
    if foreign is not None:
        raise OutputError("is in the place of parts, but no run made it", path=foreign, hint="move it away")


def part_of(destination: Destination) -> Part | None:
    """Which part of the output is made, where it is not all of it.

    Raises:
        UsageError: The user typed something else.
    """
    return None if destination.options.part is None else Part.of(destination.options.part)


def work_path(destination: Destination) -> Path:
    """What a run writes: the output, or a part of it."""
    part = part_of(destination)
    return destination.path if part is None else part_path(destination.path, part)


def part_path(output: Path, part: Part) -> Path:
    """The folder of a part of an output."""
    return parts_path(output) / f"{part.number}-of-{part.count}"


@dataclass(frozen=True)
class Destination:
    """Where a run writes.

    Attributes:
        path: The path of the output.
        options: What the user said about the output.
    """

    path: Path
    options: OutputOptions

    @classmethod
    def of(cls, output: str, options: RunOptions, *, is_sweep: bool) -> Destination:
        """The destination that the user typed.

        Raises:
            OutputError: It cannot be an output, whatever the inputs.
            UsageError: The options are not for such an output.
        """
        path = Path(output)
        if not path.name:
            raise OutputError("cannot be the output", path=output or "''")
        is_weights = path.name.lower().endswith((*WEIGHTS, *OTHER_SUFFIXES))
        if is_weights and path.suffix != ".safetensors":
            raise UsageError("the output must be a .safetensors file or a folder", path=path)
        if path.suffix == ".safetensors" and is_sweep:
            raise UsageError(
                "several values make several checkpoints, which need a folder as output", path=path
            )
        if path.suffix == ".safetensors" and options.storing.max_shard_size is not None:
            raise UsageError("--max-shard-size needs a folder as output", found=path)
        if path.suffix == ".safetensors" and options.storing.side_files:
            raise UsageError("--side-files needs a folder as output", found=path)
        if path.suffix == ".safetensors" and options.writing.push is not None:
            raise UsageError("--push needs a folder as output", found=path)
        return cls(path, options.writing)

    @property
    def is_file(self) -> bool:
        """Whether the output is one file."""
        return self.path.suffix == ".safetensors"

    @property
    def report_path(self) -> Path | None:
        """Where the report goes; None for stdout."""
        if self.options.report == STDOUT:
            return None
        if self.options.report is not None:
            report = Path(self.options.report)
            is_inside = report.parent.resolve() == self.path.resolve()
            return self.path / report.name if is_inside else report
        if self.is_file:
            return report_beside(self.path)
        return self.path / REPORT_NAME

    @property
    def is_unfinished(self) -> bool:
        """Whether an interrupted run left work that `--resume` can continue."""
        return unfinished_run(work_path(self))

    def check_path(self, sources: Sequence[Source]) -> None:
        """Refuse an output or a report at a place where none can be written.

        Raises:
            OutputError: The place is taken, in use, not writable, or part of an input.
        """
        options = self.options
        if options.part is not None:  # the output is only replaced when it is finished
            check_output_path(self.path, sources, overwrite=options.overwrite, resume=False)
            check_parts(self.path)
            if is_in_use(work_path(self)):
                raise OutputError("another run is making this part", path=work_path(self))
            refuse_unfinished(work_path(self), resume=options.resume, overwrite=options.overwrite)
            self.check_report_path(sources)
            return
        try:
            check_output_path(self.path, sources, overwrite=options.overwrite, resume=options.resume)
        except OutputExistsError as error:
            if options.push is not None and (self.path / REPORT_NAME).is_file():
                error.hint = f"to send what is there: `{self.upload_command}`"
            raise
        if is_in_use(self.path):
            raise OutputError("another run is writing this output", path=self.path)
        refuse_unfinished(self.path, resume=options.resume, overwrite=options.overwrite)
        self.check_report_path(sources)

    def check_report_path(self, sources: Sequence[Source]) -> None:
        """Refuse a report at a place where none can be written. A resumed run may replace its own.

        The report of an output that is gone is its own as well: a run that loses its work at the very end
        leaves one.

        Raises:
            OutputError: The place is taken, not writable, or part of an input or the output.
        """
        report = self.report_path
        if report is None or report.parent == self.path:
            return
        if report.resolve().is_relative_to(self.path.resolve()):
            raise OutputError("the report would be in a folder of the output", path=report)
        is_own = self.options.resume and is_report(report, None if self.is_unfinished else self.path)
        check_report_path(report, self.path, sources, overwrite=self.options.overwrite or is_own)

    def check_report_name(self, taken: Collection[str]) -> None:
        """Raise OutputError where a file of the output has the report's name."""
        report = self.report_path
        if report is not None and report.parent == self.path and report.name in taken:
            raise OutputError("the report would replace another file of the output", path=report)

    def check_push(self, sources: Sequence[Source]) -> None:
        """Refuse a repository that cannot be pushed to, before any work is done.

        Raises:
            OutputError: It is an input, holds files, or may not be written to.
            UsageError: It is not a name on the Hub.
        """
        repository = self.options.push
        if repository is None:
            return
        inputs = [source.files.place.repository or "" for source in sources]
        if any(repository.lower() == name.lower() for name in inputs):
            raise OutputError("cannot push to an input", path=repository)
        check_push(repository, overwrite=self.options.overwrite)

    def push(self, call: Call) -> str:
        """Upload the finished output of a command, and return its address. Reports go without local paths."""
        assert self.options.push is not None
        return push(
            self.path,
            self.options.push,
            public=self.options.public,
            overwrite=self.options.overwrite,
            summary=f"monosoup {call.command}",
            instead=published_reports(self.path, self.report_path, call.declared),
        )

    @property
    def upload_command(self) -> str:
        """The shell command that uploads the output as `push` does."""
        options, report = self.options, self.report_path
        return upload_command(
            self.path,
            str(options.push),
            public=options.public,
            overwrite=options.overwrite,
            without=[report.name] if report is not None and report.parent == self.path else [],
        )
