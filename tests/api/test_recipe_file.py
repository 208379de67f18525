"""The YAML of recipes: what is wrong with it is said with its place, and nothing in it is there twice."""

import pytest

from monosoup_cli.api.recipe_file import read_recipe_file
from monosoup_cli.errors import UsageError

EDIT = "command: edit\n"
TWICE = {
    "in a recipe": (
        f"{EDIT}energy: 0.5\nbase: x\nenergy: 0.9\n",
        "line 4, column 1: 'energy' is there twice, first in line 2",
    ),
    "with dashes": (
        f"{EDIT}on-mismatch: skip\non_mismatch: skip\n",
        "line 3, column 1: 'on_mismatch' is there twice, first in line 2 as 'on-mismatch'",
    ),
    "in a step": ("steps:\n- command: edit\n  base: x\n  base: y\n", "line 4, column 3: 'base'"),
    "of layers": ("layers:\n  '*mlp*': {rank: 1}\n  '*mlp*': {rank: 2}\n", "line 3, column 3: '*mlp*'"),
    "in a layer": (f"{EDIT}layers:\n  'a': {{rank: 1, rank: 2}}\n", "line 3, column 18: 'rank'"),
    "of mergekit": (
        "merge_method: linear\nparameters:\n  weight: 1\n  weight: 2\n",
        "line 4, column 3: 'weight'",
    ),
    "as a number and as text": ("1: a\n'1': b\n", "line 2, column 1: '1'"),
    "in what is merged": ("x: {<<: {a: 1, a: 2}}\n", "line 1, column 16: 'a'"),
}
SLIPS = {
    "a glob": (
        f"{EDIT}layers:\n  *mlp*: {{rank: 1}}\n",
        "line 3, column 3: *mlp* is an alias to YAML, and recipes have none; quote a pattern: '*mlp*'",
    ),
    "a glob in a list": ("exclude: [*norm*]", "line 1, column 11: *norm* is an alias"),
    "a glob that is a name": ("exclude: *norm", "line 1, column 10: *norm is an alias"),
    "a tab": (f"{EDIT}\tbase: x\n", "line 2, column 1: a tab"),
    "an @": ("base: @x", "line 1, column 7: a value that begins with @ needs quotes"),
    "a bracket": (
        "base: x\nexclude: [a, b\noutput: y\n",
        "line 2, column 10: a list that begins with [ lacks its ]",
    ),
    "a brace": ("layers: {a: {rank: 1}\n", "line 1, column 9: a mapping that begins with { lacks its }"),
    "a colon": (f"{EDIT}base x\noutput: y\n", "line 2, column 1: a key lacks its colon"),
    "a colon too many": ("command: a: b", "line 1, column 11: a colon where no key can end"),
    "an indentation": (
        "steps:\n  - command: edit\n   base: x\n",
        "line 3, column 4: the indentation differs",
    ),
    "a list beside its key": (
        "steps: - command: edit",
        "line 1, column 8: the list begins on a line of its own",
    ),
    "a quote": ('base: "x\noutput: y\n', "line 1, column 7: a quote that does not end"),
    "a pattern in double quotes": (r'block_pattern: "h\.(\d+)"', "line 1, column 19: a backslash"),
    "text after quotes": ('base: "a" b\n', "line 1, column 11: the value has ended before"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document"),
    "a tag": ("a: !foo x", "line 1, column 4: a tag (!)"),
    "an equals sign": ("a: =", "line 1, column 4: a value = needs quotes"),
    "a template": ("output: {{x}}", "line 1, column 10: a key is a list or a mapping"),
    "no date": ("output: 2024-13-01", "line 1, column 9: a value that YAML cannot read; text needs quotes"),
    "a control character": ("a: 1\nb: \x01", "line 2: a control character"),
    "another slip": ("a: |x\n", "line 1, column 5: is no YAML (expected chomping"),
}


@pytest.mark.parametrize(("text", "words"), [*TWICE.values(), *SLIPS.values()], ids=[*TWICE, *SLIPS])
def test_what_is_wrong_has_its_place(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_recipe_file(path)
    assert str(refused.value).startswith(f"{path}: {words}")


def test_a_slip_shows_no_token(tmp_path):
    path, token = tmp_path / "recipe.yaml", f"hf_{'a' * 30}"
    for text in (f"a: *{token}", f"{token}: 1\n{token}: 2", f"a: !{token} b"):
        path.write_text(text)
        with pytest.raises(UsageError) as refused:
            read_recipe_file(path)
        assert token not in str(refused.value)


def test_what_is_merged_may_be_set_anew_and_numbers_are_those_of_python(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: {<<: {b: 1, c: 2}, b: 3}\nd: [5e-1, 1E3, -.5e+2, '5e-1', e5]\n")
    assert read_recipe_file(path) == {"a": {"b": 3, "c": 2}, "d": [0.5, 1000.0, -50.0, "5e-1", "e5"]}
