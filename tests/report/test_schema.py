"""docs/report.schema.json: it holds for what the commands write, and for nothing else."""

import copy
import json
import math
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.formats.header import BITS
from monosoup_cli.report.measures import ALIASES
from monosoup_cli.report.records import measures_of
from tests.schema import SCHEMA, VALIDATOR, errors_of

EXPECTED = {
    "matrix": ("edited", None),
    "over_zeros": ("edited", None),
    "convolution": ("edited", None),
    "mlp.experts.down_proj": ("edited", None),
    "kept.experts.down_proj": ("kept", "unchanged"),
    "vector": ("kept", "vector"),
    "scalar": ("kept", "vector"),
    "frozen": ("kept", "unchanged"),
    "new": ("kept", "not_in_base"),
    "resized": ("kept", "shape_mismatch"),
    "left_out": ("kept", "excluded"),
    "positions": ("kept", "not_floating"),
    "codes": ("kept", "not_floating"),
    "broken": ("kept", "nonfinite"),
    "dropped": ("kept", "carried"),
}

SCORE = """import struct, sys
(last,) = struct.unpack("<f", open(sys.argv[1], "rb").read()[-4:])
print(-abs(last - 2))"""
SCORE_COMMAND = f"{shlex.join([sys.executable, '-c', SCORE])} {{}}"
"""The best soup is the one whose `temperature`, which is stored last, is next to 2."""

SCORE_WEIGHTS = "cat {}/model.safetensors | cksum | cut -d' ' -f1"

FINETUNED = ["first.safetensors", "second.safetensors", "third.safetensors"]
SCORES = {name: score for score, name in enumerate(FINETUNED)}
RAMP = {"alpha": 0.5, "beta": 0.25}

RUNS = {
    "edit": {},
    "edit to several": {"energy": [0.5, 0.8], "wise": "0.5,1"},
    "stock": {},
    "stock by row": {"granularity": "filter", "exclude": ["head.*"]},
    "stock unclamped": {"clamp": False},
    "soup": {},
    "soup weighted": {"weights": [3, 1, 0]},
    "soup greedy": {"greedy": True, "score_command": SCORE_COMMAND},
    "soup greedy scored": {"greedy": True, "score_command": "echo 1 # {}", "scores": SCORES, "accept": "gt"},
    "sfgs": {"threshold": -0.1},
    "sfgs scored": {"threshold": 1.0, "scores": SCORES, "include_vectors": True},
    "wise": {"alpha": 0.3},
    "wise beyond": {"alpha": -0.5, "extrapolate": True},
    "wise to several": {"alpha": "0:1:0.5"},
    "wise to a list of one": {"alpha": [0.25]},
    "wise scored": {"alpha": 0.3, "score": SCORE_WEIGHTS},
    "wise to several scored": {"alpha": "0:1:0.5", "score": [f"in={SCORE_WEIGHTS}", f"out={SCORE_WEIGHTS}"]},
    "search": {"score": [f"in={SCORE_WEIGHTS}", f"out={SCORE_WEIGHTS}"], "prefer": "in", "budget": 6},
    "lines": RAMP,
    "lines to several": {"alpha": "0,0.5", "beta": [0.5]},
    "lines by pattern": {**RAMP, "head": "ft", "block_pattern": r"(\d)"},
    "soup of a run": {"schedule": ["linear", "ema"], "window": 2},
    "merge": {"scale": 0.5},
    "transplant": {"scale": 0.5},
    "extract": {"rank": 2},
    "extract a size": {"max_size": 3000, "exclude": "head.*"},
    "inspect-spectrum": {},
    "inspect-spectrum of three": {"values": True},
    "inspect-spectrum of some": {"layer": "blocks.*", "energy": 0.8},
}
"""Options of every kind of run; the first word is the command."""

PARTS = {
    "edit to several": [f"energy-{energy}-wise-{wise}" for energy in (0.5, 0.8) for wise in (0.5, 1)],
    "wise to several": ["alpha-0", "alpha-0.5", "alpha-1"],
    "wise to a list of one": ["alpha-0.25"],
    "wise to several scored": ["alpha-0", "alpha-0.5", "alpha-1"],
    "lines to several": ["alpha-0-beta-0.5", "alpha-0.5-beta-0.5"],
    "soup of a run": ["schedule-linear", "schedule-ema"],
}
"""The folders of runs that make several checkpoints."""

REPORTS = [*RUNS, *(f"{name}/{folder}" for name, folders in PARTS.items() for folder in folders)]

