"""What every writing command promises beside its result: dry runs, refusals, resumption, bounded
files and memory, sweeps from one reading, folders that load.

The commands are run as a user would; each test goes through all that it concerns.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from tests.conftest import everything_in


class Case(NamedTuple):
    """A command as a user types it: its name, whether it has a base, how many fine-tuned checkpoints,
    its options; options that change the result; and the folders of a sweep."""

    name: str
    has_base: bool
    count: int
    options: tuple[str, ...]
    changed: tuple[str, ...]
    folders: tuple[str, ...] = ("",)

    def words(self, inputs, out, *options, changed=False):
        base, *finetuned = inputs
        sources = [*([base] if self.has_base else []), *finetuned[: self.count]]
        own = self.changed if changed else self.options
        return [str(word) for word in (self.name, *sources, "-o", out, *own, *options)]


CASES = {
    "edit --energy": Case(
        "edit", True, 1, ("--energy", "0.5,0.8"), ("--energy", "0.5,0.9"), ("energy-0.5", "energy-0.8")
    ),
    "edit --wise": Case("edit", True, 2, ("--wise", "0.3,0.5"), ("--wise", "0.3"), ("wise-0.3", "wise-0.5")),
    "stock": Case("stock", True, 3, (), ("--granularity", "filter")),
    "soup": Case("soup", False, 3, (), ("--weights", "1,2,3")),
    "sfgs": Case("sfgs", True, 3, ("--threshold", "-1"), ("--threshold", "0.99")),
    "wise": Case("wise", True, 1, ("--alpha", "0.3"), ("--alpha", "0.4")),
    "wise sweep": Case(
        "wise",
        True,
        1,
        ("--alpha", "0:0.2:0.1"),
        ("--alpha", "0:0.3:0.1"),
        ("alpha-0", "alpha-0.1", "alpha-0.2"),
    ),
    "transplant": Case("transplant", True, 2, ("--scale", "0.5"), ("--scale", "0.4")),
    "soup of a run": Case(
        "soup",
        False,
        3,
        ("--schedule", "ema,linear"),
        ("--schedule", "linear,cosine"),
        ("schedule-ema", "schedule-linear"),
    ),
    "lines": Case("lines", True, 1, ("--alpha", "0.3", "--beta", "0.7"), ("--alpha", "0.3", "--beta", "0.6")),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_sweep = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.folders != ("",)],
    ids=[name for name, case in CASES.items() if case.folders != ("",)],
)


def succeed(*words):
    assert main([str(word) for word in words]) == 0


def random_tensors(seed, *, around=None, scale=1.0):
    """Layers of several kinds and dtypes; one of them takes several blocks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": ((700, 48), torch.float32),
        "scale": ((), torch.float32),
        **{f"layers.{n}.conv.weight": ((12, 8, 3, 3), torch.float16) for n in range(3)},
        **{f"layers.{n}.mlp.weight": ((96, 40), torch.bfloat16) for n in range(3)},
        **{f"layers.{n}.norm.bias": ((40,), torch.bfloat16) for n in range(3)},
        "lm_head.weight": ((30, 64), torch.float64),
    }
    made = {}
    for name, (shape, dtype) in shapes.items():
        noise = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] = (noise if around is None else around[name] + noise).to(dtype)
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A base and three fine-tuned checkpoints as files, without anything that is only copied."""
    folder = tmp_path_factory.mktemp("inputs")
    base = random_tensors(0)
    save_file(base, folder / "base.safetensors", {"format": "pt"})
    common = random_tensors(1, around=base, scale=0.1)
    for number in range(3):
        tuned = random_tensors(2 + number, around=common, scale=0.05)
        save_file(tuned, folder / f"tuned-{number}.safetensors", {"format": "pt"})
    return [folder / "base.safetensors", *sorted(folder.glob("tuned-*"))]


def content(out):
    """The bytes of every weights file of an output."""
    files = [out] if out.is_file() else sorted(out.rglob("*.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def files_of(case):
    return [str(Path(folder) / "model.safetensors") for folder in case.folders]


@every_case
def test_a_dry_run_prints_the_plan_and_writes_nothing(run, inputs, tmp_path, case):
    before = everything_in(inputs[0].parent)
    table = run(*case.words(inputs, tmp_path / "out", *ON_CPU, "--dry-run"))
    plan = run(*case.words(inputs, tmp_path / "out", *ON_CPU, "--dry-run", "--format", "json"))
    assert (table.code, plan.code) == (0, 0)
    assert list(tmp_path.iterdir()) == []
    assert everything_in(inputs[0].parent) == before
    told, names = json.loads(plan.out), list(load_file(inputs[1]))
    assert told["command"] == case.name
    assert told["output"]["path"] == str(tmp_path / "out")
    assert told["estimated_seconds"] > 0
    assert re.search(
        r"^time +about .* on \d+ cores?, with the start; estimated from a calibration of", table.out, re.M
    )
    assert tuple(told["output"].get("folders", ("",))) == case.folders
    assert sorted(layer["name"] for layer in told["layers"]) == sorted(names)
    listed = {line.split()[0] for line in table.out.splitlines() if line.strip()} & set(names)
    assert listed == (set() if case.name == "sfgs" else set(names)), "sfgs shows its choice instead"
    for path in (tmp_path / "out", *inputs[1 : 1 + case.count]):
        assert str(path) in table.out
    assert run(*case.words(inputs, tmp_path / "out")).code == 0
    reports = [json.loads((tmp_path / "out" / f / "monosoup_report.json").read_text()) for f in case.folders]
    for report in reports:
        planned = {layer["name"]: (layer["action"], layer["reason"]) for layer in told["layers"]}
        assert {layer["name"]: (layer["action"], layer["reason"]) for layer in report["layers"]} == planned
        sizes = [(file["name"], file["bytes"]) for file in report["output"]["files"]]
        assert sizes == [(file["name"], file["bytes"]) for file in told["output"]["files"]]


@every_case
def test_an_existing_output_is_refused_and_replaced_if_told_so(run, inputs, tmp_path, case):
    out = tmp_path / "out"
    succeed(*case.words(inputs, out))
    before, files = everything_in(out), content(out)
    assert list(files) == files_of(case)
    for option in ([], ["--resume"], ["--dry-run"]):
        refused = run(*case.words(inputs, out, *option, changed=True))
        assert refused.code == 1
        assert str(out) in refused.err
        assert everything_in(out) == before
        assert list(tmp_path.iterdir()) == [out], "nothing was begun"
    assert "--overwrite" in run(*case.words(inputs, out)).err
    succeed(*case.words(inputs, out, "--overwrite", changed=True))
    succeed(*case.words(inputs, tmp_path / "other", changed=True))
    assert content(out) == content(tmp_path / "other") != files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@every_case
def test_the_number_of_workers_does_not_change_the_bytes(inputs, tmp_path, case):
    for workers in (1, 2, 5):
        succeed(*case.words(inputs, tmp_path / str(workers), "--workers", workers))
    found = [content(tmp_path / str(workers)) for workers in (1, 2, 5)]
    assert list(found[0]) == files_of(case)
    assert found[0] == found[1] == found[2]


# -- killed and resumed ------------------------------------------------------------------------

LAYERS = 3000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """So many small layers that there is time to be killed in."""
    folder = tmp_path_factory.mktemp("many")
    generator = torch.Generator().manual_seed(0)

    def noise():
        return {f"layers.{n}.w": torch.randn(16, 16, generator=generator) for n in range(LAYERS)}

    base = noise()
    save_file(base, folder / "base.safetensors")
    for number in range(3):
        tuned = {name: base[name] + 0.1 * update for name, update in noise().items()}
        save_file(tuned, folder / f"tuned-{number}.safetensors")
    return [folder / "base.safetensors", *sorted(folder.glob("tuned-*"))]


ON_CPU = ("--device", "cpu")
"""For what is compared with a process, which sees no emulated card, and for what is said of the CPU alone."""


def finished(out):
    """Tensors that the journal has as finished. A kill may cut its last line, which then does not count."""
    journal = out.with_name(f"{out.name}.partial") / "journal"
    whole_lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return sum(line.startswith(b'{"tensor"') for line in whole_lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "sfgs"])
def test_killed_and_resumed(run, many, tmp_path, name):
    """`sfgs`, which has two passes to be killed in, is tested with the soups that choose."""
    case = CASES[name]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "monosoup_cli", *case.words(many, out, *ON_CPU, "--workers", 2)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while finished(out) < 20 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    done = finished(out)
    assert 20 <= done < LAYERS
    left = run(*case.words(many, out))
    assert left.code == 1
    assert "--resume" in left.err
    changed = run(*case.words(many, out, *ON_CPU, "--resume", changed=True))
    assert changed.code == 1
    assert "differs in arguments." in changed.err
    (option,) = set(case.changed[-2:-1])
    assert option.strip("-") in changed.err
    assert not out.exists()
    assert finished(out) == done
    succeed(*case.words(many, out, *ON_CPU, "--resume", "--workers", 1))
    succeed(*case.words(many, tmp_path / "whole", *ON_CPU))
    assert list(content(out)) == files_of(case)
    assert content(out) == content(tmp_path / "whole")
    for folder in case.folders:
        resumed, whole = (
            json.loads((path / folder / "monosoup_report.json").read_text())
            for path in (out, tmp_path / "whole")
        )
        assert resumed["layers"] == whole["layers"]
        left = (LAYERS - done) * len(case.folders)
        assert resumed["timing"]["bytes_written"] == left * 16 * 16 * 4, "nothing twice"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


# -- sweeps ------------------------------------------------------------------------------------


@every_sweep
def test_a_sweep_into_a_file_is_refused(run, inputs, tmp_path, case):
    for option in ([], ["--dry-run"], ["--overwrite"]):
        result = run(*case.words(inputs, tmp_path / "out.safetensors", *option))
        assert result.code == 2
        assert "folder" in result.err
        assert list(tmp_path.iterdir()) == []


def assert_read_once(report, sources):
    assert [entry["source"] for entry in report["inputs"]] == [str(source) for source in sources]
    for entry in report["inputs"]:
        assert entry["bytes_read"] == Path(entry["source"]).stat().st_size
    assert report["timing"]["bytes_read"] == sum(path.stat().st_size for path in sources)


def test_eleven_interpolations_from_one_reading(run, inputs, tmp_path):
    base, finetuned = inputs[:2]
    out = tmp_path / "out"
    assert run("wise", base, finetuned, "-o", out, "--alpha", "0:1:0.1", "--quiet").code == 0
    alphas = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [f"alpha-{a}" for a in alphas]
    report = json.loads((out / "monosoup_report.json").read_text())
    assert_read_once(report, [base, finetuned])
    assert [Path(output["path"]).name for output in report["outputs"]] == [f"alpha-{a}" for a in alphas]
    for alpha in alphas:
        single = tmp_path / f"single-{alpha}"
        assert run("wise", base, finetuned, "-o", single, "--alpha", alpha).code == 0
        assert content(out / f"alpha-{alpha}") == content(single)
        own, alone = (
            json.loads((folder / "monosoup_report.json").read_text())
            for folder in (out / f"alpha-{alpha}", single)
        )
        assert (own["layers"], own["summary"]) == (alone["layers"], alone["summary"])
        assert own["arguments"]["alpha"] == alone["arguments"]["alpha"] == float(alpha)
    assert (out / "alpha-0" / "model.safetensors").read_bytes() == base.read_bytes()
    assert (out / "alpha-1" / "model.safetensors").read_bytes() == finetuned.read_bytes()


def test_folders_are_named_by_the_shortest_decimal(run, inputs, tmp_path):
    given = ["0.30", "1e-1", ".25", "1.0", "0.000000001"]
    result = run("wise", *inputs[:2], "-o", tmp_path / "out", "--alpha", ",".join(given))
    assert result.code == 0
    found = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert found == ["alpha-0.000000001", "alpha-0.1", "alpha-0.25", "alpha-0.3", "alpha-1"]


@pytest.mark.parametrize(
    "sweeps",
    [{"energy": ["0.5", "0.8"]}, {"wise": ["0.3", "0.5"]}, {"energy": ["0.5", "0.8"], "wise": ["0.3", "1"]}],
    ids=lambda sweeps: " and ".join(sweeps),
)
@pytest.mark.parametrize("count", [1, 3])
def test_edit_sweeps_are_single_edits_from_one_reading(run, inputs, tmp_path, sweeps, count):
    sources = inputs[: 1 + count]
    options = [word for name, values in sweeps.items() for word in (f"--{name}", ",".join(values))]
    assert run("edit", *sources, "-o", tmp_path / "out", *options, "--quiet").code == 0
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert_read_once(report, sources)
    combinations = [[]]
    for name, values in sweeps.items():
        combinations = [[*before, (name, value)] for before in combinations for value in values]
    folders = ["-".join(f"{name}-{value}" for name, value in each) for each in combinations]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == sorted(folders)
    for folder, each in zip(folders, combinations, strict=True):
        single = tmp_path / f"single {folder}"
        own = [word for name, value in each for word in (f"--{name}", value)]
        assert run("edit", *sources, "-o", single, *own).code == 0
        assert content(tmp_path / "out" / folder) == content(single), folder
        own, alone = (
            json.loads((path / "monosoup_report.json").read_text())["layers"]
            for path in (tmp_path / "out" / folder, single)
        )
        assert own == alone
    assert len(set(content(tmp_path / "out").values())) == len(folders)


# -- bounds ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Eighty fine-tuned checkpoints, and one in a hundred and twenty shards."""
    folder = tmp_path_factory.mktemp("crowd")
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.w": torch.randn(8, 6, generator=generator) for n in range(120)}
    few = {name: base[name] for name in list(base)[:4]}
    save_file(few, folder / "base.safetensors")
    save_file(base, folder / "large.safetensors")
    for number in range(80):
        tuned = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in few.items()}
        save_file(tuned, folder / f"tuned-{number:02}.safetensors")
    (folder / "sharded").mkdir()
    shards = {name: f"model-{n:05}-of-00120.safetensors" for n, name in enumerate(base, start=1)}
    for name, shard in shards.items():
        save_file({name: 1.1 * base[name]}, folder / "sharded" / shard)
    index = {"metadata": {"total_size": 120 * 8 * 6 * 4}, "weight_map": shards}
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


