"""A cut model refitted: what can be restored is, what cannot is left alone and said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import prunecli
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.layers import refittable
from prunecli.model import Dims
from prunecli.reconstruct import refit as module
from prunecli.reconstruct.refit import METHODS, Refit, output_error, refit
from prunecli.structures.prunable import AnalysedAs, Cuttable, open_cuttable
from tests.model.build import floats, node, proto, save_proto

KERNEL = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def convs(groups: int = 1, transposed: bool = False, bias: bool = True) -> onnx.ModelProto:
    """Three layers; of the first's eight channels 5 equals 1 and 6 is dead."""
    w, b = floats(8, 3, 3, 3, seed=1), floats(8, seed=2)
    w[5], b[5], w[6], b[6] = w[1], b[1], 0, -1
    weights = {"w1": w, "b1": b, "w2": floats(6, 8, 3, 3, seed=3), "w3": floats(4, 6 // groups, 1, 1, seed=4)}
    second = node("Conv", ["r1", "w2"], ["c2"], **KERNEL)
    if transposed:
        weights["w2"] = floats(8, 6, 3, 3, seed=3)
        second = node("ConvTranspose", ["r1", "w2"], ["c2"], **KERNEL)
    if bias:
        weights["b2"] = floats(6, seed=5)
        second.input.append("b2")
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], **KERNEL), node("Relu", ["c1"], ["r1"]), second,
        node("Relu", ["c2"], ["r2"]), node("Conv", ["r2", "w3"], ["y"], group=groups),
    ]  # fmt: skip
    return proto(nodes, {"x": ("n", 3, 6, 6)}, weights=weights)


def normed() -> onnx.ModelProto:
    """A convolution without bias, its BatchNormalization, and a residual sum."""
    w, b = floats(8, 3, 3, 3, seed=1), floats(8, seed=2)
    w[5], b[5], w[6], b[6] = w[1], b[1], 0, -1
    stats = {
        "g": np.full(3, 0.7, np.float32),
        "h": floats(3, seed=6),
        "m": floats(3, seed=7),
        "v": np.full(3, 2, np.float32),
    }
    weights = {"w1": w, "b1": b, "w2": floats(3, 8, 3, 3, seed=3), **stats}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], **KERNEL), node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], **KERNEL),
        node("BatchNormalization", ["c2", "g", "h", "m", "v"], ["n2"]), node("Add", ["n2", "x"], ["y"]),
    ]  # fmt: skip
    return proto(nodes, {"x": ("n", 3, 6, 6)}, weights=weights)


def dense(op: str = "MatMul") -> onnx.ModelProto:
    w, b = floats(3, 8, seed=1), floats(8, seed=2)
    w[:, 5], b[5], w[:, 6], b[6] = w[:, 1], b[1], 0, -1
    second = {"MatMul": ["MatMul", "r", "w2"], "Gemm": ["Gemm", "r", "w2", "b2"]}[op]
    nodes = [node("MatMul", ["x", "w1"], ["m"]), node("Add", ["m", "b1"], ["a"]), node("Relu", ["a"], ["r"]),
             node(second[0], second[1:], ["y" if op == "Gemm" else "s"])]  # fmt: skip
    if op == "MatMul":
        nodes.append(node("Add", ["s", "b2"], ["y"]))
    return proto(
        nodes, {"x": ("n", 3)}, weights={"w1": w, "b1": b, "w2": floats(8, 4, seed=3), "b2": floats(4, seed=4)}
    )


