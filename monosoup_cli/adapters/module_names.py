"""The module names of known models that peft treats differently."""

from __future__ import annotations

import re

__all__ = [
    "CONV1D",
    "EMBEDDINGS",
    "HEADLESS",
    "HEADS",
    "MAMBA",
    "MAYBE_EMBEDDINGS",
    "MOVED",
    "NUMBERS",
    "RENAMED",
    "SHARED",
    "TRANSPOSED_CONVOLUTION",
    "WORDS",
]

WORDS = {
    "embed_in",
    "embed_tokens",
    "embeddings",
    "shared",
    "tok_embeddings",
    "token_embedding",
    "tokens_embed",
    "word_embedding",
    "word_embeddings",
    "wte",
}
"""The names of vocabulary embeddings, which a head may share."""
SHARED = {"shared", "bbox_embed", "class_embed", "embed_out"}
"""The embedding of an encoder and a decoder, the heads of detectors, and a head that is loaded as `lm_head`:
they share weights with other modules, or have other names when loaded."""
NUMBERS = re.compile(r"(\.\d+)+$")
EMBEDDINGS = WORDS | {
    "embed_tokens_per_layer",
    "entity_embeddings",
    "position_embedding",
    "position_embeddings",
    "positions_embed",
    "relative_attention_bias",
    "token_type_embeddings",
    "wpe",
}
"""Names that only embeddings have."""
MAYBE_EMBEDDINGS = re.compile(
    r"^embed(?!_out$|.*_proj)|emb(ed|edders?|eddings?|eds)?(_\d+)?$|tokens?$|_table$|^(pe_k|reference_points)$",
    re.IGNORECASE,
)
"""Names that both embeddings and linear layers have, and those of tables that are not called as modules or
with row indices (`embed_positions`). An adapter stores them whole."""
CONV1D = {"c_attn", "q_attn", "c_proj", "c_fc"}
"""The names in GPT-2 and similar models of layers whose weights are (in, out)."""
TRANSPOSED_CONVOLUTION = re.compile(r"transpose|deconv|upconv|upscale|resize")
MOVED = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Modules that peft looks for in fused experts wherever a model has experts."""
RENAMED = {
    "altclip",
    "aria",
    "audio-spectrogram-transformer",
    "audioflamingo3",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "bark",
    "beit",
    "chmv2",
    "cohere_asr",
    "colpali",
    "cosmos3_edge",
    "cosmos3_omni",
    "csm",
    "d_fine",
    "deepseek_v4",
    "deit",
    "depth_anything",
    "depth_pro",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_convnext",
    "dinov3_vit",
    "dots3_note",
    "ernie4_5_vl_moe",
    "fuyu",
    "gemma3",
    "glm5_next",
    "glm5_next_text",
    "glmasr",
    "got_ocr2",
    "gradium_phonon_tts",
    "granite_speech",
    "granite_speech_plus",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "grounding-dino",
    "gte",
    "hrm_text",
    "hy_v4",
    "hyperclovax_vision_v2",
    "ijepa",
    "inkling2",
    "inkling2_text",
    "inkling_mm_model",
    "internvl",
    "jina_embeddings_v3",
    "kimi_k25",
    "kimi_linear",
    "kolibri1",
    "kyutai_speech_to_text",
    "lfm3",
    "lfm3_vl",
    "lfm3_vl_vision",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "lw_detr",
    "mask2former",
    "maskformer",
    "mimi",
    "mimi_decoder",
    "mimi_encoder",
    "minimax_m3_vl",
    "mistral3",
    "mistral_large4",
    "mistral_large4_text",
    "mllama",
    "mm-grounding-dino",
    "molmo2",
    "molmo2_text",
    "musicflamingo",
    "nemo_speechlm",
    "nemotron_h",
    "nemotron_h_omni",
    "nomic_bert",
    "olmo_hybrid",
    "oneformer",
    "paddleocr_vl",
    "paligemma",
    "pi0",
    "pixio",
    "pp_doclayout_v2",
    "pp_doclayout_v3",
    "pp_doclayout_v4",
    "prompt_depth_anything",
    "qianfan_ocr",
    "qwen2_5_omni",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_omni_moe_thinker",
    "radio",
    "rf_detr",
    "rt_detr",
    "rt_detr_v2",
    "sam3_tracker",
    "sam3_tracker_video",
    "sam3_video",
    "sapiens2",
    "segformer",
    "shieldgemma2",
    "step3p7",
    "swin",
    "t5gemma2",
    "timesfm2_5",
    "tipsv2",
    "tipsv2_dpt",
    "tipsv2_text_model",
    "tipsv2_vision_model",
    "ultrabert",
    "ultravbert",
    "unlimited_ocr",
    "vibevoice_asr",
    "video_llava",
    "vipllava",
    "vision-encoder-decoder",
    "vision-text-dual-encoder",
    "vit",
    "vit_mae",
    "vit_msn",
    "vivit",
    "voxtral",
    "voxtral_realtime",
    "zamba",
    "zamba2",
    "zoedepth",
}
"""Models whose modules have other names in transformers 5 than in their files, so that peft does not find
them, and some models whose layers share weights."""
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Models whose `out_proj` peft refuses."""
HEADLESS = re.compile(
    r"(?<!Head)(?<!Heads)(?<!MT)(?<!Decoder)Model$|For(\w*Classification|QuestionAnswering|MultipleChoice)$"
)
"""The ends of class names of models without a language model head, even if the config ties one."""
HEADS = ("classifier", "score")
"""The endings of module names that peft always saves whole in text classification."""
