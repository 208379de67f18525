"""Greedy and similarity-filtered soups of a real family: small networks trained here, scored by a
real command, killed and resumed.

Every choice is compared with a plain loop over weights in float64, written here.
"""

import fcntl
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

import monosoup_cli
from monosoup_cli.cli.app import main
from monosoup_cli.errors import ResumeError, UsageError
from monosoup_cli.outputs.workplace import partial_path
from monosoup_cli.report.rows import rows_of
from monosoup_cli.report.verdict import verdict_of
from tests.conftest import everything_in

COMMAND = [sys.executable, "-m", "monosoup_cli"]
CLASSES, SIZE, HIDDEN = 8, 20, 32


class Family(NamedTuple):
    """A base network and what was fine-tuned from it; the labelled points that score them."""

    base: Path
    finetuned: list[Path]
    held_out: Path

    def score(self, weights):
        with np.load(self.held_out) as points:
            return accuracy(weights, points["inputs"], points["labels"])


def accuracy(weights, inputs, labels):
    """Of the network, in float64. The score script has this very function."""
    weights = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    hidden = np.maximum(inputs @ weights["0.weight"].T + weights["0.bias"], 0)
    found = (hidden @ weights["2.weight"].T + weights["2.bias"]).argmax(1)
    return float((found == labels).mean())


def points(generator, count, *, turn=0.0):
    """Noisy points around the corners of a random simplex; `turn` moves the corners."""
    corners = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(1))
    corners = corners + turn * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return corners[labels] + 1.6 * torch.randn(count, SIZE, generator=generator), labels


