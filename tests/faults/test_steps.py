"""Faults at the steps of runs: whatever happens, the output is complete or absent, the inputs are
untouched, one line says what it was, and --resume ends as if it had not happened."""

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.kinds import KINDS, inject, picks


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_each_kind_once(bench, injected, number):
    """Each with another command."""
    kind, command = list(KINDS)[number], list(COMMANDS.values())[number % 8]
    (step,) = picks(command, kind, KINDS[kind].steps(command, bench.reference(command).steps), 1)
    print(step)
    if inject(bench, command, KINDS[kind], step):
        injected(kind)


def test_a_report_that_cannot_be_moved_is_copied_nowhere(bench, injected):
    command, kind = COMMANDS["edit to a file"], "read-only disk"
    assert inject(bench, command, KINDS[kind], f"replace {command.out}.partial/outside-0 1")
    injected(kind)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_kind_at_every_command(bench, injected, command, kind):
    steps = KINDS[kind].steps(command, bench.reference(command).steps)
    for step in picks(command, kind, steps, KINDS[kind].count):
        print(step)
        if inject(bench, command, KINDS[kind], step):
            injected(kind)
