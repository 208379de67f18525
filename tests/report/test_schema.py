"""docs/report.schema.json: it holds for what `edit` writes, and for nothing else."""

import copy
import json
import math
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.checkpoints.header import BITS
from monosoup_cli.report.records import measures_of

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

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
}

CONDITIONS = {"allOf", "if", "then", "else", "contains"}
"""Keywords of the schema under which fields stand again that are described elsewhere."""


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def read_report(path):
    return json.loads(path.read_text("utf-8"), parse_constant=no_constant)


def errors(report):
    return [error.message for error in VALIDATOR.iter_errors(report)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a pair with a tensor for every action and reason, read back from its file."""
    folder = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

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
        "codes": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        "broken": normal(4, 4),
        "only_here": normal(4, 4),
    }
    finetuned = {name: tensor + 1 for name, tensor in base.items() if tensor.dtype == torch.int64}
    for name, tensor in base.items():
        if tensor.is_floating_point() and tensor.element_size() > 1:
            finetuned[name] = (tensor.double() + 0.1 * normal(*tensor.shape).double()).to(tensor.dtype)
    del finetuned["only_here"]
    finetuned["mlp.experts.down_proj"][1] = base["mlp.experts.down_proj"][1]
    finetuned["kept.experts.down_proj"] = base["kept.experts.down_proj"].clone()
    finetuned["frozen"] = base["frozen"].clone()
    finetuned["codes"] = torch.ones(4, 4).to(torch.float8_e4m3fn)
    finetuned["resized"] = normal(12, 4)
    finetuned["new"] = normal(4, 4)
    finetuned["broken"][2, 1] = math.nan
    save_file(base, folder / "base.safetensors")
    save_file(finetuned, folder / "finetuned.safetensors")
    monosoup_cli.edit(
        folder / "base.safetensors", folder / "finetuned.safetensors", folder / "out",
        exclude=["left_out"], on_mismatch="keep", on_nonfinite="keep", device="cpu",
    )  # fmt: skip
    return read_report(folder / "out" / "monosoup_report.json")


@pytest.fixture(scope="module")
def small_report(report):
    """The same with one layer of each form, so that trying every change takes no minute."""
    names = ["matrix", "mlp.experts.down_proj", "vector"]
    small = {**report, "layers": [layer for layer in report["layers"] if layer["name"] in names]}
    assert errors(small) == []
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
    """A copy of the report, and the object at `path` in it, to be changed."""
    report = copy.deepcopy(report)
    inner = report
    for step in path:
        inner = inner[step]
    return report, inner


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_report_is_valid(report):
    assert errors(report) == []


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
    reasons = {reason for _, reason in EXPECTED.values()}
    assert set(tensor["reason"]["enum"]) == reasons
    assert set(SCHEMA["properties"]["summary"]["properties"]["kept"]["properties"]) == reasons - {None}
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
    assert len(described) > 70
    for path, field in described.items():
        is_repeated = field == {"type": "null"} or field.keys() == {"const"}
        assert "description" in field or is_repeated, path


def test_measured_and_unmeasured_are_the_same_fields():
    definitions = SCHEMA["$defs"]
    measured = definitions["edit_measures"]
    unmeasured = definitions["edit_unmeasured"]
    assert list(measured["properties"]) == list(unmeasured["properties"])
    assert measured["required"] == unmeasured["required"] == list(measured["properties"])


def test_a_missing_key_is_an_error(small_report):
    count = 0
    for path, content in objects(small_report):
        if path == ("summary", "kept"):
            continue
        for name in content:
            broken, inner = changed(small_report, path)
            del inner[name]
            assert not VALIDATOR.is_valid(broken), (*path, name)
            count += 1
    assert count > 100


def test_an_unknown_key_is_an_error(small_report):
    for path, _ in objects(small_report):
        for value in (1, None):
            broken, inner = changed(small_report, path)
            inner["surprise"] = value
            assert not VALIDATOR.is_valid(broken), path


def test_arguments_are_open(report):
    broken, arguments = changed(report, ("arguments",))
    arguments["later"] = {"anything": [1, None]}
    assert errors(broken) == []


def test_a_value_of_another_kind_is_an_error(small_report):
    for path, content in objects(small_report):
        for name in content:
            if (*path, name) == ("arguments",):
                continue
            for wrong in ({"of": "another kind"}, True):
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
    number = [layer["name"] for layer in report["layers"]].index(name)
    broken, layer = changed(report, ("layers", number))
    layer.update(changes)
    assert errors(broken)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "schema_version", 2),
        ((), "command", "paint"),
        ((), "inputs", []),
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
    assert errors(broken)


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
        "excluded": 1, "nonfinite": 1, "not_floating": 2, "not_in_base": 1, "shape_mismatch": 1,
        "unchanged": 2, "vector": 2,
    }  # fmt: skip
    assert summary["parameters_edited"] == 80 * 70 + 6 * 9 + 6 * 12 + 3 * 5 * 4

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


def test_numbers_are_finite(report):
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from numbers(inner)
        elif isinstance(value, (int, float)):
            yield value

    found = list(numbers(report))
    assert len(found) > 200
    assert all(math.isfinite(number) for number in found)


def test_a_run_that_edits_nothing_has_no_means(tmp_path):
    content = {"matrix": torch.eye(3), "vector": torch.ones(3)}
    save_file(content, tmp_path / "base.safetensors")
    save_file(content, tmp_path / "finetuned.safetensors")
    monosoup_cli.edit(
        tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", tmp_path / "out.safetensors"
    )
    report = read_report(tmp_path / "out.report.json")
    assert errors(report) == []
    assert report["summary"]["edited"] == report["summary"]["parameters_edited"] == 0
    assert set(report["summary"]["means"].values()) == {None}
    assert set(report["summary"]["ranges"].values()) == {None}


@pytest.mark.parametrize(
    "options",
    [
        {"energy": 0.8}, {"rank": 2}, {"rank_fraction": 0.5}, {"weighting": "high", "rank": 1},
        {"weighting": "low"}, {"wise": 0.5}, {"dtype": "bfloat16"}, {"max_shard_size": "200B"},
        {"min_update": 0.5}, {"stacked": ["stack"]},
    ],
    ids=str,
)  # fmt: skip
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
    assert errors(read_report(tmp_path / "out" / "monosoup_report.json")) == []
