"""An output that several machines make: `--part I/N` on each, and `finish`. It has the bytes of one run."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.outputs.open_files import facts
from monosoup_cli.outputs.workplace import partial_path, parts_path
from monosoup_cli.pipeline.destination import Part, part_path
from tests.outputs.forks import Forks

SHAPES = {"q": (24, 24), "up": (40, 24), "small": (6, 5), "norm": (24,)}
SHARDS = 4


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.layers.{n}.{kind}.weight": shape for n in range(5) for kind, shape in SHAPES.items()}
    shapes["model.embed_tokens.weight"] = (90, 24)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, seed, dtype):
    """A model of a base and a change, in shards, with a configuration and a card."""
    base, change = tensors(0), tensors(seed)
    whole = {name: (one + 0.1 * seed * change[name]).to(dtype) for name, one in base.items()}
    folder.mkdir()
    names = sorted(whole)
    homes = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        some = {name: whole[name] for name in names[number::SHARDS]}
        save_file(some, folder / file, {"format": "pt"})
        homes |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(whole, folder.with_suffix(".safetensors"), {"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with `base`, `one` and `two`, each as a folder of shards and as a file; and an adapter."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        write(place / name, seed, torch.bfloat16)
    adapter = place / "adapter"
    adapter.mkdir()
    generator = torch.Generator().manual_seed(7)
    factors = {}
    for number in range(5):
        for kind, (rows, columns) in (("q", (24, 24)), ("up", (40, 24))):
            name = f"base_model.model.model.layers.{number}.{kind}"
            factors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
            factors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "up"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return place


COMMANDS = {
    "edit": ("edit", "base", "one"),
    "edit of one file": ("edit", "base.safetensors", "one.safetensors"),
    "edit, a sweep": ("edit", "base", "one", "--energy", "0.5,0.9"),
    "edit, other shards": ("edit", "base", "one", "two", "--max-shard-size", "6kB"),
    "soup": ("soup", "one", "two"),
    "stock": ("stock", "base", "one", "two"),
    "sfgs": ("sfgs", "base", "one", "two", "--threshold", "-1"),
    "wise, a sweep": ("wise", "base", "one", "--alpha", "0:1:0.25"),
    "a transplant": ("transplant", "base", "one", "two", "--scale", "0.5"),
    "merged adapters": ("merge", "base", "adapter", "--scale", "0.5"),
    "lines": ("lines", "base", "one", "--alpha", "0.3", "--beta", "0.7"),
    "an adapter": ("edit", "base", "adapter", "--as-adapter"),
    "an adapter alone": ("edit", "-", "adapter", "--as-adapter"),
    "an adapter, merged": ("edit", "base", "adapter"),
    "an extracted adapter": ("edit", "base", "one", "--as-adapter", "--adapter-rank", "3"),
}
TIMES = ("timing", "inputs")


def contents(out):
    """Every file of an output, with reports without times."""
    paths = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    paths += [out.with_suffix(".report.json")] if out.is_file() else []
    found = {}
    for path in paths:
        data = path.read_bytes()
        if path.name.endswith("report.json"):
            report = json.loads(data)
            assert report["timing"].keys() == {"seconds", "bytes_read", "bytes_written"}
            for entry in report["inputs"]:
                entry.pop("bytes_read")
            report.pop("doubts", None)  # parts do not look
            del report["timing"], report["arguments"]["overwrite"]
            data = json.dumps(report)
        found[path.name if out.is_file() else path.relative_to(out).as_posix()] = data
    return found


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """What one run of a command writes: a function of its name and its output's name."""
    made = {}

    def run(name):
        if name not in made:
            place = tmp_path_factory.mktemp("whole")
            command, *sources, out = words(name, models, place)
            code = main_quietly(command, *sources, "-o", out)
            assert code == 0
            made[name] = contents(out)
            shutil.rmtree(place)
        return made[name]

    return run


def main_quietly(*argv):
    from monosoup_cli.cli.app import main

    return main([*map(str, argv), "--quiet"])


def words(name, models, place):
    """The words of a command, and its output at a place; inputs are named relative to the models."""
    os.chdir(models)
    command = COMMANDS[name]
    return (*command, place / ("out.safetensors" if "one file" in name else "out"))


COUNTS = (2, 3, 7)
CASES = [
    pytest.param(name, count, marks=[] if COUNTS[at % 3] == count else pytest.mark.thorough)
    for at, name in enumerate(COMMANDS)
    for count in COUNTS
]
"""Every command in one number of parts; `make test-slow` has all of them."""


