"""What comes before and what follows are together the whole, whatever a cut inserts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from prunecli.model import Dims, find_weights, load
from prunecli.runtime import Session
from prunecli.search.structure_pruner import UnitRanking
from prunecli.search.suffix import beyond, border, prefix, shared
from prunecli.search.trials import _Parts
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from tests.dependency.net import Net
from tests.tiny import ROOT, model

SAMPLE = ROOT / "sample_models" / "digits-cnn.onnx"
NESTED = """g (float[N,2] x, bool c, float[2] w) => (float[N,2] y, float[N,2] other) {
    a = Relu(x) other = Neg(a)
    y = If(c) <then_branch = t () => (float[N,2] r) { k = Constant<value = float {3.0}>() r = Mul(a, k) },
              else_branch = e () => (float[N,2] s) { s = Mul(a, w) }>
}"""
CALL = """<ir_version: 8, opset_import: ["" : 17, "d" : 1]>
g (float[N,2] x) => (float[N,2] y) { y = d.f(x) }
<domain: "d", opset_import: ["" : 17]> f (a) => (b) { k = Constant<value = float {3.0}>() b = Mul(a, k) }"""


def opened(proto: onnx.ModelProto) -> Session:
    return Session.open(proto.SerializeToString(), threads=1)


def check_parts(models: list[onnx.ModelProto]) -> bool:
    """Each model in two parts computes what it does whole; returns whether anything was shared."""
    parts = _Parts.of(models, opened)
    if parts is None:
        return False
    feed = opened(models[0]).random_inputs(seed=1)
    middle = {**feed, **parts.early(feed)}
    for proto, rest in zip(models, parts.sessions, strict=True):
        found = {**middle, **rest.run({spec.name: middle[spec.name] for spec in rest.inputs})}
        for name, value in opened(proto).run(feed).items():  # fused differently: float32 rounding of a few layers
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.parametrize("weight", [w.name for w in find_weights(load(SAMPLE)).prunable])
def test_models_with_another_weight_share_all_before_it(weight: str) -> None:
    models = [onnx.load(SAMPLE), onnx.load(SAMPLE)]
    (tensor,) = (t for t in models[1].graph.initializer if t.name == weight)
    tensor.raw_data = bytes(len(tensor.raw_data))
    made = shared(models)
    late = beyond(models[0].graph, made)
    names = border(models[0].graph, late)
    assert {n.output[0] for n in models[0].graph.node if weight in n.input}.isdisjoint(made)
    assert weight not in {t.name for t in prefix(models[0], late, names).graph.initializer}
    assert check_parts(models) != weight.startswith("stem")  # the first layer: nothing comes before it


def _state(n: Net, h: str, width: int) -> str:
    """Zeros (1, N, width), N read off a value."""
    batch = n("Gather", n("Shape", h), n.c([0]), axis=0)
    return str(n("Expand", n.c(np.zeros((1, 1, 1), np.float32)), n("Concat", n.c([1]), batch, n.c([width]), axis=0)))


def recurrent(op: str, gates: int) -> Callable[[Net], None]:
    def build(n: Net) -> None:
        h = n("Relu", n.linear(n.x("N", 5, 4), 4, 8))
        x = n("Transpose", h, perm=[1, 0, 2])
        states = [_state(n, h, 6)] * (2 if op == "LSTM" else 1)
        y = n(
            op, x, n.w(1, gates * 6, 8), n.w(1, gates * 6, 6), n.w(1, gates * 12), "", *states, hidden_size=6, outputs=2
        )
        n.out(n.linear(n("Squeeze", y[1], n.c([0])), 6, 3))

    return build


def class_token(n: Net) -> None:
    h = n.linear(n.x("N", 5, 4), 4, 8)
    batch = n("Gather", n("Shape", h), n.c([0]), axis=0)
    token = n("Expand", n.w(1, 1, 8), n("Concat", batch, n.c([1]), n.c([8]), axis=0))
    h = n("Relu", n("Concat", token, h, axis=1))
    n.out(n.linear(n("Gather", n("Relu", n.linear(h, 8, 8)), n.c(np.int64(0)), axis=1), 8, 3))


def zeros_and_add(n: Net) -> None:
    h = n("Relu", n.linear(n.x("N", 4), 4, 8))
    zeros = n("ConstantOfShape", n("Concat", n("Gather", n("Shape", h), n.c([0]), axis=0), n.c([8]), axis=0))
    n.out(n.linear(n("Relu", n.linear(n("Add", zeros, h), 8, 8)), 8, 3))


def divided_norm(n: Net) -> None:
    """LayerNorm in small parts, the mean divided by a length that is read off the shape."""
    h = n("Relu", n.linear(n.x("N", 4), 4, 8))
    h = n.linear(h, 8, 8)
    width = n("Cast", n("Gather", n("Shape", h), n.c([1]), axis=0), to=1)
    centred = n("Sub", h, n("Div", n("ReduceSum", h, n.c([1])), width))
    square = n("Div", n("ReduceSum", n("Mul", centred, centred), n.c([1])), width)
    scale = n("Mul", n("Reciprocal", n("Sqrt", n("Add", square, n.c(np.float32(1e-5))))), n.w(8))
    n.out(n.linear(n("Relu", n("Add", n("Mul", centred, scale), n.w(8))), 8, 3))


NETS = {
    "GRU": recurrent("GRU", 3), "LSTM": recurrent("LSTM", 4), "RNN": recurrent("RNN", 1), "class token": class_token,
    "zeros + add": zeros_and_add, "LayerNorm in parts": divided_norm,
}  # fmt: skip


@pytest.mark.parametrize("kind", NETS)
def test_models_that_were_cut_differently_share_no_inserted_value(kind: str, tmp_path: Path) -> None:
    net, path = Net(17), tmp_path / "m.onnx"
    NETS[kind](net)
    onnx.save(net.model(), path)
    subject = open_cuttable(path, AnalysedAs("channel"), Dims())
    scores = np.random.default_rng(0).random(subject.units.count)
    groups = subject.units.groups
    space = UnitRanking(subject.how, scores, {g.name: g.count - 1 for g in groups}, {g.name: () for g in groups}).at(
        path
    )
    assert len(space.layers) >= 2
    split = [check_parts([space.build({layer.name: r}) for r in (0.0, 0.3, 0.6)]) for layer in space.layers]
    assert any(split)


def test_what_a_branch_holds_or_captures_counts() -> None:
    one, other, third = (onnx.load_from_string(model(NESTED)) for _ in range(3))
    assert shared([one, other]) == {"a", "other", "y"}
    inner = other.graph.node[2].attribute[0].g.node[0].attribute[0].t
    inner.float_data[:] = [4.0]
    assert shared([one, other]) == {"a", "other"}
    third.graph.node[0].op_type = "Neg"
    assert shared([one, third]) == set()


def test_what_a_function_holds_counts() -> None:
    one, other = (onnx.parser.parse_model(CALL) for _ in range(2))
    assert shared([one, other]) == {"y"}
    other.functions[0].node[0].attribute[0].t.float_data[:] = [4.0]
    assert shared([one, other]) == set()
