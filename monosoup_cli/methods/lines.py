"""LiNeS: scale the update of a layer linearly with its depth, told from the names of the tensors.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard, "LiNeS: Post-training layer scaling
prevents forgetting and enhances model merging", ICLR 2025 (arXiv 2410.17146). The paper takes the
blocks as given; how they are found in the names is ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from monosoup_cli.errors import MismatchError, UsageError

__all__ = ["Head", "Position", "Scale", "find_blocks", "is_head", "scales"]

Head = Literal["last", "alpha", "ft"]

HEADS = {"lm_head", "score", "classifier", "fc", "head", "heads", "classification_head"}
INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
MAX_COMPONENTS = 64
"""Of a name; what comes after so many says nothing of depth, and would cost its square."""
NUMBERED = re.compile(r"(.*?)([0-9]{1,9})", re.DOTALL)

Blocks = Mapping[int, Collection[str]]
"""The suffixes of the names in each block of a list, by the block's number."""
Places = dict[str, tuple[str, tuple[int, ...]]]
"""The stack of each name in a block, and the numbers that order the blocks of the stack."""


@dataclass(frozen=True)
class Position:
    """Where a tensor stands in depth: block `block` (from 0) of the `length` blocks of `stack`.

    `stack` is the prefix of the blocks' numbers, "model.layers"; where two numbers count, the outer
    one is a star, "stages.*.blocks" or "layer*". It is empty where names begin with the number.
    """

    stack: str
    block: int
    length: int


@dataclass(frozen=True)
class Scale:
    """The factor of a tensor's update, and why: its position, or None and whether it is a head's."""

    value: float
    position: Position | None
    is_head: bool


def scales(
    names: Iterable[str], alpha: float, beta: float, head: Head = "last", pattern: str | None = None
) -> dict[str, Scale]:
    """s of W = W0 + s·Δ for every name: α + β·i/(L−1) in block i of L.

    The only block of a stack gets α + β. Outside blocks s is α, and for a head's tensors α + β
    ("last": a head trained with the model), α ("alpha": the paper's code, whose models keep their
    head elsewhere) or 1 ("ft": as fine-tuned). Raises what `find_blocks` raises, and UsageError.

    >>> names = ["embed.weight", "h.0.mlp.weight", "h.1.mlp.weight", "h.2.mlp.weight", "lm_head.weight"]
    >>> [scale.value for scale in scales(names, 0.5, 0.5).values()]
    [0.5, 0.5, 0.75, 1.0, 1.0]
    """
    if head not in get_args(Head):
        raise UsageError("unknown treatment of the head", expected=", ".join(get_args(Head)), found=head)
    if not math.isfinite(alpha + beta):
        raise UsageError("alpha and beta must be finite", found=f"{alpha} and {beta}")
    names = list(names)
    positions = find_blocks(names, pattern)
    of_heads = {"last": alpha + beta, "alpha": alpha, "ft": 1.0}[head]

    def scale(name: str) -> Scale:
        position = positions.get(name)
        if position is None:
            return Scale(of_heads if is_head(name) else alpha, None, is_head(name))
        depth = 1.0 if position.length == 1 else position.block / (position.length - 1)
        return Scale(alpha + beta * depth, position, False)

    return {name: scale(name) for name in names}


def is_head(name: str) -> bool:
    """Whether a component of the name is one that heads are called by; meant for names outside blocks."""
    return not HEADS.isdisjoint(name.split("."))


def find_blocks(names: Iterable[str], pattern: str | None = None) -> dict[str, Position]:
    """The position of every name that lies in a block; names outside blocks are absent.

    Each stack (encoder and decoder, vision and text) is counted on its own. `pattern`, a regular
    expression searched in each name, replaces the detection: its groups are the numbers, outermost
    first, and names alike up to the first of them are one stack. Raises UsageError for a pattern
    that is none or finds nothing, MismatchError where the names hold no list of blocks.
    """
    places = _detect(names) if pattern is None else _match(names, pattern)
    if not places:
        raise MismatchError(
            "the names of the tensors hold no list of blocks",
            expected="names like 'layers.0.…', 'layers.1.…'",
            hint="--block-pattern tells where the number of a block stands",
        )
    found = defaultdict(set)
    for stack, numbers in places.values():
        found[stack].add(numbers)
    order = {stack: {n: block for block, n in enumerate(sorted(found[stack]))} for stack in found}
    return {
        name: Position(stack, order[stack][numbers], len(order[stack]))
        for name, (stack, numbers) in places.items()
    }


def _match(names: Iterable[str], pattern: str) -> Places:
    """The places of the names that `pattern` matches."""
    try:
        regex = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--block-pattern '{pattern}' is no regular expression: {error}") from None
    if not regex.groups:
        raise UsageError(
            f"--block-pattern '{pattern}' has no group for the number of a block",
            expected=r"a pattern like 'layers\.(\d+)\.'",
        )
    places: Places = {}
    for name in names:
        if match := regex.search(name):
            if not all(re.fullmatch("[0-9]{1,9}", group or "") for group in match.groups()):
                raise UsageError(
                    f"a group of --block-pattern '{pattern}' captures no integer",
                    tensor=name, found=match.groups(),
                )  # fmt: skip
            places[name] = name[: match.start(1)].rstrip("."), tuple(map(int, match.groups()))
    if not places:
        raise UsageError(f"--block-pattern '{pattern}' matches no tensor")
    return places


