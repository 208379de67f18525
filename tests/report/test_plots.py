"""monosoup_cli.report.plots: what is drawn is what the report says, and the file is whole or absent."""

import copy
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import MonosoupError, OutputError, ReportError, UsageError
from monosoup_cli.report.charts import draw_chart
from monosoup_cli.report.plots import check_plot, figure, plot
from monosoup_cli.report.scored import Chart, Curve

HOSTILE = "a.$x^{_$.\\frac{\x1b[31m\n注意\u202e<&>_"
RUNS = {
    "edit": {},
    "edit to several": {"energy": [0.5, 0.8]},
    "stock": {},
    "soup": {},
    "wise": {"alpha": 0.3},
    "lines": {"alpha": 0.5, "beta": 0.5},
}


def tensors(seed, blocks=11):
    """In float64, so that the update of a file is exact enough for numpy to repeat its singular values."""
    normal = torch.Generator().manual_seed(seed)
    shapes = {"model.embed.weight": (40, 12), "model.norm.weight": (12,), "lm_head.weight": (100, 80)}
    for block in range(blocks):
        shapes[f"model.layers.{block}.attn.q.weight"] = (12, 12)
        shapes[f"model.layers.{block}.mlp.experts"] = (2, 20, 12)
        if block % 2:
            shapes[f"model.layers.{block}.attn.extra.weight"] = (12, 9)
    return {name: torch.randn(shape, generator=normal, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("base", "first", "second")):
        save_file(tensors(seed), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def reports(files):
    base, *finetuned = (files / f"{name}.safetensors" for name in ("base", "first", "second"))
    found = {}
    for name, options in RUNS.items():
        command = name.split()[0]
        inputs = [base] * (command != "soup") + [finetuned if command in ("stock", "soup") else finetuned[0]]
        found[name] = getattr(monosoup_cli, command)(*inputs, files / name, device="cpu", **options)
    cosines = np.random.default_rng(0).uniform(-0.2, 0.9, (len(found["edit"]["layers"]), 3)).tolist()
    several = found["edit with cosines"] = copy.deepcopy(found["edit"])
    for layer, three in zip(several["layers"], cosines, strict=True):
        layer["cosines"] = three if layer["action"] == "edited" else None
    return found


@pytest.fixture
def report(reports):
    return copy.deepcopy(reports["edit"])


def edit(folder, base, finetuned):
    save_file(base, folder / "base.safetensors")
    save_file(finetuned, folder / "finetuned.safetensors")
    return monosoup_cli.edit(
        folder / "base.safetensors", folder / "finetuned.safetensors", folder / "out", device="cpu"
    )


def panels(report):
    """The axes of every panel, by title."""
    return {axes.get_title(loc="left"): axes for axes in figure(report).axes if axes.get_title(loc="left")}


def panel(report, start):
    (axes,) = (axes for title, axes in panels(report).items() if title.startswith(start))
    return axes


def data(line):
    return tuple(np.asarray(values) for values in line.get_data())


def layers_of(report):
    return {layer["name"]: layer for layer in report["layers"]}


def only(report, *names):
    return {**report, "layers": [layers_of(report)[name] for name in names]}


def texts(path):
    return [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(
    ("suffix", "start", "end"),
    [
        ("png", b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
        ("svg", b"<?xml", b"</svg>"),
        ("pdf", b"%PDF-", b"%%EOF"),
    ],
)
def test_the_file_is_what_its_suffix_says(report, tmp_path, suffix, start, end):
    path = tmp_path / f"picture.{suffix.upper()}"
    plot(report, path)
    content = path.read_bytes()
    assert content.startswith(start)
    assert content.rstrip().endswith(end)
    assert len(content) > 10_000
    if suffix == "png":  # width and height, at 200 dpi
        size = [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)]
        assert size == pytest.approx([200 * inches for inches in figure(report).get_size_inches()], abs=1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_report_makes_the_same_bytes(report, files, tmp_path, suffix):
    here = tmp_path / f"here.{suffix}"
    # settings of the user's that would show, and a picture to replace
    plot(json.loads((files / "stock" / "monosoup_report.json").read_text()), here)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": None}):
        plot(report, here)
    script = (
        "import json, sys; from pathlib import Path; from monosoup_cli.report.plots import plot;"
        "plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    stored = files / "edit" / "monosoup_report.json"
    for seed in ("1", "2"):
        there = tmp_path / f"{seed}.{suffix}"
        subprocess.run(
            [sys.executable, "-c", script, stored, there],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed},
        )
        assert there.read_bytes() == here.read_bytes()


def test_threads_draw_the_same_and_leave_the_settings(report, tmp_path):
    before = dict(matplotlib.rcParams)
    paths = [tmp_path / f"{number}.svg" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda path: plot(report, path), paths))
    assert len({path.read_bytes() for path in paths}) == 1
    assert dict(matplotlib.rcParams) == before


SPECTRA = "Singular values of the update, 6 of 40 layers"
COEFFICIENTS = "λ_high and λ_low over depth, 40 layers"
HEAT_MAP = "k / r by block, model.layers"


# 11 blocks with a matrix and a stack of two, 5 with another, embedding and head; vectors too in stock, lines
@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("edit", [SPECTRA, COEFFICIENTS, HEAT_MAP]),
        ("edit with cosines", [SPECTRA, COEFFICIENTS, HEAT_MAP, "Cosines of updates, 29 layers × 3 pairs"]),
        ("stock", ["ratio over depth, 30 layers"]),
        ("lines", ["scale over depth, 30 layers"]),
    ],
)
def test_a_report_has_the_panels_that_it_has_data_for(reports, tmp_path, name, titles):
    plot(reports[name], tmp_path / "picture.svg")
    found = texts(tmp_path / "picture.svg")
    assert [text for text in found if text in titles] == titles
    assert list(panels(reports[name])) == titles


def test_scores_of_a_sweep_over_what_was_swept_and_against_each_other(reports):
    report = copy.deepcopy(reports["edit to several"])
    expected = {0.5: (3.0, 7.0), 0.8: (4.0, 5.0)}
    for output, scores in zip(report["outputs"], expected.values(), strict=True):
        output["scores"] = dict(zip(("in", "out"), scores, strict=True))
    assert list(panels(report)) == ["in over R", "out over R", "out against in"]
    for number, name in enumerate(("in", "out")):
        axes = panel(report, f"{name} over R")
        ((x, y),) = (data(line) for line in axes.lines)
        assert dict(zip(x, y, strict=True)) == {at: scores[number] for at, scores in expected.items()}
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("R", name)
    ((x, y),) = (data(line) for line in panel(report, "out against in").lines)
    assert list(zip(x, y, strict=True)) == list(expected.values())


def test_points_that_are_the_same_all_show():
    """As many curves as a search has: none looks as another, and none covers one below it."""
    from matplotlib.figure import Figure

    curves = [Curve(f"method {number}", [(0.5, 0.5)], is_line=False) for number in range(7)]
    draw_chart(whole := Figure().subfigures(1, 1), Chart("out against in", "in", "out", curves))
    lines = whole.axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 7
    assert {line.get_markerfacecolor() for line in lines} == {"none"}
    sizes = [line.get_markersize() for line in lines]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", ["soup", "wise", "edit to several"])
def test_a_report_without_anything_to_draw_is_refused(reports, tmp_path, name):
    with pytest.raises(ReportError, match="to draw"):
        plot(reports[name], tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_edited_nothing_is_refused(tmp_path):
    report = edit(tmp_path, {"matrix": torch.eye(3)}, {"matrix": torch.eye(3)})
    with pytest.raises(ReportError, match="nothing to draw"):
        figure(report)


def test_the_curves_are_the_singular_values_with_k_on_them(report, files):
    names = ["model.layers.1.attn.q.weight", "model.layers.1.attn.extra.weight"]
    base, finetuned = (load_file(files / f"{name}.safetensors") for name in ("base", "first"))
    axes = panel(only(report, *names), "Singular values")
    assert axes.get_xlabel() == "i / r"
    assert axes.get_yscale() == "log"
    for number, name in enumerate(names):
        expected = np.linalg.svd((finetuned[name] - base[name]).numpy(), compute_uv=False)
        x, y = data(axes.lines[2 * number])
        assert x == pytest.approx(np.arange(1, len(expected) + 1) / len(expected))
        assert y == pytest.approx(expected, rel=1e-6)
        k = layers_of(report)[name]["k"]
        x, y = data(axes.lines[2 * number + 1])
        assert x == pytest.approx([k / len(expected)])
        assert y == pytest.approx([expected[k - 1]], rel=1e-6)
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"k = {layers_of(report)[name]['k']} of {rank}   {name.removesuffix('.weight')}"
        for name, rank in zip(names, (12, 9), strict=True)
    ]


def test_quantiles_stand_where_they_were_taken(report, files):
    base, finetuned = (load_file(files / f"{name}.safetensors") for name in ("base", "first"))
    expected = np.linalg.svd((finetuned["lm_head.weight"] - base["lm_head.weight"]).numpy(), compute_uv=False)
    axes = panel(only(report, "lm_head.weight"), "Singular values")
    curve, marker = axes.lines
    x, y = data(curve)
    assert axes.get_xlabel().startswith("i (lines join the 64 values")
    assert (len(x), x[0], x[-1]) == (64, 1, 80)
    assert y == pytest.approx(expected[x.astype(int) - 1], rel=1e-6)
    (k,), (height,) = data(marker)
    assert k == layers_of(report)["lm_head.weight"]["k"]
    assert expected[int(k)] * 0.99 < height < expected[int(k) - 2] * 1.01


def test_all_singular_values_are_drawn_where_the_report_has_them(report):
    only_one = only(report, "lm_head.weight")
    values = np.geomspace(3, 1e-3, 80).tolist()
    only_one["layers"][0] |= {"singular_values": values, "sigma_max": 3.0, "k": 20}
    axes = panel(only_one, "Singular values")
    curve, marker = map(data, axes.lines)
    assert axes.get_xlabel() == "i"
    assert [part.tolist() for part in curve] == [list(range(1, 81)), values]
    assert marker[1] == pytest.approx([values[19]])


@pytest.mark.parametrize("k", [2, 5])
def test_zeros_and_noise_leave_the_scale_readable(report, tmp_path, k):
    only_one = only(report, "model.layers.1.attn.q.weight")
    values = [2.0, 1.0, 0.5, 1e-30] + [0.0] * 8
    only_one["layers"][0] |= {"singular_values": values, "sigma_max": 2.0, "k": k, "rounding_sigma": 1e-3}
    axes = panel(only_one, "Singular values")
    bottom, top = axes.get_ylim()
    assert 1e-9 < bottom <= 2e-8
    assert 2 < top < 20
    curve, (_, (height,)), noise = map(data, axes.lines)
    assert curve[1].tolist() == values
    assert height == pytest.approx(1.0) if k == 2 else height >= bottom
    assert noise[1].tolist() == [1e-3, 1e-3]
    assert "rounding" in axes.figure.legends[0].get_texts()[-1].get_text()
    plot(only_one, tmp_path / "picture.png")


def test_noise_far_below_does_not_squeeze_the_curves(report):
    only_one = only(report, "model.layers.1.attn.q.weight")
    only_one["layers"][0] |= {
        "singular_values": np.geomspace(2, 1, 12).tolist(),
        "sigma_max": 2.0,
        "rounding_sigma": 1e-9,
    }
    axes = panel(only_one, "Singular values")
    assert 1e-3 < axes.get_ylim()[0] < 1
    assert axes.figure.legends[0].get_texts()[-1].get_text().endswith("(below the axis)")


def test_the_layers_drawn_are_spread_over_depth_and_kinds(report):
    texts = panel(report, "Singular values").figure.legends[0].get_texts()
    names = [text.get_text().split("   ")[1] for text in texts]
    assert len(set(names)) == 6
    assert names[0] == "model.embed"
    assert names[-1] == "lm_head"
    blocks = [int(name.split(".")[2]) for name in names[1:-1]]
    assert blocks == sorted(blocks)
    assert blocks[-1] - blocks[0] >= 4
    assert {"attn" in name for name in names[1:-1]} == {True, False}


def test_coefficients_stand_in_the_order_of_depth(report):
    """The file has block 10 before block 2, and the head before the embedding."""
    rows = {"model.embed.weight": 1, "lm_head.weight": 1}
    in_file = [layer["name"] for layer in report["layers"]]
    assert in_file.index("model.layers.10.attn.q.weight") < in_file.index("model.layers.2.attn.q.weight")
    expected, starts = [layers_of(report)["model.embed.weight"]], []
    for block in range(11):
        starts.append(len(expected))
        for name in in_file:
            if name.startswith(f"model.layers.{block}."):
                expected += layers_of(report)[name].get("slices", [layers_of(report)[name]])
    expected.append(layers_of(report)["lm_head.weight"])
    assert len(expected) == 38 + len(rows)

    axes = panel(report, "λ_high")
    for line, measure in zip(axes.lines, ("lambda_high", "lambda_low"), strict=True):
        x, y = data(line)
        assert x.tolist() == list(range(40))
        assert y.tolist() == [row[measure] for row in expected]
    assert axes.get_xticks().tolist() == starts
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(block) for block in range(11)]
    low, high = axes.get_ylim()
    assert low < 0 < 1 < high
    (shade,) = axes.collections
    assert shade.get_datalim(axes.transData).height == pytest.approx(
        max(row["lambda_high"] for row in expected) - min(row["lambda_low"] for row in expected)
    )