CROWDED = """
import sys
from pathlib import Path
import monosoup_cli
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
base, finetuned = folder / "base.safetensors", sorted(folder.glob("tuned-*"))
assert len(finetuned) == 80
monosoup_cli.edit(base, finetuned, out / "edit", workers=5)
monosoup_cli.stock(base, finetuned, out / "stock", workers=5)
monosoup_cli.soup(finetuned, out / "soup", workers=5)
monosoup_cli.sfgs(base, finetuned, out / "sfgs", threshold=-1.0, workers=5)
large, sharded = folder / "large.safetensors", folder / "sharded"
monosoup_cli.wise(large, sharded, out / "wise.safetensors", alpha=0.5)
monosoup_cli.lines(large, sharded, out / "lines.safetensors", alpha=0, beta=1)
monosoup_cli.wise(large, sharded, out / "wise", alpha="0.5,1")
"""


def test_few_files_are_open_at_a_time(crowd, tmp_path):
    """Of the inputs. Of the outputs all are: only for them may the limit be raised."""
    result = subprocess.run(
        [sys.executable, "-c", CROWDED, crowd, tmp_path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500)),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    checkpoints = [load_file(path) for path in sorted(crowd.glob("tuned-*"))]
    for name, found in load_file(tmp_path / "soup" / "model.safetensors").items():
        mean = torch.stack([each[name].double() for each in checkpoints]).mean(0)
        torch.testing.assert_close(found, mean.float(), rtol=1e-6, atol=1e-7)
    assert content(tmp_path / "sfgs") == content(tmp_path / "soup")
    monosoup_cli.stock(
        crowd / "base.safetensors", sorted(crowd.glob("tuned-*")), tmp_path / "again", workers=1
    )
    assert content(tmp_path / "again") == content(tmp_path / "stock")
    base = load_file(crowd / "large.safetensors")
    for name, found in load_file(tmp_path / "wise.safetensors").items():
        torch.testing.assert_close(found, 1.05 * base[name])
    for alpha in ("0.5", "1"):
        assert len(list((tmp_path / "wise" / f"alpha-{alpha}").glob("*.safetensors"))) == 120


