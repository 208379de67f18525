"""The blocks of real models found in their names, what kind each layer is, and which are heads."""

import re
from functools import cache

import pytest
import torch

from monosoup_cli.errors import MismatchError, UsageError
from monosoup_cli.names import KINDS, Position, counterparts, find_blocks, in_order, is_head, places

TRANSFORMERS = {
    "LlamaForCausalLM": {"model.layers": 32},
    "Qwen2ForCausalLM": {"model.layers": 32},
    "MistralForCausalLM": {"model.layers": 32},
    "Gemma2ForCausalLM": {"model.layers": 26},
    "GPT2LMHeadModel": {"transformer.h": 12},
    "GPT2Model": {"h": 12},
    "GPTNeoXForCausalLM": {"gpt_neox.layers": 44},
    "OPTForCausalLM": {"model.decoder.layers": 12},
    "BloomForCausalLM": {"transformer.h": 2},
    "BertForSequenceClassification": {"bert.encoder.layer": 12},
    "RobertaForSequenceClassification": {"roberta.encoder.layer": 12},
    "DistilBertForSequenceClassification": {"distilbert.transformer.layer": 6},
    "DebertaForSequenceClassification": {"deberta.encoder.layer": 12},
    "DebertaV2ForSequenceClassification": {"deberta.encoder.layer": 24},
    "T5ForConditionalGeneration": {"encoder.block": 6, "decoder.block": 6},
    "BartForSequenceClassification": {"model.encoder.layers": 12, "model.decoder.layers": 12},
    "WhisperForConditionalGeneration": {"model.encoder.layers": 4, "model.decoder.layers": 4},
    "CLIPModel": {"text_model.encoder.layers": 12, "vision_model.encoder.layers": 12},
    "SiglipModel": {"text_model.encoder.layers": 12, "vision_model.encoder.layers": 12},
    "ViTForImageClassification": {"vit.layers": 12},
    "DeiTForImageClassification": {"deit.layers": 12},
    "Dinov2ForImageClassification": {"dinov2.encoder.layer": 12},
    "ConvNextForImageClassification": {"convnext.encoder.stages.*.layers": (3, 3, 9, 3)},
    "ConvNextV2ForImageClassification": {"convnextv2.encoder.stages.*.layers": (3, 3, 9, 3)},
    "SwinForImageClassification": {"swin.encoder.layers.*.blocks": (2, 2, 6, 2)},
    "ResNetForImageClassification": {"resnet.encoder.stages.*.layers": (3, 4, 6, 3)},
    "MixtralForCausalLM": {"model.layers": 32},
    "Qwen2MoeForCausalLM": {"model.layers": 24},
    "DeepseekV3ForCausalLM": {"model.layers": 61},  # dense first, then sparse
    "JambaForCausalLM": {"model.layers": 32},  # attention and Mamba, dense and sparse
    "NemotronHForCausalLM": {"model.layers": 4},  # three kinds, alike in one norm
    "Zamba2ForCausalLM": {"model.layers": 54},  # two kinds, alike in nothing
    "Qwen2VLForConditionalGeneration": {"model.visual.blocks": 32, "model.language_model.layers": 80},
    "LlavaForConditionalGeneration": {
        "model.vision_tower.encoder.layers": 24,
        "model.language_model.layers": 32,
    },
    "Wav2Vec2ForCTC": {"wav2vec2.feature_extractor.conv_layers": 7, "wav2vec2.encoder.layers": 12},
}

