"""`prune oneshot` from file to file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.runtime import Session
from tests.tiny import few

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"
DIGITS, CALIB, TEST = (SAMPLES / name for name in ("digits-cnn.onnx", "digits-calib.npz", "digits-test.npz"))
SHARED = ROOT.parent / "shared"
RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(str(path))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].HasField("t")
    }
    return found


def accuracy(path: Path) -> float:
    with np.load(TEST) as data:
        session = Session.open(path)
        feed = {session.inputs[0].name: data[session.inputs[0].name].astype(np.float32)}
        return float((next(iter(session.run(feed).values())).argmax(1) == data["labels"]).mean())


def made(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], kind: int = 1) -> Path:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def data(path: Path, array: np.ndarray) -> Path:
    np.savez(path, x=array)
    return path


N = helper.make_node
RECIPES: list[dict[str, Any]] = [
    {"sparsity": 0.8},
    {"sparsity": 0.8, "method": "sparsegpt"},
    {"sparsity": 0.8, "method": "wanda"},
    {"sparsity": 0.8, "allocate": "uniform"},
    {"sparsity": 0.8, "allocate": "erk"},
    {"sparsity": 0.8, "scope": "row", "allocate": "uniform"},
    {"sparsity": 0.8, "scope": "row", "allocate": "uniform", "method": "sparsegpt"},
    {"sparsity": 0.8, "scope": "global"},
    {"sparsity": 0.6, "pattern": "1x4"},
    {"sparsity": 0.6, "pattern": "4x1", "method": "sparsegpt"},
    {"sparsity": 0.3, "pattern": "column"},
    {"sparsity": 0.3, "pattern": "row", "method": "wanda"},
    {"pattern": "2:4"},
    {"pattern": "1:4", "method": "sparsegpt"},
    {"pattern": "2:4", "method": "wanda", "recover": "none"},
    {"sparsity": 0.7, "recover": "none"},
    {"sparsity": 0.7, "recover": "bias"},
    {"sparsity": 0.7, "recover": "bn"},
]


@pytest.mark.parametrize("recipe", few(RECIPES, (0, 1, 8, 12)), ids=lambda r: "-".join(map(str, r.values())))
def test_recipes(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """What is asked for is zero, to the weight (of blocks: to the block), and the rest is proved."""
    out = tmp_path / "out.onnx"
    found = prunecli.oneshot(DIGITS, data=CALIB, output=out, limit=96, **recipe)
    assert found.verification.kind == "exact" and found.verification.samples == 1
    before, after = weights_of(DIGITS), weights_of(out)
    zeros = sum(int((after[layer.weight] == 0).sum()) for layer in found.layers)
    if "sparsity" in recipe:
        unit = {"1x4": 4, "4x1": 4}.get(recipe.get("pattern", ""), 1 if "pattern" not in recipe else 600)
        slack = len(found.layers) * (unit - 1) + (
            0 if recipe.get("scope") != "row" else sum(layer.shape[0] for layer in found.layers)
        )
        assert abs(zeros - recipe["sparsity"] * found.params) <= slack + len(found.layers)
    else:
        keep = int(recipe["pattern"][0])
        for layer in found.layers:
            values = np.moveaxis(after[layer.weight], 1, -1)
            if values.shape[-1] % 4 == 0:
                assert (np.count_nonzero(values.reshape(-1, 4), axis=1) <= keep).all()
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and before[name].shape == after[name].shape for name in before)
    assert found.sparsity == pytest.approx(zeros / found.params)


@pytest.mark.slow
def test_it_keeps_far_more_than_magnitude(tmp_path: Path) -> None:
    out, plain = tmp_path / "out.onnx", tmp_path / "plain.onnx"
    found = prunecli.oneshot(DIGITS, data=CALIB, output=out, sparsity=0.8)
    prunecli.magnitude(DIGITS, sparsity=0.8, output=plain)
    assert accuracy(out) > 0.97 > 0.7 > accuracy(plain)
    assert all(0 <= layer.details["reconstruction_error"] < 1 for layer in found.layers)
    assert any("refitted" in note for note in found.notes)


@pytest.mark.slow
def test_twice_is_the_same_and_a_plan_replays(tmp_path: Path) -> None:
    outs = [tmp_path / f"{i}.onnx" for i in range(3)]
    plan = tmp_path / "plan.json"
    prunecli.oneshot(DIGITS, data=CALIB, output=outs[0], sparsity=0.7, limit=64, save_plan=plan)
    prunecli.oneshot(DIGITS, data=CALIB, output=outs[1], sparsity=0.7, limit=64)
    prunecli.oneshot(DIGITS, data=CALIB, output=outs[2], plan=plan, limit=64)
    one, two, three = (weights_of(out) for out in outs)
    assert all((one[name] == two[name]).all() and (one[name] == three[name]).all() for name in one)
    assert json.loads(plan.read_text())["recipe"]["method"] == "auto"


def gemm(x: str, w: str, y: str) -> Any:
    return N("Gemm", [x, w], [y])


MAPS = {"domain": "ai.onnx.ml", "classlabels_int64s": list(range(4))}
OUTPUTS: list[tuple[str, list[Any], dict[str, int]]] = [
    # what it is, nodes after h = relu(x u), types of the outputs
    ("two heads with Softmax", [gemm("h", "a", "p"), N("Softmax", ["p"], ["y"]), gemm("h", "b", "q"), N("Softmax", ["q"], ["z"])], {"y": 1, "z": 1}),
    ("a hidden value too", [gemm("h", "a", "y")], {"h": 1, "y": 1}),
    ("a class", [gemm("h", "a", "p"), N("ArgMax", ["p"], ["y"], axis=1)], {"y": 7}),
    ("a weight too", [gemm("h", "a", "y")], {"y": 1, "u": 1}),
    ("an input too", [gemm("h", "a", "y"), N("Identity", ["x"], ["z"])], {"y": 1, "z": 1}),
    ("infinities too", [gemm("h", "a", "p"), N("Concat", ["p", "inf"], ["y"], axis=0)], {"y": 1}),
]  # fmt: skip


WAYS = [
    # options; whole units of a pattern are another number of weights than was asked for
    {"method": "wanda", "recover": "none", "allocate": "uniform", "sparsity": 0.7},
    {"method": "sparsegpt", "pattern": "4x1", "sparsity": 0.5},
    {"method": "admm", "pattern": "4x1", "sparsity": 0.5},
]


@pytest.mark.parametrize("way", WAYS, ids=[str(way["method"]) for way in WAYS])
def test_a_plan_replays_its_own_way(way: dict[str, Any], tmp_path: Path) -> None:
    outs, plan = [tmp_path / f"{i}.onnx" for i in range(2)], tmp_path / "plan.json"
    prunecli.oneshot(DIGITS, data=CALIB, output=outs[0], save_plan=plan, limit=32, **way)
    prunecli.oneshot(DIGITS, data=CALIB, output=outs[1], plan=plan, limit=32)
    one, two = map(weights_of, outs)
    assert all((one[name] == two[name]).all() for name in one)


def test_inputs_that_do_not_move(tmp_path: Path) -> None:
    """Constant inputs, as behind a layer that is empty: their gram is rounding alone. The output stays as it was."""
    nodes = [N("MatMul", ["x", "u"], ["h"]), N("Add", ["h", "c"], ["y"])]
    path = made(tmp_path / "m.onnx", nodes, {"u": f(40, 8), "c": f(8)}, ["n", 40])
    x = np.repeat(3 + f(1, 40), 300, axis=0)
    prunecli.oneshot(path, data=data(tmp_path / "d.npz", x), sparsity=0.5, output=tmp_path / "o.onnx")
    wanted, found = (Session.open(p).run({"x": x})["y"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    prunecli.oneshot(DIGITS, data=CALIB, limit=32, sparsity=1.0, output=tmp_path / "none.onnx")


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case[0])
def test_outputs_of_all_kinds(tmp_path: Path, case: tuple[Any, ...]) -> None:
    """Losses are measured at whatever there is; no layer is emptied because its effect could not be seen."""
    _, nodes, outputs = case
    inf = np.full((1, 4), -np.inf, np.float32)
    constants = {"u": f(16, 24), "a": f(24, 4), "b": f(24, 4), "inf": inf}
    used = {name for node in nodes for name in node.input} | {"u"}
    path = made(tmp_path / "m.onnx", [gemm("x", "u", "g"), N("Relu", ["g"], ["h"]), *nodes],
                {k: v for k, v in constants.items() if k in used}, ["n", 16])  # fmt: skip
    model = onnx.load(str(path))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items())
    onnx.save(model, path)
    samples = data(tmp_path / "d.npz", f(200, 16))
    found = prunecli.oneshot(path, data=samples, sparsity=0.5, output=tmp_path / "o.onnx")
    after = weights_of(tmp_path / "o.onnx")
    shares = {layer.weight: (after[layer.weight] == 0).mean() for layer in found.layers}
    assert all(0.05 < share < 0.95 for share in shares.values()), shares
    assert sum((after[layer.weight] == 0).sum() for layer in found.layers) == round(0.5 * found.params)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_types(tmp_path: Path, kind: str) -> None:
    typed = {"float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}[kind]
    constants = {"w": f(20, 16).astype(kind), "c": f(16).astype(kind), "u": f(16, 4).astype(kind)}
    nodes = [
        N("MatMul", ["x", "w"], ["h"]),
        N("Add", ["h", "c"], ["a"]),
        N("Relu", ["a"], ["r"]),
        N("MatMul", ["r", "u"], ["y"]),
    ]
    path = made(tmp_path / "m.onnx", nodes, constants, ["n", 20], typed)
    found = prunecli.oneshot(path, data=data(tmp_path / "d.npz", f(200, 20)), sparsity=0.5, output=tmp_path / "o.onnx")
    after = weights_of(tmp_path / "o.onnx")
    assert after["w"].dtype == kind and sum(int((after[n] == 0).sum()) for n in "wu") == round(0.5 * (320 + 64))
    assert found.verification.kind == "exact"


ODD: list[tuple[str, list[Any], dict[str, np.ndarray], list[Any], int]] = [
    # what it is, nodes, constants, shape of x, samples
    ("one sample", [N("Conv", ["x", "w"], ["y"])], {"w": f(8, 4, 3, 3)}, ["n", 4, 8, 8], 1),
    ("dead layer", [N("Conv", ["x", "w"], ["h"]), N("Relu", ["h"], ["r"]), N("Conv", ["r", "u"], ["y"])], {"w": np.zeros((8, 4, 3, 3), np.float32), "u": f(8, 8, 3, 3)}, ["n", 4, 8, 8], 20),
    ("tied weight", [N("MatMul", ["x", "w"], ["h"]), N("Tanh", ["h"], ["t"]), N("MatMul", ["t", "w"], ["y"])], {"w": f(12, 12)}, ["n", 12], 100),
    ("depthwise and transposed", [N("Conv", ["x", "w"], ["h"], group=4), N("ConvTranspose", ["h", "u", "c"], ["y"], strides=[2, 2])], {"w": f(4, 1, 3, 3), "u": f(4, 6, 2, 2), "c": f(6)}, ["n", 4, 8, 8], 30),
    ("weight on the left", [N("MatMul", ["w", "x"], ["y"])], {"w": f(8, 12)}, ["n", 12, 5], 40),
    ("behind a transpose", [N("Transpose", ["w"], ["t"]), N("MatMul", ["x", "t"], ["y"])], {"w": f(8, 12)}, ["n", 12], 60),
    ("in a Constant node", [N("Constant", [], ["w"], value=numpy_helper.from_array(f(12, 8))), N("MatMul", ["x", "w"], ["y"])], {}, ["n", 12], 60),
    ("fixed batch", [N("Gemm", ["x", "w", "c"], ["y"])], {"w": f(12, 8), "c": f(8)}, [4, 12], 10),
    ("stack", [N("MatMul", ["x", "w"], ["y"])], {"w": f(3, 12, 8)}, ["n", 3, 5, 12], 20),
]  # fmt: skip


@pytest.mark.parametrize("method", ["obs", "sparsegpt", "wanda"])
@pytest.mark.parametrize("case", ODD, ids=lambda case: case[0])
def test_odd_models(tmp_path: Path, case: tuple[Any, ...], method: str) -> None:
    name, nodes, constants, shape, count = case
    path = made(tmp_path / "m.onnx", nodes, constants, shape)
    rng = np.random.default_rng(5)
    samples = np.asarray(rng.standard_normal((count, *shape[1:])), np.float32)
    samples += 2 * rng.standard_normal((count, *[1] * (len(shape) - 1))).astype(np.float32)  # inputs that go together
    out = tmp_path / "o.onnx"
    found = prunecli.oneshot(path, data=data(tmp_path / "d.npz", samples), sparsity=0.5, method=method, output=out)
    after = weights_of(out)
    zeros = sum(int((after[layer.weight] == 0).sum()) for layer in found.layers)
    least = round(0.5 * found.params)
    assert zeros == least if name != "dead layer" else zeros >= least
    assert all(np.isfinite(value).all() for value in after.values())
    if name not in ("one sample", "dead layer"):  # nearer to the original than magnitude on the same data
        plain = tmp_path / "p.onnx"
        prunecli.magnitude(path, sparsity=0.5, output=plain)
        batch = samples[: shape[0]] if isinstance(shape[0], int) else samples
        base, ours, theirs = (Session.open(p).run({"x": batch})["y"] for p in (path, out, plain))
        assert np.square(ours - base).mean() < np.square(theirs - base).mean()


def test_weights_without_evidence(tmp_path: Path) -> None:
    nodes = [
        N("LSTM", ["x", "w", "r"], ["h"], hidden_size=6),
        N("Squeeze", ["h", "axis"], ["s"]),
        N("MatMul", ["s", "u"], ["y"]),
    ]
    constants = {"w": f(1, 24, 5), "r": f(1, 24, 6), "u": f(6, 6), "axis": np.array([1])}
    path = made(tmp_path / "m.onnx", nodes, constants, [7, 2, 5])
    loader = tmp_path / "loader.py"
    loader.write_text(
        "import numpy as np\ndef some():\n    for i in range(9):\n        yield {'x': np.random.default_rng(i).standard_normal((7, 2, 5)).astype('float32')}\n"
    )
    arguments: dict[str, Any] = {"data": f"{loader}:some", "sparsity": 0.5}
    found = prunecli.oneshot(path, output=tmp_path / "a.onnx", **arguments)
    assert [layer.weight for layer in found.layers] == ["u"]
    assert {skip.name for skip in found.skipped if "no layer that can be fitted" in skip.reason} == {"w", "r"}
    found = prunecli.oneshot(path, output=tmp_path / "b.onnx", fallback=True, **arguments)
    assert {layer.weight for layer in found.layers} == {"w", "r", "u"}
    assert all(layer.sparsity == pytest.approx(0.5) for layer in found.layers)
    assert any("by magnitude" in note for note in found.notes)


@pytest.mark.parametrize("method", ["obs", "sparsegpt", "wanda"])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_zeros_that_are_there_count(tmp_path: Path, method: str, scope: str) -> None:
    """Half of the inputs of every row, or a whole group, is zero already: they stay, and no more go than was asked."""
    wide, grouped = f(240, 16), f(8, 4, 3, 3)
    wide[:120] = 0
    grouped[(slice(4), slice(None)) if scope == "layer" else (slice(None), slice(2))] = 0
    nodes = [
        N("Conv", ["x", "w"], ["h"], group=2),
        N("Reshape", ["h", "to"], ["r"]),
        N("MatMul", ["r", "u"], ["y"]),
    ]
    constants = {"w": grouped, "u": wide, "to": np.array([0, 240])}
    path = made(tmp_path / "m.onnx", nodes, constants, ["n", 8, 7, 8])
    found = prunecli.oneshot(
        path, data=data(tmp_path / "d.npz", f(200, 8, 7, 8)), sparsity=0.6, method=method, scope=scope,
        allocate="uniform", output=tmp_path / "o.onnx",
    )  # fmt: skip
    after = weights_of(tmp_path / "o.onnx")
    assert all(not after[name][constants[name] == 0].any() for name in ("w", "u"))
    rows = 24 if scope == "row" else 2
    assert abs(sum((after[name] == 0).sum() for name in ("w", "u")) - 0.6 * found.params) <= rows


def test_what_is_excluded_does_not_move(tmp_path: Path) -> None:
    before = weights_of(DIGITS)
    out = tmp_path / "o.onnx"
    prunecli.oneshot(DIGITS, data=CALIB, sparsity=0.5, limit=32, output=out, exclude=("fc*", "*bias", "*running*"))
    after = weights_of(out)
    assert all(
        (before[name] == after[name]).all()
        for name in before
        if name.startswith("fc") or "bias" in name or "running" in name
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "how much"),
    ({"pattern": "4x1"}, "how much"),
    ({"sparsity": 0.5, "scope": "lamp"}, "'--scope': 'lamp' is unknown"),
    ({"sparsity": 0.5, "scope": "erk", "allocate": "loss"}, "contradict"),
    ({"pattern": "2:4", "allocate": "erk"}, "how much of each"),
    ({"sparsity": 0.5, "criterion": "l1"}, "criterion"),
    ({"threshold": 0.5}, "threshold"),
    ({"sparsity": 0.5, "method": "magic"}, "magic"),
    ({"sparsity": 0.5, "allocate": "magic"}, "magic"),
    ({"sparsity": 0.5, "pattern": "row", "method": "sparsegpt"}, "row"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[1])
def test_refusals(tmp_path: Path, case: tuple[dict[str, Any], str]) -> None:
    options, text = case
    with pytest.raises(PruneError, match=text):
        prunecli.oneshot(DIGITS, data=CALIB, output=tmp_path / "o.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_data_are_needed_and_must_fit(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="data"):
        prunecli.oneshot(DIGITS, sparsity=0.5, output=tmp_path / "o.onnx")
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, image=f(5, 3, 9))
    with pytest.raises(PruneError):
        prunecli.oneshot(DIGITS, data=wrong, sparsity=0.5, output=tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_a_layer_of_few_samples_is_judged_on_others(tmp_path: Path) -> None:
    """The second layer has more inputs than samples: fitted ones say that it can lose nearly all, held-out ones not."""
    rng = np.random.default_rng(0)
    constants = {"a": f(16, 96) / 4, "b": f(96, 40) / 10}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    path = made(tmp_path / "m.onnx", nodes, constants, ["n", 16])
    few_samples = data(tmp_path / "d.npz", rng.standard_normal((48, 16)).astype(np.float32))
    found = prunecli.oneshot(path, data=few_samples, sparsity=0.5, output=tmp_path / "o.onnx")
    rows = {layer["name"]: layer for layer in found.to_json()["layers"]}
    wide = next(row for row in rows.values() if row["weight"] == "b")
    assert wide["held_out_error"] > 2 * wide["reconstruction_error"] and wide["ridge"] > 1e-3
    assert any("too few" in note for note in found.to_json()["notes"])


@pytest.mark.parametrize(("limit", "told"), [(1, "is 1 batch of"), (3, "are 3 batches of"), (4, "")])
def test_samples_that_none_can_be_held_out_of_are_told(tmp_path: Path, limit: int, told: str) -> None:
    found = prunecli.oneshot(DIGITS, data=CALIB, pattern="2:4", limit=limit, output=tmp_path / "o.onnx")
    notes = [note for note in found.to_json()["notes"] if "held out" in note]
    assert len(notes) == bool(told) and told in "".join(notes)


@pytest.mark.slow
def test_little_memory_gives_the_same(tmp_path: Path) -> None:
    outs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for out, memory in zip(outs, (1 << 30, 1000), strict=True):
        prunecli.oneshot(DIGITS, data=CALIB, sparsity=0.6, limit=64, output=out, memory=memory)
    one, two = map(weights_of, outs)
    other = sum(int(((one[name] == 0) != (two[name] == 0)).sum()) for name in one)
    # sums in other portions round, which may decide between weights that matter alike
    assert other <= 0.001 * sum(array.size for array in one.values())
    with np.load(CALIB) as data:
        feed = {"image": data["image"].astype(np.float32)}
    dense, *both = (Session.open(path).run(feed)["logits"] for path in (DIGITS, *outs))
    lost = np.square(both[0] - dense).mean()
    assert (
        np.square(both[0] - both[1]).mean() < 0.01 * lost
    )  # what does not hold the sums differs by as much as is lost


@pytest.mark.slow
def test_resnet20_at_seventy_percent(tmp_path: Path) -> None:
    """0.861 was measured; magnitude gives 0.384."""
    path, train, test = (
        SHARED / name
        for name in ("models/real/resnet20-cifar10.onnx", "data/cifar10-train.npz", "data/cifar10-test.npz")
    )
    if not path.exists():
        pytest.skip("the shared models are not here")
    prunecli.oneshot(path, data=train, sparsity=0.7, output=tmp_path / "o.onnx", limit=256)
    session = Session.open(tmp_path / "o.onnx")
    with np.load(test) as found:
        images, labels = found["image"][:1000].astype(np.float32), found["labels"][:1000]
    assert (session.run({"image": images})["logits"].argmax(1) == labels).mean() > 0.83
