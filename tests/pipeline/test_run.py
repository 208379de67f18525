"""Runs from end to end: the bytes that come out, whatever happens on the way."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import MonosoupError, NonfiniteError, UsageError

COMMAND = [sys.executable, "-m", "monosoup_cli", "edit"]
TENSORS = 24


@pytest.fixture(scope="module")
def slow_pair(tmp_path_factory):
    """A pair that takes some seconds, so that there is time to be killed in; and its edited bytes."""
    folder = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    base = {
        f"layers.{n}.weight": torch.randn(640, 512, generator=generator).bfloat16() for n in range(TENSORS)
    }
    finetuned = {
        name: (t + 0.1 * torch.randn(t.shape, generator=generator)).bfloat16() for name, t in base.items()
    }
    finetuned["norm"] = torch.ones(64)
    save_file(base, folder / "base.safetensors")
    save_file(finetuned, folder / "finetuned.safetensors")
    monosoup_cli.edit(folder / "base.safetensors", folder / "finetuned.safetensors", folder / "whole")
    return folder


@pytest.fixture
def pair(tmp_path):
    """Small and quick: three matrices and a vector, with metadata."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"attn.weight": (24, 16), "embed.weight": (50, 12), "mlp.weight": (16, 40), "norm.weight": (16,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    finetuned = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    (tmp_path / "inputs").mkdir()
    files = (tmp_path / "inputs" / "base.safetensors", tmp_path / "inputs" / "finetuned.safetensors")
    for file, tensors in zip(files, (base, finetuned), strict=True):
        save_file(tensors, file, {"format": "pt", "note": "kept"})
    return files


def arguments(folder, out, *options):
    return [*COMMAND, folder / "base.safetensors", folder / "finetuned.safetensors", "-o", out, *options]


def journalled(out):
    journal = out.with_name(f"{out.name}.partial") / "journal"
    return max(len(journal.read_bytes().splitlines()) - 1, 0) if journal.exists() else 0


def start_and_signal(folder, out, number, *, after, options=()):
    """Start a run and signal it once `after` tensors are journalled; returns its exit code and stderr."""
    process = subprocess.Popen(arguments(folder, out, *options), stderr=subprocess.PIPE, text=True)
    while journalled(out) < after and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    return process.returncode, stderr


@pytest.mark.slow
def test_killed_five_times_and_resumed(slow_pair, tmp_path):
    out = tmp_path / "out"
    seen = []
    for after in (1, 4, 7, 10, 13):  # far from the end: a busy machine may let it run on for a while
        code, _ = start_and_signal(slow_pair, out, signal.SIGKILL, after=after, options=["--resume"])
        assert code == -signal.SIGKILL
        assert not out.exists()
        seen.append(journalled(out))
    assert seen == sorted(set(seen)), "each run went on from the one before"
    assert seen[0] > 0
    assert seen[-1] < TENSORS
    result = subprocess.run(arguments(slow_pair, out, "--resume", "--workers", "2"), check=False)
    assert result.returncode == 0
    assert same_bytes(out, slow_pair / "whole")
    assert json.loads((out / "monosoup_report.json").read_text())["summary"]["edited"] == TENSORS
    assert not out.with_name("out.partial").exists()


