"""LoRAs in one file, written by diffusers and in kohya's form, against what diffusers makes of them."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from monosoup_cli.adapters.lora import LINEAR
from monosoup_cli.adapters.lora_file import read_lora_file
from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.lora_names import is_lora_file
from monosoup_cli.sources.alignment import Rename
from monosoup_cli.sources.locate import open_checkpoint
from tests.models import MODELS, build, unet_pipeline

FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYWHERE = [
    *ATTENTION,
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv_in",
    "conv_out",
    "linear_1",
    "linear_2",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
]
PATTERNS = {
    "rank_pattern": {"attn1.to_q": 2, "conv1": 3},
    "alpha_pattern": {"attn2.to_q": 1, "^down_blocks.1.attentions.0.proj_in": 5, r"resnets\.0\.conv1": 7},
}
CASES = {
    "attention": {"target_modules": ATTENTION},
    "everywhere": {"target_modules": EVERYWHERE},
    "patterns": {"target_modules": EVERYWHERE, **PATTERNS},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
}
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
PROJ_IN = "down_blocks.1.attentions.0.proj_in"
CONV = "down_blocks.0.resnets.0.conv1"


def adapted(**options):
    """A pipeline with an adapter in its UNet, and the adapter's tensors."""
    pipeline = unet_pipeline()
    torch.manual_seed(1)
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options))
    return pipeline, get_peft_model_state_dict(pipeline.unet)


def save(tensors, path, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def fused(folder, part="unet"):
    """The weights that diffusers makes of a fresh pipeline and the file in a folder, in float64."""
    pipeline = unet_pipeline().to(torch.float64)
    pipeline.load_lora_weights(folder, weight_name=FILE)
    pipeline.fuse_lora(components=[part])
    pipeline.unload_lora_weights()
    return dict(getattr(pipeline, part).state_dict())


def unet_weights():
    return {name: tensor.clone() for name, tensor in unet_pipeline().unet.state_dict().items()}


def effective(base, path, *renames):
    """Every tensor of `base`, with the updates that are read from the file, in float64."""
    save(base, path.parent / "base.safetensors")
    with open_checkpoint(path.parent / "base.safetensors") as other, open_checkpoint(path) as own:
        assert is_lora_file(own.tensors)
        adapter = read_lora_file(own, other.tensors, [Rename.parse(text) for text in renames])
    factors = load_file(path)
    merged = {name: tensor.double() for name, tensor in base.items()}
    for name, pair in adapter.pairs.items():
        a, b = factors[pair.a].double().flatten(1), factors[pair.b].double().flatten(1)
        assert (pair.name, pair.shape, pair.rank) == (name, tuple(base[name].shape), len(a))
        assert (pair.layout, pair.magnitude) == (LINEAR, None)
        merged[name] = merged[name] + pair.scale * (b @ a).view(pair.shape)
    return merged, adapter


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name].double(), rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_diffusers_writes(tmp_path, case):
    pipeline, layers = adapted(**CASES[case])
    noted = _collate_lora_metadata({"unet": pipeline.unet})
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **noted)
    base = unet_weights()
    found, adapter = effective(base, tmp_path / FILE)
    assert len(adapter.pairs) == len(layers) / 2
    assert not adapter.config
    assert_same(found, fused(tmp_path))


@pytest.mark.parametrize("case", ["attention", "patterns"])
def test_without_an_alpha_the_scale_is_1(tmp_path, case):
    pipeline, layers = adapted(**CASES[case])
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    found, adapter = effective(unet_weights(), tmp_path / FILE)
    assert {pair.scale for pair in adapter.pairs.values()} == {1}
    assert_same(found, fused(tmp_path))


def test_what_a_model_of_diffusers_writes_alone(tmp_path):
    pipeline, _ = adapted(**CASES["patterns"])
    pipeline.unet.save_lora_adapter(tmp_path)
    assert not any(name.startswith("unet.") for name in load_file(tmp_path / FILE))
    found, _ = effective(unet_weights(), tmp_path / FILE)
    model = unet_pipeline().unet.to(torch.float64)
    model.load_lora_adapter(tmp_path, weight_name=FILE, prefix=None)
    model.fuse_lora()
    model.unload_lora()
    assert_same(found, model.state_dict())


