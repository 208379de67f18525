"""Adapters written as they were laid out: peft loads them, and has the same weights and the same outputs."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from monosoup_cli.adapters.layout import factor_shapes, lay_out_adapter
from monosoup_cli.adapters.lora import TRANSPOSED
from tests.models import ENDS, MODELS, STACK, TEXT, build, unet_pipeline

RANK = 3
MORE = {
    "bert, classes": ("BertForSequenceClassification", {**TEXT, "num_labels": 5}),
    "roberta, classes of tokens": (
        "RobertaForTokenClassification",
        {**TEXT, **ENDS, "max_position_embeddings": 70},
    ),
    "roberta, classes": ("RobertaForSequenceClassification", {**TEXT, **ENDS, "max_position_embeddings": 70}),
    "llama, no head": ("LlamaModel", MODELS["llama"][1]),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "vocab_size": 99,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 64,
            **ENDS,
        },
    ),
    "siglip": (
        "SiglipModel",
        {"text_config": {**TEXT, **ENDS}, "vision_config": {**STACK, "image_size": 32, "patch_size": 8}},
    ),
}
LOADABLE = {**MODELS, **MORE}
del LOADABLE["vit"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:.*jit.script.*:DeprecationWarning"
)


def fine_tuned(base, rank):
    """The tensors after an update: of exactly that rank for matrices, or what they are."""
    noise = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=noise)

    tuned = {}
    for name, weights in base.items():
        if not weights.is_floating_point():
            tuned[name] = weights + 1
        elif weights.ndim < 2:
            tuned[name] = weights + 0.1 * normal(*weights.shape)
        else:
            flat = weights.flatten(1)
            update = normal(len(flat), rank) @ normal(rank, flat.shape[1])
            tuned[name] = weights + 0.02 * update.view_as(weights)
    return tuned


def ranks_and_others(tuned):
    sides = {
        name: (len(weights), weights[0].numel())
        for name, weights in tuned.items()
        if weights.ndim > 1 and weights[0].numel()
    }
    ranks = {name: min(RANK, *both) for name, both in sides.items()}
    return ranks, [name for name in tuned if name not in ranks]


def write(folder, layout, base, tuned):
    """What an adapter's folder holds, with the factors from an SVD."""
    tensors = {stored: tuned[name] for name, stored in layout.carried.items()}
    for name, pair in layout.pairs.items():
        update = (tuned[name].double() - base[name].double()).flatten(1).numpy()
        if pair.layout == TRANSPOSED:
            update = update.T
        left, values, right = np.linalg.svd(update, full_matrices=False)
        a, b = values[: pair.rank, None] * right[: pair.rank], left[:, : pair.rank]
        for stored, factor, shape in zip((pair.a, pair.b), (a, b), factor_shapes(pair), strict=True):
            tensors[stored] = torch.from_numpy(factor.copy()).float().reshape(shape)
    folder.mkdir()
    save_file(
        {stored: weights.contiguous() for stored, weights in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "adapter_config.json").write_text(json.dumps(layout.config))


def inputs(kind):
    noise = torch.Generator().manual_seed(5)
    ids, pixels = torch.arange(2, 12)[None], torch.randn(1, 3, 32, 32, generator=noise)
    if kind.startswith(("clip", "siglip")):
        return {"input_ids": ids, "pixel_values": pixels}
    if kind.startswith(("convnext", "resnet", "vit")):
        return {"pixel_values": pixels}
    if kind == "whisper":
        return {"input_features": torch.randn(1, 8, 32, generator=noise), "decoder_input_ids": ids}
    return {"input_ids": ids, **({"decoder_input_ids": ids} if kind.startswith(("t5", "bart")) else {})}


def outputs(model, kind):
    with torch.no_grad():
        found = model(**inputs(kind))
    return [value for value in found.values() if isinstance(value, torch.Tensor)]


def made(kind, tmp_path):
    """A model's tensors by their names in its file, the same after an update, and what an adapter of it
    holds."""
    build(*LOADABLE.get(kind, MODELS.get(kind))).save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    tuned = fine_tuned(base, RANK)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    ranks, others = ranks_and_others(tuned)
    shapes = {name: tuple(weights.shape) for name, weights in tuned.items()}
    return base, tuned, lay_out_adapter(shapes, ranks, others, config, str(tmp_path / "base"))


@pytest.mark.parametrize("kind", LOADABLE)
def test_peft_loads_and_merges_what_was_laid_out(kind, tmp_path):
    base, tuned, layout = made(kind, tmp_path)
    write(tmp_path / "adapter", layout, base, tuned)
    loaded = getattr(transformers, LOADABLE[kind][0]).from_pretrained(tmp_path / "base")
    tables = {name for name, module in loaded.named_modules() if isinstance(module, torch.nn.Embedding)}
    adapted = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    before = outputs(adapted, kind)
    merged = adapted.merge_and_unload().eval()

    weights = merged.state_dict()
    held = {*layout.pairs, *layout.carried}
    for name in base:
        if name in weights:
            expected = tuned[name] if name in held else base[name]
            step = (tuned[name].double() - base[name].double()).norm()
            assert (weights[name].double() - expected.double()).norm() <= 1e-5 * step, name
    assert held.isdisjoint(layout.left)
    assert held | set(layout.left) == set(base)
    assert {
        name.removesuffix(".weight") for name, pair in layout.pairs.items() if "lora_embedding" in pair.a
    } <= tables
    for unmerged, after in zip(before, outputs(merged, kind), strict=True):
        torch.testing.assert_close(unmerged, after, rtol=1e-3, atol=1e-4)


def test_models_that_load_under_other_names_are_left(tmp_path):
    base, _, layout = made("vit", tmp_path)
    assert (layout.pairs, layout.carried, set(layout.left)) == ({}, {}, set(base))


class Nested(torch.nn.Module):
    """Modules whose names end alike, and one whose name, as a regular expression, is another's."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.last_norm = (
            torch.nn.Linear(6, 6),
            torch.nn.LayerNorm(6),
            torch.nn.LayerNorm(6),
        )
        self.inner = torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 5), "norm": torch.nn.LayerNorm(5)})
        self.inner_fc, self.table = torch.nn.Linear(5, 4), torch.nn.Linear(4, 4)
        self.token = torch.nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.table(self.inner_fc(self.inner["norm"](self.inner["fc"](self.norm(self.fc(x))))))


def nested(tmp_path, ranks, others):
    torch.manual_seed(0)
    model = Nested()
    base = {name: weights.clone() for name, weights in model.state_dict().items()}
    tuned = fine_tuned(base, 2)
    shapes = {name: tuple(weights.shape) for name, weights in base.items()}
    layout = lay_out_adapter(shapes, ranks, others, None, None)
    changed = {name: tuned[name] if name in ranks or name in others else base[name] for name in base}
    write(tmp_path / "adapter", layout, base, changed)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, weights in merged.items():
        expected = base[name] if name in layout.left else changed[name]
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6, msg=name)
    return layout


def test_modules_whose_names_end_alike_are_told_apart(tmp_path):
    layout = nested(tmp_path, {"fc.weight": 2, "inner_fc.weight": 2}, ["inner.norm.bias"])
    assert layout.config["target_modules"] == r"fc|inner_fc"
    assert layout.config["modules_to_save"] == ["inner.norm"]


def test_ranks_are_those_of_the_very_modules(tmp_path):
    layout = nested(tmp_path, {"fc.weight": 3, "inner.fc.weight": 2, "inner_fc.weight": 2}, [])
    assert layout.config["target_modules"] == ["fc", "inner.fc", "inner_fc"]
    assert layout.config["rank_pattern"] == layout.config["alpha_pattern"] == {"^fc": 3}
    assert (layout.config["r"], layout.config["lora_alpha"]) == (2, 2)


def test_what_would_catch_other_modules_is_left(tmp_path):
    layout = nested(tmp_path, {"fc.weight": 2}, ["norm.weight", "token", "fc.bias"])
    assert layout.left == ("norm.weight", "token")
    assert layout.carried == {"fc.bias": "base_model.model.fc.base_layer.bias"}


def test_one_name_for_all_that_is_caught_is_no_harm(tmp_path):
    layout = nested(tmp_path, {"fc.weight": 2}, ["norm.weight", "inner.norm.bias", "last_norm.bias"])
    assert (layout.left, len(layout.carried)) == ((), 6)


def test_a_name_that_finds_a_factored_module_as_a_regular_expression_is_left():
    shapes = {"a.fc.weight": (6, 6), "a-fc.weight": (6, 6), "b.weight": (6, 6)}
    layout = lay_out_adapter(shapes, {"a-fc.weight": 2, "b.weight": 2}, ["a.fc.weight"], None, None)
    assert layout.left == ("a.fc.weight",)


def test_what_did_not_change_is_not_held():
    shapes = {"fc.weight": (6, 6), "fc.bias": (6,), "norm.weight": (6,)}
    layout = lay_out_adapter(shapes, {"fc.weight": 0}, [], None, None)
    assert (layout.pairs, layout.carried, layout.left) == ({}, {}, ())


def test_a_unet_is_held_whole(tmp_path):
    model = unet_pipeline().unet.eval()
    base = {name: weights.clone() for name, weights in model.state_dict().items()}
    tuned = fine_tuned(base, RANK)
    ranks, others = ranks_and_others(tuned)
    shapes = {name: tuple(weights.shape) for name, weights in tuned.items()}
    layout = lay_out_adapter(shapes, ranks, others, None, None)
    assert layout.left == ()
    write(tmp_path / "adapter", layout, base, tuned)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, weights in merged.items():
        torch.testing.assert_close(weights, tuned[name], rtol=1e-5, atol=1e-5, msg=name)


def test_heads_of_classification_are_held_though_they_did_not_change():
    shapes = {"bert.fc.weight": (6, 6), "classifier.weight": (2, 6), "classifier.bias": (2,)}
    config = {"architectures": ["BertForSequenceClassification"]}
    layout = lay_out_adapter(shapes, {"bert.fc.weight": 2}, [], config, None)
    assert set(layout.carried) == {"classifier.weight", "classifier.bias"}


def test_weights_whose_bias_is_of_another_length_get_no_factors():
    shapes = {"up.weight": (6, 4, 2, 2), "up.bias": (4,), "fc.weight": (6, 4)}
    layout = lay_out_adapter(shapes, {"up.weight": 2, "fc.weight": 2}, [], None, None)
    assert (set(layout.pairs), set(layout.carried)) == ({"fc.weight"}, {"up.weight", "up.bias"})


@pytest.mark.parametrize(
    ("kind", "left"), [("BertForMaskedLM", True), ("BertForSequenceClassification", False)]
)
def test_a_table_is_left_where_a_head_shares_it(kind, left):
    table = "bert.embeddings.word_embeddings.weight"
    layout = lay_out_adapter({table: (9, 4)}, {table: 2}, [], {"architectures": [kind]}, None)
    assert (table in layout.left) == left
