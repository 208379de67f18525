"""Measure speed and memory, each against a named rival in the same run, and print Markdown tables.

Usage: python -m tests.benchmarks [startup] [kernel] [file] [lean] [merge] [bare] [equal] [estimate] [hub]
[adapter] [lora] [extract] [diff] [small] [load] [before]

All of them by default, `before` only where BEFORE is set.

`merge`, `equal` and `extract` run mergekit, from the environment that MERGEKIT names (`make bench` makes it).
`before` runs another version of monosoup, from the checkout that BEFORE names.

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
from tests.benchmarks.load import runs
from tests.hub import Hub

REPEATS = 5


def measured(*command, environment=None, cwd=None, code=0):
    """(wall seconds, CPU seconds, peak memory in bytes) of one process that ends with this exit code."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
    )
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if code is not None and process.returncode != code:
        raise SystemExit(f"{command}: {stderr.decode()}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


MONOSOUP = [sys.executable, "-m", "monosoup_cli"]


def edit(folder, *options):
    out = folder / "out.safetensors"
    return [
        *MONOSOUP,
        "edit",
        folder / "base.safetensors",
        folder / "finetuned.safetensors",
        "-o",
        out,
        "--overwrite",
        "--quiet",
        *options,
    ]


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
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
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
    against_kernels(results, "Each edit against its own floor", "ours", ("gram", "eigh", "products"))
    header("Inspecting these matrices, `inspect-spectrum`", "matrix", "CPU", "ratio to the edit")
    for result in results:
        ratios = [look / edit for look, edit in zip(result["looks"], result["ours"], strict=True)]
        row(result["name"], f"{statistics.median(result['looks']):.2f} s", spread(ratios))
    against_kernels(results, "Each inspection against its own floor", "looks", ("gram", "eigvalsh"))


def against_kernels(results, title, side, names):
    """What a whole edit or inspection takes more than its kernels, which are timed alone in the same run."""
    header(title, "matrix", *names, "their sum", "the whole", "ratio")
    for result in results:
        floors = [sum(times) for times in zip(*(result[name] for name in names), strict=True)]
        ratios = [whole / floor for whole, floor in zip(result[side], floors, strict=True)]
        medians = (statistics.median(times) for times in (*(result[name] for name in names), floors))
        whole = statistics.median(result[side])
        row(result["name"], *(f"{time:.3f} s" for time in medians), f"{whole:.3f} s", spread(ratios))


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
        "fp8": "476 matrices of 1024 × 4096, fp8 with block scales, 2 GB each",
    }.items():
        generate(folder, kind)
        wall, cpu, peak = measured(*edit(folder))
        row(name, f"{wall:.1f} s", f"{cpu:.1f} s", size(peak), size(peak - floor))


def mergekit(folder, name, method, models, **parameters):
    """The command that merges with mergekit, with the flags that its help recommends for speed."""
    lines = [f"merge_method: {method}", f"dtype: {parameters.pop('dtype')}", "models:"]
    for model, weight in models.items():
        lines += [f"  - model: {folder / model}", f"    parameters: {{weight: {weight}}}"]
    lines += [f"{key}: {value}" for key, value in parameters.items()]
    (folder / f"{name}.yaml").write_text("\n".join(lines))
    tool = Path(os.environ["MERGEKIT"]) / "bin/mergekit-yaml"
    return [tool, folder / f"{name}.yaml", folder / f"theirs-{name}", "--quiet", *MERGEKIT_FLAGS]


MERGEKIT_FLAGS = ["--no-copy-tokenizer", "--no-write-model-card", "--lazy-unpickle", "--async-write"]


FINETUNED = ("ft1", "ft2", "ft3", "ft4")


def our_merges(folder):
    """name → our command."""
    paths, base = [folder / name for name in FINETUNED], folder / "base"
    words = {
        "soup": ["soup", *paths],
        "stock": ["stock", base, *paths, "--no-clamp"],
        "wise": ["wise", base, paths[0], "--alpha", "0.3"],
    }
    end = ["--overwrite", "--quiet", "-o"]
    return {name: [*MONOSOUP, *own, *end, folder / f"ours-{name}"] for name, own in words.items()}


