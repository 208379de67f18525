"""What hints on recipes lead to."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.hints.of_adapters import BLOCK, adapter
from tests.hints.table import Trial, follows


def written(at: Trial, content: dict[str, Any]) -> str:
    path = at.tmp / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


@follows("api/recipe.py", "do not say where the output goes; add -o OUT")
def mergekit_without_output(at: Trial) -> None:
    models = [{"model": str(one), "parameters": {"weight": 1}} for one in (at.base, at.finetuned)]
    path = written(at, {"merge_method": "linear", "models": models})
    at.refused("run", path)
    assert "-o OUT" in at.hint
    at.loads("run", path, "-o", at.out)


@follows("api/recipe.py", "a report's own output is there; add -o NEW")
def a_report_without_output(at: Trial) -> None:
    assert at.run(*at.edit).code == 0
    at.refused("run", at.out)
    assert "-o NEW" in at.hint
    at.loads("run", at.out, "-o", at.tmp / "new", output=at.tmp / "new")


@follows("api/recipe.py", "pass the report itself")
def an_output_without_its_report(at: Trial) -> None:
    report = at.tmp / "written.json"
    assert at.run(*at.edit, "--report", report).code == 0
    at.refused("run", at.out, "-o", at.tmp / "new")
    command = shlex.split(at.hint.split("`")[1].replace("REPORT.json", str(report)))
    assert command[:2] == ["monosoup", "run"]
    at.loads(*command[1:-1], at.tmp / "new", output=at.tmp / "new")


@follows("api/recipe.py", "a recipe has the suffix .yaml")
def a_recipe_in_json(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    path = at.tmp / "recipe.json"
    path.write_text(json.dumps(content))
    at.refused("run", path, "-o", at.out)
    at.loads("run", path.rename(path.with_suffix(".yaml")), "-o", at.out)


@follows("api/recipe.py", "a recipe runs no programs")
def a_program(at: Trial) -> None:
    content = {"command": "soup", "finetuned": [str(at.finetuned), str(at.base)], "output": "out"}
    score = "sh -c 'echo 1' {}"
    at.refused("run", written(at, {**content, "greedy": True, "score_command": score}))
    command = shlex.split(at.hint.split("`")[1])
    assert command == ["monosoup", "soup"]
    at.loads("soup", at.finetuned, at.base, "--greedy", "--score-command", score, "-o", at.out)


@follows(
    "api/mergekit.py",
    "only mergekit has merge_method …",
    "has what monosoup does not do",
    "the same for all tensors; merge with mergekit",
    "the same for all tensors; `monosoup lines`",
    "needs weights that sum to 1",
    "linear with a base_model",
    "is not the tokenizer that the output has",
    "one tokenizer in all models",
)
def what_mergekit_alone_does(at: Trial) -> None:
    """Its result is an input; or the configuration without what is not here."""
    models = [{"model": str(one), "parameters": {"weight": 0.4}} for one in (at.base, at.finetuned)]
    plain: dict[str, Any] = {"merge_method": "linear", "models": models}
    problem = at.site.problem
    if "only mergekit" in problem:
        content = {**plain, "merge_method": "slerp"}
    elif "does not do" in problem:
        content = {**plain, "slices": []}
    elif "in all models" in problem:
        pair = {"base": at.base, "finetuned": at.finetuned}
        for name, weights in pair.items():
            (at.tmp / name).mkdir()
            shutil.copy(weights, at.tmp / name / "model.safetensors")
            (at.tmp / name / "vocab.txt").write_text(name)
        plain["models"] = [
            {**one, "model": str(at.tmp / name)} for one, name in zip(models, pair, strict=True)
        ]
        content = {**plain, "tokenizer_source": "base"}
    elif "tokenizer" in problem:
        content = {**plain, "tokenizer_source": "union"}
    elif "base_model" in problem:
        content = {**plain, "base_model": "elsewhere"}
    elif "number" in problem:
        weight = [0.1, 0.9] if "lines" in str(at.site.hint) else "x"
        content = {**plain, "models": [{**models[0], "parameters": {"weight": weight}}, models[1]]}
    else:
        content = {**plain, "parameters": {"normalize": False}}
    at.refused("run", written(at, content), "-o", at.out)
    if "`layers` of a recipe" in at.hint:
        plain = {"command": "transplant", "base": str(at.base), "finetuned": str(at.finetuned)}
        plain |= {"onto": str(at.base), "output": "out", "layers": {"block*": {"scale": 0.1}}}
    at.loads("run", written(at, plain), "-o", at.out)


@follows("api/recipe.py", "name it as model: BASE+")
def an_adapter_alone_in_mergekit(at: Trial) -> None:
    folder = adapter(at, BLOCK, base_model_name_or_path=str(at.base))
    models = [{"model": str(one)} for one in (folder, at.finetuned)]
    content = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.4}}
    at.refused("run", written(at, content), "-o", at.out)
    model, base = re.findall(r"model: (\S+) \(it names '(.*)'\)", at.hint)[0]
    models[0]["model"] = model.replace("BASE", base)
    at.loads("run", written(at, content), "-o", at.out)


@follows("api/recipe.py", "mergekit has no such key, so give it to")
def an_option_that_mergekit_lacks(at: Trial) -> None:
    other = at.tmp / "other.safetensors"
    save_file({**load_file(at.base), "block.weight": torch.zeros(3, 3)}, other)
    models = [{"model": str(one), "parameters": {"weight": 0.5}} for one in (at.base, other)]
    result = at.refused("run", written(at, {"merge_method": "linear", "models": models}), "-o", at.out)
    runs = re.findall("^runs: (monosoup .*)$", result.err, re.M)[0]
    assert runs.startswith(f"{at.hint.split('`')[1]} ")
    option = re.search("--on-mismatch keep", result.err)[0]
    at.loads(*shlex.split(runs)[1:], *option.split())


@follows("api/recipe.py", "only -o may be elsewhere")
def an_output_elsewhere(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": str(at.out)}
    at.refused("run", written(at, content))
    at.loads("run", written(at, content), "-o", at.out)


@follows("api/complete.py", "pass --resume --overwrite to make it and what follows anew")
def a_step_that_changed(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    assert at.run("run", written(at, content), "-o", at.out).code == 0
    path = written(at, {**content, "energy": 0.5})
    at.refused("run", path, "-o", at.out, "--resume")
    at.loads("run", path, "-o", at.out, "--resume", "--overwrite")


@follows("api/complete.py", "if only the times are new, set the old ones")
def a_complete_step_whose_input_was_modified(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    path = written(at, content)
    assert at.run("run", path, "-o", at.out).code == 0
    os.utime(at.base)
    at.refused("run", path, "-o", at.out, "--resume")
    subprocess.run(shlex.split(at.hint.split("`")[1]), check=True)
    at.works("run", path, "-o", at.out, "--resume")
    os.utime(at.base)
    at.loads("run", path, "-o", at.out, "--resume", "--overwrite")


@follows("tensors/patterns.py", "the first that matches counts, so put it before them")
def layers_in_the_wrong_order(at: Trial) -> None:
    one, two = ("*weight", {"energy": 0.5}), ("block*", {"energy": 0.9})
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    path = written(at, {**content, "layers": dict([two, one, ("block.w*", {"rank": 1})])})
    at.refused("run", path, "-o", at.out)
    path = written(at, {**content, "layers": dict([("block.w*", {"rank": 1}), two, one])})
    at.loads("run", path, "-o", at.out)


@follows("api/layers.py", "give one value, or sweep over options that no layer sets")
def layers_with_several_values(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    path = written(at, {**content, "layers": {"block*": {"energy": [0.5, 0.9]}}})
    at.refused("run", path, "-o", at.out)
    path = written(at, {**content, "layers": {"block*": {"energy": 0.5}}})
    at.loads("run", path, "-o", at.out)


@follows("api/edit.py", "give one rank for all layers, or leave out their settings")
def layers_with_ranks_by_energy(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    content |= {"as_adapter": True, "layers": {"block*": {"rank": 2}}}
    at.refused("run", written(at, {**content, "adapter_energy": 0.9}), "-o", at.out)
    at.works("run", written(at, {**content, "adapter_rank": 2}), "-o", at.out)


@follows("api/recipe_file.py", "quote a pattern")
def a_pattern_without_quotes(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    path = Path(written(at, {**content, "exclude": "PATTERN"}))
    path.write_text(path.read_text().replace("PATTERN", "*bias*"))
    at.refused("run", path, "-o", at.out)
    path.write_text(path.read_text().replace("*bias*", at.hint.split(": ")[1].strip()))
    at.loads("run", path, "-o", at.out)


@follows("api/recipe.py", "a recipe has no options that say how it runs; pass …")
def an_option_of_the_run(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    at.refused("run", written(at, {**content, "workers": 1, "overwrite": True}))
    options = shlex.split(at.blanks[0])
    assert options == ["--workers", "1", "--overwrite"]
    at.loads("run", written(at, content), "-o", at.out, *options)


@follows("api/recipe.py", "a recipe has no options that say how it runs; leave it out")
def an_option_of_the_run_that_is_off(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    at.refused("run", written(at, {**content, "strict": False}))
    at.loads("run", written(at, content), "-o", at.out)


@follows("api/recipe.py", "a step needs a command")
def a_key_that_is_nearly_one(at: Trial) -> None:
    content = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    at.refused("run", written(at, {"step": [content]}))
    at.loads("run", written(at, {at.blanks[0]: [content]}), "-o", at.out)


@follows("api/recipe.py", "unknown command; did you mean")
def a_command_that_is_nearly_one(at: Trial) -> None:
    content = {"base": str(at.base), "finetuned": str(at.finetuned), "output": "out"}
    at.refused("run", written(at, {**content, "command": "edti"}))
    at.loads("run", written(at, {**content, "command": at.blanks[0]}), "-o", at.out)


@follows("api/recipe.py", "put step … before step …")
def steps_in_the_wrong_order(at: Trial) -> None:
    first = {
        "command": "wise",
        "base": str(at.base),
        "finetuned": str(at.finetuned),
        "output": "a",
        "alpha": 0.5,
    }
    last = {"command": "edit", "base": str(at.base), "finetuned": "a", "output": "b"}
    at.request.getfixturevalue("monkeypatch").chdir(at.tmp)
    at.refused("run", written(at, {"steps": [last, first]}))
    at.loads("run", written(at, {"steps": [first, last]}), output=at.tmp / "b")


@follows("api/recipe.py", "give others in the recipe, or pass --overwrite")
def outputs_that_are_there(at: Trial) -> None:
    step = {"command": "edit", "base": str(at.base), "finetuned": str(at.finetuned), "output": "a"}
    at.request.getfixturevalue("monkeypatch").chdir(at.tmp)
    path = written(at, {"steps": [step, {**step, "output": "b"}]})
    assert at.run("run", path).code == 0
    at.refused("run", path)
    at.loads("run", path, *at.options(), output=at.tmp / "b")
    at.loads("run", written(at, {**step, "output": "c"}), output=at.tmp / "c")
