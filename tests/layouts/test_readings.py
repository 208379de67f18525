"""Which reading of a fused or transposed tensor is taken, and what is refused: small made-up checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from monosoup_cli.layouts.attention import FUSED, NAMES
from tests.layouts.forms import GATE_UP, QKV, fuse, in_turn

H = 48


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def near(randn):
    """The tensors after a step of 5 %."""
    return lambda tensors: {name: t + 0.05 * t.std() * randn(*t.shape) for name, t in tensors.items()}


@pytest.fixture
def assert_alike(run, tmp_path):
    """Editing over a base in another form gives the bytes of editing over one in the same form."""

    def check(other, same, finetuned):
        files = {"other": other, "same": same, "finetuned": finetuned}
        for name, tensors in files.items():
            save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / f"{name}.safetensors")
        for name in ("other", "same"):
            out = tmp_path / f"of {name}.safetensors"
            inputs = (tmp_path / f"{name}.safetensors", tmp_path / "finetuned.safetensors")
            result = run("edit", *inputs, "-o", out, "--overwrite")
            assert result.code == 0, result.err
            report = json.loads((tmp_path / f"of {name}.report.json").read_text())
            assert "not_in_base" not in report["summary"]["kept"]
            if name == "other":
                said = result.err
        files = [(tmp_path / f"of {name}.safetensors").read_bytes() for name in ("other", "same")]
        assert files[0] == files[1]
        return said

    return check


@pytest.fixture
def refused(refuse, tmp_path):
    def refused(base, finetuned):
        for name, tensors in (("base", base), ("finetuned", finetuned)):
            save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / f"{name}.safetensors")
        return refuse(tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")

    return refused


def both_ways(assert_alike, near, apart, fused):
    """A pair of forms of one model, each as the base of the other."""
    said = assert_alike(apart, fused, near(fused))
    return said, assert_alike(fused, apart, near(apart))


def attention(randn, q=H, kv=H, layers=2):
    """q, k and v of some layers with biases, and a matrix that is stored alike."""
    found = {}
    for layer in range(layers):
        for part, count in zip(QKV, (q, kv, kv), strict=True):
            found[f"layers.{layer}.attn.{part}.weight"] = randn(count, H)
            found[f"layers.{layer}.attn.{part}.bias"] = randn(count)
        found[f"layers.{layer}.attn.out_proj.weight"] = randn(H, q)
    return found


def test_all_names_of_fused_and_separate_tensors(assert_alike, near, randn):
    """Every name of a fused tensor, over separate ones of every name in turn, in one model."""
    separate = [list(NAMES)[i : i + 3] for i in range(0, len(NAMES), 3)]
    apart, fused = {}, {}
    for number, (name, parts) in enumerate(FUSED.items()):
        names = separate[number % len(separate)] if len(parts) < 4 else ("q_proj", "k_proj", "v_proj")
        each = {part: randn(16, H) for part in parts}
        own = dict(zip(QKV, names, strict=True)) | {"gate_proj": "gate_proj"}
        outer, _, name = name.rpartition(".")
        module = f"model.kind{number}.0.{outer or 'attn'}"
        apart |= {f"{module}.{own[part]}.weight": t for part, t in each.items()}
        weight = f"{name}_weight" if name == "in_proj" else f"{name}.weight"
        fused[f"{module}.{weight}"] = torch.cat(list(each.values()))
    both_ways(assert_alike, near, apart, fused)


@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_heads_that_divide_several_ways(assert_alike, near, randn, groups):
    """512 rows without a configuration are 2, 4, 8 or 16 heads."""
    apart = attention(randn, 512, 512, layers=1)

    def joined(each):
        turns = [part.reshape(groups, -1, *part.shape[1:]) for part in each]
        return torch.cat(turns, dim=1).reshape(-1, *each[0].shape[1:])

    said, _ = both_ways(assert_alike, near, apart, fuse(apart, QKV, "query_key_value.", joined))
    assert f"each of {groups} groups of heads" in said


def test_both_are_fused_in_different_ways(assert_alike, near, randn):
    """Head by head in the one, one part after the other in the other; without heads of another size."""
    per_head = {f"h.{n}.attention.query_key_value.weight": randn(3 * 256, H) for n in range(2)}
    stacked = {
        name.replace("query_key_value", "Wqkv"): torch.cat(in_turn(4, 64, 64, 64)(fused))
        for name, fused in per_head.items()
    }
    both_ways(assert_alike, near, per_head, stacked)


@pytest.mark.parametrize("order", ["kqv", "qvk", "vkq"])
def test_parts_in_another_order_are_refused(refused, near, randn, order):
    apart = attention(randn)
    wrong = [QKV["qkv".index(one)] for one in order]
    base = fuse(apart, QKV, "qkv_proj.", lambda each: torch.cat([each[QKV.index(one)] for one in wrong]))
    assert "no reading" in refused(base, near(apart))
    assert "no reading" in refused(apart, near(base))


@pytest.mark.parametrize("command", ["edit", "soup", "stock"])
def test_fused_tensors_whose_order_is_not_known_are_noted(run, tmp_path, near, randn, command):
    """Both have one name and one shape, so nothing but values speaks against reading them as they are."""
    apart = attention(randn)
    base = fuse(apart, QKV, "qkv_proj.")
    finetuned = near(fuse(apart, QKV, "qkv_proj.", lambda each: torch.cat([each[1], each[0], each[2]])))
    for name, tensors in (("base", base), ("finetuned", finetuned), ("other", near(base))):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / f"{name}.safetensors")
    names = ("base", "finetuned", "other")[: 2 if command == "edit" else 3]
    result = run(command, *(tmp_path / f"{name}.safetensors" for name in names), "-o", tmp_path / "out")
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert "updates of 'layers.*.attn.qkv_proj.weight' (1." in said
    assert said.count("the updates of") == 1


def test_layers_of_several_sizes(assert_alike, near, randn):
    """Each with as many rows of q, k and v as the other checkpoint has in this layer."""
    apart = {}
    for layer, (q, kv) in enumerate(((64, 16), (32, 16), (48, 16))):
        module = f"model.layers.{layer}.self_attn"
        apart |= {f"{module}.{part}.weight": randn(n, H) for part, n in zip(QKV, (q, kv, kv), strict=True)}
        apart[f"{module}.other.weight"] = randn(H, H)
    fused = fuse(apart, QKV, "qkv_proj.")
    both_ways(assert_alike, near, apart, fused)
    assert_alike(fused, fused, near(fused))


def test_unrelated_weights_are_refused(refused, randn):
    base = fuse(attention(randn), QKV, "qkv_proj.")
    assert "no reading" in refused(base, attention(randn))
    assert "no reading" in refused(attention(randn), base)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_square_fused_tensor(assert_alike, near, randn, is_transposed):
    """Three parts of a third of the rows: nothing but values tells which side is which."""
    apart = attention(randn, H // 3, H // 3)
    fused = fuse(apart, QKV, "c_attn.")
    fused = {name: t.T if is_transposed and "c_attn.weight" in name else t for name, t in fused.items()}
    said, _ = both_ways(assert_alike, near, apart, fused)
    assert ("transposed" in said) == is_transposed


@pytest.mark.parametrize("first", GATE_UP)
@pytest.mark.parametrize("form", ["one after the other", "in turn"])
def test_gate_and_up_in_any_order(assert_alike, near, randn, first, form):
    apart = {f"layers.{n}.mlp.{part}.weight": randn(64, H) for n in range(2) for part in GATE_UP}
    apart |= {name.replace("weight", "bias"): torch.zeros(64) for name in apart}

    def joined(each):
        each = each[:: 1 if first == "gate_proj" else -1]
        return torch.cat(each) if form == "one after the other" else torch.stack(each, dim=1).flatten(0, 1)

    said, _ = both_ways(assert_alike, near, apart, fuse(apart, GATE_UP, "w12.", joined))
    assert f"{first} then" in said
    assert ("interleaved" in said) == (form == "in turn")


def test_a_plain_layer_with_the_name_of_a_fused_one(assert_alike, near, randn):
    """`dense_h_to_4h` of GPT-NeoX has no gate: transposed, it is still one matrix."""
    plain = {f"layers.{n}.mlp.dense_h_to_4h.weight": randn(4 * H, H) for n in range(2)}
    both_ways(assert_alike, near, plain, {name: t.T for name, t in plain.items()})


def test_square_matrices_among_transposed_ones(assert_alike, near, randn):
    """Values decide for each of them; those outside the blocks are as they are."""
    base = {f"h.{n}.mlp.c_fc.weight": randn(H, 4 * H) for n in range(2)}
    base |= {f"h.{n}.attn.{name}.weight": randn(H, H) for n in range(2) for name in ("c_proj", "gate")}
    base["pooler.weight"] = randn(H, H)
    linear = {name: t.T if "c_" in name else t for name, t in base.items()}
    said, _ = both_ways(assert_alike, near, base, linear)
    assert "attn.c_proj as attn.c_proj (transposed)" in said
    assert "gate" not in said


def test_a_square_matrix_of_no_clear_orientation_is_refused(refused, near, randn):
    """Only beside matrices that are transposed for sure is a new square one in doubt."""
    base = {"h.0.mlp.c_fc.weight": randn(H, 4 * H), "h.0.attn.c_proj.weight": randn(H, H)}
    finetuned = near(base)
    finetuned["h.0.attn.c_proj.weight"] = randn(H, H)
    turned = {**finetuned, "h.0.mlp.c_fc.weight": finetuned["h.0.mlp.c_fc.weight"].T}
    assert "c_proj" in refused(base, turned)


def test_square_matrices_without_transposed_ones_are_never_compared(assert_alike, near, randn):
    base = {"h.0.attn.q_proj.weight": randn(H, H), "h.0.attn.o_proj.weight": randn(H, H)}
    finetuned = near(base)
    finetuned["h.0.attn.o_proj.weight"] = finetuned["h.0.attn.o_proj.weight"].T + randn(H, H) / 100
    assert "names are read" not in assert_alike(base, base, finetuned)


def test_other_shapes_of_the_same_elements_put_no_square_matrix_in_doubt(run, tmp_path, randn):
    """A scale that is a column in one of them says nothing about sides; the square matrix may be new."""
    base = {"h.0.scale.weight": randn(H, 1, 1), "h.0.attn.o_proj.weight": randn(H, H)}
    finetuned = {
        "h.0.scale.weight": base["h.0.scale.weight"].view(H, 1),
        "h.0.attn.o_proj.weight": randn(H, H),
    }
    for name, tensors in (("base", base), ("finetuned", finetuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    inputs = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    result = run("edit", *inputs, "-o", tmp_path / "out.safetensors", "--on-mismatch", "keep")
    assert result.code == 0, result.err


def test_fewer_keys_than_queries_in_two_towers(assert_alike, near, randn):
    """The rows of q, k and v are those of the tower of the same name, though others have as many in all."""
    text = {f"text.{name}": t for name, t in attention(randn, 64, 16).items()}
    vision = {f"vision.{name}": t for name, t in attention(randn, 32, 32).items()}
    apart = text | vision
    both_ways(assert_alike, near, apart, fuse(apart, QKV, "qkv_proj."))


def test_k_and_v_fused_alone(assert_alike, near, randn):
    apart = {f"blocks.{n}.cross.to_{part}.weight": randn(32, H) for n in range(2) for part in "qkv"}
    fused = fuse(apart, ("to_k", "to_v"), "to_kv.")
    both_ways(assert_alike, near, apart, fused)


def test_blocks_of_several_widths(assert_alike, near, randn):
    """Stages of a vision model differ in their width, and so in how many heads there may be."""
    apart = {
        f"stages.{n}.blocks.0.attn.{part}.weight": randn(width, width)
        for n, width in enumerate((32, 64, 128))
        for part in QKV
    }
    both_ways(assert_alike, near, apart, fuse(apart, QKV, "qkv."))


def test_attention_under_another_name(run, tmp_path, near, randn):
    """`--rename` brings the module to the name that it has; the rows are found there."""
    apart = attention(randn)
    other = {name.replace("attn.", "attention.self."): t for name, t in fuse(apart, QKV, "qkv.").items()}
    finetuned = near(apart)
    for name, tensors in (("apart", apart), ("other", other), ("finetuned", finetuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    for name, rename in (("apart", []), ("other", ["--rename", "attention.self=attn"])):
        files = (tmp_path / f"{name}.safetensors", tmp_path / "finetuned.safetensors")
        assert run("edit", *files, "-o", tmp_path / f"of {name}.safetensors", *rename).code == 0
    one, two = (load_file(tmp_path / f"of {name}.safetensors") for name in ("apart", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "command",
    [("soup",), ("stock",), ("wise", "--alpha", "0.5"), ("edit",), ("inspect-spectrum", "--format", "json")],
    ids=lambda command: command[0],
)
def test_every_command_reads_every_input_in_the_layout_of_the_first(run, tmp_path, near, randn, command):
    base = attention(randn)
    one, two = near(base), near(base)
    split = {"base": base, "one": one, "two": two}
    for name, tensors in split.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        fused = fuse(tensors, QKV, "in_proj_")
        save_file(fused, tmp_path / f"{name} fused.safetensors")
    verb, *options = command
    count = 1 if verb == "wise" else 2

    def result(*names):
        inputs = [
            tmp_path / f"{name}.safetensors" for name in names[verb == "soup" :][: count + (verb != "soup")]
        ]
        out = tmp_path / "out.safetensors"
        writing = [] if verb == "inspect-spectrum" else ["-o", out, "--overwrite"]
        found = run(verb, *inputs, *writing, *options)
        assert found.code == 0, found.err
        assert ("names are read with" in found.err) == (len({name.endswith("fused") for name in names}) > 1)
        if writing:
            return out.read_bytes()
        report = json.loads(found.out)
        return report["layers"]

    assert result("base", "one", "two") == result("base fused", "one", "two fused")
    assert result("base fused", "one fused", "two fused") == result("base", "one fused", "two")


@pytest.mark.parametrize("inner", [64, H])
@pytest.mark.parametrize(
    "names",
    [
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},  # Llama's own files
        {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"},  # DINOv3's
        {"gate_proj": "w2", "up_proj": "w1", "down_proj": "c_proj"},  # the first Qwen
    ],
    ids=["llama", "dino", "qwen"],
)
def test_numbered_names_of_gated_layers(run, refused, assert_alike, near, randn, names, inner):
    """What `w1`, `w2` and `w3` are is told by what else is in the module, and by shapes."""
    shapes = {"gate_proj": (inner, H), "up_proj": (inner, H), "down_proj": (H, inner)}
    named = {
        f"layers.{layer}.mlp.{part}.weight": randn(*shape)
        for layer in range(2)
        for part, shape in shapes.items()
    }
    numbered = {
        name.replace(part, own): tensor
        for name, tensor in named.items()
        for part, own in names.items()
        if part in name
    }
    if names["down_proj"] == "w3" and inner == H:  # nothing tells them apart, and values show it
        assert "no reading is clearly right" in refused(named, near(numbered))
        assert "no reading is clearly right" in refused(numbered, near(named))
        return
    both_ways(assert_alike, near, named, numbered)
    both_ways(assert_alike, near, numbered, fuse(named, GATE_UP, "gate_up_proj."))


@pytest.mark.parametrize(("fused", "down"), [("w12", "w3"), ("w13", "w2")])
def test_the_third_matrix_beside_a_fused_one(assert_alike, near, randn, fused, down):
    shapes = {"gate_proj": (64, H), "up_proj": (64, H), "down_proj": (H, 64)}
    named = {
        f"layers.{layer}.mlp.{part}.weight": randn(*shape)
        for layer in range(2)
        for part, shape in shapes.items()
    }
    other = fuse(named, GATE_UP, f"{fused}.")
    other = {name.replace("down_proj", down): tensor for name, tensor in other.items()}
    both_ways(assert_alike, near, named, other)


@pytest.mark.parametrize("names", [("q_proj", "model.q_proj"), ("mlp.up_proj", "mlp.w3")])
def test_a_dry_run_where_every_name_differs(run, near, randn, tmp_path, names):
    base = {f"layers.{layer}.{names[0]}.weight": randn(H, H) for layer in range(2)}
    finetuned = {name.replace(*names): tensor for name, tensor in near(base).items()}
    if names[1].startswith("model."):
        finetuned = {f"model.{name}": tensor for name, tensor in near(base).items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(finetuned, tmp_path / "finetuned.safetensors")
    inputs = (tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors")
    result = run("edit", *inputs, "-o", tmp_path / "out", "--dry-run")
    assert result.code == 0, result.err
    assert "2 tensors" in result.out
