"""Hints on outputs that several machines make in parts."""

import os
import shutil
import subprocess
import sys

from monosoup_cli.outputs.workplace import parts_path
from tests.hints.table import Trial, follows


def make(at: Trial, part: str, *options: str) -> None:
    assert at.run(*at.edit, "--part", part, *options).code == 0


@follows("pipeline/part.py", "run a command with --part 1/N, 2/N, … first")
def no_parts(at: Trial) -> None:
    at.refused("finish", at.out)
    for part in ("1/2", "2/2"):
        make(at, part)
    at.loads("finish", at.out)


@follows("pipeline/part.py", "run the command with --part ……")
def missing_parts(at: Trial) -> None:
    make(at, "1/2")
    at.refused("finish", at.out)
    make(at, at.blanks[0].split()[0])
    at.loads("finish", at.out)


@follows("pipeline/part.py", "run the command with --part … --overwrite again")
def a_part_that_is_damaged(at: Trial) -> None:
    for part in ("1/2", "2/2"):
        make(at, part)
    (parts_path(at.out) / "2-of-2" / "part.json").unlink()
    at.refused("finish", at.out)
    make(at, at.blanks[0], "--overwrite")
    at.loads("finish", at.out)


@follows("pipeline/part.py", "remove those of another run")
def parts_of_two_runs(at: Trial) -> None:
    make(at, "1/1")
    make(at, "1/2", "--overwrite")
    assert "found 1-of-1, 1-of-2" in at.refused("finish", at.out).err
    shutil.rmtree(parts_path(at.out) / "1-of-2")
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "use --part I/…, or remove that folder")
def a_part_of_another_number(at: Trial) -> None:
    make(at, "1/2")
    at.refused(*at.edit, "--part", "1/3")
    make(at, f"2/{at.blanks[0]}")
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "run the command of the others with --part … --overwrite")
def a_part_of_other_options(at: Trial) -> None:
    for part in ("1/3", "2/3"):
        make(at, part)
    make(at, "3/3", "--energy", "0.5", "--overwrite")
    at.refused("finish", at.out)
    make(at, at.blanks[0], "--overwrite")
    at.loads("finish", at.out)


@follows("pipeline/part.py", "`monosoup verify …` checks it")
def an_output_that_is_finished(at: Trial) -> None:
    make(at, "1/1")
    at.loads("finish", at.out)
    at.refused("finish", at.out)
    at.works("verify", at.blanks[0])


@follows("pipeline/planned.py", "leave out one of them")
def a_part_on_a_cluster(at: Trial) -> None:
    at.refused(*at.edit, "--part", "1/1", "--engine", "ray")
    make(at, "1/1")
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "to make it anew, pass --overwrite")
def a_part_of_another_run(at: Trial) -> None:
    make(at, "1/1", "--energy", "0.5")
    at.refused(*at.edit, "--part", "1/1")
    make(at, "1/1", *at.options())
    at.loads("finish", at.out)


@follows("api/finish.py", "to replace it, pass --overwrite")
def an_output_in_the_place_of_one_of_parts(at: Trial) -> None:
    make(at, "1/1")
    at.works(*at.edit)
    at.refused("finish", at.out)
    at.loads("finish", at.out, *at.options())


@follows("pipeline/planned.py", "give --adapter-rank, the same for all", "give --rank, the same for all")
def ranks_that_depend_on_all_layers(at: Trial) -> None:
    command = (*at.edit, "--as-adapter")
    energy = "--adapter-energy"
    if "--rank" in at.site.words:
        command, energy = ("extract", *at.edit[1:]), "--energy"
    command = (*command, "--include", "block.weight", "--part", "1/1")
    at.refused(*command, energy, "0.5")
    assert at.run(*command, *at.options(), "2").code == 0
    at.loads("finish", at.out)


@follows("pipeline/part.py", "give the output: `monosoup finish …`")
def the_parts_in_place_of_the_output(at: Trial) -> None:
    make(at, "1/1")
    at.refused("finish", parts_path(at.out))
    at.loads("finish", at.blanks[0])


@follows("pipeline/part.py", "wait for it")
def a_part_that_is_being_made(at: Trial) -> None:
    make(at, "1/2")
    program = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        " print(flush=True); sys.stdin.read()"
    )
    folder = parts_path(at.out) / "2-of-2.partial"
    folder.mkdir()
    words = [sys.executable, "-c", program, str(folder / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        at.refused("finish", at.out)
        other.communicate()
    make(at, "2/2")
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "use its arguments; to make all parts anew, pass --overwrite with each")
def a_part_beside_one_of_another_run(at: Trial) -> None:
    make(at, "1/2")
    at.refused(*at.edit, "--part", "2/2", "--energy", "0.5")
    for part in ("1/2", "2/2"):
        make(at, part, "--energy", "0.5", *at.options())
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "…, or make all parts anew with --overwrite")
def inputs_that_changed_since(at: Trial) -> None:
    for part in ("1/2", "2/2"):
        make(at, part)
    os.utime(at.base)
    at.refused("finish", at.out)
    for part in ("1/2", "2/2"):
        make(at, part, *at.options())
    at.loads("finish", at.out)


@follows("pipeline/destination.py", "move it away")
def something_else_in_the_place_of_parts(at: Trial) -> None:
    parts_path(at.out).mkdir()
    foreign = parts_path(at.out) / "notes.txt"
    foreign.touch()
    at.refused(*at.edit, "--part", "1/1")
    foreign.rename(at.tmp / "notes.txt")
    make(at, "1/1")
    at.loads("finish", at.out)


@follows("api/finish.py", "the parts were made in another folder: run finish in …")
def finish_elsewhere(at: Trial) -> None:
    there, here = at.base.parent, at.tmp / "here"
    here.mkdir()
    try:
        os.chdir(there)
        words = (at.edit[0], at.base.name, at.finetuned.name, "-o", at.out)
        assert at.run(*words, "--part", "1/1").code == 0
        os.chdir(here)
        at.refused("finish", at.out)
        os.chdir(at.blanks[0])
        at.loads("finish", at.out)
    finally:
        os.chdir("/")


def scored(at: Trial, *options: str) -> None:
    command = ("wise", *at.edit[1:], "--alpha", "0:1:0.5", "--score", "true {} && echo 1")
    at.refused(*command, *options)
    at.loads(*command)


@follows("pipeline/planned.py", "leave out --part")
def scores_in_parts(at: Trial) -> None:
    scored(at, "--part", "1/1")


@follows("pipeline/planned.py", "leave out --engine")
def scores_on_a_cluster(at: Trial) -> None:
    scored(at, "--engine", "ray")
