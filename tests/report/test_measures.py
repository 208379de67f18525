"""Measures that no method here has: those of another version or a new method need no edit of the room."""

import copy
import csv
import io
import json
import re

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.declaration import Call
from monosoup_cli.methods import MEASURES
from monosoup_cli.report.comparison import compare_reports, comparison_table
from monosoup_cli.report.files import read_report
from monosoup_cli.report.layers import as_csv, layers_table
from monosoup_cli.report.measures import FACTS, LABELS, label_of, measures_in
from monosoup_cli.report.page import page
from monosoup_cli.report.preview import Cost, Preview, PreviewedTensor
from monosoup_cli.report.records import spread, summarise
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.tables import plan_rows, summary_table
from monosoup_cli.report.view import View
from monosoup_cli.tensors.method import Measure

QUERY = "model.layers.1.self_attn.q_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    normal = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{block}.self_attn.q_proj.weight": (8, 6) for block in range(3)}
    shapes |= {EXPERTS: (3, 6, 4), "model.norm.weight": (6,)}
    files = [folder / f"{number}.safetensors" for number in range(3)]
    for path in files:
        save_file({name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}, path)
    return monosoup_cli.inspect_spectrum(files[0], files[1:], device="cpu")


@pytest.fixture
def report(inspected):
    """One with a sharpness of every layer, and its mean and a sum in the summary."""
    report = copy.deepcopy(inspected)
    for number, layer in enumerate(layer for layer in report["layers"] if layer["action"] == "edited"):
        for part in layer.get("slices", [layer]):
            part["sharpness"] = number / 4
    report["summary"]["means"]["sharpness"] = 0.375
    report["summary"]["ranges"]["sharpness"] = [0.0, 0.75]
    report["summary"]["dropped"] = 1234
    return report


