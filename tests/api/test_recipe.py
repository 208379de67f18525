"""`run`: recipes, reports and mergekit's configurations: the bytes of the commands that they stand for."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.api.commands import COMMANDS
from monosoup_cli.api.recipe import OF_THE_RUN
from monosoup_cli.errors import UsageError
from monosoup_cli.report.files import read_report
from tests.peft_adapters import make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a base and three fine-tunes, in which relative paths lead to them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    shapes = {"h.0.attn.weight": (24, 16), "h.1.mlp.weight": (16, 40), "norm.weight": (16,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(base, "base.safetensors")
    for number in (1, 2, 3):
        tuned = {name: one + 0.1 * torch.randn(one.shape, generator=generator) for name, one in base.items()}
        save_file(tuned, f"ft{number}.safetensors")
    return tmp_path


def recipe(content, path="recipe.yaml"):
    with open(path, "w") as file:
        yaml.safe_dump(content, file, sort_keys=False)
    return path


def weights(path):
    return load_file(f"{path}/model.safetensors")


def same(one, two):
    one, two = weights(one), weights(two)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


STEPS = {
    "steps": [
        {"command": "soup", "finetuned": ["ft1.safetensors", "ft2.safetensors"], "output": "soup"},
        {"command": "edit", "base": "base.safetensors", "finetuned": "soup", "output": "out", "energy": 0.8},
    ]
}


def test_steps_are_the_commands_one_after_the_other(here, run):
    made = run("run", recipe(STEPS), "--format", "json")
    assert made.code == 0
    assert [report["command"] for report in json.loads(made.out)] == ["soup", "edit"]
    assert run("soup", "ft1.safetensors", "ft2.safetensors", "-o", "soup2").code == 0
    assert run("edit", "base.safetensors", "soup2", "-o", "out2", "--energy", "0.8").code == 0
    assert same("soup", "soup2")
    assert same("out", "out2")
    reports = monosoup_cli.run(recipe(STEPS), "elsewhere", overwrite=True)
    assert [report["command"] for report in reports] == ["soup", "edit"]
    assert same("elsewhere", "out")


def test_what_is_done_is_not_done_again(here, run):
    assert run("run", recipe(STEPS)).code == 0
    refused = run("run", recipe(STEPS))
    assert (refused.code, "soup: the output already exists, and so does out;" in refused.err) == (1, True)
    again = run("run", recipe(STEPS), "--resume", "--format", "json")
    assert (again.code, again.err.count("is complete"), json.loads(again.out)) == (0, 2, [])
    assert monosoup_cli.run(recipe(STEPS), resume=True) == []
    (here / "soup").rename("moved")
    refused = run("run", recipe(STEPS), "--resume")
    said = "error: out: the output is there, but soup, that of an earlier step, is gone; pass --resume --over"
    assert (refused.code, said in refused.err) == (1, True), refused.err
    (here / "moved").rename("soup")
    other = {"steps": [STEPS["steps"][0], {**STEPS["steps"][1], "output": "other", "energy": 0.5}]}
    again = run("run", recipe(other), "--resume", "--format", "json", "--report", "-")
    assert (again.code, again.err.count("is complete")) == (0, 1)
    assert [report["command"] for report in json.loads(again.out)] == ["edit"]
    assert not same("other", "out")
    changed = {"steps": [{**STEPS["steps"][0], "weights": [3, 1]}, STEPS["steps"][1]]}
    another = run("run", recipe(changed), "--resume")  # the soup is another one
    assert (another.code, "pass --resume --overwrite" in another.err) == (1, True)
    before = weights("out")
    reports = monosoup_cli.run(recipe(changed), resume=True, overwrite=True)
    assert [report["command"] for report in reports] == ["soup", "edit"]  # so is what is made of it
    assert any(not torch.equal(before[name], one) for name, one in weights("out").items())
    less = {"steps": [changed["steps"][0], {**STEPS["steps"][1]}]}
    del less["steps"][1]["energy"]
    assert len(monosoup_cli.run(recipe(less), resume=True, overwrite=True)) == 1
    (here / "out" / "model.safetensors").write_bytes(b"cut")
    assert len(monosoup_cli.run(recipe(less), resume=True, overwrite=True)) == 1


def with_other_tensors(path):
    """Give a file other tensors, of the same header."""
    size = os.stat(path).st_size
    save_file({name: one + 0.1 for name, one in load_file(path).items()}, path)
    assert os.stat(path).st_size == size


def test_a_complete_step_is_of_the_inputs_as_they_are(here, run):
    """Weights of the same header, a configuration and a side file count, as for an interrupted run."""
    for name in ("base", "ft"):
        (here / name).mkdir()
        shutil.copy(f"{name.replace('ft', 'ft1')}.safetensors", here / name / "model.safetensors")
        (here / name / "config.json").write_text('{"a": 1}')
    for name in ("vocab.txt", "README.md"):
        (here / "ft" / name).write_text("a")
    steps = [{**AGAIN_AND_AGAIN[0], "base": "base", "finetuned": "ft"}, AGAIN_AND_AGAIN[1]]
    path = recipe({"steps": steps})
    assert run("run", path).code == 0
    weights, vocabulary = here / "base/model.safetensors", here / "ft/vocab.txt"
    changes = [
        ("base/model.safetensors was modified since the run", True, lambda: with_other_tensors(weights)),
        ("base: another configuration", False, lambda: (here / "base/config.json").write_text('{"a": 2}')),
        ("ft/vocab.txt was modified since", True, lambda: vocabulary.write_text("b")),
        ("ft/vocab.txt was modified since", False, lambda: vocabulary.write_text("more")),
        ("ft/vocab.txt was removed since", False, vocabulary.unlink),
    ]
    for words, may_be_the_same, change in changes:
        before = {name: (here / name / "model.safetensors").stat() for name in ("one", "two")}
        change()
        refused = run("run", path, "--resume")
        assert refused.code == 1
        assert f"error: one: the output is of other inputs: {words}" in refused.err
        assert ("if only the times are new" in refused.err) == may_be_the_same
        made = run("run", path, "--resume", "--overwrite")
        assert (made.code, f"{words}" in made.err, "is complete" in made.err) == (0, True, False), made.err
        after = {name: (here / name / "model.safetensors").stat() for name in ("one", "two")}
        assert all(before[name].st_ino != after[name].st_ino for name in before), words
        assert run("run", path, "--resume").err.count("is complete") == 2
    for name in ("ft", "one"):  # as `scores --into` does
        (here / name / "README.md").write_text("b")
    assert run("run", path, "--resume").err.count("is complete") == 2
    assert "nothing to resume" in run("run", path, "--resume", "--report", "o.json").err
    with_other_tensors("one/model.safetensors")  # what is made of it follows
    for more in (("--report", "o.json"), ()):
        refused = run("run", path, "--resume", *more)
        assert (refused.code, "error: two: the output is of other" in refused.err) == (1, True), refused.err
    command = shlex.split(refused.err.split("`")[1])
    subprocess.run(command, check=True)
    assert run("run", path, "--resume").err.count("is complete") == 2
    rewrite_without_times("two")
    with_other_tensors("one/model.safetensors")
    assert run("run", path, "--resume").err.count("is complete") == 2  # as far as an older report tells


AGAIN_AND_AGAIN = [
    {"command": "edit", "output": "one"},
    {"command": "wise", "base": "base", "finetuned": "one", "output": "two", "alpha": 0.5},
]


def rewrite_without_times(output):
    """Make the report of an output one of an older version."""
    path = f"{output}/monosoup_report.json"
    with open(path) as file:
        report = json.load(file)
    for one in report["inputs"]:
        one.pop("other_files", None)
        one.pop("config_sha256", None)
        for file in one["files"]:
            del file["modified"]
    with open(path, "w") as file:
        json.dump(report, file)


@pytest.mark.parametrize("options", [(), ("-q",)], ids=["that looked", "that did not look"])
def test_a_complete_step_with_doubts_is_refused_by_strict(here, run, options):
    save_file(
        {name: torch.randn_like(one) for name, one in load_file("base.safetensors").items()}, "o.safetensors"
    )
    step = {"command": "edit", "base": "o.safetensors", "finetuned": "ft1.safetensors", "output": "out"}
    path = recipe(step)
    assert run("run", path, *options).code == 0
    assert ("doubts" in read_report(here / "out")) == (not options)
    assert run("run", path, "--resume").code == 0
    for more in ((), ("--resume",), ("--resume", "--overwrite")):
        refused = run("run", path, "--strict", *(more or ("--overwrite",)))
        assert (refused.code, "as large as the weights" in refused.err.splitlines()[-1]) == (1, True), (
            refused.err
        )
    good = recipe({**step, "base": "base.safetensors", "output": "good"})
    assert run("run", good).code == 0
    assert run("run", good, "--strict", "--resume").err.count("is complete") == 1


def test_an_output_that_is_there_is_refused_before_the_first_step(here, run):
    assert run("run", recipe(STEPS)).code == 0
    shutil.rmtree("soup")
    for options, said in (
        ((), "out: the output already exists"),
        (("--resume",), "out: the output is there"),
    ):
        refused = run("run", recipe(STEPS), *options)
        assert (refused.code, said in refused.err, (here / "soup").exists()) == (1, True, False), refused.err


def test_the_reports_of_steps_before_one_that_fails_are_printed(here, run):
    shape = {"command": "soup", "finetuned": ["soup", "o.safetensors"], "output": "out"}
    save_file({"w": torch.ones(2, 2)}, "o.safetensors")
    result = run("run", recipe({"steps": [STEPS["steps"][0], shape]}), "--format", "json")
    assert (result.code, result.out != "") == (1, True), result
    assert [report["command"] for report in json.loads(result.out)] == ["soup"]


def test_an_interrupted_step_goes_on(here, run):
    """Also if its output is written with a slash at the end."""
    content = {**STEPS["steps"][0], "output": "soup/"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monosoup_cli.outputs.writer.PartialOutput.publish", failing)
        with pytest.raises(KeyError):
            run("run", recipe(content))
    assert (here / "soup.partial").exists()
    assert run("run", recipe(content), "--resume").code == 0
    assert not (here / "soup.partial").exists()


def failing(*_):
    raise KeyError


def test_one_command_and_its_options(here, run):
    content = {"command": "wise", "base": "base.safetensors", "finetuned": "ft1.safetensors", "output": "out"}
    made = run("run", recipe({**content, "alpha": [0.3, 0.5], "dtype": "bfloat16"}), "-q", "--format", "json")
    assert (made.code, json.loads(made.out)["command"]) == (0, "wise")
    assert sorted(path.name for path in (here / "out").glob("alpha*")) == ["alpha-0.3", "alpha-0.5"]
    dry = run("run", recipe({**content, "alpha": 0.3, "output": "dry"}), "--dry-run")
    assert (dry.code, (here / "dry").exists()) == (0, False)


AGAIN = {
    "edit": ("edit", "base.safetensors", "ft1.safetensors", "--energy", "0.7"),
    "edit, swept": ("edit", "base.safetensors", "ft1.safetensors", "--wise", "0.5,1"),
    "stock": ("stock", "base.safetensors", "ft1.safetensors", "ft2.safetensors"),
    "soup": ("soup", "ft1.safetensors", "ft2.safetensors", "--weights", "2,1"),
    "greedy": (
        "soup",
        "ft1.safetensors",
        "ft2.safetensors",
        "--greedy",
        "--score-command",
        "sh -c 'echo 1' {}",
    ),
    "sfgs": ("sfgs", "base.safetensors", "ft1.safetensors", "ft2.safetensors", "--threshold", "0.1"),
    "wise": ("wise", "base.safetensors", "ft1.safetensors", "--alpha", "0.5"),
    "lines": (
        *("lines", "base.safetensors", "ft1.safetensors", "--alpha", "0.3", "--beta", "0.5"),
        *("--block-pattern", r"h\.(\d+)\."),
    ),
    "merge": ("merge", "base.safetensors", "adapter", "--scale", "0.5"),
    "edit, of an adapter": ("edit", "base.safetensors", "adapter", "--as-adapter"),
    "edit, as an adapter": (
        *("edit", "base.safetensors", "ft1.safetensors"),
        *("--as-adapter", "--adapter-energy", "0.9"),
    ),
    "a state dict": ("edit", "base.safetensors", "ft1.pt", "--dtype", "float16"),
    "schedules": (
        *("soup", "run/checkpoint-1", "run/checkpoint-2", "run/checkpoint-3"),
        *("--schedule", "linear,cosine"),
    ),
    "search": (
        *("search", "base.safetensors", "ft1.safetensors", "--budget", "2"),
        *("--score", "sh -c 'echo 1' {}"),
    ),
    "transplant": ("transplant", "base.safetensors", "ft1.safetensors", "ft2.safetensors"),
    "extract": ("extract", "base.safetensors", "ft1.safetensors", "--rank", "2"),
    "a file": ("wise", "base.safetensors", "ft1.safetensors", "--alpha", "0.5"),
}


PROGRAMS = {"greedy", "search"}
"""A recipe runs no programs, so only their reports run again."""


@pytest.fixture
def prepared(here, run):
    """`here`, with an adapter, the checkpoints of a run, and a state dict."""

    def prepare(words):
        if "adapter" in words:
            assert (
                run("extract", "base.safetensors", "ft1.safetensors", "-o", "adapter", "--rank", "2").code
                == 0
            )
        for word in words:
            if word.startswith("run/"):
                (here / word).mkdir(parents=True)
                shutil.copy(f"ft{word[-1]}.safetensors", here / word / "model.safetensors")
        if "ft1.pt" in words:
            torch.save(load_file("ft1.safetensors"), "ft1.pt")

    return prepare


def same_files(one, two):
    """Every file of weights of an output, which may be a file, has the bytes of the other's."""
    files = [one] if one.is_file() else sorted(one.rglob("*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (two if one.is_file() else two / file.relative_to(one)).read_bytes()


@pytest.mark.parametrize("name", AGAIN)
def test_a_report_runs_again_to_the_same_bytes(here, run, prepared, name):
    """And so does a step of a recipe that has its arguments."""
    prepared(AGAIN[name])
    ending = ".safetensors" if name == "a file" else ""
    assert run(*AGAIN[name], "-o", f"out{ending}").code == 0
    source = "out.report.json" if ending else "out"
    result = run("run", source, "-o", f"again{ending}")
    assert result.code == 0, result.err
    same_files(here / f"out{ending}", here / f"again{ending}")
    if name in PROGRAMS:
        return
    report = read_report(here / source)
    declared = COMMANDS[report["command"]].declared
    options = {key: value for key, value in report["arguments"].items() if key not in OF_THE_RUN}
    given = {key: value for key, value in options.items() if value not in (declared[key].default, [])}
    step = {**given, "command": report["command"], "output": f"step{ending}"}
    assert run("run", recipe(step)).code == 0
    same_files(here / f"out{ending}", here / f"step{ending}")
    assert monosoup_cli.run(recipe(step), resume=True) == []


def test_there_is_a_report_of_every_command():
    assert {words[0] for words in AGAIN.values()} == set(COMMANDS)


@pytest.mark.parametrize("name", ["edit", "edit, swept", "a file"])
def test_a_report_that_gives_other_bytes_says_so(here, run, name):
    """And why that may be; in the report, too."""
    ending = ".safetensors" if name == "a file" else ""
    assert run(*AGAIN[name], "-o", f"out{ending}").code == 0
    source = "out.report.json" if ending else "out"
    same = run("run", source, "-o", f"same{ending}")
    assert (same.code, "not the bytes" in same.err) == (0, False)
    with_other_tensors("base.safetensors")
    other = run("run", source, "-o", f"other{ending}")
    note = "not as in that run: base.safetensors (time of modification)"
    assert (other.code, "note: not the bytes of the report: " in other.err, note in other.err) == (
        0,
        True,
        True,
    )
    for report in (read_report(here / f"other{ending}"), *monosoup_cli.run(source, f"python{ending}")):
        assert any(one.startswith("not the bytes of the report: ") and note in one for one in report["notes"])
    if name == "edit":
        elsewhere = run("run", source, "-o", "other.safetensors")
        assert "the weights are in other files than those of the report" in elsewhere.err


def test_what_was_made_in_parts_runs_again(here, run):
    for part in ("1/2", "2/2"):
        assert run(*AGAIN["edit"], "-o", "out", "--part", part).code == 0
    assert run("finish", "out").code == 0
    assert run("run", "out", "-o", "again").code == 0
    same_files(here / "out", here / "again")


def test_a_greedy_soup_that_ran_again_runs_again(here, run):
    """Its report says what was averaged, and names no other program."""
    assert run(*AGAIN["greedy"], "-o", "one").code == 0
    for old, new in (("one", "two"), ("two", "three")):
        assert run("run", old, "-o", new).code == 0
    reports = [
        json.loads((here / name / "monosoup_report.json").read_text()) for name in ("one", "two", "three")
    ]
    assert reports[0]["selection"] == reports[1]["selection"] == reports[2]["selection"]
    commands = [report["arguments"]["score_command"] for report in reports]
    assert len(set(commands)) == 1
    assert monosoup_cli.verify("three", again=True)["differences"] == []


def test_inputs_that_are_gone_or_others_are_refused(here, run):
    assert run(*AGAIN["edit"], "-o", "out").code == 0
    (here / "ft1.safetensors").rename("ft1")
    gone = run("run", "out", "-o", "again")
    assert (gone.code, "ft1.safetensors: no such file" in gone.err, "Hub" in gone.err) == (1, True, False)
    save_file({"attn.weight": torch.ones(3, 3)}, "ft1.safetensors")
    assert run("run", "out", "-o", "again").code == 1
    assert not (here / "again").exists()


@pytest.mark.parametrize("missing", ["base", "finetuned"])
def test_a_report_without_inputs_is_refused(here, run, missing):
    assert run(*AGAIN["edit"], "-o", "out").code == 0
    report = json.loads((here / "out" / "monosoup_report.json").read_text())
    del report["arguments"][missing]
    (here / "report.json").write_text(json.dumps(report))
    refused = run("run", "report.json", "-o", "again")
    assert (refused.code, f"has no {missing}, which edit needs" in refused.err) == (1, True)


def test_a_report_without_a_device_runs_and_one_without_its_choice_is_refused(here, run):
    for name, key in (("edit", "device"), ("greedy", "selection")):
        assert run(*AGAIN[name], "-o", name).code == 0
        report = json.loads((here / name / "monosoup_report.json").read_text())
        (report["arguments"] if key == "device" else report).pop(key)
        (here / f"{name}.json").write_text(json.dumps(report))
    assert run("run", "edit.json", "-o", "again").code == 0
    refused = run("run", "greedy.json", "-o", "other")
    assert (refused.code, "does not say which checkpoints were averaged" in refused.err) == (1, True)


def test_a_merge_runs_again(tmp_path, run):
    folders = make("linear", tmp_path)
    assert run("merge", *folders, "-o", tmp_path / "out").code == 0
    assert run("run", tmp_path / "out", "-o", tmp_path / "again").code == 0
    assert same(tmp_path / "out", tmp_path / "again")


# -- mergekit --------------------------------------------------------------------------------------


def config(method, count=2, weight=(0.6, 0.3), **more):
    models = [
        {"model": f"ft{n + 1}.safetensors", **({"parameters": {"weight": weight[n]}} if weight else {})}
        for n in range(count)
    ]
    return {"merge_method": method, "models": models, "dtype": "float32", **more}


@pytest.mark.parametrize(
    "content",
    [
        config("linear"),
        config("linear", weight=(0.6, -0.9)),
        config("task_arithmetic", base_model="base.safetensors", parameters={"lambda": -0.5}),
        config("model_stock", 2, None, base_model="base.safetensors", parameters={"filter_wise": True}),
    ],
    ids=["linear", "negative", "task_arithmetic", "model_stock"],
)
def test_a_configuration_is_said_as_a_command_line(here, run, content):
    planned = run("run", recipe(content), "-o", "out", "--dry-run").err
    made = run("run", recipe(content), "-o", "out").err
    line, again = (re.search("^runs: monosoup (.*)$", err, re.M)[1] for err in (planned, made))
    assert line == again
    assert run(*shlex.split(line.replace("-o out", "-o typed"))).code == 0
    assert same("out", "typed")


def test_linear_is_a_weighted_mean(here, run):
    assert run("run", recipe(config("linear")), "-o", "out").code == 0
    one, two = (load_file(f"ft{n}.safetensors") for n in (1, 2))
    for name, found in weights("out").items():
        expected = (0.6 * one[name].double() + 0.3 * two[name].double()) / 0.9
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    exact = config("linear", weight=(0.7, 0.3), parameters={"normalize": False})
    assert run("run", recipe(exact), "-o", "exact").code == 0


def test_linear_with_negative_weights_is_no_mean_and_still_their_sum(here, run):
    assert run("run", recipe(config("linear", weight=(0.6, -0.9))), "-o", "out").code == 0
    one, two = (load_file(f"ft{n}.safetensors") for n in (1, 2))
    for name, found in weights("out").items():
        expected = (0.6 * one[name].double() - 0.9 * two[name].double()) / -0.3
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("parameters", "factor"), [({}, 1), ({"lambda": 0.5}, 0.5), ({"normalize": True}, 1 / 0.9)]
)
def test_task_arithmetic_adds_updates(here, run, parameters, factor):
    content = config("task_arithmetic", base_model="base.safetensors", parameters=parameters)
    assert run("run", recipe(content), "-o", "out").code == 0
    base, one, two = (load_file(f"{name}.safetensors") for name in ("base", "ft1", "ft2"))
    for name, found in weights("out").items():
        start = base[name].double()
        update = 0.6 * (one[name].double() - start) + 0.3 * (two[name].double() - start)
        torch.testing.assert_close(found.double(), start + factor * update, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("linear", {"base_model": "ft1.safetensors", "tokenizer_source": "ft1.safetensors"}),
        ("task_arithmetic", {"base_model": "base.safetensors"}),
    ],
)
def test_a_tokenizer_that_the_output_has_anyway_is_no_reason_to_refuse(here, run, method, more):
    content = {**config(method, **more), "tokenizer_source": more.get("tokenizer_source", "base")}
    assert run("run", recipe(content), "-o", "out").code == 0
    del content["tokenizer_source"]
    assert run("run", recipe(content), "-o", "plain").code == 0
    assert same("out", "plain")


