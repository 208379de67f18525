"""`diff`: what differs between two checkpoints, against NumPy and what was changed."""

import csv
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import UsageError
from tests.models import MODELS, build
from tests.peft_adapters import make, merge, tensors_in


def write(path, tensors):
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture
def files(pair):
    return str(pair.base), str(pair.finetuned)


def test_the_measures_of_every_tensor(pair, run):
    result = run("diff", *pair, "--format", "json")
    assert result.code == 1
    found = json.loads(result.out)
    assert found == monosoup_cli.diff(*pair)
    assert not found["same"]
    before, after = load_file(pair.base), load_file(pair.finetuned)
    assert {one["name"] for one in found["values"]} == before.keys()
    for one in found["values"]:
        a, b = (tensors[one["name"]].double().numpy() for tensors in (before, after))
        assert one["changed"] == np.count_nonzero(a != b)
        assert one["max_abs"] == pytest.approx(np.abs(b - a).max(), rel=1e-15)
        assert one["relative"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-14)


def test_the_same_bytes_in_other_files(tmp_path, run):
    """Shards, names that a rename explains, and the model in memory do not count."""
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two", max_shard_size="20kB")
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 2
    result = run("diff", tmp_path / "one", tmp_path / "two")
    assert (result.code, "nothing differs" in result.out) == (0, True)
    model.model.save_pretrained(tmp_path / "headless")
    result = run("diff", tmp_path / "one", tmp_path / "headless", "--format", "json")
    found = json.loads(result.out)
    assert (found["only_in_a"], found["only_in_b"], found["values"]) == (["lm_head.weight"], [], [])


def test_headers_and_configs(tmp_path, run):
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "one")
    model.config.rope_theta, model.config.max_position_embeddings = 5.0, 128
    model.config.save_pretrained(tmp_path / "two")
    tensors = tensors_in(tmp_path / "one")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16().float().bfloat16()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:7].clone()
    tensors["new.weight"] = torch.ones(2)
    del tensors["model.embed_tokens.weight"]
    write(tmp_path / "two" / "model.safetensors", tensors)
    result = run("diff", tmp_path / "one", tmp_path / "two", "--headers", "--format", "json")
    found = json.loads(result.out)
    assert result.code == 1
    assert (found["only_in_a"], found["only_in_b"]) == (["model.embed_tokens.weight"], ["new.weight"])
    assert found["shapes"] == [{"name": "lm_head.weight", "a": [99, 32], "b": [7, 32]}]
    assert found["dtypes"] == [{"name": "model.norm.weight", "a": "F32", "b": "BF16"}]
    assert {"key": "max_position_embeddings", "a": 64, "b": 128} in found["config"]
    assert not found["same"]
    assert (found["compared"], found["values"]) == (None, [])
    table = run("diff", tmp_path / "one", tmp_path / "two")
    for words in (
        "only in A",
        "only in B",
        "lm_head.weight 99 × 32 → 7 × 32",
        "max_position_embeddings 64 → 128",
    ):
        assert words in " ".join(table.out.split())


def test_numbers_of_two_dtypes(tmp_path, run):
    exact = torch.randn(40, 3).bfloat16()
    write(tmp_path / "a.safetensors", {"w": exact})
    write(tmp_path / "b.safetensors", {"w": exact.float()})
    found = monosoup_cli.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (found["same"], len(found["dtypes"]), found["values"]) == (False, 1, [])
    write(tmp_path / "b.safetensors", {"w": exact.float() + torch.eye(40)[:, :3]})
    (one,) = monosoup_cli.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")["values"]
    assert one["changed"] == 3


def test_nan_zeros_and_codes(tmp_path):
    """NaN is like NaN; a zero of another sign is another byte and no other number; codes are counted."""
    nan, inf = math.nan, math.inf
    a = {"same": [nan, 1.0], "moved": [nan, 1.0], "inf": [inf, -inf], "zero": [0.0, 1.0]}
    b = {"same": [nan, 1.0], "moved": [nan, 2.0], "inf": [inf, 3.0], "zero": [-0.0, 1.0]}
    for name, tensors in (("a", a), ("b", b)):
        made = {key: torch.tensor(values) for key, values in tensors.items()}
        made["codes"] = torch.tensor([1, 2, 3 if name == "a" else 9], dtype=torch.int32)
        made["bits"] = torch.tensor([True, name == "a"])
        write(tmp_path / name, made)
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
    found = monosoup_cli.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    json.dumps(found, allow_nan=False)
    values = {one["name"]: (one["changed"], one["max_abs"], one["relative"]) for one in found["values"]}
    assert values == {
        "moved": (1, 1.0, None),
        "inf": (1, None, None),
        "zero": (0, 0.0, 0.0),
        "codes": (1, None, None),
        "bits": (1, None, None),
    }


