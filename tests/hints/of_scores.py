"""What hints on scores lead to: scores that are compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.hints.table import Trial, follows


def models(at: Trial, **edited: float) -> list[Path]:
    """What clip_benchmark leaves of three models on two data sets; `edited` are metrics of the last."""
    folders = [at.tmp / name for name in ("a base", "tuned", "edited")]
    for folder in folders:
        folder.mkdir()
        for dataset in ("cars", "birds"):
            metrics = {"acc1": 0.5, "acc5": 0.75} | (
                edited if folder.name == "edited" and dataset == "cars" else {}
            )
            (folder / f"{dataset}.json").write_text(json.dumps({"dataset": dataset, "metrics": metrics}))
    return folders


@follows("evaluation/values.py", "choose another")
def another_metric(at: Trial) -> None:
    folders = models(at, acc1=float("nan"))
    at.refused("scores", *folders)
    (option,) = re.findall("--metric .*", at.hint)
    at.works("scores", *folders, *shlex.split(option))


@follows("evaluation/values.py", "or remove its result")
def without_the_task_or_with_it_again(at: Trial) -> None:
    folders = models(at, acc1=float("nan"), acc5=float("inf"))
    at.refused("scores", *folders)
    path = folders[2] / "cars.json"
    path.unlink()
    assert "cars is left out" in at.works("scores", *folders).err
    path.write_text((folders[1] / "cars.json").read_text())
    assert "cars" in at.works("scores", *folders).out