def _detect(names: Iterable[str]) -> Places:
    """The places of the names that lie in a list of blocks.

    A list of blocks is contiguous from 0, has two blocks or more, and a suffix that stands in most of
    them: a hybrid's blocks, or a dense one before sparse ones, need have no more in common. Lists of
    single layers (`net.0.weight`, `net.1.weight`: an MLP, the embeddings of codebooks) count only
    where there is no list of modules. Of nested lists the outermost counts; see `_inner_list` for
    stages.
    """
    names = list(names)
    lists: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        for prefix, number, suffix in _readings(name):
            lists[prefix][number].append(suffix)
    frequent = {
        prefix: _suffixes_of_most(blocks)
        for prefix, blocks in lists.items()
        if len(blocks) > 1 and _is_contiguous(blocks) and _suffixes_of_most(blocks)
    }
    of_modules = {prefix for prefix in frequent if any("." in suffix for suffix in frequent[prefix])}
    candidates = of_modules or set(frequent)
    outermost = {
        prefix for prefix in candidates if not any(outer in candidates for outer, *_ in _readings(prefix))
    }
    # a middle block's resnets, a lone layer's experts: parts that other blocks have too, not depth
    parts = {(_word(prefix), frequent[prefix]) for prefix in candidates - outermost}
    stacks = {prefix for prefix in outermost if (_word(prefix), frequent[prefix]) not in parts}
    inner = {prefix: _inner_list(prefix, lists) for prefix in stacks}
    numbered = Counter(match[1] for prefix in stacks if (match := NUMBERED.fullmatch(prefix)))

    places: Places = {}
    for name in names:
        for prefix, number, suffix in _readings(name):
            if prefix in stacks:
                numbers: tuple[int, ...] = (number,)
                stack, word = prefix, inner[prefix]
                if word is not None:
                    stack = _join(prefix, "*", word)
                    numbers = number, _block_in_stage(suffix, word, number, lists[prefix])
                # layer1, layer2, … of a ResNet: stages of one stack as well
                if (match := NUMBERED.fullmatch(prefix)) and numbered[match[1]] > 1:
                    stack, numbers = match[1] + "*" + stack[len(prefix) :], (int(match[2]), *numbers)
                places[name] = stack, numbers
                break
    return places


def _inner_list(prefix: str, lists: Mapping[str, Blocks]) -> str | None:
    """What names the blocks of stages: "blocks" in `stages.S.blocks.B`, "" in `block.S.B`.

    None where the outer blocks are no stages. In every stage the inner list is contiguous from 0;
    at least half of the suffixes of each block stand in all of them (not so the parts of a T5
    layer); and the stage holds no more besides than one block does (not so a layer with experts, or
    a block with both resnets and attentions).
    """
    stages = lists[prefix]

    def are_blocks_of(stage: int, word: str) -> bool:
        blocks = lists.get(_join(prefix, str(stage), word), {})
        common = set.intersection(*map(set, blocks.values())) if blocks else set()
        sizes = [len(block) for block in blocks.values()]
        return (
            _is_contiguous(blocks)
            and all(2 * len(common) >= size for size in sizes)
            and len(stages[stage]) - sum(sizes) <= max(sizes)
        )

    words = {word for suffix in stages[0] for word, *_ in islice(_readings(suffix), 1)}
    return next((word for word in words if all(are_blocks_of(stage, word) for stage in stages)), None)


def _block_in_stage(suffix: str, word: str, stage: int, stages: Blocks) -> int:
    """The number of the block that a name of a stage counts with.

    Outside the stage's blocks, what the last stage lacks (Swin's downsample) leads out of a stage
    and counts with its last block; all else (ConvNeXt's downsample) leads in, and counts with the
    first.
    """
    for inner, number, _ in _readings(suffix):
        if inner == word:
            return number
    if suffix in stages[max(stages)]:
        return 0
    return max(number for other in stages[stage] for inner, number, _ in _readings(other) if inner == word)


def _readings(name: str) -> Iterator[tuple[str, int, str]]:
    """Each way to read a name as prefix, integer component, suffix; the outermost first."""
    parts = name.split(".", MAX_COMPONENTS)
    for at, part in enumerate(parts):
        if INTEGER.fullmatch(part):
            yield ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])


def _is_contiguous(blocks: Blocks) -> bool:
    return bool(blocks) and max(blocks) == len(blocks) - 1


def _suffixes_of_most(blocks: Blocks) -> frozenset[str]:
    """The suffixes that stand in more than half of the blocks."""
    count = Counter(suffix for suffixes in blocks.values() for suffix in suffixes)
    return frozenset(suffix for suffix in count if 2 * count[suffix] > len(blocks))


def _word(prefix: str) -> str:
    return prefix.rpartition(".")[2]


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
