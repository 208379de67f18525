"""The option `--score`: commands that score a checkpoint, and their names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from monosoup_cli.errors import UsageError
from monosoup_cli.options import Option, as_list

__all__ = ["SCORE_HELP", "Score", "check_template", "commands_by_name"]

NAMED = re.compile(r"([a-z][a-z0-9-]*)=(.*)", re.DOTALL)
"""In lower case, so that CUDA_VISIBLE_DEVICES=0 begins a command."""

SCORE_HELP = (
    "A shell command that scores a checkpoint. {} is replaced by its path. The last line"
    " that the command prints is the score; higher is better. NAME, in lower case, is what the score is"
    " called."
)

Score: TypeAlias = Annotated[
    str | Sequence[str],
    Option(
        f"{SCORE_HELP} Every checkpoint of the output is scored before it appears. Repeatable.",
        metavar="[NAME=]COMMAND",
        shell=list[str],
        changes_bytes=False,
        in_card=False,
        is_private=True,
    ),
]


def commands_by_name(score: str | Sequence[str], flag: str = "--score") -> dict[str, str]:
    """Read what the user typed after an option for score commands. One without a name is called "score".

    Raises:
        UsageError: A command lacks {}, or two have one name.
    """
    commands: dict[str, str] = {}
    for text in as_list(score):
        named = NAMED.fullmatch(text)
        if named is None:
            _check_name(text, flag)
        name, template = ("score", text) if named is None else named.groups()
        check_template(template, flag)
        if name in commands:
            raise UsageError(f"two of {flag} are called {name!r}", hint=f"{flag} NAME=COMMAND names a score")
        commands[name] = template
    return commands


MISNAMED = re.compile(r"([A-Za-z_][\w-]*)=(\S+)\s+(\S+)")


def _check_name(text: str, flag: str) -> None:
    """Raise UsageError for what the shell takes for a variable, although it must be meant as a name.

    That is where the value is a command, and the shell could not run what stands after it.
    """
    found = MISNAMED.match(text)
    if found is None:
        return
    name, value, then = found.groups()
    if set(then) & set("~$\"'`|;"):  # the shell makes something else of it
        return
    is_no_command = then.startswith(("-", "{")) or ("." in then[1:] and shutil.which(then) is None)
    if is_no_command and shutil.which(value) is not None:
        raise UsageError(
            f"the name after {flag} is not in lower-case letters, digits and -, so the shell takes it for a"
            " variable",
            found=name,
            hint=f"{flag} {re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}=COMMAND names a score",
        )


def check_template(template: str, flag: str) -> None:
    """Raise UsageError for a score command without {}, which stands for the checkpoint's path."""
    if "{}" not in template:
        raise UsageError(f"{flag} needs {{}} where the checkpoint's path goes", found=repr(template))
