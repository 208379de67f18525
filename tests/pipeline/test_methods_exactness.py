"""stock, soup, sfgs, wise and lines, and edit of a mean, against float64 references, for every kind of
tensor and dtype."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.errors import NonfiniteError
from tests import oracle, references

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

DTYPES = {  # of the base, and of the fine-tuned ones in turn
    "f32": (F32, [F32]),
    "bf16": (BF16, [BF16]),
    "f64": (F64, [F64]),
    "bf16 over f32": (F32, [BF16]),
    "mixed": (F32, [BF16, F32, F16, F64]),
    "mixed 16-bit": (BF16, [F16, BF16]),
}
SHAPES = {
    "square": (36, 36),
    "tall": (70, 9),
    "wide": (9, 70),
    "convolution": (6, 4, 3, 3),
    "conv_1d": (6, 4, 5),
    "mlp.experts.up_proj": (3, 8, 10),
    "row": (1, 90),
    "column": (90, 1),
    "one": (1, 1),
    "vector": (50,),
    "short_vector": (1,),
    "scalar": (),
    "still": (7, 5),
    "first_is_still": (7, 5),
    "rows_are_still": (7, 5),
    "zero_base": (12, 12),
    "empty_vector": (0,),
    "no_rows": (0, 7),
    "no_columns": (7, 0),
}
STACKS = {"visual.transformer.resblocks": 4, "transformer.resblocks": 3, "single.blocks": 2}
OUTSIDE = ["visual.conv1.weight", "visual.proj", "logit_scale", "fc.weight", "classification_head.bias"]


def steps(rng, shape, dtype):
    """Multiples of 1/8, which every dtype holds exactly, and their small sums as well."""
    return torch.from_numpy(rng.integers(-16, 17, shape) / 8).to(dtype)


def make_checkpoints(base_dtype, dtypes, count, seed=0):
    """A base and `count` fine-tuned ones: tensors of every kind, some leaning the same way."""
    rng = np.random.default_rng(seed)
    base = {name: torch.tensor(rng.standard_normal(shape)).to(base_dtype) for name, shape in SHAPES.items()}
    still = {name: steps(rng, shape, base_dtype) for name, shape in SHAPES.items() if "still" in name}
    base |= {**still, "zero_base": torch.zeros(12, 12, dtype=base_dtype)}
    leaning = {name: rng.choice([0, 1, 3]) * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    finetuned = []
    for number, dtype in zip(range(count), itertools.cycle(dtypes)):
        made = {}
        for name, weights in base.items():
            update = 0.05 * (leaning[name] + rng.standard_normal(weights.shape))
            if "still" in name:
                update = steps(rng, weights.shape, F64).numpy()
                update *= 0 if name == "still" or (name, number) == ("first_is_still", 0) else 1
            if name == "rows_are_still":
                update[:3] = 0  # nobody moved these
                update[3 + number % 4] = 0
            made[name] = (weights.double() + torch.from_numpy(np.asarray(update))).to(dtype)
        finetuned.append(made)
    for number, tensors in enumerate((base, *finetuned)):
        for name in ("square", "vector"):  # zeros of either sign
            tensors[name].view(-1)[number : number + 8 : 2] = -0.0
        tensors["counter"] = torch.tensor(2**40 + number)
        tensors["mask"] = torch.tensor([[number % 2 == 0, True]])
    return base, finetuned


def write(folder, *checkpoints):
    paths = [folder / f"{number}.safetensors" for number in range(len(checkpoints))]
    for tensors, path in zip(checkpoints, paths, strict=True):
        save_file(tensors, path)
    return paths


def arrays(tensors):
    """The floating tensors in float64."""
    return {name: t.double().numpy() for name, t in tensors.items() if t.is_floating_point()}


def mean_of(members, weights=None):
    return {
        name: references.soup([tensors[name].double().numpy() for tensors in members], weights)
        for name in arrays(members[0])
    }


def have_same_bits(one, other):
    as_integers = [t.view(INTEGERS[t.element_size()]) for t in (one, other)]
    return one.dtype == other.dtype and torch.equal(*as_integers)


def assert_equal(found, reference, dtype):
    assert (found.dtype, found.shape) == (dtype, reference.shape)
    if not reference.size:
        return
    oracle.assert_weights_equal(found.reshape(-1), reference.reshape(-1))
    if dtype == F64:
        assert np.abs(found.numpy() - reference).max() <= 1e-13 * np.abs(reference).max()


def check(found, expected, first):
    """Names, floating tensors as expected in the first's dtypes, and the first's buffers."""
    assert found.keys() == first.keys()
    for name, tensor in found.items():
        if name in expected:
            assert_equal(tensor, expected[name], first[name].dtype)
        else:
            assert not tensor.is_floating_point()
            assert have_same_bits(tensor, first[name])


@pytest.fixture(params=["whole", "by blocks"])
def cut(request, monkeypatch):
    """Small tensors as they are; and the same as if they were too large for the buffers, most of them
    for what is held between two passes as well."""
    if request.param == "by blocks":
        monkeypatch.setattr("monosoup_cli.tensors.flat.FLAT_ELEMENTS", 37)
        monkeypatch.setattr("monosoup_cli.tensors.flat.ROWS_ELEMENTS", 128)
        monkeypatch.setattr("monosoup_cli.tensors.flat.MIN_ROW_ELEMENTS", 11)
        monkeypatch.setattr("monosoup_cli.tensors.flat.HELD_BYTES", 400)


every_dtype = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
on_every_device = pytest.mark.parametrize("device", DEVICES)


@on_every_device
@every_dtype
@pytest.mark.parametrize(
    ("count", "granularity", "clamp"),
    [
        (2, "tensor", True),
        (2, "filter", False),
        (3, "tensor", False),
        (3, "filter", True),
        (5, "tensor", True),
        (5, "filter", False),
    ],
)
def test_stock(tmp_path, cut, count, granularity, clamp, dtypes, device):
    base, finetuned = make_checkpoints(*dtypes, count)
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    options = {"granularity": granularity, "clamp": clamp}
    report = monosoup_cli.stock(files[0], files[1:], out, device=device, **options)
    expected, measures = {}, {}
    for name, weights in arrays(base).items():
        others = [tensors[name].double().numpy() for tensors in finetuned]
        expected[name], measures[name] = references.stock(weights, others, **options)
    check(load_file(out), expected, finetuned[0])
    for layer in report["layers"]:
        wanted = measures.get(layer["name"])
        if wanted is None:
            is_buffer = layer["name"] not in measures
            assert layer["reason"] == ("not_floating" if is_buffer else "unchanged")
            continue
        assert layer["clamped"] == wanted["clamped"]
        assert layer["ratio"] == pytest.approx(wanted["ratio"], rel=1e-6, abs=1e-9)
        if layer["name"] == "scalar":
            assert layer["cosine"] is None
        else:
            assert layer["cosine"] == pytest.approx(wanted["cosine"], rel=1e-7, abs=1e-9)
    assert report["summary"]["clamped"] == sum(each["clamped"] for each in measures.values() if each)
    assert bool(report["summary"]["clamped"]) == clamp


@on_every_device
@every_dtype
def test_soup(tmp_path, cut, dtypes, device):
    _, members = make_checkpoints(*dtypes, 5)
    files, out = write(tmp_path, *members), tmp_path / "out.safetensors"
    for weights in (None, [0.2, 0.3, 0.5], [3, 0, 1, 1e-300]):
        count = len(weights or members)
        monosoup_cli.soup(files[:count], out, weights=weights, device=device, overwrite=True)
        check(load_file(out), mean_of(members[:count], weights), members[0])


def test_soup_of_more_16_bit_tensors_than_float32_sums_exactly(tmp_path):
    _, members = make_checkpoints(BF16, [BF16, F16], 19)
    out = tmp_path / "out.safetensors"
    monosoup_cli.soup(write(tmp_path, *members), out)
    check(load_file(out), mean_of(members), members[0])


@on_every_device
@every_dtype
def test_wise(tmp_path, cut, dtypes, device):
    base, (finetuned,) = make_checkpoints(*dtypes, 1)
    files, out = write(tmp_path, base, finetuned), tmp_path / "out"
    alphas = [0, 0.1, 1 / 3, 0.5, 0.75, 1, -0.5, 1.5]
    report = monosoup_cli.wise(*files, out, alpha=alphas, extrapolate=True, device=device)
    assert len(report["outputs"]) == len(alphas)
    for alpha in alphas:
        found = load_file(out / f"alpha-{alpha}" / "model.safetensors")
        expected = {
            name: references.wise(weights, finetuned[name].double().numpy(), alpha)
            for name, weights in arrays(base).items()
        }
        check(found, expected, finetuned)
        if alpha in (0, 1):
            for name in expected:
                copied = (finetuned if alpha else base)[name].to(finetuned[name].dtype)
                assert have_same_bits(found[name], copied), name


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
def test_wise_at_one_alpha(tmp_path, alpha):
    base, (finetuned,) = make_checkpoints(F32, [F32], 1)
    assert math.copysign(1, base["square"][0, 0]) == -1  # minus zero, which 0·W1 + W0 would lose
    out = tmp_path / "out.safetensors"
    monosoup_cli.wise(*write(tmp_path, base, finetuned), out, alpha=alpha)
    found = load_file(out)
    for name, weights in arrays(base).items():
        expected = references.wise(weights, finetuned[name].double().numpy(), alpha)
        assert_equal(found[name], expected, F32)
        if alpha != 0.5:
            assert have_same_bits(found[name], (finetuned if alpha else base)[name])


def as_clip(tensors):
    """The same, and more, under the names of a CLIP model: its tensors of every kind here and there."""
    places = [f"{prefix}.{block}" for prefix, length in STACKS.items() for block in range(length)]
    named = {f"{place}.{name}": t for place, (name, t) in zip(itertools.cycle(places), tensors.items())}
    for number, place in enumerate(places):
        named[f"{place}.attn.in_proj_weight"] = tensors["tall"].roll(number)
        named[f"{place}.mlp.fc.bias"] = tensors["vector"].roll(number)
    for number, name in enumerate(OUTSIDE):
        named[name] = tensors["wide"].roll(number)
    return named | {"token_embedding.positions": tensors["counter"] + 1}


@on_every_device
@every_dtype
def test_lines(tmp_path, cut, dtypes, device):
    check_lines(tmp_path, dtypes, 0.3, 0.9, device=device)


@pytest.mark.parametrize("head", ["last", "alpha", "ft"])
@pytest.mark.parametrize(("alpha", "beta"), [(0, 1), (1, -0.5)])
def test_lines_of_every_head(tmp_path, alpha, beta, head):
    check_lines(tmp_path, (F32, [BF16]), alpha, beta, head=head)


def check_lines(tmp_path, dtypes, alpha, beta, head="last", device="cpu"):
    base, (finetuned,) = make_checkpoints(*dtypes, 1)
    base, finetuned = as_clip(base), as_clip(finetuned)
    files, out = write(tmp_path, base, finetuned), tmp_path / "out.safetensors"
    report = monosoup_cli.lines(*files, out, alpha=alpha, beta=beta, head=head, device=device)
    assert {stack["name"]: stack["length"] for stack in report["stacks"]} == STACKS
    scales = {name: references.lines_scale(name, STACKS, alpha, beta, head) for name in base}
    expected = {
        name: weights + scales[name] * (finetuned[name].double().numpy() - weights)
        for name, weights in arrays(base).items()
    }
    found = load_file(out)
    check(found, expected, finetuned)
    for layer in report["layers"]:
        if layer["action"] == "edited":
            assert layer["scale"] == pytest.approx(scales[layer["name"]], rel=1e-15)
    for name in expected:
        if scales[name] in (0, 1):
            copied = (finetuned if scales[name] else base)[name].to(finetuned[name].dtype)
            assert have_same_bits(found[name], copied), name


def test_lines_with_one_block_and_with_numbers_from_a_pattern(tmp_path):
    names = ["stem", "block_0.w", "only.7.w", "block_10.w", "block_3.w"]
    base = {name: torch.zeros(3, 3) for name in names}
    finetuned = {name: torch.ones(3, 3) for name in names}
    files, out = write(tmp_path, base, finetuned), tmp_path / "out.safetensors"
    for pattern, scales in (
        (r"only\.(\d+)", [0.25, 0.25, 0.75, 0.25, 0.25]),
        (r"block_(\d+)", [0.25, 0.25, 0.25, 0.75, 0.5]),
    ):
        monosoup_cli.lines(*files, out, alpha=0.25, beta=0.5, block_pattern=pattern, overwrite=True)
        assert [float(load_file(out)[name][0, 0]) for name in names] == scales


ORTHOGONAL = ([3, 0, 4, 0], [0, 2, 0, -5])
SIMPLEX = [[4 if i == j else -1 for j in range(5)] for i in range(5)]
ANGLES = {  # the updates, the mean cosine, and t where it is not clamped
    "identical": ([[1, 2, 3], [1, 2, 3]], 1, 1),
    "parallel": ([[1, 2, 3], [4, 8, 12]], 1, 1),
    "orthogonal": (ORTHOGONAL, 0, 0),
    "60 degrees": ([[1, 1, 0], [1, 0, 1]], 0.5, 2 * 0.5 / (1 + 0.5)),
    "72 degrees": ([[5, 0, 0], [3, 4, 0]], 0.6, 2 * 0.6 / (1 + 0.6)),
    "obtuse": ([[1, 1, 0], [-1, 0, 1]], -0.5, -2),
    "opposite": ([[1, -2, 3], [-1, 2, -3]], -1, 0),
    "opposite, unlike": ([[1, -2, 3], [-7, 14, -21]], -1, 0),
    "one is zero": ([[1, 2, 3], [0, 0, 0]], 0, 0),
    "three, one is zero": ([[1, 2, 3], [0, 0, 0], [1, 2, 3]], 1 / 3, 0.6),
    "three, two opposite, one zero": ([[1, 2, 3], [0, 0, 0], [-1, -2, -3]], -1 / 3, -3),
    "three, two are zero": ([[0, 0, 0], [0, 0, 0], [1, 2, 3]], 0, 0),
    "three at 120 degrees": ([[1, -1, 0], [0, 1, -1], [-1, 0, 1]], -0.5, 0),
    "three orthogonal": ([[7, 0, 0], [0, 0, 1], [0, -2, 0]], 0, 0),
    "three at 60 degrees": ([[1, 1, 0], [1, 0, 1], [0, 1, 1]], 0.5, 0.75),
    "five away from each other": (SIMPLEX, -0.25, 0),
    "five alike": ([[2, -1]] * 5, 1, 1),
}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [F64, BF16])
def test_stock_ratios_of_known_angles(tmp_path, cut, dtype, count):
    """Of tensors many times longer than the updates, of which they have copies: the angles are the same."""
    cases = {name: case for name, case in ANGLES.items() if len(case[0]) == count}
    base, updates = {}, {}
    for name, (vectors, _, _) in cases.items():
        updates[name] = torch.tensor(vectors).to(dtype).repeat(1, 10)
        base[name] = steps(np.random.default_rng(0), (5, updates[name].shape[1]), dtype)
    made = [{name: base[name] + updates[name][number] for name in cases} for number in range(count)]
    files, out = write(tmp_path, base, *made), tmp_path / "out.safetensors"
    for granularity, clamp in itertools.product(["tensor", "filter"], [True, False]):
        report = monosoup_cli.stock(
            files[0], files[1:], out, granularity=granularity, clamp=clamp, overwrite=True
        )
        found = load_file(out)
        for layer in report["layers"]:
            _, cosine, ratio = cases[layer["name"]]
            clamps = (1 if granularity == "tensor" else 5) if clamp and ratio < 0 else 0
            expected = 0 if clamps else ratio
            assert layer["cosine"] == pytest.approx(cosine, abs=1e-14)
            assert layer["ratio"] == pytest.approx(expected, abs=1e-13)
            assert layer["clamped"] == clamps
            moved = base[layer["name"]].double() + expected * updates[layer["name"]].double().mean(0)
            assert_equal(found[layer["name"]], moved.numpy(), dtype)
        assert report["summary"]["clamped"] == sum(layer["clamped"] for layer in report["layers"])


def test_stock_counts_clamps_over_tensors_and_rows(tmp_path):
    obtuse, acute = torch.tensor([[2.0, 1], [-2, 1]]), torch.tensor([[2.0, 1], [2, -1]])
    made = [
        {"a": torch.stack([o, a, o]), "b": torch.stack([a, a]), "v": o, "s": torch.tensor(float(number))}
        for number, (o, a) in enumerate(zip(obtuse, acute, strict=True))
    ]
    base = {name: torch.zeros_like(t) for name, t in made[0].items()}
    files, out = write(tmp_path, base, *made), tmp_path / "out.safetensors"
    for options, counts in (
        ({"granularity": "filter"}, [2, 0, 0, 1]),
        ({"granularity": "tensor"}, [1, 0, 0, 1]),
        ({"granularity": "filter", "clamp": False}, [0, 0, 0, 0]),
    ):
        report = monosoup_cli.stock(files[0], files[1:], out, overwrite=True, **options)
        layers = {layer["name"]: layer for layer in report["layers"]}
        assert [layers[name]["clamped"] for name in "absv"] == counts
        assert report["summary"]["clamped"] == sum(counts)
        assert (layers["s"]["cosine"], float(load_file(out)["s"])) == (None, 0.5)


@pytest.mark.parametrize("count", [1_000, 100_000, 1_000_000])
def test_stock_stays_at_the_base_where_large_updates_cancel_out(tmp_path, count):
    """1 + c is 0 but for the rounding of sums, which must not become a step of 10^14."""
    update = torch.from_numpy(np.random.default_rng(0).standard_normal(count)).float().double()
    files = write(tmp_path, {"w": torch.zeros(count, dtype=F64)}, {"w": update}, {"w": -3 * update})
    out = tmp_path / "out.safetensors"
    (layer,) = monosoup_cli.stock(files[0], files[1:], out, clamp=False)["layers"]
    assert layer["ratio"] == 0
    assert not load_file(out)["w"].any()


@pytest.mark.parametrize("scale", [1e-6, 1e-30, 1e-90, 1e-150, 1e90, 1e150])
def test_cosines_have_no_epsilon(tmp_path, scale):
    """A tiny or a huge update has the same angles as any other."""
    rng = np.random.default_rng(0)
    made = [{"w": torch.from_numpy(scale * (1 + rng.standard_normal((8, 8))))} for _ in range(3)]
    files = write(tmp_path, {"w": torch.zeros(8, 8, dtype=F64)}, *made)
    weights = [np.zeros((8, 8)), *(each["w"].numpy() for each in made)]
    stock = monosoup_cli.stock(files[0], files[1:], tmp_path / "stock.safetensors")
    sfgs = monosoup_cli.sfgs(files[0], files[1:], tmp_path / "sfgs.safetensors", threshold=0)
    expected, measures = references.stock(weights[0], weights[1:])
    matrix = references.similarity({"w": weights[0]}, [{"w": each} for each in weights[1:]], ["w"])
    found = {name: [layer[name] for layer in stock["layers"]] for name in ("cosine", "ratio")}
    assert found == {name: [pytest.approx(measures[name], rel=1e-9)] for name in found}
    assert_equal(load_file(tmp_path / "stock.safetensors")["w"], expected, F64)
    np.testing.assert_allclose(sfgs["selection"]["similarity"], matrix, atol=1e-9)


def layers_of(tensors, dimensions=2):
    return [name for name, t in tensors.items() if t.is_floating_point() and t.ndim >= dimensions]


def check_selection(selection, paths, matrix, order, threshold):
    """The decisions, and what every other threshold would choose, from the reported similarities,
    which are those of `matrix`."""
    found = selection["similarity"]
    np.testing.assert_allclose(found, matrix, rtol=0, atol=1e-9)
    members, decisions = references.filtered(found, order, threshold)
    assert selection["order"] == [paths[number] for number in order]
    assert selection["members"] == [paths[number] for number in members]
    assert selection["decisions"] == [
        {"candidate": paths[candidate], "similarity": mean, "joined": joined}
        for candidate, mean, joined in decisions
    ]
    table = selection["thresholds"]
    highest = [row["highest"] for row in table]
    assert highest[0] is None
    assert highest[1:] == sorted(set(highest[1:]), reverse=True)
    edges = [np.nextafter(edge, towards) for edge in highest[1:] for towards in (-2, edge, 2)]
    # the mean similarities of each candidate to any members whatever
    subsets = [s for size in range(1, len(paths)) for s in itertools.combinations(range(len(paths)), size)]
    means = [
        math.fsum(found[c][m] for m in s) / len(s) for c in range(len(paths)) for s in subsets if c not in s
    ]
    for wanted in (*np.linspace(-1.1, 1.1, 111), *edges, *means):
        row = [each for each in table if each["highest"] is None or each["highest"] >= wanted][-1]
        assert row["members"] == [paths[number] for number in references.filtered(found, order, wanted)[0]]
    return members


@on_every_device
@every_dtype
@pytest.mark.parametrize("include_vectors", [False, True])
def test_sfgs(tmp_path, cut, include_vectors, dtypes, device):
    base, finetuned = make_checkpoints(*dtypes, 5)
    for tensors in finetuned[2:4]:  # one direction more that not all have in common
        tensors["wide"] += 0.5 * finetuned[2]["wide"].to(tensors["wide"].dtype)
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    left_out = ["tall", "scalar"]
    names = [n for n in layers_of(base, 1 if include_vectors else 2) if n not in left_out]
    matrix = references.similarity(arrays(base), [arrays(each) for each in finetuned], names)
    order, paths = [2, 4, 0, 3, 1], [str(path) for path in files[1:]]
    scores = {path: -order.index(number) / 7 for number, path in enumerate(paths)}
    threshold = float(np.median(matrix[2, [0, 1, 3, 4]]))
    report = monosoup_cli.sfgs(
        files[0],
        paths,
        out,
        threshold=threshold,
        scores=scores,
        include_vectors=include_vectors,
        exclude=left_out,
        device=device,
    )
    members = check_selection(report["selection"], paths, matrix, order, threshold)
    assert 1 < len(members) < 5
    found, expected = load_file(out), mean_of([finetuned[number] for number in members])
    for name in ("counter", "mask"):  # of the first member
        assert have_same_bits(found[name], finetuned[2][name])
    check(found | {name: finetuned[0][name] for name in ("counter", "mask")}, expected, finetuned[0])


def test_sfgs_pairs_that_did_not_move(tmp_path):
    """A layer that neither moved counts for nothing, one that one of them moved as 0; scalars never."""
    zero, one, other = torch.zeros(2, 2), torch.eye(2), torch.ones(2, 2)
    made = [
        {"a": one, "b": zero, "c": zero, "v": torch.tensor([1.0]), "s": torch.tensor(1.0)},
        {"a": one, "b": zero, "c": one, "v": torch.tensor([-1.0]), "s": torch.tensor(1.0)},
        {"a": other, "b": zero, "c": zero, "v": torch.tensor([0.0]), "s": torch.tensor(1.0)},
        {"a": zero, "b": zero, "c": zero, "v": torch.tensor([0.0]), "s": torch.tensor(1.0)},
    ]
    made = [{name: t.clone() for name, t in each.items()} for each in made]
    base = {name: torch.zeros_like(t) for name, t in made[0].items()}
    files, out = write(tmp_path, base, *made), tmp_path / "out.safetensors"
    half = 1 / math.sqrt(2)
    for include_vectors, pairs in (
        (False, {(0, 1): 1 / 2, (0, 2): half, (1, 2): half / 2}),
        (True, {(0, 1): 0, (0, 2): half / 2, (1, 2): half / 3}),
    ):
        report = monosoup_cli.sfgs(
            files[0], files[1:], out, threshold=0.1, include_vectors=include_vectors, overwrite=True
        )
        matrix = np.diag([1.0, 1, 1, 0])
        for (i, j), value in pairs.items():
            matrix[i, j] = matrix[j, i] = value
        np.testing.assert_allclose(report["selection"]["similarity"], matrix, atol=1e-15)


def test_sfgs_accepts_at_the_threshold_itself(tmp_path):
    vectors = ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 2], [1, 0, 0, 1])  # cosines of 0 and 1/2, exactly
    made = [{"w": torch.tensor([vector]).float()} for vector in vectors]
    files, out = write(tmp_path, {"w": torch.zeros(1, 4)}, *made), tmp_path / "out.safetensors"
    for threshold, members in (
        (math.nextafter(0.5, 1), [0]),
        (0.5, [0, 1, 3]),
        (math.nextafter(0.5, 0), [0, 1, 3]),
        (math.nextafter(0, 1), [0, 1, 3]),
        (0, [0, 1, 2, 3]),
        (-0.0, [0, 1, 2, 3]),
        (-1, [0, 1, 2, 3]),
    ):
        report = monosoup_cli.sfgs(files[0], files[1:], out, threshold=threshold, overwrite=True)
        assert report["selection"]["members"] == [str(files[1 + number]) for number in members]
        assert_equal(load_file(out)["w"], mean_of([made[number] for number in members])["w"], F32)


def test_sfgs_order_with_tied_scores_is_the_order_given(tmp_path):
    _, made = make_checkpoints(F32, [F32], 5)
    base, *finetuned = ({"w": each["square"]} for each in made)
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    paths = [str(path) for path in files[1:]]
    (tmp_path / "scores.json").write_text(json.dumps(dict(zip(paths, [1, 3, 1, 3], strict=True))))
    matrix = references.similarity(arrays(base), [arrays(each) for each in finetuned], ["w"])
    for scores, order in ((None, [0, 1, 2, 3]), (tmp_path / "scores.json", [1, 3, 0, 2])):
        report = monosoup_cli.sfgs(files[0], paths, out, threshold=0.2, scores=scores, overwrite=True)
        check_selection(report["selection"], paths, matrix, order, 0.2)


@every_dtype
def test_sfgs_of_one_member_is_that_member(tmp_path, dtypes):
    best = 1
    base, finetuned = make_checkpoints(*dtypes, 2)
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    scores = {str(path): float(number == best) for number, path in enumerate(files[1:])}
    report = monosoup_cli.sfgs(files[0], files[1:], out, threshold=1.1, scores=scores)
    assert report["selection"]["members"] == [str(files[1 + best])]
    found = load_file(out)
    assert found.keys() == finetuned[best].keys()
    for name, tensor in finetuned[best].items():
        assert have_same_bits(found[name], tensor.to(finetuned[0][name].dtype)), name


ONE, SEVERAL = ("edit", "wise", "lines"), ("stock", "soup", "sfgs")
COMMANDS = (*ONE, *SEVERAL)
OPTIONS = {"wise": {"alpha": 0.25}, "lines": {"alpha": 0.25, "beta": 0.5}, "sfgs": {"threshold": -1}}


def run(command, files, out, **options):
    """A command on a base and fine-tuned checkpoints, of which it may take the first alone."""
    inputs = [files[0], files[1] if command in ONE else files[1:]]
    options = OPTIONS.get(command, {}) | options
    return getattr(monosoup_cli, command)(*inputs[command == "soup" :], out, **options)


def make_misfits(dtype=F32):
    """A base and two fine-tuned checkpoints with a tensor for every reason to keep one."""
    rng = np.random.default_rng(5)

    def made(number):
        tensors = {
            "layers.0.w": (6, 4),
            "layers.1.w": (6, 4),
            "vector": (9,),
            "left_out": (5, 3),
            "scalar": (),
            "reshaped": (4, 6) if number == 0 else (6, 4),
            "odd": (2, 3) if number == 2 else (3, 2),
            "new": (3, 3),
            "turned": (4,),
        }
        tensors = {
            name: torch.tensor(rng.standard_normal(shape)).to(dtype) for name, shape in tensors.items()
        }
        tensors["left_out"][0, number] = -0.0
        tensors["counter"] = torch.tensor([number, 2**40])
        if number == 0:
            del tensors["new"]
            tensors["turned"] = torch.arange(4)
            tensors["gone"] = torch.ones(2)
        return tensors

    return made(0), [made(1), made(2)]


KEEP = {"exclude": ["left_out"], "on_mismatch": "keep"}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("command", COMMANDS)
def test_kept_tensors(tmp_path, cut, command, dtype):
    base, finetuned = make_misfits(dtype)
    finetuned = finetuned[: 1 if command in ONE else 2]
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    report = run(command, files, out, **KEEP)
    found, first = load_file(out), finetuned[0]
    assert found.keys() == first.keys()
    reasons = {layer["name"]: layer["reason"] for layer in report["layers"]}
    expected = {"left_out": "excluded", "counter": "not_floating"}
    if command not in ("soup", "sfgs"):  # those that need a base for every layer
        expected |= {"reshaped": "shape_mismatch", "new": "not_in_base", "turned": "not_floating"}
    if command == "edit":
        expected |= {"vector": "vector", "scalar": "vector"}
    if command in SEVERAL:
        expected["odd"] = "shape_mismatch"
    assert {name: reason for name, reason in reasons.items() if reason} == expected
    for name in expected:
        if command in ONE or name in ("counter", "odd"):
            assert have_same_bits(found[name], first[name]), name
        else:
            assert_equal(found[name], mean_of([{name: each[name]} for each in finetuned])[name], dtype)
    for name in reasons.keys() - expected.keys() - ({*reasons} if command == "edit" else set()):
        assert not have_same_bits(found[name], first[name]), name


@pytest.mark.parametrize(
    ("stored", "asked"), [(BF16, "float32"), (F32, "bfloat16"), (F64, "float16"), (F16, "bfloat16")]
)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "edit"])
def test_the_written_dtype(tmp_path, command, stored, asked):
    base, finetuned = make_misfits(stored)
    dtype = getattr(torch, asked)
    finetuned = finetuned[: 1 if command in ONE else 2]
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    report = run(command, files, out, dtype=asked, **KEEP)
    found = load_file(out)
    assert have_same_bits(found.pop("counter"), finetuned[0]["counter"])
    scale = {layer["name"]: layer.get("scale") for layer in report["layers"]}
    for layer in report["layers"]:
        name = layer["name"]
        if name not in found:
            continue
        members = [each[name].double().numpy() for each in finetuned]
        expected = references.soup(members) if name != "odd" else members[0]
        if layer["action"] == "edited" and command in ("stock", "wise", "lines"):
            weights = base[name].double().numpy()
            if command == "stock":
                expected = references.stock(weights, members)[0]
            else:
                expected = references.wise(weights, members[0], scale[name] if command == "lines" else 0.25)
        assert_equal(found[name], expected, dtype)
        if layer["action"] == "kept" and len(members) == 1:
            assert have_same_bits(found[name], finetuned[0][name].to(dtype))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("value", "where"), [(math.nan, 0), (math.nan, -1), (-math.inf, 1)])
def test_nan_and_inf_stop_every_command(tmp_path, command, value, where):
    base, finetuned = make_misfits()
    inputs = [base, *finetuned[: 1 if command in ONE else 2]]
    if command == "soup" and where == 0:
        return  # it has no base
    for name in ("layers.0.w", "scalar", "reshaped", "odd", "new"):
        if name not in inputs[where] or not inputs[where][name].is_floating_point():
            continue
        spoilt = [dict(tensors) for tensors in inputs]
        spoilt[where][name] = spoilt[where][name].clone()
        spoilt[where][name].view(-1)[-1] = value
        files = write(tmp_path, *spoilt)
        out = tmp_path / "out.safetensors"
        with pytest.raises(NonfiniteError) as caught:
            run(command, files, out, **KEEP)
        assert caught.value.tensor == name
        assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nonfinite_tensors_are_kept_as_fine_tuned_on_demand(tmp_path, cut, command, where):
    base, finetuned = make_misfits()
    inputs = [base, *finetuned[: 1 if command in ONE else 2]]
    if where >= len(inputs) or (command in ("soup", "sfgs") and where == 0):
        return  # what is averaged does not come from the base
    spoilt = {"layers.0.w", "vector", "scalar"}
    for name in spoilt:
        inputs[where][name].view(-1)[-1] = math.nan
    files, out = write(tmp_path, *inputs), tmp_path / "out.safetensors"
    report = run(command, files, out, on_nonfinite="keep", **KEEP)
    found = load_file(out)
    assert {layer["name"] for layer in report["layers"] if layer["reason"] == "nonfinite"} == spoilt
    for name in spoilt:
        assert have_same_bits(found[name], finetuned[0][name])
    assert all(t.isfinite().all() for name, t in found.items() if name not in spoilt)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", [0, 1, 2, None])
def test_excluded_tensors_may_hold_nan_and_inf(tmp_path, cut, command, where):
    """What --exclude names is as fine-tuned where a mean or a step between would be NaN; what --include
    leaves out, the user has not named."""
    base, finetuned = make_misfits()
    inputs = [base, *finetuned[: 1 if command in ONE else 2]]
    if where is not None and (where >= len(inputs) or (command == "soup" and where == 0)):
        return
    spoilt = inputs if where is None else [inputs[where]]
    for tensors in spoilt:
        tensors["left_out"].view(-1)[-2:] = torch.tensor([math.nan, -math.inf])
    files, out = write(tmp_path, *inputs), tmp_path / "out.safetensors"
    report = run(command, files, out, **KEEP)
    found = load_file(out)["left_out"]
    entry = next(layer for layer in report["layers"] if layer["name"] == "left_out")
    assert entry["reason"] == "excluded"
    if where == 0 and command in SEVERAL:
        mean = sum(tensors["left_out"].double() for tensors in finetuned) / 2
        np.testing.assert_allclose(found.double(), mean, rtol=1e-6)
    else:
        assert have_same_bits(found, finetuned[0]["left_out"])
    include = ["layers*", "vector", "odd", "new", "reshaped"]
    with pytest.raises(NonfiniteError, match="left_out"):
        run(command, files, out, include=include, on_mismatch="keep", overwrite=True)


def test_an_excluded_tensor_that_overflows_the_written_dtype_is_still_refused(tmp_path):
    tensors = {"w": torch.eye(3), "mask": torch.full((2, 2), torch.finfo(F32).min)}
    files, out = write(tmp_path, tensors, {**tensors, "w": torch.ones(3, 3)}), tmp_path / "out.safetensors"
    with pytest.raises(NonfiniteError, match="mask"):
        monosoup_cli.edit(*files, out, exclude="mask", dtype="float16")
    tensors["mask"].fill_(-math.inf)
    files = write(tmp_path, tensors, {**tensors, "w": torch.ones(3, 3)})
    monosoup_cli.edit(*files, out, exclude="mask", dtype="float16", wise=0.5)
    assert load_file(out)["mask"].eq(-math.inf).all()


def test_sfgs_leaves_out_layers_that_are_not_finite(tmp_path):
    base, finetuned = make_misfits()
    base["layers.0.w"][0, 0] = math.inf
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    report = run("sfgs", files, out, on_nonfinite="keep", **KEEP)
    matrix = references.similarity(arrays(base), [arrays(each) for each in finetuned], ["layers.1.w"])
    np.testing.assert_allclose(report["selection"]["similarity"], matrix, atol=1e-9)
    mean = mean_of([{"w": each["layers.0.w"]} for each in finetuned])["w"]
    assert_equal(load_file(out)["layers.0.w"], mean, F32)


@pytest.mark.parametrize("sign_of_base", [-1, 0, 1])
@pytest.mark.parametrize("command", ["edit", "stock", "stock by rows", "soup", "sfgs"])
def test_sums_that_overflow_float32_are_still_averaged(tmp_path, cut, command, sign_of_base):
    """bf16 reaches up to 3.4e38 like float32: three of 3e38 have a mean, and no sum."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.uniform(2.9e38, 3.3e38, (3, 8, 6))).to(BF16)
    made = [{"w": each, "v": each[0].clone(), "s": each[0, 0].clone()} for each in values]
    base = {name: torch.full(t.shape, sign_of_base * 1e38).to(BF16) for name, t in made[0].items()}
    files, out = write(tmp_path, base, *made), tmp_path / "out.safetensors"
    if command == "edit":
        monosoup_cli.edit(files[0], files[1:], out)
        matrix = references.soup([each["w"].double().numpy() for each in made])
        expected = mean_of(made) | {"w": oracle.edit(base["w"].double().numpy(), matrix)[0]}
    elif command.startswith("stock"):
        granularity = "filter" if "rows" in command else "tensor"
        monosoup_cli.stock(files[0], files[1:], out, granularity=granularity)
        expected = {
            name: references.stock(
                weights, [each[name].double().numpy() for each in made], granularity=granularity
            )[0]
            for name, weights in arrays(base).items()
        }
    else:
        run(command, files, out)
        expected = mean_of(made)
    check(load_file(out), expected, made[0])


