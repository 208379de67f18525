"""The other weights in the folder of a checkpoint: which were taken, where there was a choice."""

from __future__ import annotations

from monosoup_cli.errors import some
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.library_files import SHARD, is_training_state
from monosoup_cli.sources.locate import PIPELINE, parts_of
from monosoup_cli.sources.shards import file_of_index

__all__ = ["note_of_others"]

NAMED = 3


def note_of_others(files: Files) -> list[str]:
    """Say which weights of a folder are read, where it has others: of another library, format or kind.

    Shards go by the name of their index, and state of training is not counted.
    """
    folder, inner = files.place.folder, files.place.inner
    if folder is None:
        return []
    read = [shard.name.removeprefix(inner) for shard in files.shards]
    taken = read[0] if files.index is None else files.index.name.removeprefix(inner)
    names = folder.names(inner.rstrip("/"))
    whole = {file for name in (*names, taken) if (file := file_of_index(name)) is not None}
    others = [
        name
        for name in names
        if (file_of_index(name) or name).endswith(WEIGHTS)
        and name not in (*read, taken)
        and not is_training_state(name)
        and SHARD.sub("", name) not in whole - {name}
    ]
    if not inner and PIPELINE in names:
        others += [f"{part}/" for part in parts_of(folder) if part]
    if not others:
        return []
    taken = taken if taken in names else read[0]
    return [f"{taken} is read; beside it, and not read: {some(others, NAMED, ', and ')}"]