def text_encoder_file(folder):
    pipeline = unet_pipeline()
    torch.manual_seed(1)
    modules = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
    pipeline.text_encoder.add_adapter(
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=modules)
    )
    layers = get_peft_model_state_dict(pipeline.text_encoder)
    noted = _collate_lora_metadata({"text_encoder": pipeline.text_encoder})
    pipeline.save_lora_weights(folder, text_encoder_lora_layers=layers, **noted)
    return {name: tensor.clone() for name, tensor in unet_pipeline().text_encoder.state_dict().items()}


@pytest.mark.parametrize("root", ["", "text_model.", "cond_stage_model.transformer.text_model."])
def test_a_text_encoder(tmp_path, root):
    base = text_encoder_file(tmp_path)
    found, _ = effective({root + name: tensor for name, tensor in base.items()}, tmp_path / FILE)
    expected = fused(tmp_path, "text_encoder")
    assert_same(found, {root + name: tensor for name, tensor in expected.items()})


def kohya(layers, alpha=None):
    """In kohya's form, by diffusers, with this alpha for all modules."""
    tensors = convert_state_dict_to_kohya({f"unet.{name}": tensor for name, tensor in layers.items()})
    if alpha is not None:
        tensors |= {name: alpha.clone() for name in tensors if name.endswith(".alpha")}
    return tensors


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64], ids=str
)
def test_kohyas_form(tmp_path, dtype):
    _, layers = adapted(target_modules=[*ATTENTION, "conv1", "proj_in", "ff.net.2"])
    save(kohya(layers, torch.tensor(3, dtype=dtype)), tmp_path / FILE)
    found, adapter = effective(unet_weights(), tmp_path / FILE)
    assert {pair.scale for pair in adapter.pairs.values()} == {3 / 4}
    assert_same(found, fused(tmp_path))


def test_kohyas_form_without_alphas(tmp_path):
    _, layers = adapted(**CASES["everywhere"])
    tensors = {name: tensor for name, tensor in kohya(layers).items() if not name.endswith(".alpha")}
    _, adapter = effective(unet_weights(), save(tensors, tmp_path / FILE))
    assert {pair.scale for pair in adapter.pairs.values()} == {1}


def test_kohyas_text_encoder(tmp_path):
    base = text_encoder_file(tmp_path)
    expected, _ = effective(base, tmp_path / FILE)
    ends = {"lora_A": "lora_down", "lora_B": "lora_up"}
    tensors = {}
    for name, tensor in load_file(tmp_path / FILE).items():
        module, factor, _ = name.removeprefix("text_encoder.").rsplit(".", 2)
        module = f"lora_te_text_model_{module.replace('.', '_')}"
        tensors |= {f"{module}.{ends[factor]}.weight": tensor, f"{module}.alpha": torch.tensor(6.0)}
    found, _ = effective(base, save(tensors, tmp_path / FILE))
    assert_same(found, expected)


def test_both_parts_over_the_single_file_of_a_model(tmp_path):
    text, text_layers = text_encoder_file(tmp_path), load_file(tmp_path / FILE)
    _, layers = adapted(target_modules=ATTENTION)
    root = "cond_stage_model.transformer.text_model."
    base = originals(unet_weights()) | {root + name: tensor for name, tensor in text.items()}
    save(text_layers | {f"unet.{name}": tensor for name, tensor in layers.items()}, tmp_path / FILE)
    found, _ = effective(base, tmp_path / FILE)
    in_text = {root + name: tensor for name, tensor in fused(tmp_path, "text_encoder").items()}
    assert_same(found, originals(fused(tmp_path)) | in_text)


