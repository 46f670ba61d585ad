"""Packed files that were changed: one clear error, or the chain is left alone; never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import find_weights, load
from prunecli.packing.pack import pack
from tests.model.build import proto, refused, save_proto
from tests.storage.sparse import matmul, sparse

SHAPE = (64, 96)


def packed(zeros: str, folder: Path) -> onnx.ModelProto:
    pack(save_proto(matmul(sparse(zeros, shape=SHAPE)), folder), output=folder / "p.onnx", verify=False)
    return onnx.load(folder / "p.onnx")


def put(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change what is stored under a name that ends so."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(name))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def full(value: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.full_like(array, value)


def shorter(array: np.ndarray) -> np.ndarray:
    return array[:-8]


def shape_of(model: onnx.ModelProto) -> onnx.TensorProto:
    """The shape that the last node of the chain gives its result."""
    root = next(node for node in model.graph.node if node.name.startswith("prunecli.pack/"))
    return next(t for t in model.graph.initializer if t.name == root.input[1])


def other_shape(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = shape_of(model)
        tensor.CopyFrom(numpy_helper.from_array(np.array(dims, np.int64), tensor.name))

    return change


def stream(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    return lambda model: put(model, name, change)


def attribute(op: str, name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == op)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def huge(model: onnx.ModelProto) -> None:
    """Every shape in the file claims 2^50 elements."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.int64 and values.size and values.max() > 64:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 1 << (50 // values.size)), tensor.name))


def doubled(model: onnx.ModelProto) -> None:
    """The result multiplied with itself, forty times over: 2^40 evaluations for who does not remember."""
    root = next(node for node in model.graph.node if node.name.startswith("prunecli.pack/"))
    place, name = list(model.graph.node).index(root), root.output[0]
    root.output[0], root.name = "s0", ""
    for n in range(40):
        last = n == 39
        node = helper.make_node("Mul", [f"s{n}"] * 2, [name if last else f"s{n + 1}"])
        node.name = f"prunecli.pack/{name}" if last else ""
        model.graph.node.insert(place + 1 + n, node)


