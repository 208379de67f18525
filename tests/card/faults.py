"""Faults that happen on purpose, with the errors that torch raises for them."""

from contextlib import contextmanager

import torch

from tests.card.state import STATE, Fault

OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has … (emulated)"
)
NOT_PINNED = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might … (emulated)")
BUSY = torch.AcceleratorError(
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might … (emulated)"
)
"""Also what a card in exclusive mode says while another process uses it."""

NOT_CONVERGED = torch.linalg.LinAlgError(
    "linalg.eigh: (Batch element 0): The algorithm failed to converge because the input matrix is"
    " ill-conditioned or has too many repeated eigenvalues (error code: 7). (emulated)"
)
SOLVER_LACKS_MEMORY = RuntimeError(
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)` (emulated)"
)
BLAS_LACKS_MEMORY = RuntimeError(
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)` (emulated)"
)


@contextmanager
def failing(error, *places, card=None, after=0, times=None):
    """Have something fail.

    Args:
        error: What is raised.
        places: Where: "allocate" (memory on a card), "pin" (memory on the host), "mem_get_info",
            "stream" (a new one), or the name of an operator: "_linalg_eigh", "mm", "copy_".
        card: The index of the card; None is any card.
        after: How often it succeeds before.
        times: How often it fails; None is always.

    Yields:
        The fault. Its `raised` is how often it has happened.
    """
    fault = Fault(error, places, card, after, times)
    STATE.faults.append(fault)
    try:
        yield fault
    finally:
        STATE.faults.remove(fault)
