"""A walk gives every value that one run of the whole model gives, whatever is asked for on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from prunecli.calibration.layerwise import Store, Walk, working_form
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.runtime import Execution, Session
from tests.tiny import ROOT, SHARED

DIGITS = ROOT / "sample_models" / "digits-cnn.onnx"


def everything(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = ir.to_proto(model)
    return Session.open(proto.SerializeToString(), outputs="all", mode="plain").run(feed)


def outputs_of(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.outputs]


def feeds_of(path: Path, count: int) -> list[dict[str, np.ndarray]]:
    session = Session.open(path)
    return [session.random_inputs(seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("limit", "again"), [(1 << 30, 64), (1000, 64), (1000, 3), (1000, 0)], ids=["memory", "again", "both", "files"]
)
def test_values_are_those_of_the_whole_model(limit: int, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.calibration.layerwise.MOST_AGAIN", again)
    model, feeds = working_form(load(DIGITS).ir), feeds_of(DIGITS, 2)
    wanted = [everything(model, feed) for feed in feeds]
    names = [v.name or "" for node in model.graph for v in node.outputs][::2]
    with Store(limit) as store:
        walk = Walk(model, feeds, store)
        for name in names:
            walk.reach([name])
            for batch, value in enumerate(walk.arrays(name)):  # fused operators round otherwise
                np.testing.assert_allclose(value, wanted[batch][name], rtol=1e-4, atol=1e-4)
            walk.release(name)
        walk.reach(outputs_of(model))
        assert (store.spilled > 0) == (again < 64)
        walk.close()
        assert store.held == 0


@pytest.mark.parametrize("limit", [1 << 30, 1000], ids=["memory", "again"])
def test_batches_side_by_side_give_the_same_values(limit: int) -> None:
    """To the bit: each batch is computed by one thread, whichever it is."""
    model, feeds = working_form(load(DIGITS).ir), feeds_of(DIGITS, 5)
    names = [v.name or "" for node in model.graph for v in node.outputs]
    weights = [name for name, value in model.graph.initializers.items() if len(value.shape or ()) > 1]
    other = [{name: np.asarray(model.graph.initializers[name].const_value.numpy()) * k for name in weights[-1:]}
             for k in (0, 2)]  # fmt: skip
    found = []
    for threads in (1, 3):
        with Store(limit) as store:
            walk, values = Walk(model, feeds, store, open_session=Execution(threads=threads).open), []
            for name in names[: len(names) // 2]:
                walk.reach([name])
                values += [np.array(value).tobytes() for value in walk.arrays(name)]
            ahead = list(walk.ahead([name, *outputs_of(model)], other))
            assert len(ahead) == 5 and all(len(one) == 2 for one in ahead)
            values += [value.tobytes() for one in ahead for each in one for value in each.values()]
            walk.close()
        found.append(values)
    assert found[0] == found[1] and len(set(found[0])) > len(found[0]) / 2


def test_weights_between_quantised_activations_are_not_rounded(tmp_path: Path) -> None:
    """As onnxruntime does with them unless told otherwise: an error of a hundredth of the values."""
    rng, nodes, last = np.random.default_rng(0), [], "x"
    stored = [numpy_helper.from_array(np.float32(0.03), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    for k in range(3):
        stored.append(numpy_helper.from_array(rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8, f"w{k}"))
        nodes += [
            helper.make_node("QuantizeLinear", [last, "s", "z"], [f"q{k}"]),
            helper.make_node("DequantizeLinear", [f"q{k}", "s", "z"], [f"d{k}"]),
            helper.make_node("Conv", [f"d{k}", f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1]),
        ]
        last = f"c{k}"
    values = [helper.make_tensor_value_info(name, 1, [2, 8, 6, 6]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model, feed = working_form(load(path).ir), feeds_of(path, 1)[0]
    with Store(1 << 30) as store:
        walk = Walk(model, [feed], store)
        walk.reach([last])
        wanted = everything(model, feed)[last]
        step = np.abs(walk.read(last, 0) - wanted)
        assert np.median(step) < 1e-5 and float(step.mean()) < 1e-3  # a value at the edge of a step may fall either way
        walk.close()


@pytest.mark.parametrize("name", ["hf_bert", "hf_gpt2.dynamo", "hm_lstm", "hm_unet.dynamo", "hf_llama.dynamo"])
def test_real_graphs(name: str) -> None:
    path = SHARED / "models" / "arch" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the shared models are not here")
    model, feeds = working_form(load(path).ir), feeds_of(path, 1)
    values = [v.name or "" for node in model.graph for v in node.outputs if node.op_type in ("MatMul", "Conv", "Add")]
    with Store() as store:
        walk = Walk(model, feeds, store)
        for value in values[:: max(len(values) // 8, 1)]:
            walk.reach([value])
        walk.reach(outputs_of(model))
        wanted = Session.open(path).run(feeds[0])
        for output in outputs_of(model):  # pieces are fused otherwise than the whole
            np.testing.assert_allclose(walk.read(output, 0), wanted[output], rtol=1e-3, atol=1e-4)


def test_a_changed_weight_is_seen_by_what_follows_only() -> None:
    model, feeds = working_form(load(DIGITS).ir), feeds_of(DIGITS, 1)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    first, second = (node.outputs[0].name or "" for node in convs[:2])
    before = everything(model, feeds[0])
    with Store() as store:
        walk = Walk(model, feeds, store)
        walk.reach([first])
        np.testing.assert_allclose(walk.read(first, 0), before[first], rtol=1e-4, atol=1e-4)
        for conv in convs[:2]:
            kernel = conv.inputs[1]
            assert kernel is not None and kernel.const_value is not None
            kernel.const_value = ir.tensor(kernel.const_value.numpy() * 2)
        walk.reach([second])
        after = everything(model, feeds[0])[second]  # the first kernel of this one is doubled, too
        assert np.abs(walk.read(second, 0) - after).max() > 1e-3 < np.abs(walk.read(second, 0) - before[second]).max()


def test_sub_graphs_see_what_they_capture(tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Mul", ["a", "two"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Less", ["s", "two"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    value = helper.make_tensor_value_info("x", 1, [3])
    two = numpy_helper.from_array(np.float32(2), "two")
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("y", 1, None)], [two])
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feeds = [{"x": np.array([0.5, -1, 1], np.float32)}, {"x": np.array([5, 5, 1], np.float32)}]
    with Store() as store:
        walk = Walk(working_form(load(path).ir), feeds, store)
        walk.reach(["a"])
        walk.reach(["c"])
        walk.reach(["y"])
        np.testing.assert_array_equal(walk.read("y", 0), [1, 0, 2])
        np.testing.assert_array_equal(walk.read("y", 1), [-5, -5, -1])


def test_what_is_gone_is_not_invented() -> None:
    model = working_form(load(DIGITS).ir)
    first = next(iter(model.graph)).outputs[0].name or ""
    with Store() as store:
        walk = Walk(model, feeds_of(DIGITS, 1), store)
        walk.reach(outputs_of(model))
        with pytest.raises(PruneError, match="not held"):
            walk.reach([first])
        assert walk.moved(model.graph[0].inputs[1].name or "", outputs_of(model)) == []  # no longer to be made
        with pytest.raises(PruneError, match="not held"):
            next(walk.ahead([first]))
        kept = Walk(model, feeds_of(DIGITS, 1), store, keep=[first])
        kept.reach(outputs_of(model))
        assert kept.read(first, 0).any()


@pytest.mark.parametrize("count", [1, 2], ids=["a constant", "an input"])
@pytest.mark.parametrize("stage", ["before the layer", "behind the layer"])
def test_other_contents_are_looked_ahead_at(stage: str, count: int) -> None:
    """The same as a model that holds them gives; the walk's own values stay."""
    model, feeds = working_form(load(DIGITS).ir), feeds_of(DIGITS, 2)
    conv = [node for node in model.graph if node.op_type == "Conv"][1]
    kernel, outputs = conv.inputs[1], outputs_of(model)
    assert kernel is not None and kernel.const_value is not None and kernel.name
    contents = kernel.const_value.numpy()
    data, made = conv.inputs[0].name or "", conv.outputs[0].name or ""  # type: ignore[union-attr]
    with Store() as store:
        walk = Walk(model, feeds, store)
        walk.reach([data] if stage == "before the layer" else [data, made])
        variants = [{kernel.name: contents * (2 + n)} for n in range(count)]
        assert walk.moved(kernel.name, [*outputs, data, made]) == [*outputs, made]
        found = list(walk.ahead([*outputs, made, data], variants))
        plain = list(walk.ahead(outputs, batches=[1]))
        walk.reach([*outputs, made])
        now = [{name: walk.read(name, batch) for name in (*outputs, made)} for batch in range(2)]
    for batch, runs in enumerate(found):
        for number, run in enumerate(runs):
            kernel.const_value = ir.tensor(contents * (2 + number))
            wanted = everything(model, feeds[batch])
            for name, value in run.items():  # fused operators round otherwise
                np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-4)
        kernel.const_value = ir.tensor(contents)
        wanted = everything(model, feeds[batch])
        for name, value in now[batch].items():
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-4)
    assert len(plain) == 1
    np.testing.assert_allclose(plain[0][0][outputs[0]], wanted[outputs[0]], rtol=1e-4, atol=1e-4)
