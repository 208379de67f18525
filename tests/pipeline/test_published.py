"""The published form of a report: what it loses, and what it keeps."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

from monosoup_cli.api.commands import COMMANDS
from monosoup_cli.pipeline.published import published, published_reports
from monosoup_cli.report.files import read_report
from tests.cli.test_app import SCHEMA

SECRET = "--pin=0000-abc"


@pytest.fixture
def inputs(tmp_path):
    """Checkpoints in folders that tell something; two have the same last name."""
    made = [tmp_path / "alice's models" / place for place in ("base", "first/ft", "second/ft", "third/other")]
    for seed, folder in enumerate(made):
        folder.mkdir(parents=True)
        normal = torch.Generator().manual_seed(seed)
        save_file({"a.weight": torch.randn(6, 4, generator=normal)}, folder / "model.safetensors")
    return made


def of(report):
    return published(report, COMMANDS[report["command"]].declared)


def test_a_greedy_soup_goes_without_folders_and_command(inputs, run, tmp_path):
    out, scores = tmp_path / "alice's models" / "out", tmp_path / "scores.json"
    scores.write_text(json.dumps({str(path): number for number, path in enumerate(inputs[1:])}))
    words = ["--greedy", "--scores", scores, "--score-command", f"true {SECRET} {{}}; echo 1"]
    assert run("soup", *inputs[1:], "-o", out, *words).code == 0
    local = read_report(out)
    assert SECRET in local["arguments"]["score_command"]
    made = of(local)
    jsonschema.validate(made, SCHEMA)
    text = json.dumps(made)
    for word in ("alice", str(tmp_path), SECRET, "third"):
        assert word not in text
    assert made["arguments"]["score_command"] == "…"
    assert [one["source"] for one in made["inputs"]] == ["ft", "ft (2)", "other"]
    assert made["arguments"]["scores"] == {"ft": 0, "ft (2)": 1, "other": 2}
    assert made["selection"]["order"] == ["other", "ft (2)", "ft"]
    same = {"layers", "summary", "timing", "environment", "tool", "schema_version", "command", "only_in_base"}
    assert {name: made[name] for name in same} == {name: local[name] for name in same}
    assert made["output"] == {**local["output"], "path": "out"}
    assert made.keys() == local.keys()


def test_every_report_of_a_sweep(inputs, run, tmp_path):
    out = tmp_path / "out"
    assert run("wise", inputs[0], inputs[1], "-o", out, "--alpha", "0.3,0.6").code == 0
    made = published_reports(out, out / "monosoup_report.json", COMMANDS["wise"].declared)
    assert set(made) == {str(path.relative_to(out)) for path in out.rglob("monosoup_report.json")}
    assert len(made) == 3
    assert not any(word in text for text in made.values() for word in (b"alice", str(tmp_path).encode()))
    assert json.loads(made["alpha-0.3/monosoup_report.json"])["output"]["path"] == "out/alpha-0.3"


def test_a_report_of_another_name_in_the_output(inputs, run, tmp_path):
    out = tmp_path / "out"
    assert run("edit", inputs[0], inputs[1], "-o", out, "--report", out / "r.json").code == 0
    assert set(published_reports(out, out / "r.json", {})) == {"r.json"}
    assert published_reports(out, tmp_path / "r.json", {}) == {}


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("custom code is copied, not run: a.py", None),
        ("config.json at /data/alice/x.json, b at /data/y/b", "config.json at x.json, b at b"),
        ("pass 'runs/alice/ft/adapter' as FINETUNED", "pass 'ft/adapter' as FINETUNED"),
        ("runs/alice/ft: 3 tensors and/or 1 / 2 of ~/old/base", "ft: 3 tensors and/or 1 / 2 of base"),
        ("hf://org/name/folder of https://host/org/name stays", None),
        ("--carry-base 'lm_head.*' writes */a/b", None),
        ("x at /data/al ice/my dir/c.json, y at ../../al ice/d", "x at c.json, y at d"),
    ],
)
def test_sentences(inputs, run, tmp_path, note, told):
    assert run("edit", inputs[0], inputs[1], "-o", tmp_path / "out").code == 0
    report = read_report(tmp_path / "out")
    report["inputs"][1]["source"] = "runs/alice/ft"
    assert of({**report, "notes": [note]})["notes"] == [note if told is None else told]


def test_ids_on_the_hub_stay(inputs, run, tmp_path):
    assert run("edit", inputs[0], inputs[1], "-o", tmp_path / "out").code == 0
    report = read_report(tmp_path / "out")
    report["inputs"][0] |= {"source": "org/base@main", "revision": "f" * 40}
    report["arguments"]["base"] = "org/base@main"
    made = of(report)
    assert (made["inputs"][0]["source"], made["arguments"]["base"]) == ("org/base@main", "org/base@main")
    assert (made["inputs"][1]["source"], made["arguments"]["finetuned"]) == ("ft", ["ft"])


def test_relative_paths(inputs, run, monkeypatch):
    monkeypatch.chdir(inputs[0].parent)
    assert run("edit", "base", "./first/ft", "-o", Path("first") / ".." / "out").code == 0
    made = of(read_report(Path("out")))
    assert [one["source"] for one in made["inputs"]] == ["base", "ft"]
    assert made["output"]["path"] == "out"


def test_names_in_the_output_stay(inputs, run, tmp_path):
    assert run("edit", inputs[0], inputs[1], "-o", tmp_path / "out").code == 0
    report = read_report(tmp_path / "out")
    name = "vae/model.safetensors"
    report["inputs"][1]["source"] = name
    report["output"]["other_files"].append({"name": name, "bytes": 1, "sha256": "0" * 64})
    assert of(report)["output"]["other_files"][-1]["name"] == name
