"""The cases: command lines, by name.

`case` takes lines as they are typed in a shell. A word `@plain/base.safetensors` is an input: what
`inputs.py` makes under the name `plain`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.same_bytes.inputs import ADAPTERS

INPUT = re.compile(r"@(\w+)(/\S*)?")

SCORER = """
import json, pathlib, struct, sys
path = pathlib.Path(sys.argv[1])
path = path / "model.safetensors" if path.is_dir() else path
data = path.read_bytes()
(length,) = struct.unpack("<Q", data[:8])
start, stop = json.loads(data[8 : 8 + length])["head.weight"]["data_offsets"]
values = struct.unpack(f"<{(stop - start) // 4}f", data[8 + length + start : 8 + length + stop])
print("scoring", path.name)
print(round(-sum(value * value for value in values), 6))
"""
"""A score command: the smaller the head, the better."""


@dataclass(frozen=True)
class Case:
    """Commands that run one after the other in a folder that holds `files`, and their exit codes.

    `kill` is the number of the command that is killed on its way, if one is.
    """

    name: str
    commands: Sequence[Sequence[str]]
    inputs: Sequence[str]
    codes: Sequence[int]
    files: Mapping[str, str] = field(default_factory=dict)
    kill: int | None = None

    @property
    def folder(self) -> str:
        """Its name, as a folder's."""
        return self.name.replace(" ", "-").replace("/", "-")


CASES: list[Case] = []


def case(name, *lines, codes=None, **more):
    inputs = dict.fromkeys(match[1] for line in lines for match in INPUT.finditer(line))
    commands = [shlex.split(INPUT.sub(r"../../in/\1\2", line)) for line in lines]
    CASES.append(Case(name, commands, list(inputs), codes or [0] * len(lines), **more))


B, F1, F2, F3, F4 = ("@plain/base.safetensors", *(f"@plain/ft{number}.safetensors" for number in range(1, 5)))
MIXED = "@mixed/base.safetensors @mixed/ft1.safetensors"

# -- methods -----------------------------------------------------------------------------------------

case("edit", f"edit {B} {F1} -o out")
case("edit several", f"edit {B} {F1} {F2} {F3} -o out", f"edit {B} {F1} {F2} -o out.safetensors")
case("edit mixed", f"edit {MIXED} -o out", f"edit {MIXED} @mixed/ft2.safetensors -o mean")
for dtype in ("bf16", "f16", "f64"):
    case(f"edit to {dtype}", f"edit @mixed/base.safetensors @mixed/{dtype}.safetensors -o out")
case("stock", f"stock {B} {F1} {F2} {F3} -o out")
case("stock filter", f"stock {B} {F1} {F2} {F3} -o out --granularity filter")
case(
    "stock no clamp",
    f"stock {B} {F1} {F2} -o out --no-clamp",
    f"stock {B} {F1} {F2} -o two --no-clamp --granularity filter",
)
case("stock mixed", f"stock {MIXED} @mixed/ft2.safetensors @mixed/ft3.safetensors -o out")
case("soup", f"soup {F1} {F2} {F3} -o out")
case("soup mixed", "soup @mixed/ft1.safetensors @mixed/ft2.safetensors @mixed/ft3.safetensors -o out")
case("soup weights", f"soup {F1} {F2} {F3} -o out --weights 1,2,0.5")
GREEDY = f"soup {F1} {F2} {F3} {F4} --greedy --score-command '{{python}} scorer.py {{}}'"
case("soup greedy", f"{GREEDY} -o out", f"{GREEDY} -o gt --accept gt", files={"scorer.py": SCORER})
case(
    "soup greedy scores",
    f"{GREEDY} -o out --scores @plain/scores.json --format json",
    files={"scorer.py": SCORER},
)
case("sfgs", *(f"sfgs {B} {F1} {F2} {F3} {F4} -o out{d} --threshold {d}" for d in ("-1", "0.01", "0.9")))
case("sfgs vectors", f"sfgs {B} {F1} {F2} {F3} -o out --threshold 0 --include-vectors")
case("sfgs scores", f"sfgs {B} {F1} {F2} {F3} {F4} -o out --threshold 0.001 --scores @plain/scores.json")
case("sfgs mixed", f"sfgs {MIXED} @mixed/ft2.safetensors -o out --threshold 0")
case(
    "sfgs dry",
    f"sfgs {B} {F1} {F2} {F3} -o out --threshold 0 --dry-run --format json",
    f"sfgs {B} {F1} {F2} -o out --threshold 0 --dry-run",
)
case("wise", f"wise {B} {F1} -o out --alpha 0.3", f"wise {B} {F1} -o more --alpha 1.5 --extrapolate")
case(
    "wise sweep",
    f"wise {B} {F1} -o out --alpha 0:1:0.25",
    f"wise {B} {F1} -o list --alpha 0.3,0.5,1 --format json",
)
case("wise mixed", f"wise {MIXED} -o out --alpha 0.5", f"wise {MIXED} -o sweep --alpha 0,0.7,1")
LINES = f"lines {B} {F1} --alpha 0.3 --beta 0.7"
case("lines", f"{LINES} -o out", *(f"{LINES} -o {head} --head {head}" for head in ("alpha", "ft")))
case(
    "lines pattern",
    f"{LINES} -o out --block-pattern 'blocks\\.(\\d+)'",
    f"lines {MIXED} --alpha 0.1 --beta 0.5 -o mixed",
)

