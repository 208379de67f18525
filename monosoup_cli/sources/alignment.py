"""Names that differ between checkpoints of one model: renamed, wrapped by a library, or left out as tied.

The output has the names of the first fine-tuned checkpoint, and all others are read under these. What
libraries put in front of names, and `torch.compile` into them, is recognised where both sides then match;
for the rest there is `--rename`. Decided from names and shapes; no byte of a tensor is read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.header import TensorInfo

__all__ = ["Alignment", "Rename", "align", "suggestion", "tied_names"]

Headers = Mapping[str, TensorInfo]

WRAPPER = re.compile(r"(base_model\.model|module|model)\.")
"""What libraries put in front of names: peft, DDP, Lightning and the models with a head."""
WRAPPERS = re.compile(rf"({WRAPPER.pattern}){{0,8}}")
COMPILED = "_orig_mod"
"""The component that `torch.compile` inserts, in front of names or where a submodule was compiled."""
MAX_NAMESAKES = 8
"""Names that differ by wrappers alone; of more, each would be tried with each, and tells nothing."""

MAX_COMPONENTS = 32
MAX_COMPARED = 20_000
"""Names of each side that a suggestion is drawn from: it is a hint, and their suffixes take memory."""
MAX_TWINS = 4
MANY = 1 / 4
"""Of the first checkpoint's names; of fewer that match none, a new head is the likely reason."""
ENOUGH = 1 / 3
"""Of these names, that a suggestion must explain."""


@dataclass(frozen=True)
class Rename:
    """One `--rename OLD=NEW`, of runs of whole components: an empty `new` removes `old`, an empty `old`
    puts `new` in front of names."""

    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> Rename:
        """Raises UsageError for what is no OLD=NEW."""
        old, equals, new = text.partition("=")
        old, new = old.removesuffix("."), new.removesuffix(".")
        if not equals or old == new:
            raise UsageError(
                f"--rename {text!r} renames nothing", expected="OLD=NEW, as 'transformer.h=model.layers'"
            )
        return cls(old, new)

    def apply(self, names: Iterable[str]) -> list[str]:
        if not self.old:
            return [f"{self.new}.{name}" for name in names]
        run, new = re.compile(rf"\.{re.escape(self.old)}(?=\.)"), f".{self.new}" if self.new else ""
        # dots around the name stand for its ends; what holds no OLD at all need not be looked through
        return [run.sub(lambda _: new, f".{name}.")[1:-1] if self.old in name else name for name in names]

    def __str__(self) -> str:
        return f"{self.old}={self.new}"


@dataclass(frozen=True)
class Alignment:
    """How a checkpoint's names stand to those of the first fine-tuned one.

    `stored` leads from a name as the first would have it to the name in this checkpoint, in its order and
    for every tensor once; `said` is what was recognised, for people; `unused` are the renames that
    matched no name.
    """

    stored: Mapping[str, str]
    said: tuple[str, ...]
    unused: tuple[Rename, ...]


def align(other: Headers, first: Headers, renames: Sequence[Rename], path: str) -> Alignment:
    """Read the names of `other`, the checkpoint at `path`, as `first` would have them.

    Renames come first, in their order, unless more names match without them. Names that match then are
    left alone, and of the others the wrappers are recognised. Raises MismatchError where a rename makes
    one name of two.
    """
    names, said, unused = list(other), [], []
    renamed = names
    for rename in renames:
        renamed = rename.apply(renamed)
    is_wanted = sum(name in first for name in renamed) >= sum(name in first for name in names)
    for rename in renames if is_wanted else ():
        before, names = names, rename.apply(names)
        count = sum(name != old for name, old in zip(names, before, strict=True))
        if count:
            said.append(f"{_reading(rename.old, rename.new)} {_tensors(count)}")
        else:
            unused.append(rename)
    stored: dict[str, str] = {}
    for name, old in zip(names, other, strict=True):
        if name in stored:
            raise MismatchError(
                "--rename makes one name of two",
                path=path,
                tensor=name,
                found=f"{stored[name]!r} and {old!r}",
                hint="a longer OLD tells them apart",
            )
        stored[name] = old
    unwrapped, recognised = _unwrap({name: other[old] for name, old in stored.items()}, first)
    return Alignment(
        {unwrapped.get(name, name): old for name, old in stored.items()},
        (*said, *recognised),
        tuple(unused) if is_wanted else tuple(renames),
    )