@pytest.mark.parametrize("elements", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18])
def test_a_difference_at_every_end_of_a_block(tmp_path, elements):
    """Of what is compared, and of what is measured, at a time."""
    weights = torch.zeros(elements)
    write(tmp_path / "a.safetensors", {"w": weights})
    for at in {0, (1 << 18) - 1, 1 << 18, elements - 1} - {elements}:
        changed = weights.clone()
        changed[min(at, elements - 1)] = 1.0
        write(tmp_path / "b.safetensors", {"w": changed})
        (one,) = monosoup_cli.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")["values"]
        assert (one["changed"], one["max_abs"]) == (1, 1.0)


def test_a_model_and_an_adapter(tmp_path, run):
    """In either order, as if the adapter were merged."""
    folders = make("linear", tmp_path)
    base, merged = tensors_in(folders.base), merge(folders, tmp_path / "peft", torch.float64)
    for words, sign in ((folders, 1), (folders[::-1], -1)):
        found = monosoup_cli.diff(*words)
        moved = {name for name in base if not torch.equal(base[name].double(), merged[name])}
        assert {one["name"] for one in found["values"]} == moved
        for one in found["values"]:
            a, b = base[one["name"]].double(), merged[one["name"]]
            a, b = (a, b) if sign == 1 else (b, a)
            assert one["relative"] == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-6)
    assert run("diff", folders.adapter, folders.adapter).code == 0


def test_csv_and_exit_codes(files, tmp_path, run):
    result = run("diff", *files, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    found = sorted(monosoup_cli.diff(*files)["values"], key=lambda one: -one["relative"])
    assert [row["name"] for row in rows] == [one["name"] for one in found]
    assert [float(row["relative"]) for row in rows] == [one["relative"] for one in found]
    assert {row["shape"] for row in rows} >= {"8"}
    assert "json has what else differs" in result.err
    first = run("diff", *files, "--format", "csv", "--top", "1")
    assert [row["name"] for row in csv.DictReader(io.StringIO(first.out))] == [found[0]["name"]]
    assert run("diff", *files, "--exit-zero").code == 0
    quiet = run("diff", *files, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (1, "", "")
    missing = run("diff", files[0], tmp_path / "none.safetensors")
    assert (missing.code, "no such file or folder" in missing.err) == (2, True)
    assert run("diff", files[0]).code == 2
    few = run("diff", *files, "--top", "1")
    assert "2 more: --format csv has all of them" in few.out
    assert found[0]["name"] in few.out
    assert found[-1]["name"] not in few.out


def test_from_the_hub_equal_files_are_not_downloaded(hub, tmp_path, run):
    """The Hub knows the SHA-256 of large files. Of others, the tensors are read."""
    torch.manual_seed(0)
    tensors = {name: torch.randn(2000, 1500) for name in ("a", "b")}
    for name, change in (("one", 0.0), ("two", 1.0)):
        (tmp_path / name).mkdir()
        for number, key in enumerate(tensors):
            moved = tensors[key] + (change if key == "b" else 0.0)
            write(tmp_path / name / f"model-{number + 1:05}-of-00002.safetensors", {key: moved})
        places = {key: f"model-{number + 1:05}-of-00002.safetensors" for number, key in enumerate(tensors)}
        index = {"metadata": {}, "weight_map": places}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
        hub.add(f"org/{name}", tmp_path / name)
    result = run("diff", "org/one", "org/two", "--format", "json")
    assert result.code == 1, result.err
    assert [one["name"] for one in json.loads(result.out)["values"]] == ["b"]
    assert hub.bytes_sent("*model-00001*") < 300_000  # headers
    assert hub.bytes_sent("*model-00002*") > 20_000_000


def test_the_last_element_of_what_is_decoded(tmp_path):
    """Which is wider than its header says."""
    codes = torch.randn(256, 256).to(torch.float8_e4m3fn)
    scales = torch.full((2, 2), 0.5)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    for name, last in (("one", 1.0), ("two", 2.0), ("same", 1.0)):
        codes[-1, -1] = last
        (tmp_path / name).mkdir()
        tensors = {"layer.weight": codes, "layer.weight_scale_inv": scales}
        write(tmp_path / name / "model.safetensors", tensors)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (found,) = monosoup_cli.diff(tmp_path / "one", tmp_path / "two")["values"]
    assert (found["changed"], found["max_abs"]) == (1, 0.5)
    assert monosoup_cli.diff(tmp_path / "one", tmp_path / "same")["same"]


def test_adapters_of_another_scale_differ(tmp_path, run):
    """Their factors are the same bytes, and their updates are not."""
    folder = make("linear", tmp_path).adapter
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"lora_alpha": 64, "base_model_name_or_path": "elsewhere"}
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config))
    result = run("diff", folder, tmp_path / "other", "--format", "json")
    assert (result.code, json.loads(result.out)["config"]) == (1, [{"key": "lora_alpha", "a": 7, "b": 64}])


