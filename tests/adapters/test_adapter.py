"""What adapters change: written by peft over tiny real models, and malformed ones, which are refused."""

from __future__ import annotations

import json
import re
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from monosoup_cli.adapters.lora import TRANSPOSED
from monosoup_cli.adapters.patterns import _matches, _parse
from monosoup_cli.adapters.peft import read_adapter
from monosoup_cli.errors import CheckpointError
from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.locate import open_checkpoint
from tests import models, peft_adapters

MODELS = {
    **peft_adapters.MODELS,
    "bert": ("BertModel", models.TEXT),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**models.SPEECH, "encoder_layers": 1, "decoder_layers": 1},
    ),
}
ATTENTION = ["q_proj", "v_proj"]
BOTH_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WRITTEN = {
    "linear": ("llama", {"target_modules": ATTENTION, "lora_alpha": 3}),
    "rslora": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": [*ATTENTION, "up_proj"],
            "rank_pattern": {"layers.0.*q_proj": 2, "model.layers.1.self_attn.q_proj": 3, "q_proj": 5},
            "alpha_pattern": {r"^model\.layers\.\d+\.mlp\.(up|down)_proj": 7, "v_pro.": 0.5},
        },
    ),
    "dora": ("llama", {"target_modules": [*ATTENTION, "embed_tokens"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "rows": ("llama", {"target_modules": ATTENTION, "trainable_token_indices": [7, 3]}),
    "rows of two": (
        "llama",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}},
    ),
    "tied rows": ("llama, tied", {"target_modules": ATTENTION, "trainable_token_indices": [1, 2]}),
    "saved": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "biases": ("bert", {"target_modules": ["query"], "bias": "all"}),
    "biases of LoRA's": ("bert", {"target_modules": ["query"], "bias": "lora_only", "use_dora": True}),
    "added biases": ("bert", {"target_modules": ["query"], "lora_bias": True}),
    "conv1d of transformers": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d of transformers, dora": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}),
    "convolutions": ("convnext", {"target_modules": ["patch_embeddings", r"1.downsampling_layer.1"]}),
    "convolutions, dora": ("whisper", {"target_modules": ["conv1", "q_proj"], "use_dora": True}),
    "experts": ("qwen3-moe", {"target_modules": [], "target_parameters": BOTH_EXPERTS}),
    "experts the other way": (
        "gpt-oss, square",
        {"target_modules": [], "target_parameters": BOTH_EXPERTS[::-1]},
    ),
    "one of experts": ("qwen3-moe", {"target_modules": ATTENTION, "target_parameters": BOTH_EXPERTS[1:]}),
    "ranks of experts": (
        "qwen3-moe",
        {"target_modules": [], "target_parameters": BOTH_EXPERTS, "rank_pattern": {"experts.down_proj": 2}},
    ),
    "a matrix as a parameter": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "orthogonal": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
    "mica": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "mica"}),
}


