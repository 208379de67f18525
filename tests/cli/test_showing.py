"""What `inspect-spectrum`, `report` and `compare` show: in a terminal, in a pipe, and as data."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import unicodedata

import jsonschema
import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.cli.console import Console
from monosoup_cli.errors import OutputError
from monosoup_cli.report.comparison import compare_reports
from monosoup_cli.report.grid import aligned, grid
from monosoup_cli.report.layers import as_csv
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.tables import MAX_FOLDED_ROWS
from tests.cli.test_app import SCHEMA
from tests.cli.test_names import NAMES, printed

MONOSOUP = [sys.executable, "-m", "monosoup_cli"]
ALWAYS = ["k", "k/r", "λ_high", "λ_low"]
TOLD = ["equiv. α", "‖Δ‖/‖W0‖"]
"""What the sentences below the table are about."""
WIDE = ["cos low", "shape", "r", "eff. rank", "ρ", "energy", "equiv. α", "anisotropy", "‖Δ‖/‖W0‖"]
PIPED = ["kind", "σ_1", "‖Δ‖", "k entropy", "k energy-entropy", "k noise", "above rounding"]
PIPE_BUFFER = 1 << 16


def write(path, seed, blocks):
    normal = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (24, 12), "model.norm.weight": (12,), "lm_head.weight": (24, 12)}
    for block in range(blocks):
        layer = f"model.layers.{block}"
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (12, 12) for part in "qkvo"}
        shapes[f"{layer}.mlp.experts.down_proj"] = (2, 12, 10)
    save_file({name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("showing")


@pytest.fixture(scope="module")
def files(folder):
    """A base and two fine-tunes, of four blocks."""
    return [write(folder / f"{seed}.safetensors", seed, 4) for seed in range(3)]


@pytest.fixture(scope="module")
def reports(files, folder):
    """Paths of real reports, by command."""
    base, *finetuned = files
    options = {"device": "cpu"}
    made = {
        "inspect": monosoup_cli.inspect_spectrum(base, finetuned[0], **options),
        "inspect several": monosoup_cli.inspect_spectrum(base, finetuned, **options),
        "energy": monosoup_cli.inspect_spectrum(base, finetuned[0], energy=0.8, **options),
        "edit": monosoup_cli.edit(base, finetuned[0], folder / "edit", **options),
        "stock": monosoup_cli.stock(base, finetuned, folder / "stock", **options),
        "soup": monosoup_cli.soup(finetuned, folder / "soup", **options),
        "sfgs": monosoup_cli.sfgs(base, finetuned, folder / "sfgs", threshold=-1, **options),
        "wise": monosoup_cli.wise(base, finetuned[0], folder / "wise", alpha=0.5, **options),
        "lines": monosoup_cli.lines(base, finetuned[0], folder / "lines", alpha=0.3, beta=0.7, **options),
    }
    for name, report in made.items():
        (folder / f"{name}.json").write_text(json.dumps(report))
    return {name: folder / f"{name}.json" for name in made}


@pytest.fixture(scope="module")
def large(folder):
    """The report of so many layers that no form of it fits into a pipe."""
    files = [write(folder / f"large-{seed}.safetensors", seed, 70) for seed in range(2)]
    report = monosoup_cli.inspect_spectrum(*files, values=True, device="cpu")
    (folder / "large.json").write_text(json.dumps(report))
    return folder / "large.json"


def columns(line):
    return re.split(r"\s{2,}", line.strip())


def in_a_terminal(command, width, environment=None):
    """(exit code, what a terminal of this width was sent on stdout, stderr)."""
    terminal, stdout = pty.openpty()
    fcntl.ioctl(stdout, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [*MONOSOUP, *map(str, command)],
        stdin=stdout,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**inherited, "TERM": "xterm-256color", **(environment or {})},
    )
    os.close(stdout)
    seen = b""
    while True:
        try:
            part = os.read(terminal, PIPE_BUFFER)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    error = process.communicate(timeout=60)[1]
    return process.returncode, seen.decode().replace("\r\n", "\n"), error.decode()


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_shows_what_fits(files, width):
    code, seen, err = in_a_terminal(["inspect-spectrum", *files[:2]], width)
    assert (code, err) == (0, "")
    lines = without_codes(seen).splitlines()
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= width
    heading, *table = lines[: lines.index("")]
    found = columns(heading)
    assert found[0] == "layer"
    assert [column for column in found if column in ALWAYS] == ALWAYS
    assert set(TOLD) <= set(found)
    assert found[-1] == "spectrum"
    assert set(WIDE) <= set(found) or width == 80
    assert len(table) == 2 + 4 * 6
    assert len({columns(line)[0] for line in table}) == len(table)  # told apart
    assert all(re.search("█[▁▂▃▄▅▆▇█]{7,}$", line.rstrip()) for line in table)
    text = " ".join(" ".join(lines).split())
    for fact in ("layers 22 tensors", "others vector 1", f"base {files[0]}"[:40], "of ‖Δ‖", "mean min max"):
        assert fact in text


def test_a_terminal_may_know_no_codes(reports):
    code, seen, err = in_a_terminal(["report", reports["inspect"]], 80, {"TERM": "dumb"})
    assert (code, err) == (0, "")
    assert "\x1b" not in seen
    assert seen.startswith("layer  ")


def test_no_color_is_no_code(reports):
    for command in (["report", reports["inspect"]], ["compare", reports["inspect"], reports["energy"]]):
        code, seen, err = in_a_terminal(command, 80, {"NO_COLOR": "1"})
        assert (code, err) == (0, "")
        assert "\x1b" not in seen


@pytest.mark.parametrize(("width", "expected"), [(40, ["k/r", "λ_high", "λ_low"]), (76, [*ALWAYS, *TOLD])])
def test_a_narrow_terminal_shows_numbers_in_full(reports, width, expected):
    _, seen, _ = in_a_terminal(["report", reports["inspect"]], width)
    heading, *table = seen[: seen.index("\n\n")].splitlines()
    assert columns(heading) == ["layer", *expected, "spectrum"]
    assert max(map(len, [heading, *table])) <= width
    assert not any("…" in cell for line in table for cell in columns(line)[1:])


def test_a_plan_of_many_tensors_is_not_folded(capfd, tmp_path):
    """What a pipe gets is what rich would print there; a terminal gets the same of a long plan."""
    rows = [(f"層.{number}", "F32", "keep: " + "x" * (number % 60)) for number in range(MAX_FOLDED_ROWS + 1)]
    table = grid("", "", "")
    for row in rows:
        table.add_row(*row)
    Console().table(table, to_stdout=True)
    assert aligned(rows) == capfd.readouterr().out
    for count in (MAX_FOLDED_ROWS, MAX_FOLDED_ROWS + 1):
        path = tmp_path / f"{count}.safetensors"
        save_file({f"{'long' * 15}.{number}": torch.zeros(1) for number in range(count)}, path)
        words = ["edit", path, path, "-o", tmp_path / "out", "--dry-run", "--partial"]
        code, shown, error = in_a_terminal(words, 40)
        assert (code, f"{'long' * 15}.7 " in shown) == (0, count > MAX_FOLDED_ROWS), error


@pytest.mark.parametrize(("command", "width"), [("edit --dry-run", 50), ("diff --no-progress", 70)])
def test_names_are_folded_after_dots(tmp_path, command, width):
    name = "model.layers.0.post_attention_layernorm.weight"
    for seed in range(2):
        save_file({name: torch.full((6, 4), float(seed + 1))}, tmp_path / f"{seed}.safetensors")
    verb, option = command.split()
    output = ["-o", tmp_path / "out"] if verb == "edit" else []
    words = [verb, *(tmp_path / f"{seed}.safetensors" for seed in range(2)), *output, option]
    _, seen, error = in_a_terminal(words, width)
    lines = [line.split(" ")[0] for line in seen.splitlines()]
    first = lines.index("model.layers.0.")
    assert "".join(lines[first : first + 3]).startswith(name), seen + error


def test_wide_characters_take_two_cells(tmp_path):
    for seed in range(2):
        names = ["重み" * 30 + str(block) for block in range(12)]
        save_file({name: torch.randn(6, 4) for name in names}, tmp_path / f"{seed}.safetensors")
    files = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    _, seen, _ = in_a_terminal(["inspect-spectrum", *files], 80)
    heading, *table = seen[: seen.index("\n\n")].splitlines()
    assert [column for column in columns(heading) if column in ALWAYS] == ALWAYS
    assert max(map(cell_len, [heading, *table])) <= 80
    assert len({columns(line)[0] for line in table}) == 12


@pytest.mark.parametrize(("target", "words"), [("> /dev/full", "No space left"), (">&-", "stdout is closed")])
def test_stdout_that_cannot_be_written_is_one_error(reports, target, words):
    for format in ("table", "json"):
        code, _, err = shell(
            f"monosoup report {shlex.quote(str(reports['inspect']))} --format {format} {target}"
        )
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith("error: stdout ")
        assert words in err


def test_the_report_of_several_checkpoints_is_shown(run, files, folder, tmp_path):
    monosoup_cli.edit(*files[:2], folder / "sweep", energy=[0.5, 0.8], device="cpu")
    path = folder / "sweep" / "monosoup_report.json"
    code, out, err = run("report", path, "--html", tmp_path / "page.html")
    assert (code, out.count("wrote"), "energy-0.8" in out) == (0, 2, True), err
    assert "each checkpoint has its own report, in its folder" in out.splitlines()
    assert "shown" not in out
    assert "energy-0.8" in (tmp_path / "page.html").read_text()
    assert json.loads(run("report", path, "--format", "json").out) == json.loads(path.read_text())
    for command in (
        ["report", path, "--format", "csv"],
        ["report", path, "--plot", tmp_path / "x.png"],
        ["compare", path, path],
    ):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert "each checkpoint has its own report" in err


def test_what_was_chosen_is_shown_again(run, reports):
    assert re.search(r"^members +2 of 2", run("report", reports["sfgs"]).out, re.MULTILINE)


def test_an_inspection_and_its_edit_differ_in_nothing(run, reports):
    out = run("compare", reports["inspect"], reports["edit"], "--format", "json").out
    assert json.loads(out)["changed"] == []


def test_layers_are_tensors_to_an_inspection(run, files):
    result = run("inspect-spectrum", *files[:2], "--layer", "*down_proj[[]1]")
    assert (result.code, "--layer '*down_proj[[]1]' matches no tensor" in result.err) == (2, True)
    assert "must match the whole name, as '*layers.3.*' does" in result.err
    inspected = run("inspect-spectrum", *files[:2], "--layer", "*.1.*down_proj", "--format", "csv").out
    assert inspected.count("\n") == 3


def test_tensors_are_left_out_of_an_inspection(run, files):
    words = ["--exclude", "*.layers.*", "--exclude", "lm_*"]
    code, out, err = run("inspect-spectrum", *files[:2], *words, "--format", "json", "--device", "cpu")
    assert (code, err) == (0, "")
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert [row["name"] for row in rows_of(report) if row["action"] == "edited"] == [
        "model.embed_tokens.weight"
    ]
    assert report["arguments"]["exclude"] == ["*.layers.*", "lm_*"]
    made = monosoup_cli.inspect_spectrum(*files[:2], exclude=["*.layers.*", "lm_*"], device="cpu")
    assert without_time(report) == json.loads(json.dumps(without_time(made)))


def test_kept_tensors_alone_are_no_table(run, reports):
    asked = ["report", reports["inspect"], "--layer", "model.norm*"]
    code, out, err = run(*asked)
    assert (code, err) == (0, "")
    assert out.startswith("0 of 26 layers shown\n\nbase  ")
    assert run(*asked, "--format", "csv").out == as_csv([])


def test_what_cannot_be_shown_is_refused_before_any_output(run, reports):
    for format in ("table", "json", "csv"):
        code, out, err = run("report", reports["inspect"], "--layer", "nothing", "--format", format)
        assert (code, out) == (2, "")
        assert "matches no tensor of the report" in err


def test_a_reader_that_stops_early_stops_no_page(large, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = shell(f"monosoup report {large} --format json --html {page} | head -1")
    assert (code, out) == (0, "{\n"), err
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("options", [["--sort", "alpha"], ["--group", "kind", "--sort", "σ_1"]], ids=str)
def test_what_nothing_can_be_sorted_by_is_said(run, reports, options):
    measure = {"σ_1": "sigma_max"}.get(options[-1], options[-1])
    code, out, err = run("report", reports["inspect"], *options)
    assert (code, err) == (0, f"note: no layer here has {measure}, so the rows are not sorted\n")
    assert out == run("report", reports["inspect"], *options[:-2]).out


def test_a_verdict_is_shown_as_it_stands(run, reports, tmp_path):
    report = json.loads(reports["inspect"].read_text())
    computed = report["verdict"]["interpolation"]["sentence"]
    report["verdict"]["interpolation"]["sentence"] = "Said before."
    (tmp_path / "said.json").write_text(json.dumps(report))
    out = run("report", tmp_path / "said.json").out
    assert "Said before." in out.splitlines()
    assert computed not in out
    del report["verdict"]
    (tmp_path / "unsaid.json").write_text(json.dumps(report))
    assert computed in run("report", tmp_path / "unsaid.json").out.splitlines()


def test_the_table_is_printed_before_files_are_written(monkeypatch, run, reports, tmp_path):
    def fail(path, write):
        raise OutputError("cannot be written", path=path)

    monkeypatch.setattr("monosoup_cli.report.files.replace_file", fail)
    for options in ([], ["--format", "csv"], ["--format", "json"]):
        asked = ["report", reports["inspect"], *options]
        code, out, err = run(*asked, "--html", tmp_path / "page.html")
        assert (code, out) == (1, run(*asked).out)
        assert err.startswith("error: ")


def test_the_terminal_of_compare(reports):
    code, seen, err = in_a_terminal(["compare", reports["inspect"], reports["energy"]], 80)
    assert (code, err) == (0, "")
    assert max(map(len, without_codes(seen).splitlines())) <= 80
    assert "energy" in seen


def table_of(out):
    """Heading and rows of the first table."""
    heading, *rows = out.partition("\n\n")[0].splitlines()
    return columns(heading), rows


def test_a_pipe_gets_every_column_and_a_line_for_a_layer(run, files):
    code, out, err = run("inspect-spectrum", *files[:2])
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert not any(line.endswith(" ") for line in out.splitlines())
    heading, rows = table_of(out)
    assert {*ALWAYS, *WIDE, *PIPED, "layer", "spectrum"} == set(heading)
    report = monosoup_cli.inspect_spectrum(*files[:2], device="cpu")
    edited = [row for row in rows_of(report) if row["action"] == "edited"]
    assert [columns(row)[0] for row in rows] == [row["name"] for row in edited]
    for sentence in report["verdict"]["findings"] + [report["verdict"]["interpolation"]]:
        assert sentence["sentence"] in out.splitlines()


def test_how_alike_several_fine_tunes_are_stands_below(run, files, reports):
    out = run("inspect-spectrum", *files).out
    assert {"cosine", "ratio", "clamped"} <= set(table_of(out)[0])
    assert "cosine of updates, mean of 22 layers" in out
    assert re.search(r"^ +overall ‖Δ‖/‖W0‖$", out, re.M)
    assert re.search(r"^cosine of two updates in a layer; mean of a layer \S+ \(\S+ to \S+\)$", out, re.M)
    assert re.search(r"^stock +ratio \S+ \(\S+ to \S+\), none below 0$", out, re.M)
    assert "cosine of updates" not in run("report", reports["inspect"]).out


@pytest.mark.parametrize(
    ("command", "count", "said"),
    [
        ("edit", 2, "update +the mean of 2"),
        ("extract --rank 2", 2, "update +the mean of 2"),
        ("extract --rank 2 --weights 3,1 --scale 4", 2, "update +the mean of 2, weighted 3, 1, times 4"),
        ("extract --rank 2 --scale 3", 1, "update +times 3"),
        ("transplant --scale=-0.5", 1, "update +times -0.5"),
        ("transplant --scale 0.5,1", 2, "updates +2, added up, not averaged, times 0.5, 1"),
        ("soup --weights 3,1", 2, "soup +the mean of 2, weighted 3, 1"),
    ],
)
def test_what_becomes_of_updates_is_said(run, files, tmp_path, command, count, said):
    name, *options = command.split()
    onto = [files[0]] if name == "transplant" else []
    base = [] if name == "soup" else [files[0]]
    words = [name, *base, *files[1 : count + 1], *onto, "-o", tmp_path / "out", *options]
    assert re.search(rf"^{said}$", run(*words, "--dry-run").out, re.M)
    result = run(*words)
    assert re.search(rf"^{said}$", result.err, re.M), result.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(rf"^- {said.replace(' +', ': ', 1)}$", card, re.M), card


def test_ratios_that_were_clamped_are_counted(run, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "first", "second")]
    base, first, other = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    for path, update in zip(paths, (0 * first, first, other - first), strict=True):
        save_file({"w": base + update}, path)
    out = run("inspect-spectrum", *paths).out
    assert re.search(r"^stock +ratio 0 \(0 to 0\), 1 of them clamped from below 0$", out, re.M)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--layer", "lm_*", "--layer", "*.1.*q_proj*"],
            ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight"],
        ),
        (
            ["--layer", "model.layers.3.mlp.experts.down_proj"],
            [f"model.layers.3.mlp.experts.down_proj[{index}]" for index in range(2)],
        ),
        (["--group", "kind"], ["embedding", "attention", "mlp", "head"]),
        (["--group", "depth", "--top", "3"], ["outside blocks", "model.layers 0", "model.layers 1"]),
        (["--sort", "name", "--top", "2"], ["lm_head.weight", "model.embed_tokens.weight"]),
        (["--sort", "λ_low", "--layer", "lm_*"], ["lm_head.weight"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["inspect-spectrum", "report"])
def test_rows_are_chosen(run, files, reports, command, options, expected):
    inputs = files[:2] if command == "inspect-spectrum" else [reports["inspect"]]
    code, out, err = run(command, *inputs, *options)
    assert (code, err) == (0, "")
    assert [columns(row)[0] for row in table_of(out)[1] if not row.endswith("shown")] == expected


def test_a_dry_run_and_a_table_stand_in_depth(run, files, reports, tmp_path):
    """Embedding, blocks, norm, head. The JSON has the order of the file: the head first."""
    words = ["edit", *files[:2], "-o", tmp_path / "out", "--dry-run"]
    shown = [line.split()[0] for line in run(*words).out.partition("\n\n")[0].splitlines()]
    in_file = [layer["name"] for layer in json.loads(run(*words, "--format", "json").out)["layers"]]
    assert in_file == sorted(shown)
    assert shown != in_file
    assert [shown[0], *shown[-2:]] == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    blocks = [int(re.search(r"layers\.(\d+)", name)[1]) for name in shown[1:-2]]
    assert blocks == sorted(blocks)
    table = [columns(row)[0].partition("[")[0] for row in table_of(run("report", reports["inspect"]).out)[1]]
    assert list(dict.fromkeys(table)) == [name for name in shown if name != "model.norm.weight"]


def test_the_column_that_sorts_is_there(reports):
    """Even where a narrow terminal would leave it out."""
    for measure, label in (("sigma_max", "σ_1"), ("cos_low", "cos low"), ("anisotropy", "anisotropy")):
        _, seen, _ = in_a_terminal(["report", reports["inspect"], "--sort", measure], 80)
        heading, *table = without_codes(seen[: seen.index("\n\n")]).splitlines()
        at = columns(heading).index(label)
        values = [float(columns(line)[at]) for line in table]
        assert values == sorted(values, reverse=True)
        assert len(values) > 5


def test_the_largest_stand_first(run, reports):
    report = json.loads(reports["inspect"].read_text())
    rows = sorted(filter(lambda row: row["k"], rows_of(report)), key=lambda row: row["relative_update"])
    for word in ("relative-update", "relative_update"):
        out = run("report", reports["inspect"], "--sort", word, "--top", 2).out
        assert [columns(line)[0] for line in out.splitlines()[1:3]] == [row["name"] for row in rows[:-3:-1]]
        assert out.splitlines()[3] == "2 of 26 layers shown"
        out = run("report", reports["inspect"], "--sort", word, "--reverse", "--top", 1).out
        assert columns(out.splitlines()[1])[0] == rows[0]["name"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sort", "size"], ["--sort", "expected name, rank (r),", "lambda_low", "found size"]),
        (["--layer", "nothing"], ["'nothing'", "matches no"]),
        (["--group", "shape"], ["kind", "depth"]),
        (["--top", "0"], ["--top"]),
        (["--format", "xml"], ["table", "json", "csv"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["inspect-spectrum", "report"])
def test_wrong_usage_exits_with_2(run, files, reports, command, options, words):
    inputs = files[:2] if command == "inspect-spectrum" else [reports["inspect"]]
    code, out, err = run(command, *inputs, *options)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def without_time(report):
    return {name: value for name, value in report.items() if name != "timing"}


@pytest.mark.parametrize("options", [{}, {"energy": 0.8}, {"values": True}, {"layer": ["*attn*"]}], ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_json_is_what_the_function_returns(run, files, count, options):
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    words = ["--layer=*attn*" if word.startswith("--layer") else word for word in words]
    inputs = files[: 1 + count]
    code, out, err = run(
        "inspect-spectrum", *inputs, "--format", "json", "--device", "cpu", "--top=1", *words
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    made = monosoup_cli.inspect_spectrum(inputs[0], inputs[1:], device="cpu", **options)
    assert without_time(found) == json.loads(json.dumps(without_time(made)))
    assert len(found["layers"]) == 23  # whatever the table shows


def test_csv_has_the_rows_of_the_table_and_the_reports_numbers(run, files):
    report = monosoup_cli.inspect_spectrum(*files[:2], values=True, device="cpu")
    words = ["--device", "cpu", "--values", "--format", "csv", "--sort", "rho", "--top", 5]
    out = run("inspect-spectrum", *files[:2], *words).out
    rows = sorted((row for row in rows_of(report) if row["k"]), key=lambda row: -row["rho"])[:5]
    found = list(csv.DictReader(io.StringIO(out)))
    assert [line["name"] for line in found] == [row["name"] for row in rows]
    for line, row in zip(found, rows, strict=True):
        for measure in ("rho", "lambda_high", "effective_rank", "k", "k_ratio", "relative_update"):
            assert float(line[measure]) == row[measure]
        assert list(map(float, line["singular_values"].split())) == row["singular_values"]
        assert len(row["singular_values"]) == row["rank"]
    assert "singular_values" not in run("inspect-spectrum", *files[:2], "--format", "csv").out


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_quiet_leaves_what_was_asked_for(run, reports, tmp_path, format):
    asked = ["report", reports["inspect"], "--format", format, "--html", tmp_path / "page.html"]
    loud, quiet = run(*asked), run(*asked, "--quiet")
    assert quiet == (0, "" if format == "table" else loud.out, "")
    assert run(*asked[:4], "--quiet") == (0, loud.out, "")
    assert "--group is for tables and csv" in run(*asked, "--group", "kind").err
    assert loud.err == f"wrote {tmp_path / 'page.html'}\n"
    assert len(loud.out) > 1000


def test_what_is_in_doubt_is_shown_with_the_report(run, pair, tmp_path):
    assert run("edit", pair[0], pair[1], "-o", tmp_path / "out").code == 0
    path = tmp_path / "out" / "monosoup_report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"doubts": ["the adapter names another base"]}))
    shown = run("report", tmp_path / "out", "--html", tmp_path / "page.html").out
    assert "\nIn doubt: the adapter names another base.\n" in shown
    assert "In doubt: the adapter names another base." in (tmp_path / "page.html").read_text()


def test_a_report_is_shown_as_the_inspection_was(run, files, tmp_path):
    """Also from a file that cannot be written; the time that it took is another with every run."""
    (tmp_path / "r.json").write_text(run("inspect-spectrum", *files, "--format", "json").out)
    (tmp_path / "r.json").chmod(0o444)
    for options in ([], ["--group", "depth"], ["--format", "csv"], ["--sort", "name", "--reverse"]):
        shown, again = run("inspect-spectrum", *files, *options), run("report", tmp_path / "r.json", *options)
        untimed = [re.sub(r"^time .*", "", result.out, flags=re.M) for result in (shown, again)]
        assert (again.code, again.err) == (0, "")
        assert untimed[0] == untimed[1]
    assert json.loads(run("report", tmp_path / "r.json", "--format", "json").out) == json.loads(
        (tmp_path / "r.json").read_text()
    )


@pytest.mark.parametrize(
    ("command", "labels", "count"),
    [
        ("edit", [*ALWAYS, "spectrum"], 26),
        ("stock", ["cosine", "ratio", "clamped"], 23),
        ("soup", [], 0),
        ("sfgs", [], 0),
        ("wise", ["WiSE α"], 23),
        ("lines", ["scale"], 23),
        ("inspect several", [*ALWAYS, "cosine", "spectrum"], 26),
    ],
)
def test_the_report_of_every_command_is_shown(run, reports, command, labels, count):
    code, out, err = run("report", reports[command])
    assert (code, err) == (0, "")
    if labels:
        heading, rows = table_of(out)
        assert {"layer", *labels} <= set(heading)
        assert len(rows) == count
    else:  # nothing is measured of a layer
        assert not re.search(r"^(layer|model\.|lm_head)", out, re.M)
    assert re.search(r"^(edited|layers) +2[23] tensors, ", out, re.M)
    report = json.loads(reports[command].read_text())
    assert json.loads(run("report", reports[command], "--format", "json").out) == report
    edited = [row for row in rows_of(report) if row["action"] == "edited"]
    assert run("report", reports[command], "--format", "csv").out == as_csv(edited)


def shell(command):
    """`monosoup` in a real shell: (exit code, stdout, stderr)."""
    script = f'set -o pipefail; monosoup() {{ {shlex.join(MONOSOUP)} "$@"; }}; {command}'
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=buffered
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("options", "reader", "begins"),
    [
        ("--format csv", "head -1", "name,kind,stack,"),
        ("--format json", "head -1", "{\n"),
        ("", "head -2", "layer  "),
        ("", "true", ""),
        ("--format json", "head -c 20", "{\n"),
    ],
)
def test_a_reader_may_stop_early(run, large, options, reader, begins):
    assert len(run("report", large, *options.split()).out.encode()) > 1.5 * PIPE_BUFFER
    code, out, err = shell(f"monosoup report {large} {options} | {reader}")
    assert (code, err) == (0, "")
    assert out.startswith(begins)
    assert len(out) < 2000


@pytest.mark.parametrize("options", ["--format csv --top 1", "--top 1"])
def test_a_reader_may_be_gone_before_the_first_word(reports, options):
    """Little is written, and waits in a buffer."""
    report = shlex.quote(str(reports["inspect"]))
    assert shell(f"monosoup report {report} {options} | exec 0<&-") == (0, "", "")


def test_a_reader_may_stop_early_while_a_comparison_is_printed(large, folder):
    other = json.loads(large.read_text())
    for layer in other["layers"]:
        for part in layer.get("slices", [layer]):
            part.update(rho=0.5, lambda_high=0.1)
    (folder / "other.json").write_text(json.dumps(other))
    for options in ("", "--format json"):
        code, out, err = shell(f"monosoup compare {large} {folder / 'other.json'} {options} | head -1")
        assert (code, out.count("\n"), err) == (0, 1, "")


def test_a_reader_may_stop_early_while_layers_are_inspected(large, folder):
    pair = shlex.join(str(folder / f"large-{seed}.safetensors") for seed in range(2))
    code, out, err = shell(f"monosoup inspect-spectrum {pair} --values --format csv | head -1")
    assert (code, out.count("\n"), err) == (0, 1, "")


@pytest.mark.parametrize("reader", ["jq .summary.edited", "python"])
def test_programs_read_the_json(large, reader):
    if reader == "python":
        code = "import json, sys; print(json.load(sys.stdin)['summary']['edited'])"
        reader = shlex.join([sys.executable, "-c", code])
    elif shutil.which("jq") is None:
        pytest.skip("needs jq")
    assert shell(f"monosoup report {large} --format json | {reader}") == (0, "352\n", "")


@pytest.mark.parametrize(("name", "seen"), NAMES.values(), ids=list(NAMES))
def test_names_are_shown_harmlessly(run, tmp_path, name, seen):
    files = [tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"]
    for seed, path in enumerate(files):
        normal = torch.Generator().manual_seed(seed)
        save_file({name: torch.randn(16, 12, generator=normal), f"{name}.x": torch.ones(3)}, path)
    reports = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, options in zip(reports, ([], ["--energy", "0.5"]), strict=True):
        result = run("inspect-spectrum", *files, "--format", "json", *options)
        assert result.out.isascii()
        assert {layer["name"] for layer in json.loads(result.out)["layers"]} == {name, f"{name}.x"}
        path.write_text(result.out)
    changed = compare_reports(*(json.loads(path.read_text()) for path in reports))["changed"]
    assert [each["name"] for each in changed] == [name]
    for command in (["inspect-spectrum", *files], ["report", reports[0]], ["compare", *reports]):
        formats = ["table", "json"] if command[0] == "compare" else ["table", "json", "csv"]
        for asked in formats:
            result = run(*command, "--format", asked)
            assert result.code == 0
            text = printed(result)
            if asked == "table":
                assert seen.replace(" ", "") in text.replace(" ", "")
        if command[0] != "compare":
            line = next(csv.reader(io.StringIO(result.out.partition("\n")[2])))
            assert seen in line[0]
    assert not [
        char
        for char in run("report", reports[0], "--group", "depth").out
        if unicodedata.category(char) in {"Cf", "Cs"}
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("edit", 0, 1), "excluded 1"),
        (("edit", 0, 1, 2), "excluded 1 (averaged where all have them in one shape)"),
        (("soup", 1, 2), "excluded 1 (averaged where all have them in one shape)"),
        (("transplant", 0, 1, 2), "excluded 1 (as in onto)"),
        (("extract", 0, 1, "--rank", "2"), "excluded 1 (not in the adapter), vector 1"),
    ],
)
def test_the_screen_says_what_becomes_of_tensors_that_are_left_out(tmp_path, run, words, said):
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        tensors = {f"layers.0.{name}.weight": torch.randn(6, 5, generator=generator) for name in "ab"}
        tensors |= {"norm.weight": torch.ones(5) + number} if words[0] == "extract" else {}
        save_file(tensors, tmp_path / f"{number}.safetensors")
    inputs = [tmp_path / f"{word}.safetensors" if isinstance(word, int) else word for word in words]
    command = [*inputs, "--exclude", "*.b.*", "-o", tmp_path / "out"]
    keep, kept = ("others", "others") if words[0] == "extract" else ("keep", "kept")
    assert f"{keep:<12}{said}\n" in run(*command, "--dry-run").out
    assert f"{kept:<12}{said}\n" in run(*command).err


def test_phases_of_a_run_have_names(tmp_path, run, monkeypatch):
    """In a terminal, they stand before the bars."""
    monkeypatch.setattr("monosoup_cli.cli.console.SECONDS_BETWEEN_LINES", 0.0)
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        tensors = {f"layers.0.{name}.weight": torch.randn(6, 5, generator=generator) for name in "abc"}
        save_file(tensors, tmp_path / f"{number}.safetensors")
    inputs = [tmp_path / f"{number}.safetensors" for number in range(2)]
    said = run("extract", *inputs, "-o", tmp_path / "adapter", "--energy", "0.9").err
    found = re.findall(r"^(\w+ )? *\d+%  ", said, re.MULTILINE)
    assert list(dict.fromkeys(found)) == ["examining ", "writing "]
    said = run("edit", *inputs, "-o", tmp_path / "out").err
    assert set(re.findall(r"^(\w+ )? *\d+%  ", said, re.MULTILINE)) == {""}
