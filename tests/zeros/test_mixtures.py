"""`prune oneshot` inside the experts of `MoE`: which tokens tell what of which expert, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.calibration import mixtures
from prunecli.calibration.layerwise import Store, working_form
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.masks.patterns import parse_pattern
from prunecli.model import SaveOptions, find_weights, load, save
from prunecli.model.tensors import MappedTensor
from prunecli.reconstruct.fit import METHODS
from prunecli.runtime import Session
from prunecli.types import no_progress
from prunecli.zeros.calibrated import CalibratedLayers, Way
from prunecli.zeros.oneshot import measured_scores
from prunecli.zeros.options import Fitting

E, H, INNER, TAKEN = 4, 16, 24, 8  # experts, hidden, inner; what the model reads
Array = np.ndarray[Any, Any]
Stored = Mapping[str, Array]
N = helper.make_node


def weights(seed: int = 0, fused: bool = False, third: bool = False, bias: bool = False) -> dict[str, Array]:
    """Of a small model: a matrix, a router, and four experts."""
    rng = np.random.default_rng(seed)
    shapes = {"inw": (TAKEN, H), "router": (H, E), "w1": (E, INNER * (1 + fused), H), "w2": (E, H, INNER)}
    shapes |= {"w3": (E, INNER, H)} if third else {}
    found = {name: rng.normal(size=shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    found["inw"] *= 2
    found["router"] *= 2
    if bias:
        sizes = {"b1": INNER * (1 + fused), "b2": H} | ({"b3": INNER} if third else {})
        found |= {name: rng.normal(size=(E, size)) / 4 for name, size in sizes.items()}
    return {name: array.astype(np.float32) for name, array in found.items()}


def saved(path: Path, stored: Stored, dtype: Any = np.float32, **attributes: Any) -> Path:
    """h = tanh(x inw), y = MoE(h, h router); x (samples, tokens, TAKEN)."""
    inputs = [name if name in stored else "" for name in ("w1", "b1", "w2", "b2", "w3", "b3")]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        N("MatMul", ["x", "inw"], ["h0"]),
        N("Tanh", ["h0"], ["h"]),
        N("MatMul", ["h", "router"], ["scores"]),
        N("Reshape", ["scores", "flat"], ["r"]),
        N("MoE", ["h", "r", *inputs], ["y"], "mix", domain="com.microsoft", **{"k": 2, **attributes}),
    ]
    tensors = [numpy_helper.from_array(array.astype(dtype), name) for name, array in stored.items()]
    tensors.append(numpy_helper.from_array(np.array([-1, E], np.int64), "flat"))
    x, y = (helper.make_tensor_value_info(name, kind, ["n", "t", size]) for name, size in (("x", TAKEN), ("y", H)))
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def samples(path: Path, count: int = 3, tokens: int = 200, seed: int = 5) -> Array:
    """Three samples are three batches, of which none is held out."""
    x = np.random.default_rng(seed).normal(size=(count, tokens, TAKEN)).astype(np.float32)
    np.save(path, x)
    return x


def of_file(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


# -- the reference: loops over tokens and experts, in float64 -----------------------------------------


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


SIMPLE: dict[str, Callable[[Array], Array]] = {
    "relu": lambda u: np.maximum(u, 0),
    "identity": np.asarray,
    "silu": lambda u: u * sigmoid(u),
    "gelu": lambda u: 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
}


def routed(scores: Array, k: int = 2, normalize: int = 0) -> Array:
    """(tokens, experts): the share of each expert in what a token becomes."""
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    out = np.zeros_like(p)
    for token, row in enumerate(p):
        chosen = sorted(range(E), key=lambda e: (-row[e], -e))[:k]
        out[token, chosen] = row[chosen] / (row[chosen].sum() if normalize else 1)
    return np.asarray(out)


def inner(stored: Stored, expert: int, h: Array, **how: Any) -> tuple[Array, Array | None, Array]:
    """What W1 and W3 of an expert give, and what W2 reads, of all tokens."""

    def product(index: int) -> Array | None:
        if f"w{index}" not in stored:
            return None
        bias = stored[f"b{index}"][expert] if f"b{index}" in stored else 0.0
        return np.asarray(h @ stored[f"w{index}"][expert].T.astype(np.float64) + bias)

    u, v = product(1), product(3)
    assert u is not None
    kind = how.get("activation_type", "relu")
    if kind != "swiglu":
        return u, v, SIMPLE[kind](u) * (1.0 if v is None else v)
    halves = (u[:, 0::2], u[:, 1::2]) if how.get("swiglu_fusion") == 1 else (u[:, :INNER], u[:, INNER:])
    g, value = halves if v is None else (u, v)
    limit = how.get("swiglu_limit", np.inf)
    g, value = np.minimum(g, limit), np.clip(value, -limit, limit)
    alpha, beta = how.get("activation_alpha", 1.0), how.get("activation_beta", 0.0)
    return u, v, g * sigmoid(alpha * g) * (value + beta)


def hidden(stored: Stored, x: Array) -> tuple[Array, Array]:
    """(tokens, H) what the experts read, and the router's scores."""
    h = np.tanh(x.reshape(-1, TAKEN).astype(np.float64) @ stored["inw"])
    return h, h @ stored["router"]


