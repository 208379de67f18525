"""The Python functions: what they say about themselves, and what they make of their arguments."""

import inspect
import json
import os
import pydoc
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.api.command import kinds_of
from monosoup_cli.api.commands import COMMANDS
from monosoup_cli.api.progress import Watch
from monosoup_cli.cli.app import main
from monosoup_cli.declaration import keywords_of, taken
from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.errors import MonosoupError, ResourceError, ScoreError, UsageError
from monosoup_cli.values import StrPath
from tests import peft_adapters as adapters

FUNCTIONS = [getattr(monosoup_cli, name) for name in (*COMMANDS, "inspect_spectrum")]

EVERY = {name: getattr(monosoup_cli, name) for name in monosoup_cli.__all__[2:]}

every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)


@every_function
def test_help_says_what_a_function_returns(function):
    assert str(inspect.signature(function)).endswith("-> 'dict[str, Any]'")
    prepared = "Inspected" if function.__name__ == "inspect_spectrum" else "Planned"
    assert str(inspect.signature(function.prepare)).endswith(f"-> {prepared!r}")
    assert function.prepare.__name__ == f"prepare_{function.__name__}"
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    returned = text.split("Returns:")[1].split("Raises:")[0]
    assert "The report as a dict" in " ".join(returned.split())
    assert "report" not in function.prepare.__doc__.split("Returns:")[1].split("Raises:")[0]
    assert "Option(" not in text
    said, arguments = text.split("Args:")
    assert "Repeatable" not in arguments
    flags = {"--dry-run", *keywords_of(function.declared)}
    assert not flags & {*re.findall(r"--[a-z-]+", said.split("Example: ")[0] + arguments)}
    for name in inspect.signature(function).parameters:
        assert f"{name}: " in text.split("Args:")[1] or name == "watch"


@every_function
@pytest.mark.parametrize("keyword", ["foo", "options"])
def test_an_unknown_keyword_is_refused_as_python_does(function, keyword):
    with pytest.raises(TypeError) as caught:
        function("a", "b", "c", **{keyword: 1})
    assert str(caught.value) == f"{function.__name__}() got an unexpected keyword argument '{keyword}'"
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'foo'"):
        function.prepare("a", "b", "c", foo=1)


OF_KEYWORDS = {
    "choose another, or pass --overwrite": "choose another, or pass {overwrite=True|overwrite: true}",
    "--partial goes on": "{partial=True|partial: true} goes on",
    "--rank 32 is a start": "{rank=32|rank: 32} is a start",
    "add --rename OLD=NEW for each": "add {rename='OLD=NEW'|rename: OLD=NEW} for each",
    "--exclude leaves it": "exclude leaves it",
    "--exclude '*x*' leaves it": "{exclude='*x*'|exclude: '*x*'} leaves it",
    "--on-nonfinite keep leaves it": "{on_nonfinite='keep'|on_nonfinite: keep} leaves it",
    "one alone with --parts unet": "one alone with {parts='unet'|parts: unet}",
    "--adapter-rank and --adapter-energy": "adapter_rank and adapter_energy",
    "use --device cpu (or not)": "use {device='cpu'|device: cpu} (or not)",
    "run `monosoup edit --overwrite`": "run `monosoup edit --overwrite`",
    "another's --unknown 3 stays": "another's --unknown 3 stays",
}


@pytest.mark.parametrize("hint", OF_KEYWORDS)
def test_a_hint_has_the_syntax_of_its_reader(hint):
    parts = [part.split("|") for part in re.split("[{}]", OF_KEYWORDS[hint])]
    for number, is_in_yaml in enumerate((False, True)):
        error = MonosoupError("a problem", hint=hint)
        error.rename_options(keywords_of(monosoup_cli.edit.declared, is_in_yaml=is_in_yaml))
        assert error.hint == "".join(part[min(number, len(part) - 1)] for part in parts)


def test_an_empty_fact_is_said_as_such():
    assert (
        str(MonosoupError("other files", expected="", found="a")) == "other files: expected nothing, found a"
    )


