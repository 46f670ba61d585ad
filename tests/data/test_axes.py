"""Samples on another axis than the first: states of recurrent models, (2, batch, 128)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.data import random_data
from prunecli.data.axes import batch_axes, parse_axes
from prunecli.data.dataset import shared
from prunecli.errors import PruneError
from prunecli.runtime import Session
from tests.data import open_text
from tests.model.build import floats, info, node, save_proto
from tests.tiny import spec

AXES = [
    # inputs, outputs, given, axis of each
    (["x: float32 (batch, 512)", "state: float32 (2, batch, 128)"], ["p: float32 (batch, 1)", "n: float32 (2, batch, 128)"],
     {}, [0, 1, 0, 1]),
    (["x: float32 (k, 512)", "state: float32 (2, k, 128)"], ["n: float32 (2, k, 128)"], {}, [0, 1, 1]),
    (["x: float32 (seq, batch, 80)", "h: float32 (1, batch, 8)"], ["y: float32 (seq, batch, 4)"], {}, [1, 1, 1]),
    (["x: float32 (S, N, 5)", "h: float32 (1, N, 8)"], ["y: float32 (S, N, 3)", "hn: float32 (1, N, 8)"], {}, [1, 1, 1, 1]),
    (["x: float32 (N, S, 5)", "where: float32 (1, S, 5)"], ["y: float32 (N, S, 3)"], {}, [0, 0, 0]),
    (["x: float32 (?, 512)", "h: float32 (2, N, 64)"], ["y: float32 (?, 1)"], {}, [0, 1, 0]),
    (["x: float32 (B, N, 3)"], ["y: float32 (B, 10)"], {}, [0, 0]),  # a cloud of N points
    (["x: float32 (1, 512)", "state: float32 (2, 1, 128)"], ["y: float32 (1, 1)"], {"state": 1}, [0, 1, 0]),
    (["x: float32 (1, 512)", "sr: int64 ()"], ["y: float32 (1, 1)"], {}, [0, 0, 0]),
    (["x: float32 (1, T, 80)"], ["y: float32 (1, T, 4)"], {}, [0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "outputs", "given", "wanted"), AXES)
def test_axes_are_found_by_names(
    inputs: list[str], outputs: list[str], given: dict[str, int], wanted: list[int]
) -> None:
    found = batch_axes([*map(spec, inputs)], [*map(spec, outputs)], given)
    assert [found.get(text.split(":")[0], 0) for text in (*inputs, *outputs)] == wanted


@pytest.mark.parametrize("text", ["state", "state=", "=1", "state=-1", "state=one"])
def test_what_is_no_axis_is_refused(text: str) -> None:
    with pytest.raises(PruneError, match="--batch-axis"):
        parse_axes([text])


@pytest.mark.parametrize("given", [{"stat": 1}, {"state": 3}])
def test_axes_that_are_not_there_are_refused(given: dict[str, int]) -> None:
    assert parse_axes(["state=1", "a=b=0"]) == {"state": 1, "a=b": 0}
    with pytest.raises(PruneError, match="--batch-axis"):
        batch_axes([spec("state: float32 (2, batch, 128)")], [], given)


WIDTH, HIDDEN = 6, 5


def detector(batch: str | int = "batch") -> onnx.ModelProto:
    """Voice activity: p = sigmoid(relu(x w1 + h0 + h1) w2), and the state moves on: h' = h + x w3."""
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]), node("Split", ["state"], ["h0", "h1"], axis=0),
        node("Squeeze", ["h0", "zero"], ["s0"]), node("Squeeze", ["h1", "zero"], ["s1"]),
        node("Add", ["a", "s0"], ["b"]), node("Add", ["b", "s1"], ["c"]), node("Relu", ["c"], ["r"]),
        node("MatMul", ["r", "w2"], ["q"]), node("Sigmoid", ["q"], ["p"]),
        node("MatMul", ["x", "w3"], ["d"]), node("Relu", ["d"], ["e"]), node("MatMul", ["e", "w4"], ["f"]),
        node("Add", ["state", "f"], ["moved"]),
    ]  # fmt: skip
    weights = {"w1": floats(WIDTH, HIDDEN), "w2": floats(HIDDEN, 3, seed=1), "w3": floats(WIDTH, 8, seed=2),
               "w4": floats(8, HIDDEN, seed=3), "zero": np.array([0])}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [info("x", [batch, WIDTH]), info("state", [2, batch, HIDDEN])],
        [info("p", [batch, 3]), info("moved", [2, batch, HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


COUNT = 7


def samples() -> dict[str, Any]:
    return {"x": floats(COUNT, WIDTH, seed=4), "state": floats(2, COUNT, HIDDEN, seed=5)}


def at_once(session: Session, arrays: dict[str, Any]) -> dict[str, Any]:
    return {k: np.moveaxis(v, 1, 0) if k == "moved" else v for k, v in session.run(arrays).items()}


@pytest.mark.parametrize(("batch", "size"), [("batch", 2), ("batch", 3), ("n", 2), (2, 2), (1, 4)])
def test_batches_are_cut_and_joined_on_their_axes(batch: str | int, size: int, tmp_path: Path) -> None:
    """Also where the last batch is incomplete, or as long as the first axis of the state."""
    np.savez(tmp_path / "d.npz", **samples())
    session = Session.open(save_proto(detector(batch), tmp_path))
    given = {"state": 1, "moved": 1} if isinstance(batch, int) else {}
    data = open_text(str(tmp_path / "d.npz"), session.inputs, outputs=session.outputs, batch_axes=given)
    assert len(data) == COUNT
    parts: dict[str, list[Any]] = {}
    for each in data.batches(size):
        for name, value in session.run(each.feed).items():
            parts.setdefault(name, []).append(each.trim(name, value))
    free = Session.open(save_proto(detector(), tmp_path, "free.onnx"))
    for name, wanted in at_once(free, samples()).items():
        assert np.allclose(np.concatenate(parts[name]), wanted, atol=1e-6), name


def test_samples_are_chosen_on_their_axes(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **samples())
    session = Session.open(save_proto(detector(), tmp_path))
    data = open_text(str(tmp_path / "d.npz"), session.inputs, limit=5)
    assert len(data) == 5
    feed = next(data.select(np.array([4, 1])).batches(2)).feed
    assert np.array_equal(feed["state"], samples()["state"][:, [4, 1]])
    assert np.array_equal(feed["x"], samples()["x"][[4, 1]])
    first, second = data.split(0.4)
    assert (shared(first, second), shared(first, data)) == (0, 2)


WRONG = [
    # the state as it is given, what is said
    (floats(COUNT, 2, HIDDEN), "samples of shape"),
    (floats(COUNT, 1, HIDDEN), "samples of shape"),
    (floats(COUNT, HIDDEN), "has the shape"),
    (floats(2, COUNT - 1, HIDDEN), "differ in their number of samples"),
]


@pytest.mark.parametrize(("state", "said"), WRONG, ids=range(len(WRONG)))
def test_other_layouts_are_refused(state: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=samples()["x"], state=state)
    session = Session.open(save_proto(detector(), tmp_path))
    with pytest.raises(PruneError, match=said):
        open_text(str(tmp_path / "d.npz"), session.inputs)


def test_a_loader_yields_batches_or_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = samples()
    np.savez("d.npz", **whole)
    Path("one.py").write_text(
        "import numpy as np\n"
        "d = np.load('d.npz')\n"
        "def batches():\n    for i in (0, 3):\n        yield {'x': d['x'][i:i+3], 'state': d['state'][:, i:i+3]}\n"
        "def singles():\n    for i in range(6):\n        yield {'x': d['x'][i], 'state': d['state'][:, i]}\n"
    )
    session = Session.open(save_proto(detector(), tmp_path))
    for name in ("batches", "singles"):
        feed = next(open_text(f"one.py:{name}", session.inputs).batches(6)).feed
        assert np.array_equal(feed["state"], whole["state"][:, :6]), name


def test_random_samples_lie_on_their_axes(tmp_path: Path) -> None:
    session = Session.open(save_proto(detector(), tmp_path))
    data = random_data(session.inputs, 2, batch=4, outputs=session.outputs)
    assert len(data) == 8
    each = next(data.batches())
    assert each.feed["state"].shape == (2, 4, HIDDEN)
    assert each.trim("moved", session.run(each.feed)["moved"]).shape == (4, 2, HIDDEN)


@pytest.mark.slow
def test_commands_see_the_same_model_whatever_the_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **samples(), labels=np.arange(COUNT) % 3)
    path, data = save_proto(detector(), tmp_path), str(tmp_path / "d.npz")
    pruned = tmp_path / "p.onnx"
    prunecli.structured(path, ratio=0.5, data=data, output=pruned, batch_size=2)
    figures = [
        prunecli.evaluate(pruned, path, data=data, batch_size=n, latency=False).to_json()["fidelity"] for n in (2, 7)
    ]
    assert figures[0]["cosine"] == pytest.approx(figures[1]["cosine"], abs=1e-6)
    for size in (2, 7):
        found = prunecli.compare(path, path, data=data, batch_size=size)
        assert found.fidelity.worst()["max_abs"] == 0
    assert prunecli.oneshot(path, data=data, sparsity=0.5, output=tmp_path / "o.onnx").verification.kind == "exact"
    assert prunecli.gradient(path, data=data, sparsity=0.5, output=tmp_path / "g.onnx").verification.kind == "exact"
