"""Reports that are read again, and files made of them: refused in a line, replaced as a whole."""

import csv
import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import OutputError, ReportError
from monosoup_cli.report.files import NO_REPORT, as_text, check_target, is_report, read_report, replace_file
from tests.conftest import everything_in, small_tensors
from tests.sampling import first

OLD = "<title>old · monosoup report</title>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The paths of reports that commands wrote: of one checkpoint, and of a file beside it."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        experts = {"mlp.experts.w": torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed))}
        save_file(small_tensors(seed) | experts, folder / f"{seed}.safetensors")
    base, *finetuned = (folder / f"{seed}.safetensors" for seed in range(3))
    options = {"device": "cpu"}
    monosoup_cli.edit(base, finetuned[0], folder / "edit", **options)
    monosoup_cli.edit(base, finetuned[0], folder / "one.safetensors", **options)
    monosoup_cli.stock(base, finetuned, folder / "stock", **options)
    monosoup_cli.soup(finetuned, folder / "soup", **options)
    monosoup_cli.sfgs(base, finetuned, folder / "sfgs", threshold=0.1, **options)
    monosoup_cli.wise(base, finetuned[0], folder / "wise", alpha=0.5, **options)
    found = {path.parent.name: path for path in folder.glob("*/monosoup_report.json")}
    return found | {"one file": folder / "one.report.json"}


@pytest.fixture
def report(written):
    return json.loads(written["edit"].read_text())


def test_what_commands_write_is_read(written):
    assert len(written) == 6
    for path in written.values():
        assert read_report(path) == json.loads(path.read_text())
        if path.name == "monosoup_report.json":
            assert read_report(path.parent) == read_report(path)
        assert is_report(path)
    weights = written["one file"].with_name("one.safetensors")
    assert read_report(weights) == read_report(written["one file"])
    assert not is_report(weights)


def refused(run, path, *words, command="report"):
    code, out, err = run(command, path, *([path] if command == "compare" else []))
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith(f"error: {path}: ")
    for word in words:
        assert word in err


CONTENTS = {
    "empty": (b"", "is not JSON"),
    "text": (b"Dear reader,", "is not JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', "is not JSON"),
    "cut short": (b'{"schema_version": 1, "comm', "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "deep and closed": (b"[" * 100_000 + b"]" * 100_000, "is not JSON"),
    "NaN": (b'{"schema_version": NaN}', "is not JSON"),
    "minus infinity": (b'{"schema_version": -Infinity}', "is not JSON"),
    "digits": (b"1" * 10_000, "is not JSON"),
    "list": (b"[]", "is not a monosoup report"),
    "null": (b"null", "is not a monosoup report"),
    "string": (b'"report"', "is not a monosoup report"),
    "object": (b'{"weight_map": {}}', "is not a monosoup report"),
    "version alone": (b'{"schema_version": 1}', "is not a monosoup report"),
    "later version": (b'{"schema_version": 2}', "expected 1, found 2"),
    "version in words": (b'{"schema_version": "\\u001b[2J"}', "expected 1, found \\x1b[2J"),
}


@pytest.mark.parametrize("command", ["report", "compare"])
@pytest.mark.parametrize(("content", "words"), CONTENTS.values(), ids=list(CONTENTS))
def test_what_is_no_report_is_refused(run, tmp_path, command, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    refused(run, path, words, command=command)


HOSTILE = [
    ("command", 1),
    ("tool", None),
    ("tool.version", 2),
    ("inputs", 3),
    ("inputs.0", "base"),
    ("inputs.0.source", ["a"]),
    ("arguments", []),
    ("arguments.weights", [None]),
    ("arguments.weights", "x"),
    ("environment", "x"),
    ("timing.seconds", "fast"),
    ("timing", {}),
    ("summary", None),
    ("summary.edited", "4"),
    ("summary.parameters_edited", None),
    ("summary.kept", 3),
    ("summary.ranges", []),
    ("layers", None),
    ("layers", 5),
    ("layers", ["x"]),
    ("layers.0", None),
    ("layers.0.name", 7),
    ("layers.0.shape", "8x6"),
    ("layers.0.shape.0", "8"),
    ("layers.0.dtype", None),
    ("layers.0.action", 1),
    ("layers.0.reason", 3),
    ("layers.0.k", "5"),
    ("layers.0.rho", []),
    ("layers.0.lambda_high", {}),
    ("layers.0.spectrum", [None]),
    ("layers.0.spectrum", ["1.0"]),
    ("layers.0.spectrum", 7),
    ("layers.0.cosine", "x"),
    ("layers.0.update_norm", None),
    ("layers.0.anisotropy", None),
    ("inputs.0.role", 3),
    ("output", {}),
    ("output.files", "x"),
    ("outputs", []),
    ("summary.kept.vector", "x"),
    ("summary.means.k_ratio", "x"),
    ("summary.means.k_ratio", None),
    ("summary.ranges.k_ratio", 3),
    ("summary.ranges.rho", [1]),
    ("arguments.deep", json.loads("[" * 100 + "]" * 100)),
    ("similarity", {}),
    ("selection", {"order": []}),
]


@pytest.mark.parametrize(("where", "value"), HOSTILE, ids=lambda value: str(value)[:30])
def test_values_of_another_type_are_refused(run, report, tmp_path, where, value):
    *parents, last = (int(part) if part.isdigit() else part for part in where.split("."))
    inner = report
    report["layers"].sort(key=lambda layer: layer["action"] == "kept" or "slices" in layer)
    for part in parents:
        inner = inner[part]
    inner[last] = value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(report))
    refused(run, path, "is not a monosoup report", "monosoup_report.json")


@pytest.mark.parametrize("change", [{"cos_alpha": "x"}, {"index": None}, {"k": 3, "rank": None}], ids=str)
def test_slices_are_looked_at_too(run, report, tmp_path, change):
    (stack,) = (layer for layer in report["layers"] if "slices" in layer)
    stack["slices"][1].update(change)
    (tmp_path / "x.json").write_text(json.dumps(report))
    refused(run, tmp_path / "x.json", "is not a monosoup report")


def fields(value, place=()):
    """Every place in a report, of the first items of lists alone."""
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value[:1] if isinstance(value, list) else ())
    )
    for name, inner in inside:
        yield (*place, name)
        yield from fields(inner, (*place, name))


