"""Where harnesses left files. Links are followed as in the folders of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from monosoup_cli.formats.files import InputFile
from monosoup_cli.sources.folders import LocalFolder, is_broken, targets_outside

__all__ = ["Place", "named"]


@dataclass(frozen=True)
class Place:
    """A file or a folder in a folder that the user named.

    Attributes:
        root: The folder.
        name: The name in it, with slashes; "" for the folder itself.
        opened: The names of the files that were opened.
    """

    root: LocalFolder
    name: str = ""
    opened: set[str] = field(default_factory=set)

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)

    @property
    def shown(self) -> str:
        return self.root.shown(self.name)

    def is_folder(self) -> bool:
        """Return whether this is a folder. A broken link is none."""
        return not is_broken(self.root, self.name) and self.root.is_folder(self.name)

    def inside(self) -> list[Place]:
        """List what is in this folder, sorted by name."""
        return [self._at(self.path / name) for name in self.root.names(self.name)]

    def folders(self) -> list[Place]:
        """List the folders in this one, sorted by name. Plain files cost no look of their own."""
        with os.scandir(self.root.path(self.name or ".")) as entries:
            names = sorted(one.name for one in entries if one.is_symlink() or one.is_dir())
        return [one for one in (self._at(self.path / name) for name in names) if one.is_folder()]

    def beside(self, name: str) -> Place | None:
        """Return the file of this name in the same folder, if there is one."""
        is_there = "/" not in name and os.path.lexists(self.root.root / self.path.with_name(name))
        return self._at(self.path.with_name(name)) if is_there else None

    def open(self) -> InputFile:
        """Open a file for reading."""
        self.opened.add(self.name)
        return self.root.open(self.name)

    def linked(self) -> Iterable[str]:
        """The files that were opened elsewhere, because links led there; not what the user named."""
        return targets_outside(self.root, sorted(self.opened - {self.name}))

    def _at(self, path: PurePosixPath) -> Place:
        return replace(self, name=str(path))


def named(source: str) -> Place:
    """Return the file or the folder that the user typed.

    Raises:
        OSError, RuntimeError, ValueError: There is none.
    """
    path = Path(source)
    if path.resolve(strict=True).is_dir():
        return Place(LocalFolder(path, source))
    return Place(LocalFolder(path.parent, source), path.name)
