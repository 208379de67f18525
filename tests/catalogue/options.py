"""Command lines: numbers, choices, patterns and paths that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from tests.catalogue.table import Make, file, refused

EDIT = "edit base.safetensors finetuned.safetensors -o out"
PAIR = "base.safetensors finetuned.safetensors"
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e999",
    "x",
    "''",
    "0x1",
    "1,,2",
    "1:2",
    "0:1:0",
    "0:1:1e-9",
    "0:1:0.3",
    "1:0:0.1",
    "٣x",
)
USAGE: dict[str, str] = {
    "nothing": "edit",
    "a base alone": "edit base.safetensors",
    "no output": f"edit {PAIR}",
    "a command that is none": "nonsense",
    "an option that is none": f"{EDIT} --nonsense",
    "one fine-tune for stock": f"stock {PAIR} -o out",
    "one fine-tune for a soup": "soup finetuned.safetensors -o out",
    "a fine-tune twice": "soup finetuned.safetensors ./finetuned.safetensors -o out",
    "an empty base": "edit '' finetuned.safetensors -o out",
    "two ways to split": f"{EDIT} --energy 0.5 --rank 3",
    "a rank of 0": f"{EDIT} --rank 0",
    "a rank of a fraction": f"{EDIT} --rank 1.5",
    "a rank fraction of 2": f"{EDIT} --rank-fraction 2",
    "no workers": f"{EDIT} --workers 0",
    "workers of text": f"{EDIT} --workers x",
    "a device that is none": f"{EDIT} --device toaster",
    "a card of a negative number": f"{EDIT} --device cuda:-1",
    "a pattern that matches nothing": f"{EDIT} --include 'nothing*'",
    "a pattern of control characters": f"{EDIT} --include $'\\x1b[2J'",
    "a dtype that is none": f"{EDIT} --dtype int8",
    "a choice that is none": f"{EDIT} --on-mismatch x",
    "a size of text": f"{EDIT} --max-shard-size big",
    "a size of nothing": f"{EDIT} --max-shard-size 0",
    "a size that is negative": f"{EDIT} --max-shard-size=-5GB",
    "a size of NaN": f"{EDIT} --max-shard-size nan",
    "an infinite size": f"{EDIT} --max-shard-size infGB",
    "a rename without an equals sign": f"{EDIT} --rename x",
    "a sweep into a file": f"wise {PAIR} -o out.safetensors --alpha 0.1,0.2",
    "public without a push": f"{EDIT} --public",
    "weights of text": f"soup {PAIR} -o out --weights 1,x",
    "too few weights": f"soup {PAIR} -o out --weights 1",
    "weights of NaN": f"soup {PAIR} -o out --weights 1,nan",
    "weights of nothing": f"soup {PAIR} -o out --weights 0,0",
    **{f"energy {one}": f"{EDIT} --energy={one}" for one in NUMBERS},
    **{f"wise {one}": f"{EDIT} --wise={one}" for one in NUMBERS},
    **{f"alpha {one}": f"wise {PAIR} -o out --alpha={one}" for one in NUMBERS},
    **{f"an update of at least {one}": f"{EDIT} --min-update={one}" for one in ("nan", "inf", "-1", "x")},
    **{
        f"lines of {one}": f"lines {PAIR} -o out --alpha={one} --beta=1"
        for one in ("nan", "inf", "1e999", "x")
    },
    **{f"a threshold {one}": f"sfgs {PAIR} -o out --threshold={one}" for one in ("nan", "inf", "x", "2")},
}


def ready(kind: str, path: str = "out") -> Make:
    """Makes something in the place of the output."""

    def make() -> None:
        if kind == "file":
            Path(path).write_text("mine")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            Path("elsewhere").mkdir()
            Path(path).symlink_to("elsewhere")
        elif kind == "broken link":
            Path(path).symlink_to("gone")
        elif kind == "device":
            Path(path).symlink_to("/dev/zero")
        else:
            Path(path).mkdir()
            Path(path, "thesis.tex").write_text("years of work")

    return make


KINDS = ("file", "fifo", "link", "broken link", "device", "foreign")
NOWHERE = {
    "a folder that is not there": "absent/out",
    "a file as a folder": "base.safetensors/out",
    "a name of 300 bytes": "n" * 300,
    "the working folder": ".",
    "nothing": "''",
    "the root": "/",
    "a folder of the kernel": "/proc/monosoup-out",
    "the folder above": "..",
}
REPORTS = {
    "an input": "finetuned.safetensors",
    "the output": "out",
    "a file in the output": "out/model.safetensors",
    "a folder that is not there": "absent/r.json",
    "a folder": ".",
    "a device": "/dev/null --overwrite",
    "nothing": "''",
}

ROWS = [
    *(refused(name, file("", "x"), lines=[line], code=2) for name, line in USAGE.items()),
    *(
        refused(f"{kind} in the place of the {what}", ready(kind, path), path, lines=[f"{EDIT} --overwrite"])
        for what, path in (("output", "out"), ("work", "out.partial"))
        for kind in KINDS
    ),
    *(
        refused(f"an output at {name}", file("", "x"), lines=[f"edit {PAIR} -o {place}"])
        for name, place in NOWHERE.items()
    ),
    *(
        refused(
            f"{kind} in the place of the report",
            ready(kind, "r.json"),
            "r.json",
            "not a regular file",
            lines=[f"{EDIT} --report r.json", f"{EDIT} --report r.json --overwrite"],
        )
        for kind in KINDS
        if kind != "file"
    ),
    *(
        refused(
            f"{kind} in the place of the page",
            ready(kind, "p.html"),
            "p.html",
            lines=[f"inspect-spectrum {PAIR} --html p.html"],
        )
        for kind in KINDS
        if kind != "file"
    ),
    *(
        refused(f"a report at {name}", file("", "x"), "report", lines=[f"{EDIT} --report {place}"])
        for name, place in REPORTS.items()
    ),
]
