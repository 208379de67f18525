"""What is released: the files of the wheel, of the source distribution and of the image.

`make release-check` installs the wheel in an empty environment, and runs the README's first commands there.
"""

import email
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from monosoup_cli import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monosoup_cli"


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def build(source: Path, folder: Path, *targets: str) -> list[Path]:
    """Build as pip does, but for an environment of its own."""
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(
        [*words, *(f"-t{target}" for target in targets)], cwd=source, check=True, capture_output=True
    )
    return [next(folder.glob(f"*{end}")) for end in (".whl", ".tar.gz")[: len(targets)]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(*build(ROOT, tmp_path_factory.mktemp("dist"), "wheel", "sdist"))


def files_of(folder: Path) -> set[str]:
    """What is in a folder, relative to the root, without what Python and macOS leave there."""
    files = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "__pycache__" not in name and not name.endswith(".DS_Store")}


def test_the_wheel_has_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    info = f"monosoup-{__version__}.dist-info"
    licenses = {"LICENSE", "monosoup_cli/report/assets/uPlot.LICENSE"}
    assert names - files_of(PACKAGE) == {
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")),
        *(f"{info}/licenses/{name}" for name in licenses),
    }
    assert files_of(PACKAGE) <= names
    assert {"monosoup_cli/py.typed", "monosoup_cli/report/assets/page.html"} <= names


def test_the_source_distribution_makes_the_same_wheel(built, tmp_path):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    here = {"Dockerfile", "Makefile", "action.yml", ".ci/constraints.txt", *files_of(ROOT / "tests")}
    assert here <= names
    assert not [name for name in names if re.search(r"__pycache__|docs/_build|\.venv|\.pyc$", name)]
    [again] = build(tmp_path / f"monosoup-{__version__}", tmp_path / "dist", "wheel")
    assert (again.name, again.read_bytes()) == (built.wheel.name, built.wheel.read_bytes())


def metadata(built: Built) -> email.message.Message:
    with zipfile.ZipFile(built.wheel) as archive:
        return email.message_from_bytes(archive.read(f"monosoup-{__version__}.dist-info/METADATA"))


def test_what_messages_and_docs_install_is_what_there_is(built):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *PACKAGE.rglob("*.py")]
    text = "\n".join(page.read_text() for page in pages)
    extras = set(re.findall(r"monosoup\[(\w+)\]", text))
    assert extras
    assert extras <= set(metadata(built).get_all("Provides-Extra"))
    assert re.findall(r"(?<!un)install '?monosoup-cli", text) == []


def test_the_changelog_has_the_version():
    assert f"\n## [{__version__}] - 20" in (ROOT / "docs" / "changelog.md").read_text()


@pytest.mark.thorough
def test_the_first_commands_run_from_the_wheel(built, tmp_path):
    """In an environment with the wheel's files, and what it needs from this one's."""
    venv.create(tmp_path / "env", with_pip=False)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(site)
    (site / "more.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = tmp_path / "env" / "bin" / "python"
    command = python.with_name("monosoup")
    command.write_text(f"#!{python}\nfrom monosoup_cli.__main__ import run\nrun()\n")
    command.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PATH"] = f"{command.parent}:{env['PATH']}"
    where = [python, "-c", "import monosoup_cli; print(monosoup_cli.__file__)"]
    assert str(site) in subprocess.run(where, env=env, cwd=tmp_path, capture_output=True, text=True).stdout
    script = [python, "-I", ROOT / "tests" / "first_commands.py"]
    done = subprocess.run(script, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("monosoup") >= 10


def test_the_image_is_built_from_what_the_context_has():
    """.dockerignore lets through what the Dockerfile copies, and that is there."""
    copied = re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {word for line in copied for word in line.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines.index("*") < min(at for at, line in enumerate(lines) if line.startswith("!"))
    assert {line[1:] for line in lines if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)
