"""LoRA files over pipelines for images: their parts in folders and single files, in every library's names.

What is written is compared with what diffusers makes of the same base and file, through its own loaders and
its own tables of names.
"""

import inspect
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from tests.models import ENDS, TEXT, build, unet, unet_pipeline, vae

FILE = "pytorch_lora_weights.safetensors"
IN_UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
IN_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def xl_pipeline():
    denoiser = unet(
        64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    options = {**TEXT, **ENDS, "projection_dim": 32}
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=build("CLIPTextModel", options),
        text_encoder_2=build("CLIPTextModelWithProjection", options),
        tokenizer=CLIPTokenizer(words, merges=[]),
        tokenizer_2=CLIPTokenizer(words, merges=[]),
        unet=denoiser,
        scheduler=DDIMScheduler(),
    )


PIPELINES = {
    "SD": (unet_pipeline, StableDiffusionPipeline, ["unet", "text_encoder"]),
    "SDXL": (xl_pipeline, StableDiffusionXLPipeline, ["unet", "text_encoder", "text_encoder_2"]),
}


def lora_of(pipeline, parts, folder):
    """Write a LoRA file that changes these parts, as diffusers does."""
    torch.manual_seed(1)
    layers = {}
    for part in parts:
        model = getattr(pipeline, part)
        modules = IN_UNET if part == "unet" else IN_TEXT
        model.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=modules))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    pipeline.save_lora_weights(folder, **layers)
    return folder / FILE


def fused(pipeline, lora, parts):
    """What diffusers makes of a pipeline and a LoRA file, in float64."""
    pipeline = pipeline.to(torch.float64)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    pipeline.fuse_lora(components=parts)
    pipeline.unload_lora_weights()
    return {part: dict(getattr(pipeline, part).state_dict()) for part in parts}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found[name].double(), expected[name].double(), **close, msg=name)


@pytest.fixture(params=PIPELINES)
def case(request, tmp_path):
    """A pipeline's folder, a LoRA file that changes all its models, its class, and their names."""
    make, kind, parts = PIPELINES[request.param]
    make().save_pretrained(tmp_path / "base")
    return tmp_path / "base", lora_of(make(), parts, tmp_path), kind, parts, make


def test_the_parts_of_a_folder_are_edited_one_after_the_other(run, tmp_path, case):
    base, lora, kind, parts, make = case
    refused = run("merge", base, lora, "-o", tmp_path / "x")
    assert refused.code == 1
    assert ", and a run edits one part of a folder; " in refused.err
    steps = refused.err.rstrip().rpartition("; ")[2].split(", then ")
    assert steps == [
        f"run it with --parts {parts[0]}",
        *(f"with --parts {part} over that output" for part in parts[1:]),
    ]
    for number, step in enumerate(steps):
        flags = step.removeprefix("run it with ").removeprefix("with ").removesuffix(" over that output")
        out = tmp_path / f"out-{number}"
        result = run("merge", base, lora, "-o", out, *flags.split())
        assert result.code == 0
        assert "is left out, as --parts says" in result.err
        base = out
    expected = fused(make(), lora, parts)
    edited = kind.from_pretrained(base)
    for part in parts:
        assert_same(dict(getattr(edited, part).state_dict()), expected[part])


def test_a_file_of_one_other_part_says_which(run, tmp_path):
    unet_pipeline().save_pretrained(tmp_path / "base")
    lora = lora_of(unet_pipeline(), ["text_encoder"], tmp_path)
    refused = run("merge", tmp_path / "base", lora, "-o", tmp_path / "x")
    assert refused.code == 1
    assert (
        "changes the pipeline's text_encoder, and a run edits one part of a folder; run it with --parts"
        in (refused.err)
    )
    done = run("merge", tmp_path / "base", lora, "-o", tmp_path / "out", "--parts", "text_encoder")
    assert done.code == 0
    found = dict(StableDiffusionPipeline.from_pretrained(tmp_path / "out").text_encoder.state_dict())
    assert_same(found, fused(unet_pipeline(), lora, ["text_encoder"])["text_encoder"])


