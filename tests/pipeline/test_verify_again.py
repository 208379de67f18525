"""`verify --inputs` and `--again`: are the inputs those of the run, and do its bytes come out again?"""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.declaration import DeclaredOption, Option
from tests.conftest import everything_in
from tests.hub import Hub
from tests.pipeline.test_verify import REPORT, model, rewrite


@pytest.fixture
def inputs(tmp_path):
    return [model(tmp_path / name, seed) for seed, name in enumerate(("base", "ft1", "ft2", "ft3"))]


SCORE = "echo 0.$(($(stat -c %s {}/model.safetensors) % 7))"


def forge_weights(out):
    """Change a byte of some weights, and the SHA-256 in all reports, so that only the run itself can tell."""
    path = sorted(out.rglob("*.safetensors"))[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for report in out.rglob(REPORT):
        old, new = (hashlib.sha256(content).hexdigest() for content in (good, path.read_bytes()))
        report.write_text(report.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("edit", "--max-shard-size", "2KB", "--dtype", "float16", "--exclude", "norm*"), 2),
        (("edit", "--energy", "0.5,0.8"), 2),
        (("edit", "--as-adapter", "--adapter-rank", "2"), 2),
        (("edit", "--rank", "3", "--wise", "0.5"), 3),
        (("stock", "--granularity", "filter"), 3),
        (("wise", "--alpha", "0:0.2:0.1"), 2),
        (("lines", "--alpha", "0.5", "--beta", "1"), 2),
        (("sfgs", "--threshold", "-1"), 4),
        (("soup", "--weights", "1,2,3,4"), 4),
        (("soup", "--greedy", "--score-command", "echo 1; : {}"), 3),
    ],
)
def test_the_bytes_of_every_command_come_out_again(run, inputs, tmp_path, words, count):
    out = tmp_path / "out"
    assert run(words[0], *inputs[:count], "-o", out, "-q", *words[1:], "--workers", "1").code == 0
    before = everything_in(tmp_path)
    result = run("verify", out, "--inputs", "--again")
    assert (result.code, result.err) == (0, ""), result
    assert everything_in(tmp_path) == before
    forge_weights(out)
    assert run("verify", out).code == 0
    result = run("verify", out, "--again", "--format", "json")
    assert result.code == 1
    assert [one["problem"] for one in json.loads(result.out)["differences"]] == [
        "made again, it has other bytes"
    ]


def test_a_greedy_soup_runs_no_command_of_the_report(run, inputs, tmp_path):
    marker = tmp_path / "marker"
    command = f"touch {marker}; echo 0.5; : {{}}"
    assert run("soup", *inputs[1:], "-o", tmp_path / "out", "--greedy", "--score-command", command).code == 0
    marker.unlink()
    assert run("verify", tmp_path / "out", "--again").code == 0
    assert not marker.exists()
    for members in ([], ["elsewhere"]):
        rewrite(
            tmp_path / "out" / REPORT,
            lambda report, members=members: report["selection"].update(members=members),
        )
        result = run("verify", tmp_path / "out", "--again")
        assert (result.code, "Traceback" in result.err) == (1, False)


def test_a_single_file_and_a_checkpoint_of_a_sweep(run, inputs, tmp_path):
    assert run("edit", *inputs[:2], "-o", tmp_path / "out.safetensors").code == 0
    assert run("verify", tmp_path / "out.safetensors", "--again", "--inputs").code == 0
    assert run("wise", *inputs[:2], "-o", tmp_path / "sweep", "--alpha", "0.3,0.6").code == 0
    assert run("verify", tmp_path / "sweep" / "alpha-0.6", "--again", "--inputs").code == 0


def test_inputs_that_changed_are_found(run, inputs, tmp_path):
    base, finetuned = inputs[:2]
    assert run("edit", base, finetuned, "-o", tmp_path / "out").code == 0

    def found():
        result = run("verify", tmp_path / "out", "--inputs", "--format", "json")
        differences = json.loads(result.out)["differences"]
        assert result.code == (1 if differences else 0)
        return [(one["path"], one["problem"]) for one in differences]

    assert found() == []
    good = (base / "model.safetensors").read_bytes()
    tensors = load_file(base / "model.safetensors")
    save_file(tensors, base / "model.safetensors", metadata={"format": "np"})
    assert found() == [(str(base / "model.safetensors"), "another header than in the report")]
    save_file({**tensors, "more": torch.ones(3)}, base / "model.safetensors")
    assert found() == [(str(base / "model.safetensors"), "another size than in the report")]
    (base / "model.safetensors").write_bytes(good)
    (finetuned / "model.safetensors").rename(finetuned / "weights.safetensors")
    assert found() == [(str(finetuned), "other files of weights than in the report")]
    (finetuned / "weights.safetensors").write_bytes(b"{}")
    assert [path for path, _ in found()] == [str(finetuned / "weights.safetensors")]
    shutil.rmtree(finetuned)
    assert found() == [(str(finetuned), "no such file or folder")]


def test_inputs_on_the_hub_are_those_of_one_commit(run, inputs, tmp_path, client):
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        commit = hub.add("org/base", inputs[0])
        hub.add("org/ft", inputs[1])
        assert run("edit", "org/base", "org/ft", "-o", tmp_path / "out").code == 0
        assert run("verify", tmp_path / "out", "--inputs", "--again").code == 0
        now = hub.add(
            "org/base", {"model.safetensors": inputs[2] / "model.safetensors", "config.json": b"{}"}
        )
        result = run("verify", tmp_path / "out", "--inputs")
        assert result.err == (
            f"error: org/base: another commit than in the report: expected {commit}, found {now}\n"
        )
        hub.clear()
        rewrite(tmp_path / "out" / REPORT, lambda report: report["inputs"][0].update(revision=None))
        assert "no such file or folder" in run("verify", tmp_path / "out", "--inputs").err
        assert "org/base" not in {request.repository for request in hub.requests}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy", {"a": 1}),
        ("finetuned", 7),
        ("finetuned", [7]),
        ("finetuned", []),
        ("output", []),
        ("base", None),
        ("include", "x"),
        ("include", [[]]),
        ("dtype", []),
        ("workers_", 1),
        ("device", 3),
        ("rename", [1]),
        ("state_dict", False),
        ("max_shard_size", [1]),
        ("partial", "yes"),
        ("progress", 1),
        ("watch", 1),
    ],
)
def test_arguments_that_a_command_does_not_take_are_refused(run, inputs, tmp_path, name, value):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0
    rewrite(out / REPORT, lambda report: report["arguments"].update({name: value}))
    before = everything_in(tmp_path)
    result = run("verify", out, "--again")
    assert result.code != 0
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: ")
    assert everything_in(tmp_path) == before


def test_another_environment_is_named(run, inputs, tmp_path):
    out = tmp_path / "out"
    assert run("edit", *inputs[:2], "-o", out).code == 0

    def change(report):
        report["environment"]["torch"] = "1.0"
        report["output"]["files"][0]["sha256"] = "0" * 64

    rewrite(out / REPORT, change)
    result = run("verify", out, "--again")
    assert (
        f"note: the bytes may depend on what is not as in the run: torch {torch.__version__}, not 1.0"
        in result.err
    )


def test_every_option_accepts_its_own_default():
    assert all(one.accepts(one.default) for one in monosoup_cli.edit.declared.values())
    assert not DeclaredOption("n", int, None, Option("")).accepts(True)
