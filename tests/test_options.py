"""Options: declared once, and the same in every place that follows from the declaration."""

import inspect
import re
import typing

import pytest
import typer

from monosoup_cli import keywords as keywords_of
from monosoup_cli import options
from monosoup_cli.api.commands import COMMANDS, LOOKS
from monosoup_cli.api.inspect_spectrum import inspect_spectrum
from monosoup_cli.cli.app import app
from monosoup_cli.declaration import Call, DeclaredOption, Option, declared_in

GROUPS = [
    options.SelectionOptions,
    options.StorageOptions,
    options.ComputeOptions,
    options.OutputOptions,
    options.LayerOptions,
]
TALK = {"dry_run", "format", "quiet", "no_progress", "help", "exit_zero"}
VIEW = {"group", "sort", "reverse", "top", "html", "plot"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_its_keywords(group):
    keywords = getattr(keywords_of, group.__name__.replace("Options", "Keywords"))
    declared = {name: one.type for name, one in declared_in(group).items()}
    assert typing.get_type_hints(keywords) == declared


def test_the_keywords_of_a_command_are_those_of_the_groups_and_the_progress():
    keywords = typing.get_type_hints(keywords_of.RunKeywords)
    assert keywords.keys() - options.RunOptions.declared().keys() == {"progress", "layers"}
    assert options.RunOptions.declared().keys() <= keywords.keys()


FUNCTIONS = [*COMMANDS.values(), *LOOKS.values(), inspect_spectrum]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
def test_the_shell_and_python_have_the_same_options(function):
    """With the same defaults; the shell adds only how it talks and what it shows, and cannot say `layers`."""
    group = typer.main.get_command(app)
    command = group.commands[function.__name__.replace("_", "-")]
    shell = {one.name: one for one in command.params}
    python = inspect.signature(function).parameters
    assert shell.keys() - TALK - VIEW == python.keys() - {"progress", "watch", "layers"}
    assert python.keys() >= function.declared.keys()
    for name, declared in function.declared.items():
        if not declared.option.in_shell:
            continue
        assert shell[name].help or command.get_short_help_str(), name
        assert python[name].default == declared.default
        default = shell[name].default or None
        assert default == (declared.default or None) or shell[name].required, name


def test_a_help_page_speaks_of_its_own_command():
    for name, command in typer.main.get_command(app).commands.items():
        flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        flags |= {"--part"} if name == "finish" else set()  # it takes what another command made
        said = " ".join(getattr(one, "help", None) or "" for one in command.params)
        assert {*re.findall(r"--[a-z][a-z-]*", said)} <= flags, name
        assert not {*re.findall(r"[a-z-]+(?=:? as in|: like)", said)} & COMMANDS.keys(), name


def test_the_help_of_a_command_is_what_the_docstring_of_its_declaration_says():
    """In Python's names, that of the function says it."""
    commands = typer.main.get_command(app).commands
    for name, function in COMMANDS.items():
        assert commands[name].help == inspect.cleandoc(inspect.unwrap(function).__doc__)
    assert "--resume scores nothing\ntwice" in commands["search"].help
    assert "--resume" not in COMMANDS["search"].__doc__.split("Example: ")[0]
    assert "--dry-run shows them" in commands["lines"].help
    assert "lines.plan shows them" in COMMANDS["lines"].__doc__


def test_help_says_what_becomes_of_tensors_that_are_left_out():
    said = {name: one.declared["include"].option.help for name, one in COMMANDS.items()}
    assert "as fine-tuned (of several: averaged)" in said["edit"]
    assert said["edit"] == said["wise"] == said["lines"] == said["search"]
    assert "are averaged, too; if their shapes differ" in said["soup"]
    assert "The others are averaged, too" in said["sfgs"]
    assert "average the rest" in said["stock"]
    assert "the adapter changes no others" in said["extract"]
    assert "as in BASE" in said["merge"]
    assert "as in ONTO" in said["transplant"]


@pytest.fixture
def call():
    declared = {
        name: DeclaredOption(name, object, default, Option("", **facts))
        for name, default, facts in [
            ("base", inspect.Parameter.empty, {"in_card": False}),
            ("include", (), {}),
            ("clamp", True, {}),
            ("weights", None, {"is_list": True}),
            ("score_command", None, {"is_private": True}),
            ("workers", None, {"changes_bytes": False, "in_card": False}),
            ("max_shard_size", None, {}),
        ]
    }
    return Call("edit", {}, declared)


def test_a_card_has_the_options_that_are_not_the_defaults(call):
    arguments = {
        "base": "/home/me/base",
        "include": ["a", "b c"],
        "clamp": False,
        "weights": [1.0, 2.0],
        "score_command": "/home/me/score {}",
        "workers": 3,
        "max_shard_size": "5GB",
    }
    assert " ".join(call.words(arguments)) == (
        "--include a --include b c --no-clamp --weights 1,2 --score-command … --max-shard-size 5GB"
    )
    assert call.words({"include": [], "clamp": True, "weights": None, "max_shard_size": None}) == []


def test_a_resumed_run_repeats_what_changes_the_bytes(call):
    arguments = {"base": "a", "clamp": False, "workers": 3, "max_shard_size": None}
    assert call.identity(arguments) == {"base": "a", "clamp": False, "max_shard_size": None}
