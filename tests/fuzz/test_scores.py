"""What harnesses leave that is almost valid: an error of ours, or a comparison as usual."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import monosoup_cli
from monosoup_cli.errors import MonosoupError
from tests.fuzz.mutations import mutated_json, text_of
from tests.schema import SCHEMA, VALIDATOR

few = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=5000)

FILES = Path(__file__).parents[1] / "evaluation" / "harnesses" / "lm_eval"
SCORES = VALIDATOR.evolve(schema={**SCHEMA["properties"]["scores"], "$defs": SCHEMA["$defs"]})
RESULTS = json.loads(next(FILES.glob("models__edited/results_*")).read_text())
KEPT = ("results", "group_subtasks", "configs", "higher_is_better", "n-samples")
RESULTS = {name: RESULTS[name] for name in KEPT}
RESULTS["configs"] = {
    "parity": {"dataset_path": "org/name", "metric_list": RESULTS["configs"]["parity"]["metric_list"]}
}
SAMPLE = json.loads(next(FILES.glob("models__edited/samples_parity_*")).read_text().splitlines()[0])
WORDS = ["parity", "acc,none", "none", "\x1b[2J", "a=b", 0, 1, 0.5, -1, True, 6]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("evals")
    names = ("models__base", "models__finetuned", "models__edited")
    return [Path(shutil.copytree(FILES / name, folder / name)) for name in names]


def compared(models: list[Path], pattern: str, content: bytes) -> None:
    (path,) = models[2].glob(pattern)
    kept = path.read_bytes()
    path.write_bytes(content)
    try:
        found: dict[str, Any] = monosoup_cli.scores(*models, in_="parity", out="truth")
        assert list(SCORES.iter_errors(json.loads(json.dumps(found, allow_nan=False)))) == []
    except MonosoupError as error:
        str(error).encode(errors="surrogateescape")
    finally:
        path.write_bytes(kept)


def of_samples(sample: bytes) -> bytes:
    (path,) = FILES.glob("models__edited/samples_parity_*")
    return b"\n".join([sample.replace(b"\n", b" "), *path.read_bytes().splitlines()[1:]])


results = mutated_json(RESULTS, WORDS).map(text_of)
samples = mutated_json(SAMPLE, WORDS).map(text_of)


def test_the_valid_ones_are_compared(models):
    compared(models, "results_*", text_of(RESULTS))
    compared(models, "samples_parity_*", of_samples(text_of(SAMPLE)))


@few
@given(results)
def test_results_that_are_almost_valid(models, content):
    compared(models, "results_*", content)


@few
@given(samples)
def test_samples_that_are_almost_valid(models, content):
    compared(models, "samples_parity_*", of_samples(content))


@pytest.mark.thorough
@many
@given(st.booleans(), results, samples)
def test_many_that_are_almost_valid(models, is_result, result, sample):
    if is_result:
        compared(models, "results_*", result)
    else:
        compared(models, "samples_parity_*", of_samples(sample))
