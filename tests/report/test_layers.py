"""The layers of a real report: chosen, sorted, grouped, drawn, and as comma-separated values."""

import csv
import io
import re
import statistics
import unicodedata

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import UsageError
from monosoup_cli.report.layers import as_csv, floor_of, hidden_note, layers_table, notes_on_table, sparkline
from monosoup_cli.report.measures import ALIASES, LABELS
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.view import View
from monosoup_cli.report.words import name_parts, shortened
from tests.cli.test_names import NAMES

EXPERTS = "model.layers.1.mlp.experts.down_proj"
BY_DEFAULT = ["layer", "k", "k/r", "cos low", "λ_high", "λ_low", "spectrum"]


def write(path, seed, names=(), blocks=3):
    normal = torch.Generator().manual_seed(seed)
    shapes = {"lm_head.weight": (24, 12), "model.embed_tokens.weight": (24, 12), "model.norm.weight": (12,)}
    for block in range(blocks):
        shapes |= {f"model.layers.{block}.self_attn.{part}_proj.weight": (12, 12) for part in "qk"}
        shapes[f"model.layers.{block}.mlp.experts.down_proj"] = (2, 12, 10)
    if names:
        shapes = dict.fromkeys(names, (6, 4))
    save_file({name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def inspect(tmp_path_factory):
    """The rows of an inspection of so many fine-tunes, with all singular values."""

    def inspect(count, names=(), blocks=3):
        folder = tmp_path_factory.mktemp("files")
        files = [write(folder / f"{seed}.safetensors", seed, names, blocks) for seed in range(count + 1)]
        report = monosoup_cli.inspect_spectrum(files[0], files[1:], values=True, device="cpu")
        return rows_of(report)

    return inspect


@pytest.fixture(scope="module")
def rows(inspect):
    return inspect(2)


@pytest.fixture
def edited(rows):
    return [row for row in rows if row["action"] == "edited"]


def names(rows):
    return [row["name"] for row in rows]


OF_OTHERS = {"alpha", "scale", "base_distance", "overlap", "factor_rank", "factor_error"}
"""Measures that the report of an edit has not."""


@pytest.mark.parametrize("measure", LABELS)
def test_every_measure_sorts_largest_first(rows, edited, measure):
    there = [row[measure] for row in edited if row.get(measure) is not None]
    lacking = names(row for row in edited if row.get(measure) is None)
    assert bool(there) == (measure not in OF_OTHERS)
    for word in {measure, measure.replace("_", "-"), LABELS[measure], ALIASES.get(measure, measure)}:
        for is_rising in (False, True):
            view = View(sort=word, reverse=is_rising)
            found = view.rows(rows)
            assert [row[measure] for row in found[: len(there)]] == sorted(there, reverse=not is_rising)
            assert names(found[len(there) :]) == lacking  # last, as in the file
            assert view.lacks(found) == (not there)


def test_groups_have_no_measures_of_one_layer(rows):
    view = View(group="kind", sort="sigma_max")
    assert names(view.rows(rows)) == names(View(group="kind").rows(rows))
    assert view.lacks(view.rows(rows))
    assert not View(group="kind").lacks(rows)
    assert not View(sort="rho").lacks([])  # nothing is shown at all
    assert [View(sort=heading).key for heading in ("equiv. α", "equivalent α", "k/r")] == [
        "equivalent_alpha",
        "equivalent_alpha",
        "k_ratio",
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_without_the_measure_come_last(rows, edited, reverse):
    some = [row if number % 2 else {**row, "rho": None} for number, row in enumerate(rows)]
    view = View(sort="rho", reverse=reverse)
    found = view.rows(some)
    assert sorted(names(found)) == sorted(names(edited))
    there = [row["rho"] is not None for row in found]
    assert there == sorted(there, reverse=True)
    assert len(set(there)) == 2
    assert not view.lacks(found)


def test_names_sort_from_a_to_z_and_their_numbers_as_numbers(inspect):
    rows = inspect(1, [f"layers.{block}.{part}" for block in (10, 1, 2, 21) for part in "ba"])
    expected = [f"layers.{block}.{part}" for block in (1, 2, 10, 21) for part in "ab"]
    assert names(View(sort="name").rows(rows)) == expected
    assert names(View(sort="name", reverse=True).rows(rows)) == expected[::-1]


def test_unasked_rows_stand_in_depth(rows, edited):
    assert View().rows(rows) == edited
    assert View(reverse=True).rows(rows) == edited[::-1]
    assert View(top=3).rows(rows) == edited[:3]
    assert View(sort="rho", top=2).rows(rows) == View(sort="rho").rows(rows)[:2]
    assert "model.norm.weight" in names(rows)
    assert "model.norm.weight" not in names(edited)  # kept


@pytest.mark.parametrize("word", ["rhos", "", "kratio", "spectrum", "k_ratio ", "shape"])
def test_an_unknown_measure_is_refused_with_those_that_are_known(word):
    with pytest.raises(UsageError) as refused:
        View(sort=word)
    assert refused.value.exit_code == 2
    assert str(refused.value).startswith("--sort ")
    for known in ("name", "k_ratio", "rho", "lambda_low", "equivalent_alpha (equiv. α)", repr(word)[1:-1]):
        assert known in str(refused.value)


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["lm_head.weight"], ["lm_head.weight"]),
        (["*1*q_proj*"], ["model.layers.1.self_attn.q_proj.weight"]),
        (["lm_*", "*.0.*k_*"], ["lm_head.weight", "model.layers.0.self_attn.k_proj.weight"]),
        ([EXPERTS], [f"{EXPERTS}[0]", f"{EXPERTS}[1]"]),
        ([f"{EXPERTS}?1]"], [f"{EXPERTS}[1]"]),
        (["*.1.*[[]0]"], [f"{EXPERTS}[0]"]),
    ],
)
def test_layers_are_chosen_by_globs_over_names(rows, globs, expected):
    assert names(View(layer=globs, sort="name").rows(rows)) == expected


