"""Every hint has a row in the table, and every row's hint leads to its end."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import Pair, Run
from tests.hints.sites import PACKAGE, Module, Site, all_sites
from tests.hints.table import ROWS, Row, Trial

for path in sorted(Path(__file__).parent.glob("of_*.py")):
    import_module(f"tests.hints.{path.stem}")

SITES = all_sites()


def sites_of(row: Row) -> list[Site]:
    return [site for site in SITES if site.file == row.file and row.words in f"^{site.words}$"]


def test_every_row_is_of_one_hint():
    assert [(row.file, row.words, sites_of(row)) for row in ROWS if len(sites_of(row)) != 1] == []


def test_every_hint_has_a_row():
    told = {site for row in ROWS for site in sites_of(row)}
    lacking = [f"{site.file}: {site.words}" for site in SITES if site not in told]
    assert lacking == [], "\n".join(lacking)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row.file}: {row.words}", marks=row.marks) for row in ROWS]
)
def test_a_hint_leads_to_its_end(
    row: Row, pair: Pair, run: Run, tmp_path: Path, request: pytest.FixtureRequest
):
    trial = Trial(sites_of(row)[0], pair, run, tmp_path, request)
    row.follow(trial)
    assert trial.hint, "the row did not have the hint printed"
    assert trial.is_ended, "the row did not follow the hint to its end"


SOURCE = '''
"""Docstrings may say: use --resume."""
from typing import NamedTuple
from monosoup_cli.formats.archive import RESAVE
from monosoup_cli.sources.hub_ids import to_fill_the_cache

TRY = "try --device cpu"
ALL = {"a": "use a", "b": "use b"}
ROWS = (("a", "of a", "copy {path}"), ("b", "of b", "move it"))
KINDS = {"c": ("of c", "save it")}

class Advice(NamedTuple):
    problem: str
    hint: str | None = None

def refuse(problem, hint=TRY):
    return Error(problem, hint=hint)

def chosen(kind):
    return "pass one" if kind else None

def run(path, kind, again):
    """Never a hint: rerun with --resume."""
    Advice("by position", "log in")
    refuse("by default")
    refuse("none", None)
    Error("by keyword", hint=RESAVE)
    Error(f"with {path}", hint=f"create {path}")
    Error("by a function", hint=chosen(kind))
    Error("by a table", hint=ALL[kind])
    Error("unknown", hint=again.words)
    reason, hint = "together", "one"
    if kind:
        reason, hint = "apart", "other"
    Error(reason, hint=hint)
    Error("of another module", hint=to_fill_the_cache(path))
    for start, what, advice in ROWS:
        Error(what, hint=advice.format(path=path))
    try:
        pass
    except Error as error:
        error.hint = "run it again"
    note(f"note: {path}; --exclude leaves it")
    note(f"{path} is read; --state-dict chooses another")
    note("nothing to do")

def described(kind):
    what, advice = KINDS.get(kind, ("of another kind", TRY))
    return Error(what, hint=advice)
'''
FOUND = """
by position; log in
by default; try --device cpu
by keyword; save it again with a current torch: torch.save(torch.load(OLD, weights_only=True), NEW)
with …; create …
by a function; pass one
by a table; use a
by a table; use b
unknown; …
together; one
apart; other
of another module; run `…` without HF_HUB_OFFLINE
…; copy …
…; move it
of c; save it
of another kind; try --device cpu
run it again
note: …; --exclude leaves it
… is read; --state-dict chooses another
"""


def test_hints_are_found_however_they_are_given():
    made = Module("made.py", ast.parse(SOURCE))
    names = ("formats/archive.py", "sources/hub_ids.py")
    package = {name: Module(name, ast.parse((PACKAGE / name).read_text())) for name in names}
    assert {site.words for site in made.sites(package)} == set(FOUND.strip().splitlines())