def merges(folder, dtype):
    """name → (our command, mergekit's, how many checkpoints both read)."""
    ours, base, evenly = our_merges(folder), folder / "base", dict.fromkeys(FINETUNED, 1.0)
    theirs = {
        "soup": mergekit(folder, "soup", "linear", evenly, dtype=dtype),
        "stock": mergekit(folder, "stock", "model_stock", evenly, base_model=base, dtype=dtype),
        "wise": mergekit(folder, "wise", "linear", {"base": 0.7, "ft1": 0.3}, dtype=dtype),
    }
    return {
        name: (ours[name], theirs[name], count) for name, count in {"soup": 4, "stock": 5, "wise": 2}.items()
    }


def merge(folder):
    """soup and stock of four, and wise, on 1 GB each, against mergekit and against cat, cp and sync."""
    generate(folder, "half_billion")
    header(
        "Merges of 988 MB checkpoints",
        "merge",
        "monosoup, wall",
        "mergekit, wall",
        "ratio",
        "cat, cp, sync",
        "monosoup without import, ratio to these",
        "monosoup, peak",
        "mergekit, peak",
    )
    for name, (ours, theirs, count) in merges(folder, "bfloat16").items():
        files = family(folder)[:2] if name == "wise" else family(folder)[-count:]
        plain = cat_and_copy(files, folder / "copy")
        runs = {"ours": [], "theirs": [], "plain": [], "import": []}
        for number in range(4):
            shutil.rmtree(folder / f"theirs-{name}", ignore_errors=True)
            (folder / "copy").unlink(missing_ok=True)
            os.sync()
            for side, command in {
                "ours": ours,
                "theirs": theirs,
                "plain": plain,
                "import": [sys.executable, "-c", "import torch"],
            }.items():
                result = measured(*command)
                os.sync()
                if number:
                    runs[side].append(result)
        walls = {side: [wall for wall, _, _ in results] for side, results in runs.items()}
        peaks = {side: max(peak for _, _, peak in results) for side, results in runs.items()}
        to_theirs = [a / b for a, b in zip(walls["ours"], walls["theirs"], strict=True)]
        to_plain = [
            (a - c) / b for a, b, c in zip(walls["ours"], walls["plain"], walls["import"], strict=True)
        ]
        row(
            name,
            *(f"{statistics.median(walls[side]):.1f} s" for side in ("ours", "theirs")),
            spread(to_theirs),
            f"{statistics.median(walls['plain']):.1f} s",
            spread(to_plain),
            *(size(peaks[side]) for side in ("ours", "theirs")),
        )


def before(folder):
    """The commands against another version of them, with the same interpreter."""
    generate(folder, "half_billion")
    generate(folder, "blocks")
    versions = {"now": Path.cwd(), "before": Path(os.environ["BEFORE"]).resolve()}
    for checkout in versions.values():
        measured(sys.executable, "-m", "compileall", "-q", checkout / "monosoup_cli")
    ratios = ("ratio of CPU", "ratio of wall")
    header("Against the version before", "command", "CPU, now", "CPU, before", *ratios)
    commands = {"--help": [*MONOSOUP, "--help"], "edit": edit(folder), **our_merges(folder)}
    for name, command in commands.items():
        runs = {side: [] for side in versions}
        for number in range(1 + REPEATS):
            for side, checkout in versions.items():
                # not from this folder, whose package Python would prefer
                result = measured(*command, environment={"PYTHONPATH": str(checkout)}, cwd=folder)
                os.sync()
                if number:
                    runs[side].append(result)
        walls, cpus, _ = zip(*(zip(*results, strict=True) for results in runs.values()), strict=True)
        row(
            f"`{name}`",
            *(f"{statistics.median(of_one):.2f} s" for of_one in cpus),
            *(spread([a / b for a, b in zip(*of_both, strict=True)]) for of_both in (cpus, walls)),
        )


