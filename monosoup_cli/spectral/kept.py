"""Eigenvectors that are kept in files, for a run that edits the same updates many times."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import torch

from monosoup_cli.spectral.eigen import eigh

__all__ = ["KeptEigenvectors"]


class KeptEigenvectors:
    """Solves as `eigh` does, to the bit, but each matrix once: what it found is in a file by then.

    Args:
        folder: An existing folder for the files. Whoever made it removes it.
        reserve: How many bytes of the disk are left free. What would take them is not kept.
    """

    def __init__(self, folder: Path, reserve: int) -> None:
        self._folder, self._reserve = folder, reserve
        self._lock = threading.Lock()

    def __call__(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the eigenvalues and the eigenvectors of a symmetric matrix.

        Args:
            matrix: (n, n) float64, of which only the upper triangle is read.

        Returns:
            As `eigh`: (n,) on the CPU, and (n, n) on the matrix's device.
        """
        from safetensors.torch import load_file

        name = hashlib.blake2b(matrix.cpu().contiguous().numpy().data, digest_size=32).hexdigest()
        path = self._folder / f"{name}.safetensors"
        if path.exists():
            found = load_file(path)
            vectors = found["vectors"] if "vectors" in found else found["transposed"].T
            return found["values"], vectors.to(matrix.device)
        values, vectors = eigh(matrix)
        self._keep(path, values, vectors)
        return values, vectors

    def _keep(self, path: Path, values: torch.Tensor, vectors: torch.Tensor) -> None:
        """Write a file, if there is room. The order in memory stays; it decides the last bits of products."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        on_cpu = vectors.cpu()
        order = {"vectors": on_cpu} if on_cpu.is_contiguous() else {"transposed": on_cpu.T.contiguous()}
        part = path.with_suffix(f".{threading.get_ident()}")
        with self._lock:  # two workers could both find the last of the room
            try:
                if shutil.disk_usage(self._folder).free - on_cpu.nbytes - values.nbytes < self._reserve:
                    return
                save_file({"values": values.contiguous(), **order}, part)
                part.replace(path)
            except (OSError, SafetensorError):  # the disk is full all the same
                part.unlink(missing_ok=True)
