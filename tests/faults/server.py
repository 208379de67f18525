"""Runs command lines in forks of a process that has imported everything, each with its own surroundings.

It reads one JSON object a line: {"run": {…}} is answered by the id of the child, and {"wait": id} by
its exit code (negative for a signal).
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.faults import steps

IMPORTED = (
    *("torch", "numpy", "safetensors", "typer", "pydantic", "pydantic.type_adapter", "yaml"),
    *("rich.table", "rich.live", "rich.progress", "huggingface_hub.repocard_data", "huggingface_hub.utils"),
)
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522


def serve():
    """Answer until there is an order to run, in a fork, or no order at all."""
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            return order["run"]
        print(child, flush=True)
    return None


def surround(order):
    """Give this process the surroundings of an order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # as Python has it
    os.chdir(order["folder"])
    os.environ |= order.get("environment", {})
    os.umask(0o022)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.close(log)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in (1, "stdout"), (2, "stderr"):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.closerange(3, 64)
    sys.stdin = os.fdopen(0)
    for name in order.get("closed", ()):
        os.close(getattr(sys, name).fileno())
        setattr(sys, name, None)  # as Python has it where it starts so
    steps.arm(order["folder"], order["log"], order.get("fault", {}))
    for name, value in order.get("limits", {}).items():
        if name == "RLIMIT_AS":
            value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, name), (value, value))
    if order.get("without_powers") and os.geteuid() == 0:
        drop_powers()
    sys.argv = ["monosoup", *order["words"]]


def drop_powers():
    """Have permissions count for root as for everybody."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for number in (0, 1):  # effective and permitted
        sets[number] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0


def leave(code):
    """End as the interpreter does, but without freeing memory, which takes longer than all else together."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    steps.install()
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    package = importlib.import_module("monosoup_cli")
    for module in pkgutil.walk_packages(package.__path__, "monosoup_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # what is shared with the forks stays shared
    print("ready", len(os.listdir("/proc/self/task")), flush=True)
    order = serve()
    if order is not None:
        surround(order)
        try:
            runpy.run_module("monosoup_cli", run_name="__main__", alter_sys=True)
        except SystemExit as leaving:
            if order.get("frees_memory"):
                raise
            leave(leaving.code)
