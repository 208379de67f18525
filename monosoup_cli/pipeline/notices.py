"""What a user should know about a run before it starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import escape
from itertools import takewhile
from shlex import quote

from monosoup_cli.errors import crop
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.names import ALIKE, are_experts_apart
from monosoup_cli.outputs.hashes import removed_hashes
from monosoup_cli.outputs.layout import written_dtype
from monosoup_cli.outputs.side_files import LARGE
from monosoup_cli.outputs.workplace import is_replacing, partial_path
from monosoup_cli.pipeline.kinship import doubts_of_names, has_nearly_all
from monosoup_cli.pipeline.provenance import names_only_in_base
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.report.words import plural
from monosoup_cli.sources.files import metadata_of
from monosoup_cli.sources.folders import targets_outside

__all__ = ["notices_of"]

BESIDE_ADAPTER = re.compile(r"(^|/)non_lora_[^/]*$")
"""Files in which LLaVA's trainer and others keep what they train without LoRA, such as a projector."""
OWN_ADAPTER = re.compile(r"/adapter_model\.(safetensors|bin)$")
"""The weights of an adapter in a folder of its own."""
STATISTICS = ("running_mean", "running_var")
"""The ends of the names of what BatchNorm measured in training."""


def notices_of(ready: Ready) -> list[str]:
    """Sentences about the inputs, and about what is copied, kept and left out."""
    inputs = ready.planned.inputs
    notices = [*ready.planned.task.notes, *inputs.notices, *ready.resources.notes]
    output = ready.planned.destination.path
    if is_replacing(output):
        notices.append(
            f"a killed run left a complete output in {partial_path(output)}: a run puts it in place"
        )
    if inputs.parent is not None:
        notices += doubts_of_names(ready.plan, inputs.parent.tensors)
    notices += _of_statistics(ready)
    code = [name for name in ready.form.side_files.names if name.endswith(".py")]
    if code:
        notices.append(f"custom code is copied, not run: {', '.join(code)}")
    model = ready.form.model
    lacks = model.config is None and not ready.form.layout.is_single_file and not model.kind.is_adapter
    if lacks and inputs.parent is not None and inputs.parent.model.config is not None:
        notices.append(
            f"OUT has no config.json, because {model.place.source} has none: loaders need BASE's config.json"
            " beside the weights, and its tokenizer"
        )
    dtype = written_dtype(model, ready.form.layout)
    if dtype is not None:
        notices.append(f"the output is {dtype}, without quantization_config: its weights were decoded")
    written = {name for file in ready.form.layout.files for name in file.header.metadata or ()}
    removed = [name for name in removed_hashes(metadata_of(model)) if name not in written]
    if removed:
        notices.append(f"removed from __metadata__, since new weights make it false: {', '.join(removed)}")
    places = {
        file.name: place
        for file in ready.form.side_files.carried
        for place in targets_outside(file.folder, [file.stored]).values()
    }
    if places:
        some = [f"{name} at {place}" for name, place in [*places.items()][:3]]
        more = ", …" if len(places) > 3 else ""
        notices.append(f"copied through links out of the folder: {', '.join(some)}{more}")
    lost = ready.form.lost
    new = [one.name for one in ready.plan.tensors if one.reason == "not_in_base" and one.name not in lost]
    if new and not ready.planned.task.kind.keeps_finetuned:
        notices.append(f"not in the base, and stored whole: {_some(new)}; models without it ignore it")
    elif new:
        hint = f"; {inputs.hint} would match more of them" if inputs.hint else ""
        notices.append(f"not in the base, and kept as fine-tuned: {_some(new)}{hint}")
    resized = [one.name for one in ready.plan.tensors if one.reason == "shape_mismatch"]
    resized = [name for name in resized if name not in lost]
    if resized and not ready.planned.task.kind.keeps_finetuned:
        notices.append(
            f"stored whole, in other shapes than the base has: {_some(resized)}; peft loads it into a base of"
            " the same shapes (a vocabulary is resized by model.resize_token_embeddings)"
        )
    carried = [name for name in ready.form.side_files.names if name.endswith(WEIGHTS)]
    apart = [name for name in carried if BESIDE_ADAPTER.search(name)]
    if apart:
        notices.append(f"trained beside the adapter, and carried but not merged: {', '.join(apart)}")
    adapters = {
        file.name: file.folder.shown(file.stored.rpartition("/")[0])
        for file in ready.form.side_files.carried
        if OWN_ADAPTER.search(file.name)
    }
    for name, place in adapters.items():
        notices.append(
            f"{name} is an adapter, and carried but not merged; pass {quote(place)} as FINETUNED to merge it"
        )
    carried = [name for name in carried if name not in apart and name not in adapters]
    if carried:
        notices.append(f"not edited, and copied as fine-tuned: {', '.join(carried)}")
    for name in (one.name for one in ready.form.side_files.left_out if one.why == LARGE):
        notices.append(f"{name} is {LARGE} and left out; --side-files {quote(escape(name))} carries it")
    is_pushed = ready.planned.destination.options.push is not None
    refused = ready.metadata.refused if is_pushed else {}  # the card is not opened before it has to be
    if refused:
        fields = [f"{name}: {crop(str(value), 60)}" for name, value in refused.items()]
        notices.append(
            f"the Hub does not accept this in a model card, so it is left out: {', '.join(fields)}"
        )
    if lost and ready.is_foreseen:
        notices.append(f"no LoRA adapter stores these, even if they changed: {_some(lost)}")
    elif lost:
        them = "it" if len(lost) == 1 else "them"
        notices.append(f"changed, but no LoRA adapter can hold {them}: {_some(lost)}")
    only_in_base = names_only_in_base(inputs.base, inputs.finetuned, ready.plan)
    are_apart = are_experts_apart(new, only_in_base)
    if inputs.base is not None and only_in_base:
        untied = [name for name in only_in_base if name not in inputs.tied]
        is_whole = has_nearly_all(ready.plan, inputs.base.tensors) and not (inputs.hint or are_apart)
        can_carry = untied and is_whole and ready.planned.can_carry_base
        way = f"; --carry-base {quote(_glob(untied))} writes what only the base has" if can_carry else ""
        tied = [f"{name} (tied, so not needed)" for name in only_in_base if name in inputs.tied]
        notices.append(f"only in the base, and not written: {_some([*untied, *tied])}{way}")
    first, *others = inputs.finetuned
    further = {name: None for source in others for name in source.tensors if name not in first.tensors}
    if further:
        place = "ONTO" if inputs.has_target else "the first fine-tuned checkpoint"
        notices.append(f"not in {place}, and not written: {_some([*further])}")
    if are_apart:
        notices.append(f"experts are fused in one input and stored one by one in the other; {ALIKE}")
    return notices


def _of_statistics(ready: Ready) -> list[str]:
    """Whether the output has running statistics of activations, which follow from weights that are new."""
    held = [one.name for one in ready.plan.tensors if one.name.endswith(STATISTICS)]
    held = [name for name in held if name not in ready.form.lost]
    if not held or not ready.plan.edited:
        return []
    return [
        f"BatchNorm statistics belong to the weights before, not to the new ones ({_some(held)}): recompute"
        " them with a pass over training data, by torch.optim.swa_utils.update_bn(loader, model)"
    ]


def _glob(names: Sequence[str]) -> str:
    """A pattern that matches all of these names, with what they have in common at the front."""
    if len(names) == 1:
        return escape(names[0])
    modules = [name.split(".")[:-1] for name in names]
    pairs = zip(min(modules), max(modules), strict=False)
    common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return escape(".".join([*common, ""])) + "*"


def _some(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    return f"{plural(len(names), 'tensor')}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
