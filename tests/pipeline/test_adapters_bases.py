"""Adapters over bases with other names, without their head, or other than the one that they name."""

import json
import re
import warnings

import peft
import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.models import ENDS, MODELS, TEXT, VISION, build
from tests.peft_adapters import make

TOKENS = torch.arange(3, 15)[None]
HEADS = {
    "llama, SEQ_CLS": ("llama", "SequenceClassification", "SEQ_CLS", ["q_proj"]),
    "llama, tied, SEQ_CLS": ("llama, tied", "SequenceClassification", "SEQ_CLS", ["q_proj"]),
    "llama, TOKEN_CLS": ("llama", "TokenClassification", "TOKEN_CLS", ["q_proj"]),
    "bert, TOKEN_CLS": ("bert", "TokenClassification", "TOKEN_CLS", ["query"]),
    "bert, QUESTION_ANS": ("bert", "QuestionAnswering", "QUESTION_ANS", ["query"]),
    "bare bert, SEQ_CLS": ("bare bert", "SequenceClassification", "SEQ_CLS", ["query"]),
    "roberta, SEQ_CLS": ("roberta", "SequenceClassification", "SEQ_CLS", ["query"]),
}
BASES = {
    **MODELS,
    "bare bert": ("BertModel", TEXT),
    "roberta": ("RobertaForMaskedLM", {**TEXT, **ENDS, "max_position_embeddings": 70}),
}


def train(folder, model, **options):
    """Write an adapter whose trained weights are random."""
    noise = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, LoraConfig(r=4, lora_alpha=7, **options))
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights += 0.1 * torch.randn(weights.shape, generator=noise)
        adapted.save_pretrained(folder)
    return adapted


def merge(run, base, adapter, out, *options):
    return run("wise", base, adapter, "--alpha", 1, "-o", out, *options)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_the_base_lacks_is_added(run, tmp_path, kind):
    base_kind, task, peft_task, targets = HEADS[kind]
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*BASES[base_kind]).save_pretrained(base)
    auto = getattr(transformers, f"AutoModelFor{task}")
    labels = {} if task == "QuestionAnswering" else {"num_labels": 3}
    model = auto.from_pretrained(base, pad_token_id=0, **labels).eval()
    adapted = train(adapter, model, task_type=peft_task, target_modules=targets).eval()
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    said = re.search(r"load the output with transformers' (\w+)\.from_pretrained\(OUT(.*?)\)", result.err)
    assert said[1] == f"AutoModelFor{task}"
    options = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", said[2])}
    assert options == labels
    loaded, about = auto.from_pretrained(out, pad_token_id=0, output_loading_info=True, **options)
    assert not about["missing_keys"]
    assert not about["mismatched_keys"]
    with torch.no_grad():
        found, expected = loaded.eval()(TOKENS), adapted(input_ids=TOKENS)
    for name in ("logits",) if labels else ("start_logits", "end_logits"):
        assert (found[name] - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()
    edited = run("edit", base, adapter, "-o", tmp_path / "edited")
    assert edited.code == 0, edited.err


def test_new_heads_are_averaged_and_laid_out_in_shards(run, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    build(*MODELS["llama"]).save_pretrained(base, max_shard_size="40KB")
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=3, pad_token_id=0
        )
        adapted = train(tmp_path / f"adapter-{seed}", model, task_type="SEQ_CLS", target_modules=["q_proj"])
        heads.append(adapted.base_model.model.score.modules_to_save.default.weight.detach())
    result = run("soup", "--base", base, tmp_path / "adapter-1", tmp_path / "adapter-2", "-o", out)
    assert result.code == 0, result.err
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out, num_labels=3)
    assert torch.allclose(model.score.weight, (heads[0] + heads[1]) / 2, atol=1e-6)
    result = run("edit", base, tmp_path / "adapter-1", "-o", tmp_path / "half", "--dtype", "bfloat16")
    assert result.code == 0, result.err


def test_a_new_module_has_the_dtype_of_the_base(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*MODELS["llama"]).bfloat16().save_pretrained(base)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=0, dtype=torch.float32
    )
    train(adapter, model, task_type="SEQ_CLS", target_modules=["q_proj"])
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


