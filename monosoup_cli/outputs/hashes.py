"""Hashes of a file's tensors in its own `__metadata__`: an edit makes them false, so they are computed anew.

- `sshs_model_hash` is the SHA-256 of all bytes after the header, and `sshs_legacy_hash` the first 8 digits of
  the SHA-256 of 64 KiB from 1 MiB on, as if the file had no metadata but the trainer's (`ss_…`). kohya-ss
  sd-scripts, library/train_util.py, `precalculate_safetensors_hashes`.
- `modelspec.hash_sha256` is the SHA-256 of all bytes after the header, after 0x. Other algorithms have keys
  of their own (`modelspec.hash_…`), which are removed. Stability-AI/ModelSpec, README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from monosoup_cli.formats.header import Header, build_header

__all__ = ["has_hashes", "removed_hashes", "with_true_hashes", "with_unknown_hashes"]

MODEL, LEGACY, SPEC = "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"
UNKNOWN = {MODEL: "0" * 64, LEGACY: "0" * 8, SPEC: f"0x{'0' * 64}"}
"""What stands in the header until the tensors are written; every hash has a fixed length."""
SPEC_HASH = "modelspec.hash_"
LEGACY_START, LEGACY_STOP = 0x100000, 0x110000


def has_hashes(metadata: Mapping[str, str] | None) -> bool:
    """Whether metadata has hashes that depend on the tensors."""
    return any(name in UNKNOWN or name.startswith(SPEC_HASH) for name in metadata or ())


def removed_hashes(metadata: Mapping[str, str] | None) -> list[str]:
    """The names of hashes that are not computed anew, and so removed."""
    return [name for name in metadata or () if name.startswith(SPEC_HASH) and name not in UNKNOWN]


def with_unknown_hashes(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata of tensors that are not written yet."""
    removed = removed_hashes(metadata)
    return {name: UNKNOWN.get(name, text) for name, text in (metadata or {}).items() if name not in removed}


def with_true_hashes(header: Header, sha256: str, read: Callable[[int, int], bytes]) -> Header:
    """A header of the same length with the hashes of the tensors.

    Args:
        header: The header, with metadata that `with_unknown_hashes` made.
        sha256: The SHA-256 of all bytes after the header.
        read: Returns the bytes start:stop after the header.
    """
    metadata = header.metadata or {}
    tensors = sorted(header.tensors.values(), key=lambda tensor: (tensor.start, tensor.stop))
    entries = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    head = build_header(
        entries, {name: text for name, text in metadata.items() if name.startswith("ss_")}
    ).raw
    start, stop = (
        min(max(offset - len(head), 0), header.data_bytes) for offset in (LEGACY_START, LEGACY_STOP)
    )
    window = head[LEGACY_START:LEGACY_STOP] + read(start, stop)
    legacy = hashlib.sha256(window).hexdigest()[: len(UNKNOWN[LEGACY])]
    true = {MODEL: sha256, LEGACY: legacy, SPEC: f"0x{sha256}"}
    return build_header(entries, {name: true.get(name, text) for name, text in metadata.items()})
