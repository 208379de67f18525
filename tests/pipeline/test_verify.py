"""`verify`: what a run writes is accepted, and every damage is found and named. The fixture `run` holds every
output of the suite to it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from monosoup_cli.pipeline.verify import verify
from monosoup_cli.pipeline.verify_output import open_output

REPORT = "monosoup_report.json"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def model(folder, seed, rows=20):
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layers.{n}.weight": torch.randn(rows, 12, generator=generator) for n in range(6)}
    tensors["norm.weight"] = torch.randn(5, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer.json").write_text("{}" * 400)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Outputs of each kind, to be copied."""
    root = tmp_path_factory.mktemp("made")
    base, finetuned = model(root / "base", 0), model(root / "finetuned", 1)
    for name, words in {
        "folder": ("edit", "--max-shard-size", "1000B", "--dtype", "bfloat16"),
        "out.safetensors": ("edit",),
        "sweep": ("wise", "--alpha", "0.1,0.5"),
        "adapter": ("edit", "--as-adapter", "--adapter-rank", "2"),
    }.items():
        assert main([words[0], str(base), str(finetuned), "-o", str(root / name), "-q", *words[1:]]) == 0
    return root


@pytest.fixture
def out(made, tmp_path):
    """A folder in shards, with an index."""
    return shutil.copytree(made / "folder", tmp_path / "out")


@pytest.fixture
def sweep(made, tmp_path):
    return shutil.copytree(made / "sweep", tmp_path / "sweep")


@pytest.fixture
def differing(run, tmp_path):
    """Verify a damaged output, and return each (file, problem): in the order of the command and of Python."""

    def differing(output, *options):
        result = run("verify", output, *options, "--format", "json")
        assert result.code == 1, result
        found = json.loads(result.out)["differences"]
        assert len(result.err.splitlines()) >= len(found) > 0
        assert "Traceback" not in result.err
        return [(os.path.relpath(one["path"], output), one["problem"]) for one in found]

    return differing


@pytest.mark.parametrize("name", ["folder", "out.safetensors", "sweep", "adapter"])
def test_progress_counts_every_byte_that_is_hashed(made, name):
    counted = []
    output = open_output(str(made / name))
    verify(output, counted.append)
    report = made / "out.report.json" if name.endswith(".safetensors") else made / name / REPORT
    held = [made / name] if report.parent == made else (made / name).rglob("*")
    files = [path for path in held if path.is_file() and path.name != REPORT]
    assert sum(counted) == output.nbytes == sum(path.stat().st_size for path in files)


def refused(run, output, *options):
    result = run("verify", output, *options)
    assert (result.code, result.out) == (1, ""), result
    (line,) = result.err.splitlines()
    return line


def rewrite(report, change):
    """Change a report as JSON."""
    content = json.loads(report.read_text())
    change(content)
    report.write_text(json.dumps(content))


def forge(out, name):
    """Have the report say of a file what it now is, as somebody who changes both would."""

    def change(report):
        content = (out / name).read_bytes()
        for file in (*report["output"]["files"], *report["output"]["other_files"]):
            if file["name"] == name:
                file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    rewrite(out / REPORT, change)


UNASKED = {"inputs": False, "compared": [], "again": False}
OTHER = "the SHA-256 is not the one in the report"
SIZE = "another size than in the report"
GONE = "the file is missing"
STRAY = "not of this output, and a loader may read it"


@pytest.mark.parametrize(
    ("name", "files", "tensors"),
    [("folder", 7, 7), ("out.safetensors", 1, 7), ("sweep", 8, 14), ("adapter", 3, 13)],
)
def test_what_a_run_wrote_is_accepted(run, made, name, files, tensors):
    result = run("verify", made / name)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{made / name} is as its report says: {files} ")
    found = monosoup_cli.verify(made / name)
    counted = [path for path in (made / name).rglob("*") if path.is_file() and path.name != REPORT]
    nbytes = sum(path.stat().st_size for path in counted or [made / name])
    assert found == {
        "files": files,
        "tensors": tensors,
        "bytes": nbytes,
        **UNASKED,
        "differences": [],
        "notes": [],
    }
    assert run("verify", made / name, "-q").out == ""