@pytest.mark.parametrize("glob", ["q_proj", "LM_HEAD*", "*[[]2]"])
def test_globs_that_match_no_row_are_refused(rows, glob):
    with pytest.raises(UsageError, match="matches no tensor of the report") as refused:
        View(layer=[glob]).rows(rows)
    assert glob in str(refused.value)


def test_of_kept_tensors_alone_no_row_is_shown(rows, edited):
    view = View(layer=["model.norm.weight"])
    assert view.rows(rows) == []
    assert hidden_note(0, rows, view) == f"0 of {len(edited)} layers shown"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("kind", {"embedding": ["*embed*"], "attention": ["*attn*"], "mlp": ["*mlp*"], "head": ["lm_head*"]}),
        (
            "depth",
            {
                "outside blocks": ["lm_head*", "*embed*"],
                **{f"model.layers {block}": [f"*layers.{block}.*"] for block in range(3)},
            },
        ),
    ],
)
def test_groups_have_the_means_of_their_members(rows, group, expected):
    found = View(group=group).rows(rows)
    assert names(found) == list(expected)  # in this order
    for row in found:
        members = View(layer=expected[row["name"]]).rows(rows)
        assert row["layers"] == len(members)
        for measure in ("k_ratio", "rho", "lambda_high", "relative_update", "cosine"):
            there = [each[measure] for each in members if each.get(measure) is not None]
            assert row[measure] == pytest.approx(statistics.fmean(there))
        assert not row.keys() & {"k", "rank", "sigma_max", "update_norm"}  # of sizes that differ
        assert row["spectrum"][0] == 1.0


def test_blocks_stand_in_the_order_of_their_numbers(inspect):
    found = names(View(group="depth").rows(inspect(1, blocks=12)[::-1]))
    assert found == ["outside blocks", *(f"model.layers {block}" for block in range(12))]


def test_the_spectrum_of_a_group_is_the_mean(rows):
    (attention,) = (row for row in View(group="kind").rows(rows) if row["name"] == "attention")
    spectra = [row["spectrum"] for row in View(layer=["*attn*"]).rows(rows)]
    places = np.linspace(0, len(spectra[0]) - 1, len(attention["spectrum"])).round().astype(int)
    np.testing.assert_allclose(attention["spectrum"], np.mean(spectra, axis=0)[places], rtol=1e-12)


