"""How a reading is found, and what is refused: on small tensors made here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.formats.header import BITS
from monosoup_cli.layouts.match import in_layout_of
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.source import Source
from tests.hub import Hub

Tensors = dict[str, torch.Tensor]
OUTER = "model.layers.{}.mlp"


def single(seed: int = 0, *, experts: int = 4, hidden: int = 16, inner: int = 12, layers: int = 2) -> Tensors:
    """Experts one by one, and a norm and an attention that are the same in every form."""
    torch.manual_seed(seed)
    weights = {}
    for layer in range(layers):
        outer = OUTER.format(layer)
        for number in range(experts):
            for what in ("gate_proj", "up_proj"):
                weights[f"{outer}.experts.{number}.{what}.weight"] = torch.randn(inner, hidden)
            weights[f"{outer}.experts.{number}.down_proj.weight"] = torch.randn(hidden, inner)
        weights[f"{outer}.gate.weight"] = torch.randn(experts, hidden)
        weights[f"model.layers.{layer}.self_attn.q_proj.weight"] = torch.randn(hidden, hidden)
    return weights


def near(weights: Tensors, seed: int = 9, size: float = 0.05) -> Tensors:
    torch.manual_seed(seed)
    return {name: one + size * torch.randn(one.shape, dtype=one.dtype) for name, one in weights.items()}


def packed(weights: Tensors, *, interleaved: bool = False, transposed: bool = False) -> Tensors:
    """The same with the experts of every layer in one tensor."""
    made = {name: one for name, one in weights.items() if ".experts." not in name}
    for outer in dict.fromkeys(name.partition(".experts.")[0] for name in weights if ".experts." in name):
        count = 1 + max(int(name.split(".")[5]) for name in weights if name.startswith(f"{outer}.experts."))
        gate, up, down = (
            torch.stack([weights[f"{outer}.experts.{number}.{what}.weight"] for number in range(count)])
            for what in ("gate_proj", "up_proj", "down_proj")
        )
        both = torch.stack([gate, up], 2).flatten(1, 2) if interleaved else torch.cat([gate, up], 1)
        for what, one in {"gate_up_proj": both, "down_proj": down}.items():
            made[f"{outer}.experts.{what}"] = (one.mT if transposed else one).contiguous()
    return made


@pytest.fixture
def save(tmp_path) -> Callable[..., object]:
    def save(name: str, weights: Tensors, **config: object) -> object:
        folder = tmp_path / name
        folder.mkdir()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "some_moe", **config}))
        return folder

    return save


@pytest.fixture
def edited(run, tmp_path, save):
    """The output of `edit`, and what was said."""

    def edited(base: Tensors, finetuned: Tensors) -> tuple[Tensors, str]:
        number = sum(path.is_dir() for path in tmp_path.iterdir())
        out = tmp_path / f"out{number}"
        result = run("edit", save(f"base{number}", base), save(f"ft{number}", finetuned), "-o", out)
        assert result.code == 0, result
        return load_file(out / "model.safetensors"), result.err

    return edited


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


FORMS = {
    "stacked": {},
    "interleaved": {"interleaved": True},
    "transposed": {"transposed": True},
    "interleaved and transposed": {"interleaved": True, "transposed": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inner", [12, 16, 8])
def test_values_tell_how_experts_are_packed(edited, form, inner):
    """Shapes do not: gate and up may be in turn, and one of the matrices square."""
    base = single(hidden=16, inner=inner)
    finetuned = near(base)
    if form != "interleaved":  # under the same names and in the same shapes, the form is the same
        same = edited(packed(base), packed(finetuned))[0]
        assert_same(edited(packed(base, **FORMS[form]), packed(finetuned))[0], same)
    same = edited(base, finetuned)[0]
    found, said = edited(packed(base, **FORMS[form]), finetuned)
    assert_same(found, same)
    words = {"stacked": "stacked", "interleaved": "interleaved", "transposed": "stacked, transposed"}
    assert f"({words.get(form, 'interleaved, transposed')})" in said


def test_square_matrices_beside_others_that_are_packed_alike_are_not_turned(edited):
    base = single(hidden=16, inner=16)
    finetuned = near(base)
    assert "names are read" not in edited(packed(base), packed(finetuned))[1]


def up_first(weights: Tensors) -> Tensors:
    """The same with the halves of gate and up the other way round."""
    return {
        name: torch.cat(one.chunk(2, -2)[::-1], -2) if "gate_up" in name else one
        for name, one in weights.items()
    }


def dense(seed: int = 0) -> Tensors:
    torch.manual_seed(seed)
    return {f"model.layers.{layer}.mlp.gate_up_proj.weight": torch.randn(96, 32) for layer in range(2)}


@pytest.mark.parametrize(
    ("base", "other"), [(dense(), up_first(dense())), (packed(single()), packed(single(), interleaved=True))]
)
def test_tensors_that_are_alike_but_for_their_values_are_read_by_values(edited, base, other):
    """gate before up or up before gate, one after the other or in turn: names and shapes are the same."""
    finetuned = near(base)
    same, said = edited(base, finetuned)
    assert "gate_up_proj from" not in said
    found, said = edited(other, finetuned)
    assert "gate_up_proj as" in said
    assert_same(found, same)


def test_a_layer_that_is_trained_far_is_left_as_it_is(edited):
    said = edited(dense(0), dense(1))[1]
    assert "gate_up_proj from" not in said


def test_two_readings_that_are_equally_near_are_refused(refuse, save):
    """Of symmetric matrices, either could be right, and the other would be wrong for other matrices."""
    base = single(hidden=16, inner=16)
    base |= {name: one + one.T for name, one in base.items() if "down_proj" in name}
    finetuned = near(base)
    finetuned |= {name: one + one.T for name, one in finetuned.items() if "down_proj" in name}
    said = refuse(save("one", packed(base, transposed=True)), save("two", packed(finetuned)))
    assert "tensor 'model.layers.*.mlp.experts.down_proj'" in said
    assert "no reading is clearly right" in said


def test_experts_of_another_model_are_refused(refuse, save):
    base, finetuned = single(1), single(2)
    finetuned |= {name: one for name, one in base.items() if "down_proj" in name}
    said = refuse(save("one", packed(base)), save("two", finetuned))
    assert "stored in another form" in said
    assert "tried: stacked (1." in said
    assert "; interleaved (1." in said
    assert "than 'model.layers.*.mlp.experts.*.gate_proj' in" in said


def test_tensors_that_are_left_out_need_no_reading(run, save, refuse, tmp_path):
    """Nor are those taken into a mean whose names and shapes fit by chance: the first has them alone."""
    one, two = single(1, inner=16), near(single(2, inner=16))
    two |= {name: tensor + 0.1 for name, tensor in one.items() if "experts" not in name}
    paths = save("one", packed(one, transposed=True)), save("two", two)
    exclude = ("--exclude", "*experts*")
    assert "no reading is clearly right" in refuse(*paths)
    assert run("edit", *paths, "-o", tmp_path / "out", *exclude).code == 0
    assert run("soup", *paths[::-1], "-o", tmp_path / "mean", *exclude).code == 0
    for out in ("out", "mean"):
        found = load_file(tmp_path / out / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in two.items() if "experts" in name)


ORDERS = {"two ranks": "01452367", "four ranks": "04152637", "last rows": "01234576"}
"""The eighths of packed rows: gate is 0 to 3, and up is 4 to 7."""


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_reading_that_is_right_for_a_part_of_the_weights_is_refused(refuse, save, order):
    """Engines pack gate and up for every rank, and the first rows are where they are expected."""
    base = single(hidden=64, inner=64)
    turned = {
        name: torch.cat([one.chunk(8, 1)[int(number)] for number in order], 1) if "gate_up" in name else one
        for name, one in packed(base).items()
    }
    said = refuse(save("one", turned), save("two", near(base)))
    assert "no reading is clearly right" in said


@pytest.mark.parametrize("size", [0.7, 0.05, 0.0])
def test_a_fine_tune_may_be_far_away_or_the_base_itself(edited, size):
    base = single()
    finetuned = near(base, size=size)
    assert_same(edited(base, packed(finetuned))[0], edited(packed(base), packed(finetuned))[0])


def test_experts_that_are_zero_in_one_of_the_two_tell_nothing(edited):
    base = single()
    finetuned = near(base)
    for name in base:
        if "experts.0." in name or "experts.1." in name or "experts.3." in name:
            base[name] = torch.zeros_like(base[name])
    assert_same(edited(base, packed(finetuned))[0], edited(packed(base), packed(finetuned))[0])
    base = {name: torch.zeros_like(one) if "down" in name else one for name, one in base.items()}
    assert_same(edited(base, packed(finetuned))[0], edited(packed(base), packed(finetuned))[0])


def test_one_tensor_is_not_the_base_of_two(edited):
    base, finetuned = single(layers=1), near(single(layers=1))
    gate = "model.layers.0.mlp.gate.weight"
    base = {name.replace("mlp.gate", "block_sparse_moe.gate"): one for name, one in base.items()}
    router = gate.replace("gate", "router")
    finetuned[router] = finetuned[gate] + 1
    found, said = edited(base, finetuned)
    assert "block_sparse_moe.gate as mlp.gate" in said
    assert f"not in the base, and kept as fine-tuned: 1 tensor: {router}" in said
    assert found[router].equal(finetuned[router])


@pytest.mark.parametrize("is_base", [True, False])
@pytest.mark.parametrize("lost", ["experts.2.up_proj", "experts.2.", "experts.3."])
def test_an_expert_that_one_side_lacks_is_refused_by_its_name(refuse, save, is_base, lost):
    whole = single()
    part = {name: one for name, one in near(whole).items() if not (".layers.1." in name and lost in name)}
    one, two = save("one", part), save("two", packed(whole))
    said = refuse(*((one, two) if is_base else (two, one)))
    assert said.startswith(f"error: {one}: tensor 'model.layers.1.mlp.{lost}")
    assert "missing" in said


@pytest.mark.parametrize("is_base", [True, False])
def test_a_pruned_model_is_refused(refuse, save, is_base):
    """Its router has fewer rows, but --on-mismatch keep would leave only that as it is."""
    few = {name: one for name, one in single().items() if "experts.3." not in name}
    one, two = save("one", packed(few)), save("two", near(single()))
    said = refuse(*((one, two) if is_base else (two, one)), "--on-mismatch", "keep")
    assert said.startswith(f"error: {one}: tensor 'model.layers.0.mlp.experts.3.down_proj.weight'")


def test_packed_experts_of_two_numbers_are_shapes_that_differ(refuse, save):
    few = {name: one for name, one in single().items() if "experts.3." not in name}
    assert "the shapes differ" in refuse(save("one", packed(few)), save("two", packed(near(single()))))


def test_a_gate_that_has_the_name_of_another_models_up_is_refused(refuse, save):
    """Qwen-1 calls its gate w2, and others w1."""
    torch.manual_seed(0)
    shapes = {"gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)}
    base = {
        f"{OUTER.format(n)}.{what}.weight": torch.randn(shapes[what]) for n in range(2) for what in shapes
    }
    renamed = {name.replace("gate_proj", "w2").replace("up_proj", "w1"): one for name, one in base.items()}
    said = refuse(save("base", renamed), save("ft", near(base)))
    assert "no reading is clearly right" in said


@pytest.mark.parametrize("is_base", [True, False])
def test_packed_experts_of_another_size_are_shapes_that_differ(refuse, save, is_base):
    """They are not kept in silence, as if the base did not have them."""
    pair = [packed(single(inner=6)), single(inner=8)]
    base, finetuned = pair if is_base else reversed(pair)
    said = refuse(save("base", base), save("ft", finetuned))
    assert "the shapes fit in no reading" in said


def test_nan_in_an_expert_is_said_of_that_expert(run, refuse, save, tmp_path):
    base, finetuned = single(), near(single())
    name = OUTER.format(1) + ".experts.2.up_proj.weight"
    finetuned[name][:] = float("nan")
    paths = save("base", packed(base)), save("ft", finetuned)
    assert name in refuse(*paths)
    result = run("edit", *paths, "-o", tmp_path / "out", "--on-nonfinite", "keep")
    assert result.code == 0, result.err
    assert load_file(tmp_path / "out" / "model.safetensors")[name].isnan().all()


def test_layers_that_only_one_side_has_are_left_alone(edited):
    """As prediction heads that training dropped, and layers that were added."""
    base, finetuned = single(layers=3), near(single(layers=3))
    short = {name: one for name, one in base.items() if ".layers.2." not in name}
    found, said = edited(short, packed(finetuned))
    assert "not in the base, and kept as fine-tuned: 4 tensors" in said
    assert_same(found, edited(packed(short), packed(finetuned))[0])
    short = {name: one for name, one in finetuned.items() if ".layers.2." not in name}
    assert "only in the base, and not written: 4 tensors" in edited(packed(base), short)[1]


def test_experts_of_several_dtypes_are_read_in_one_that_has_all_their_values(edited):
    base = single()
    finetuned = near(base)
    half = {name: one.bfloat16() if "experts.1." in name else one for name, one in base.items()}
    wide = {name: one.float() for name, one in half.items()}
    for form in FORMS.values():
        same = edited(packed(wide, **form), packed(finetuned, **form))[0]
        assert_same(edited(half, packed(finetuned, **form))[0], same)
    half = {name: one.double() if "experts.2." in name else one.half() for name, one in base.items()}
    wide = {name: one.double() for name, one in half.items()}
    finetuned = {name: one.half() for name, one in finetuned.items()}
    same = edited(packed(wide, interleaved=True), packed(finetuned, interleaved=True))[0]
    assert_same(edited(half, packed(finetuned, interleaved=True))[0], same)


COMMANDS = {
    "edit": ["edit", "base", "ft", "ft2"],
    "soup": ["soup", "ft", "ft2"],
    "stock": ["stock", "base", "ft", "ft2"],
    "sfgs": ["sfgs", "base", "ft", "ft2", "--threshold", "-1"],
    "wise": ["wise", "base", "ft", "--alpha", "0.4"],
    "lines": ["lines", "base", "ft", "--alpha", "0.3", "--beta", "0.7"],
}


@pytest.fixture
def mixed(save):
    """The same checkpoints in one form, and in three."""
    base = single()
    weights = {"base": base, "ft": near(base), "ft2": near(base, 5)}
    same = {name: save(name, packed(one, transposed=True)) for name, one in weights.items()}
    forms = {"base": weights["base"], "ft2": packed(weights["ft2"], interleaved=True)}
    return same, {**same, **{name: save(f"{name}-otherwise", one) for name, one in forms.items()}}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_every_form(run, tmp_path, mixed, command):
    outs = []
    for number, paths in enumerate(mixed):
        outs.append(tmp_path / f"out{number}")
        result = run(*(paths.get(word, word) for word in COMMANDS[command]), "-o", outs[-1])
        assert result.code == 0, result
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


def test_spectra_of_every_form(run, mixed):
    command = ("inspect-spectrum", "--format", "json")
    first, second = (run(*command, paths["base"], paths["ft"]) for paths in mixed)
    assert json.loads(first.out)["layers"] == json.loads(second.out)["layers"]


@pytest.mark.parametrize("prefix", ["model.", "", "module.model.", "language_model.model."])
def test_prefixes_and_forms_at_once(run, save, tmp_path, prefix):
    base = single()
    finetuned = near(base)
    one = save("one", {name.replace("model.", prefix, 1): weight for name, weight in packed(base).items()})
    two, out = save("two", finetuned), tmp_path / "out"
    renames = ["--rename", "language_model.model=model"] if prefix.startswith("language") else []
    assert run("edit", one, two, "-o", out, *renames).code == 0
    assert run("edit", save("base", base), two, "-o", tmp_path / "same").code == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "same" / "model.safetensors").read_bytes()


def test_a_sample_is_read_by_ranges_before_anything_is_downloaded(run, save, tmp_path, client):
    base = single(experts=2, hidden=512, inner=400)
    save("base", base)
    save("other", single(3, experts=2, hidden=512, inner=400))
    ft = save("ft", packed(near(base)))
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        for name in ("base", "other"):
            hub.add(f"org/{name}", tmp_path / name)
        refused = run("edit", "org/other", ft, "-o", tmp_path / "out")
        assert "no reading is clearly right" in refused.err
        size = (tmp_path / "other" / "model.safetensors").stat().st_size
        assert hub.bytes_sent("org/other/model.safetensors") < size / 2
        assert run("edit", "org/base", ft, "-o", tmp_path / "out").code == 0
    assert run("edit", tmp_path / "base", ft, "-o", tmp_path / "same").code == 0
    assert_same(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    )


class Enough(Exception):
    """Stops a run."""


def test_an_interrupted_run_goes_on(run, save, tmp_path):
    base = single()
    paths = save("base", base), save("ft", packed(near(base), interleaved=True))
    seen = []

    def stop(tensor, is_done):
        seen.append(tensor)
        if len(seen) > 5:
            raise Enough

    with pytest.raises(Enough):
        monosoup_cli.edit(*paths, tmp_path / "out", workers=1, progress=stop)
    assert (tmp_path / "out.partial").exists()
    assert run("edit", *paths, "-o", tmp_path / "out", "--resume").code == 0
    assert run("edit", *paths, "-o", tmp_path / "whole").code == 0
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole")))


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_beside_a_fine_tune_of_another_form(run, save, tmp_path, form):
    """It is merged into the base, which has the fine-tune's form by then."""
    base = single()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.randn(2, 16), f"{module}.lora_B.weight": torch.randn(16, 2)}
    save_file(factors, adapter / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    ft = save("ft", packed(near(base), **FORMS[form]))
    outs = []
    for number, weights in enumerate((base, packed(base, **FORMS[form]))):
        outs.append(tmp_path / f"out{number}")
        path = save(f"base{number}", weights)
        assert run("edit", path, ft, adapter, "-o", outs[-1]).code == 0
    assert_same(*(load_file(out / "model.safetensors") for out in outs))


def peak() -> int:
    """The most memory that this process has had since it was last asked, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return found


def assert_honest(other: Source, wanted: Source, limit: int) -> None:
    """Read experts in another form, and compare what it takes with what the plan is told."""
    (read, _), buffer = in_layout_of(other, wanted), memoryview(bytearray(1 << 20))
    assert read.held_bytes <= limit
    name = next(name for name in wanted.tensors if "gate" in name and ".experts." in name)
    reader = read.reader(name)
    size = wanted.tensors[name].elements * BITS[reader.dtype] // 8
    reader.read_into(buffer, 0)
    read.forget()
    peak()
    start = peak()
    for at in range(0, size, len(buffer)):
        reader.read_into(buffer[: size - at], at)
    assert peak() - start <= read.held_bytes + (1 << 19)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
@pytest.mark.parametrize("form", FORMS)
def test_no_more_is_held_than_one_expert(save, form):
    """The tensors have 12 experts of 4 MB each."""
    base = single(experts=12, hidden=1024, inner=512, layers=1)
    paths = [save("single", base), save("packed", packed(base, **FORMS[form]))]
    first, second = (open_checkpoint(str(path)) for path in paths)
    with first.files, second.files:
        assert_honest(first, second, 9 << 20)
        assert_honest(second, first, 9 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_what_widening_takes_is_counted(save):
    base = single(experts=12, hidden=1024, inner=512, layers=1)
    half = {name: one.bfloat16() if "experts.1." in name else one for name, one in base.items()}
    first, second = (
        open_checkpoint(str(save(*one))) for one in (("one", half), ("two", packed(base, interleaved=True)))
    )
    with first.files, second.files:
        assert_honest(first, second, 9 << 20)


def test_a_note_says_which_modules_are_read_as_which(run, tmp_path):
    torch.manual_seed(0)
    parts = [f"layers.{layer}.attn.{kind}_proj.weight" for layer in range(2) for kind in "qkv"]
    base = {name: torch.randn(16, 16) for name in parts}
    finetuned = near(base)
    for folder, tensors in (("base", base), ("finetuned", finetuned)):
        fused = {
            f"layers.{layer}.attn.qkv_proj.weight": torch.cat(
                [tensors[name] for name in parts[3 * layer : 3 * layer + 3]]
            )
            for layer in range(2)
        }
        save_file(tensors, tmp_path / f"{folder}.safetensors")
        save_file(fused, tmp_path / f"{folder} fused.safetensors")
    said = "names are read with attn.q_proj, k_proj and v_proj as attn.qkv_proj (q then k then v)"
    base, finetuned = tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"
    words = ["-o", tmp_path / "out", "--dry-run"]
    assert said in run("edit", base, tmp_path / "finetuned fused.safetensors", *words).err
    said = "names are read with attn.qkv_proj as attn.q_proj, k_proj and v_proj (q then k then v)"
    assert said in run("edit", tmp_path / "base fused.safetensors", finetuned, *words).err
