"""Every hint has a row in the table, and every row's hint leads to its end."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import Pair, Run
from tests.hints.sites import Site, all_sites
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