@pytest.mark.parametrize("blocks", [60, 200])
def test_ticks_stay_few(tmp_path, blocks):
    base = {f"h.{block}.w": torch.zeros(2, 2) for block in range(blocks)}
    report = edit(tmp_path, base, {name: torch.eye(2) for name in base})
    ticks = panel(report, "λ_high").get_xticks()
    assert 6 < len(ticks) <= 15
    assert ticks.tolist() == list(range(0, blocks, int(ticks[1])))


@pytest.mark.parametrize(("name", "measure"), [("stock", "ratio"), ("lines", "scale")])
def test_other_commands_have_their_measure_over_depth(reports, name, measure):
    (line,) = panel(reports[name], f"{measure} over depth").lines
    values = {layer["name"]: layer[measure] for layer in reports[name]["layers"]}
    assert sorted(data(line)[1]) == sorted(values.values())
    in_blocks = [values[f"model.layers.{block}.attn.q.weight"] for block in range(11)]
    drawn = iter(data(line)[1])
    assert all(value in drawn for value in in_blocks)


def test_the_heat_map_has_means_of_k_over_r(report):
    axes = panel(report, HEAT_MAP)
    columns = [label.get_text() for label in axes.get_xticklabels()]
    assert sorted(columns) == ["attn.extra", "attn.q", "mlp.experts"]
    (mesh,) = axes.collections
    cells = mesh.get_array()
    assert cells.shape == (11, 3)
    for block in range(11):
        for number, column in enumerate(columns):
            names = (f"model.layers.{block}.{column}", f"model.layers.{block}.{column}.weight")
            found = [layer for layer in report["layers"] if layer["name"] in names]
            if not found:
                assert cells.mask[block, number]
                continue
            slices = found[0].get("slices", found)
            assert cells[block, number] == pytest.approx(
                sum(row["k"] / row["rank"] for row in slices) / len(slices)
            )
    assert mesh.get_clim() == (0, 1)
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "part of the block; hatched: not edited; not shown: 2 layers elsewhere"