@pytest.mark.parametrize("command", ["stock", "sfgs"])
def test_differences_that_overflow_float32_have_cosines(tmp_path, cut, command):
    values = torch.from_numpy(np.random.default_rng(0).uniform(2e38, 3e38, (4, 8, 6))).to(BF16)
    base, *made = ({"w": each * (1 if number else -1)} for number, each in enumerate(values))
    files, out = write(tmp_path, base, *made), tmp_path / "out.safetensors"
    report = run(command, files, out)
    members = [each["w"].double().numpy() for each in made]
    if command == "stock":
        expected, measures = references.stock(base["w"].double().numpy(), members)
        assert report["layers"][0]["cosine"] == pytest.approx(measures["cosine"], abs=1e-9)
        assert_equal(load_file(out)["w"], expected, BF16)
    else:
        matrix = references.similarity(arrays(base), [arrays(each) for each in made], ["w"])
        np.testing.assert_allclose(report["selection"]["similarity"], matrix, atol=1e-9)


@on_every_device
@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("dtypes", [(F32, [F32]), (F32, [BF16]), (BF16, [F16, F64, F32])], ids=str)
def test_edit_of_a_mean(tmp_path, monkeypatch, dtypes, is_held, device):
    """Held in float64, or read again for every block: the mean is edited as one checkpoint is."""
    monkeypatch.setattr("monosoup_cli.tensors.cut.BLOCK_ELEMENTS", 100)
    monkeypatch.setattr("monosoup_cli.tensors.cut.MIN_BLOCK_LENGTH", 7)
    monkeypatch.setattr("monosoup_cli.tensors.matrix.MEAN_BYTES", 10**6 if is_held else 64)
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr(f"monosoup_cli.devices.{kind}.RESIDENT_BYTES", 10**6 if is_held else 64)
    monkeypatch.setattr("monosoup_cli.tensors.flat.FLAT_ELEMENTS", 37)
    base, finetuned = make_checkpoints(*dtypes, 3)
    files, out = write(tmp_path, base, *finetuned), tmp_path / "out.safetensors"
    report = monosoup_cli.edit(files[0], files[1:], out, device=device)
    expected = mean_of(finetuned)
    for layer in report["layers"]:
        name = layer["name"]
        if name not in layers_of(base) or not expected[name].size:
            continue
        stack = "experts" in name
        matrices = [t if stack else t[None] for t in (base[name].double().numpy(), expected[name])]
        edited = []
        for number, (before, mean) in enumerate(zip(*matrices, strict=True)):
            shape = (before.shape[0], -1)
            weights, measures = oracle.edit(before.reshape(shape), mean.reshape(shape))
            edited.append(weights.reshape(before.shape))
            if measures is not None:
                oracle.assert_measures_equal(layer["slices"][number] if stack else layer, measures)
            else:
                assert (name, layer["reason"]) == ("still", "unchanged")
        expected[name] = np.stack(edited) if stack else edited[0]
    check(load_file(out), expected, finetuned[0])


