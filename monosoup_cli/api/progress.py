"""The argument `progress` of the functions: a callback, or a class of progress bars such as tqdm's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from monosoup_cli.pipeline.engine import Progress
    from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["Watch", "watched"]

Watch: TypeAlias = type[Any] | Callable[[Any, bool], None] | None
"""A `Progress`; a class that is called with `desc`, `total`, `unit` and `unit_scale`, and whose bars are
updated and closed, as tqdm; or nothing."""


@contextmanager
def watched(watch: Watch, tensors: Sequence[PlannedTensor], doing: str) -> Iterator[Progress]:
    """Yield the callback for some tensors: the user's own, or one that moves a new bar of the user's class.

    A bar counts the bytes of the tensors, so that its percentage and its time left are those of the work.
    `doing` stands before it.
    """
    from monosoup_cli.pipeline.engine import ignore

    if watch is None or not tensors:
        yield ignore
    elif not isinstance(watch, type):
        yield watch
    else:
        lock = Lock()
        total = sum(tensor.nbytes for tensor in tensors)
        bar = watch(desc=doing, total=total, unit="B", unit_scale=True)

        def move(tensor: PlannedTensor, is_done: bool) -> None:
            if is_done:
                with lock:
                    bar.update(tensor.nbytes)

        try:
            yield move
        finally:
            bar.close()
