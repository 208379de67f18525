"""`--split-fused`: what is stored in one tensor is edited as if it were stored apart."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.cli.app import main
from monosoup_cli.errors import MismatchError, ResumeError, UsageError
from tests.models import CAUSAL, EXPERTS, build, step
from tests.schema import assert_valid

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
MODELS = {
    "Qwen3MoeForCausalLM": {**CAUSAL, "head_dim": 8, **EXPERTS},
    "GptOssForCausalLM": {**CAUSAL, "head_dim": 8, "num_local_experts": 4, "num_hidden_layers": 1},
}


def apart(tensors, family):
    """The same weights with every matrix of every expert by itself, as `torch.nn.Linear` has it."""
    found = {}
    for name, tensor in tensors.items():
        experts, _, last = name.rpartition(".")
        if not experts.endswith("experts"):
            found[name] = tensor
            continue
        last, ending = (last[:-5], "bias") if last.endswith("_bias") else (last, "weight")
        for number, expert in enumerate(tensor):
            if family == "GptOssForCausalLM":
                expert = expert.T if ending == "weight" else expert
                halves = expert[0::2], expert[1::2]
            else:
                halves = expert.chunk(2)
            parts = dict(zip(("gate_proj", "up_proj"), halves, strict=True))
            for part, matrix in (parts if last == "gate_up_proj" else {"down_proj": expert}).items():
                found[f"{experts}.{number}.{part}.{ending}"] = matrix.contiguous()
    return found


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """The folder of a base and a fine-tune with packed experts, and as `one`, `two` with experts apart."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build(request.param, MODELS[request.param]).to(torch.bfloat16)
    for name, other in (("base", "one"), ("ft", "two")):
        model.save_pretrained(folder / name, save_original_format=False)
        step(model)
        (folder / other).mkdir()
        tensors = load_file(folder / name / "model.safetensors")
        save_file(apart(tensors, request.param), folder / other / "model.safetensors", {"format": "pt"})
    return folder, request.param


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"wise": 0.5}, {"energy": 0.7, "dtype": "float32"}], ids=str)
def test_the_result_is_that_of_matrices_that_are_stored_apart(pair, tmp_path, options, device):
    folder, family = pair
    options = {**options, "split_fused": True, "device": device}
    packed = monosoup_cli.edit(folder / "base", folder / "ft", tmp_path / "packed", **options)
    single = monosoup_cli.edit(folder / "one", folder / "two", tmp_path / "single", **options)
    assert_valid(packed)
    expected, found = weights(tmp_path / "single"), apart(weights(tmp_path / "packed"), family)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    parts = {
        part["name"]: part
        for layer in packed["layers"]
        for part in layer.get("slices", [layer])
        if part["reason"] is None
    }
    alone = {layer["name"]: layer for layer in single["layers"] if layer["reason"] is None}
    assert parts.keys() == alone.keys()
    for name, part in parts.items():
        assert part["k"] == alone[name]["k"]
        assert part["shape"] == alone[name]["shape"]


def test_without_it_a_fused_matrix_is_edited_whole(pair, tmp_path):
    folder, _ = pair
    whole = monosoup_cli.edit(folder / "base", folder / "ft", tmp_path / "whole")
    split = monosoup_cli.edit(folder / "base", folder / "ft", tmp_path / "split", split_fused=True)
    one, two = ({layer["name"]: layer for layer in report["layers"]} for report in (whole, split))
    fused = next(name for name in one if name.endswith("gate_up_proj"))
    assert len(one[fused]["slices"]) == 4
    assert len(two[fused]["slices"]) == 8
    assert not torch.equal(weights(tmp_path / "whole")[fused], weights(tmp_path / "split")[fused])


def test_a_spectrum_is_that_of_a_part(pair, tmp_path, run):
    folder, _ = pair
    words = ["inspect-spectrum", str(folder / "base"), str(folder / "ft"), "--format", "json"]
    report = json.loads(run(*words, "--split-fused").out)
    assert_valid(report)
    edited = monosoup_cli.edit(folder / "base", folder / "ft", tmp_path / "out", split_fused=True)
    for one, other in zip(report["layers"], edited["layers"], strict=True):
        for part, same in zip(one.get("slices", []), other.get("slices", []), strict=True):
            assert (part["name"], part["k"]) == (same["name"], same["k"])
            assert part["rho"] == pytest.approx(same["rho"], rel=1e-9)
    table = run(*words[:-2], "--split-fused").out
    assert ".experts.3.up_proj.weight" in table
    chosen = run(*words[:-2], "--split-fused", "--layer", "*experts.gate_up_proj")
    assert ".experts.3.up_proj.weight" in chosen.out, chosen.err
    assert "down_proj" not in chosen.out