def test_groups_are_chosen_and_sorted_like_layers(rows):
    view = View(layer=["*attn*"], group="depth", sort="lambda-low", top=2)
    found = view.rows(rows)
    assert [row["layers"] for row in found] == [2, 2]
    assert found[0]["lambda_low"] >= found[1]["lambda_low"]
    assert hidden_note(2, rows, view) == ""


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("model.layers.10.self_attn.q_proj", 32, "model.layers.10.self_attn.q_proj"),
        ("model.layers.10.self_attn.q_proj", 31, "…10.self_attn.q_proj"),
        ("model.layers.10.self_attn.q_proj", 20, "…10.self_attn.q_proj"),
        ("model.layers.10.self_attn.q_proj", 16, "…10.sel…n.q_proj"),
        ("model.layers.0.input_layernorm", 16, "…0.inpu…ayernorm"),
        ("model.layers.0.post_attention_layernorm", 16, "…0.post…ayernorm"),
        ("model.layers.10.self_attn.q_proj", 8, "….q_proj"),
        ("10.self_attn.q_proj", 12, "10.se…q_proj"),
        ("model.embed_tokens", 10, "…ed_tokens"),
        ("層.10.重み重み", 9, "…10.…重み"),
    ],
)
def test_a_name_that_is_too_wide_keeps_its_block_and_both_ends(name, width, expected):
    assert shortened(name, width) == expected
    assert cell_len(expected) <= width


def test_the_parts_of_a_name_are_the_name():
    for name in [
        *(name for name, _ in NAMES.values()),
        EXPERTS,
        f"{EXPERTS}[1]",
        "a.0.b.1.weight",
        ".weight",
        "1.",
    ]:
        assert "".join(name_parts(name)) == name
    assert name_parts(f"{EXPERTS}[1]") == ("model.layers.", "1.", "mlp.experts.", "down_proj[1]", "")


def test_a_sparkline_has_a_bar_for_every_height():
    steps = [0.01 ** (step / 7) for step in range(8)]
    assert sparkline(steps, 8, 0.01) == "█▇▆▅▄▃▂▁"  # on a log scale
    assert sparkline([1.0, 0.1, 0.0], 3, 0.01) == "█▅▁"
    assert sparkline([1.0, 0.0], 4, 0.1) == "██▁▁"
    assert sparkline([1.0], 5, 0.5) == "█████"
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 0.9, 0.2], 1) == "█"


@pytest.mark.parametrize(
    ("ends", "floor"),
    [
        ([0.6], 0.5),
        ([0.5], 0.5),
        ([0.49], 0.2),
        ([0.03], 0.02),
        ([0.0], 1e-4),
        ([], 1e-4),
        ([0.6, 0.15, 0.0], 0.1),
    ],
)
def test_the_scale_of_sparklines_follows_the_spectra(ends, floor):
    """Half of them fall to its end, or nearly; what rounding leaves in the last tenth does not count."""
    spectra = [[*np.linspace(1.0, end, 85), *[end] * 5, *[1e-9] * 9] for end in ends]
    assert floor_of(spectra) == floor
    if ends and min(ends) > 0.0:
        assert len(set(sparkline(spectra[0], 24, floor))) > 3  # not flat


def test_the_scale_is_said(rows):
    shown = View().rows(rows)
    scale = notes_on_table(shown, None)[0]
    floor = float(
        re.fullmatch(r"spectrum: σ_i/σ_1 on a log scale, from 1 \(█\) down to (\S+) \(▁\)", scale)[1]
    )
    for line, row in zip(drawn(shown, None)[1:], shown, strict=True):
        assert line.endswith(sparkline(row["spectrum"], 24, floor))


ENDS = "names are shown without .weight"


