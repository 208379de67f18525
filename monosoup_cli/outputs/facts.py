"""What a configuration says about the weights beside it, made true of new weights: dtype, vocabulary.

Only these values change, wherever in the file they stand; every other byte stays. So it does not matter
whether the file is JSON to anybody but the library that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from monosoup_cli.outputs.layout import OutputLayout
from monosoup_cli.outputs.side_files import SideFiles
from monosoup_cli.sources.files import Files

__all__ = ["true_facts"]

CONFIGS = ("config.json", "sentence_bert_config.json")
"""The files that tell transformers and sentence-transformers in which dtype to load the weights."""

DTYPE = re.compile(
    rb'("(?:torch_)?dtype"\s*:\s*"(?:torch\.)?)(?:float(?:16|32|64)?|bfloat16|half|double)(?=")'
)
VOCABULARY = re.compile(rb'("vocab_size"\s*:\s*)(\d+)(?=\s*[,}])')


def true_facts(model: Files, layout: OutputLayout, beside: SideFiles, dtype: str) -> dict[str, bytes]:
    """The configurations that must change, by name.

    Args:
        model: The files that the configurations belong to.
        layout: The tensors that are written.
        beside: The side files, configurations among them.
        dtype: The dtype of written floating-point tensors in torch's words, or "keep".
    """
    rows = _changed_rows(model, layout)
    names = {f"{model.place.inner}{name}" for name in CONFIGS}
    rewritten = {}
    for one in beside.carried:
        if one.name in names and one.folder is model.place.folder and (rows or dtype != "keep"):
            file = one.folder.open(one.stored)
            try:
                old = file.read(file.nbytes)
            finally:
                file.close()
            new = old if dtype == "keep" else DTYPE.sub(rb"\g<1>" + dtype.encode(), old)
            new = VOCABULARY.sub(
                lambda found: found[1] + str(rows.get(int(found[2]), int(found[2]))).encode(), new
            )
            if new != old:
                rewritten[one.name] = new
    return rewritten


def _changed_rows(model: Files, layout: OutputLayout) -> Mapping[int, int]:
    """The numbers of rows of tensors that the output has with more or fewer rows, and the new numbers."""
    return {
        old.shape[0]: new.shape[0]
        for name, (_, new) in layout.places().items()
        if (old := model.tensors.get(name)) is not None
        and len(old.shape) == len(new.shape) == 2
        and old.shape[0] != new.shape[0]
        and old.shape[1] == new.shape[1]
    }
