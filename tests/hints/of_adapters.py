"""What hints on LoRA adapters lead to: an adapter that is merged, or edited."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.hints.table import Trial, follows
from tests.models import MODELS, build, step
from tests.peft_adapters import make

RANK = 2
BLOCK = {"block.weight": (8, 6)}


def factors(
    name: str, shape: tuple[int, ...], *, a: str = "lora_A", b: str = "lora_B"
) -> dict[str, torch.Tensor]:
    ones = [1] * (len(shape) - 2)
    return {
        f"{name}.{a}.weight": torch.randn(RANK, *shape[1:]),
        f"{name}.{b}.weight": torch.randn(shape[0], RANK, *ones),
    }


def adapter(at: Trial, shapes: dict[str, tuple[int, ...]], **config: object) -> Path:
    """A folder as peft writes it, with an update of each of these weights."""
    folder = at.tmp / "adapter"
    folder.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= factors(module, shape)
        if config.get("use_dora"):
            tensors[f"{module}.lora_magnitude_vector"] = torch.ones(shape[0])
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def lora_file(at: Trial, modules: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    """A file in kohya's form."""
    path = at.tmp / "lora.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in modules.items():
        tensors |= factors(name, shape, a="lora_down", b="lora_up")
    save_file(tensors, path, metadata)
    return path


# -- the base --------------------------------------------------------------------------------------


@follows("pipeline/inputs.py", "a LoRA adapter needs its base")
def an_adapter_alone(at: Trial) -> None:
    folder = adapter(at, BLOCK, base_model_name_or_path=str(at.base))
    command = ("soup", folder, at.finetuned, "-o", at.out)
    at.refused(*command)
    option, base = re.findall(r"add (--base) BASE \(it names '(.*)'\)", at.hint)[0]
    at.loads(*command, option, base)


@follows("pipeline/inputs.py", "give the base first, then the adapter")
def the_adapter_first(at: Trial) -> None:
    folder = adapter(at, BLOCK)
    at.refused("edit", folder, at.base, "-o", at.out)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("pipeline/inspection.py", "give the base instead of -")
def the_spectrum_of_a_dora_adapter(at: Trial) -> None:
    folder = adapter(at, BLOCK, use_dora=True)
    at.refused("inspect-spectrum", "-", folder)
    at.works("inspect-spectrum", at.base, folder)


@follows("adapters/table.py", "give the base")
def a_lora_file_alone(at: Trial) -> None:
    path, output = lora_file(at, {"lora_unet_block": (8, 6)}), at.tmp / "out.safetensors"
    at.refused("edit", "-", path, "-o", output, "--as-adapter")
    at.loads("edit", at.base, path, "-o", output, "--as-adapter", output=output)


@follows("adapters/peft.py", "does not fit the base; is it the adapter of another model?")
@follows("adapters/lora_file.py", "is it an adapter of another model?")
def the_adapter_of_another_model(at: Trial) -> None:
    other = at.tmp / "other.safetensors"
    save_file({"block.weight": torch.randn(9, 7), "above.weight": torch.randn(9, 7)}, other)
    if at.site.file == "adapters/peft.py":
        given = adapter(at, {"block.weight": (9, 7)})
    else:
        given = lora_file(at, {"lora_unet_above": (9, 7), "lora_unet_block": (9, 7)})
    at.refused("edit", at.base, given, "-o", at.out)
    at.loads("edit", other, given, "-o", at.out)


@follows("adapters/base.py", "--rename OLD=NEW replaces OLD in the names of the base")
def names_that_differ(at: Trial) -> None:
    folder = adapter(at, {"model.block.weight": (8, 6)})
    save_file({"net.block.weight": torch.randn(8, 6)}, at.base)
    at.refused("edit", at.base, folder, "-o", at.out)
    at.loads("edit", at.base, folder, "-o", at.out, at.options()[0], "net=model")


@follows("adapters/base.py", "give it in the form that the adapter was trained on")
def a_base_whose_weights_are_fused(at: Trial) -> None:
    parts = {f"block.attn.{part}_proj.weight": torch.randn(8, 6) for part in "qkv"}
    for name in ("q_proj", "qkv_proj"):
        name = f"block.attn.{name}.weight"
        fused = {"block.attn.qkv_proj.weight": torch.cat([*parts.values()])}
        trained_on, other = (fused, parts) if name in fused else (parts, fused)
        folder = adapter(at, {name: trained_on[name].shape})
        save_file(other, at.base)
        at.refused("edit", at.base, folder, "-o", at.out)
        save_file(trained_on, at.base)
        at.loads("edit", at.base, folder, "-o", at.out, "--overwrite")


