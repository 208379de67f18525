"""Hints about tensors that one checkpoint holds and another leaves out as tied."""

from safetensors.torch import load_file, save_file

from tests.hints.table import Trial, follows
from tests.models import MODELS, build, step

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@follows("sources/ties.py", "give number … first to keep it; --exclude drops such tensors")
def a_head_of_its_own_is_kept_or_dropped(at: Trial) -> None:
    kind, options = MODELS["llama, tied"]
    model, folders = build(kind, options), [at.tmp / "tied", at.tmp / "own"]
    for folder in folders:
        step(model).save_pretrained(folder)
    path = folders[1] / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, HEAD: 2 * tensors[EMBEDDING]}, path, metadata={"format": "pt"})
    at.refused("soup", *folders, "-o", at.out)
    assert at.blanks == ["2"]
    at.loads("soup", *reversed(folders), "-o", at.out)
    assert HEAD in load_file(at.out / "model.safetensors")
    at.loads("soup", *folders, "-o", at.out, "--overwrite", *at.options(), HEAD)
    assert HEAD not in load_file(at.out / "model.safetensors")