@pytest.mark.parametrize("processor", [".processor", ""])
def test_the_old_form_of_attention_processors(tmp_path, processor):
    _, layers = adapted(target_modules=ATTENTION)
    ways = {".to_out.0.lora_A": ".to_out_lora.down", ".to_out.0.lora_B": ".to_out_lora.up"}
    for x in "qkv":
        ways |= {f".to_{x}.lora_A": f".to_{x}_lora.down", f".to_{x}.lora_B": f".to_{x}_lora.up"}
    tensors = {}
    for name, tensor in layers.items():
        module, end = next((name.removesuffix(f"{end}.weight"), end) for end in ways if end in name)
        tensors[f"unet.{module}{processor}{ways[end]}.weight"] = tensor
    save(tensors, tmp_path / FILE)
    found, _ = effective(unet_weights(), tmp_path / FILE)
    assert_same(found, fused(tmp_path))


def test_the_form_between(tmp_path):
    _, layers = adapted(target_modules=ATTENTION)
    ways = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    tensors = {
        "unet." + re.sub(r"\.lora_.\.", lambda match: ways[match[0]], name): tensor
        for name, tensor in layers.items()
    }
    save(tensors, tmp_path / FILE)
    found, _ = effective(unet_weights(), tmp_path / FILE)
    assert_same(found, fused(tmp_path))


BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original_name(name):
    """What the original Stable Diffusion would call a tensor or a module of the tiny UNet."""
    block = max((block for block in BLOCKS if f"{name}.".startswith(f"{block}.")), key=len)
    rest = name[len(block) + 1 :].split(".")
    if "resnets" in block:
        rest[0] = IN_RESNETS[rest[0]]
    return ".".join([BLOCKS[block], *filter(None, rest)])


def originals(weights):
    return {f"model.diffusion_model.{original_name(name)}": tensor for name, tensor in weights.items()}


def test_the_names_of_the_original_are_those_that_diffusers_reads():
    weights, config = unet_weights(), dict(unet_pipeline().unet.config)
    read = convert_ldm_unet_checkpoint(originals(weights), config)
    assert read.keys() == weights.keys()
    assert all(read[name] is weights[name] for name in weights)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_names_over_the_original(tmp_path, form):
    _, layers = adapted(**CASES["everywhere"])
    tensors = kohya(layers) if form == "kohya" else {f"unet.{name}": t for name, t in layers.items()}
    save(tensors, tmp_path / FILE)
    base = unet_weights()
    expected, _ = effective(base, tmp_path / FILE)
    found, adapter = effective(originals(base), tmp_path / FILE)
    assert len(adapter.pairs) == len(layers) / 2
    assert_same(found, originals(expected))


def test_names_of_the_original_over_itself_and_over_diffusers(tmp_path):
    _, layers = adapted(**CASES["everywhere"])
    save(kohya(layers), tmp_path / FILE)
    base = unet_weights()
    expected, _ = effective(base, tmp_path / FILE)
    tensors = {}
    for name, tensor in layers.items():
        module, factor = name.removesuffix(".weight").rsplit(".", 1)
        end = "lora_down" if factor == "lora_A" else "lora_up"
        tensors[f"lora_unet_{original_name(module).replace('.', '_')}.{end}.weight"] = tensor
    save(tensors, tmp_path / FILE)
    assert_same(effective(originals(base), tmp_path / FILE)[0], originals(expected))
    assert_same(effective(base, tmp_path / FILE)[0], expected)


def test_matrices_for_a_convolution_of_one_pixel_and_the_reverse(tmp_path):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 16), (16, 2)))
    base = unet_weights()
    flat = {f"{PROJ_IN}.lora_A.weight": a, f"{PROJ_IN}.lora_B.weight": b}
    found, _ = effective(base, save(flat, tmp_path / FILE))
    change = (b.double() @ a.double()).view(16, 16, 1, 1)
    torch.testing.assert_close(
        found[f"{PROJ_IN}.weight"], base[f"{PROJ_IN}.weight"] + change, rtol=0, atol=1e-12
    )
    deep = {f"{Q}.lora_A.weight": a[..., None, None], f"{Q}.lora_B.weight": b[..., None, None]}
    found, _ = effective(base, save(deep, tmp_path / FILE))
    torch.testing.assert_close(
        found[f"{Q}.weight"], base[f"{Q}.weight"] + change[..., 0, 0], rtol=0, atol=1e-12
    )


