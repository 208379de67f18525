"""The forms in which libraries store attention and gated layers, made from separate ones with torch alone.

Nothing of the package is used here.
"""

import re
import shutil

import torch
from safetensors.torch import load_file, save_file

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")


def tensors_in(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def save_like(folder, tensors, to):
    """A checkpoint of these tensors beside the configuration of another."""
    to.mkdir()
    shutil.copy(folder / "config.json", to)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, to / "model.safetensors", {"format": "pt"}
    )
    return to


def fuse(tensors, parts, name, joined=torch.cat):
    """Tensors in which those of these parts of a module are one: `name` has a dot, or an underscore, at its
    end, which `weight` follows."""
    found = dict(tensors)
    for key in tensors:
        match = re.match(rf"(.*)\b{parts[0]}\.(weight|bias)$", key)
        if match:
            each = [found.pop(f"{match[1]}{part}.{match[2]}") for part in parts]
            found[f"{match[1]}{name}{match[2]}"] = joined(each)
    return found


def unfuse(tensors, name, parts, split):
    """The reverse of `fuse`."""
    found = dict(tensors)
    for key in tensors:
        match = re.match(rf"(.*)\b{name}(weight|bias)$", key)
        if match:
            each = split(found.pop(key))
            found |= {f"{match[1]}{part}.{match[2]}": t for part, t in zip(parts, each, strict=True)}
    return found


def rows(*counts):
    """How one tensor is split into parts of so many rows, one after the other."""
    return lambda fused: fused.split(counts)


def in_turn(groups, *counts):
    """How it is split where each of some groups has so many rows of each part."""

    def split(fused):
        of_groups = fused.reshape(groups, sum(counts), *fused.shape[1:])
        return [part.reshape(-1, *fused.shape[1:]) for part in of_groups.split(counts, dim=1)]

    return split


def turned(tensors, names):
    """Tensors in which the weights of these modules are transposed."""
    return {
        name: t.T if re.search(rf"\b({'|'.join(names)})\.weight$", name) else t for name, t in tensors.items()
    }