def same_bytes(out, other):
    return (out / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(slow_pair, tmp_path, number, code):
    out = tmp_path / "out"
    found, stderr = start_and_signal(slow_pair, out, number, after=3)
    assert found == code
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    assert 3 <= journalled(out) < TENSORS
    again = subprocess.run(arguments(slow_pair, out), stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 1
    assert "--resume" in again.stderr
    assert subprocess.run(arguments(slow_pair, out, "--resume"), check=False).returncode == 0
    assert same_bytes(out, slow_pair / "whole")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_does_not_change_the_bytes(slow_pair, tmp_path, workers):
    pair = (slow_pair / "base.safetensors", slow_pair / "finetuned.safetensors")
    monosoup_cli.edit(*pair, tmp_path / "out", workers=workers)
    assert same_bytes(tmp_path / "out", slow_pair / "whole")


class Enough(Exception):
    """Stands for whatever stops a run."""


@pytest.fixture
def interrupted(pair, tmp_path):
    """An unfinished run over the small pair: its arguments, and where its work lies."""
    out = tmp_path / "out"

    def stop(tensor, is_done):
        if is_done and tensor.name != "norm.weight":
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*pair, out, workers=1, progress=stop)
    assert journalled(out) > 0
    return (*pair, out), tmp_path / "out.partial"


def whole(pair, tmp_path):
    monosoup_cli.edit(*pair, tmp_path / "whole")
    return tmp_path / "whole"


def test_damaged_work_is_done_again(interrupted, pair, tmp_path):
    run, partial = interrupted
    files = partial / "files" / "model.safetensors"
    damaged = bytearray(files.read_bytes())
    damaged[-500:] = bytes(500)
    files.write_bytes(damaged)
    monosoup_cli.edit(*run, resume=True)
    assert same_bytes(run[-1], whole(pair, tmp_path))


def test_a_torn_journal_line_is_ignored(interrupted, pair, tmp_path):
    run, partial = interrupted
    with (partial / "journal").open("ab") as journal:
        journal.write(b'{"tensor": "norm.wei')
    monosoup_cli.edit(*run, resume=True)
    assert same_bytes(run[-1], whole(pair, tmp_path))


@pytest.fixture
def in_folders(pair, tmp_path):
    """The words of an edit of a folder with a configuration and a card, which stopped before its end."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(pair[1].read_bytes())
    (folder / "config.json").write_text('{"dtype": "float32", "layers": 4}')
    (folder / "vocab.txt").write_text("a")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")

    def stop(tensor, is_done):
        if is_done:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(pair[0], folder, tmp_path / "out", workers=1, dtype="bfloat16", progress=stop)
    return "edit", pair[0], folder, "-o", tmp_path / "out", "--dtype", "bfloat16", "--resume"


def test_other_side_files_are_no_resumed_run(run, in_folders, tmp_path):
    refused = run(*in_folders, "--side-files", "none")
    assert refused.code == 1
    assert "differs in arguments.side_files" in refused.err
    assert not (tmp_path / "out").exists()
    assert run(*in_folders).code == 0
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("config.json", "configs.finetuned 1, rewritten.config.json"),
        ("vocab.txt", "vocab.txt (size)"),
        ("README.md", "README.md (size)"),
    ],
)
def test_a_changed_side_file_is_another_input(run, in_folders, tmp_path, name, named):
    """Also one that is as long and as old as before, where the output has a text of its own made from it."""
    path = in_folders[2] / name
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace("4", "8") if name == "config.json" else f"{text}b")
    if name == "config.json":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = run(*in_folders)
    assert refused.code == 1
    assert f"differs in {named}" in refused.err
    assert not (tmp_path / "out").exists()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(*in_folders).code == 0


def test_overwrite_starts_over(interrupted, pair, tmp_path):
    run, _ = interrupted
    report = monosoup_cli.edit(*run, overwrite=True, energy=0.5)
    monosoup_cli.edit(*pair, tmp_path / "whole", energy=0.5)
    assert same_bytes(run[-1], tmp_path / "whole")
    assert report["arguments"]["energy"] == 0.5


def test_resume_without_an_interrupted_run_just_runs(pair, tmp_path):
    monosoup_cli.edit(*pair, tmp_path / "out", resume=True)
    assert same_bytes(tmp_path / "out", whole(pair, tmp_path))


def test_the_old_output_stays_until_the_new_one_is_complete(pair, tmp_path):
    out = whole(pair, tmp_path)
    before = (out / "model.safetensors").read_bytes()

    def stop(tensor, is_done):
        assert (out / "model.safetensors").read_bytes() == before
        if is_done:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*pair, out, overwrite=True, weighting="low", progress=stop)
    assert (out / "model.safetensors").read_bytes() == before
    monosoup_cli.edit(*pair, out, overwrite=True, resume=True, weighting="low")
    assert (out / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in out.parent.iterdir() if "partial" in path.name) == []


def test_a_full_disk_leaves_no_output(slow_pair, tmp_path):
    """A limit on file size stands for the full disk: the system refuses the space in the same way."""
    result = subprocess.run(
        arguments(slow_pair, tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nonfinite_inputs_stop_the_run_and_leave_nothing(pair, tmp_path):
    base, finetuned = pair
    weights = load_file(finetuned)
    for name in weights:
        damaged = {**weights, name: weights[name].clone()}
        damaged[name].view(-1)[3] = float("nan")
        save_file(damaged, tmp_path / "damaged.safetensors")
        with pytest.raises(NonfiniteError) as caught:
            monosoup_cli.edit(base, tmp_path / "damaged.safetensors", tmp_path / "out")
        assert caught.value.tensor == name
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_nonfinite_tensors_may_be_kept(pair, tmp_path):
    base, finetuned = pair
    weights = load_file(base)
    weights["mlp.weight"][2, 2] = float("inf")
    save_file(weights, tmp_path / "damaged.safetensors")
    report = monosoup_cli.edit(
        tmp_path / "damaged.safetensors", finetuned, tmp_path / "out", on_nonfinite="keep"
    )
    reasons = {layer["name"]: layer["reason"] for layer in report["layers"]}
    assert reasons["mlp.weight"] == "nonfinite"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["mlp.weight"], load_file(finetuned)["mlp.weight"])


def test_overflow_in_the_output_dtype_is_an_error(tmp_path):
    save_file({"w": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    save_file({"w": torch.full((4, 4), 1e6)}, tmp_path / "finetuned.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    with pytest.raises(NonfiniteError, match="overflows F16"):
        monosoup_cli.edit(*pair, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_an_input_that_changes_meanwhile_is_noticed(pair, tmp_path):
    def touch(tensor, is_done):
        os.utime(pair[0], (1, 1))

    with pytest.raises(MonosoupError, match="changed while"):
        monosoup_cli.edit(*pair, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_what_is_kept_is_kept_to_the_byte(pair, tmp_path):
    base, finetuned = pair
    monosoup_cli.edit(base, finetuned, tmp_path / "out.safetensors", exclude=["mlp.*"])
    before, after = finetuned.read_bytes(), (tmp_path / "out.safetensors").read_bytes()
    header = 8 + int.from_bytes(before[:8], "little")
    assert before[:header] == after[:header]
    with safe_open(tmp_path / "out.safetensors", "pt") as out, safe_open(finetuned, "pt") as source:
        assert out.metadata() == source.metadata()
        for name in ("norm.weight", "mlp.weight"):
            assert torch.equal(out.get_tensor(name), source.get_tensor(name))


def test_small_and_negative_zero_updates(tmp_path):
    """An unchanged tensor keeps its bits, negative zeros too; --min-update widens the word."""
    weights = torch.randn(8, 6)
    weights[0, 0] = -0.0
    save_file({"a": weights, "b": weights.clone()}, tmp_path / "base.safetensors")
    save_file({"a": weights, "b": 1.001 * weights}, tmp_path / "finetuned.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    out = tmp_path / "out.safetensors"
    for options, reasons in (({}, ["unchanged", None]), ({"min_update": 0.002}, ["unchanged"] * 2)):
        report = monosoup_cli.edit(*pair, out, overwrite=True, **options)
        assert [layer["reason"] for layer in report["layers"]] == reasons
    assert out.read_bytes() == (tmp_path / "finetuned.safetensors").read_bytes()


def test_files_get_the_mode_of_the_umask(pair, tmp_path):
    before = os.umask(0o027)
    try:
        monosoup_cli.edit(*pair, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def write_shards(folder, tensors, groups):
    folder.mkdir()
    weight_map = {}
    for number, names in enumerate(groups, start=1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file({tensor: tensors[tensor] for tensor in names}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 0, "kept": "as it is"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a b c")
    (folder / "optimizer.bin").write_text("training state")
    (folder / ".cache").write_text("hidden")


@pytest.fixture
def sharded(pair, tmp_path):
    tensors = load_file(pair[1])
    names = sorted(tensors)
    write_shards(tmp_path / "sharded", tensors, [names[:1], names[1:]])
    return tmp_path / "sharded"


def test_shards_come_out_as_shards(pair, sharded, tmp_path):
    out = tmp_path / "out"
    monosoup_cli.edit(pair[0], sharded, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    source = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == source["weight_map"]
    assert index["metadata"]["kept"] == "as it is"
    expected = load_file(whole(pair, tmp_path) / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(out / shard)[name], expected[name])
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "monosoup_report.json",
        "tokenizer/vocab.txt",
    ]


def test_shards_into_one_file_and_one_file_into_shards(pair, sharded, tmp_path):
    expected = load_file(whole(pair, tmp_path) / "model.safetensors")
    monosoup_cli.edit(pair[0], sharded, tmp_path / "one.safetensors")
    found = load_file(tmp_path / "one.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "one.report.json").exists()
    monosoup_cli.edit(*pair, tmp_path / "many", max_shard_size="3kB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    assert len(shards) > 1
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / shard)[name], expected[name])


def test_names_only_in_the_base_are_reported(pair, tmp_path):
    weights = {**load_file(pair[0]), "old_head.weight": torch.ones(3, 3)}
    save_file(weights, tmp_path / "larger.safetensors")
    report = monosoup_cli.edit(tmp_path / "larger.safetensors", pair[1], tmp_path / "out")
    assert report["only_in_base"] == ["old_head.weight"]
    assert "old_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_inputs_are_only_read(pair, tmp_path):
    for path in pair:
        path.chmod(0o444)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in pair]
    monosoup_cli.edit(*pair, tmp_path / "out")
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in pair] == before


def test_the_report_counts_bytes_and_hashes_files(pair, tmp_path):
    import hashlib

    report = monosoup_cli.edit(*pair, tmp_path / "out")
    (file,) = report["output"]["files"]
    content = (tmp_path / "out" / file["name"]).read_bytes()
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert file["bytes"] == len(content)
    assert report["timing"]["bytes_written"] == sum(t.nbytes for t in load_file(pair[1]).values())
    assert report["timing"]["bytes_read"] >= sum(Path(path).stat().st_size for path in pair) - 4096


def test_excluded_tensors_are_not_averaged_with_others_of_another_shape(tmp_path):
    """Left out of the edit they stay as in the first; `wise` interpolates every tensor afterwards."""
    weights = {"w": torch.randn(6, 4), "x": torch.randn(4, 4)}
    save_file(weights, tmp_path / "base.safetensors")
    first = {name: t + 1 for name, t in weights.items()}
    save_file(first, tmp_path / "first.safetensors")
    save_file({"w": weights["w"] - 1, "x": torch.randn(5, 4)}, tmp_path / "second.safetensors")
    finetuned = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for wise, expected in ((None, first["x"]), (0.5, weights["x"] + 0.5)):
        out = tmp_path / f"{wise}.safetensors"
        report = monosoup_cli.edit(tmp_path / "base.safetensors", finetuned, out, exclude="x", wise=wise)
        assert {layer["name"]: layer["reason"] for layer in report["layers"]}["x"] == "excluded"
        torch.testing.assert_close(load_file(out)["x"], expected)


def test_the_callers_threads_are_left_alone(pair, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monosoup_cli.edit(*pair, tmp_path / "out", workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_keeping_nonfinite_tensors_does_not_let_finite_ones_overflow(tmp_path):
    save_file({"w": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    save_file({"w": torch.full((4, 4), 1e6)}, tmp_path / "finetuned.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    with pytest.raises(NonfiniteError, match="overflows F16"):
        monosoup_cli.edit(*pair, tmp_path / "out", dtype="float16", on_nonfinite="keep")


def test_nan_in_the_bases_copy_of_a_kept_tensor_stops_the_run(pair, tmp_path):
    weights = load_file(pair[0])
    weights["norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "damaged.safetensors")
    with pytest.raises(NonfiniteError) as caught:
        monosoup_cli.edit(tmp_path / "damaged.safetensors", pair[1], tmp_path / "out")
    assert caught.value.tensor == "norm.weight"
    assert "damaged" in str(caught.value)


@pytest.mark.parametrize("factor", [1e-310, 1e-200, 1e200])
def test_float64_at_its_limits(tmp_path, factor):
    update = factor * torch.randn(12, 8, dtype=torch.float64)
    save_file({"w": torch.zeros(12, 8, dtype=torch.float64)}, tmp_path / "base.safetensors")
    save_file({"w": update}, tmp_path / "finetuned.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    (layer,) = monosoup_cli.edit(*pair, tmp_path / "out")["layers"]
    assert layer["update_norm"] == pytest.approx(factor * float((update / factor).norm()), rel=1e-9)
    assert layer["relative_update"] is None


@pytest.mark.parametrize(("base", "finetuned"), [(-1.5e308, 1.5e308), (0.0, 1.6e307), (0.0, 1e307)])
def test_an_update_beyond_float64_is_refused(tmp_path, base, finetuned):
    """In its elements, its norm, or the sum of its singular values."""
    signs = torch.ones(16, 16, dtype=torch.float64).triu()
    save_file({"w": base * signs}, tmp_path / "base.safetensors")
    save_file({"w": finetuned * signs}, tmp_path / "finetuned.safetensors")
    with pytest.raises(NonfiniteError, match="overflows float64"):
        monosoup_cli.edit(tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors", tmp_path / "out")


def test_the_returned_report_is_the_written_one(pair, tmp_path):
    report = monosoup_cli.edit(*pair, tmp_path / "out", exclude=("mlp.*",), report=tmp_path / "report.json")
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["arguments"]["device"] != "auto"
    assert report["arguments"]["workers"] >= 1


def test_finetuned_checkpoints_with_other_names_are_refused(pair, tmp_path):
    weights = load_file(pair[1])
    save_file({**weights, "extra": torch.ones(2)}, tmp_path / "extra.safetensors")
    for order in ([pair[1], tmp_path / "extra.safetensors"], [tmp_path / "extra.safetensors", pair[1]]):
        with pytest.raises(MonosoupError, match="has it") as caught:
            monosoup_cli.edit(pair[0], order, tmp_path / "out", on_mismatch="keep")
        assert caught.value.tensor == "extra"
        monosoup_cli.edit(pair[0], order, tmp_path / "out", exclude=["extra"], overwrite=True)


@pytest.mark.cuda
def test_a_card_repeats_itself_to_the_byte(slow_pair, tmp_path):
    pair = (slow_pair / "base.safetensors", slow_pair / "finetuned.safetensors")
    for workers in (1, 3):
        monosoup_cli.edit(*pair, tmp_path / str(workers), workers=workers, device="cuda")
    assert same_bytes(tmp_path / "1", tmp_path / "3")


@pytest.mark.cuda
def test_memory_on_the_card_does_not_grow_with_the_long_side(tmp_path, monkeypatch):
    monkeypatch.setattr("monosoup_cli.devices.cuda.RESIDENT_BYTES", 1 << 20)
    base = torch.randn(200_000, 256)
    save_file({"embed": base}, tmp_path / "base.safetensors")
    save_file({"embed": base + 0.1 * torch.randn(base.shape)}, tmp_path / "finetuned.safetensors")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pair = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    monosoup_cli.edit(*pair, tmp_path / "out", device="cuda:0")
    assert torch.cuda.max_memory_allocated() - before < 8 * base.numel() / 2


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a card")
def test_a_missing_card_is_refused(pair, tmp_path, device):
    with pytest.raises(UsageError, match="no CUDA device"):
        monosoup_cli.edit(*pair, tmp_path / "out", device=device)


def test_what_was_put_in_the_way_meanwhile_is_not_replaced(pair, tmp_path):
    def put(tensor, is_done):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious.txt").write_text("kept")

    with pytest.raises(MonosoupError, match="during the run"):
        monosoup_cli.edit(*pair, tmp_path / "out", progress=put)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_resuming_does_not_change_what_happens_to_nan(interrupted):
    run, _ = interrupted
    with pytest.raises(MonosoupError, match="on_nonfinite"):
        monosoup_cli.edit(*run, resume=True, on_nonfinite="keep")


def test_a_report_that_a_killed_run_left_does_not_stop_its_resumption(pair, tmp_path):
    out = tmp_path / "out.safetensors"

    def stop(tensor, is_done):
        if is_done:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*pair, out, workers=1, progress=stop)
    (whole(pair, tmp_path) / "monosoup_report.json").rename(tmp_path / "out.report.json")
    report = monosoup_cli.edit(*pair, out, resume=True)
    assert json.loads((tmp_path / "out.report.json").read_text()) == report


def test_a_folders_single_file_keeps_its_name(pair, tmp_path):
    (tmp_path / "clip").mkdir()
    pair[1].rename(tmp_path / "clip" / "open_clip_model.safetensors")
    monosoup_cli.edit(pair[0], tmp_path / "clip", tmp_path / "out")
    assert (tmp_path / "out" / "open_clip_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_model_card_repeats_the_command_and_no_local_path(pair, tmp_path):
    monosoup_cli.edit(*pair, tmp_path / "out", exclude=["norm*"], wise=0.0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "edit base.safetensors finetuned.safetensors --wise 0 --exclude 'norm*' -o out" in card
    assert str(tmp_path) not in card
    assert "base_model" not in card


def test_nan_in_an_unused_namesake_stops_the_run(pair, tmp_path):
    weights = load_file(pair[1])
    weights["mlp.weight"] = torch.full((3, 3), float("nan"))
    save_file(weights, tmp_path / "second.safetensors")
    with pytest.raises(NonfiniteError, match="second"):
        monosoup_cli.edit(
            pair[0], [pair[1], tmp_path / "second.safetensors"], tmp_path / "out", on_mismatch="keep"
        )


def test_an_early_signal_is_obeyed_with_many_tensors(tmp_path):
    """Not only once all of them have been handed to the workers."""
    tensors = {f"layers.{number}": torch.full((2, 2), float(number + 1)) for number in range(20_000)}
    save_file(tensors, tmp_path / "base.safetensors")
    save_file({name: 2 * t for name, t in tensors.items()}, tmp_path / "finetuned.safetensors")
    code, stderr = start_and_signal(tmp_path, tmp_path / "out", signal.SIGINT, after=1)
    assert code == 130
    assert "--resume" in stderr
    assert journalled(tmp_path / "out") < 15_000
