"""What hints on wrong command lines lead to."""

from __future__ import annotations

from tests.hints.table import Trial, follows


@follows("cli/usage.py", "too many arguments")
def an_argument_too_many(at: Trial) -> None:
    at.refused("info", at.base, at.finetuned)
    assert "`monosoup info X [OPTIONS]`" in at.hint
    at.works("info", at.base)


@follows("cli/usage.py", "^…; the usage is")
def a_missing_option(at: Trial) -> None:
    at.refused("wise", at.base, at.finetuned, "-o", at.out)
    assert "`monosoup wise BASE FINETUNED... -o OUT --alpha A [OPTIONS]`" in at.hint
    assert at.run("wise", "--help").code == 0
    at.loads("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "0.5")


@follows("values.py", "did you mean")
def an_option_that_is_nearly_one(at: Trial) -> None:
    at.refused(*at.edit, "--dtyp", "float16")
    (option,) = at.options()
    at.loads(*at.edit, option, "float16")


@follows("values.py", "did you mean")
def a_command_that_is_nearly_one(at: Trial) -> None:
    at.look(at.run("edti", *at.edit[1:]))
    assert "did you mean edit?" in at.hint
    at.loads(*at.edit)


@follows("cli/usage.py", "lists them")
def a_command_that_is_none(at: Trial) -> None:
    at.look(at.run("xyz"))
    assert "  edit " in at.works("--help").out


@follows("methods/sweep.py", "no step fits")
def a_sweep_whose_step_is_too_long(at: Trial) -> None:
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha")
    at.refused(*command, "0:1:1e300")
    at.loads(*command, "0.2,0.5")
    assert {one.name for one in at.out.iterdir() if one.is_dir()} == {"alpha-0.2", "alpha-0.5"}


@follows("methods/sweep.py", "ends with the last step")
def a_sweep_that_misses_its_end(at: Trial) -> None:
    command = ("wise", at.base, at.finetuned, "-o", at.out, "--alpha")
    at.refused(*command, "0:1:0.4")
    at.loads(*command, at.blanks[0].split()[-1])
    made = {one.name for one in at.out.iterdir() if one.is_dir()}
    assert made == {"alpha-0", "alpha-0.4", "alpha-0.8"}
