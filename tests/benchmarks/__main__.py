"""Measure speed and memory, each against a named rival in the same run, and print Markdown tables.

Usage: python -m tests.benchmarks [startup] [kernel] [file] [lean]    (all of them by default)

This process stays small, and starts everything that is measured as a process of its own: peak
memory and CPU time are the operating system's accounting of that process.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from monosoup_cli.report.words import size

REPEATS = 5


def measured(*command, environment=None):
    """(wall seconds, CPU seconds, peak memory in bytes) of one finished process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: {stderr.decode()}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def edit(folder, *options):
    out = folder / "out.safetensors"
    return [
        sys.executable, "-m", "monosoup_cli", "edit", folder / "base.safetensors",
        folder / "finetuned.safetensors", "-o", out, "--overwrite", "--quiet", *options,
    ]  # fmt: skip


def generate(folder, kind):
    measured(sys.executable, "-m", "tests.benchmarks.pairs", kind, folder)


def row(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def header(title, *columns):
    print(f"\n### {title}\n")
    row(*columns)
    row(*("---" for _ in columns))


def startup(folder):
    """`monosoup --help` against an interpreter that does nothing."""
    header("Start", "command", "wall, median", "min", "max")
    for name, words in {
        "`monosoup --help`": ["-m", "monosoup_cli", "--help"],
        "`python -c pass`": ["-c", "pass"],
        "`import torch`": ["-c", "import torch"],
    }.items():
        walls = [measured(sys.executable, *words)[0] for _ in range(REPEATS + 1)][1:]
        row(name, *(f"{f(walls):.2f} s" for f in (statistics.median, min, max)))


def kernel(folder):
    """The whole edit of one matrix in memory, one BLAS thread, against the straightforward way."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kernel", str(REPEATS)],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    results = json.loads(found.stdout)
    columns = ("monosoup, CPU", "`linalg.svd`, CPU", "ratio, median", "min", "max", "error", "its error")
    header("The matrices of a 0.6B block, one thread", "matrix", *columns)
    for result in results:
        ratios = [ours / theirs for ours, theirs in zip(result["ours"], result["theirs"], strict=True)]
        row(
            result["name"],
            *(f"{statistics.median(result[side]):.2f} s" for side in ("ours", "theirs")),
            *(f"{f(ratios):.2f}" for f in (statistics.median, min, max)),
            *(f"{result[side]:.1e}" for side in ("our_error", "their_error")),
        )


def file(folder):
    """`monosoup edit` over a file of twelve such blocks against a script that does it the plain way."""
    generate(folder, "blocks")
    rival = [sys.executable, "-m", "tests.benchmarks.straightforward", folder]
    header("A file of twelve blocks, all cores", "command", "wall, median", "CPU, median", "peak memory")
    rows = {"`monosoup edit`": edit(folder), "`torch.linalg.svd` in a loop": rival}
    runs = {name: [] for name in rows}
    for number in range(4):
        for name, command in rows.items():
            result = measured(*command)
            if number:
                runs[name].append(result)
    for name, results in runs.items():
        walls, cpus, peaks = zip(*results, strict=True)
        row(name, f"{statistics.median(walls):.1f} s", f"{statistics.median(cpus):.1f} s", size(max(peaks)))
    ours, theirs = runs.values()
    ratios = [a[0] / b[0] for a, b in zip(ours, theirs, strict=True)]
    print(f"\nWall time, pair by pair: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def lean(folder):
    """Peak memory above what importing torch takes."""
    floor = max(measured(sys.executable, "-c", "import torch")[2] for _ in range(2))
    header("Memory", "pair", "wall", "CPU", "peak", "above `import torch`")
    row("(`import torch` alone)", "", "", size(floor), "")
    for kind, name in {
        "embedding": "one 150000 × 1024 embedding, bf16, 0.3 GB each",
        "two_gigabytes": "238 matrices of 1024 × 4096, bf16, 2 GB each",
    }.items():
        generate(folder, kind)
        wall, cpu, peak = measured(*edit(folder))
        row(name, f"{wall:.1f} s", f"{cpu:.1f} s", size(peak), size(peak - floor))


def machine():
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    versions = subprocess.run(
        [sys.executable, "-c", "import torch, numpy; print(torch.__version__, numpy.__version__)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    print(
        f"{time.strftime('%Y-%m-%d')}: {processor}, {cores} cores, {platform.system()} {platform.machine()},"
    )
    print(f"Python {platform.python_version()}, torch {versions[0]}, NumPy {versions[1]}.")


def main():
    benchmarks = {"startup": startup, "kernel": kernel, "file": file, "lean": lean}
    machine()
    for name in sys.argv[1:] or benchmarks:
        folder = Path(tempfile.mkdtemp(prefix="monosoup-bench-"))
        try:
            benchmarks[name](folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