MEASURED = """
import sys
from pathlib import Path
import monosoup_cli

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
base, all = folder / "base.safetensors", sorted(folder.glob("tuned-*"))
assert len(all) == 40
options = {"workers": 1, "overwrite": True}
commands = [
    [lambda some: monosoup_cli.soup(some, out / "soup", **options)],
    [
        lambda some: monosoup_cli.stock(base, some, out / "stock", **options),
        lambda some: monosoup_cli.sfgs(base, some, out / "sfgs", threshold=0.0, **options),
        lambda some: monosoup_cli.edit(base, some, out / "edit", **options),
    ],
]
for together in commands:
    peaks = []
    for count in (4, 40):
        for command in together:
            command(all[:count])
        peaks.append(peak())
    print(peaks[1] - peaks[0])
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A tensor of 30 MB, in four checkpoints with ten names each."""
    folder = tmp_path_factory.mktemp("heavy")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60_000, 128, generator=generator)
    save_file({"w": base}, folder / "base.safetensors")
    for number in range(4):
        path = folder / f"tuned-{number}0.safetensors"
        save_file({"w": base + 0.1 * torch.randn(base.shape, generator=generator)}, path)
        for copy in range(1, 10):
            os.link(path, folder / f"tuned-{number}{copy}.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_number_of_checkpoints(heavy, tmp_path):
    """Forty take as much as four did before, in one process: of `soup`, and of the others."""
    words = [sys.executable, "-c", MEASURED, heavy, tmp_path]
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    soup, others = map(int, result.stdout.split())
    assert max(soup, others) < 25e6, "less than one of the 36 more"


# -- folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """A tiny Llama and three fine-tunes of it, each in a folder of shards with its side files."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llamas")
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        made = []
        for name in ("base", "tuned-0", "tuned-1", "tuned-2"):
            if made:
                model.load_state_dict({n: t + 0.05 * torch.randn_like(t) for n, t in before.items()})
            model.save_pretrained(folder / name, max_shard_size="40kB")
            (folder / name / "tokenizer.json").write_text(json.dumps({"of": name}))
            (folder / name / "notes").mkdir()
            (folder / name / "notes" / "data.txt").write_text(f"data of {name}")
            (folder / name / "README.md").write_text("# another model's card")
            made.append(folder / name)
    return made


@every_case
def test_folders_come_out_as_folders_that_load(run, llamas, tmp_path, case):
    from transformers import LlamaForCausalLM

    # transplant writes a model like its last one
    first, out = llamas[case.count if case.name == "transplant" else 1], tmp_path / "out"
    source = json.loads((first / "model.safetensors.index.json").read_text())
    shards = sorted(set(source["weight_map"].values()))
    assert len(shards) > 3
    assert run(*case.words(llamas, out)).code == 0
    if case.folders != ("",):
        assert sorted(path.name for path in out.iterdir()) == sorted([*case.folders, "monosoup_report.json"])
    expected = out_of_files(run, llamas, tmp_path, case)
    for folder in case.folders:
        made = out / folder
        files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
        assert files == sorted(
            [
                "README.md",
                "config.json",
                "generation_config.json",
                *shards,
                "model.safetensors.index.json",
                "monosoup_report.json",
                "notes/data.txt",
                "tokenizer.json",
            ]
        )
        for name in ("config.json", "generation_config.json", "notes/data.txt", "tokenizer.json"):
            assert (made / name).read_bytes() == (first / name).read_bytes()
        assert json.loads((made / "model.safetensors.index.json").read_text()) == source
        card = ModelCard.load(made / "README.md")
        assert "monosoup" in card.data.tags
        assert f"monosoup {case.name} " in card.text
        assert all(path.name in card.text for path in llamas[1 : 1 + case.count])
        assert str(tmp_path) not in card.text
        model, info = LlamaForCausalLM.from_pretrained(
            made, output_loading_info=True, local_files_only=True, dtype=torch.float32
        )
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        found = model.state_dict()
        assert found.keys() == expected[folder].keys()
        for name, tensor in expected[folder].items():
            assert torch.equal(found[name], tensor), name


def out_of_files(run, folders, tmp_path, case):
    """The tensors that the command makes of the same checkpoints in one file each, by folder."""
    files = []
    for folder in folders:
        tensors = {}
        for shard in folder.glob("*.safetensors"):
            tensors |= load_file(shard)
        files.append(tmp_path / f"{folder.name}.safetensors")
        save_file(tensors, files[-1])
    assert run(*case.words(files, tmp_path / "of files")).code == 0
    return {
        folder: load_file(tmp_path / "of files" / folder / "model.safetensors") for folder in case.folders
    }
