"""`layers`: settings by the names of tensors. A layer has the bytes of a run with its settings throughout."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.api.commands import COMMANDS
from monosoup_cli.api.finish import finish
from monosoup_cli.errors import OutputExistsError, ResumeError, UsageError
from monosoup_cli.report.words import settings_words
from tests.models import CAUSAL, build, step
from tests.peft_adapters import make
from tests.schema import assert_valid


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A base, two fine-tunes and another base: small matrices of one shape, larger ones, biases, a stack."""
    folder = tmp_path_factory.mktemp("layers")
    shapes = {"embed.weight": (70, 64), "mlp.experts.w1": (3, 12, 10), "lm_head.weight": (70, 64)}
    for block in range(3):
        for kind in ("attn", "mlp"):
            shapes |= {f"h.{block}.{kind}.weight": (24, 16), f"h.{block}.{kind}.bias": (24,)}
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    for name in ("ft1", "ft2", "onto"):
        tuned = {key: one + 0.1 * torch.randn(one.shape, generator=generator) for key, one in base.items()}
        save_file(tuned, folder / f"{name}.safetensors")
    return [str(folder / f"{name}.safetensors") for name in ("base", "ft1", "ft2", "onto")]


CASES = {
    "edit": (1, {}, {"*mlp*": {"energy": 0.5}, "*attn*": {"weighting": "high"}}),
    "edit, of a mean": (2, {}, {"*mlp*": {"energy": 0.5}, "*attn*": {"weighting": "low"}}),
    "edit, another split": (1, {"energy": 0.8, "weighting": "low"}, {"*attn*": {"split": "noise"}}),
    "edit, ranks": (1, {}, {"h.0*": {"rank": 2}, "h.1*": {"rank_fraction": 0.5}}),
    "edit, not all the way": (1, {"wise": 0.3}, {"h.1*": {"wise": 0.6}, "*attn*": {"wise": 1}}),
    "edit, large updates": (1, {}, {"*attn*": {"min_update": 0.5}}),
    "edit, float16": (1, {"dtype": "float16"}, {"*mlp*": {"wise": 0.25}}),
    "wise": (1, {"alpha": 0.5}, {"*mlp*": {"alpha": 0}, "*head*": {"alpha": 0.9}}),
    "lines": (1, {"alpha": 0.2, "beta": 0.8}, {"*mlp*": {"alpha": 0.5}, "*attn*": {"beta": 0.1}}),
    "stock": (2, {}, {"*attn*": {"granularity": "filter"}, "*mlp*": {"clamp": False}}),
    "transplant": (2, {"scale": 0.5}, {"*attn*": {"scale": [1.0, -0.5]}, "*mlp*": {"scale": 0.1}}),
}


def called(sources, name, output, **options):
    """A command on the first fine-tunes, whose output has no layers yet."""
    command, (count, own, _) = name.split(",")[0], CASES[name]
    base, *tuned, onto = sources
    inputs = [base, tuned[:count], *([onto] if command == "transplant" else [])]
    return getattr(monosoup_cli, command)(*inputs, output, **{**own, **options})


def settings_of(layers, name):
    """Written anew: the first that matches, where all patterns here are *part* or begin*."""
    return next(
        (one for glob, one in layers.items() if name.startswith(glob[:-1]) or glob.strip("*") in name), {}
    )


def alone(own, settings):
    """The options of the call with those settings; a split takes the place of another."""
    splits = ("split", "energy", "rank", "rank_fraction")
    drops = splits if any(name in settings for name in splits) else ()
    return {**dict.fromkeys((name for name in own if name in drops), None), **settings}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_that_of_a_call_with_its_settings(sources, tmp_path, name):
    _, own, layers = CASES[name]
    report = called(sources, name, tmp_path / "out", layers=layers)
    assert_valid(json.loads((tmp_path / "out/monosoup_report.json").read_text()))
    outputs = {}
    found = load_file(tmp_path / "out/model.safetensors")
    for number, settings in enumerate([{}, *layers.values()]):
        called(sources, name, tmp_path / f"{number}", **alone(own, settings))
        outputs[str(settings)] = load_file(tmp_path / f"{number}/model.safetensors")
    for layer in report["layers"]:
        settings = settings_of(layers, layer["name"])
        assert layer.get("settings", {}) == settings
        assert torch.equal(found[layer["name"]], outputs[str(settings)][layer["name"]]), layer["name"]
    assert any(not torch.equal(one, outputs["{}"][key]) for key, one in found.items())
    assert report["arguments"]["layers"] == layers
    assert monosoup_cli.verify(tmp_path / "out", again=True)["differences"] == []


