"""`verify --inputs` and `--again`: are the inputs those of the run, and do its bytes come out again?"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.api.verify import check, make_again
from monosoup_cli.declaration import DeclaredOption, Option
from monosoup_cli.pipeline.verify_output import open_output
from tests.conftest import everything_in
from tests.hub import Hub
from tests.pipeline.test_verify import REPORT, model, rewrite


@pytest.fixture
def inputs(tmp_path):
    return [model(tmp_path / name, seed) for seed, name in enumerate(("base", "ft1", "ft2", "ft3"))]


SCORE = "echo 0.$(($(stat -c %s {}/model.safetensors) % 7))"


def forge_weights(out):
    """Change a byte of some weights, and the SHA-256 in all reports, so that only the run itself can tell."""
    path = sorted(out.rglob("*.safetensors"))[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for report in out.rglob(REPORT):
        old, new = (hashlib.sha256(content).hexdigest() for content in (good, path.read_bytes()))
        report.write_text(report.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("edit", "--max-shard-size", "2KB", "--dtype", "float16", "--exclude", "norm*"), 2),
        (("edit", "--energy", "0.5,0.8"), 2),
        (("edit", "--as-adapter", "--adapter-rank", "2"), 2),
        (("edit", "--rank", "3", "--wise", "0.5"), 3),
        (("stock", "--granularity", "filter"), 3),
        (("wise", "--alpha", "0:0.2:0.1"), 2),
        (("lines", "--alpha", "0.5", "--beta", "1"), 2),
        (("sfgs", "--threshold", "-1"), 4),
        (("soup", "--weights", "1,2,3,4"), 4),
        (("soup", "--greedy", "--score-command", "echo 1; : {}"), 3),
    ],
)
def test_the_bytes_of_every_command_come_out_again(run, inputs, tmp_path, words, count):
    out = tmp_path / "out"
    assert run(words[0], *inputs[:count], "-o", out, "-q", *words[1:], "--workers", "1").code == 0
    before = everything_in(tmp_path)
    result = run("verify", out, "--inputs", "--again")
    assert (result.code, result.err) == (0, "making it again\n"), result
    facts = "sizes, headers, configurations, times of modification"
    assert result.out.endswith(f"; inputs as in the run: {facts}; made again: the same bytes\n")
    assert everything_in(tmp_path) == before
    forge_weights(out)
    assert run("verify", out).code == 0
    result = run("verify", out, "--again", "--format", "json")
    assert result.code == 1
    found = json.loads(result.out)
    assert [one["problem"] for one in found["differences"]] == ["made again, it has other bytes"]
    assert (found["inputs"], found["again"]) == (False, True)


def test_a_greedy_soup_runs_no_command_of_the_report(run, inputs, tmp_path):
    marker = tmp_path / "marker"
    command = f"touch {marker}; echo 0.5; : {{}}"
    assert run("soup", *inputs[1:], "-o", tmp_path / "out", "--greedy", "--score-command", command).code == 0
    marker.unlink()
    assert run("verify", tmp_path / "out", "--again").code == 0
    assert not marker.exists()
    for members in ([], ["elsewhere"]):
        rewrite(
            tmp_path / "out" / REPORT,
            lambda report, members=members: report["selection"].update(members=members),
        )
        result = run("verify", tmp_path / "out", "--again")
        assert (result.code, "Traceback" in result.err) == (1, False)


def test_a_single_file_and_a_checkpoint_of_a_sweep(run, inputs, tmp_path):
    assert run("edit", *inputs[:2], "-o", tmp_path / "out.safetensors").code == 0
    assert run("verify", tmp_path / "out.safetensors", "--again", "--inputs").code == 0
    assert run("wise", *inputs[:2], "-o", tmp_path / "sweep", "--alpha", "0.3,0.6").code == 0
    assert run("verify", tmp_path / "sweep" / "alpha-0.6", "--again", "--inputs").code == 0


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("edit",), ""),
        (("edit", "--max-shard-size", "2KB"), ""),
        (("wise", "--alpha", "0.3,0.6"), "alpha-0.6/"),
    ],
)
def test_a_difference_is_told_at_the_path_in_out_as_it_was_typed(run, inputs, tmp_path, words, place):
    name = "out.safetensors" if words == ("edit",) else "out"
    assert run(words[0], *inputs[:2], "-o", tmp_path / name, *words[1:]).code == 0
    renamed = (tmp_path / name).rename(tmp_path / f"renamed-{name}")
    if name != "out":
        report = (tmp_path / "out.report.json").rename(tmp_path / "renamed-out.report.json")
    else:
        report = renamed / REPORT
    files = forge_checksums(report)
    if place:
        forge_checksums(renamed / place / REPORT)
    result = run("verify", renamed, "--again", "--format", "json")
    found = [(one["path"], one["problem"]) for one in json.loads(result.out)["differences"]]
    paths = [str(renamed / place / file) if name == "out" else str(renamed) for file in files]
    assert [one for one in found if "again" in one[1]] == [
        (path, "made again, it has other bytes") for path in paths
    ]


def forge_checksums(report):
    """Have a report say other checksums of the last checkpoint's weights, and return the names of these."""
    content = json.loads(report.read_text())
    files = content.get("outputs", [content.get("output")])[-1]["files"]
    for file in files:
        file["sha256"] = "0" * 64
    report.write_text(json.dumps(content))
    return [file["name"] for file in files]