# names as files hold them that a newer transformers renames, and those of other libraries;
# {12} stands for 0 to 11, {a,b} for a and b
LLAMA_LAYER = (
    "{input_layernorm,post_attention_layernorm,self_attn.q_proj,self_attn.k_proj,self_attn.v_proj,"
    "self_attn.o_proj}.weight"
)
CLIP_BLOCK = (
    "{ln_1.weight,ln_1.bias,attn.in_proj_weight,attn.in_proj_bias,attn.out_proj.weight,attn.out_proj.bias,"
    "ln_2.weight,ln_2.bias,mlp.c_fc.weight,mlp.c_fc.bias,mlp.c_proj.weight,mlp.c_proj.bias}"
)
OPENAI_CLIP = (
    "{positional_embedding,text_projection,logit_scale,visual.class_embedding,visual.positional_embedding}",
    "{visual.proj,visual.conv1.weight,token_embedding.weight,ln_final.weight,ln_final.bias}",
    "visual.{ln_pre,ln_post}.{weight,bias}",
)
TIMM_BLOCK = "{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}.{weight,bias}"
BATCH_NORM = "{weight,bias,running_mean,running_var,num_batches_tracked}"
RESNETS = "resnets.{2}.{norm1,conv1,time_emb_proj,norm2,conv2}.{weight,bias}"
ATTENTIONS = (
    "{norm,proj_in,proj_out,transformer_blocks.0.norm1,transformer_blocks.0.attn1.to_q,"
    "transformer_blocks.0.attn1.to_out.0,transformer_blocks.0.ff.net.0.proj,transformer_blocks.0.ff.net.2}.weight"
)
WRITTEN = {
    "ViT on the Hub": (
        {"vit.encoder.layer": 12},
        "vit.embeddings.{cls_token,position_embeddings,patch_embeddings.projection.weight}",
        "vit.encoder.layer.{12}.{attention.attention.query,attention.output.dense,intermediate.dense,"
        "output.dense,layernorm_before}.{weight,bias}",
        "{vit.layernorm,classifier}.{weight,bias}",
    ),
    "Mixtral on the Hub": (
        {"model.layers": 3},
        "{model.embed_tokens,model.norm,lm_head}.weight",
        "model.layers.{3}." + LLAMA_LAYER,
        "model.layers.{3}.block_sparse_moe.{gate,experts.{8}.{w1,w2,w3}}.weight",
    ),
    "Qwen-MoE on the Hub, with one layer that predicts a further token": (
        {"model.layers": 3},
        "{model.embed_tokens,model.norm,lm_head,mtp.norm,mtp.fc}.weight",
        "{model.layers.{3},mtp.layers.0}." + LLAMA_LAYER,
        "{model.layers.{3},mtp.layers.0}.mlp.{gate,experts.{8}.{gate_proj,up_proj,down_proj}}.weight",
    ),
    "LLaVA on the Hub": (
        {"language_model.model.layers": 3, "vision_tower.vision_model.encoder.layers": 4},
        "language_model.{model.embed_tokens,model.norm,lm_head}.weight",
        "multi_modal_projector.{linear_1,linear_2}.{weight,bias}",
        "language_model.model.layers.{3}." + LLAMA_LAYER,
        "vision_tower.vision_model.encoder.layers.{4}.{layer_norm1,self_attn.q_proj,mlp.fc1}.{weight,bias}",
        "vision_tower.vision_model.{pre_layrnorm,post_layernorm}.{weight,bias}",
    ),
    "Qwen2-VL on the Hub": (
        {"model.layers": 3, "visual.blocks": 4},
        "{model.embed_tokens,model.norm,lm_head,visual.patch_embed.proj,visual.merger.ln_q}.weight",
        "model.layers.{3}." + LLAMA_LAYER,
        "visual.blocks.{4}." + TIMM_BLOCK,
        "visual.merger.mlp.{0,2}.{weight,bias}",
    ),
    "OpenAI CLIP": (
        {"visual.transformer.resblocks": 12, "transformer.resblocks": 12},
        *OPENAI_CLIP,
        "{visual.transformer,transformer}.resblocks.{12}." + CLIP_BLOCK,
    ),
    "model soups' CLIP ViT-B/32": (
        {"model.visual.transformer.resblocks": 12, "model.transformer.resblocks": 12},
        *("model." + template for template in OPENAI_CLIP),
        "model.{visual.transformer,transformer}.resblocks.{12}." + CLIP_BLOCK,
        "classification_head.{weight,bias}",
    ),
    "timm ViT": (
        {"blocks": 12},
        "{cls_token,pos_embed,{patch_embed.proj,norm_pre,norm,head}.{weight,bias}}",
        "blocks.{12}." + TIMM_BLOCK,
    ),
    "timm ConvNeXt": (
        {"stages.*.blocks": (3, 3, 9, 3)},
        "stem.{2}.{weight,bias}",
        *(
            f"stages.{stage}.blocks.{{{depth}}}.{{gamma,{{conv_dw,norm,mlp.fc1,mlp.fc2}}.{{weight,bias}}}}"
            for stage, depth in enumerate((3, 3, 9, 3))
        ),
        "stages.{1,2,3}.downsample.{2}.{weight,bias}",
        "head.{norm,fc}.{weight,bias}",
    ),
    "timm Swin": (
        {"layers.*.blocks": (2, 2, 6, 2)},
        "{patch_embed.proj,patch_embed.norm,norm,head.fc}.{weight,bias}",
        *(f"layers.{stage}.blocks.{{{depth}}}.{TIMM_BLOCK}" for stage, depth in enumerate((2, 2, 6, 2))),
        "layers.{4}.blocks.{2}.attn.relative_position_bias_table",
        "layers.{1,2,3}.downsample.{reduction.weight,norm.{weight,bias}}",
    ),
    "timm EfficientNet": (
        {"blocks.*": (1, 2, 2)},
        "{conv_stem.weight,bn1.{weight,bias},conv_head.weight,classifier.{weight,bias}}",
        "blocks.0.0.{conv_dw,bn1,se.conv_reduce,se.conv_expand,conv_pw,bn2}.weight",
        "blocks.{1,2}.{2}.{conv_pw,bn1,conv_dw,bn2,se.conv_reduce,se.conv_expand,conv_pwl,bn3}.weight",
    ),
    "diffusers UNet": (
        {"down_blocks": 4, "up_blocks": 4},
        "{conv_in,conv_out,conv_norm_out,time_embedding.{linear_1,linear_2}}.{weight,bias}",
        "{down_blocks.{4},up_blocks.{4},mid_block}." + RESNETS,
        "up_blocks.{4}.resnets.{3}.conv_shortcut.weight",
        "up_blocks.{4}.resnets.2.{norm1,conv1,time_emb_proj,norm2,conv2}.{weight,bias}",
        "{down_blocks.{0,1,2}.attentions.{2},up_blocks.{1,2,3}.attentions.{3},mid_block.attentions.0}."
        + ATTENTIONS,
        "{down_blocks.{0,1,2}.downsamplers,up_blocks.{0,1,2}.upsamplers}.0.conv.{weight,bias}",
    ),
    "InstructBLIP": (
        {"qformer.encoder.layer": 2, "language_model.encoder.block": 2},
        "qformer.encoder.layer.{2}.{attention.attention.query,output_query.LayerNorm}.{weight,bias}",
        "language_model.encoder.block.{2}.layer.0.{SelfAttention.q,SelfAttention.o,layer_norm}.weight",
        "language_model.encoder.block.{2}.layer.1.{DenseReluDense.wi,DenseReluDense.wo,layer_norm}.weight",
    ),
    "SwinIR": (
        {"layers.*.residual_group.blocks": (2, 2)},
        "{conv_first,conv_last}.{weight,bias}",
        "layers.{2}.residual_group.blocks.{2}." + TIMM_BLOCK,
        "layers.{2}.conv.{weight,bias}",
    ),
    "one stack whose name ends in a number": ({"encoder2": 3}, "encoder2.{3}.attn.weight", "norm2.weight"),
    "little but a Sequential with activations in each block": (
        {"h": 3},
        "h.{3}.norm.weight",
        "h.{3}.net.{0,2}.{weight,bias}",
    ),
    "a list in the first block alone": ({"h": 3}, "h.{3}.norm.weight", "h.0.net.{2}.{weight,bias}"),
    "an MLP and codebooks beside layers": (
        {"decoder.layers": 3},
        "{decoder.embed_tokens,lm_heads}.{4}.weight",
        "bbox_predictor.layers.{3}.{weight,bias}",
        "decoder.layers.{3}.{self_attn.q_proj,self_attn.k_proj,norm}.weight",
        "decoder.layers.{3}.mlp.{3}.{weight,bias}",
    ),
    "nothing but single layers": ({"net": 3}, "net.{3}.{weight,bias}", "scale"),
    "a name that begins with the number": ({"": 3}, "{3}.{weight,bias}"),
}