def test_the_first_glob_that_matches_counts(sources, tmp_path):
    layers = {"h.0.mlp*": {"wise": 0.25}, "*mlp*": {"wise": 0.5}}
    report = called(sources, "edit", tmp_path / "out", layers=layers)
    found = {layer["name"]: layer.get("settings") for layer in report["layers"]}
    assert found["h.0.mlp.weight"] == {"wise": 0.25}
    assert found["h.1.mlp.bias"] == {"wise": 0.5}
    assert found["h.0.attn.weight"] is None
    with pytest.raises(UsageError, match=r"'h.0.mlp\*' has no effect: earlier ones match all"):
        called(sources, "edit", tmp_path / "two", layers=dict(reversed(layers.items())))


def test_a_sweep_of_what_no_layer_sets(sources, tmp_path):
    layers = {"*attn*": {"weighting": "high"}}
    called(sources, "edit", tmp_path / "out", energy=[0.5, 0.9], layers=layers)
    for energy in (0.5, 0.9):
        called(sources, "edit", tmp_path / f"{energy}", energy=energy, layers=layers)
        one, two = (
            (path / "model.safetensors").read_bytes()
            for path in (tmp_path / f"out/energy-{energy}", tmp_path / f"{energy}")
        )
        assert one == two


def test_a_setting_is_said_as_a_recipe_has_it():
    assert settings_words({"clamp": False, "wise": 0.8}) == "clamp false, wise 0.8"


def test_a_run_that_was_interrupted_has_its_settings(sources, tmp_path):
    """Another setting, and the same ones in another order, are another run."""
    layers = {"h.0*": {"energy": 0.5}, "*mlp*": {"weighting": "high"}}

    def stop(tensor, is_done):
        if is_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(sources, "edit", tmp_path / "out", layers=layers, progress=stop, workers=1)
    for other in (dict(reversed(layers.items())), {**layers, "h.0*": {"energy": 0.6}}, None):
        with pytest.raises(ResumeError, match=r"differs in arguments\.layers"):
            called(sources, "edit", tmp_path / "out", layers=other, resume=True)
    called(sources, "edit", tmp_path / "out", layers=layers, resume=True)
    called(sources, "edit", tmp_path / "whole", layers=layers)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == two


def test_parts_have_their_settings(sources, tmp_path):
    layers = {"*mlp*": {"energy": 0.5, "wise": 0.5}}
    for part in ("1/2", "2/2"):
        called(sources, "edit", tmp_path / "out", layers=layers, part=part)
    report = finish(tmp_path / "out")
    called(sources, "edit", tmp_path / "whole", layers=layers)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == two
    assert report["arguments"]["layers"] == layers


def test_a_plan_has_the_settings(sources, tmp_path):
    base, tuned, *_ = sources
    layers = {"*mlp.weight": {"energy": 0.5}, "*experts*": {"rank": 1}}
    plan = monosoup_cli.edit.plan(base, tuned, tmp_path / "out", layers=layers)
    found = {layer["name"]: layer["settings"] for layer in plan["layers"] if "settings" in layer}
    assert found == {
        **{f"h.{block}.mlp.weight": {"energy": 0.5} for block in range(3)},
        "mlp.experts.w1": {"rank": 1},
    }
    assert plan["memory_bytes"] > 0
    assert plan["estimated_seconds"] > 0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make("linear", tmp_path_factory.mktemp("adapter"))


