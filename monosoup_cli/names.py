"""Read the names of tensors: the depth and kind of a layer, and whether it is part of a head."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from monosoup_cli.errors import MismatchError, UsageError

__all__ = [
    "ALIKE",
    "KINDS",
    "FileForm",
    "NameParts",
    "Position",
    "are_experts_apart",
    "counterparts",
    "find_blocks",
    "in_order",
    "is_head",
    "places",
]

HEADS = {"lm_head", "score", "classifier", "fc", "head", "heads", "classification_head"}
INTEGER = re.compile(r"0|[1-9][0-9]{0,8}")
MAX_DIGITS = 18
"""How many digits of a number in a name are read."""
MAX_COMPONENTS = 64
"""How many components of a name are read: more say nothing, and the time is quadratic."""
FUSED_EXPERTS = re.compile(r"\.experts\.[^.0-9]+")
NUMBERED_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
NUMBERED = re.compile(r"(.*?)([0-9]{1,9})", re.DOTALL)

FileForm = Literal["diffusers", "kohya"]
"""Whose names a file with a whole LoRA adapter has."""
Blocks = Mapping[int, Collection[str]]
"""The suffixes of the names in each block of a list, by the block's number."""
Numbered = dict[str, tuple[str, tuple[int, ...]]]
"""The stack of each name in a block, and the numbers by which the blocks of the stack are ordered."""


KINDS = ("embedding", "attention", "mlp", "convolution", "head", "other")
KIND_WORDS = {
    "embedding": r"emb|wte|wpe|\bshared\b|position|relative_attention_bias",
    "attention": r"^(?!.*\bff\b).*(att|query|\b[qkvo](_|\b)|qkv)",
    "mlp": r"mlp|ffn?\d?\b|feed_?forward|\b(pre_)?fc\d?|expert|moe|intermediate|\b(w|wi|wo|lin|linear)_?\d?\b"
    r"|dense|gate|(up|down)_proj|c_(fc|proj)",
    "convolution": r"conv|downsample",
}
"""Patterns of lower-case names for the kinds of layers. The first match counts."""
BEFORE_BLOCKS = re.compile(
    r"emb|patch|stem|cls_token|conv_?(1|in)\b|(?<![a-z])(ln_)?pre_?(norm|ln)?(?![a-z])"
)
"""Lower-case names outside blocks of what comes before the blocks, beside embeddings."""


@dataclass(frozen=True)
class Position:
    """The block to which a tensor belongs.

    Attributes:
        stack: The prefix of the blocks' numbers, such as "model.layers". If two numbers count, the outer one
            is a star: "stages.*.blocks" or "layer*". Empty if names start with the number.
        block: The index of the block in the stack, from 0.
        length: The number of blocks in the stack.
    """

    stack: str
    block: int
    length: int


@dataclass(frozen=True)
class NameParts:
    """What the name of a layer says about it.

    Attributes:
        kind: One of KINDS.
        position: The block; None outside blocks.
        part: The name that the layer has in every block, such as "self_attn.q_proj".
    """

    kind: str
    position: Position | None
    part: str


def places(shapes: Mapping[str, Sequence[int]]) -> dict[str, NameParts]:
    """Return the place of every tensor of a checkpoint, by name.

    Args:
        shapes: The shapes of all its tensors.

    >>> places({"h.0.attn.w": (4, 4), "h.1.attn.w": (4, 4), "wte.weight": (9, 4)})["h.1.attn.w"].part
    'attn.w'
    """
    try:
        positions = find_blocks(shapes)
    except MismatchError:  # no tensor is in a block
        positions = {}
    return {name: _place(name, shape, positions.get(name)) for name, shape in shapes.items()}


def in_order(where: Mapping[str, NameParts]) -> list[str]:
    """Sort the names of tensors by depth: embeddings first, then block by block, then norms, and heads last.

    Encoders come before decoders. Numbers count as numbers; what else is in a block stays as it was.

    Args:
        where: The place of every tensor, from `places`.

    >>> shapes = {"head.w": (9, 4), "h.10.w": (4, 4), "h.2.w": (4, 4), "norm.w": (4,), "wte.w": (9, 4)}
    >>> in_order(places(shapes | {f"h.{block}.w": (4, 4) for block in range(10)}))[3:]
    ['h.2.w', 'h.3.w', 'h.4.w', 'h.5.w', 'h.6.w', 'h.7.w', 'h.8.w', 'h.9.w', 'h.10.w', 'norm.w', 'head.w']
    """
    found = dict.fromkeys(place.position.stack for place in where.values() if place.position is not None)
    stacks = {stack: at for at, stack in enumerate(sorted(found, key=lambda stack: "decoder" in stack))}
    words: dict[tuple[tuple[int, ...], str], int] = {}

    def depth(name: str) -> tuple[int, ...]:
        place = where[name]
        if place.position is not None:
            return 1, stacks[place.position.stack], place.position.block
        if place.kind == "head":
            return (3,)
        return (0 if place.kind == "embedding" or BEFORE_BLOCKS.search(name.lower()) else 2,)

    def key(name: str) -> tuple[tuple[int, ...], list[int]]:
        """The depth; and in it, the numbers in the name, and when each part between them was first seen."""
        at = depth(name)
        parts = re.split(r"([0-9]+)", name)
        return at, [
            int(part[:MAX_DIGITS]) if number % 2 else words.setdefault((at, part), len(words))
            for number, part in enumerate(parts)
        ]

    keys = {name: key(name) for name in where}
    return sorted(where, key=keys.__getitem__)