BAD = [
    ("gaps too large", "97%", stream("gaps", full(255)), "of 6144"),
    ("gaps cut off", "97%", stream("gaps", shorter), "positions of shape"),
    ("gaps added", "97%", stream("gaps", lambda a: np.append(a, a)), "positions of shape"),
    ("values cut off", "97%", stream("values", shorter), "positions of shape"),
    ("values of another type", "97%", stream("values", lambda a: a.astype(np.float16)), "positions of shape"),
    ("more bits than values", "50%", stream("bits", full(255)), "positions of shape"),
    ("fewer bits than values", "50%", stream("bits", full(0)), "positions of shape"),
    ("more bits than elements", "50%", stream("bits", lambda a: np.append(a, full(255)(a))), "more bits than"),
    ("codes cut off", "1:8", stream("codes", shorter), "cannot reshape"),
    ("codes added", "1:8", stream("codes", lambda a: np.append(a, a)), "cannot reshape"),
    ("more blocks than values", "1x*", stream("bits", full(255)), "cannot reshape"),
    ("another shape", "97%", other_shape(64, 97), "cannot reshape"),
    ("negative shape", "97%", other_shape(-1, 96), "shape is impossible"),
    ("gigabytes", "97%", huge, "would take"),
    ("axis", "97%", attribute("ScatterElements", "axis", 5), "positions of shape"),
    ("type", "97%", attribute("Cast", "to", 9999), "9999"),
    ("positions of another type", "97%", attribute("Cast", "to", TensorProto.FLOAT), "positions are not integers"),
    ("zeros of another type", "50%", attribute("Cast", "to", TensorProto.DOUBLE), "makes no sense"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "zeros", "change", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_streams_are_refused_while_loading(
    name: str, zeros: str, change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    model = packed(zeros, tmp_path)
    change(model)
    path = save_proto(model, tmp_path, "bad.onnx")
    refused(path, words)


def test_doubling_costs_nothing(tmp_path: Path) -> None:
    model = packed("97%", tmp_path)
    doubled(model)
    assert find_weights(load(save_proto(model, tmp_path, "bad.onnx"))).prunable


def chained(nodes: int, name: str, source: str) -> onnx.ModelProto:
    """w is a stored vector multiplied with one so many times; every node is marked where `name` says how."""
    made = [helper.make_node("Mul", [source if n == 0 else f"c{n}", "one"], [f"c{n + 1}"]) for n in range(nodes)]
    for node in made:
        node.name = name.format(node.output[0])
    last = helper.make_node("Reshape", [f"c{nodes}", "shape"], ["w"], name="prunecli.pack/w")
    stored = {"v": np.ones(1 << 20, np.float32), "one": np.ones(1, np.float32), "shape": np.array([1024, 1024])}
    return proto([*made, last, helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1 << 20,), "z": (2, 1024)},
                 weights=stored)  # fmt: skip


def test_memory_on_the_way_is_bounded(tmp_path: Path) -> None:
    """A hundred copies of the tensor would be 400 MB for 4 MB stored."""
    refused(save_proto(chained(100, "", "v"), tmp_path), "far more memory")


@pytest.mark.slow
def test_marks_that_lead_nowhere_cost_no_quadratic_time(tmp_path: Path) -> None:
    """Each is followed to the graph's input: the square of 4,000 steps, if nobody counts."""
    refused(save_proto(chained(4000, "prunecli.pack/{}", "x"), tmp_path), "share too many nodes")


def test_text_is_no_element_type(tmp_path: Path) -> None:
    model = packed("97%", tmp_path)
    attribute("Cast", "to", TensorProto.STRING)(model)
    refused(save_proto(model, tmp_path, "bad.onnx"), "cast to STRING")


def test_functions_are_given_no_initializers(tmp_path: Path) -> None:
    """They can store none: the tensor would be lost when the model is saved."""
    values = numpy_helper.from_array(sparse("90%", shape=(64 * 64,)), "v")
    inner = [helper.make_node("Constant", [], ["v"], value=values),
             helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([64, 64]), "s")),
             helper.make_node("Reshape", ["v", "s"], ["w"], name="prunecli.pack/w"),
             helper.make_node("MatMul", ["x", "w"], ["y"])]  # fmt: skip
    function = helper.make_function("my", "F", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    model = proto([helper.make_node("F", ["x"], ["y"], domain="my")], {"x": (2, 64)}, functions=[function],
                  domains=["my"])  # fmt: skip
    assert not load(save_proto(model, tmp_path)).packed


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_files_that_were_cut_off(share: float, tmp_path: Path) -> None:
    packed("50%", tmp_path)
    data = (tmp_path / "p.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "cut.onnx", "")


def overridable(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("values"))
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def computed(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type.startswith("Scatter"))
    model.graph.node.insert(0, helper.make_node("Identity", [node.input[2]], ["same"]))
    node.input[2] = "same"


def unmarked(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def nested(kind: str) -> Callable[[onnx.ModelProto], None]:
    """Nodes before the last that would be evaluated again for each of their readers."""

    def change(model: onnx.ModelProto) -> None:
        root = next(node for node in model.graph.node if node.name.startswith("prunecli.pack/"))
        source = root.input[0]
        model.graph.initializer.append(numpy_helper.from_array(np.array([3000, 3144]), "halves"))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(0, np.float32), "nothing"))
        made = [helper.make_node("Concat", [source, "nothing"], ["again"], axis=0)]
        if kind == "Split":
            made = [helper.make_node("Split", [source, "halves"], ["h0", "h1"]),
                    helper.make_node("Mul", ["h0", "h0"], ["again"])]  # fmt: skip
        root.input[0] = "again"
        place = list(model.graph.node).index(root)
        for n, node in enumerate(made):
            model.graph.node.insert(place + n, node)

    return change


LEFT = [
    ("pieces joined on the way", nested("Concat")),
    ("parts used on the way", nested("Split")),
    ("an attribute of another form", attribute("CumSum", "reverse", 1)),
    ("values are an input", overridable),
    ("an operator of another kind", computed),
    ("no mark", unmarked),
]


@pytest.mark.parametrize(("name", "change"), LEFT, ids=[c[0] for c in LEFT])
def test_other_chains_are_left_as_they_are(
    name: str, change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = packed("97%", tmp_path)
    change(model)
    loaded = load(save_proto(model, tmp_path, "other.onnx"))
    assert not loaded.packed
    assert any(node.op_type == "ScatterElements" for node in loaded.ir.graph)