@pytest.mark.parametrize("count", [3, 5, 17])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_soup_of_the_same_checkpoint_is_that_checkpoint(tmp_path, dtype, count):
    _, (member,) = make_checkpoints(dtype, [dtype], 1)
    files, out = write(tmp_path, *[member] * count), tmp_path / "out.safetensors"
    for weights in (None, list(range(1, count + 1))):
        monosoup_cli.soup(files, out, weights=weights, overwrite=True)
        for name, tensor in load_file(out).items():
            assert have_same_bits(tensor, member[name]), name


@pytest.mark.parametrize("count", [2, 4])
def test_a_soup_of_the_same_float64_checkpoint_is_that_checkpoint(tmp_path, count):
    """For other numbers than powers of two a sum in float64 rounds."""
    _, (member,) = make_checkpoints(F64, [F64], 1)
    out = tmp_path / "out.safetensors"
    monosoup_cli.soup(write(tmp_path, *[member] * count), out)
    assert all(have_same_bits(tensor, member[name]) for name, tensor in load_file(out).items())


def test_stock_of_the_same_checkpoint_is_that_checkpoint(tmp_path, cut):
    base, (member,) = make_checkpoints(F64, [F64], 1)
    files, out = write(tmp_path, base, *[member] * 3), tmp_path / "out.safetensors"
    for granularity in ("tensor", "filter"):
        monosoup_cli.stock(files[0], files[1:], out, granularity=granularity, overwrite=True)
        check(load_file(out), arrays(member), member)


