"""Wrong command lines, and the usage of every command: in the words of monosoup, not of its option parser."""

import inspect
import re
import typing

import pytest
import typer

from monosoup_cli.cli import app as apps
from monosoup_cli.cli.app import app, main
from monosoup_cli.errors import UsageError
from monosoup_cli.values import nearest

GROUP = typer.main.get_command(app)
DECLARED = {name.__name__.replace("_", "-"): inspect.signature(name, eval_str=True) for name in apps.COMMANDS}
FOREIGN = re.compile(
    r"Value error|Input should|Invalid value|Error:|Usage:|\{[A-Z]|<(list|str|int|float|path)|Try '"
)
every_command = pytest.mark.parametrize("name", GROUP.commands)


def kinds_of(name):
    """The types of the options that are choices or numbers, by their flags."""
    found = {}
    for one in DECLARED[name].parameters.values():
        kind, info = typing.get_args(one.annotation)
        inner = kind if typing.get_origin(kind) is typing.Literal else (typing.get_args(kind) or (kind,))[0]
        if typing.get_origin(inner) is typing.Literal or inner in (int, float):
            found[(info.param_decls or [f"--{one.name.replace('_', '-')}"])[0]] = inner, info.min
    return found


def refused(*argv):
    """How a command line is refused."""
    with pytest.raises(UsageError) as caught:
        GROUP.main(argv, prog_name="monosoup")
    assert FOREIGN.search(str(caught.value)) is None
    return str(caught.value)


@every_command
def test_choices_and_numbers_are_refused_in_own_words(name):
    kinds = kinds_of(name)
    assert kinds or name == "run"
    for flag, (kind, least) in kinds.items():
        if kind in (int, float):
            what = "a whole number" if kind is int else "a number"
            assert refused(name, flag, "x") == f"{flag} cannot be read: expected {what}, found 'x'"
        else:
            *others, last = typing.get_args(kind)
            expected = f"expected {', '.join(others)} or {last}, found 'kep'"
            assert refused(name, flag, "kep") == f"{flag} has no such value: {expected}"
        if least is not None:
            few = str(least - 1)
            assert (
                refused(name, flag, few)
                == f"{flag} is out of range: expected at least {least:g}, found {few}"
            )


@every_command
def test_what_is_missing_is_told_with_the_usage(name):
    usage = f"the usage is `monosoup {name} "
    lacks, _, hint = refused(name).partition(" is missing; ")
    assert hint.startswith(f"{usage}{lacks}")
    assert f"`monosoup {name} --help` has the options" in hint
    required = [one for one in GROUP.commands[name].params if one.required]
    words = [word for one in required for word in ([] if one.opts[0][0] != "-" else [min(one.opts, key=len)])]
    assert [word for word in hint.split() if word.startswith("-") and word != "--help`"] == words


@every_command
def test_what_is_not_an_option_is_told(name):
    assert refused(name, "--formt", "x").startswith("there is no option --formt; ")
    assert refused(name, "-Z").startswith(f"there is no option -Z; the usage is `monosoup {name} ")
    flags = [
        one for one in GROUP.commands[name].params if one.param_type_name == "option" and one.name != "help"
    ]
    taking = next((one.opts[0] for one in flags if not one.is_flag), None)
    if taking is not None:
        assert refused(name, taking).startswith(f"{taking} needs a value; the usage is")
    given = next((one.opts[0] for one in flags if one.is_flag), None)
    if given is not None:
        assert refused(name, f"{given}=3").startswith(f"{given} takes no value; the usage is")


def test_more_than_a_command_takes_is_told():
    assert refused("compare", "a", "b", "c d", "e").startswith(
        "too many arguments: found 'c d' 'e'; the usage is"
    )


def test_what_is_not_a_command_is_told():
    assert refused("inspect", "a") == "there is no command 'inspect'; did you mean inspect-spectrum?"
    assert refused("xyz") == "there is no command 'xyz'; `monosoup --help` lists them"
    assert refused("--xyz").startswith("there is no option --xyz; ")


@every_command
def test_help_names_what_people_type(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        GROUP.main([name, "--help"], prog_name="monosoup")
    text = " ".join(capsys.readouterr().out.split())
    usage = " ".join(GROUP.commands[name].collect_usage_pieces(None))
    assert text.startswith(f"Usage: monosoup {name} {usage} ")
    assert FOREIGN.search(text.removeprefix("Usage:")) is None
    assert "x>=" not in text
    for one in GROUP.commands[name].params:
        if one.param_type_name == "option" and not one.is_flag:
            assert one.metavar, one.name


def test_a_wrong_command_line_is_one_line_and_exits_with_2(capsys):
    assert main(["edit", "a", "--dtype", "x"]) == 2
    said = "error: --dtype has no such value: expected keep, float32, bfloat16 or float16, found 'x'\n"
    assert capsys.readouterr() == ("", said)


def test_short_helps_are_whole_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name, command in GROUP.commands.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith(command.help.splitlines()[0])
        assert "..." not in line


def test_choices_are_completed(monkeypatch, capsys):
    monkeypatch.setenv("_MONOSOUP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "monosoup edit --on-mismatch ")
    monkeypatch.setenv("COMP_CWORD", "3")
    main([])
    assert capsys.readouterr().out.split() == ["error", "keep", "overlap"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--enrgy", "--energy"),
        ("--max_shard_size", "--max-shard-size"),
        ("--out", "--output"),
        ("--incl", "--include"),
        ("--fused", "--split-fused"),
        ("--on-nan", "--on-nonfinite"),
        ("--frobnicate", None),
        ("--verbose", None),
        ("--alpha", None),
        ("--", None),
    ],
)
def test_what_was_meant_is_only_guessed_where_it_is_near(typed, meant):
    flags = [flag for one in GROUP.commands["edit"].params for flag in one.opts]
    assert nearest(typed, flags) == meant
    assert nearest("inspect", ["info", "inspect-spectrum"]) == "inspect-spectrum"
    assert nearest("average", ["merge"]) is None
    assert nearest("spectrum", GROUP.commands) == "inspect-spectrum"
    assert nearest("model-stock", GROUP.commands) == "stock"
    assert nearest("to-run", ["run"]) is None
