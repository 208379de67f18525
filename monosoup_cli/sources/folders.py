"""The folders that checkpoints are read from, on the disk or on the Hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from monosoup_cli.errors import CheckpointError, some
from monosoup_cli.formats.files import CheckpointFile, Download, InputFile, check_json_size, read_json_file
from monosoup_cli.sources.hub_ids import to_fill_the_cache

__all__ = [
    "CACHED",
    "Folder",
    "LocalFolder",
    "is_broken",
    "is_offline",
    "is_plain_name",
    "local_folder",
    "not_cached",
    "notes_of",
    "read_config",
    "resolve_inside",
    "targets_outside",
    "unresolved",
]

CACHED = "models--"
"""How the names of repositories begin in the Hub's cache."""
MAX_REFERENCE_BYTES = 100
HINT = "links in what is from the Hub are not followed elsewhere: put the file itself there"
HUB_HOSTS = ("huggingface.co", "hf.co")
MAX_GIT_CONFIG_BYTES = 1 << 20
GIT_SECTION = re.compile(r"\s*\[\s*([\w.-]+)")
GIT_URL = re.compile(
    r"(?:.*\])?\s*(?:push)?url\s*=\s*\"?(?:[\w+]+://)?(?:[^@/\s]*@)?([\w.-]+)", re.IGNORECASE
)
"""The host in a line of git's configuration: of an address, or of `git@host:path`."""
NAMED = 3
"""How many files a note names."""


class Folder(Protocol):
    """A folder of files. File names are relative to it, with slashes.

    Attributes:
        source: What the user typed.
        repository: The id on the Hub; None if the folder is not from there.
        revision: The commit on the Hub.
        root: The path on this machine; None until something is downloaded.
    """

    source: str

    @property
    def repository(self) -> str | None: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def root(self) -> Path | None: ...

    def names(self, inner: str = "") -> list[str]:
        """List the files and folders in this folder, or in its subfolder `inner`, sorted by name."""
        ...

    def is_folder(self, name: str) -> bool:
        """Return whether this is a subfolder."""
        ...

    def nbytes(self, name: str) -> int:
        """Return the size of a regular file. Raise CheckpointError for anything else."""
        ...

    def open(self, name: str) -> CheckpointFile:
        """Open a file for reading."""
        ...

    def path(self, name: str) -> Path:
        """Return the path of a file on the disk, and download it first if it is not there."""
        ...

    def select(self, names: Iterable[str]) -> list[Download]:
        """List the downloads that bring these files to the disk."""
        ...

    def shown(self, name: str) -> str:
        """Return the name of a file for messages."""
        ...


class LocalFolder:
    """A folder on the disk.

    Links may lead out of a user's own folder, where the user put them. From the Hub, by its cache or as a
    clone of a repository there, they come from somebody else, and must lead to files in the folder or in the
    Hub's cache.
    """

    def __init__(
        self, path: Path, source: str, repository: str | None = None, revision: str | None = None
    ) -> None:
        self.root, self.source = path, source
        self.repository, self.revision = repository, revision
        if repository is None:
            self.repository, self.revision = _in_cache(path)
        self.is_own = self.repository is None and _cloned_from(path) is None

    def names(self, inner: str = "") -> list[str]:
        real = self.path(inner or ".")
        if any(real == self.path(str(above)) for above in PurePosixPath(inner).parents if inner):
            return []  # a link that leads up again
        try:
            return sorted(os.listdir(real))
        except OSError as error:
            raise CheckpointError(f"cannot list: {error.strerror}", path=self.shown(inner)) from error

    def is_folder(self, name: str) -> bool:
        return self.path(name).is_dir()

    def nbytes(self, name: str) -> int:
        path = self.path(name)
        if not path.is_file():
            raise CheckpointError("not a regular file", path=self.shown(name))
        if not os.access(path, os.R_OK):
            raise CheckpointError(f"cannot open: {os.strerror(errno.EACCES)}", path=self.shown(name))
        return path.stat().st_size

    def open(self, name: str) -> InputFile:
        return InputFile(self.path(name), self.shown(name), commit=self.revision)

    def path(self, name: str) -> Path:
        return resolve_inside(self.root, name, may_lead_out=self.is_own)

    def select(self, names: Iterable[str]) -> list[Download]:
        return []

    def shown(self, name: str) -> str:
        return str(self.root / name)


def local_folder(path: Path, source: str) -> LocalFolder:
    """Open the folder that the user typed, or the snapshot that a repository in the Hub's cache stands for.

    That is the commit that `refs/main` names, or the only one.

    Raises:
        CheckpointError: There are several snapshots, or none.
    """
    real = path.resolve()
    repository = real.parent if real.name == "snapshots" else real
    snapshots = repository / "snapshots"
    if not repository.name.startswith(CACHED) or not snapshots.is_dir():
        return LocalFolder(path, source)
    commits = sorted(snapshot.name for snapshot in snapshots.iterdir() if snapshot.is_dir())
    try:
        with open(repository / "refs" / "main", "rb") as file:
            main = file.read(MAX_REFERENCE_BYTES).decode(errors="replace").strip()
    except OSError:
        main = ""
    if main not in commits:
        if not commits:
            raise CheckpointError("a repository in the Hub's cache, without a snapshot", path=source)
        if len(commits) > 1:
            raise CheckpointError(
                "a repository in the Hub's cache with several snapshots, of which refs/main names none",
                path=source,
                found=", ".join(commits[:NAMED]) + (", …" if len(commits) > NAMED else ""),
                hint=f"pass one of them: {snapshots / commits[0]}",
            )
        main = commits[0]
    return LocalFolder(snapshots / main, source)