def train(network, inputs, labels, *, steps, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        batch = torch.randint(len(labels), (32,), generator=generator)
        loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Five fine-tunes that differ in seed, rate and data; the best of them once more, under another
    name, which ties with it; and one that saw wrong labels alone, which spoils every soup."""
    folder = tmp_path_factory.mktemp("family")
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is too small to gain from more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    train(network, *points(generator, 2000), steps=300, rate=0.03, seed=0)
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(base, folder / "base.safetensors", {"format": "pt"})
    inputs, labels = points(generator, 900, turn=0.7)
    held_out = points(generator, 400, turn=0.7)
    np.savez(folder / "held_out.npz", inputs=held_out[0].numpy(), labels=held_out[1].numpy())
    made = Family(folder / "base.safetensors", [], folder / "held_out.npz")
    for seed in range(6):
        network.load_state_dict(base)
        some, rate = slice(120 * seed, 120 * seed + 160), 0.03 * (1 + seed % 3)
        if seed < 5:
            train(network, inputs[some], labels[some], steps=60, rate=rate, seed=seed)
        else:
            train(network, inputs, (labels + seed) % CLASSES, steps=80, rate=0.05, seed=seed)
        path = folder / f"{'tuned' if seed < 5 else 'spoilt'}-{seed}.safetensors"
        save_file(network.state_dict(), path, {"format": "pt"})
        made.finetuned.append(path)
    torch.set_num_threads(threads)
    best = max(made.finetuned, key=lambda path: made.score(load_file(path)))
    twin = folder / "twin.safetensors"
    twin.write_bytes(best.read_bytes())
    made.finetuned.insert(3, twin)
    return made


def mean_of(paths):
    """A plain mean in float64, stored as the checkpoints are."""
    checkpoints = [load_file(path) for path in paths]
    if len(checkpoints) == 1:
        return checkpoints[0]
    return {
        name: (sum(each[name].astype(np.float64) for each in checkpoints) / len(checkpoints)).astype(
            np.float32
        )
        for name in checkpoints[0]
    }


def greedy_by_hand(family, *, is_strict=False, scores=None):
    """What the report says of a greedy soup, from a plain loop."""
    if scores is None:
        scores = {path: family.score(load_file(path)) for path in family.finetuned}
    order = sorted(family.finetuned, key=lambda path: scores[path], reverse=True)
    members, best, trials = [], -1.0, []
    for candidate in order:
        score = family.score(mean_of([*members, candidate]))
        joined = not members or (score > best if is_strict else score >= best)
        trials.append({"candidate": str(candidate), "score": score, "joined": joined})
        if joined:
            members, best = [*members, candidate], score
    return {
        "scores": [{"source": str(path), "score": scores[path]} for path in family.finetuned],
        "order": [str(path) for path in order],
        "trials": trials,
        "members": [str(path) for path in members],
    }


def assert_is_mean(path, members):
    found, expected = load_file(path), mean_of(members)
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


SCRIPT = """
import fcntl, hashlib, json, os, sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file

{accuracy}

here, given = Path(__file__).parent, Path(sys.argv[1])
file = given / "model.safetensors" if given.is_dir() else given
with open(here / "log", "a") as log:
    side = sorted(path.name for path in given.iterdir()) if given.is_dir() else []
    run = {{"path": str(given), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "side": side}}
    log.write(json.dumps(run) + "\\n")
number = len((here / "log").read_text().splitlines())
hang = here / "hang at"
if hang.exists() and hang.read_text() == str(number):
    held = open(here / "held", "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    (here / "hanging now").write_text(str(os.getpid()))
    (here / "hanging now").rename(here / "hanging")
    time.sleep(300)
with np.load({held_out!r}) as points:
    score = accuracy(load_file(file), points["inputs"], points["labels"])
print("loaded 1.0 of", file)
print("accuracy:", score)
print(score)
print()
"""


class Scorer:
    """A real score command, which writes down what it was run on; it hangs at a run of choice."""

    def __init__(self, folder, family):
        folder.mkdir()
        self.folder = folder
        source = inspect.getsource(accuracy)
        (folder / "score.py").write_text(SCRIPT.format(accuracy=source, held_out=str(family.held_out)))
        self.command = f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'score.py'))} {{}}"

    @property
    def runs(self):
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def scored(self):
        """The content of every checkpoint that was scored."""
        return [run["sha256"] for run in self.runs]

    def hang_at(self, number):
        (self.folder / "hang at").write_text(str(number))

    def wait_until_hanging(self, process):
        wait_for(lambda: (self.folder / "hanging").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        return int((self.folder / "hanging").read_text())

    def is_hanging(self):
        """Whether the run that hangs is still alive: it holds a lock."""
        with open(self.folder / "held", "w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def scorer(tmp_path, family):
    return Scorer(tmp_path / "scorer", family)


def start(*argv):
    words = [str(word) for word in argv]
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def journal_of(out):
    """The whole lines of the journal, but for the first."""
    try:
        text = (partial_path(out) / "journal").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True)[1:] if line.endswith("\n")]


def is_draft(path, out, suffix):
    """Whether a path is that of a trial: inside the work that is not finished."""
    return Path(path).parent == partial_path(out) and Path(path).suffix == suffix


def lines_of(out, kind):
    """How many of the journal's lines begin so."""
    journal = partial_path(out) / "journal"
    return journal.read_bytes().count(b"\n" + kind) if journal.exists() else 0


def noted_scores(out):
    return [entry["content"] for entry in journal_of(out) if entry.get("note", "").startswith("score ")]


def written(out):
    return [entry["tensor"] for entry in journal_of(out) if "tensor" in entry]


# -- soup --greedy -----------------------------------------------------------------------------


class Whole(NamedTuple):
    """A greedy soup that nothing stopped: of what, its file and report, what its command was run on."""

    finetuned: list[Path]
    out: Path
    report: dict
    scored: list[str]


def without_a_break(family, folder, count):
    scorer, out, some = (
        Scorer(folder / "scorer", family),
        folder / "out.safetensors",
        family.finetuned[:count],
    )
    report = monosoup_cli.soup(some, out, greedy=True, score_command=scorer.command)
    return Whole(some, out, report, scorer.scored)


@pytest.fixture(scope="module")
def whole(family, tmp_path_factory):
    return without_a_break(family, tmp_path_factory.mktemp("whole"), len(family.finetuned))


@pytest.fixture(scope="module")
def few(family, tmp_path_factory):
    """Of three checkpoints: five runs of the command, of which two are trials."""
    return without_a_break(family, tmp_path_factory.mktemp("few"), 3)


def test_the_family_has_every_kind_of_trial(family):
    """A candidate that helps, one that ties, and one that does not."""
    lenient, strict = greedy_by_hand(family), greedy_by_hand(family, is_strict=True)
    assert 3 <= len(lenient["members"]) < len(family.finetuned)
    assert len(strict["members"]) >= 2
    assert strict["members"] != lenient["members"]
    assert len({entry["score"] for entry in lenient["scores"]}) >= 4


def test_greedy_is_a_plain_loop(family, whole):
    expected = greedy_by_hand(family)
    assert whole.report["selection"] == expected
    assert len(whole.scored) == 2 * len(family.finetuned) - 1, "each alone, and each trial but the first"
    assert_is_mean(whole.out, expected["members"])
    last = [trial for trial in expected["trials"] if trial["joined"]][-1]
    assert family.score(load_file(whole.out)) == last["score"]
    assert not partial_path(whole.out).exists()
    (file,) = whole.report["output"]["files"]
    assert file["sha256"] == hashlib.sha256(whole.out.read_bytes()).hexdigest()


def test_greedy_accepts_only_what_is_better_if_told_so(run, family, scorer, tmp_path):
    out = tmp_path / "out.safetensors"
    result = run(
        "soup",
        *family.finetuned,
        "-o",
        out,
        "--greedy",
        "--score-command",
        scorer.command,
        "--accept",
        "gt",
        "--format",
        "json",
    )
    assert result.code == 0
    expected = greedy_by_hand(family, is_strict=True)
    assert json.loads(result.out)["selection"] == expected
    assert_is_mean(out, expected["members"])
    for path in family.finetuned:
        assert f"{path}: {family.score(load_file(path)):g}\n" in result.err
    said = [line for line in result.err.splitlines() if line.startswith("trial ")]
    assert len(said) == len(family.finetuned)
    for line, trial in zip(said, expected["trials"], strict=True):
        assert trial["candidate"] in line
        assert line.endswith(f"{trial['score']:g}, {'joined' if trial['joined'] else 'left out'}")
    alone = {one["source"]: one["score"] for one in expected["scores"]}
    lines = result.err.splitlines()
    (start,) = (
        at for at, line in enumerate(lines) if line.split() == ["candidate", "alone", "with", "members"]
    )
    for line, trial in zip(lines[start + 1 :], expected["trials"], strict=False):
        _, source, *scores, decision = re.split(r"\s{2,}", line.strip())
        assert source == trial["candidate"]
        assert scores == [f"{alone[source]:.6g}", f"{trial['score']:.6g}"]
        assert decision == ("joined" if trial["joined"] else "left out")


def test_given_scores_are_only_the_order(run, family, scorer, tmp_path):
    """Backwards here, so that the worst comes first: it and the trials are scored, nothing else."""
    scores = {path: -family.score(load_file(path)) for path in family.finetuned}
    given = {
        os.path.relpath(path) if number % 2 else str(path): score
        for number, (path, score) in enumerate(scores.items())
    }
    (tmp_path / "scores.json").write_text(json.dumps(given))
    out = tmp_path / "out.safetensors"
    result = run(
        "soup",
        *family.finetuned,
        "-o",
        out,
        "--greedy",
        "--score-command",
        scorer.command,
        "--scores",
        tmp_path / "scores.json",
    )
    assert result.code == 0
    expected = greedy_by_hand(family, scores=scores)
    assert json.loads((tmp_path / "out.report.json").read_text())["selection"] == expected
    assert len(scorer.runs) == len(family.finetuned)
    assert scorer.runs[0]["path"] == expected["order"][0]
    assert_is_mean(out, expected["members"])


def test_the_soup_of_the_members_is_the_same(run, whole, tmp_path):
    members = whole.report["selection"]["members"]
    assert run("soup", *members, "-o", tmp_path / "again.safetensors").code == 0
    assert (tmp_path / "again.safetensors").read_bytes() == whole.out.read_bytes()


def greedy_command(whole, out, scorer, *options):
    return ("soup", *whole.finetuned, "-o", out, "--greedy", "--score-command", scorer.command, *options)


def assert_resumed(out, whole):
    """The same members, trials and bytes as if nothing had happened."""
    assert out.read_bytes() == whole.out.read_bytes()
    found = json.loads(out.with_name("out.report.json").read_text())
    assert found["selection"] == whole.report["selection"]
    assert found["layers"] == whole.report["layers"]
    assert not partial_path(out).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 10])
