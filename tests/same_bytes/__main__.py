"""Prove that two versions of the package write the same bytes.

    python -m tests.same_bytes OLD_TREE NEW_TREE [--only NAME…] [--ignore NAME…] [--all] [--keep FOLDER]

OLD_TREE and NEW_TREE are checkouts. `inputs.py` makes a fixed set of small checkpoints and adapters in
a temporary folder, from fixed seeds. `cases.txt` lists command lines. Each command line runs once with
the package of each tree, and everything that the two runs leave behind is compared. `--only` takes
names of cases, or globs such as `adapter*`. `--keep` puts the inputs and outputs in a folder that is
not removed afterwards. `--all` prints every file that differs, instead of the first of each case.
`--ignore` takes globs of files that may differ, such as `README.md`. `--list` prints the names of the cases.

What is compared:

- the exit code; an exception that escapes `main` counts as exit code 70, so that it is not mistaken
  for a refusal;
- the files that are there, among them what a failed run leaves, and their permissions;
- every file byte for byte. From text (JSON reports, model cards, stdout) the following is dropped
  first: the time a run took, the tool's version, and after an interrupted run the counts of bytes
  read and written;
- stdout: JSON and CSV as files are, and of tables and plans only the numbers, since words may be
  improved;
- whether the inputs are untouched, by size and time of change.

stderr is not compared, nor are pages (`--html`) and pictures. For each case the first file that
differs is printed, with the tensor or the first JSON paths; the exit code is 1 where anything differs.

How a command line runs: one process for each tree imports torch and forks for each command line; the
child does what `python -m monosoup_cli …` does. This saves the import of torch, which takes longer
than most cases. Its working directory is a folder of its own, from which the inputs are
`../../in/NAME`, so that the paths in reports are relative and equal. One thread, no network, no GPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
from pathlib import Path

from tests.same_bytes.cases import CASES
from tests.same_bytes.differences import find_differences
from tests.same_bytes.inputs import Inputs
from tests.same_bytes.trees import Tree


def main() -> int:
    """Run the cases, print a line for each; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_bytes", description=__doc__.split("\n")[0])
    parser.add_argument("trees", type=Path, nargs="*", metavar="TREE", help="the old and the new checkout")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names or globs of cases")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="NAME", help="files that may differ")
    parser.add_argument("--all", action="store_true", help="print all files that differ in a case")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and stop")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep inputs and outputs in this folder")
    arguments = parser.parse_args()
    cases = [
        case for case in CASES if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in arguments.only)
    ]
    if arguments.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    if len(arguments.trees) != 2:
        parser.error("two trees are needed, the old one and the new one")
    if not cases:
        parser.error("no case has such a name; --list shows them")
    if arguments.keep is None:
        with tempfile.TemporaryDirectory(prefix="same-bytes-") as folder:
            return compare(cases, arguments, Path(folder).resolve())
    arguments.keep.mkdir(parents=True)
    return compare(cases, arguments, arguments.keep.resolve())


def compare(cases, arguments, folder) -> int:
    """The exit code: 1 where a case differs, or changes its inputs."""
    inputs, started, differing = Inputs(folder / "in"), time.monotonic(), 0
    with Tree(arguments.trees[0], folder / "old") as old, Tree(arguments.trees[1], folder / "new") as new:
        for case in cases:
            begun = time.monotonic()
            inputs.make(case)
            before = digests(inputs.folder)
            differences = [
                difference
                for difference in find_differences(old.run(case), new.run(case), case)
                if not is_ignored(difference, arguments.ignore)
            ]
            if digests(inputs.folder) != before:
                differences.append("the inputs were changed")
            differing += bool(differences)
            shown = differences if arguments.all else differences[:1]
            spent = f"{time.monotonic() - begun:6.1f} s"
            print(f"{case.name:<28} {spent}  ", "\n    ".join(shown) or "same", flush=True)
    verdict = (
        f"{differing} of {len(cases)} cases differ" if differing else f"all {len(cases)} cases are the same"
    )
    print(f"{verdict}, in {time.monotonic() - started:.0f} s")
    return int(differing > 0)


def is_ignored(difference: str, patterns) -> bool:
    """Whether the file that a difference begins with is one of those that may differ."""
    file = Path(difference.partition(":")[0]).name
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


def digests(folder):
    """What shows that a file was written to; not the content of every file each time, which takes long."""
    return {
        path: (status.st_ino, status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        for status in [path.lstat()]
    }


if __name__ == "__main__":
    sys.exit(main())