def test_many_parts_are_put_together_by_kind(tmp_path):
    names = [f"h.{block}.mlp.up{part}" for block in range(2) for part in range(16)]
    names += [f"h.{block}.attn.q" for block in range(2)]
    base = {name: torch.zeros(2, 2) for name in names}
    report = edit(tmp_path, base, {name: torch.eye(2) for name in names})
    assert [label.get_text() for label in panel(report, "k / r").get_xticklabels()] == ["attention", "mlp"]


def test_stacks_are_shown_apart(tmp_path):
    names = [f"encoder.block.{block}.w.q" for block in range(3)]
    names += [f"decoder.block.{block}.w.q" for block in range(4)]
    base = {name: torch.zeros(2, 2) for name in names}
    report = edit(tmp_path, base, {name: torch.eye(2) for name in names})
    found = panels(report)
    for stack, blocks in (("encoder.block", 3), ("decoder.block", 4)):
        assert found[f"k / r by block, {stack}"].collections[0].get_array().shape == (blocks, 1)
    over_depth = panel(report, "λ_high")
    assert [text.get_text() for text in over_depth.texts] == ["encoder.block", "decoder.block"]
    assert [label.get_text() for label in over_depth.get_xticklabels()] == list("0120123")


def test_the_histogram_counts_the_cosines(reports):
    several = reports["edit with cosines"]
    cosines = []
    for layer in several["layers"]:
        cosines += layer["cosines"] or []
    axes = panel(several, "Cosines")
    expected, edges = np.histogram(cosines, 40, range=(-1, 1))
    assert [bar.get_height() for bar in axes.patches] == expected.tolist()
    assert [bar.get_x() for bar in axes.patches] == pytest.approx(edges[:-1])
    (mean,) = axes.lines
    assert mean.get_xdata() == pytest.approx([np.mean(cosines)] * 2)
    assert axes.get_legend().get_texts()[0].get_text() == f"mean {np.mean(cosines):.3f}"