def mixture(stored: Stored, x: Array, **how: Any) -> Array:
    h, scores = hidden(stored, x)
    shares = routed(scores, how.get("k", 2), how.get("normalize_routing_weights", 0))
    out = np.zeros((len(h), H))
    for expert in range(E):
        z = inner(stored, expert, h, **how)[2] @ stored["w2"][expert].T + (
            stored["b2"][expert] if "b2" in stored else 0
        )
        out += shares[:, expert : expert + 1] * z
    return out.reshape(*x.shape[:-1], H)


GATED: dict[str, Any] = {
    "activation_type": "swiglu",
    "activation_alpha": 1.7,
    "activation_beta": 1.0,
    "swiglu_limit": 0.7,
}
# attributes, whether W1 holds gates and values, whether there is a W3, whether there are biases, whether onnxruntime
# runs it on the CPU
KINDS: list[tuple[dict[str, Any], bool, bool, bool, bool]] = [
    ({"activation_type": "relu"}, False, False, False, True),
    ({"activation_type": "silu", "normalize_routing_weights": 1}, False, False, True, True),
    ({"activation_type": "gelu", "k": 1}, False, False, True, True),
    ({"activation_type": "identity", "k": 3, "normalize_routing_weights": 1}, False, False, True, True),
    ({"activation_type": "silu", "k": E}, False, False, False, True),
    ({"activation_type": "swiglu", "swiglu_fusion": 1}, True, False, False, True),
    ({**GATED, "swiglu_fusion": 1, "normalize_routing_weights": 1}, True, False, True, True),
    ({**GATED, "swiglu_fusion": 2}, True, False, True, False),
    (GATED, False, True, True, False),
    ({"activation_type": "silu", "normalize_routing_weights": 1}, False, True, True, False),
]
NAMES = ["-".join(map(str, (*kind[0].values(), *kind[1:4]))) for kind in KINDS]


@pytest.mark.parametrize(("how", "fused", "third", "bias", "runs"), KINDS, ids=NAMES)
def test_the_restatement_computes_what_the_operator_computes(
    tmp_path: Path, how: dict[str, Any], fused: bool, third: bool, bias: bool, runs: bool
) -> None:
    stored = weights(1, fused, third, bias=bias)
    path, x = saved(tmp_path / "m.onnx", stored, **how), samples(tmp_path / "x.npy")
    work = working_form(load(path).ir)
    found = mixtures.restate(work)
    assert not found.left
    assert {name: len(parts) for name, parts in found.parts.items()} == {n: E for n in stored if n[0] in "wb"}
    assert "MoE" not in {node.op_type for node in work.graph}
    got = Session.open(work).run({"x": x})["y"]
    wanted = mixture(stored, x, **how)
    np.testing.assert_allclose(got, wanted, atol=2e-5)  # sums of 24 float32 products of numbers up to 10
    if runs:
        np.testing.assert_allclose(Session.open(path).run({"x": x})["y"], wanted, atol=2e-5)


