"""The bench of the session, and how many faults were injected, told at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.faults.bench import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()


@pytest.fixture
def injected(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Counts a fault of some kind that was injected."""
    return lambda kind: record_property("fault", kind)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kinds = Counter(
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "fault"
    )
    if kinds:
        terminalreporter.write_sep("=", f"{kinds.total()} faults injected")
        terminalreporter.write_line(", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