def test_killed_while_scoring_and_resumed(run, scorer, whole, tmp_path, number):
    """Among the first scores, and among the trials: only the run that was cut off is run again."""
    out = tmp_path / "out.safetensors"
    scorer.hang_at(number)
    process = start(*greedy_command(whole, out, scorer))
    orphan = scorer.wait_until_hanging(process)
    process.kill()
    process.communicate()
    os.kill(orphan, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(noted_scores(out)) == number - 1
    assert not out.exists()
    assert run(*greedy_command(whole, out, scorer, "--resume")).code == 0
    assert_resumed(out, whole)
    expected = list(whole.scored)
    expected.insert(number, expected[number - 1])
    assert scorer.scored == expected


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_score_command_too(run, scorer, few, tmp_path, sent, code):
    out = tmp_path / "out.safetensors"
    scorer.hang_at(4)
    scorer.command += "; exit $?"  # so that the shell has a child of its own
    process = start(*greedy_command(few, out, scorer))
    scorer.wait_until_hanging(process)
    assert scorer.is_hanging()
    process.send_signal(sent)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "error: interrupted" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not scorer.is_hanging())
    assert not out.exists()
    assert len(noted_scores(out)) == 3
    assert run(*greedy_command(few, out, scorer, "--resume")).code == 0
    assert_resumed(out, few)
    assert scorer.scored == [*few.scored[:4], *few.scored[3:]]