def test_each_expert_is_read_where_it_lies_outside_the_file(tmp_path: Path) -> None:
    stored = weights(1, bias=True)
    path, x = saved(tmp_path / "m.onnx", stored), samples(tmp_path / "x.npy")
    save(load(path), tmp_path / "outside.onnx", SaveOptions("always"))
    work = working_form(load(tmp_path / "outside.onnx").ir)
    found = mixtures.restate(work)
    parts = [work.graph.initializers[name].const_value for name in found.parts["w2"]]
    assert all(
        isinstance(part, MappedTensor) and np.array_equal(part.numpy(), stored["w2"][k]) for k, part in enumerate(parts)
    )
    np.testing.assert_allclose(Session.open(work).run({"x": x})["y"], mixture(stored, x), atol=2e-5)


def test_of_equal_scores_later_experts_are_taken(tmp_path: Path) -> None:
    stored = weights()
    stored["router"] = np.zeros_like(stored["router"])
    path, x = saved(tmp_path / "m.onnx", stored), samples(tmp_path / "x.npy")
    work = working_form(load(path).ir)
    mixtures.restate(work)
    got, wanted = (Session.open(each).run({"x": x})["y"] for each in (work, path))
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_half_precision(tmp_path: Path) -> None:
    """Products are summed in float32 here, in half precision there."""
    how = {**GATED, "swiglu_fusion": 1, "normalize_routing_weights": 1}
    path = saved(tmp_path / "m.onnx", weights(2, True, bias=True), np.float16, **how)
    x = samples(tmp_path / "x.npy").astype(np.float16)
    work = working_form(load(path).ir)
    mixtures.restate(work)
    got, wanted = (Session.open(each).run({"x": x})["y"].astype(np.float32) for each in (work, path))
    assert got.dtype == np.float32 and np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def _computed(model: onnx.ModelProto, name: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.name = f"{name}.stored"
    model.graph.node.insert(0, N("Abs", [tensor.name], [name]))


LEFT: list[tuple[str, dict[str, Any], Callable[[onnx.ModelProto], Any], str]] = [
    ("sparse mixer", {"use_sparse_mixer": 1}, lambda m: None, "mixes sparsely"),
    ("old opset", {}, lambda m: setattr(m.opset_import[0], "version", 12), "an opset before 13"),
    ("shared", {}, lambda m: m.graph.node.append(N("MoE", ["h", "r", *m.graph.node[4].input[2:]], ["z"], domain="com.microsoft", k=2)), "several mixtures share"),
    ("overridable", {}, lambda m: m.graph.input.append(helper.make_tensor_value_info("w2", 1, [E, H, INNER])), "graph input too"),
    ("activation", {"activation_type": "mish"}, lambda m: None, "an activation that is not known: mish"),
    ("attribute", {"swiglu_limit": 7}, lambda m: None, "'swiglu_limit' of MoE has another type"),
    ("computed", {}, lambda m: _computed(m, "w1"), "is computed, or stored in another form"),
    ("no second matrix", {}, lambda m: m.graph.node[4].input.__setitem__(4, ""), "do not fit each other"),
    ("another layout", {}, lambda m: next(t for t in m.graph.initializer if t.name == "w1").dims.__setitem__(slice(None), [E, H, INNER]), "do not fit each other"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "change", "reason"), [case[1:] for case in LEFT], ids=[case[0] for case in LEFT]
)
def test_what_is_left_as_it_is_and_why(
    tmp_path: Path, attributes: dict[str, Any], change: Callable[[onnx.ModelProto], Any], reason: str
) -> None:
    path = saved(tmp_path / "m.onnx", weights(), **attributes)
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, path)
    work = working_form(load(path).ir)
    found = mixtures.restate(work)
    assert not found.parts and {"w1", "w2"} & {name.removesuffix(".stored") for name in found.left}
    assert all(reason in told for told in found.left.values())
    assert "MoE" in {node.op_type for node in work.graph}