def test_a_flipped_bit_in_any_part_of_any_file_is_found(made, tmp_path):
    for name in ("folder", "sweep", "adapter"):
        out = shutil.copytree(made / name, tmp_path / name)
        for path in sorted(out.rglob("*")):
            if path.is_dir() or path.name == REPORT:
                continue
            good = path.read_bytes()
            for place in {0, 8, len(good) // 2, len(good) - 1}:
                bad = bytearray(good)
                bad[place] ^= 16
                path.write_bytes(bad)
                inside = path.relative_to(out).as_posix()
                found = monosoup_cli.verify(out)["differences"]
                assert (str(out / inside), OTHER) in [(one["path"], one["problem"]) for one in found]
            path.write_bytes(good)
        assert monosoup_cli.verify(out)["differences"] == []


@pytest.mark.parametrize("name", [SHARDS[1], INDEX, "config.json", "tokenizer.json", "README.md"])
def test_a_file_that_is_cut_grown_gone_or_something_else_is_found(out, differing, name):
    path = out / name
    good = path.read_bytes()
    for bad in (good[:-1], b"", good + b"\0"):
        path.write_bytes(bad)
        assert (name, SIZE) in differing(out)
    path.unlink()
    assert (name, GONE) in differing(out)
    path.mkdir()
    assert (name, "not a regular file") in differing(out)
    path.rmdir()
    os.mkfifo(path)
    assert (name, "not a regular file") in differing(out)
    path.unlink()
    path.symlink_to("nowhere")
    assert (name, "a broken link") in differing(out)


def test_a_renamed_shard_is_gone_and_a_stray(out, differing):
    (out / SHARDS[0]).rename(out / "model-00001-of-00004.safetensors")
    assert differing(out) == [(SHARDS[0], GONE), ("model-00001-of-00004.safetensors", STRAY)]


def test_all_that_differs_is_told(out, differing):
    (out / SHARDS[0]).unlink()
    (out / SHARDS[2]).write_bytes(b"")
    (out / "config.json").write_text("{}")
    assert differing(out) == [(SHARDS[0], GONE), (SHARDS[2], SIZE), ("config.json", SIZE)]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00004-of-00004.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "adapter_model.safetensors",
        "adapter_config.json",
        "model.safetensors.index.fp16.json",
    ],
)
def test_files_that_loaders_may_prefer_are_found(out, differing, name):
    (out / name).write_text('{"weight_map": {}}')
    assert (name, STRAY) in differing(out)


def test_other_files_are_named_and_do_no_harm(run, out):
    for name in ("notes.md", "training_args.bin", "model.gguf", ".hidden.safetensors"):
        (out / name).write_text("mine")
    (out / "checkpoint-5").mkdir()
    shutil.copy(out / SHARDS[0], out / "checkpoint-5")
    result = run("verify", out)
    assert result.code == 0
    assert result.err == "note: not in the report, and not checked: model.gguf, notes.md, training_args.bin\n"


def test_an_index_of_another_model_is_found_even_if_the_report_was_changed_too(made, out, differing):
    index = json.loads((out / INDEX).read_text())
    for change in (
        {"other.weight": SHARDS[0]},
        {"layers.0.weight": SHARDS[2], "norm.weight": SHARDS[0]},
        {"norm.weight": "../model.safetensors"},
    ):
        (out / INDEX).write_text(json.dumps({**index, "weight_map": {**index["weight_map"], **change}}))
        forge(out, INDEX)
        assert differing(out) == [(INDEX, "the index does not fit the headers of the files")]
    lacking = {name: file for name, file in index["weight_map"].items() if name != "norm.weight"}
    (out / INDEX).write_text(json.dumps({**index, "weight_map": lacking}))
    forge(out, INDEX)
    assert differing(out) == [(INDEX, "the index does not fit the headers of the files")]
    for text in ("[]", '{"weight_map": 7}', '{"weight_map": {"a": [[]]}}', "{"):
        (out / INDEX).write_text(text)
        forge(out, INDEX)
        assert [file for file, _ in differing(out)] == [INDEX]