@pytest.mark.parametrize(("name", "count"), CASES)
def test_parts_make_the_bytes_of_one_run(models, whole, tmp_path, monkeypatch, name, count):
    """In any order; the report is the same but for times."""
    monkeypatch.chdir(models)
    *command, out = words(name, models, tmp_path)
    order = [*range(1, count + 1)]
    random.Random(count).shuffle(order)
    for number in order:
        assert main_quietly(*command, "-o", out, "--part", f"{number}/{count}") == 0
        assert not out.exists()
    assert main_quietly("finish", out) == 0
    expected, found = whole(name), contents(out)
    assert found.keys() == expected.keys()
    for key, data in expected.items():
        if key.endswith("report.json"):
            assert without_place(found[key]) == without_place(data)
        else:
            assert found[key] == data, key
    assert not parts_path(out).exists()
    assert not partial_path(out).exists()
    assert monosoup_cli.verify(out)["differences"] == []


EDIT = ("edit", "base", "one", "--device", "cpu")
OF_ONE_FILE = ("edit", "base.safetensors", "one.safetensors", "--device", "cpu")


def in_parts(command, out, count, *others):
    for number in range(1, count + 1):
        assert main_quietly(*command, "-o", out, "--part", f"{number}/{count}", *others) == 0


@pytest.fixture
def there(models, monkeypatch):
    monkeypatch.chdir(models)


def test_a_part_that_is_whole_is_not_made_again(there, whole, tmp_path, run):
    out = tmp_path / "out"
    in_parts(EDIT, out, 2)
    before = {path: facts(path.stat()) for path in parts_path(out).rglob("*")}
    again = run(*EDIT, "-o", out, "--part", "1/2")
    assert again.code == 0
    assert "part   1/2, " in again.err
    assert f"once all parts are made, `monosoup finish {out}`" in again.err
    assert {path: facts(path.stat()) for path in parts_path(out).rglob("*")} == before
    assert run(*EDIT, "-o", out, "--part", "1/2", "--overwrite").code == 0
    assert run("finish", out).code == 0
    assert (out / "model-00001-of-00004.safetensors").read_bytes() == whole("edit")[
        "model-00001-of-00004.safetensors"
    ]


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("command", "file", "harm", "problem"),
    [
        (EDIT, "*-of-00004.safetensors", cut, "part 2/2 has a truncated model-0000"),
        (EDIT, "*-of-00004.safetensors", flip, "part 2/2 has a damaged model-0000"),
        (EDIT, "*-of-00004.safetensors", os.unlink, "part 2/2 lacks model-0000"),
        (OF_ONE_FILE, "*.piece", cut, "part 2/2 has a truncated out.safetensors.piece"),
        (OF_ONE_FILE, "*.piece", flip, "part 2/2 has a damaged out.safetensors.piece"),
        (OF_ONE_FILE, "*.piece", os.unlink, "part 2/2 lacks out.safetensors.piece"),
        (EDIT, "part.json", cut, "part 2/2 has no whole part.json"),
        (EDIT, "part.json", flip, "part 2/2 has no whole part.json"),
        (EDIT, "part.json", os.unlink, "part 2/2 has no whole part.json"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else getattr(value, "__name__", value),
)
def test_a_part_that_is_not_as_it_was_made(there, tmp_path, run, command, file, harm, problem):
    """It is named, and nothing is published; the command of the hint makes it again."""
    out = tmp_path / ("out.safetensors" if command is OF_ONE_FILE else "out")
    in_parts(command, out, 2)
    harm(min((parts_path(out) / "2-of-2").glob(file)))
    refused = run("finish", out)
    assert refused.code == 1
    assert problem in refused.err
    assert "run the command with --part 2/2 --overwrite again" in refused.err
    assert not out.exists()
    assert run(*command, "-o", out, "--part", "2/2", "--overwrite").code == 0
    assert run("finish", out).code == 0
    assert monosoup_cli.verify(out)["differences"] == []


def test_parts_that_are_missing(there, tmp_path, run):
    out = tmp_path / "out"
    assert "there are no parts; run a command with --part 1/N" in run("finish", out).err
    for number in (1, 2, 5):
        assert run(*EDIT, "-o", out, "--part", f"{number}/7").code == 0
    refused = run("finish", out)
    assert refused.code == 1
    assert "not begun: 3/7, 4/7, 6/7, 7/7: expected 7 parts; run the command with --part 3/7" in refused.err
    refused = run(*EDIT, "-o", out, "--part", "1/2")
    assert refused.code == 2
    assert "there are parts of 7, and this would be one of 2; use --part I/7, or remove" in refused.err
    assert run(*EDIT, "-o", out, "--part", "1/2", "--overwrite").code == 0
    assert (
        "there are parts of 2 and 7: found 1-of-2, 1-of-7, 2-of-7, 5-of-7; remove" in run("finish", out).err
    )
    assert not out.exists()


def test_finish_leaves_parts_of_another_number_and_what_is_being_made(there, tmp_path, run):
    out = tmp_path / "out"
    in_parts(EDIT, out, 2)
    other, busy = (partial_path(part_path(out, part)) for part in (Part(1, 3), Part(1, 2)))
    for place in (other, busy):
        (place / "files").mkdir(parents=True)
        (place / "lock").touch()
    with (busy / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("finish", out).code == 0
    assert sorted(path.name for path in parts_path(out).iterdir()) == [busy.name, other.name]
    assert monosoup_cli.verify(out)["differences"] == []


WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None; from monosoup_cli.cli.app import main; main(sys.argv[1:])"
)


@pytest.mark.parametrize("command", [EDIT, OF_ONE_FILE])
def test_finish_computes_nothing(there, tmp_path, command):
    """So it starts at once, and needs no memory for tensors: a machine that only has the disk will do."""
    out = tmp_path / "out.safetensors"
    in_parts(command, out, 2)
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "finish", out, "--quiet"], check=True)
    assert monosoup_cli.verify(out)["differences"] == []


