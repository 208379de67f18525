"""Which devices a name means."""

import weakref

import pytest
import torch

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.devices.cuda import Cuda
from monosoup_cli.devices.device import find_devices
from monosoup_cli.errors import UsageError


@pytest.fixture
def cards(monkeypatch):
    """Have torch count some cards."""

    def count(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return count


@pytest.mark.parametrize(
    ("name", "count", "devices"),
    [
        ("auto", 0, [Cpu()]),
        ("auto", 2, [Cuda(0), Cuda(1), Cpu()]),
        ("cpu", 2, [Cpu()]),
        ("cuda", 2, [Cuda(0), Cuda(1)]),
        ("cuda:0", 2, [Cuda(0)]),
        ("cuda:11", 12, [Cuda(11)]),
    ],
)
def test_names(cards, name, count, devices):
    cards(count)
    assert find_devices(name) == devices
    if ":" in name:
        assert str(devices[0].torch) == name


@pytest.mark.parametrize("name", ["cuda:00", "cuda:01", "cuda:-1", "cuda:", "cuda:٣", "cuda:1 ", "", "CPU"])
def test_names_that_torch_does_not_know(cards, name):
    cards(4)
    with pytest.raises(UsageError, match=r"unknown device: expected auto, cpu, cuda or cuda:N"):
        find_devices(name)


@pytest.mark.parametrize(("count", "message"), [(2, "cuda:0 to cuda:1"), (0, "no CUDA|sees no CUDA")])
def test_a_card_that_is_not_there(cards, count, message):
    cards(count)
    with pytest.raises(UsageError, match=message):
        find_devices("cuda:7")


@pytest.mark.parametrize(
    ("hip", "versions"), [(None, {"cuda": "13.0"}), ("7.1.2", {"cuda": "13.0", "hip": "7.1.2"})]
)
def test_the_versions_name_rocm_only_where_there_is_one(monkeypatch, hip, versions):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", hip)
    assert Cuda(0).versions == versions
    assert Cpu().versions == {"cuda": None}


def test_memory_is_used_again():
    channel = Cpu().channel(0)
    large = channel.buffer("a", "F64", 10, 4)
    small = channel.buffer("a", "F32", 5)
    assert small.data_ptr() == large.data_ptr()
    assert channel.buffer("b", "F32", 5).data_ptr() != small.data_ptr()


def test_memory_is_freed_before_it_grows(monkeypatch):
    channel, empty = Cpu().channel(0), torch.empty
    old = weakref.ref(channel.buffer("a", "F64", 10).untyped_storage())
    channel.buffer("a", "F64", 5)
    seen = []

    def watched(*args, **kwargs):
        seen.append(old() is None)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", watched)
    channel.buffer("a", "F64", 20)
    assert seen == [True]


def test_upcasts_are_exact():
    stored = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    copy = Cpu().channel(0).upcast(stored, "F64", "update")
    assert copy.dtype == torch.float64
    assert torch.equal(copy, stored.double())