class Enough(Exception):
    """Stands for whatever stops a run."""


def stop(tensor, is_done):
    if is_done:
        raise Enough


def test_stopped_while_writing_and_resumed(scorer, few, tmp_path):
    """Every score is known by then, and none is asked for again."""
    out = tmp_path / "out.safetensors"
    options = {"greedy": True, "score_command": scorer.command}
    with pytest.raises(Enough):
        monosoup_cli.soup(few.finetuned, out, workers=1, progress=stop, **options)
    assert scorer.scored == few.scored
    assert not out.exists()
    monosoup_cli.soup(few.finetuned, out, resume=True, **options)
    assert scorer.scored == few.scored
    assert_resumed(out, few)


def test_a_draft_that_a_kill_cut_off_is_made_anew(scorer, few, tmp_path):
    """What a kill leaves while a draft is being written: an unfinished run of its own."""
    out = tmp_path / "out.safetensors"
    options = {"greedy": True, "score_command": scorer.command}
    with pytest.raises(Enough):
        monosoup_cli.soup(few.finetuned, out, workers=1, progress=stop, **options)
    journal = partial_path(out) / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]))
    draft = Path(scorer.runs[3]["path"])
    assert is_draft(draft, out, ".safetensors")
    with pytest.raises(Enough):
        monosoup_cli.soup(few.finetuned[:2], draft, overwrite=True, workers=1, progress=stop)
    assert partial_path(draft).exists()
    monosoup_cli.soup(few.finetuned, out, resume=True, **options)
    assert_resumed(out, few)
    assert scorer.scored == few.scored + few.scored[3:]


ACTIONS = {
    "exit 3": ("echo 0.5; exit 3", "failed with exit code 3"),
    "killed": ("kill -9 $$", "failed with "),
    "nothing": ("exit 0", "printed no number: found nothing"),
    "nan": ("echo 0.5; echo nan; exit 0", "printed no number: found 'nan'"),
    "inf": ("echo inf; exit 0", "printed no number: found 'inf'"),
    "text": ("echo 0.5; echo all done; exit 0", "printed no number: found 'all done'"),
}


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_failing_command_loses_no_trial(run, family, tmp_path, action, number):
    """It fails at one run, of a checkpoint alone or of a trial, until it is mended."""
    does, says = ACTIONS[action]
    out, some = tmp_path / "out.safetensors", family.finetuned[:3]
    folder = tmp_path / "scorer"
    folder.mkdir()
    log, script = folder / "log", folder / "score.sh"
    good = f'printf "%s\\n" "$1" >> {shlex.quote(str(log))}\necho loaded\necho " 0.5 "\n'
    script.write_text(
        f'touch {shlex.quote(str(log))}\nif [ "$(wc -l < {shlex.quote(str(log))})" -eq {number - 1} ]; then\n'
        f"echo it broke >&2; {does}\nfi\n{good}"
    )
    options = ("--greedy", "--score-command", f"sh {shlex.quote(str(script))} {{}}")
    result = run("soup", *some, "-o", out, *options)
    assert (result.code, result.out) == (1, "")
    said = result.err.splitlines()
    (error,) = [line for line in said if line.startswith("error: ")]
    assert says in error
    assert "--resume" in error
    assert [line.strip() for line in said[said.index(error) + 1 :]][:1] == ["it broke"]
    assert not out.exists()
    assert noted_scores(out) == [0.5] * (number - 1)
    assert run("soup", *some, "-o", out, *options).code == 1, "neither --resume nor --overwrite"
    script.write_text(good)
    assert run("soup", *some, "-o", out, *options, "--resume").code == 0
    *alone, one, two = log.read_text().splitlines()
    assert alone == list(map(str, some))
    assert all(is_draft(path, out, ".safetensors") for path in (one, two))
    selection = json.loads((tmp_path / "out.report.json").read_text())["selection"]
    assert selection["members"] == list(map(str, some))
    assert [trial["score"] for trial in selection["trials"]] == [0.5, 0.5, 0.5]
    assert_is_mean(out, some)