# -- the sums of each expert's layers ---------------------------------------------------------------


@pytest.mark.parametrize(("how", "fused", "third", "bias", "runs"), KINDS, ids=NAMES)
def test_sums_are_over_the_tokens_that_an_expert_is_given(
    tmp_path: Path, how: dict[str, Any], fused: bool, third: bool, bias: bool, runs: bool
) -> None:
    """X X^T, Y X^T, means and counts of every layer, against loops in float64."""
    stored = weights(3, fused, third, bias=bias)
    path, x = saved(tmp_path / "m.onnx", stored, **how), samples(tmp_path / "x.npy")
    way = Way(METHODS.get("sparsegpt"), parse_pattern("element"), "lstsq", by_row=False, workers=1, seed=0,
              start=Session.open)  # fmt: skip
    h, scores = hidden(stored, x)
    shares = routed(scores, how.get("k", 2), how.get("normalize_routing_weights", 0))
    names = [name for name in ("w1", "w2", "w3") if name in stored]
    with Store() as store:
        layers = CalibratedLayers.of(load(path), names, [{"x": x[n : n + 1]} for n in range(3)], way, store=store,
                                     fixed=frozenset())  # fmt: skip
        walk = layers.walk()
        assert [layer.name for layer in layers.all] == [
            f"{name}[{e}]" for e in range(E) for name in ("w1", "w3", "w2") if name in stored
        ]
        for layer in layers.all:
            name, expert = layer.name[:2], int(layer.name[3])
            u, v, a = inner(stored, expert, h, **how)
            z = a @ stored["w2"][expert].T + (stored["b2"][expert] if bias else 0.0)
            data, wanted = {"w1": (h, u), "w3": (h, v), "w2": (a, z)}[name]
            assert wanted is not None
            weight = np.square(shares[:, expert])
            sums = layers.sums(layer, walk, walk).whole()
            assert sums.positions == np.count_nonzero(weight) < len(h) + (how.get("k") == E)
            expected = {
                "gram": (data.T * weight) @ data, "cross": (wanted.T * weight) @ data, "x": weight @ data,
                "y": weight @ wanted, "squares": weight @ np.square(wanted), "count": weight.sum(),
            }  # fmt: skip
            for part, value in expected.items():
                got = np.asarray(getattr(sums, part)).reshape(np.shape(value))
                # float32 inputs of the sums: some units of 6e-8 of the largest term, which the sum is not far below
                np.testing.assert_allclose(got, value, atol=2e-5 * np.abs(value).max(), err_msg=f"{layer.name} {part}")
            layers.release(layer, walk)


# -- what comes of it -------------------------------------------------------------------------------