def test_a_file_that_is_not_made_again_is_missing(run, inputs, tmp_path):
    """Of the run without an option, and of a sweep of fewer values."""
    for words, name, change in (
        (("edit", "--max-shard-size", "2KB"), "model-00001-of-00003.safetensors", {"max_shard_size": None}),
        (("wise", "--alpha", "0.3,0.6,0.9"), "alpha-0.9/model.safetensors", {"alpha": [0.3, 0.6]}),
    ):
        out = tmp_path / words[0]
        assert run(words[0], *inputs[:2], "-o", out, *words[1:]).code == 0
        rewrite(out / REPORT, lambda report, change=change: report["arguments"].update(change))
        result = run("verify", out, "--again")
        assert f"error: {out / name}: made again, this file is missing; as in that run: " in result.err


def test_a_run_again_shows_its_progress_after_the_hashing(run, inputs, tmp_path):
    assert run("edit", *inputs[:2], "-o", tmp_path / "out").code == 0
    events, opened = [], open_output(str(tmp_path / "out"))
    found = check(opened, inputs=False, advance=lambda nbytes: events.append("hashed"))

    @contextmanager
    def watch(tensors):
        yield lambda tensor, is_done: events.append(tensor.name) if is_done else None
        assert {tensor.name for tensor in tensors} == set(events) - {"hashed"}

    make_again(found, opened, str(tmp_path / "out"), watch)
    assert events[0] == "hashed"
    assert len(set(events)) == 8


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from monosoup_cli.api.verify import check, make_again
from monosoup_cli.pipeline.verify_output import open_output

@contextmanager
def watch(tensors):
    yield lambda tensor, is_done: is_done and os.kill(os.getpid(), signal.SIGKILL)

opened = open_output(sys.argv[1])
make_again(check(opened, inputs=False), opened, sys.argv[1], watch)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_no_run_is_disturbed(
    run, inputs, tmp_path, monkeypatch
):
    out, other = tmp_path / "out", tmp_path / "other"
    for output in (out, other):
        assert run("edit", *inputs[:2], "-o", output).code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".monosoup-verify-link").symlink_to(elsewhere)
    before = everything_in(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.glob(".monosoup-verify-*") if not path.is_symlink())
    monkeypatch.chdir(out)
    opened = open_output(".")

    @contextmanager
    def watch(tensors):
        assert not left.exists()
        held = set(tmp_path.glob(".monosoup-verify-*"))
        assert len(held) == 2
        assert run("verify", other, "--again").code == 0
        assert set(tmp_path.glob(".monosoup-verify-*")) == held
        yield lambda tensor, is_done: None

    found = check(opened, inputs=False)
    make_again(found, opened, ".", watch)
    assert (found.again, found.differences) == (True, [])
    assert everything_in(tmp_path) == before