def test_an_interrupted_run_goes_on_and_workers_do_not_matter(pair, tmp_path, monkeypatch):
    folder, _ = pair
    arguments = [str(folder / name) for name in ("base", "ft")]
    monosoup_cli.edit(*arguments, tmp_path / "whole", split_fused=True, wise=[0.3, 1], workers=1)
    calls = iter(range(100))

    def stop(tensor, is_done):
        if is_done and next(calls) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monosoup_cli.edit(
            *arguments, tmp_path / "out", split_fused=True, wise=[0.3, 1], workers=1, progress=stop
        )
    monosoup_cli.edit(*arguments, tmp_path / "out", split_fused=True, wise=[0.3, 1], workers=3, resume=True)
    for name in ("wise-0.3", "wise-1"):
        one, two = ((tmp_path / out / name / "model.safetensors").read_bytes() for out in ("out", "whole"))
        assert one == two


def test_a_run_is_not_resumed_with_another_configuration(pair, tmp_path):
    """It says how the parts lie in a fused tensor."""
    folder, _ = pair
    shutil.copytree(folder / "ft", tmp_path / "ft")

    def stop(tensor, is_done):
        if is_done:
            raise KeyboardInterrupt

    arguments = folder / "base", tmp_path / "ft", tmp_path / "out.safetensors"
    with pytest.raises(KeyboardInterrupt):
        monosoup_cli.edit(*arguments, split_fused=True, workers=1, progress=stop)
    config = json.loads((tmp_path / "ft" / "config.json").read_text())
    (tmp_path / "ft" / "config.json").write_text(json.dumps({**config, "model_type": "another"}))
    with pytest.raises(ResumeError):
        monosoup_cli.edit(*arguments, split_fused=True, resume=True)


@pytest.fixture
def spoilt(pair, tmp_path):
    """A copy of a fine-tune, and a function that changes its fused tensor."""
    folder, _ = pair
    tensors = weights(folder / "ft")
    name = next(name for name in tensors if name.endswith("gate_up_proj"))

    def change(how):
        how(tensors[name], weights(folder / "base")[name])
        copy = tmp_path / "changed"
        copy.mkdir()
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        (copy / "config.json").write_bytes((folder / "ft" / "config.json").read_bytes())
        return copy

    return folder / "base", name, tensors, change


def test_a_tensor_with_nan_in_a_part_stays_as_fine_tuned(spoilt, tmp_path):
    base, name, tensors, change = spoilt

    def last_is_nan(tensor, _):
        tensor[-1, -1, -1] = float("nan")

    copy = change(last_is_nan)
    report = monosoup_cli.edit(base, copy, tmp_path / "out", split_fused=True, on_nonfinite="keep")
    assert {layer["name"]: layer["reason"] for layer in report["layers"]}[name] == "nonfinite"
    out = weights(tmp_path / "out")
    assert torch.equal(out[name].view(torch.int16), tensors[name].view(torch.int16))


def test_parts_that_did_not_change_stay(spoilt, tmp_path):
    base, name, tensors, change = spoilt

    def first_two_are_the_base(tensor, before):
        tensor[:2] = before[:2]

    copy = change(first_two_are_the_base)
    report = monosoup_cli.edit(base, copy, tmp_path / "out", split_fused=True)
    slices = {layer["name"]: layer.get("slices") for layer in report["layers"]}[name]
    assert [part["reason"] for part in slices] == ["unchanged"] * 4 + [None] * 4
    assert torch.equal(weights(tmp_path / "out")[name][:2], tensors[name][:2])
    copied = monosoup_cli.edit(base, base, tmp_path / "same", split_fused=True)
    assert copied["summary"]["edited"] == 0
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_an_adapter_has_no_parts(pair, tmp_path):
    folder, _ = pair
    with pytest.raises(UsageError, match="split_fused is for whole checkpoints"):
        monosoup_cli.edit(
            folder / "base",
            folder / "ft",
            tmp_path / "out",
            split_fused=True,
            as_adapter=True,
            adapter_rank=2,
        )


def test_where_nothing_is_fused_it_has_no_effect(pair, tmp_path):
    folder, _ = pair
    for name, is_split in (("plain", False), ("split", True)):
        monosoup_cli.edit(folder / "one", folder / "two", tmp_path / name, split_fused=is_split)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "split"))
    assert one == two


