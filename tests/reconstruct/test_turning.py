"""Dimensions inside heads: found in every spelling, turned without a change of the function, and as they lose least."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.layerwise import Store, Walk
from prunecli.model import Dims
from prunecli.reconstruct import refit as module
from prunecli.reconstruct.refit import output_error, refit
from prunecli.reconstruct.turning import Couplings, TurnedModel, turn, turned
from prunecli.runtime import Session
from prunecli.structures.damage import DamageSource, curves
from prunecli.structures.prunable import AnalysedAs, Cuttable, open_cuttable
from tests.model.build import floats, node, proto, save_proto

Array = np.ndarray[Any, Any]
WIDTH, TIME, HEADS, SIZE = 12, 5, 3, 4


class Attention:
    """One attention, x (n, 5, 12), as exporters spell it. Options change how; `rank` is that of keys, per head."""

    def __init__(self, **options: Any) -> None:
        self.options, self.nodes, self.weights = options, list[onnx.NodeProto](), dict[str, Array]()
        self.groups = options.get("groups", HEADS)
        self.outputs = ["y"]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, list(inputs), [name], **attributes))
        return name

    def stored(self, name: str, array: Any) -> str:
        self.weights[name] = np.asarray(array)
        return name

    def projected(self, kind: str, heads: int, seed: int) -> str:
        weight = floats(WIDTH, heads, SIZE, seed=seed)
        if kind == "k" and (rank := self.options.get("rank")):
            weight = weight[..., :rank] @ floats(rank, SIZE, seed=9)
        flat = self.add("MatMul", "x", self.stored(f"w{kind}", weight.reshape(WIDTH, -1)))
        if self.options.get("bias", True) and not self.options.get("rank"):
            flat = self.add("Add", flat, self.stored(f"b{kind}", floats(heads * SIZE, seed=seed + 10) + 1))
        return flat

    def packed(self) -> list[str]:
        weight = self.stored("wqkv", floats(WIDTH, 3 * HEADS * SIZE, seed=1))
        flat = self.add("Add", self.add("MatMul", "x", weight), self.stored("bqkv", floats(3 * HEADS * SIZE, seed=2)))
        names = ["q", "k", "v"]
        self.nodes.append(node("Split", [flat, self.stored("sizes", [HEADS * SIZE] * 3)], names, axis=-1))
        return names

    def split(self, flat: str, heads: int, perm: list[int]) -> str:
        shape = self.stored(f"shape{heads}", np.array([-1, TIME, heads, SIZE]))
        out = self.add("Transpose", self.add("Reshape", flat, shape), perm=perm)
        if heads == HEADS:
            return out
        sizes = [1, HEADS, 1, 1]  # one head serves all queries
        return self.add("Expand", out, self.stored("sizes", np.array(sizes)))

    def turn_pairs(self, value: str) -> str:
        """As rotary embeddings do."""
        angles = np.arange(TIME)[:, None] * np.array([1.0, 0.1, 1.0, 0.1])
        ends = [self.stored(name, np.array([at])) for name, at in (("zero", 0), ("two", 2), ("four", 4), ("axis", 3))]
        first, second = (self.add("Slice", value, ends[n], ends[n + 1], ends[3]) for n in (0, 1))
        half = self.add("Concat", self.add("Neg", second), first, axis=-1)
        cos = self.add("Mul", value, self.stored("cos", np.cos(angles).astype(np.float32)))
        return self.add("Add", cos, self.add("Mul", half, self.stored("sin", np.sin(angles).astype(np.float32))))

    def build(self) -> onnx.ModelProto:
        given = self.options
        kinds = ("q", HEADS, 3), ("k", self.groups, 4), ("v", self.groups, 5)
        q, k, v = self.packed() if given.get("packed") else [self.projected(*kind) for kind in kinds]
        fused = given.get("fused", False)
        q = self.split(q, HEADS, [0, 2, 1, 3])
        k = self.split(k, self.groups, [0, 2, 1, 3] if fused or given.get("rotary") else [0, 2, 3, 1])
        v = self.split(v, self.groups, [0, 2, 1, 3])
        if given.get("rotary"):
            q, k = self.turn_pairs(q), self.add("Transpose", self.turn_pairs(k), perm=[0, 1, 3, 2])
        if given.get("cache"):
            self.outputs.append(k)
        if given.get("gated"):
            q = self.add("Mul", q, self.add("Sigmoid", q))
        if given.get("scaled"):
            q, k = (
                self.add("Mul", q, self.stored("two", np.float32(2))),
                self.add("Div", k, self.stored("seven", np.float32(7))),
            )
        product = (
            self.add("FusedMatMul", q, k, domain="com.microsoft", transB=1, alpha=0.4)
            if fused
            else self.add("MatMul", q, k)
        )
        scores = self.add("Mul", product, self.stored("half", np.float32(0.5)))
        if given.get("softmax", True):
            scores = self.add("Softmax", scores, axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", scores, v), perm=[0, 2, 1, 3])
        flat = self.add("Reshape", mixed, self.stored("shape", np.array([-1, TIME, HEADS * SIZE])))
        out = self.add("MatMul", flat, self.stored("wo", floats(HEADS * SIZE, WIDTH, seed=6)))
        self.nodes.append(node("Add", [out, self.stored("bo", floats(WIDTH, seed=7))], ["y"]))
        return proto(
            self.nodes, {"x": ("n", TIME, WIDTH)}, self.outputs, self.weights, domains=["com.microsoft"] * bool(fused)
        )


def feeds(count: int = 4) -> list[dict[str, Array]]:
    """Means that are not zero, and inputs that vary in some directions more than in others."""
    mixing = floats(WIDTH, WIDTH, seed=20) + 0.3
    return [{"x": floats(16, TIME, WIDTH, seed=30 + n) @ mixing + 0.5} for n in range(count)]


def subject(folder: Path, **options: Any) -> Cuttable:
    return open_cuttable(save_proto(Attention(**options).build(), folder), AnalysedAs("channel,head,head_dim"), Dims())


Q, V = ("wq", "wk", HEADS, (False, True)), ("wv", "wo", HEADS, (True, False))
SPELLINGS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "plain": ({}, [Q, V]),
    "without biases": ({"bias": False}, [Q, V]),
    "packed": ({"packed": True}, [("wqkv", "wqkv", HEADS, (False, True)), ("wqkv", "wo", HEADS, (True, False))]),
    "scaled before": ({"scaled": True}, [Q, V]),
    "keys transposed by the product": ({"fused": True}, [Q, V]),
    "one head of keys for all queries": ({"groups": 1}, [("wq", "wk", 1, Q[3]), ("wv", "wo", 1, V[3])]),
    "no Softmax": ({"softmax": False}, [("wq", "wk", HEADS, (False, False)), V]),
    "rotary": ({"rotary": True}, [V]),
    "keys are given out": ({"cache": True}, [V]),
    "queries gated": ({"gated": True}, [V]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_is_found_is_turned_and_the_function_stays(name: str, tmp_path: Path) -> None:
    options, wanted = SPELLINGS[name]
    model, data = subject(tmp_path, **options).work, feeds()
    with Store() as store:
        found = list(Couplings(model, Walk(model, data, store, Session.open, keep=())))
    told = [(c.left.layer.name, c.right.layer.name, len(np.unique(c.alike)), c.centred) for c in found]
    assert told == wanted
    out = turned(model, CalibrationBatches(data, len(data)))
    assert len(out.done) == len(wanted)
    assert any(
        not np.array_equal(
            out.model.graph.initializers[n].const_value.numpy(), model.graph.initializers[n].const_value.numpy()
        )
        for n in out.changed
    )
    # float32 keeps 7 digits, and roots of moments with a ridge of 1e-5 are off by a factor of at most 300
    assert output_error(model, [out.model], CalibrationBatches(data, len(data)))[0] < 1e-8


class Cut:
    """Dimensions `gone` of every head, of queries and keys or of values."""

    def __init__(self, folder: Path, weight: str, gone: list[int], **options: Any) -> None:
        self.subject = subject(folder, **options)
        group = next(g for g in self.subject.units.groups if g.kind == "head_dim" and (weight, 1) in g.weights)
        mask = np.zeros(self.subject.units.count, bool)
        mask[group.first + np.array(gone)] = True
        self.removed = self.subject.units.removed(mask)
        self.model = self.subject.without(mask, self.removed)
        self.data = CalibrationBatches(feeds(), 3)

    def refitted(self) -> float:
        fitted = self.model.clone()
        refit(self.subject.work, fitted, self.removed, self.data)
        return output_error(self.subject.work, [fitted], self.data)[0]


def per_head(model: Any, kind: str, x: Array) -> Array:
    """Queries or keys of a model, (heads, positions, dimensions)."""
    stored = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    flat = x.reshape(-1, WIDTH) @ stored[f"w{kind}"] + stored[f"b{kind}"]
    return flat.reshape(len(flat), HEADS, -1).transpose(1, 0, 2)


def test_scores_lose_no_more_than_any_of_that_rank_must(tmp_path: Path) -> None:
    """The least squared error of a bilinear form at rank r, over all pairs, is the sum of the smallest eigenvalues of the
    product of both second moments; keeping the dimensions and mixing them as well as can be loses more."""
    cut = Cut(tmp_path, "wq", [1, 2])
    x = np.concatenate([feed["x"] for feed in cut.data.feeds[:3]])
    q, k = (per_head(cut.subject.work, kind, x) for kind in "qk")
    k = k - k.mean(axis=1, keepdims=True)
    gq, gk = (np.einsum("hnd,hne->hde", one, one) / one.shape[1] for one in (q, k))
    least = sum(np.sort(np.linalg.eigvals(a @ b).real)[:2].sum() for a, b in zip(gq, gk, strict=True))

    turn(cut.subject.work, cut.model, cut.removed, data=cut.data)
    q_cut, k_cut = (per_head(cut.model, kind, x) for kind in "qk")
    k_cut = k_cut - k_cut.mean(axis=1, keepdims=True)

    def error(q_: Array, k_: Array) -> float:
        each = zip(q, k, q_, k_, strict=True)
        return sum(float(np.square(a @ b.T - c @ d.T).mean()) for a, b, c, d in each)

    mixed = [
        q_[:, [0, 3]] @ np.linalg.pinv(q_[:, [0, 3]]) @ q_ @ (k_.T @ np.linalg.pinv(k_[:, [0, 3]]).T)
        for q_, k_ in zip(q, k, strict=True)
    ]
    assert error(q_cut, k_cut) == pytest.approx(least, rel=1e-2)  # the ridge on both moments
    assert error(np.stack(mixed), k[..., [0, 3]]) > 1.5 * least


@pytest.mark.parametrize("options", [{}, {"groups": 1}, {"packed": True}], ids=["plain", "grouped", "packed"])
@pytest.mark.parametrize("weight", ["wq", "wv"])
def test_the_outputs_lose_less(
    weight: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("packed"):
        weight = "wqkv"
    cut = Cut(tmp_path, weight, [0, 3], **options)
    after = cut.refitted()
    monkeypatch.setattr(module, "turn", lambda original, *args, **more: TurnedModel(original))
    assert after < 0.9 * cut.refitted()


def test_keys_of_a_lower_rank_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = Cut(tmp_path, "wq", [0, 2], rank=2)
    assert cut.refitted() < 1e-6  # the smallest ridge leaves about 1e-6 of each layer's error
    monkeypatch.setattr(module, "turn", lambda original, *args, **more: TurnedModel(original))
    assert cut.refitted() > 1e-3


def test_measured_damage_knows_of_it(tmp_path: Path) -> None:
    found, data = subject(tmp_path, rank=2), feeds()
    group = next(g for g in found.units.groups if g.kind == "head_dim" and ("wq", 1) in g.weights)
    heads = turned(found.work, CalibrationBatches(data, 3))
    source = DamageSource(heads.model, found.units, data[:3], data[3:], rank=heads.rank)
    (curve,) = curves(source, [(group, 3, range(SIZE, 0, -1))])
    assert curve.order == [3, 2, 1]
    assert curve.damage[2] < 1e-6 < 1e-3 < curve.damage[3]


def test_what_does_not_pay_stays(tmp_path: Path) -> None:
    """Dimensions that hold nothing go for nothing."""
    model = Attention().build()
    for initializer in model.graph.initializer:
        if initializer.name in ("wk", "bk"):
            array = np.array(onnx.numpy_helper.to_array(initializer))
            array.reshape(-1, HEADS, SIZE)[..., 2] = 0
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    found = open_cuttable(save_proto(model, tmp_path), AnalysedAs("channel,head,head_dim"), Dims())
    group = next(g for g in found.units.groups if g.kind == "head_dim" and ("wq", 1) in g.weights)
    mask = np.zeros(found.units.count, bool)
    mask[group.first + 2] = True
    removed = found.units.removed(mask)
    cut = found.without(mask, removed)
    before = {name: value.const_value.numpy().copy() for name, value in cut.graph.initializers.items()}
    out = turn(found.work, cut, removed, data=CalibrationBatches(feeds(), 3))
    assert not out.done
    assert all(
        np.array_equal(before[name], value.const_value.numpy()) for name, value in cut.graph.initializers.items()
    )