# what a stage holds outside its blocks, and the block it counts with
BETWEEN = {
    "ConvNextForImageClassification": {
        "convnext.encoder.stages.1.downsampling_layer": 3,
        "convnext.encoder.stages.2.downsampling_layer": 6,
        "convnext.encoder.stages.3.downsampling_layer": 15,
    },
    "ConvNextV2ForImageClassification": {
        "convnextv2.encoder.stages.1.downsampling_layer": 3,
        "convnextv2.encoder.stages.2.downsampling_layer": 6,
        "convnextv2.encoder.stages.3.downsampling_layer": 15,
    },
    "SwinForImageClassification": {
        "swin.encoder.layers.0.downsample": 1,
        "swin.encoder.layers.1.downsample": 3,
        "swin.encoder.layers.2.downsample": 9,
    },
    "timm ConvNeXt": {"stages.1.downsample": 3, "stages.2.downsample": 6, "stages.3.downsample": 15},
    "SwinIR": {"layers.0.conv": 0, "layers.1.conv": 2},
    "timm Swin": {"layers.1.downsample": 2, "layers.2.downsample": 4, "layers.3.downsample": 10},
}


def expand(template):
    """The names that a template with {12} and {a,b} stands for."""
    braces = re.search(r"\{([^{}]*)\}", template)
    if braces is None:
        return [template]
    inside = braces[1]
    choices = range(int(inside)) if inside.isdecimal() else inside.split(",")
    # an inner choice that was filled in first may still stand between commas of an outer one
    return [
        name
        for choice in choices
        for name in expand(f"{template[: braces.start()]}{choice}{template[braces.end() :]}")
    ]


