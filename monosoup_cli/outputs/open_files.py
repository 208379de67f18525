"""The files of a run, each known by its inode: none is written to or published after it was exchanged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from monosoup_cli.errors import OutputError
from monosoup_cli.outputs.durable import sync_folder, write_file

__all__ = ["OpenFiles"]


class OpenFiles:
    """What a run has in its workplace. Weights stay open; of everything else the inode is remembered.

    Names are paths inside the workplace. A folder above a file is made on its own, never with its parents,
    so that a workplace that vanishes is not made anew.

    Args:
        root: The workplace.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._descriptors: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._inodes: dict[str, tuple[int, int]] = {}

    def __getitem__(self, name: str) -> int:
        """The descriptor of an open file."""
        return self._descriptors[name]

    def open(self, name: str, nbytes: int) -> int:
        """Open a file, or create it, and reserve its space."""
        self._make_folders_of(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._descriptors[name] = os.open(self._root / name, flags, 0o666)
        os.ftruncate(descriptor, nbytes)
        if hasattr(os, "posix_fallocate") and nbytes:
            os.posix_fallocate(descriptor, 0, nbytes)  # ENOSPC now rather than midway
        self._know(name, os.fstat(descriptor))
        self._sizes[name] = nbytes
        return descriptor

    def write(self, name: str, content: Path | bytes) -> None:
        """Write a whole file, from the content or a file that is copied, and sync it."""
        self._make_folders_of(name)
        self._know(name, write_file(self._root / name, content))

    def add(self, name: str) -> None:
        """Count a file or folder that is there as the run's."""
        self._know(name, os.lstat(self._root / name))

    def prove(self, names: Iterable[str] | None = None) -> None:
        """Prove that files are still the ones at their paths.

        Args:
            names: Which; None for all.

        Raises:
            OutputError: One has vanished, or was exchanged or cut.
        """
        for name in self._inodes if names is None else names:
            path = self._root / name
            try:
                found = os.lstat(path)
            except OSError as error:
                raise OutputError(
                    f"vanished during the run: {error.strerror}",
                    path=path,
                    hint="what is still there is kept; rerun with --resume",
                ) from None
            is_cut = found.st_size != self._sizes.get(name, found.st_size)
            if (found.st_dev, found.st_ino) != self._inodes[name] or is_cut:
                raise OutputError(
                    "was exchanged or cut during the run", path=path, hint="start over with --overwrite"
                )

    def sync_folders(self) -> None:
        """Make the names of all files survive a power failure."""
        for name in reversed(["", *(name for name in self._inodes if (self._root / name).is_dir())]):
            sync_folder(self._root / name)

    def close(self) -> None:
        """Close all files and forget them."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._inodes.clear()

    def _know(self, name: str, status: os.stat_result) -> None:
        self._inodes[name] = (status.st_dev, status.st_ino)

    def _make_folders_of(self, name: str) -> None:
        for folder in reversed(PurePosixPath(name).parents[:-1]):
            if str(folder) not in self._inodes:
                (self._root / folder).mkdir(exist_ok=True)
                self.add(str(folder))