ADAPTERS = {
    "merge": (monosoup_cli.merge, {}, {"*q_proj*": {"scale": 0.5}}),
    "edit": (monosoup_cli.edit, {}, {"*q_proj*": {"energy": 0.5}, "*down_proj*": {"wise": 0.5}}),
    "edit, as an adapter": (
        monosoup_cli.edit,
        {"as_adapter": True},
        {"*q_proj*": {"energy": 0.5}, "*down_proj*": {"wise": 0.5}},
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_updates_of_adapters(adapter, tmp_path, name):
    command, own, layers = ADAPTERS[name]
    report = command(*adapter, tmp_path / "out", **own, layers=layers)
    file = "adapter_model.safetensors" if own else "model.safetensors"
    found, used = load_file(tmp_path / "out" / file), set()
    for number, settings in enumerate([{}, *layers.values()]):
        command(*adapter, tmp_path / f"{number}", **own, **settings)
        expected = load_file(tmp_path / f"{number}" / file)
        for key, one in found.items():
            if settings_of(layers, key) == settings:
                assert torch.equal(one, expected[key]), key
                used.add(str(settings))
    assert len(used) == len(layers) + (not own)  # the adapter has no other modules
    assert {str(one["settings"]) for one in report["layers"] if "settings" in one} == {
        str(settings) for settings in layers.values()
    }


def test_a_new_adapter_and_fused_matrices(sources, tmp_path):
    base, tuned, *_ = sources
    kept = {"exclude": "*experts*", "as_adapter": True, "adapter_rank": 4}
    layers = {"*mlp.weight": {"weighting": "low"}}
    outputs = {}
    for name, own in (("out", {"layers": layers}), ("low", {"weighting": "low"}), ("plain", {})):
        monosoup_cli.edit(base, tuned, tmp_path / name, **kept, **own)
        outputs[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    for key, one in outputs["out"].items():
        assert torch.equal(one, outputs["low" if "mlp" in key else "plain"][key]), key
    with pytest.raises(UsageError, match="finds the ranks of all layers by one split"):
        monosoup_cli.edit(base, tuned, tmp_path / "x", as_adapter=True, adapter_energy=0.9, layers=layers)


def test_a_fused_matrix_has_one_setting(tmp_path):
    model = build("Phi3ForCausalLM", {**CAUSAL, "pad_token_id": 0})
    for name in ("base", "ft"):
        model.save_pretrained(tmp_path / name)
        step(model)
    inputs, layers = (tmp_path / "base", tmp_path / "ft"), {"*qkv_proj*": {"weighting": "low"}}
    outputs = {}
    for name, own in (("out", {"layers": layers}), ("low", {"weighting": "low"}), ("plain", {})):
        monosoup_cli.edit(*inputs, tmp_path / name, split_fused=True, **own)
        outputs[name] = load_file(tmp_path / name / "model.safetensors")
    assert any("qkv_proj" in key for key in outputs["out"])
    for key, one in outputs["out"].items():
        assert torch.equal(one, outputs["low" if "qkv_proj" in key else "plain"][key]), key


REFUSED = {
    "a glob of nothing": ({"*mpl*": {"energy": 0.5}}, r"layers '\*mpl\*' matches no tensor"),
    "a glob of vectors": (
        {"*bias": {"energy": 0.5}},
        r"layers '\*bias' matches no tensor that is edited: found 'h.0.attn.bias' \(vector\), .* and 4 more$",
    ),
    "no such setting": (
        {"*mlp*": {"enrgy": 0.5}},
        r"layers '\*mlp\*': a layer has no enrgy: expected split, ",
    ),
    "an option of the whole call": ({"*mlp*": {"dtype": "float16"}}, "a layer has no dtype"),
    "a program": ({"*mlp*": {"score": "rm {}"}}, "a layer has no score"),
    "a wrong value": ({"*mlp*": {"weighting": "hihg"}}, "weighting cannot be 'hihg'"),
    "out of range": ({"*mlp*": {"energy": 2}}, r"layers '\*mlp\*': energy is out of range"),
    "two splits": ({"*mlp*": {"energy": 0.5, "rank": 3}}, "exclude each other"),
    "a sweep": (
        {"*mlp*": {"energy": [0.5, 0.8]}},
        "several values of a setting: found energy-0.5, energy-0.8",
    ),
    "a sweep in words": ({"*mlp*": {"energy": "0.5,0.8"}}, "several values of a setting"),
    "a number as text": ({"*mlp*": {"wise": "0.3"}}, "wise is text, where a number has no quotes"),
    "a glob that is none": ({1: {"energy": 0.8}}, "must map globs to settings|layers '1' matches no"),
    "no settings by glob": ({"*mlp*": 3}, "must map globs to settings"),
    "a list": (["*mlp*"], "cannot be|must map globs to settings"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_layers_may_not(sources, tmp_path, monkeypatch, run, name):
    """From Python and in a recipe, in the same words."""
    monkeypatch.chdir(tmp_path)
    base, tuned, *_ = sources
    layers, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        monosoup_cli.edit(base, tuned, tmp_path / "out", layers=layers)
    content = {"command": "edit", "base": base, "finetuned": tuned, "output": "out", "layers": layers}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UsageError, match=f"{words}|layers cannot be"):
        monosoup_cli.run("recipe.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_the_whole_call_sweeps_over_is_no_setting(sources, tmp_path):
    with pytest.raises(UsageError, match=r"sets what the whole call sweeps over: found energy-0\.5, e"):
        called(sources, "edit", tmp_path / "out", energy=[0.5, 0.8], layers={"*mlp*": {"energy": 0.3}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers'"):
        monosoup_cli.soup(sources[1:3], tmp_path / "out", layers={"*mlp*": {"weights": 1}})


def test_the_table_of_settings_is_that_of_the_commands():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| (`.*) \|$", page.partition("## From mergekit")[0], re.MULTILINE)
    said = {command: set(re.findall(r"`(\w+)`", words)) for command, words in table}
    assert said == {
        name: own
        for name, command in COMMANDS.items()
        if (own := {key for key, one in command.declared.items() if one.option.of_layer})
    }
    assert all(("layers" in command.declared) == (name in said) for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if "layers" in one.declared])
def test_the_example_of_a_function_is_one_that_it_takes(sources, name):
    command = COMMANDS[name]
    example = re.search(r"Example:\s+(\{'.*?\}\})", command.__doc__, re.DOTALL)[1]
    base, tuned, _, onto = sources
    finetuned = {"wise": tuned, "lines": tuned, "stock": [tuned, onto]}.get(name, [tuned])
    inputs = [base, finetuned, *([onto] if name == "transplant" else [])]
    own = CASES[name][1] if name in CASES else {}
    assert command.task(*inputs, "out", **own, layers=ast.literal_eval(example)).layers


def test_a_recipe_has_layers(sources, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    base, tuned, *_ = sources
    (tmp_path / "recipe.yaml").write_text(f"""
command: edit
base: {base}
finetuned: {tuned}
output: out
exclude: ["lm_head*"]
layers:
  "*mlp*": {{energy: 0.8, min-update: 0.01}}
  "*attn*": {{weighting: high}}
""")
    assert "energy 0.8" in run("run", "recipe.yaml", "--dry-run").out
    assert run("run", "recipe.yaml").code == 0
    layers = {"*mlp*": {"energy": 0.8, "min_update": 0.01}, "*attn*": {"weighting": "high"}}
    called(sources, "edit", tmp_path / "two", exclude="lm_head*", layers=layers)
    assert run("run", "out", "-o", "again").code == 0
    one, two, three = ((tmp_path / at / "model.safetensors").read_bytes() for at in ("out", "two", "again"))
    assert one == two == three
    assert '"*mlp*": {"energy": 0.8, "min_update": 0.01}' in (tmp_path / "out/README.md").read_text()
    assert "*attn*: weighting high" in run("report", "out").out
    again = run("run", "recipe.yaml", "--resume")
    assert "is complete" in again.err
    text = (tmp_path / "recipe.yaml").read_text().replace("energy: 0.8", "energy: 0.7")
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(OutputExistsError):
        monosoup_cli.run("recipe.yaml", resume=True)


def test_layers_are_told_what_energy_keeps(sources, tmp_path):
    base, tuned, *_ = sources
    [note] = monosoup_cli.edit.plan(base, tuned, tmp_path / "out", layers={"*mlp*": {"energy": 0.5}})["notes"]
    assert "at most about 0.5 at 0.5 (the equivalent α)" in note
