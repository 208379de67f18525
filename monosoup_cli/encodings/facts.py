"""What codecs ask of headers and configurations: which parts there are, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import AGAIN, TensorInfo

__all__ = ["IF_LOST", "Left", "check_shape", "check_strays", "columns_of", "needed", "stems"]

IF_LOST = f"if a file of the checkpoint is missing, {AGAIN}"


class Left(dict[str, TensorInfo]):
    """The headers of tensors, of which codecs take what they know."""

    @cached_property
    def leaves(self) -> frozenset[str]:
        """What is behind the last dot of names; also of those that have been taken since."""
        return frozenset(name[name.rfind(".") + 1 :] for name in self)


def stems(tensors: Left, *endings: str) -> dict[str, str]:
    """What the names with one of these endings have before it, each with the first such name."""
    found: dict[str, str] = {}
    of_leaves = tuple(ending[ending.rfind(".") + 1 :] for ending in endings)
    if not any(leaf.endswith(of_leaves) for leaf in tensors.leaves):
        return found
    for name in tensors:
        if not name.endswith(endings):
            continue
        for ending in endings:
            if name.endswith(ending):
                found.setdefault(name.removesuffix(ending), name)
    return found


def needed(tensors: Mapping[str, TensorInfo], path: str, name: str, beside: str, *dtypes: str) -> TensorInfo:
    """The header of a tensor without which another one cannot be decoded.

    Args:
        tensors: The headers.
        path: The checkpoint, for errors.
        name: The tensor.
        beside: The other one.
        dtypes: The dtypes that it may have; none for any.

    Raises:
        CheckpointError: It is not there, or of another dtype.
    """
    info = tensors.get(name)
    if info is None:
        raise CheckpointError(
            "a part of an encoded tensor is missing",
            path=path,
            tensor=beside,
            expected=repr(name),
            hint=IF_LOST,
        )
    if dtypes and info.dtype not in dtypes:
        raise CheckpointError(
            "a part of an encoded tensor is of another dtype",
            path=path,
            tensor=name,
            expected=" or ".join(dtypes),
            found=info.dtype,
        )
    return info


def check_shape(path: str, part: TensorInfo, *wanted: Sequence[int]) -> None:
    """Raise CheckpointError if a part has none of the shapes that fit the other parts of its tensor."""
    if part.shape not in map(tuple, wanted):
        raise CheckpointError(
            "a part of an encoded tensor does not fit the others",
            path=path,
            tensor=part.name,
            expected=" or ".join(str(list(shape)) for shape in wanted),
            found=list(part.shape),
        )


def columns_of(path: str, codes: TensorInfo, in_byte: int, group: int) -> int:
    """How many columns a matrix of packed codes has.

    Args:
        path: The checkpoint, for errors.
        codes: The header of the bytes.
        in_byte: How many codes a byte has.
        group: How many columns share a scale.

    Raises:
        CheckpointError: It is no matrix, or a group of columns is cut off.
    """
    columns = in_byte * codes.shape[-1] if codes.shape else 1
    if columns % group:
        raise CheckpointError(
            "the columns of codes are not whole groups",
            path=path,
            tensor=codes.name,
            expected=f"a multiple of {group}",
            found=list(codes.shape),
        )
    return columns


def check_strays(tensors: Mapping[str, TensorInfo], decoded: Collection[str], path: str) -> None:
    """Check what is left beside decoded tensors.

    Args:
        tensors: The tensors that are read as they are.
        decoded: The names of those that are decoded.
        path: The checkpoint, for errors.

    Raises:
        CheckpointError: One of them is also there as it is, or something beside it changes what it means.
    """
    for name in tensors if decoded else ():
        module, _, own = name.rpartition(".")
        if name in decoded:
            raise CheckpointError("the tensor is stored twice, as codes and as it is", path=path, tensor=name)
        is_beside = f"{module}.weight" in decoded and not own.endswith("bias")
        if module in decoded or is_beside:
            raise CheckpointError(
                "the tensor belongs to codes, and how it changes them is not known", path=path, tensor=name
            )