def repeated(op: str) -> onnx.ModelProto:
    """A branch of one value per image (or sentence) and channel, added to all positions of what it was made from."""
    conv, taps = op == "Conv", (1, 1) if op == "Conv" else ()
    w, b = floats(8, 3, seed=1), 1 + np.abs(floats(8, seed=2))  # averages are small: nothing else is dead
    w[5], b[5], w[6], b[6] = w[1], b[1], 0, -1
    second = floats(3, 8, seed=3)
    weights = {"w1": (w if conv else w.T).reshape(*(w if conv else w.T).shape, *taps), "b1": b.reshape(-1, *taps),
               "w2": (second if conv else second.T).reshape(*(second if conv else second.T).shape, *taps),
               "b2": floats(3, seed=4).reshape(-1, *taps)}  # fmt: skip
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]) if conv else node("ReduceMean", ["x"], ["p"], axes=[1]),
        node(op, ["p", "w1"], ["m"]), node("Add", ["m", "b1"], ["a"]), node("Relu", ["a"], ["r"]),
        node(op, ["r", "w2"], ["c"]), node("Add", ["c", "b2"], ["d"]), node("Add", ["x", "d"], ["y"]),
    ]  # fmt: skip
    return proto(nodes, {"x": ("n", 3, 6, 6) if conv else ("n", 7, 3)}, weights=weights)


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": convs, "conv without bias": lambda: convs(bias=False), "grouped": lambda: convs(groups=2),
    "transposed": lambda: convs(transposed=True), "batchnorm, residual": normed, "matmul": dense,
    "gemm": lambda: dense("Gemm"), "repeated over an image": lambda: repeated("Conv"),
    "repeated over a sentence": lambda: repeated("MatMul"),
}  # fmt: skip


class Case:
    """A model, the cut of channels of its first layer, and data."""

    def __init__(
        self, folder: Path, build: Callable[[], onnx.ModelProto], channels: list[int], count: int = 64
    ) -> None:
        self.subject: Cuttable = open_cuttable(save_proto(build(), folder), AnalysedAs("channel,head"), Dims())
        group = next(g for g in self.subject.units.groups if ("w1", 0) in g.weights or ("w1", 1) in g.weights)
        mask = np.zeros(self.subject.units.count, bool)
        mask[group.first + np.array(channels)] = True
        self.positions = self.subject.units.removed(mask)
        self.cut = self.subject.without(mask, self.positions)
        shape = self.subject.inputs["x"][1:]
        feeds = [{"x": floats(min(count, 16), *shape, seed=10 + n)} for n in range(max(count // 16, 1))]
        self.data = CalibrationBatches(feeds, max(len(feeds) - 1, 1))

    def refit(self, method: str = "auto") -> tuple[ir.Model, Refit]:
        model = self.cut.clone()
        return model, refit(self.subject.work, model, self.positions, self.data, method)

    def errors(self, *models: ir.Model) -> list[float]:
        return output_error(self.subject.work, models, self.data)


@pytest.mark.parametrize("name", NETS)
def test_an_equal_and_a_dead_channel_cost_nothing(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, NETS[name], [5, 6])
    fitted, done = case.refit()
    before, after = case.errors(case.cut, fitted)
    assert after < 1e-4 * before  # the smallest ridge leaves about 1e-6 of each layer's error
    assert done.layers[0].weight == "w2" and done.layers[0].method == "lstsq"


@pytest.mark.parametrize("name", NETS)
def test_what_is_really_lost_is_made_up_for_in_part(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, NETS[name], [0, 3])
    errors = {method: case.errors(case.refit(method)[0])[0] for method in METHODS}
    assert errors["lstsq"] < errors["none"] and errors["bias"] < errors["none"]
    assert errors["auto"] <= min(errors.values()) * 1.01


def test_a_wrong_fit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, convs, [5, 6])
    cast = module.LinearLayer.cast
    monkeypatch.setattr(module.LinearLayer, "cast", lambda self, weights: cast(self, weights[:, ::-1]))
    before, after = case.errors(case.cut, case.refit()[0])
    assert after > 0.1 * before


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["lstsq", "auto", "bn"])
def test_one_sample_leaves_a_sound_model(name: str, method: str, tmp_path: Path) -> None:
    case = Case(tmp_path, NETS[name], [0, 3], count=1)
    before, after = case.errors(case.cut, case.refit(method)[0])
    assert np.isfinite(after) and after <= before * 1.01


@pytest.mark.parametrize("name", NETS)
def test_names_and_types_stay(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, NETS[name], [0, 3])
    fitted, _ = case.refit()
    for a, b in zip(case.cut.graph, fitted.graph, strict=True):
        assert (a.op_type, a.name, [v.name for v in a.outputs]) == (b.op_type, b.name, [v.name for v in b.outputs])
    for key, value in case.cut.graph.initializers.items():
        new = fitted.graph.initializers[key]
        assert (new.const_value.dtype, new.const_value.shape) == (value.const_value.dtype, value.const_value.shape)
    added = set(fitted.graph.initializers) - set(case.cut.graph.initializers)
    assert added <= {"w2.bias", "w3.bias"}  # convolutions that had none


def test_layers_before_the_cut_are_not_touched(tmp_path: Path) -> None:
    case = Case(tmp_path, convs, [0, 3])
    fitted, done = case.refit()
    assert "w1" not in {fit.weight for fit in done.layers}
    kept = case.cut.graph.initializers["w1"].const_value.numpy()
    assert np.array_equal(fitted.graph.initializers["w1"].const_value.numpy(), kept)


def test_a_shared_weight_is_left_and_said_to_be(tmp_path: Path) -> None:
    def shared() -> onnx.ModelProto:
        nodes = [node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["r"]), node("MatMul", ["r", "w2"], ["b"]),
                 node("Relu", ["b"], ["c"]), node("MatMul", ["c", "w2"], ["y"])]  # fmt: skip
        return proto(nodes, {"x": ("n", 8)}, weights={"w1": floats(8, 8, seed=1), "w2": floats(8, 8, seed=2)})

    left = refittable(ir.from_proto(shared()))[1]
    assert [(skip.name, "shared" in skip.reason) for skip in left] == [("w2", True)]