def test_over_one_model_of_a_pipeline_its_part_is_taken(run, tmp_path):
    base = unet_pipeline()
    base.unet.save_pretrained(tmp_path / "unet")
    lora = lora_of(unet_pipeline(), ["unet", "text_encoder"], tmp_path)
    refused = run("merge", tmp_path / "unet", lora, "-o", tmp_path / "x")
    assert refused.code == 1
    assert "but the base has no text encoder; use a base that holds all parts" in refused.err
    assert refused.err.rstrip().endswith("or take the unet alone with --parts unet")
    assert run("merge", tmp_path / "unet", lora, "-o", tmp_path / "out", "--parts", "unet").code == 0
    found = dict(UNet2DConditionModel.from_pretrained(tmp_path / "out").state_dict())
    assert_same(found, fused(unet_pipeline(), lora, ["unet"])["unet"])


def test_a_part_of_two_whole_pipelines(run, tmp_path):
    unet_pipeline().save_pretrained(tmp_path / "base")
    tuned = unet_pipeline()
    with torch.no_grad():
        for weights in tuned.text_encoder.parameters():
            weights += 0.01 * torch.randn(weights.shape)
    tuned.save_pretrained(tmp_path / "ft")
    words = ["edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out"]
    assert run(*words, "--parts", "text_encoder").code == 0
    edited = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert_same(dict(edited.unet.state_dict()), dict(tuned.unet.state_dict()))
    before = load_file(tmp_path / "base" / "text_encoder" / "model.safetensors")
    after = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_parts_that_are_not_there_or_too_many(run, tmp_path, case):
    base, lora, _, parts, _ = case
    words = ["merge", base, lora, "-o", tmp_path / "x"]
    refused = run(*words, "--parts", "decoder")
    assert refused.code == 2
    assert "the pipeline has no such part: expected --parts " in refused.err
    refused = run(*words, *(word for part in parts for word in ("--parts", part)))
    assert refused.code == 2
    assert f"; run it with --parts {parts[0]}, then, over that output, with --parts {parts[1]}" in refused.err
    refused = run(*words, "--parts", "vae")
    assert refused.code == 1
    assert "changes nothing of the parts that --parts names: expected --parts text_encoder or" in refused.err


def test_parts_of_whole_models_have_no_effect(run, tmp_path):
    build("CLIPTextModel", {**TEXT, **ENDS}).save_pretrained(tmp_path / "base")
    refused = run("edit", tmp_path / "base", tmp_path / "base", "-o", tmp_path / "x", "--parts", "unet")
    assert refused.code == 2
    assert "--parts has no effect: no input is a pipeline's folder or a single LoRA file" in refused.err


def test_an_adapter_is_written_again_part_by_part(run, tmp_path):
    unet_pipeline().save_pretrained(tmp_path / "base")
    lora = lora_of(unet_pipeline(), ["unet", "text_encoder"], tmp_path)
    words = ["--as-adapter", "--energy", "0.5"]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run("edit", tmp_path / "base", lora, "-o", first, *words, "--parts", "unet").code == 0
    assert run("edit", tmp_path / "base", first, "-o", second, *words, "--parts", "text_encoder").code == 0
    given, half, whole = load_file(lora), load_file(first), load_file(second)
    assert given.keys() == half.keys() == whole.keys()
    for name in given:
        is_text = name.startswith("text_encoder.")
        assert torch.equal(half[name], given[name]) is is_text, name
        assert torch.equal(half[name], whole[name]) is not is_text, name
    unet_pipeline().load_lora_weights(tmp_path, weight_name=second.name)


# -- OpenCLIP's names, in the single files of SD 2 and SDXL ------------------------------------------


