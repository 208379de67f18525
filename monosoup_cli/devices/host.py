"""What the operating system says about this machine: its processor, its cores, its free memory.

Linux lists it in /proc and in the control groups (cgroups) that containers, Slurm and systemd use to
limit a process; macOS has programs that say it. Every function takes the root of the file system as a
parameter, for the tests.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["count_cores", "free_bytes", "processor_model"]

ROOT = Path("/")

PAGE_SIZE = re.compile(r"page size of (\d+) bytes")
PAGES = re.compile(r"^Pages ([a-z ]+): +(\d+)\.$", re.MULTILINE)
GIVES_WAY = ("free", "inactive", "speculative")
"""What `vm_stat` calls the pages that are free, or that the system takes back before it swaps."""

ARM_FIELDS = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
"""The lines of /proc/cpuinfo that identify an ARM core, which often has no model name."""


def processor_model(root: Path = ROOT) -> str:
    """The model of the processor, as far as the system shows it; results may depend on it in the last bits.

    An ARM processor may have several kinds of cores. All of them are named, in a fixed order.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    names = [value for key, value in pairs if key == "model name"]
    cores: list[dict[str, str]] = []
    for key, value in pairs:
        if key == ARM_FIELDS[0]:
            cores.append({})
        if key in ARM_FIELDS and cores:
            cores[-1][key] = value
    kinds = sorted({_describe_arm(core) for core in cores})
    if kinds:
        return " + ".join([*names[:1], *kinds]) if names else f"{platform.machine()} {' + '.join(kinds)}"
    if names:
        return names[0]
    said = _said(root, "usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip()
    return said or platform.processor() or platform.machine()


def _describe_arm(core: dict[str, str]) -> str:
    return " ".join(f"{key.removeprefix('CPU ')} {core[key]}" for key in ARM_FIELDS if key in core)


def count_cores(root: Path = ROOT) -> int:
    """How many cores this process may use: its CPU affinity and the quotas of its control groups, rounded up.

    Returns:
        At least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for group in _groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = group.cpu_quota()
            if quota > 0:
                quotas.append(-(-quota // period))
    return max(1, min([cores, *quotas]))


def free_bytes(root: Path = ROOT) -> int | None:
    """How much memory this process can allocate without swapping, within the limits of its control groups.

    Returns:
        A number of bytes, or None where the system does not say.
    """
    limits = []
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    for group in _groups("memory", root):
        with suppress(OSError, ValueError):
            limits.append(max(group.free_memory(), 0))
    return min(limits, default=_free_on_macos(root))


def _free_on_macos(root: Path) -> int | None:
    """The memory that is free, or has what can be read again; None where macOS's `vm_stat` does not say."""
    said = _said(root, "usr/bin/vm_stat")
    size = PAGE_SIZE.search(said)
    pages = [int(found[2]) for found in PAGES.finditer(said) if found[1] in GIVES_WAY]
    return int(size[1]) * sum(pages) if size and pages else None


def _said(root: Path, program: str, *words: str) -> str:
    """What a program of the system prints; "" where it is not there or fails."""
    path = root / program
    if not path.is_file():
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run([path, *words], capture_output=True, text=True, check=True, timeout=10)
        return found.stdout
    return ""


@dataclass(frozen=True)
class _Group:
    """One control group: its folder, and whether it belongs to version 2 of the interface."""

    folder: Path
    is_v2: bool

    def cpu_quota(self) -> tuple[int, int]:
        """(quota, period) of CPU time in microseconds; raises ValueError where there is no limit."""
        if self.is_v2:
            quota, period = self._read("cpu.max").split()
            return int(quota), int(period)
        return int(self._read("cpu.cfs_quota_us")), int(self._read("cpu.cfs_period_us"))

    def free_memory(self) -> int:
        """Bytes up to the limit; raises ValueError where there is none."""
        limit, current, cache = "memory.max", "memory.current", "inactive_file"
        if not self.is_v2:
            limit, current, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        free = int(self._read(limit)) - int(self._read(current))
        for line in self._read("memory.stat").splitlines():
            if line.startswith(f"{cache} "):  # cached files give way to allocations
                free += int(line.split()[1])
        return free

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """The control groups that limit this process, from its own up to the root of each hierarchy."""
    mounts = list(_mounts(controller, root))
    for (mounted, folder), is_v2 in mounts:
        own = _own_group(None if is_v2 else controller, root)
        # inside a container the path may lie outside of what is mounted: the mount is then its own group
        parts = own.removeprefix(mounted.rstrip("/")).split("/") if _is_below(own, mounted) else []
        group = folder.joinpath(*parts)
        if not group.is_dir():
            group = folder
        while True:
            yield _Group(group, is_v2)
            if group == folder:
                break
            group = group.parent


def _is_below(path: str, folder: str) -> bool:
    return ".." not in path.split("/") and f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _mounts(controller: str, root: Path) -> Iterator[tuple[tuple[str, Path], bool]]:
    """((the group at its top, folder), is version 2) of the mounted hierarchies with a controller."""
    is_known = False
    with suppress(OSError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            kind, *others = rest.split(" ")
            if not kind.startswith("cgroup"):
                continue
            is_known = True
            top, point = (_unescaped(field) for field in fields.split(" ")[3:5])
            options = others[-1].split(",") if others else []
            if kind == "cgroup2" or controller in options:
                yield (top, root / point.lstrip("/")), kind == "cgroup2"
    if not is_known:
        yield ("/", root / "sys/fs/cgroup"), True


def _unescaped(path: str) -> str:
    """A path of mountinfo, in which spaces and the like are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _own_group(controller: str | None, root: Path) -> str:
    """The path of this process's group in the hierarchy of a controller; None asks for version 2."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            is_v2 = number == "0" and not controllers
            if is_v2 if controller is None else controller in controllers.split(","):
                return path
    return "/"
