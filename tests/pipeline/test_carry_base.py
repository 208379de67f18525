"""Tensors that only the base has, and that `--carry-base` writes too."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save, save_file

import monosoup_cli
from monosoup_cli.errors import ResumeError, UsageError
from tests.hub import Hub
from tests.models import CAUSAL, MODELS, TEXT, build, step
from tests.schema import assert_valid

HEAD = {
    "mtp.0.proj.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(9)).bfloat16(),
    "mtp.0.norm.weight": torch.tensor([1.0, -0.0, 3e-42]),
    "mtp.ids": torch.arange(5),
}
OTHER = {"old_head.weight": torch.ones(3, 2)}


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    names = [f"layers.{number}.weight" for number in range(3)]
    return {
        **{name: torch.randn(12, 10, generator=generator) for name in names},
        "norm": torch.randn(10, generator=generator),
    }


@pytest.fixture
def files(tmp_path):
    """A base with further tensors, and three fine-tunes without."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two", "three")]
    save_file(tensors(0) | HEAD | OTHER, paths[0])
    for seed, path in enumerate(paths[1:], start=1):
        save_file({n: t + 0.1 * tensors(seed)[n] for n, t in tensors(0).items()}, path)
    return paths


def written(out):
    """Every tensor of the files of a folder, or of a file."""
    paths = [out] if out.is_file() else sorted(out.glob("*.safetensors"))
    found = [load_file(path) for path in paths]
    assert len({name for one in found for name in one}) == sum(map(len, found))
    return {name: tensor for one in found for name, tensor in one.items()}


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).tolist()


def assert_carried(out, head=HEAD):
    found = written(out)
    assert {name: bits(found[name]) for name in head} == {name: bits(one) for name, one in head.items()}
    return found


