"""State dicts of whole models of peft: read as the model that merging makes, or refused."""

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import CheckpointError
from tests import peft_adapters
from tests.models import MODELS, build
from tests.peft_adapters import CASES, tensors_in

UNMERGED = ("embedding, tied",)
READ = [name for name in CASES if name not in UNMERGED]
FRONTS = {
    "peft": "",
    "ddp": "module.",
    "lightning": "model.",
    "fabric": "_forward_module.",
    "compile": "_orig_mod.",
    "trl": "pretrained_model.",
}


def dump(made, folder, change=lambda name: name, *, is_pickle=False, config=True):
    """The folder of what `state_dict()` of the base with its adapter has, under other names."""
    folder.mkdir()
    state = {change(name): t.detach() for name, t in peft_adapters.load(made).state_dict().items()}
    if is_pickle:
        torch.save({"state_dict": state}, folder / "pytorch_model.bin")
    else:
        save_file({name: t.clone() for name, t in state.items()}, folder / "model.safetensors")
    if config:
        shutil.copy(made.adapter / "adapter_config.json", folder)
    shutil.copy(made.base / "config.json", folder)
    return folder


def are_close(found, wanted, tolerance=3e-7):
    """Equal to the rounding of float32, in which peft computes."""
    assert found.keys() >= wanted.keys()
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)
        assert error < tolerance, (name, float(error))


def loads(folder):
    """Load what was written, with no missing or unexpected key."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert model is not None
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def adapted(model, options):
    """A model of peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        return peft.get_peft_model(model, options)


def twin(path):
    """The same under another name: nothing is given twice."""
    copy = path.with_name(f"twin-{path.name}")
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    return copy


def done(result):
    assert result.code == 0, result
    return result


@pytest.mark.parametrize("name", READ)
def test_a_dump_is_read_as_what_peft_merges(run, tmp_path, name):
    made = peft_adapters.make(name, tmp_path)
    wanted = peft_adapters.merge(made, tmp_path / "merged")
    given = dump(made, tmp_path / "dump", is_pickle=True)
    said = done(run("wise", made.base, given, "--alpha", "1", "-o", tmp_path / "out")).err
    assert "a model of peft with an adapter in it, read as merged" in said
    are_close(tensors_in(tmp_path / "out"), wanted)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    loads(tmp_path / "out")


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("is_named", [True, False])
def test_wrappers_around_and_inside_of_the_names(run, tmp_path, front, is_named):
    made = peft_adapters.make("dora", tmp_path)
    merged = peft_adapters.merge(made, tmp_path / "merged")

    def change(name):
        name = name.replace("layers.1.", "layers.1._checkpoint_wrapped_module._fsdp_wrapped_module.")
        return FRONTS[front] + (name if is_named else name.replace(".default", ""))

    given = dump(made, tmp_path / "dump", change)
    done(run("soup", given, made.base, "-o", tmp_path / "out"))
    done(run("soup", tmp_path / "merged", made.base, "-o", tmp_path / "wanted"))
    assert merged.keys() == tensors_in(tmp_path / "out").keys()
    are_close(tensors_in(tmp_path / "out"), tensors_in(tmp_path / "wanted"))
    loads(tmp_path / "out")


def test_the_names_of_a_model_without_pefts_class_around_it(run, tmp_path):
    made = peft_adapters.make("linear", tmp_path)
    wanted = peft_adapters.merge(made, tmp_path / "merged")
    given = dump(made, tmp_path / "dump", lambda name: name.removeprefix("base_model.model."))
    done(run("wise", made.base, given, "--alpha", "1", "-o", tmp_path / "out"))
    are_close(tensors_in(tmp_path / "out"), wanted)


def test_names_of_peft_before_0_6_which_did_not_wrap_layers(run, tmp_path):
    made = peft_adapters.make("linear", tmp_path)
    wanted = peft_adapters.merge(made, tmp_path / "merged")
    given = dump(made, tmp_path / "dump", lambda name: name.replace(".base_layer", ""))
    done(run("wise", made.base, given, "--alpha", "1", "-o", tmp_path / "out"))
    are_close(tensors_in(tmp_path / "out"), wanted)


@pytest.mark.parametrize("role", ["edit", "stock", "soup", "beside a plain one", "base"])
def test_every_command_and_role(run, tmp_path, role):
    """The result is that of the merged models."""
    first, second = (peft_adapters.make("linear", tmp_path, seed) for seed in (1, 2))
    dumps = [dump(made, tmp_path / f"dump-{made.adapter.name}") for made in (first, second)]
    merged = [tmp_path / f"merged-{made.adapter.name}" for made in (first, second)]
    for made, folder in zip((first, second), merged, strict=True):
        peft_adapters.merge(made, folder)
    for kind, (one, other) in {"dumps": dumps, "merged": merged}.items():
        words = {
            "edit": ["edit", first.base, one, other],
            "stock": ["stock", first.base, one, other],
            "soup": ["soup", one, other],
            "beside a plain one": ["soup", one, first.base],
            "base": ["edit", one, first.base],
        }
        done(run(*words[role], "-o", tmp_path / kind))
        loads(tmp_path / kind)
    found, wanted = tensors_in(tmp_path / "dumps"), tensors_in(tmp_path / "merged")
    assert found.keys() == wanted.keys()
    are_close(found, wanted, tolerance=1e-5)