def _reading(old: str, new: str) -> str:
    if not new:
        return f"without '{old}.'"
    return f"with '{new}' for '{old}'" if old else f"with '{new}.' before"


def _tensors(count: int) -> str:
    return "(1 tensor)" if count == 1 else f"({count:,} tensors)"


def _unwrap(other: Headers, first: Headers) -> tuple[dict[str, str], list[str]]:
    """Names of `other` without a match → names of `first` without one, where they differ by wrappers
    alone; and what these are, for people.

    The difference that most names show comes first; one by which most shapes disagree is a coincidence,
    or leads to another model.
    """
    ours, theirs = _unmatched_cores(other, first), _unmatched_cores(first, other)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for core, names in ours.items():
        for name, wrappers in names.items():
            for target, target_wrappers in theirs.get(core, {}).items():
                pairs[_difference(wrappers, target_wrappers)].append((name, target))
    found: dict[str, str] = {}
    taken: set[str] = set()
    said: Counter[str] = Counter()
    for (old, new), candidates in sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])):
        chosen: dict[str, str] = {}
        for name, target in candidates:
            if name not in found and name not in chosen and target not in taken:
                chosen[name] = target
                taken.add(target)
        fitting = sum(_is_fitting(other[name], first[target]) for name, target in chosen.items())
        if 2 * fitting < len(chosen):
            taken.difference_update(chosen.values())
            continue
        found |= chosen
        if old or new:
            said[_reading(old, new)] += len(chosen)
        for name, target in chosen.items():
            if _is_compiled(name) != _is_compiled(target):
                said[f"with{'out' if _is_compiled(name) else ''} '{COMPILED}'"] += 1
            elif not old and not new:
                said[f"with '{COMPILED}' in another place"] += 1
    return found, [f"{reading} {_tensors(count)}" for reading, count in said.items() if count]


def _unmatched_cores(headers: Headers, matched: Headers) -> dict[str, dict[str, tuple[str, ...]]]:
    """What is left of the names without a match when wrappers are taken off → name → its wrappers."""
    cores: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for name in headers:
        if name not in matched:
            plain = name
            if COMPILED in name:
                plain = ".".join(part for part in name.split(".") if part != COMPILED)
            outer = WRAPPERS.match(plain)
            assert outer is not None  # it matches nothing, too
            cores[plain[outer.end() :]][name] = tuple(WRAPPER.findall(outer[0]))
    return {core: names for core, names in cores.items() if len(names) <= MAX_NAMESAKES}


def _difference(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, str]:
    """What stands in front of what both have in common, next to the core."""
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return ".".join(old), ".".join(new)


def _is_compiled(name: str) -> bool:
    return COMPILED in name.split(".")