OF_EACH_METHOD = pytest.mark.parametrize(
    ("method", "more"),
    [("linear", {}), ("task_arithmetic", {"base_model": "base"}), ("model_stock", {"base_model": "base"})],
)


@OF_EACH_METHOD
def test_a_tokenizer_that_an_adapter_brings_is_that_of_the_output(tmp_path, monkeypatch, run, method, more):
    monkeypatch.chdir(tmp_path)
    first, second = (make("linear", tmp_path, seed).adapter.name for seed in (1, 2))
    listed = [{"model": f"base+{one}", "parameters": {"weight": 0.5}} for one in (first, second)]
    listed = [{"model": one["model"]} for one in listed] if method == "model_stock" else listed
    content = {"merge_method": method, "models": listed, **more}
    for number, source in enumerate(("base", f"base+{first}")):
        accepted = recipe({**content, "tokenizer_source": source})
        assert run("run", accepted, "-o", f"out{number}").code == 0, source
    (tmp_path / first / "tokenizer.json").write_text("{}")
    result = run("run", accepted, "-o", "out")
    if method == "task_arithmetic":
        assert (result.code, (tmp_path / "out" / "tokenizer.json").exists()) == (0, False)
    else:
        said = f"tokenizer_source 'base+{first}' is not the tokenizer that the output has: expected {first};"
        assert (result.code, said in result.err) == (2, True), result.err


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"])
def test_a_tokenizer_is_only_named_where_all_models_have_one(here, run, file):
    """Else mergekit moves rows of embeddings."""
    models = ["ft1", "ft2", "ft2+adapter"]
    for name in (*models[:2], "adapter"):
        (here / name).mkdir()
        (here / name / file).write_text("b" if name == "adapter" else "a")
    listed = [{"model": one, "parameters": {"weight": 0.5}} for one in models]
    refused = run(
        "run", recipe({"merge_method": "linear", "models": listed, "tokenizer_source": "base"}), "-o", "out"
    )
    said = f"tokenizer_source needs one tokenizer in all models: found another {file} in adapter than in ft1;"
    assert (refused.code, said in refused.err) == (2, True), refused.err
    (here / "adapter" / file).write_text("a")
    equal = run("run", here / "recipe.yaml", "-o", "out")
    assert "tokenizer" not in equal.err, equal.err


