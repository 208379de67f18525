"""Names with what torch's own wrappers and releases put into them, in the base and in the fine-tune alike."""

from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from monosoup_cli.pipeline.inputs import open_inputs
from tests.models import step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, of its older weight norm


class Net(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
        self.conv = norm(torch.nn.Conv1d(8, 6, 3))
        self.rnn = norm(torch.nn.LSTM(8, 4), "weight_hh_l0")


class Strategy(torch.nn.Module):
    """Lightning's Fabric keeps what a strategy made of the module here."""

    def __init__(self, module):
        super().__init__()
        self._forward_module = module


def compiled(module):
    return torch.compile(module, backend="eager")


def inside(wrapper):
    def wrap(net):
        net.encoder, net.conv = wrapper(net.encoder), wrapper(net.conv)
        return net

    return wrap


NORMS = {"legacy": torch.nn.utils.weight_norm, "parametrized": torch.nn.utils.parametrizations.weight_norm}
WRAPS = {
    "plain": lambda net: net,
    "compiled": compiled,
    "compiled inside": inside(compiled),
    "checkpointed inside": inside(checkpoint_wrapper),
    "parallel": torch.nn.DataParallel,
    "parallel inside": inside(torch.nn.DataParallel),
    "of a strategy": Strategy,
    "of a trainer": lambda net: torch.nn.ModuleDict({"model": compiled(net)}),
    "all at once": lambda net: Strategy(compiled(torch.nn.DataParallel(inside(checkpoint_wrapper)(net)))),
}
MADE = [*product(NORMS, WRAPS)]


def parameters(norm, wrap, *, is_tuned=False):
    """The parameters by their names in the module, as `state_dict` has them where no hook shortens them.

    Their order is the module's own, whatever is around it or in it.
    """
    torch.manual_seed(0)
    net = Net(NORMS[norm])
    net = WRAPS[wrap](step(net) if is_tuned else net)
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


@pytest.mark.parametrize(("norm", "wrap"), MADE)
def test_every_wrapper_in_the_base_meets_every_one_in_the_fine_tune(tmp_path, norm, wrap):
    base, finetuned = tmp_path / "base.safetensors", tmp_path / "finetuned.safetensors"
    names = list(parameters(norm, wrap))
    save_file(parameters(norm, wrap, is_tuned=True), finetuned)
    for other in MADE:
        tensors = parameters(*other)
        save_file(tensors, base)
        with open_inputs(str(base), [str(finetuned)], []) as inputs:
            assert inputs.base is not None
            found = {name: tensor.name for name, tensor in inputs.base.tensors.items()}
            assert found == dict(zip(names, tensors, strict=True))
            assert bool(inputs.notices) is ([*tensors] != names)


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_models_are_edited_as_plain_ones(run, tmp_path, wrap):
    made = []
    for norms, wraps in ((["parametrized"] * 2, ["plain"] * 2), (NORMS, ["all at once", wrap])):
        paths = [tmp_path / f"{wrap}-{number}.safetensors" for number in range(2)]
        for path, norm, each in zip(paths, norms, wraps, strict=True):
            save_file(tensors := parameters(norm, each, is_tuned=path is paths[1]), path)
        out = tmp_path / f"{len(made)}.safetensors"
        assert run("edit", *paths, "-o", out).code == 0
        found = load_file(out)
        assert found.keys() == tensors.keys()
        made.append([found[name] for name in tensors])
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize("wrap", ["compiled inside", "parallel inside", "of a strategy"])
def test_a_mean_of_differently_wrapped_models(run, tmp_path, wrap):
    models = [parameters("legacy", "checkpointed inside"), parameters("parametrized", wrap, is_tuned=True)]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for model, path in zip(models, paths, strict=True):
        save_file(model, path)
    made = []
    for order, names in ((paths, models[0]), (paths[::-1], models[1])):
        assert run("soup", *order, "-o", tmp_path / "out.safetensors", "--overwrite").code == 0
        found = load_file(tmp_path / "out.safetensors")
        assert found.keys() == names.keys()
        made.append([found[name] for name in names])
    assert all(map(torch.equal, *made))