def test_finish_of_what_is_finished(there, tmp_path, run):
    out = tmp_path / "out"
    in_parts(EDIT, out, 1)
    assert run("finish", out).code == 0
    again = run("finish", out)
    assert again.code == 1
    assert f"{out}: there are no parts, and the output is there: it may be finished already; `" in again.err
    in_parts(OF_ONE_FILE, tmp_path / "one.safetensors", 1)
    assert f"`monosoup finish {tmp_path}/one.safetensors`" in run("finish", tmp_path / "one").err


def test_inputs_may_be_spelled_otherwise(there, whole, tmp_path, run):
    out = tmp_path / "out"
    assert run(*EDIT, "-o", out, "--part", "1/2").code == 0
    assert run("edit", "./base", "one/", "--device", "cpu", "-o", out, "--part", "2/2").code == 0
    assert run("finish", out).code == 0
    same_weights(out, whole)


def test_a_part_of_another_command_or_other_inputs(there, tmp_path, run):
    out = tmp_path / "out"
    assert run(*EDIT, "-o", out, "--part", "1/2").code == 0
    refused = run("soup", "one", "two", "-o", out, "--part", "2/2")
    assert "part 1/2, which is there, differs in command (edit; here: soup); use its" in refused.err
    refused = run("edit", "base", "two", "--device", "cpu", "-o", out, "--part", "2/2")
    assert "differs in arguments.finetuned (['one']; here: ['two'])" in refused.err


