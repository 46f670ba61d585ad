"""Structural cuts of quantised models: proved against the masked original with onnxruntime's integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.dependency.registry import REWRITES
from prunecli.errors import PruneError
from prunecli.model.floating import RESTATED, FloatingForm, RealTensor, floating
from prunecli.model.graphs import add_constant, refill
from prunecli.model.requantise import requantised
from prunecli.quantization.ranges import observe
from prunecli.runtime import Session
from tests.integers import needs_exact_integers
from tests.model.quantised_models import CASES, IMAGE, Net, blocked, conv_integer, lstm, nbits, qgemm

Made = Callable[[], Net]


def between(net: Net, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model with a layer in floating point before it and one behind it, so that both sides of it can be cut."""
    rng, image = np.random.default_rng(3), shape == IMAGE
    model = net.model(shape)
    for node in model.graph.node:
        node.input[:] = [{"x": "inner"}.get(name, name) for name in node.input]
        node.output[:] = [{"y": "outer"}.get(name, name) for name in node.output]
    width = shape[1] if image else shape[-1]
    given = Session.open(net.model(shape).SerializeToString()).run({"x": np.zeros(shape, np.float32)})["y"].shape
    last = given[1] if image else given[-1]
    axes = (1, 1) if image else ()
    first, second = rng.normal(size=(width, width, *axes)), rng.normal(size=(3, last, *axes) if image else (last, 3))
    for name, array in (("first", first), ("second", second)):
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    op = "Conv" if image else "MatMul"
    model.graph.node.insert(0, helper.make_node(op, ["x", "first"], ["inner"], "first"))
    model.graph.node.append(helper.make_node(op, ["outer", "second"], ["y"], "second"))
    return model


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}


WHOLE = "GatherBlockQuantized, 4 bits"
STAY = ("per input channel", "QLinearSoftmax", "a branch that reads integers from outside")
CUT = [case for case in CASES if case[0] not in STAY and WHOLE not in case[0]]
"""onnxruntime does not run the first where it fuses, the second runs over all channels, what branches read is not cut, and
rows of bytes of two numbers stay whole."""


@pytest.mark.parametrize(("name", "made", "shape", "weight"), CUT, ids=[case[0] for case in CUT])
def test_both_sides_of_a_quantised_layer_are_cut_and_proved(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    onnx.save(between(made(), shape), tmp_path / "m.onnx")
    found = prunecli.structured(
        tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx", granularity="channel,head"
    )
    assert found.verification.kind == "exact"
    before, after = shapes(tmp_path / "m.onnx"), shapes(tmp_path / "cut.onnx")
    assert after["first"] != before["first"] or after["second"] != before["second"]
    if weight and not name.startswith(("bias", "QAttention")):
        assert after[weight] != before[weight]


def chain(scales: str = "own") -> onnx.ModelProto:
    """Conv 3 -> 4 -> 4 -> 4, weights behind DequantizeLinear per channel, by one scale vector or by one each."""
    net, before = Net(13), "x"
    net.hold(z=np.zeros(4, np.int8), a_s=np.float32(0.2), a_z=np.uint8(128))
    for number, inputs in enumerate((3, 4, 4)):
        net.add("QuantizeLinear", f"{before} a_s a_z", f"q{number}").add(
            "DequantizeLinear", f"q{number} a_s a_z", f"f{number}"
        )
        net.integers(f"w{number}", (4, inputs, 3, 3))
        scale = "common" if scales == "shared" else f"s{number}"
        net.hold(**{scale: np.array([0.01, 0.02, 0.03, 0.02], np.float32)})
        net.add("DequantizeLinear", f"w{number} {scale} z", f"v{number}", axis=0)
        before = "y" if number == 2 else f"c{number}"
        net.add("Conv", f"f{number} v{number}", before, pads=[1, 1, 1, 1])
    return net.model(IMAGE)


@pytest.mark.parametrize("scales", ["own", "shared"])
def test_scales_are_cut_with_their_channels(tmp_path: Path, scales: str) -> None:
    """A scale that several weights share is split where they lose different channels."""
    onnx.save(chain(scales), tmp_path / "m.onnx")
    prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx")
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "cut.onnx").graph.initializer}
    assert [after[f"w{n}"].shape[:2] for n in range(3)] == [(2, 3), (2, 2), (4, 2)]
    vectors = [array.shape for array in after.values() if array.dtype == np.float32 and array.ndim == 1]
    assert set(vectors) == {(2,), (4,)}


