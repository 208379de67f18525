"""Which tensors of a model are one and the same, so that a checkpoint may leave out all but one of them.

Names, shapes and configurations tell. Whether a copy that nobody needs is one is known from its values alone,
which `check_copies` reads when the work begins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from monosoup_cli.errors import MismatchError
from monosoup_cli.sources.alignment import Headers
from monosoup_cli.sources.derived import renamed
from monosoup_cli.sources.files import metadata_of
from monosoup_cli.sources.read import read_stored
from monosoup_cli.sources.source import Source

__all__ = ["Copy", "check_copies", "copies_in", "tied_names", "ties_in", "ties_of", "without_copies"]

EMBEDDED = "embed_tokens.weight"
MASKED_HEADS = {
    "cls.predictions.decoder": ("bert", "deberta", "ernie", "roformer", "mobilebert", "layoutlm", "fnet"),
    "lm_head.decoder": ("roberta", "roberta_prelayernorm", "mpnet", "longformer", "esm", "data2vec_text"),
    "vocab_projector": ("distilbert",),
    "generator_lm_head": ("electra", "convbert"),
    "predictions.decoder": ("albert",),
}
"""The heads of masked language models, mapped to what precedes `embeddings` in the names of their models."""
TiedGroup = tuple[tuple[str, ...], tuple[str, ...]]
TIED: tuple[TiedGroup, ...] = (
    # Llama and similar models; a language model inside a larger one; without the class of the head
    *(
        ((f"{where}{EMBEDDED}",), ("lm_head.weight",))
        for where in ("model.", "model.language_model.", "model.text_model.", "")
    ),
    # GPT-2, GPT-J; Bloom, Falcon; OpenAI's GPT; Mamba; GPT-NeoX
    *(
        ((embedding,), ("lm_head.weight",))
        for embedding in (
            "transformer.wte.weight",
            "wte.weight",
            "transformer.word_embeddings.weight",
            "transformer.tokens_embed.weight",
            "backbone.embeddings.weight",
        )
    ),
    (("gpt_neox.embed_in.weight",), ("lm_head.weight", "embed_out.weight")),
    # T5; BART, Marian, Whisper, OPT; the sides of a translator share one embedding by construction
    (("shared.weight", f"encoder.{EMBEDDED}", f"decoder.{EMBEDDED}"), ("lm_head.weight",)),
    (
        ("model.shared.weight", f"model.encoder.{EMBEDDED}", f"model.decoder.{EMBEDDED}"),
        ("lm_head.weight", "proj_out.weight"),
    ),
    *(
        ((f"{model}.embeddings.word_embeddings.weight",), (f"{head}.weight",))
        for head, models in MASKED_HEADS.items()
        for model in models
    ),
    *(
        ((f"{head.removesuffix('.decoder')}.bias",), (f"{head}.bias",))
        for head in MASKED_HEADS
        if head.endswith(".decoder")
    ),
    (("model.embeddings.tok_embeddings.weight",), ("decoder.weight",)),  # ModernBERT
)
"""(names of one embedding, names of heads tied to it), from the `_tied_weights_keys` of transformers."""
BLOCK = 1 << 20
"""How many elements of two tensors are compared at once."""
MAX_TIED_COMPONENTS = 4
"""The most components of a name in TIED."""
TIED_CONFIGS = ("text_config", "decoder", "language_config", "llm_config")
"""The parts of a config that may describe the head of its language model, besides the config itself."""
WITH_HEAD = re.compile(r"(For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)|LMHeadModel|MTModel)$")
"""The ends of class names of models with such a head."""


def tied_names(
    headers: Headers, config: Mapping[str, Any] | None, metadata: Mapping[str, str], tied: Mapping[str, str]
) -> dict[str, str]:
    """Map names that a checkpoint leaves out to the names of the tensors with their weights.

    Conventions hold for many models, so the result also contains names that this model never had. Shapes are
    not compared.

    Args:
        headers: The tensors of the checkpoint.
        config: The content of its config.json.
        metadata: Its metadata, in which safetensors' `save_model` notes {left out: kept}.
        tied: The same from the reader of the checkpoint.
    """
    noted = {**metadata, **tied}
    found = {name: kept for name, kept in noted.items() if kept in headers and name not in headers}
    has_tied_head = _has_tied_head(config)
    groups = [
        ([outer + name for name in embeddings], [outer + name for name in heads])
        for outer, (embeddings, heads) in dict.fromkeys(
            group for name in headers if name.endswith(_tied_ends()) for group in _groups(name)
        )
    ]
    held = {
        head for embeddings, heads in groups if any(name in headers for name in embeddings) for head in heads
    }
    for embeddings, heads in groups:
        names = [*embeddings, *(heads if has_tied_head else ())]
        holder = next((name for name in names if name in headers), None)
        if holder is not None and holder not in held:
            for name in names:
                if name not in headers:
                    found.setdefault(name, holder)
    return found


def copies_in(other: Source, first: Source, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of a name that the first leaves out and one that it has, of tensors that share their elements."""
    read_as = {stored: name for name, stored in names.items()}
    copies = []
    for shard in other.files.shards:
        for holder in dict.fromkeys(shard.tied.values()):
            twins = [holder, *(copy for copy, kept in shard.tied.items() if kept == holder)]
            group = [read_as[twin] for twin in twins]
            kept = next((name for name in group if name in first.tensors), None)
            if kept is not None:
                copies += [(name, kept) for name in group if name not in first.tensors]
    return copies


