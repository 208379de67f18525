"""The engine for a running Ray cluster: its nodes make parts of the output, as `--part` does.

A task makes one part (parts.py): it opens the inputs itself, writes files of its own, and leaves checksums
and records beside them. Nothing but the number of a part goes through Ray. The driver divides the work, waits
and finishes the output. A task whose node dies runs again elsewhere, and goes on from what is on the disk.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from monosoup_cli.errors import MonosoupError, OutputError, ResourceError, UsageError
from monosoup_cli.outputs.journal import differences
from monosoup_cli.outputs.workplace import parts_path, remove_parts
from monosoup_cli.pipeline.destination import Part
from monosoup_cli.pipeline.engine import Progress, ignore
from monosoup_cli.pipeline.part import find_parts, parts_there
from monosoup_cli.pipeline.parts import finish, make_part
from monosoup_cli.pipeline.planned import prepare
from monosoup_cli.pipeline.publication import make_identity
from monosoup_cli.pipeline.ready import Ready, make_ready
from monosoup_cli.pipeline.shares import shares_of
from monosoup_cli.pipeline.task import Task

__all__ = ["execute_on_ray"]

OLDEST = (2, 52)
"""The first version of Ray whose clusters can ask for a token."""
PARTS_OF_A_SLOT = 2
"""How many parts there are for each task that runs at a time: a node that is slow makes fewer."""
RETRIES = 3
"""How often a part is begun again where its node dies."""
SECONDS_TO_CONNECT = 20
SECONDS_TO_ANSWER = 120
"""How long a node has to start its first task."""
SECONDS_OF_A_LOCK = 60
"""How long the process of a node that is gone may still hold the lock of its part."""


def execute_on_ray(ready: Ready, progress: Progress = ignore) -> dict[str, Any]:
    """Make the output on the nodes of a Ray cluster, and return its report.

    Raises:
        UsageError: Ray is not installed, there is no cluster, or it is open to everybody.
        MonosoupError: A node does not see the files, or the output cannot be made.
    """
    task, output = ready.planned.task, ready.planned.destination.path
    with _connected(task) as ray:
        _take_place(ready)
        uses_gpus = _uses_gpus(ray, task)
        slots = _check_nodes(ray, ready, uses_gpus=uses_gpus)
        count = _count(ready, slots)
        shares = shares_of(
            ready.plan, ready.form.layout, ready.form.parts(), ready.planned.inputs.finetuned, count
        )
        for part in _made(ray, task, count, uses_gpus=uses_gpus):
            for tensor in shares[part.number - 1].tensors:
                progress(tensor, True)
    with prepare(_changed(task, resume=True)) as planned:
        return finish(planned, find_parts(output))


def _changed(task: Task, device: str | None = None, **writing: Any) -> Task:
    """The task as a machine does it, with other options about the output, and on a device of a node."""
    options = replace(task.options, writing=replace(task.options.writing, engine="threads", **writing))
    if device is not None:
        options = replace(options, computing=replace(options.computing, device=device, workers=1))
    return replace(task, options=options)


@contextmanager
def _connected(task: Task) -> Iterator[Any]:
    """Connect with a running cluster; none is started."""
    writing = task.options.writing
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'monosoup[ray]'") from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST:
        wanted = f"at least {'.'.join(map(str, OLDEST))}"
        raise UsageError("this version of Ray is too old", expected=wanted, found=ray.__version__)
    if os.environ.get("RAY_AUTH_MODE") != "token" and not writing.insecure_cluster:
        raise _open_to_everybody("this process has no token")
    address = writing.engine if writing.engine != "ray" else os.environ.get("RAY_ADDRESS", "auto")
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:  # Ray itself asks for minutes
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds
        if address == "auto":
            raise UsageError(
                "no Ray cluster: RAY_ADDRESS is not set, and none runs on this machine"
            ) from None
        reason = str(error).strip().partition("\n")[0]
        named_by = "--engine" if address == writing.engine else "RAY_ADDRESS"
        raise UsageError(f"no Ray cluster at {address}, which {named_by} names: {reason}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _open_to_everybody(why: str) -> UsageError:
    return UsageError(
        f"{why} (RAY_AUTH_MODE=token has a Ray cluster ask for one): whoever reaches a cluster without tokens"
        " can run code on it (CVE-2023-48022); --insecure-cluster is for networks that nobody else reaches"
    )


def _take_place(ready: Ready) -> None:
    """Make the folder of all parts. One that is there is resumed, or dropped."""
    destination = ready.planned.destination
    folder = parts_path(destination.path)
    if destination.options.overwrite and not destination.options.resume:
        remove_parts(destination.path)
    if folder.exists() and not destination.options.resume:
        raise OutputError(
            "there are parts of an earlier run (--resume goes on with them, --overwrite drops them)",
            path=folder,
        )
    folder.mkdir(exist_ok=True)


def _uses_gpus(ray: Any, task: Task) -> bool:
    """Whether cards compute, as `--device` says: where the cluster has any, if it leaves that open."""
    device = task.options.computing.device
    return device != "cpu" and (device != "auto" or ray.cluster_resources().get("GPU", 0) >= 1)


def _check_nodes(ray: Any, ready: Ready, *, uses_gpus: bool) -> int:
    """Check every node before the work, and return how many tasks run at a time.

    Raises:
        ResourceError: No node has what a task asks for, or one does not see the files or is of another kind.
        UsageError: A node asks for no token.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, kind = ready.planned.task, "GPU" if uses_gpus else "CPU"
    nodes = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get(kind, 0) >= 1]
    if not nodes:
        raise ResourceError(f"no node of the Ray cluster has a {kind}")
    folder = parts_path(ready.planned.destination.path)
    word = secrets.token_hex(8)
    probe = folder / f"probe-{word}"
    probe.write_text(word)
    look, asks = ray.remote(_look), {**_asks(uses_gpus=uses_gpus), "max_retries": 0}
    try:
        found = {
            node["NodeID"]: look.options(
                **asks, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(
                _changed(task, _device(uses_gpus=uses_gpus), part="1/1"), str(Path.cwd()), str(folder), word
            )
            for node in nodes
        }
        answers = {}
        for node in nodes:
            name = node["NodeManagerHostname"]
            try:
                answers[name, node["NodeID"]] = ray.get(found[node["NodeID"]], timeout=SECONDS_TO_ANSWER)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ResourceError(f"the node {name} cannot run monosoup: {reason}") from None
    finally:
        for path in folder.glob(f"probe-{word}*"):
            path.unlink()
    first = None
    for (name, _), answer in answers.items():
        if "problem" in answer:
            raise ResourceError(f"the node {name} {answer['problem']}")
        if answer["auth"] != "token" and not task.options.writing.insecure_cluster:
            raise _open_to_everybody(f"the node {name} asks for no token")
        first = first or (name, answer["identity"])
        if changed := differences(first[1], answer["identity"]):
            raise ResourceError(f"the nodes {first[0]} and {name} differ in {', '.join(changed)}")
    return sum(int(node["Resources"][kind]) for node in nodes)


def _asks(*, uses_gpus: bool) -> Mapping[str, int]:
    """What a task asks for."""
    return {"num_gpus": 1, "num_cpus": 0} if uses_gpus else {"num_cpus": 1}


def _device(*, uses_gpus: bool) -> str:
    return "cuda" if uses_gpus else "cpu"


def _look(task: Task, cwd: str, folder: str, word: str) -> dict[str, Any]:
    """On a node: what it sees of the inputs and the output, and of what kind it is."""
    elsewhere = "inputs and output must be on a path that all nodes see"
    probe = Path(folder, f"probe-{word}")
    try:
        os.chdir(cwd)  # paths are as the user typed them
        if probe.read_text() != word:
            return {"problem": f"has another {folder}: {elsewhere}"}
        probe.with_name(f"{probe.name}-{os.getpid()}").write_text(word)
        with prepare(task) as planned:
            identity = make_identity(make_ready(planned))
    except OSError as error:
        return {"problem": f"cannot write in {folder} ({error.strerror}): {elsewhere}"}
    except MonosoupError as error:
        return {"problem": f"refuses ({error}): {elsewhere}"}
    return {"identity": identity, "auth": os.environ.get("RAY_AUTH_MODE")}


def _count(ready: Ready, slots: int) -> int:
    """How many parts there are; as many as a run that is resumed had."""
    there = {part.count for part in parts_there(ready.planned.destination.path)}
    return there.pop() if len(there) == 1 else min(PARTS_OF_A_SLOT * slots, max(len(ready.plan.tensors), 1))


def _made(ray: Any, task: Task, count: int, *, uses_gpus: bool) -> Iterator[Part]:
    """Have the cluster make every part, and yield each as it is made.

    Raises:
        MonosoupError: A part cannot be made.
    """
    make = ray.remote(_make).options(**_asks(uses_gpus=uses_gpus), max_retries=RETRIES)
    device = _device(uses_gpus=uses_gpus)
    waiting = {}
    for number in range(1, count + 1):
        part = Part(number, count)
        one = _changed(task, device, part=part.words, resume=True, overwrite=False, push=None, public=False)
        waiting[make.remote(one, str(Path.cwd()))] = part
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for reference in done:
                part = waiting.pop(reference)
                try:
                    fields = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[-1]
                    raise ResourceError(f"part {part.words} cannot be made: {reason}") from None
                if fields is not None:
                    raise MonosoupError(fields.pop("problem"), **fields)
                yield part
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _make(task: Task, cwd: str) -> dict[str, str | None] | None:
    """On a node: make a part. Returns the fields of an error, if there is one."""
    os.chdir(cwd)
    deadline = time.monotonic() + SECONDS_OF_A_LOCK
    while True:
        try:
            with prepare(task) as planned:
                make_part(make_ready(planned))
            return None
        except MonosoupError as error:
            is_locked = error.problem == "another run is writing this output"
            if not is_locked or time.monotonic() > deadline:
                return error.to_json()
        time.sleep(1)
