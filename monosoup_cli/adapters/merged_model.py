"""Read a state dict of a base with an adapter in it as the checkpoint that merging the two would make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from monosoup_cli.adapters.base import lone_uses
from monosoup_cli.adapters.lora import Adapter
from monosoup_cli.adapters.merged import MergedSource
from monosoup_cli.adapters.peft import read_adapter
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.files import Download
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.formats.other_adapters import MERGE_WITH_PEFT
from monosoup_cli.sources.checkpoint import Checkpoint
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.kinds import lora_settings
from monosoup_cli.sources.source import DENSE, Reader, Source, Update

__all__ = ["MergedModel"]


class MergedModel:
    """A base with the adapter of the same files merged into it; a `Source`. Its update is that of both.

    Args:
        base: The base, whose kind has the adapter.

    Raises:
        CheckpointError: The adapter is malformed, is not LoRA, or does not fit the base.
    """

    def __init__(self, base: Source) -> None:
        assert base.files.kind.inner is not None
        own = Checkpoint(base.files.kind.inner)
        adapter = read_adapter(own, lora_settings(base.files), base.tensors)
        _check_uses(adapter, base)
        self.path, self.files = base.path, base.files
        self._base, self._merged = base, MergedSource(adapter, base)
        self.tensors: Mapping[str, TensorInfo] = self._merged.tensors

    @property
    def model(self) -> Files:
        """The base's files."""
        return self._base.model

    def update(self, name: str) -> Update:
        """Return `DENSE`: the base that the adapter was trained on need not be that of the command."""
        return DENSE

    def reader(self, name: str) -> Reader:
        """Return a reader of the merged tensor in float64, or of the bytes of an unmerged one."""
        return self._merged.reader(name)

    def prefetch(self, name: str, limit: int) -> None:
        """Ask the system to have the base's tensor ready soon. Does not wait."""
        self._base.prefetch(name, limit)

    def select(self, names: Iterable[str] | None) -> list[Download]:
        """List the downloads of all files, any of which may have factors."""
        return self._base.select(None)

    def is_at_hand(self, name: str) -> bool:
        """Return whether the tensor exists."""
        return self._base.is_at_hand(name)

    @property
    def held_bytes(self) -> int:
        """What reading takes, of the base and of the adapter."""
        return self._base.held_bytes + self._merged.held_bytes

    def forget(self) -> None:
        """Drop what the calling thread holds."""
        self._base.forget()
        self._merged.forget()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file has changed since it was opened."""
        self._base.check_unchanged()


def _check_uses(adapter: Adapter, base: Source) -> None:
    """Raise CheckpointError where the adapter changes weights for one of the model's two uses of them."""
    changed = {*adapter.pairs, *adapter.replaced, *adapter.rows, *adapter.biases}
    shared = [pair for shard in base.files.shards for pair in shard.tied.items()]
    alone = [
        pair if pair[1] in changed else pair[::-1] for pair in shared if len(changed.intersection(pair)) == 1
    ]
    if not adapter.config.get("ensure_weight_tying"):
        held = {name: base.tensors[name] for name in changed & base.tensors.keys()}
        alone += lone_uses(adapter, held, base.files)
    for missing, found in alone:
        raise CheckpointError(
            f"changes weights that the model shares with {missing!r}, which would not follow",
            path=base.path,
            tensor=found,
            hint=MERGE_WITH_PEFT,
        )