HOW = {"activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
GIVEN: dict[str, Any] = {"sparsity": 0.5, "allocate": "uniform", "method": "sparsegpt"}


def pruned(model: Path, data: Path, out: Path, **options: Any) -> Any:
    return prunecli.oneshot(model, **{**GIVEN, "data": data, "output": out, "force": True, **options})


def refit(data: Array, wanted: Array, weight: Array, counts: Array, keep: Array) -> Array:
    """argmin over W, zero outside `keep`, of sum_t counts_t |W x_t - y_t|^2 + ridge |W - weight|^2, row by row, with
    the ridge that few samples get: a thousandth of the mean of the diagonal, and a tenth of K / R of it."""
    gram, cross = (data.T * counts) @ data / counts.sum(), (wanted.T * counts) @ data / counts.sum()
    size, seen = len(gram), np.count_nonzero(counts)
    ridge = np.trace(gram) / size * (1e-3 + 0.1 * size / seen)
    gram, cross, out = gram + ridge * np.eye(size), cross + ridge * weight, np.zeros(weight.shape)
    for row, at in enumerate(keep):
        out[row, at] = np.linalg.solve(gram[np.ix_(at, at)], cross[row, at])
    return out


ROUTINGS: dict[str, Callable[[Array], Array]] = {
    "tokens it is given, by their shares": lambda share: np.square(share),
    "all tokens": np.ones_like,
    "tokens it is given, alike": lambda share: np.asarray(share > 0, np.float64),
    "by the shares themselves": lambda share: share,
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Array], Array, Path]:
    """A model, samples, and a folder with the model pruned on them."""
    folder, stored = tmp_path_factory.mktemp("mixture"), weights(4, True)
    x = samples(folder / "x.npy")
    found = pruned(saved(folder / "m.onnx", stored, **HOW), folder / "x.npy", folder / "p.onnx")
    assert found.verification.kind == "exact"
    return stored, x, folder


@pytest.mark.parametrize("counting", ROUTINGS)
@pytest.mark.parametrize("expert", range(E))
def test_each_expert_is_fitted_as_a_layer_of_its_own(
    example: tuple[dict[str, Array], Array, Path], expert: int, counting: str
) -> None:
    """On what the pruned model gives it, at the tokens that that gives it, to what the original's expert yields there.
    Everything else that could be meant is something else."""
    stored, x, folder = example
    new = of_file(folder / "p.onnx")
    (h, scores), (h0, scores0) = hidden(new, x), hidden(stored, x)
    shares = routed(scores, normalize=1)
    assert (shares[:, expert] > 0).sum() not in (0, len(h))
    assert ((shares > 0) != (routed(scores0, normalize=1) > 0)).any()  # pruning has moved some tokens
    u0, _, a0 = inner(stored, expert, h0, **HOW)
    a = inner(new, expert, h, **HOW)[2]
    counts = ROUTINGS[counting](shares[:, expert])
    far = []
    for name, data, wanted in (("w1", h, u0), ("w2", a, a0 @ stored["w2"][expert].T)):
        before, after = stored[name][expert].astype(np.float64), new[name][expert]
        assert abs(np.count_nonzero(after == 0) - after.size / 2) <= 1
        expected = refit(data, wanted, before, counts, keep=after != 0)
        far.append(np.abs(expected - after).max() / np.abs(after).max())
    # sums of float32 products, solved with condition numbers of some hundreds
    assert max(far) < 1e-3 if counting == next(iter(ROUTINGS)) else min(far) > 1e-2


