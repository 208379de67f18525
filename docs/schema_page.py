"""The fields of the report as Markdown tables, from docs/report.schema.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SHARED = {  # parts that several fields have, each with a table of its own
    "input": "Each of `inputs`",
    "checkpoint": "`output`, and each of `outputs`",
    "summary": "`summary`",
    "tensor": "Each of `layers`",
}


OWN = ("summary", "layers", "selection", "similarity", "verdict")
"""What may differ from command to command."""


def fields_of_report(path: Path) -> str:
    """A section for every command, after one for what all of them have."""
    schema = json.loads(path.read_text(encoding="utf-8"))
    parts = ["### The whole", _table(schema, schema, "")]
    for name, title in SHARED.items():
        parts += [f"### {title}", _table(schema, schema["$defs"][name], "")]
    for branch in schema["allOf"]:
        of = branch["if"]["properties"]["command"]
        commands = " and ".join(f"`monosoup {name}`" for name in of.get("enum", [of.get("const")]))
        rows = "".join(_own(schema, branch["then"]))
        parts += [f"### Only {commands}", _head() + rows if rows else "Nothing more."]
    return "\n\n".join(parts)


def _own(schema: Schema, branch: Schema) -> Iterator[str]:
    """What a command's report has beyond the shared parts."""
    greedy = branch.get("then", {}).get("properties", {})
    for name, part in (*branch["properties"].items(), *greedy.items()):
        if part is not False and name in OWN:
            each = "[]" if "items" in part else ""
            yield from _rows(schema, part.get("items", part), f"{name}{each}.")


def _table(schema: Schema, part: Schema, prefix: str) -> str:
    return _head() + "".join(_rows(schema, part, prefix))


def _head() -> str:
    return "| field | type | meaning |\n|---|---|---|\n"


def _rows(schema: Schema, part: Schema, prefix: str) -> Iterator[str]:
    """A row for each property, those inside objects and lists too, unless they have a table."""
    for name, property_ in _properties(schema, part).items():
        field = _resolved(schema, property_)
        if "description" in field:
            yield f"| `{prefix}{name}` | {_type(schema, field)} | {_linked(field['description'])} |\n"
        yield from _rows(schema, property_, f"{prefix}{name}.")
        if isinstance(field.get("items"), dict):
            yield from _rows(schema, field["items"], f"{prefix}{name}[].")


def _properties(schema: Schema, part: Schema) -> Schema:
    """Of the part, of what it refers to (unless that has a table), and of its alternatives."""
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
    """The part with what it refers to; what stands beside the reference counts."""
    if not isinstance(part, dict):
        return {}
    name = _referred(part)
    return {**_resolved(schema, schema["$defs"][name]), **part} if name else part


def _type(schema: Schema, field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_type(schema, _resolved(schema, each)) for each in field["anyOf"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    types = field.get("type", "")
    types = [types] if isinstance(types, str) else types
    return " or ".join(types)


def _linked(text: str) -> str:
    """Descriptions are plain text; the pages that they name become links."""
    text = re.sub(r"([*_<|\\`\[])", r"\\\1", text)
    return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", text)
