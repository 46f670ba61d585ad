"""Random numbers of graphs, fixed: the same in each run, of the distribution that the operator states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from prunecli.dependency.prepare import prepare
from prunecli.model.noise import fix_noise, may_have_noise, noise_notes
from prunecli.runtime import Session
from tests.tiny import model, write

SIZE = (64, 50)

# body of a graph with the input x (N, 50) -> least, most, mean, deviation (of 3,200 numbers), type
CASES = {
    "normal like": ("y = RandomNormalLike (x)", -6, 6, 0, 1, np.float32),
    "normal like, scaled": ("y = RandomNormalLike <mean = 3.0, scale = 2.0> (x)", -9, 15, 3, 2, np.float32),
    "normal": ("y = RandomNormal <shape = [64, 50]> ()", -6, 6, 0, 1, np.float32),
    "uniform like": ("y = RandomUniformLike (x)", 0, 1, 0.5, 12**-0.5, np.float32),
    "uniform, double": ("y = RandomUniform <shape = [64, 50], low = -1.0, high = 3.0, dtype = 11> ()", -1, 3, 1, 4 * 12**-0.5, np.float64),
    "bernoulli": ("p = Sigmoid (x)  y = Bernoulli (p)", 0, 1, 0.5, 0.5, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_distributions(case: str) -> None:
    body, least, most, mean, deviation, dtype = CASES[case]
    kind = "double" if dtype is np.float64 else "float"
    content = model(f"g (float[N, 50] x) => ({kind}[N, 50] y) {{ {body} }}")
    feed = {"x": np.zeros(SIZE, np.float32)}
    runs = [Session.open(content, mode=mode).run(feed)["y"] for mode in ("fast", "plain")]
    assert runs[0].shape == SIZE and runs[0].dtype == dtype and np.allclose(runs[0], runs[1], rtol=1e-5, atol=1e-6)
    found = runs[0].astype(float)
    assert found.min() >= least and found.max() <= most
    assert found.mean() == pytest.approx(mean, abs=4 * deviation / found.size**0.5)
    assert found.std() == pytest.approx(deviation, rel=0.05)
    rows = np.corrcoef(found)[np.triu_indices(SIZE[0], 1)]  # samples of one batch see noise of their own
    assert abs(rows).max() < 0.6 and abs(rows.mean()) < 0.02


@pytest.mark.parametrize(("asked", "dtype"), [("", np.int32), (", dtype = 7", np.int64)])
def test_classes_are_drawn_by_their_probabilities(asked: str, dtype: Any) -> None:
    kind = "int64" if dtype is np.int64 else "int32"
    content = model(f"g (float[N, 3] x) => ({kind}[N, 50] y) {{ y = Multinomial <sample_size = 50{asked}> (x) }}")
    chances = np.array([0.2, 0.5, 0.3])
    feed = {"x": np.tile(np.log(chances), (64, 1)).astype(np.float32)}
    session = Session.open(content)
    found = session.run(feed)["y"]
    assert found.dtype == dtype and found.shape == (64, 50) and (found == session.run(feed)["y"]).all()
    assert np.bincount(found.reshape(-1)) / found.size == pytest.approx(chances, abs=0.035)


def test_noise_in_a_function_of_the_model_is_fixed_too() -> None:
    content = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N, 50] x) => (float[N, 50] y, float[N, 50] z) { y = own.noisy (x)  z = own.noisy (x) }
        <domain: "own", opset_import: ["": 17]>
        noisy (a) => (c) { b = RandomNormalLike (a)  c = Add (a, b) }"""
    ).SerializeToString()
    session, feed = Session.open(content), {"x": np.zeros(SIZE, np.float32)}
    found = session.run(feed)
    assert all((session.run(feed)[name] == found[name]).all() for name in "yz") and found["y"].std() > 0.5
    assert abs(np.corrcoef(found["y"].reshape(-1), found["z"].reshape(-1))[0, 1]) < 0.1
    assert noise_notes(onnx.load_from_string(content))


