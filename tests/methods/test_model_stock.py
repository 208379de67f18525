"""Model Stock's arithmetic, where the exactness tests on the CPU cannot see it."""

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.methods.model_stock import ModelStock
from monosoup_cli.sources.locate import open_checkpoint
from monosoup_cli.tensors.flat import FlatLayer
from monosoup_cli.tensors.worker import Worker


class Products(TorchDispatchMode):
    """Notes the dtypes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.bmm):
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("granularity", ["tensor", "filter"])
def test_no_product_is_in_float32(tmp_path, granularity):
    """A card may round the factors of such a product to TF32, by a setting that is not ours."""
    generator = torch.Generator().manual_seed(0)
    opened = []
    for number in range(4):
        path = tmp_path / f"{number}.safetensors"
        save_file({"w": torch.randn(40, 30, generator=generator).bfloat16()}, path)
        opened.append(open_checkpoint(str(path)))
    base, *finetuned = opened
    worker = Worker(Cpu().channel(0), lambda: None)
    layer = FlatLayer("w", (40, 30), base, finetuned, None, worker)
    assert layer.updates.sums == "F32"
    with Products() as products:
        for _ in ModelStock(granularity).edit(layer).blocks:
            pass
    assert products.dtypes == {torch.float64}
    for checkpoint in opened:
        checkpoint.files.close()