def test_interpolation_is_linear_and_lines_without_a_ramp_is_wise(tmp_path, cut):
    base, finetuned = (as_clip(each[0]) for each in (lambda b, f: ([b], f))(*make_checkpoints(F64, [F64], 1)))
    files = write(tmp_path, base, finetuned)
    monosoup_cli.wise(*files, tmp_path / "wise", alpha="0:1:0.25")
    made = [
        load_file(tmp_path / "wise" / f"alpha-{a}" / "model.safetensors") for a in (0, 0.25, 0.5, 0.75, 1)
    ]
    for number, alpha in enumerate([0, 0.25, 0.5, 0.75, 1]):
        out = tmp_path / f"lines-{alpha}.safetensors"
        monosoup_cli.lines(*files, out, alpha=alpha, beta=0)
        for name, tensor in load_file(out).items():
            assert have_same_bits(tensor, made[number][name]), name
    for name, weights in arrays(base).items():
        found = [each[name].numpy() for each in made]
        total = weights + finetuned[name].numpy()
        for one, other in ((0, 4), (1, 3), (2, 2)):
            np.testing.assert_allclose(found[one] + found[other], total, rtol=0, atol=1e-14)


def test_the_order_of_the_members_does_not_matter(tmp_path):
    base, members = make_checkpoints(F32, [F32, BF16, F16], 3)
    members = [
        {name: t.float() if t.is_floating_point() else t for name, t in each.items()} for each in members
    ]
    _, *files = write(tmp_path, base, *members)
    made = {"soup": [], "stock": []}
    for order in (files, files[::-1], [files[1], files[0], files[2]]):
        for command, found in made.items():
            out = tmp_path / f"{command}.safetensors"
            run(command, [tmp_path / "0.safetensors", *order], out, overwrite=True)
            found.append(arrays(load_file(out)))
    for first, *others in made.values():
        for other, (name, weights) in itertools.product(others, first.items()):
            scale = np.abs(weights).max(initial=0)
            np.testing.assert_allclose(other[name], weights, rtol=0, atol=1e-6 * scale)


def test_sfgs_of_all_is_the_soup(tmp_path, cut):
    base, members = make_checkpoints(BF16, [BF16, F32], 4)
    files = write(tmp_path, base, *members)
    for command in ("soup", "sfgs"):
        run(command, files, tmp_path / f"{command}.safetensors")
    soup, sfgs = (load_file(tmp_path / f"{command}.safetensors") for command in ("soup", "sfgs"))
    assert all(have_same_bits(soup[name], tensor) for name, tensor in sfgs.items())