def in_open_clip(weights, prefix):
    """transformers' CLIP under the names of OpenCLIP; diffusers' own table reads it back, see below."""
    ways = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    ways |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name.startswith("encoder.layers."):
            _, _, number, rest = name.split(".", 3)
            block = f"{prefix}transformer.resblocks.{number}"
            module, kind = rest.rsplit(".", 1)
            if module.endswith("q_proj"):
                three = [weights[key] for key in qkv(weights, number, kind)]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
            elif module in ways:
                found[f"{block}.{ways[module]}.{kind}"] = tensor
        elif name == "text_projection.weight":
            found[f"{prefix}text_projection"] = tensor.T.contiguous()
        else:
            ways_out = {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm.weight": "ln_final.weight",
                "final_layer_norm.bias": "ln_final.bias",
            }
            found[prefix + ways_out[name]] = tensor
    return found


def qkv(weights, number, kind):
    ends = [f"encoder.layers.{number}.self_attn.{one}_proj.{kind}" for one in "qkv"]
    return [next(name for name in weights if name.endswith(end)) for end in ends]


def from_open_clip(weights, prefix, model):
    """Back under the names of transformers, by diffusers' table."""
    read = single_file_utils.convert_open_clip_checkpoint(model, dict(weights), prefix=prefix)
    return {name.removeprefix("text_model."): tensor for name, tensor in read.items()}


@pytest.mark.parametrize("prefix", ["conditioner.embedders.1.model.", "conditioner.embedders.0.model."])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_the_second_encoder_of_sdxl_in_a_single_file(run, tmp_path, prefix, form):
    model = xl_pipeline().text_encoder_2
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = in_open_clip(weights, prefix)
    same = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    assert_same(from_open_clip(base, prefix, model), same)
    save_file(base, tmp_path / "base.safetensors")
    lora = lora_of(xl_pipeline(), ["text_encoder_2"], tmp_path)
    expected = fused(xl_pipeline(), lora, ["text_encoder_2"])["text_encoder_2"]
    if form == "kohya":
        lora = in_kohyas_form(lora, "text_encoder_2.", "lora_te2_text_model_", tmp_path)
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", lora, "-o", out).code == 0
    found = from_open_clip(load_file(out), prefix, model)
    assert_same(found, {name.removeprefix("text_model."): tensor for name, tensor in expected.items()})


def in_kohyas_form(lora, old, new, folder):
    tensors = {}
    for name, tensor in load_file(lora).items():
        module, factor, _ = name.removeprefix(old).rsplit(".", 2)
        module = new + module.removeprefix("text_model.").replace(".", "_")
        end = {"lora_A": "lora_down", "lora_B": "lora_up"}[factor]
        tensors |= {f"{module}.{end}.weight": tensor, f"{module}.alpha": torch.tensor(4.0)}
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def test_the_encoder_of_sd_2_in_a_single_file(run, tmp_path):
    prefix, model = "cond_stage_model.model.", unet_pipeline().text_encoder
    base = in_open_clip(dict(model.state_dict()), prefix)
    save_file(base, tmp_path / "base.safetensors")
    lora = lora_of(unet_pipeline(), ["text_encoder"], tmp_path)
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", lora, "-o", out).code == 0
    expected = fused(unet_pipeline(), lora, ["text_encoder"])["text_encoder"]
    found = from_open_clip(load_file(out), prefix, model)
    assert_same(found, {name.removeprefix("text_model."): tensor for name, tensor in expected.items()})


def test_the_projection_of_open_clip_is_the_transpose(run, tmp_path):
    prefix, model = "conditioner.embedders.1.model.", xl_pipeline().text_encoder_2
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(in_open_clip(weights, prefix), tmp_path / "base.safetensors")
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    module = "text_encoder_2.text_projection"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tmp_path / FILE)
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / FILE, "-o", out).code == 0
    found = from_open_clip(load_file(out), prefix, model)
    expected = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    expected["text_projection.weight"] = expected["text_projection.weight"] + b @ a
    assert_same(found, expected)