def test_a_single_file_has_no_configuration_to_differ(tmp_path, run):
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "model")
    assert run("diff", tmp_path / "model", tmp_path / "model" / "model.safetensors").code == 0


def test_refusals_in_python_name_its_keywords(files):
    with pytest.raises(UsageError, match=r"^rename xx=yy has no effect"):
        monosoup_cli.diff(*files, rename="xx=yy")
    with pytest.raises(TypeError, match="unexpected keyword argument 'renames'"):
        monosoup_cli.diff(*files, renames="xx=yy")


def test_headers_alone_do_not_say_that_two_are_the_same(files, run):
    result = run("diff", *files, "--headers", "--format", "json")
    found = json.loads(result.out)
    assert (result.code, found["same"], found["compared"]) == (0, None, None)
    table = run("diff", *files, "--headers").out.split("\n")
    assert [line.split() for line in table[-3:-1]] == [
        ["values", "not", "compared"],
        ["headers", "nothing", "differs"],
    ]


def test_names_of_either_may_be_replaced(tmp_path, run):
    weights = {f"old.{number}.weight": torch.randn(4, 4) for number in range(3)}
    write(tmp_path / "a.safetensors", weights)
    write(tmp_path / "b.safetensors", {name.replace("old", "new"): one for name, one in weights.items()})
    for words in ("ab", "ba"):
        pair = [tmp_path / f"{one}.safetensors" for one in words]
        assert run("diff", *pair).code == 1
        result = run("diff", *pair, "--rename", "old=new", "--format", "json")
        found = json.loads(result.out)
        assert (result.code, found["a"], found["b"]) == (0, *map(str, pair))
        refused = run("diff", *pair, "--rename", "older=new")
        assert (refused.code, "has no effect" in refused.err) == (2, True)


def test_an_adapter_over_a_base_with_other_names(tmp_path, run):
    """In either order, where names are those of the model."""
    folders = make("linear", tmp_path)
    inner = {f"wrapped.{name}": one for name, one in tensors_in(folders.base).items()}
    write(tmp_path / "inner.safetensors", inner)
    for words in (
        (tmp_path / "inner.safetensors", folders.adapter),
        (folders.adapter, tmp_path / "inner.safetensors"),
    ):
        result = run("diff", *words, "--rename", "wrapped.=", "--format", "json")
        assert result.code == 1, result.err
        assert len(json.loads(result.out)["values"]) == len(tensors_in(folders.adapter)) // 2


def test_what_an_adapter_is_merged_into_is_said(tmp_path, run):
    folders = make("linear", tmp_path)
    result = run("diff", *folders)
    assert f"note: {folders.adapter} is compared as merged into {folders.base}\n" in result.err
    assert "compared by their own tensors" in run("diff", folders.adapter, folders.adapter).err


def test_small_shares_and_absent_entries(tmp_path, run):
    """Of 4,000 elements one differs; one configuration has what the other has not."""
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        one = torch.ones(4000)
        one[0] += number
        dtype = torch.float32 if number else torch.bfloat16
        tensors = {"w": one, **{f"n.{n}": torch.ones(2, dtype=dtype) for n in range(9)}}
        write(tmp_path / name / "model.safetensors", tensors)
        entries = {"model_type": "x", **({"extra": None} if number else {})}
        (tmp_path / name / "config.json").write_text(json.dumps(entries))
    result = run("diff", tmp_path / "a", tmp_path / "b")
    words = " ".join(result.out.split())
    assert "w 4000 <0.1% 1 " in words
    assert "dtypes 9 tensors BF16 → F32" in words
    assert "config extra (absent) → null" in words
    assert monosoup_cli.diff(tmp_path / "a", tmp_path / "b")["config"] == [{"key": "extra", "b": None}]


def test_a_keyword_that_is_nearly_right(files):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'header'; did you mean 'headers'\?"):
        monosoup_cli.diff(*files, header=True)
    with pytest.raises(TypeError, match=r"'exclud'; did you mean 'exclude'\?"):
        monosoup_cli.edit(*files, "out", exclud="x")
    assert "errors" in dir(monosoup_cli)
    assert monosoup_cli.errors.UsageError is UsageError