def test_inputs_of_another_folder_are_told_as_by_inputs(run, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("edit", "base", "ft1", "-o", "out").code == 0
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    result = run("verify", "out", "--again", "-q")
    assert "error: base: no such file or folder; run this in a folder from which this path" in result.err
    (tmp_path / "base").symlink_to("elsewhere")
    assert run("verify", "out", "--again", "--inputs").code == 0
    (tmp_path / "base").unlink()
    (tmp_path / "moved").mkdir()
    for name, new in (("elsewhere", "base"), ("ft1", "ft1")):
        (tmp_path / name).rename(tmp_path / "moved" / new)
    monkeypatch.chdir(tmp_path / "moved")
    assert run("verify", "../out", "--again", "--inputs").code == 0


def test_a_report_without_inputs_is_noted(run, inputs, tmp_path):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0
    rewrite(out / REPORT, lambda report: report.update(inputs=[]))
    result = run("verify", out, "--inputs")
    assert (result.code, result.err) == (0, "note: the report names no inputs: not checked\n")
    assert "inputs as" not in result.out
    assert monosoup_cli.verify(out, inputs=True)["inputs"] is False


def test_inputs_that_changed_are_found(run, inputs, tmp_path):
    base, finetuned = inputs[:2]
    assert run("edit", base, finetuned, "-o", tmp_path / "out").code == 0

    def found():
        result = run("verify", tmp_path / "out", "--inputs", "--format", "json")
        differences = json.loads(result.out)["differences"]
        assert result.code == (1 if differences else 0)
        return [(one["path"], one["problem"]) for one in differences]

    assert found() == []
    good = (base / "model.safetensors").read_bytes()
    tensors = load_file(base / "model.safetensors")
    save_file(tensors, base / "model.safetensors", metadata={"format": "np"})
    assert found() == [(str(base / "model.safetensors"), "another header than in the report")]
    save_file({**tensors, "more": torch.ones(3)}, base / "model.safetensors")
    assert found() == [(str(base / "model.safetensors"), "another size than in the report")]
    (base / "model.safetensors").write_bytes(good)
    (finetuned / "model.safetensors").rename(finetuned / "weights.safetensors")
    assert found() == [(str(finetuned), "other files of weights than in the report")]
    (finetuned / "weights.safetensors").write_bytes(b"{}")
    assert [path for path, _ in found()] == [str(finetuned / "weights.safetensors")]
    shutil.rmtree(finetuned)
    assert found() == [(str(finetuned), "no such file or folder")]
    compared = monosoup_cli.verify(tmp_path / "out", inputs=True)["compared"]
    assert compared == ["sizes", "headers", "configurations"]  # those of the base, with other times
    shutil.rmtree(base)
    assert monosoup_cli.verify(tmp_path / "out", inputs=True)["compared"] == []


def test_names_in_a_report_lead_to_no_other_file_and_to_no_traceback(run, inputs, tmp_path):
    out, long = tmp_path / "out", "x" * 300
    assert run("edit", *inputs[:2], "-o", out).code == 0

    def change(report):
        names = ("/etc/passwd", "../ft1/config.json", long)
        times = {"bytes": 1, "modified": "2026-01-01T00:00:00.000000000Z"}
        report["inputs"][0]["other_files"] = [{"name": name, **times} for name in names]

    rewrite(out / REPORT, change)
    result = run("verify", out, "--inputs")
    assert (result.code, "passwd" in result.err, "config.json" in result.err) == (0, False, False)
    assert (result.err.count("\n"), f"note: {inputs[0] / long} cannot be read any more; " in result.err) == (
        1,
        True,
    )
    rewrite(out / REPORT, lambda report: report["inputs"][0].update(source=f"{tmp_path}/{long}"))
    result = run("verify", out, "--inputs")
    assert (result.code, result.err.count("\n"), "no such file or folder" in result.err) == (1, 1, True)


@pytest.mark.parametrize("output", ["a\0b", "a\ud800b", "/x/..", "/", ""])
def test_the_name_of_an_output_leads_nowhere(run, inputs, tmp_path, output):
    assert run("edit", *inputs[:2], "-o", tmp_path / "out").code == 0
    rewrite(tmp_path / "out" / REPORT, lambda report: report["arguments"].update(output=output))
    assert run("verify", tmp_path / "out", "--again").code == 0
    rewrite(tmp_path / "out" / REPORT, lambda report: report["output"]["files"][0].update(name=output))
    assert "names a file outside of the output" in run("verify", tmp_path / "out").err


def test_inputs_on_the_hub_are_those_of_one_commit(run, inputs, tmp_path, client):
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        commit = hub.add("org/base", inputs[0])
        hub.add("org/ft", inputs[1])
        assert run("edit", "org/base", "org/ft", "-o", tmp_path / "out").code == 0
        assert run("verify", tmp_path / "out", "--inputs", "--again").code == 0
        now = hub.add(
            "org/base", {"model.safetensors": inputs[2] / "model.safetensors", "config.json": b"{}"}
        )
        result = run("verify", tmp_path / "out", "--inputs")
        assert result.err == (
            f"error: org/base: another commit than in the report: expected {commit}, found {now}\n"
        )
        assert run("verify", tmp_path / "out", "--again").code == 0  # of the commits in the report
        hub.clear()
        rewrite(tmp_path / "out" / REPORT, lambda report: report["inputs"][0].update(revision=None))
        assert "no such file or folder" in run("verify", tmp_path / "out", "--inputs").err
        assert "org/base" not in {request.repository for request in hub.requests}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy", {"a": 1}),
        ("finetuned", 7),
        ("finetuned", [7]),
        ("finetuned", []),
        ("output", []),
        ("base", None),
        ("include", "x"),
        ("include", [[]]),
        ("dtype", []),
        ("workers_", 1),
        ("device", 3),
        ("rename", [1]),
        ("state_dict", False),
        ("max_shard_size", [1]),
        ("partial", "yes"),
        ("progress", 1),
        ("watch", 1),
    ],
)
def test_arguments_that_a_command_does_not_take_are_refused(run, inputs, tmp_path, name, value):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0
    rewrite(out / REPORT, lambda report: report["arguments"].update({name: value}))
    before = everything_in(tmp_path)
    result = run("verify", out, "--again", "-q")
    assert result.code != 0
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(f"error: {out / REPORT}: "), result
    assert everything_in(tmp_path) == before


