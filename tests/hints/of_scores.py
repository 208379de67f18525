"""What hints on scores lead to: scores that are compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.hints.table import Trial, follows
from tests.lm_eval_files import of_lm_eval


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


@follows(
    "evaluation/plain.py", "has neither score nor correct; evaluate this", "the … of …; evaluate this sample"
)
def a_sample_again_or_none_of_its_id(at: Trial) -> None:
    files = [at.tmp / f"{name}.csv" for name in ("base", "tuned", "edited")]
    for path in files:
        path.write_text("task,id,score\nquiz,1,0.5\nquiz,2,0.25\n")
    files[2].write_text(
        "task,id,score\nquiz,1,0.5\n" + ("quiz,2,nan\n" if "the …" in at.site.problem else "quiz,2,\n")
    )
    at.refused("scores", *files)
    kept = [path.read_text() for path in files]
    for path in files:
        path.write_text("".join(line for line in path.read_text().splitlines(True) if ",2," not in line))
    at.works("scores", *files)
    for path, text in zip(files, kept, strict=True):
        path.write_text(text.replace("nan", "1").replace("2,\n", "2,1\n"))
    at.works("scores", *files)


@follows("evaluation/plain.py", "give the folder that these samples of lm-evaluation-harness are in")
def the_folder_of_samples(at: Trial) -> None:
    folders = [of_lm_eval(at.tmp / name, quiz=("acc", True, "101")) for name in ("base", "tuned", "edited")]
    at.refused("scores", *(next(folder.glob("samples_*")) for folder in folders))
    at.works("scores", *folders)


@follows("evaluation/comparison.py", "once for each task")
def tasks_between_commas(at: Trial) -> None:
    folders = models(at)
    at.refused("scores", *folders, "--in", "cars,birds")
    at.works("scores", *folders, "--in", "cars", "--in", "birds")


@follows("evaluation/comparison.py", "or add a column `task`")
def files_of_a_task_that_are_called_alike(at: Trial) -> None:
    files = [at.tmp / name / f"of-{name}.csv" for name in ("base", "tuned", "edited")]
    for path in files:
        path.parent.mkdir()
        path.write_text("id,score\n1,0.5\n")
    folders = [path.parent for path in files]
    at.refused("scores", *folders)
    for path in files:
        path.write_text("id,score,task\n1,0.5,quiz\n")
    at.works("scores", *folders)
    for path in files:
        path.rename(path.with_name("quiz.csv")).write_text("id,score\n1,0.5\n")
    at.works("scores", *folders)


@follows("evaluation/comparison.py", "evaluate all models on the same tasks")
def the_same_tasks(at: Trial) -> None:
    folders = [
        of_lm_eval(at.tmp / name, **{task: ("acc", True, "101")})
        for name, task in (("base", "quiz"), ("tuned", "quiz"), ("edited", "sums"))
    ]
    at.refused("scores", *folders)
    of_lm_eval(at.tmp / "again", quiz=("acc", True, "101"))
    at.works("scores", *folders[:2], at.tmp / "again")


@follows("evaluation/comparison.py", "evaluate both models on the same samples")
def the_same_samples(at: Trial) -> None:
    files = [at.tmp / f"{name}.csv" for name in ("base", "tuned", "edited")]
    for path in files:
        path.write_text("task,id,score\nquiz,1,0.5\nquiz,2,0.25\n"[: -12 if path is files[2] else None])
    at.refused("scores", *files)
    files[2].write_text(files[1].read_text())
    at.works("scores", *files)


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