def test_what_has_no_room_is_said(rows):
    """The columns of the table and those that it says it leaves out are all columns; so are ends of names."""
    shown = View().rows(rows)
    every = set(columns(drawn(shown, None)[0]))
    for width in (80, 120, 500):
        there = set(columns(drawn(shown, width)[0]))
        note, *ends = notes_on_table(shown, width)[1:] or [""]
        missing = set(filter(None, note.removeprefix("no room for: ").partition(";")[0].split(", ")))
        assert there | missing == every
        assert not there & missing
        has_ends = any(columns(line)[0].endswith(".weight") for line in drawn(shown, width)[1:])
        assert has_ends == (ends == []) == (width > 80)
        assert {*ends} <= {ENDS}
    assert missing == set()
    assert len(notes_on_table(shown, None)) == 1


def test_what_a_sentence_is_about_stays(inspect):
    """Names give way to the columns that a sentence is about, but not below half of what they have."""
    shown = View().rows(inspect(1, blocks=10))
    label = "‖Δ‖/‖W0‖"
    assert label not in columns(drawn(shown, 80)[0])
    assert label in columns(layers_table(shown, 80, ["relative_update"]).splitlines()[0])
    assert label not in " ".join(notes_on_table(shown, 80, ["relative_update"]))
    names = [columns(line)[0] for line in layers_table(shown, 80, ["relative_update"]).splitlines()]
    assert len(set(names)) == len(names)
    assert "…7.mlp.ex…s.down_proj[1]" in names


def test_what_is_not_shown_is_said(rows, edited):
    assert hidden_note(len(edited), rows, View()) == ""
    assert hidden_note(1, rows, View(top=1)) == f"1 of {len(edited)} layers shown"


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_comma_separated_values_are_the_reports_numbers(rows, edited):
    found = read_csv(as_csv(edited))
    assert names(found) == names(edited)
    for line, row in zip(found, edited, strict=True):
        assert [int(size) for size in line["shape"].split()] == row["shape"]
        assert (line["kind"], line["dtype"]) == (row["kind"], row["dtype"])
        assert line["block"] == ("" if row["block"] is None else str(row["block"]))
        for measure in [*LABELS, "rounding_sigma", "rounding_share", "gap_above_rounding"]:
            if row.get(measure) is None:
                assert line.get(measure, "") == ""
            else:
                assert float(line[measure]) == row[measure]  # to the last bit
        values = [float(value) for value in line["singular_values"].split()]
        assert values == row["singular_values"]
        assert len(values) == row["rank"]


def test_no_rows_are_a_line_of_names():
    facts = ["name", "kind", "stack", "block", "part", "shape", "dtype"]
    assert as_csv([]) == ",".join([*facts, *LABELS]) + "\n"


def test_groups_as_comma_separated_values(rows):
    found = View(group="kind").rows(rows)
    lines = read_csv(as_csv(found))
    assert [(line["name"], int(line["layers"])) for line in lines] == [
        (row["name"], row["layers"]) for row in found
    ]
    assert [float(line["rho"]) for line in lines] == [row["rho"] for row in found]


def test_hostile_names_are_one_field_that_drives_no_terminal(inspect):
    hostile = [*(name for name, _ in NAMES.values()), 'a,"b"\n=1+1', "'", ","]
    rows = inspect(1, hostile)
    text = as_csv(rows)
    assert len(read_csv(text)) == text.count("\n") - 1 == len(hostile)
    assert not [char for char in text if char != "\n" and unicodedata.category(char) in {"Cc", "Cf", "Zl"}]
    found = set(names(read_csv(text)))
    assert {"", ",", "blocks[attn].weight", "блок.重み", "long." * 2000} <= found  # in full


def drawn(rows, width):
    return layers_table(rows, width).splitlines()


def columns(heading):
    return re.split(r"\s{2,}", heading.strip())