def test_another_tokenizer_with_the_same_files_is_that_of_the_output(here, run):
    for name in ("base", "ft1", "ft2"):
        (here / name).mkdir()
        shutil.copy(f"{name}.safetensors", here / name / "model.safetensors")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (here / name / file).write_text("{}")
    models = [{"model": name} for name in ("ft1", "ft2")]
    path = recipe(
        {"merge_method": "model_stock", "base_model": "base", "models": models, "tokenizer_source": "base"}
    )
    assert run("run", path, "-o", "out", "--dry-run").code == 0
    (here / "ft1" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    refused = run("run", path, "-o", "out", "--dry-run")
    said = (
        "is not the tokenizer that the output has: expected ft1, found another tokenizer_config.json in base;"
    )
    assert (refused.code, said in refused.err) == (2, True), refused.err


def test_weights_that_cancel_are_not_divided_by(here, run):
    """As mergekit has it."""
    more = {"base_model": "base.safetensors", "parameters": {"normalize": True}}
    assert run("run", recipe(config("task_arithmetic", weight=(1, "-1e0"), **more)), "-o", "out").code == 0
    base, one, two = (load_file(f"{name}.safetensors") for name in ("base", "ft1", "ft2"))
    for name, found in weights("out").items():
        torch.testing.assert_close(found, base[name] + one[name] - two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_is_that_of_the_command(here, run, filter_wise):
    parameters = {"filter_wise": filter_wise}
    content = config("model_stock", 3, None, base_model="base.safetensors", parameters=parameters)
    content["models"].append({"model": "base.safetensors"})  # mergekit lets the base be among them
    assert run("run", recipe(content), "-o", "out").code == 0
    sources = [f"ft{n}.safetensors" for n in (1, 2, 3)]
    granularity = "filter" if filter_wise else "tensor"
    assert run("stock", "base.safetensors", *sources, "-o", "two", "--granularity", granularity).code == 0
    assert same("out", "two")


@OF_EACH_METHOD
def test_a_model_with_an_adapter_is_as_if_it_were_merged(tmp_path, monkeypatch, run, method, more):
    """MODEL+ADAPTER, which peft's merge is tested for elsewhere."""
    monkeypatch.chdir(tmp_path)
    adapters = [make("linear", tmp_path, seed).adapter.name for seed in (1, 2)]
    found = []
    for out, models in {
        "out": [f"base+{one}" for one in adapters],
        "two": [f"merged-{one}" for one in adapters],
    }.items():
        for one in models if out == "two" else ():
            assert run("merge", "base", one.removeprefix("merged-"), "-o", one).code == 0
        listed = [{"model": one, "parameters": {"weight": 0.5}} for one in models]
        listed = [{"model": one} for one in models] if method == "model_stock" else listed
        content = {"merge_method": method, "models": listed, **more}
        assert run("run", recipe(content), "-o", out).code == 0
        found.append(weights(out))
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], rtol=1e-5, atol=1e-6)