def _place(name: str, shape: Sequence[int], position: Position | None) -> NameParts:
    if position is None:
        kind = "head" if is_head(name) else _kind(name, shape)
        return NameParts(kind, None, name.removesuffix(".weight"))
    starred = ".".join("*" if INTEGER.fullmatch(part) else part for part in name.split("."))
    prefix = _join(position.stack, "*.")
    part = starred.removeprefix(prefix) if starred.startswith(prefix) else starred.partition("*.")[2]
    return NameParts(_kind(part, shape), position, part.removesuffix(".weight"))


def _kind(name: str, shape: Sequence[int]) -> str:
    if re.search(r"norm|\bln_", name.lower()):
        return "other"
    for kind, words in KIND_WORDS.items():
        if re.search(words, name.lower()):
            return kind
    return "convolution" if len(shape) > 3 else "other"


def is_head(name: str) -> bool:
    """Return whether a component of the name is one of HEADS. Only meaningful outside blocks."""
    return not HEADS.isdisjoint(name.split("."))


ALIKE = (
    "to store them alike, load each with transformers and save_pretrained(NEW, save_original_format=False)"
)
"""The way out where experts are fused in one checkpoint and stored one by one in another."""


def are_experts_apart(names: Collection[str], others: Collection[str]) -> bool:
    """Return whether experts are fused under names that only one has, and numbered under the other's."""
    return any(
        any(map(FUSED_EXPERTS.search, one)) and any(map(NUMBERED_EXPERT.search, other))
        for one, other in ((names, others), (others, names))
    )


def counterparts(
    shapes: Mapping[str, Sequence[int]], others: Mapping[str, Sequence[int]]
) -> tuple[str, str | None]:
    """Return a name of each side that may be the same tensor: a matrix, with most last components in common.

    Args:
        shapes: The shapes of tensors, by name.
        others: Those of the other side. If it has none, the second name is None.
    """

    def endings(name: str) -> Iterator[tuple[str, ...]]:
        parts = name.split(".")[-MAX_COMPONENTS:]
        return (tuple(parts[at:]) for at in range(len(parts) + 1))

    first: dict[object, str] = {}
    for name in sorted(others, key=lambda name: len(others[name]) < 2):  # matrices first
        for ending in endings(name):
            first.setdefault(ending, name)
            first.setdefault((ending, tuple(others[name])), name)
    pairs = [
        ((len(shape) > 1, len(ending), key != ending), name, first[key])
        for name, shape in shapes.items()
        for ending in endings(name)
        for key in (ending, (ending, tuple(shape)))
        if key in first
    ]
    if not pairs:
        return max(shapes, key=lambda name: len(shapes[name]) > 1), None
    _, name, other = max(pairs, key=lambda pair: pair[0])
    return name, other


def find_blocks(names: Iterable[str], pattern: str | None = None) -> dict[str, Position]:
    """Find the blocks of a model.

    The blocks of each stack (encoder and decoder, vision and text) are counted separately.

    Args:
        names: The names of all tensors.
        pattern: A regular expression that is searched in each name, instead of the detection. Its groups are
            the numbers, the outermost first. Names with the same text up to the first group are one stack.

    Returns:
        The position of every name in a block. Names outside blocks are absent.

    Raises:
        UsageError: The pattern is invalid or matches nothing.
        MismatchError: The names contain no list of blocks.
    """
    places = _detect(names) if pattern is None else _match(names, pattern)
    if not places:
        raise MismatchError(
            "the tensor names contain no list of blocks",
            expected="names like 'layers.0.…', 'layers.1.…'",
            hint="use --block-pattern to capture the block number",
        )
    found = defaultdict(set)
    for stack, numbers in places.values():
        found[stack].add(numbers)
    order = {stack: {n: block for block, n in enumerate(sorted(found[stack]))} for stack in found}
    return {
        name: Position(stack, order[stack][numbers], len(order[stack]))
        for name, (stack, numbers) in places.items()
    }


