"""Tiny models of real libraries, built from configs with random weights; nothing is downloaded."""

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

STACK = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**STACK, "vocab_size": 99, "max_position_embeddings": 64}
CAUSAL = {**TEXT, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION = {**STACK, "image_size": 32, "patch_size": 8}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SPEECH = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "decoder_start_token_id": 0,
    **ENDS,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

MODELS = {
    "llama": ("LlamaForCausalLM", CAUSAL),
    "llama, tied": ("LlamaForCausalLM", {**CAUSAL, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**CAUSAL, "head_dim": 8}),
    "qwen3, tied": ("Qwen3ForCausalLM", {**CAUSAL, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {**CAUSAL, "head_dim": 8, **EXPERTS}),
    "mixtral": ("MixtralForCausalLM", {**CAUSAL, "num_local_experts": 4}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, **ENDS}),
    "bert": ("BertForMaskedLM", TEXT),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, untied": ("T5ForConditionalGeneration", {**T5, "tie_word_embeddings": False}),
    "clip": ("CLIPModel", {"text_config": {**TEXT, **ENDS}, "vision_config": VISION, "projection_dim": 24}),
    "vit": ("ViTForImageClassification", VISION),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "whisper": ("WhisperForConditionalGeneration", SPEECH),
}
"""The class in transformers and the options of its config; embeddings are tied where that is its default."""


def build(kind, options):
    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    return kind(kind.config_class(**options))


LANGUAGE = {**CAUSAL, "head_dim": 8}
SIGHT = {
    **VISION,
    "depth": 2,  # as Qwen's configs call these
    "embed_dim": 32,
    "num_heads": 4,
    "out_hidden_size": 32,
    "projection_dim": 32,  # PaliGemma
}


def build_seeing(kind):
    """A model of a vision tower and a language model, of the kinds that are this class's defaults."""
    kind = getattr(transformers, kind)
    config = kind.config_class(projection_dim=32)
    config.text_config = type(config.text_config)(**LANGUAGE)
    config.vision_config = type(config.vision_config)(**SIGHT)
    torch.manual_seed(0)
    return kind(config)


def step(model):
    """The same model after a step of about 2 % in every parameter: noise, and half as much of rank 1."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            change = torch.randn(weights.shape, generator=noise)
            if weights.ndim > 1:
                rows, columns = (torch.randn(n, generator=noise) for n in (len(weights), change[0].numel()))
                change += 0.5 * torch.outer(rows, columns).view_as(change)
            weights += 0.02 * (weights.float().square().mean().sqrt() or 1) * change
    return model


def unet(width, **options):
    """A UNet for text encoders of this width, which seeds what is built after it too."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def unet_pipeline():
    denoiser = unet(32)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=build("CLIPTextModel", {**TEXT, **ENDS}),
        unet=denoiser,
        tokenizer=transformers.CLIPTokenizer(words, merges=[]),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def transformer_pipeline():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    return DiTPipeline(transformer, vae(), DDIMScheduler())


def vae():
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)


PIPELINES = {"unet": unet_pipeline, "transformer": transformer_pipeline}
"""The folder of the denoiser in a pipeline of diffusers, and the pipeline."""


def sentence_model(folder):
    """BERT, pooling and a dense layer; `folder` is where the parts are put first."""
    build("BertModel", TEXT).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    transformers.BertTokenizer({word: number for number, word in enumerate(words)}).save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(32, "mean"), Dense(32, 16)]
    return SentenceTransformer(modules=modules, device="cpu")