def drawn(renderable):
    console = Console(file=io.StringIO(), width=200, markup=False, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def test_it_is_read_and_stands_in_the_table_with_its_name(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    rows = View().rows(rows_of(read_report(path)))
    heading, *lines = layers_table(rows, None).splitlines()
    headings = re.split(r"\s{2,}", heading)
    assert headings[-2:] == ["sharpness", "spectrum"]
    cells = [re.split(r"\s{2,}", line)[-2] for line in lines]
    assert cells == [f"{row['sharpness']:.3g}" for row in rows]
    assert "0.5" in cells


def test_it_is_the_first_that_a_narrow_table_leaves_out(report):
    rows = View().rows(rows_of(report))
    for width in (80, 100, 120):
        lines = layers_table(rows, width).splitlines()
        assert max(map(len, lines)) <= width
        assert "sharpness" not in lines[0]
        assert "λ_high" in lines[0]


def test_it_is_a_column_of_comma_separated_values_and_has_a_mean_in_groups(report):
    rows = rows_of(report)
    lines = list(csv.DictReader(io.StringIO(as_csv(View().rows(rows)))))
    assert [float(line["sharpness"]) for line in lines] == [row["sharpness"] for row in View().rows(rows)]
    (groups,) = [
        line
        for line in csv.DictReader(io.StringIO(as_csv(View(group="kind").rows(rows))))
        if line["name"] == "attention"
    ]
    attention = [row["sharpness"] for row in rows if row["kind"] == "attention"]
    assert float(groups["sharpness"]) == pytest.approx(sum(attention) / 3)


def test_the_summary_has_its_mean_range_and_sum(report):
    text = drawn(summary_table(report))
    assert re.search(r"sharpness +0\.375 +0 +0\.75", text)
    assert re.search(r"dropped +1,234", text)


def test_the_page_has_it(report):
    text = page(report, [])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    column = data["columns"].index("sharpness")
    assert {row[column] for row in data["rows"]} >= {0.0, 0.25, 0.5, 0.75}


def test_a_comparison_compares_it(report):
    other = copy.deepcopy(report)
    (layer,) = [layer for layer in other["layers"] if layer["name"] == QUERY]
    before, layer["sharpness"] = layer["sharpness"], 0.625
    (change,) = compare_reports(report, other)["changed"]
    assert (change["name"], change["measures"]) == (QUERY, {"sharpness": [before, 0.625]})
    text = drawn(comparison_table(compare_reports(report, other), None, None))
    assert "sharpness" in text
    assert "→ 0.625" in text


def test_its_name_drives_no_terminal(report):
    for layer in report["layers"]:
        layer["\x1b[31mred"] = 1.5
    assert "\x1b" not in layers_table(View().rows(rows_of(report)), None)


def test_what_is_no_number_is_no_measure(inspected):
    report = copy.deepcopy(inspected)
    for layer in report["layers"]:
        layer |= {"words": "many", "flag": True, "list": [1.0], "nothing": None}
    assert measures_in(rows_of(report)) == measures_in(rows_of(inspected))


def test_the_facts_of_a_row_are_no_measures(inspected):
    rows = rows_of(inspected)
    names = {name for row in rows for name in row}
    unlabelled = {measure.name for measure in MEASURES if not measure.label}
    assert names - {*LABELS} <= FACTS | unlabelled | {"cosines", "singular_values"}
    assert measures_in(rows) == [name for name in LABELS if any(row.get(name) is not None for row in rows)]


def test_of_a_stack_it_stands_with_the_first_matrix_where_it_is_of_the_whole_tensor(inspected):
    report = copy.deepcopy(inspected)
    (stack,) = [layer for layer in report["layers"] if layer["name"] == EXPERTS]
    stack["agreement"] = 0.5
    rows = [row for row in rows_of(report) if row["name"].startswith(EXPERTS)]
    assert [row.get("agreement") for row in rows] == [0.5, None, None]
    assert [row.get("cosine") for row in rows] == [stack["cosine"], None, None]


def test_a_summary_follows_what_a_measure_says(report):
    measures = [
        Measure("sharpness", "sharpness", summary="mean"),
        Measure("k", "k", summary="sum"),
        Measure("rho", "ρ"),
    ]
    summary = summarise(report["layers"], measures)
    layers = [layer for layer in report["layers"] if layer["action"] == "edited"]
    parts = [part for layer in layers for part in layer.get("slices", [layer])]
    assert summary["means"] == {"sharpness": pytest.approx(sum(p["sharpness"] for p in parts) / len(parts))}
    assert summary["k"] == sum(part["k"] for part in parts)


def test_every_label_is_what_a_method_says():
    assert [label_of(m.name) for m in MEASURES if m.label] == [m.label for m in MEASURES if m.label]
    assert list(LABELS)[:-4] == [measure.name for measure in MEASURES if measure.label]


def test_a_plan_shows_what_a_method_knows_beforehand():
    def plan(**measures):
        tensor = PreviewedTensor("a.weight", (4, 3), "F32", None, None, (4, 3), None, measures)
        cost = Cost("cpu", 0, 1, 1000, 0, 0)
        return Preview(
            Call("x", {}, {}), "trim", [], "out", None, [("a", 1)], {}, [""], {}, [], [tensor], cost
        )

    assert [*plan_rows(plan(density=0.2))] == [("a.weight", "F32", "trim 4 × 3, density 0.2")]
    ((*_, action),) = plan_rows(plan(stack="h", block=3, scale=0.25, alpha=0.5))
    assert action == "trim 4 × 3 by 0.25, block 3, WiSE α 0.5"


@pytest.mark.parametrize("count", [9, 11, 18])
def test_a_mean_is_between_the_least_and_the_largest(count):
    """The sum of so many ninths, elevenths or eighteenths is more than 1 in float64."""
    assert sum(1.0 / count for _ in range(count)) > 1.0
    assert spread([1.0] * count) == {"mean": 1.0, "min": 1.0, "max": 1.0}
