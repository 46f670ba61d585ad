"""What `prune inspect` says, against numbers computed by hand or by numpy from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.inspection.inspect import inspect
from prunecli.inspection.options import InspectOptions
from prunecli.report.document import Level
from prunecli.report.render import to_terminal
from tests.tiny import REAL_MODELS, ROOT

SAMPLES = ROOT / "sample_models"

# model -> parameters, multiply-accumulates for one sample, by arithmetic on the layer sizes
MLP_MACS = 64 * 256 + 256 * 128 + 128 * 10
CNN_MACS = 64 * 9 * (24 + 2 * 24 * 24) + 16 * 9 * (24 * 48 + 2 * 48 * 48) + 480
BY_HAND = {
    "digits-mlp.onnx": (MLP_MACS + 256 + 128 + 10, MLP_MACS),
    "digits-cnn.onnx": (9 * (24 + 2 * 576 + 1152 + 2 * 2304) + 490 + 4 * (3 * 24 + 3 * 48), CNN_MACS),
    "cancer-mlp.onnx": (30 * 64 + 64 * 32 + 32 * 2 + 64 + 32 + 2 + 60, 30 * 64 + 64 * 32 + 32 * 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_totals_by_hand(name: str) -> None:
    found = inspect(SAMPLES / name)
    params, macs = BY_HAND[name]
    assert (found.totals.params, found.totals.macs) == (params, macs)
    assert sum(layer.macs or 0 for layer in found.layers) == macs
    assert sum(layer.params for layer in found.layers) == params
    assert found.totals.file_bytes == (SAMPLES / name).stat().st_size


def test_layers_say_what_the_file_says() -> None:
    path = SAMPLES / "digits-cnn.onnx"
    proto = onnx.load(path)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = inspect(path)
    assert [layer.weight for layer in found.prunable] == [
        node.input[1] for node in proto.graph.node if node.op_type in ("Conv", "Gemm")
    ]
    for layer in found.layers:
        array = stored[layer.weight]
        assert (layer.shape, layer.params, layer.bytes) == (array.shape, array.size, array.nbytes)
        assert layer.nonzero == np.count_nonzero(array)


def test_zeros_are_counted(tmp_path: Path) -> None:
    proto = onnx.load(SAMPLES / "digits-mlp.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name == "fc1.weight":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:, 2:4] = 0
            array[:, 32:] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx", InspectOptions(nm=(2, 4)))
    layer = found.prunable[0]
    assert (layer.nonzero, layer.sparsity) == (256 * 30, 34 / 64)
    assert found.sparsity == 256 * 34 / MLP_MACS  # every weight multiplies once per sample
    # 1 of 16 windows holds two zeros, 8 hold four; the other 7 hold none
    assert found.patterns["fc1.weight"].windows == 9 / 16


DIMS = [
    ({"dim": "batch=5"}, (5, 1, 8, 8), 5),
    ({"input_shape": "image:3,1,8,8"}, (3, 1, 8, 8), 3),
    ({}, (1, 1, 8, 8), 1),
]


@pytest.mark.parametrize(("dims", "shape", "factor"), DIMS)
def test_stated_dimensions(dims: dict[str, Any], shape: tuple[int, ...], factor: int) -> None:
    found = inspect(SAMPLES / "digits-cnn.onnx", InspectOptions(**dims))
    assert found.inputs == {"image": shape}
    assert found.totals.macs == factor * CNN_MACS
    assert bool(found.assumed) is (not dims)


def test_json_has_the_contract_and_what_was_asked() -> None:
    plain = inspect(SAMPLES / "digits-mlp.onnx").to_json()
    assert {"schema", "command", "model", "before", "after", "layers", "skipped", "totals"} <= set(plain)
    assert "distribution" not in plain
    assert "nm" not in plain
    full = inspect(SAMPLES / "digits-mlp.onnx", InspectOptions(histogram=True, nm=(2, 4))).to_json()
    assert full["nm"] == "2:4"
    weights = [layer for layer in full["layers"] if layer["kind"] == "weight"]
    assert [w["nm"]["satisfied"] for w in weights] == [False] * 3
    assert [sum(w["abs_weight"]["histogram"]) for w in weights] == [w["params_before"] for w in weights]
    assert [hint["wanted"] for hint in full["distribution"]["hints"]] == [0.5, 0.7, 0.9]
    assert sum(layer["share"] for layer in full["layers"]) == pytest.approx(1, abs=1e-12)


def test_what_is_not_analysed_or_no_tensor_is_told(tmp_path: Path) -> None:
    make, info, kind = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((6, 3), np.float32), "w")
    five = onnx.numpy_helper.from_array(np.ones((5, 2), np.float32), "five")
    nodes = [make("Concat", ["x", "five"], ["r"], "five rows", axis=1), make("MatMul", ["r", "w"], ["h"], "fc"),
             make("ZipMap", ["h"], ["y"], "names", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])]  # fmt: skip
    output = onnx.helper.make_value_info("y", onnx.helper.make_sequence_type_proto(
        onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(kind, []))))  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "g", [info("x", kind, ["n", 4])], [output], [weight, five])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    text = " ".join(to_terminal(inspect(tmp_path / "m.onnx").to_document(), width=300).split())
    assert "y (no tensor, as a sequence of maps)" in text
    assert "the model does not run at the sizes assumed (n of x = 1): state others with --dim" in text
    assert "Concat 'five rows'" in text


def test_the_units_of_a_graph_are_summed_up_in_json(tmp_path: Path) -> None:
    found = inspect(SAMPLES / "digits-mlp.onnx", InspectOptions(graph=tmp_path / "g.json")).to_json()["graph"]
    assert found["layers"] and not any("each" in layer for layer in found["layers"])


def test_tables_show_every_section() -> None:
    found = inspect(SAMPLES / "digits-cnn.onnx", InspectOptions(histogram=True, nm=(2, 4)))
    text = to_terminal(found.to_document())
    for piece in ("assumed", "T for 50 %", "--threshold", "0 of 7 weights", "do not divide"):
        assert piece in text


def recurrent(folder: Path) -> Path:
    """LSTM, then activations x activations: a weight pair that shares the work, and work without a weight."""
    rng = np.random.default_rng(0)
    arrays = {"W": (1, 4 * 6, 5), "R": (1, 4 * 6, 6)}
    inits = [onnx.numpy_helper.from_array(rng.random(shape, np.float32), name) for name, shape in arrays.items()]
    nodes = [
        onnx.helper.make_node("LSTM", ["x", "W", "R"], ["seq"], name="lstm", hidden_size=6),
        onnx.helper.make_node("Transpose", ["seq"], ["t"], name="turn", perm=[0, 1, 3, 2]),
        onnx.helper.make_node("MatMul", ["seq", "t"], ["y"], name="scores"),
    ]
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(nodes, "g", [info("x", kind, [7, 2, 5])], [info("y", kind, [7, 1, 2, 2])], inits)
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "lstm.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_work_is_divided_among_weights_and_counted_without_one(tmp_path: Path) -> None:
    found = inspect(recurrent(tmp_path))
    work = {layer.weight or layer.name: layer.macs for layer in found.layers}
    steps = 7 * 2 * 24
    assert work == {"W": steps * 5, "R": steps * 6, "scores": 7 * 2 * 6 * 2}
    assert found.totals.macs == sum(filter(None, work.values()))


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL_MODELS)
def test_real_models(path: Path) -> None:
    found = inspect(path, InspectOptions(nm=(2, 4)))
    assert found.totals.macs
    assert found.prunable
    assert sum(layer.macs or 0 for layer in found.layers) == found.totals.macs
    assert sum(layer.params for layer in found.layers) <= found.totals.params


@pytest.mark.parametrize(("at", "rest"), [(0, "5 other operators"), (-2, "1 other operator")])
def test_where_shapes_end_is_said_once(at: int, rest: str, tmp_path: Path) -> None:
    """What follows from an operator that nobody knows is counted, not listed."""
    proto = onnx.load(SAMPLES / "digits-mlp.onnx")
    own = proto.graph.node[at]
    own.domain, own.op_type, own.name = "acme", "Own", "mine"
    proto.opset_import.add(domain="acme", version=1)
    onnx.save(proto, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert len(found.notes) == 2
    assert found.notes[0].startswith("no shape after Own 'mine': No schema registered")
    assert found.notes[1] == f"nor after {rest}"
    assert found.totals.macs is None


def test_weights_that_are_not_finite_are_named_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    proto = onnx.load(SAMPLES / "digits-mlp.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name in ("fc1.weight", "fc2.bias"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.flat[-1] = np.nan if tensor.name == "fc1.weight" else -np.inf
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx", InspectOptions(histogram=True, nm=(2, 4)))
    assert found.notes == ["weight 'fc1.weight' holds NaN or infinity", "weight 'fc2.bias' holds NaN or infinity"]
    assert found.distribution is not None
    assert set(found.distribution.spreads) == {layer.weight for layer in found.prunable} - {"fc1.weight"}
    assert "holds NaN" in to_terminal(found.to_document(), width=100, color=False, level=Level.DETAIL)