def notes_of(folder: Folder, names: Iterable[str]) -> list[str]:
    """Say where these files of a folder are, where the user may not expect them there."""
    notes = []
    if folder.root is not None and isinstance(folder, LocalFolder) and os.path.lexists(folder.source):
        if folder.root.resolve() != Path(folder.source).resolve():
            notes.append(f"a repository in the Hub's cache, read at its commit {folder.revision}")
        if places := targets_outside(folder, names):
            links = [f"{name} at {place}" for name, place in places.items()]
            notes.append(f"links out of the folder are followed: {some(links, NAMED, ', and ')}")
    return notes


def targets_outside(folder: Folder, names: Iterable[str]) -> dict[str, Path]:
    """Map those of these files and folders that links take from elsewhere to where they are."""
    if not isinstance(folder, LocalFolder) or not folder.is_own:
        return {}
    root = folder.root.resolve()
    # shards that are numbered have an index that is no file
    there = [name for name in names if os.path.lexists(folder.root / name)]
    places = {name: folder.path(name) for name in there}
    return {name: place for name, place in places.items() if not place.is_relative_to(root)}


def is_broken(folder: Folder, name: str) -> bool:
    """Return whether this is a link that leads nowhere."""
    if not isinstance(folder, LocalFolder) or not (folder.root / name).is_symlink():
        return False
    try:
        (folder.root / name).resolve(strict=True)
    except (OSError, RuntimeError):
        return True
    return False


def read_config(folder: Folder, name: str) -> Any:
    """Parse a JSON file of a library in the folder as that library does. Return None if there is none."""
    inner, _, last = name.rpartition("/")
    if last not in folder.names(inner):
        return None
    what = "index" if ".index." in last else last
    check_json_size(folder.nbytes(name), folder.shown(name), what)  # before it is downloaded
    return read_json_file(folder.open(name), what, is_strict=False)


def is_offline(folder: Folder) -> bool:
    """Return whether this folder is a snapshot in the Hub's cache, opened by its id."""
    return isinstance(folder, LocalFolder) and not os.path.lexists(folder.source)


def not_cached(source: str) -> CheckpointError:
    """The error for weights that only the Hub has."""
    return CheckpointError(
        "offline, and its weights are not in the cache", path=source, hint=to_fill_the_cache(source)
    )


def is_plain_name(name: object) -> bool:
    """Return whether this is a plain file name, without a folder, on every system."""
    if not isinstance(name, str):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return False
    return name not in {"", ".", ".."} and "\0" not in name and name == PureWindowsPath(name).name


def _in_cache(path: Path) -> tuple[str | None, str | None]:
    """Return the id and the commit of a snapshot in the Hub's cache; (None, None) for other folders."""
    for snapshot in (path.absolute(), *path.absolute().parents):
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith(CACHED):
            return snapshot.parent.parent.name.removeprefix(CACHED).replace("--", "/"), snapshot.name
    return None, None


def _cloned_from(path: Path) -> str | None:
    """Return the Hub's host where the clone that the folder is in has it as a remote; None otherwise."""
    configs = [place / ".git" / "config" for place in (path.absolute(), *path.absolute().parents)]
    try:
        config = next((one for one in configs if one.is_file()), None)
        if config is None:
            return None
        with open(config, "rb") as file:
            lines = file.read(MAX_GIT_CONFIG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None
    hosts = {*HUB_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname}
    section = ""
    for line in lines:
        if found := GIT_SECTION.match(line):
            section = found[1].lower()
        if section == "remote" and (found := GIT_URL.match(line)) and found[1].lower() in hosts:
            return found[1].lower()
    return None


def unresolved(error: OSError | RuntimeError, path: str | Path) -> CheckpointError:
    """The error for a path that cannot be resolved. Python raises RuntimeError for links in a circle."""
    if isinstance(error, PermissionError):
        return CheckpointError(f"cannot open: {error.strerror}", path=path)
    return CheckpointError("a broken link", path=path)


def resolve_inside(folder: Path, name: str, *, may_lead_out: bool = False) -> Path:
    """Resolve the links in the path of a file.

    Links may lead to the folder itself or, from a snapshot in the Hub's cache, to the blobs of that cache.

    Args:
        folder: The folder.
        name: The name of the file in it, which itself never leads out.
        may_lead_out: Whether links may lead anywhere.

    Raises:
        CheckpointError: The file does not exist, or a link leads elsewhere.
    """
    root = folder.resolve()
    allowed = [root]
    for snapshot in (root, *root.parents):
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith(CACHED):
            repository, cache = snapshot.parents[1], snapshot.parents[2]
            allowed += [snapshot, repository / "blobs", cache / "blobs"]
            break
    try:
        resolved = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise unresolved(error, folder / name) from error
    is_below = ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute()
    may_lead_out = may_lead_out and is_below
    if not may_lead_out and not any(resolved.is_relative_to(place) for place in allowed):
        host = _cloned_from(folder)
        hint = HINT if host is None else f".git/config names {host}, and {HINT}"
        raise CheckpointError(
            "a link that leads out of the folder", path=folder / name, hint=hint if is_below else None
        )
    return resolved
