"""What comes before and what follows are together the whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from prunecli.model import find_weights, load
from prunecli.runtime import Session
from prunecli.search.suffix import border, dependent, prefix, suffix
from tests.tiny import ROOT, model

SAMPLE = ROOT / "sample_models" / "digits-cnn.onnx"
NESTED = """g (float[N,2] x, bool c) => (float[N,2] y, float[N,2] other) {
    a = Relu(x) other = Neg(a)
    y = If(c) <then_branch = t () => (float[N,2] r) { r = Mul(a, w) },
              else_branch = e () => (float[N,2] s) { s = Identity(a) }>
}"""


def parts(proto: onnx.ModelProto, changed: set[str]) -> tuple[Session, Session, list[str]]:
    late = dependent(proto.graph, changed)
    names = border(proto.graph, late)
    first = Session.open(prefix(proto, late, names).SerializeToString())
    kinds = {n: int(onnx.TensorProto.FLOAT) for n in names}
    return first, Session.open(suffix(proto, late, kinds).SerializeToString()), names


@pytest.mark.parametrize("weight", [w.name for w in find_weights(load(SAMPLE)).prunable])
def test_a_network_in_two_parts_computes_the_same(weight: str) -> None:
    proto = onnx.load(SAMPLE)
    feed = Session.open(SAMPLE).random_inputs(seed=1)
    whole = Session.open(SAMPLE).run(feed)
    late = dependent(proto.graph, {weight})
    if not border(proto.graph, late):  # the first layer: nothing comes before it
        assert weight.startswith("stem")
        return
    first, rest, _ = parts(proto, {weight})
    middle = {**feed, **first.run({s.name: feed[s.name] for s in first.inputs})}
    found = rest.run({s.name: middle[s.name] for s in rest.inputs})
    for name, value in whole.items():  # fused differently at the cut: float32 rounding of a few layers
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


def test_the_prefix_knows_nothing_of_what_changes() -> None:
    proto = onnx.load(SAMPLE)
    weight = find_weights(load(SAMPLE)).prunable[3].name
    late = dependent(proto.graph, {weight})
    assert 0 < sum(late) < len(late)
    assert weight not in {t.name for t in prefix(proto, late, border(proto.graph, late)).graph.initializer}


def test_what_a_branch_holds_or_captures_counts() -> None:
    proto = onnx.load_from_string(model(NESTED.replace("bool c", "bool c, float[2] w")))
    assert dependent(proto.graph, {"w"}) == [False, False, True]
    assert border(proto.graph, [False, False, True]) == ["a", "other"]
    assert dependent(proto.graph, {"a"}) == [True, True, True]
    assert dependent(proto.graph, {"r"}) == [False, False, True]
