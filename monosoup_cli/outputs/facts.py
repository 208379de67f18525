"""What a configuration says about the weights beside it, made true of new weights: dtype, vocabulary, codes.

Only these values change, wherever in the file they stand; every other byte stays. So it does not matter
whether the file is JSON to anybody but the library that reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from monosoup_cli.outputs.layout import OutputLayout, written_dtype
from monosoup_cli.outputs.side_files import SideFiles
from monosoup_cli.sources.files import Files

__all__ = ["true_facts", "without_quantization"]

CONFIGS = ("config.json", "sentence_bert_config.json")
"""The files that tell transformers and sentence-transformers in which dtype to load the weights."""

DTYPE = re.compile(
    rb'("(?:torch_)?dtype"\s*:\s*"(?:torch\.)?)(?:float(?:16|32|64|8_\w+)?|bfloat16|half|double)(?=")'
)
QUANTIZATION = re.compile(r'"(?:quantization|compression)_config"\s*:\s*')
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
    decoded = written_dtype(model, layout)
    dtype = decoded if decoded and dtype == "keep" else dtype
    names = {f"{model.place.inner}{name}" for name in CONFIGS}
    rewritten = {}
    for one in beside.carried:
        if one.name in names and one.folder is model.place.folder and (rows or dtype != "keep"):
            file = one.folder.open(one.stored)
            try:
                old = file.read(file.nbytes)
            finally:
                file.close()
            new = without_quantization(old) if decoded else old
            new = new if dtype == "keep" else DTYPE.sub(rb"\g<1>" + dtype.encode(), new)
            new = VOCABULARY.sub(
                lambda found: found[1] + str(rows.get(int(found[2]), int(found[2]))).encode(), new
            )
            if new != old:
                rewritten[one.name] = new
    return rewritten


def without_quantization(config: bytes) -> bytes:
    """A configuration without what it says about codes, wherever that stands, and without one comma there."""
    text = config.decode(errors="surrogateescape")
    while found := QUANTIZATION.search(text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, found.end())
        except ValueError:
            break
        before, after = text[: found.start()].rstrip(), text[end:]
        if before.endswith(","):
            text = before[:-1] + after
        else:  # the first of its object, or the only one
            text = text[: found.start()] + after.lstrip().removeprefix(",").lstrip()
    return text.encode(errors="surrogateescape")


def _changed_rows(model: Files, layout: OutputLayout) -> Mapping[int, int]:
    """The numbers of rows of tensors that the output has with more or fewer rows, and the new numbers."""
    return {
        old.shape[0]: new.shape[0]
        for file in layout.files
        for new in file.header.tensors.values()
        if (old := model.tensors.get(new.name)) is not None
        and len(old.shape) == len(new.shape) == 2
        and old.shape[0] != new.shape[0]
        and old.shape[1] == new.shape[1]
    }
