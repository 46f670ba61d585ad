"""`prune quantize` from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.runtime import Session
from tests.integers import needs_exact_integers

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP, CALIB, TEST = (SAMPLES / f"digits-{name}" for name in ("mlp.onnx", "calib.npz", "test.npz"))
RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def own(*shape: int) -> np.ndarray:
    """By no order of the models."""
    return np.asarray(np.random.default_rng(shape).standard_normal(shape), np.float32)


def made(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], opset: int = 17) -> Path:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x, y = helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def op(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), [out], **attributes)


CONV = ([op("Conv", "x", "w", "b", out="h", group=2, pads=[1, 1, 1, 1]), op("Relu", "h", out="r"), op("Conv", "r", "v")],
        {"w": f(8, 2, 3, 3), "b": f(8), "v": f(3, 8, 1, 1)}, ["N", 4, 6, 6])  # fmt: skip
PLAIN = ([op("MatMul", "x", "w", out="h"), op("Add", "h", "b", out="a"), op("Relu", "a", out="r"), op("MatMul", "r", "v")],
         {"w": f(40, 32), "b": f(32), "v": f(32, 6)}, ["N", 40])  # fmt: skip
TURNED = ([op("Transpose", "w", out="t"), op("MatMul", "x", "t", out="h"), op("Gemm", "h", "v", "c", transB=1)],
          {"w": f(32, 40), "v": f(6, 32), "c": f(6)}, ["N", 40])  # fmt: skip
NORMED = ([op("Conv", "x", "w", out="h"), op("BatchNormalization", "h", "s", "c", "m", "var", out="n"), op("Conv", "n", "v")],
          {"w": f(6, 4, 1, 1), "s": f(6), "c": f(6), "m": f(6), "var": np.abs(f(6)) + 1, "v": f(3, 6, 1, 1)},
          ["N", 4, 6, 6])  # fmt: skip
SCALED = ([op("Gemm", "x", "w", "b", out="h", alpha=0.5, beta=2.0), op("ReduceMean", "x", out="r", axes=[1]),
           op("Gemm", "h", "v", "r", beta=3.0, transB=1)],
          {"w": PLAIN[1]["w"], "b": 9 * PLAIN[1]["b"], "v": TURNED[1]["v"]}, ["N", 40])  # fmt: skip
DEAD = ([op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v")],
        {"w": f(40, 8) * (np.arange(8) > 2), "v": f(8, 6)}, ["N", 40])  # fmt: skip
NAMED = ([op("MatMul", "x", "w_quantized", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "w")],
         {"w_quantized": f(40, 32), "w": f(32, 6)}, ["N", 40])  # fmt: skip
BIAS = ([op("Conv", "x", "w", "b")], {"w": 1e-9 * f(3, 4, 1, 1), "b": 1e3 * f(3)}, ["N", 4, 6, 6])
ADDED = ([op("Conv", "x", "w", out="h"), op("Reshape", "b", "to", out="r"), op("Add", "h", "r", out="a"),
          op("Mul", "a", "s", out="m"), op("Conv", "m", "v")],
         {"w": f(6, 4, 1, 1), "b": f(6), "to": np.array([1, -1, 1, 1]), "s": f(), "v": f(3, 6, 1, 1)},
         ["N", 4, 6, 6])  # fmt: skip
LEFT = ([op("MatMul", "w", "x", out="v1"), op("Relu", "v1", out="v2"), op("MatMul", "u", "v2", out="v3"),
         op("MatMul", "v3", "v")],
        {"w": own(8, 6), "u": own(4, 8), "v": own(5, 7)}, ["N", 6, 5])  # fmt: skip
STACKED = ([op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v", out="g"),
            op("MatMul", "g", "u")],
           {"w": own(3, 6, 8), "v": own(8, 5), "u": own(5)}, ["N", 3, 4, 6])  # fmt: skip
CASES = [
    # model, options, weights that are stored as integers
    ("a bias added, and a factor", ADDED, {}, 2),
    ("grouped", CONV, {}, 2),
    ("grouped", CONV, {"weights": "uint8"}, 2),
    ("grouped", CONV, {"activations": "int8"}, 2),
    ("grouped", CONV, {"activations": "none"}, 2),
    ("transposed", TURNED, {"activations": "none", "weights": "uint8"}, 2),
    ("products", PLAIN, {}, 2),
    ("products", PLAIN, {"format": ("dynamic",)}, 2),
    ("products", PLAIN, {"format": ("dynamic",), "weights": "uint8"}, 2),
    ("products", PLAIN, {"weights": "int4-block32"}, 2),
    ("transposed", TURNED, {}, 2),
    ("transposed", TURNED, {"format": ("dynamic",)}, 2),
    ("transposed", TURNED, {"weights": "int4-block32"}, 2),
    ("products with factors", SCALED, {}, 2),
    ("normalised", NORMED, {}, 2),
    ("dead units", DEAD, {}, 2),
    ("a bias that int32 hardly holds", BIAS, {}, 1),
    ("named as the tool names", NAMED, {}, 2),
    ("named as the tool names", NAMED, {"activations": "none"}, 2),
    ("named as the tool names", NAMED, {"format": ("dynamic",)}, 2),
    ("from the left", LEFT, {}, 1),
    ("from the left", LEFT, {"activations": "none"}, 3),
    ("stacked, and a vector", STACKED, {}, 1),
    ("stacked, and a vector", STACKED, {"format": ("dynamic",)}, 1),
    ("one left float", PLAIN, {"exclude": ("v",)}, 1),
    ("one chosen", PLAIN, {"include": ("v",)}, 1),
]  # fmt: skip
INTEGER = {2: "uint8", 3: "int8"}


def stored(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}


@needs_exact_integers
@pytest.mark.parametrize(("label", "net", "changes", "count"), CASES, ids=lambda value: str(value)[:24])
def test_the_file_computes_nearly_what_the_float_model_does(
    label: str, net: Any, changes: dict[str, Any], count: int, tmp_path: Path
) -> None:
    nodes, constants, shape = net
    path, out = made(tmp_path / "m.onnx", nodes, constants, shape), tmp_path / "q.onnx"
    x = np.asarray(np.random.default_rng(1).standard_normal((64, *shape[1:])), np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    found = prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(out), threads=1, timing=False, **changes)
    wanted, got = (Session.open(p).run({"x": x})["y"] for p in (path, out))  # other inputs may leave the ranges seen
    four = "block" in str(changes)
    assert (read := prunecli.inspect(out).totals).params == found.after.params and read.nonzero == found.after.nonzero
    assert np.square(got - wanted).mean() < (0.02 if four else 2e-3) * wanted.var()
    assert found.errors[found.chosen] == min(found.errors.values())
    integers = [t for t in stored(out).values() if t.data_type in INTEGER and len(t.dims) > 1 and "zero" not in t.name]
    assert len(integers) == count
    if label in ("from the left", "stacked, and a vector") and "activations" not in changes:
        assert any("no kernel of integers" in one.reason for one in found.left)
    if label in ("grouped", "normalised"):
        assert {t.name for t in integers} <= set(constants)


LABELS = [op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v", out="l"),
          op("ArgMax", "l", axis=1, keepdims=0)]  # fmt: skip


@pytest.mark.slow
def test_with_made_up_data_speed_is_measured_on_random_inputs(tmp_path: Path) -> None:
    found = prunecli.quantize(MLP, data="synthetic", limit=16, output=str(tmp_path / "q.onnx"), threads=1)
    assert found.speed is not None and found.speed.pair is not None


def test_labels_alone_are_judged_by_those_that_change(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x, w, v = (rng.standard_normal(shape, np.float32) for shape in ((400, 40), (40, 32), (32, 6)))
    path = made(tmp_path / "m.onnx", LABELS, {"w": w, "v": 1e-2 * v}, ["N", 40])
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, path)
    np.savez(tmp_path / "d.npz", x=x)
    found = prunecli.quantize(
        path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), threads=1, timing=False
    )
    assert 0 < found.errors["onnxruntime"] < 0.1
    assert "no floating-point numbers" in found.verification.detail
    assert any("elements that change" in note for note in found.notes)


@needs_exact_integers
def test_the_digits_keep_their_accuracy_and_every_figure_is_told(tmp_path: Path) -> None:
    found = prunecli.quantize(MLP, data=CALIB, test=TEST, output=str(tmp_path / "q.onnx"), threads=1, timing=False)
    assert found.quality is not None and found.quality.after["accuracy"] > found.quality.before["accuracy"] - 0.005
    told = found.to_json()
    assert told["after"]["file_bytes"] < 0.3 * told["before"]["file_bytes"]
    assert set(told["quantization"]["errors"]) == {"onnxruntime", "nearest", "fitted"}
    assert found.errors["fitted"] < 0.7 * found.errors["onnxruntime"]
    assert {layer["method"] for layer in told["layers"]} <= {"nearest", "compensated", "fitted"}
    assert told["verification"]["kind"] == "approximate" and told["fidelity"]["top1_agreement"] > 0.95


KERNELS = [
    # model, what onnxruntime runs in place of the floating-point operators
    (CONV, "Conv", "QLinearConv"),
    (TURNED, "Gemm", "QGemm"),
    (PLAIN, "MatMul", "MatMulIntegerToFloat"),
]


@pytest.mark.parametrize(
    ("net", "plain", "integer"), KERNELS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_onnxruntime_finds_its_kernels_of_integers(net: Any, plain: str, integer: str, tmp_path: Path) -> None:
    nodes, constants, shape = net
    path = made(tmp_path / "m.onnx", nodes, constants, shape)
    np.savez(tmp_path / "d.npz", x=f(32, *shape[1:]))
    out = tmp_path / "q.onnx"
    prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(out), threads=1, timing=False)
    Session.open(out, writes={"graph": tmp_path / "o.onnx"})
    ran = [node.op_type for node in onnx.load(str(tmp_path / "o.onnx")).graph.node]
    assert integer in ran and plain not in ran


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    prunecli.magnitude(MLP, sparsity=0.8, output=str(tmp_path / "z.onnx"))
    before = stored(tmp_path / "z.onnx")
    found = prunecli.quantize(tmp_path / "z.onnx", data=CALIB, output=str(tmp_path / "q.onnx"), threads=1, timing=False)
    after = stored(tmp_path / "q.onnx")
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        old, new = (numpy_helper.to_array(each[name]) for each in (before, after))
        assert (new[old == 0] == 0).all() and new.dtype == np.int8
    assert found.to_json()["sparsity"] > 0.7999


def test_layers_that_hurt_stay_float_within_the_budget(tmp_path: Path) -> None:
    w, v = f(40, 32), f(32, 6)
    w[:, :4] *= 300.0  # a few outputs of which everything behind is small
    v[:4] /= 300.0
    nodes = [op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v")]
    path = made(tmp_path / "m.onnx", nodes, {"w": w, "v": v}, ["N", 40])
    np.savez(tmp_path / "d.npz", x=f(64, 40))
    found = prunecli.quantize(
        path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), threads=1, timing=False, keep_float=0.2
    )
    kept = [t for t in stored(tmp_path / "q.onnx").values() if t.data_type == 1 and len(t.dims) == 2]
    assert [tuple(t.dims) for t in kept] == [(32, 6)] and [layer.name for layer in found.layers] == ["w"]


REFUSED = [
    ({}, "fitted on data", "--data synthetic"),
    ({"data": CALIB, "format": ("nbits",)}, "does not store --weights int8", "int4-block32"),
    ({"data": CALIB, "format": ("qdq", "dynamic")}, "two forms", "choose one"),
    ({"data": CALIB, "format": ("dynamic",), "activations": "int8"}, "has no --activations int8", "uint8"),
    ({"data": CALIB, "weights": "uint8", "activations": "int8"}, "no kernels", "--weights int8"),
    ({"data": CALIB, "exclude": ("*",)}, "leave nothing", "inspect"),
    ({"data": CALIB, "test": CALIB}, "has no labels", "labelled"),
]  # fmt: skip


MIXED = ([op("Conv", "x", "w", out="h"), op("Flatten", "h", out="r"), op("MatMul", "r", "v")],
         {"w": f(6, 4, 1, 1), "v": f(24, 6)}, ["N", 4, 2, 2])  # fmt: skip
FLOAT = [
    # what is said of the weights that stay floating-point numbers
    (
        MIXED,
        {"format": ("dynamic",)},
        "14.3 % of the weights stay in floating point (1 of Conv: w); --format dynamic is of",
    ),
    (MIXED, {"exclude": ("v",)}, "85.7 % of the weights stay in floating point (1 of MatMul: v)"),
    (MIXED, {}, ""),
]


@pytest.mark.parametrize(("net", "changes", "note"), FLOAT)
def test_how_much_stays_in_floating_point_is_told(net: Any, changes: dict[str, Any], note: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=f(32, *net[2][1:]))
    path, data = made(tmp_path / "m.onnx", *net), str(tmp_path / "d.npz")
    found = prunecli.quantize(path, data=data, output=str(tmp_path / "q.onnx"), timing=False, **changes)
    assert [each[: len(note)] for each in found.notes if "stay in floating point" in each] == [note] * bool(note)


@pytest.mark.parametrize(("changes", "message", "hint"), REFUSED)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    with np.load(CALIB) as data:
        np.savez(tmp_path / "calib.npz", **{name: data[name][:32] for name in data.files if name != "labels"})
    given = {name: tmp_path / "calib.npz" if value is CALIB else value for name, value in changes.items()}
    with pytest.raises(PruneError, match=message) as caught:
        prunecli.quantize(MLP, output=str(tmp_path / "q.onnx"), threads=1, timing=False, **given)
    assert hint in caught.value.hint and not (tmp_path / "q.onnx").exists()


NOTHING = ([op("Relu", "x")], {}, ["N", 4])
NAN = ([op("MatMul", "x", "w")], {"w": np.full((4, 4), np.nan, np.float32)}, ["N", 4])


@pytest.mark.parametrize(("net", "message"), [(NOTHING, "can be quantised"), (NAN, "NaN or infinity")])
def test_models_that_cannot_be_quantised_are_refused(net: Any, message: str, tmp_path: Path) -> None:
    path = made(tmp_path / "m.onnx", *net)
    np.savez(tmp_path / "d.npz", x=f(32, 4))
    with pytest.raises(PruneError, match=message) as caught:
        prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), timing=False)
    assert caught.value.hint and not (tmp_path / "q.onnx").exists()


def test_of_few_samples_it_is_said_that_all_were_fitted_to(tmp_path: Path) -> None:
    nodes, constants, shape = PLAIN
    path = made(tmp_path / "m.onnx", nodes, constants, shape)
    np.savez(tmp_path / "d.npz", x=f(9, 40))
    found = prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), timing=False)
    assert "on the samples that were fitted to" in found.verification.detail
    assert any("of fewer than 16 samples" in note for note in found.notes)


def test_an_old_opset_is_raised_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    nodes, constants, shape = CONV
    path = made(tmp_path / "m.onnx", nodes, constants, shape, opset=11)
    np.savez(tmp_path / "d.npz", x=f(32, *shape[1:]))
    found = prunecli.quantize(path, data=str(tmp_path / "d.npz"), threads=1, timing=False, dry_run=True)
    assert found.output is None and sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "m.onnx"]
    assert any("the opset was raised from 11 to 13" in note for note in found.notes)


@needs_exact_integers
def test_a_file_that_does_not_hold_what_was_decided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.quantization import quantize as module

    def spoilt(graph: Any, *names: Any) -> None:
        first = next(iter(graph.weights.values()))
        first.integers.const_value = type(first.integers.const_value)(1 - first.integers.const_value.numpy())

    monkeypatch.setattr(module, "made_small", spoilt)
    with pytest.raises(PruneError, match="is not stored as it was decided"):
        prunecli.quantize(MLP, data=CALIB, output=str(tmp_path / "q.onnx"), threads=1, timing=False)
    assert not (tmp_path / "q.onnx").exists()


def test_pruning_and_rounding_are_fitted_together_and_zeros_stay(tmp_path: Path) -> None:
    found = prunecli.oneshot(MLP, data=CALIB, sparsity=0.7, quantize="int8", pack=True, test=TEST, limit=32,
                             output=str(tmp_path / "q.onnx"), threads=1)  # fmt: skip
    assert prunecli.inspect(tmp_path / "q.onnx").sparsity >= 0.699
    told = found.to_json()
    assert told["command"] == "oneshot" and told["after"]["file_bytes"] < 0.2 * told["before"]["file_bytes"]
    assert told["quantization"]["stages"]["both"]["file_bytes"] == (tmp_path / "q.onnx").stat().st_size
    assert told["quantization"]["chosen"] in told["quantization"]["errors"]
    assert "as integers" in told["verification"]["detail"] and told["output"]["path"] == str(tmp_path / "q.onnx")


def test_a_cut_model_is_quantised(tmp_path: Path) -> None:
    found = prunecli.structured(
        MLP,
        data=CALIB,
        macs=0.5,
        quantize="int8",
        limit=64,
        output=str(tmp_path / "q.onnx"),
        threads=1,
        timing=False,
        test=TEST,
    )
    assert found.after.params < 0.6 * found.before.params and found.after.file_bytes < 0.2 * found.before.file_bytes
    assert found.quantised is not None and Session.open(tmp_path / "q.onnx").inputs
    sizes = {name: one.file_bytes for name, one in found.quantised.stages.items()}
    assert sizes["float"] > sizes["pruned"] > sizes["both"] and sizes["float"] > 2 * sizes["quantised"]
    told = found.to_json()["quantization"]["stages"]
    assert all(one["metrics"]["accuracy"] > 0.5 for one in told.values()) and sizes["both"] == found.after.file_bytes
    with pytest.raises(PruneError, match=r"q\.onnx is quantised already"):
        prunecli.structured(tmp_path / "q.onnx", data=CALIB, macs=0.5, quantize="int8")
    with pytest.raises(PruneError, match="--quantize is fitted on data"):
        prunecli.structured(MLP, macs=0.5, quantize="int8")


def test_what_a_subgraph_reads_is_not_left_to_a_rounding_behind_it(tmp_path: Path) -> None:
    """The tool takes a Relu for part of the rounding that follows it, which a branch does not read."""
    value = helper.make_tensor_value_info("o", 1, None)
    branches = {
        f"{name}_branch": helper.make_graph([op("Neg", "r", out="o")], name, [], [value]) for name in ("then", "else")
    }
    nodes = [op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("If", "c", **branches)]
    path = made(tmp_path / "m.onnx", nodes, {"w": f(16, 8), "c": np.array(True)}, ["N", 16])
    np.savez(tmp_path / "d.npz", x=f(64, 16))
    found = prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), timing=False)
    assert found.errors[found.chosen] < 0.01


ENDS = ([op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v", out="a"), op("Relu", "a")],
        {"w": f(16, 8), "v": f(8, 8)}, ["N", 16])  # fmt: skip
GIVEN = ([op("MatMul", "x", "w", out="h"), op("Relu", "h", out="r"), op("MatMul", "r", "v")],
         {"w": f(16, 8), "v": f(8, 8)}, ["N", 16])  # fmt: skip
STORED = ([op("MatMul", "x", "w"), op("Identity", "w", out="h")], {"w": f(16, 8)}, ["N", 16])
ROW = (
    [op("MatMul", "x", "w", out="h"), op("Add", "h", "c")],
    {"w": f(16, 8), "c": f(1, 8)}, ["N", 16],
)  # fmt: skip
OUTPUTS = [
    # the model, its outputs beside y
    ("a bias that is a row", ROW, []),
    ("a Relu at the end", ENDS, []),
    ("what a Relu reads is given, too", GIVEN, ["h"]),
    ("a weight is given", STORED, ["h"]),
]


@needs_exact_integers
@pytest.mark.parametrize(("label", "net", "others"), OUTPUTS, ids=[case[0] for case in OUTPUTS])
def test_every_output_is_near(label: str, net: Any, others: list[str], tmp_path: Path) -> None:
    path = made(tmp_path / "m.onnx", *net)
    model = onnx.load(path)
    model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in others)
    onnx.save(model, path)
    x = np.asarray(np.random.default_rng(1).standard_normal((64, 16)), np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    found = prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), timing=False)
    wanted, got = (Session.open(p).run({"x": x}) for p in (path, tmp_path / "q.onnx"))
    assert wanted.keys() == got.keys() == {"y", *others}
    assert all(np.square(got[name] - wanted[name]).mean() < 0.01 * wanted[name].var() for name in wanted)
    assert max(found.errors.values()) < 0.01


@needs_exact_integers
def test_data_beside_the_model_and_what_is_quantised_already(tmp_path: Path) -> None:
    onnx.save(onnx.load(str(MLP)), str(tmp_path / "m.onnx"), save_as_external_data=True, size_threshold=0)
    once = {"data": CALIB, "limit": 32, "threads": 1, "timing": False}
    found = prunecli.quantize(tmp_path / "m.onnx", output=str(tmp_path / "q.onnx"), **once)
    assert found.errors[found.chosen] < 1e-3 and len(list(tmp_path.glob("q.onnx.*.data"))) == 1
    with pytest.raises(PruneError, match="is quantised already"):
        prunecli.quantize(tmp_path / "q.onnx", output=str(tmp_path / "r.onnx"), **once)
    with pytest.raises(PruneError, match="integers, which gradients do not change") as caught:
        prunecli.finetune(tmp_path / "q.onnx", data=TEST, output=str(tmp_path / "r.onnx"))
    assert "quantise it then" in caught.value.hint


def test_a_map_of_probabilities_is_kept(tmp_path: Path) -> None:
    nodes = [op("MatMul", "x", "w", out="h"), op("Add", "h", "c", out="s"), op("Softmax", "s")]
    path = made(tmp_path / "m.onnx", nodes, {"w": f(16, 8), "c": f(1, 8)}, ["N", 16])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["p"], "zip", domain="ai.onnx.ml", classlabels_int64s=range(8))
    )
    kind = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    model.graph.output.append(helper.make_value_info("p", helper.make_sequence_type_proto(kind)))
    onnx.save(model, path)
    np.savez(tmp_path / "d.npz", x=f(64, 16))
    prunecli.quantize(path, data=str(tmp_path / "d.npz"), output=str(tmp_path / "q.onnx"), timing=False)
    assert onnx.load(tmp_path / "q.onnx").graph.output[1].type == model.graph.output[1].type


@pytest.mark.parametrize(("weights", "told"), [("int8", True), ("uint8", False)])
def test_a_cpu_whose_sums_saturate_is_told(
    weights: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunecli.quantization.quantize.saturates", lambda: True)
    found = prunecli.quantize(MLP, data=CALIB, limit=32, weights=weights, output=str(tmp_path / "q.onnx"), timing=False)
    assert any("--weights uint8 does not saturate" in note for note in found.notes) == told
