"""What every score command can rely on, and what none may do, whichever option names it."""

import shlex

import pytest

from monosoup_cli.errors import UsageError
from monosoup_cli.methods.score_option import commands_by_name
from monosoup_cli.pipeline.score_command import run_score_command
from tests.landscape import Landscape


@pytest.fixture
def land(tmp_path, monkeypatch):
    """In the folder where the commands run, so that all paths are relative."""
    monkeypatch.chdir(tmp_path)
    return Landscape(tmp_path / "land", finetuned=2)


SEARCH = "search land/base land/ft -o out --budget 2 --device cpu"
RUNS = {
    "--score": "wise land/base land/ft -o out --alpha 0.3,0.5 --device cpu --score CMD",
    "--score of a file": "wise land/base land/ft -o out.safetensors --alpha 0.3 --device cpu --score CMD",
    "search": f"{SEARCH} --score CMD",
    "--final-score": f"{SEARCH} --score 'test -e {{}} && echo 1' --final-score CMD",
    "--greedy": "soup land/ft land/ft1 -o out --greedy --device cpu --score-command CMD",
}


def words(name, command):
    return [command if word == "CMD" else word for word in shlex.split(RUNS[name])]


@pytest.mark.parametrize("name", RUNS)
def test_a_command_may_change_its_folder(run, land, name):
    """So does one that starts with cd to the folder of an evaluation harness."""
    done = run(*words(name, "cd / && ls -d {} && echo 1"))
    assert done.code == 0, done.err


FORMS = (
    "cat {}/score",
    "cat '{}'/score",
    'cat "{}"/score',
    "cat '{}/score'",
    'cat "{}/score"',
    'F={}; cat "$F/score"',
    "test 'now: '{}' is scored' && cat {}/score",
    'echo "$(cat {}/score)"',
    "test it\\'s && cat '{}/score' && cat \"{}/score\" # it's {}",
)
NESTED = (
    'sh -c "cat {}/score"',
    "sh -c \"cat '{}'/score\"",
    "sh -c 'cat {}/score'",
    "sh -c 'cat \"{}\"/score'",
    'echo "$(cat "{}/score")"',
    'f() { cat "${1#path=}"; }; f "path={}/score"',
    "f() { cat \"${1#path=}\"; }; f 'path={}/score'",
)


@pytest.mark.parametrize(
    "folder", ["plain", "with a space", "it's", 'a "b" $HOME `x` \\ c', "{} twice", "$(touch x)"]
)
def test_a_path_is_one_word_whether_it_is_quoted_or_not(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / folder / "model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "score").write_text("7\n")
    for command in (*FORMS, *NESTED):
        assert run_score_command(command, checkpoint) == 7.0, command
    assert [path.name for path in tmp_path.iterdir()] == [folder]  # no name was run


@pytest.mark.parametrize("name", ["model.safetensors", "a model.safetensors"])
def test_a_file_keeps_its_suffix(tmp_path, name):
    (tmp_path / name).write_text("7\n")
    assert run_score_command("case {} in *.safetensors) cat {};; esac", tmp_path / name) == 7.0


def test_a_folder_for_links_that_the_shell_would_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "$HOME").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "$HOME"))
    with pytest.raises(UsageError, match="TMPDIR has a character"):
        run_score_command("sh -c 'cat {}'", tmp_path / "a model")


@pytest.mark.parametrize(
    "command",
    [
        "PYTHON=python3 ~/eval.sh {}",
        "SPLIT=test $HOME/eval.sh {}",
        'SPLIT=test "$HOME/eval.sh" {}',
        "CUDA_VISIBLE_DEVICES=0 python eval.py {}",
    ],
)
def test_a_variable_before_a_command_is_no_name(command):
    assert commands_by_name(command) == {"score": command}


DAMAGES = {
    "one byte": 'printf x | dd of="$F" bs=1 seek=300 conv=notrunc status=none',
    "more bytes": 'echo >> "$F"',
    "another file": 'cp "$F" "$F.new" && mv "$F.new" "$F"',
    "none": 'rm "$F"',
}


def spoiling(land, damage, at=1):
    """A score command that damages what it scores, at its run of this number only."""
    log = shlex.quote(str(land.folder / "log"))
    find = "F={}; test -d $F && F=$F/model.safetensors"
    return f"{find}; echo >> {log}; test $(wc -l < {log}) = {at} && {damage}; echo 1"


@pytest.mark.parametrize(
    ("name", "damage", "at"),
    [
        *((name, "one byte", 3 if name == "--greedy" else 1) for name in RUNS),
        *(("--score", damage, 2) for damage in DAMAGES),
        *(("search", damage, 2) for damage in DAMAGES),
    ],
)
def test_a_command_that_changes_what_it_scores(run, land, tmp_path, name, damage, at):
    """It stops at once, and the resumed run is whole: `run` verifies it."""
    command = words(name, spoiling(land, DAMAGES[damage], at))
    refused = run(*command)
    assert refused.code == 1
    assert "model.safetensors" in refused.err or "draft-" in refused.err or "out.safetensors" in refused.err
    assert "the score command changed this file: F={}" in refused.err
    assert not [*tmp_path.glob("out*/model.safetensors"), *tmp_path.glob("out.safetensors")]
    assert len((land.folder / "log").read_text()) == at
    done = run(*command, "--resume")
    assert done.code == 0, done.err


def test_a_command_that_changes_a_side_file_or_another_checkpoint(run, land):
    """All that it was given is published, and other files of the sweep are, too."""
    for number, damage in enumerate(("echo >> {}/config.json", "echo >> {}/../alpha-0.5/model.safetensors")):
        refused = run(*words("--score", f"{damage}; echo 1"), *(["--resume"] if number else []))
        assert refused.code == 1
        assert f"{damage.rpartition('/')[2]}: the score command changed this file" in refused.err


@pytest.mark.parametrize("name", ["--score", "search", "--greedy"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_command_that_changes_an_input(run, land, name, file):
    refused = run(*words(name, f"echo >> {land.ft / file}; : {{}}; echo 1"))
    assert refused.code == 1
    assert f"error: land/ft/{file}: the score command changed this input: echo >>" in refused.err


def test_what_a_command_leaves_in_a_draft_or_links_is_its_own(run, land):
    """Two score commands may share a cache there, and a hard link changes no bytes."""
    saved = land.folder / "link"
    keep = f"echo >> {{}}/cache; ln -f {{}}/model.safetensors {shlex.quote(str(saved))}; echo 1"
    scores = ("--score", f"a={keep}", "--score", f"b={keep} #", "--prefer", "a")
    done = run(*shlex.split(SEARCH), *scores)
    assert done.code == 0, done.err
