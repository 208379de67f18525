"""The page that builds a command line, in a real browser: what it builds, the parser of the shell accepts."""

import importlib.util
import shlex
from pathlib import Path

import pytest
import typer

from monosoup_cli.cli.app import app
from monosoup_cli.cli.jobs import JOBS

DOCS = Path(__file__).parents[1] / "docs"
GROUP = typer.main.get_command(app)
SOME = ("edit", "stock", "scores", "cka")
"""Commands with every kind of field; `make test-slow` has the rest."""
HOSTILE = "an 'odd' na$me; rm -rf \"~\" #"


def parsed(line):
    """The command of a command line, and its arguments as the parser has them."""
    program, name, *words = shlex.split(line)
    assert program == "monosoup"
    return name, GROUP.commands[name].make_context(name, words).params


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The form as a page of its own, beside what the site has in _static."""
    spec = importlib.util.spec_from_file_location("builder_page", DOCS / "builder_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    folder = tmp_path_factory.mktemp("site")
    (folder / "_static").symlink_to(DOCS / "_static")
    path = folder / "build.html"
    path.write_text(
        f"<!doctype html><html lang=en><title>Build</title><body>{page.form()}</body></html>", "utf-8"
    )
    return path.as_uri()


@pytest.fixture(scope="module")
def view(browser, address):
    """The page at 500 pixels, from a file. It asks for nothing elsewhere, and nothing on it goes wrong."""
    wrong = []
    context = browser.new_context(viewport={"width": 500, "height": 900})
    page = context.new_page()
    here = address.removesuffix("build.html")
    page.on("request", lambda request: None if request.url.startswith(here) else wrong.append(request.url))
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.goto(address)
    page.get_by_text("Options", exact=True).click()
    yield page
    context.close()
    assert wrong == []


def built(view):
    return view.locator("#build-line").text_content()


def job(view):
    return view.get_by_label("What do you want to do?")


def label(parameter):
    if parameter.param_type_name == "option":
        return ", ".join(sorted(parameter.opts, key=len))
    return parameter.metavar or parameter.name.upper()


def fill_in(field, parameter):
    """Do with a field what a person may do, and return the argument that this means."""
    kind, text = field.evaluate("field => field.type"), str(parameter.type_descriptor.annotation)
    if kind == "checkbox":
        field.check()
        return True
    if kind == "select-one":
        last = field.evaluate("field => field.options[field.options.length - 1].value")
        field.select_option(last)
        return False if last.startswith("--no-") else last
    if kind == "textarea":
        field.fill(f"{HOSTILE}\n\n -x \n")
        return [HOSTILE, "-x" if parameter.param_type_name == "option" else "./-x"]
    value = 7 if "int" in text else 0.5 if "float" in text else HOSTILE
    field.fill(str(value))
    return value


def plain(value):
    return [*value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize(
    "name", [one if one in SOME else pytest.param(one, marks=pytest.mark.thorough) for one in GROUP.commands]
)
def test_what_is_filled_in_arrives_at_the_parser(view, name):
    """Every field of a command is found by its label, and its value is the argument of the parser."""
    names = job(view).locator("option").all_text_contents()
    job(view).select_option(next(one for one in names if one.endswith(f" ({name})")))
    expected = {
        one.name: fill_in(view.get_by_label(label(one), exact=True), one)
        for one in GROUP.commands[name].params
    }
    command, found = parsed(built(view))
    assert command == name
    assert {key: plain(one) for key, one in found.items()} == expected
    assert view.locator("#build .field").count() == len(expected)
    assert view.evaluate("document.documentElement.scrollWidth") <= 500


def test_every_job_and_every_command_can_be_chosen(view):
    """A job begins as `monosoup` alone prints it; only its placeholders are named as the help names them."""
    names = job(view).locator("option").all_text_contents()
    of_jobs = [words.split()[0] for words in JOBS.values()]
    others = {name: one.get_short_help_str(80) for name, one in GROUP.commands.items() if name not in of_jobs}
    entries = [*zip(of_jobs, JOBS, strict=True), *others.items()]
    assert names == [f"{words[0].upper()}{words[1:].rstrip('.')} ({name})" for name, words in entries]
    for at, words in enumerate(JOBS.values()):
        job(view).select_option(str(at))
        given, printed = built(view).split()[1:], words.split()
        assert given[0] == printed[0]
        literal = [one for one in printed[1:] if not one[0].isupper()]
        assert sorted(one for one in given[1:] if not one[0].isupper() and one[0] != "[") == sorted(literal)


def test_by_keyboard_alone(view):
    """From job to copy with the keys: what is copied is what is shown, and the page says so."""
    view.context.grant_permissions(["clipboard-read", "clipboard-write"])
    job(view).focus()
    view.keyboard.type("go half")
    for text in ("base", "ft", "out"):
        view.keyboard.press("Tab")
        view.keyboard.type(text)
    assert built(view) == "monosoup wise base ft -o out --alpha 0.5"
    view.get_by_label("Show only options with").focus()
    view.keyboard.type("resume")
    shown = view.locator("#build-options .field:visible label").all_text_contents()
    assert "--resume" in shown
    assert len(shown) < 5
    view.keyboard.press("Tab")
    view.get_by_label("--resume", exact=True).focus()
    view.keyboard.press("Space")
    view.get_by_role("button", name="Copy").focus()
    view.keyboard.press("Enter")
    view.get_by_role("status").get_by_text("Copied.").wait_for()
    expected = "monosoup wise base ft -o out --alpha 0.5 --resume"
    assert view.evaluate("navigator.clipboard.readText()") == expected == built(view)
    view.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')) }")
    view.keyboard.press("Enter")
    view.get_by_role("status").get_by_text("Selected").wait_for()
    assert view.evaluate("getSelection().toString()").split() == expected.split()