SIGHT = {**VISION, "num_hidden_layers": 1}
SMALL = {**TEXT, "num_key_value_heads": 2, "num_hidden_layers": 1}
SEEING = {
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**SMALL, "model_type": "llama"},
            "vision_config": {**SIGHT, "model_type": "clip_vision_model"},
            "image_token_index": 98,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**SMALL, "head_dim": 8, "model_type": "gemma3_text"},
            "vision_config": {**SIGHT, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                **SMALL,
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
                "model_type": "qwen2_vl_text",
            },
            "vision_config": {
                "depth": 1,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "patch_size": 8,
            },
            "image_token_id": 98,
            "video_token_id": 97,
            "vision_start_token_id": 96,
            "vision_end_token_id": 95,
        },
    ),
}


@pytest.mark.parametrize("kind", SEEING)
@pytest.mark.parametrize("original", [True, False], ids=["older names", "names of today"])
def test_an_adapter_of_a_model_with_vision_fits_older_and_newer_names(run, tmp_path, kind, original):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*SEEING[kind]).save_pretrained(base, save_original_format=original)
    names = set(load_file(base / "model.safetensors"))
    is_old = not any(name.startswith("model.language_model.") for name in names)
    assert is_old == original
    kind = getattr(transformers, SEEING[kind][0])
    model = kind.from_pretrained(base).eval()
    adapted = train(adapter, model, target_modules=r".*(q_proj|attn\.qkv|embed_tokens_none)").eval()
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    assert ("names are read" in result.err) == original
    assert set(load_file(out / "model.safetensors")) == names
    with torch.no_grad():
        expected = adapted(input_ids=TOKENS).logits
        found = kind.from_pretrained(out).eval()(TOKENS).logits
        before = kind.from_pretrained(base).eval()(TOKENS).logits
    assert (expected - before).abs().max() > 1e-4
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_adapter_with_older_names_fits_a_base_of_today(run, tmp_path):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*SEEING["llava"]).save_pretrained(base, save_original_format=False)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base).eval()
    adapted = train(adapter, model, target_modules=["q_proj", "lm_head"]).eval()
    (file,) = adapter.glob("*.safetensors")
    older = {
        key.replace("model.model.language_model.", "model.language_model.model.")
        .replace("model.model.vision_tower.", "model.vision_tower.")
        .replace("base_model.model.lm_head", "base_model.model.language_model.lm_head"): t
        for key, t in load_file(file).items()
    }
    save_file(older, file)
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    with torch.no_grad():
        expected = adapted(input_ids=TOKENS).logits
        found = transformers.LlavaForConditionalGeneration.from_pretrained(out).eval()(TOKENS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("trained", "given"), [("bare bert", "bert"), ("bert", "bare bert")])
def test_an_adapter_of_a_model_with_or_without_a_head_fits_the_other(run, tmp_path, trained, given):
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    build(*BASES[given]).save_pretrained(base)
    auto = getattr(transformers, BASES[trained][0])
    adapted = train(adapter, auto.from_pretrained(base), target_modules=["query"])
    result = merge(run, base, adapter, out)
    assert result.code == 0, result.err
    assert "names are read with" in result.err
    expected = adapted.merge_and_unload()
    expected = getattr(expected, "bert", expected).state_dict()
    found = transformers.BertModel.from_pretrained(out).state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.allclose(found[name], expected[name], atol=1e-6)


def renamed_base(tmp_path):
    """A base whose names are those of GPT-2, and an adapter with the names of Llama."""
    model = build(*MODELS["llama"])
    train(tmp_path / "adapter", model, target_modules=["q_proj"])
    build(*MODELS["llama"]).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    state = {name.replace("model.layers.", "transformer.h."): t for name, t in load_file(path).items()}
    save_file(state, path, {"format": "pt"})
    return tmp_path / "base", tmp_path / "adapter", tmp_path / "out"


