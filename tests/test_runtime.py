"""The wrapper of onnxruntime: results, element types, errors in one line, and silence."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli import runtime
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.model.external_data import read_proto
from prunecli.runtime import MOST_THREADS, Execution, Session, TimedOutError, providers
from tests.tiny import model, write

RELU = "g (float[N,2] x) => (float[N,2] y) { h = Neg(x)  y = Relu(h) }"
X = np.array([[1, -2], [-3, 4]], np.float32)


def test_inputs_and_outputs_are_described() -> None:
    session = Session.open(model("g (float[N,2] x, int64[3] i, string[M] t) => (float[N,2] y) { y = Relu(x) }"))
    assert [s.describe() for s in session.inputs] == ["x: float32 (N, 2)", "i: int64 (3)", "t: str (M)"]
    assert [s.name for s in session.outputs] == ["y"]
    assert session.provider == "CPUExecutionProvider"
    assert "CPUExecutionProvider" in providers()


@pytest.mark.parametrize(
    "options", [{}, {"mode": "plain"}, {"mode": "low memory"}, {"mode": "training"}, {"threads": 1}]
)
def test_runs(options: dict[str, bool]) -> None:
    assert np.array_equal(Session.open(model(RELU), **options).run({"x": X})["y"], np.maximum(-X, 0))


def test_returns_intermediate_values() -> None:
    every = Session.open(model(RELU), outputs="all").run({"x": X})
    assert np.array_equal(every["h"], -X)
    assert np.array_equal(every["y"], np.maximum(-X, 0))
    chosen = Session.open(model(RELU), outputs=["h"])
    assert list(chosen.run({"x": X}, ["h"])) == ["h"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "float64"])
def test_element_types_that_numpy_lacks(dtype: str) -> None:
    names = {"float8_e4m3fn": "float8e4m3fn", "float64": "double"}
    text = f"g ({names.get(dtype, dtype)}[N] x) => ({names.get(dtype, dtype)}[N] y) {{ y = Identity(x) }}"
    session = Session.open(model(text, opset=19))
    x = np.array([1, -2.5, 0], np.float32).astype(getattr(ml_dtypes, dtype, dtype))
    y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert np.array_equal(y.astype(np.float32), x.astype(np.float32))


def test_external_data_of_files_and_of_models_in_memory(tmp_path: Path) -> None:
    proto = onnx.load_from_string(
        model("g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> { h = MatMul(x, w)  y = Relu(h) }")
    )
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float32), "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    expected = np.maximum(X @ np.array([[1, 2], [3, 4]], np.float32), 0)
    assert np.array_equal(Session.open(path).run({"x": X})["y"], expected)
    assert np.array_equal(Session.open(path, outputs=["h"]).run({"x": X})["y"], expected)
    (tmp_path / "store").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "store" / "w.bin")
    (tmp_path / "w.bin").symlink_to("store/w.bin")
    for made in (load(path).ir, read_proto(path)):
        assert np.array_equal(Session.open(made).run({"x": X})["y"], expected)
    assert np.array_equal(Session.open(path, outputs=["h"]).run({"x": X})["y"], expected)
    inner = onnx.helper.make_node("Constant", [], ["w"], value=proto.graph.initializer.pop(), name="inner")
    proto.graph.node.insert(0, inner)
    path.write_bytes(proto.SerializeToString())
    assert np.array_equal(Session.open(path).run({"x": X})["y"], expected)  # of an attribute, and behind a link
    with pytest.raises(PruneError, match=r"'w\.bin' of w is not resolved"):
        Session.open(onnx.load(path, load_external_data=False))


def test_bound_arrays_are_read_and_written_in_place() -> None:
    x, y = X.copy(), np.empty_like(X)
    run = Session.open(model(RELU)).bind({"x": x}, {"y": y})
    for scale in (1, 2):
        x[:] = scale * X
        run()
        assert np.array_equal(y, np.maximum(-scale * X, 0))


def test_prepared_run_is_the_same_run() -> None:
    session = Session.open(model(RELU))
    assert np.array_equal(session.prepared({"x": X}).run()[0], np.maximum(-X, 0))
    with pytest.raises(PruneError):
        session.prepared({"x": X.astype(np.int64)})


def test_overridable_weights_may_be_fed() -> None:
    proto = onnx.load_from_string(model("g (float[2] x) => (float[2] y) <float[2] w = {1, 1}> { y = Add(x, w) }"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2]))
    session = Session.open(proto.SerializeToString())
    x = np.zeros(2, np.float32)
    assert [s.name for s in session.inputs] == ["x"]
    assert session.run({"x": x, "w": x + 5})["y"].tolist() == [5, 5]


ERRORS = {
    "garbage": (lambda p: Session.open(b"not a model"), "cannot open the model"),
    "missing file": (lambda p: Session.open(p / "no.onnx"), "cannot open .*no.onnx"),
    "unknown provider": (
        lambda p: Session.open(model(RELU), provider="tpu"),
        "provider tpu is not available",
    ),
    "unknown value": (lambda p: Session.open(model(RELU), outputs=["q"]), "computes no value named q"),
    "missing input": (lambda p: Session.open(model(RELU)).run({}), "the input x is missing"),
    "unknown input": (lambda p: Session.open(model(RELU)).run({"x": X, "z": X}), "no input named z"),
    "wrong type": (
        lambda p: Session.open(model(RELU)).run({"x": X.astype(np.int32)}),
        "expected: .tensor.float",
    ),
    "wrong shape": (lambda p: Session.open(model(RELU)).run({"x": X[:, :1]}), "Got: 1 Expected: 2"),
    "fails while running": (
        lambda p: Session.open(model("g (int64[N] i) => (float[N] y) <float[2] w = {1, 2}> { y = Gather(w, i) }")).run(
            {"i": np.array([9])}
        ),
        "indices element out of data bounds",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_nothing_else_is_printed(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    action, message = ERRORS[case]
    with pytest.raises(PruneError, match=message) as caught:
        action(tmp_path)
    assert "\n" not in caught.value.message
    assert "onnxruntime_src" not in caught.value.message
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")  # onnxruntime's own log lines would appear here


def test_opens_paths(tmp_path: Path) -> None:
    session = Session.open(write(tmp_path / "m.onnx", RELU))
    assert session.random_inputs()["x"].shape == (1, 2)


ENDLESS = """g (float[N,2] x) => (float[N,2] y) <bool go = {1}, float[2,2] w = {1,2,3,4}, float[2,2] v = {1,2,3,4}> {
    h = MatMul(x, w)
    r = Relu(h)
    s = MatMul(r, v)
    y = Loop ("", go, s) <body = b (int64 i, bool c, float[N,2] a) => (bool d, float[N,2] z) {
        d = Identity(c)
        z = Neg(a)
    }>
}"""


def test_a_run_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session, and in the proof of every command that runs the model."""
    monkeypatch.setenv("PRUNE_RUN_TIMEOUT", "0.2")
    path = write(tmp_path / "m.onnx", ENDLESS)
    with pytest.raises(TimedOutError, match=r"longer than 0.2 seconds"):
        Session.open(path).run({"x": X})
    result = np.zeros_like(X)
    with pytest.raises(TimedOutError):
        Session.open(path).bind({"x": X}, {"y": result})()
    with pytest.raises(TimedOutError, match=r"longer than 0.4 seconds"):  # half of the threads take twice as long
        list(Session.open(path, threads=2, runs=5).run_each([{"x": X}] * 5))