# -- options of edit ---------------------------------------------------------------------------------

case("energy", f"edit {B} {F1} -o out --energy 0.8", f"edit {B} {F1} -o list --energy 0.5,0.8,1")
case("rank", f"edit {B} {F1} -o out --rank 3", f"edit {B} {F1} -o fraction --rank-fraction 0.25")
for weighting in ("spectral", "alignment", "uniform", "high", "low"):
    case(f"weighting {weighting}", f"edit {B} {F1} -o out --weighting {weighting}")
case("edit wise", f"edit {B} {F1} -o out --wise 0.4", f"edit {MIXED} -o list --wise 0.3,0.5,1")
case(
    "edit sweeps of several",
    f"edit {B} {F1} {F2} -o out --wise 0.3,1",
    f"edit {B} {F1} {F2} -o list --energy 0.5,0.9",
)
case("min update", f"edit {B} {F1} -o out --min-update 0.015")
case(
    "include",
    f"edit {B} {F1} -o out --include 'blocks.*' --exclude '*down*'",
    f"stock {B} {F1} {F2} -o stock --exclude 'blocks.1.*'",
)
case("stacked", f"edit {B} {F1} -o out --stacked 'conv1d.*'")
case("dtype", *(f"edit {B} {F1} -o {dtype} --dtype {dtype}" for dtype in ("bfloat16", "float16", "float32")))
case(
    "dtype mixed",
    f"edit {MIXED} -o out --dtype bfloat16",
    "soup @mixed/ft1.safetensors @mixed/ft2.safetensors -o soup --dtype float32",
)
case(
    "max shard size",
    f"edit {B} {F1} -o out --max-shard-size 9KB",
    f"edit {B} {F1} -o one --max-shard-size 5GB",
)
case(
    "single file",
    f"edit {MIXED} -o out.safetensors",
    f"edit {MIXED} -o out.safetensors --overwrite --dtype float16",
)
case("overwrite", f"edit {B} {F1} -o out", f"edit {B} {F2} -o out --overwrite")
case(
    "workers",
    f"edit {B} {F1} {F2} -o out --workers 3",
    f"edit {MIXED} -o mixed --workers 2",
    f"stock {B} {F1} {F2} -o stock --workers 2",
)
case("large", "edit @large/base.safetensors @large/ft1.safetensors -o out")
case(
    "large several",
    "edit @large/base.safetensors @large/ft1.safetensors @large/ft2.safetensors -o out --wise 0.5,1",
)
case(
    "large stock",
    "stock @large/base.safetensors @large/ft1.safetensors @large/ft2.safetensors -o out --granularity filter",
)
case(
    "large as adapter",
    "edit @large/base.safetensors @large/ft1.safetensors -o out --as-adapter --adapter-rank 3 --exclude half.weight",
)

# -- layouts -----------------------------------------------------------------------------------------