def write(folder, kind, options):
    """The model saved at folder/base, an adapter over it at folder/adapter, and the merged state."""
    models.build(*MODELS[kind]).save_pretrained(folder / "base", save_original_format=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(models.build(*MODELS[kind]), peft.LoraConfig(**{"r": 4, **options}))
        noise = torch.Generator().manual_seed(1)
        for name, weights in model.named_parameters():
            if weights.requires_grad:
                # DoRA's magnitudes stay positive
                change = 0.3 * torch.randn(weights.shape, generator=noise)
                weights.data = (
                    weights.data * (1 + change.abs()) if "magnitude" in name else weights.data + change
                )
        model.save_pretrained(folder / "adapter")
        merged = model.merge_and_unload()
    return {name: tensor.detach().double() for name, tensor in merged.state_dict().items()}


def read(folder, base="base", renames=()):
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    own = open_checkpoint(folder / "adapter" / "adapter_model.safetensors")
    if base is None:
        return read_adapter(own, config, None)
    with own, open_checkpoint(folder / base) as checkpoint:
        return read_adapter(own, config, checkpoint.tensors, [Rename.parse(each) for each in renames])


def merged_as_read(adapter, folder, base):
    """The tensors that the adapter changes, as its record says, in float64."""
    own = {name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    found = {name: own[key] for name, key in adapter.replaced.items()}
    for name, (key, numbers) in adapter.rows.items():
        found[name] = base[name].clone()
        found[name][list(numbers)] = own[key]
    for name, (key, scale) in adapter.biases.items():
        found[name] = base[name] + scale * own[key]
    for name, pair in adapter.pairs.items():
        a, b = own[pair.a], own[pair.b]
        if pair.layout.is_stack:
            count = pair.shape[0]
            a, b = a.view(count, pair.rank, -1), b.view(len(b), pair.rank, count)
            update = torch.stack([b[:, :, each] @ a[each] for each in range(count)])
            update = update.mT if pair.layout.is_transposed else update
        else:
            update = b.flatten(1) @ a.flatten(1)
            update = (update.T if pair.layout == TRANSPOSED else update).reshape(pair.shape)
        found[name] = base[name] + pair.scale * update
        if pair.magnitude is not None:
            kept = -1 if pair.layout == TRANSPOSED else 0
            norms = found[name].transpose(0, kept).flatten(1).norm(dim=1)
            sizes = [1] * len(pair.shape)
            sizes[kept] = -1
            found[name] = found[name] * (own[pair.magnitude].flatten() / norms).view(sizes)
    return found


@pytest.mark.parametrize("case", WRITTEN)
def test_an_adapter_changes_what_peft_merges(case, tmp_path):
    expected = write(tmp_path, *WRITTEN[case])
    base = {name: t.double() for name, t in load_file(tmp_path / "base" / "model.safetensors").items()}
    adapter = read(tmp_path)
    found = merged_as_read(adapter, tmp_path / "adapter", base)
    for name, tensor in base.items():
        torch.testing.assert_close(found.get(name, tensor), expected[name], rtol=2e-6, atol=2e-6)
        assert (name in found) == (not torch.equal(tensor, expected[name])), name
    assert set(adapter.copies) <= set(adapter.pairs)
    keys = {key for pair in adapter.pairs.values() for key in (pair.a, pair.b, pair.magnitude) if key}
    keys |= {*adapter.replaced.values(), *adapter.copies.values()}
    keys |= {key for key, _ in (*adapter.rows.values(), *adapter.biases.values())}
    assert keys == adapter.own.tensors.keys()


def test_without_a_base_shapes_follow_from_the_factors(tmp_path):
    for number, case in enumerate(
        ("linear", "embeddings", "conv1d of transformers", "convolutions", "experts")
    ):
        folder = tmp_path / str(number)
        write(folder, *WRITTEN[case])
        with_base, without = read(folder), read(folder, base=None)
        assert len(without.pairs) == len(with_base.pairs) > 0
        by_key = {pair.a: pair for pair in without.pairs.values()}
        for name, pair in with_base.pairs.items():
            found = by_key[pair.a]
            assert (found.shape, found.rank, found.scale) == (pair.shape, pair.rank, pair.scale)
            assert found.layout == pair.layout
            if case != "experts":
                assert found.name == name
    names = [name for name in without.pairs if "layers.0" in name]
    assert sorted(names) == ["model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer"]


def test_a_flag_that_peft_keeps_of_another_module_is_not_believed(tmp_path):
    """A square Conv1D beside a Linear, which comes last."""
    expected = write(tmp_path, "gpt2", {"target_modules": ["attn.c_proj", "lm_head"]})
    assert not json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"]
    state = load_file(tmp_path / "base" / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, tmp_path / "base" / "model.safetensors")
    base = {name: tensor.double() for name, tensor in state.items()}
    found = merged_as_read(read(tmp_path), tmp_path / "adapter", base)
    name = "transformer.h.0.attn.c_proj.weight"
    torch.testing.assert_close(found[name], expected[name], rtol=2e-6, atol=2e-6)


def test_names_are_read_as_those_of_the_base(tmp_path):
    write(tmp_path, *WRITTEN["linear"])
    state = load_file(tmp_path / "base" / "model.safetensors")
    for folder, change in (
        ("bare", lambda name: name.removeprefix("model.")),
        ("other", lambda name: f"x.{name}"),
    ):
        (tmp_path / folder).mkdir()
        save_file({change(name): t for name, t in state.items()}, tmp_path / folder / "model.safetensors")
    bare = read(tmp_path, "bare")
    assert "layers.0.self_attn.q_proj.weight" in bare.pairs
    assert bare.read_as == ("without 'model.' (4 tensors)",)
    other = read(tmp_path, "other", ["x.model=model", "y=z"])
    assert "x.model.layers.0.self_attn.q_proj.weight" in other.pairs
    assert other.unused == (Rename("y", "z"),)


NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.11.mlp.down_proj",
    "model.layersX1Xmlp.up_proj",
    "q_proj",
    "xq_proj",
    "lm_head",
    "model.layers.0.mlp.experts.gate_up-proj",
    "",
]
PATTERNS = [
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    r"model\.layers\.1\..*",
    "layers.1.",
    "layers.0.*q_proj",
    "(q|k)_proj",
    r"layers\.\d+\.(?:self_attn|mlp)\.\w+",
    "^model.*proj$",
    "^q_proj",
    "q_proj|lm_head",
    "^lm_head|.*down_proj",
    "[qk]_proj",
    "[^x]q_proj",
    r"\d{2}.mlp.*",
    r"layers.\d{1,2}.*?_proj",
    "(a|)q_proj",
    "(a|)*q_proj",
    "x?q_proj",
    "(1|11){1,}.mlp.down_proj",
    "((",
    "",
    "o*.*.*.*.*proj",
    "gate_up[-]proj",
    r"\D+",
    r"1{0,3}\.mlp.+",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_they_match_in_peft(pattern):
    branches = _parse(pattern)
    if branches is None:
        assert pattern in ("((", r"\D+")
        return
    for name in NAMES:
        assert _matches(branches, name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


RANK = 2
OUT, IN = 6, 4
STEM = "base_model.model.block"
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4}


def factors(stem=STEM, rank=RANK, out=OUT, into=IN):
    return {f"{stem}.lora_A.weight": torch.ones(rank, into), f"{stem}.lora_B.weight": torch.ones(out, rank)}


@pytest.fixture
def refused(tmp_path):
    """Reads an adapter made by hand, and returns the one line that refuses it."""

    def refused(tensors=None, config=None, base=None, **options):
        save_file(factors() if tensors is None else tensors, tmp_path / "adapter_model.safetensors")
        base = {"block.weight": torch.ones(OUT, IN), "block.bias": torch.ones(OUT)} if base is None else base
        save_file(base, tmp_path / "base.safetensors")
        config = {**CONFIG, **options} if config is None else config
        with (
            open_checkpoint(tmp_path / "adapter_model.safetensors") as own,
            open_checkpoint(tmp_path / "base.safetensors") as checkpoint,
        ):
            with pytest.raises(CheckpointError) as caught:
                read_adapter(own, config, checkpoint.tensors)
            line = str(caught.value)
            assert "\n" not in line
            assert len(line) < 800
            return line

    return refused


def test_what_the_other_tests_break_is_read(tmp_path):
    save_file(factors(), tmp_path / "adapter_model.safetensors")
    defaults = json.loads(json.dumps(peft.LoraConfig(r=RANK, lora_alpha=4).to_dict(), default=list))
    with open_checkpoint(tmp_path / "adapter_model.safetensors") as own:
        for config in (CONFIG, defaults, {**CONFIG, "task_type": None, "use_new": False, "new_config": None}):
            [pair] = read_adapter(own, config, None).pairs.values()
            assert (pair.name, pair.shape, pair.rank, pair.scale) == ("block.weight", (OUT, IN), RANK, 2.0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "is not a JSON object"),
        (None, "is not a JSON object"),
        ({}, "peft_type is None"),
        ({**CONFIG, "peft_type": "LOHA"}, "peft_type is 'LOHA', but only LORA adapters are supported"),
        ({**CONFIG, "peft_type": ["LORA"]}, "peft_type"),
    ],
)
def test_a_config_of_something_else_is_refused(refused, config, said, tmp_path):
    save_file(factors(), tmp_path / "adapter_model.safetensors")
    with (
        open_checkpoint(tmp_path / "adapter_model.safetensors") as own,
        pytest.raises(CheckpointError, match=re.escape(said)),
    ):
        read_adapter(own, config, None)


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "corda", "loftq", "lora_ga", "new", 1, []]
)
def test_what_changed_the_base_is_refused(refused, init):
    assert "init_lora_weights is" in refused(init_lora_weights=init)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("arrow_config", {"top_k": 1}),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 1}),
        ("velora_config", {"scale": 1}),
        ("lora_ga_config", {"scale": "unit"}),
        ("corda_config", {"verbose": True}),
        ("use_new", True),
        ("new_config", {"a": 1}),
        ("enable_lora", [True, False]),
        ("use_new", 0.5),
    ],
)
def test_what_is_not_plain_lora_is_refused(refused, option, value):
    assert f"adapter_config.json: {option} is set" in refused(**{option: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 3}, "the rank differs from adapter_config.json: expected 3, found 2"),
        ({"rank_pattern": {"block": 7}}, "expected 7, found 2"),
        ({"r": 0}, "r must be a positive whole number"),
        ({"r": 2.0}, "r must be a positive whole number: found 2.0"),
        ({"r": True}, "r must be"),
        ({"r": None}, "r must be"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number: found nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number"),
        ({"lora_alpha": 10**5000}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"block": None}}, "alpha_pattern must be a number"),
        ({"alpha_pattern": ["block"]}, "alpha_pattern must map"),
        ({"rank_pattern": {"other": -1}}, "rank_pattern must be a positive"),
        ({"use_rslora": "no"}, "use_rslora must be true or false"),
        ({"use_dora": True}, "has no magnitude, but adapter_config.json says otherwise"),
        ({"lora_bias": True}, "has no bias, but adapter_config.json says otherwise"),
        ({"target_parameters": "block.weight"}, "target_parameters must be a list"),
        ({"target_parameters": [1]}, "target_parameters must be a list"),
    ],
)
def test_options_that_do_not_fit_are_refused(refused, options, said):
    assert said in refused(**options)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a+)+$",
        "(.*)*x",
        "((a|b)*)*",
        r"(\w+\.)*q",
        "(?=a)",
        r"(a)\1",
        "[z-a]",
        "a**",
        "(",
        "a" * 301,
        "(?i)a",
        "(a|a)" * 61,
        "\\",
    ],
)
def test_patterns_that_are_not_plain_are_refused(refused, pattern):
    for option in ("rank_pattern", "alpha_pattern"):
        problem = refused(**{option: {pattern: 2}})
        assert f"{option} has the pattern" in problem
        assert "which is not supported" in problem