def test_inputs_that_change_between_parts(models, tmp_path, run, monkeypatch):
    """Also where a part was made again since: the time of the file is what is wrong."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.chdir(tmp_path / "models")
    out = tmp_path / "out"
    in_parts(EDIT, out, 3)
    os.utime("one/model-00001-of-00004.safetensors")
    assert run(*EDIT, "-o", out, "--part", "1/3", "--overwrite").code == 0
    refused = run("finish", out)
    assert "the parts were made otherwise: inputs.finetuned 1 model-00001" in refused.err
    assert "put the old ones back with their old times (`touch -c -d " in refused.err


def test_parts_of_other_options_and_of_inputs_that_changed(models, tmp_path, run, monkeypatch):
    place = tmp_path / "models"
    shutil.copytree(models, place)
    monkeypatch.chdir(place)
    out = tmp_path / "out"
    assert run(*EDIT, "-o", out, "--part", "1/3").code == 0
    early = run(*EDIT, "-o", out, "--part", "2/3", "--energy", "0.5")
    assert early.code == 2
    assert "part 1/3, which is there, differs in arguments.energy (not set; here: 0.5); use its" in early.err
    assert run(*EDIT, "-o", out, "--part", "2/3", "--energy", "0.5", "--overwrite").code == 0
    assert run(*EDIT, "-o", out, "--part", "3/3").code == 0
    other = (
        "part 2/3 differs from the others in arguments.energy (0.5; the others: not set); run the command of"
    )
    assert other in run("finish", out).err
    refused = run(*EDIT, "-o", out, "--part", "2/3")
    assert (
        "a part that differs in arguments.energy (0.5; here: not set); to make it anew, pass --overwrite"
        in refused.err
    )
    assert run(*EDIT, "-o", out, "--part", "2/3", "--overwrite").code == 0
    os.utime(place / "base" / "model-00001-of-00004.safetensors")
    refused = run("finish", out)
    assert (
        "the parts were made otherwise: inputs.base 0 model-00001-of-00004.safetensors.mtime_ns"
        in refused.err
    )
    assert "put the old ones back with their old times (`touch -c -d " in refused.err
    assert not out.exists()


def test_an_output_that_is_there_is_replaced_when_all_parts_are(there, whole, tmp_path, run):
    out = tmp_path / "out"
    assert run("wise", "base", "two", "--alpha", "0.5", "-o", out).code == 0
    before = contents(out)
    assert "the output already exists" in run(*EDIT, "-o", out, "--part", "1/2").err
    in_parts(EDIT, out, 2, "--overwrite")
    assert contents(out) == before
    assert "the output already exists" in run("finish", out).err
    assert run("finish", out, "--overwrite").code == 0
    name = "model-00003-of-00004.safetensors"
    assert (out / name).read_bytes() == whole("edit")[name]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("edit", "base", "one", "--part", "0/2"), "--part takes I/N: expected I from 1 to N"),
        (("edit", "base", "one", "--part", "3/2"), "--part takes I/N"),
        (("edit", "base", "one", "--part", "1-2"), "--part takes I/N"),
        (
            ("wise", "base", "one", "--alpha", "0:1:0.5", "--score", "echo {}", "--part", "1/2"),
            "no whole checkpoint",
        ),
        (("search", "base", "one", "--score", "echo 1 {}", "--part", "1/2"), "no whole checkpoint"),
        (
            ("soup", "one", "two", "--greedy", "--score-command", "echo {}", "--part", "1/2"),
            "no whole checkpoint",
        ),
        (
            ("edit", "base", "one", "--as-adapter", "--adapter-energy", "0.5", "--part", "1/2"),
            "ranks that do not depend on all layers; give --adapter-rank",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-4:]),
)
def test_what_cannot_be_made_in_parts(there, tmp_path, run, words, problem):
    refused = run(*words, "-o", tmp_path / "out")
    assert refused.code == 2
    assert problem in refused.err
    assert not [*tmp_path.iterdir()]


def test_the_plan_of_a_part_has_its_files_and_what_there_is_of_it(there, tmp_path, run):
    out = tmp_path / "out"
    plan = (*EDIT, "-o", out, "--part", "2/3", "--dry-run")

    def state():
        details = json.loads(run(*plan, "--resume", "--format", "json").out)
        assert (details["part"], details["of"]) == (2, 3)
        return details["state"]

    assert state() == "not begun"
    assert ": not begun, " in run(*plan).out.replace("2/3, ", "2/3: ")
    partial = partial_path(part_path(out, Part(2, 3))) / "files"
    partial.mkdir(parents=True)
    (partial / "model-00001-of-00004.safetensors").touch()
    assert state() == "interrupted"
    shutil.rmtree(parts_path(out))
    assert run(*EDIT, "-o", out, "--part", "2/3").code == 0
    assert state() == "complete"
    made = [path.name for path in part_path(out, Part(2, 3)).iterdir() if path.name != "part.json"]
    assert made
    table = " ".join(run(*plan).out.split())
    assert f"part 2/3, complete, {table.partition('complete, ')[2][:5]} of the work" in table
    assert all(name in table for name in made)
    refused = run(*plan, "--energy", "0.5")
    assert refused.code == 1
    assert "there is a part that differs in arguments.energy" in refused.err
    (part_path(out, Part(2, 3)) / made[0]).unlink()
    assert "part 2/3 lacks" in run(*plan).err
    assert state() == "not whole"


def test_a_part_without_tensors_says_so(there, tmp_path, run):
    out = tmp_path / "out"
    made = run(*EDIT, "-o", out, "--part", "40/40")
    assert "note: this part has nothing to make: fewer parts are enough" in made.err
    assert "nothing to make" not in run(*EDIT, "-o", out, "--part", "1/40").err


def test_a_run_beside_parts_says_that_it_does_not_use_them(there, tmp_path, run):
    out = tmp_path / "out"
    words = f"{parts_path(out)} has parts of an output, which this run did not use"
    assert run(*EDIT, "-o", out, "--part", "1/2").code == 0
    assert words in " ".join(run(*EDIT, "-o", out).err.split())
    assert parts_path(out).exists()
    shutil.rmtree(parts_path(out))
    assert words not in " ".join(run(*EDIT, "-o", out, "--overwrite").err.split())


def test_the_functions_take_parts(there, whole, tmp_path):
    out = tmp_path / "out"
    for number in (2, 1):
        made = monosoup_cli.edit("base", "one", out, device="cpu", part=f"{number}/2")
        assert made["part"] == f"{number}/2"
    report = monosoup_cli.finish(out)
    assert report == json.loads((out / "monosoup_report.json").read_text())


# -- kills -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks():
    with Forks() as made:
        yield made


def sampled(calls, count):
    """Some numbers of calls, spread over all."""
    return sorted({*np.linspace(1, calls, min(count, calls)).astype(int).tolist()})


def kills_of_a_part(models, whole, tmp_path, forks, count):
    command = ("edit", models / "base", models / "one", "--device", "cpu", "--workers", "1", "-q")
    out = tmp_path / "out"
    whole_run = forks.run(*command, "-o", out, "--part", "2/3")
    assert whole_run.code == 0, whole_run.err
    shutil.rmtree(parts_path(out))
    for at in sampled(len(whole_run.calls), count):
        killed = forks.run(*command, "-o", out, "--part", "2/3", at=at)
        assert killed.code in (-signal.SIGKILL, 0)
        for number in (3, 1):
            assert forks.run(*command, "-o", out, "--part", f"{number}/3").code == 0
        is_there = part_path(out, Part(2, 3)).exists()
        early = forks.run("finish", out)
        if not is_there:
            assert early.code == 1
            assert ": 2/3: expected 3 parts; run the command with --part 2/3" in early.err
            assert not out.exists()
            again = forks.run(*command, "-o", out, "--part", "2/3", "--resume")
            assert again.code == 0, again.err
            assert forks.run("finish", out).code == 0
        same_weights(out, whole)
        shutil.rmtree(out)
        assert not parts_path(out).exists()


def same_weights(out, whole):
    expected = whole("edit")
    for name, data in expected.items():
        if name != "monosoup_report.json" and name != "README.md":
            assert (out / name).read_bytes() == data
    assert monosoup_cli.verify(out)["differences"] == []


def test_a_part_that_is_killed_is_resumed(models, whole, tmp_path, forks):
    kills_of_a_part(models, whole, tmp_path, forks, 8)


@pytest.mark.thorough
def test_a_part_that_is_killed_at_any_call_is_resumed(models, whole, tmp_path, forks):
    kills_of_a_part(models, whole, tmp_path, forks, 1000)


def kills_of_finish(models, whole, tmp_path, forks, count, has_old):
    command = ("edit", models / "base", models / "one", "--device", "cpu", "--workers", "1", "-q")
    out, kept = tmp_path / "out", tmp_path / "kept"
    options = ["--overwrite"] if has_old else []
    if has_old:
        assert forks.run("wise", *command[1:], "--alpha", "0.5", "-o", out).code == 0
    for number in range(1, 6):  # some files whole, some in pieces
        assert forks.run(*command, "-o", out, "--part", f"{number}/5", *options).code == 0
    old = contents(out) if has_old else None
    shutil.copytree(tmp_path, kept)
    calls = len(forks.run("finish", out, "-q", *options).calls)
    same_weights(out, whole)
    for at in sampled(calls, count):
        for path in (out, parts_path(out), partial_path(out)):
            shutil.rmtree(path, ignore_errors=True)
            if (kept / path.name).exists():
                shutil.copytree(kept / path.name, path)
        killed = forks.run("finish", out, "-q", *options, at=at)
        assert killed.code in (-signal.SIGKILL, 0)
        if out.exists() and old is not None and contents(out) == old:
            assert forks.run("finish", out, "-q", *options).code == 0
        elif out.exists():  # it is whole: what is left of the parts is of no use
            same_weights(out, whole)
        else:
            again = forks.run("finish", out, "-q", *options)
            assert again.code == 0, (at, again)
        same_weights(out, whole)


@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_finish_that_is_killed_is_run_again(models, whole, tmp_path, forks, has_old):
    kills_of_finish(models, whole, tmp_path, forks, 10, has_old)


@pytest.mark.thorough
@pytest.mark.parametrize("has_old", [False, True], ids=["new", "old"])
def test_finish_that_is_killed_at_any_call_is_run_again(models, whole, tmp_path, forks, has_old):
    kills_of_finish(models, whole, tmp_path, forks, 1000, has_old)


def without_place(text):
    report = json.loads(text)
    for one in report.get("outputs", [report.get("output")]):
        one["path"] = os.path.basename(one["path"])
    report["arguments"]["output"] = report["arguments"]["report"] = None
    return report