def estimate(folder):
    """The time that a dry run foresees against that of the run.

    On a machine that other programs use, a run waits for them. So it is also compared with what its CPU time
    would take if it waited for nothing: the start on one core, the rest shared among the workers.
    """
    generate(folder, "few_layers")
    edit_family = ["edit", *family(folder)[:2], "--overwrite", "--quiet", "-o", folder / "out"]
    commands = {**our_merges(folder), "edit, few_layers": [*MONOSOUP, *edit_family]}
    for kind in ("sides_of_1024", "sides_of_2048", "tall", "many_small"):
        (folder / kind).mkdir()
        generate(folder / kind, kind)
        commands[f"edit, {kind}"] = edit(folder / kind)
    columns = ("run", "estimated", "CPU, shared", "ratio to the estimate", "wall, median", "ratio")
    header("The estimate of a dry run", *columns)
    start = statistics.median(measured(sys.executable, "-c", "import torch")[1] for _ in range(3))
    for name, command in commands.items():
        rows = []
        for _ in range(3):
            plan = json.loads(subprocess.check_output([*command, "--dry-run", "--format", "json"]))
            os.sync()
            wall, cpu, _ = measured(*command)
            rows.append((plan["estimated_seconds"], start + (cpu - start) / plan["workers"], wall))
        foreseen, shared, wall = (statistics.median(column) for column in zip(*rows, strict=True))
        of_cpu, of_wall = (spread([each[i] / each[0] for each in rows]) for i in (1, 2))
        row(f"`{name}`", f"{foreseen:.3g} s", f"{shared:.3g} s", of_cpu, f"{wall:.3g} s", of_wall)


def family(folder):
    """The files of a base and its four fine-tunes."""
    return [folder / each / "model.safetensors" for each in ("base", "ft1", "ft2", "ft3", "ft4")]


def cat_and_copy(files, copy):
    """The command that reads all files and writes as much as one of them."""
    return ["sh", "-c", f"cat {' '.join(map(str, files))} > /dev/null && cp {files[-1]} {copy} && sync"]


def bare(folder):
    """How fast stock of four could be without anything around its arithmetic, on two cores."""
    generate(folder, "half_billion")
    files = family(folder)
    header("Model Stock with nothing around it", "bare loop", "cat, cp, sync", "ratio")
    loops, plains = [], []
    for number in range(6):
        for name in ("bare", "copy"):
            (folder / name).unlink(missing_ok=True)
        os.sync()
        command = [sys.executable, "-m", "tests.benchmarks.bare", *files, folder / "bare"]
        loop = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        plain, _, _ = measured(*cat_and_copy(files, folder / "copy"))
        if number:
            loops.append(loop)
            plains.append(plain)
    ratios = [loop / plain for loop, plain in zip(loops, plains, strict=True)]
    row(f"{statistics.median(loops):.1f} s", f"{statistics.median(plains):.1f} s", spread(ratios))


def hub(folder):
    """Two ids on a Hub on loopback against the same two local folders, 988 MB each."""
    generate(folder, "half_billion")
    end = ["--quiet", "-o"]
    local, ids = [folder / "base", folder / "ft1"], ["org/base", "org/ft1"]
    with Hub(folder / "hub") as served:
        for path, name in zip(local, ids, strict=True):
            served.add(name, path)
        total, environment = (
            sum(file.stat().st_size for file in family(folder)[:2]),
            served.env(folder / "home"),
        )
        layer = ["--layer", "*layers.3.mlp.up_proj*"]
        header("Ids on the Hub", "command", "wall", "CPU", "peak", "transferred", "of the pair")
        for name, words in {
            "`edit`, local folders": ["edit", *local, *end, folder / "local"],
            "`inspect-spectrum`, one layer": ["inspect-spectrum", *ids, *layer, "--quiet"],
            "`edit --dry-run`": ["edit", *ids, *end, folder / "dry", "--dry-run"],
            "`edit`, first time": ["edit", *ids, *end, folder / "first"],
            "`edit`, again": ["edit", *ids, *end, folder / "again"],
        }.items():
            served.clear()
            wall, cpu, peak = measured(*MONOSOUP, *words, environment=environment)
            sent = served.bytes_sent()
            row(name, f"{wall:.1f} s", f"{cpu:.1f} s", size(peak), size(sent), f"{sent / total:.2%}")
            shutil.rmtree(words[-1], ignore_errors=True)


def adapter(folder):
    """A LoRA adapter edited as an adapter, and one of its layers against a whole decomposition."""
    subprocess.run([sys.executable, "-m", "tests.benchmarks.adapter", folder / "adapter"], check=True)
    words = ["edit", "-", folder / "adapter", "--as-adapter", "--quiet", "-o"]
    header("LoRA adapters", "rank 16, 64 layers of 4096 × 4096", "wall", "CPU", "peak")
    walls, cpus, peaks = zip(
        *(measured(*MONOSOUP, *words, folder / f"out-{n}") for n in range(3)), strict=True
    )
    median = statistics.median
    row("`edit - adapter --as-adapter`", f"{median(walls):.1f} s", f"{median(cpus):.1f} s", size(max(peaks)))
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.adapter"], check=True, capture_output=True, text=True
        ).stdout
    )
    header("One of these layers", "in the core", "SVD of the update, float32", "ratio")
    ratio = found["core"] / found["whole"]
    row(f"{1000 * found['core']:.1f} ms", f"{found['whole']:.1f} s", f"{ratio:.3%}")


