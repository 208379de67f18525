"""Configs, adapter configs and reports that are almost valid: an error of ours, or a run as usual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from monosoup_cli.errors import MonosoupError
from tests.conftest import small_tensors
from tests.fuzz.mutations import mutated_json, text_of

few = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=2000)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 16,
    "num_local_experts": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "dtype": "float32",
    "text_config": {"hidden_size": 8, "num_experts": 2},
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [2, 2],
        "modules_to_not_convert": ["lm_head"],
    },
    "auto_map": {"AutoModel": "modeling.Model"},
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": None,
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {"^model.v_proj": 3},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "layers_to_transform": None,
    "lora_bias": False,
    "task_type": "CAUSAL_LM",
    "exclude_modules": None,
    "init_lora_weights": True,
    "target_parameters": [],
}
MODULES = ("model.q_proj", "model.v_proj")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "finetuned")):
        (folder / name).mkdir()
        generator = torch.Generator().manual_seed(seed)
        experts = {"mlp.experts.w": torch.randn(2, 4, 6, generator=generator)}
        layers = {f"{module}.weight": torch.randn(8, 8, generator=generator) for module in MODULES}
        save_file({**small_tensors(seed), **experts, **layers}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    factors = {
        f"base_model.model.{module}.lora_{side}.weight": torch.ones(shape)
        for module in MODULES
        for side, shape in {"A": (2, 8), "B": (8, 2)}.items()
    }
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    return folder


def prepared(folder: Path, finetuned: str, name: str, content: bytes) -> None:
    """Plan an edit with this file. What is refused is refused in our words."""
    (folder / finetuned / name).write_bytes(content)
    try:
        monosoup_cli.edit.prepare(
            folder / "base", folder / finetuned, folder / "out", partial=True
        ).__exit__()
    except MonosoupError as error:
        str(error).encode(errors="surrogateescape")


def test_the_valid_ones_are_planned(models):
    del_codes = {name: value for name, value in CONFIG.items() if name != "quantization_config"}
    (models / "finetuned" / "config.json").write_text(json.dumps(del_codes))
    for finetuned in ("finetuned", "adapter"):
        with monosoup_cli.edit.prepare(models / "base", models / finetuned, models / "out") as planned:
            assert planned.plan.edited


configs = mutated_json(CONFIG, ["llama", "fp8", "gptq", "mixtral", [1, 1], 8, 2]).map(text_of)
adapters = mutated_json(
    ADAPTER, ["LORA", "all-linear", ".*q_proj", "(", "all", "(a+)+$", ["*"], {"(": 2}]
).map(text_of)


@few
@given(configs)
def test_a_config_that_is_almost_valid(models, content):
    prepared(models, "finetuned", "config.json", content)


@few
@given(adapters)
def test_an_adapter_config_that_is_almost_valid(models, content):
    prepared(models, "adapter", "adapter_config.json", content)


@pytest.mark.thorough
@many
@given(configs, adapters)
def test_many_configs_that_are_almost_valid(models, config, adapter):
    prepared(models, "finetuned", "config.json", config)
    prepared(models, "adapter", "adapter_config.json", adapter)


# -- reports --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Reports that commands wrote."""
    folder, options = tmp_path_factory.mktemp("reports"), {"device": "cpu"}
    save_file(small_tensors(0), folder / "base.safetensors")
    finetuned = [folder / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(finetuned, 1):
        save_file(small_tensors(seed), path)
    base = folder / "base.safetensors"
    return {
        "edit": monosoup_cli.edit(base, finetuned[0], folder / "edit", **options),
        "stock": monosoup_cli.stock(base, finetuned, folder / "stock", **options),
        "sfgs": monosoup_cli.sfgs(base, finetuned, folder / "sfgs", threshold=0.1, **options),
        "wise": monosoup_cli.wise(base, finetuned[0], folder / "wise", alpha=0.5, **options),
        "search": monosoup_cli.search(
            base, finetuned[0], folder / "search", score=["s=wc -c < {}"], budget=2, **options
        ),
        "inspect": monosoup_cli.inspect_spectrum(base, finetuned, **options),
    }


SHOWN = (
    ["report"],
    ["report", "--format", "json"],
    ["report", "--sort", "rho"],
    ["report", "--html"],
    ["compare"],
)


def show(folder: Path, content: bytes, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Show a report. What is refused is one line, and code 1."""
    path = folder / "shown.json"
    path.write_bytes(content)
    page = [str(folder / "page.html")] if words[-1] == "--html" else []
    code = main([*words, *page, str(path), *([str(path)] if words == ["compare"] else [])])
    out, err = capsys.readouterr()
    assert (code, bool(out)) in ((0, True), (1, False)), err
    assert code == 0 or (err.startswith("error: ") and err.count("\n") == 1)


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
@pytest.mark.parametrize("command", ["edit", "stock", "sfgs", "wise", "search", "inspect"])
def test_the_reports_are_shown(reports, models, capsys, command, words):
    show(models, text_of(reports[command]), words, capsys)


@few
@given(data=st.data())
def test_a_report_that_is_almost_valid(reports, models, capsys, data):
    report = reports[data.draw(st.sampled_from(sorted(reports)))]
    show(models, text_of(data.draw(mutated_json(report))), data.draw(st.sampled_from(SHOWN)), capsys)


@pytest.mark.thorough
@many
@given(data=st.data())
def test_many_reports_that_are_almost_valid(reports, models, capsys, data):
    report = reports[data.draw(st.sampled_from(sorted(reports)))]
    show(models, text_of(data.draw(mutated_json(report))), data.draw(st.sampled_from(SHOWN)), capsys)