@pytest.mark.parametrize(("threads", "runs"), [(1, 5), (2, 1), (2, 5), (3, 2), (40, 5)])
def test_runs_side_by_side_give_what_each_gives(threads: int, runs: int) -> None:
    session = Session.open(model(RELU), threads=threads, runs=runs)
    feeds = [{"x": X + number} for number in range(runs)]
    found = list(session.run_each(feeds))
    for one, feed in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(one["y"], session.run(feed)["y"])


def test_one_thread_ends_the_runs_that_are_due() -> None:
    """A short limit after a long one wakes the thread, a run that ended is left alone, and the next one is watched, too."""
    watch, runs = runtime._Deadlines(), [SimpleNamespace(terminate=False) for _ in range(4)]
    watch.begin(runs[0], 600)
    watch.end(watch.begin(runs[1], 0.01))
    thread = watch._thread
    for late in runs[2:]:
        watch.begin(late, 0.01)
        for _ in range(1000):
            if late.terminate:
                break
            time.sleep(0.01)
    assert watch._thread is thread
    assert [run.terminate for run in runs] == [False, False, True, True]


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNE_RUN_TIMEOUT", text)
    with pytest.raises(PruneError, match="no number of seconds"):
        Session.open(model(RELU)).run({"x": X})


@pytest.mark.parametrize("threads", [0, -1, MOST_THREADS * 1000])
def test_threads_are_bounded(threads: int) -> None:
    with pytest.raises(PruneError, match="--threads"):
        Execution(threads=threads)
