"""Hints about codes that no codec decodes, and about configurations that are left from them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from tests.encodings.quantisers import QUANTISERS, of_mlx, symmetric, write
from tests.hints.table import Trial, follows
from tests.models import MODELS, build, step


@follows("encodings/evidence.py", "but the weights are not quantised")
def a_quantization_config_beside_plain_weights(at: Trial) -> None:
    kind, options = MODELS["llama"]
    model = build(kind, options)
    model.save_pretrained(at.tmp / "model")
    step(model).save_pretrained(at.tmp / "ft")
    path = at.tmp / "ft" / "config.json"
    left = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **left}))
    at.noted("edit", at.tmp / "model", at.tmp / "ft", "-o", at.out)
    config = json.loads((at.out / "config.json").read_text())
    del config["quantization_config"]
    (at.out / "config.json").write_text(json.dumps(config))
    type(model).from_pretrained(at.out)
    at.ended(at.out)


@follows("encodings/evidence.py", "and quantise the result$")
def quantised(at: Trial) -> None:
    """The checkpoint that it was quantised from is edited, and the result quantised again."""
    coded = write(of("eetq", at), at.tmp / "coded.safetensors")
    at.refused("edit", at.base, coded, "-o", at.out)
    at.loads(*at.edit)
    weights = load_file(at.out / "model.safetensors")["block.weight"]
    codes, scale = symmetric(weights)
    assert torch.allclose(codes * scale, weights, atol=float(scale.max()))


@follows("encodings/facts.py", "download or copy it again")
@follows("encodings/fp8.py", "fp8 codes without their scales", "no fp8 codes have these scales")
def a_part_of_codes_that_is_lost(at: Trial) -> None:
    """The file is copied again, whole."""
    parts = {"weight": torch.ones(8, 6).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)}
    lost = "weight" if "no fp8" in at.site.problem else "weight_scale_inv"
    if at.site.file == "encodings/facts.py":
        parts = {"weight_packed": torch.zeros(8, 1, dtype=torch.int32), "weight_scale": torch.ones(8, 1)}
        parts["weight_shape"] = torch.tensor([8, 6])
        lost = "weight_scale"
    whole = {
        f"{module}.{name}": part.clone() for module in ("block", "other") for name, part in parts.items()
    }
    save_file({"block.weight": torch.ones(8, 6)}, at.base)
    coded = write({k: v for k, v in whole.items() if k != f"block.{lost}"}, at.tmp / "coded.safetensors")
    at.refused("edit", at.base, coded, "-o", at.out)
    write(whole, coded)
    at.loads("edit", at.base, coded, "-o", at.out)


@follows("encodings/evidence.py", "mlx_lm.convert --hf-path OLD --mlx-path NEW --dequantize")
def quantised_by_mlx(at: Trial) -> None:
    """The codes are decoded as mlx_lm does, which is not installed here, and the result is edited."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    save_file({"block.weight": weight}, at.base)
    made = {f"block.{end}": tensor for end, tensor in QUANTISERS["mlx 4 bits"].encode(weight + 0.1).items()}
    coded = write(made, at.tmp / "coded", QUANTISERS["mlx 4 bits"], config=of_mlx(4))
    at.refused("edit", at.base, coded, "-o", at.out)
    words = made["block.weight"].view(torch.int32).long()
    codes = (words.unsqueeze(-1) >> 4 * torch.arange(8) & 15).flatten(-2)
    decoded = codes * made["block.scales"] + made["block.biases"]
    assert torch.allclose(decoded, weight + 0.1, atol=float(made["block.scales"].max()))
    at.loads("edit", at.base, write({"block.weight": decoded}, at.tmp / "decoded"), "-o", at.out)


def of(name: str, at: Trial) -> dict[str, torch.Tensor]:
    """The fine-tune with codes in place of its matrix."""
    tensors = load_file(at.finetuned)
    encoded = QUANTISERS[name].encode(tensors.pop("block.weight"))
    return tensors | {f"block.{end}": tensor for end, tensor in encoded.items()}
