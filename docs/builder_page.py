"""Makes the form of the page docs/build.md, which builds a command line.

Its choices are the jobs that `monosoup` alone prints, and the arguments and options that the command line's
own parser has; docs/_static/build.js does the rest in the browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer

from monosoup_cli.cli.app import app
from monosoup_cli.cli.jobs import JOBS

FORM = """\
<link rel="stylesheet" href="_static/build.css">
<noscript><p>This page needs JavaScript. <a href="cli.html">Commands and options</a> do not.</p></noscript>
<form id="build" autocomplete="off">
<p><label for="build-job">What do you want to do?</label> <select id="build-job"></select></p>
<p id="build-help"></p>
<fieldset><legend>Inputs and outputs</legend><div id="build-needed"></div></fieldset>
<details><summary>Options</summary>
<p><label for="build-filter">Show only options with</label> <input id="build-filter" type="search"></p>
<div id="build-options"></div>
</details>
<section aria-labelledby="build-title"><h2 id="build-title">Your command</h2>
<pre id="build-line" tabindex="0" role="region" aria-live="polite" aria-labelledby="build-title"></pre>
<p><button type="button" id="build-copy">Copy</button> <span id="build-said" role="status"></span></p>
</section>
</form>
<script type="application/json" id="build-data">{data}</script>
<script src="_static/build.js"></script>
"""


def form() -> str:
    """Return the HTML of the form with its data."""
    return FORM.format(data=json.dumps(choices(), ensure_ascii=False).replace("<", "\\u003c"))


def choices() -> dict[str, Any]:
    """Return what can be chosen.

    `parameters` has every argument and option once; a command names its own by their places there. `jobs`
    have a command and values to begin with: first those of `JOBS`, then what each of the other commands does.
    """
    group = typer.main.get_command(app)
    parameters: list[dict[str, Any]] = []
    commands = {}
    for name, command in group.commands.items():
        own = [_parameter(one) for one in command.params]
        parameters += [one for one in own if one not in parameters]
        commands[name] = {
            "help": command.get_short_help_str(80),
            "parameters": [parameters.index(one) for one in own],
        }
    jobs = [_job(group, job, *words.split()) for job, words in JOBS.items()]
    done = {job["command"] for job in jobs}
    jobs += [
        {"job": command["help"].removesuffix("."), "command": name, "values": {}}
        for name, command in commands.items()
        if name not in done
    ]
    return {"commands": commands, "parameters": parameters, "jobs": jobs}


def _job(group: Any, job: str, name: str, *words: str) -> dict[str, Any]:
    """A job with the values that its command has: all but placeholders for what is required."""
    command = group.commands[name]
    given = command.make_context(name, list(words)).params
    values = {
        one.name: value if value is True else str(value)
        for one in command.params
        if (value := given[one.name])
        and value != one.default
        and not (one.required and (isinstance(value, tuple | list) or str(value)[0].isupper()))
    }
    return {"job": job[0].upper() + job[1:], "command": name, "values": values}


def _parameter(one: Any) -> dict[str, Any]:
    """An argument, or an option with its flags, as its field needs it."""
    is_option = one.param_type_name == "option"
    is_switch = is_option and one.is_flag
    both = [*one.opts, *one.secondary_opts] if one.secondary_opts else []
    return {
        "name": one.name,
        "flags": sorted(one.opts, key=len) if is_option else [],
        "placeholder": one.metavar or one.name.upper(),
        "help": one.help,
        "is_required": one.required,
        "is_switch": bool(is_switch and not both),
        "is_repeated": one.nargs == -1 or bool(is_option and one.multiple),
        "choices": both or list(_values(one.type_descriptor.annotation)),
        "default": None if is_switch or one.default is None else str(one.default),
    }


def _values(kind: Any) -> Iterator[str]:
    """Yield the values of a type that has only some."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, UnionType):
        for inner in get_args(kind):
            yield from _values(inner)