case(
    "sharded", "edit @sharded/base @sharded/ft1 -o out", "edit @sharded/base @sharded/ft1 -o out.safetensors"
)
case(
    "sharded several",
    "edit @sharded/base @sharded/ft1 @sharded/ft2 -o out",
    "soup @sharded/ft1 @sharded/ft2 -o soup --dtype float32",
)
case(
    "sharded again",
    "edit @sharded/base @sharded/ft1 -o out --max-shard-size 20KB",
    "wise @sharded/base @sharded/ft1 -o sweep --alpha 0.5,1",
)
case(
    "sharded others",
    "stock @sharded/base @sharded/ft1 @sharded/ft2 -o stock",
    "lines @sharded/base @sharded/ft1 -o lines --alpha 0.2 --beta 0.8",
)
case(
    "state dicts",
    "edit @states/base.pt @states/ft1.pt -o out",
    "edit @states/base.pt @states/ft2.pt -o file.safetensors",
)
case(
    "state dicts sharded",
    "edit @states/base @states/ft1 -o out",
    "stock @states/base @states/ft1 @states/ft2 -o stock",
    "wise @states/base.pt @states/ft1 -o wise --alpha 0.5",
)
case(
    "state dicts soup",
    "soup @states/ft1.pt @states/ft2.pt -o out",
    "sfgs @states/base.pt @states/ft1.pt @states/ft2.pt -o sfgs --threshold 0",
)

# -- what does not match, and what is not finite --------------------------------------------------------

MISMATCH = "@mismatch/base.safetensors @mismatch/ft1.safetensors"
for mode in ("keep", "overlap"):
    case(
        f"{mode} edit",
        f"edit {MISMATCH} -o out --on-mismatch {mode}",
        f"edit {MISMATCH} @mismatch/ft2.safetensors -o mean --on-mismatch {mode} --exclude only.tuned",
    )
    case(
        f"{mode} stock",
        f"stock {MISMATCH} @mismatch/ft2.safetensors -o out --on-mismatch {mode} --exclude only.tuned",
    )
    case(
        f"{mode} soup",
        f"soup @mismatch/ft1.safetensors @mismatch/ft2.safetensors -o out --on-mismatch {mode} --exclude only.tuned",
    )
    case(
        f"{mode} wise",
        f"wise {MISMATCH} -o out --on-mismatch {mode} --alpha 0.5",
        f"wise {MISMATCH} -o sweep --on-mismatch {mode} --alpha 0,0.5",
    )
    case(
        f"{mode} others",
        f"lines {MISMATCH} -o lines --on-mismatch {mode} --alpha 0.2 --beta 0.8",
        f"sfgs {MISMATCH} @mismatch/ft2.safetensors -o sfgs --on-mismatch {mode} --threshold -1 --exclude only.tuned",
    )
    case(f"{mode} inspected", f"inspect-spectrum {MISMATCH} --on-mismatch {mode} --format json --values")
case(
    "keep other shapes",
    "edit @mismatch/base.safetensors @mismatch/other.safetensors -o out --on-mismatch keep",
)
case(
    "renamed",
    "edit @mismatch/base.safetensors @mismatch/renamed.safetensors -o out --rename blocks.=encoder.layer.",
    "edit @mismatch/base.safetensors @mismatch/renamed.safetensors -o dry --dry-run --format json",
)
NONFINITE = "@nonfinite/base.safetensors @nonfinite/ft1.safetensors"
case(
    "nonfinite keep",
    f"edit {NONFINITE} -o out --on-nonfinite keep",
    f"wise {NONFINITE} -o wise --alpha 0.5 --on-nonfinite keep",
    f"edit {NONFINITE} @nonfinite/ft2.safetensors -o mean --on-nonfinite keep",
)
case(
    "nonfinite keep others",
    f"stock {NONFINITE} @nonfinite/ft2.safetensors -o stock --on-nonfinite keep",
    f"lines {NONFINITE} -o lines --alpha 0.2 --beta 0.8 --on-nonfinite keep",
    "soup @nonfinite/ft1.safetensors @nonfinite/ft2.safetensors -o soup --on-nonfinite keep",
)
case("nonfinite inspected", f"inspect-spectrum {NONFINITE} --on-nonfinite keep --format json")

# -- adapters ----------------------------------------------------------------------------------------