def test_cosines_that_are_all_one_stay_inside_the_axis(report):
    for layer in report["layers"]:
        layer["cosines"] = [1.0, None] if layer["action"] == "edited" else None
    axes = panel(report, "Cosines")
    assert sum(bar.get_height() for bar in axes.patches) == 29
    assert axes.get_xlim()[1] == 1


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_hostile_names_are_drawn_as_they_are_shown(tmp_path, suffix):
    names = [f"{HOSTILE}.{block}.{HOSTILE}" for block in range(2)]
    names += ["_hidden", "$\\undefined$", "x" * 500]
    base = {name: torch.zeros(4, 4) for name in names}
    report = edit(tmp_path, base, {name: torch.eye(4) for name in names})
    path = tmp_path / f"picture.{suffix}"
    plot(report, path)  # warnings, as for a glyph that the font lacks, are errors
    if suffix == "svg":
        found = texts(path)
        assert "k = 4 of 4   _hidden" in found
        assert "k = 4 of 4   $\\undefined$" in found
        assert "a.$x^{_$.\\fr…10f\\u202e<&>_" in found
        assert "k / r by block, a.$x^{_$.\\frac…u610f\\u202e<&>_" in found
        assert "k = 4 of 4   a.$x^{_$.\\frac{\\x1b[3…\\u6ce8\\u610f\\u202e<&>_" in found
        assert any(text.count("x") == 43 and "…" in text for text in found)


