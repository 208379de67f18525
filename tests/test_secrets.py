"""Every command, in an environment full of secrets: nothing that it leaves or prints has one of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hub import Hub

RUN = """
import json, sys, traceback
from monosoup_cli.cli.app import main
for words in json.load(open(sys.argv[1])):
    try:
        print("exit code", main(words))
    except Exception:  # MONOSOUP_DEBUG
        traceback.print_exc()
        print("exit code 1")
    sys.stdout.flush()
"""
"""Runs many command lines in one process, since each import of torch takes seconds."""

PLANTED = {
    "USER": "plantedUserName",
    "LOGNAME": "plantedUserName",
    "AWS_SECRET_ACCESS_KEY": "plantedAwsSecret/x+1",
    "OPENAI_API_KEY": "sk-plantedKey",
    "WANDB_API_KEY": "plantedWandbKey",
    "HTTPS_PROXY": "http://plantedProxyUser:plantedProxyPassword@127.0.0.1:9",
    "SOME_SETTING": "plantedValue",
}
STORED = "hf_plantedStoredToken0123456789"
TYPED = "hf_plantedTypedToken0123456789"
"""A token in a score command."""

SCORE = f"HF_TOKEN={TYPED} wc -c < {{}}/model.safetensors"
FAIL = f"HF_TOKEN={TYPED}; echo $HF_TOKEN >&2; test $(basename {{}}) = ft && echo 1"
"""Scores one checkpoint, and fails at the next, so that there is something to resume."""
HUB = "https://plantedUrlUser:plantedUrlPassword@hub.example/org/base/resolve/main/a?token=plantedQuery"
LOCAL = [
    ("edit", "base", "ft", "-o", "edited"),
    ("edit", "base", "ft", "-o", "adapter", "--as-adapter", "--adapter-rank", "2"),
    ("edit", "base", "adapter", "-o", "merged"),
    ("stock", "base", "ft", "ft2", "-o", "stock", "--report", "stock.json"),
    ("soup", "ft", "ft2", "-o", "soup.safetensors"),
    ("soup", "ft", "ft2", "-o", "greedy", "--greedy", "--score-command", SCORE),
    ("sfgs", "base", "ft", "ft2", "-o", "sfgs", "--threshold", "0.5"),
    ("wise", "base", "ft", "-o", "sweep", "--alpha", "0.3,0.6"),
    ("wise", "base", "ft", "-o", "scored", "--alpha", "0.3,0.6", "--score", SCORE),
    ("search", "base", "ft", "-o", "found", "--budget", "2", "--score", SCORE, "--final-score", f"{SCORE} #"),
    ("lines", "base", "ft", "-o", "lines", "--alpha", "0.2", "--beta", "0.8"),
    ("inspect-spectrum", "base", "ft", "--html", "page.html", "--format", "json"),
    ("edit", "base", "ft", "-o", "dry", "--dry-run", "--format", "json"),
    ("report", "greedy"),
    ("report", "edited", "--format", "csv"),
    ("compare", "edited", "lines"),
    ("cka", "features.safetensors", "--html", "cka.html", "--format", "csv"),
]
FAILING = [
    ("edit", "base", "nowhere", "-o", "failed"),
    ("edit", HUB, "ft", "-o", "failed"),
    ("edit", "base", "broken", "-o", "failed"),
    ("edit", "base", "nan", "-o", "failed"),
    ("edit", "base", "ft", "-o", "edited"),
    ("soup", "ft", "ft2", "-o", "failed", "--greedy", "--score-command", FAIL),
    ("wise", "base", "ft", "-o", "unscored", "--alpha", "0.3", "--score", FAIL),
    ("report", "nowhere"),
]
ON_THE_HUB = [
    ("edit", "org/base", "org/ft", "-o", "of-the-hub"),
    ("edit", "org/base", "org/nowhere", "-o", "failed"),
    ("edit", "base", "ft", "-o", "pushed", "--push", "owner/edited"),
    ("edit", "base", "ft", "-o", "pushed", "--push", "owner/edited"),
    ("edit", "base", "ft", "-o", "refused", "--push", "strangers/edited"),
    ("soup", "ft", "ft2", "-o", "soup", "--greedy", "--score-command", SCORE, "--push", "owner/soup"),
    (
        "search",
        "base",
        "ft",
        "-o",
        "pushed-found",
        "--budget",
        "2",
        "--score",
        SCORE,
        "--push",
        "owner/found",
    ),
    (
        "edit",
        "base",
        "ft",
        "-o",
        "pushed-scored",
        "--wise",
        "0.5,1",
        "--score",
        SCORE,
        "--push",
        "owner/scored",
    ),
]


def write(folder, seed, *, value=None):
    normal = torch.Generator().manual_seed(seed)
    shapes = {"model.layers.0.q_proj.weight": (8, 6), "model.layers.1.q_proj.weight": (8, 6), "norm": (8,)}
    tensors = {name: torch.randn(shape, generator=normal) for name, shape in shapes.items()}
    if value is not None:
        tensors["model.layers.0.q_proj.weight"][0, 0] = value
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["X"], "model_type": "x"}')


class Home:
    """A home with a token, and a folder in it in which the commands run."""

    def __init__(self, place: Path, hub: Hub) -> None:
        self.path = place / "plantedHome"
        self.work = self.path / "work"
        self.work.mkdir(parents=True)
        self.hub = hub
        self.hf_home = self.path / "hf"
        self.hf_home.mkdir()
        (self.hf_home / "token").write_text(STORED)
        for seed, name in enumerate(("base", "ft", "ft2")):
            write(self.work / name, seed)
        write(self.work / "nan", 3, value=float("nan"))
        write(self.work / "broken", 4)
        os.truncate(self.work / "broken" / "model.safetensors", 300)
        save_file({"0": torch.eye(3), "1": torch.ones(3, 2)}, self.work / "features.safetensors")
        self.before = set(self.work.rglob("*"))

    def run(self, commands, **more):
        """What the commands print, both streams in one, after checking their exit codes."""
        plan = self.path / "plan.json"
        plan.write_text(json.dumps(commands))
        env = self.hub.env(self.hf_home, **PLANTED, HOME=str(self.path), PYTHONPATH=os.getcwd(), **more)
        done = subprocess.run(
            [sys.executable, "-c", RUN, plan],
            env=env,
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        codes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("exit code")]
        assert done.returncode == 0, done.stdout
        return codes, done.stdout

    def left(self):
        """Everything that is new in the folder: its name and its content."""
        for path in sorted(self.work.rglob("*")):
            if path not in self.before and path.is_file():
                yield str(path.relative_to(self.work)).encode() + b"\n" + path.read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield Home(tmp_path_factory.mktemp("secrets"), hub)


def secrets_in(content, home):
    """The planted secrets in some bytes."""
    values = [value for name, value in PLANTED.items() if name != "HTTPS_PROXY"]
    values += [STORED, TYPED, home.hub.token, str(home.path), "plantedHome", "plantedProxy", "plantedUrl"]
    values.append("plantedQuery")
    return [value for value in values if value.encode() in content]


@pytest.fixture(scope="module")
def ran(home):
    """What was printed by all runs, in their order."""
    codes, text = home.run(LOCAL)
    assert codes == [0] * len(LOCAL), text
    codes, failing = home.run(FAILING)
    assert codes == [1] * len(FAILING), failing
    codes, debugged = home.run(FAILING, MONOSOUP_DEBUG="1")
    assert codes == [1] * len(FAILING), debugged
    assert debugged.count("Traceback") >= len(FAILING)
    for name in ("base", "ft"):
        home.hub.add(f"org/{name}", home.work / name)
    codes, remote = home.run(ON_THE_HUB, HF_TOKEN=home.hub.token)
    assert codes == [0, 1, 0, 1, 1, 0, 0, 0], remote
    return text, failing, debugged, remote


def test_nothing_is_printed(ran, home):
    for text in ran:
        assert not secrets_in(text.encode(), home), text


def test_nothing_is_left(ran, home):
    names = []
    for content in home.left():
        names.append(content.partition(b"\n")[0].decode())
        assert not secrets_in(content, home), content[:2000]
    assert "failed.partial/journal" in names
    assert "greedy/monosoup_report.json" in names


def test_nothing_is_sent(ran, home):
    hub = home.hub
    for name in ("owner/edited", "owner/soup", "owner/scored", "owner/found"):
        files = hub.files(name)
        assert "monosoup_report.json" in files
        for path in files.values():
            content = path.read_bytes()
            assert not secrets_in(content, home)
            assert b"wc -c" not in content
    assert all(not secrets_in(request.path.encode(), home) for request in hub.requests)
    assert not [request for request in hub.requests if request.origin == "cdn" and request.had_authorization]


def test_the_local_report_keeps_what_was_typed(ran, home):
    report = json.loads((home.work / "greedy" / "monosoup_report.json").read_text())
    assert report["arguments"]["score_command"] == SCORE.replace(TYPED, "hf_…")


@pytest.mark.thorough
def test_a_proxy_that_does_not_answer(home):
    codes, text = home.run(
        [("edit", "org/base", "org/ft", "-o", "far")], NO_PROXY="", HTTP_PROXY=PLANTED["HTTPS_PROXY"]
    )
    assert codes == [1]
    assert not secrets_in(text.encode(), home), text
    shutil.rmtree(home.work / "far", ignore_errors=True)
