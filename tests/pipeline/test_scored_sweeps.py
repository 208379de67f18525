"""`wise`, `lines` and `edit` with --score: a real command scores every checkpoint before OUT appears."""

import json
import re
import shlex

import pytest

import monosoup_cli
from monosoup_cli.errors import ScoreError, UsageError
from monosoup_cli.outputs.workplace import partial_path
from tests.landscape import Landscape
from tests.outputs.forks import Forks


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture
def land(tmp_path):
    return Landscape(tmp_path / "land")


@pytest.fixture
def target(land, tmp_path):
    """The checkpoint at α = 0.5, which is in the sweeps below."""
    monosoup_cli.wise(land.base, land.ft, tmp_path / "target", alpha=0.5, device="cpu")
    return tmp_path / "target"


def sweep(land, out, target, *more):
    words = ("wise", land.base, land.ft, "-o", out, "--alpha", "0:1:0.25", "--device", "cpu")
    return (*words, "--score", f"near={land.command(target)}", *more)


def scores_of(report):
    return [output["scores"]["near"] for output in report["outputs"]]


def test_every_checkpoint_is_scored_whole_and_the_best_is_named(run, land, target, tmp_path):
    done = run(*sweep(land, tmp_path / "out", target))
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    found = {output["arguments"]["alpha"]: output["scores"]["near"] for output in report["outputs"]}
    assert max(found, key=found.get) == 0.5
    assert found[0.5] == 0.0
    assert len(land.runs) == 5
    for output, scored in zip(report["outputs"], land.runs, strict=True):
        assert output["files"][0]["sha256"] == scored["sha256"]
        assert {"README.md", "config.json", "model.safetensors"} == {*scored["beside"]}
        own = json.loads(
            (
                tmp_path / "out" / f"alpha-{output['arguments']['alpha']:g}" / "monosoup_report.json"
            ).read_text()
        )
        assert own["output"]["scores"] == output["scores"]
    assert 0.0 < report["timing"]["score_seconds"] < report["timing"]["seconds"]
    for said in (done.err, run("report", tmp_path / "out").out):
        assert re.search(r"^time +[\d.]+ s, of which [\d.]+ s in score commands *$", said, re.MULTILINE)
    assert "scoring alpha-0.25\n" in done.err
    (best,) = [line for line in done.err.splitlines() if line.endswith("best")]
    assert best.split()[0] == "alpha-0.5"
    shown = run("report", tmp_path / "out", "--plot", tmp_path / "x.png", "--html", tmp_path / "x.html")
    assert best in shown.out
    assert (tmp_path / "x.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("command", "options", "out"),
    [
        ("wise", {"alpha": 0.5}, "out.safetensors"),
        ("wise", {"alpha": 0.5}, "out"),
        ("edit", {}, "out"),
        ("edit", {"wise": "0.2,0.5", "energy": "0.5,0.9"}, "out"),
        ("edit", {"as_adapter": True, "adapter_rank": 2}, "out"),
        ("lines", {"alpha": "0.2,0.5", "beta": "0,0.5"}, "out"),
    ],
)
def test_what_is_scored_is_what_appears(land, tmp_path, command, options, out):
    """The command copies what it is given, which is then what OUT has, but for the reports."""
    saved = shlex.quote(str(tmp_path / "saved"))
    score = f"mkdir -p {saved}; n=$(ls {saved} | wc -l); cp -r {{}} {saved}/$n; echo $n"
    report = getattr(monosoup_cli, command)(
        land.base,
        land.ft,
        tmp_path / out,
        score=score,
        device="cpu",
        **({"exclude": "*bias"} if "as_adapter" in options else {}),
        **options,
    )
    outputs = report.get("outputs") or [report["output"]]
    for number, output in enumerate(outputs):
        assert output["scores"] == {"score": float(number)}
        copied = tmp_path / "saved" / str(number)
        names = [file["name"] for file in (*output["files"], *output["other_files"])]
        for name in names:
            path = copied if copied.is_file() else copied / name
            place = (
                tmp_path / out
                if copied.is_file()
                else tmp_path / out / output["path"].partition(f"{out}/")[2]
            )
            assert path.read_bytes() == (place if copied.is_file() else place / name).read_bytes()


def test_lines_to_several_are_the_single_ones(land, tmp_path):
    monosoup_cli.lines(
        land.base, land.ft, tmp_path / "several", alpha="0.2,0.5", beta=[0.0, 0.5], device="cpu"
    )
    for alpha in (0.2, 0.5):
        for beta in (0, 0.5):
            one = tmp_path / f"{alpha}-{beta}"
            monosoup_cli.lines(land.base, land.ft, one, alpha=alpha, beta=beta, device="cpu")
            name = f"alpha-{alpha}-beta-{beta}"
            several = tmp_path / "several" / name
            assert (one / "model.safetensors").read_bytes() == (several / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [1, 3])