def test_of_one_member_alone_it_is_a_copy(run, family, tmp_path):
    out, command = tmp_path / "out", ("--greedy", "--score-command", ": {}; echo 1", "--accept", "gt")
    (tmp_path / "scores.json").write_text(
        json.dumps({str(path): n for n, path in enumerate(family.finetuned)})
    )
    assert run("soup", *family.finetuned, "-o", out, *command, "--scores", tmp_path / "scores.json").code == 0
    selection = json.loads((out / "monosoup_report.json").read_text())["selection"]
    assert selection["members"] == [str(family.finetuned[-1])]
    assert (out / "model.safetensors").read_bytes() == family.finetuned[-1].read_bytes()
    card = (out / "README.md").read_text()
    assert f"- fine-tuned: `{family.finetuned[-1].name}`" in card
    assert f"- fine-tuned: `{family.finetuned[0].name}`" not in card


def usage(base):
    """Arguments, what the error says."""
    scores, without, text = (base / name for name in ("all", "without", "text"))
    command = ("--score-command", ": {}; echo 1")
    return {
        "no command": (["--greedy"], "--score-command"),
        "no place": (["--greedy", "--score-command", "echo 1"], "{}"),
        "command without greedy": ([*command], "--greedy"),
        "scores without greedy": (["--scores", scores], "--greedy"),
        "accept without greedy": (["--accept", "gt"], "--greedy"),
        "too few weights": (["--weights", "0.5"], "expected 2 of them, found 1"),
        "too many weights": (["--weights", "1,2,3"], "expected 2 of them, found 3"),
        "no numbers": (["--weights", "1,a"], "numbers"),
        "negative weights": (["--weights", "1,-1"], "at least 0"),
        "weights of zero": (["--weights", "0,0"], "not all 0"),
        "nan among the weights": (["--weights", "1,nan"], "weights"),
        "weights with greedy": (["--greedy", *command, "--weights", "1,1"], "exclude each other"),
        "a missing score": (["--greedy", *command, "--scores", without], "no score for"),
        "a score of text": (["--greedy", *command, "--scores", text], "no score for"),
        "unknown accept": (["--greedy", *command, "--accept", "lt"], "--accept"),
    }


@pytest.mark.parametrize("case", usage(Path()))
def test_wrong_usage_of_soup(run, family, tmp_path, case):
    one, two = family.finetuned[:2]
    (tmp_path / "all").write_text(json.dumps({str(one): 1, str(two): 2}))
    (tmp_path / "without").write_text(json.dumps({str(one): 1}))
    (tmp_path / "text").write_text(json.dumps({str(one): 1, str(two): "2"}))
    before = everything_in(tmp_path)
    options, says = usage(tmp_path)[case]
    result = run("soup", one, two, "-o", tmp_path / "out", *options)
    assert result.code == 2, result
    assert says in result.err
    assert "Traceback" not in result.err
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("command", ["soup", "sfgs"])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), True, None])
def test_scores_that_are_no_numbers_are_refused(run, family, tmp_path, command, score):
    one, two = family.finetuned[:2]
    scores, out = {str(one): 0.5, str(two): score}, tmp_path / "out"
    if command == "soup":
        call = partial(monosoup_cli.soup, greedy=True, score_command=": {}; echo 1")
    else:
        call = partial(monosoup_cli.sfgs, family.base, threshold=0.0)
    with pytest.raises(UsageError, match=r"no score for .*expected a number"):
        call([one, two], output=out, scores=scores)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    options = {"soup": ("--greedy", "--score-command", ": {}; echo 1"), "sfgs": ("--threshold", 0)}[command]
    base = [family.base] if command == "sfgs" else []
    result = run(command, *base, one, two, "-o", out, *options, "--scores", tmp_path / "scores.json")
    assert result.code in (1, 2), result
    assert "scores.json" in result.err
    assert list(tmp_path.iterdir()) == [tmp_path / "scores.json"]


