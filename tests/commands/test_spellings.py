"""A network gives the same result in every form that exporters write it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.numpy_helper import from_array, to_array

from prunecli.data.options import DataOptions
from prunecli.model import load
from prunecli.model.constants import behind, is_constant
from prunecli.runtime import Session
from prunecli.structures.structured import structured
from prunecli.training.finetune import finetune
from prunecli.zeros.oneshot import oneshot
from tests.spellings import PARAMETERS, SPELLINGS, cnn, data

SPELLED = [name for name in SPELLINGS if name != "plain"]


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    return Session.open(path).run({"x": x})["y"]


def inputs(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["x"]


@pytest.mark.parametrize("spelling", SPELLED)
def test_the_constant_behind_an_input_is_found(spelling: str, tmp_path: Path) -> None:
    values: list[Any] = []
    for name in ("plain", spelling):
        graph = load(cnn(tmp_path / f"{name}.onnx", name)).ir.graph
        values.append({v.name: v for node in graph for v in node.inputs if v is not None})
    for name in PARAMETERS:
        plain, found = behind(values[0][name]), behind(values[1][name])
        assert plain is not None and found is not None and found.is_own, name
        assert (
            np.array_equal(found.array(), plain.array()) and found.shape == plain.shape and found.dtype == plain.dtype
        )
        assert np.array_equal(found.stored(found.array()), found.tensor.numpy())
    weight = behind(values[1]["w1"])
    assert weight is not None and [weight.axis(i) for i in range(4)] == ([3, 2, 1, 0] if weight.steps else [0, 1, 2, 3])


PARTS = {
    # of a vector `v` of 8 elements
    "Slice": [helper.make_node("Slice", ["v", "four", "eight"], ["part"])],
    "Split": [helper.make_node("Split", ["v"], ["part", "other"], axis=0)],
    "Concat": [helper.make_node("Concat", ["v", "v"], ["part"], axis=0)],
    "Concat of a moved one": [
        helper.make_node("Identity", ["v"], ["same"]),
        helper.make_node("Concat", ["same", "four"], ["joined"], axis=0),
        helper.make_node("Cast", ["joined"], ["part"], to=1),
    ],
}


@pytest.mark.parametrize("way", PARTS)
def test_a_part_is_constant_but_no_stored_tensor(way: str, tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("y", 1, None)
    stored = {"v": np.arange(8, dtype=np.float32), "four": np.array([4.0 if "moved" in way else 4]), "eight": [8]}
    tensors = [from_array(np.asarray(a, np.float32 if n == "v" else None), n) for n, a in stored.items()]
    nodes = [*PARTS[way], helper.make_node("Neg", ["part"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [out], tensors)), tmp_path / "m.onnx")
    value = _value(tmp_path / "m.onnx", "part")
    assert behind(value) is None and is_constant(value) and not is_constant(value.uses()[0].node.outputs[0])


def cut(path: Path, spelling: str) -> Any:
    given = DataOptions(str(data(path / "data.npz")))
    out = path / f"{spelling}.cut.onnx"
    return structured(cnn(path / f"{spelling}.onnx", spelling), ratio=0.4, data=given, output=out)


def pruned(path: Path, spelling: str) -> Any:
    given = DataOptions(str(data(path / "data.npz")))
    out = path / f"{spelling}.cut.onnx"
    return oneshot(cnn(path / f"{spelling}.onnx", spelling), sparsity=0.65, data=given, output=out)


@pytest.mark.parametrize("spelling", SPELLED)
@pytest.mark.parametrize("command", [cut, pruned])
def test_pruned_and_refitted_as_the_plain_form(command: Any, spelling: str, tmp_path: Path) -> None:
    """float32 sums in another order, and half precision where that is what is stored: 1e-3 of the outputs."""
    first, second = command(tmp_path, "plain"), command(tmp_path, spelling)
    x = inputs(tmp_path / "data.npz")
    wanted, got = (outputs(Path(one.output.path), x) for one in (first, second))
    original = outputs(tmp_path / "plain.onnx", x)
    limit = 2e-2 if spelling == "half" else 2e-3
    assert np.abs(got - wanted).max() < limit * np.abs(wanted).max()
    assert np.abs(wanted - original).max() > 3 * limit * np.abs(wanted).max(), "something was cut"


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLED)
def test_statistics_are_trained_as_those_of_the_plain_form(spelling: str, tmp_path: Path) -> None:
    found = []
    for name in ("plain", spelling):
        path, out = cnn(tmp_path / f"{name}.onnx", name), tmp_path / f"{name}.tuned.onnx"
        given = {"epochs": 1, "rate": 1e-3, "batch_size": 16, "val_split": 0.0, "bn": "update", "output": out}
        finetune(path, data=data(tmp_path / "data.npz"), teacher=cnn(tmp_path / "teacher.onnx"), **given)
        graph = load(out).ir.graph
        values = {v.name: v for node in graph for v in node.inputs if v is not None}
        found.append([behind(values[n]).array() for n in ("m", "v")])  # type: ignore[union-attr]
    still = [behind(v).array() for v in (_value(tmp_path / "plain.onnx", n) for n in ("m", "v"))]  # type: ignore[union-attr]
    for plain, other, before in zip(*found, still, strict=True):
        assert np.abs(plain - before).max() > 0.05 and np.allclose(other, plain, atol=2e-3)


def test_statistics_that_two_layers_share_stay(tmp_path: Path) -> None:
    """Exporters store equal tensors once, and feed the others through Identity."""
    model = onnx.load(cnn(tmp_path / "plain.onnx"))
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    relu = next(node for node in model.graph.node if node.input[0] == norm.output[0])
    place = list(model.graph.node).index(relu)
    relu.input[0] = "n2"
    alike = [helper.make_node("Identity", [name], [f"{name}.same"]) for name in norm.input[1:]]
    second = helper.make_node("BatchNormalization", ["n1", *(f"{name}.same" for name in norm.input[1:])], ["n2"])
    for number, node in enumerate([*alike, second]):
        model.graph.node.insert(place + number, node)
    onnx.save(model, tmp_path / "two.onnx")
    tuned = finetune(tmp_path / "two.onnx", data=data(tmp_path / "data.npz"), teacher=tmp_path / "two.onnx", epochs=1,
                     bn="update", rate=1e-3, batch_size=16, val_split=0.0, output=tmp_path / "out.onnx")  # fmt: skip
    before, after = (
        {t.name: to_array(t) for t in onnx.load(tmp_path / n).graph.initializer} for n in ("two.onnx", "out.onnx")
    )
    assert all((before[name] == after[name]).all() for name in ("m", "v"))
    assert sum("kept its statistics" in note for note in tuned.notes) == 2


def test_statistics_that_are_parts_of_others_are_read_as_such(tmp_path: Path) -> None:
    """A BatchNormalization reads the second halves of what is stored: cut as the plain form, its statistics stay."""
    model = onnx.load(cnn(tmp_path / "plain.onnx"))
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    for tensor in model.graph.initializer:
        if tensor.name in norm.input[1:]:
            array = to_array(tensor)
            tensor.CopyFrom(from_array(np.concatenate([array[::-1] * 3 + 1, array]), tensor.name))
    size = len(array)
    model.graph.initializer.extend([from_array(np.array([size]), "from"), from_array(np.array([2 * size]), "to")])
    for place, name in enumerate(list(norm.input)[1:], 1):
        model.graph.node.insert(0, helper.make_node("Slice", [name, "from", "to"], [f"{name}.half"]))
        norm.input[place] = f"{name}.half"
    onnx.save(model, tmp_path / "halves.onnx")
    x = data(tmp_path / "data.npz")
    before = outputs(tmp_path / "plain.onnx", inputs(x))
    assert np.array_equal(outputs(tmp_path / "halves.onnx", inputs(x)), before)
    given = {"ratio": 0.4, "round_to": 1, "data": x}
    structured(tmp_path / "halves.onnx", output=tmp_path / "cut.onnx", **given)
    assert np.square(outputs(tmp_path / "cut.onnx", inputs(x)) - before).mean() < np.square(before).mean()
    tuned = finetune(tmp_path / "halves.onnx", data=x, teacher=tmp_path / "plain.onnx", epochs=1, batch_size=16,
                     bn="update", val_split=0.0, output=tmp_path / "tuned.onnx")  # fmt: skip
    assert any("kept its statistics" in note for note in tuned.notes)


def _value(path: Path, name: str) -> Any:
    return next(v for node in load(path).ir.graph for v in node.inputs if v is not None and v.name == name)