NEED_A_BASE = {"dora", "dora_gpt2", "dora_embedding", "dora_convolution", "experts_patterns"}
for name in ADAPTERS:
    pair = f"@{name}/base @{name}/adapter-1"
    case(
        f"adapter {name}",
        f"edit {pair} -o out",
        f"wise {pair} -o wise --alpha 0.5",
        f"edit - @{name}/adapter-1 -o again --as-adapter",
        codes=[0, 0, int(name in NEED_A_BASE)],
    )
LORA = "@linear/base @linear/adapter-1"
LORAS = f"{LORA} @linear/adapter-2"
case("adapters edit", f"edit {LORAS} -o out", f"edit {LORAS} -o list --energy 0.5,0.9 --dtype bfloat16")
case("adapters stock", f"stock {LORAS} -o out", f"stock {LORAS} -o filter --granularity filter --no-clamp")
case("adapters soup", "soup @linear/adapter-1 @linear/adapter-2 -o out --base @linear/base")
case(
    "adapters sfgs",
    f"sfgs {LORAS} -o out --threshold 0",
    f"sfgs {LORAS} -o one --threshold 0.9 --include-vectors",
)
case(
    "adapters lines",
    f"lines {LORA} -o out --alpha 0.3 --beta 0.7",
    "lines @experts/base @experts/adapter-1 -o more --alpha 0.3 --beta 0.7",
)
case(
    "adapters of experts",
    "edit @experts/base @experts/adapter-1 @experts/adapter-2 -o out",
    "stock @experts/base @experts/adapter-1 @experts/adapter-2 -o stock",
)
case(
    "adapters with modules",
    "edit @modules_to_save/base @modules_to_save/adapter-1 @modules_to_save/adapter-2 -o out",
    "soup @modules_to_save/adapter-1 @modules_to_save/adapter-2 -o soup --base @modules_to_save/base",
)
case(
    "adapter options",
    f"edit {LORA} -o rank --rank 2",
    f"edit {LORA} -o wise --wise 0.3,1",
    f"edit {LORA} -o out.safetensors --include '*q_proj*'",
    f"edit {LORA} -o min --min-update 0.01",
)
case(
    "adapter by weighting",
    *(
        f"edit {LORA} -o {weighting} --weighting {weighting}"
        for weighting in ("spectral", "alignment", "uniform", "high", "low")
    ),
)
case("adapter of a file", "edit @linear/base/model.safetensors @linear/adapter-1 -o out")
case(
    "adapter broken",
    "edit @linear/base @linear/broken -o out --on-nonfinite keep",
    "edit - @linear/broken -o again --as-adapter --on-nonfinite keep",
    "edit @linear/base @linear/broken -o refused",
    codes=[0, 0, 1],
)
case("adapter nothing to do", f"wise {LORA} -o zero --alpha 0", f"wise {LORA} -o one --alpha 1")
case(
    "kohya",
    "edit @kohya/unet @kohya/kohya.safetensors -o out",
    "wise @kohya/unet @kohya/kohya.safetensors -o wise --alpha 1",
    "edit - @kohya/kohya.safetensors -o again.safetensors --as-adapter",
    "edit @kohya/unet @kohya/kohya.safetensors -o based.safetensors --as-adapter",
    codes=[0, 0, 1, 0],
)
case(
    "diffusers",
    "edit @kohya/unet @kohya/diffusers/pytorch_lora_weights.safetensors -o out",
    "edit - @kohya/diffusers -o again --as-adapter",
    "soup @kohya/kohya.safetensors @kohya/diffusers/pytorch_lora_weights.safetensors --base @kohya/unet -o soup",
    codes=[0, 1, 0],
)

# -- adapters out --------------------------------------------------------------------------------------

