"""Adapters that change an embedding which the base ties to its head, against the logits of peft's model."""

import re
import shlex
import subprocess
import sys
import warnings

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.models import MODELS, build

TOKENS = torch.arange(3, 15)[None]
OPTIONS = {
    "lora": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "replaced": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "lora of the head": {"target_modules": ["q_proj", "lm_head"]},
    "a replaced head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def train(folder, model, **options):
    """Write an adapter whose trained weights are random."""
    noise = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, LoraConfig(r=4, lora_alpha=7, **options))
        for weights in {id(one): one for one in adapted.parameters() if one.requires_grad}.values():
            weights += 0.3 * torch.randn(weights.shape, generator=noise)
        adapted.save_pretrained(folder)


def save_base(folder):
    build(*MODELS["llama, tied"]).save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def logits(folder, adapter=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return (model if adapter is None else PeftModel.from_pretrained(model, adapter))(TOKENS).logits


def merge(run, base, adapter, out):
    return run("wise", base, adapter, "--alpha", 1, "-o", out)


def assert_same(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_way_out_of_a_tie_leads_to_the_logits_of_peft(run, tmp_path, kind):
    base, adapter, untied, out = (tmp_path / name for name in ("base", "adapter", "untied model", "out"))
    save_base(base)
    train(adapter, build(*MODELS["llama, tied"]), **OPTIONS[kind])
    refused = merge(run, base, adapter, out)
    assert refused.code == 1
    assert re.search("ties to '(lm_head|model.embed_tokens).weight'", refused.err)
    assert not out.exists()
    command = re.search(r"merge into that: (python -c .*) UNTIED$", refused.err.strip())[1]
    arguments = [sys.executable, *shlex.split(command)[1:], str(untied)]
    subprocess.run(arguments, check=True, capture_output=True)
    assert torch.equal(logits(untied), logits(base))
    result = merge(run, untied, adapter, out)
    assert result.code == 0, result.err
    assert (out / "tokenizer.json").exists()
    expected = logits(base, adapter)
    assert (expected - logits(base)).abs().max() > 0.1
    assert_same(logits(out), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora", "replaced"],
)
def test_what_peft_ties_merges_into_the_tied_tensor(run, tmp_path, options):
    """peft's own merge adds the update of a tied embedding twice, so the unmerged model is the measure."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    save_base(base)
    train(adapter, build(*MODELS["llama, tied"]), ensure_weight_tying=True, **options)
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    assert_same(logits(out), logits(base, adapter))


def test_a_tied_update_written_again_needs_no_base(run, tmp_path):
    """The head's factors are edited with the embedding's only where there is no base that lacks them."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    save_base(base)
    train(
        adapter,
        build(*MODELS["llama, tied"]),
        ensure_weight_tying=True,
        target_modules=["q_proj", "embed_tokens"],
    )
    refused = run("edit", base, adapter, "-o", out, "--as-adapter")
    assert refused.code == 1
    assert "give - in place of BASE" in refused.err
    result = run("edit", "-", adapter, "-o", out, "--as-adapter")
    assert result.code == 0, result.err
    merged = merge(run, base, out, tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert_same(logits(tmp_path / "merged"), logits(base, out))


def test_an_adapter_is_written_again_and_looked_at_over_a_tied_base(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    save_base(base)
    train(adapter, build(*MODELS["llama, tied"]), **OPTIONS["lora"])
    result = run("edit", base, adapter, "-o", out, "--as-adapter")
    assert result.code == 0, result.err
    assert run("inspect-spectrum", base, adapter).code == 0
    assert torch.isfinite(logits(base, out)).all()


def test_a_tie_that_the_task_does_not_have_does_not_matter(run, tmp_path):
    """A classifier over a tied base has no head of a language model."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    save_base(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=0
    )
    train(adapter, model, task_type="SEQ_CLS", **OPTIONS["lora"])
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err


def test_a_head_that_the_config_says_is_not_tied_is_not_called_tied(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    model = build(*MODELS["llama"])
    model.model.save_pretrained(base)  # the config says tie_word_embeddings: false
    train(adapter, model, target_modules=["q_proj", "lm_head"])
    refused = merge(run, base, adapter, out)
    assert refused.code == 1
    assert "tensors that the base does not have: 'lm_head.weight'" in refused.err
    assert "ties" not in refused.err