@cache
def names_of(model):
    if model in WRITTEN:
        return tuple(dict.fromkeys(name for template in WRITTEN[model][1:] for name in expand(template)))
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, model)
    with torch.device("meta"):
        return tuple(kind(kind.config_class()).state_dict())


def stacks_of(model):
    return WRITTEN[model][0] if model in WRITTEN else TRANSFORMERS[model]


def expected_positions(model):
    """Told by the stacks of the table, without any detection."""
    positions = {}
    for stack, depth in stacks_of(model).items():
        depths = depth if isinstance(depth, tuple) else (depth,)
        numbers = re.escape(f"{stack}.".lstrip(".")).replace(r"\*", r"(\d+)") + r"(\d+)\."
        for name in names_of(model):
            if match := re.match(numbers, name):
                *stage, block = map(int, match.groups())
                positions[name] = Position(stack, sum(depths[: sum(stage)]) + block, sum(depths))
            for prefix, block in BETWEEN.get(model, {}).items():
                if name.startswith(prefix + "."):
                    positions[name] = Position(stack, block, sum(depths))
    return positions


@pytest.mark.parametrize("model", [*TRANSFORMERS, *WRITTEN])
def test_blocks_of_real_models_are_found(model):
    positions = expected_positions(model)
    assert {position.stack for position in positions.values()} == set(stacks_of(model))
    for position in positions.values():
        assert 0 <= position.block < position.length
    assert find_blocks(names_of(model)) == positions


@pytest.mark.parametrize("model", [*TRANSFORMERS, *WRITTEN])
def test_a_prefix_changes_nothing_but_the_stacks_name(model):
    plain = find_blocks(names_of(model))
    for prefix in ("model", "module"):
        moved = find_blocks(f"{prefix}.{name}" for name in names_of(model))
        assert moved == {
            f"{prefix}.{name}": Position(
                f"{prefix}.{position.stack}".rstrip("."), position.block, position.length
            )
            for name, position in plain.items()
        }


def test_the_order_of_names_does_not_matter():
    names = names_of("timm ConvNeXt")
    assert find_blocks(reversed(names)) == find_blocks(names)


def test_of_two_lists_in_a_stage_the_first_by_name_counts():
    for first in "abcdefgh":
        names = [f"stages.{stage}.{word}.0.weight" for stage in (0, 1) for word in (first, f"{first}z")]
        assert {position.stack for position in find_blocks(names).values()} == {f"stages.*.{first}"}


def test_numbered_stages_are_one_stack():
    names = [
        name
        for number, depth in enumerate((3, 4, 6, 3), start=1)
        for name in expand(
            f"layer{number}.{{{depth}}}.{{{{conv1,conv2,conv3}}.weight,{{bn1,bn2,bn3}}.{BATCH_NORM}}}"
        )
    ]
    names += expand("layer{1,2,3,4}.0.downsample.{0.weight,1." + BATCH_NORM + "}")
    found = find_blocks([*names, "conv1.weight", "bn1.weight", "fc.weight", "fc.bias"])
    assert found.keys() == set(names)
    assert {position.stack for position in found.values()} == {"layer*"}
    assert found["layer1.2.conv1.weight"] == Position("layer*", 2, 16)
    assert found["layer2.0.downsample.0.weight"] == Position("layer*", 3, 16)
    assert found["layer4.2.bn3.bias"] == Position("layer*", 15, 16)