def _is_fitting(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Whether they have one shape, or are matrices of another number of rows: a resized vocabulary."""
    if tensor.shape == other.shape:
        return True
    return len(tensor.shape) > 1 and tensor.shape[1:] == other.shape[1:]


def suggestion(other: Headers, first: Headers) -> str | None:
    """The `--rename` that would have most names of `other` match those of `first`, where many match none.

    Names are those that `align` ended with. Drawn from names that end alike and have the same shape.
    """
    ours = [name for name in other if name not in first]
    theirs = [name for name in first if name not in other]
    if len(theirs) < MANY * len(first):
        return None
    by_suffix: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for target in theirs[:MAX_COMPARED]:
        for suffix in _suffixes(target):
            twins = by_suffix[suffix, first[target].shape]
            if len(twins) <= MAX_TWINS:
                twins.append(target)
    votes: Counter[Rename] = Counter()
    for name in ours[:MAX_COMPARED]:
        for suffix in _suffixes(name):
            if twins := by_suffix.get((suffix, other[name].shape), []):
                if len(twins) <= MAX_TWINS:
                    votes.update(
                        Rename(*(each[: -len(suffix)].removesuffix(".") for each in (name, target)))
                        for target in twins
                    )
                break
    gains = {rename: _gain(rename, other, first) for rename, _ in votes.most_common(MAX_TWINS)}
    best = max(gains, key=lambda rename: gains[rename], default=None)
    if best is None or gains[best] < max(ENOUGH * min(len(ours), len(theirs)), 2):
        return None
    return f"--rename {best}"


def _suffixes(name: str) -> Iterable[str]:
    """The ends of the name that are whole components; the longest, the name itself, first."""
    yield name
    starts = (match.end() for match in re.finditer(r"\.", name))
    yield from (name[start:] for start in islice(starts, MAX_COMPONENTS))


def _gain(rename: Rename, other: Headers, first: Headers) -> int:
    """How many names more match with it, in their shapes too."""
    renamed = dict(zip(rename.apply(other), other.values(), strict=True))
    if len(renamed) < len(other):
        return 0

    def matches(headers: Headers) -> int:
        return sum(name in first and first[name].shape == headers[name].shape for name in headers)

    return matches(renamed) - matches(other)


EMBEDDED = "embed_tokens.weight"
MASKED_HEADS = {
    "cls.predictions.decoder": ("bert", "deberta", "ernie", "roformer", "mobilebert", "layoutlm", "fnet"),
    "lm_head.decoder": ("roberta", "roberta_prelayernorm", "mpnet", "longformer", "esm", "data2vec_text"),
    "vocab_projector": ("distilbert",),
    "generator_lm_head": ("electra", "convbert"),
    "predictions.decoder": ("albert",),
}
"""The heads of masked language models, and what precedes `embeddings` in the names of such models."""
TiedGroup = tuple[tuple[str, ...], tuple[str, ...]]
TIED: tuple[TiedGroup, ...] = (
    # Llama and what is like it; a language model inside a larger one; without the class of the head
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
"""(names of one embedding, names of heads tied to it), as in the `_tied_weights_keys` of transformers."""
MAX_TIED_COMPONENTS = 4
"""Of a name in TIED."""
TIED_CONFIGS = ("text_config", "decoder", "language_config", "llm_config")
"""The parts of a config, besides itself, that tell of the head of its language model."""
WITH_HEAD = re.compile(r"(For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)|LMHeadModel|MTModel)$")
"""The ends of class names whose models have such a head."""


def tied_names(
    headers: Headers, config: Mapping[str, Any] | None, metadata: Mapping[str, str], tied: Mapping[str, str]
) -> dict[str, str]:
    """A name that the checkpoint leaves out → the name of the tensor that holds its weights.

    From `metadata`, where safetensors' `save_model` notes {left out: kept}; from `tied`, the same as the
    checkpoint's reader knows it; and by convention. Shapes are not compared. A convention holds for many
    models, so names that this one never had are among them: ask for those that are wanted.
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


def _groups(name: str) -> list[tuple[str, TiedGroup]]:
    """The groups of TIED that the name belongs to, with what stands in front of its names."""
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
    """Whether a model of this config ties its head to its embedding. Configs that do not say are of
    models with the default, which was to tie."""
    if config is None:
        return False
    parts = [config, *(config[name] for name in TIED_CONFIGS if isinstance(config.get(name), dict))]
    said = [part["tie_word_embeddings"] for part in parts if part.get("tie_word_embeddings") is not None]
    if said:
        return any(each is True for each in said)
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(WITH_HEAD.search(str(name)) for name in architectures)