def test_a_scale_that_is_not_cut_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: scales stay as long as they were."""
    monkeypatch.setattr(FloatingForm, "extended", lambda self, removed: removed)
    onnx.save(chain(), tmp_path / "m.onnx")
    with pytest.raises(PruneError):
        prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx")


def test_blocks_go_whole(tmp_path: Path) -> None:
    """Of 8 inputs in two blocks of 4, and of 32 in two of 16, one block stays, and its scales."""
    for net, shape, inputs in ((blocked(), (3, 8), 4), (nbits(), (3, 32), 16)):
        onnx.save(between(net, shape), tmp_path / "m.onnx")
        prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx", force=True)
        after = shapes(tmp_path / "cut.onnx")
        assert after["first"] == (shape[1], inputs)
        scales = after.get("w_s", after.get("y.pruned"))
        assert scales is not None
        assert np.prod(scales) * inputs == np.prod(after["w"]) * (1 if inputs == 4 else 2)


@needs_exact_integers
@pytest.mark.parametrize(("name", "made", "shape", "weight"), CUT, ids=[case[0] for case in CUT])
def test_fitted_numbers_are_stored_with_new_scales(
    tmp_path: Path, name: str, made: Made, shape: tuple[int, ...], weight: str
) -> None:
    """Twice the weight and its bias: the quantised model gives about what its floating-point form does."""
    model = ir.from_proto(made().model(shape))
    form = floating(model.clone())
    for held in form.model.graph.initializers.values():
        if isinstance(held.const_value, RealTensor):
            refill(held, held.const_value.numpy() * np.float32(1.7))
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32) * 0.5
    floats = ir.to_proto(form.model).SerializeToString()
    seen = {name: one.some[0] for name, one in observe(Session.open, floats, [{"x": x}], 1).items()}
    written = [requantised(form, model, some) for some in ({}, seen)]
    models = [floats, *(ir.to_proto(one).SerializeToString() for one in written)]
    wanted, *both = (Session.open(one, mode="plain").run({"x": x})["y"].reshape(-1) for one in models)
    for got in both:
        assert np.corrcoef(got, wanted)[0, 1] > 0.98
    before, after = (float(np.square(got - wanted).mean()) for got in both)
    assert after <= 1.5 * before + 1e-4 * wanted.var()
    step = written[1].graph.initializers.get("xq_s")
    if step is not None and step.const_value is not None:  # of 8 bits around 128
        assert 0.69 < step.const_value.numpy() / max(x.max() / 127, -x.min() / 128) < 1.001


@pytest.mark.parametrize("key", sorted(REWRITES.keys() & RESTATED.keys()), ids=lambda key: ".".join(key))
def test_every_rewrite_is_noticed_when_it_is_gone(
    key: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [(made(), shape) for _, made, shape, _ in CUT]
    mine = [(net, shape) for net, shape in cases if key in {(node.domain, node.op_type) for node in net.nodes}]
    grouped = [one for one in mine if any(a.name == "group" for node in one[0].nodes for a in node.attribute)]
    net, shape = (grouped or mine)[0]
    onnx.save(between(net, shape), tmp_path / "m.onnx")
    monkeypatch.delitem(REWRITES, key)
    with pytest.raises(PruneError):
        prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx")


def test_layers_without_a_bias_get_one_in_integers(tmp_path: Path) -> None:
    """Fitted after a cut: what the removed inputs added on average has to go somewhere."""
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(48, *IMAGE[1:])).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=np.abs(x))
    found = prunecli.structured(
        tmp_path / "m.onnx", ratio=0.5, data=str(tmp_path / "x.npz"), output=tmp_path / "cut.onnx", timing=False,
        rescale_activations=True,
    )  # fmt: skip
    assert found.recovery is not None
    assert found.recovery.error_after < 0.8 * found.recovery.error_before
    after = onnx.load(tmp_path / "cut.onnx")
    biases = [t for t in after.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    assert len(biases) == sum(len(node.input) == 3 for node in after.graph.node if node.op_type == "Conv") == 2


def test_stated_shapes_of_what_is_cut_are_stated_anew(tmp_path: Path) -> None:
    """Of the last state of an LSTM, of which ONNX infers no shape."""
    net = lstm()
    net.nodes[0].output[:], net.nodes[0].name = ["all", "h", "c"], "lstm"
    net.hold(axis=np.array([0])).add("Squeeze", "h axis", "y")
    model = between(net, (5, 2, 3))
    model.graph.value_info.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1, 2, 4]))
    model.graph.value_info.append(helper.make_tensor_value_info("outer", onnx.TensorProto.FLOAT, [2, 4]))
    onnx.save(model, tmp_path / "m.onnx")
    found = prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx")
    assert found.verification.kind == "exact"
    assert shapes(tmp_path / "cut.onnx")["second"] == (2, 3)


def unbiased(made: Made, keep: int) -> Net:
    """The net without the bias of its last integer operator, and without its last nodes after `keep` of them."""
    net = made()
    del net.nodes[keep:]
    net.nodes[-1].output[0] = "y"
    if net.nodes[-1].op_type == "QGemm":
        del net.nodes[-1].input[6:]
        net.nodes[-1].attribute[-1].f = 0.5
    return net


def floats_last() -> Net:
    net = conv_integer()
    net.nodes[-1].output[0] = net.nodes[-1].name = "c"
    return net.hold(w2=np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)).add("Conv", "c w2", "y")


def rounded_qgemm() -> Net:
    net = qgemm(True)
    del net.nodes[1].input[6]
    net.nodes[1].input.insert(6, "")
    return net


@pytest.mark.parametrize(
    ("made", "shape", "place"),
    [
        (lambda: unbiased(lambda: qgemm(False), 2), (5, 6), 0),
        (rounded_qgemm, (5, 6), 0),
        (lambda: unbiased(conv_integer, 5), IMAGE, 0),
        (floats_last, IMAGE, 1),
    ],
    ids=["QGemm", "QGemm, rounded", "ConvInteger", "floating point"],
)
def test_a_new_bias_reaches_the_output(made: Made, shape: tuple[int, ...], place: int) -> None:
    model = ir.from_proto(made().model(shape))
    form = floating(model.clone())
    layer = [node for node in form.model.graph if node.op_type in ("Conv", "Gemm")][place]
    bias = np.array([1.5, -2, 0.5, 3], np.float32)
    layer.resize_inputs(3)
    layer.replace_input_with(2, add_constant(form.model.graph, "fresh", bias))
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32) * 0.5
    runs = [
        Session.open(ir.to_proto(one).SerializeToString()).run({"x": x})["y"]
        for one in (model, requantised(form, model))
    ]
    moved = np.moveaxis(runs[1] - runs[0], 1, -1).reshape(-1, 4)
    assert np.median(moved, axis=0) == pytest.approx(bias, abs=0.11)


def wide_bias(alpha: float = 1.0) -> Net:
    """Of 16 bits: its weights are so small that with scales for them alone the bias would be no int32."""
    net = qgemm(False)
    net.nodes[-1].attribute[-1].f = alpha
    return net.hold(
        w_s=np.array([0.01, 0.02, 0.03, 0.02], np.float32) * 1e-4, c=np.array([2**29, -(2**28), 2**29, 7], np.int32)
    )


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_biases_stay_what_they_are_when_their_weights_get_new_scales(alpha: float) -> None:
    """Weights of a hundredth would get scales by which the bias is more than an int32; it holds QGemm's alpha, too."""
    model = ir.from_proto(wide_bias(alpha).model((5, 6)))
    form = floating(model.clone())
    weight, bias = (form.model.graph.initializers[name] for name in ("w", "c"))
    assert weight.const_value is not None
    assert bias.const_value is not None
    wanted = bias.const_value.numpy()
    refill(weight, weight.const_value.numpy() * np.float32(0.01))
    after = floating(requantised(form, model)).model.graph.initializers["c"].const_value
    assert after is not None
    assert after.numpy() == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def attending() -> onnx.ModelProto:
    """x (N, 6, 16): attention of four heads, written out, in floating point."""
    rng, nodes = np.random.default_rng(0), list[onnx.NodeProto]()
    held = {"heads": np.array([0, 0, 4, 4]), "flat": np.array([0, 0, 16]), "half": np.float32(0.5)}

    def op(kind: str, inputs: str, out: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [out], out, **attributes))

    for name in "qkvo":
        held[f"w{name}"] = rng.normal(size=(16, 16)).astype(np.float32) / 4
    for name in "qkv":
        op("MatMul", f"x w{name}", f"{name}m")
        op("Reshape", f"{name}m heads", f"{name}r")
        op("Transpose", f"{name}r", f"{name}t", perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])
    op("MatMul", "qt kt", "s")
    op("Mul", "s half", "d")
    op("Softmax", "d", "p", axis=-1)
    op("MatMul", "p vt", "a")
    op("Transpose", "a", "b", perm=[0, 2, 1, 3])
    op("Reshape", "b flat", "c")
    op("MatMul", "c wo", "e")
    op("Add", "e x", "y")
    ends = [helper.make_tensor_value_info(name, 1, ["N", 6, 16]) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.slow
@needs_exact_integers
def test_kernels_that_masks_keep_the_original_from_do_not_refuse_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime has a kernel for a softmax in integers, which is not used where a mask stands before it."""
    onnx.save(attending(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(32, 6, 16)).astype(np.float32))
    path = tmp_path / "q.onnx"
    prunecli.quantize(tmp_path / "m.onnx", data=str(tmp_path / "x.npz"), output=path, timing=False)
    found = prunecli.structured(path, ratio=0.5, granularity="head", output=tmp_path / "cut.onnx")
    assert found.verification.kind == "exact"
    assert "as they are written" in found.verification.detail
    monkeypatch.setattr(FloatingForm, "extended", lambda self, removed: removed)  # planted: scales stay as long
    with pytest.raises(PruneError):
        prunecli.structured(path, ratio=0.5, granularity="head", output=tmp_path / "wrong.onnx")


def test_integers_whose_meaning_is_not_known_are_left_and_named(tmp_path: Path) -> None:
    """An output that gives integers: layers in floating point before it are cut all the same."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(6, 8)), "b": rng.normal(size=(8, 5))}
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "b"], ["f"]), helper.make_node("DynamicQuantizeLinear", ["f"], ["y", "s", "z"])]  # fmt: skip
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", 1, ["N", 6])], [value("y", 2, ["N", 5]), value("s", 1, [])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, stored), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    found = prunecli.structured(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "cut.onnx", timing=False)
    assert shapes(tmp_path / "cut.onnx")["a"] == (6, 4)
    assert [note for note in found.notes if "its integers stay as they are" in note and "DynamicQuantizeLinear" in note]