def test_renames_are_of_the_files_names(tmp_path):
    _, layers = adapted(target_modules=["to_q"])
    save({f"net.{name.replace('to_q', 'query')}": t for name, t in layers.items()}, tmp_path / FILE)
    renames = ["net=unet", "query=to_q", "nothing=something"]
    _, adapter = effective(unet_weights(), tmp_path / FILE, *renames)
    assert len(adapter.pairs) == len(layers) / 2
    count = f"({len(layers)} tensors)"
    assert adapter.read_as == (
        f"with 'net' replaced by 'unet' {count}",
        f"with 'query' replaced by 'to_q' {count}",
    )
    assert adapter.unused == (Rename.parse(renames[2]),)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_no_lora(kind):
    with torch.device("meta"):
        assert not is_lora_file(build(*MODELS[kind]).state_dict())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m.hada_w1_a", "m.hada_w1_b", "m.hada_w2_a", "m.hada_w2_b", "m.alpha"], True),
        (["m.lokr_w1", "m.lokr_w2", "m.alpha"], True),
        (["m.diff", "m.diff_b"], True),
        (["a.alpha", "b.alpha"], False),
        (["m.weight", "m.bias", "m.lora_A.weight"], False),
        (["model.diffusion_model.m.weight", "model.difference"], False),
        ([], False),
    ],
)
def test_other_files(names, expected):
    assert is_lora_file(names) is expected


def factors(module, a=(2, 16), b=(16, 2)):
    return {f"{module}.lora_A.weight": torch.ones(a), f"{module}.lora_B.weight": torch.ones(b)}


def good():
    return factors(f"unet.{Q}") | factors(f"unet.{CONV}", (2, 8, 3, 3), (8, 2, 1, 1))


