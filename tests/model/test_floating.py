"""The floating-point form of quantised models: it computes nearly the same, and numbers are written back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prunecli.errors import PruneError
from prunecli.evaluation.profile import readers
from prunecli.model import find_weights, load, save
from prunecli.model.constants import holders
from prunecli.model.floating import RESTATED, floating, floats_of, requantise, stored_as
from prunecli.model.graphs import all_graphs
from prunecli.model.loading import Model
from prunecli.model.quantised import UNREAD, Quantised, packed, unpacked
from prunecli.runtime import Session
from tests.model.quantised_models import (
    CASES,
    IMAGE,
    MICROSOFT,
    Net,
    block_embedding,
    blocked,
    conv_integer,
    embedding,
    lstm,
    matmul_integer,
    nbits,
    padded,
    qdq,
    qlinear_conv,
    rounded_data,
    transposed,
    transposed_twice,
    two_readers,
    unary,
)  # fmt: skip

WEIGHTS = [case for case in CASES if case[3]]
Made = Callable[[], Net]


def opened(folder: Path, net: Net, shape: tuple[int, ...]) -> Model:
    onnx.save(net.model(shape), folder / "m.onnx")
    return load(folder / "m.onnx")


def run(path: Path, shape: tuple[int, ...]) -> Any:
    """Without fusion: onnxruntime reads the first zero point and the axis 0 of scales alone where it fuses."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return Session.open(path, mode="plain").run({"x": x})["y"]


def stored(model: ir.Model, name: str) -> Quantised:
    holder = next(holder for holder in holders(model) if holder.name == name)
    found = stored_as(holder.tensor)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "made", "shape", "weight"), CASES, ids=[case[0] for case in CASES])