METHOD_CASES: list[dict[str, Any]] = [
    {}, {"method": "obs"}, {"method": "wanda"}, {"method": "admm"}, {"sparsity": None, "pattern": "2:4"},
    {"method": "obs", "sparsity": None, "pattern": "1:4"}, {"scope": "row"}, {"allocate": "loss"}, {"allocate": "erk"},
    {"pattern": "1x4"}, {"shards": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", METHOD_CASES, ids=lambda o: "-".join(map(str, o.values())) or "sparsegpt")
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biases"])
def test_it_errs_less_than_magnitude(tmp_path: Path, options: dict[str, Any], bias: bool) -> None:
    """At the same sparsity, on samples that it has not seen."""
    stored = weights(6, True, bias=bias)
    model, _ = saved(tmp_path / "m.onnx", stored, **HOW), samples(tmp_path / "x.npy", 20, 60)
    found = pruned(model, tmp_path / "x.npy", tmp_path / "p.onnx", **options)
    assert found.verification.kind == "exact" and not [skip for skip in found.skipped if skip.name[0] == "w"]
    shared = {k: v for k, v in ({"sparsity": 0.5} | options).items() if k in ("sparsity", "pattern", "scope")}
    prunecli.magnitude(model, output=tmp_path / "q.onnx", **shared)
    new, plain = of_file(tmp_path / "p.onnx"), of_file(tmp_path / "q.onnx")
    zeros = [int(sum((each[n] == 0).sum() for n in ("inw", "router", "w1", "w2"))) for each in (new, plain)]
    keep = {"2:4": 2, "1:4": 1}.get(str(options.get("pattern")))
    if keep is not None:
        assert all((np.count_nonzero(new[n].reshape(-1, 4), axis=1) <= keep).all() for n in ("w1", "w2"))
    assert abs(zeros[0] - zeros[1]) <= 40  # a unit, or the rounding of a row, in each of the matrices
    seen = samples(tmp_path / "unseen.npy", 20, 60, seed=77)
    wanted, got, other = (mixture(each, seen, **HOW) for each in (stored, new, plain))
    errors = [float(np.square(one - wanted).mean()) for one in (got, other)]
    assert errors[0] < 0.8 * errors[1]
    layer = next(one for one in found.layers if one.weight == "w2")
    assert len(layer.details["experts"]) == E and all(one["tokens"] > 0 for one in layer.details["experts"])
    assert layer.details["reconstruction_error"] == pytest.approx(
        np.mean([one["reconstruction_error"] for one in layer.details["experts"]])
    )


@pytest.mark.parametrize("options", [{}, {"allocate": "loss"}, {"sparsity": None, "pattern": "2:4"}, {"method": "obs"}],
                         ids=["uniform", "loss", "2:4", "obs"])  # fmt: skip
def test_an_expert_without_tokens_goes_by_magnitude_and_is_told(tmp_path: Path, options: dict[str, Any]) -> None:
    stored = weights(7, True, bias=True)
    stored["inw"][:, 0] = 0.1 * np.abs(stored["inw"][:, 0])
    stored["router"][:, 2] = 0
    stored["router"][0] = [0, 0, -40, 0]
    model, x = saved(tmp_path / "m.onnx", stored, **HOW), np.abs(samples(tmp_path / "x.npy", 20, 60)) + 0.5
    np.save(tmp_path / "x.npy", x)
    assert not routed(hidden(stored, x)[1])[:, 2].any()
    found = pruned(model, tmp_path / "x.npy", tmp_path / "p.onnx", exclude=("inw", "router"), **options)
    new = of_file(tmp_path / "p.onnx")
    for name in ("w1", "w2"):
        before, after = stored[name][2], new[name][2]
        gone = after == 0
        assert np.count_nonzero(gone) == before.size // 2
        assert (after[~gone] == before[~gone]).all()
        if "pattern" not in options:
            assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        told = next(one for one in found.layers if one.weight == name).details["experts"]
        assert [one["tokens"] > 0 for one in told] == [True, True, False, True]
    assert (new["b1"][2] == stored["b1"][2]).all() and (new["b1"][0] != stored["b1"][0]).any()
    assert [note for note in found.notes if "2 matrices of experts" in note and "w1[2], w2[2]" in note]
    assert found.verification.kind == "exact"


def test_weights_in_half_precision(tmp_path: Path) -> None:
    """Are fitted in float32, and stored as they were."""
    stored = weights(9, True, bias=True)
    model, _ = saved(tmp_path / "m.onnx", stored, np.float16, **HOW), samples(tmp_path / "x.npy", 20, 60)
    found = pruned(model, tmp_path / "x.npy", tmp_path / "p.onnx")
    prunecli.magnitude(model, output=tmp_path / "q.onnx", sparsity=0.5)
    assert found.verification.kind == "exact"
    before, new, plain = (of_file(each) for each in (model, tmp_path / "p.onnx", tmp_path / "q.onnx"))
    assert all(new[name].dtype == array.dtype and new[name].shape == array.shape for name, array in before.items())
    seen = samples(tmp_path / "unseen.npy", 20, 60, seed=77)
    wanted, got, other = (mixture(each, seen, **HOW) for each in (before, new, plain))
    assert np.square(got - wanted).mean() < 0.8 * np.square(other - wanted).mean()


def test_a_run_that_was_cut_short_continues(
    example: tuple[dict[str, Array], Array, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of some of the ten layers, to the same file."""
    from prunecli.calibration.fitted import LayerJournal

    folder, put = example[2], LayerJournal.put
    whole = (folder / "p.onnx").read_bytes()
    for after in (0, 3, 4, 9):
        left, state = [after], folder / f"state{after}"

        def counted(journal: Any, *args: Any, left: list[int] = left, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return put(journal, *args, **named)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LayerJournal, "put", counted)
            pruned(folder / "m.onnx", folder / "x.npy", folder / "r.onnx", state=state)
        left[0] = 2 + 2 * E - after  # no more than these are fitted
        monkeypatch.setattr(LayerJournal, "put", counted)
        pruned(folder / "m.onnx", folder / "x.npy", folder / "r.onnx", state=state)
        monkeypatch.undo()
        assert (folder / "r.onnx").read_bytes() == whole


def test_a_plan_is_fitted_again(example: tuple[dict[str, Array], Array, Path]) -> None:
    folder = example[2]
    pruned(folder / "m.onnx", folder / "x.npy", folder / "a.onnx", save_plan=folder / "plan.json")
    prunecli.oneshot(folder / "m.onnx", data=folder / "x.npy", output=folder / "b.onnx", plan=folder / "plan.json")
    one, two = of_file(folder / "a.onnx"), of_file(folder / "b.onnx")
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
def test_scores_are_measured_of_mixtures(tmp_path: Path, criterion: str) -> None:
    """wanda: the norm of each input over the tokens of the expert; an expert without tokens has no score."""
    stored = weights(8, True)
    path, x = saved(tmp_path / "m.onnx", stored, **HOW), samples(tmp_path / "x.npy")
    file = load(path)
    chosen = find_weights(file).prunable
    how = Fitting(data=DataOptions(str(tmp_path / "x.npy")))
    found, left = measured_scores(file, chosen, criterion, pattern="element", options=how, progress=no_progress)
    assert not left and {name: score.shape for name, score in found.items()} == {w.name: w.shape for w in chosen}
    if criterion == "wanda":
        h, scores = hidden(stored, x)
        share = np.square(routed(scores, normalize=1))
        norms = np.sqrt([share[:, e] @ np.square(h) / share[:, e].sum() for e in range(E)])
        np.testing.assert_allclose(found["w1"], np.broadcast_to(norms[:, None], found["w1"].shape), rtol=1e-4)


def test_quantised_mixtures_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", weights(), activation_type="silu")
    samples(tmp_path / "x.npy")
    model = onnx.load(str(path))
    node = model.graph.node[4]
    node.op_type = "QMoE"
    packed = {"w1": (E, INNER, H // 2), "w2": (E, H, INNER // 2)}
    for name, shape in packed.items():
        place = next(k for k, t in enumerate(model.graph.initializer) if t.name == name)
        model.graph.initializer[place].CopyFrom(numpy_helper.from_array(np.full(shape, 0x88, np.uint8), name))
    scales = {"s1": (E, INNER), "s2": (E, H)}
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in scales.items())
    node.input[:] = ["h", "r", "w1", "s1", "", "w2", "s2", ""]
    onnx.save(model, path)
    found = pruned(path, tmp_path / "x.npy", tmp_path / "p.onnx")
    told = {skip.name: skip.reason for skip in found.skipped}
    assert "stored as integers" in told["w1"] and "stored as integers" in told["w2"]
    new = of_file(tmp_path / "p.onnx")
    assert all((new[name] == 0x88).all() for name in packed)
    with pytest.raises(PruneError, match="stored as integers"):
        pruned(path, tmp_path / "x.npy", tmp_path / "p.onnx", include=("w1",))
