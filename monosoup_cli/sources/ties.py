"""Which tensors of a model are one and the same, so that a checkpoint may leave out all but one of them.

Only names and shapes are compared; no byte of a tensor is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from monosoup_cli.sources.alignment import Headers
from monosoup_cli.sources.files import metadata_of
from monosoup_cli.sources.source import Source

__all__ = ["copies_in", "tied_names", "ties_of"]

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
        for outer, (embeddings, heads) in dict.fromkeys(group for name in headers for group in _groups(name))
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


def _groups(name: str) -> list[tuple[str, TiedGroup]]:
    """The groups of TIED that a name belongs to, each with the prefix of its names."""
    parts = name.rsplit(".", MAX_TIED_COMPONENTS)
    for at in range(len(parts)):
        if groups := _tied_groups().get(".".join(parts[at:])):
            outer = "".join(f"{part}." for part in parts[:at])
            return [(outer, group) for group in groups]
    return []


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