case(
    "as adapter options",
    "edit - @linear/adapter-1 -o rank --as-adapter --rank 2",
    "edit - @linear/adapter-1 -o dtype --as-adapter --dtype bfloat16",
    "edit - @linear/adapter-1 -o include --as-adapter --include '*q_proj*'",
    "edit - @linear/adapter-1 -o energy --as-adapter --energy 0.5,0.9",
    f"edit {LORA} -o based --as-adapter --weighting spectral",
)
EXTRACT = "edit @whole/llama/base @whole/llama/ft1"
case(
    "extract rank",
    f"{EXTRACT} -o out --as-adapter --adapter-rank 4",
    *(
        f"edit @whole/{kind}/base @whole/{kind}/ft1 -o {kind} --as-adapter --adapter-rank 4"
        for kind in ("gpt2", "qwen3-moe")
    ),
)
case(
    "extract energy",
    f"{EXTRACT} -o out --as-adapter --adapter-energy 0.8",
    "edit @whole/qwen3-moe/base @whole/qwen3-moe/ft1 -o experts --as-adapter --adapter-energy 0.5",
)
case(
    "extract several",
    f"{EXTRACT} @whole/llama/ft2 -o out --as-adapter --adapter-rank 4",
    f"{EXTRACT} @whole/llama/ft2 -o energy --as-adapter --adapter-energy 0.6",
    f"{EXTRACT} @whole/llama/ft2 -o list --as-adapter --adapter-rank 32 --wise 0.5,1",
)
case(
    "extract options",
    f"{EXTRACT} -o out --as-adapter --adapter-rank 4 --wise 0.5 --dtype bfloat16",
    f"{EXTRACT} -o list --as-adapter --adapter-rank 4 --energy 0.3,0.9",
    f"{EXTRACT} -o some --as-adapter --adapter-rank 4 --include '*q_proj*'",
    f"{EXTRACT} -o dry --as-adapter --adapter-energy 0.8 --dry-run --format json",
)

# -- what is printed -------------------------------------------------------------------------------------

case("format json", f"edit {B} {F1} -o out --format json", f"soup {F1} {F2} -o soup --format json")
case(
    "report to stdout",
    f"edit {B} {F1} -o out --report -",
    f"stock {B} {F1} {F2} -o stock --report elsewhere.json",
)
DRY = "--dry-run --format json"
case(
    "dry run json",
    f"edit {B} {F1} -o out {DRY}",
    f"stock {B} {F1} {F2} -o out {DRY}",
    f"wise {B} {F1} -o out --alpha 0.5,1 {DRY}",
    f"lines {B} {F1} -o out --alpha 0.2 --beta 0.8 {DRY}",
    f"edit {LORA} -o out {DRY}",
    f"edit - @linear/adapter-1 -o out --as-adapter {DRY}",
    f"{EXTRACT} -o out --as-adapter --adapter-rank 4 {DRY}",
    f"{GREEDY} -o out {DRY}",
    f"edit {MISMATCH} -o out --on-mismatch overlap {DRY}",
    files={"scorer.py": SCORER},
)
case(
    "dry run",
    f"edit {B} {F1} -o out --dry-run",
    f"lines {B} {F1} -o out --alpha 0.2 --beta 0.8 --dry-run",
    "edit @sharded/base @sharded/ft1 -o out --dry-run",
)
INSPECT = f"inspect-spectrum {B} {F1}"
case(
    "inspect json",
    f"{INSPECT} --format json",
    f"{INSPECT} {F2} {F3} --format json",
    f"inspect-spectrum {LORA} --format json",
    f"inspect-spectrum {LORAS} --format json --values",
)
case(
    "inspect csv",
    f"{INSPECT} --format csv",
    f"{INSPECT} --format csv --values --layer 'blocks.*'",
    f"{INSPECT} --format csv --group kind --sort rho",
)
case(
    "inspect table",
    INSPECT,
    f"{INSPECT} {F2} --top 5 --sort k_ratio",
    f"{INSPECT} --group depth --reverse --sort name",
)
case(
    "inspect options",
    f"{INSPECT} --format json --energy 0.5",
    f"{INSPECT} --format json --rank 2 --weighting spectral --layer '*up*'",
    f"{INSPECT} --format json --rank-fraction 0.5 --exclude 'blocks.0.*' --stacked 'conv1d.*'",
    "inspect-spectrum @mixed/base.safetensors @mixed/ft1.safetensors --format csv",
)
case(
    "report",
    f"edit {B} {F1} -o out",
    "report out/monosoup_report.json",
    "report out/monosoup_report.json --format json",
    "report out/monosoup_report.json --format csv --group kind",
)
case(
    "compare",
    f"edit {B} {F1} -o a",
    f"edit {B} {F1} -o b --energy 0.5",
    "compare a/monosoup_report.json b/monosoup_report.json",
    "compare a/monosoup_report.json b/monosoup_report.json --format json",
)