def test_an_adapter_over_a_base_that_has_one_in_it(run, tmp_path):
    first, second = (peft_adapters.make("linear", tmp_path, seed) for seed in (1, 2))
    peft_adapters.merge(first, tmp_path / "merged")
    given = dump(first, tmp_path / "dump")
    done(run("edit", given, second.adapter, "-o", tmp_path / "out"))
    done(run("edit", tmp_path / "merged", second.adapter, "-o", tmp_path / "wanted"))
    are_close(tensors_in(tmp_path / "out"), tensors_in(tmp_path / "wanted"), tolerance=1e-5)


def test_a_base_of_bfloat16(run, tmp_path):
    """peft trains adapters and what it saves whole in float32 over it."""
    made = peft_adapters.make("modules_to_save", tmp_path, dtype=torch.bfloat16)
    wanted = peft_adapters.merge(made, tmp_path / "merged", torch.float64)
    with torch.no_grad():
        given = dump(made, tmp_path / "dump")
        state = load_file(given / "model.safetensors")
        of_base = ("lora_", "modules_to_save")
        state = {n: t if any(part in n for part in of_base) else t.bfloat16() for n, t in state.items()}
        save_file(state, given / "model.safetensors")
    done(run("wise", made.base, given, "--alpha", "1", "-o", tmp_path / "out"))
    found = tensors_in(tmp_path / "out")
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.bfloat16()), name


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_base_that_the_initialisation_changed_is_in_the_state_dict(run, tmp_path, init):
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "base")
    options = LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj"], init_lora_weights=init)
    tuned = adapted(model, options)
    with torch.no_grad():
        for name, weights in tuned.named_parameters():
            weights += 0.05 * torch.randn(weights.shape) * ("lora_" in name)
    (tmp_path / "dump").mkdir()
    options.save_pretrained(tmp_path / "dump")
    torch.save(tuned.state_dict(), tmp_path / "dump" / "model.pt")
    wanted = {name: t.clone() for name, t in tuned.merge_and_unload().state_dict().items()}
    done(
        run("wise", tmp_path / "base", tmp_path / "dump" / "model.pt", "--alpha", "1", "-o", tmp_path / "out")
    )
    are_close(tensors_in(tmp_path / "out"), wanted)


def test_shards_of_which_one_has_only_factors(run, tmp_path):
    made = peft_adapters.make("linear", tmp_path)
    wanted = peft_adapters.merge(made, tmp_path / "merged")
    given = dump(made, tmp_path / "dump")
    state = load_file(given / "model.safetensors")
    (given / "model.safetensors").unlink()
    parts = [
        {n: t for n, t in state.items() if "lora_" not in n},
        {n: t for n, t in state.items() if "lora_" in n},
    ]
    places = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(part, given / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    (given / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    done(run("wise", made.base, given, "--alpha", "1", "-o", tmp_path / "out"))
    are_close(tensors_in(tmp_path / "out"), wanted)
    loads(tmp_path / "out")


def test_an_adapter_alone_under_the_names_of_its_model(run, tmp_path):
    """As one that saves what requires a gradient has it."""
    made = peft_adapters.make("modules_to_save", tmp_path)
    given = dump(made, tmp_path / "dump")
    state = load_file(given / "model.safetensors")
    trained = {n: t for n, t in state.items() if "lora_" in n or "modules_to_save" in n}
    save_file(trained, given / "model.safetensors")
    done(run("edit", made.base, given, "-o", tmp_path / "out"))
    done(run("edit", made.base, made.adapter, "-o", tmp_path / "wanted"))
    found, wanted = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "wanted")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    (given / "adapter_config.json").unlink()
    said = run("soup", given, twin(given), "-o", tmp_path / "no")
    assert said.code == 1
    assert "whose scale (lora_alpha and r) is in no state dict" in said.err


OTHERS = {
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(r=4, target_modules=["q_proj"]),
    "ia3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "oft": peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"]),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "ln": peft.LNTuningConfig(target_modules=["norm"]),
    "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "hra": peft.HRAConfig(target_modules=["q_proj"]),
    "fourierft": peft.FourierFTConfig(n_frequency=3, target_modules=["q_proj"]),
    "randlora": peft.RandLoraConfig(r=4, target_modules=["q_proj"]),
    "tokens": peft.TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"]),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", encoder_hidden_size=8),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_kinds_are_refused(run, tmp_path, kind):
    model = build(*MODELS["llama"])
    model.save_pretrained(tmp_path / "base")
    tuned = adapted(model, OTHERS[kind])
    given = tmp_path / "dump.pt"
    torch.save({"model." + name: t for name, t in tuned.state_dict().items()}, given)
    for _ in ("without its configuration", "with it"):
        for command in (
            ["soup", given, twin(given)],
            ["edit", given, tmp_path / "base"],
            ["edit", tmp_path / "base", given],
        ):
            said = run(*command, "-o", tmp_path / "out")
            assert said.code == 1, said
            assert "merge_and_unload" in said.err or "it changes no weights of the model" in said.err
        OTHERS[kind].save_pretrained(tmp_path)