def test_noise_in_a_function_stays_when_the_function_is_inlined_in_a_cut_model() -> None:
    content = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N, 50] x) => (float[N, 50] y, float[N, 50] z) { q = own.noisy (x)  y = own.noisy (q)  z = Neg (q) }
        <domain: "own", opset_import: ["": 17]>
        noisy (a) => (c) { b = RandomNormalLike (a)  c = Add (a, b) }"""
    )
    cut = ir.to_proto(prepare(ir.from_proto(content)))
    feed = {"x": np.zeros(SIZE, np.float32)}
    found, left = (Session.open(each.SerializeToString()).run(feed) for each in (content, cut))
    assert not cut.functions and all((found[name] == left[name]).all() for name in "yz")


def test_two_values_have_different_noise_and_a_prefix_keeps_its_own() -> None:
    content = model(
        "g (float[N, 50] x) => (float[N, 50] y, float[N, 50] z) { y = RandomNormalLike(x)  z = RandomNormalLike(x) }"
    )
    session = Session.open(content)
    found = session.run({"x": np.zeros(SIZE, np.float32)})
    assert abs(np.corrcoef(found["y"].reshape(-1), found["z"].reshape(-1))[0, 1]) < 0.1
    few = session.run({"x": np.zeros((3, 50), np.float32)})
    assert (few["y"] == found["y"][:3]).all()


# seeds of two nodes, whether they see the same noise
SEEDS = [("seed = 7.0", "seed = 7.0", True), ("seed = 0.0", "seed = 0.0", True), ("seed = 7.0", "seed = 8.0", False),
         ("seed = 7.0", "mean = 0.0", False), ("mean = 0.0", "mean = 0.0", False)]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "same"), SEEDS)
def test_nodes_of_one_seed_see_the_same_noise_as_when_they_run(first: str, second: str, same: bool) -> None:
    shape = "shape = [64, 50]"
    content = model(
        f"g (float[N, 50] x) => (float[64, 50] y, float[64, 50] z) {{ y = RandomNormal <{shape}, {first}> ()"
        f" z = RandomNormal <{shape}, {second}> () }}"
    )
    feed = {"x": np.zeros((1, 50), np.float32)}
    plain = onnxruntime.InferenceSession(content).run(None, feed)
    fixed = Session.open(content).run(feed)
    assert np.array_equal(plain[0], plain[1]) == np.array_equal(fixed["y"], fixed["z"]) == same


def test_noise_in_a_body_is_fixed_too() -> None:
    content = model(
        "g (float[N, 50] x, bool c) => (float[N, 50] y) { y = If (c) <"
        "then_branch = t () => (float[N, 50] a) { a = RandomNormalLike (x) },"
        "else_branch = e () => (float[N, 50] b) { b = Identity (x) }> }"
    )
    session, feed = Session.open(content), {"x": np.zeros((2, 50), np.float32), "c": np.array(True)}
    assert (session.run(feed)["y"] == session.run(feed)["y"]).all() and session.run(feed)["y"].std() > 0.5


def test_models_without_noise_are_left_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    proto = onnx.load(path)
    assert not may_have_noise(path) and not may_have_noise(path.read_bytes()) and not fix_noise(proto)
    assert proto == onnx.load(path)


def test_a_model_with_noise_is_cut_and_recovered_with_it_fixed(tmp_path: Path) -> None:
    """A variational autoencoder: proved, recovered; the file is as random as before."""
    import prunecli

    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 16), "wm": (16, 4), "ws": (16, 4), "w2": (4, 16), "w3": (16, 8)}
    proto = onnx.load_from_string(model(
        f"g (float[N, 8] x, {', '.join(f'float[{a}, {b}] {n}' for n, (a, b) in shapes.items())}) => (float[N, 8] y)"
        "{ a = MatMul(x, w1)  r = Relu(a)  mu = MatMul(r, wm)  s = MatMul(r, ws)  n = RandomNormalLike(mu)"
        "  sn = Mul(s, n)  z = Add(mu, sn)  b = MatMul(z, w2)  rb = Relu(b)  y = MatMul(rb, w3) }"
    ))  # fmt: skip
    for name, shape in shapes.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 4, name)
        )
    del proto.graph.input[1:]
    onnx.save(proto, tmp_path / "vae.onnx")
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(128, 8)).astype(np.float32))
    done = prunecli.structured(tmp_path / "vae.onnx", ratio=0.5, data=tmp_path / "d.npz", output=tmp_path / "s.onnx",
                               timing=False)  # fmt: skip
    assert done.to_json()["verification"]["kind"] == "exact"
    assert any("noise" in note for note in done.notes)
    small = onnx.load(tmp_path / "s.onnx")
    assert [n.op_type for n in small.graph.node].count("RandomNormalLike") == 1
    plain = onnxruntime.InferenceSession(tmp_path / "s.onnx")
    feed = {"x": np.ones((4, 8), np.float32)}
    assert not np.allclose(plain.run(None, feed)[0], plain.run(None, feed)[0])
    found = prunecli.evaluate(tmp_path / "s.onnx", tmp_path / "vae.onnx", data=tmp_path / "d.npz", latency=False)
    assert found.fidelity is not None and (found.fidelity.short()["cosine"] or 0) > 0.8