@pytest.mark.parametrize("width", [80, 100, 120, 160, 240])
def test_a_terminal_gets_what_fits(inspect, width):
    rows = View().rows(inspect(1, blocks=10))
    lines = drawn(rows, width)
    assert len(lines) == len(rows) + 1
    assert max(map(cell_len, lines)) <= width
    assert columns(lines[0])[0] == "layer"
    assert set(BY_DEFAULT) <= set(columns(lines[0]))
    labels = {columns(line)[0] for line in lines}
    assert len(labels) == len(lines)  # told apart, though shortened
    assert ("ρ" in columns(lines[0])) == (width >= 100)
    if width >= 160:
        wanted = {"shape", "r", "eff. rank", "k", "energy", "equiv. α", "anisotropy", "‖Δ‖/‖W0‖"}
        assert wanted <= set(columns(lines[0]))
        assert "model.layers.7.mlp.experts.down_proj[1]" in labels
    for line in lines[1:]:  # names are shortened, never numbers
        cells = dict(zip(columns(lines[0]), columns(line), strict=True))
        assert all(float(cells[label]) >= 0 for label in BY_DEFAULT[1:-1])


def test_80_columns_have_k(inspect):
    """However long the names, and however large the ranks."""
    rows = inspect(1, [f"model.{'very.' * 40}long.layers.{block}.weight" for block in range(3)])
    large = [{**row, "k": 12_345, "rank": 28_672, "rho": 1.23e-05, "sigma_max": 1.2e-05} for row in rows]
    shown = drawn(View().rows(large), 80)
    assert "k" in columns(shown[0])
    assert max(map(cell_len, shown)) <= 80


def test_a_pipe_gets_everything(inspect):
    name = f"model.layers.0.{'very.' * 40}long.weight"
    rows = inspect(1, [name, f"{name}.b"])
    lines = drawn(rows, None)
    assert lines[1].startswith(f"{name}  ")
    labels = {"effective_rank": "eff. rank", "energy_high": "energy", "equivalent_alpha": "equiv. α"}
    measured = [labels.get(each, LABELS[each]) for each in LABELS if rows[0].get(each) is not None]
    assert columns(lines[0]) == ["layer", "kind", "shape", *measured, "spectrum"]
    assert len(re.search("[▁▂▃▄▅▆▇█]+$", lines[1])[0]) == 24


def test_cells_are_the_reports_numbers(inspect):
    edited = View().rows(inspect(1))  # of one fine-tune: no cell is empty
    lines = drawn(edited, None)
    for line, row in zip(lines[1:], edited, strict=True):
        cells = dict(zip(columns(lines[0]), columns(line), strict=True))
        assert cells["layer"] == row["name"]
        assert cells["k"] == str(row["k"])
        assert cells["shape"].replace(" ", "") == "×".join(map(str, row["shape"]))
        for label, measure in (("λ_high", "lambda_high"), ("ρ", "rho"), ("‖Δ‖/‖W0‖", "relative_update")):
            assert float(cells[label]) == pytest.approx(row[measure], rel=6e-3)


def test_a_table_of_nothing_and_one_without_spectra():
    assert drawn([], 80) == ["layer"]
    assert drawn([{"name": "a", "scale": 0.25}], 80)[1].split() == ["a", "0.25"]


@pytest.mark.parametrize("width", [None, 400])
def test_a_measure_of_a_newer_version_is_shown_by_its_name(edited, width):
    newer = [{**row, "novelty": number / 4, "remark": "none"} for number, row in enumerate(edited)]
    lines = drawn(newer, width)
    assert columns(lines[0])[-2:] == ["novelty", "spectrum"]
    values = [columns(line)[-2] for line in lines[1:]]
    assert values == [f"{number / 4:.3g}" for number in range(len(edited))]
    assert "remark" not in lines[0]
    table = list(csv.DictReader(io.StringIO(as_csv(newer))))
    assert [float(row["novelty"]) for row in table] == [row["novelty"] for row in newer]
    assert "remark" not in table[0]


def test_a_narrow_terminal_leaves_out_unknown_measures_first(edited):
    newer = [{**row, "novelty": 0.25} for row in edited]
    assert drawn(newer, 80) == drawn(edited, 80)


def test_the_name_of_an_unknown_measure_drives_no_terminal(edited):
    newer = [{**row, "a\x1b[2J\nb": 0.25} for row in edited]
    for text in (layers_table(newer, None), as_csv(newer)):
        assert "\x1b" not in text
        assert text.count("\n") == 1 + len(edited)
        assert "a\\x1b[2J\\x0ab" in text
