"""The steps of action.yml, run by bash with the environment that the runner gives them."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step.get("id", "install"): step for step in ACTION["runs"]["steps"]}
NAME = "a b; $(touch hacked) `touch hacked`.safetensors"


class Done(NamedTuple):
    code: int
    log: str
    outputs: str
    summary: str


@pytest.fixture
def act(tmp_path):
    """Runs the step that runs monosoup, as the runner does."""
    command = tmp_path / "temp" / "monosoup" / "bin" / "monosoup"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m monosoup_cli "$@"\n')
    command.chmod(0o755)

    def act(**given: str) -> Done:
        inputs = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()} | given
        step, files = STEPS["run"], [tmp_path / "outputs", tmp_path / "summary"]
        for file in files:
            file.write_text("")
        env = os.environ | {"PYTHONPATH": str(ROOT), "RUNNER_TEMP": str(tmp_path / "temp")}
        env |= {"GITHUB_OUTPUT": str(files[0]), "GITHUB_STEP_SUMMARY": str(files[1])}
        env |= {name: replaced(text, inputs) for name, text in step["env"].items()}
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        folder = tmp_path / replaced(step["working-directory"], inputs)
        done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True)
        assert done.stderr == ""
        return Done(done.returncode, done.stdout, *(file.read_text() for file in files))

    return act


def replaced(text: str, inputs: dict[str, str]) -> str:
    """What the runner makes of `${{ inputs.… }}`."""
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], text)


def pair(folder, base, finetuned, size):
    """A base whose layer is named as the runner's commands are, and its update of this size."""
    generator = torch.Generator().manual_seed(0)
    weights, update = (torch.randn(24, 16, generator=generator) for _ in range(2))
    folder.mkdir(exist_ok=True)
    save_file({"::error::<b>": weights}, folder / base)
    save_file({"::error::<b>": weights + size * update}, folder / finetuned)


def test_a_run_with_doubts(act, tmp_path):
    """A path that a shell would run, modules beside it, another base, a name that the runner would obey."""
    pair(tmp_path / "models", NAME, "ft.safetensors", 3.0)
    for module in ("json", "secrets", "shlex"):  # which Python would run instead of its own
        (tmp_path / "models" / f"{module}.py").write_text("open('hacked', 'w')")
    done = act(command=f"edit '{NAME}' ft.safetensors", output="my out", **{"working-directory": "models"})
    assert done.code == 0, done.log
    assert (tmp_path / "models" / "my out" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("hacked"))
    assert done.outputs.splitlines()[1:2] == [str(tmp_path / "models" / "my out" / "monosoup_report.json")]
    assert "Is BASE the model that was fine-tuned?" in done.summary
    assert done.summary.startswith("<p>In doubt: the updates are as large as the weights")
    assert done.summary.count("Is BASE the model that was fine-tuned? If not") == 1
    assert done.summary.index("Is BASE the model") < done.summary.index("eff. rank")
    sentences, table = done.summary.split("\n\n<details open><summary>The report</summary>\n\n<pre>\n")
    assert all(line.startswith("<p>") and line.endswith("</p>") for line in sentences.splitlines())
    assert "\n\n" in table.partition("</pre>")[0]
    assert {token.type for token in MarkdownIt().parse(done.summary)} == {"html_block"}
    assert "::error::&lt;b&gt;" in table
    first, *shown, last = done.log.splitlines()
    assert first.startswith("::stop-commands::")
    assert last == f"::{first.removeprefix('::stop-commands::')}::"
    assert any(line.startswith("wrote") for line in shown)


def test_doubts_of_every_step_of_a_recipe(act, tmp_path):
    pair(tmp_path, "base.safetensors", "other.safetensors", 3.0)
    pair(tmp_path, "base.safetensors", "ft.safetensors", 0.1)
    steps = [
        {"command": "edit", "base": "base.safetensors", "finetuned": "other.safetensors", "output": "one"},
        {"command": "edit", "base": "base.safetensors", "finetuned": "ft.safetensors", "output": "two"},
    ]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"steps": steps}))
    done = act(command="run recipe.yaml", output="out")
    assert done.code == 0, done.log
    assert "note: the updates are as large as the weights" in done.summary
    assert "in doubt" not in done.summary.lower()


def test_a_run_into_a_file(act, tmp_path):
    pair(tmp_path, "base.safetensors", "ft.safetensors", 0.1)
    done = act(command="edit base.safetensors ft.safetensors", output=str(tmp_path / "out.safetensors"))
    assert (done.code, done.outputs.splitlines()[1:2]) == (0, [str(tmp_path / "out.report.json")]), done.log
    assert "in doubt" not in done.summary.lower()


def test_later_steps_have_the_program_on_their_path(tmp_path):
    """The environment and the installer are scripts that only say where the program goes."""
    fake = tmp_path / "python3"
    fake.write_text(
        '#!/bin/sh\nmkdir -p "$4/bin"\n'
        'for name in python uv; do printf "#!/bin/sh\\n" > "$4/bin/$name"; chmod +x "$4/bin/$name"; done\n'
        'echo \'echo "$UV_TOOL_BIN_DIR" > "$RUNNER_TEMP/installed"\' >> "$4/bin/uv"\n'
    )
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path), "TORCH": "cpu"}
    env |= {"GITHUB_PATH": str(tmp_path / "path"), "GITHUB_ACTION_PATH": str(ROOT), "VERSION": ""}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS["install"]["run"]]
    subprocess.run(words, env=env | {"PYTHON_VERSION": "3.13"}, check=True)
    assert (
        (tmp_path / "path").read_text()
        == (tmp_path / "installed").read_text()
        == f"{tmp_path}/monosoup/bin\n"
    )


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("edit missing.safetensors ft.safetensors", 1, "error: missing.safetensors: no such file or folder"),
        ("edit --frobnicate", 2, "there is no option --frobnicate"),
        ("edit base ft --report=x.json", 1, "error: the input command: leave out --report"),
        ("edit base ft --report -", 1, "error: the input command: leave out --report"),
        ("info 'missing", 1, "error: the input command: No closing quotation"),
    ],
)
def test_a_run_that_fails(act, command, code, says):
    done = act(command=command, output="out")
    assert (done.code, done.outputs) == (code, "")
    assert says in done.log
    assert done.summary.startswith("<p>error: ")
    assert says in html.unescape(done.summary)


def test_what_a_command_prints_without_an_output_is_in_the_summary(act, tmp_path):
    pair(tmp_path, "base.safetensors", "ft.safetensors", 0.1)
    done = act(command="info base.safetensors")
    assert (done.code, done.outputs) == (0, "")
    assert "<summary>What it printed</summary>\n\n<pre>\nmodel " in done.summary


def test_inputs_reach_a_script_as_variables_only():
    """What `${{ … }}` puts into a script would be run."""
    assert [name for name, step in STEPS.items() if "${{" in step["run"]] == []
    used = " ".join(
        text for step in STEPS.values() for text in (*step["env"].values(), step.get("working-directory", ""))
    )
    assert set(re.findall(r"inputs\.([\w-]+)", used)) == set(ACTION["inputs"])


def test_the_action_and_the_image_install_with_the_same_uv():
    found = {
        re.search(r"uv==([\d.]+)", (ROOT / name).read_text())[1] for name in ("action.yml", "Dockerfile")
    }
    assert len(found) == 1