def test_the_values_of_an_input_that_stores_them_apart_decide(pair, tmp_path):
    """Without the configuration, rows in turn could be taken for halves."""
    folder, family = pair
    copy = tmp_path / "bare"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((folder / "ft" / "model.safetensors").read_bytes())
    monosoup_cli.edit(folder / "one", copy, tmp_path / "out", split_fused=True)
    monosoup_cli.edit(folder / "one", folder / "two", tmp_path / "single")
    expected, found = weights(tmp_path / "single"), apart(weights(tmp_path / "out"), family)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_a_configuration_the_parts_are_not_guessed(pair, tmp_path):
    folder, _ = pair
    files = [folder / name / "model.safetensors" for name in ("base", "ft")]
    with pytest.raises(MismatchError, match="needs config"):
        monosoup_cli.edit(*files, tmp_path / "out", split_fused=True)


def test_a_dry_run_says_how_tensors_are_split(pair, tmp_path, capfd):
    folder, _ = pair
    words = ["edit", str(folder / "base"), str(folder / "ft"), "-o", str(tmp_path / "out"), "--split-fused"]
    assert main([*words, "--dry-run"]) == 0
    told = " ".join("".join(capfd.readouterr()).split())
    assert "each part of 'model.layers.*.mlp.experts.gate_up_proj' is taken by itself" in told