CONDITIONS = {"allOf", "if", "then", "else", "contains"}
"""Keywords of the schema under which fields stand again that are described elsewhere."""


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def read_report(path):
    return json.loads(path.read_text("utf-8"), parse_constant=no_constant)


def normals():
    """A function from a shape to normal values, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a pair with a tensor for every action and reason, read back from its file."""
    folder = tmp_path_factory.mktemp("pair")
    normal = normals()
    base = {
        "matrix": normal(80, 70).to(torch.bfloat16),
        "over_zeros": torch.zeros(6, 9),
        "convolution": normal(6, 3, 2, 2).double(),
        "mlp.experts.down_proj": normal(3, 5, 4),
        "kept.experts.down_proj": normal(2, 5, 4),
        "vector": normal(7),
        "scalar": normal(),
        "frozen": normal(4, 4),
        "resized": normal(10, 4),
        "left_out": normal(4, 4),
        "positions": torch.arange(6),
        "codes": torch.zeros(4, 4, dtype=torch.int8),
        "broken": normal(4, 4),
        "only_here": normal(4, 4),
        "dropped": normal(3, 3),
    }
    finetuned = {name: tensor + 1 for name, tensor in base.items() if tensor.dtype == torch.int64}
    for name, tensor in base.items():
        if tensor.is_floating_point() and tensor.element_size() > 1:
            finetuned[name] = (tensor.double() + 0.1 * normal(*tensor.shape).double()).to(tensor.dtype)
    del finetuned["only_here"], finetuned["dropped"]
    finetuned["mlp.experts.down_proj"][1] = base["mlp.experts.down_proj"][1]
    finetuned["kept.experts.down_proj"] = base["kept.experts.down_proj"].clone()
    finetuned["frozen"] = base["frozen"].clone()
    finetuned["codes"] = torch.ones(4, 4, dtype=torch.int8)
    finetuned["resized"] = normal(12, 4)
    finetuned["new"] = normal(4, 4)
    finetuned["broken"][2, 1] = math.nan
    save_file(base, folder / "base.safetensors")
    save_file(finetuned, folder / "finetuned.safetensors")
    monosoup_cli.edit(
        folder / "base.safetensors",
        folder / "finetuned.safetensors",
        folder / "out",
        exclude=["left_out"],
        on_mismatch="keep",
        on_nonfinite="keep",
        carry_base="dropped",
        device="cpu",
    )
    return read_report(folder / "out" / "monosoup_report.json")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports of RUNS and of their PARTS, by name, read back from their files."""
    folder = tmp_path_factory.mktemp("runs")
    normal = normals()
    base = {
        "blocks.0.weight": normal(4, 3),
        "blocks.1.weight": normal(4, 3),
        "experts": normal(2, 3, 3),
        "frozen": normal(2, 2),
        "head.bias": normal(5),
        "opposed": normal(3, 4),
        "positions": torch.arange(3),
        "temperature": torch.tensor(0.0),
    }
    opposed = normal(3, 4)
    save_file({**base, "only_here": normal(2)}, folder / "base.safetensors")
    for name, sign, temperature in zip(FINETUNED, (1, -1, 0), (1.0, 3.5, 9.0), strict=True):
        moved = ("blocks.0.weight", "blocks.1.weight", "experts", "head.bias")
        finetuned = {tensor: base[tensor] + normal(*base[tensor].shape) for tensor in moved}
        finetuned["new"] = normal(2, 2)
        finetuned["opposed"] = base["opposed"] + sign * opposed
        finetuned["temperature"] = torch.tensor(temperature)
        save_file({**base, **finetuned}, folder / name)
    sources = [folder / name for name in FINETUNED]
    factors = {"lora_A": normal(2, 3), "lora_B": normal(4, 2)}
    (folder / "adapter").mkdir()
    save_file(
        {f"base_model.model.blocks.0.{key}.weight": factor for key, factor in factors.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["blocks.0"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))

    found = {}
    for name, options in RUNS.items():
        command = name.split()[0]
        given = sources if command in ("stock", "soup", "sfgs") or "three" in name else sources[0]
        options = {**options, "device": "cpu"}
        if "scores" in options:
            options["scores"] = {str(folder / path): score for path, score in options["scores"].items()}
        given = folder / "adapter" if command == "merge" else given
        inputs = [given] if command == "soup" else [folder / "base.safetensors", given]
        inputs += [sources[1]] if command == "transplant" else []
        if command == "inspect-spectrum":
            returned = monosoup_cli.inspect_spectrum(*inputs, **options)
            found[name] = json.loads(json.dumps(returned, allow_nan=False))
            continue
        returned = getattr(monosoup_cli, command)(*inputs, folder / name, **options)
        found[name] = read_report(folder / name / "monosoup_report.json")
        assert returned == found[name]
        for part in PARTS.get(name, []):
            found[f"{name}/{part}"] = read_report(folder / name / part / "monosoup_report.json")
    return found


@pytest.fixture(
    scope="module",
    params=[
        "edit",
        "edit to several",
        "stock",
        "soup",
        "soup greedy",
        "sfgs",
        "wise",
        "wise to several",
        "lines",
        "inspect-spectrum",
        "inspect-spectrum of three",
    ],
)
def small_report(request):
    """A report of each form, with one layer of each form, so that trying every change takes no minute."""
    if request.param == "edit":
        small, names = request.getfixturevalue("report"), ["matrix", "mlp.experts.down_proj", "vector"]
    else:
        small = request.getfixturevalue("reports")[request.param]
        names = ["blocks.1.weight", "temperature", "frozen"]
    if "layers" in small:
        small = {**small, "layers": [layer for layer in small["layers"] if layer["name"] in names]}
        assert len(small["layers"]) == 3
    assert errors_of(small) == []
    return small


def objects(value, path=()):
    """(path, object) of every JSON object in a report, but for `arguments`."""
    if isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            if (*path, name) != ("arguments",):
                yield from objects(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from objects(inner, (*path, number))


def changed(report, path):
    """A copy of the report, and the object at `path` in it, to be changed; a layer goes by its name."""
    report = copy.deepcopy(report)
    inner = report
    for step in path:
        if isinstance(inner, list) and isinstance(step, str):
            step = [layer["name"] for layer in inner].index(step)
        inner = inner[step]
    return report, inner


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_report_is_valid(report):
    assert errors_of(report) == []


@pytest.mark.parametrize("name", REPORTS)
def test_the_reports_of_every_command_are_valid(reports, name):
    assert errors_of(reports[name]) == []
    # the report of a search is that of the command that it chose
    is_found = name == "search" and reports[name]["search"]["chosen"].startswith(reports[name]["command"])
    assert reports[name]["command"] == name.split()[0] or is_found


def test_every_command_is_run():
    assert {name.split()[0] for name in RUNS} - {"search"} == set(SCHEMA["properties"]["command"]["enum"])
    assert len(SCHEMA["allOf"]) == len(SCHEMA["properties"]["command"]["enum"])


def test_what_a_command_says_is_there(reports):
    def layers(name):
        return {layer["name"]: layer for layer in reports[name]["layers"]}

    assert layers("stock")["temperature"]["cosine"] is None
    assert layers("stock")["opposed"]["ratio"] == 0
    assert layers("stock unclamped")["opposed"]["ratio"] < 0
    assert [reports[name]["summary"]["clamped"] > 0 for name in ("stock", "stock unclamped")] == [True, False]
    assert layers("stock by row")["opposed"]["clamped"] == 3
    assert layers("lines")["blocks.1.weight"]["block"] == 1
    assert layers("lines")["temperature"]["block"] is None
    assert reports["lines"]["stacks"] == [{"name": "blocks", "length": 2}]
    assert {layer["alpha"] for layer in layers("wise beyond").values()} == {-0.5, None}
    assert {
        len(layer["cosines"]) for layer in layers("inspect-spectrum of three").values() if "cosines" in layer
    } == {3}
    assert layers("inspect-spectrum of three")["opposed"]["clamped"] == 1
    assert len(layers("inspect-spectrum of three")["blocks.0.weight"]["singular_values"]) == 3
    assert layers("inspect-spectrum")["blocks.0.weight"]["singular_values"] is None
    for name, choices in (("soup greedy", "trials"), ("sfgs", "decisions")):
        assert {each["joined"] for each in reports[name]["selection"][choices]} == {True, False}
        assert len(reports[name]["selection"]["members"]) == 2
        assert reports[name]["summary"]["edited"] > 0
    for name in ("soup greedy scored", "sfgs scored"):
        assert len(reports[name]["selection"]["members"]) == 1
        assert reports[name]["summary"]["edited"] == 0
    for name in REPORTS:
        if "layers" in reports[name]:
            has_base = name.split()[0] not in ("soup", "sfgs") and "layer" not in RUNS.get(name, {})
            assert layers(name)["positions"]["reason"] == "not_floating"
            if name != "merge":  # an adapter has no further tensors
                assert (layers(name)["new"]["reason"] == "not_in_base") == has_base


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("edit", ["only_here"]),
        ("stock", ["only_here"]),
        ("soup", []),
        ("sfgs", ["only_here"]),
        ("wise to several", ["only_here"]),
        ("lines", ["only_here"]),
    ],
)
def test_what_only_the_base_has_is_reported(reports, name, names):
    assert reports[name]["only_in_base"] == names


@pytest.mark.parametrize("name", PARTS)
def test_the_report_of_several_is_that_of_its_parts(reports, name):
    whole, parts = reports[name], [reports[f"{name}/{folder}"] for folder in PARTS[name]]
    swept = whole["outputs"][0]["arguments"].keys()
    assert "-".join(swept) == "-".join(PARTS[name][0].split("-")[::2])
    assert whole["outputs"] == [
        {
            **part["output"],
            "arguments": {option: part["arguments"][option] for option in swept},
            "summary": part["summary"],
        }
        for part in parts
    ]
    assert all(("scores" in output) == ("scored" in name) for output in whole["outputs"])
    assert [Path(part["output"]["path"]).name for part in parts] == PARTS[name]
    for part in parts:
        shared = part.keys() - {"output", "summary", "layers", "arguments", "verdict"}
        assert whole.keys() - {"outputs", "arguments"} == shared
        assert {key: part[key] for key in shared} == {key: whole[key] for key in shared}
    if name.startswith("wise"):
        for part in parts:
            alphas = {layer["alpha"] for layer in part["layers"]}
            assert alphas == {part["arguments"]["alpha"], None}


@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_not_that_of_another_command(reports, name):
    for command in SCHEMA["properties"]["command"]["enum"]:
        if command != reports[name]["command"]:
            assert errors_of({**reports[name], "command": command}), command


@pytest.mark.parametrize(
    ("name", "field", "other"),
    [
        ("edit", "stacks", "lines"),
        ("edit", "selection", "sfgs"),
        ("edit", "outputs", "edit to several"),
        ("edit to several", "output", "edit"),
        ("edit to several", "summary", "edit"),
        ("edit to several", "layers", "edit"),
        ("edit to several", "outputs", "wise to several"),
        ("stock", "outputs", "edit to several"),
        ("stock", "stacks", "lines"),
        ("stock", "selection", "sfgs"),
        ("stock", "summary", "soup"),
        ("stock", "layers", "soup"),
        ("stock", "inputs", "soup"),
        ("stock", "inputs", "wise"),
        ("soup", "outputs", "wise to several"),
        ("soup", "stacks", "lines"),
        ("soup", "selection", "soup greedy"),
        ("soup", "inputs", "stock"),
        ("soup", "only_in_base", "stock"),
        ("soup greedy", "selection", "sfgs"),
        ("sfgs", "outputs", "wise to several"),
        ("sfgs", "stacks", "lines"),
        ("sfgs", "selection", "soup greedy"),
        ("sfgs", "inputs", "soup"),
        ("sfgs", "inputs", "wise"),
        ("sfgs", "summary", "stock"),
        ("wise", "outputs", "wise to several"),
        ("wise", "stacks", "lines"),
        ("wise", "selection", "sfgs"),
        ("wise", "inputs", "soup"),
        ("wise", "layers", "lines"),
        ("wise", "summary", "lines"),
        ("wise to several", "layers", "wise"),
        ("wise to several", "outputs", "edit to several"),
        ("lines", "outputs", "wise to several"),
        ("lines", "selection", "sfgs"),
        ("lines", "inputs", "soup"),
        ("lines", "summary", "wise"),
        ("lines", "layers", "wise"),
    ],
)
def test_what_belongs_to_another_report_is_an_error(reports, name, field, other):
    assert errors_of({**reports[name], field: reports[other][field]})


@pytest.mark.parametrize(
    ("name", "least"), [("edit", 2), ("stock", 3), ("soup", 2), ("sfgs", 3), ("wise", 2), ("lines", 2)]
)
def test_too_few_inputs_or_wrong_roles_are_an_error(reports, name, least):
    inputs = reports[name]["inputs"]
    base, finetuned = reports["stock"]["inputs"][:2]
    assert errors_of({**reports[name], "inputs": inputs[:least]}) == []
    for wrong in (inputs[: least - 1], [*inputs[:-1], base], [*inputs, base]):
        assert errors_of({**reports[name], "inputs": wrong})
    if name != "soup":
        assert errors_of({**reports[name], "inputs": [finetuned, *inputs[1:]]})


@pytest.mark.parametrize(
    "name", ["edit", "stock", "soup", "sfgs", "wise", "lines", "merge", "transplant", "extract"]
)
def test_only_some_commands_make_several(reports, name):
    report = dict(reports[name])
    summary = report.pop("summary")
    del report["layers"]
    report["outputs"] = [{**report.pop("output"), "summary": summary}]
    assert (errors_of(report) == []) == (name in ("edit", "wise", "lines", "soup"))


@pytest.mark.parametrize(
    ("name", "path", "changes"),
    [
        ("stock", ("layers", "blocks.0.weight"), {"cosine": None}),
        ("stock", ("layers", "blocks.0.weight"), {"cosine": -1.1}),
        ("stock", ("layers", "blocks.0.weight"), {"cosine": 1.1}),
        ("stock", ("layers", "blocks.0.weight"), {"ratio": None}),
        ("stock", ("layers", "blocks.0.weight"), {"ratio": 1.1}),
        ("stock", ("layers", "blocks.0.weight"), {"clamped": None}),
        ("stock", ("layers", "blocks.0.weight"), {"clamped": -1}),
        ("stock", ("layers", "blocks.0.weight"), {"clamped": 0.5}),
        ("stock", ("layers", "blocks.0.weight"), {"action": "kept", "reason": "unchanged"}),
        ("stock", ("layers", "blocks.0.weight"), {"slices": []}),
        ("stock", ("layers", "temperature"), {"cosine": 1}),
        ("stock", ("layers", "temperature"), {"ratio": 0.5}),
        ("stock", ("layers", "temperature"), {"clamped": 1}),
        ("stock", ("layers", "frozen"), {"cosine": 1}),
        ("stock", ("layers", "frozen"), {"ratio": 1}),
        ("stock", ("layers", "frozen"), {"clamped": 0}),
        ("stock", ("summary",), {"clamped": None}),
        ("stock", ("summary",), {"clamped": -1}),
        ("stock", ("summary", "means"), {"cosine": 1.1}),
        ("stock", ("summary", "means"), {"ratio": 1.1}),
        ("stock", ("summary", "ranges"), {"cosine": [0, 1.1]}),
        ("stock", ("summary", "ranges"), {"cosine": [0.5]}),
        ("stock", ("summary", "ranges"), {"ratio": [0, 1.1]}),
        ("stock", ("summary", "ranges"), {"ratio": [0, 0.5, 1]}),
        ("soup", ("arguments",), {"greedy": True}),
        ("soup greedy", ("arguments",), {"greedy": False}),
        ("soup greedy", ("selection",), {"scores": []}),
        ("soup greedy", ("selection",), {"order": ["first"]}),
        ("soup greedy", ("selection",), {"order": ["first", 1]}),
        ("soup greedy", ("selection",), {"trials": []}),
        ("soup greedy", ("selection",), {"members": []}),
        ("soup greedy", ("selection",), {"members": [""]}),
        ("soup greedy", ("selection", "scores", 0), {"score": None}),
        ("soup greedy", ("selection", "trials", 0), {"joined": False}),
        ("soup greedy", ("selection", "trials", 1), {"score": None}),
        ("soup greedy", ("selection", "trials", 1), {"candidate": 1}),
        ("sfgs", ("selection",), {"layers": -1}),
        ("sfgs", ("selection",), {"similarity": [[1]]}),
        ("sfgs", ("selection",), {"similarity": [[1], [1]]}),
        ("sfgs", ("selection",), {"similarity": [[1, 0.5], [1.1, 1]]}),
        ("sfgs", ("selection",), {"candidates": ["first"]}),
        ("sfgs", ("selection",), {"order": ["first"]}),
        ("sfgs", ("selection",), {"decisions": []}),
        ("sfgs", ("selection",), {"thresholds": []}),
        ("sfgs", ("selection",), {"members": []}),
        ("sfgs", ("selection", "decisions", 0), {"similarity": 1.1}),
        ("sfgs", ("selection", "decisions", 0), {"joined": None}),
        ("sfgs", ("selection", "thresholds", 0), {"highest": 0.5}),
        ("sfgs", ("selection", "thresholds", 0), {"members": ["first", "second"]}),
        ("sfgs", ("selection", "thresholds", 1), {"highest": None}),
        ("sfgs", ("selection", "thresholds", 1), {"members": []}),
        ("wise", ("layers", "blocks.0.weight"), {"alpha": None}),
        ("wise", ("layers", "frozen"), {"alpha": 0.3}),
        ("wise to several", (), {"outputs": []}),
        ("wise to several", ("outputs", 1), {"path": ""}),
        ("wise to several", ("outputs", 1), {"files": []}),
        ("wise to several", ("outputs", 1, "summary"), {"clamped": 0}),
        ("lines", (), {"stacks": []}),
        ("lines", ("stacks", 0), {"length": 0}),
        ("lines", ("layers", "blocks.1.weight"), {"stack": None}),
        ("lines", ("layers", "blocks.1.weight"), {"block": None}),
        ("lines", ("layers", "blocks.1.weight"), {"block": -1}),
        ("lines", ("layers", "blocks.1.weight"), {"block": 0.5}),
        ("lines", ("layers", "blocks.1.weight"), {"scale": None}),
        ("lines", ("layers", "temperature"), {"block": 0}),
        ("lines", ("layers", "frozen"), {"stack": "blocks"}),
        ("lines", ("layers", "frozen"), {"block": 0}),
        ("lines", ("layers", "frozen"), {"scale": 0.5}),
        ("lines", ("summary", "ranges"), {"scale": [0.5]}),
        ("lines", ("summary", "ranges"), {"scale": [0.5, 0.6, 0.7]}),
        ("lines", ("summary", "ranges"), {"scale": [0.5, None]}),
        ("lines", ("summary", "means"), {"scale": [0.5]}),
    ],
    ids=str,
)
def test_a_report_that_contradicts_itself_is_an_error(reports, name, path, changes):
    broken, inner = changed(reports[name], path)
    inner.update(changes)
    assert errors_of(broken)


def test_every_action_and_reason_is_in_the_report(report):
    found = {layer["name"]: (layer["action"], layer["reason"]) for layer in report["layers"]}
    assert found == EXPECTED
    (stack,) = (layer for layer in report["layers"] if "slices" in layer)
    assert [(part["index"], part["reason"]) for part in stack["slices"]] == [
        (0, None),
        (1, "unchanged"),
        (2, None),
    ]
    assert report["only_in_base"] == ["only_here"]


def test_the_schema_names_every_reason_and_dtype():
    tensor = SCHEMA["$defs"]["tensor"]["properties"]
    reasons = {reason for _, reason in EXPECTED.values()} | {"no_room"}  # only of extract --max-size
    assert set(tensor["reason"]["enum"]) == reasons
    assert set(SCHEMA["$defs"]["summary"]["properties"]["kept"]["properties"]) == reasons - {None}
    assert set(tensor["dtype"]["enum"]) == set(BITS)


def test_every_field_is_described():
    def fields(schema, path):
        if isinstance(schema, list):
            for number, inner in enumerate(schema):
                yield from fields(inner, (*path, number))
        elif isinstance(schema, dict):
            for name, inner in schema.get("properties", {}).items():
                yield (*path, name), inner
            for name, inner in schema.items():
                if name not in CONDITIONS:
                    yield from fields(inner, (*path, name))

    described = dict(fields(SCHEMA, ()))
    assert len(described) > 120
    for path, field in described.items():
        is_repeated = field == {"type": "null"} or field.keys() == {"const"}
        named = SCHEMA["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
        assert "description" in {**named, **field} or is_repeated, path


def test_measured_and_unmeasured_are_the_same_fields():
    definitions = SCHEMA["$defs"]
    measured = definitions["edit_measures"]
    unmeasured = definitions["edit_unmeasured"]
    assert list(measured["properties"]) == list(unmeasured["properties"])
    names = [name for name in measured["properties"] if name not in ALIASES.values()]
    assert measured["required"] == unmeasured["required"] == names


def test_a_missing_key_is_an_error(small_report):
    count = 0
    for path, content in objects(small_report):
        if path[-1:] in (("kept",), ("arguments",)):
            continue
        for name in content:
            broken, inner = changed(small_report, path)
            del inner[name]
            # reports of older versions are without
            is_of_older = name in (
                *(("size", "rounding_loss") if path[-1:] == ("verdict",) else ()),
                "other_files",
                "doubts",
                "score_seconds",
                "config_sha256",
            )
            is_of_older |= (path[2:3], name) == (("files",), "modified")
            is_of_older |= bool(path) and name == "arguments"
            is_of_older |= name == "verdict" and small_report["command"] == "edit"
            is_of_older |= name in ALIASES.values()
            is_of_older |= (path[-1:], name) == (("interpolation",), "equivalent_alpha")
            assert VALIDATOR.is_valid(broken) == is_of_older, (*path, name)
            count += 1
    assert count > 60


def test_an_unknown_key_is_an_error(small_report):
    for path, _ in objects(small_report):
        for value in (1, None):
            broken, inner = changed(small_report, path)
            inner["surprise"] = value
            assert not VALIDATOR.is_valid(broken), path


def test_arguments_are_open(report):
    broken, arguments = changed(report, ("arguments",))
    arguments["later"] = {"anything": [1, None]}
    assert errors_of(broken) == []


def test_a_value_of_another_kind_is_an_error(small_report):
    for path, content in objects(small_report):
        for name in content:
            if (*path, name) == ("arguments",):
                continue
            for wrong in ({"of": "another kind"}, 1 if isinstance(content[name], bool) else True):
                broken, inner = changed(small_report, path)
                inner[name] = wrong
                assert not VALIDATOR.is_valid(broken), (*path, name, wrong)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("matrix", {"action": "kept"}),
        ("matrix", {"action": "deleted"}),
        ("matrix", {"reason": "vector"}),
        ("matrix", {"action": "kept", "reason": "vector"}),
        ("matrix", {"k": None}),
        ("matrix", {"k": 0}),
        ("matrix", {"k": 1.5}),
        ("matrix", {"rho": -0.1}),
        ("matrix", {"lambda_low": 1.1}),
        ("matrix", {"anisotropy": 0.6}),
        ("matrix", {"spectrum": []}),
        ("matrix", {"spectrum": [0.9]}),
        ("matrix", {"spectrum": [1] * 65}),
        ("matrix", {"dtype": "FP32"}),
        ("matrix", {"shape": [4, -1]}),
        ("matrix", {"slices": []}),
        ("vector", {"action": "edited"}),
        ("vector", {"action": "edited", "reason": None}),
        ("vector", {"reason": None}),
        ("vector", {"reason": "because"}),
        ("vector", {"k": 1}),
        ("vector", {"slices": []}),
        ("mlp.experts.down_proj", {"k": 1}),
        ("mlp.experts.down_proj", {"slices": []}),
        ("mlp.experts.down_proj", {"action": "kept", "reason": "unchanged"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_layer_that_contradicts_itself_is_an_error(report, name, changes):
    broken, layer = changed(report, ("layers", name))
    layer.update(changes)
    assert errors_of(broken)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "schema_version", 2),
        ((), "command", "paint"),
        ((), "inputs", []),
        ((), "layers", None),
        (("tool",), "name", "another"),
        (("inputs", 0), "role", "finetuned"),
        (("inputs", 1), "role", "base"),
        (("output", "files", 0), "sha256", "not a digest"),
        (("summary", "kept"), "because", 1),
        (("summary", "kept"), "vector", 0),
        (("summary", "ranges"), "rho", [0.5]),
        (("timing",), "seconds", -1),
    ],
    ids=str,
)
def test_a_wrong_value_is_an_error(report, path, key, value):
    broken, inner = changed(report, path)
    inner[key] = value
    assert errors_of(broken)


def test_a_null_where_a_value_may_not_exist_is_valid(report):
    by_name = {layer["name"]: layer for layer in report["layers"]}
    assert by_name["over_zeros"]["relative_update"] is None
    assert report["environment"]["cuda"] is None
    assert [source["revision"] for source in report["inputs"]] == [None, None]


def test_the_summary_follows_from_the_layers(report):
    summary, layers = report["summary"], report["layers"]
    edited = [layer for layer in layers if layer["action"] == "edited"]
    assert summary["tensors"] == len(layers) == len(EXPECTED)
    assert summary["edited"] == len(edited) == 4
    assert summary["kept"] == {
        "carried": 1,
        "excluded": 1,
        "nonfinite": 1,
        "not_floating": 2,
        "not_in_base": 1,
        "shape_mismatch": 1,
        "unchanged": 2,
        "vector": 2,
    }
    assert summary["parameters_edited"] == 80 * 70 + 6 * 9 + 6 * 12 + 3 * 5 * 4
    others = 2 * 5 * 4 + 7 + 1 + 12 * 4 + 6 + 5 * 4 * 4 + 3 * 3
    assert summary["parameters"] == summary["parameters_edited"] + others

    matrices = []
    for layer in edited:
        matrices += [part for part in layer.get("slices", [layer]) if part["reason"] is None]
    assert len(matrices) == 3 + 2
    assert set(summary["means"]) == set(summary["ranges"])
    for name in summary["means"]:
        if name == "k_ratio":
            values = [matrix["k"] / matrix["rank"] for matrix in matrices]
        else:
            values = [matrix[name] for matrix in matrices if matrix[name] is not None]
        assert len(values) == (4 if name == "relative_update" else 5)
        assert summary["means"][name] == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-15)
        assert summary["ranges"][name] == [min(values), max(values)]


def test_the_spectrum_is_all_of_it_or_64_values(report):
    for matrix in measures_of(report["layers"]):
        spectrum = matrix["spectrum"]
        assert len(spectrum) == min(matrix["rank"], 64)
        assert spectrum == sorted(spectrum, reverse=True)
        assert spectrum[0] == 1


def test_the_summary_of_other_measures_follows_from_the_layers(reports):
    for name in ("stock", "stock by row", "stock unclamped", "lines", "lines by pattern"):
        summary = reports[name]["summary"]
        edited = [layer for layer in reports[name]["layers"] if layer["action"] == "edited"]
        assert summary["means"]
        for measure, mean in summary["means"].items():
            values = [layer[measure] for layer in edited if layer[measure] is not None]
            assert mean == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-15)
            assert summary["ranges"][measure] == [min(values), max(values)]
        assert summary.get("clamped") == (
            sum(layer["clamped"] for layer in edited) if name.startswith("stock") else None
        )


def test_numbers_are_finite(report, reports):
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from numbers(inner)
        elif isinstance(value, (int, float)):
            yield value

    for name, each in {**reports, "every reason": report}.items():
        found = list(numbers(each))
        assert len(found) > 15, name
        assert all(math.isfinite(number) for number in found), name


def test_a_run_that_edits_nothing_has_no_means(tmp_path):
    content = {"matrix": torch.eye(3), "vector": torch.ones(3)}
    save_file(content, tmp_path / "base.safetensors")
    save_file(content, tmp_path / "finetuned.safetensors")
    monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", tmp_path / "out.safetensors"
    )
    report = read_report(tmp_path / "out.report.json")
    assert errors_of(report) == []
    assert report["summary"]["edited"] == report["summary"]["parameters_edited"] == 0
    assert set(report["summary"]["means"].values()) == {None}
    assert set(report["summary"]["ranges"].values()) == {None}


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.8},
        {"rank": 2},
        {"rank_fraction": 0.5},
        {"split": "energy-entropy"},
        {"split": "noise"},
        {"weighting": "high", "rank": 1},
        {"weighting": "low"},
        {"wise": 0.5},
        {"dtype": "bfloat16"},
        {"max_shard_size": "200B"},
        {"min_update": 0.5},
        {"stacked": ["stack"]},
    ],
    ids=str,
)
def test_reports_of_other_options_are_valid(tmp_path, options):
    generator = torch.Generator().manual_seed(1)
    for name in ("base", "first", "second"):
        content = {
            "matrix": torch.randn(8, 5, generator=generator),
            "stack": torch.randn(2, 4, 5, generator=generator),
            "vector": torch.randn(5, generator=generator),
        }
        save_file(content, tmp_path / f"{name}.safetensors")
    finetuned = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    monosoup_cli.edit(tmp_path / "base.safetensors", finetuned, tmp_path / "out", **options)
    assert errors_of(read_report(tmp_path / "out" / "monosoup_report.json")) == []


def test_aliases_are_what_they_stand_for(reports):
    seen = set()
    for report in reports.values():
        layers = [part for layer in report.get("layers", ()) for part in (layer, *layer.get("slices", ()))]
        summary = report.get("summary", {"means": {}, "ranges": {}})
        for entry in (*layers, summary["means"], summary["ranges"]):
            for name, alias in ALIASES.items():
                assert entry.get(alias) == entry.get(name)
                assert (alias in entry) == (name in entry)
                seen |= {alias} & entry.keys()
        interpolation = report.get("verdict", {}).get("interpolation")
        assert interpolation is None or interpolation["equivalent_alpha"] == interpolation["alpha"]
        seen |= {"interpolation"} if interpolation else set()
    assert seen == {"cos_low", "wise_alpha", "interpolation"}
