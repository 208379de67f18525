"""What the configurations and tokenizers of the inputs say that does not match: notes, never refusals.

Weights of one shape mean different things where a setting of the model around them differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from monosoup_cli.errors import crop
from monosoup_cli.report.words import plural
from monosoup_cli.sources.source import Source
from monosoup_cli.sources.tokenizers import FAST, MODELS, VOCABULARIES, Tokenizer, open_tokenizer, read_small

__all__ = ["disagreements"]

MEANINGS = frozenset(
    (
        *("model_type", "architecture", "is_decoder", "is_encoder_decoder", "layer_types", "prediction_type"),
        # how vectors are cut into heads
        *("num_attention_heads", "num_key_value_heads", "num_heads", "num_kv_heads", "n_head", "n_heads"),
        *("n_kv_heads", "heads", "encoder_attention_heads", "decoder_attention_heads", "multi_query"),
        *("head_dim", "head_width", "attention_head_dim", "d_kv", "kv_channels", "qk_rope_head_dim"),
        *("qk_nope_head_dim", "v_head_dim"),
        # activations
        *("hidden_act", "hidden_activation", "activation_function", "activation", "act_fn", "ffn_act_fn"),
        *("dense_act_fn", "feed_forward_proj", "quick_gelu", "is_gated_act"),
        # positions
        *("rope_theta", "rope_local_base_freq", "rope_type", "partial_rotary_factor", "rope.factor"),
        *("rope.original_max_position_embeddings", "rope.low_freq_factor", "rope.high_freq_factor"),
        *("rope.mrope_section", "rotary_emb_interleaved"),
        *("position_embedding_type", "alibi", "sliding_window", "relative_attention_num_buckets"),
        # norms
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
        *("layernorm_epsilon", "norm_type", "do_layer_norm_before", "use_parallel_residual", "parallel_attn"),
        # scales
        *("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling"),
        *("logit_scale", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
        *("scale_emb", "scale_depth", "scale_embedding", "scale_attn_weights", "routed_scaling_factor"),
        *("tie_word_embeddings", "num_experts_per_tok", "norm_topk_prob"),
        # ids in the vocabulary
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "image_token_id"),
        *("image_token_index", "video_token_id", "audio_token_id"),
    )
)
"""The settings that change what weights of the same shape mean."""
ROPE = ("rope_scaling", "rope_parameters")
"""Where transformers has the settings of rotary embeddings, before version 5 and since."""
OUTSIDE = ("rope_theta", "rope_type", "partial_rotary_factor")
"""Those that are elsewhere in other versions."""
OTHER_NAMES = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
OTHER_VALUES = {
    "swish": "silu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "mrope": "default",
    "su": "longrope",
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "rope_theta": dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "gemma2", "phi3"), 10000.0)
}
"""What transformers takes where a key is left out, by the type of the model."""
NULL_IS_NONE = frozenset(("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"))
"""Settings for which null is a value, and not the same as no setting."""
CONFIGS = ("generation_config.json", "open_clip_config.json", "scheduler/scheduler_config.json")
MAX_DEPTH = 6
MAX_SAID = 6
MAX_VALUE = 60


def disagreements(base: Source | None, finetuned: Sequence[Source]) -> list[str]:
    """Compare the base, and further fine-tuned checkpoints, with the first fine-tuned one.

    Returns:
        For each a sentence about every file whose content does not match.
    """
    first, *others = finetuned
    others = [*([] if base is None else [base]), *others]
    if not others:
        return []
    configs, tokenizer = _configs(first), _tokenizer(first)
    notes: list[str] = []
    for other in others:
        paths = other.path, first.path
        for name, settings in _configs(other).items():
            if name in configs:
                notes += _sentence(name, _differing(settings, configs[name], *paths))
        notes += _of_tokenizers(_tokenizer(other), tokenizer, *paths)
    return notes


def _configs(source: Source) -> dict[str, dict[str, Any]]:
    """The settings in the configurations of a checkpoint, by the names of the files."""
    place = source.model.place
    found: dict[str, Mapping[str, Any]] = {"config.json": source.model.config or {}}
    if place.folder is not None:
        found |= {name: read_small(place.folder, name) for name in CONFIGS}
    return {name: _settings(config) for name, config in found.items() if config}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a meaning for the weights, by their paths, in one spelling."""
    nested = config.get("text_config")
    if isinstance(nested, dict):  # some versions have its settings in the config itself
        config = {**nested, **config}
        del config["text_config"]
    settings: dict[str, Any] = {"rope_type": "default", **_flat(config, 0)}
    for key, of_types in DEFAULTS.items():
        kind = str(settings.get("model_type"))
        if kind in of_types:
            settings.setdefault(key, of_types[kind])
    return settings


