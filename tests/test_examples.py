"""Every command in README.md and docs/ runs, and prints what the page shows. tests/examples.py says how."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.cli.app import app
from tests import examples, places, warm

pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
QUICK = {"silent": False, "slow": False}
BLOCKS = [
    (page, block) for page in examples.PAGES for block in examples.blocks(page.read_text().splitlines())
]
COMMANDS = [command.text for _, block in BLOCKS for command in block.commands()]
RUN = [command.text for _, block in BLOCKS for command in block.run(**QUICK)]
SHOWING = [page for page in examples.PAGES if any(one == page and block.shows for one, block in BLOCKS)]
PROGRAMS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in examples.PAGES
    for number, code in enumerate(examples.programs(page))
]
SHELL = {"|", ">", "&&", ";"}
PAGE = """
```console
$ monosoup diff base ft --top 1
A       base
B       ft
values  differ in 27 of 39 tensors
…
$ monosoup edit base-model big-vocab -o out
error: big-vocab: no such folder
$ monosoup diff base ft --headers
A       base
B       ft
```
"""


@pytest.fixture(scope="module")
def environment():
    with examples.shell() as environment:
        yield environment


@pytest.fixture(scope="module")
def place(tmp_path_factory, environment):
    place = tmp_path_factory.mktemp("examples") / "place"
    places.make(place, environment)
    return place


@pytest.fixture
def check(place, tmp_path, environment):
    """Run the commands of a page, and fail with what is not as it shows."""

    def check(page, **which):
        run = examples.run(page, place, tmp_path / "room", environment, **which)
        found = [trouble for example in run if (trouble := example.trouble()) is not None]
        if found:
            found.append(f"What is right is recorded by: python -m tests.examples {page}")
            pytest.fail("\n\n".join(found), pytrace=False)

    return check


@pytest.mark.parametrize("page", SHOWING, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page, check):
    check(page, **QUICK)


@pytest.mark.thorough
@pytest.mark.parametrize("page", examples.PAGES, ids=lambda page: page.name)
def test_every_command_runs(page, check):
    check(page, silent=True, slow=True)


@pytest.mark.parametrize("line", sorted({*COMMANDS} - {*RUN}))
def test_what_is_not_run_each_time_parses(line):
    words = shlex.split(line.replace("\\\n", " "), comments=True)
    if words[0] != "monosoup":
        return
    name, *words = words[1 : next((at for at, word in enumerate(words) if word in SHELL), None)]
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("monosoup", [name]), name)
    assert command is not None
    command.make_context(name, words)


@pytest.mark.parametrize("code", PROGRAMS)
def test_programs_run(code, place, tmp_path, environment):
    places.copy(place, tmp_path / "room")
    done = warm.script(code, environment, tmp_path / "room")
    assert done.returncode == 0, done.stderr


CI = examples.ROOT / "docs" / "ci.md"
GATES = list(dict.fromkeys(re.findall(r"^jq -e '(.+)' edited-model/", CI.read_text(), re.MULTILINE)))
"""What docs/ci.md asks of a report: that something was edited, all of it, by the right base, with a score."""


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ("edit base ft --score 'acc=: {}; echo 1'", [True, True, True, True, True]),
        ("edit base ft --include a.weight --score 'acc=: {}; echo 0.5'", [True, True, False, True, False]),
        ("edit steps moved", [True, False, True, True, False]),
        ("edit other ft", [True, True, True, False, False]),
        ("edit base base", [False, True, True, False, False]),
        ("edit base ft --wise 0.5,1", [False, True, False, False, False]),
        ("edit base ft --as-adapter --adapter-rank 8", [True, True, True, True, False]),
        ("edit - adapter --as-adapter", [True, True, True, False, False]),
        ("merge base adapter", [False, True, True, False, False]),
        ("extract base ft --rank 8", [False, True, True, True, False]),
        ("extract base base --rank 8", [False, True, True, False, False]),
        ("soup base ft", [False, True, True, False, False]),
        ("wise base ft --alpha 0.5", [False, True, True, False, False]),
    ],
)
def test_the_gates_of_ci_fail_where_a_number_is_missing(run, tmp_path, monkeypatch, words, passed):
    """jq has null below every number."""
    monkeypatch.chdir(tmp_path)
    normal = torch.Generator().manual_seed(0)
    base, noise, other = (
        {name: torch.randn(12, 8, generator=normal) for name in ("a.weight", "b.weight")} for _ in range(3)
    )
    tuned = {name: weights + noise[name] * 0.6 ** torch.arange(8) for name, weights in base.items()}
    steps = {name: weights.bfloat16() for name, weights in base.items()}
    moved = {name: w + 0.003 * w.norm() / noise[name].norm() * noise[name] for name, w in steps.items()}
    moved = {name: weights.bfloat16() for name, weights in moved.items()}
    checkpoints = {"base": base, "ft": tuned, "other": other, "steps": steps, "moved": moved}
    for name, tensors in checkpoints.items():
        Path(name).mkdir()
        save_file(tensors, f"{name}/model.safetensors")
    if "adapter" in words.split():
        assert run("extract", "base", "ft", "--rank", "8", "-o", "adapter").code == 0
    assert run(*shlex.split(words), "-o", "edited-model", "--quiet").code == 0
    report = Path("edited-model/monosoup_report.json")
    asked = [subprocess.run(["jq", "-e", gate, report], capture_output=True) for gate in GATES]
    assert [one.returncode == 0 for one in asked] == passed


@pytest.mark.parametrize("change", ["time", "gone"])
def test_a_job_of_ci_starts_over_for_other_inputs_alone(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    for name in ("base-model", "ft-model"):
        Path(name).mkdir()
        save_file(
            {"a.weight": torch.randn(12, 8), "b.weight": torch.randn(12, 8)}, f"{name}/model.safetensors"
        )

    def stop(tensor, is_done):
        if is_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monosoup_cli.edit("base-model", "ft-model", "edited-model", workers=1, progress=stop)
    if change == "time":
        os.utime("ft-model/model.safetensors", ns=(0, 0))
    else:
        Path("ft-model").rename("elsewhere")
    (job,) = re.findall(r"```sh\n([^`]+\|\| \{ cat [^`]+)```", CI.read_text())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-ec", job], env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == (change == "gone"), done.stderr
    assert ("interrupted run differs" in done.stderr) == (change == "time")
    assert done.stderr.count("error: ") == 1
    assert Path("edited-model").exists() == (change == "time")
    assert Path("edited-model.partial").exists() == (change == "gone")


def test_the_demo_prints_the_table_of_the_readme(place):
    tables = [block.lines for page, block in BLOCKS if page.name == "README.md" and "held-out" in block.text]
    printed = (place / "demo.log").read_text().splitlines()
    for table in tables:
        assert examples.matches(["…", *table, "…"], printed), "\n".join(printed)


def test_a_stale_page_is_found_and_recorded(place, tmp_path, environment):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert examples.record(page, place, tmp_path / "room", environment) == 3
    recorded = page.read_text()
    assert recorded.startswith(PAGE[: PAGE.index("27 of 39")] + "28 of 39 tensors\n…\n$ monosoup edit ")
    assert "\nerror: big-vocab: tensor 'lm_head.weight': the shapes differ (also of\n" in recorded
    assert recorded.endswith("\nB        ft\nvalues   not compared\nheaders  nothing differs\n```\n")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("time  0.0 s, 24.9 MB/s read", "time  1.5 s, 1,204.5 GB/s read"),
        ("memory      about 168 MB for 2 workers", "memory      about 3 GB for 64 workers"),
        ("in less than a second", "in 3 s"),
        ("5  9.37  10", "5    9.38  10"),
        ("1.bias\t0.6053963039873768", "1.bias\t0.6053963039873790"),
        ("x 1.2e-07", "x 1.3e-07"),
    ],
)
def test_what_may_differ(shown, printed):
    assert examples.is_like(shown, printed)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("edited  3 tensors", "edited  4 tensors"),
        ("edited  3 tensors", "edited  3 matrices"),
        ("5  9.37  10", "5  9.39  10"),
        ("5  9.37  10", "5  9.37  11"),
        ("0.6053963039873768", "0.6053983039873768"),
        ("k 0.5", "k -0.5"),
        ("█▄▃", "█▄▄"),
        ("wrote out (340 kB)", "wrote out (341 kB)"),
    ],
)
def test_what_may_not_differ(shown, printed):
    assert not examples.is_like(shown, printed)


@pytest.mark.parametrize(
    ("shown", "is_so"),
    [("abc", True), ("ab", False), ("bc", False), ("…c", True), ("a…", True), ("a…c", True), ("a…b", False)],
)
def test_lines_left_out(shown, is_so):
    assert examples.matches([*shown], [*"abc"]) is is_so


def test_what_is_recorded_is_cut_as_before():
    printed = ["read 9", "k 1", "k 2", "", "wrote 3"]
    assert examples.recorded(["…", "k 7", "k 8", "…"], printed) == ["…", "k 1", "k 2", "…"]
    assert examples.recorded(["…", "wrote 4"], printed) == ["…", "wrote 3"]
    assert examples.recorded(["read 1", "…"], printed) == ["read 9", "…"]
    assert examples.recorded(["all"], printed) == printed


def test_nothing_is_excused_in_vain():
    for words in examples.NOT_RUN:
        if not words.startswith("^"):  # what installs it is in README.md, or not
            assert any(re.search(words, command) for command in COMMANDS), words
    code = [block.text for _, block in BLOCKS if block.language == "python"]
    for words in examples.PARTS_OF_PROGRAMS:
        assert any(words in text for text in code), words


def test_examples_are_found():
    assert len(COMMANDS) > 100
    assert len(RUN) > 40
    assert len(PROGRAMS) > 8
