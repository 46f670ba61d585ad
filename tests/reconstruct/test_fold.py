"""`--recover fold`: units that say the same, and the moments that tell which do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import prunecli
from prunecli.arrays import Array
from prunecli.calibration.gaussian import ChannelMoments, channel_moments, mapped
from prunecli.calibration.layerwise import working_form
from prunecli.model import load
from tests.model.build import floats, node, proto, save_proto


def dense(folder: Path) -> Path:
    """Unit 3 is twice unit 1; what reads it is the weakest."""
    w1, b1, w2 = floats(6, 4, seed=1), floats(4, seed=2), floats(4, 5, seed=3)
    w1[:, 3], b1[3] = 2 * w1[:, 1], 2 * b1[1]
    w2[3] *= 0.1
    nodes = [node("Gemm", ["x", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"]), node("Gemm", ["r", "w2", "b2"], ["y"])]
    return save_proto(proto(nodes, {"x": (2, 6)}, weights={"w1": w1, "b1": b1, "w2": w2, "b2": floats(5)}), folder)


def convolutional(folder: Path, normalised: bool) -> Path:
    """Unit 2 is unit 0. With a BatchNormalization that makes the two differ by a factor."""
    w1, w2 = floats(4, 3, 3, 3, seed=1), floats(5, 4, 3, 3, seed=2)
    w1[2] = w1[0]
    w2[:, 2] *= 0.1
    norm = {"g": np.ones(4), "o": floats(4, seed=3), "m": floats(4, seed=4), "v": np.ones(4)}
    norm = {name: np.asarray(value, np.float32) for name, value in norm.items()}
    norm["m"][2] = norm["m"][0]
    norm["g"][2], norm["o"][2] = 3 * norm["g"][0], 3 * norm["o"][0]
    first = [node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1])]
    if normalised:
        first += [node("BatchNormalization", ["c", "g", "o", "m", "v"], ["n"])]
    nodes = [*first, node("Relu", ["n" if normalised else "c"], ["r"]), node("Conv", ["r", "w2", "b2"], ["y"])]
    weights = {"w1": w1, "w2": w2, "b2": floats(5, seed=5), **(norm if normalised else {})}
    return save_proto(proto(nodes, {"x": (2, 3, 6, 6)}, weights=weights), folder)


def depthwise(folder: Path) -> Path:
    """Unit 2 is three times unit 0 once a depthwise kernel and a BatchNormalization have passed it on."""
    w1, d, w2 = floats(4, 3, 3, 3, seed=1), floats(4, 1, 3, 3, seed=2), floats(5, 4, 1, 1, seed=3)
    w1[2], d[2] = w1[0], 3 * d[0]
    w2[:, 2] *= 0.1
    norm = {"g": np.ones(4), "o": floats(4, seed=4), "m": floats(4, seed=5), "v": np.ones(4)}
    norm["o"][2], norm["m"][2], norm["v"][2] = norm["o"][0], 3 * norm["m"][0], 9 + 8e-5  # beside an epsilon of 1e-5
    nodes = [
        node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "d"], ["e"], group=4, pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["e", *norm], ["n"]), node("Clip", ["n", "low", "high"], ["q"]),
        node("Conv", ["q", "w2", "b2"], ["y"]),
    ]  # fmt: skip
    weights = {"w1": w1, "d": d, "w2": w2, "b2": floats(5, seed=6), "low": np.float32(0), "high": np.float32(6), **norm}
    weights = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    return save_proto(proto(nodes, {"x": (2, 3, 6, 6)}, weights=weights), folder)


def residual(folder: Path) -> Path:
    """h = conv(x); s = h + conv(relu(conv(h))); y = conv(relu(s)). Channel 2 of the stream is channel 0, whoever writes it,
    and inside the branch channel 3 is channel 1."""
    a, b, c, d = (
        floats(4, 3, 3, 3, seed=1), floats(4, 4, 3, 3, seed=2), floats(4, 4, 3, 3, seed=3), floats(5, 4, 3, 3, seed=4)
    )  # fmt: skip
    a[2], c[2] = a[0], c[0]
    b[:, 2] *= 0.1
    d[:, 2] *= 0.1
    b_b, b_d = floats(4, seed=5), floats(5, seed=6)
    b[3], b_b[3] = b[1], b_b[1]
    c[:, 3] *= 0.1
    nodes = [
        node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]), node("Conv", ["h", "b", "b_b"], ["u"], pads=[1, 1, 1, 1]),
        node("Relu", ["u"], ["r"]), node("Conv", ["r", "c"], ["v"], pads=[1, 1, 1, 1]), node("Add", ["h", "v"], ["s"]),
        node("Relu", ["s"], ["t"]), node("Conv", ["t", "d", "b_d"], ["y"], pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    weights = {"a": a, "b": b, "c": c, "d": d, "b_b": b_b, "b_d": b_d}
    return save_proto(proto(nodes, {"x": (2, 3, 6, 6)}, weights=weights), folder)


def concatenated(folder: Path) -> Path:
    """Behind a Concat channel 2 of either part is its channel 0."""
    a, b, d = floats(4, 3, 3, 3, seed=1), floats(4, 3, 1, 1, seed=2), floats(5, 8, 3, 3, seed=3)
    a[2], b[2] = a[0], b[0]
    d[:, [2, 6]] *= 0.1
    nodes = [
        node("Conv", ["x", "a"], ["f"], pads=[1, 1, 1, 1]), node("Conv", ["x", "b"], ["g"]),
        node("Concat", ["f", "g"], ["h"], axis=1), node("Relu", ["h"], ["r"]), node("Conv", ["r", "d", "b_d"], ["y"]),
    ]  # fmt: skip
    weights = {"a": a, "b": b, "d": d, "b_d": floats(5, seed=4)}
    return save_proto(proto(nodes, {"x": (2, 3, 6, 6)}, weights=weights), folder)


NETS = {
    "scaled": dense,
    "convolution": lambda folder: convolutional(folder, False),
    "normalised": lambda folder: convolutional(folder, True),
    "depthwise": depthwise,
    "residual": residual,
    "concatenated": concatenated,
}


def outputs(path: Path) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: np.random.default_rng(0).normal(size=i.shape).astype(np.float32) for i in session.get_inputs()}
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("name", NETS)
def test_equal_units_fold_into_one(name: str, tmp_path: Path) -> None:
    model, results = NETS[name](tmp_path), {}
    for recover in ("none", "fold"):
        out = tmp_path / f"{recover}.onnx"
        found = prunecli.structured(model, ratio=0.25, round_to=1, recover=recover, output=out, timing=False)
        results[recover] = outputs(out)
        assert {len(group.removed) for group in found.groups} == {1} and found.verification.kind != "none"
    assert found.recovery is not None and found.recovery.method == "fold"
    for layer in found.recovery.layers:
        assert layer.error_before > 1e-4 and layer.error_after < 1e-9
    wanted = outputs(model)
    assert np.allclose(results["fold"], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert not np.allclose(results["none"], wanted, rtol=1e-2, atol=1e-3 * np.abs(wanted).max())


def between(*nodes: Any, out: str = "r", channels_last: bool = True, **weights: Array) -> Any:
    """(nodes, weights) of a network whose unit 2 is unit 0: a layer that makes h, `nodes`, a layer that reads `out`."""
    w1, w2, b1 = floats(6, 4, seed=1), floats(4, 5, seed=2), floats(4, seed=3)
    w1[:, 2], b1[2] = w1[:, 0], b1[0]
    w2[2] *= 0.1
    if channels_last:
        ends = node("MatMul", ["x", "w1"], ["m"]), node("Add", ["m", "b1"], ["h"]), node("MatMul", [out, "w2"], ["y"])
        return [*ends[:2], *nodes, ends[2]], {"w1": w1, "b1": b1, "w2": w2, **weights}
    if "flat" in weights:
        w2 = (weights.pop("flat") * w2[:, None]).reshape(-1, 5)
    first = node("Conv", ["x", "w1", "b1"], ["h"])
    return [first, *nodes, node("Gemm", [out, "w2"], ["y"])], {
        "w1": w1.T[:, :, None, None],
        "b1": b1,
        "w2": w2,
        **weights,
    }


def _one(number: float) -> Array:
    return np.asarray(number, np.float32)


RELU, POOL = node("Relu", ["h"], ["c"]), node("GlobalAveragePool", ["c"], ["p"])
BETWEEN = {
    "a bias that is added": between(node("Relu", ["h"], ["r"])),
    "gelu": between(node("Gelu", ["h"], ["r"])),
    "gelu in parts": between(
        node("Div", ["h", "s"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "o"], ["f"]),
        node("Mul", ["h", "f"], ["g"]), node("Mul", ["g", "u"], ["r"]), s=_one(2**0.5), o=_one(1), u=_one(0.5),
    ),
    "silu": between(node("Sigmoid", ["h"], ["s"]), node("Mul", ["h", "s"], ["r"])),
    "slopes": between(node("PRelu", ["h", "s"], ["r"]), s=np.array([0.1, 0.2, 0.1, 0.3], np.float32)),
    "factors": between(node("Mul", ["h", "s"], ["f"]), node("Relu", ["f"], ["r"]), s=np.array([1, 2, 2, 1], np.float32)),
    "pool and flatten": between(RELU, POOL, node("Flatten", ["p"], ["r"]), channels_last=False),
    "pool and reshape": between(
        RELU, POOL, node("Reshape", ["p", "to"], ["r"]), channels_last=False, to=np.array([0, -1])
    ),
    "pool and squeeze": between(
        RELU, POOL, node("Squeeze", ["p", "to"], ["r"]), channels_last=False, to=np.array([2, 3])
    ),
    "elu": between(node("Elu", ["h"], ["r"], alpha=0.7)),
    "turned and back": between(
        RELU, node("Transpose", ["c"], ["t"], perm=[0, 2, 1]), node("Transpose", ["t"], ["r"], perm=[0, 2, 1])
    ),
    "normalised by sample": between(
        node("InstanceNormalization", ["h", "s", "o"], ["i"]), node("Relu", ["i"], ["c"]), POOL,
        node("Flatten", ["p"], ["r"]), channels_last=False, s=np.array([1, 2, 1, 3], np.float32), o=floats(2, 2)[[0, 1, 0, 1], 0],
    ),
    "channels and places": between(RELU, node("Flatten", ["c"], ["r"]), channels_last=False, flat=floats(4, 9, 1, seed=9)),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("batch", [2, "n"])
def test_equal_units_fold_whatever_lies_between(name: str, batch: int | str, tmp_path: Path) -> None:
    nodes, weights = BETWEEN[name]
    shape = (batch, 5, 6) if nodes[0].op_type == "MatMul" else (batch, 6, 3, 3)
    model = save_proto(proto(nodes, {"x": shape}, weights=weights, opset=20), tmp_path)
    out = tmp_path / "o.onnx"
    prunecli.structured(model, ratio=0.25, round_to=1, recover="fold", output=out, timing=False)
    feed = {"x": floats(2, *shape[1:], seed=7)}
    found, wanted = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for path in (out, model)
    )
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NETS)
def test_without_data_it_is_the_default(name: str, tmp_path: Path) -> None:
    """Equal units fold exactly; made pictures, where a model takes them, neither add to that nor take from it."""
    model = NETS[name](tmp_path)
    found = prunecli.structured(model, ratio=0.25, round_to=1, output=tmp_path / "o.onnx", timing=False)
    assert found.recovery is not None and found.recovery.asked == "fold" and found.recovery.method != "none"
    assert bool(found.recovery.samples) == any("synthetic" in note for note in found.notes) == (name != "scaled")
    wanted = outputs(model)
    assert np.allclose(outputs(tmp_path / "o.onnx"), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("options", [{"ratio": 0.5, "recover": "fold"}, {"macs": 0.6}])
def test_it_is_the_same_every_time(tmp_path: Path, options: dict[str, Any]) -> None:
    """Folded, and as it is by default: spread as predicted, and refitted on made pictures."""
    for name in "ab":
        out = tmp_path / f"{name}.onnx"
        found = prunecli.structured(convolutional(tmp_path, True), **options, round_to=1, timing=False, output=out)
        assert ("allocate" in found.recipe) == ("macs" in options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_nothing_to_fold_is_not_told(tmp_path: Path) -> None:
    """Of what a table holds nothing is known, so nothing is made up; behind a Softmax nothing is known either."""
    nodes = [node("Softmax", ["x"], ["s"]), node("Gemm", ["s", "w"], ["h"]), node("Relu", ["h"], ["r"]),
             node("Mul", ["r", "h"], ["m"]), node("Gemm", ["m", "v"], ["y"])]  # fmt: skip
    weights = {"w": floats(6, 4, seed=1), "v": floats(4, 3, seed=2)}
    model = save_proto(proto(nodes, {"x": (2, 6)}, weights=weights), tmp_path)
    found = prunecli.structured(model, ratio=0.25, round_to=1, output=tmp_path / "o.onnx", timing=False)
    assert found.recovery is None and found.verification.kind == "exact"


FUNCTIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "square": np.square}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_behind_a_function_are_those_of_samples(name: str) -> None:
    """Three standard errors of 400,000 samples, and what is left out after the last coefficient."""
    mean, mixing = np.array([0.3, -0.5, 1.0]), floats(3, 3, seed=1).astype(np.float64)
    given = ChannelMoments(mean, mixing @ mixing.T)
    samples = FUNCTIONS[name](mean + np.random.default_rng(0).normal(size=(400_000, 3)) @ mixing.T)
    found, spread = mapped(given, FUNCTIONS[name]), samples.std(axis=0)
    assert np.allclose(found.mean, samples.mean(axis=0), atol=5e-3 * spread.max())
    assert np.allclose(found.covariance, np.cov(samples.T), atol=1.5e-2 * spread.max() ** 2)


def test_moments_of_a_layer_and_of_stored_statistics(tmp_path: Path) -> None:
    work = working_form(load(convolutional(tmp_path, True)).ir)
    found, weights = channel_moments(work), work.graph.initializers
    stored = {name: weights[name].const_value.numpy() for name in "gomv"}  # type: ignore[union-attr]
    assert np.allclose(found["n"].mean, stored["o"])
    assert np.allclose(found["n"].variance, stored["g"] ** 2 * stored["v"] / (stored["v"] + 1e-5))
    assert found["n"].covariance[0, 2] == pytest.approx(3 * found["n"].variance[0])
