"""`monosoup scores --into OUT`: the report, the model card, the Hub's form, and that OUT still verifies."""

import json
import re
import shutil
from itertools import count
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.errors import MonosoupError, UsageError
from monosoup_cli.outputs.model_card import markdown
from monosoup_cli.outputs.score_card import with_scores
from monosoup_cli.report.outcome import outcomes
from monosoup_cli.report.scores_page import scores_part
from tests.conftest import everything_in, small_tensors
from tests.outputs.forks import Forks
from tests.schema import assert_valid

LM_EVAL = Path(__file__).parent / "harnesses" / "lm_eval"
MODELS = [LM_EVAL / f"models__{name}" for name in ("base", "finetuned", "edited")]


@pytest.fixture
def output(pair, tmp_path):
    monosoup_cli.edit(*pair, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def on_hub(tmp_path):
    """What lm-eval leaves where a task's dataset is on the Hub."""
    models = [Path(shutil.copytree(model, tmp_path / model.name)) for model in MODELS]
    for model in models:
        (path,) = model.glob("results_*.json")
        content = json.loads(path.read_text())
        content["configs"]["parity"] |= {"dataset_path": "cais/mmlu", "dataset_name": "parity"}
        path.write_text(json.dumps(content))
    return models


def report_of(output):
    return json.loads((output / "monosoup_report.json").read_text())


def test_the_scores_are_in_the_output(run, output, on_hub):
    weights = (output / "model.safetensors").stat()
    before, card = report_of(output), (output / "README.md").read_text()
    result = run("scores", *on_hub, "--in", "numbers", "--into", output)
    assert result.code == 0
    assert f"wrote the comparison into {output}" in result.err
    report = report_of(output)
    assert_valid(report)
    assert report["scores"] == monosoup_cli.scores(*on_hub, in_="numbers")
    assert {name: part for name, part in report.items() if name not in ("scores", "output")} == {
        name: part for name, part in before.items() if name != "output"
    }
    assert (output / "model.safetensors").stat() == weights
    assert monosoup_cli.verify(output)["differences"] == []
    again = monosoup_cli.verify(output, again=True)
    assert (again["files"], again["differences"]) == (3, [])
    text = (output / "README.md").read_text()
    assert "| in (2 tasks) | acc | 0.5000 | 0.5000 | 0.5000 | +0.0000 |" in text
    assert "| task | healed | preserved | damaged | retained | as base |" in text
    assert "| parity (in) | 2/2 | 1/1 | 0/1 | 0/2 | 4/4 |" in text
    (said,) = outcomes(report["scores"])
    assert f"\n- {markdown(said)}\n" in text
    assert text.index("## Scores") < text.index("## Citation")
    assert ModelCard(text).data.to_dict() == ModelCard(card).data.to_dict()
    assert "parity" in run("report", output).out
    edit = report_of(output)
    edit["verdict"]["size"] = {"relative_update": 0.1, "sentence": "The edit may help."}
    (output / "monosoup_report.json").write_text(json.dumps(edit))
    shown = run("report", output, "--html", output.parent / "page.html")
    assert shown.code == 0
    assert "The edit may help." not in shown.out  # it was measured
    found = json.loads((output.parent / "page.html").read_text().split('id="data">')[1].split("</script>")[0])
    measured, did = found["opening"]
    assert measured.startswith("In distribution (")
    assert "edited" in did


def test_the_form_of_the_hub(output, on_hub):
    """The Hub's own client reads it. Datasets that are not there are not in it."""
    monosoup_cli.scores(*on_hub, into=output)
    (entry,) = parse_eval_result_entries(
        yaml.safe_load((output / ".eval_results" / "monosoup.yaml").read_text())
    )
    assert (entry.dataset_id, entry.task_id, entry.value) == ("cais/mmlu", "parity", 0.5)
    assert entry.notes == "parity, acc, by lm-evaluation-harness"


def test_lower_is_better_is_in_the_card(output, on_hub):
    monosoup_cli.scores(*on_hub, out="numbers", metric="parity=brier_score", into=output)
    text = (output / "README.md").read_text()
    assert "\n| parity (out) ↓ | brier\\_score |" in text
    assert "\n| truth (out) | acc |" in text
    assert "\n| out (2 tasks) |" in text
    assert "\n↓: lower is better.\n" in text
    results = yaml.safe_load((output / ".eval_results" / "monosoup.yaml").read_text())
    assert results[0]["notes"] == "parity, brier_score, lower is better, by lm-evaluation-harness"
    monosoup_cli.scores(*on_hub, out="prose", into=output)
    assert "\n| prose (out) ↓ | word\\_perplexity |" in (output / "README.md").read_text()
    assert_valid(report_of(output))


def test_again_replaces_what_was_there(output, on_hub):
    original = (output / "README.md").read_text()
    monosoup_cli.scores(*on_hub, into=output)
    once = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monosoup_cli.scores(*on_hub, into=output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == once
    monosoup_cli.scores(*MODELS, into=output)
    assert not (output / ".eval_results" / "monosoup.yaml").exists()
    assert monosoup_cli.verify(output)["differences"] == []
    text = (output / "README.md").read_text()
    assert text.count("## Scores") == 1
    assert re.sub(r"<!-- scores.*of scores by monosoup -->\n\n", "", text, flags=re.DOTALL) == original


def test_the_page_of_the_output_has_the_tables_of_the_scores_before_the_layers(run, output, tmp_path):
    page = tmp_path / "page.html"
    monosoup_cli.scores(*MODELS, in_="numbers", out="sums", into=output)
    shown = run("report", output, "--html", page).out
    text = page.read_text()
    comparison = report_of(output)["scores"]
    for sentence in outcomes(comparison):
        assert sentence in shown
        assert json.dumps(sentence).replace("<", "\\u003c")[1:-1] in text
    tables = scores_part(comparison)
    assert "What became of the samples" in tables
    assert "<svg" in tables
    assert text.index(tables) < text.index('id="layers"')
    assert '"healed":"Of the samples' in text


BEGIN, END = "<!-- scores by monosoup -->", "<!-- end of scores by monosoup -->"


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        ("a\n", "a"),
        (f"a\n{BEGIN}old{END}\n\n\nb\n", "a\nb"),
        (f"{BEGIN}1{END}a{BEGIN}2{END}\n", "a"),
        (f"a{BEGIN}1{END}{BEGIN}b", f"a{BEGIN}b"),
        (f"{END}a{BEGIN}", f"{END}a{BEGIN}"),
        (f"a{BEGIN}{BEGIN}1{END}", "a"),
        (BEGIN * 30_000, BEGIN * 30_000),  # if the end were sought for each of them, this would take minutes
    ],
)
def test_only_whole_sections_of_a_card_are_replaced(card, kept):
    text = with_scores(card, [], [[["task"]]], [], [])
    before, begin, _ = text.rpartition(f"\n\n{BEGIN}\n")
    assert (before, begin != "") == (kept, True)