def test_a_file_of_other_bytes_is_one_difference(made, out, differing):
    """What follows from it is not told: an index of other shards, tensors of other layers."""
    good = (out / INDEX).read_bytes()
    (out / INDEX).write_bytes(good.replace(b"00001-of", b"00002-of"))
    assert differing(out) == [(INDEX, OTHER)]
    (out / INDEX).write_text("{")
    assert differing(out) == [(INDEX, SIZE)]
    (out / INDEX).write_bytes(good)
    shutil.copy(made / "out.safetensors", out / SHARDS[0])
    assert differing(out) == [(SHARDS[0], SIZE)]
    shutil.copy(out / SHARDS[1], out / SHARDS[0])
    ((file, problem),) = differing(out)
    assert (file, problem in (OTHER, SIZE)) == (SHARDS[0], True)


def test_headers_that_are_not_those_of_the_layers_are_found_even_if_the_report_was_changed_too(
    out, differing
):
    good = {name: (out / name).read_bytes() for name in (*SHARDS, REPORT)}
    tensors = load_file(out / SHARDS[0])
    first = next(iter(tensors))
    for changed, problem in (
        ({**tensors, first: tensors[first].float()}, "another dtype or shape than in the report"),
        ({**tensors, first: tensors[first].T.contiguous()}, "another dtype or shape than in the report"),
        ({**tensors, "more": torch.ones(2)}, "not in the report"),
        ({"more": torch.ones(2)}, "tensors of the report are in no file"),
        ({**tensors, **load_file(out / SHARDS[1])}, "the tensor is in two shards"),
    ):
        save_file(changed, out / SHARDS[0], metadata={"format": "pt"})
        forge(out, SHARDS[0])
        assert problem in [found for _, found in differing(out)]
        for name, content in good.items():
            (out / name).write_bytes(content)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "a//b", "C:\\x", "a\0b"])
@pytest.mark.parametrize("field", ["files", "other_files"])
def test_a_report_leads_nowhere_outside_of_the_output(run, out, monkeypatch, name, field):
    (out.parent / "secret").write_text("secret")
    opened = []
    monkeypatch.setattr("monosoup_cli.pipeline.verify.sha256_of", opened.append)
    rewrite(out / REPORT, lambda report: report["output"][field][0].update(name=name))
    assert "names a file outside of the output" in refused(run, out)
    assert opened == []


def set_dtype(report):
    report["arguments"]["dtype"] = "int3"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda report: report.pop("layers"), "is not a monosoup report"),
        (lambda report: report.update(schema_version=2), "unsupported schema_version"),
        (lambda report: report.update(output={"path": "out", "files": []}), "no file of weights"),
        (lambda report: report.pop("output"), "the command wrote no checkpoint"),
        (lambda report: report["output"]["files"].append(report["output"]["files"][0]), "or a file twice"),
        (lambda report: report["output"]["files"][0].pop("sha256"), "has no SHA-256 of"),
        (lambda report: report["output"]["files"][0].update(sha256="0" * 63 + "G"), "has no SHA-256 of"),
        (lambda report: report["output"]["files"][0].update(sha256=7), "is not a monosoup report"),
        (lambda report: report["output"].update(other_files=[{}]), "is not a monosoup report"),
        (lambda report: report["layers"].append(report["layers"][0]), "two layers of the same name"),
        (set_dtype, "has an unknown dtype"),
    ],
)
def test_a_report_that_cannot_be_one_is_refused(run, out, change, words):
    rewrite(out / REPORT, change)
    line = refused(run, out)
    assert words in line
    assert line.startswith(f"error: {out / REPORT}: ")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b'{"a": NaN}', b"[" * 100_000])
def test_a_report_that_cannot_be_read_is_refused(run, out, text):
    (out / REPORT).write_bytes(text)
    line = refused(run, out)
    assert line.startswith(f"error: {out / REPORT}: is not ")
    assert line.endswith("; if it is cut short, copy it again") != (text == b"[]")
    (out / REPORT).unlink()
    assert "pass --report PATH" in refused(run, out)


