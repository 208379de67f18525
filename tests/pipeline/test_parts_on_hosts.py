"""Parts on several hosts: processes with a mount, a network and a host name of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import monosoup_cli
from tests.conftest import small_tensors

ROOT = Path(__file__).parents[2]


def is_possible() -> bool:
    done = (
        subprocess.run(["unshare", "--mount", "--net", "--uts", "true"], capture_output=True, check=False)
        if shutil.which("unshare")
        else None
    )
    return done is not None and done.returncode == 0


@pytest.mark.skipif(not is_possible(), reason="needs the right to make namespaces")
def test_hosts_that_mount_the_same_folder(tmp_path, monkeypatch):
    """At the same time, each with its own mount of the shared folder at a path that only it has."""
    shared, place = tmp_path / "shared", tmp_path / "nodes"
    shared.mkdir()
    place.mkdir()
    for seed, name in enumerate(("base", "ft")):
        (shared / name).mkdir()
        many = {f"{block}.{key}": one for block in range(20) for key, one in small_tensors(seed).items()}
        save_file(many, shared / name / "model.safetensors", {"format": "pt"})
    script = (
        'mount --bind "$1" "$2" && hostname "$3" && cd "$2" && exec "$4" -m monosoup_cli edit base ft -o out'
        ' --part "$5" --device cpu -q'
    )
    hosts = [
        subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--uts", "sh", "-c", script, "sh"),
                *(str(shared), str(place), f"node{number}", sys.executable, f"{number}/3"),
            ],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in (1, 2, 3)
    ]
    for host in hosts:
        _, errors = host.communicate(timeout=300)
        assert host.returncode == 0, errors.decode()
    assert not [*place.iterdir()]
    monkeypatch.chdir(shared)
    monosoup_cli.finish("out")
    monosoup_cli.edit(shared / "base", shared / "ft", tmp_path / "whole", device="cpu")
    weights = "model.safetensors"
    assert (shared / "out" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_machines_without_a_common_disk(hub, tmp_path, monkeypatch):
    """Ids on the Hub are known by their commits. Every machine has a cache and a folder of its own."""
    for seed, name in enumerate(("base", "ft")):
        many = {f"{block}.{key}": one for block in range(8) for key, one in small_tensors(seed).items()}
        save_file(many, tmp_path / "weights", {"format": "pt"})
        hub.add(f"org/{name}", {"model.safetensors": tmp_path / "weights", "config.json": b"{}"})
    gathered = tmp_path / "gathered"
    (gathered / "out.parts").mkdir(parents=True)
    for number in (1, 2):
        machine = tmp_path / f"machine{number}"
        machine.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "monosoup_cli", "edit", "org/base", "org/ft", "-o", "out", "-q"),
                *("--part", f"{number}/2", "--device", "cpu"),
            ],
            cwd=machine,
            env={
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(machine / "cache"),
                "HF_HUB_DISABLE_XET": "1",
                "PYTHONPATH": str(ROOT),
            },
            check=True,
        )
        shutil.copytree(machine / "out.parts" / f"{number}-of-2", gathered / "out.parts" / f"{number}-of-2")
    monkeypatch.chdir(gathered)
    report = monosoup_cli.finish("out")
    assert [entry["source"] for entry in report["inputs"]] == ["org/base", "org/ft"]
    assert report["arguments"]["base"] == "org/base"
    monosoup_cli.edit("org/base", "org/ft", "whole", device="cpu")
    weights = "model.safetensors"
    assert (gathered / "out" / weights).read_bytes() == (gathered / "whole" / weights).read_bytes()