def test_layers_that_the_base_joins_are_not_written_as_the_adapter_again(run, tmp_path):
    prefix = "conditioner.embedders.1.model."
    base = in_open_clip(dict(xl_pipeline().text_encoder_2.state_dict()), prefix)
    save_file(base, tmp_path / "base.safetensors")
    lora = lora_of(xl_pipeline(), ["text_encoder_2"], tmp_path)
    words = ["edit", tmp_path / "base.safetensors", lora, "-o", tmp_path / "out.safetensors"]
    refused = run(*words, "--as-adapter")
    assert refused.code == 1
    assert "the base joins layers that the adapter has apart, or the reverse" in refused.err
    assert refused.err.rstrip().endswith("; without --as-adapter it is merged into the base")
    assert run(*words).code == 0


# -- Flux ---------------------------------------------------------------------------------------------

SIDE = 16
MODEL = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
    "axes_dims_rope": [2, 2, 4],
}


def flux():
    torch.manual_seed(0)
    return FluxTransformer2DModel(**MODEL)


def converter():
    """diffusers' own converter from the original names, for a model of another width than the real one."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("inner_dim = 3072") == 1
    space = vars(single_file_utils).copy()
    exec(source.replace("inner_dim = 3072", f"inner_dim = {SIDE}"), space)
    return lambda weights: space["convert_flux_transformer_checkpoint_to_diffusers"](dict(weights))


def original_flux():
    """Random weights under the original names, in the shapes of the original code."""
    shapes = {"img_in": (SIDE, 4), "txt_in": (SIDE, 12), "final_layer.linear": (4, SIDE)}
    shapes["final_layer.adaLN_modulation.1"] = (2 * SIDE, SIDE)
    for one, size in (("time_in", 256), ("vector_in", 10), ("guidance_in", 256)):
        shapes |= {f"{one}.in_layer": (SIDE, size), f"{one}.out_layer": (SIDE, SIDE)}
    norms = {}
    for block in range(2):
        for side in ("img", "txt"):
            start = f"double_blocks.{block}.{side}"
            shapes |= {f"{start}_mod.lin": (6 * SIDE, SIDE), f"{start}_attn.qkv": (3 * SIDE, SIDE)}
            shapes |= {f"{start}_attn.proj": (SIDE, SIDE), f"{start}_mlp.0": (4 * SIDE, SIDE)}
            shapes[f"{start}_mlp.2"] = (SIDE, 4 * SIDE)
            norms |= {f"{start}_attn.norm.{one}_norm.scale": torch.ones(8) for one in ("query", "key")}
        start = f"single_blocks.{block}"
        shapes |= {f"{start}.modulation.lin": (3 * SIDE, SIDE), f"{start}.linear1": (7 * SIDE, SIDE)}
        shapes[f"{start}.linear2"] = (SIDE, 5 * SIDE)
        norms |= {f"{start}.norm.{one}_norm.scale": torch.ones(8) for one in ("query", "key")}
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    biases = {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    return weights | biases | norms, shapes


LAYERS = [
    *["x_embedder", "context_embedder", "norm1.linear", "norm1_context.linear", "norm.linear", "proj_mlp"],
    *["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out", "proj_out"],
    *["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "norm_out.linear"],
    *["linear_1", "linear_2"],
]


@pytest.mark.parametrize("root", ["", "model.diffusion_model."])
def test_diffusers_names_over_the_original_flux(run, tmp_path, root):
    weights, _ = original_flux()
    model = flux()
    model.load_state_dict(converter()(weights))
    model.add_adapter(LoraConfig(r=3, lora_alpha=3, init_lora_weights=False, target_modules=LAYERS))
    layers = get_peft_model_state_dict(model)
    save_file({f"transformer.{name}": tensor for name, tensor in layers.items()}, tmp_path / FILE)
    save_file({root + name: tensor for name, tensor in weights.items()}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / FILE, "-o", out).code == 0
    expected = flux()
    expected.load_state_dict(converter()(weights))
    expected.load_lora_adapter(tmp_path, weight_name=FILE)
    expected.fuse_lora()
    expected.unload_lora()
    assert_same(converter()(load_file(out)), dict(expected.state_dict()))


@pytest.mark.parametrize("base", ["diffusers", "original"])
@pytest.mark.parametrize("form", ["lora_unet_", "diffusion_model."])
def test_original_names_over_flux_in_either_naming(run, tmp_path, base, form):
    weights, shapes = original_flux()
    generator = torch.Generator().manual_seed(1)
    tensors, merged = {}, dict(weights)
    for name, (rows, columns) in shapes.items():
        a, b = torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator)
        merged[f"{name}.weight"] = weights[f"{name}.weight"].double() + b.double() @ a.double()
        flat = name.replace(".", "_") if form == "lora_unet_" else name
        ends = ("lora_down", "lora_up") if form == "lora_unet_" else ("lora_A", "lora_B")
        tensors |= {f"{form}{flat}.{ends[0]}.weight": a, f"{form}{flat}.{ends[1]}.weight": b}
    save_file(tensors, tmp_path / FILE)
    stored = weights if base == "original" else converter()(weights)
    save_file(stored, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / FILE, "-o", out).code == 0
    found = load_file(out)
    assert_same(converter()(found) if base == "original" else found, converter()(merged))
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert {layer["adapter_rank"] for layer in report["layers"] if "adapter_rank" in layer} == {3}


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_an_extracted_file_is_what_diffusers_fuses(run, tmp_path, kind, form):
    """Of every part of a pipeline, at full rank: the matrices of the fine-tune."""
    make, _, parts = PIPELINES[kind]
    make().save_pretrained(tmp_path / "base")
    tuned = make()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in parts:
            for tensor in getattr(tuned, part).parameters():
                if tensor.ndim > 1:
                    tensor += 0.02 * torch.randn(tensor.shape, generator=noise)
    tuned.save_pretrained(tmp_path / "tuned")
    for part in parts:
        out = tmp_path / f"{part}.safetensors"
        words = ("extract", tmp_path / "base", tmp_path / "tuned", "-o", out, "--rank", "999", "--form", form)
        embeddings = () if part == "unet" else ("--exclude", "*embed*")
        result = run(*words, "--parts", part, *embeddings)
        assert result.code == 0, result.err
        stored = load_file(out)
        ends = (
            ("lora_down.weight", "lora_up.weight") if form == "kohya" else ("lora_A.weight", "lora_B.weight")
        )
        assert all(name.endswith(ends) for name in stored)
        made = fused(make(), out, [part])[part]
        expected = dict(getattr(tuned, part).state_dict())
        changed = {
            name
            for name, tensor in expected.items()
            if tensor.ndim > 1
            and (part == "unet" or "embed" not in name)
            and not (form == "kohya" and name.startswith("add_embedding"))
        }
        assert len(stored) == 2 * len(changed)
        for name in changed:
            torch.testing.assert_close(made[name], expected[name].double(), rtol=1e-4, atol=1e-5, msg=name)


def test_what_has_no_names_of_a_file(run, tmp_path):
    make, _, _ = PIPELINES["SD"]
    make().save_pretrained(tmp_path / "base")
    words = ("extract", tmp_path / "base", tmp_path / "base", "-o")
    kohya = ("--form", "kohya")
    for out, options, problem in (
        (tmp_path / "out", kohya, "an adapter with the names of kohya is a file: expected"),
        (tmp_path / "out.safetensors", (), "an adapter needs a folder as output"),
        (tmp_path / "vae.safetensors", (*kohya, "--parts", "vae"), "kohya's files have no name for vae"),
    ):
        refused = run(*words, out, "--rank", "2", *options)
        assert refused.code != 0
        assert problem in refused.err
    unet_alone = (tmp_path / "base" / "unet",) * 2
    refused = run(
        "extract", *unet_alone, "-o", tmp_path / "x.safetensors", "--rank", "2", "--form", "diffusers"
    )
    assert "is for a part of a pipeline's folder; without --form, it is a folder for peft" in refused.err
