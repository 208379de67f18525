"""Progress from Python: the bars of tqdm, with the total that they need, and functions as before."""

import io
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import monosoup_cli
from tests import peft_adapters as adapters

PAGE = Path(monosoup_cli.__file__).parents[1] / "docs" / "python.md"


def nbytes(path):
    return sum(tensor.nbytes for tensor in load_file(path).values())


@pytest.fixture
def bars():
    """A class of bars of tqdm, which draw into the air; and what it has made."""

    made = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(file=io.StringIO(), mininterval=0, **options)
            made.append(self)

    Bar.made = made
    return Bar


def is_full(bar, total):
    shown = bar.fp.getvalue().split("\r")[-1]
    return (bar.n, bar.total) == (total, total) and ": 100%|" in shown and shown.endswith("\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bar_of_tqdm_is_full_at_the_end(pair, tmp_path, bars, workers):
    total = nbytes(pair.finetuned)
    monosoup_cli.edit(*pair, tmp_path / "out", progress=bars, workers=workers)
    monosoup_cli.inspect_spectrum(*pair, progress=bars, workers=workers)
    monosoup_cli.run(tmp_path / "out", output=tmp_path / "again", progress=bars)
    edit, inspected, run = bars.made
    assert [bar.desc for bar in bars.made] == ["edit", "inspecting", "edit"]
    assert is_full(edit, total)
    assert inspected.n == inspected.total > 0
    assert is_full(run, total)


def test_a_bar_of_parts_and_of_a_choice(pair, tmp_path, bars):
    total = nbytes(pair.finetuned)
    for part in ("1/2", "2/2"):
        monosoup_cli.edit(*pair, tmp_path / "out", part=part, progress=bars)
    monosoup_cli.finish(tmp_path / "out", progress=bars)
    *parts, finish = bars.made
    assert sum(one.total for one in parts) == total
    assert all(is_full(one, one.total) for one in parts)
    assert is_full(finish, total)
    other = tmp_path / "other.safetensors"
    save_file({name: one * 1.01 for name, one in load_file(pair.finetuned).items()}, other)
    monosoup_cli.sfgs(pair.base, [pair.finetuned, other], tmp_path / "some", threshold=0.1, progress=bars)
    assert is_full(bars.made[-1], 2 * total)
    monosoup_cli.sfgs.plan(pair.base, [pair.finetuned, other], tmp_path / "s", threshold=0.1, progress=bars)
    assert is_full(bars.made[-1], total)


def test_what_is_examined_has_a_bar_of_its_own(tmp_path, bars):
    lora = adapters.make("linear", tmp_path)
    monosoup_cli.edit(lora.base, lora.adapter, tmp_path / "whole")
    options = {"as_adapter": True, "adapter_rank": 2}
    monosoup_cli.edit(lora.base, tmp_path / "whole", tmp_path / "out", progress=bars, **options)
    examined, made = bars.made
    assert (examined.desc, made.desc) == ("examining", "writing")
    assert is_full(examined, examined.total)
    assert is_full(made, made.total)


def test_a_bar_is_closed_where_the_run_fails(pair, tmp_path, bars):
    class Failing(bars):
        def update(self, n=1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monosoup_cli.edit(*pair, tmp_path / "out", progress=Failing)
    assert Failing.made[0].fp.getvalue().endswith("\n")


def test_the_examples_of_the_page_run(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, path in (("base-model", pair.base), ("ft-model", pair.finetuned)):
        Path(name).mkdir()
        Path(name, "model.safetensors").write_bytes(Path(path).read_bytes())
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    chosen = [block for block in blocks if "progress=" in block]
    assert len(chosen) == 2
    for number, block in enumerate(chosen):
        exec(block.replace('"out"', f'"out-{number}"'), {"monosoup_cli": monosoup_cli})
    out, err = capsys.readouterr()
    assert "100%|" in err
    assert sorted(out.split()) == sorted(load_file(pair.finetuned))


@pytest.mark.parametrize(
    ("name", "arguments", "keyword", "meant"),
    [
        ("run", ["recipe.yaml"], "worker", "workers"),
        ("run", ["recipe.yaml"], "outptu", "output"),
        ("verify", ["out"], "inptus", "inputs"),
        ("compare", ["a"], "secnd", "second"),
        ("read_report", [], "pth", "path"),
        ("scores", ["a", "b", "c"], "metrc", "metric"),
        ("cka", [], "featurs", "features"),
        ("finish", ["out"], "overwrit", "overwrite"),
        ("info", [], "sorce", "source"),
        ("diff", ["a", "b"], "renme", "rename"),
        ("inspect_spectrum", ["a", "b"], "enrgy", "energy"),
        ("edit", ["a", "b", "c"], "enrgy", "energy"),
    ],
)
def test_an_unknown_keyword_is_told_with_the_nearest(name, arguments, keyword, meant):
    said = rf"^{name}\(\) got an unexpected keyword argument '{keyword}'; did you mean '{meant}'\?$"
    with pytest.raises(TypeError, match=said):
        getattr(monosoup_cli, name)(*arguments, **{keyword: 1})


def test_every_function_tells_unknown_keywords():
    for name in set(dir(monosoup_cli)) - {"__version__", "errors"}:
        with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'xyzzy'"):
            getattr(monosoup_cli, name)(*["recipe"] * (name == "run"), xyzzy=1)
