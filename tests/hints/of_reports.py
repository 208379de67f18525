"""What hints on reports lead to: a report that is shown, compared or drawn."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import metadata

import pytest

from monosoup_cli.errors import ReportError
from monosoup_cli.report.files import read_report
from monosoup_cli.report.plots import figure
from tests.conftest import Result
from tests.hints.table import Trial, follows

REPORT = "monosoup_report.json"


@follows("report/plots.py", "no layers to draw")
def a_picture_of_several(at: Trial) -> None:
    """Of a figure made in Python; the command line says it before."""
    at.loads(*at.edit, "--wise", "0.5,1")
    with pytest.raises(ReportError) as refused:
        figure(read_report(at.out / REPORT))
    at.look(Result(1, "", str(refused.value)))
    for folder in at.out.glob("wise-*"):
        assert figure(read_report(folder)).subfigs
    at.works("report", folder, "--plot", at.tmp / "layers.svg")


@follows("report/comparison.py", "no layers to compare")
@follows("cli/display.py", "has no layers")
def a_report_of_several(at: Trial) -> None:
    """Each checkpoint's own report, in its folder, is taken in place of the report of all."""
    at.loads(*at.edit, "--wise", "0.5,1")
    words = {
        "report/comparison.py": lambda report: ("compare", report, report),
        "cli/display.py": lambda report: ("report", report, "--format", "csv"),
    }[at.site.file]
    at.refused(*words(at.out / REPORT))
    folders = [path.parent for path in at.out.glob(f"*/{REPORT}")]
    assert len(folders) == 2
    for folder in folders:
        at.works(*words(folder / REPORT))


@follows("report/files.py", "is not a monosoup report")
def another_json(at: Trial) -> None:
    (at.tmp / "config.json").write_text("{}")
    at.refused("report", at.tmp / "config.json")
    at.works(*at.edit)
    at.works("report", at.out / REPORT)
    at.works(*at.edit[:-1], at.tmp / "X.safetensors")
    at.works("report", at.tmp / "X.report.json")


@follows("report/files.py", "give another name")
def a_page_in_place_of_a_file_of_the_users(at: Trial) -> None:
    at.works(*at.edit)
    (at.tmp / "mine.html").write_text("<title>Mine</title>")
    (at.tmp / "mine-2.html").write_text("<title>Mine, too</title>")
    at.refused("report", at.out, "--html", at.tmp / "mine.html")
    assert at.hint.endswith("mine-3.html")
    at.works("report", at.out, "--html", at.tmp / "mine-3.html")


@follows("report/files.py", "if it is cut short")
def a_cut_report(at: Trial) -> None:
    at.works(*at.edit)
    good = (at.out / REPORT).read_bytes()
    (at.out / REPORT).write_bytes(good[: len(good) // 2])
    at.refused("report", at.out)
    (at.out / REPORT).write_bytes(good)
    at.works("report", at.out)


@follows("report/plots.py", "pictures need matplotlib")
def no_matplotlib(at: Trial) -> None:
    """In a process without matplotlib; what pip would then install is what the package says it needs."""
    at.works(*at.edit)
    blocked = "import sys; sys.modules['matplotlib'] = None; from monosoup_cli.__main__ import run; run()"
    words = ["report", str(at.out / REPORT), "--plot", str(at.tmp / "layers.png")]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *words], capture_output=True, text=True, check=False
    )
    at.look(Result(done.returncode, done.stdout, done.stderr))
    project = metadata("monosoup")
    assert f"pip install '{project['name']}[plot]'" in at.hint
    assert [each for each in project.get_all("requires-dist") or () if each.startswith("matplotlib")]
    at.works(*words)


@follows("report/verdict.py", "--exclude leaves such layers out of the edit")
def a_nearly_flat_spectrum(at: Trial) -> None:
    from safetensors.torch import save_file

    from tests.report.test_verdict import Model

    model = Model(0)
    base = {f"layers.{n}.weight": model.size * model.normal(740, 1000) for n in range(2)}
    flat = base["layers.0.weight"] + model.size * model.flat((740, 1000), 0.2)
    ordinary = base["layers.1.weight"] + model.ordinary((740, 1000))
    save_file(base, at.base)
    save_file({"layers.0.weight": flat, "layers.1.weight": ordinary}, at.finetuned)
    at.noted("inspect-spectrum", at.base, at.finetuned)
    result = at.loads(*at.edit, *at.options(), "layers.0.weight")
    assert at.site.find(result.out + result.err) is None


@follows("report/files.py", "`monosoup info` shows a")
def a_checkpoint_in_place_of_its_report(at: Trial) -> None:
    """Commands for checkpoints take it, and what monosoup writes has a report."""
    at.refused("compare", at.base, at.finetuned)
    at.works("info", at.base)
    at.works("diff", at.base, at.finetuned, "--exit-zero")
    at.works(*at.edit)
    at.works("compare", at.out, at.out)
    at.works("report", at.out)
