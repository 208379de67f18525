"""Hints about state dicts of models that have an adapter in them."""

from __future__ import annotations

import re
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.hints.table import Trial, follows
from tests.models import MODELS, build

OTHER = peft.LoHaConfig(r=2, target_modules=["q_proj"])


def tuned(config: peft.PeftConfig, kind: str = "llama") -> peft.PeftModel:
    """A model of peft with what was trained in it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(build(*MODELS[kind]), config)
        for name, weights in model.named_parameters():
            weights += (
                0.05 * torch.randn(weights.shape) * (config.peft_type.value.lower()[:3] in name.lower())
            )
    return model


@follows("sources/kinds.py", "with an adapter in it that is not LoRA; merge it with peft")
@follows(
    "sources/kinds.py", "with several adapters in it", "whose scale (lora_alpha and r) is in no state dict"
)
@follows("adapters/merged_model.py", "which would not follow; merge it with peft")
def what_peft_merges(at: Trial) -> None:
    """Load the state dict into the same model again, merge it and save that."""
    is_tied = at.site.file.startswith("adapters/")
    kind, base = "llama, tied" if is_tied else "llama", at.tmp / "base"
    lora = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["embed_tokens" if is_tied else "q_proj"])
    config = OTHER if "not LoRA" in at.site.problem else lora
    build(*MODELS[kind]).save_pretrained(base)
    model, again = tuned(config, kind), tuned(config, kind)
    for one in (model, again) if "several" in at.site.problem else ():
        one.add_adapter("other", config)
    run = at.tmp / "run"
    run.mkdir()
    torch.save(model.state_dict(), run / "dump.pt")
    if is_tied:
        config.save_pretrained(run)
        model.get_base_model().config.save_pretrained(run)
    given = run if is_tied else run / "dump.pt"
    at.refused("edit", base, given, "-o", at.out)
    again.load_state_dict(torch.load(run / "dump.pt", weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ties, which the merge changes
        again.merge_and_unload().save_pretrained(at.tmp / "merged")
    at.loads("edit", base, at.tmp / "merged", "-o", at.out)
    transformers.AutoModelForCausalLM.from_pretrained(at.out)
    if "scale" in at.site.problem:
        assert "of the training's LoraConfig" in at.hint
        config.save_pretrained(run)
        at.loads("edit", base, given, "-o", at.tmp / "of-dump", output=at.tmp / "of-dump")
        found, wanted = (load_file(one / "model.safetensors") for one in (at.tmp / "of-dump", at.out))
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


@follows(
    "tensors/factors.py",
    "'*…*' keeps such tensors as fine-tuned; merging",
    "merge it with the program that made it",
)
def factors_of_another_program(at: Trial) -> None:
    """That program is not at hand: the update is computed as it is defined, and added to the weights."""
    factors = {"block.lora_A": torch.randn(2, 6), "block.lora_B": torch.randn(8, 2)}
    tensors = load_file(at.finetuned)
    save_file({**tensors, **factors}, at.finetuned)
    is_one = "--exclude" in at.site.hint
    command = ("edit", at.base, at.finetuned, *([] if is_one else [at.base]), "-o", at.out)
    at.refused(*command)
    if is_one:
        (glob,) = re.findall(r"--exclude '(.*?)'", at.hint)
        at.loads(*command, "--exclude", glob)
    merged = tensors["block.weight"] + factors["block.lora_B"] @ factors["block.lora_A"]
    save_file({**tensors, "block.weight": merged}, at.finetuned)
    at.loads(*command, "--overwrite")
