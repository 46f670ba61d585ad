"""Weights that the graph computes from constants (weight standardisation, low-rank updates) become constants.

A unit of such a weight cannot be cut where its computation mixes positions: a mean over the input channels is
another mean once some are gone. Its result is what the network means by the weight, so that is what is kept.
Expressions that only move positions or treat each by itself are left alone: their rules follow a cut, and a
transposed embedding table stays one tensor with the table.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from prunecli.dependency.rules.elementwise import BROADCASTING, UNARY
from prunecli.model.names import free_name, taken_names
from prunecli.model.shape_inference import Array

FOLLOWED = frozenset(
    (
        *UNARY, *BROADCASTING, "Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten",
        "Gather", "Identity", "Pad", "Range", "Reshape", "Shape", "Size", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    )
)  # fmt: skip
"""Operators whose rules follow a cut of a constant: they mix no positions."""
EVALUATED = frozenset(
    (
        "BatchNormalization", "Einsum", "Gemm", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
        "LpNormalization", "MatMul", "MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax",
    )
)  # fmt: skip
"""Operators that mix positions, deterministic and cheap to evaluate."""
MAX_ELEMENTS = 1 << 26


def fold_computed_weights(model: ir.Model) -> None:
    """Replace, in place, every constant floating-point expression that mixes positions and is closed: nothing else
    reads what it is computed from. Else a cut of that (learned queries are added to what is computed from them) would
    have to reach the result. Of nested expressions the outermost is taken; none may grow the file."""
    graph = model.graph
    cones: dict[ir.Value, frozenset[ir.Node]] = {}
    for node in graph:
        if _foldable(node) and all(v is None or v in cones or _stored(v) for v in node.inputs):
            inner = frozenset({node}).union(*(cones.get(v, frozenset()) for v in node.inputs if v is not None))
            cones.update(dict.fromkeys(node.outputs, inner))
    for value, cone in reversed(cones.items()):
        left = all(node.graph is graph for node in cone)
        if left and any(node.op_type in EVALUATED for node in cone) and _closed(value, cone):
            _fold(model, value, [node for node in graph if node in cone])


def _foldable(node: ir.Node) -> bool:
    return node.domain == "" and (node.op_type in FOLLOWED or node.op_type in EVALUATED)


def _stored(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _closed(result: ir.Value, cone: frozenset[ir.Node]) -> bool:
    """Whether only the cone reads its inner values and the constants that a cut could change."""
    if result.is_graph_output():
        return False
    inner = [out for node in cone for out in node.outputs if out is not result]
    sources = [
        v for node in cone for v in node.inputs if v is not None and v.const_value is not None and _can_be_cut(v)
    ]
    return not any(v.is_graph_output() or any(use.node not in cone for use in v.uses()) for v in (*inner, *sources))


def _can_be_cut(source: ir.Value) -> bool:
    tensor = source.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1


def _fold(model: ir.Model, value: ir.Value, cone: list[ir.Node]) -> None:
    sources = {v for node in cone for v in node.inputs if v is not None and _stored(v)}
    if sum(_elements(v) for v in sources) > MAX_ELEMENTS:
        return
    array = _evaluate(model, value, cone, sources)
    if array is None or not np.issubdtype(array.dtype, np.floating):
        return
    if array.nbytes > sum(_bytes(v) for v in sources if _can_be_cut(v)):
        return
    _replace(model.graph, value, array)
    for node in reversed(cone):
        model.graph.remove(node, safe=True)
    _drop_unused(model.graph, sources)


def _replace(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """A new initializer takes the value's name and place."""
    node, name = value.producer(), value.name or ""
    assert node is not None
    value.name = free_name(f"{name}.unfolded", taken_names(graph))
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
    constant.const_value = ir.tensor(array, name=name)
    graph.register_initializer(constant)
    for user, index in list(value.uses()):
        user.replace_input_with(index, constant)


def _drop_unused(graph: ir.Graph, sources: Iterable[ir.Value]) -> None:
    for source in sources:
        if not source.uses() and not source.is_graph_output():
            graph.initializers.pop(source.name or "", None)


def _evaluate(model: ir.Model, value: ir.Value, cone: list[ir.Node], sources: set[ir.Value]) -> Array | None:
    """The expression's value by ONNX's reference implementation, or None where that has none."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in cone],
        "weight",
        [],
        [onnx.helper.make_empty_tensor_value_info(value.name or "")],
        [onnx.numpy_helper.from_array(_array(v), v.name) for v in sources],
    )
    imports = [onnx.helper.make_opsetid("", model.opset_imports[""])]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=max(model.ir_version or 8, 8))
    try:
        with np.errstate(all="ignore"):
            results = list(ReferenceEvaluator(proto).run(None, {}))
    except Exception:  # the evaluator raises many kinds; each means that the expression stays
        return None
    return np.ascontiguousarray(results[0]) if isinstance(results[0], np.ndarray | np.generic) else None


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _elements(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0


def _bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0