def test_computes_the_same_but_for_rounding(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    file = opened(tmp_path, made(), shape)
    form = floating(file.ir)
    assert not form.problem
    assert not {(node.domain, node.op_type) for graph in all_graphs(form.model) for node in graph} & RESTATED.keys()
    save(Model(form.model, file.path, ""), tmp_path / "float.onnx")
    given, found = run(file.path, shape), run(tmp_path / "float.onnx", shape)
    # activations have steps of 0.02 to 0.1, sums of a few of them err by some steps
    assert np.abs(given - found).max() < 0.05 * np.abs(given).max() + 0.15
    assert np.corrcoef(given.reshape(-1), found.reshape(-1))[0, 1] > 0.99


def test_every_operator_has_a_case() -> None:
    covered = {(n.domain, n.op_type) for _, made, shape, _ in CASES for n in made().model(shape).graph.node}
    same = {(MICROSOFT, "QuantizeLinear"), (MICROSOFT, "DequantizeLinear")}  # as those of the standard domain
    assert RESTATED.keys() - covered - same == set()


@pytest.mark.parametrize(("name", "made", "shape", "weight"), WEIGHTS, ids=[case[0] for case in WEIGHTS])
def test_what_is_read_is_written_to_the_bit(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    file = opened(tmp_path, made(), shape)
    source = stored(floating(file.ir).model, weight)
    assert source.write(source.array()).tobytes() == source.tensor.tobytes() or source.tensor.dtype.bitwidth < 8
    assert np.array_equal(source.write(source.array()), source.tensor.numpy())


@pytest.mark.parametrize(("name", "made", "shape", "weight"), WEIGHTS, ids=[case[0] for case in WEIGHTS])
def test_zeros_are_exact(tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str) -> None:
    """Every second number zero: the others keep their bits, and the file says zero where it should."""
    file = opened(tmp_path, made(), shape)
    form = floating(file.ir).model
    before = stored(form, weight)
    gone = np.arange(before.array().size).reshape(before.shape) % 2 == 0
    holder = next(holder for holder in holders(form) if holder.name == weight)
    holder.put(ir.Tensor(np.where(gone, 0, before.array()).astype(before.dtype.numpy()), name=weight))
    requantise(form, file.ir)
    save(file, tmp_path / "zeros.onnx")
    after = stored(floats_of(load(tmp_path / "zeros.onnx")).ir, weight)
    assert np.array_equal(after.array() == 0, gone | (before.array() == 0))
    assert np.array_equal(after.integers()[~gone], before.integers()[~gone])
    assert not before.array_of(before.zeros()).any()
    assert not after.array_of(after.write(np.zeros(after.shape))).any()


WORDS = [
    # how a weight is stored, as `inspect` says it
    ("int8", "int8, one scale"),
    ("per channel", "int8, scales per channel"),
    ("MatMulNBits, 4 bits", "4-bit integers, a scale per 16"),
    ("floating point, quantised while it runs", "float32, rounded to int8 at every run"),
]


@pytest.mark.parametrize(("name", "words"), WORDS)
def test_how_a_weight_is_stored_is_said(name: str, words: str, tmp_path: Path) -> None:
    made, shape, weight = next(case[1:] for case in CASES if case[0] == name)
    assert stored(floating(opened(tmp_path, made(), shape).ir).model, weight).words == words


MULTIPLIED = [case for case in WEIGHTS if case[0] != "a table of rows" and not case[0].startswith("Gather")]


@pytest.mark.parametrize(("name", "made", "shape", "weight"), MULTIPLIED, ids=[case[0] for case in MULTIPLIED])
def test_the_operator_that_multiplies_by_a_weight_is_found(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    file = opened(tmp_path, made(), shape)
    found = {each.name: list(readers(each.value)) for each in holders(file.ir)}
    assert found[weight]


def test_a_number_beyond_the_range_is_stored_as_the_last_there_is(tmp_path: Path) -> None:
    source = stored(floating(opened(tmp_path, qdq(np.uint8, 200), IMAGE).ir).model, "w")
    wanted = np.where(np.arange(108).reshape(4, 3, 3, 3) % 2, 1e9, -1e9)
    assert set(np.unique(source.write(wanted))) == {0, 255}
    assert source.write(np.full(source.shape, 0.021))[0, 0, 0, 0] == 201  # 1.05 steps of 0.02


@pytest.mark.parametrize(("name", "made", "shape", "weight"), WEIGHTS, ids=[case[0] for case in WEIGHTS])
def test_new_scales_err_less_than_those_of_the_whole_range(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    source = stored(floating(opened(tmp_path, made(), shape).ir).model, weight)
    values = np.random.default_rng(2).normal(size=source.shape) * 5
    fresh = source.rescaled(values)
    assert fresh.scale.shape == source.scale.shape
    error = np.abs(fresh.array_of(fresh.write(values)) - values)
    kept = np.abs(source.array_of(source.write(values)) - values)
    assert np.square(error).sum() <= np.square(kept).sum() * 1.0001


def test_blocks_are_grouped_with_their_own_scale() -> None:
    """Each block has the scale of its own largest number."""
    values = np.array([[1.0, 2, 30, 40], [5, 6, 70, 80]])
    tensor = ir.Tensor(np.zeros((2, 4), np.int8))
    source = Quantised(tensor, np.ones((2, 2), np.float32), np.zeros((), np.int32), ir.DataType.FLOAT, axis=1, block=2)
    ratio = source.rescaled(values).scale * 127 / [[2, 40], [6, 80]]
    assert ((ratio > 0.69) & (ratio < 1.001)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_integers_are_unpacked(bits: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 2, 8), np.uint8)
    assert np.array_equal(packed(unpacked(array, bits), bits), array)
    assert unpacked(np.array([0xA3], np.uint8), 4).tolist() == [3, 10]


def test_weights_have_roles_and_layouts(tmp_path: Path) -> None:
    weights = find_weights(floats_of(opened(tmp_path, qdq(), IMAGE)))
    assert [(w.name, w.op, w.shape) for w in weights.prunable] == [
        ("w", "Conv", (4, 3, 3, 3)),
        ("v", "Conv", (2, 4, 1, 1)),
    ]
    assert weights.skipped == []


def test_a_model_in_floating_point_is_its_own_form() -> None:
    net = Net().hold(w=np.ones((6, 4), np.float32)).add("MatMul", "x w", "y")
    model = ir.from_proto(net.model((5, 6)))
    assert floating(model).model is model


def test_what_is_not_known_leaves_the_model_alone() -> None:
    """Arithmetic on the integers themselves."""
    net = qdq()
    net.nodes = [n for n in net.nodes if n.output[0] != "wf"]
    net.hold(one=np.array([1], np.int8)).add("BitwiseNot", "w", "n").add("DequantizeLinear", "n w_s w_z", "wf")
    net.opset = 18
    net.nodes.sort(key=lambda n: ["xq", "xf", "n", "wf", "c", "cq", "cf", "vf", "y"].index(n.output[0]))
    model = ir.from_proto(net.model(IMAGE))
    form = floating(model)
    found = {holder.name for holder in holders(form.model) if stored_as(holder.tensor) is not None}
    assert found == {"v"} or form.model is model


def changed(net: Net, op: str, inputs: str | None = None, **attributes: Any) -> Net:
    """The last node of that operator with other inputs and attributes."""
    node = [node for node in net.nodes if node.op_type == op][-1]
    if inputs is not None:
        node.ClearField("input")
        node.input.extend("" if name == "_" else name for name in inputs.split())
    net.nodes[net.nodes.index(node)].attribute.extend(onnx.helper.make_attribute(*each) for each in attributes.items())
    return net


def computed(net: Net, name: str) -> Net:
    """What is stored by that name is computed."""
    net.constants[f"{name}.stored"] = net.constants.pop(name)
    net.nodes.insert(0, onnx.helper.make_node("Abs", [f"{name}.stored"], [name]))
    return net


def without(net: Net, *names: str) -> Net:
    """No nodes that make these values, and an output of another kind."""
    net.nodes = [node for node in net.nodes if node.output[0] not in names]
    return net


def scales(net: Net, **arrays: Any) -> Net:
    return net.hold(**{name: np.asarray(array, np.float32) for name, array in arrays.items()})


REFUSED: list[tuple[str, Made, str]] = [
    # name, model, why its integers are left alone
    ("a computed scale", lambda: computed(qdq(), "w_s"), "the scale of 'w' is computed, or does not fit it"),
    ("scales of another size", lambda: scales(qdq(), w_s=np.ones(5)), "'w' is computed, or does not fit it"),
    ("blocks of another number", lambda: scales(blocked(), w_s=np.ones((3, 6))), "computed, or does not fit it"),
    ("blocks without a scale each", lambda: scales(blocked(), w_s=1), "quantised operators make no sense"),
    ("blocks by two scales", lambda: two_blocked(), "'w' is read by several scales in blocks"),
    ("transposed, by two scales per channel", lambda: scales(transposed_twice(False), w_s=[1, 2, 3, 4], o_s=[1] * 4),
     "read by several scales that are no single numbers"),
    ("integers that are cast", lambda: changed(embedding(), "DequantizeLinear").add("Cast", "r", "z", to=1),
     "Cast 'z' reads quantised integers"),
    ("integers as an output", lambda: _through("Transpose", "xq"), "the output 'y' gives quantised integers"),
    ("scales of data from the end", lambda: rounded_data(scale=[1, 1, 1], axis=-3), "scales of data in a way"),
    ("padded with another number", lambda: padded(3), "other numbers than zero"),
    ("no weight", lambda: changed(matmul_integer(), "MatMulInteger", "xq _ z w_z"), "make no sense"),
    ("integers of no scale", lambda: changed(matmul_integer(), "MatMulInteger", "u w z w_z").hold(u=np.ones((5, 6), np.uint8)),
     "reads integers of an unknown scale"),
    ("a scale that is not found", lambda: without(matmul_integer(), "f", "y").add("Identity", "i", "y"),
     "the scale of 'w' is not found behind MatMulInteger"),
    ("scales that are data", lambda: changed(matmul_integer(), "Mul", "f x"), "'w' is not found behind"),
    ("scales that are computed", lambda: changed(conv_integer(True), "Mul", "f f"), "scales behind ConvInteger 'i' are not"),
    ("a bias by a computed scale", lambda: computed(qlinear_conv(), "xq_s"), "bias of QLinearConv 'cq' is computed"),
    ("groups in 8 bits", lambda: nbits(8, order=np.arange(32) * 7 % 32 // 16), "by groups of its inputs (g_idx)"),
    ("groups that there are not", lambda: nbits(order=np.arange(32)), "by groups of its inputs (g_idx)"),
    ("a computed scale of blocks", lambda: computed(nbits(), "w_s"), "how MatMulNBits 'y' stores its weight is not"),
    ("packed in a shape of its own", lambda: nbits().hold(w=np.zeros((4, 16), np.uint8)), "make no sense"),
    ("other blocks than stored", lambda: changed(nbits(k=40), "MatMulNBits", K=64), "is not known"),
    ("zero points between integers", lambda: scales(nbits(zero=True), w_z=np.full((4, 2), 7.5)), "is not known"),
    ("a table in blocks of rows", lambda: changed(block_embedding(8), "GatherBlockQuantized", quantize_axis=0),
     "stores its table is not known"),
    ("a table by a computed scale", lambda: computed(block_embedding(8), "w_s"), "stores its table is not known"),
    ("LSTM by a computed scale", lambda: computed(lstm(), "w_s"), "the scale of 'w' is computed"),
    ("channels last", lambda: changed(unary("QLinearAveragePool", kernel_shape=[2, 2]), "QLinearAveragePool", channels_last=1),
     "has its channels last"),
]  # fmt: skip


def two_blocked() -> Net:
    net = blocked()
    net.nodes[-1].output[0] = net.nodes[-1].name = "p"
    net.hold(o_s=np.full((2, 6), 0.5, np.float32)).add("DequantizeLinear", "w o_s w_z", "vf", axis=0, block_size=4)
    return net.add("MatMul", "x vf", "q").add("Add", "p q", "y")


def _through(op: str, source: str) -> Net:
    net = Net(13).hold(xq_s=np.float32(0.1), xq_z=np.uint8(3)).add("QuantizeLinear", "x xq_s xq_z", source)
    return net.add(op, source, "y")


@pytest.mark.parametrize(("name", "made", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_why_integers_are_left_alone_is_said(name: str, made: Made, words: str) -> None:
    model = ir.from_proto(made().model((5, 6)))
    form = floating(model)
    assert words in form.problem
    assert form.model is model and model.meta[UNREAD] == form.problem and not form.sources


LEFT: list[tuple[str, Made]] = [
    ("a computed scale", lambda: computed(transposed(), "w_s")),
    ("scales per channel of what is reshaped", lambda: reshaped([0.1, 0.2, 0.3, 0.4])),
]


def reshaped(scale: Any) -> Net:
    net = Net(13).integers("w", (4, 6)).hold(w_s=np.float32(scale), w_z=np.zeros(4, np.int8), shape=np.array([6, 4]))
    net.add("Reshape", "w shape", "wt").add("DequantizeLinear", "wt w_s w_z", "wf", axis=1)
    return net.add("MatMul", "x wf", "y")


@pytest.mark.parametrize(("name", "made"), LEFT, ids=[case[0] for case in LEFT])
def test_moved_integers_that_cannot_be_read_stay_in_the_form(name: str, made: Made, tmp_path: Path) -> None:
    file = opened(tmp_path, made(), (5, 6))
    form = floating(file.ir)
    assert not form.sources and not form.problem
    save(Model(form.model, file.path, ""), tmp_path / "float.onnx")
    assert np.array_equal(run(file.path, (5, 6)), run(tmp_path / "float.onnx", (5, 6)))


def test_a_scale_of_two_weights_is_cut_with_both_or_not_at_all() -> None:
    net = scales(two_readers(0.05, 0, [0.1] * 4)).integers("v", (6, 4))
    changed(net, "DequantizeLinear", "v w_s w_z")
    form = floating(ir.from_proto(net.model((5, 6))))
    assert np.array_equal(form.extended({"w": {1: np.array([2])}, "v": {1: np.array([2])}})["w_s"][0], [2])
    with pytest.raises(PruneError, match="the scale 'w_s' is shared by weights that lose different channels"):
        form.extended({"w": {1: np.array([2])}})


def test_bytes_of_a_packed_weight_are_what_numpy_reads(tmp_path: Path) -> None:
    """(q - 8) * scale, the low half of a byte first."""
    net = next(made for name, made, _, _ in CASES if name == "MatMulNBits, 4 bits")()
    source = stored(floating(opened(tmp_path, net, (3, 32)).ir).model, "w")
    proto = {t.name: numpy_helper.to_array(t) for t in net.model((3, 32)).graph.initializer}
    low, high = (proto["w"] & 15).astype(int) - 8, (proto["w"] >> 4).astype(int) - 8
    wanted = np.stack([low, high], -1).reshape(4, 2, 16) * proto["w_s"].reshape(4, 2, 1)
    assert np.allclose(source.array(), wanted)


def test_integers_at_the_interface_stay(tmp_path: Path) -> None:
    """x and y of the model are uint8: the form takes and gives them, too, and rounds nothing in between."""
    net = (
        Net(13)
        .integers("w", (4, 3, 1, 1))
        .hold(s=np.float32(0.1), z=np.uint8(128), w_s=np.float32(0.002), w_z=np.int8(0))
    )
    net.add("QLinearConv", "x s z w w_s w_z s z", "h").integers("v", (2, 4, 1, 1))
    proto = net.add("QLinearConv", "h s z v w_s w_z s z", "y").model(IMAGE)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(proto, tmp_path / "m.onnx")
    form = floating(load(tmp_path / "m.onnx").ir)
    assert not form.problem
    assert form.sources.keys() == {"w", "v"}
    save(Model(form.model, tmp_path / "m.onnx", ""), tmp_path / "float.onnx")
    x = np.random.default_rng(0).integers(0, 255, IMAGE, np.uint8)
    given, found = (Session.open(tmp_path / name).run({"x": x})["y"] for name in ("m.onnx", "float.onnx"))
    assert given.dtype == found.dtype == np.uint8
    assert np.abs(given.astype(int) - found).max() <= 3