def _match(names: Iterable[str], pattern: str) -> Numbered:
    """The stacks and numbers of the names that `pattern` matches."""
    try:
        regex = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--block-pattern '{pattern}' is not a valid regular expression: {error}") from None
    if not regex.groups:
        raise UsageError(
            f"--block-pattern '{pattern}' has no group for the number of a block",
            expected=r"a pattern like 'layers\.(\d+)\.'",
        )
    places: Numbered = {}
    for name in names:
        if match := regex.search(name):
            if not all(re.fullmatch("[0-9]{1,9}", group or "") for group in match.groups()):
                raise UsageError(
                    f"a group of --block-pattern '{pattern}' captures text that is not an integer",
                    tensor=name,
                    found=match.groups(),
                )
            places[name] = name[: match.start(1)].rstrip("."), tuple(map(int, match.groups()))
    if not places:
        raise UsageError(f"--block-pattern '{pattern}' matches no tensor")
    return places


def _detect(names: Iterable[str]) -> Numbered:
    """The stacks and numbers of the names that are in a list of blocks.

    The numbers of a list of blocks are contiguous from 0. It has at least two blocks, and a suffix that is in
    most of them: the blocks of a hybrid, or a dense block before sparse ones, may have no more in common.
    Lists of single layers (`net.0.weight`, `net.1.weight`: an MLP, the embeddings of codebooks) only count if
    there is no list of modules. Of nested lists, the outermost counts; see `_inner_list` for stages.
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
    # the resnets of a middle block, the experts of a single layer: other blocks have these parts, too
    parts = {(_word(prefix), frequent[prefix]) for prefix in candidates - outermost}
    stacks = {prefix for prefix in outermost if (_word(prefix), frequent[prefix]) not in parts}
    inner = {prefix: _inner_list(prefix, lists) for prefix in stacks}
    numbered = Counter(match[1] for prefix in stacks if (match := NUMBERED.fullmatch(prefix)))

    places: Numbered = {}
    for name in names:
        for prefix, number, suffix in _readings(name):
            if prefix in stacks:
                numbers: tuple[int, ...] = (number,)
                stack, word = prefix, inner[prefix]
                if word is not None:
                    stack = _join(prefix, "*", word)
                    numbers = number, _block_in_stage(suffix, word, number, lists[prefix])
                # layer1, layer2, … of a ResNet are stages of one stack, too
                if (match := NUMBERED.fullmatch(prefix)) and numbered[match[1]] > 1:
                    stack, numbers = match[1] + "*" + stack[len(prefix) :], (int(match[2]), *numbers)
                places[name] = stack, numbers
                break
    return places


def _inner_list(prefix: str, lists: Mapping[str, Blocks]) -> str | None:
    """The name of the blocks in stages: "blocks" in `stages.S.blocks.B`, "" in `block.S.B`.

    None if the outer blocks are not stages. In every stage, the inner list is contiguous from 0. At least
    half of the suffixes of each block are in all blocks (unlike the parts of a T5 layer). Outside these
    blocks the stage has no more tensors than one block (unlike a layer with experts, or a block with both
    resnets and attentions).
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
    return next((word for word in sorted(words) if all(are_blocks_of(stage, word) for stage in stages)), None)


def _block_in_stage(suffix: str, word: str, stage: int, stages: Blocks) -> int:
    """The number of the block in a stage to which a name belongs.

    Names outside the blocks belong to the last block if the last stage lacks them (Swin's downsample, which
    leads out of a stage), and else to the first (ConvNeXt's downsample, which leads into one).
    """
    for inner, number, _ in _readings(suffix):
        if inner == word:
            return number
    if suffix in stages[max(stages)]:
        return 0
    return max(number for other in stages[stage] for inner, number, _ in _readings(other) if inner == word)


def _readings(name: str) -> Iterator[tuple[str, int, str]]:
    """Yield each way to read a name as (prefix, integer component, suffix), the outermost first."""
    parts = name.split(".", MAX_COMPONENTS)
    for at, part in enumerate(parts):
        if INTEGER.fullmatch(part):
            yield ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])


def _is_contiguous(blocks: Blocks) -> bool:
    return bool(blocks) and max(blocks) == len(blocks) - 1


def _suffixes_of_most(blocks: Blocks) -> frozenset[str]:
    """The suffixes that are in more than half of the blocks."""
    count = Counter(suffix for suffixes in blocks.values() for suffix in suffixes)
    return frozenset(suffix for suffix in count if 2 * count[suffix] > len(blocks))


def _word(prefix: str) -> str:
    return prefix.rpartition(".")[2]


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