def test_a_report_of_an_older_version(run, out, differing):
    rewrite(out / REPORT, lambda report: report["output"].pop("other_files"))
    result = run("verify", out)
    assert result.code == 0
    assert "no checksums of other files than weights" in result.err
    assert "config.json, tokenizer.json" in result.err
    shutil.copy(out / SHARDS[0], out / "model.safetensors")
    assert differing(out) == [("model.safetensors", STRAY)]
    (out / "model.safetensors").unlink()
    (out / INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert differing(out) == [(INDEX, "the index does not fit the headers of the files")]


def test_an_index_of_other_weights_that_were_carried(run, made, tmp_path):
    """In new reports and in old ones."""
    finetuned = shutil.copytree(made / "finetuned", tmp_path / "finetuned")
    index = {"metadata": {}, "weight_map": {"codec.weight": "codec-00001-of-00002.safetensors"}}
    save_file({"codec.weight": torch.ones(3, 3)}, finetuned / "codec-00001-of-00002.safetensors")
    (finetuned / "codec.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    assert run("edit", made / "base", finetuned, "-o", out).code == 0
    assert (out / "codec.safetensors.index.json").is_file()
    rewrite(out / REPORT, lambda report: report["output"].pop("other_files"))
    assert run("verify", out).code == 0


def test_an_adapter_of_an_older_version(run, made, tmp_path):
    out = shutil.copytree(made / "adapter", tmp_path / "out")
    rewrite(out / REPORT, lambda report: report["output"].pop("other_files"))
    assert run("verify", out).code == 0


def test_every_checkpoint_of_a_sweep_and_nothing_else(run, made, sweep, differing):
    shutil.copytree(sweep / "alpha-0.1", sweep / "alpha-0.9")
    shutil.copy(made / "out.safetensors", sweep / "x.safetensors")
    shutil.copy(made / "out.safetensors", sweep / "alpha-0.5" / "pytorch_model.bin")
    (sweep / "scores.json").write_text("{}")
    (sweep / "logs").mkdir()
    strays = [("alpha-0.5/pytorch_model.bin", STRAY), ("alpha-0.9", STRAY), ("x.safetensors", STRAY)]
    assert differing(sweep) == strays
    assert run("verify", sweep / "alpha-0.1").code == 0
    shutil.rmtree(sweep / "alpha-0.1")
    assert differing(sweep) == [("alpha-0.1", "the checkpoint is missing"), *strays]


def test_the_reports_of_a_sweep_must_agree(sweep, differing):
    for place in ("alpha-0.1", "alpha-0.5"):
        other = {"alpha-0.1": "alpha-0.5", "alpha-0.5": "alpha-0.1"}[place]
        good = (sweep / place / REPORT).read_bytes()
        shutil.copy(sweep / other / REPORT, sweep / place / REPORT)
        assert differing(sweep) == [(f"{place}/{REPORT}", f"says otherwise than {sweep / REPORT}")]
        (sweep / place / REPORT).write_text("{}")
        ((file, problem),) = differing(sweep)
        assert (file, problem.partition(":")[0]) == (f"{place}/{REPORT}", "is not a monosoup report")
        (sweep / place / REPORT).unlink()
        assert differing(sweep) == [(f"{place}/{REPORT}", "is missing")]
        (sweep / place / REPORT).write_bytes(good)


@pytest.mark.parametrize("path", ["..", "sweep/..", "", "sweep/a\\b", "sweep/alpha-0.5"])
def test_folders_of_a_sweep_lead_nowhere_else(run, sweep, path):
    rewrite(sweep / REPORT, lambda report: report["outputs"][0].update(path=path))
    assert "not the folder of a checkpoint" in refused(run, sweep)


def test_a_single_file_may_be_renamed_with_its_report(run, made, tmp_path):
    shutil.copy(made / "out.safetensors", tmp_path / "best.safetensors")
    assert "pass --report PATH" in refused(run, tmp_path / "best.safetensors")
    report = made / "out.report.json"
    assert run("verify", tmp_path / "best.safetensors", "--report", report).code == 0
    shutil.copy(report, tmp_path / "best.report.json")
    assert run("verify", tmp_path / "best.safetensors").code == 0
    with (tmp_path / "best.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert run("verify", tmp_path / "best.safetensors").code == 1


def test_a_file_is_not_a_folder_nor_several(run, made, out):
    shutil.copy(made / "out.safetensors", out.parent / "x.safetensors")
    for name, words in (("folder", "that of a folder"), ("sweep", "that of several checkpoints")):
        result = run("verify", out.parent / "x.safetensors", "--report", made / name / REPORT)
        assert (result.code, words in result.err) == (2, True)


def test_a_path_that_does_not_exist(run, tmp_path):
    assert refused(run, tmp_path / "absent").endswith("no such file or folder")
    assert run("verify", "").err == "error: the path of an output is empty\n"


def test_a_report_is_not_its_output(run, made, out):
    for report, line in (
        (out / REPORT, f"monosoup verify {out}"),
        (made / "out.report.json", f"monosoup verify {made / 'out.safetensors'}"),
        (out / "x.report.json", f"monosoup verify OUT --report {out / 'x.report.json'}"),
    ):
        if not report.exists():
            shutil.copy(out / REPORT, report)
        result = run("verify", report)
        assert (result.code, result.err) == (
            2,
            f"error: {report}: this is a report; give the output: `{line}`\n",
        )
    (out / "x.report.json").unlink()


def test_an_unfinished_run_is_told(run, made, tmp_path):
    for name in ("out", "out.safetensors"):
        partial = tmp_path / f"{name}.partial"
        shutil.copytree(made / "folder", partial / "files")
        for typed in (tmp_path / name, partial):
            line = refused(run, typed)
            assert line.startswith(f"error: {partial}: the run is unfinished; run its command with --resume")
    shutil.copytree(made / "folder", tmp_path / "out")  # which is to be replaced
    assert run("verify", tmp_path / "out").code == 0
    for name in (".partial", ".", ".."):
        assert "unfinished" not in run("verify", name).err


def test_an_interrupt_ends_it_in_the_middle_of_a_file(out):
    size = 1 << 38
    os.truncate(out / SHARDS[0], size)
    rewrite(out / REPORT, lambda report: report["output"]["files"][0].update(bytes=size))
    command = [sys.executable, "-m", "monosoup_cli", "verify", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        descriptors = Path(f"/proc/{process.pid}/fd")
        while str(out / SHARDS[0]) not in {os.path.realpath(link) for link in descriptors.iterdir()}:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "error: interrupted\n"


@pytest.fixture
def large(tmp_path):
    """A pair whose weights the Hub stores apart."""
    return [model(tmp_path / name, seed, rows=4000) for seed, name in enumerate(("base", "finetuned"))]


def test_a_pushed_repository(run, hub, large, tmp_path):
    assert run("edit", *large, "-o", tmp_path / "out", "--push", "owner/edited").code == 0
    hub.clear()
    for name in ("owner/edited", "hf://owner/edited", "owner/edited@main"):
        result = run("verify", name)
        assert result.code == 0, result
        assert "4 files, 7 tensors" in result.out
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert hub.bytes_sent("owner/edited/model.safetensors") < weights / 4


def test_damage_on_the_hub(run, hub, large, tmp_path, differing):
    out = tmp_path / "out"
    assert run("edit", *large, "-o", out).code == 0
    hub.add("owner/edited", out, "good")
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    hub.add("owner/edited", out)
    assert differing("owner/edited") == [("model.safetensors", OTHER)]
    (out / "config.json").write_text('{"model_type": "gptj"}')
    (out / "README.md").unlink()
    (out / "pytorch_model.bin").write_bytes(weights)
    hub.add("owner/edited", out)
    assert differing("owner/edited") == [
        ("model.safetensors", OTHER),
        ("README.md", GONE),
        ("config.json", OTHER),
        ("pytorch_model.bin", STRAY),
    ]
    assert run("verify", "owner/edited@good").code == 0
    (out / REPORT).unlink()
    hub.add("owner/edited", out)
    assert "owner/edited/monosoup_report.json: no such file" in refused(run, "owner/edited")
    assert "as an id on the Hub" in refused(run, "owner/absent")
