"""The codecs, and checkpoints as they are when they are decoded."""

from __future__ import annotations

from dataclasses import replace

from monosoup_cli.encodings.block_fp8 import BlockFp8
from monosoup_cli.encodings.codec import Codec, Encoded
from monosoup_cli.encodings.evidence import check_codes
from monosoup_cli.sources.derived import Derived, Made
from monosoup_cli.sources.source import Source

__all__ = ["decoded"]

CODECS: tuple[Codec, ...] = (BlockFp8(),)


def decoded(source: Source) -> Source:
    """Read a checkpoint with the tensors that its codes stand for.

    Raises:
        CheckpointError: Codes and scales do not fit each other, or tensors are codes that no codec decodes.
    """
    found: dict[str, Encoded] = {}
    for codec in CODECS:
        found |= codec.find(source.tensors, source.files.config or {}, source.path)
    homes = {encoded.parts[0]: name for name, encoded in found.items()}
    parts = {part for encoded in found.values() for part in encoded.parts}
    tensors: dict[str, str | Made] = {}
    for name in source.tensors:  # in the order of the files
        if name in homes:
            tensors[homes[name]] = found[homes[name]]
        elif name not in parts:
            tensors[name] = name
    with_scales = {name for name, encoded in found.items() if len(encoded.parts) > 1}
    stored = source.tensors.items()
    rest = {name: info for name, info in stored if name in tensors and name not in with_scales}
    notes = check_codes(rest, source.files, is_decoded=bool(with_scales))
    if not found and not notes:
        return source
    decoded_from = {name: encoded.parts[0] for name, encoded in found.items()}
    files = replace(source.files, notes=(*source.files.notes, *notes), decoded=decoded_from)
    return Derived(source, tensors, files)
