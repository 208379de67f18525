"""Hints on outputs that several machines make in parts."""

import shutil

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


@follows("pipeline/part.py", "run its command with --part ……")
def missing_parts(at: Trial) -> None:
    make(at, "1/2")
    at.refused("finish", at.out)
    make(at, at.blanks[0].split()[0])
    at.loads("finish", at.out)


@follows("pipeline/part.py", "run its command with --part … --overwrite again")
def a_part_that_is_damaged(at: Trial) -> None:
    for part in ("1/2", "2/2"):
        make(at, part)
    (parts_path(at.out) / "2-of-2" / "part.json").unlink()
    at.refused("finish", at.out)
    make(at, at.blanks[0], "--overwrite")
    at.loads("finish", at.out)


@follows("pipeline/part.py", "remove those of another run")
def parts_of_two_runs(at: Trial) -> None:
    for part in ("1/1", "1/2"):
        make(at, part)
    at.refused("finish", at.out)
    shutil.rmtree(parts_path(at.out) / "1-of-2")
    at.loads("finish", at.out)


@follows("pipeline/parts.py", "to make it anew, pass --overwrite")
def a_part_of_another_run(at: Trial) -> None:
    make(at, "1/1", "--energy", "0.5")
    at.refused(*at.edit, "--part", "1/1")
    make(at, "1/1", *at.options())
    at.loads("finish", at.out)


@follows("api/finish.py", "to replace it, pass --overwrite")
def an_output_in_the_place_of_one_of_parts(at: Trial) -> None:
    at.works(*at.edit)
    make(at, "1/1")
    at.refused("finish", at.out)
    at.loads("finish", at.out, *at.options())


@follows("pipeline/planned.py", "give --adapter-rank in place of --adapter-energy")
def ranks_that_depend_on_all_layers(at: Trial) -> None:
    command = (*at.edit, "--as-adapter", "--include", "block.weight", "--part", "1/1")
    at.refused(*command, "--adapter-energy", "0.5")
    assert at.run(*command, *at.options(), "2").code == 0
    at.loads("finish", at.out)