COMMANDS = {
    "edit": (1, ()),
    "edit of a mean": (3, ("--energy", "0.5")),
    "edit with vectors": (1, ("--wise", "0.5")),
    "edit in a sweep": (1, ("--energy", "0.5,0.8", "--wise", "0.5,1")),
    "stock": (2, ()),
    "sfgs": (3, ("--threshold", "-1")),
    "sfgs of one": (2, ("--threshold", "1")),
    "wise": (1, ("--alpha", "0.3")),
    "wise in a sweep": (1, ("--alpha", "0,0.5")),
    "lines": (1, ("--alpha", "0.5", "--beta", "1")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_a_base_writes_them_beside_what_it_writes_without(run, files, tmp_path, name):
    count, options = COMMANDS[name]
    words = (name.partition(" ")[0], *files[: 1 + count], *options)
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert run(*words, "-o", plain).code == 0
    result = run(*words, "-o", out, "--carry-base", "mtp.*", "--format", "json")
    assert result.code == 0, result.err
    assert "only in the base, and not written: 1 tensor: old_head.weight; --carry-base old_head" in result.err
    folders = sorted(path.parent.relative_to(out) for path in out.rglob("model.safetensors"))
    assert len(folders) == (1 if "sweep" not in name else 4 if "edit" in name else 2)
    for folder in folders:
        found = assert_carried(out / folder)
        before = written(plain / folder)
        assert found.keys() - before.keys() == HEAD.keys()
        assert {name: bits(found[name]) for name in before} == {n: bits(t) for n, t in before.items()}
        report = json.loads((out / folder / "monosoup_report.json").read_text())
        assert_valid(report)
        assert report["only_in_base"] == ["old_head.weight"]
        assert {one["name"]: one["reason"] for one in report["layers"][-3:]} == dict.fromkeys(HEAD, "carried")
        assert report["summary"]["kept"]["carried"] == 3
        assert report["summary"]["parameters"] == sum(tensor.numel() for tensor in found.values())
        assert "--carry-base 'mtp.*'" in (out / folder / "README.md").read_text()


def test_a_dry_run_tells_of_them(run, files, tmp_path):
    words = ("edit", *files[:2], "-o", tmp_path / "out", "--carry-base", "mtp.*", "--carry-base", "old*")
    plan = json.loads(run(*words, "--dry-run", "--format", "json").out)
    assert plan["only_in_base"] == []
    actions = {one["name"]: (one["action"], one["reason"]) for one in plan["layers"]}
    assert all(actions[name] == ("kept", "carried") for name in HEAD | OTHER)
    said = run(*words, "--dry-run").out
    assert "carried 4" in said
    assert "only in base" not in said
    result = run(*words)
    assert "only in the base" not in result.err
    (size,) = {path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert plan["output"]["files"] == [{"name": "model.safetensors", "bytes": size}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_they_are_cast_as_others_are(files, tmp_path, dtype):
    monosoup_cli.edit(*files[:2], tmp_path / "out", carry_base="mtp.*", dtype=dtype)
    wanted = getattr(torch, dtype)
    assert_carried(
        tmp_path / "out", {n: t.to(wanted) if t.is_floating_point() else t for n, t in HEAD.items()}
    )


@pytest.mark.parametrize("form", ["one file", "shards", "other shards", "small shards of one file"])
def test_every_layout_has_them_in_its_index(files, tmp_path, form):
    base, finetuned = files[:2]
    out = tmp_path / ("out.safetensors" if form == "one file" else "out")
    options = {"max_shard_size": "600"} if form in ("other shards", "small shards of one file") else {}
    if form in ("shards", "other shards"):
        weights, finetuned = load_file(finetuned), tmp_path / "sharded"
        finetuned.mkdir()
        groups = [["layers.0.weight", "norm"], ["layers.1.weight", "layers.2.weight"]]
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        for name, group in zip(names, groups, strict=True):
            save_file({one: weights[one] for one in group}, finetuned / name)
        weight_map = {one: name for name, group in zip(names, groups, strict=True) for one in group}
        (finetuned / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    monosoup_cli.edit(base, finetuned, out, carry_base=["mtp.*"], **options)
    found = assert_carried(out)
    assert found.keys() == tensors(0).keys() | HEAD.keys()
    if out.is_dir():
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
        for name, file in index["weight_map"].items():
            assert name in load_file(out / file)


def test_they_have_the_names_under_which_the_base_is_read(run, files, tmp_path):
    base = tmp_path / "wrapped.pt"
    torch.save({f"module.{name}": tensor for name, tensor in load_file(files[0]).items()}, base)
    monosoup_cli.edit(base, files[1], tmp_path / "out", carry_base="module.mtp.*")
    assert_carried(tmp_path / "out", {f"module.{name}": tensor for name, tensor in HEAD.items()})
    monosoup_cli.edit(base, files[1], tmp_path / "bare", carry_base="mtp.*", rename="module=")
    assert_carried(tmp_path / "bare")
    options = ("--rename", "module=", "--rename", "mtp.0=model.layers.3")
    words = ("edit", base, files[1], "-o", tmp_path / "renamed", *options)
    assert run(*words, "--carry-base", "mtp.0.*").code == 2
    renamed = {name.replace("mtp.0", "model.layers.3"): tensor for name, tensor in HEAD.items()}
    assert run(*words, "--carry-base", "model.*", "--carry-base", "mtp.*").code == 0
    assert_carried(tmp_path / "renamed", renamed)


def test_what_is_left_out_of_the_edit_does_not_matter(files, tmp_path):
    for number, options in enumerate(({"include": "layers.0.*"}, {"exclude": ["norm", "mtp.*"]})):
        monosoup_cli.edit(*files[:2], tmp_path / f"out{number}", carry_base="mtp.*", **options)
        assert_carried(tmp_path / f"out{number}")


class Enough(Exception):
    """Stands for whatever stops a run."""


@pytest.mark.parametrize("last", ["layers.1.weight", "mtp.0.proj.weight"])
def test_an_interrupted_run_is_resumed_with_the_same_pattern_only(files, tmp_path, last):
    def stop(tensor, is_done):
        if is_done and tensor.name == last:
            raise Enough

    words = (*files[:2], tmp_path / "out")
    with pytest.raises(Enough):
        monosoup_cli.edit(*words, carry_base="mtp.*", workers=1, progress=stop)
    for other in ((), "mtp.0.*"):
        with pytest.raises(ResumeError):
            monosoup_cli.edit(*words, carry_base=other, resume=True)
    monosoup_cli.edit(*words, carry_base="mtp.*", resume=True)
    monosoup_cli.edit(*words[:2], tmp_path / "whole", carry_base="mtp.*")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == other


@pytest.mark.parametrize("command", ["edit", "sfgs"])
def test_nan_in_them_stops_the_run(run, files, tmp_path, command):
    save_file(load_file(files[0]) | {"mtp.mask": torch.tensor([0.0, torch.inf])}, files[0])
    options = ("--threshold", "-1") if command == "sfgs" else ()
    words = (command, *files[:3], *options, "-o", tmp_path / "out", "--overwrite", "--carry-base", "mtp.*")
    result = run(*words)
    assert result.code == 1
    assert f"{files[0]}: tensor 'mtp.mask': holds NaN or Inf" in result.err
    for option in (("--exclude", "mtp.mask"), ("--on-nonfinite", "keep")):
        assert run(*words, *option).code == 0
        assert_carried(tmp_path / "out", HEAD | {"mtp.mask": torch.tensor([0.0, torch.inf])})
    assert run(command, *files[:3], *options, "-o", tmp_path / "other").code == 0  # it is not read


def test_patterns_that_name_nothing_of_the_base_alone_are_refused(files, tmp_path):
    for pattern in ("layers.*", "mtp", "gone.*"):
        with pytest.raises(UsageError, match=r"carry_base .* matches no tensor that only the base has"):
            monosoup_cli.edit(*files[:2], tmp_path / "out", carry_base=["mtp.*", pattern])


def test_where_they_cannot_be_the_option_is_refused(run, files, tmp_path):
    carry, out = ("--carry-base", "mtp.*"), ("-o", tmp_path / "out")
    result = run("edit", *files[:2], *out, *carry, "--as-adapter", "--adapter-rank", "2")
    assert (result.code, "--carry-base is for whole checkpoints" in result.err) == (2, True)
    result = run("edit", *files[:2], *out, "--as-adapter", "--adapter-rank", "2", "--dry-run")
    assert "only in the base, and not written: 4 tensors" in result.err
    assert "--carry-base" not in result.err
    result = run("soup", *files[1:], *out, *carry)
    assert (result.code, "--carry-base without a base" in result.err) == (2, True)
    assert run("inspect-spectrum", *files[:2], *carry).code == 2


def test_the_note_names_a_pattern_for_all_of_them(run, tmp_path):
    base, finetuned = tmp_path / "base.safetensors", tmp_path / "ft.safetensors"
    save_file(tensors(1), finetuned)
    for names, pattern in {
        ("a.b.c", "a.b.d", "a.b"): "'a.*'",
        ("a[0].x", "a[0].y"): "'a[[]0].*'",
        ("alpha", "alps"): "'*'",
        ("alone",): "alone",
    }.items():
        save_file(tensors(0) | {name: torch.ones(2) for name in names}, base)
        words = ("edit", base, finetuned, "-o", tmp_path / "out", "--overwrite")
        assert f"--carry-base {pattern} writes" in run(*words).err
        assert run(*words, "--carry-base", pattern.strip("'")).code == 0
        assert written(tmp_path / "out").keys() == tensors(0).keys() | set(names)


@pytest.mark.once
def test_of_a_base_on_the_hub_they_are_fetched(client, tmp_path):
    """With what is compared, and nothing else of a large file."""
    large, little = torch.randn(64, 64), torch.randn(8, 8)
    base = {"large": large, "little": little, "head": torch.randn(4, 5), "other": torch.randn(99, 9)}
    finetuned = {"large": large + 1, "little": little + 1}
    with Hub(tmp_path / "hub") as hub:
        client(hub.url)
        hub.add("org/base", {"model.safetensors": save(base)})
        hub.add("org/name", {"model.safetensors": save(finetuned)})
        hub.clear()
        monosoup_cli.edit("org/base", "org/name", tmp_path / "out", include="little", carry_base="head")
        needed = (base["little"].numel() + base["head"].numel()) * 4
        assert hub.bytes_sent("org/base/*") == len(save(base)) + needed  # the head is all of so small a file
    assert torch.equal(written(tmp_path / "out")["head"], base["head"])


def test_a_pretrained_bert_is_whole_again_after_a_fine_tune_without_its_pooler(run, tmp_path):
    whole = build("BertForPreTraining", TEXT)
    whole.save_pretrained(tmp_path / "base")
    tuned = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    step(tuned).save_pretrained(tmp_path / "ft")
    words = ("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out", "--overwrite")
    said = run(*words).err
    assert "only in the base, and not written: 4 tensors" in said
    result = run(*words, "--carry-base", "bert.pooler.*", "--carry-base", "cls.seq_relationship.*")
    assert result.code == 0
    assert "only in the base" not in result.err
    made, about = transformers.BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(about.values())
    for name, tensor in whole.state_dict().items():
        if "pooler" in name or "seq_relationship" in name:
            assert torch.equal(made.state_dict()[name], tensor)


def test_the_layers_for_further_tokens_of_deepseek_are_there_again(run, tmp_path):
    """transformers reads them over: it neither loads nor saves what it has no class for."""
    options = {
        **CAUSAL,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    build("DeepseekV3ForCausalLM", options).save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    prediction = {
        "model.layers.61.eh_proj.weight": torch.randn(32, 64),
        "model.layers.61.enorm.weight": torch.ones(32),
    }
    save_file(load_file(file) | prediction, file, {"format": "pt"})
    loaded = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "base")
    step(loaded).save_pretrained(tmp_path / "ft", max_shard_size="100KB")
    assert not load_file(next((tmp_path / "ft").glob("*.safetensors"))).keys() & prediction.keys()
    words = ("edit", tmp_path / "base", tmp_path / "ft", "-o", tmp_path / "out")
    result = run(*words, "--carry-base", "model.layers.61.*")
    assert result.code == 0, result.err
    assert_carried(tmp_path / "out", prediction)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load_file(file).keys()
    _, about = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(about.values())


def test_a_head_that_the_fine_tune_ties_is_not_carried(run, tmp_path):
    """Beside an edited embedding, the base's head would be loaded in its place."""
    kind, options = MODELS["llama, tied"]
    model = build(kind, options)
    for name in ("base", "ft"):
        step(model).save_pretrained(tmp_path / name)
    file = tmp_path / "base" / "model.safetensors"
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    save_file(load_file(file) | {head: load_file(file)[embedding]}, file, {"format": "pt"})
    out = tmp_path / "out"
    words = ("edit", tmp_path / "base", tmp_path / "ft", "-o", out, "--overwrite")
    said = run(*words).err
    assert f"only in the base, and not written: 1 tensor: {head} (tied, so not needed)\n" in said
    result = run(*words, "--carry-base", head)
    assert result.code == 2
    assert f"has: found '{head}', which the fine-tuned checkpoint ties to '{embedding}'" in result.err
    with pytest.raises(UsageError, match=f"^carry_base .* checkpoint ties to '{embedding}'"):
        monosoup_cli.edit(tmp_path / "base", tmp_path / "ft", tmp_path / "other", carry_base=head)

    save_file(load_file(file) | HEAD, file, {"format": "pt"})
    said = run(*words).err
    assert f"mtp.ids, {head} (tied" not in said  # of four, three are named
    assert "--carry-base 'mtp.*' writes what only the base has" in said
    for pattern in ("mtp.*", "*"):
        assert run(*words, "--carry-base", pattern).code == 0
        assert written(out).keys() == load_file(tmp_path / "ft" / "model.safetensors").keys() | HEAD.keys()
    getattr(transformers, kind).from_pretrained(out)

    config = tmp_path / "ft" / "config.json"
    config.write_text(
        config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    assert run(*words, "--carry-base", head).code == 0
    assert head in written(out)


@pytest.mark.parametrize(("foreign", "is_hinted"), [(0, True), (1, True), (2, False), (8, False)])
def test_the_option_is_named_where_the_base_has_nearly_all_matrices(run, tmp_path, foreign, is_hinted):
    """A fine-tune with many matrices of other names is of another model: what the base has is foreign."""
    shared = {f"layers.{number}.weight": torch.randn(4, 4) for number in range(10)}
    base, finetuned = tmp_path / "base.safetensors", tmp_path / "ft.safetensors"
    save_file(shared | HEAD, base)
    new = {f"others.{number}.weight": torch.randn(4, 4) for number in range(foreign)}
    bias = {f"others.{number}.bias": torch.randn(4) for number in range(foreign)}  # vectors do not count
    save_file({name: tensor + 0.1 for name, tensor in shared.items()} | new | bias, finetuned)
    said = run("edit", base, finetuned, "-o", tmp_path / "out", "--partial").err
    assert "only in the base, and not written: 3 tensors" in said
    assert ("--carry-base" in said) == is_hinted
