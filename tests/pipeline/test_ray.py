"""Runs on a real Ray cluster of three nodes: the bytes of one machine, whatever dies."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.outputs.workplace import partial_path, parts_path
from tests.ray_cluster import started

pytest.importorskip("ray")

SIDE = 640
MATRICES = 24


@pytest.fixture(scope="module")
def cluster():
    with started() as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pair whose edit takes some seconds, and what one machine makes of it."""
    folder = tmp_path_factory.mktemp("ray")
    generator = torch.Generator().manual_seed(0)
    base = {f"{number}.weight": torch.randn(SIDE, SIDE, generator=generator) for number in range(MATRICES)}
    tuned = {name: one + 0.1 * torch.randn(SIDE, SIDE, generator=generator) for name, one in base.items()}
    for name, tensors in (("base", base), ("ft", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    monosoup_cli.edit(folder / "base", folder / "ft", folder / "whole", device="cpu")
    return folder


WEIGHTS = "model.safetensors"


def check(place, out):
    assert (out / WEIGHTS).read_bytes() == (place / "whole" / WEIGHTS).read_bytes()
    assert monosoup_cli.verify(out)["differences"] == []
    assert not parts_path(out).exists()
    assert not partial_path(out).exists()


def wait_for_parts(out, count, driver):
    """Wait until so many parts are made."""
    deadline = time.monotonic() + 120
    while len([*parts_path(out).glob("*/part.json")]) < count:
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


BINDING = """
import sys, traceback
bound = []
def note(event, arguments):
    if event == "socket.bind":
        bound.append([frame.filename for frame in traceback.extract_stack()][-2])
sys.addaudithook(note)
from monosoup_cli.cli.app import main
code = main()
print("bound by", [file for file in bound if "monosoup_cli" in file], file=sys.stderr)
sys.exit(code)
"""
"""Runs the command line, and says which of our files have bound a socket. Ray binds its own."""


def test_three_nodes_make_the_bytes_of_one_machine(cluster, place, tmp_path):
    """And nothing listens that we opened."""
    command = ("edit", place / "base", place / "ft", "-o", tmp_path / "out")
    done = cluster.run(*command, program=("-c", BINDING))
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("bound by []\n")
    check(place, tmp_path / "out")
    out = tmp_path / "sweep"
    done = cluster.run("wise", "base", "ft", "--alpha", "0,0.5", "-o", out, "--quiet", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    monosoup_cli.wise(place / "base", place / "ft", tmp_path / "one", alpha=[0, 0.5], device="cpu")
    made = sorted((tmp_path / "one").glob("*/model.safetensors"))
    assert len(made) == 2
    for path in made:
        assert (out / path.parent.name / WEIGHTS).read_bytes() == path.read_bytes()


def test_an_extracted_adapter(cluster, place, tmp_path):
    """Its factors are a part's own, as its weights are of whole checkpoints."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    options = ("--as-adapter", "--adapter-rank", "4", "--quiet")
    done = cluster.run("edit", "base", "ft", "-o", out, *options, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    monosoup_cli.edit(place / "base", place / "ft", alone, as_adapter=True, adapter_rank=4, device="cpu")
    names = sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def test_a_driver_that_is_killed_is_resumed(cluster, place, tmp_path):
    out = tmp_path / "out"
    command = ("edit", place / "base", place / "ft", "-o", out, "--quiet")
    driver = cluster.start(*command)
    wait_for_parts(out, 1, driver)
    driver.kill()
    driver.communicate()
    assert not out.exists()
    refused = cluster.run(*command)
    assert refused.returncode == 1
    assert "there are parts of an earlier run (--resume goes on with them" in refused.stderr
    made = {path: path.stat().st_mtime_ns for path in parts_path(out).glob("*/part.json")}
    driver = cluster.start(*command, "--resume")
    kept = {}
    while driver.poll() is None:
        for path in made:
            if path.exists():
                kept[path] = path.stat().st_mtime_ns
        time.sleep(0.05)
    _, errors = driver.communicate()
    assert driver.returncode == 0, errors
    assert {path: made[path] for path in kept} == kept
    check(place, out)


def test_what_cannot_be_used_is_said_in_a_line(cluster, place, tmp_path):
    command = ("edit", place / "base", place / "ft", "-o", tmp_path / "out")
    program = "import sys; sys.modules['ray'] = None; from monosoup_cli.cli.app import main; sys.exit(main())"
    nobody = {**cluster.environment, "RAY_ADDRESS": "127.0.0.1:9"}
    no_token = {**cluster.environment, "RAY_AUTH_MODE": "disabled"}
    for start, environment, problem in (
        (["-c", program], cluster.environment, "--engine ray needs Ray: pip install"),
        (
            ["-m", "monosoup_cli"],
            nobody,
            "no Ray cluster at 127.0.0.1:9, which RAY_ADDRESS names: [Errno 111]",
        ),
        (
            ["-m", "monosoup_cli"],
            no_token,
            "this process has no token (RAY_AUTH_MODE=token has a Ray cluster",
        ),
    ):
        words = [sys.executable, *start, *map(str, command), "--engine", "ray"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {problem}")
        assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_cluster_without_tokens_is_refused_unless_it_is_asked_for(place, tmp_path):
    with started(nodes=1, token=False) as cluster:
        command = ("edit", place / "base", place / "ft", "-o", tmp_path / "out", "--quiet")
        cluster.environment |= {"RAY_AUTH_MODE": "disabled"}
        refused = cluster.run(*command)
        assert refused.returncode == 2
        assert (
            "whoever reaches a cluster without tokens can run code on it (CVE-2023-48022)" in refused.stderr
        )
        done = cluster.run(*command, "--insecure-cluster")
        assert done.returncode == 0, done.stderr
    check(place, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs to mount")
def test_a_node_that_does_not_see_the_output_is_named(cluster, place, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    words = ["-m", "monosoup_cli", "edit", place / "base", place / "ft", "-o", hidden / "out"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", hidden, sys.executable, *words, "--engine", "ray"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot write in {hidden}/out.parts (No such file or directory)" in done.stderr
    assert "inputs and output must be on a path that all nodes see" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_node_that_dies_is_done_without(cluster, place, tmp_path):
    """The last test: the cluster has a node less from now on."""
    out = tmp_path / "out"
    driver = cluster.start("edit", place / "base", place / "ft", "-o", out, "--quiet")
    wait_for_parts(out, 1, driver)
    cluster.kill_a_node()
    assert not out.exists()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    check(place, out)