def test_a_problem_names_keywords_alone():
    error = MonosoupError("--as-adapter needs --adapter-rank or --wise 1")
    error.rename_options(keywords_of(monosoup_cli.edit.declared))
    assert error.problem == "as_adapter needs adapter_rank or wise 1"


def test_a_missing_argument_is_refused_as_python_does():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'output'"):
        monosoup_cli.edit("a", "b")


NEEDED = {
    "sfgs": {"threshold": 0.2},
    "wise": {"alpha": 0.5},
    "lines": {"alpha": 0.5, "beta": 0.5},
    "extract": {"rank": 2},
    "scores": {"finetuned": "missing"},
}
VALUES = {
    "nothing": None,
    "true": True,
    "text": "missing",
    "whole": 3,
    "half": 0.5,
    "no list": [],
    "texts": ["missing"],
    "halves": [0.5],
    "nothings": [None],
    "dict": {"a": "b"},
    "bytes": b"a",
    "set": {0.5},
    "object": object(),
}
RIGHT = {
    type(None): {"nothing"},
    bool: {"true"},
    int: {"whole"},
    float: {"whole", "half"},
    str: {"text"},
    os.PathLike[str]: set(),
    Sequence[str]: {"no list", "texts"},
    Sequence[StrPath]: {"no list", "texts"},
    Sequence[float]: {"no list", "halves"},
    Mapping[str, float]: {"dict"},
    type[Any]: set(),
    Callable[[Any, bool], None]: set(),
}
"""Which values are of the types that arguments have; of choices, there is none."""


def right(kind):
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else [kind]
    return {name for one in members if get_origin(one) is not Literal for name in RIGHT[one]}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_value_is_refused_by_the_name_of_its_argument_if_it_is_of_another_type(name, tmp_path, monkeypatch):
    """With a right one, the call gets further: to its range, or to the input, which is not there."""
    monkeypatch.chdir(tmp_path)
    function = EVERY[name]
    signature = inspect.signature(function)
    needed = {
        one: ["missing", "another"] if one == "finetuned" else "missing"
        for one, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
    } | NEEDED.get(name, {})
    kinds = {**kinds_of(signature, inspect.unwrap(function)), "progress": Watch, "watch": Watch}
    for keyword in signature.parameters.keys() - {"layers"}:
        fits = right(kinds[keyword]) | ({"nothing"} if signature.parameters[keyword].default == () else set())
        for word, value in VALUES.items():
            with pytest.raises(MonosoupError) as caught:
                function(**{**needed, keyword: value})
            is_refused = str(caught.value).startswith(f"{keyword} cannot be ")
            assert is_refused == (word not in fits), (keyword, value, caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base": None}, "base cannot be None: expected a path"),
        ({"finetuned": ["a", 3]}, "finetuned cannot be ['a', 3]: expected a path or a list of paths"),
        ({"progress": True}, "progress cannot be True: expected a class such as tqdm or a function"),
        ({"weights": "3,1,1"}, "weights cannot be '3,1,1': expected a list of floats"),
        ({"include": b"a"}, "include cannot be b'a': expected a string or a list of strings"),
        ({"dtype": None}, "dtype cannot be None: expected keep, float32, bfloat16 or float16"),
        ({"partial": 1}, "partial cannot be 1: expected True or False"),
        ({"max_shard_size": 0.5}, "max_shard_size cannot be 0.5: expected a string or an int"),
        ({"finetuned": {"a"}}, "finetuned cannot be {'a'}: expected a path or a list of paths"),
        ({"weights": frozenset([1])}, "weights cannot be frozenset({1}): expected a list of floats"),
        ({"weights": torch.tensor(0.5)}, "weights cannot be tensor(0.5000): expected a list of floats"),
        ({"weights": np.array(0.5)}, "weights cannot be array(0.5): expected a list of floats"),
    ],
)
def test_an_error_about_a_value_says_what_is_taken(arguments, said):
    for function in (monosoup_cli.merge, monosoup_cli.merge.prepare, monosoup_cli.merge.plan):
        with pytest.raises(UsageError) as caught:
            function(**{"base": "a", "finetuned": "b", "output": "c", **arguments})
        assert str(caught.value) == said


