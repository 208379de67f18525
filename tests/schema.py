"""What every report is held to: docs/report.schema.json."""

import json
from pathlib import Path

import jsonschema

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def errors_of(report):
    return [error.message for error in VALIDATOR.iter_errors(report)]


def assert_valid(report):
    assert errors_of(report) == []