A, B, CONV_A, CONV_B = good()
ALPHA = f"unet.{Q}.alpha"
TEXT = "encoder.layers.0.self_attn.q_proj"
REFUSED = {
    "no second factor": ({B: None}, "factor B of the same module is missing"),
    "no first factor": ({A: None}, "factor A of the same module is missing"),
    "an alpha alone": ({f"unet.{OUT}.alpha": torch.tensor(1.0)}, "factor A of the same module is missing"),
    "ranks": ({B: torch.ones(16, 3)}, "the factors differ in rank: found [16, 3] × [2, 16]"),
    "no rank": ({A: torch.ones(0, 16), B: torch.ones(16, 0)}, "the factors differ in rank"),
    "more inputs": ({A: torch.ones(2, 17)}, "do not fit the base: expected [16, 16] of"),
    "more outputs": ({B: torch.ones(17, 2)}, "do not fit the base"),
    "another kernel": ({CONV_A: torch.ones(2, 8, 1, 1)}, "do not fit the base: expected [8, 8, 3, 3] of"),
    "a flat kernel": ({CONV_A: torch.ones(2, 72)}, "do not fit the base"),
    "a kernel on the way out": ({CONV_B: torch.ones(8, 2, 3, 3)}, "do not fit the base"),
    "a vector": ({A: torch.ones(32)}, "not a LoRA factor: expected a matrix"),
    "integers": ({A: torch.ones(2, 16, dtype=torch.int64)}, "found [2, 16] of I64"),
    "an unknown tensor": ({f"unet.{Q}.lora_C.weight": torch.ones(1)}, "neither a LoRA factor nor"),
    "a bias": ({f"unet.{Q}.lora_B.bias": torch.ones(16)}, "neither a LoRA factor nor an alpha"),
    "an embedding": ({"m.lora_embedding_A": torch.ones(1)}, "neither a LoRA factor nor an alpha"),
    "LoHa": ({"lora_unet_m.hada_w1_a": torch.ones(1)}, "this is LoHa, which is not LoRA"),
    "LoKr": ({"lora_unet_m.lokr_w1": torch.ones(1)}, "this is LoKr, which is not LoRA"),
    "OFT": ({"lora_unet_m.oft_blocks": torch.ones(1)}, "this is OFT or BOFT, which is not LoRA"),
    "Tucker": ({"lora_unet_m.lora_mid.weight": torch.ones(1)}, "a third factor"),
    "DoRA": ({"lora_unet_m.dora_scale": torch.ones(1)}, "this is DoRA"),
    "DoRA of peft": ({f"unet.{Q}.lora_magnitude_vector": torch.ones(1)}, "this is DoRA"),
    "DoRA of peft, a weight": ({f"unet.{Q}.lora_magnitude_vector.weight": torch.ones(1)}, "this is DoRA"),
    "a difference": ({"lora_unet_m.diff": torch.ones(1)}, "the difference of a whole tensor"),
    "a difference of biases": ({"lora_unet_m.diff_b": torch.ones(1)}, "the difference of a whole tensor"),
    "not a number": ({ALPHA: torch.tensor(float("nan"))}, "alpha is not a finite number: found nan"),
    "infinite": ({ALPHA: torch.tensor(float("inf"))}, "alpha is not a finite number: found inf"),
    "a truth": ({ALPHA: torch.tensor(True)}, "alpha is not a number: expected one number, found [] of BOOL"),
    "several": ({ALPHA: torch.ones(2)}, "alpha is not a number: expected one number, found [2] of F32"),
    "none": ({ALPHA: torch.ones(0)}, "alpha is not a number"),
    "two forms": ({f"unet.{Q}.lora.down.weight": torch.ones(2, 16)}, "its module has two such tensors"),
    "another module": (factors(f"unet.{Q}x"), f"the base has no module '{Q}x'"),
    "without a prefix": (factors("m"), "the base has no module 'm'"),
    "a text encoder's": (
        factors(f"text_encoder.{TEXT}"),
        f"changes the text encoder's '{TEXT}', but the base has no text encoder; use",
    ),
    "a text encoder's in kohya's form": (
        factors("lora_te_text_model_m"),
        "changes the text encoder's 'text_model_m', but the base has no text encoder",
    ),
    "the same twice": (
        factors(f"lora_unet_{Q.replace('.', '_')}"),
        f"changes the base's '{Q}.weight', which another tensor changes, too",
    ),
    "of peft": ({"base_model.model.m.lora_A.weight": torch.ones(2, 16)}, "pass the folder that holds it"),
}


def refusal(folder, tensors, metadata=None, base=None):
    save(tensors, folder / FILE, metadata)
    save(unet_weights() if base is None else base, folder / "base.safetensors")
    assert is_lora_file(tensors)
    with (
        open_checkpoint(folder / "base.safetensors") as other,
        pytest.raises(CheckpointError) as caught,
        open_checkpoint(folder / FILE) as own,
    ):
        read_lora_file(own, other.tensors)
    line = str(caught.value)
    assert line.startswith(str(Path(folder / FILE)))
    assert "\n" not in line
    return line


def test_the_file_without_the_faults_is_read(tmp_path):
    _, adapter = effective(unet_weights(), save(good(), tmp_path / FILE))
    assert adapter.pairs.keys() == {f"{Q}.weight", f"{CONV}.weight"}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_files_are_refused(tmp_path, case):
    change, message = REFUSED[case]
    tensors = {name: tensor for name, tensor in (good() | change).items() if tensor is not None}
    assert message in refusal(tmp_path, tensors)


def test_a_name_that_two_modules_may_have_is_refused(tmp_path):
    base = {"a.b_c.weight": torch.ones(4, 4), "a_b.c.weight": torch.ones(4, 4)}
    line = refusal(tmp_path, factors("lora_unet_a_b_c", (1, 4), (4, 1)), base=base)
    assert "may belong to more than one module of the base: found 'a.b_c.weight' and 'a_b.c.weight'" in line
    dotted = factors("unet.a.b_c", (1, 4), (4, 1))
    _, adapter = effective(base, save(dotted, tmp_path / FILE))
    assert list(adapter.pairs) == ["a.b_c.weight"]