def test_paths_are_quoted_for_the_shell(run, family, scorer, tmp_path):
    """Of the inputs and of the draft: blanks, quotes, a dollar, a substitution, a leading dash."""
    folder = tmp_path / """it's a "real" $HOME `id`; & *"""
    folder.mkdir()
    names = ["a b.safetensors", "-c'd.safetensors"]
    for name, path in zip(names, family.finetuned, strict=False):
        (folder / name).write_bytes(path.read_bytes())
    out = folder / "out put.safetensors"
    sources = [folder / name for name in names]
    result = run("soup", *sources, "-o", out, "--greedy", "--score-command", scorer.command)
    assert result.code == 0
    *alone, draft = [run["path"] for run in scorer.runs]
    assert alone == list(map(str, sources))
    assert is_draft(draft, out, ".safetensors")


def test_folders_are_scored_as_folders(run, family, scorer, tmp_path):
    """A draft is a whole checkpoint, with its side files: what loads an input loads it, too."""
    sources = []
    for number, path in enumerate(family.finetuned[:3]):
        sources.append(tmp_path / f"tuned {number}")
        sources[-1].mkdir()
        (sources[-1] / "model.safetensors").write_bytes(path.read_bytes())
        (sources[-1] / "config.json").write_text("{}")
    out = tmp_path / "out"
    result = run("soup", *sources, "-o", out, "--greedy", "--score-command", scorer.command)
    assert result.code == 0
    *alone, one, two = [run["path"] for run in scorer.runs]
    assert alone == list(map(str, sources))
    assert all(is_draft(path, out, "") for path in (one, two))
    assert all({"config.json", "model.safetensors"} <= set(run["side"]) for run in scorer.runs)
    expected = greedy_by_hand(family._replace(finetuned=family.finetuned[:3]))
    selection = json.loads((out / "monosoup_report.json").read_text())["selection"]
    assert [trial["score"] for trial in selection["trials"]] == [t["score"] for t in expected["trials"]]
    assert_is_mean(
        out / "model.safetensors",
        [family.finetuned[:3][sources.index(Path(member))] for member in selection["members"]],
    )
    files = sorted(path.name for path in out.iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "monosoup_report.json"]


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_the_draft_is_like_the_inputs_not_like_the_output(run, family, scorer, tmp_path, out):
    result = run(
        "soup", *family.finetuned[:2], "-o", tmp_path / out, "--greedy", "--score-command", scorer.command
    )
    assert result.code == 0
    assert is_draft(scorer.runs[-1]["path"], tmp_path / out, ".safetensors")


# -- sfgs --------------------------------------------------------------------------------------


def similarity_by_hand(family, *, with_vectors=False):
    base, checkpoints = load_file(family.base), [load_file(path) for path in family.finetuned]
    layers = []
    for name, before in base.items():
        if before.ndim >= 2 or with_vectors:
            updates = np.stack([(each[name].astype(np.float64) - before).ravel() for each in checkpoints])
            updates /= np.linalg.norm(updates, axis=1, keepdims=True)
            layers.append(updates @ updates.T)
    return np.mean(layers, axis=0)


def members_by_hand(family, matrix, threshold, order=None):
    order = range(len(family.finetuned)) if order is None else order
    members = []
    for candidate in order:
        if not members or np.mean([matrix[candidate, member] for member in members]) >= threshold:
            members.append(candidate)
    return [str(family.finetuned[member]) for member in members]


@pytest.mark.parametrize("with_vectors", [False, True])
def test_sfgs_is_a_plain_loop(family, tmp_path, with_vectors):
    matrix = similarity_by_hand(family, with_vectors=with_vectors)
    seen = set()
    for threshold in (-1.0, 0.0, 0.2, 0.4, 0.6, 0.8, 0.99, 1.5):
        out = tmp_path / f"{threshold}.safetensors"
        report = monosoup_cli.sfgs(
            family.base, family.finetuned, out, threshold=threshold, include_vectors=with_vectors
        )
        found, expected = report["selection"], members_by_hand(family, matrix, threshold)
        assert np.array(found["similarity"]) == pytest.approx(matrix, abs=1e-9)
        assert found["layers"] == (4 if with_vectors else 2)
        assert found["order"] == [str(path) for path in family.finetuned]
        assert found["members"] == expected
        joined = [entry["candidate"] for entry in found["decisions"] if entry["joined"]]
        assert [found["order"][0], *joined] == expected
        assert_is_mean(out, expected)
        assert family.score(load_file(out)) == family.score(mean_of(expected))
        seen.add(len(expected))
    assert {1, len(family.finetuned)} < seen, "all, one, and something between"