def test_a_failure_leaves_what_was_there(report, tmp_path):
    taken = tmp_path / "taken.png"
    taken.mkdir()
    with pytest.raises(OutputError, match="is a folder") as caught:
        plot(report, taken)
    assert caught.value.path == str(taken)
    assert list(tmp_path.iterdir()) == [taken]
    assert list(taken.iterdir()) == []


def test_what_stops_the_drawing_leaves_what_was_there(report, tmp_path):
    path = tmp_path / "picture.png"
    plot(report, path)
    old = path.read_bytes()
    report["layers"][0]["spectrum"] = "not numbers"
    with pytest.raises(TypeError):
        plot(report, path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_of_another_program_stays(report, tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    figure(report).savefig(path)
    old = path.read_bytes()
    for refused in (lambda path: plot(report, path), check_plot):
        with pytest.raises(OutputError, match="does not say that monosoup wrote it") as caught:
            refused(path)
        assert caught.value.hint == f"remove it, or give another name: {tmp_path / f'mine-2.{suffix}'}"
    assert path.read_bytes() == old


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "png"])
def test_another_suffix_is_refused(report, tmp_path, name):
    for refused in (lambda path: plot(report, path), check_plot):
        with pytest.raises(UsageError, match=r"expected \.png, \.svg, \.pdf") as caught:
            refused(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="folder does not exist"):
        check_plot(tmp_path / "absent" / "picture.png")
    check_plot(tmp_path / "picture.png")
    check_plot(Path("picture.png"))


def test_a_missing_matplotlib_is_said(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for refused in (lambda path: plot(report, path), check_plot):
        with pytest.raises(MonosoupError) as caught:
            refused(tmp_path / "picture.png")
        assert caught.value.hint == "pip install 'monosoup[plot]'"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_loads_nothing_heavy():
    script = (
        "import sys, monosoup_cli.report.plots; print({'matplotlib', 'numpy', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_pictures_need_no_display_and_no_pyplot(files, tmp_path):
    script = (
        "import json, sys; from pathlib import Path; from monosoup_cli.report.plots import plot;"
        "plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    result = subprocess.run(
        [sys.executable, "-c", script, files / "edit" / "monosoup_report.json", tmp_path / "picture.png"],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "MPLBACKEND": "tkagg"},
    )
    assert result.stdout == "False\n"