def test_a_command_that_writes_nothing_is_told_with_the_report(run, inputs, tmp_path):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0
    rewrite(out / REPORT, lambda report: report.update(command="report"))
    result = run("verify", out, "--again", "-q")
    assert result.err.startswith(f"error: {out / REPORT}: has a command that writes no checkpoint: ")


def test_another_environment_is_named(run, inputs, tmp_path):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0

    def change(report):
        report["environment"]["torch"] = "1.0"
        report["output"]["files"][0]["sha256"] = "0" * 64

    rewrite(out / REPORT, change)
    result = run("verify", out, "--again")
    assert f"; not as in that run: torch {torch.__version__}, not 1.0; go back to" in result.err


def test_the_environment_is_named_before_times_which_are_one_fact(run, inputs, tmp_path):
    """Of other weights, only the times of weights are."""
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("edit", *inputs[:2], "-o", out).code == 0

    def change(report):
        report["environment"]["torch"] = "1.0"
        report["output"]["files"][0]["sha256"] = "0" * 64

    rewrite(out / REPORT, change)
    for path in (one / name for one in inputs[:2] for name in ("model.safetensors", "config.json")):
        os.utime(path)
    torches = f"not as in that run: torch {torch.__version__}, not 1.0"
    result = run("verify", out, "--again")
    assert f"; {torches}, times of modification of 3 files; go back to" in result.err
    assert run("run", out, "-o", again).err.count(f"; {torches}, times of modification of 2 files\n") == 1


def test_inputs_that_were_modified_are_noted_and_named_where_the_bytes_differ(run, inputs, tmp_path):
    out, weights = tmp_path / "out", inputs[0] / "model.safetensors"
    assert run("edit", *inputs[:2], "-o", out).code == 0
    os.utime(weights)
    result = run("verify", out, "--inputs", "--again")
    assert (result.code, result.err.count(f"note: {weights} was modified since the run; only --again")) == (
        0,
        1,
    )
    assert result.out.endswith(
        "; inputs as in the run: sizes, headers, configurations; made again: the same bytes\n"
    )
    save_file({name: one + 1 for name, one in load_file(weights).items()}, weights, {"format": "pt"})
    found = monosoup_cli.verify(out, inputs=True, again=True)
    assert [one["problem"] for one in found["differences"]] == ["made again, it has other bytes"]
    assert f"not as in that run: {weights} (time of modification); " in found["differences"][0]["hint"]
    assert found["compared"] == ["sizes", "headers", "configurations"]


def test_every_option_accepts_its_own_default():
    assert all(one.accepts(one.default) for one in monosoup_cli.edit.declared.values())
    assert not DeclaredOption("n", int, None, Option("")).accepts(True)