def _flat(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in {**config, **_rope(config)}.items():
        name = OTHER_NAMES.get(key, key)
        if isinstance(value, dict):
            inner = _flat(value, depth + 1) if depth < MAX_DEPTH and key not in ROPE else {}
            settings |= {f"{key}.{one}": found for one, found in inner.items()}
        elif name in MEANINGS and (value is not None or name in NULL_IS_NONE):
            settings[name] = _in_one_spelling(value)
    return settings


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary embeddings, as if they were not in an object of their own."""
    settings: dict[str, Any] = {}
    for name in ROPE:
        rope = config.get(name)
        if isinstance(rope, dict):
            sliding, full = rope.get("sliding_attention"), rope.get("full_attention")
            if isinstance(sliding, dict) and "rope_theta" in sliding:
                settings["rope_local_base_freq"] = sliding["rope_theta"]
            rope = full if isinstance(full, dict) else rope
            rope = {"rope_type": rope.get("type"), **rope}
            settings |= {key if key in OUTSIDE else f"rope.{key}": value for key, value in rope.items()}
    return settings


def _in_one_spelling(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return OTHER_VALUES.get(value, value) if isinstance(value, str) else value


def _differing(one: Mapping[str, Any], two: Mapping[str, Any], path: str, other_path: str) -> list[str]:
    return [
        f"{key} is {_shown(one[key])} in {path}, {_shown(two[key])} in {other_path}"
        for key in one
        if key in two and one[key] != two[key]
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return crop(value if isinstance(value, str) else json.dumps(value), MAX_VALUE)


def _sentence(name: str, parts: Sequence[str]) -> list[str]:
    more = f"; and {len(parts) - MAX_SAID} more" if len(parts) > MAX_SAID else ""
    return [f"{name}: {'; '.join(parts[:MAX_SAID])}{more}"] if parts else []


def _tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a checkpoint: an adapter's own, where it has one."""
    for files in (source.files, source.model):
        place = files.place
        tokenizer = Tokenizer() if place.folder is None else open_tokenizer(place.folder, place.inner)
        if tokenizer != Tokenizer():
            return tokenizer
    return Tokenizer()


def _of_tokenizers(one: Tokenizer, two: Tokenizer, path: str, other_path: str) -> list[str]:
    """Compare vocabularies in the first form that both have, or their added tokens; and special tokens."""
    notes: list[str] = []
    name = next((name for name in (*VOCABULARIES, *MODELS) if name in one.files and name in two.files), None)
    if name in MODELS:
        notes += (
            [] if one.files[name] == two.files[name] else [f"{name}: not the same in {path} and {other_path}"]
        )
        name = None
    if name is None:
        if one.added and two.added:
            notes += _sentence("added tokens", _moved(one.added, two.added, path, other_path))
    elif one.files[name] != two.files[name] or (name != FAST and one.added != two.added):
        before, after = one.vocabulary(name), two.vocabulary(name)
        if before is not None and after is not None:
            parts = _moved(before[0], after[0], path, other_path)
            if before[1] != after[1]:
                parts.append(f"other merges in {path} than in {other_path}")
            notes += _sentence(name, parts)
    special = _differing(one.special, two.special, path, other_path)
    return notes + _sentence("special tokens", special)


def _moved(one: Mapping[str, int], two: Mapping[str, int], path: str, other_path: str) -> list[str]:
    """Which tokens have other ids, or are only in one of two vocabularies."""
    parts = []
    moved = [token for token in one if token in two and one[token] != two[token]]
    if moved:
        ids = f"{moved[0]!r} is {one[moved[0]]} in {path}, {two[moved[0]]} in {other_path}"
        parts.append(f"{plural(len(moved), 'token')} with other ids, such as {ids}")
    for has, lacks, where in ((one, two, path), (two, one, other_path)):
        only = [token for token in has if token not in lacks]
        if only:
            some = ", ".join(repr(crop(token, MAX_VALUE)) for token in only[:3])
            parts.append(
                f"{plural(len(only), 'token')} only in {where}: {some}{', …' if len(only) > 3 else ''}"
            )
    return parts