def test_a_command_that_fails_loses_nothing(run, land, target, tmp_path, number):
    out = tmp_path / "out"
    mended = land.at(number, "fail")
    failed = run(*sweep(land, out, target))
    assert failed.code == 1
    assert "no luck today" in failed.err
    assert "what is finished is kept" in failed.err
    assert not out.exists()
    mended.unlink()
    resumed = run(*sweep(land, out, target, "--resume"))
    assert resumed.code == 0, resumed.err
    lines = resumed.err.splitlines()
    assert [line for line in lines if line.startswith("scoring ")] == [
        f"scoring alpha-{alpha:g}" for alpha in (0, 0.25, 0.5, 0.75, 1)[number - 1 :]
    ]
    assert sum(", kept: near " in line for line in lines) == number - 1
    scored = [each["sha256"] for each in land.runs]
    assert len(scored) == 6
    assert scored[number - 1] == scored[number]  # the one that failed, once more
    assert len({*scored}) == 5


def test_killed_at_a_score_and_resumed(land, target, tmp_path, forks):
    whole = tmp_path / "whole"
    assert forks.run(*sweep(land, whole, target)).code == 0
    land.forget()
    out = tmp_path / "out"
    killed = land.at(3, "kill")
    assert forks.run(*sweep(land, out, target)).code == -9
    killed.unlink()
    assert not out.exists()
    ended = forks.run(*sweep(land, out, target, "--resume"))
    assert ended.code == 0, ended.err
    scored = [each["sha256"] for each in land.runs]
    assert len(scored) == 6
    assert len({*scored}) == 5
    reports = [json.loads((path / "monosoup_report.json").read_text()) for path in (whole, out)]
    assert scores_of(reports[0]) == scores_of(reports[1])
    for path in whole.rglob("*.safetensors"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()


def test_another_command_may_resume(land, target, tmp_path):
    """A mistake in the command must not cost the sweep; what the first command has scored is not taken for
    a score of the other one."""
    out, options = tmp_path / "out", {"alpha": "0,0.5", "device": "cpu"}
    with pytest.raises(ScoreError, match="what is finished is kept"):
        monosoup_cli.wise(land.base, land.ft, out, score="case {} in *0.5) exit 1; esac; echo 7", **options)
    report = monosoup_cli.wise(
        land.base, land.ft, out, score=f"near={land.command(target)}", resume=True, **options
    )
    assert scores_of(report)[1] == 0.0
    assert 7 not in scores_of(report)


def test_what_a_command_leaves_is_not_published(run, land, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    words = ("wise", land.base, land.ft, "-o", out, "--alpha", "0.3,0.5", "--device", "cpu", "--score")
    name = shlex.quote(str(log))
    score = f"echo >> {name}; test $(wc -l < {name}) = 1 && touch {{}}/cache; echo 1"
    refused = run(*words, score)
    assert refused.code == 1
    assert "appeared among the files of the run" in refused.err
    assert len(log.read_text().splitlines()) == 1  # it stops at once
    assert not out.exists()
    assert run(*words, score, "--resume").code == 0
    assert len(log.read_text().splitlines()) == 2
    assert not [*out.rglob("cache")]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("echo 1", "score needs {}"),
        (["echo {}", "cat {}"], "two of score are called 'score'"),
        (["a=echo {}", "a=cat {}"], "two of score are called 'a'"),
        ("ACC=python3 eval.py {}", "score='acc=COMMAND' names a score"),
        ("in_dist=sh -c {}", "score='in-dist=COMMAND' names a score"),
        ("Acc-1=cat {}", "score='acc-1=COMMAND' names a score"),
    ],
)
def test_bad_commands_are_refused_at_once(land, tmp_path, score, message):
    with pytest.raises(UsageError, match=message):
        monosoup_cli.wise(land.base, land.ft, tmp_path / "out", alpha=0.5, score=score)
    assert not partial_path(tmp_path / "out").exists()


@pytest.mark.parametrize("variable", ["VALUE=3", "X=sh VALUE=3", "X=sh . /dev/null; VALUE=3"])
def test_a_variable_of_the_shell_is_no_name(land, tmp_path, variable):
    score = f"{variable} sh -c 'echo $VALUE' {{}}"
    report = monosoup_cli.wise(land.base, land.ft, tmp_path / "out", alpha=0.5, score=score, device="cpu")
    assert report["output"]["scores"] == {"score": 3.0}


def test_a_dry_run_counts_and_scores_nothing(run, land, target, tmp_path):
    done = run(*sweep(land, tmp_path / "out", target, "--score", "more=echo 1 {}", "--dry-run"))
    assert "score        at most 10 times" in done.out.replace("score       at", "score        at")
    assert land.runs == []


def test_it_is_verified_without_scoring(land, target, tmp_path, run):
    out = tmp_path / "out"
    assert run(*sweep(land, out, target)).code == 0
    land.forget()
    assert run("verify", out, "--again").code == 0
    assert land.runs == []