@pytest.mark.parametrize("command", first(1, ["edit", "sfgs", "wise"]))
def test_a_report_without_a_field_is_shown_or_the_field_is_named(run, written, tmp_path, command):
    text, path = written[command].read_text(), tmp_path / "x.json"
    refused_fields = []
    for *parents, last in fields(json.loads(text)):
        report = inner = json.loads(text)
        for name in parents:
            inner = inner[name]
        del inner[last]
        path.write_text(json.dumps(report))
        result = run("report", path)
        if result.code:
            assert (result.code, result.out) == (1, ""), (parents, last)
            words = re.search(
                r"x\.json: is not a monosoup report: (\S+) (is missing|contradicts)", result.err
            )
            assert words, (parents, last, result.err)
            refused_fields.append(words[1])
    assert {"command", "layers", "layers[0].name", "summary.means", "timing.seconds"} <= {*refused_fields}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("layers.0.shape", "layers[0].shape is no list"),
        ("timing.seconds", "timing.seconds is no number"),
        ("inputs.0.source", "inputs[0].source is no text"),
        ("summary.edited", "summary.edited is no integer"),
    ],
)
def test_a_field_of_another_type_is_named(run, report, tmp_path, where, words):
    inner = report
    *parents, last = (int(part) if part.isdigit() else part for part in where.split("."))
    for part in parents:
        inner = inner[part]
    inner[last] = True
    (tmp_path / "x.json").write_text(json.dumps(report))
    refused(run, tmp_path / "x.json", words)


@pytest.mark.parametrize("size", [{"relative_update": 0.1}, "small", 5, {"sentence": 1}])
def test_a_verdict_on_the_size_that_says_nothing_is_refused(run, written, tmp_path, size):
    base, finetuned = (written["one file"].parent / f"{seed}.safetensors" for seed in (0, 1))
    report = monosoup_cli.inspect_spectrum(base, finetuned, device="cpu")
    (tmp_path / "x.json").write_text(json.dumps(report))
    assert run("report", tmp_path / "x.json").code == 0
    report["verdict"]["size"] = size
    (tmp_path / "x.json").write_text(json.dumps(report))
    refused(run, tmp_path / "x.json", "is not a monosoup report: verdict.size")


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" * 400])
def test_numbers_that_no_float_holds_are_refused(run, report, tmp_path, number):
    report["timing"]["seconds"] = "here"
    (tmp_path / "x.json").write_text(json.dumps(report).replace('"here"', number))
    refused(run, tmp_path / "x.json", "numbers out of range")


def test_a_key_that_is_there_twice_is_refused(run, report, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(report).replace('"command"', '"command": "soup", "command"'))
    refused(run, tmp_path / "x.json", "names 'command' twice")