@follows("adapters/base.py", "if the base stores experts one by one")
def experts_one_by_one(at: Trial) -> None:
    made, base, fused = make("experts", at.tmp), at.tmp / "one by one", at.tmp / "fused"
    model = build(*MODELS["qwen3-moe"])
    model.save_pretrained(base)
    at.refused("edit", base, made.adapter, "-o", at.out)
    option, value = re.findall(r"(save_original_format)=(\w+)", at.hint)[0]
    model.save_pretrained(fused, **{option: json.loads(value.lower())})
    at.loads("edit", fused, made.adapter, "-o", at.out)
    assert transformers.AutoModelForCausalLM.from_pretrained(at.out, local_files_only=True)


@follows("adapters/base.py", "changes …, which the base ties to", "changes weights that the base ties to")
def an_update_of_one_of_two_that_are_tied(at: Trial) -> None:
    """The head is given weights of its own, and the configuration says so."""
    base, untied, folder = (at.tmp / name for name in ("base", "untied", "adapter"))
    save_tied(base)
    chosen = "lm_head" if at.site.problem.startswith("changes …") else "embed_tokens"
    train(folder, build(*MODELS["llama, tied"]), ["q_proj", chosen])
    at.refused("edit", base, folder, "-o", at.out)
    command = shlex.split(at.hint.partition(": ")[2])
    assert (command[0], command[-1]) == ("python", "UNTIED")
    subprocess.run([sys.executable, *command[1:-1], str(untied)], check=True, capture_output=True)
    at.loads("edit", untied, folder, "-o", at.out)
    assert not transformers.AutoModelForCausalLM.from_pretrained(at.out).config.tie_word_embeddings


@follows("adapters/fit.py", "was trained with more rows than the base has")
def an_adapter_without_the_rows_of_its_vocabulary(at: Trial) -> None:
    base, folder, model = at.tmp / "base", at.tmp / "adapter", build(*MODELS["llama"])
    model.save_pretrained(base)
    model.resize_token_embeddings(110)
    adapted = train(folder, model, ["q_proj", "embed_tokens", "lm_head"])
    command = ("edit", base, folder, "-o", at.out, "--on-mismatch", "overlap")
    at.refused(*command)
    assert "save_pretrained(OUT, save_embedding_layers=True)" in at.hint
    adapted.save_pretrained(folder, save_embedding_layers=True)
    at.loads(*command)
    assert transformers.AutoModelForCausalLM.from_pretrained(at.out).config.vocab_size == 110


@follows("adapters/peft.py", "lora_alpha is 0, with which the adapter changes nothing")
def an_alpha_that_was_not_saved(at: Trial) -> None:
    folder = adapter(at, BLOCK, lora_alpha=0)
    at.refused("edit", at.base, folder, "-o", at.out)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": RANK}))
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("outputs/edited_adapter.py", "give - in place of BASE")
def an_adapter_with_an_update_for_a_tied_head(at: Trial) -> None:
    base, folder = at.tmp / "base", at.tmp / "adapter"
    save_tied(base)
    train(folder, build(*MODELS["llama, tied"]), ["q_proj", "embed_tokens"], ensure_weight_tying=True)
    at.refused("edit", base, folder, "-o", at.out, "--as-adapter")
    at.loads("edit", "-", folder, "-o", at.out, "--as-adapter")


