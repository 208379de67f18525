"""Turns docs/report.schema.json into Markdown tables of the report's fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SHARED = {  # parts that several fields refer to; each part has its own table
    "input": "Items of `inputs`",
    "checkpoint": "`output`, and items of `outputs`",
    "summary": "`summary`",
    "tensor": "Items of `layers`",
    "search": "`search`",
}


OWN = ("summary", "layers", "selection", "similarity", "verdict")
"""Fields that differ between commands."""


def fields_of_report(path: Path) -> str:
    """Return the sections of the page: first the shared fields, then the fields of each command."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    parts = ["### Top level", _table(schema, schema, "")]
    for name, title in SHARED.items():
        parts += [f"### {title}", _table(schema, schema["$defs"][name], "")]
    for branch in schema["allOf"]:
        condition = branch["if"]["properties"]["command"]
        names = condition.get("enum", [condition.get("const")])
        commands = " and ".join(f"`monosoup {name}`" for name in names)
        rows = "".join(_own(schema, branch["then"]))
        parts += [f"### Only {commands}", _head() + rows if rows else "This command adds no fields."]
    return "\n\n".join(parts)


def _own(schema: Schema, branch: Schema) -> Iterator[str]:
    """Yield the rows of the fields that only this command's report has."""
    greedy = branch.get("then", {}).get("properties", {})
    for name, part in (*branch["properties"].items(), *greedy.items()):
        if part is not False and name in OWN:
            brackets = "[]" if "items" in part else ""
            yield from _rows(schema, part.get("items", part), f"{name}{brackets}.")


def _table(schema: Schema, part: Schema, prefix: str) -> str:
    return _head() + "".join(_rows(schema, part, prefix))


def _head() -> str:
    return "| field | type | meaning |\n|---|---|---|\n"


def _rows(schema: Schema, part: Schema, prefix: str) -> Iterator[str]:
    """Yield a row for each property, including nested ones that have no table of their own."""
    for name, property_ in _properties(schema, part).items():
        field = _resolved(schema, property_)
        if "description" in field:
            yield f"| `{prefix}{name}` | {_type(schema, field)} | {_linked(field['description'])} |\n"
        yield from _rows(schema, property_, f"{prefix}{name}.")
        if isinstance(field.get("items"), dict):
            yield from _rows(schema, field["items"], f"{prefix}{name}[].")


def _properties(schema: Schema, part: Schema) -> Schema:
    """Return the properties of the part, of its alternatives, and of its reference if that has no table."""
    properties: Schema = {}
    name = _referred(part)
    if name and name not in SHARED:
        properties |= _properties(schema, schema["$defs"][name])
    properties |= part.get("properties", {})
    for alternative in (*part.get("oneOf", []), *([part["then"]] if "then" in part else [])):
        properties = properties | {
            name: field for name, field in _properties(schema, alternative).items() if name not in properties
        }
    return properties


def _referred(part: Schema) -> str:
    return str(part.get("$ref", "")).rpartition("/")[2]


def _resolved(schema: Schema, part: Any) -> Schema:
    """Return the part merged with its reference; the part's own keys win."""
    if not isinstance(part, dict):
        return {}
    name = _referred(part)
    return {**_resolved(schema, schema["$defs"][name]), **part} if name else part


def _type(schema: Schema, field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_type(schema, _resolved(schema, option)) for option in field["anyOf"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    types = field.get("type", "")
    types = [types] if isinstance(types, str) else types
    return " or ".join(types)


def _linked(text: str) -> str:
    """Escape a plain-text description for Markdown, and turn the pages that it names into links."""
    text = re.sub(r"([*_<|\\`\[])", r"\\\1", text)
    return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", text)