def test_a_base_of_codes_is_refused(tmp_path):
    base = {"m.weight": torch.ones(4, 4).to(torch.int8)}
    line = refusal(tmp_path, factors("m", (1, 4), (4, 1)), base=base)
    assert "the base's 'm.weight' cannot be changed: expected F16, BF16, F32, F64, found I8" in line


NOTED = {
    "no JSON": ("{", "is not valid JSON"),
    "a list": ("[]", "is not a JSON object"),
    "text for alpha": ({"lora_alpha": "8"}, "alpha is not a finite number: found '8'"),
    "a truth for alpha": ({"lora_alpha": True}, "alpha is not a finite number: found True"),
    "no alpha": ({"r": 8}, "alpha is not a finite number: found None"),
    "huge": ({"lora_alpha": 10**400}, "alpha is not a finite number"),
    "an endless number": ('{"unet.lora_alpha": 1e999}', "alpha is not a finite number: found inf"),
    "a list of patterns": (
        {"lora_alpha": 1, "alpha_pattern": ["m"]},
        "is not a JSON object of at most 4,096",
    ),
    "many patterns": (
        {"lora_alpha": 1, "alpha_pattern": dict.fromkeys(map(str, range(4097)), 1)},
        "of at most 4,096",
    ),
    "a long pattern": (
        {"lora_alpha": 1, "alpha_pattern": {"a" * 501: 1}},
        "has a pattern that is not supported",
    ),
    "text in a pattern": ({"lora_alpha": 1, "alpha_pattern": {"to_q": "1"}}, "alpha is not a finite number"),
    "an expression": (
        {"lora_alpha": 1, "alpha_pattern": {"(a+)+b": 1}},
        "a pattern that is not supported: expected names",
    ),
    "a dangling escape": (
        {"lora_alpha": 1, "alpha_pattern": {"a\\": 1}},
        "has a pattern that is not supported",
    ),
    "PiSSA": ({"lora_alpha": 1, "init_lora_weights": "pissa"}, "found init_lora_weights 'pissa'"),
    "DoRA": ({"lora_alpha": 1, "use_dora": True}, "describes more than LoRA: found use_dora True"),
    "LoHa": ({"lora_alpha": 1, "peft_type": "LOHA"}, "describes more than LoRA: found peft_type 'LOHA'"),
}


@pytest.mark.parametrize("case", NOTED)
def test_malformed_metadata_is_refused(tmp_path, case):
    noted, message = NOTED[case]
    if isinstance(noted, dict):
        noted = json.dumps({f"unet.{name}": value for name, value in noted.items()})
    assert message in refusal(tmp_path, good(), {"lora_adapter_metadata": noted})


def test_alphas_that_contradict_the_metadata_are_refused(tmp_path):
    noted = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3})}
    line = refusal(tmp_path, {**good(), ALPHA: torch.tensor(2.0)}, noted)
    assert "alpha differs from the file's lora_adapter_metadata: expected 3, found 2.0" in line
    save({**good(), ALPHA: torch.tensor(3.0)}, tmp_path / FILE, noted)
    _, adapter = effective(unet_weights(), tmp_path / FILE)
    assert {pair.scale for pair in adapter.pairs.values()} == {1.5}


def test_metadata_of_another_part_tells_no_alpha(tmp_path):
    noted = {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 3})}
    _, adapter = effective(unet_weights(), save(good(), tmp_path / FILE, noted))
    assert {pair.scale for pair in adapter.pairs.values()} == {1}


def test_metadata_of_diffusers_says_nothing_of_kohyas_names(tmp_path):
    noted = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3})}
    tensors = factors(f"lora_unet_{Q.replace('.', '_')}")
    _, adapter = effective(unet_weights(), save(tensors, tmp_path / FILE, noted))
    assert adapter.pairs[f"{Q}.weight"].scale == 1