def ties_of(other: Source, first: Source, names: Mapping[str, str]) -> dict[str, str]:
    """The names that `other` leaves out, mapped to the names that have their weights, as either says."""
    config = other.files.config if other.files.config is not None else first.model.config
    headers = {name: other.tensors[stored] for name, stored in names.items()}
    ties = dict(tied_names(headers, config, metadata_of(other.files), {}))
    for one, two in ((one, two) for shard in first.files.shards for one, two in shard.tied.items()):
        for missing, holder in ((one, two), (two, one)):
            if missing not in names and holder in names:
                ties.setdefault(missing, holder)
    return {missing: holder for missing, holder in ties.items() if missing not in names and holder in names}


def ties_in(first: Source, base: Source | None) -> dict[str, str]:
    """The names that the first fine-tuned checkpoint leaves out, mapped to the names with their weights.

    Where it has no config.json, that of its base tells.
    """
    config = first.model.config
    if config is None and base is not None:
        config = base.files.config
    shared = {copy: kept for shard in first.files.shards for copy, kept in shard.tied.items()}
    return tied_names(first.tensors, config, metadata_of(first.model), shared)


class Copy(NamedTuple):
    """A tensor that is left out because another one has to be the same.

    Attributes:
        name: Its name.
        kept: The name of the other one.
        source: The checkpoint that has both.
        number: Which of the fine-tuned checkpoints that is, from 1.
    """

    name: str
    kept: str
    source: Source
    number: int


def without_copies(other: Source, first: Source, number: int) -> tuple[Source, list[Copy]]:
    """The checkpoint without what the first one leaves out because it is tied, such as the head of a model.

    Args:
        other: A further fine-tuned checkpoint, under the names of the first.
        first: The first one.
        number: Which one `other` is, from 1.
    """
    config = first.model.config if first.model.config is not None else other.files.config
    ties = tied_names(first.tensors, config, metadata_of(first.model), {})
    copies = [
        Copy(name, kept, other, number)
        for name, kept in ties.items()
        if name in other.tensors
        and kept in other.tensors
        and other.tensors[name].shape == other.tensors[kept].shape
    ]
    if not copies:
        return other, []
    left_out = {copy.name for copy in copies}
    words = [f"without {copy.name!r}, a copy of {copy.kept!r}, to which it is tied" for copy in copies]
    return renamed(other, {name: name for name in other.tensors if name not in left_out}, words), copies


def check_copies(copies: Iterable[Copy], leaves_out: Callable[[str], bool]) -> None:
    """Read what was left out as a copy, and what it should be a copy of, block by block.

    Args:
        copies: What was left out.
        leaves_out: Whether the user leaves a tensor out by its name, so that it need not be one.

    Raises:
        MismatchError: It is not a copy, but has values of its own, with which transformers loads it.
    """
    for copy in copies:
        if not leaves_out(copy.name) and not _are_same(copy.source, copy.name, copy.kept):
            raise MismatchError(
                f"has other values than {copy.kept!r}, to which the first fine-tuned checkpoint ties it",
                path=copy.source.path,
                tensor=copy.source.tensors[copy.name].name,
                hint=f"give number {copy.number} first to keep it; --exclude drops such tensors",
            )


def _are_same(source: Source, one: str, other: str) -> bool:
    """Whether two tensors of one shape are the same, byte for byte."""
    size = source.tensors[one].elements
    blocks = ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
    return source.reader(one).dtype == source.reader(other).dtype and all(
        read_stored(source, one, *block) == read_stored(source, other, *block) for block in blocks
    )


def _groups(name: str) -> list[tuple[str, TiedGroup]]:
    """The groups of TIED that a name belongs to, each with the prefix of its names."""
    parts = name.rsplit(".", MAX_TIED_COMPONENTS)
    for at in range(len(parts)):
        if groups := _tied_groups().get(".".join(parts[at:])):
            outer = "".join(f"{part}." for part in parts[:at])
            return [(outer, group) for group in groups]
    return []


@cache
def _tied_ends() -> tuple[str, ...]:
    """The last two components of names in TIED: most names end otherwise."""
    return tuple({".".join(name.rsplit(".", 2)[-2:]) for name in _tied_groups()})


@cache
def _tied_groups() -> dict[str, list[TiedGroup]]:
    groups = defaultdict(list)
    for embeddings, heads in TIED:
        for name in (*embeddings, *heads):
            groups[name].append((embeddings, heads))
    return dict(groups)


def _has_tied_head(config: Mapping[str, Any] | None) -> bool:
    """Return whether a model with this config ties its head to its embedding.

    The default of transformers was to tie, so configs that do not say count as tied.
    """
    if config is None:
        return False
    parts = [config, *(config[name] for name in TIED_CONFIGS if isinstance(config.get(name), dict))]
    ties = [part["tie_word_embeddings"] for part in parts if part.get("tie_word_embeddings") is not None]
    if ties:
        return any(tie is True for tie in ties)
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(WITH_HEAD.search(str(name)) for name in architectures)
