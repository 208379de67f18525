"""Checks of OUT and the report's path, before any work is done."""

from __future__ import annotations

import os
import re
import resource
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from monosoup_cli.errors import OutputError, OutputExistsError, ResourceError, crop
from monosoup_cli.outputs.workplace import in_the_way, partial_path, parts_path, unfinished_run
from monosoup_cli.sources.files import paths_of
from monosoup_cli.sources.library_files import CARD_NAME
from monosoup_cli.sources.source import Source

__all__ = ["allow_open_files", "check_output_path", "check_report_path", "check_space"]

SPARE_FILES = 80
"""Descriptors for the open inputs and for everything else that a process has open."""

REPORT_NAME = "monosoup_report.json"
OF_SWEEP = re.compile(r"(alpha|energy|wise)-.+")
"""Names of the checkpoints of a sweep."""
PARTS = {"model_index.json", "modules.json"}
"""Files that list the parts of a diffusers pipeline, or of a sentence transformer."""
DESCRIBES = re.compile(
    rf"{re.escape(REPORT_NAME)}|params\.json|(.*[_.-])?config\.json|.*\.index(\..+)?\.json"
)
"""Names of files that describe the weights beside them."""


def check_output_path(output: Path, inputs: Iterable[Source], *, overwrite: bool, resume: bool) -> None:
    """Check that OUT can be written. An existing folder may be replaced only if it looks like a checkpoint.

    Args:
        output: The path of OUT.
        inputs: The inputs, from which OUT must be apart.
        overwrite: Whether an existing OUT may be replaced.
        resume: Whether an interrupted run is to be continued.

    Raises:
        OutputExistsError: OUT exists, without `overwrite`.
        OutputError: OUT is an input or contains one, cannot be written, or must not be replaced.
    """
    try:
        _check_parent(output)
        _check_not_cached(output)
        for source in inputs:
            _check_apart(output, source)
        if output.is_symlink():
            raise OutputError(
                "the output is a symbolic link", path=output, hint="pass the path that it points to"
            )
        foreign = in_the_way(output)
        if foreign is not None:
            raise OutputError(
                "is in the place of unfinished work, but no run made it", path=foreign, hint="move it away"
            )
        if os.path.lexists(output):
            _check_replaceable(output, overwrite=overwrite, resume=resume)
    except OSError as error:
        raise OutputError(f"cannot be the output: {error.strerror}", path=output) from None


