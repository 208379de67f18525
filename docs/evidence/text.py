"""Sentiment: MiniLM-L6 with a linear probe as its head, fine-tuned on movie reviews."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from docs.evidence.data import (
    TESTED,
    Sentences,
    corpus,
    model_folder,
    test_sentences,
    training_sentences,
    validation_sentences,
)
from docs.evidence.study import Recipe

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BATCH, MAX_TOKENS = 32, 64

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""It would double the time of a step on a CPU."""

HALF = torch.autocast("cpu", torch.bfloat16)
"""Training and scoring multiply in bfloat16."""


RECIPES = {
    "gentle": Recipe(2e-5, 2),
    "usual": Recipe(5e-5, 2),
    "long": Recipe(5e-5, 3),
    "fast": Recipe(1e-4, 2),
    "overtrained": Recipe(5e-4, 4),
}


class SentenceClassifier(nn.Module):
    """The mean of a sentence's token vectors, and a linear head.

    Attention is eager: on a CPU the gradient of the fused kernel takes nearly half of a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(
            model_folder(), add_pooling_layer=False, attn_implementation="eager", **NO_DROPOUT
        )
        self.classifier = nn.Linear(self.bert.config.hidden_size, 2)

    def features(self, tokens: dict[str, Tensor]) -> Tensor:
        """One vector a sentence."""
        return mean_of_tokens(self.bert(**tokens).last_hidden_state, tokens["attention_mask"])

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Two logits a sentence."""
        return self.classifier(self.features(tokens))


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over those tokens that are not padding."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


class Tokenized:
    """Sentences as numbers, cut into batches of like lengths or at random."""

    def __init__(self, sentences: Sentences) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder())
        self.ids = self.tokenizer(sentences.texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        self.labels = torch.tensor(sentences.labels)

    def batches(self, order: list[int]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches in this order."""
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            padded = self.tokenizer.pad({"input_ids": [self.ids[at] for at in chosen]}, return_tensors="pt")
            yield chosen, dict(padded)

    def shuffled(self, random: random.Random) -> list[int]:
        """A random order in which sentences of a batch are of like lengths."""
        order = random.sample(range(len(self.ids)), len(self.ids))
        chunks = [order[start : start + 16 * BATCH] for start in range(0, len(order), 16 * BATCH)]
        near = [at for chunk in chunks for at in sorted(chunk, key=lambda at: len(self.ids[at]))]
        batches = [near[start : start + BATCH] for start in range(0, len(near), BATCH)]
        random.shuffle(batches)
        batches.sort(key=len, reverse=True)  # a shorter one is the last: batches are cut from the list
        return list(chain.from_iterable(batches))

    def by_length(self) -> list[int]:
        """An order that needs little padding."""
        return sorted(range(len(self.ids)), key=lambda at: len(self.ids[at]))


def make_base(seed: int, path: Path) -> None:
    """The pretrained body with the head that logistic regression finds on its features."""
    from sklearn.linear_model import LogisticRegression

    model, data = SentenceClassifier().eval(), Tokenized(training_sentences(seed))
    features = torch.zeros(len(data.ids), model.classifier.in_features)
    with torch.inference_mode():
        for chosen, tokens in data.batches(data.by_length()):
            features[chosen] = model.features(tokens)
    probe = LogisticRegression(max_iter=2000).fit(features, data.labels)
    with torch.no_grad():
        weight, bias = (torch.tensor(part, dtype=torch.float32) for part in (probe.coef_, probe.intercept_))
        model.classifier.weight.copy_(torch.cat([-weight, weight]) / 2)
        model.classifier.bias.copy_(torch.cat([-bias, bias]) / 2)
    save_file(model.state_dict(), path)


def fine_tune(seed: int, recipe: str, base: Path, path: Path) -> None:
    """Every weight of the base."""
    model = SentenceClassifier()
    model.load_state_dict(load_file(base))
    train(model, seed, RECIPES[recipe])
    save_file(model.state_dict(), path)


def train(model: SentenceClassifier, seed: int, recipe: Recipe) -> None:
    """AdamW on what requires a gradient, the rate falling linearly to 0."""
    torch.manual_seed(seed)
    order = random.Random(seed)
    data = Tokenized(training_sentences(seed))
    steps = recipe.epochs * -(-len(data.ids) // BATCH)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(recipe.epochs):
        for chosen, tokens in data.batches(data.shuffled(order)):
            with HALF:
                loss = functional.cross_entropy(model(tokens), data.labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()


class Scorer:
    """Scores checkpoints on all tasks; the sentences are read once."""

    def __init__(self, seed: int) -> None:
        self.model = SentenceClassifier().eval()
        self.tasks = {task: Tokenized(test_sentences(task)) for task in TESTED}
        self.validation = Tokenized(validation_sentences())

    def load(self, weights: dict[str, Tensor]) -> None:
        """Score this checkpoint from now on."""
        self.model.load_state_dict(weights)

    @torch.inference_mode()
    def right(self, data: Tokenized) -> list[bool]:
        """For every sentence, whether the model is right."""
        found = torch.zeros(len(data.ids), dtype=torch.long)
        for chosen, tokens in data.batches(data.by_length()):
            with HALF:
                found[chosen] = self.model(tokens).argmax(1)
        return (found == data.labels).tolist()

    @torch.inference_mode()
    def features(self, task: str, count: int = 2000) -> dict[str, Tensor]:
        """What every block makes of sentences of a corpus, (count, width): the mean over the tokens."""
        texts, labels = (part[:count] for part in corpus(task))
        data, blocks = Tokenized(Sentences(texts, labels)), self.model.bert.encoder.layer
        found = {
            f"block-{at}": torch.zeros(count, self.model.bert.config.hidden_size) for at in range(len(blocks))
        }
        for chosen, tokens in data.batches(data.by_length()):
            with HALF:
                states = self.model.bert(**tokens, output_hidden_states=True).hidden_states[1:]
            for rows, state in zip(found.values(), states, strict=True):
                rows[chosen] = mean_of_tokens(state.float(), tokens["attention_mask"])
        return found