def test_a_checkpoint_of_a_sweep(pair, tmp_path, on_hub):
    """The report of the sweep has its checksums too."""
    monosoup_cli.wise(*pair, tmp_path / "out", alpha=[0.3, 0.6])
    monosoup_cli.scores(*on_hub, into=tmp_path / "out" / "alpha-0.3")
    assert monosoup_cli.verify(tmp_path / "out")["differences"] == []
    assert monosoup_cli.verify(tmp_path / "out" / "alpha-0.3")["differences"] == []
    with pytest.raises(UsageError, match="expected the folder of one checkpoint"):
        monosoup_cli.scores(*on_hub, into=tmp_path / "out")


def test_a_single_file(pair, tmp_path):
    out = tmp_path / "out.safetensors"
    monosoup_cli.edit(*pair, out)
    monosoup_cli.scores(*MODELS, into=out)
    assert "scores" in json.loads((tmp_path / "out.report.json").read_text())
    assert monosoup_cli.verify(out)["differences"] == []
    assert not (tmp_path / ".eval_results").exists()


def test_names_in_the_card_are_text(output, tmp_path):
    for model in ("base", "tuned", "edited"):
        task = "</td>|`[x](y)\x1b\n# heading"
        (tmp_path / f"{model}.jsonl").write_text(json.dumps({"id": 1, "correct": 1, "task": task}))
    monosoup_cli.scores(*(tmp_path / f"{one}.jsonl" for one in ("base", "tuned", "edited")), into=output)
    text = (output / "README.md").read_text()
    assert r"| \</td\>\|\`\[x\](y)\\x1b\\x0a\# heading |" in text
    assert "\n# heading" not in text
    assert "\x1b" not in text


def test_what_is_no_such_output_is_refused_before_scores_are_read(output, tmp_path):
    before = everything_in(tmp_path)
    for into, message in ((tmp_path / "none", "no such"), (tmp_path / "base.safetensors", "no such file")):
        with pytest.raises(MonosoupError, match=message):
            monosoup_cli.scores("gone", "gone", "gone", into=into)
    with pytest.raises(UsageError, match="into takes the scores of one edited model: found those of 2"):
        monosoup_cli.scores(*MODELS[:2], [MODELS[2], tmp_path], into=output)
    with pytest.raises(MonosoupError, match="gone: no such file or folder"):
        monosoup_cli.scores("gone", *MODELS[1:], into=output)
    assert everything_in(tmp_path) == before


@pytest.mark.slow
def test_killed_anywhere_the_same_command_mends_it(on_hub, tmp_path):
    """Killed at each call that changes files: the report is a report, and a second run ends."""
    for seed, name in enumerate(("base", "tuned")):
        save_file(small_tensors(seed), tmp_path / f"{name}.safetensors")
    kept, out = tmp_path / "kept", tmp_path / "out"
    monosoup_cli.edit(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", kept)
    ends = []
    with Forks() as forks:
        for at in count(1):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(kept, out)
            ended = forks.run("scores", *on_hub, "--into", out, "--quiet", at=at)
            ends.append(ended.code)
            report = report_of(out)
            assert_valid(report)
            if ended.code == 0:
                break
            assert forks.run("scores", *on_hub, "--into", out, "--quiet").code == 0
            assert monosoup_cli.verify(out)["differences"] == []
            assert "scores" in report_of(out)
    assert len(ends) > 8
    assert set(ends[:-1]) == {-9}
    assert monosoup_cli.verify(out)["differences"] == []
