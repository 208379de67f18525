"""Notes on configurations and tokenizers that do not match; none on what only looks different."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from monosoup_cli.sources.tokenizers import Tokenizer as Vocabularies
from tests.models import CAUSAL, ENDS, TEXT, VISION, build

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def made(tmp_path):
    """Writes folders with some weights and JSON files, and returns their paths."""

    def made(*folders):
        paths = []
        for number, files in enumerate(folders):
            paths.append(tmp_path / ("base", "ft", "other")[number])
            paths[-1].mkdir()
            generator = torch.Generator().manual_seed(number)
            weights = torch.ones(8, 6) + 0.01 * torch.randn(8, 6, generator=generator)
            save_file({"layers.0.weight": weights}, paths[-1] / "model.safetensors")
            for name, content in files.items():
                path = paths[-1] / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return paths

    return made


def notes(result):
    assert result.code == 0, result.err
    return [line.removeprefix("note: ") for line in result.err.splitlines() if line.startswith("note: ")]


DIFFERENT = {
    "rope_theta": ({"rope_theta": 1e6}, "rope_theta is 10000 in {0}, 1000000 in {1}"),
    "rope_theta of transformers 5": (
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        "rope_theta is 10000 in {0}, 500000 in {1}",
    ),
    "a default of the library": (
        {"rope_theta": None, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "rope_type is default in {0}, linear in {1}",
    ),
    "heads": ({"num_attention_heads": 8}, "num_attention_heads is 4 in {0}, 8 in {1}"),
    "heads of keys": ({"num_key_value_heads": 4}, "num_key_value_heads is 2 in {0}, 4 in {1}"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is silu in {0}, gelu in {1}"),
    "norm": ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-05 in {0}, 1e-06 in {1}"),
    "ties": ({"tie_word_embeddings": True}, "tie_word_embeddings is false in {0}, true in {1}"),
    "special tokens": ({"eos_token_id": [2, 7]}, "eos_token_id is 2 in {0}, [2, 7] in {1}"),
    "several": (
        {"model_type": "mistral", "eos_token_id": 3},
        "model_type is llama in {0}, mistral in {1}; eos_token_id is 2 in {0}, 3 in {1}",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("command", ["edit", "inspect-spectrum", "wise"])
def test_settings_that_change_the_meaning_of_weights_are_named_with_both_values(
    run, made, tmp_path, case, command
):
    changed, words = DIFFERENT[case]
    paths = made({"config.json": LLAMA}, {"config.json": {**LLAMA, **changed}})
    options = {"edit": ["-o", tmp_path / "out"], "wise": ["-o", tmp_path / "out", "--alpha", "0.5"]}
    found = notes(run(command, *paths, *options.get(command, [])))
    assert found == [f"config.json: {words.format(*paths)}"]
    if command == "edit":
        assert notes(run(command, *paths, "-o", tmp_path / "dry", "--dry-run")) == found


ALIKE = {
    "nothing": {},
    "written otherwise": {"rope_theta": 10000, "eos_token_id": [2], "hidden_act": "swish"},
    "left out": dict.fromkeys(("rope_theta", "eos_token_id", "hidden_act", "rms_norm_eps")),
    "of transformers 5": {
        "rope_theta": None,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "layer_types": ["full_attention"],
    },
    "only of the training": {"use_cache": False, "torch_dtype": "float32", "attention_dropout": 0.1},
    "not an object": {"rope_scaling": [1], "rope_parameters": {"full_attention": 3}},
}


@pytest.mark.parametrize("case", ALIKE)
def test_settings_that_mean_the_same_are_not_named(run, made, case):
    changed = {**LLAMA, **ALIKE[case]}
    changed = {key: value for key, value in changed.items() if value is not None}
    assert notes(run("inspect-spectrum", *made({"config.json": LLAMA}, {"config.json": changed}))) == []


@pytest.mark.parametrize("command", ["soup", "stock"])
def test_every_further_fine_tuned_checkpoint_is_compared(run, made, tmp_path, command):
    paths = made(
        {"config.json": LLAMA},
        {"config.json": LLAMA},
        {"config.json": {**LLAMA, "rope_theta": 1e6}, "generation_config.json": {"eos_token_id": 9}},
    )
    (paths[1] / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 2]}))
    inputs = paths[command == "soup" :]
    assert notes(run(command, *inputs, "-o", tmp_path / "out")) == [
        f"config.json: rope_theta is 1000000 in {paths[2]}, 10000 in {paths[1]}",
        f"generation_config.json: eos_token_id is 9 in {paths[2]}, [8, 2] in {paths[1]}",
    ]
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert any("rope_theta is 1000000" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("kind", "options", "path", "value", "words"),
    [
        ("LlamaForCausalLM", CAUSAL, "rope_parameters.rope_theta", 1e6, "rope_theta is 10000"),
        (
            "CLIPModel",
            {"text_config": {**TEXT, **ENDS}, "vision_config": VISION},
            "vision_config.hidden_act",
            "gelu",
            "vision_config.hidden_act is quick_gelu",
        ),
        (
            "CLIPModel",
            {"text_config": {**TEXT, **ENDS}, "vision_config": VISION},
            "text_config.layer_norm_eps",
            0.1,
            "layer_norm_eps is 1e-05",
        ),
        (
            "Gemma3ForCausalLM",
            CAUSAL,
            "rope_parameters.sliding_attention.rope_theta",
            1e6,
            "rope_local_base_freq is 10000",
        ),
        (
            "Gemma3ForCausalLM",
            CAUSAL,
            "rope_parameters.full_attention.rope_theta",
            1e4,
            "rope_theta is 1000000",
        ),
    ],
)
def test_the_configurations_that_transformers_writes(run, tmp_path, kind, options, path, value, words):
    """The setting is where this version has it; before, nothing differs."""
    paths = [tmp_path / "base", tmp_path / "ft"]
    for folder in paths:
        build(kind, options).save_pretrained(folder)
    assert not any("config" in note for note in notes(run("inspect-spectrum", *paths)))
    config = json.loads((paths[1] / "config.json").read_text())
    *above, last = path.split(".")
    inner = config
    for name in above:
        inner = inner[name]
    assert last in inner
    inner[last] = value
    (paths[1] / "config.json").write_text(json.dumps(config))
    (found,) = [note for note in notes(run("inspect-spectrum", *paths)) if "config" in note]
    assert found.startswith(f"config.json: {words} in {paths[0]}, ")


@pytest.mark.parametrize(
    ("name", "one", "two", "words"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "epsilon"},
            {"prediction_type": "v_prediction"},
            "prediction_type is epsilon in {0}, v_prediction in {1}",
        ),
        (
            "open_clip_config.json",
            {"model_cfg": {"quick_gelu": True}},
            {"model_cfg": {"quick_gelu": False}},
            "model_cfg.quick_gelu is true in {0}, false in {1}",
        ),
    ],
)
def test_other_libraries_say_it_in_other_files(run, made, name, one, two, words):
    paths = made({name: one}, {name: two})
    assert notes(run("inspect-spectrum", *paths)) == [f"{name}: {words.format(*paths)}"]


# -- tokenizers -----------------------------------------------------------------------------------


def tokenizer(words, merges=(), added=(), **special):
    """What transformers saves for a tokenizer: the files and their content."""
    model = models.BPE({word: number for number, word in enumerate(words)}, list(merges), unk_token="?")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", **special)
    made.add_tokens(list(added))
    return made


def saved(path, made):
    made.save_pretrained(path)


PLAIN = ["?", "a", "b", "c", "ab"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"added": ["<|im_start|>"]}, ["tokenizer.json: 1 token only in {1}: '<|im_start|>'"]),
        (
            {"words": ["?", "b", "a", "c", "ab"]},
            ["tokenizer.json: 2 tokens with other ids, such as 'a' is 1 in {0}, 2 in {1}"],
        ),
        ({"words": [*PLAIN, "bc"]}, ["tokenizer.json: 1 token only in {1}: 'bc'"]),
        ({"merges": []}, ["tokenizer.json: other merges in {0} than in {1}"]),
        ({"eos_token": "c"}, ["special tokens: eos_token is b in {0}, c in {1}"]),
        (
            {"eos_token": "<eos>"},
            [
                "tokenizer.json: 1 token only in {1}: '<eos>'",
                "special tokens: eos_token is b in {0}, <eos> in {1}",
            ],
        ),
    ],
)
def test_tokenizers_are_compared_by_their_tokens(run, made, changes, words):
    paths = made({}, {})
    usual = {"words": PLAIN, "merges": [("a", "b")], "eos_token": "b"}
    saved(paths[0], tokenizer(**usual))
    saved(paths[1], tokenizer(**{**usual, **changes}))
    content = (paths[1] / "tokenizer.json").read_text()
    (paths[1] / "tokenizer.json").write_text(json.dumps(json.loads(content)))  # other bytes
    found = [note for note in notes(run("inspect-spectrum", *paths)) if "config.json: tok" not in note]
    assert found == [one.format(*paths) for one in words]


def test_what_a_tokenizer_says_about_padding_is_not_compared(run, made):
    paths = made({}, {})
    for path, length in zip(paths, (None, 5), strict=True):
        one = tokenizer(PLAIN)
        if length:
            one._tokenizer.enable_truncation(length)
            one.model_max_length = length
        saved(path, one)
    assert notes(run("inspect-spectrum", *paths)) == []


@pytest.mark.parametrize(
    ("name", "one", "two", "words"),
    [
        (
            "vocab.json",
            {"a": 0, "b": 1},
            {"a": 1, "b": 0},
            "vocab.json: 2 tokens with other ids, such as 'a' is 0 in {0}, 1 in {1}",
        ),
        ("vocab.txt", "a\nb\n", "a\nb\nc\n", "vocab.txt: 1 token only in {1}: 'c'"),
        ("tokenizer.model", "x", "y", "tokenizer.model: not the same in {0} and {1}"),
        (
            "added_tokens.json",
            {"<x>": 5},
            {"<x>": 6, "<y>": 5},
            "added tokens: 1 token with other ids, such as '<x>' is 5 in {0}, 6 in {1};"
            " 1 token only in {1}: '<y>'",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"5": {"content": "<x>"}}, "pad_token": {"content": "<x>"}},
            {"added_tokens_decoder": {"6": {"content": "<x>"}}, "pad_token": "<y>"},
            "added tokens: 1 token with other ids, such as '<x>' is 5 in {0}, 6 in {1}",
        ),
        (
            "special_tokens_map.json",
            {"eos_token": "</s>"},
            {"eos_token": "<end>"},
            "special tokens: eos_token is </s> in {0}, <end> in {1}",
        ),
    ],
)
def test_tokenizers_in_other_files(run, made, name, one, two, words):
    paths = made({name: one}, {name: two})
    assert notes(run("inspect-spectrum", *paths))[0] == words.format(*paths)
    (paths[0] / name).unlink()
    assert notes(run("inspect-spectrum", *paths)) == []


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"model": {"vocab": [[[]], 3, []], "merges": [{}]}}', "[" * 100_000]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_that_is_not_what_its_name_says_is_no_reason_to_refuse(run, made, name, content):
    other = {"model": {"vocab": {"a": 1}}, "eos_token_id": 1, "eos_token": "a"}
    found = notes(run("inspect-spectrum", *made({name: content}, {name: other})))
    assert len(found) == (name == "tokenizer.json" and "vocab" in content)


def test_the_tokenizer_of_an_adapter_is_compared_with_its_bases(run, made, tmp_path):
    base, _ = made({"tokenizer.json": {"model": {"vocab": {"a": 0}}}}, {})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {"A": torch.ones(2, 6), "B": torch.ones(8, 2)}
    names = {f"base_model.model.layers.0.lora_{key}.weight": of for key, of in factors.items()}
    save_file(names, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert notes(run("inspect-spectrum", base, adapter)) == []
    (adapter / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "<new>": 1}}}))
    assert f"tokenizer.json: 1 token only in {adapter}: '<new>'" in notes(
        run("inspect-spectrum", base, adapter)
    )


def test_a_vocabulary_is_parsed_within_bounds():
    """The largest that there is passes, with every merge as a list; a file that is all brackets does not."""
    tokens = {f"token {number}": number for number in range(262_144)}
    merges = [["a", "b"]] * 514_906
    added = [{"id": n, "content": f"<{n}>", "single_word": False, "special": True} for n in range(7_000)]
    content = {"added_tokens": added, "model": {"vocab": tokens, "merges": merges}}
    read = Vocabularies({"tokenizer.json": json.dumps(content).encode()}).vocabulary("tokenizer.json")
    assert read is not None
    assert read[0]["token 262143"] == 262_143
    pieces = {"model": {"vocab": [[token, -1.5] for token in tokens]}}
    read = Vocabularies({"tokenizer.json": json.dumps(pieces).encode()}).vocabulary("tokenizer.json")
    assert read is not None
    assert len(read[0]) == 262_144
    for part in (b"{},", b"[],", b"1,", b'"x":1,'):
        data = (b"{%b}" if b":" in part else b'{"a":[%b]}') % (part * 4_000_000)[:-1]
        tracemalloc.start()
        assert Vocabularies({"vocab.json": data}).vocabulary("vocab.json") is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