def test_members_are_among_the_candidates(run, written, tmp_path):
    report = json.loads(written["sfgs"].read_text())
    report["selection"]["members"] = ["another"]
    (tmp_path / "x.json").write_text(json.dumps(report))
    refused(run, tmp_path / "x.json", "is not a monosoup report")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("order", []),
        ("order", ["another"]),
        ("similarity.0.0", 1e308),
        ("thresholds.0.highest", 1e308),
        ("thresholds.1.highest", None),
        ("stock.cosine", None),
        ("histogram.counts.0", -1),
        ("candidates", [[]]),
        ("thresholds", {}),
        ("members", "x"),
    ],
)
def test_a_choice_that_was_damaged_is_refused(run, written, tmp_path, where, value):
    """Of `sfgs`, or where that has no such field, of an inspection of several."""
    report = json.loads(written["sfgs"].read_text())
    part = "selection"
    if where.split(".")[0] not in report[part]:
        sources = [source["source"] for source in report["inputs"]]
        report, part = monosoup_cli.inspect_spectrum(sources[0], sources[1:], device="cpu"), "similarity"
    inner = report[part]
    *parents, last = (int(name) if name.isdigit() else name for name in where.split("."))
    for name in parents:
        inner = inner[name]
    inner[last] = value
    (tmp_path / "x.json").write_text(json.dumps(report))
    refused(run, tmp_path / "x.json", f"is not a monosoup report: {part}")


@pytest.mark.parametrize("value", [-5, 1e308])
def test_a_spectrum_out_of_its_range_is_drawn(run, report, tmp_path, value):
    for layer in report["layers"]:
        if layer.get("spectrum"):
            layer["spectrum"][0] = value
    (tmp_path / "x.json").write_text(json.dumps(report))
    for options in ([], ["--group", "kind"], ["--html", tmp_path / "x.html"]):
        assert run("report", tmp_path / "x.json", *options).code == 0


def test_a_page_replaces_a_page_and_nothing_else(run, written, tmp_path):
    evals = [tmp_path / f"{name}.csv" for name in ("base", "ft", "edited")]
    for path in evals:
        path.write_text("id,correct\nq1,1\nq2,0\n")
    np.save(tmp_path / "features.npy", np.eye(3))
    page = tmp_path / "page.html"
    writers = [
        ["report", written["edit"]],
        ["compare", written["edit"], written["stock"]],
        ["scores", *evals],
        ["cka", *[tmp_path / "features.npy"] * 2],
    ]
    for words in writers:
        quoted = " " * 70_000 + "<title>x · monosoup edit</title>"  # a page about monosoup
        page.write_text(f"<title>Mine · not monosoup</title>{quoted}")
        code, out, err = run(*words, "--html", page)
        assert (code, out) == (1, "")
        assert "does not say that monosoup wrote it; remove it, or give another name" in " ".join(err.split())
        page.write_text("")
        for _ in range(2):  # in place of nothing, and of a page
            assert run(*words, "--html", page).code == 0
        assert f" · monosoup {words[0].replace('report', 'edit')}</title>" in page.read_text()


def test_paths_that_are_too_long_are_refused(run, written):
    name = "a" * 300
    refused(run, f"{name}.json", "File name too long")
    result = run("report", written["edit"], "--html", f"{name}.html")
    assert (result.code, result.out) == (1, "")
    assert "File name too long" in result.err