@pytest.mark.parametrize("pattern", ["(a|a)" * 60, "a?" * 150, ".*" * 150, "(a|a)*" * 50, "a{1,99}" * 40])
def test_patterns_that_keep_re_busy_are_followed_in_bounded_time(refused, pattern):
    stem = f"base_model.model.{'a' * 80}!"
    said = refused(factors(stem), rank_pattern={f"{pattern}x"[:300]: 3})
    assert "changes tensors that the base does not have" in said


def test_too_many_patterns_are_refused(refused):
    many = {f"layers.{number}.*.proj": 2 for number in range(20_000)}
    tensors = {key: t for number in range(200) for key, t in factors(f"model.layers.{number}.proj").items()}
    assert "too many rank and alpha patterns" in refused(
        tensors, rank_pattern=dict(list(many.items())[:9_000])
    )
    assert "rank_pattern has too many patterns" in refused(rank_pattern=many)
    assert "too many target_parameters" in refused(tensors, target_parameters=list(many) * 2)
    dots = factors(f"model{'.x' * 20_000}.proj")  # each a place where a pattern may begin
    assert "too many rank and alpha patterns" in refused(
        dots, rank_pattern={f"y{number}": 2 for number in range(3_000)}
    )


def magnitude(elements=OUT, key="lora_magnitude_vector"):
    return {f"{STEM}.{key}": torch.ones(elements)}


