"""Names of real models as libraries wrap them, read as those of another checkpoint; renames; ties."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_model

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.formats.header import TensorInfo
from monosoup_cli.sources.alignment import Rename, align
from monosoup_cli.sources.suggestions import suggestions
from monosoup_cli.sources.ties import TIED, tied_names

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 32}
TWO_LAYERS = {"num_hidden_layers": 2}
SIDES = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
OPTIONS = {
    "Llama": {**SMALL, **TWO_LAYERS},
    "Bert": {**SMALL, **TWO_LAYERS},
    "GPT2": {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "T5": T5,
    "Whisper": {**SIDES, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8},
    "CLIP": {
        "text_config": {**SMALL, **TWO_LAYERS, "max_position_embeddings": 8},
        "vision_config": {**SMALL, **TWO_LAYERS, "image_size": 8, "patch_size": 4},
        "projection_dim": 12,
    },
}


def build(kind, **options):
    """A model of this class of transformers, without memory for its weights."""
    kind = getattr(transformers, kind)
    family = kind.config_class.__name__.removesuffix("Config")
    with torch.device("meta"):
        return kind(kind.config_class(**{**OPTIONS.get(family, TWO_LAYERS), **options}))


def headers(shapes):
    return {name: TensorInfo(name, "F32", tuple(shape), 0, 0) for name, shape in shapes.items()}


def of(model):
    return headers({name: tensor.shape for name, tensor in model.state_dict().items()})


@cache
def model_headers(kind):
    return of(build(kind))


def wrapped(kind, wrapper):
    return headers({wrapper(name): tensor.shape for name, tensor in model_headers(kind).items()})


def in_front(prefix):
    return lambda name: prefix + name


def aligned(other, first, *renames):
    """name as the first has it → name in the other, where the two differ."""
    found = align(other, first, [Rename.parse(text) for text in renames], "base")
    assert list(found.stored.values()) == list(other)
    return {name: stored for name, stored in found.stored.items() if name != stored}, found.notes


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("transformer.h=model.layers", "transformer.h", "model.layers"),
        ("model.=", "model", ""),
        ("=model.", "", "model"),
        ("bert.=roberta.", "bert", "roberta"),
        ("a=b=c", "a", "b=c"),
    ],
)
def test_a_rename_is_read(text, old, new):
    assert Rename.parse(text) == Rename(old, new)


@pytest.mark.parametrize("text", ["", "=", "model", "a=a", "a.=a", ".=."])
def test_what_renames_nothing_is_refused(text):
    with pytest.raises(UsageError, match="renames nothing: expected OLD=NEW"):
        Rename.parse(text)


@pytest.mark.parametrize(
    ("renames", "name", "expected"),
    [
        (["transformer.h=model.layers"], "transformer.h.0.attn.weight", "model.layers.0.attn.weight"),
        (["gamma=weight"], "bert.LayerNorm.gamma", "bert.LayerNorm.weight"),
        (["h=layers"], "h.0.h.with_h.h", "layers.0.layers.with_h.layers"),
        (["h.h=x"], "h.h.h.weight", "x.h.weight"),
        (["h=layers"], "hh.0.xh.weight", "hh.0.xh.weight"),
        (["a.b=c"], "a_b.aXb.a.b", "a_b.aXb.c"),
        (["bert="], "bert.bert.encoder.bert", "encoder"),
        (["bert="], "bert.encoder", "encoder"),
        (["encoder.x="], "bert.encoder.x", "bert"),
        (["=bert"], "encoder.x", "bert.encoder.x"),
        ([r"a=\1\g<0>"], "a.x", r"\1\g<0>.x"),
        (["a=b", "b=c"], "a.x", "c.x"),
        (["b=c", "a=b"], "a.x", "b.x"),
    ],
)
def test_renames_replace_whole_components(renames, name, expected):
    found = align(headers({name: (2, 3)}), {}, [Rename.parse(text) for text in renames], "base")
    assert found.stored == {expected: name}


def test_renames_are_told_with_how_often_and_whether_they_were_used():
    other = headers({"a.x": (2,), "a.y": (2,), "z": (2,)})
    renames = [Rename.parse(text) for text in ("q=r", "a=b", "z=", "b=", "=c")]
    found = align(headers({"a.x": (2,), "a.y": (2,), "z.z": (2,)}), {}, renames[:2], "base")
    assert found.notes == ("with 'a' replaced by 'b' (2 tensors)",)
    assert found.unused == (renames[0],)
    found = align(other, {}, renames[3:], "base")
    assert found.notes == ("with 'c.' in front (3 tensors)",)
    assert found.unused == (renames[3],)
    found = align(headers({"z.x": (2,)}), {}, [renames[2]], "base")
    assert found.notes == ("without 'z.' (1 tensor)",)


def test_two_names_are_never_made_one():
    with pytest.raises(MismatchError) as refused:
        align(headers({"a.x": (2,), "b.x": (2,)}), {}, [Rename.parse("a=b")], "base.pt")
    assert str(refused.value) == (
        "base.pt: tensor 'b.x': --rename maps two names to one: found 'a.x' and 'b.x';"
        " use a longer OLD to tell them apart"
    )


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertForMaskedLM", "GPT2LMHeadModel", "CLIPModel"])
@pytest.mark.parametrize(
    ("prefix", "reading"),
    [
        ("model.", "'model.'"),
        ("module.", "'module.'"),
        ("base_model.model.", "'base_model.model.'"),
        ("module.model.", "'module.model.'"),
        ("base_model.model.module.", "'base_model.model.module.'"),
    ],
)
def test_wrappers_are_recognised_on_either_side(kind, prefix, reading):
    plain, inside = model_headers(kind), wrapped(kind, in_front(prefix))
    tensors = f"({len(plain)} tensors)"
    assert aligned(inside, plain) == ({n: prefix + n for n in plain}, (f"without {reading} {tensors}",))
    assert aligned(plain, inside) == ({prefix + n: n for n in plain}, (f"with {reading} in front {tensors}",))


def test_one_wrapper_is_read_as_another():
    ours, theirs = (wrapped("CLIPModel", in_front(prefix)) for prefix in ("model.", "module."))
    names, said = aligned(ours, theirs)
    assert names == {f"module.{name}": f"model.{name}" for name in model_headers("CLIPModel")}
    assert said == (f"with 'model' replaced by 'module' ({len(ours)} tensors)",)


@pytest.mark.parametrize(
    ("base", "finetuned", "prefix"),
    [
        ("LlamaModel", "LlamaForCausalLM", "model."),
        ("WhisperModel", "WhisperForConditionalGeneration", "model."),
    ],
)
def test_a_model_without_its_head_is_recognised(base, finetuned, prefix):
    body, whole = model_headers(base), model_headers(finetuned)
    names, said = aligned(body, whole)
    assert names == {prefix + name: name for name in body}
    assert said == (f"with '{prefix}' in front ({len(body)} tensors)",)
    names, said = aligned(whole, body)
    assert names == {name: prefix + name for name in body}
    assert said == (f"without '{prefix}' ({len(body)} tensors)",)


def compiled(module):
    return torch.compile(module, backend="eager")


def test_compiled_models_are_recognised():
    plain = model_headers("LlamaForCausalLM")
    whole = of(compiled(build("LlamaForCausalLM")))
    assert all(name.startswith("_orig_mod.") for name in whole)
    tensors = f"({len(plain)} tensors)"
    assert aligned(whole, plain) == (
        {n: f"_orig_mod.{n}" for n in plain},
        (f"without '_orig_mod' {tensors}",),
    )
    assert aligned(plain, whole)[1] == (f"with '_orig_mod' {tensors}",)

    parallel = of(compiled(torch.nn.DataParallel(build("LlamaForCausalLM"))))
    names, said = aligned(parallel, plain)
    assert names == {name: f"_orig_mod.module.{name}" for name in plain}
    assert said == (f"without 'module.' {tensors}", f"without '_orig_mod' {tensors}")


def test_a_compiled_submodule_is_recognised():
    plain, model = model_headers("LlamaForCausalLM"), build("LlamaForCausalLM")
    model.model.layers[1] = compiled(model.model.layers[1])
    layer = [name for name in plain if name.startswith("model.layers.1.")]
    names, said = aligned(of(model), plain)
    assert names == {name: name.replace("layers.1", "layers.1._orig_mod") for name in layer}
    assert said == (f"without '_orig_mod' ({len(layer)} tensors)",)

    moved = of(compiled(build("LlamaForCausalLM")))
    elsewhere = {name for name in of(model) if "_orig_mod" in name}
    names, said = aligned(moved, of(model))
    assert elsewhere == {name for name in names if "_orig_mod" in name}
    assert f"with '_orig_mod' in another place ({len(layer)} tensors)" in said


@pytest.mark.parametrize("inserted", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_fsdp_and_activation_checkpointing_insert_is_recognised(inserted):
    plain = model_headers("LlamaForCausalLM")
    wrapped_at = wrapped("LlamaForCausalLM", lambda name: name.replace("layers.1.", f"layers.1.{inserted}."))
    count = len(wrapped_at.keys() - plain.keys())
    names, said = aligned(wrapped_at, plain)
    assert names == {n: n.replace("layers.1.", f"layers.1.{inserted}.") for n in plain if "layers.1." in n}
    assert said == (f"without '{inserted}' ({count} tensors)",)
    assert aligned(plain, wrapped_at)[1] == (f"with '{inserted}' ({count} tensors)",)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("BertForMaskedLM", "LayerNorm.gamma", "LayerNorm.weight"),
        ("BertForMaskedLM", "LayerNorm.beta", "LayerNorm.bias"),
        ("HubertModel", "conv.weight_g", "conv.parametrizations.weight.original0"),
        ("HubertModel", "conv.weight_v", "conv.parametrizations.weight.original1"),
    ],
)
def test_names_of_older_releases_are_recognised(kind, old, new):
    # transformers itself loads both: its weight conversion of this name is the oracle
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    [renaming] = [
        one for one in get_checkpoint_conversion_mapping("legacy") if one.rename_source_key(old)[0] != old
    ]
    assert renaming.rename_source_key(old)[0] == new
    plain = model_headers(kind)
    legacy = wrapped(kind, lambda name: name.replace(new, old))
    changed = {name: name.replace(new, old) for name in plain if name.endswith(new)}
    assert changed
    for other, first, expected in (
        (legacy, plain, changed),
        (plain, legacy, {value: key for key, value in changed.items()}),
    ):
        names, said = aligned(other, first)
        assert names == expected
        assert len(said) == 1
        assert f"({len(changed)} tensor" in said[0]


def test_a_layer_scale_is_no_layer_norm():
    # transformers renames only `LayerNorm.gamma`, since timm and ConvNeXt have parameters of that name
    other, first = headers({"stem.gamma": (4,)}), headers({"stem.weight": (4,)})
    assert aligned(other, first) == ({}, ())


def test_what_matches_is_left_alone():
    """The checkpoints of model-soups: CLIP inside, and a head of their own beside it."""
    finetuned = wrapped("CLIPModel", in_front("model.")) | headers({"classification_head.weight": (9, 12)})
    base = wrapped("CLIPModel", in_front("module.model.")) | headers({"classification_head.weight": (9, 12)})
    names, said = aligned(base, finetuned)
    assert "classification_head.weight" not in names
    assert names == {f"model.{name}": f"module.model.{name}" for name in model_headers("CLIPModel")}
    assert said == (f"without 'module.' ({len(names)} tensors)",)
    assert aligned(base, base) == ({}, ())


def test_renames_come_before_what_is_recognised():
    plain = model_headers("LlamaForCausalLM")
    other = headers({f"module.{n.replace('layers', 'h')}": t.shape for n, t in plain.items()})
    names, said = aligned(other, plain, "h=layers")
    assert set(names) == set(plain)
    layers = sum("layers" in name for name in plain)
    assert said == (
        f"with 'h' replaced by 'layers' ({layers} tensors)",
        f"without 'module.' ({len(plain)} tensors)",
    )


@pytest.mark.parametrize(
    ("shapes", "is_mapped"),
    [
        ({"embedding": (40, 16), "a": (16, 16), "norm": (16,)}, True),  # a resized vocabulary
        ({"embedding": (40, 16)}, True),
        ({"embedding": (32, 24), "a": (24, 24), "norm": (24,)}, False),  # another model
        ({"embedding": (40,), "a": (16, 16), "norm": (16,)}, True),
        ({"norm": (17,)}, False),
    ],
)
def test_names_whose_shapes_disagree_are_a_coincidence(shapes, is_mapped):
    first = {"embedding": (32, 16), "a": (16, 16), "norm": (16,)}
    other = headers({f"model.{name}": shape for name, shape in shapes.items()})
    names, said = aligned(other, headers(first))
    assert names == ({name: f"model.{name}" for name in shapes} if is_mapped else {})
    assert bool(said) is is_mapped


def test_a_coincidence_does_not_keep_names_from_another_match():
    other = headers({"model.b": (2, 9), "module.b": (4, 5)})
    assert aligned(other, headers({"b": (4, 5)})) == ({"b": "module.b"}, ("without 'module.' (1 tensor)",))


def test_a_tensor_is_read_under_one_name():
    first = headers({"model.x": (2, 3), "module.x": (2, 3)})
    assert aligned(headers({"x": (2, 3)}), first) == (
        {"model.x": "x"},
        ("with 'model.' in front (1 tensor)",),
    )


def test_the_reading_that_matches_most_is_taken():
    other = headers({"b": (2, 3), "model.a": (2, 3), "model.b": (2, 3), "model.c": (2, 3)})
    first = headers({"a": (2, 3), "module.b": (2, 3), "c": (2, 3), "model.model.b": (2, 3)})
    names, said = aligned(other, first)
    assert names == {"module.b": "b", "a": "model.a", "c": "model.c", "model.model.b": "model.b"}
    assert said[0] == "without 'model.' (2 tensors)"


def stack(prefix, layers=4, shape=(6, 6)):
    return headers({f"{prefix}layers.{n}.weight": shape for n in range(layers)})


def moved(names, old, new):
    return {new + name.removeprefix(old): name for name in names}


@pytest.mark.parametrize(
    ("prefixes", "others"),
    [
        (("model.", "visual."), ("model.language_model.", "model.visual.")),
        (("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")),
        (("language_model.model.", "vision_tower."), ("language_model.", "vision_tower.")),
        (("", "visual."), ("model.language_model.", "model.visual.")),
        (("model.text.", "model.visual."), ("", "visual.")),
        (("model.model.", "model.visual."), ("language_model.model.", "visual.")),
        (("module.text.", "module.model."), ("text.", "model.")),
        (("language_model.model.", "vision_tower.vision_model."), ("model.", "vision_tower.")),
    ],
)
@pytest.mark.parametrize("layers", [(4, 4), (3, 5), (5, 3)])
def test_each_part_is_read_in_its_own_way(prefixes, others, layers):
    """Both towers have the same names inside, and the same shapes."""
    for old, new in ((prefixes, others), (others, prefixes)):
        ours, theirs = (stack(names[0], layers[0]) | stack(names[1], layers[1]) for names in (old, new))
        names, _ = aligned(ours, theirs)
        expected = [moved(stack(old[n], layers[n]), old[n], new[n]) for n in (0, 1)]
        assert names == {name: was for part in expected for name, was in part.items() if name != was}


def test_no_layer_is_read_as_that_of_another_part():
    """All layers of one part belong together, whichever of them match."""
    tower, text = stack("model.", 4), stack("model.language_model.", 6)
    assert aligned(stack("model.", 6), tower | text) == ({}, ())
    assert aligned(tower | text, stack("model.", 6)) == ({}, ())


def test_two_parts_never_become_one():
    both = stack("model.", 6) | {"layers.9.weight": TensorInfo("layers.9.weight", "F32", (6, 6), 0, 0)}
    one = stack("language_model.", 10)
    assert aligned(both, one)[0] == moved(stack("model.", 6), "model.", "language_model.")
    whole, parts = stack("language_model.", 6), moved(stack("model.", 6), "model.", "language_model.")
    assert aligned(one, both)[0] == {name: was for was, name in parts.items()}
    assert set(parts) == set(whole)


def test_a_part_of_another_model_does_not_keep_the_other_part_from_its_match():
    ours, theirs = stack("") | stack("visual.", 8), stack("model.", 4, (9, 9)) | stack("model.visual.", 8)
    assert aligned(ours, theirs)[0] == moved(stack("visual.", 8), "", "model.")


@pytest.mark.parametrize("kind", ["Qwen2_5_VL", "Llava", "Gemma3"])
def test_a_model_of_two_parts_without_its_head(kind):
    """What the head's absence changes in the names of transformers' own classes."""
    body, whole = of(build(f"{kind}Model")), of(build(f"{kind}ForConditionalGeneration"))
    assert aligned(body, whole)[0] == {f"model.{name}": name for name in body}
    assert aligned(whole, body)[0] == {name: f"model.{name}" for name in body}


def test_names_that_only_differ_in_many_wrappers_tell_nothing():
    wrappers = [
        f"{a}.{b}.{c}.x"
        for a in ("model", "module")
        for b in ("model", "module")
        for c in ["model", "module"]
    ]
    first = headers({"x": (2, 2)})
    assert aligned(headers(dict.fromkeys(wrappers, (2, 2))), first)[0] == {"x": wrappers[0]}
    assert aligned(headers(dict.fromkeys([*wrappers, "model.x"], (2, 2))), first) == ({}, ())


PARTS = st.sampled_from(["model", "module", "base_model", "_orig_mod", "layers", "0", "weight"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)
SHAPES = st.sampled_from([(2,), (2, 3), (4, 3)])
HEADERS = st.dictionaries(NAMES, SHAPES, max_size=12).map(headers)


@given(HEADERS, HEADERS)
def test_every_tensor_keeps_a_name_of_its_own(other, first):
    found = align(other, first, [], "base")
    assert list(found.stored.values()) == list(other)
    assert all(found.stored[name] == name for name in other.keys() & first.keys())
    changed = {name for name, stored in found.stored.items() if name != stored}
    assert changed <= first.keys() - other.keys()
    assert bool(changed) is bool(found.notes)
    shuffled = align(dict(reversed(other.items())), dict(reversed(first.items())), [], "base")
    assert len(shuffled.stored) == len(other)
    assert align(other, first, [], "base") == found


@given(HEADERS)
def test_a_checkpoint_is_read_as_itself(other):
    found = align(other, other, [], "base")
    assert (found.stored, found.notes) == ({name: name for name in other}, ())


def suggestion(base, first):
    """What is suggested, as the user would type it."""

    def reread(renames):
        found = align(base, first, renames, "base").stored
        return {name: base[stored] for name, stored in found.items()}

    return " ".join(f"--rename {rename}" for rename in suggestions(reread([]), first, reread)) or None


def swapped(kind, old, new):
    return wrapped(kind, lambda name: f"{new}{name.removeprefix(old)}" if name.startswith(old) else name)


@pytest.mark.parametrize(
    ("base", "finetuned", "expected"),
    [
        (model_headers("BertModel"), model_headers("BertForSequenceClassification"), "--rename =bert"),
        (model_headers("BertForSequenceClassification"), model_headers("BertModel"), "--rename bert="),
        (model_headers("GPT2Model"), model_headers("GPT2LMHeadModel"), "--rename =transformer"),
        (
            swapped("LlamaForCausalLM", "model.layers", "transformer.h"),
            model_headers("LlamaForCausalLM"),
            "--rename transformer.h=model.layers",
        ),
        (
            swapped("CLIPModel", "text_model.", "text_encoder."),
            model_headers("CLIPModel"),
            "--rename text_encoder=text_model",
        ),
        # a vision tower that the fine-tuned checkpoint has not
        (
            wrapped("LlamaForCausalLM", in_front("language.")) | wrapped("CLIPModel", in_front("vision.")),
            model_headers("LlamaForCausalLM"),
            "--rename language=",
        ),
        (model_headers("BertForPreTraining"), model_headers("BertForSequenceClassification"), None),
        (model_headers("LlamaForCausalLM"), model_headers("LlamaForCausalLM"), None),
        (model_headers("LlamaForCausalLM"), model_headers("T5ForConditionalGeneration"), None),
        (
            swapped("LlamaForCausalLM", "model.layers.0", "model.first"),
            model_headers("LlamaForCausalLM"),
            "--rename model.first=model.layers.0",
        ),
        ({}, model_headers("LlamaForCausalLM"), None),
        (model_headers("LlamaForCausalLM"), {}, None),
    ],
)
def test_a_rename_is_suggested_where_many_names_stay_unmatched(base, finetuned, expected):
    assert suggestion(base, finetuned) == expected
    if expected is not None:
        rename = Rename.parse(expected.removeprefix("--rename "))
        found = align(base, finetuned, [rename], "base")
        assert len(found.stored.keys() & finetuned.keys()) > len(base.keys() & finetuned.keys())


def test_a_rename_is_not_suggested_for_other_shapes_or_where_it_loses_more():
    llama = model_headers("LlamaForCausalLM")
    wide = of(build("LlamaForCausalLM", hidden_size=24))
    assert suggestion(headers({f"x.{n}": t.shape for n, t in wide.items()}), llama) is None
    some = headers({f"x.{n}": t.shape if n in [*llama][:2] else t.shape * 2 for n, t in llama.items()})
    assert suggestion(some, llama) is None
    first = headers({**{f"h.{n}": (2, 3) for n in range(9)}, **{f"a.h.{n}": (2, 3) for n in range(9, 14)}})
    base = headers({f"h.{n}": (2, 3) for n in range(14)})
    assert suggestion(base, first) is None  # '=a' would lose nine names to gain five


MASKED = {"num_hidden_layers": 1}
TYING = {
    "BertForMaskedLM": MASKED,
    "BertForPreTraining": MASKED,
    "RobertaForMaskedLM": MASKED,
    "XLMRobertaForMaskedLM": MASKED,
    "MPNetForMaskedLM": MASKED,
    "LongformerForMaskedLM": MASKED,
    "EsmForMaskedLM": {**MASKED, "vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "DistilBertForMaskedLM": {"n_layers": 1},
    "DebertaV2ForMaskedLM": MASKED,
    "ElectraForMaskedLM": MASKED,
    "AlbertForMaskedLM": MASKED,
    "ModernBertForMaskedLM": MASKED,
    "GPT2LMHeadModel": {},
    "GPTJForCausalLM": {"n_layer": 1, "tie_word_embeddings": True},
    "OpenAIGPTLMHeadModel": {"n_layer": 1},
    "OPTForCausalLM": MASKED,
    "BloomForCausalLM": {"n_layer": 1},
    "FalconForCausalLM": MASKED,
    "GPTNeoXForCausalLM": {**MASKED, "tie_word_embeddings": True},
    "MambaForCausalLM": MASKED,
    "LlamaForCausalLM": {"tie_word_embeddings": True},
    "Gemma3ForConditionalGeneration": {},
    "Qwen2VLForConditionalGeneration": {"tie_word_embeddings": True},
    "T5ForConditionalGeneration": {},
    "MT5ForConditionalGeneration": {"num_layers": 1},
    "BartForConditionalGeneration": SIDES,
    "MBartForConditionalGeneration": SIDES,
    "MarianMTModel": SIDES,
    "WhisperForConditionalGeneration": {},
}


@pytest.mark.parametrize("kind", TYING)
def test_ties_are_those_of_transformers(kind):
    model = build(kind, **TYING[kind])
    config = {**model.config.to_dict(), "architectures": [kind]}
    ties = model.all_tied_weights_keys
    assert ties
    kept = {name: tensor for name, tensor in of(model).items() if name not in ties}
    inside = headers({f"module.{name}": tensor.shape for name, tensor in kept.items()})
    assert ties.items() <= tied_names(kept, config, {}, {}).items()
    assert {f"module.{a}": f"module.{b}" for a, b in ties.items()}.items() <= tied_names(
        inside, config, {}, {}
    ).items()
    assert not tied_names(of(model), config, {}, {}).keys() & of(model).keys()


def test_the_one_that_is_left_may_be_the_head():
    names = headers({"lm_head.weight": (9, 4), "model.norm.weight": (4,)})
    tie = {"tie_word_embeddings": True}
    assert tied_names(names, tie, {}, {})["model.embed_tokens.weight"] == "lm_head.weight"
    assert tied_names(names, {"tie_word_embeddings": False}, {}, {}) == {}
    both = names | headers({"model.embed_tokens.weight": (9, 4)})
    assert tied_names(both, tie, {}, {}) == {}


GPT2, HEAD = {"transformer.wte.weight": (9, 4)}, {"lm_head.weight": "transformer.wte.weight"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"tie_word_embeddings": True}, HEAD),
        ({"tie_word_embeddings": False, "architectures": ["GPT2LMHeadModel"]}, {}),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, HEAD),
        ({"decoder": {"tie_word_embeddings": True}}, HEAD),
        ({"text_config": {"tie_word_embeddings": False}, "architectures": ["GPT2LMHeadModel"]}, {}),
        ({"architectures": ["GPT2LMHeadModel"]}, HEAD),
        ({"architectures": ["XForCausalLM"]}, HEAD),
        ({"architectures": ["GPT2ForSequenceClassification"]}, {}),
        ({"architectures": ["GPT2Model"]}, {}),
        ({"architectures": "GPT2LMHeadModel"}, {}),
        ({"architectures": [7, None], "text_config": 3, "tie_word_embeddings": None}, {}),
        ({"tie_word_embeddings": "yes"}, {}),
    ],
)
def test_heads_are_tied_where_the_config_says_so(config, expected):
    assert tied_names(headers(GPT2), config, {}, {}) == expected


def test_the_sides_of_a_translator_share_their_embedding_whatever_the_config():
    names = headers({"shared.weight": (9, 4), "lm_head.weight": (9, 4)})
    expected = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight")
    assert tied_names(names, {"tie_word_embeddings": False}, {}, {}) == expected
    assert tied_names(headers({"shared.weight": (9, 4)}), None, {}, {}) == expected


def test_ties_that_the_file_or_its_reader_notes(tmp_path):
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 4, bias=False), "b": torch.nn.Linear(4, 4, bias=False)}
    )
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "a.safetensors"), metadata={"format": "pt", "a.weight": "about it"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        names, metadata = headers(dict.fromkeys(file.keys(), (4, 4))), file.metadata()
    assert (list(names), metadata["b.weight"]) == (["a.weight"], "a.weight")
    assert tied_names(names, None, metadata, {}) == {"b.weight": "a.weight"}
    both = names | headers({"b.weight": (4, 4)})
    assert tied_names(both, None, metadata, {}) == {}
    assert tied_names(names, None, {"format": "pt"}, {"c": "a.weight", "d": "e"}) == {"c": "a.weight"}


def test_a_name_is_tied_in_one_place_of_the_table():
    embeddings = [name for names, _ in TIED for name in names]
    assert len(embeddings) == len(set(embeddings))
