"""LoRA adapters: their configurations and factors, in peft's folders and in single files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.catalogue.table import Make, accepted, both, file, refused

MERGED = "edit base.safetensors in -o out"
ALONE = "edit - in --as-adapter -o out"
AMONG = "edit base.safetensors finetuned.safetensors in -o out"
AS_BASE = "edit in finetuned.safetensors -o out"
CONFIG = "in/adapter_config.json"
WEIGHTS = "in/adapter_model.safetensors"
LORA = "lora.safetensors"
STEM = "base_model.model.block"
NEW = {"base_model.model.new.weight": torch.ones(2, 2)}
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
N = 200_000


def factors(stem: str = STEM, rank: int = 2, out: int = 8, into: int = 6) -> dict[str, torch.Tensor]:
    seeded = torch.Generator().manual_seed(2)
    return {
        f"{stem}.lora_A.weight": torch.randn(rank, into, generator=seeded),
        f"{stem}.lora_B.weight": torch.randn(out, rank, generator=seeded),
    }


def adapter(tensors: dict[str, torch.Tensor] | None = None, **options: Any) -> Make:
    """Makes an adapter of these factors, whose configuration has these options."""

    def make() -> None:
        file(json.dumps({**PLAIN, **options}), CONFIG)()
        save_file(factors() if tensors is None else tensors, WEIGHTS)

    return make


def configured(content: bytes) -> Make:
    """Makes an adapter whose configuration has this content."""
    return both(adapter(), file(content, CONFIG))


NOT_JSON = "not valid JSON"
NOT_A = "not the configuration of an adapter"
CONFIGS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", NOT_JSON),
    "a list": (b"[]", NOT_A),
    "a number": (b"7", NOT_A),
    "null": (b"null", NOT_A),
    "an empty object": (b"{}", NOT_A),
    "half an object": (b'{"peft_type": "LORA"', NOT_JSON),
    "deep lists": (b"[" * 100_000, "nested too deeply"),
    "no UTF-8": (b'{"peft_type": "\xff"}', "not valid UTF-8"),
    "half a character": (rb'{"peft_type": "\ud800"}', "not valid Unicode"),
    "5000 digits": (b'{"r": ' + b"9" * 5000 + b"}", NOT_JSON),
    "10,000,000 parts": (b"[" + b"{}," * 10_000_000 + b"{}]", "too many parts"),
}
NAMES = "modules_to_save must be a list of names"
R = "r must be a positive whole number"
ALPHA = "lora_alpha must be a number"
SUPPORTED = "which is not supported"
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"peft_type": None}, "peft_type is None"),
    "LoHa": ({"peft_type": "LOHA"}, "kind 'LOHA', and only LORA can be read"),
    "a kind in lower case": ({"peft_type": "lora"}, "kind 'lora'"),
    "a list of kinds": ({"peft_type": ["LORA"]}, "peft_type is ['LORA']"),
    "a kind of control characters": ({"peft_type": "\x1b[2J\u202e"}, "this is an adapter of peft's kind"),
    "a kind of a megabyte": ({"peft_type": "x" * 1_000_000}, "this is an adapter of peft's kind"),
    **{
        f"the initialisation {init}": ({"init_lora_weights": init}, "may have changed the base")
        for init in ("pissa", "OLoRA", "loftq", "new")
    },
    "an initialisation of a list": ({"init_lora_weights": []}, "may have changed the base"),
    "an initialisation of a number": ({"init_lora_weights": 1}, "may have changed the base"),
    "layers that repeat": ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication is set"),
    "LoftQ": ({"loftq_config": {"loftq_bits": 4}}, "loftq_config is set"),
    "an option of tomorrow": ({"use_new": True}, "use_new is set"),
    "a configuration of tomorrow": ({"new_config": {"a": 1}}, "new_config is set"),
    "activated LoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    "a flag of text": ({"use_dora": "false"}, "use_dora must be true or false"),
    "a flag of a number": ({"use_rslora": 1}, "use_rslora must be true or false"),
    "a flag of a list": ({"fan_in_fan_out": []}, "fan_in_fan_out must be true or false"),
    "r of 0": ({"r": 0}, R),
    "a negative r": ({"r": -2}, R),
    "r as a float": ({"r": 2.0}, R),
    "r as text": ({"r": "2"}, R),
    "r as a boolean": ({"r": True}, R),
    "r of null": ({"r": None}, R),
    "r as a list": ({"r": [2]}, R),
    "r of NaN": ({"r": float("nan")}, R),
    "r of 1e9": ({"r": 10**9}, "expected 1000000000, found 2"),
    "r of 4000 digits": ({"r": 10**4000}, R),
    "r of another rank": ({"r": 3}, "the rank differs from adapter_config.json: expected 3, found 2"),
    "an alpha of text": ({"lora_alpha": "16"}, ALPHA),
    "an alpha of NaN": ({"lora_alpha": float("nan")}, ALPHA),
    "an infinite alpha": ({"lora_alpha": float("-inf")}, ALPHA),
    "an alpha of 1e300": ({"lora_alpha": 1e300}, ALPHA),
    "an alpha of 4000 digits": ({"lora_alpha": 10**4000}, ALPHA),
    "an alpha of null": ({"lora_alpha": None}, ALPHA),
    "an alpha of a list": ({"lora_alpha": [4]}, ALPHA),
    "an alpha of true": ({"lora_alpha": True}, ALPHA),
    "an alpha of 0": ({"lora_alpha": 0}, "0"),
    "patterns in a list": ({"rank_pattern": ["block"]}, "rank_pattern must map names to numbers"),
    "patterns in text": ({"alpha_pattern": "block"}, "alpha_pattern must map names to numbers"),
    "a rank of a pattern of 0": ({"rank_pattern": {"block": 0}}, "rank_pattern must be"),
    "a rank of a pattern of text": ({"rank_pattern": {"block": "2"}}, "rank_pattern must be"),
    "another rank of a pattern": ({"rank_pattern": {"block": 7}}, "expected 7, found 2"),
    "an alpha of a pattern of NaN": ({"alpha_pattern": {"block": float("nan")}}, "alpha_pattern must be"),
    "an alpha of a pattern of an object": ({"alpha_pattern": {"block": {}}}, "alpha_pattern must be"),
    "a pattern that looks behind": ({"rank_pattern": {"(?<=a)b": 2}}, SUPPORTED),
    "a pattern that refers back": ({"rank_pattern": {r"(a)\1": 2}}, SUPPORTED),
    "a pattern of nested repeats": ({"rank_pattern": {"((a+)+)+$": 2}}, SUPPORTED),
    "a pattern of open brackets": ({"rank_pattern": {"[" * 100: 2}}, SUPPORTED),
    "a pattern of 301 characters": ({"rank_pattern": {"a" * 301: 2}}, SUPPORTED),
    "a pattern of a megabyte": ({"rank_pattern": {"a" * 1_000_000: 2}}, SUPPORTED),
    "a pattern of wrong numbers": ({"rank_pattern": {"a{9,1}": 2}}, SUPPORTED),
    "10,001 patterns": ({"rank_pattern": {f"x{one}": 2 for one in range(10_001)}}, "too many patterns"),
    "10,000 slow patterns": (
        {"rank_pattern": {f"{'.*' * 140}{one}": 2 for one in range(10_000)}},
        "the patterns of rank_pattern are too long",
    ),
    "parameters in text": ({"target_parameters": "block.weight"}, "must be a list of names"),
    "parameters of numbers": ({"target_parameters": [1]}, "must be a list of names"),
    "parameters in an object": ({"target_parameters": {"a": 1}}, "must be a list of names"),
    "modules to save in text": ({"modules_to_save": "head"}, NAMES),
    "modules to save of numbers": ({"modules_to_save": [1]}, NAMES),
    "modules to save of null": ({"modules_to_save": [None]}, NAMES),
    "a number of modules to save": ({"modules_to_save": 1}, NAMES),
    "an object of modules to save": ({"modules_to_save": {"a": 1}}, NAMES),
    "a bias that is not there": ({"lora_bias": True}, "has no bias, but adapter_config.json says otherwise"),
    "magnitudes that are not there": ({"use_dora": True}, "has no magnitude, but adapter_config.json"),
}

A, B = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"
FIT = "the factors do not fit each other"
FACTORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "nothing": ({}, "holds no update"),
    "A alone": ({A: torch.ones(2, 6)}, "factor B of the same module is missing"),
    "B alone": ({B: torch.ones(8, 2)}, "factor A of the same module is missing"),
    "two ranks": (factors() | {B: torch.ones(8, 3)}, FIT),
    "rank 0": ({A: torch.ones(0, 6), B: torch.ones(8, 0)}, "is empty or has rank 0"),
    "no columns": (factors(into=0), "is empty or has rank 0"),
    "vectors": ({A: torch.ones(2), B: torch.ones(2)}, FIT),
    "scalars": ({A: torch.ones(()), B: torch.ones(())}, FIT),
    "a matrix and a kernel": (factors() | {A: torch.ones(2, 6, 1, 1)}, FIT),
    "integers": ({A: torch.ones(2, 6).int(), B: torch.ones(8, 2).int()}, "unsupported dtype in an adapter"),
    "bytes": ({A: torch.ones(2, 6).byte(), B: torch.ones(8, 2)}, "unsupported dtype in an adapter"),
    "floats of 8 bits": (
        {A: torch.ones(2, 6).to(torch.float8_e4m3fn), B: torch.ones(8, 2)},
        "unsupported dtype in an adapter",
    ),
    "a foreign key": (factors() | {f"{STEM}.lora_E": torch.ones(2)}, "not a key of a LoRA adapter"),
    "a module of evil names": (
        factors("base_model.model.\x1b[2J\u202e[red]"),
        "changes tensors that the base does not have",
    ),
    "a module of nothing": (factors("base_model.model."), "not a key of a LoRA adapter"),
    "a module that the base lacks": (factors("base_model.model.other"), "does not have: 'other.weight'"),
    "the head turned": (factors("base_model.model.head", out=8, into=5), "does not fit the base"),
    "another size": (factors(out=9), "does not fit the base"),
    "more wrappers than parameters": (factors(f"{STEM}.base_layer.base_layer"), "has more wrappers than"),
    "200,000 wrappers": (factors(f"{STEM}{'.base_layer' * N}"), "has more wrappers than"),
    "a name of a megabyte": (factors("base_model.model." + "x" * 1_000_000), "does not have"),
    "a bias of another size": (factors() | {f"{STEM}.bias": torch.ones(9)}, "does not fit the base"),
    "a magnitude without DoRA": (factors() | {f"{STEM}.lora_magnitude_vector": torch.ones(8)}, "otherwise"),
    "NaN in a factor": (factors() | {A: torch.full((2, 6), float("nan"))}, "NaN or Inf"),
    "Inf in a factor": (factors() | {B: torch.full((8, 2), float("inf"))}, "NaN or Inf"),
    "factors whose product is too large": (
        {A: torch.full((2, 6), 1e38), B: torch.full((8, 2), 1e38)},
        "overflows",
    ),
    "rows that the base lacks": (
        {"base_model.model.head.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        "c",
    ),
}
ROWS_OF = "base_model.model.head.token_adapter.trainable_tokens_delta"
INDICES: dict[str, Any] = {
    "none": None,
    "text": "1",
    "negative": [-1, 0],
    "fractions": [0.5, 1],
    "twice the same": [1, 1],
    "too few": [1],
    "beyond the rows": [1, 4],
    "of 2^70": [1, 2**70],
    "of another module": {"other": [0, 1]},
    "true": [True, False],
}
FOLDERS: dict[str, tuple[Make, str]] = {
    "no weights": (both(adapter(), lambda: Path(WEIGHTS).unlink()), "an adapter without weights"),
    "no configuration": (both(adapter(), lambda: Path(CONFIG).unlink()), "adapter_config.json is missing"),
    "weights that are noise": (both(adapter(), file(b"\xff" * 50, WEIGHTS)), "header length is impossible"),
    "weights that are cut": (both(adapter(), lambda: os.truncate(WEIGHTS, 150)), "length is impossible"),
    "weights that are a FIFO": (
        both(adapter(), lambda: Path(WEIGHTS).unlink(), lambda: os.mkfifo(WEIGHTS)),
        "not a regular file",
    ),
    "weights that are a folder": (
        both(adapter(), lambda: Path(WEIGHTS).unlink(), lambda: Path(WEIGHTS).mkdir()),
        "not a regular file",
    ),
    "a configuration that is a FIFO": (
        both(adapter(), lambda: Path(CONFIG).unlink(), lambda: os.mkfifo(CONFIG)),
        "not a regular file",
    ),
    "a configuration that is a folder": (
        both(adapter(), lambda: Path(CONFIG).unlink(), lambda: Path(CONFIG).mkdir()),
        "not a regular file",
    ),
    "a configuration that is a device": (
        both(adapter(), lambda: Path(CONFIG).unlink(), lambda: Path(CONFIG).symlink_to("/dev/zero")),
        "not a regular file",
    ),
    "a configuration of 200 MB": (both(adapter(), lambda: os.truncate(CONFIG, 200_000_000)), "too large"),
}


def lora(changes: dict[str, torch.Tensor | None], metadata: dict[str, str] | None = None) -> Make:
    """Makes a single-file LoRA as diffusers writes it."""
    whole = {"unet.block.lora_A.weight": torch.ones(2, 6), "unet.block.lora_B.weight": torch.ones(8, 2)}

    def make() -> None:
        tensors = {name: tensor for name, tensor in (whole | changes).items() if tensor is not None}
        save_file(tensors, LORA, metadata=metadata)

    return make


LA, LB, LALPHA = "unet.block.lora_A.weight", "unet.block.lora_B.weight", "unet.block.alpha"
META = "lora_adapter_metadata"
FILES: dict[str, tuple[Make, str]] = {
    "A alone": (lora({LB: None}), "factor B of the same module is missing"),
    "two ranks": (lora({LB: torch.ones(8, 3)}), "the factors differ in rank"),
    "rank 0": (lora({LA: torch.ones(0, 6), LB: torch.ones(8, 0)}), "c"),
    "another size": (lora({LB: torch.ones(9, 2)}), "the factors do not fit the base"),
    "an alpha of NaN": (lora({LALPHA: torch.tensor(float("nan"))}), "alpha is not a finite number"),
    "an infinite alpha": (lora({LALPHA: torch.tensor(float("inf"))}), "alpha is not a finite number"),
    "an alpha of two numbers": (lora({LALPHA: torch.ones(2)}), "alpha is not a number"),
    "an alpha of no number": (lora({LALPHA: torch.ones(0)}), "empty tensors in place of weights"),
    "an alpha of true": (lora({LALPHA: torch.tensor(True)}), "alpha is not a number"),
    "vectors": (lora({LA: torch.ones(2), LB: torch.ones(2)}), "not a LoRA factor"),
    "integers": (lora({LA: torch.ones(2, 6).int()}), "not a LoRA factor"),
    "another tensor": (lora({"unet.x": torch.ones(2)}), "neither a LoRA factor nor an alpha"),
    "a module that the base lacks": (
        lora({"unet.y.lora_A.weight": torch.ones(2, 6), "unet.y.lora_B.weight": torch.ones(8, 2)}),
        "the base has no module 'y'",
    ),
    "metadata that are no JSON": (lora({}, {META: "{"}), NOT_JSON),
    "metadata that are a list": (lora({}, {META: "[]"}), "is not a JSON object"),
    "metadata deep in lists": (lora({}, {META: "[" * 100_000}), "nested too deeply"),
    "metadata of patterns in a list": (
        lora({}, {META: '{"unet.r": 2, "unet.alpha_pattern": ["a"]}'}),
        "is not a JSON object of at most",
    ),
    "metadata of a slow pattern": (
        lora({}, {META: '{"unet.r": 2, "unet.alpha_pattern": {"(a+)+$": 1}}'}),
        "a pattern that is not supported",
    ),
    "metadata of 5000 patterns": (
        lora({}, {META: json.dumps({"unet.r": 2, "unet.alpha_pattern": {f"x{n}": 1 for n in range(5000)}})}),
        "of at most 4,096 entries",
    ),
    "metadata of PiSSA": (lora({}, {META: '{"unet.init_lora_weights": "pissa"}'}), "more than LoRA"),
    "metadata of an alpha of text": (lora({}, {META: '{"unet.lora_alpha": "x"}'}), "alpha"),
    "metadata of an alpha of NaN": (lora({}, {META: '{"unet.lora_alpha": NaN}'}), "alpha"),
    "metadata of an alpha of null": (lora({}, {META: '{"unet.lora_alpha": {"a": 1}}'}), "alpha"),
}

TAKEN: dict[str, Make] = {
    "200,000 parameters": adapter(target_parameters=[f"other.{one}" for one in range(N)]),
    "the same parameter 200,000 times": adapter(target_parameters=["block.weight"] * N),
    "a base that leads elsewhere": adapter(base_model_name_or_path="../../outside"),
    "a base that is a path of the system": adapter(base_model_name_or_path="/etc"),
    "a base of control characters": adapter(base_model_name_or_path="\x1b[2J\u202e[red]"),
    "a base that is a number": adapter(base_model_name_or_path=7),
    "a base of a megabyte": adapter(base_model_name_or_path="x" * 1_000_000),
    "code that the configuration names": adapter(
        auto_mapping={"parent_library": "evil", "base_model_class": "X"}
    ),
    "a revision of control characters": adapter(revision="\x1b[2J"),
    "modules that are a slow pattern": adapter(target_modules="((a+)+)+$"),
    "modules of numbers": adapter(target_modules=[1, None]),
    "a dropout of NaN": adapter(lora_dropout=float("nan")),
    "a negative alpha": adapter(lora_alpha=-4),
    "an alpha of 1e-300": adapter(lora_alpha=1e-300),
    "patterns that keep re busy": adapter(rank_pattern={f"{'.*' * 40}x{one}": 2 for one in range(50)}),
    "a byte-order mark": both(adapter(), file(b"{}", "in/x.json")),
    "code beside the adapter": both(adapter(), file("open('canary', 'w')\n", "in/evil.py")),
}

ROWS = [
    *(
        refused(f"a configuration of {name}", configured(content), CONFIG, words, lines=[MERGED, ALONE])
        for name, (content, words) in CONFIGS.items()
    ),
    *(
        refused(name, adapter(**options), "in", words, lines=[MERGED, ALONE] if words != "0" else [ALONE])
        for name, (options, words) in OPTIONS.items()
    ),
    *(
        refused(f"factors: {name}", adapter(made), words, lines=[MERGED])
        for name, (made, words) in FACTORS.items()
    ),
    *(
        refused(
            f"rows of numbers: {name}",
            adapter({ROWS_OF: torch.ones(2, 8).bfloat16()}, trainable_token_indices=numbers),
            "in: ",
            "trainable_token",
            lines=[MERGED],
        )
        for name, numbers in INDICES.items()
    ),
    *(refused(name, make, "in", words, lines=[MERGED, AS_BASE]) for name, (make, words) in FOLDERS.items()),
    *(
        refused(
            f"a single file: {name}",
            make,
            "lora.safetensors",
            words,
            lines=["edit base.safetensors lora.safetensors -o out"],
        )
        for name, (make, words) in FILES.items()
    ),
    *(accepted(name, make, lines=[MERGED, ALONE]) for name, make in TAKEN.items()),
    refused("an adapter as the base", adapter(), "in", lines=[AS_BASE]),
    refused("adapters without a base", adapter(), "base", lines=["soup in finetuned.safetensors -o out"]),
    accepted("an adapter among checkpoints", adapter(), lines=[AMONG]),
    *(
        accepted(
            f"a new module, and {name}",
            adapter(
                factors() | {"base_model.model.new.weight": torch.ones(2, 2)},
                modules_to_save=["new"],
                **options,
            ),
            lines=[MERGED],
        )
        for name, options in {
            "a task of a list": {"task_type": ["SEQ_CLS"]},
            "a task of an object": {"task_type": {"a": 1}},
            "a task of tomorrow": {"task_type": "\x1b[2J"},
        }.items()
    ),
]

THOROUGH = {
    "a configuration of 10,000,000 parts",
    "the same parameter 200,000 times",
    "factors: a name of a megabyte",
}
