"""Configurations beside the weights, and weights that are codes."""

from __future__ import annotations

import json
from typing import Any

import torch

from tests.catalogue.table import AS_BASE, AS_FINETUNED, Make, accepted, both, file, given, refused, tensors

WHOLE = "in/model.safetensors"
ROLES = (AS_FINETUNED, AS_BASE)
BOTH = given("in", ROLES)
VALUES: dict[str, Any] = {
    "a number": 7,
    "a negative number": -1,
    "zero": 0,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "a number of 4000 digits": 10**4000,
    "text": "x",
    "text of control characters": "\x1b[2J\u202e[red]",
    "a list": [7],
    "a list of nothing": [],
    "a list of lists": [[["x"]]],
    "an object": {"a": {"b": [1]}},
    "an object of nothing": {},
    "true": True,
    "null": None,
}
KEYS = {
    "architectures": "architectures",
    "the model's type": "model_type",
    "the heads": "num_attention_heads",
    "the groups of heads": "num_key_value_heads",
    "the width of a head": "head_dim",
    "the width": "hidden_size",
    "the experts": "num_experts",
    "the vocabulary": "vocab_size",
    "ties": "tie_word_embeddings",
    "the dtype": "torch_dtype",
    "the name": "_name_or_path",
    "the class of diffusers": "_class_name",
    "the text part": "text_config",
    "the rotary settings": "rope_scaling",
    "the rotary base": "rope_theta",
    "the first token": "bos_token_id",
    "code": "auto_map",
    "the quantisation": "quantization_config",
    "the compression": "compression_config",
    "the quantisation of MLX": "quantization",
    "the version": "transformers_version",
}


def with_config(content: object, name: str = "config.json") -> Make:
    """Makes a folder of weights with this configuration, JSON or bytes."""
    text = content if isinstance(content, bytes) else json.dumps(content)
    return both(tensors(WHOLE), file(text, f"in/{name}"))


def each_value(*keys: str) -> Make:
    """Makes a folder for each value that all these keys have, in-0, in-1 and so on."""

    def make() -> None:
        for number, value in enumerate(VALUES.values()):
            config = {"model_type": "llama", **dict.fromkeys(keys, value)}
            tensors(f"in-{number}/model.safetensors")()
            file(json.dumps(config), f"in-{number}/config.json")()

    return make


PAIRS = [f"edit in-{number} in-{(number + 1) % len(VALUES)} -o out" for number in range(0, len(VALUES), 2)]

BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "half an object": (b'{"a":', "not valid JSON"),
    "deep lists": (b"[" * 100_000, "nested too deeply"),
    "no UTF-8": (b"\xff\xfe", "not valid UTF-8"),
    "half a character": (rb'{"a": "\ud800"}', "not valid Unicode"),
    "5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "10,000,000 parts": (b"[" + b"{}," * 10_000_000 + b"{}]", "too many parts"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not valid JSON"),
}
OTHERS = (
    "generation_config.json",
    "open_clip_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "modules.json",
    "model_index.json",
)
NOISE = {
    "nothing": b"",
    "noise": b"\xff\xfe",
    "a list": b'[[1, {"path": 7}], {"path": "../../outside"}]',
    "deep lists": b"[" * 100_000,
    "a number": b"7",
    "evil names": rb'{"\u001b[2J": "\u202e", "unet": ["a", "../x"]}',
}


def noisy(*names: str) -> Make:
    """Makes a folder for each noise in place of these files."""

    def make() -> None:
        for number, content in enumerate(NOISE.values()):
            tensors(f"in-{number}/model.safetensors")()
            for name in names:
                file(content, f"in-{number}/{name}")()
        tensors("clean/model.safetensors")()
        for name in names:
            file(b'{"model": {"vocab": {"a": 0}}}', f"clean/{name}")()

    return make


FROM_CLEAN = ["edit clean in -o out"]
NOISES = [f"edit clean in-{number} -o out" for number in range(len(NOISE))]
TOKENIZERS = {
    "a vocabulary of numbers": {"model": {"vocab": {"a": "x", "b": [1], "c": 1e400}}},
    "a vocabulary of pairs": {"model": {"vocab": [[], [1], [["a"], 2], None]}},
    "a vocabulary of text": {"model": {"vocab": "abc", "merges": "abc"}},
    "merges of numbers": {"model": {"vocab": {"a": 0}, "merges": [1, None, [1, [2]], {"a": 1}]}},
    "added tokens of numbers": {"added_tokens": [1, None, {"id": "x"}, {"id": 1e9}, {"content": []}]},
    "added tokens in an object": {"added_tokens": {"a": 1}},
    "ids of 2^70": {"model": {"vocab": {"a": 2**70}}, "added_tokens": [{"id": 2**70, "content": "b"}]},
    "300,000 tokens": {"model": {"vocab": {f"t{one}": one for one in range(300_000)}}},
}
SETTINGS = {
    "a decoder of numbers": {"added_tokens_decoder": [1, 2]},
    "a decoder of evil numbers": {"added_tokens_decoder": {"\u0663": {}, "-1": {}, "9" * 5000: {}, "x": 7}},
    "special tokens of lists": {"bos_token": ["a"], "eos_token": {"content": [1]}, "pad_token": 7},
    "a template of evil names": {"chat_template": [{"name": "../../canary", "template": "x"}]},
}