def test_several_adapters_are_refused(run, tmp_path):
    model = build(*MODELS["llama"])
    options = LoraConfig(target_modules=["q_proj"])
    tuned = adapted(model, options)
    tuned.add_adapter("other", options)
    options.save_pretrained(tmp_path)
    torch.save(tuned.state_dict(), tmp_path / "dump.pt")
    said = run("soup", tmp_path / "dump.pt", twin(tmp_path / "dump.pt"), "-o", tmp_path / "out")
    assert said.code == 1
    assert "several adapters in it" in said.err
    assert "found 'default', 'other'" in said.err


@pytest.mark.parametrize(
    ("name", "front"),
    [
        *(("linear", front) for front in FRONTS),
        *(
            (name, "lightning")
            for name in ("embedding", "dora", "lora_bias", "modules_to_save", "tokens", "experts")
        ),
    ],
)
def test_without_the_scale_it_is_refused_in_every_role(run, tmp_path, name, front):
    made = peft_adapters.make(name, tmp_path)
    given = dump(made, tmp_path / "dump", lambda name: FRONTS[front] + name, config=False)
    for command in (
        ["soup", given, twin(given)],
        ["edit", given, made.base],
        ["edit", made.base, given],
        ["inspect-spectrum", made.base, given],
    ):
        output = [] if command[0] == "inspect-spectrum" else ["-o", tmp_path / "out"]
        said = run(*command, *output)
        assert said.code == 1, said
        assert "whose scale (lora_alpha and r) is in no state dict" in said.err
    with pytest.raises(CheckpointError, match="in no state dict"):
        monosoup_cli.soup([given, tmp_path / "twin-dump"], tmp_path / "out")


@pytest.mark.parametrize("is_pickle", [True, False])
def test_an_embedding_that_the_model_uses_twice(run, tmp_path, is_pickle):
    made = peft_adapters.make("embedding, tied", tmp_path)
    given = dump(made, tmp_path / "dump", is_pickle=is_pickle)
    said = run("edit", made.base, given, "-o", tmp_path / "out")
    assert said.code == 1
    assert "'lm_head.weight', which would not follow; merge it with peft" in said.err
    (given / "config.json").unlink()
    if is_pickle:  # which elements are shared is known without a configuration
        assert run("edit", made.base, given, "-o", tmp_path / "out").code == 1


@pytest.mark.parametrize(
    "pair",
    [
        ("attn.lora_A", "attn.lora_B"),
        ("attn.parametrizations.weight.0.lora_A", "attn.parametrizations.weight.0.lora_B"),
        ("attn.lora_a.weight", "attn.lora_b.weight"),
        ("attn.lora_A.weight", "attn.lora_B.weight"),
        ("attn.processor.to_q_lora.down.weight", "attn.processor.to_q_lora.up.weight"),
        ("attn.hada_w1_a", "attn.hada_w1_b"),
        ("attn.lokr_w1", "attn.lokr_w2"),
    ],
)
def test_factors_of_other_programs_beside_whole_weights(run, tmp_path, pair):
    ones = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, one in enumerate(ones):
        noise = torch.Generator().manual_seed(number)
        weights = {f"layers.{n}.weight": torch.randn(8, 8, generator=noise) for n in range(8)}
        factors = {pair[0]: torch.randn(2, 8, generator=noise), pair[1]: torch.randn(8, 2, generator=noise)}
        save_file({**weights, "attn.weight": torch.randn(8, 8), **factors}, one)
    for command in (["soup", *ones], ["edit", *ones], ["edit", *ones[:2]]):
        said = run(*command, "-o", tmp_path / "out")
        assert said.code == 1
        assert "an input has an adapter in it that is not merged into its weights" in said.err
    glob = said.err.split("--exclude '")[1].split("'")[0]
    done(run("edit", *ones[:2], "--exclude", glob, "-o", tmp_path / "out"))
    found, own = load_file(tmp_path / "out" / "model.safetensors"), load_file(ones[1])
    assert all(torch.equal(found[name], own[name]) for name in pair)
    # of several, what is excluded is averaged, too
    assert run("soup", *ones, "--exclude", glob, "-o", tmp_path / "no").code == 1


@pytest.mark.parametrize(
    "name", ["base_layer.0.weight", "model.base_layer.0.weight", "prompt_encoder.mask_embed.conv1.weight"]
)
def test_plain_names_that_look_like_those_of_peft(run, tmp_path, name):
    """timm's DLA has a `base_layer`, and SAM a `prompt_encoder`."""
    for number in range(2):
        save_file(
            {name: torch.randn(4, 3), "model.head.weight": torch.randn(4, 3)},
            tmp_path / f"{number}.safetensors",
        )
    done(run("soup", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "-o", tmp_path / "out"))