@pytest.mark.parametrize("rows", [40, 48, 30])
@pytest.mark.parametrize("config", [None, {"model_type": "phi3", "num_attention_heads": 3}])
def test_parts_of_which_nothing_tells_the_rows(run, tmp_path, config, rows):
    """40 rows are not those of 3 heads, nor of three parts alike; 48 and 30 may be, or not."""
    torch.manual_seed(0)
    for name in ("base", "ft"):
        (tmp_path / name).mkdir()
        save_file(
            {"layers.0.attn.qkv_proj.weight": torch.randn(rows, 16)}, tmp_path / name / "model.safetensors"
        )
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    result = run("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out", "--split-fused")
    if config is None:
        assert result.code == 1
        assert "'layers.0.attn.qkv_proj.weight': --split-fused needs config.json" in result.err
        return
    assert result.code == 0, result.err
    assert (
        "--split-fused: 'layers.*.attn.qkv_proj.weight' is edited as one matrix, since config.json does not"
        " tell how many rows each of its parts has (1 tensor)\n"
    ) in result.err
    assert "no tensor has several parts" not in result.err
    run("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "whole")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]


def pair_of(tmp_path, shapes, config):
    """Folders of a base and a fine-tune with tensors of these shapes."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    finetuned = {name: W + 0.1 * torch.randn(W.shape, generator=generator) for name, W in base.items()}
    for name, tensors in (("base", base), ("ft", finetuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        if config is not None:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path / "base", tmp_path / "ft"


def test_a_layer_of_another_size_stays_whole_alone(run, tmp_path):
    shapes = {f"layers.{n}.attn.qkv_proj.weight": (rows, 16) for n, rows in enumerate((48, 40, 48))}
    files = pair_of(tmp_path, shapes, {"model_type": "phi3", "num_attention_heads": 4})
    result = run("edit", *files, "-o", tmp_path / "out", "--split-fused")
    assert result.code == 0, result.err
    assert "is taken by itself (q then k then v; 2 tensors)" in result.err
    assert "is edited as one matrix, since config.json does not tell" in result.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert [len(layer.get("slices", [])) for layer in report["layers"]] == [3, 0, 3]


@pytest.mark.parametrize("config", [None, {"model_type": "modernbert"}])
@pytest.mark.parametrize(("rows", "is_gated"), [(48, True), (24, False)])
def test_the_next_matrix_tells_whether_a_layer_is_gated(run, tmp_path, config, rows, is_gated):
    """`Wi` and `fc1` are names of plain layers, too."""
    shapes = {"layers.0.mlp.Wi.weight": (rows, 16), "layers.0.mlp.Wo.weight": (16, 24)}
    files = pair_of(tmp_path, shapes, config)
    result = run("edit", *files, "-o", tmp_path / "out", "--split-fused")
    if is_gated and config is None:
        assert result.code == 1
        assert "'layers.0.mlp.Wi.weight': --split-fused needs config.json" in result.err
        return
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "monosoup_report.json").read_text())
    assert [len(layer.get("slices", [])) for layer in report["layers"]] == [2 if is_gated else 0, 0]
    assert ("no tensor has several parts" in result.err) is not is_gated


def parts_in(folder):
    """The shapes of the parts of every tensor of a report."""
    report = json.loads((folder / "monosoup_report.json").read_text())
    return {
        layer["name"]: [(one["name"].split(".")[-2], one["shape"]) for one in layer.get("slices", [])]
        for layer in report["layers"]
    }


@pytest.mark.parametrize("is_turned", [False, True], ids=["as the base", "transposed"])
def test_parts_of_packed_experts_are_those_of_the_configuration(run, tmp_path, is_turned):
    """Values tell how one checkpoint is turned against the other, and not which of them is transposed."""
    hidden, inner = 32, 24
    generator = torch.Generator().manual_seed(0)
    outer = "model.layers.0.mlp.experts"
    base = {
        f"{outer}.gate_up_proj": torch.randn(4, 2 * inner, hidden, generator=generator),
        f"{outer}.down_proj": torch.randn(4, hidden, inner, generator=generator),
    }
    turned = {name: W.transpose(1, 2).contiguous() for name, W in base.items()}
    finetuned = {name: W + 0.05 * torch.randn(W.shape, generator=generator) for name, W in turned.items()}
    config = {"model_type": "qwen3_moe", "hidden_size": hidden, "moe_intermediate_size": inner}
    for name, tensors in (("base", turned if is_turned else base), ("ft", finetuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    result = run("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out", "--split-fused")
    assert result.code == 0, result.err
    shapes = {tuple(shape) for _, shape in parts_in(tmp_path / "out")[f"{outer}.gate_up_proj"]}
    assert shapes == {(inner, hidden)}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "openelm", "model_dim": 64, "head_dim": 16, "num_query_heads": [4, 4]}, [[], []]),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}, [[], [64, 64, 64]]),
        ({"model_type": "olmo", "d_model": 64, "n_heads": 4, "n_kv_heads": 1}, [[64, 16, 16], [64, 64, 64]]),
    ],
)
@pytest.mark.parametrize("has_output", [False, True])
def test_fewer_keys_than_queries_are_told_by_the_output_projection(run, tmp_path, config, told, has_output):
    """The configuration has other names for the number of heads, or other numbers."""
    shapes = {f"layers.{n}.attn.qkv_proj.weight": (rows, 64) for n, rows in enumerate((96, 192))}
    shapes |= {f"layers.{n}.attn.out_proj.weight": (64, 64) for n in range(2)} if has_output else {}
    files = pair_of(tmp_path, shapes, config)
    result = run("edit", *files, "-o", tmp_path / "out", "--split-fused")
    assert result.code == 0, result.err
    found = [[shape[0] for _, shape in parts] for parts in list(parts_in(tmp_path / "out").values())]
    if has_output:
        assert [one for one in found if one] == [[64, 16, 16], [64, 64, 64]]
    else:  # three parts alike would be a guess where nothing tells the heads
        assert found == told
        assert ("is edited as one matrix" in result.err) == ([] in told)


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("wi", "wo")])
@pytest.mark.parametrize("config", [None, {"model_type": "t5", "hidden_size": 128, "intermediate_size": 64}])
def test_a_bottleneck_is_no_gate(run, tmp_path, names, config):
    """Its columns are as many as two of the rows of the next matrix."""
    shapes = {
        f"b.{n}.mlp.{name}.weight": (64, 128)[:: 1 - 2 * i] for n in (0, 1) for i, name in enumerate(names)
    }
    shapes |= {f"b.{n}.mlp.{names[0]}.bias": (64,) for n in (0, 1)}
    files = pair_of(tmp_path, shapes, config)
    result = run("edit", *files, "-o", tmp_path / "out", "--split-fused")
    assert result.code == 0, result.err
    assert not any(parts_in(tmp_path / "out").values())


def test_a_base_that_is_turned_changes_no_part(run, tmp_path):
    shapes = {
        "h.0.attn.c_attn.weight": (32, 96),
        "h.0.attn.c_proj.weight": (32, 32),
        "h.0.mlp.c_fc.weight": (32, 128),
    }
    base, finetuned = pair_of(tmp_path, shapes, {"model_type": "gpt2", "n_embd": 32, "n_head": 4})
    run("edit", base, finetuned, "-o", tmp_path / "out", "--split-fused")
    turned = {name: W.T.contiguous() for name, W in weights(base).items()}
    save_file(turned, base / "model.safetensors")
    result = run("edit", base, finetuned, "-o", tmp_path / "turned", "--split-fused")
    assert result.code == 0, result.err
    assert [shape for _, shape in parts_in(tmp_path / "turned")["h.0.attn.c_attn.weight"]] == [[32, 32]] * 3
    one, other = weights(tmp_path / "out"), weights(tmp_path / "turned")
    assert all(torch.equal(one[name], other[name]) for name in one)