def test_sfgs_counts_the_layers_that_moved(tmp_path):
    base = {"moved": torch.eye(4), "frozen": torch.eye(4)}
    for name, scale in (("base", 1), ("one", 2), ("two", 3)):
        save_file(base | {"moved": scale * base["moved"]}, tmp_path / f"{name}.safetensors")
    inputs = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")]
    plan = monosoup_cli.sfgs.plan(inputs[0], inputs[1:], tmp_path / "out", threshold=0.5)
    assert plan["selection"]["layers"] == 1


def test_a_soup_of_one_checkpoint_is_told_as_a_copy(family, tmp_path):
    report = monosoup_cli.sfgs(family.base, family.finetuned, tmp_path / "out", threshold=1.5)
    told = " ".join((tmp_path / "out" / "README.md").read_text().split())
    count = len(family.finetuned)
    assert f"The weights of one of {count} fine-tuned checkpoints. No other one joined it in a soup." in told
    assert verdict_of(report, rows_of(report))["findings"] == []


def test_sfgs_thresholds_say_what_others_would_choose(family, tmp_path):
    matrix = similarity_by_hand(family)
    report = monosoup_cli.sfgs(family.base, family.finetuned, tmp_path / "out.safetensors", threshold=0.5)
    choices = report["selection"]["thresholds"]
    assert choices[0] == {"highest": None, "members": [str(family.finetuned[0])]}
    assert choices[-1]["members"] == [str(path) for path in family.finetuned]
    highest = [choice["highest"] for choice in choices[1:]]
    assert highest == sorted(highest, reverse=True)
    for choice, following in zip(choices[1:], [*choices[2:], {"highest": -2.0}], strict=True):
        for threshold in (choice["highest"] - 1e-9, (choice["highest"] + following["highest"]) / 2):
            assert members_by_hand(family, matrix, threshold) == choice["members"]


def test_sfgs_starts_with_the_best_score(run, family, tmp_path):
    scores = {str(path): family.score(load_file(path)) for path in family.finetuned}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    result = run(
        "sfgs",
        family.base,
        *family.finetuned,
        "-o",
        tmp_path / "out.safetensors",
        "--threshold",
        "0.5",
        "--scores",
        tmp_path / "scores.json",
        "--format",
        "json",
    )
    assert result.code == 0
    report = json.loads(result.out)
    numbers = range(len(family.finetuned))
    order = sorted(numbers, key=lambda number: -scores[str(family.finetuned[number])])
    assert report["selection"]["order"] == [str(family.finetuned[number]) for number in order]
    expected = members_by_hand(family, similarity_by_hand(family), 0.5, order)
    assert report["selection"]["members"] == expected
    assert 1 < len(expected) < len(family.finetuned)
    assert_is_mean(tmp_path / "out.safetensors", expected)


def sizes(path):
    """(bytes of the header, of the tensors)."""
    content = Path(path).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    return header, len(content) - header


@pytest.mark.parametrize("threshold", [0.5, 1.5])
def test_sfgs_reads_once_what_is_left_out_and_twice_what_is_averaged(family, tmp_path, threshold):
    report = monosoup_cli.sfgs(family.base, family.finetuned, tmp_path / "out", threshold=threshold)
    members = report["selection"]["members"]
    assert 1 <= len(members) < len(family.finetuned)
    for entry in report["inputs"]:
        header, data = sizes(entry["source"])
        times = 2 if entry["source"] in members else 1
        assert entry["bytes_read"] == header + times * data, entry["source"]
    assert report["timing"]["bytes_read"] == sum(entry["bytes_read"] for entry in report["inputs"])