AIMS = {
    "conv": ("w2", ("c2", None, "b2")),
    "conv without bias": ("w2", ("c2", None, "new")),
    "batchnorm, residual": ("w2", ("y", "x", "m")),
    "matmul": ("w2", ("y", None, "b2")),
    "gemm": ("w2", ("y", None, "b2")),
}


@pytest.mark.parametrize("name", AIMS)
def test_what_a_layer_aims_at(name: str) -> None:
    weight, wanted = AIMS[name]
    layer = next(one for one in refittable(ir.from_proto(NETS[name]()))[0] if one.name == weight)
    place = layer.offset
    stored = None if place is None else "new" if place.new else place.name
    assert (layer.target, layer.carried, stored) == wanted


@pytest.mark.parametrize("recover", ["lstsq", "auto"])
def test_attention_of_three_axes_with_a_cache_is_refitted(tmp_path: Path, recover: str) -> None:
    """onnxruntime takes its output for one of four axes where a piece does not state the width of its inputs."""
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[N,4,8] x, float[N,2,P,4] pk, float[N,2,P,4] pv)
        => (float[N,4,8] y, float[N,2,T,4] nk, float[N,2,T,4] nv) {
        q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)
        a, nk, nv = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, , pk, pv)  y = MatMul (a, wo) }"""
    made, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in {"wq": (8, 16), "wk": (8, 8), "wv": (8, 8), "wo": (16, 8)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(made, tmp_path / "m.onnx")
    shapes = {"x": (64, 4, 8), "pk": (64, 2, 3, 4), "pv": (64, 2, 3, 4)}
    np.savez(tmp_path / "d.npz", **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    found = prunecli.structured(
        tmp_path / "m.onnx", ratio=0.5, granularity="head", round_to=1, data=tmp_path / "d.npz", recover=recover,
        timing=False, output=tmp_path / "o.onnx",
    )  # fmt: skip
    assert found.recovery is not None
    assert found.recovery.error_after < 0.9 * found.recovery.error_before