# -- interrupted runs --------------------------------------------------------------------------------------

MANY = "@many/base.safetensors @many/ft1.safetensors"
for name, line in {
    "edit": f"edit {MANY}",
    "sweep": f"wise {MANY} --alpha 0.5,1",
    "stock": f"stock {MANY} @many/ft2.safetensors",
    "adapter": "edit - @many/adapter --as-adapter",
    "extraction": f"edit {MANY} --as-adapter --adapter-energy 0.5",
}.items():
    case(f"resumed {name}", f"{line} -o out", f"{line} -o out --resume", codes=[-9, 0], kill=0)
FAILING = "import os, sys\nif os.path.exists('fail') and 'trial' in sys.argv[1]:\n    sys.exit(3)\n" + SCORER
case(
    "resumed selection",
    f"{GREEDY} -o out",
    f"{GREEDY} -o out --resume",
    codes=[1, 1],
    files={"scorer.py": "raise SystemExit(3)"},
)

# -- refusals --------------------------------------------------------------------------------------------------


def refusals(name, *lines, code=1, **more):
    """Command lines that end with `code` and leave nothing."""
    case(f"refused {name}", *lines, codes=[code] * len(lines), **more)


refusals(
    "shapes",
    f"edit {MISMATCH} -o out",
    f"stock {MISMATCH} @mismatch/ft2.safetensors -o out",
    "wise @mismatch/base.safetensors @mismatch/other.safetensors -o out --alpha 0.5 --on-mismatch overlap",
)
refusals(
    "nonfinite",
    f"edit {NONFINITE} -o out",
    f"wise {NONFINITE} -o out --alpha 0.5",
    "soup @nonfinite/ft1.safetensors @nonfinite/ft2.safetensors -o out",
)
refusals(
    "outputs",
    f"edit {B} {F1} -o absent/out",
    f"edit {B} {F1} -o @plain/base.safetensors --overwrite",
    f"edit {B} {F1} -o @plain --overwrite",
    f"edit {B} {F1} -o out --report absent/report.json",
)
refusals(
    "inputs",
    f"edit absent {F1} -o out",
    f"edit {B} @plain/scores.json -o out",
    f"edit @linear/adapter-1 {F1} -o out",
    "soup @linear/adapter-1 @linear/adapter-2 -o out",
)
refusals(
    "usage",
    f"edit {B} {F1} -o out --rank 3 --energy 0.5",
    f"edit {B} {F1} -o out --energy 1.5",
    f"wise {B} {F1} -o out --alpha 2",
    f"wise {B} {F1} -o out.safetensors --alpha 0.3,0.5",
    f"edit {B} {F1} -o out --wise x",
    f"soup {F1} {F2} -o out --weights 1,x",
    f"soup {F1} -o out",
    f"stock {B} {F1} -o out",
    f"edit {B} {F1} -o out --device cuda:9x",
    f"edit {B} {F1} -o out --max-shard-size 5XB",
    f"edit {B} {F1} -o out --push org/name --dry-run --nothing",
    f"edit {B} {F1}",
    "edit",
    code=2,
)
refusals(
    "adapters",
    "edit - @linear/adapter-1 -o out",
    f"edit - {F1} -o out --as-adapter --adapter-rank 4",
    f"edit {B} {F1} -o out --as-adapter",
    f"edit {B} {F1} -o out --adapter-rank 4",
    f"edit {LORA} -o out --as-adapter --adapter-rank 4",
    f"edit {B} {F1} -o out --as-adapter --adapter-energy 1.5",
    "edit - @linear/adapter-1 -o out --as-adapter --max-shard-size 1GB",
    "edit - @linear/adapter-1 -o out --as-adapter --wise 0.5",
    f"edit {LORA} -o out.safetensors --as-adapter",
    "edit - @linear/adapter-1 @linear/adapter-2 -o out --as-adapter",
    code=2,
)
case(
    "refused to replace",
    f"edit {B} {F1} -o out",
    f"edit {B} {F2} -o out",
    f"edit {B} {F2} -o out --resume",
    codes=[0, 1, 1],
)
refusals(
    "reports",
    "report @plain/scores.json",
    "compare @plain/scores.json @plain/scores.json",
    "report absent.json",
)
