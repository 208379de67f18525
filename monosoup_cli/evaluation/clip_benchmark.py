"""The JSON that clip_benchmark leaves: the metrics of one model on one dataset, without samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from monosoup_cli.errors import CheckpointError
from monosoup_cli.evaluation.place import Place
from monosoup_cli.evaluation.task import Choice, Task
from monosoup_cli.evaluation.values import is_number_or_missing, value_of
from monosoup_cli.formats.files import read_json_file

__all__ = ["ClipBenchmark"]

USUAL_TASK, USUAL_LANGUAGE = "zeroshot_classification", "en"


class ClipBenchmark:
    """Files of `clip_benchmark eval --output`, one for each dataset."""

    name = "clip_benchmark"
    files = "JSON of clip_benchmark"
    suffixes: ClassVar[Sequence[str]] = (".json",)

    def read(self, file: Place, choice: Choice) -> list[Task] | None:
        """Read a file; its task is called as the dataset is."""
        shown = file.shown
        content: Any = read_json_file(file.open(), "result", is_strict=False)
        if not isinstance(content, dict) or not {"dataset", "metrics"} <= content.keys():
            return None
        dataset, metrics = content["dataset"], content["metrics"]
        if not isinstance(dataset, str) or not dataset or not isinstance(metrics, dict):
            raise CheckpointError("its dataset is no text, or its metrics are no object", path=shown)
        found = {name: value for name, value in metrics.items() if is_number_or_missing(value)}
        if not found:
            raise CheckpointError("has no metric that is a number", path=shown)
        name = dataset
        for key, usual in (("task", USUAL_TASK), ("language", USUAL_LANGUAGE)):
            part = content.get(key, usual)
            name += f":{part}" if isinstance(part, str) and part not in ("", usual) else ""
        metric = choice.of(name, list(found), shown)
        why = "clip_benchmark leaves totals, not samples"
        value = value_of(name, metric, found, shown)
        return [Task(name, metric, True, value, shown, None, why, harness=self.name)]