def two_tokenizers(name: str, content: object) -> Make:
    def make() -> None:
        for folder, one in (("clean", {"model": {"vocab": {"a": 0}}}), ("in", content)):
            tensors(f"{folder}/model.safetensors")()
            file(json.dumps(one), f"{folder}/{name}")()

    return make


MODULES: dict[str, tuple[str, Any]] = {
    "a module's path that leads out": ("modules.json", [{"path": "../../outside"}]),
    "a module's path that is absolute": ("modules.json", [{"path": "/etc"}]),
    "a part that leads out": ("model_index.json", {"../../outside": ["a", "b"]}),
    "a part of numbers": ("model_index.json", {"unet": 7, "vae": ["x"]}),
}


def parts(name: str, content: object) -> Make:
    """Makes a folder without weights of its own that lists parts."""
    return both(file(json.dumps(content), f"in/{name}"), file("x", "in/other.txt"))


def codes(name: str, tensor: torch.Tensor) -> Make:
    def make() -> None:
        tensors(**{"mlp__" + name.replace(".", "__"): tensor})()

    return make


CODES: dict[str, tuple[str, torch.Tensor]] = {
    "GPTQ": ("qweight", torch.ones(2)),
    "the zeros of GPTQ": ("qzeros", torch.ones(2)),
    "the groups of GPTQ": ("g_idx", torch.ones(2)),
    "a state of bitsandbytes": ("weight.quant_state.bitsandbytes__nf4", torch.ones(2)),
    "scales": ("weight_scale", torch.ones(2)),
    "scales of DeepSeek": ("weight_scale_inv", torch.ones(2)),
    "quanto": ("weight._data", torch.ones(2)),
    "torchao": ("_weight_qdata", torch.ones(2)),
    "bytes in place of weights": ("weight", torch.ones(4, 4).byte()),
    "integers in place of weights": ("weight", torch.ones(4, 4).int()),
    "most of the numbers are bytes": ("x", torch.ones(4000, 2).byte()),
}

ROWS = [
    *(
        refused(f"config.json: {name}", with_config(content), "in/config.json", words, lines=BOTH)
        for name, (content, words) in BROKEN.items()
    ),
    *(
        accepted(f"config.json of {name}", with_config(value), lines=BOTH)
        for name, value in VALUES.items()
        if not isinstance(value, dict)
    ),
    accepted("everything of every type", each_value(*KEYS.values()), lines=PAIRS),
    *(accepted(f"{name} of every type", each_value(key), lines=PAIRS) for name, key in KEYS.items()),
    *(
        accepted(f"{key} 400 deep", with_config({key: json.loads("[" * 400 + "]" * 400)}), lines=BOTH)
        for key in ("rope_theta", "rope_scaling", "quantization_config", "text_config")
    ),
    accepted("a configuration of 10 MB", with_config({"x": "y" * 10_000_000}), lines=BOTH),
    accepted("a configuration with a key of 1 MB", with_config({"y" * 1_000_000: 1}), lines=BOTH),
    accepted("a configuration that names a key twice", with_config(b'{"a": 1, "a": 2}'), lines=BOTH),
    accepted("all files of noise", noisy(*OTHERS), lines=NOISES),
    *(accepted(f"{name} of noise", noisy(name), lines=NOISES) for name in OTHERS),
    *(
        accepted(f"tokenizer.json: {name}", two_tokenizers("tokenizer.json", content), lines=FROM_CLEAN)
        for name, content in TOKENIZERS.items()
    ),
    *(
        accepted(
            f"tokenizer_config.json: {name}",
            two_tokenizers("tokenizer_config.json", content),
            lines=FROM_CLEAN,
        )
        for name, content in SETTINGS.items()
    ),
    *(
        refused(name, parts(file_name, content), "in: no weights", lines=BOTH)
        for name, (file_name, content) in MODULES.items()
    ),
    *(
        refused(
            f"codes: {name}",
            codes(*row),
            "quantised",
            "bad.safetensors",
            lines=given("bad.safetensors", ROLES),
        )
        for name, row in CODES.items()
    ),
]

THOROUGH = {
    *(f"{name} of every type" for name in KEYS),
    *(f"{name} of noise" for name in OTHERS),
    "config.json: 10,000,000 parts",
    "text_config 400 deep",
}