def test_stages_of_a_vae_count_through():
    names = expand("encoder.{down_blocks.{4},mid_block}.resnets.{2}.{norm1,conv1,norm2,conv2}.{weight,bias}")
    names += expand("encoder.down_blocks.{3}.downsamplers.0.conv.{weight,bias}")
    found = find_blocks(names)
    assert found["encoder.down_blocks.1.downsamplers.0.conv.bias"].block == 3
    assert found["encoder.down_blocks.3.resnets.1.conv2.bias"].block == 7
    assert not any("mid_block" in name for name in found)


def test_blocks_are_numbered_not_sorted_as_words():
    names = expand("h.{12}.mlp.weight")
    assert [position.block for position in find_blocks(names).values()] == list(range(12))


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["weight", "bias"],
        ["net.0.weight", "net.2.weight", "net.4.weight"],  # a Sequential with activations between
        ["model.layers.3.mlp.weight", "model.layers.4.mlp.weight"],  # not from 0
        ["h.0.mlp.weight", "h.0.attn.weight"],  # one block
        ["head.0.norm.weight", "head.1.proj.weight"],  # not alike
        ["h.00.mlp.weight", "h.01.mlp.weight"],
        [f"h.{'9' * 5000}.mlp.weight"],
    ],
)
def test_no_list_of_blocks_is_refused(names):
    with pytest.raises(MismatchError, match=r"no list of blocks.*--block-pattern"):
        find_blocks(names)


def test_a_pattern_replaces_the_detection():
    names = expand("{a,b}.h{01,02,10}.w") + expand("layers.{2}.attn.w")
    assert find_blocks(names, r"\.h(\d+)\.") == {
        f"{stack}.h{number}.w": Position(f"{stack}.h", block, 3)
        for stack in "ab"
        for block, number in enumerate(("01", "02", "10"))
    }


def test_the_groups_of_a_pattern_count_through():
    names = expand("features.{denseblock1.denselayer{1,2},denseblock2.denselayer1}.conv")
    assert find_blocks(names, r"denseblock(\d+)\.denselayer(\d+)") == {
        "features.denseblock1.denselayer1.conv": Position("features.denseblock", 0, 3),
        "features.denseblock1.denselayer2.conv": Position("features.denseblock", 1, 3),
        "features.denseblock2.denselayer1.conv": Position("features.denseblock", 2, 3),
    }


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("h.(", "is not a valid regular expression"),
        ("h.{99999999999}", "is not a valid regular expression"),
        (r"h\.\d+", "has no group"),
        (r"(h)\.", "captures text that is not an integer"),
        (r"h\.(\d*)", "captures text that is not an integer"),
        (r"h\.(\d+)(\.attn)?", "captures text that is not an integer"),
        (r"layers\.(\d+)", "matches no tensor"),
    ],
)
def test_bad_patterns_are_refused(pattern, problem):
    with pytest.raises(UsageError, match=problem):
        find_blocks(["h.0.mlp.weight", "h.1.mlp.weight", "h..weight"], pattern)


@pytest.mark.parametrize(
    "name", expand("{lm_head,score,classifier.1,fc,head.fc,model.heads.0,classification_head.dense}.weight")
)
def test_heads(name):
    assert is_head(name)


@pytest.mark.parametrize("name", ["pre_classifier.weight", "fc1.weight", "ln_head.w", "header"])
def test_no_heads(name):
    assert not is_head(name)


KINDS_OF = {
    "LlamaForCausalLM": {
        "embedding": {"model.embed_tokens"},
        "attention": {f"self_attn.{name}_proj" for name in "qkvo"},
        "mlp": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
        "head": {"lm_head"},
    },
    "BertForSequenceClassification": {
        "attention": {"attention.output.dense", *(f"attention.self.{n}" for n in ("query", "key", "value"))},
        "mlp": {"intermediate.dense", "output.dense", "bert.pooler.dense"},
        "head": {"classifier"},
    },
    "T5ForConditionalGeneration": {
        "embedding": {"shared", "layer.*.SelfAttention.relative_attention_bias"},
        "attention": {f"layer.*.{which}Attention.{name}" for which in ("Self", "EncDec") for name in "qkvo"},
        "mlp": {"layer.*.DenseReluDense.wi", "layer.*.DenseReluDense.wo"},
    },
    "GPT2LMHeadModel": {
        "embedding": {"transformer.wte", "transformer.wpe"},
        "attention": {"attn.c_attn", "attn.c_proj"},
        "mlp": {"mlp.c_fc", "mlp.c_proj"},
    },
    "ResNetForImageClassification": {"convolution": {"layer.*.convolution", "shortcut.convolution"}},
    "Mixtral on the Hub": {
        "attention": {f"self_attn.{name}_proj" for name in "qkvo"},
        "mlp": {"block_sparse_moe.gate", *(f"block_sparse_moe.experts.*.w{number}" for number in (1, 2, 3))},
    },
    "diffusers UNet": {
        "attention": {"attentions.*.transformer_blocks.*.attn1.to_q"},
        "mlp": {"attentions.*.transformer_blocks.*.ff.net.*.proj"},
    },
}


