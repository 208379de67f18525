"""The YAML of a recipe, or of a configuration of mergekit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from yaml.composer import ComposerError  # type: ignore[import-untyped]

from monosoup_cli.errors import CheckpointError, MonosoupError, UsageError, crop

__all__ = ["check_text", "read_recipe_file"]

MAX_BYTES, MAX_DIGITS = 1_000_000, 18
FLOAT, MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")
"""A number with an exponent, as Python and YAML 1.2 have it. YAML 1.1 takes some of them for text."""
ALIAS = "while scanning an alias"
PATTERN = re.compile(r"\*[^\s,:\]}'\"]*")
"""What was meant as a glob, where YAML sees an alias."""
COMMAND = "command"
"""What a step has. Its other keys are arguments, whose names have dashes or underscores."""


class Slip(NamedTuple):
    """A slip of YAML.

    Attributes:
        found: Matches what the parser says of it.
        words: What it is.
        is_earlier: Whether it is where the parser began, and not where it gave up.
    """

    found: str
    words: str
    is_earlier: bool = False


SLIPS = (
    Slip(r"character '\\t'", "a tab, where YAML takes spaces alone"),
    Slip(r"character '(.)' that cannot", "a value that begins with {} needs quotes"),
    Slip(r"expected ',' or '\]'", "a list that begins with [ lacks its ] or a comma", is_earlier=True),
    Slip(r"expected ',' or '\}'", "a mapping that begins with {{ lacks its }} or a comma", is_earlier=True),
    Slip(r"expected ':'", "a key lacks its colon and the space after it", is_earlier=True),
    Slip(
        "mapping values are not allowed",
        "a colon where no key can end: a value with a colon needs quotes, keys of one mapping have one"
        " indentation, and each has a colon and a space after it",
    ),
    Slip("sequence entries are not allowed", "the list begins on a line of its own"),
    Slip("quoted scalar.*end of", "a quote that does not end", is_earlier=True),
    Slip("unknown escape character", "a backslash is written as it is in single quotes, not in double ones"),
    Slip(
        "<block (mapping|sequence) start>|found '-'", "the indentation differs from that of the lines above"
    ),
    Slip("expected <block end>", "the value has ended before, or needs quotes as a whole"),
    Slip("another document", "a second document (---), where a recipe is one"),
    Slip("the tag '.*:value'", "a value = needs quotes"),
    Slip("the tag |tag handle", "a tag (!), which recipes do not have; text that begins with ! needs quotes"),
    Slip("unhashable key", "a key is a list or a mapping; text that begins with [ or {{ needs quotes"),
)


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes no aliases, a few of which can stand for any amount, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(ALIAS, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        own = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        super().flatten_mapping(node)
        names = [str(self.construct_object(key)) for key in own]
        first: dict[str, tuple[str, Any]] = {}
        for name, key in zip(names, own, strict=True):
            argument = name.replace("-", "_") if COMMAND in names else name
            if argument in first:
                earlier, mark = first[argument]
                otherwise = f" as {crop(repr(earlier))}" if earlier != name else ""
                raise UsageError(
                    f"{_at(key.start_mark)}: {crop(repr(name))} is there twice, first in line"
                    f" {mark.line + 1}{otherwise}"
                )
            first[argument] = name, key.start_mark

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (MonosoupError, yaml.YAMLError, RecursionError):
            raise
        except Exception:  # all kinds of errors for values that are not of their tag
            raise UsageError(
                f"{_at(node.start_mark)}: a value that YAML cannot read; text needs quotes"
            ) from None


Loader.add_implicit_resolver(FLOAT, NUMBER, [*"-+.0123456789"])


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The content of a file of YAML that is a mapping.

    Raises:
        MonosoupError: It is none, is too large, or has what no recipe has.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError("too large for a recipe", path=path)
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=Loader)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8", path=path) from None
    except RecursionError:
        raise UsageError("is nested too deeply for a recipe", path=path) from None
    except UsageError as error:
        error.path = str(path)
        raise
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"line {line}: a control character", path=path) from None
    except yaml.MarkedYAMLError as error:
        raise _slip(error, text, path) from None
    except Exception:  # the parser lets through what Python says of a number or a character code
        raise UsageError("is no YAML: a number or a character code is out of range", path=path) from None
    check_text(content, path)
    if not isinstance(content, dict):
        raise UsageError("is no recipe", path=path, expected="command or steps; or merge_method, of mergekit")
    return content


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _slip(error: Any, text: str, path: Path) -> UsageError:
    """What is wrong with YAML, in words for people who do not know its grammar."""
    said = f"{error.context}: {error.problem}"
    if error.context == ALIAS:
        pattern = PATTERN.match(text, error.context_mark.index)
        meant = crop(pattern[0] if pattern else "*")
        return UsageError(
            f"{_at(error.context_mark)}: {meant} is an alias to YAML, and recipes have none",
            path=path,
            hint=f"quote a pattern: '{meant}'",
        )
    for slip in SLIPS:
        if found := re.search(slip.found, said):
            mark = error.context_mark if slip.is_earlier else error.problem_mark
            words = slip.words.format(*found.groups())
            return UsageError(f"{_at(mark or error.problem_mark)}: {words}", path=path)
    return UsageError(f"{_at(error.problem_mark)}: is no YAML ({crop(str(error.problem))})", path=path)


def check_text(value: Any, path: Path) -> None:
    """Raise UsageError for text that no file name and no stream can have, and for numbers without an end."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for one in value:
            check_text(one, path)
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise UsageError("has a number that is too large", path=path)
    elif isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise UsageError("has text that is no Unicode, or has a null character", path=path)