REFUSED = {
    "an adapter of another": (
        config("task_arithmetic", base_model="other")
        | {"models": [{"model": "base+a", "parameters": {"weight": 1}}]},
        "an adapter is on another model; `monosoup merge` makes a model of the two",
    ),
    "adapters of two": (
        config("linear") | {"models": [{"model": f"{n}+a", "parameters": {"weight": 1}} for n in "bc"]},
        "an adapter is on another model",
    ),
    "an adapter taken away": (
        config("linear") | {"models": [{"model": "b+a", "parameters": {"weight": w}} for w in (1, -2)]},
        "reads no MODEL+ADAPTER",
    ),
    "ties": (config("ties"), "only mergekit has merge_method 'ties'"),
    "a method in a list": (
        {**config("linear"), "merge_method": ["linear"]},
        "only mergekit has merge_method [",
    ),
    "parameters that are none": (config("linear", parameters=5), "parameters must have names and values"),
    "a model without weight": (config("linear", weight=None), "a model has no weight"),
    "a huge weight": (config("linear", weight=(10**17, float("inf"))), "weight must be a number"),
    "normalize as text": (config("linear", parameters={"normalize": "false"}), "must be true or false"),
    "a base to average": (config("linear", base_model="base.safetensors"), "averages it, too"),
    "a sum of 0": (config("linear", weight=(1, -1)), "the weights of linear sum to 0"),
    "a template": ({**config("linear"), "chat_template": "x"}, "does not do: chat_template"),
    "twice": (
        {**STEPS["steps"][1], "min_update": 0, "min-update": 0},
        "'min-update' is there twice, first in line",
    ),
    "twice in a layer": (
        {**STEPS["steps"][1], "layers": {"a*": {"min_update": 0, "min-update": 0}}},
        "min_update is there twice",
    ),
    "an output elsewhere": ({**STEPS["steps"][0], "output": "/tmp/x"}, "outputs are in the folder"),
    "an output above": ({**STEPS["steps"][0], "output": "../x"}, "outputs are in the folder"),
    "an output that is hidden": ({**STEPS["steps"][0], "output": ".ssh"}, "outputs are in the folder"),
    "a null character": ({**STEPS["steps"][0], "output": "o\0x"}, "null character"),
    "a number without end": ({**STEPS["steps"][1], "energy": 10**500}, "number that is too large"),
    "slices": ({"merge_method": "linear", "slices": []}, "does not do: slices"),
    "a gradient": (config("linear", 1, ([0.1, 0.9],)), "`monosoup lines` scales an update by depth"),
    "density": (config("linear", parameters={"density": 0.5}), "does not do: density"),
    "no sum": (config("linear", parameters={"normalize": False}), "needs weights that sum to 1"),
    "no base": (config("model_stock"), "needs base_model"),
    "no models": ({"merge_method": "linear"}, "needs models"),
    "int8": ({**config("linear"), "dtype": "int8"}, "unknown dtype"),
    "a vocabulary of several": (
        {**config("linear"), "tokenizer_source": "union"},
        "tokenizer_source 'union' is not the tokenizer that the output has: expected base or ft1.safetensors",
    ),
    "a tokenizer in pieces": (
        {**config("linear"), "tokenizer_source": ["base"]},
        "tokenizer_source ['base'] is not the tokenizer that the output has",
    ),
    "a tokenizer of another": (
        config("model_stock", 2, None, base_model="base.safetensors", tokenizer_source="base"),
        "tokenizer_source 'base' is not the tokenizer that the output has: expected ft1.safetensors",
    ),
    "a command of another name": ({"command": "bake"}, "unknown command: expected edit"),
    "an option of another": ({**STEPS["steps"][0], "alpha": 3}, "`soup` has no argument alpha: expected "),
    "options of the run": (
        {**STEPS["steps"][0], "workers": 3, "report": "a b", "overwrite": True},
        "a recipe has no options that say how it runs: found workers, report, overwrite;"
        " pass --workers 3 --report 'a b' --overwrite to `monosoup run`",
    ),
    "an option of the run that is off": (
        {**STEPS["steps"][0], "strict": False},
        "found strict; leave it out",
    ),
    "an option beside steps": ({**STEPS, "dry-run": True}, "that say how it runs: found dry_run; pass --dry"),
    "a step that is none": (
        {"step": STEPS["steps"]},
        "a step needs a command: found step; did you mean steps?",
    ),
    "a command as the key": (
        {"steps": [{"merge": {"base": "base.safetensors"}, "merge_method": "x"}]},
        "found merge, merge_method; did you mean command: merge?",
    ),
    "a key that a step does not have": (
        {"steps": [{"steps": [], "output": "x"}]},
        "a step needs a command: found steps, output\n",
    ),
    "a misspelt command": ({**STEPS["steps"][1], "command": "edits"}, "found 'edits'; did you mean edit?"),
    "a misspelt key": ({"comand": "edit"}, "found comand; did you mean command?"),
    "a misspelt option": ({**STEPS["steps"][1], "enrgy": 1}, "; did you mean energy?"),
    "the adapters of a merge": (
        {"command": "merge", "base": "base.safetensors", "adapters": ["a"], "output": "x"},
        "; did you mean finetuned?",
    ),
    "layers that are none": (
        {"command": "merge", "base": "base.safetensors", "finetuned": "a", "output": "x", "layers": 3},
        "expected such as {'*mlp*': {'scale': 0.8}}",
    ),
    "an edit's layers that are none": (
        {**STEPS["steps"][1], "layers": 3},
        "expected such as {'*mlp*': {'wise': 0.8}}",
    ),
    "no base to edit": (
        {**STEPS["steps"][1], "base": "-"},
        "- means that there is no base; give the base, or add as_adapter: true",
    ),
    "a scale without end": (
        {
            "command": "merge",
            "base": "base.safetensors",
            "finetuned": "a",
            "output": "x",
            "scale": float("inf"),
        },
        "scale must be finite: found inf",
    ),
    "a program": (
        {**STEPS["steps"][0], "greedy": True, "score_command": "rm x"},
        "a recipe runs no programs",
    ),
    "a wrong value": ({**STEPS["steps"][1], "energy": {"a": 1}}, "energy cannot be"),
    "a path that is none": ({**STEPS["steps"][1], "base": 3}, "base cannot be 3"),
    "no output": ({"command": "soup", "finetuned": ["ft1.safetensors"]}, "soup needs output"),
    "keys beside steps": ({**STEPS, "base": "x"}, "a recipe has no base"),
    "no steps": ({"steps": []}, "steps must be a list"),
    "a list": ([1], "is no recipe"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recipe_may_not(here, run, name):
    content, words = REFUSED[name]
    before = sorted(here.rglob("*"))
    options = ("-o", "out") if isinstance(content, dict) and "merge_method" in content else ()
    result = run("run", recipe(content), *options)
    assert (result.code, result.err.count("\n"), words in result.err) == (2, 1, True), result.err
    assert sorted(here.rglob("*")) == sorted([*before, here / "recipe.yaml"])


LATER = {
    "a setting of layers": ({"layers": {"*": {"enrgy": 0.8}}}, 2, "step 2: layers '*': a layer has no enrgy"),
    "an option": ({"enrgy": 0.8}, 2, "step 2: `edit` has no argument enrgy: expected "),
    "a value out of range": ({"energy": 2}, 2, "step 2: energy is"),
    "options that contradict each other": (
        {"as_adapter": True, "carry_base": ["x"]},
        2,
        "step 2: carry_base is for",
    ),
    "a missing input": ({"finetuned": "sop"}, 1, "sop: no such file or folder, and no step before step 2"),
    "an input of a later step": (
        {"finetuned": "last"},
        1,
        "last: is made by step 3, after step 2 needs it; put step 3 before step 2",
    ),
    "an input that could be an id": (
        {"finetuned": "last/alpha-0.5"},
        1,
        "last/alpha-0.5: is made by step 3, after step 2",
    ),
    "a missing base": ({"base": "sub/ft9.safetensors"}, 1, "sub/ft9.safetensors: no such file or folder"),
    "the output of another": ({"output": "soup/"}, 2, "step 2: an earlier step has the same output"),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_step_is_refused_before_the_first_runs(here, run, name):
    given, code, words = LATER[name]
    last = {**STEPS["steps"][1], "output": "last"}
    path = recipe({"steps": [STEPS["steps"][0], {**STEPS["steps"][1], **given}, last]})
    before = sorted(here.rglob("*"))
    for more in ((), ("--dry-run",)):
        result = run("run", path, *more)
        assert (result.code, result.err.count("\n"), words in result.err) == (code, 1, True), result.err
    assert sorted(here.rglob("*")) == before


def test_an_input_may_be_in_an_output_of_an_earlier_step(here, run):
    """As one of a sweep, or as its file."""
    sweep = {"command": "wise", "base": "base.safetensors", "finetuned": "ft1.safetensors", "output": "a"}
    inner = {"finetuned": ["a/alpha-0.5", "./a/alpha-1/model.safetensors"]}
    steps = [{**sweep, "alpha": [0.5, 1]}, {**STEPS["steps"][1], **inner}]
    result = run("run", recipe({"steps": steps}))
    assert result.code == 0, result.err


def test_a_dry_run_says_that_it_planned_one_step(here, run):
    words = "of the steps after this one, only the arguments were checked"
    first = run("run", recipe(STEPS), "--dry-run", "--format", "json")
    assert (json.loads(first.out)["command"], first.err.count(words)) == ("soup", 1)
    assert run("run", recipe(STEPS), "-q").code == 0
    again = {"steps": [STEPS["steps"][0], {**STEPS["steps"][1], "output": "other"}]}
    second = run("run", recipe(again), "--dry-run", "--resume", "--format", "json")
    assert (json.loads(second.out)["command"], words in second.err) == ("edit", False)


def test_a_recipe_that_is_not_there(here, run):
    result = run("run", "nope.yaml")
    assert (result.code, "nope.yaml: cannot be read: No such file" in result.err) == (1, True)


HOSTILE = {
    "code": "!!python/object/apply:os.mkdir [evil]",
    "no end": "a: [",
    "a control character": "\x00",
    "a wrong bool": "a: !!bool foo",
    "a wrong int": "a: !!int ''",
    "a wrong time": "a: !!timestamp foo",
    "itself": "a: &a [*a]",
    "doubled and doubled": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
    "nested": "- " * 100_000,
    "long": "x" * 2_000_000,
    "a character without end": r'command: "\UFFFFFFFF"',
    "a version without end": f"%YAML {'1' * 5000}.1\n---\ncommand: edit",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_in_a_line(here, run, text):
    (here / "recipe.yaml").write_text(text)
    result = run("run", "recipe.yaml")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert not (here / "evil").exists()


def test_from_python(here):
    with pytest.raises(UsageError, match="do not say where the output goes; add output=OUT"):
        monosoup_cli.run(recipe(config("linear")))
    for name in ("energy", "part"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            monosoup_cli.run(recipe(STEPS), **{name: "1/2"})
    with pytest.raises(TypeError, match="did you mean 'workers'"):
        monosoup_cli.run(recipe(STEPS), worker=1)
    with pytest.raises(UsageError, match=r"; pass workers=3 overwrite=True to `monosoup run`"):
        monosoup_cli.run(recipe({**STEPS["steps"][0], "workers": 3, "overwrite": True}))
    report = monosoup_cli.run(recipe(config("linear")), output="out", device="cpu")[0]
    assert report["command"] == "soup"
    assert json.loads((here / "out" / "monosoup_report.json").read_text())["command"] == "soup"
