"""Which tensors are weights, how they are read, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import Model, Weight, find_weights, load, save
from prunecli.operators import MICROSOFT
from tests.model.build import external, floats, info, linear, loaded, node, proto, run

MS = MICROSOFT

# nodes between the stored tensor "s" (2, 3, 4) or (3, 4) and its consumer, which reads "w"
PATHS: list[tuple[str, tuple[int, ...], list[onnx.NodeProto], tuple[int, ...]]] = [
    ("identity", (3, 4), [node("Identity", ["s"], ["w"])], (1, 4, 1, 3)),
    ("cast", (3, 4), [node("Cast", ["s"], ["w"], to=TensorProto.FLOAT16)], (1, 4, 1, 3)),
    ("transpose", (4, 3), [node("Transpose", ["s"], ["w"])], (1, 4, 1, 3)),
    ("perm", (2, 4, 3), [node("Transpose", ["s"], ["w"], perm=[0, 2, 1])], (2, 4, 1, 3)),
    ("squeeze", (1, 3, 4), [node("Squeeze", ["s"], ["w"])], (1, 4, 1, 3)),
    ("unsqueeze", (3, 4), [node("Unsqueeze", ["s", "axis"], ["w"])], (1, 4, 1, 3)),
    ("reshape", (2, 6), [node("Reshape", ["s", "shape"], ["w"])], (1, 4, 1, 3)),
    ("flatten", (3, 2, 2), [node("Flatten", ["s"], ["w"])], (1, 4, 1, 3)),
    ("chain", (4, 3), [node("Identity", ["s"], ["t"]), node("Transpose", ["t"], ["w"])], (1, 4, 1, 3)),
]
SEEN = {"transpose": np.transpose, "chain": np.transpose, "perm": lambda a: a.transpose(0, 2, 1)}
CONSTANTS = {"axis": np.array([0]), "shape": np.array([3, -1])}


@pytest.mark.parametrize(("name", "stored", "between", "canonical"), PATHS, ids=[p[0] for p in PATHS])
def test_weights_are_found_behind_simple_operators(
    name: str,
    stored: tuple[int, ...],
    between: list[onnx.NodeProto],
    canonical: tuple[int, ...],
    tmp_path: Path,
) -> None:
    model = proto([*between, node("MatMul", ["x", "w"], ["y"])], weights={"s": floats(*stored), **CONSTANTS})
    (weight,) = find_weights(loaded(model, tmp_path)).prunable
    assert (weight.name, weight.layout.canonical_shape) == ("s", canonical)
    array = weight.array()
    four = weight.layout.canonical(array)
    assert np.array_equal(weight.layout.restore(four), array)
    # the operator multiplies x (.., 3) by W (3, 4): canonical rows are W's columns
    seen = SEEN.get(name, lambda a: a)(array).reshape(-1, 3, 4)
    assert np.array_equal(four[:, :, 0, :], np.swapaxes(seen, 1, 2))


def test_sliced_and_joined_weights_keep_their_axes(tmp_path: Path) -> None:
    nodes = [
        node("Split", ["s"], ["a", "b"], axis=0),
        node("Concat", ["b", "a"], ["c"], axis=0),
        node("Unsqueeze", ["c", "axis"], ["w"]),
        node("RNN", ["x", "w", "r"], ["y"], hidden_size=4),
    ]
    model = proto(nodes, {"x": (5, 1, 3)}, weights={"s": floats(4, 3), "r": floats(1, 4, 4), "axis": np.array([0])})
    found = {w.name: w for w in find_weights(loaded(model, tmp_path)).prunable}
    assert found["s"].layout.canonical_shape == (1, 4, 1, 3)
    assert len(found["s"].uses) == 1


def constant(name: str, **value: Any) -> onnx.NodeProto:
    return node("Constant", [], [name], **value)


def test_constant_nodes_are_named_by_their_output_and_can_be_replaced(tmp_path: Path) -> None:
    array = floats(3, 4)
    nodes = [
        constant("w", value=numpy_helper.from_array(array)),
        constant("b", value_floats=[1.0, 2.0, 3.0, 4.0]),
        constant("half", value_float=0.5),
        node("Gemm", ["x", "w", "b"], ["h"]),
        node("Mul", ["h", "half"], ["y"]),
    ]
    model = loaded(proto(nodes), tmp_path)
    found = find_weights(model)
    assert [(w.name, w.kind) for w in found.all()] == [("w", "weight"), ("b", "bias")]
    assert [s.name for s in found.skipped] == ["1 scalar constant"]
    for weight in found.all():
        weight.replace(lambda a: a * 2)
    save(model, tmp_path / "out.onnx")
    x = floats(2, 3)
    want = (x @ (array * 2) + np.array([2, 4, 6, 8], np.float32)) * np.float32(0.5)
    # one float32 rounding per operation on values of order 10
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], want, atol=1e-5)


def branch(name: str, weight: str) -> onnx.GraphProto:
    stored = numpy_helper.from_array(floats(3, 4), weight)
    return helper.make_graph(
        [node("MatMul", ["x", weight], [name])],
        name,
        [],
        [helper.make_tensor_value_info(name, 1, None)],
        [stored],
    )


def test_weights_in_subgraphs_and_functions(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Dense", ["a", "k"], ["o"],
        [constant("inside", value=numpy_helper.from_array(floats(4, 4))), node("MatMul", ["a", "k"], ["t"]),
         node("MatMul", ["t", "inside"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        constant("yes", value=numpy_helper.from_array(np.array(True))),
        node("If", ["yes"], ["h"], then_branch=branch("t", "w"), else_branch=branch("e", "w")),
        node("If", ["yes"], ["g"], then_branch=branch("t", "w"), else_branch=branch("t", "w")),
        node("Dense", ["h", "outer"], ["y"], domain="local"),
    ]
    model = proto(nodes, weights={"outer": floats(4, 4)}, functions=[function], domains=["local"])
    names = [w.name for w in find_weights(loaded(model, tmp_path)).prunable]
    assert sorted(names) == ["inside", "outer", "t/w", "t/w#2", "t/w#3", "w"]


def test_sharing_is_noted_and_tied_tables_are_embeddings(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["h"]),
        node("MatMul", ["h", "w"], ["a"]),
        node("MatMul", ["a", "w"], ["b"]),
        node("Transpose", ["table"], ["t"]),
        node("MatMul", ["b", "t"], ["y"]),
    ]
    weights = {"table": floats(10, 4), "w": floats(4, 4), "ids": np.array([1, 2])}
    found = find_weights(loaded(proto(nodes, {}, weights=weights), tmp_path))
    (table,), (square,) = found.others, found.prunable
    assert (table.kind, table.op, [use.op for use in table.uses]) == (
        "embedding",
        "Gather",
        ["Gather", "MatMul"],
    )
    assert any("shared by 2" in note for note in table.notes)
    assert table.layout.canonical_shape == (1, 10, 1, 4)
    assert any("shared by 2" in note for note in square.notes)


def test_consumers_that_disagree_are_noted(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["h", "w"], ["y"], transB=1)]
    (weight,) = find_weights(loaded(proto(nodes, {"x": (2, 3)}, weights={"w": floats(3, 3)}), tmp_path)).prunable
    assert any("different layouts; that of MatMul" in note for note in weight.notes)


def test_overridable_and_exported_weights_are_noted(tmp_path: Path) -> None:
    model = linear()
    model.graph.input.append(info("w", [3, 4]))
    model.graph.output.append(info("w", [3, 4]))
    (weight,) = find_weights(loaded(model, tmp_path)).prunable
    assert {note.split(":")[0] for note in weight.notes} >= {"also a graph input", "also a graph output"}


def int8(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.int8), name)


QUANTISED = [
    ("DequantizeLinear", [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])]),
    ("MatMulInteger", [node("MatMulInteger", ["x", "q"], ["y"])]),
    ("QLinearMatMul", [node("QLinearMatMul", ["x", "s", "z", "q", "s", "z", "s", "z"], ["y"])]),
    ("QAttention", [node("QAttention", ["x", "q", "b"], ["y"], domain=MS)]),
    ("MatMulNBits", [node("MatMulNBits", ["x", "q", "s"], ["y"], domain=MS)]),
]


@pytest.mark.parametrize(("op", "nodes"), QUANTISED, ids=[c[0] for c in QUANTISED])
def test_quantised_weights_are_reported(op: str, nodes: list[onnx.NodeProto], tmp_path: Path) -> None:
    weights = {"s": np.array(0.1, np.float32), "b": floats(4)}
    model = proto(nodes, weights=weights, domains=[MS])
    model.graph.initializer.extend([int8("q", 3, 4), int8("z")])
    found = find_weights(loaded(model, tmp_path))
    assert not found.prunable
    reasons = {s.name: s.reason for s in found.skipped}
    assert reasons["q"] == f"quantised to int8 ({op}): not prunable yet"


def test_other_reasons(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["fake", "s"], ["q"]),
        node("DequantizeLinear", ["q", "s", "one"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
        node("LinearRegressor", ["x"], ["z"], "lr", domain="ai.onnx.ml", coefficients=[1.0, 2.0]),
    ]
    weights = {
        "fake": floats(3, 4),
        "s": np.array(0.1, np.float32),
        "one": np.array(1, np.uint8),
        "spare": floats(5, 5),
        "index": np.arange(9),
    }
    model = proto(nodes, weights=weights, domains=["ai.onnx.ml"])
    eight = helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [2, 2], [1, 2, 3, 4])
    model.graph.initializer.append(eight)
    reasons = {s.name: s.reason for s in find_weights(loaded(model, tmp_path)).skipped}
    assert "quantised while the model runs" in reasons["fake"]
    assert reasons["spare"] == "nothing reads it"
    assert "float8e4m3fn" in reasons["f8"]
    assert "attributes" in reasons["lr"]
    assert "index" not in reasons


UNREADABLE: list[tuple[str, list[onnx.NodeProto]]] = [
    # name, nodes between the stored tensor "s" (3, 4) and MatMul's "w", of which what they do is not known
    ("a reshape to a computed shape", [node("Abs", ["shape"], ["t"]), node("Reshape", ["s", "t"], ["w"])]),
    ("a reshape that does not fit", [node("Reshape", ["s", "odd"], ["w"])]),
    ("a squeeze of an axis of 3", [node("Squeeze", ["s", "axis"], ["w"])]),
    ("a flatten of another type", [node("Flatten", ["s"], ["w"], axis=0.5)]),
]


@pytest.mark.parametrize(("name", "between"), UNREADABLE, ids=[u[0] for u in UNREADABLE])
def test_moves_that_cannot_be_followed_end_the_way(name: str, between: list[onnx.NodeProto], tmp_path: Path) -> None:
    weights = {"s": floats(3, 4), "shape": np.array([3, 4]), "odd": np.array([5, 5]), "axis": np.array([0])}
    found = find_weights(loaded(proto([*between, node("MatMul", ["x", "w"], ["y"])], weights=weights), tmp_path))
    assert not found.all()
    (skipped,) = (s for s in found.skipped if s.name == "s")
    assert between[-1].op_type in skipped.reason


def test_a_move_that_depends_on_the_caller_ends_the_way(tmp_path: Path) -> None:
    inner = [node("Squeeze", ["k"], ["w"]), node("MatMul", ["a", "w"], ["o"])]
    inner[0].attribute.add(name="axes", ref_attr_name="axes", type=onnx.AttributeProto.INTS)
    imports = [helper.make_opsetid("", 11)]
    function = helper.make_function("local", "Dense", ["a", "k"], ["o"], inner, imports, ["axes"])
    call = node("Dense", ["x", "s"], ["y"], domain="local", axes=[0])
    model = proto([call], weights={"s": floats(1, 3, 4)}, functions=[function], domains=["local"], opset=11)
    found = find_weights(loaded(model, tmp_path))
    assert not found.all() and "Squeeze" in found.skipped[0].reason


QUANTISED_WHILE_RUNNING: list[tuple[list[str], list[str], bool, bool]] = [
    (["w", "s", "z"], ["q", "s", "z"], False, True),
    (["w", "s"], ["q", "s"], False, True),
    (["w", "s", "z"], ["q", "s"], False, True),
    (["w", "s", "m"], ["q", "s", "m2"], False, True),
    (["w", "s", "z"], ["q", "s", "m"], False, False),
    (["w", "s", "z"], ["q", "s", "z"], True, False),
]


@pytest.mark.parametrize(("there", "back", "read", "exact"), QUANTISED_WHILE_RUNNING)
def test_float_weights_quantised_while_the_model_runs(
    there: list[str], back: list[str], read: bool, exact: bool, tmp_path: Path
) -> None:
    """A zero stays a zero where both zero points are the same and nothing else reads the integers."""
    nodes = [
        node("QuantizeLinear", there, ["q"]),
        node("DequantizeLinear", back, ["d"]),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    nodes += [node("Cast", ["q"], ["other"], to=TensorProto.FLOAT)] if read else []
    points = {"z": np.array(0, np.uint8), "m": np.array(128, np.uint8), "m2": np.array(128, np.uint8)}
    sparse = np.maximum(floats(3, 4), 0)
    weights = {"w": sparse, "s": np.array(0.1, np.float32), **points}
    model = loaded(proto(nodes, outputs=["y", "d"], weights=weights), tmp_path)
    found = find_weights(model)
    assert [(w.name, w.layout.canonical(w.array()).shape) for w in found.prunable] == [("w", (1, 4, 1, 3))] * exact
    _, seen = run(model.path, {"x": floats(2, 3)})
    assert not exact or (seen[sparse == 0] == 0).all()


TYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_every_float_type_is_read_and_written(dtype: Any, raw: bool, tmp_path: Path) -> None:
    array = floats(3, 4).astype(dtype)
    model = proto([node("MatMul", ["x", "w"], ["y"])])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    data = array.tobytes() if raw else array.astype(np.float32).ravel().tolist()
    model.graph.initializer.append(helper.make_tensor("w", kind, [3, 4], data, raw=raw))
    model = loaded(model, tmp_path)
    (weight,) = find_weights(model).prunable
    assert np.array_equal(weight.array(), array)
    weight.replace(lambda a: np.where(np.abs(a) < 0.5, 0, a).astype(a.dtype))
    model.ir.graph.outputs[0].shape = None
    again = load(_saved(model, tmp_path))
    assert np.array_equal(
        find_weights(again).prunable[0].array(), np.where(np.abs(array) < 0.5, 0, array).astype(dtype)
    )


def _saved(model: Model, folder: Path) -> Path:
    save(model, folder / "out.onnx")
    return folder / "out.onnx"


def test_a_replacement_must_keep_type_and_shape(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    weight: Weight = find_weights(model).prunable[0]
    weight.replace(lambda a: a[:2])
    with pytest.raises(Exception, match="should become FLOAT"):
        weight.array()
    weight = find_weights(loaded(linear(), tmp_path)).prunable[0]
    weight.replace(lambda a: a.astype(np.float64))
    with pytest.raises(Exception, match="not float64"):
        weight.array()


def test_replacements_compose_and_may_change_the_shape(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    weight, bias = find_weights(model).all()
    before = np.array(weight.array())
    weight.replace(lambda a: a * 2)
    weight.replace(lambda a: a[:, :2], shape=(3, 2))
    bias.replace(lambda a: a[:2], shape=(2,))
    assert weight.shape == (3, 2)
    assert np.array_equal(weight.array(), before[:, :2] * 2)
    path = _saved(model, tmp_path)
    assert run(path, {"x": floats(2, 3)})[0].shape == (2, 2)


def test_releasing_keeps_views_alive(tmp_path: Path) -> None:
    floats(3, 4).tofile(tmp_path / "m.data")
    weight = find_weights(load(external(tmp_path))).prunable[0]
    view = weight.array()
    weight.release()
    assert np.array_equal(view, floats(3, 4))
    assert not view.flags.writeable