def test_rename_replaces_names_of_the_base_for_adapters_too(run, tmp_path):
    base, adapter, out = renamed_base(tmp_path)
    refused = merge(run, base, adapter, out)
    assert refused.code == 1
    assert "--rename OLD=NEW replaces OLD in the names of the base" in refused.err
    assert merge(run, base, adapter, out, "--rename", "model.layers=transformer.h").code != 0
    result = merge(run, base, adapter, out, "--rename", "transformer.h=model.layers")
    assert result.code == 0, result.err
    assert "names are read with 'model.layers' replaced by 'transformer.h' (2 tensors)" in result.err
    before, found = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert found.keys() == before.keys()
    changed = {name for name, weights in found.items() if not torch.equal(weights, before[name])}
    assert changed == {f"transformer.h.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_a_rename_that_matches_nothing_is_said(run, tmp_path):
    base, adapter, out = renamed_base(tmp_path)
    result = merge(run, base, adapter, out, "--rename", "transformer.h=model.layers", "--rename", "x.y=z")
    assert result.code == 2
    assert "--rename x.y=z has no effect" in result.err


NAMES = {
    # what the adapter names, what the base's own config says, whether that is another base
    "nothing": (None, None, False),
    "the folder": ("{base}", None, False),
    "a folder of the same name on another machine": ("/workspace/models/My-Base/", None, False),
    "the same name on the Hub": ("org/my-base", None, False),
    "what the config says": ("org/other", "org/other", False),
    "a snapshot in the cache": ("/c/hub/models--org--my-base/snapshots/0123", None, False),
    "another model": ("org/other", None, True),
    "another folder": ("/workspace/other", None, True),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("saved", [False, True])
def test_another_base_than_the_named_one_is_said(run, tmp_path, case, saved):
    named, known_as, is_other = NAMES[case]
    base, adapter, out = tmp_path / "my-base", tmp_path / "adapter", tmp_path / "out"
    build(*MODELS["llama"]).save_pretrained(base)
    train(
        adapter,
        build(*MODELS["llama"]),
        target_modules=["q_proj"],
        **({"modules_to_save": ["lm_head"]} if saved else {}),
    )
    for folder, name, value in (
        (adapter, "adapter_config.json", {"base_model_name_or_path": named and named.format(base=base)}),
        (base, "config.json", {} if known_as is None else {"_name_or_path": known_as}),
    ):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | value))
    result = run("edit", base, adapter, "-o", out)
    assert result.code == 0, result.err
    assert ("names as its base" in result.err) == is_other
    if known_as is None:  # the file of that folder
        file = run("edit", base / "model.safetensors", adapter, "-o", tmp_path / "of-file")
        assert ("names as its base" in file.err) == is_other
    report = json.loads((out / "monosoup_report.json").read_text())
    doubts = report.get("doubts", [])
    assert ([*map(report["notes"].count, doubts)], "names as its base" in str(doubts)) == (
        [1] * is_other,
        is_other,
    )
    if is_other and named == "org/other":
        link = tmp_path / "other"
        link.symlink_to(base)
        assert "ln -s" in result.err
        assert run("edit", link, adapter, "-o", tmp_path / "linked", "--strict").code == 0
    strict = run("edit", base, adapter, "-o", tmp_path / "strict", "--strict")
    assert (strict.code, strict.err.count("names as its base")) == (is_other, is_other), strict.err
    assert ("What it stores whole (1 tensor) is no difference from that base" in result.err) == (
        is_other and saved
    )


def test_the_size_of_an_adapter_is_no_doubt_about_its_base(run, tmp_path):
    """A whole checkpoint beside it is doubted as always."""
    made = make("linear", tmp_path / "one")
    config = made.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1e5}))
    result = run("merge", made.base, made.adapter, "-o", tmp_path / "out", "--strict")
    assert result.code == 0, result.err
    assert "doubts" not in json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    alone = run("edit", made.base, made.adapter, "-o", tmp_path / "alone")
    noted = "note: in monosoup's measurements, the edit made no difference to LoRA fine-tunes that shows"
    assert (noted in alone.err, noted in result.err) == (True, False)
    both = run("edit", made.base, made.adapter, tmp_path / "out", "-o", tmp_path / "both", "--strict")
    assert (both.code, "are as large as the weights" in both.err) == (1, True), both.err


def test_an_extracted_adapter_over_another_base_says_what_is_no_difference(run, tmp_path):
    base, finetuned, other = tmp_path / "base", tmp_path / "finetuned", tmp_path / "other"
    model = build(*MODELS["llama"])
    model.save_pretrained(base)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.01 * torch.randn(weights.shape)
    model.save_pretrained(finetuned)
    build(*MODELS["llama"]).save_pretrained(other)
    extracted = run("edit", base, finetuned, "--as-adapter", "--adapter-rank", 4, "-o", tmp_path / "adapter")
    assert extracted.code == 0, extracted.err
    same = merge(run, base, tmp_path / "adapter", tmp_path / "same")
    assert same.code == 0, same.err
    assert "names as its base" not in same.err
    result = merge(run, other, tmp_path / "adapter", tmp_path / "out")
    assert result.code == 0, result.err
    assert "is no difference from that base, and replaces" in result.err
