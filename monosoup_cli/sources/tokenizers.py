"""Which tokens stand for which ids in the tokenizer of a checkpoint, however its files are written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.header import parse_json
from monosoup_cli.sources.folders import Folder

__all__ = ["Tokenizer", "open_tokenizer", "read_small"]

FAST, ADDED, SETTINGS, SPECIAL = (
    "tokenizer.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
VOCABULARIES = (FAST, "vocab.json", "vocab.txt")
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
"""Binary vocabularies, which are compared as bytes: they have no formatting."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
MAX_DIGITS = 16
SMALL_BYTES = 1 << 20
"""The largest file with a few settings."""
MAX_BYTES = 40 << 20
"""The largest file that is parsed. The largest vocabularies, of 262,144 tokens, take 33 MB."""
MAX_MARKS = 4_000_000
"""The most colons, commas and brackets in it, for each of which parsing takes memory. 262,144 tokens and
514,906 merges have 2.1 million, if every merge is a list."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, as far as its files could be read.

    Attributes:
        files: The content of its vocabularies, by their names.
        added: The tokens that were added to the vocabulary, and their ids.
        special: The tokens of special meaning, such as "eos_token".
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)

    def vocabulary(self, name: str) -> tuple[dict[str, int], int] | None:
        """The ids of the tokens in one of the files, with those that were added, and a hash of its merges.

        Returns:
            None where the file is not as such files are.
        """
        data = self.files[name]
        if name == "vocab.txt":
            lines = data.decode(errors="replace").splitlines()
            return {line: number for number, line in enumerate(lines)} | {**self.added}, 0
        content = _parsed(data)
        if not isinstance(content, dict):
            return None
        if name != FAST:
            return _ids(content) | {**self.added}, 0
        model = content.get("model")
        model = model if isinstance(model, dict) else {}
        tokens, merges, added = model.get("vocab"), model.get("merges"), content.get("added_tokens")
        if isinstance(tokens, list):  # of a unigram model: pairs of a token and its score
            pairs = [pair for pair in tokens if isinstance(pair, list) and pair]
            tokens = {str(pair[0]): number for number, pair in enumerate(pairs)}
        merged = [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in _listed(merges)]
        return _ids(tokens) | _contents(_listed(added)), hash(tuple(merged))


def open_tokenizer(folder: Folder, inner: str) -> Tokenizer:
    """Read the tokenizer that belongs to some weights: beside them, above, or in its part of a pipeline.

    Files that are not on this machine yet are left out.

    Args:
        folder: The folder of the weights.
        inner: The part of it that has the weights, "" or "unet/".
    """
    with suppress(CheckpointError):
        for place in dict.fromkeys((inner, "", "tokenizer/")):
            names = set(folder.names(place.rstrip("/"))) if not place or folder.is_folder(place[:-1]) else ()
            files = {
                name: data
                for name in (*VOCABULARIES, *MODELS)
                if name in names and (data := _read(folder, f"{place}{name}")) is not None
            }
            settings, special, added = (
                read_small(folder, f"{place}{name}") if name in names else {}
                for name in (SETTINGS, SPECIAL, ADDED)
            )
            if files or settings or special or added:
                decoder = settings.get("added_tokens_decoder")
                listed = [
                    {"id": int(number), **one}
                    for number, one in (decoder.items() if isinstance(decoder, dict) else ())
                    if number.isdecimal() and len(number) < MAX_DIGITS and isinstance(one, dict)
                ]
                found = {**special, **settings}
                return Tokenizer(
                    files,
                    _ids(added) | _contents(listed),
                    {key: str(_content(found[key])) for key in SPECIAL_TOKENS if found.get(key)},
                )
    return Tokenizer()


def read_small(folder: Folder, name: str) -> dict[str, Any]:
    """Parse a small JSON file; {} where there is none, or it is not an object."""
    with suppress(CheckpointError):
        inner, _, last = name.rpartition("/")
        if last in folder.names(inner) and (data := _read(folder, name, SMALL_BYTES)) is not None:
            content = _parsed(data)
            return content if isinstance(content, dict) else {}
    return {}


def _read(folder: Folder, name: str, limit: int = MAX_BYTES) -> bytes | None:
    """The content of a file; None where it is too large, or would have to be downloaded for this alone."""
    if folder.nbytes(name) > limit or folder.select([name]):
        return None
    file = folder.open(name)
    try:
        return file.read(file.nbytes)
    finally:
        file.close()


def _parsed(data: bytes) -> object:
    if sum(data.count(mark) for mark in (b"{", b"[", b":", b",")) > MAX_MARKS:
        return None
    try:
        content: object = parse_json(data, "", "tokenizer", is_strict=False)
    except CheckpointError:
        return None
    return content


def _content(token: object) -> object:
    """The text of a special token, which may stand in an object with its settings."""
    return token.get("content") if isinstance(token, dict) else token


def _listed(content: object) -> list[Any]:
    return content if isinstance(content, list) else []


def _contents(tokens: list[Any]) -> dict[str, int]:
    """The ids of tokens that are listed with their settings."""
    pairs = [(_content(token), token.get("id")) for token in tokens if isinstance(token, dict)]
    return _ids({token: number for token, number in pairs if isinstance(token, str)})


def _ids(tokens: object) -> dict[str, int]:
    pairs = tokens.items() if isinstance(tokens, dict) else ()
    return {token: number for token, number in pairs if isinstance(token, str) and isinstance(number, int)}