def _check_parent(output: Path) -> None:
    parent = output.parent
    if not parent.is_dir():
        raise OutputError("the output's folder does not exist", path=output, hint=f"create {parent} first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("the output's folder is not writable", path=output)


def _check_not_cached(path: Path) -> None:
    """Raise OutputError for a path in the Hub's cache, where many checkpoints share files."""
    # the path as typed counts too, since files of the cache are links
    for parent in (*path.absolute().parents, *path.resolve().parents):
        if parent.name.startswith("models--") and (parent / "snapshots").is_dir():
            raise OutputError("is inside the Hub's cache", path=path, hint="choose another path")


def _check_apart(output: Path, source: Source) -> None:
    folder = None if source.files.place.folder is None else source.files.place.folder.root
    inputs = {path.resolve(): path for path in (*filter(None, [folder]), *paths_of(source.files))}
    real_output = output.resolve()
    if folder is not None and _is_below(real_output, folder):
        raise OutputError("the output is inside an input", path=output, found=folder)
    if real_output in inputs or (output.exists() and any(_is_same(output, path) for path in inputs)):
        raise OutputError("the output is an input", path=output)
    places = (real_output, partial_path(real_output), parts_path(real_output))
    first_of_each = {real.parent: real for real in reversed(inputs)}  # many shards are in few folders
    for real in reversed(first_of_each.values()):
        if any(_is_below(real, place) for place in places):
            raise OutputError("an input is inside the output", path=output, found=inputs[real])


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, whatever links and mounts call it. An input may be gone meanwhile."""
    return os.access(other, os.F_OK) and path.samefile(other)


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path is below a folder, whatever links and mounts call them."""
    parents = path.resolve().parents
    if not os.access(folder, os.F_OK):
        return folder.resolve() in parents
    return any(_is_same(folder, parent) for parent in parents)


def _check_replaceable(output: Path, *, overwrite: bool, resume: bool) -> None:
    if not overwrite and unfinished_run(output):
        raise OutputExistsError(
            "an interrupted run left work that would replace this output",
            path=output,
            hint="pass --overwrite --resume to go on with it, or --overwrite to start over",
        )
    if resume and not overwrite:
        raise OutputExistsError("the output is complete: there is nothing to resume", path=output)
    if not overwrite:
        raise OutputExistsError(
            "the output already exists", path=output, hint="choose another, or pass --overwrite"
        )
    if not (output.is_file() if output.suffix == ".safetensors" else output.is_dir()):
        raise OutputError("will not replace a file with a folder, or a folder with a file", path=output)
    if output.is_dir():
        names = os.listdir(output)
        if Path.cwd().is_relative_to(output.resolve()) or (names and not _is_checkpoint(output)):
            raise OutputError(
                "will not replace a folder that is not a checkpoint",
                path=output,
                found=crop(", ".join(sorted(names)), 100),
                hint="remove it yourself, or choose another output",
            )
    _check_rights(output)


def _check_rights(path: Path) -> None:
    """Raise OutputError if the system would not let this user move a file or folder away."""
    parent = path.parent.stat()
    owners = {0, parent.st_uid, path.stat().st_uid}
    is_kept = parent.st_mode & stat.S_ISVTX and os.geteuid() not in owners
    if is_kept or (path.is_dir() and not os.access(path, os.W_OK | os.X_OK)):
        raise OutputError("this user may not replace it", path=path)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a model or a sweep, whatever a library keeps beside the weights.

    A model has weights at its top, and what describes them there; a pipeline lists its parts. Without either,
    a folder has one file of weights, at most with its card, or nothing but checkpoints that have a report or,
    beside that of the sweep, its names. Of an output that has lost its weights, the report is enough.
    """
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    weights = {name for name in names if name.endswith(".safetensors")}
    has_parts = any(folder.glob("*/*.safetensors"))
    if (has_parts and PARTS & names) or (REPORT_NAME in names and not has_parts):
        return True
    if weights and any(map(DESCRIBES.fullmatch, names)):
        return True
    if len(weights) == 1 and names <= {*weights, CARD_NAME}:
        return True
    named = {name for name in names if name == REPORT_NAME or OF_SWEEP.fullmatch(name)}
    others = names - named if REPORT_NAME in names else names
    return bool(names) and all((folder / name / REPORT_NAME).is_file() for name in others)


def allow_open_files(count: int) -> None:
    """Make sure that this process can open `count` more files, by raising its limit if necessary.

    Raises:
        ResourceError: The system does not allow so many.
    """
    needed = count + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1) or needed <= soft:
        return
    if hard not in (resource.RLIM_INFINITY, -1) and needed > hard:
        raise ResourceError(
            "the system lets this process open too few files",
            expected=f"at least {needed:,}",
            found=f"{hard:,}",
            hint=f"raise the limit: `ulimit -n {needed}`",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_report_path(report: Path, output: Path, inputs: Iterable[Source], *, overwrite: bool) -> None:
    """Check that the report can be written at a path outside OUT.

    Raises:
        OutputError: It would replace OUT, a file of an input, what is not a regular file, or (without
            `overwrite`) any other file.
    """
    if report.resolve() == output.resolve():
        raise OutputError("the report would replace the output", path=report)
    _check_not_cached(report)
    if not report.parent.is_dir():
        raise OutputError("the report's folder does not exist", path=report)
    try:
        os.lstat(report)
    except FileNotFoundError:
        if not os.access(report.parent, os.W_OK):
            raise OutputError("the report's folder is not writable", path=report) from None
        return
    except OSError as error:
        raise OutputError(f"cannot be the report: {error.strerror}", path=report) from None
    if not report.is_file():
        raise OutputError("cannot be the report: not a regular file", path=report)
    for source in inputs:
        folder = None if source.files.place.folder is None else source.files.place.folder.root
        inside = folder is not None and _is_below(report, folder)
        if inside or any(_is_same(report, path) for path in paths_of(source.files)):
            raise OutputError("the report would replace an input", path=report)
    if not overwrite:
        raise OutputError(
            "the report already exists", path=report, hint="choose another, or pass --overwrite"
        )
    _check_rights(report)


def check_space(output: Path, nbytes: int) -> None:
    """Check that OUT's disk has space for `nbytes`, counting what an unfinished run already takes.

    Raises:
        ResourceError: There is less.
    """
    partial = partial_path(output)
    taken = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())
    there = next(above for above in output.parents if above.is_dir())
    free = shutil.disk_usage(there).free + taken
    if nbytes > free:
        raise ResourceError(
            "not enough disk space for the output",
            path=output,
            expected=f"{nbytes:,} bytes",
            found=f"{free:,} free",
        )