def test_a_dry_run_of_sfgs_shows_the_choice_and_writes_nothing(run, family, tmp_path):
    command = ("sfgs", family.base, *family.finetuned, "-o", tmp_path / "out", "--threshold", "0.5")
    table = run(*command, "--dry-run")
    plan = run(*command, "--dry-run", "--format", "json")
    assert (table.code, plan.code) == (0, 0)
    assert list(tmp_path.iterdir()) == []
    assert run(*command).code == 0
    selection = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())["selection"]
    assert json.loads(plan.out)["selection"] == selection
    lines = table.out.splitlines()
    for row in selection["similarity"]:
        pattern = re.compile(r"\D+".join(re.escape(f"{value:.3f}") for value in row))
        assert any(pattern.search(line) for line in lines)
    for decision in selection["decisions"]:
        words = (
            decision["candidate"],
            f"{decision['similarity']:.4f}",
            "joined" if decision["joined"] else "out",
        )
        assert any(all(word in line for word in words) for line in lines)
    for choice in selection["thresholds"][1:]:
        rounded_down = math.floor(choice["highest"] * 1e4) / 1e4  # typed again, it chooses the same
        assert any(f"up to {rounded_down:.4f}" in line for line in lines)
    assert any(all(member in line for member in selection["members"]) for line in lines)


LAYERS = 1000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A family of so many small layers that there is time to be killed in: three whose updates are
    similar, and one that went the other way. With its soup, made without a break."""
    folder = tmp_path_factory.mktemp("many")
    generator = torch.Generator().manual_seed(0)

    def noise(scale):
        return {f"layers.{n}.w": scale * torch.randn(16, 16, generator=generator) for n in range(LAYERS)}

    base, common = noise(1.0), noise(0.1)
    save_file(base, folder / "base.safetensors")
    for number, direction in enumerate((1, 1, -1, 1)):
        own = noise(0.05)
        tensors = {name: base[name] + direction * common[name] + own[name] for name in base}
        save_file(tensors, folder / f"tuned-{number}.safetensors")
    finetuned = sorted(folder.glob("tuned-*"))
    report = monosoup_cli.sfgs(folder / "base.safetensors", finetuned, folder / "whole", threshold=0.5)
    assert report["selection"]["members"] == [str(finetuned[number]) for number in (0, 1, 3)]
    return folder, report


@pytest.mark.slow
@pytest.mark.parametrize("is_writing", [False, True], ids=["comparing", "writing"])
def test_sfgs_killed_and_resumed(run, many, tmp_path, is_writing):
    folder, whole = many
    out, finetuned = tmp_path / "out", sorted(folder.glob("tuned-*"))
    command = ("sfgs", folder / "base.safetensors", *finetuned, "-o", out, "--threshold", "0.5")
    process = start(*command)

    kind = b'{"tensor"' if is_writing else b'{"note"'
    wait_for(lambda: lines_of(out, kind) >= 5 or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    noted = [entry["note"] for entry in journal_of(out) if "note" in entry]
    assert len(noted) == len(set(noted))
    done = set(written(out))
    if is_writing:
        assert (len(noted), 5 <= len(done) < LAYERS) == (LAYERS, True)
    else:
        assert (5 <= len(noted) < LAYERS, len(done)) == (True, 0)
    refused = run(*command[:-1], "0.4", "--resume")
    assert refused.code == 1
    assert "threshold" in refused.err
    assert run(*command, "--resume").code == 0
    report = json.loads((out / "monosoup_report.json").read_text())
    assert report["selection"] == whole["selection"]
    assert (out / "model.safetensors").read_bytes() == (folder / "whole" / "model.safetensors").read_bytes()
    item = 4 * 16 * 16
    for entry in report["inputs"]:
        is_member = entry["source"] in report["selection"]["members"]
        passes = item * (LAYERS - len(noted)) + is_member * item * (LAYERS - len(done))
        sampled = item * 8  # to see whether they are kin
        assert entry["bytes_read"] == sizes(entry["source"])[0] + sampled + passes, "what was not done yet"


def test_an_unfinished_greedy_soup_is_not_resumed_with_another_command(family, scorer, tmp_path):
    out, some = tmp_path / "out.safetensors", family.finetuned[:2]
    options = {"greedy": True, "score_command": scorer.command}
    with pytest.raises(Enough):
        monosoup_cli.soup(some, out, workers=1, progress=stop, **options)
    scores = dict.fromkeys(map(str, some), 1.0)
    for change in ({"score_command": ": {}; echo 1"}, {"accept": "gt"}, {"scores": scores}):
        with pytest.raises(ResumeError, match=next(iter(change))):
            monosoup_cli.soup(some, out, resume=True, **{**options, **change})
    assert main(["soup", *map(str, some), "-o", str(out), "--resume"]) == 1
    monosoup_cli.soup(some, out, resume=True, **options)
    assert len(scorer.runs) == 3
