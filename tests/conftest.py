"""Fixtures for every room: a small real pair of checkpoints, and the command run in this process."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from monosoup_cli.cli.writing import WRITING
from tests import again
from tests.card import install as card
from tests.card.state import STATE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.hub import Hub

OWN_SETTINGS = ("NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
for name in list(os.environ):  # the user's own settings and token; the Hub's client reads them at import
    if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_")) or name in OWN_SETTINGS:
        del os.environ[name]

settings.register_profile("default", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emulated cards", "CUDA cards in software, where torch has no CUDA (tests/card)")
    group.addoption("--cards", type=int, default=0, metavar="N", help="run on N emulated cards")
    group.addoption("--card-when", choices=("late", "early", "random"), default="late", help="when they work")
    parser.addoption(
        "--again", action="store_true", help="make every output again from its report (tests/again.py)"
    )
    group.addoption("--card-seed", type=int, default=0, metavar="N", help="for --card-when random")


def pytest_configure(config: pytest.Config) -> None:
    """Install the cards before tests are collected. A real card takes the place of an emulated one."""
    if config.getoption("--again"):
        again.install()
    count = config.getoption("--cards")
    if count and torch.version.cuda is None:
        import bitsandbytes  # noqa: F401 (later, it would look for the kernels of a real card)

        card.install(count, when=config.getoption("--card-when"), seed=config.getoption("--card-seed"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist hands its counts to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["again"] = dict(again.COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    again.COUNTS.update(getattr(node, "workeroutput", {}).get("again", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, count in sorted(again.COUNTS.items()):
        terminalreporter.write_line(f"made again: {count} of {what}")


def pytest_runtest_teardown() -> None:
    """Have no test begin with what another one left in the cache, which is real memory on the host."""
    for each in STATE.cards:
        each.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    with again.once() if item.get_closest_marker("once") else nullcontext():
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system writes what fits, as much of a line as there is space for, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobody() -> Iterator[None]:
    """Have no rights. Who is not root has none to what is closed, either."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Pair(NamedTuple):
    base: Path
    finetuned: Path


Run = Callable[..., Result]
Refuse = Callable[..., str]


def small_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "block.weight": torch.randn(8, 6, generator=generator),
        "block.bias": torch.randn(8, generator=generator),
        "head.weight": torch.randn(4, 8, generator=generator).bfloat16(),
    }


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two real files of the same few tensors, in tmp_path."""
    made = Pair(tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    for seed, path in enumerate(made):
        save_file(small_tensors(seed), path, metadata={"format": "pt"})
    return made


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process. Every output that it writes must be as its report says."""

    def run(*argv: object) -> Result:
        words = [str(word) for word in argv]
        capfd.readouterr()
        result = Result(main(words), *capfd.readouterr())
        if result.code == 0 and words[0] in WRITING and not {"--dry-run", "--part"} & {*words}:
            assert_verified(words)
        return result

    return run


def assert_verified(words: Sequence[str]) -> None:
    """Check the output of a command line against its report, unless that went to stdout."""

    def value(*flags: str) -> str | None:
        return next((words[at + 1] for at, word in enumerate(words) if word in flags), None)

    output, report = value("-o", "--output"), value("--report")
    if output is not None and report != "-":
        assert monosoup_cli.verify(output, report=report)["differences"] == []


@pytest.fixture
def refuse(run: Run, tmp_path: Path) -> Refuse:
    """Run `edit` and return its error line, after checking that it refused as it should: with one
    line, and with nothing created or changed anywhere in tmp_path."""

    def refuse(base: object, finetuned: object, *options: object, output: object = None) -> str:
        before = everything_in(tmp_path)
        result = run("edit", base, finetuned, "-o", output or tmp_path / "out", *options)
        lines = [line for line in result.err.splitlines() if not line.startswith("note: ")]
        assert (result.code, result.out, len(lines)) == (1, "", 1), result
        assert lines[0].startswith("error: ")
        assert everything_in(tmp_path) == before
        return lines[0]

    return refuse


def everything_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every path below a folder, with what shows that a file is still the same and untouched."""
    found: dict[str, tuple[int, ...]] = {}
    for parent, folders, files in os.walk(folder):
        found |= {os.path.join(parent, name): () for name in folders}
        for name in files:
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Points the client to an address, with an empty cache and no token; it reads its environment at import,
    so by its constants."""

    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        _http.close_session()

    for name in list(os.environ):
        if name.startswith("HF_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # the library retries for half a minute
    yield point
    _http.close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: Callable[[str], None]) -> Iterator[Hub]:
    """A Hub, with the owner's token."""
    from tests.hub import Hub

    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for pages that are opened as a person opens them."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no chromium on the PATH to open pages in")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()