ROWS = {f"{STEM}.token_adapter.trainable_tokens_delta": torch.ones(2, IN)}


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        ({f"{STEM}.lora_A.weight": torch.ones(2, 4)}, {}, "factor B of the same module is missing"),
        ({f"{STEM}.lora_B.weight": torch.ones(6, 2)}, {}, "factor A of the same module is missing"),
        (magnitude(), {"use_dora": True}, "factor A of the same module is missing"),
        (factors() | {f"{STEM}.lora_B.weight": torch.ones(6, 3)}, {}, "the factors do not fit each other"),
        (factors() | {f"{STEM}.lora_B.weight": torch.ones(6)}, {}, "the factors do not fit each other"),
        (factors() | {f"{STEM}.lora_A.weight": torch.ones(2)}, {}, "the factors do not fit each other"),
        (factors(rank=0), {}, "a factor is empty or has rank 0"),
        (factors(out=5), {}, "does not fit the base: expected [6, 4], found A [2, 4] and B [5, 2]"),
        (factors(f"{STEM}.base_layer"), {}, "has more wrappers than"),
        (
            factors() | factors(f"{STEM}.base_layer"),
            {"target_parameters": ["block.weight"]},
            "has more wrappers than",
        ),
        (factors() | factors("block"), {}, "appears twice"),
        (factors() | {f"{STEM}.lora_E": torch.ones(2)}, {}, "not a key of a LoRA adapter"),
        (factors() | {f"{STEM}.lora_A.default.weight": torch.ones(2, 4)}, {}, "not a key of a LoRA adapter"),
        (factors() | magnitude(), {}, "has a magnitude, but adapter_config.json says otherwise"),
        (
            factors() | magnitude(5),
            {"use_dora": True},
            "does not fit the factors: expected 6 elements, found 5",
        ),
        (
            factors() | magnitude() | magnitude(key="lora_magnitude_vector.weight"),
            {"use_dora": True},
            "appears twice",
        ),
        (factors() | {f"{STEM}.lora_B.bias": torch.ones(6)}, {}, "has a bias, but"),
        (factors() | {f"{STEM}.lora_B.bias": torch.ones(5)}, {"lora_bias": True}, "does not fit the base"),
        (factors() | {f"{STEM}.bias": torch.ones(5)}, {}, "does not fit the base"),
        (factors() | {f"{STEM}.weight": torch.ones(6, 4)}, {}, "the adapter changes 'block.weight' twice"),
        (
            factors() | {f"{STEM}.lora_B.bias": torch.ones(6), f"{STEM}.base_layer.bias": torch.ones(6)},
            {"lora_bias": True},
            "the adapter changes 'block.bias' twice",
        ),
        (factors() | {f"{STEM}.base_layer.weight": torch.ones(7, 4)}, {}, "does not fit the base"),
        (factors() | ROWS, {"trainable_token_indices": [1, 2]}, "the adapter changes 'block.weight' twice"),
        (ROWS, {}, "its rows do not match trainable_token_indices"),
        (ROWS, {"trainable_token_indices": [1]}, "its rows do not match"),
        (ROWS, {"trainable_token_indices": [1, 1]}, "its rows do not match"),
        (ROWS, {"trainable_token_indices": [1, 6]}, "was trained with more rows than the base has"),
        (ROWS, {"trainable_token_indices": [1, -1]}, "its rows do not match"),
        (ROWS, {"trainable_token_indices": [1, True]}, "its rows do not match"),
        (ROWS, {"trainable_token_indices": {"other": [1, 2]}}, "its rows do not match"),
        (
            {key: t[:, :3].contiguous() for key, t in ROWS.items()},
            {"trainable_token_indices": [1, 2]},
            "does not fit the base",
        ),
        ({key: t.long() for key, t in factors().items()}, {}, "unsupported dtype in an adapter"),
        (
            factors("base_model.model.other"),
            {},
            "changes tensors that the base does not have: 'other.weight'; is it the adapter of",
        ),
        (
            factors() | {f"{STEM}.scale": torch.ones(1)},
            {},
            "changes tensors that the base does not have: 'block.scale'",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(refused, tensors, options, said):
    assert said in refused(tensors, **options)


def test_a_quantized_base_is_refused(refused):
    base = {"block.weight": torch.ones(OUT, IN).to(torch.float8_e4m3fn)}
    assert "quantized or not floating-point" in refused(base=base)


def test_many_modules_that_the_base_lacks_are_told_in_one_line(refused):
    tensors = {key: t for number in range(50) for key, t in factors(f"x.{number}").items()}
    assert "'x.0.weight', 'x.1.weight', 'x.10.weight' and 47 more" in refused(tensors)


def test_a_tied_head_that_the_base_lacks_is_refused(tmp_path):
    write(tmp_path, "llama, tied", {"target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(
        CheckpointError,
        match=r"changes 'lm_head\.weight', which the base ties to 'model\.embed_tokens\.weight'",
    ):
        read(tmp_path)


def test_experts_that_the_base_holds_one_by_one_are_refused(tmp_path):
    write(tmp_path, *WRITTEN["experts"])
    models.build(*MODELS["qwen3-moe"]).save_pretrained(tmp_path / "unfused")
    with pytest.raises(
        CheckpointError, match=r"experts\.gate_up_proj.*; if the base stores experts one by one"
    ):
        read(tmp_path, "unfused")


def test_experts_that_shapes_do_not_tell_apart_are_refused(refused):
    stem = "base_model.model.experts"
    tensors = factors(stem, 2 * RANK) | factors(f"{stem}.base_layer", 2 * RANK)
    said = {"target_parameters": ["experts.w1", "experts.w3"]}
    base = {f"experts.{name}": torch.ones(2, OUT, IN) for name in ("w1", "w3")}
    assert "the shapes do not say which parameters the factors belong to" in refused(
        tensors, base=base, **said
    )
    square = factors(stem, 2 * RANK, IN, IN)
    base = {"experts.w1": torch.ones(2, IN, IN)}
    assert "its shape does not say whether it is stored transposed" in refused(
        square, base=base, target_parameters=["experts.w1"]
    )


def test_only_whole_components_are_taken_for_wrappers(tmp_path):
    stem = "base_model.model.block.base_layer_norm"
    save_file(factors() | {f"{stem}.bias": torch.ones(3)}, tmp_path / "adapter_model.safetensors")
    with open_checkpoint(tmp_path / "adapter_model.safetensors") as own:
        assert read_adapter(own, CONFIG, None).replaced == {"block.base_layer_norm.bias": f"{stem}.bias"}


def test_very_long_names_are_followed_in_bounded_time(refused):
    stem = f"base_model.model.x{'.base_layer' * 200_000}"
    assert "has more wrappers than" in refused(factors(stem))
