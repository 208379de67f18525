"""Plans and reports from Python: what the shell prints as JSON, and nothing written."""

import json

import pytest
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import UsageError

VARYING = ("estimated_seconds", "memory_bytes")
COMMANDS = {
    "edit": ((), {}),
    "edit --wise": (("--wise", "0.5,0.9"), {"wise": "0.5,0.9"}),
    "stock": (("--granularity", "filter"), {"granularity": "filter"}),
    "wise": (("--alpha", "0.5"), {"alpha": 0.5}),
    "sfgs": (("--threshold", "0.5"), {"threshold": 0.5}),
    "extract": (("--rank", "2"), {"rank": 2}),
}


@pytest.fixture
def sources(pair, tmp_path):
    """A base and three fine-tunes."""
    tuned = load_file(pair.finetuned)
    for number in (2, 3):
        save_file(
            {name: one * (1 + number / 100) for name, one in tuned.items()},
            tmp_path / f"{number}.safetensors",
        )
    return [pair.base, pair.finetuned, tmp_path / "2.safetensors", tmp_path / "3.safetensors"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_plan_is_that_of_a_dry_run(sources, tmp_path, run, name):
    command, (options, keywords) = name.split()[0], COMMANDS[name]
    base, *tuned = sources if command in ("stock", "sfgs") else sources[:2]
    before = sorted(tmp_path.rglob("*"))
    printed = run(command, base, *tuned, "-o", tmp_path / "out", *options, "--dry-run", "--format", "json")
    assert printed.code == 0, printed.err
    found = getattr(monosoup_cli, command).plan(base, tuned, tmp_path / "out", **keywords)
    assert sorted(tmp_path.rglob("*")) == before
    said = json.loads(printed.out)
    assert found["memory_bytes"] > 0
    for one in (found, said):
        for key in VARYING:
            del one[key]
    assert json.loads(json.dumps(found)) == said
    assert len(found["layers"]) == len(load_file(tuned[0]))


def test_a_plan_refuses_as_the_command_does(pair, tmp_path):
    with pytest.raises(UsageError, match=r"^rank is out of range"):
        monosoup_cli.extract.plan(*pair, tmp_path / "out", rank=0)
    with pytest.raises(TypeError, match=r"did you mean 'rank'"):
        monosoup_cli.extract.plan(*pair, tmp_path / "out", ranks=1)
    with pytest.raises(TypeError, match=r"did you mean 'extract.plan'"):
        monosoup_cli.extract(*pair, tmp_path / "out", rank=1, dry_run=True)
    with pytest.raises(TypeError, match=r"did you mean 'finetuned'"):
        monosoup_cli.merge(pair.base, output=tmp_path / "out", adapters=[pair.finetuned])
    assert monosoup_cli.edit.plan.__name__ == "plan_edit"
    assert "--dry-run" in monosoup_cli.edit.plan.__doc__


def test_reports_are_read_and_compared(pair, tmp_path, run):
    for number, energy in enumerate((0.5, 0.9)):
        monosoup_cli.edit(*pair, tmp_path / f"out{number}", energy=energy)
    outs = [tmp_path / "out0", tmp_path / "out1"]
    assert monosoup_cli.read_report(outs[0]) == json.loads((outs[0] / "monosoup_report.json").read_text())
    found = monosoup_cli.compare(*outs)
    assert json.loads(json.dumps(found)) == json.loads(run("compare", *outs, "--format", "json").out)