@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_no_file_is_refused(run, tmp_path, command):
    refused(run, tmp_path / "absent.json", "no such file", command=command)
    code, out, err = run(command, *[tmp_path] * (1 + (command == "compare")))
    assert (code, out, err) == (
        1,
        "",
        f"error: {tmp_path}: is no report, and has none (monosoup_report.json); {NO_REPORT}\n",
    )
    (tmp_path / "loop.json").symlink_to("loop.json")
    refused(run, tmp_path / "loop.json", command=command)


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    command = [sys.executable, "-m", "monosoup_cli", "report", tmp_path / "fifo.json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path / 'fifo.json'}: is not a file\n"


def test_the_name_of_a_file_is_shown_harmlessly(run, tmp_path):
    path = tmp_path / "a\x1b[2J\nb.json"
    path.write_text("no")
    code, _, err = run("report", path)
    assert (code, err.count("\n")) == (1, 1)
    assert "a\\x1b[2J\\x0ab.json: is not JSON" in err


@pytest.mark.parametrize("path", ["absent", "folder"])
def test_the_target_is_looked_at_before_the_inputs(run, tmp_path, path):
    """None of the inputs exists: what is said is said of the target."""
    before = everything_in(tmp_path)
    for command in (["report", tmp_path / path], ["inspect-spectrum", tmp_path / path, tmp_path / path]):
        for name in ("page.txt", "page", "page.html.gz"):
            code, out, err = run(*command, "--html", tmp_path / name)
            assert (code, out) == (2, "")
            expected = "unsupported file extension: expected .html"
            assert err == f"error: {tmp_path / name}: {expected}\n"
        code, out, err = run(*command, "--html", tmp_path / "no folder" / "page.html")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "its folder does not exist" in err
    assert everything_in(tmp_path) == before


def test_a_folder_in_the_place_of_the_target(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_target(tmp_path / "page.html", ".html")
    check_target(tmp_path / "PAGE.HTML", [".htm", ".html"])


def test_a_folder_that_is_not_writable_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(OutputError, match="its folder is not writable"):
        check_target(tmp_path / "page.html", ".html")


def test_a_file_is_replaced_as_a_whole(run, written, tmp_path):
    page, linked = tmp_path / "page.html", tmp_path / "linked"
    page.write_text(OLD)
    linked.hardlink_to(page)
    code, _, err = run("report", written["edit"], "--html", page)
    assert (code, err) == (0, f"wrote {page}\n")
    assert "</html>" in page.read_text()
    assert linked.read_text() == OLD  # not written over
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "page.html"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), KeyError()])
def test_what_fails_on_the_way_leaves_nothing(tmp_path, error):
    target = tmp_path / "page.html"
    target.write_text("old")

    def write(path):
        assert (path.parent, path.suffix) == (tmp_path, ".html")
        path.write_text("half")
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        replace_file(target, write)
    if expected is OutputError:
        assert str(raised.value) == f"{target}: cannot be written: No space left"
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_is_full_leaves_the_old_file(run, written, tmp_path):
    """A limit on the size of files stands for the disk; the table was printed before."""
    page = tmp_path / "page.html"
    page.write_text(OLD)
    command = [sys.executable, "-m", "monosoup_cli", "report", str(written["edit"]), "--html", str(page)]
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; exec {shlex.join(command)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, run("report", written["edit"]).out)
    assert result.stderr == f"error: {page}: cannot be written: File too large\n"
    assert page.read_text() == OLD
    assert list(tmp_path.iterdir()) == [page]


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ReportError) as refused:
        read_report(tmp_path / "absent.json")
    assert (refused.value.path, refused.value.exit_code) == (str(tmp_path / "absent.json"), 1)


def test_the_commands_show_measures_of_a_newer_version_by_their_names(run, report, tmp_path):
    for layer in report["layers"]:
        layer["novelty"] = 0.25 if layer["action"] == "edited" else None
        for part in layer.get("slices", ()):
            part["novelty"] = 0.5
    report["summary"]["means"]["novelty"] = 0.375
    report["summary"]["ranges"]["novelty"] = [0.25, 0.5]
    path = tmp_path / "newer.json"
    path.write_text(json.dumps(report))
    code, out, _ = run("report", path)
    assert code == 0
    assert "novelty" in out.splitlines()[0]
    assert ["novelty", "0.375", "0.25", "0.5"] in [line.split() for line in out.splitlines()]
    code, out, _ = run("report", path, "--format", "csv")
    assert code == 0
    assert {row["novelty"] for row in csv.DictReader(io.StringIO(out))} == {"0.25", "0.5"}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_report_has_a_line_for_each_layer(count):
    layers = [
        {"name": f"w{number} λ\n", "shape": [2, 3], "k": None, "rho": 1e-300} for number in range(count)
    ]
    report = {"a": [1, {"b": {}}], "layers": layers, "only_in_base": [], "c": "é"}
    text = as_text(report)
    assert json.loads(text) == report
    assert [json.loads(line.strip(" ,")) for line in text.splitlines() if '"rho"' in line] == layers


def test_a_report_has_no_tokens_and_no_nan():
    token = "hf_" + 20 * "x"
    report = {
        "path": f"https://me:{token}@host",
        "quoted": f'curl "https://host?key={token}"\n{token}é{token}',
        "layers": [{"name": token}, {"name": "api_org_" + 20 * "y"}],
    }
    text = as_text(report)
    assert json.loads(text) == {
        "path": "https://…@host",
        "quoted": 'curl "https://host?key=…"\nhf_…éhf_…',
        "layers": [{"name": "hf_…"}] * 2,
    }
    with pytest.raises(ValueError, match="JSON compliant"):
        as_text({"layers": [{"rho": float("nan")}]})
