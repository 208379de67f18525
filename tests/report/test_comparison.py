"""Two real reports side by side: what differs, by how much, and how it is shown."""

import copy
import io
import json
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.report.comparison import compare_reports, comparison_table, value_text
from monosoup_cli.report.comparison_page import comparison_page
from monosoup_cli.report.measures import LABELS, label_of
from monosoup_cli.report.rows import rows_of

QUERY = "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """An edit and an interpolation of one small model, with the files."""
    folder = tmp_path_factory.mktemp("edits")
    normal = torch.Generator().manual_seed(1)
    made = {"files": ["base", "finetuned", "edit", "wise"]}
    made |= {f"{name} file": folder / f"{name}.safetensors" for name in made["files"]}
    for name in ("base", "finetuned"):
        shapes = {"0.weight": (16, 12), "0.bias": (16,), "1.weight": (8, 16)}
        tensors = {name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}
        save_file(tensors, made[f"{name} file"])
    inputs = made["base file"], made["finetuned file"]
    made["edit"] = monosoup_cli.edit(*inputs, made["edit file"], device="cpu")
    made["wise"] = monosoup_cli.wise(*inputs, made["wise file"], alpha=0.3, device="cpu")
    return made


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    normal = torch.Generator().manual_seed(0)
    shapes = {QUERY.format(block): (16, 12) for block in range(12)}
    shapes |= {"model.layers.0.mlp.experts.w": (2, 8, 6), "model.norm.weight": (12,)}
    files = [folder / f"{name}.safetensors" for name in ("base", "finetuned", "with_head")]
    for path in files:
        tensors = {name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}
        save_file(tensors | ({"lm_head.weight": torch.ones(4, 4)} if path == files[2] else {}), path)
    base, finetuned, with_head = files

    def inspect(finetuned, **options):
        return monosoup_cli.inspect_spectrum(base, finetuned, device="cpu", **options)

    return {
        "default": inspect(finetuned),
        "energy": inspect(finetuned, energy=0.8),
        "without 0": inspect(finetuned, layer=["*.1*", "*.2.*"]),
        "head": inspect(with_head),
        "lines": monosoup_cli.lines(base, finetuned, folder / "lines", alpha=0.1, beta=0.9, device="cpu"),
    }


def test_a_report_differs_in_nothing_from_itself(reports):
    for report in reports.values():
        found = compare_reports(report, json.loads(json.dumps(report)))
        assert (found["changed"], found["arguments"]) == ([], {})
        assert (found["only_in_first"], found["only_in_second"]) == ([], [])
        assert found["same"] == len(rows_of(report))


def test_another_split_changes_layers_most_changed_first(reports):
    first, second = reports["default"], reports["energy"]
    found = compare_reports(first, second)
    assert found["commands"] == ["inspect-spectrum"] * 2
    assert found["arguments"] == {"energy": [None, 0.8]}
    assert found["same"] == 1  # the vector
    rows, others = ({row["name"]: row for row in rows_of(report)} for report in (first, second))
    assert {each["name"] for each in found["changed"]} == rows.keys() - {"model.norm.weight"}
    for each in found["changed"]:
        row, other = rows[each["name"]], others[each["name"]]
        for measure in ("k", "k_ratio", "lambda_high", "lambda_low", "rho", "equivalent_alpha"):
            assert each["measures"][measure] == [row[measure], other[measure]]
        # the spectrum is the same, wherever it is split
        assert not each["measures"].keys() & {"rank", "effective_rank", "sigma_max", "relative_update"}
    changes = [each["change"] for each in found["changed"]]
    assert changes == sorted(changes, reverse=True)


def test_settings_of_layers_are_shown_whole():
    layers = {"*self_attn*": {"energy": 0.8, "weighting": "high"}, "*mlp*": {"wise": 0.5}, "*x*": {"rank": 2}}
    assert value_text(layers) == "*self_attn*: energy 0.8, weighting high; *mlp*: wise 0.5; *x*: rank 2"


def test_the_change_is_the_largest_difference(reports):
    """Of measures with a unit, and of ranks, relative to the larger; of others as it is."""
    second = copy.deepcopy(reports["default"])
    layers = {layer["name"]: layer for layer in second["layers"]}
    layers[QUERY.format(1)]["lambda_high"] += 0.3
    layers[QUERY.format(2)]["lambda_high"] += 0.1
    layers[QUERY.format(2)]["rho"] += 0.4
    layers[QUERY.format(3)]["update_norm"] *= 4
    layers[QUERY.format(4)]["effective_rank"] /= 5
    layers["model.layers.0.mlp.experts.w"]["slices"][1]["sigma_max"] *= -1
    for first, other in ((reports["default"], second), (second, reports["default"])):
        found = compare_reports(first, other)["changed"]
        assert [(each["name"], each["change"], list(each["measures"])) for each in found] == [
            ("model.layers.0.mlp.experts.w[1]", pytest.approx(2), ["sigma_max"]),
            (QUERY.format(4), pytest.approx(0.8), ["effective_rank"]),
            (QUERY.format(3), pytest.approx(0.75), ["update_norm"]),
            (QUERY.format(2), pytest.approx(0.4), ["rho", "lambda_high"]),
            (QUERY.format(1), pytest.approx(0.3), ["lambda_high"]),
        ]


@pytest.mark.parametrize(
    ("measure", "values", "change"),
    [
        ("relative_update", (1e-7, 9e-7), 8 / 9),
        ("sigma_max", (1e-12, 2e-12), 0.5),
        ("update_norm", (1.0, 1 + 1e-7), None),
        ("rho", (1e-10, 9e-10), None),
        ("rho", (1e-7, 9e-7), 8e-7),
        ("lambda_high", (0.5, 0.5 + 1e-7), None),
        ("lambda_high", (0.5, 0.5 + 1e-5), 1e-5),
    ],
)
def test_how_small_a_difference_counts(reports, measure, values, change):
    pair = [copy.deepcopy(reports["default"]) for _ in values]
    for report, value in zip(pair, values, strict=True):
        {layer["name"]: layer for layer in report["layers"]}[QUERY.format(1)][measure] = value
    changes = [each["change"] for each in compare_reports(*pair)["changed"]]
    assert changes == ([] if change is None else [pytest.approx(change)])


@pytest.mark.parametrize(("relative", "is_same"), [(1e-9, True), (1e-4, False)])
def test_rounding_is_no_difference(reports, relative, is_same):
    second = copy.deepcopy(reports["default"])
    for layer in second["layers"]:
        for part in layer.get("slices", [layer]):
            for name, value in part.items():
                if isinstance(value, float):
                    part[name] = value * (1 + relative)
    for found in (compare_reports(reports["default"], second), compare_reports(second, reports["default"])):
        assert (found["changed"] == []) == is_same


def test_edited_against_kept(reports):
    found = compare_reports(reports["default"], reports["without 0"])
    changed = {each["name"]: each for each in found["changed"]}
    assert QUERY.format(0) in changed
    assert changed[QUERY.format(0)]["change"] == 1.0
    assert changed[QUERY.format(0)]["measures"]["reason"] == [None, "excluded"]
    (row,) = (row for row in rows_of(reports["default"]) if row["name"] == QUERY.format(0))
    assert changed[QUERY.format(0)]["measures"]["lambda_high"] == [row["lambda_high"], None]
    assert not changed.keys() & {QUERY.format(block) for block in (1, 2, 10, 11)}
    # a stack that is kept is one tensor
    assert found["only_in_second"] == ["model.layers.0.mlp.experts.w"]
    assert len(found["only_in_first"]) == 2


def test_layers_of_one_alone(reports):
    found = compare_reports(reports["default"], reports["head"])
    assert (found["only_in_first"], found["only_in_second"]) == ([], ["lm_head.weight"])
    assert found["arguments"].keys() == {"finetuned"}
    swapped = compare_reports(reports["head"], reports["default"])
    assert (swapped["only_in_first"], swapped["only_in_second"]) == (["lm_head.weight"], [])
    assert "only in the second  1 tensor: lm_head.weight" in "\n".join(drawn(found))


def test_two_commands(reports):
    found = compare_reports(reports["default"], reports["lines"])
    assert found["commands"] == ["inspect-spectrum", "lines"]
    assert found["arguments"] == {}  # "alpha" and others only one has; those of both are alike
    lines = drawn(found)
    assert "inspect-spectrum → lines: only the measures of both are compared" in "\n".join(lines)
    edited = {**reports["default"], "command": "lines", "arguments": reports["lines"]["arguments"]}
    other = {
        **edited,
        "arguments": {**edited["arguments"], "alpha": 0.2, "output": "elsewhere", "side_files": ["all"]},
    }
    found_too = compare_reports(edited, other)
    assert found_too["arguments"] == {"alpha": [0.1, 0.2]}
    assert "only the measures of both" not in "\n".join(drawn(found_too))
    # both edited these, and no measure is taken by both
    assert found["not_compared"] == [QUERY.format(block) for block in range(12)]
    assert (found["same"], found["changed"]) == (0, [])
    said = re.sub(r"\s+", " ", "\n".join(lines))
    assert "not compared 12 tensors without a measure in both reports; `monosoup diff` compares" in said
    assert "reach" not in said
    page = comparison_page(found, (reports["default"], reports["lines"]), ("a", "b"))
    assert "both reports; <code>monosoup diff</code> compares the values." in page
    page = re.sub("</?code>", "`", page)
    assert "12 of the 13 tensors have no measure in both reports." in page
    assert "12 tensors without a measure in both reports; `monosoup diff` compares the values." in page
    # only what was done to this one is known to differ
    assert found["action_alone"] == [{"reason": ["vector", None], "names": ["model.norm.weight"]}]
    words = "1 tensor, kept (vector) → edited: no measure differs, and `monosoup diff` compares the values"
    assert f"action alone {words}" in said
    assert f"The action alone differs: {words}." in page
    assert "In 1 of the 13 tensors, the action alone differs: edited or kept, or why kept." in page


def test_methods_between_base_and_finetuned_share_how_far_they_go(reports, edits):
    """What `reach` is: the α of the nearest plain interpolation, found here from the weights themselves."""
    first, second = edits["edit"], edits["wise"]
    found = compare_reports(first, second)
    base, finetuned, edited, wise = (load_file(edits[f"{name} file"]) for name in edits["files"])
    for one in found["changed"]:
        update = (finetuned[one["name"]] - base[one["name"]]).flatten()
        nearest = [
            float((made[one["name"]] - base[one["name"]]).flatten() @ update / (update @ update))
            for made in (edited, wise)
        ]
        assert one["measures"]["reach"] == pytest.approx(nearest, abs=1e-5)
        assert one["by"] == "reach"
        assert one["change"] == pytest.approx(abs(nearest[0] - nearest[1]), abs=1e-5)
    assert {one["name"] for one in found["changed"]} == base.keys()  # the vector among them
    assert found["not_compared"] == []
    assert found["means"]["reach"][1] == 0.3
    assert found["means"]["reach"][0] == first["summary"]["means"]["equivalent_alpha"]
    page = comparison_page(found, (first, second), ("a", "b"))
    far = f"{found['means']['reach'][0]:.0%}"
    assert (
        f"a lies {far} of the way from the base to the fine-tuned weights, and b lies 30% of the way." in page
    )
    assert "from before --wise" not in page
    assert "Only the measures of both are compared." in page
    # of two edits, reach says more than their own measures only where one is interpolated
    half = {**first, "arguments": {**first["arguments"], "wise": 0.5}}
    assert "reach" not in compare_reports(first, first)["means"]
    halved = compare_reports(first, half)
    assert halved["means"]["reach"] == [far := halved["means"]["reach"][0], far / 2]
    assert {one["by"] for one in halved["changed"]} == {"reach"}
    ranks = [base[one["name"]].ndim for one in halved["changed"]]
    assert ranks == sorted(ranks, reverse=True)  # vectors, which reach the most, come last
    page = comparison_page(halved, (first, half), ("a", "b"))
    option = '<span class="option">--wise</span>'
    assert page.count(f"anisotropy are from before {option}; the reach includes it.") == 1
    # it is said where such a measure is shown
    note = "note           λ_high, λ_low, equivalent α and anisotropy are from"
    assert note not in "\n".join(drawn(halved))
    lower = [{**layer, "lambda_low": 0.9} if "lambda_low" in layer else layer for layer in half["layers"]]
    assert note in "\n".join(drawn(compare_reports(first, {**half, "layers": lower})))
    by_reach = compare_reports(half, second)
    assert by_reach["before_wise"]
    assert "from before" not in comparison_page(by_reach, (half, second), ("a", "b"))
    most = halved["changed"][0]
    near, nearer = (f"{one:.3g}" for one in most["measures"]["reach"])
    assert f"They differ most in {most['name']}: its reach is {near} in a and {nearer} in b." in page
    assert "The reach is how far the output goes from the base" in page
    assert "the same in both" not in page  # none is
    there = {
        **first,
        "arguments": {**first["arguments"], "base": "models/base/", "finetuned": ["./ft"], "score": ["a"]},
    }
    here = {
        **first,
        "arguments": {**first["arguments"], "base": "models/base", "finetuned": ["ft"], "score": []},
    }
    assert compare_reports(there, here)["arguments"] == {}
    assert len(halved["changed"]) == len(base)
    for one in halved["changed"]:
        whole, half_way = one["measures"]["reach"]
        assert half_way == pytest.approx(whole / 2)


def test_a_kept_tensor_that_another_method_left_as_it_was(edits, tmp_path):
    """At α = 1, a vector is as it was kept: it is not counted as changed, and nothing is called None."""
    inputs = edits["base file"], edits["finetuned file"]
    whole = monosoup_cli.wise(*inputs, tmp_path / "whole", alpha=1, device="cpu")
    named = monosoup_cli.edit(*inputs, tmp_path / "named", exclude="*bias", device="cpu")
    for first, why in ((whole, None), (named, "excluded")):
        second = edits["edit"]
        found = compare_reports(first, second)
        assert found["action_alone"] == [{"reason": [why, "vector"], "names": ["0.bias"]}]
        assert "0.bias" not in [one["name"] for one in found["changed"]]
        assert len(found["changed"]) + found["same"] == 2
        lines = drawn(found)
        page = comparison_page(found, (first, second), ("a", "b"))
        assert "None" not in "\n".join([*lines, page])
        assert f"changed        {len(found['changed'])} tensor" in "\n".join(lines)
        assert any(line.startswith("action alone   1 tensor, ") for line in lines)
        assert "agree in all" not in page


def drawn(comparison, width=None, top=None):
    console = Console(file=io.StringIO(), width=width or 10_000, markup=False, highlight=False)
    console.print(comparison_table(comparison, width, top))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 160, None])
def test_the_table_fits_and_has_the_figures(reports, width):
    found = compare_reports(reports["default"], reports["energy"])
    lines = drawn(found, width)
    assert width is None or max(map(cell_len, lines)) <= width
    heading = re.split(r"\s{2,}", lines[0])
    by = [label_of(each["by"]) for each in found["changed"]]
    assert heading[:2] == ["tensor", "change"]
    assert set(by) <= set(heading)  # the columns by which it is sorted are there
    assert width == 80 or {"k/r", "λ_high", "λ_low"} <= set(heading)
    names = re.sub(r"  .*", "", "\n".join(lines), flags=re.M).replace("\n", "")
    for each in found["changed"]:
        assert each["name"] in names  # folded, not cut
    named = {LABELS[name]: name for name in LABELS}
    cells = [re.split(r"\s{2,}", line) for line in lines[1:] if " in " in line][: len(found["changed"])]
    for each, line, label in zip(found["changed"], cells, by, strict=True):
        assert line[1] == f"{each['change']:.3g} in {label}"
        for title, pair in zip(heading[2:], line[2:], strict=True):
            shown = [float(value) for value in pair.split(" → ")]
            assert shown == pytest.approx(each["measures"][named[title]], rel=6e-3)
    said = " ".join(lines)
    assert "matrices before vectors" in said
    if width is not None:
        left_out = re.search(r"no room for +(.*?); a wider", re.sub(r"\s{2,}", " ", said))
        left_out = left_out[1].split(", ") if left_out else []
        assert {*heading[2:], *left_out} == set(re.split(r"\s{2,}", drawn(found)[0])[2:])
    facts = [re.split(r"\s{2,}", line) for line in lines[-3:]]
    assert facts == [["energy", "not set → 0.8"], ["changed", "14 tensors"], ["no difference", "1 tensor"]]


def test_a_measure_of_a_newer_version_is_compared_by_its_name(reports):
    first, second = copy.deepcopy(reports["default"]), copy.deepcopy(reports["default"])
    for report, value in ((first, 0.25), (second, 0.75)):
        next(layer for layer in report["layers"] if layer["name"] == QUERY.format(3))["novelty"] = value
    comparison = compare_reports(first, second)
    (changed,) = comparison["changed"]
    measures = {"novelty": [0.25, 0.75]}
    assert changed == {"name": QUERY.format(3), "change": 0.5, "by": "novelty", "measures": measures}
    lines = drawn(comparison)
    assert lines[0].split() == ["tensor", "change", "novelty"]
    assert lines[1].split() == [QUERY.format(3), *["0.5", "in", "novelty", "0.25", "→", "0.75"]]


def test_no_more_layers_than_asked_for(reports):
    found = compare_reports(reports["default"], reports["energy"])
    lines = drawn(found, None, 3)
    assert [line.split()[0] for line in lines[1:4]] == [each["name"] for each in found["changed"][:3]]
    assert lines[4] == ""
    assert "changed        14 tensors (3 shown)" in lines


def test_of_the_same_report_there_is_no_table(reports):
    lines = drawn(compare_reports(reports["default"], reports["default"]), 80)
    assert lines == ["changed        0 tensors", "no difference  15 tensors"]


def test_lists_among_the_arguments_are_joined(reports):
    found = compare_reports(reports["default"], reports["without 0"])
    assert found["arguments"] == {"layer": [[], ["*.1*", "*.2.*"]]}
    assert ["layer", "none → *.1*, *.2.*"] in [re.split(r"\s{2,}", line) for line in drawn(found)]


@pytest.fixture
def files(reports, tmp_path):
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, name in zip(paths, ("default", "energy"), strict=True):
        path.write_text(json.dumps(reports[name]))
    return paths


def test_the_command_prints_the_comparison(run, reports, files):
    expected = compare_reports(reports["default"], reports["energy"])
    code, out, err = run("compare", *files, "--format", "json")
    assert (code, json.loads(out), err) == (0, json.loads(json.dumps(expected)), "")
    code, out, err = run("compare", *files, "--top", "3")
    assert (code, out.splitlines(), err) == (0, drawn(expected, None, 3), "")


def test_the_command_refuses_what_is_no_report(run, files, tmp_path):
    for order in ([files[0], tmp_path / "absent"], [tmp_path / "absent", files[0]]):
        assert run("compare", *order) == (1, "", f"error: {tmp_path / 'absent'}: no such file\n")
    assert run("compare", files[0]).code == 2
    assert run("compare", *files, "--top", "0").code == 2


def test_means_stand_side_by_side(reports):
    found = compare_reports(reports["default"], reports["energy"])["means"]
    means = [reports[name]["summary"]["means"] for name in ("default", "energy")]
    assert found["k_ratio"] == [each["k_ratio"] for each in means]
    assert found.keys() == {
        "k_ratio",
        "rho",
        "cos_alpha",
        "lambda_high",
        "lambda_low",
        "equivalent_alpha",
    } | {"anisotropy", "relative_update"}


def test_the_command_writes_a_page(run, files, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run("compare", *files, "--html", page)
    assert (code, err) == (0, f"wrote {page}\n")
    assert out == run("compare", *files).out
    assert f"{files[0]} and {files[1]} differ in 14 of the 15 tensors" in page.read_text("utf-8")
    assert run("compare", *files, "--html", tmp_path / "page.txt").code == 2
    assert not (tmp_path / "page.txt").exists()


def test_checkpoints_are_for_diff(run, files, tmp_path):
    save_file({"a": torch.eye(2)}, tmp_path / "model.safetensors")
    for given, absent in (
        (tmp_path, "monosoup_report.json"),
        (tmp_path / "model.safetensors", "model.report.json"),
    ):
        code, out, err = run("compare", given, files[1])
        assert (code, out) == (1, "")
        assert err.startswith(
            f"error: {given}: is no report, and has none ({absent}); `report` and `compare` read"
        )
        assert "`monosoup diff` compares" in err