def save_tied(folder: Path) -> None:
    build(*MODELS["llama, tied"]).save_pretrained(folder)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def train(
    folder: Path, model: torch.nn.Module, targets: list[str], *, ensure_weight_tying: bool = False
) -> peft.PeftModel:
    """Write an adapter without a copy of the embedding; `ensure_weight_tying` is peft's."""
    config = peft.LoraConfig(
        r=RANK,
        init_lora_weights=ensure_weight_tying,
        target_modules=targets,
        ensure_weight_tying=ensure_weight_tying,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted


@follows("adapters/peft.py", "path_initial_model_for_weight_conversion")
def an_adapter_that_changed_its_base(at: Trial) -> None:
    """PiSSA; peft converts it to LoRA over the base as it was."""
    base, first, trained, converted = (at.tmp / name for name in ("base", "first", "trained", "converted"))
    build(*MODELS["llama"]).save_pretrained(base)
    settings = {"r": RANK, "target_modules": ["q_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(
            build(*MODELS["llama"]), peft.LoraConfig(init_lora_weights="pissa", **settings)
        )
        adapted.save_pretrained(trained)
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(first)
        adapted.peft_config["default"].init_lora_weights = "pissa"
        at.refused("edit", base, trained, "-o", at.out)
        for name, weights in adapted.named_parameters():
            if "lora_A" in name:
                weights.data += 0.1
        (option,) = re.findall(r"\bpath_initial\w+", at.hint)
        adapted.save_pretrained(converted, **{option: first})
    at.loads("edit", base, converted, "-o", at.out)


# -- the output ------------------------------------------------------------------------------------


@follows("outputs/edited_adapter.py", "of the same rank; without --as-adapter it is merged into the base")
def a_dora_adapter(at: Trial) -> None:
    command = ("edit", at.base, adapter(at, BLOCK, use_dora=True), "-o", at.out)
    at.refused(*command, "--as-adapter")
    at.loads(*command)


@follows("outputs/edited_adapter.py", "with BASE in place of -, --wise interpolates the merged model")
def a_part_of_the_way_without_the_base(at: Trial) -> None:
    shapes = {"block.weight": (8, 6), "other.weight": (8, 6)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, at.base)
    lora, options = adapter(at, shapes), ("-o", at.out, "--exclude", "other*", "--wise", "0.5")
    at.refused("edit", "-", lora, *options, "--as-adapter")
    at.loads("edit", at.base, lora, *options)


@follows("outputs/edited_adapter.py", "without --as-adapter, --wise interpolates the merged model")
def a_part_of_the_way_for_what_is_kept(at: Trial) -> None:
    shapes = {"block.weight": (8, 6), "other.weight": (8, 6)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, at.base)
    command = ("edit", at.base, adapter(at, shapes), "-o", at.out, "--exclude", "other*", "--wise", "0.5")
    at.refused(*command, "--as-adapter")
    at.loads(*command)


@follows("outputs/edited_adapter.py", "--exclude leaves it as it is")
def a_matrix_as_a_stack(at: Trial) -> None:
    shapes = {"conv.weight": (4, 3, 2), "block.weight": (8, 6)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, at.base)
    command = ("edit", at.base, adapter(at, shapes), "-o", at.out, "--as-adapter", "--stacked", "conv*")
    result = at.refused(*command)
    (name,) = re.findall(r"tensor '(.*?)'", result.err)
    at.loads(*command, *at.options(), name)


# -- files -----------------------------------------------------------------------------------------


@follows("adapters/lora_file.py", "pass the folder that holds it and adapter_config.json")
def a_file_of_an_adapter(at: Trial) -> None:
    folder = adapter(at, BLOCK)
    at.refused("edit", at.base, folder / "adapter_model.safetensors", "-o", at.out)
    at.loads("edit", at.base, folder, "-o", at.out)


@follows("outputs/edited_adapter.py", "cannot be written so; without --as-adapter it is merged into the base")
def layers_that_the_base_joins(at: Trial) -> None:
    save_file(
        {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": torch.randn(24, 6)}, at.base
    )
    path = lora_file(at, {"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (8, 6)})
    output = at.tmp / "out.safetensors"
    command = ("edit", at.base, path, "-o", output)
    at.refused(*command, "--as-adapter")
    at.loads(*command, output=output)


@follows(
    "adapters/lora_file.py",
    "but the base has no …; use a base that holds all parts, such as the model's single file$",
    "or take the … alone with --parts …",
)
def a_part_that_the_base_lacks(at: Trial) -> None:
    whole = at.tmp / "whole.safetensors"
    encoder = "text_model.encoder.layers.0.q_proj"
    names = ("model.diffusion_model.block.weight", f"cond_stage_model.transformer.{encoder}.weight")
    save_file({name: torch.randn(8, 6) for name in names}, whole)
    is_some_there = "alone" in at.site.hint
    unet = {"lora_unet_block": (8, 6)} if is_some_there else {}
    path = lora_file(at, unet | {f"lora_te_{encoder.replace('.', '_')}": (8, 6)})
    at.refused("edit", at.base, path, "-o", at.out)
    if is_some_there:
        at.loads(
            "edit",
            at.base,
            path,
            "-o",
            at.tmp / "of-unet",
            *at.options(),
            at.blanks[0],
            output=at.tmp / "of-unet",
        )
    at.loads("edit", whole, path, "-o", at.out)


def pipeline(at: Trial) -> Path:
    """A pipeline's folder, in which every part has the weights of the base."""
    folder = at.tmp / "pipeline"
    index = {name: ["library", "Model"] for name in ("unet", "text_encoder")}
    for name in index:
        (folder / name).mkdir(parents=True)
        save_file(load_file(at.base), folder / name / "model.safetensors")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@follows("adapters/lora_file.py", "changes the pipeline's …, and a run edits one part of a folder")
def several_parts_of_a_pipeline(at: Trial) -> None:
    folder, path = pipeline(at), lora_file(at, {"lora_unet_block": (8, 6), "lora_te_block": (8, 6)})
    at.refused("edit", folder, path, "-o", at.out)
    first, second = re.findall(r"--parts (\w+)", at.hint)
    at.loads("edit", folder, path, "-o", at.tmp / "first", "--parts", first, output=at.tmp / "first")
    at.loads("edit", at.tmp / "first", path, "-o", at.out, "--parts", second)


@follows("sources/locate.py", "run it with --parts …, then, over that output, with --parts …")
def several_parts_at_once(at: Trial) -> None:
    folder, path = pipeline(at), lora_file(at, {"lora_unet_block": (8, 6), "lora_te_block": (8, 6)})
    at.refused("edit", folder, path, "-o", at.out, "--parts", "unet", "--parts", "text_encoder")
    first, second = re.findall(r"--parts (\w+)", at.hint)
    at.loads("edit", folder, path, "-o", at.tmp / "first", "--parts", first, output=at.tmp / "first")
    at.loads("edit", at.tmp / "first", path, "-o", at.out, "--parts", second)


@follows("formats/other_adapters.py", "merge it with peft (merge_and_unload, then save_pretrained)")
@follows("formats/other_adapters.py", "of peft's kind …, and only LORA can be read; it changes no weights")
def another_kind_of_peft(at: Trial) -> None:
    base, given, merged = (at.tmp / name for name in ("base", "adapter", "merged"))
    build(*MODELS["llama"]).save_pretrained(base)
    is_merged = "merge" in at.site.hint
    kind = peft.LoHaConfig(r=RANK, target_modules=["q_proj"])
    if not is_merged:
        kind = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(build(*MODELS["llama"]), kind)
        adapted.save_pretrained(given)
        at.refused("edit", base, given, "-o", at.out)
        (adapted.merge_and_unload() if is_merged else step(build(*MODELS["llama"]))).save_pretrained(merged)
        at.loads("edit", base, merged, "-o", at.out)
        edited = transformers.AutoModelForCausalLM.from_pretrained(at.out)
        if not is_merged:
            peft.PeftModel.from_pretrained(edited, given)


@follows("formats/other_adapters.py", "this is …; …")
@follows("adapters/lora_metadata.py", "describes more than LoRA; merge it with the program that made it")
def more_than_lora(at: Trial) -> None:
    """That program is not at hand: the update is computed as it is defined, and added to the base."""
    base = load_file(at.base)
    if "this is" in at.site.problem:
        path, parts = at.tmp / "lokr.safetensors", (torch.randn(4, 3), torch.randn(2, 2))
        save_file({f"lora_unet_block.lokr_w{number}": part for number, part in enumerate(parts, 1)}, path)
        merged = base["block.weight"] + torch.kron(*parts)
    else:
        noted = json.dumps({"unet.use_dora": True, "unet.r": RANK, "unet.lora_alpha": RANK})
        path = at.tmp / "dora.safetensors"
        save_file(factors("unet.block", (8, 6)), path, {"lora_adapter_metadata": noted})
        b, a = (load_file(path)[f"unet.block.lora_{factor}.weight"] for factor in "BA")
        merged = base["block.weight"] + b @ a
        merged *= base["block.weight"].norm(dim=1, keepdim=True) / merged.norm(dim=1, keepdim=True)
    at.refused("edit", at.base, path, "-o", at.out)
    save_file({**base, "block.weight": merged}, at.finetuned)
    at.loads(*at.edit)


@follows("pipeline/planned.py", "`monosoup wise` interpolates with it")
def a_whole_checkpoint_is_merged(at: Trial) -> None:
    at.refused("merge", at.base, at.finetuned, "-o", at.out)
    at.loads("wise", at.base, at.finetuned, "-o", at.out, "--alpha", "0.5")
    at.loads("transplant", at.base, at.finetuned, at.base, "-o", at.out, "--overwrite")
