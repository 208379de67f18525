"""Fuzz the readers, guided by which branches an input takes: `python -m tests.fuzz SECONDS [TARGET…]`.

Each target runs for SECONDS, one after the other. Inputs that take new branches stay in .fuzz/TARGET, from
which the next call goes on. An input for which the check fails is .fuzz/TARGET-crash-…; it becomes a test
when the defect is mended.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris

ROOM = Path(".fuzz")
MAX_SECONDS_EACH = 10
MAX_MEGABYTES = 3000


def fuzz(name: str, seconds: str) -> None:
    """Fuzz one target in this process, which ends with it."""
    with atheris.instrument_imports(include=["monosoup_cli", "pickletools", "zipfile"]):
        from tests.fuzz.targets import TARGETS
    target, corpus = TARGETS[name], ROOM / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = ROOM / f"{name}.words"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in target.words))
    options = [f"-max_total_time={seconds}", f"-timeout={MAX_SECONDS_EACH}", f"-rss_limit_mb={MAX_MEGABYTES}"]
    options += [f"-artifact_prefix={ROOM}/{name}-", f"-dict={words}", "-max_len=8192", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.check)
    atheris.Fuzz()


def escaped(word: str) -> str:
    """A word as libFuzzer's dictionaries have it."""
    return "".join(f"\\x{ord(one):02x}" for one in word)


def main(seconds: str, *names: str) -> int:
    """Fuzz targets in turn, each in a process of its own. Return whether one failed."""
    from tests.fuzz.targets import TARGETS

    codes = [
        subprocess.run([sys.executable, "-m", "tests.fuzz", "--only", name, seconds]).returncode
        for name in names or TARGETS
    ]
    return int(any(codes))


if __name__ == "__main__":
    if sys.argv[1] == "--only":
        fuzz(*sys.argv[2:])
    else:
        sys.exit(main(*sys.argv[1:]))