@pytest.mark.parametrize("model", KINDS_OF)
def test_kinds_of_layers(model):
    found = places(dict.fromkeys(names_of(model), (4, 4))).values()
    kind_of = {place.part: place.kind for place in found}
    assert set(kind_of.values()) <= set(KINDS)
    for kind, parts in KINDS_OF[model].items():
        assert {part: kind_of.get(part) for part in parts} == dict.fromkeys(parts, kind)


def test_four_dimensions_are_a_convolution_whatever_the_name():
    kinds = [place.kind for place in places({"stem.0": (8, 3, 7, 7), "stem.1": (8, 8)}).values()]
    assert kinds == ["convolution", "other"]


def test_a_place_has_its_position():
    found = places(dict.fromkeys(names_of("LlamaForCausalLM"), (4, 4)))
    assert found["model.layers.3.mlp.up_proj.weight"].position == Position("model.layers", 3, 32)
    assert found["lm_head.weight"].position is None


def test_names_without_blocks_have_places_too():
    assert [place.position for place in places({"a": (2, 2), "b": (2, 2)}).values()] == [None, None]


K_PROJ = "model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("shapes", "others", "pair"),
    [
        (
            {"model.embed_tokens.weight": (9, 4), "model.layers.0.norm.weight": (4,), K_PROJ: (2, 4)},
            {"wte.weight": (9, 4), "h.0.norm.weight": (4,), "h.0.attn.k_proj.weight": (2, 4)},
            (K_PROJ, "h.0.attn.k_proj.weight"),
        ),
        ({"a.x.w": (2, 3), "a.y.w": (2, 5)}, {"b.w": (2, 5)}, ("a.y.w", "b.w")),  # the shape decides
        (
            {"a.x.w": (2, 3)},
            {"b.x.w": (2, 5), "c.w": (2, 3)},
            ("a.x.w", "b.x.w"),
        ),  # the same part of another size
        ({"a.x": (3,), "b": (2, 3)}, {"c.x": (3,), "d": (4, 4)}, ("b", "d")),  # matrices, though nothing else
        ({"a": (3,)}, {"b": (3,)}, ("a", "b")),
        ({"a": (3,), "b": (2, 3)}, {}, ("b", None)),
    ],
)
def test_counterparts_share_the_end_of_their_name_and_their_shape(shapes, others, pair):
    assert counterparts(shapes, others) == pair


LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{block}.{part}" for block in range(12) for part in ("mlp.up.weight", "attn.q.weight")),
    "model.norm.weight",
    "lm_head.weight",
]
IN_ORDER = {
    "a decoder": LLAMA,
    "an encoder before its decoder": [
        "shared.weight",
        *(f"encoder.block.{block}.layer.0.q.weight" for block in range(3)),
        *(f"decoder.block.{block}.layer.0.q.weight" for block in range(3)),
        "decoder.final_layer_norm.weight",
        "lm_head.weight",
    ],
    "experts": [
        *(f"layers.0.experts.{expert}.{part}.weight" for expert in range(12) for part in ("w1", "w2")),
        *(f"layers.1.experts.{expert}.{part}.weight" for expert in range(12) for part in ("w1", "w2")),
    ],
    "a vision tower": [
        "conv1.weight",
        "ln_pre.weight",
        "positional_embedding",
        *(f"resblocks.{block}.attn.in_proj_weight" for block in range(11)),
        "ln_post.weight",
        "head.weight",
    ],
    "no blocks": ["1.weight", "3.weight", "10.weight", "fc.weight"],
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_layers_stand_in_depth(name):
    """Names that a file sorts by their characters, with block 10 before block 2, and the head first."""
    expected = IN_ORDER[name]
    in_file = sorted(expected, key=lambda name: name.replace("mlp.up", "a"))
    assert in_file != expected
    assert in_order(places(dict.fromkeys(in_file, (4, 4)))) == expected
