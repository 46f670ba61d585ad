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

from prunecli.evaluation.profile import readers
from prunecli.model import find_weights, load, save
from prunecli.model.constants import holders
from prunecli.model.floating import RESTATED, floating, floats_of, requantise, stored_as
from prunecli.model.loading import Model
from prunecli.model.quantised import Quantised, packed, unpacked
from prunecli.runtime import Session
from tests.model.quantised_models import CASES, IMAGE, MICROSOFT, Net, qdq

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
    assert not {(node.domain, node.op_type) for node in form.model.graph} & RESTATED.keys()
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