def lora(folder):
    """A LoRA adapter merged into a base of 2 GB, against copies of the base."""
    subprocess.run([sys.executable, "-m", "tests.benchmarks.adapter", folder / "adapter", "base"], check=True)
    base, out = folder / "adapter" / "base.safetensors", folder / "out.safetensors"
    words = [*MONOSOUP, "merge", base]
    commands = {
        "merge": [*words, folder / "adapter", "-o", out, "--quiet"],
        "copied by monosoup": [*words, folder / "adapter" / "one", "-o", out, "--quiet"],
        "cat, cp, sync": cat_and_copy([base], folder / "copy"),
        "import torch": [sys.executable, "-c", "import torch"],
    }
    runs = {name: [] for name in commands}
    for number in range(REPEATS + 1):
        for name, command in commands.items():
            for left in (out, folder / "copy", out.with_suffix(".report.json")):
                left.unlink(missing_ok=True)
            os.sync()
            result = measured(*command)
            if number:
                runs[name].append(result)
    header(
        "An adapter of rank 16 merged into 2.1 GB",
        "what",
        "wall, median",
        "CPU",
        "peak",
        "merge, ratio to it",
    )
    walls = {name: [wall for wall, _, _ in results] for name, results in runs.items()}
    for name, results in runs.items():
        ratios = [a / b for a, b in zip(walls["merge"], walls[name], strict=True)]
        _, cpus, peaks = zip(*results, strict=True)
        wall, cpu = statistics.median(walls[name]), statistics.median(cpus)
        row(
            name, f"{wall:.1f} s", f"{cpu:.1f} s", size(max(peaks)), "" if name == "merge" else spread(ratios)
        )
    alone = [
        (a - c) / b
        for a, b, c in zip(walls["merge"], walls["cat, cp, sync"], walls["import torch"], strict=True)
    ]
    print(f"\nmerge without the import, to cat, cp, sync: {spread(alone)}")


def extract(folder):
    """An update of a 0.5B model as an adapter of rank 32, against mergekit's extraction.

    mergekit stores the embedding whole, unless it is told to decompose it as monosoup does.
    """
    generate(folder, "half_billion")
    tool = Path(os.environ["MERGEKIT"]) / "bin/mergekit-extract-lora"
    base, finetuned = folder / "base", folder / "ft1"
    theirs = ["--model", finetuned, "--base-model", base, "--out-path", folder / "theirs", "--max-rank", "32"]
    commands = {
        "monosoup": [*MONOSOUP, "extract", base, finetuned, "-o", folder / "ours", "--rank", "32", "--quiet"],
        "mergekit --embed-lora": [tool, *theirs, "--embed-lora"],
        "mergekit": [tool, *theirs],
    }
    runs = {name: [] for name in commands}
    for _ in range(3):
        for name, command in commands.items():
            for left in ("ours", "theirs"):
                shutil.rmtree(folder / left, ignore_errors=True)
            # mergekit's model card asks the Hub for the models, which are only here: it then fails at the end
            code = {} if name == "monosoup" else {"code": None}
            runs[name].append(measured(*command, environment={"HF_HUB_OFFLINE": "1"}, **code))
    header(
        "An adapter of rank 32 of a 0.5B model",
        "tool",
        "wall, median",
        "CPU",
        "peak",
        "monosoup, ratio to it",
    )
    for name, results in runs.items():
        walls, cpus, peaks = zip(*results, strict=True)
        ratios = [a[0] / b[0] for a, b in zip(runs["monosoup"], results, strict=True)]
        row(
            name,
            f"{statistics.median(walls):.1f} s",
            f"{statistics.median(cpus):.1f} s",
            size(max(peaks)),
            "" if name == "monosoup" else spread(ratios),
        )


