"""Names of tensors, of files and of folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.catalogue.table import Make, Row, accepted, file, refused, tensors, written
from tests.conftest import Result

NAMES = {
    "nothing": "",
    "a space": " ",
    "a line break": "a\nb.weight",
    "a carriage return": "a\rb.weight",
    "a NUL": "a\0b.weight",
    "an escape that clears the screen": "\x1b[2J.weight",
    "an escape that sets the title": "\x1b]0;evil\x07.weight",
    "an escape of one character": "\x9b2J.weight",
    "a bell and a backspace": "\x07\x08.weight",
    "text turned round": "\u202eevil\u202c.weight",
    "characters of no width": "a\u200b\u2060\ufeff.weight",
    "line separators": "a\u2028b\u2029.weight",
    "markup": "[red]a[/b][link=http://x].weight",
    "a link of a terminal": "\x1b]8;;http://x\x1b\\a.weight",
    "dots": "..",
    "a path": "../../canary",
    "an absolute path": "/etc/passwd",
    "a path of Windows": "C:\\a.weight",
    "a name of JSON": '{"a": 1}',
    "quotes": "a'b\"c.weight",
    "percent signs": "%s%n%x.weight",
    "braces": "{0.__class__}.weight",
    "a pattern": "[a-z]*?.weight",
    "an option": "--overwrite",
    "private characters": "\ue000\U000f0000.weight",
    "a flag of letters": "\U0001f1e6\U0001f1f6.weight",
    "many marks on a letter": "a" + "\u0301" * 200 + ".weight",
    "10 kB": "n" * 10_000 + ".weight",
    "a megabyte": "n" * 1_000_000 + ".weight",
    "100,000 dots": "." * 100_000,
    "100,000 components": "a." * 50_000 + "weight",
    "a number of 5000 digits": f"layers.{'9' * 5000}.weight",
    "a number of Arabic digits": "layers.\u0663.weight",
    "a superscript number": "layers.\u00b2.weight",
    "wrappers of a trainer": "_forward_module.module._orig_mod.model.weight",
    "all of the output": "__metadata__x",
}


def pair_with(*names: str, dtype: torch.dtype = torch.float32) -> Make:
    """Makes a base and a fine-tune that have these names besides."""

    def make() -> None:
        for seed, path in enumerate(("base.safetensors", "finetuned.safetensors")):
            tensors(path, seed)()
            noise = torch.Generator().manual_seed(seed)
            more = {name: torch.randn(4, 4, generator=noise).to(dtype) for name in names}
            save_file(load_file(path) | more, path)

    return make


def has(*names: str) -> Callable[[Result], object]:
    """Checks that the output has these tensors."""

    def check(result: Result) -> None:
        if Path("out/model.safetensors").exists():  # and not shards
            assert set(names) <= set(written())

    return check


EDITED = "edit base.safetensors finetuned.safetensors -o out"
LINES = (EDITED, "inspect-spectrum base.safetensors finetuned.safetensors --format csv")
AT_ONCE = (f"{EDITED} --dry-run --format json", f"{EDITED} --max-shard-size 100B")
TWINS = {
    "names that are twins in Unicode": ("caf\u00e9.weight", "cafe\u0301.weight"),
    "names that are twins in case": ("A.weight", "a.weight"),
    "names that look alike": ("a.weight", "\u0430.weight"),
    "names that are escapes of each other": ("\x1b.weight", "\\x1b.weight"),
    "a name that starts another": ("a", "a.weight"),
}


def missing(name: str) -> Make:
    """Makes a fine-tune whose tensor of this name has another shape than the base's."""

    def make() -> None:
        pair_with(name)()
        save_file(load_file("finetuned.safetensors") | {name: torch.ones(5, 4)}, "finetuned.safetensors")

    return make


def many_names() -> None:
    names = {f"layers.{number}.{'x' * 100}.weight": torch.ones(2, 2) for number in range(500)}
    save_file(names, "base.safetensors")
    save_file({name: one * 2 for name, one in names.items()}, "finetuned.safetensors")


PLACES = {
    "a space": "a b",
    "a line break": "a\nb",
    "an escape": "\x1b[2J",
    "text turned round": "\u202egpj",
    "markup": "[red][/b]",
    "an option": "./--overwrite",
    "a percent sign": "%s",
    "a glob": "*",
    "a quote": "a'b",
    "a tilde": "~",
    "a variable": "$HOME",
    "no UTF-8": os.fsdecode(b"\xff\xfe"),
    "200 characters": "n" * 200,
    "an emoji": "\U0001f600",
    "an at sign": "a@b",
    "the name of a repository": "org/name",
}


def placed(place: str) -> Row:
    paths = [shlex.quote(f"{place}/{one}.safetensors") for one in ("base", "finetuned")]

    def make() -> None:
        os.makedirs(place)
        for one in ("base", "finetuned"):
            Path(f"{one}.safetensors").rename(f"{place}/{one}.safetensors")

    return accepted(
        f"a folder with {next(name for name, one in PLACES.items() if one == place)}",
        make,
        lines=[f"edit {paths[0]} {paths[1]} -o out", f"inspect-spectrum {paths[0]} {paths[1]}"],
    )


WRITTEN_TO = {
    "a space": "o ut",
    "an escape": "\x1b[2Jout",
    "text turned round": "\u202eout",
    "markup": "[red]out",
    "200 characters": "o" * 200,
    "an emoji": "\U0001f600",
    "dots": "...",
    "a dash": "./-",
}

ROWS = [
    *(
        accepted(f"a tensor called {name}", pair_with(one), lines=LINES, after=has(one))
        for name, one in NAMES.items()
    ),
    accepted("names of all kinds, in shards and in a plan", pair_with(*NAMES.values()), lines=AT_ONCE),
    *(accepted(name, pair_with(*names), lines=LINES, after=has(*names)) for name, names in TWINS.items()),
    *(
        refused(f"a shape that differs, of {name}", missing(one), "[5, 4]", lines=[EDITED])
        for name, one in NAMES.items()
        if name
        in ("a line break", "an escape that clears the screen", "text turned round", "a megabyte", "nothing")
    ),
    accepted("500 long names", many_names, lines=[EDITED]),
    *(placed(place) for place in PLACES.values()),
    *(
        accepted(
            f"an output with {name}",
            file("", "x"),
            lines=[f"edit base.safetensors finetuned.safetensors -o {shlex.quote(place)}"],
        )
        for name, place in WRITTEN_TO.items()
    ),
    *(
        refused(
            f"a path that is not there, with {name}",
            file("", "x"),
            "no such file",
            lines=[f"edit base.safetensors {shlex.quote(f'{place}.safetensors')} -o out"],
        )
        for name, place in PLACES.items()
    ),
]

THOROUGH = {"a tensor called 100,000 dots", "a shape that differs, of a megabyte"}
