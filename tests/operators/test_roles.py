"""What each operator reads its constants as: kind and layout, one line per case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.model import find_weights
from prunecli.operators import MICROSOFT, OPERATORS
from tests.model.build import floats, loaded, node, proto

MS = MICROSOFT
F = floats


def W(*canonical: int) -> tuple[str, tuple[int, ...]]:  # noqa: N802 - one letter keeps the table readable
    return "weight", canonical


def B(n: int) -> tuple[str, tuple[int, ...]]:  # noqa: N802
    return "bias", (1, n, 1, 1)


def N(n: int) -> tuple[str, tuple[int, ...]]:  # noqa: N802
    return "norm", (1, n, 1, 1)


def E(rows: int, cols: int) -> tuple[str, tuple[int, ...]]:  # noqa: N802
    return "embedding", (1, rows, 1, cols)


# operator, its inputs with constants as arrays (or None for an activation, "" for absent), attributes,
# then for each constant: kind and canonical shape, or a word of the reason why it is not prunable
CASES: list[tuple[str, list[Any], dict[str, Any], list[tuple[str, tuple[int, ...]] | str]]] = [
    ("Conv", [None, F(6, 2, 3, 3), F(6)], {"group": 2}, [W(2, 3, 9, 2), B(6)]),
    ("Conv", [None, F(6, 2, 5)], {}, [W(1, 6, 5, 2)]),
    ("Conv", [None, F(6, 2, 3)], {"group": 4}, ["does not fit"]),
    ("Conv", [F(1, 2, 8), None], {}, ["no operator takes it"]),
    (f"{MS}:FusedConv", [None, F(6, 2, 3, 3), F(6)], {}, [W(1, 6, 9, 2), B(6)]),
    (f"{MS}:NhwcFusedConv", [None, F(6, 2, 3, 3)], {}, [W(1, 6, 9, 2)]),
    ("DeformConv", [None, F(6, 2, 3, 3), None, F(6)], {}, [W(1, 6, 9, 2), B(6)]),
    ("ConvTranspose", [None, F(6, 2, 3), F(4)], {"group": 2}, [W(2, 2, 3, 3), B(4)]),
    ("Gemm", [None, F(3, 4), F(4)], {}, [W(1, 4, 1, 3), B(4)]),
    ("Gemm", [None, F(4, 3)], {"transB": 1}, [W(1, 4, 1, 3)]),
    ("Gemm", [F(4, 3), None], {}, [W(1, 4, 1, 3)]),
    ("Gemm", [F(3, 4), None], {"transA": 1}, [W(1, 4, 1, 3)]),
    ("Gemm", [None, None, F(2, 4)], {}, ["full matrix"]),
    (f"{MS}:FusedGemm", [None, F(3, 4)], {}, [W(1, 4, 1, 3)]),
    (f"{MS}:GemmFastGelu", [None, F(3, 4)], {}, [W(1, 4, 1, 3)]),
    ("MatMul", [None, F(3, 4)], {}, [W(1, 4, 1, 3)]),
    ("MatMul", [F(4, 3), None], {}, [W(1, 4, 1, 3)]),
    ("MatMul", [None, F(5, 2, 3, 4)], {}, [W(10, 4, 1, 3)]),
    ("MatMul", [None, F(3)], {}, [W(1, 1, 1, 3)]),
    (f"{MS}:FusedMatMul", [None, F(4, 3)], {"transB": 1}, [W(1, 4, 1, 3)]),
    (f"{MS}:FusedMatMul", [F(3, 4), None], {"transA": 1}, [W(1, 4, 1, 3)]),
    (f"{MS}:FusedMatMul", [None, F(2, 3, 4)], {"transBatchB": 1}, [W(3, 4, 1, 2)]),
    (f"{MS}:FusedMatMul", [F(2, 3, 4), None], {"transBatchA": 1, "transA": 1}, [W(3, 4, 1, 2)]),
    (f"{MS}:TransposeMatMul", [None, F(4, 3)], {"transB": 1}, [W(1, 4, 1, 3)]),
    (f"{MS}:FusedMatMulActivation", [None, F(3, 4)], {}, [W(1, 4, 1, 3)]),
    (f"{MS}:MoE", [None, None, F(4, 5, 3), F(4, 5), F(4, 3, 5), F(4, 3)], {}, [W(4, 5, 1, 3), B(20), W(4, 3, 1, 5), B(12)]),
    (
        "LSTM",
        [None, F(2, 20, 3), F(2, 20, 5), F(2, 40), "", F(2, 1, 5), F(2, 1, 5, seed=1), F(2, 15)],
        {"hidden_size": 5, "direction": "bidirectional"},
        [W(2, 20, 1, 3), W(2, 20, 1, 5), B(80), "initial", "initial",
         B(30)],
    ),
    ("GRU", [None, F(1, 15, 3), F(1, 15, 5)], {"hidden_size": 5}, [W(1, 15, 1, 3), W(1, 15, 1, 5)]),
    ("RNN", [None, F(1, 5, 3), F(1, 5, 5)], {"hidden_size": 5}, [W(1, 5, 1, 3), W(1, 5, 1, 5)]),
    ("Einsum", [None, F(3, 2, 4)], {"equation": "bsd,dhk->bshk"}, [W(1, 8, 1, 3)]),
    ("Einsum", [F(5, 3, 4), None], {"equation": "hdk,bhd->bhk"}, [W(5, 4, 1, 3)]),
    ("Einsum", [None, F(3, 4)], {"equation": "ij,jk"}, ["explicit output"]),
    ("Einsum", [None, F(3, 3)], {"equation": "ij,jj->i"}, ["diagonal"]),
    ("Einsum", [None, F(3, 4)], {"equation": "ij,kl->ijkl"}, ["does not contract"]),
    (f"{MS}:Attention", [None, F(6, 18), F(18)], {"num_heads": 2}, [W(1, 18, 1, 6), B(18)]),
    (f"{MS}:PackedAttention", [None, F(6, 18), F(18)], {}, [W(1, 18, 1, 6), B(18)]),
    (f"{MS}:MultiHeadAttention", [None, None, None, F(18)], {"num_heads": 2}, [B(18)]),
    (f"{MS}:PackedMultiHeadAttention", [None, None, None, F(18)], {}, [B(18)]),
    (f"{MS}:BiasGelu", [None, F(6)], {}, [B(6)]),
    (f"{MS}:FastGelu", [None, F(6)], {}, [B(6)]),
    (f"{MS}:BiasDropout", [None, F(6)], {}, [B(6)]),
    (f"{MS}:BiasAdd", [None, F(6)], {}, [B(6)]),
    (f"{MS}:BiasSplitGelu", [None, F(6)], {}, [B(6)]),
    ("BatchNormalization", [None, F(4), F(4), F(4), F(4)], {}, [N(4)] * 4),
    ("InstanceNormalization", [None, F(4), F(4)], {}, [N(4)] * 2),
    ("GroupNormalization", [None, F(4), F(4)], {"num_groups": 2}, [N(4)] * 2),
    ("LayerNormalization", [None, F(4), F(4)], {}, [N(4)] * 2),
    ("RMSNormalization", [None, F(4)], {}, [N(4)]),
    ("SimplifiedLayerNormalization", [None, F(4)], {}, [N(4)]),
    (f"{MS}:SimplifiedLayerNormalization", [None, F(4)], {}, [N(4)]),
    (f"{MS}:LayerNormalization", [None, F(4), F(4)], {}, [N(4)] * 2),
    (f"{MS}:SkipLayerNormalization", [None, None, F(4), F(4), F(4)], {}, [N(4)] * 3),
    (f"{MS}:SkipSimplifiedLayerNormalization", [None, None, F(4)], {}, [N(4)]),
    (f"{MS}:GroupNorm", [None, F(4), F(4)], {}, [N(4)] * 2),
    (f"{MS}:SkipGroupNorm", [None, F(4), F(4)], {}, [N(4)] * 2),
    ("PRelu", [None, F(4, 1, 1)], {}, [N(4)]),
    ("Gather", [F(10, 4), None], {}, [E(10, 4)]),
    ("Gather", [F(10, 4), None], {"axis": 1}, ["no operator takes it"]),
    ("Gather", [F(10), None], {}, ["no operator takes it"]),
    (
        f"{MS}:EmbedLayerNormalization",
        [None, "", F(10, 4), F(8, 4), "", F(4), F(4)],
        {},
        [E(10, 4), E(8, 4), N(4), N(4)],
    ),
    ("Add", [None, F(4)], {}, [B(4)]),
    ("Add", [F(1, 4, 1, 1), None], {}, [B(4)]),
    ("Add", [None, F(3, 4)], {}, ["no operator takes it"]),
    ("Sub", [None, F(4)], {}, [B(4)]),
    ("Mul", [None, F(4, 1, 1)], {}, [N(4)]),
    ("Div", [None, F(4)], {}, [N(4)]),
    ("Div", [F(4), None], {}, ["no operator takes it"]),
    ("Resize", [None, "", F(4)], {}, ["no operator takes it"]),
]  # fmt: skip


def one_node(op: str, inputs: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    domain, _, op_type = op.rpartition(":")
    names, weights, activations = [], {}, {}
    for index, given in enumerate(inputs):
        name = "" if isinstance(given, str) else f"i{index}"
        names.append(name)
        if given is None:
            activations[name] = None
        elif name:
            weights[name] = given
    made = node(op_type, names, ["y"], domain=domain, **attributes)
    return proto([made], activations, weights=weights, domains=[domain] if domain else [])


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_operator(
    op: str, inputs: list[Any], attributes: dict[str, Any], expected: list[Any], tmp_path: Path
) -> None:
    found = find_weights(loaded(one_node(op, inputs, attributes), tmp_path))
    weights = {w.name: w for w in found.all()}
    skipped = {s.name: s.reason for s in found.skipped}
    names = [f"i{i}" for i, given in enumerate(inputs) if isinstance(given, np.ndarray)]
    for name, want in zip(names, expected, strict=True):
        if isinstance(want, str):
            assert want in skipped[name]
            continue
        weight = weights[name]
        assert (weight.kind, weight.layout.canonical_shape) == want
        assert (weight in found.prunable) == (weight.kind == "weight")
        array = weight.array()
        assert np.array_equal(weight.layout.restore(weight.layout.canonical(array)), array)


def test_every_operator_in_the_registry_has_a_case() -> None:
    tested = {tuple(op.rpartition(":")[::2]) for op, *_ in CASES}
    assert {key for key, operator in OPERATORS.items() if operator.role} <= tested