def diff(folder):
    """Two equal files of 2 GB, against cmp."""
    generate(folder, "two_gigabytes")
    shutil.copy(folder / "base.safetensors", folder / "same.safetensors")
    pair = [folder / "base.safetensors", folder / "same.safetensors"]
    header("Equal files of 2 GB", "command", "wall, median", "CPU", "peak", "ratio")
    runs = {"diff": [], "cmp": []}
    for number in range(REPEATS + 1):
        for name, command in {"diff": [*MONOSOUP, "diff", *pair, "-q"], "cmp": ["cmp", *pair]}.items():
            result = measured(*command)
            if number:
                runs[name].append(result)
    for name, results in runs.items():
        walls, cpus, peaks = zip(*results, strict=True)
        ratios = [a[0] / b[0] for a, b in zip(*runs.values(), strict=True)]
        row(
            f"`{'monosoup ' if name == 'diff' else ''}{name}`",
            f"{statistics.median(walls):.2f} s",
            f"{statistics.median(cpus):.2f} s",
            size(max(peaks)),
            spread(ratios) if name == "diff" else "",
        )


def spread(ratios):
    """Median, and from where to where."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def small(folder):
    """Many tiny matrices; and a stack in one worker, against the same matrices as separate tensors."""
    generate(folder, "tiny")
    header("Small layers", "pair", "wall", "CPU", "peak")
    results = [measured(*edit(folder)) for _ in range(3)]
    walls, cpus, peaks = zip(*results, strict=True)
    row(
        "100,000 matrices of 16 × 16, bf16",
        *(f"{statistics.median(times):.1f} s" for times in (walls, cpus)),
        size(max(peaks)),
    )
    generate(folder, "stack")
    header("A stack of 128 matrices of 768 × 2048, one worker", "stack, CPU", "apart, CPU", "ratio of CPU")
    cpus = {place: [] for place in (folder, folder / "apart")}
    for _ in range(3):
        for place, times in cpus.items():
            times.append(measured(*edit(place, "--workers", "1"))[1])
    stack, apart = cpus.values()
    row(
        *(f"{statistics.median(times):.1f} s" for times in (stack, apart)),
        spread([one / other for one, other in zip(stack, apart, strict=True)]),
    )


def load(folder):
    """Unusual sizes: what four times as much takes."""
    header("Unusual sizes", "much of", "few", "CPU", "peak", "many", "CPU", "peak", "ratio of CPU")
    start = min(measured(sys.executable, "-c", "import torch")[1] for _ in range(2))
    done = []
    for name, is_refused, count, words in runs(folder, os.environ.get("LOADS", "").split()):
        _, cpu, peak = measured(*MONOSOUP, *words, code=int(is_refused))
        done.append((f"{count:,}", f"{cpu:.1f} s", size(peak)))
        if len(done) % 2:
            least = cpu
        else:
            row(name, *done[-2], *done[-1], f"{(cpu - start) / (least - start):.1f}")
    print(f"\nThe ratio is without the start, {start:.1f} s of CPU.")


SIDES = ("ours", "theirs")


def equal(folder):
    """The largest difference to mergekit's outputs, relative to the largest weight, in float32."""
    generate(folder, "small")
    header("The same numbers as mergekit, float32", "merge", "largest relative difference")
    for name, (ours, theirs, _) in merges(folder, "float32").items():
        measured(*ours)
        measured(*theirs)
        found = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.compare", *(folder / f"{who}-{name}" for who in SIDES)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        row(name, found.strip())


def machine():
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    versions = subprocess.run(
        [sys.executable, "-c", "import torch, numpy; print(torch.__version__, numpy.__version__)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{time.strftime('%Y-%m-%d')}: {processor}, {cores} cores, {platform.system()} {platform.machine()},"
    )
    print(f"Python {platform.python_version()}, torch {versions[0]}, NumPy {versions[1]}.")


def main():
    benchmarks = {
        "startup": startup,
        "kernel": kernel,
        "file": file,
        "lean": lean,
        "merge": merge,
        "bare": bare,
        "equal": equal,
        "estimate": estimate,
        "hub": hub,
        "adapter": adapter,
        "lora": lora,
        "extract": extract,
        "diff": diff,
        "small": small,
        "load": load,
        "before": before,
    }
    machine()
    for name in sys.argv[1:] or (name for name in benchmarks if name != "before" or "BEFORE" in os.environ):
        folder = Path(tempfile.mkdtemp(prefix="monosoup-bench-"))
        try:
            benchmarks[name](folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
