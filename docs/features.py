"""Write the features of every block of a transformers model for some texts, for `monosoup cka`.

    python docs/features.py MODEL texts.txt OUT

MODEL is a folder or an id on the Hub; texts.txt has a text on each line. OUT gets one .npy file for each
block, (texts, width) in float32: the block's output, as the mean over the tokens of a text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the first list of several modules: the blocks of the (first) stack."""
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) > 1)


@torch.no_grad()
def features_of(
    model: nn.Module, tokenizer: AutoTokenizer, texts: list[str], batch_size: int, max_length: int
) -> Iterator[list[np.ndarray]]:
    """Yield the features of each batch: (texts, width) for every block."""
    batch: dict[str, torch.Tensor] = {}
    pooled: list[np.ndarray] = []

    def keep(block: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        hidden = (output if isinstance(output, torch.Tensor) else output[0]).float()
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu().numpy())

    hooks = [block.register_forward_hook(keep) for block in blocks_of(model)]
    options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(texts[start : start + batch_size], **options).to(model.device)
        pooled.clear()
        model(**batch)
        yield list(pooled)
    for hook in hooks:
        hook.remove()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModel.from_pretrained(options.model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    texts = options.texts.read_text(encoding="utf-8").splitlines()
    options.out.mkdir(parents=True, exist_ok=True)
    files: list[np.ndarray] = []
    batches = features_of(model, tokenizer, texts, options.batch_size, options.max_length)
    for number, batch in enumerate(batches):
        for block, rows in enumerate(batch):
            if number == 0:
                path, shape = options.out / f"block-{block:03}.npy", (len(texts), rows.shape[1])
                files.append(np.lib.format.open_memmap(path, "w+", np.float32, shape))
            files[block][number * options.batch_size :][: len(rows)] = rows
    print(f"{len(texts)} texts, {len(files)} blocks: {options.out}")


if __name__ == "__main__":
    main()
