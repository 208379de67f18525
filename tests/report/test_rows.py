"""rows_of: the layers of any command's report, flat; compared with the entries of the report itself."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import monosoup_cli
from monosoup_cli.report.rows import rows_of

EXPERTS = "model.layers.1.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    tensors = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,), "lm_head.weight": (20, 8)}
    tensors |= {"net.3.weight": (6, 4), "net.5.weight": (6, 4)}
    for block in range(2):
        tensors[f"model.layers.{block}.self_attn.q_proj.weight"] = (8, 8)
        tensors[f"model.layers.{block}.mlp.experts.down_proj"] = (3, 8, 6)
    normal = torch.Generator().manual_seed(0)
    made = [{name: torch.randn(shape, generator=normal) for name, shape in tensors.items()} for _ in range(2)]
    made[1][EXPERTS][2] = made[0][EXPERTS][2]  # one expert did not move
    paths = folder / "base.safetensors", folder / "finetuned.safetensors"
    for path, each in zip(paths, made, strict=True):
        save_file(each, path)
    return paths


@pytest.fixture(scope="module")
def edited(pair, tmp_path_factory):
    return monosoup_cli.edit(*pair, tmp_path_factory.mktemp("edit") / "out", device="cpu")


def by_name(rows):
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def test_a_tensor_keeps_all_that_its_entry_says(edited):
    rows = by_name(rows_of(edited))
    whole = [layer for layer in edited["layers"] if "slices" not in layer]
    assert len(whole) == 7
    for layer in whole:
        assert layer.items() <= rows[layer["name"]].items()


def test_a_stack_becomes_a_row_for_each_matrix(edited):
    (stack,) = (layer for layer in edited["layers"] if layer["name"] == EXPERTS)
    rows = [row for row in rows_of(edited) if row["name"].startswith(EXPERTS)]
    assert [row["name"] for row in rows] == [f"{EXPERTS}[{index}]" for index in range(3)]
    for row, part in zip(rows, stack["slices"], strict=True):
        assert part.items() <= row.items()
        assert (row["shape"], row["dtype"]) == ([8, 6], "F32")
        assert "slices" not in row
    assert [row["action"] for row in rows] == ["edited", "edited", "kept"]
    assert [row["reason"] for row in rows] == [None, None, "unchanged"]


def test_what_is_measured_of_a_whole_stack_stands_with_its_first_matrix(pair, tmp_path):
    third = tmp_path / "third.safetensors"
    normal = torch.Generator().manual_seed(1)
    tensors = load_file(pair[1])
    save_file({name: torch.randn(each.shape, generator=normal) for name, each in tensors.items()}, third)
    report = monosoup_cli.inspect_spectrum(pair[0], [pair[1], third], device="cpu")
    stacks = [layer for layer in report["layers"] if "slices" in layer]
    rows = by_name(rows_of(report))
    for stack in stacks:
        measured = {name: stack[name] for name in ("cosine", "ratio", "clamped", "cosines")}
        assert None not in measured.values()
        first, *others = (rows[f"{stack['name']}[{index}]"] for index in range(3))
        assert measured.items() <= first.items()
        assert not any(row.keys() & measured.keys() for row in others)
        assert all(row["rho"] == part["rho"] for row, part in zip(others, stack["slices"][1:], strict=True))
    assert len(stacks) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", ("embedding", None, None, "model.embed_tokens")),
        ("lm_head.weight", ("head", None, None, "lm_head")),
        ("model.norm.weight", ("other", None, None, "model.norm")),
        ("model.layers.1.self_attn.q_proj.weight", ("attention", "model.layers", 1, "self_attn.q_proj")),
        (f"{EXPERTS}[1]", ("mlp", "model.layers", 1, "mlp.experts.down_proj")),
    ],
)
def test_the_name_tells_kind_and_place(edited, name, expected):
    row = by_name(rows_of(edited))[name]
    assert tuple(row[fact] for fact in ("kind", "stack", "block", "part")) == expected


def test_the_ratio_is_of_what_the_report_says(edited):
    for row in rows_of(edited):
        is_measured = row.get("k") is not None
        assert row["k_ratio"] == (row["k"] / row["rank"] if is_measured else None)
        assert is_measured == (row["action"] == "edited")


def test_blocks_that_the_report_names_itself_count(pair, tmp_path):
    pattern = r"net\.(\d+)\."
    options = {"alpha": 0.2, "beta": 0.7, "block_pattern": pattern, "device": "cpu"}
    rows = by_name(rows_of(monosoup_cli.lines(*pair, tmp_path / "out", **options)))
    assert [(row["stack"], row["block"]) for row in (rows["net.3.weight"], rows["net.5.weight"])] == [
        ("net", 0),
        ("net", 1),
    ]
    assert [rows[f"net.{number}.weight"]["scale"] for number in (3, 5)] == pytest.approx([0.2, 0.9])
    # a stack is scaled as a whole; where the report has no block, the name tells it
    assert (rows[EXPERTS]["stack"], rows[EXPERTS]["block"]) == ("model.layers", 1)


def test_of_names_without_blocks_all_is_outside(pair, tmp_path):
    for number, path in enumerate(pair):
        save_file({"a": torch.eye(4) * (1 + number)}, tmp_path / path.name)
    files = [tmp_path / path.name for path in pair]
    (row,) = rows_of(monosoup_cli.inspect_spectrum(*files, device="cpu"))
    assert (row["stack"], row["block"], row["part"]) == (None, None, "a")
