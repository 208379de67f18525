"""docs/features.py: the features that it writes are the model's, and `cka` reads them."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import monosoup_cli
from tests.models import CAUSAL, TEXT, build

SCRIPT = Path(__file__).parents[1] / "docs" / "features.py"
WORDS = ["[PAD]", "[UNK]", "a", "b", "c", "d"]
TEXTS = ["a b c", "b", "d d a b c a", "c a", "a a", "b d c", "d"]
MODELS = {
    "BertModel": TEXT,
    "LlamaForCausalLM": CAUSAL,
    "GPT2Model": {"n_layer": 3, "n_embd": 32, "n_head": 4},
}


def tokenizer():
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", model_input_names=["input_ids", "attention_mask"]
    )


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_the_means_over_the_tokens_of_each_block(kind, tmp_path, monkeypatch):
    model = build(kind, MODELS[kind]).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = [tmp_path / "model", tmp_path / "texts.txt", tmp_path / "out", "--batch-size", "3"]
    monkeypatch.setattr(sys, "argv", list(map(str, [SCRIPT, *words])))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = [np.load(path) for path in sorted((tmp_path / "out").iterdir())]
    depth = model.config.num_hidden_layers
    assert [features.shape for features in found] == [(7, 32)] * depth
    for place, text in enumerate(TEXTS):  # alone, so without padding
        with torch.no_grad():
            states = model(**tokenizer()(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for block in range(depth - 1):  # the last state is after a further norm in some models
            expected = states[block + 1][0].mean(0).numpy()
            assert np.allclose(found[block][place], expected, atol=1e-5)
    [one] = monosoup_cli.cka(tmp_path / "out")["maps"]
    assert one["rows"] == [f"block-{block:03}" for block in range(depth)]
    assert np.allclose(np.diag(one["cka"]), 1)