def test_what_has_no_end_or_is_no_list_is_refused_by_its_name(tmp_path):
    (tmp_path / "globs").touch()
    with (tmp_path / "globs").open() as file:
        wrong = {"finetuned": iter([3]), "include": iter([3]), "exclude": file}
        for keyword, value in wrong.items():
            with pytest.raises(UsageError, match=f"^{keyword} cannot be <"):
                monosoup_cli.merge(**{"base": "a", "finetuned": "b", "output": "c", keyword: value})
    for function in (monosoup_cli.soup, monosoup_cli.sfgs):
        base = [] if function is monosoup_cli.soup else ["base"]
        options = {"greedy": True} if function is monosoup_cli.soup else {"threshold": 0.5}
        with pytest.raises(
            UsageError, match=r"^scores cannot be {3: 1.0}: expected a path or a dict of floats"
        ):
            function(*base, ["a", "b"], tmp_path / "out", scores={3: 1.0}, **options)


def test_a_type_without_words_is_called_by_its_name():
    with pytest.raises(UsageError, match=r"^n cannot be 3: expected date$"):
        taken("n", 3, date)


@pytest.fixture
def three(tmp_path, monkeypatch):
    """Three small files in the current folder; their names."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("base", "ft1", "ft2")):
        generator = torch.Generator().manual_seed(number)
        save_file({"w": torch.randn(6, 5, generator=generator)}, tmp_path / f"{name}.safetensors")
    return [f"{name}.safetensors" for name in ("base", "ft1", "ft2")]


def test_one_checkpoint_under_two_spellings_is_given_twice(three, tmp_path):
    base, first, second = three
    (tmp_path / "link.safetensors").symlink_to(first)
    for other in (first, f"./{first}", tmp_path / first, "link.safetensors"):
        with pytest.raises(UsageError, match="is given twice"):
            monosoup_cli.stock(base, [first, second, other], "out")
    assert not (tmp_path / "out").exists()
    # ids on the Hub are names, and not paths
    for other in ("org/name", "hf://org/name"):
        with pytest.raises(UsageError, match="is given twice"):
            monosoup_cli.soup(["org/name", other], "out")
    shutil.copy(first, "copy.safetensors")  # equal bytes are two checkpoints
    monosoup_cli.stock(base, [first, "copy.safetensors"], "out")


def test_the_card_repeats_the_size_of_shards(three, tmp_path):
    base, first, _ = three
    (tmp_path / "in").mkdir()
    shutil.copy(first, tmp_path / "in" / "model.safetensors")
    report = monosoup_cli.edit(base, "in", "out", max_shard_size="1KB")
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [line.split() for line in card.splitlines() if line.startswith("    monosoup ")]
    assert "--max-shard-size 1KB" in " ".join(line)
    again = [word if word != "out" else "again" for word in line[1:]]
    assert main(again) == 0
    files = report["output"]["files"]
    assert json.loads((tmp_path / "again" / "monosoup_report.json").read_text())["output"]["files"] == files


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return adapters.make("linear", tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("is_extracted", [False, True])
def test_the_card_of_an_adapter_says_what_an_adapter_is(lora, tmp_path, is_extracted):
    if is_extracted:
        monosoup_cli.edit(lora.base, lora.adapter, tmp_path / "whole")
        source, options = tmp_path / "whole", {"as_adapter": True, "adapter_rank": 2}
    else:
        source, options = lora.adapter, {"as_adapter": True}
    monosoup_cli.edit(lora.base, source, tmp_path / "out", **options)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "added back" not in card
    assert "The fine-tuned weights" not in card
    opening = "A LoRA adapter extracted from" if is_extracted else "A LoRA adapter with edited updates."
    assert f"\n{opening}" in card
    assert "--as-adapter" in card
    monosoup_cli.edit(lora.base, lora.adapter, tmp_path / "merged")
    assert "added back to the base" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize("case", ["linear", "conv1d of gpt2", "experts", "experts, transposed", "embedding"])
def test_an_adapter_is_inspected_without_its_base(case, tmp_path, capsys):
    """Everything is as with the base, but for what compares with it."""
    lora = adapters.make(case, tmp_path)
    alone = monosoup_cli.inspect_spectrum("-", lora.adapter, values=True)
    beside = monosoup_cli.inspect_spectrum(lora.base, lora.adapter, values=True)

    def measured(report):
        """By size: the names and the order are those of the adapter, or of the base."""
        layers = report["layers"]
        parts = [part for layer in layers for part in layer.get("slices", [layer]) if part["reason"] is None]
        return sorted(parts, key=lambda part: part["sigma_max"])

    found, expected = measured(alone), measured(beside)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["relative_update"] is None
        assert other["relative_update"] > 0.0
        assert one["k"] == other["k"]
        for name in ("sigma_max", "update_norm", "effective_rank", "lambda_high"):
            assert one[name] == pytest.approx(other[name], rel=1e-9), name
        assert one["singular_values"] == pytest.approx(other["singular_values"], rel=1e-9, abs=1e-12)
    assert alone["arguments"]["base"] == "-"
    assert [entry["role"] for entry in alone["inputs"]] == ["finetuned"]
    assert main(["inspect-spectrum", "-", str(lora.adapter)]) == 0
    assert "layer" in capsys.readouterr().out
    # nothing is said about a base, which there is not
    assert "wrong_base" not in {finding["kind"] for finding in alone["verdict"]["findings"]}


DORA = ["dora", "dora of gpt2", "dora of an embedding", "dora of a convolution, 2-d"]


@pytest.mark.parametrize("case", DORA)
def test_dora_is_inspected_only_with_its_base(case, tmp_path, capsys):
    lora = adapters.make(case, tmp_path)
    capsys.readouterr()
    assert main(["inspect-spectrum", "-", str(lora.adapter)]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: {lora.adapter}: tensor '")
    assert stderr.endswith("a DoRA update depends on the base; give the base instead of -\n")
    assert main(["inspect-spectrum", str(lora.base), str(lora.adapter)]) == 0


def test_a_whole_checkpoint_is_not_inspected_without_a_base(three, capsys):
    assert main(["inspect-spectrum", "-", three[1]]) == 2
    assert "needs a base" in capsys.readouterr().err


def test_scores_are_only_called_kept_where_there_are_some(three, tmp_path):
    """The first one that fails has none before it."""
    _, *sources = three
    seen = tmp_path / "seen"
    fails_at_second = f"test -e {seen} && exit 3; touch {seen}; : {{}}; echo 1"
    for command, has_scores in ((": {}; exit 3", False), (fails_at_second, True)):
        with pytest.raises(ScoreError) as caught:
            monosoup_cli.soup(sources, "out", greedy=True, score_command=command)
        assert ("what is finished is kept" in str(caught.value)) == has_scores
        with suppress(FileNotFoundError):
            shutil.rmtree("out")
        for partial in tmp_path.glob(".out*"):
            shutil.rmtree(partial)


def test_an_unknown_device_is_refused_before_the_output_is_looked_at(tmp_path):
    with pytest.raises(UsageError, match="unknown device"):
        monosoup_cli.edit.prepare("a", "b", tmp_path, device="foo")


def test_scores_without_greedy_are_refused_before_they_are_read(tmp_path):
    with pytest.raises(UsageError, match="score_command, scores and accept need greedy"):
        monosoup_cli.soup(["a", "b"], tmp_path / "out", scores=tmp_path / "missing.json")


def test_a_greedy_soup_needs_no_callback(tmp_path):
    names = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for name in names:
        save_file({"w": torch.ones(2, 2)}, name)
    monosoup_cli.soup(names, tmp_path / "out", greedy=True, score_command="test -e {} && echo 1", watch=None)
    assert any((tmp_path / "out").iterdir())


def test_numbers_of_numpy_iterators_and_none_are_reported_as_plain_values(three, tmp_path):
    """The report is JSON."""
    base, *sources = three
    more = {"include": iter(["w"]), "exclude": None, "workers": np.int32(1)}
    edited = monosoup_cli.edit(base, iter(sources), "edited", rank=np.int64(2), **more)["arguments"]
    expected = {"finetuned": sources, "include": ["w"], "exclude": [], "workers": 1, "rank": 2}
    assert {name: edited[name] for name in expected} == expected
    for number, weights in enumerate((iter([1, 2]), np.array([1, 2]), torch.tensor([1, 2]).tolist())):
        soup = monosoup_cli.soup(sources, f"soup{number}", weights=weights)
        assert soup["arguments"]["weights"] == [1, 2]
    layers = {"w": {"energy": np.float32(0.5)}}
    of_layers = monosoup_cli.edit(base, sources[0], "layers", energy=np.float32(0.25), layers=layers)
    assert of_layers["arguments"]["energy"] == 0.25
    assert json.loads((tmp_path / "layers" / "monosoup_report.json").read_text())["arguments"]["layers"] == {
        "w": {"energy": 0.5}
    }
    scores = {Path(source): 1.0 for source in sources}
    greedy = monosoup_cli.sfgs(base, map(Path, sources), "greedy", scores=scores, threshold=0.5)
    assert greedy["arguments"]["scores"] == dict.fromkeys(sources, 1.0)


def test_an_iterator_of_globs_is_reported_as_it_was_given(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "ft"):
        tensors = {"layers.0.w": torch.randn(2, 6, 5, generator=generator)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = tmp_path / "base.safetensors", tmp_path / "ft.safetensors"
    report = monosoup_cli.edit(*paths, tmp_path / "out", stacked=(glob for glob in ("*.w",)))
    assert report["arguments"]["stacked"] == ["*.w"]
    assert len(report["layers"][0]["slices"]) == 2


def test_memory_for_what_is_examined_is_checked_before_it_is_read(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "ft"):
        tensors = {"layers.0.up.weight": torch.randn(60, 50, generator=generator)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 1000)
    with pytest.raises(ResourceError, match="does not fit into the memory of the host"):
        monosoup_cli.edit.prepare(
            tmp_path / "base.safetensors",
            tmp_path / "ft.safetensors",
            tmp_path / "out",
            as_adapter=True,
            adapter_energy=0.9,
            device="cpu",
        )


def test_messages_name_options_as_they_were_typed(three, tmp_path, capsys):
    base, first, second = three
    cases = [
        (
            lambda: monosoup_cli.edit(base, first, "out", energy=2.0),
            ["edit", base, first, "--energy", "2"],
            "energy is out of range",
        ),
        (
            lambda: monosoup_cli.edit(base, first, "out", adapter_rank=2),
            ["edit", base, first, "--adapter-rank", "2"],
            "adapter-rank and --adapter-energy need --as-adapter",
        ),
        (
            lambda: monosoup_cli.soup([first, second], "out", max_shard_size="x"),
            ["soup", first, second, "--max-shard-size", "x"],
            "max-shard-size is not a size",
        ),
        (
            lambda: monosoup_cli.inspect_spectrum(base, first, layer="nothing"),
            ["inspect-spectrum", base, first, "--layer", "nothing"],
            "layer 'nothing' matches no tensor",
        ),
    ]
    for call, words, named in cases:
        out = [] if words[0] == "inspect-spectrum" else ["-o", "out"]
        assert main([*words, *out]) != 0
        shown = capsys.readouterr().err
        assert f"--{named}" in shown
        with pytest.raises(UsageError) as caught:
            call()
        assert f"error: {caught.value}\n" == shown.replace("--", "").replace(
            named.replace("--", ""), named.replace("--", "").replace("-", "_")
        )


def test_the_command_of_the_user_is_quoted_as_it_is(three):
    _, first, second = three
    command = "false --rank 3 {}"
    with pytest.raises(ScoreError) as caught:
        monosoup_cli.soup([first, second], "out", greedy=True, score_command=command)
    assert "false --rank 3 " in str(caught.value)


def test_the_functions_are_found_by_completion_and_help():
    assert {*COMMANDS, "inspect_spectrum"} <= set(dir(monosoup_cli))
    assert "edit(base" in pydoc.plain(pydoc.render_doc(monosoup_cli))
