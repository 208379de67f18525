"""Models of two parts whose names changed differently: real ones of transformers, in old names and in new."""

import re

import pytest
import transformers
from safetensors.torch import load_file, save_file

from tests.models import build_seeing, step

KINDS = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
)


def save(kind, folder):
    """A base and a fine-tune under the names of the Hub, which transformers writes, and under its own."""
    model = build_seeing(kind)
    for which in ("base", "finetuned"):
        for names in ("old", "new"):
            model.save_pretrained(folder / f"{which}-{names}", save_original_format=names == "old")
        step(model)


def names_in(folder):
    return set(load_file(folder / "model.safetensors"))


def assert_loads(kind, folder):
    loaded = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(loaded[1].values()), loaded[1]


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_are_edited_whichever_names_they_have(run, tmp_path, kind):
    save(kind, tmp_path)
    assert not names_in(tmp_path / "base-old") & names_in(tmp_path / "base-new") - {"lm_head.weight"}
    for names, others in (("old", "new"), ("new", "old")):
        finetuned, expected = tmp_path / f"finetuned-{names}", tmp_path / f"same-{names}"
        assert run("edit", tmp_path / f"base-{names}", finetuned, "-o", expected).code == 0
        result = run("edit", tmp_path / f"base-{others}", finetuned, "-o", tmp_path / f"out-{names}")
        assert result.code == 0
        readings = re.findall(r"names are read (.+) \(", result.err)
        assert len(readings) == len(set(readings)) > 1
        assert "not in the base" not in result.err
        assert "only in the base" not in result.err
        made = (tmp_path / f"out-{names}" / "model.safetensors").read_bytes()
        assert made == (expected / "model.safetensors").read_bytes()
        assert_loads(kind, tmp_path / f"out-{names}")


def test_a_tower_of_an_older_release_has_a_module_more(run, tmp_path):
    """What is on the Hub has `vision_tower.vision_model.`, which transformers no longer writes."""
    kind = "LlavaForConditionalGeneration"
    save(kind, tmp_path)
    hub = tmp_path / "base-old" / "model.safetensors"
    older = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(hub).items()
    }
    finetuned = tmp_path / "finetuned-new"
    assert run("edit", tmp_path / "base-old", finetuned, "-o", tmp_path / "same").code == 0
    save_file(older, hub, metadata={"format": "pt"})
    assert_loads(kind, hub.parent)
    result = run("edit", hub.parent, finetuned, "-o", tmp_path / "out")
    assert "without 'vision_model'" in result.err
    made = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("same", "out")]
    assert made[0] == made[1]
