"""The working form of a graph: what becomes a constant, what is copied, what the given model keeps."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from prunecli.dependency.cut import remove
from prunecli.dependency.prepare import plan_names, prepare
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, distance, random_feeds, run
from tests.dependency.tables import ALL


@pytest.mark.parametrize("name", ["whole/shared bias", "whole/weight standardisation", "whole/local function"])
def test_the_given_model_stays_as_it_is(name: str) -> None:
    proto = ALL[name].net().model()
    given = ir.from_proto(proto)
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    prepare(given)
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("whole/")])
def test_the_prepared_model_computes_the_same(name: str) -> None:
    net = ALL[name].net()
    model = net.model()
    feeds = random_feeds(model, net.shapes, 0)
    for a, b in zip(run(model, feeds), run(ir.to_proto(prepare(ir.from_proto(model))), feeds), strict=True):
        assert distance(a, b) <= TOLERANCE["float32"]


def _operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


def test_computed_weights_become_constants() -> None:
    model = prepare(ir.from_proto(ALL["whole/weight standardisation"].net().model()))
    assert _operators(model) == {"Conv"}
    assert len(model.graph.initializers) == 6  # three convolutions: the tensors computed from are gone


def test_a_transposed_table_stays_one_tensor() -> None:
    model = prepare(ir.from_proto(ALL["linear/tied embedding"].net().model()))
    assert "Transpose" in _operators(model)


def test_a_weight_that_would_grow_the_file_is_not_computed() -> None:
    net = Net()
    w = net("MatMul", net.w(300, 1), net.w(1, 300))  # 90 000 elements from 600
    net.out(net("MatMul", net.x("N", 300), w))
    assert len(prepare(ir.from_proto(net.model())).graph.initializers) == 2


def test_equal_copies_are_one_again_after_a_cut() -> None:
    net = ALL["whole/shared bias"].net()
    model = net.model()
    work = prepare(ir.from_proto(model))
    assert len(work.graph.initializers) == len(model.graph.initializer) + 1
    remove(work, {}, net.shapes)
    assert len(work.graph.initializers) == len(model.graph.initializer)


def test_a_plan_lists_of_a_shared_vector_what_all_its_readers_lose() -> None:
    work = prepare(ir.from_proto(ALL["whole/shared bias"].net().model()))
    bias, copy = (name for name in work.graph.initializers if name.startswith("w0"))
    removed = {bias: {0: np.array([1, 2, 5])}, copy: {0: np.array([2, 5, 7])}}
    assert {name: {a: p.tolist() for a, p in axes.items()} for name, axes in plan_names(work, removed).items()} == {
        bias: {0: [2, 5]}
    }


def test_values_inside_local_functions_are_not_listed() -> None:
    model = ALL["whole/local function"].net().model()
    work = prepare(ir.from_proto(model))
    inner = [v.name for node in work.graph for v in node.outputs if v.name not in _named(model)]
    assert inner
    assert plan_names(work, {name or "": {1: np.array([0])} for name in inner}) == {}


def _named(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


def test_a_copy_takes_no_name_that_a_value_has() -> None:
    proto = ALL["whole/shared bias"].net().model()
    shared = next(
        name for name in (t.name for t in proto.graph.initializer) if sum(name in n.input for n in proto.graph.node) > 1
    )
    old, new = proto.graph.node[0].output[0], f"{shared}::2"
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    work = prepare(ir.from_proto(proto))
    names = [v.name for v in [*work.graph.initializers.values(), *(o for n in work.graph for o in n.outputs)]]
    assert len(set(names)) == len(names)
