"""Codes of four and eight bits: what they stand for is, to the last bit, what the libraries make of them."""

import pytest
import torch

from monosoup_cli.encodings.table import decoded
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.sources.read import read_float64
from tests.encoded import KINDS, make


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    made = {}

    def encoded(kind, *, is_finetuned=False):
        key = kind, is_finetuned
        if key not in made:
            made[key] = make(kind, tmp_path_factory.mktemp("codes") / "in", is_finetuned=is_finetuned)
        return made[key]

    return encoded


def read(folder):
    stored = open_checkpoint(str(folder))
    with stored.files:
        source = decoded(stored)
        return source.tensors, {name: read_float64(source, name) for name in source.tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(encoded, kind):
    made = encoded(kind)
    headers, values = read(made.folder)
    assert made.exact
    for name, exact in made.exact.items():
        assert headers[name].dtype == "BF16"
        assert headers[name].shape == tuple(exact.shape)
        assert torch.equal(values[name], exact.double()), name
        assert torch.equal(values[name].bfloat16(), made.rounded[name].bfloat16()), name


@pytest.mark.parametrize("kind", KINDS)
def test_any_piece_is_what_it_is_in_the_whole(encoded, kind, monkeypatch):
    """Pieces begin and end within rows, blocks, bytes and experts."""
    made = encoded(kind)
    monkeypatch.setattr("monosoup_cli.encodings.codec.MAX_ELEMENTS", 300)
    stored = open_checkpoint(str(made.folder))
    noise = torch.Generator().manual_seed(0)
    with stored.files:
        source = decoded(stored)
        for name, exact in list(made.exact.items())[:7]:
            flat = exact.flatten()
            for size in (1, 5, 70, 301, 2000):
                first = int(torch.randint(len(flat) - size, (), generator=noise))
                assert torch.equal(
                    read_float64(source, name, first, first + size), flat[first : first + size].double()
                )
            source.forget()
