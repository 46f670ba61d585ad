"""Damage predicted from the file: figures by hand, curves that do not depend on order, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import prunecli
from prunecli import PruneError
from prunecli.model import Dims, find_weights, load
from prunecli.predicted.features import ELEMENT_LEVELS, PLAIN, WIDTH, Undescribed, describe_weights
from prunecli.predicted.flow import flow_of
from prunecli.predicted.predict import NETWORK, group_curves, weight_curves
from prunecli.structures.decide import decide
from prunecli.structures.decision import Decided
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.types import no_progress
from tests.tiny import ROOT, write

CNN, CALIB = ROOT / "sample_models" / "digits-cnn.onnx", ROOT / "sample_models" / "digits-calib.npz"
RESIDUAL = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 3, 2, 4}, float[2,2] v = {1, 0, 0, 1}> {
  a = MatMul(x, w)
  s = Add(a, x)
  r = Relu(s)
  y = MatMul(r, v)
}"""
PARALLEL = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 3, 2, 4}, float[2,2] v = {1, 0, 2, 1}> {
  a = MatMul(x, w)
  b = MatMul(x, v)
  y = Add(a, b)
}"""
NUMBERS = ", ".join(str(number + 1) for number in range(16))
TRANSPOSED = f"""g (float[N,4,5,5] x) => (float[N,4,5,5] y) <float[4,4,1,1] w = {{{NUMBERS}}}, float[4,4,1,1] v = {{{NUMBERS}}}> {{
  a = ConvTranspose(x, w)
  r = Relu(a)
  y = Conv(r, v)
}}"""


def transposed(folder: Path) -> Path:
    """A file with an operator that the network was not trained on."""
    return write(folder / "transposed.onnx", TRANSPOSED)


def test_power_and_reach_of_a_residual_sum(tmp_path: Path) -> None:
    """w has the rows (1, 2) and (3, 4): a mean of 15 for their squares; the sum hands on 15/16 to it."""
    file = load(write(tmp_path / "m.onnx", RESIDUAL))
    found = flow_of(file.ir.graph, find_weights(file).prunable)
    values = {v.name: v for v in found.power}
    powers = {"x": 1.0, "a": 15.0, "s": 16.0, "r": 8.0, "y": 8.0}
    assert {name: found.power[values[name]] for name in powers} == pytest.approx(powers)
    reaches = {"y": 1.0, "r": 1.0, "s": 1.0, "a": 15 / 16, "x": 1 / 16 + 15 / 16}
    assert {name: found.reach[values[name]] for name in reaches} == pytest.approx(reaches)
    assert (found.sums[values["a"]], found.sums[values["r"]]) == (1, 0)


GATED = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 3, 2, 4}, float[2] f = {1, 3}, float[1] d = {2}, float[2,2] v = {1, 0, 0, 1}> {
  a = MatMul(x, w)
  b = Mul(a, f)
  s = Sigmoid(b)
  g = Mul(b, s)
  h = Div(g, d)
  q = Div(g, f)
  m = MatMul(h, q)
  y = MatMul(m, v)
}"""


def test_power_of_factors_gates_and_products(tmp_path: Path) -> None:
    """A mean square of 5 for f; what is one number counts as none; a gate has a power of its own."""
    file = load(write(tmp_path / "m.onnx", GATED))
    found = flow_of(file.ir.graph, find_weights(file).prunable)
    values = {v.name: v for v in found.power}
    powers = {"a": 15.0, "b": 75.0, "s": 0.25, "g": 75 / 4, "h": 75 / 4, "q": 75 / 20, "m": 75 / 4 * 75 / 20}
    assert {name: found.power[values[name]] for name in powers} == pytest.approx(powers)
    reaches = {"m": 1.0, "h": 0.5, "q": 0.5, "g": 1.0, "s": 0.5, "b": 0.5 + 0.5 / 4, "a": 0.625}
    assert {name: found.reach[values[name]] for name in reaches} == pytest.approx(reaches)
    assert found.gated[values["b"]] and not found.gated[values["m"]]


def test_figures_of_a_layer(tmp_path: Path) -> None:
    """Half of w are 1 and 2: 5 of a power of 30, of which 15/16 reach the outputs."""
    found = describe_weights(load(write(tmp_path / "m.onnx", RESIDUAL)))
    assert found.names == ("w", "v")
    assert found.gone[0, ELEMENT_LEVELS.index(0.5)] == pytest.approx(np.log(5 / 30 * 15 / 16))
    row = dict(zip(PLAIN, found.features[0], strict=False))
    expected = {"dense": 1, "conv": 0, "any sum": 1, "readers": np.log1p(1), "before": 0.5, "first": 1, "last": 0}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["spectral norm"] == pytest.approx(np.log(5.4650 / (np.sqrt(7.5) * 2 * np.sqrt(2))), abs=1e-4)
    assert found.reads.tolist() == [[0, 0], [1, 0]] and found.features.shape == (2, WIDTH)


@pytest.mark.parametrize("body", [RESIDUAL, PARALLEL])
def test_the_order_of_nodes_and_tensors_does_not_matter(tmp_path: Path, body: str) -> None:
    path = write(tmp_path / "m.onnx", body)
    proto = onnx.load(path)
    tensors = list(proto.graph.initializer)[::-1]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    if body is PARALLEL:
        nodes = [proto.graph.node[i] for i in (1, 0, 2)]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "other.onnx")
    one, other = (weight_curves(load(tmp_path / name)) for name in ("m.onnx", "other.onnx"))
    assert list(one) == list(other)[::-1]
    for name, curve in one.items():
        assert curve.losses == pytest.approx(other[name].losses, rel=1e-4)


def test_curves_rise_and_are_the_same_again() -> None:
    found = open_cuttable(CNN, AnalysedAs("channel,head"), Dims())
    several = [weight_curves(load(CNN)), group_curves(replace(found.file, ir=found.work), found.units)]
    again = [weight_curves(load(CNN)), group_curves(replace(found.file, ir=found.work), found.units)]
    assert several == again
    for curves in several:
        assert curves and all((np.diff(curve.losses) >= 0).all() and min(curve.losses) > 0 for curve in curves.values())


def test_the_network_is_small() -> None:
    assert NETWORK.stat().st_size <= 200_000


@pytest.mark.parametrize("command", ["magnitude", "gradient", "oneshot"])
def test_zeros_by_predicted_damage(tmp_path: Path, command: str) -> None:
    """Exactly as many as asked, and more from what matters less: the last block, not the first layer or the last."""
    data = {} if command == "magnitude" else {"data": CALIB, "limit": 64}
    run = getattr(prunecli, command)
    found = run(CNN, sparsity=0.8, allocate="predicted", output=tmp_path / "out.onnx", **data)
    gone = {layer.weight: 1 - layer.nonzero / layer.params for layer in found.layers}
    sizes = {layer.weight: layer.params for layer in found.layers}
    assert sum(layer.params - layer.nonzero for layer in found.layers) == round(0.8 * sum(sizes.values()))
    assert gone["block2.conv2.weight"] > 0.8 > gone["fc.weight"] and gone["stem.conv.weight"] < 0.6
    assert found.recipe["allocate"] == "predicted"


@pytest.mark.parametrize(
    "options, allocation",
    [
        ({}, "predicted"),
        ({"macs": None, "params": 0.5}, "predicted"),
        ({"criterion": "l2-in"}, None),
        ({"scope": "global"}, None),
        ({"recover": "none"}, None),
        ({"recover": "none", "allocate": "predicted"}, "predicted"),
        ({"macs": None, "ratio": 0.5}, None),
        ({"data": str(CALIB), "limit": 32, "criterion": "l2-in", "recover": "none"}, None),
    ],
)
def test_structures_by_predicted_damage(options: dict, allocation: str | None, tmp_path: Path) -> None:
    """By default where layers are refitted on made pictures; whoever says how units compete, or fits nothing, has the
    scores. The recipe says which."""

    def decided(options: dict) -> Decided:
        asked = StructuredOptions(**{"macs": 0.5, "round_to": 1, "dry_run": True, **options})
        return decide(CNN, tmp_path / "out.onnx", asked, no_progress)[1]

    found = decided(options)
    by_scores = decided({**options, "allocate": None, "recover": "none"})
    assert found.recipe.get("allocate") == allocation
    assert any("as the damage is predicted" in note for note in found.notes) == (
        allocation is not None and "allocate" not in options
    )
    assert np.array_equal(found.removed, by_scores.removed) == (allocation is None)


@pytest.mark.parametrize(
    "allocate, same",
    [
        ("uniform", {"scope": "layer"}),
        pytest.param(
            "loss", {"criterion": "obs", "data": str(CALIB), "limit": 32, "recover": "none"}, marks=pytest.mark.slow
        ),
    ],
)
def test_structures_by_an_allocation_that_is_named(allocate: str, same: dict, tmp_path: Path) -> None:
    """By another name the same cut; without what it needs, or against it, a refusal."""
    given = {"macs": 0.5, "round_to": 1, "timing": False, "force": True, "output": tmp_path / "cut.onnx"}
    data = {name: value for name, value in same.items() if name not in ("scope", "criterion")}
    found, other = (prunecli.structured(CNN, **given, **how) for how in ({"allocate": allocate, **data}, same))
    assert [g.after for g in found.groups] == [g.after for g in other.groups]
    assert found.recipe["allocate"] == allocate
    with pytest.raises(PruneError, match=r"contradict|measured damage"):
        prunecli.structured(CNN, **given, allocate=allocate, scope="global" if allocate == "uniform" else "layer")


def test_what_is_not_known_falls_back_with_a_note(tmp_path: Path) -> None:
    path = transposed(tmp_path)
    with pytest.raises(Undescribed, match="ConvTranspose"):
        weight_curves(load(path))
    found = prunecli.magnitude(path, sparsity=0.5, allocate="predicted", output=tmp_path / "a.onnx")
    other = prunecli.magnitude(path, sparsity=0.5, scope="erk", output=tmp_path / "b.onnx")
    assert [one.nonzero for one in found.layers] == [one.nonzero for one in other.layers]
    assert found.recipe["allocate"] == "erk" and any("ConvTranspose" in note for note in found.notes)
    for options in ({"ratio": 0.5, "allocate": "predicted"}, {"params": 0.6}):
        cut = prunecli.structured(path, **options, output=tmp_path / "c.onnx", force=True)
        assert any("ConvTranspose" in note for note in cut.notes) and "allocate" not in cut.recipe
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 4, 5, 5)).astype(np.float32))
    measured = prunecli.sensitivity(path, data=data, levels=(0.5,), predicted=True, jobs=1)
    assert measured.ranking is None and any("ConvTranspose" in note for note in measured.notes)


def test_a_model_without_units_has_nothing_to_cut(tmp_path: Path) -> None:
    """Predicted or not: the network is not asked of no groups."""
    model = write(
        tmp_path / "m.onnx", "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 3, 2, 4}> { y = MatMul(x, w) }"
    )
    with pytest.raises(PruneError, match="nothing can be cut"):
        prunecli.structured(model, params=0.5, allocate="predicted", output=tmp_path / "o.onnx")


USED_IN = {
    "a function": ("w", """g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {NUMBERS}, float[4,4] v = {NUMBERS}> {
  a = my.layer(x, w)
  y = MatMul(a, v)
}
<domain: "my", opset_import: ["" : 17]> layer (X, W) => (Y) {
  m = MatMul(X, W)
  Y = Relu(m)
}"""),
    "a body": ("v", """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {NUMBERS}, float[4,4] v = {NUMBERS}> {
  a = MatMul(x, w)
  y = If(c) <then_branch = t () => (float[N,4] p) { p = MatMul(a, v) }, else_branch = e () => (float[N,4] q) { q = Neg(a) }>
}"""),
}  # fmt: skip


@pytest.mark.parametrize("name", USED_IN)
def test_what_is_used_inside_is_not_known_and_what_it_reads_reaches_the_output(name: str, tmp_path: Path) -> None:
    inner, body = USED_IN[name]
    text = body.replace("NUMBERS", NUMBERS)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "my" : 1]> {text}')
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    file = load(tmp_path / "m.onnx")
    with pytest.raises(Undescribed, match=f"{inner}: .* used inside a body or a function"):
        weight_curves(file)
    (outer,) = {"w", "v"} - {inner}
    (curve,) = weight_curves(file, [outer]).values()
    assert max(curve.losses) > 1e-3


def test_weights_that_are_zero_or_no_numbers(tmp_path: Path) -> None:
    """Nothing is lost with what is zero; NaN is refused by whoever would zero it."""
    path = write(tmp_path / "zero.onnx", RESIDUAL.replace("{1, 0, 0, 1}", "{0, 0, 0, 0}"))
    assert all(np.isfinite(curve.losses).all() for curve in weight_curves(load(path)).values())
    proto = onnx.load(path)
    array = np.array([[1, np.nan], [3, 4]], np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    onnx.save(proto, path)
    with pytest.raises(PruneError, match="NaN"):
        prunecli.magnitude(path, sparsity=0.5, allocate="predicted", output=tmp_path / "out.onnx")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 0.5, "scope": "global"}, "both say how layers compete"),
        ({"threshold": 0.1}, "looks at each weight by itself"),
        ({"pattern": "2:4"}, "says how much of each layer goes"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str) -> None:
    with pytest.raises(PruneError, match=message):
        prunecli.magnitude(CNN, allocate="predicted", **options)


def test_sensitivity_is_predicted_and_checked() -> None:
    found = prunecli.sensitivity(CNN, data=CALIB, predicted=True, jobs=1)
    assert found.proxy == "predicted" and found.ranking is not None and found.ranking.correlation > 0.7
    assert found.measured == found.ranking.checked


@pytest.mark.parametrize("granularity", ["element", "channel,head"])
def test_sensitivity_is_predicted_without_data(tmp_path: Path, granularity: str) -> None:
    found = prunecli.sensitivity(CNN, predicted=True, granularity=granularity, levels=(0.5, 0.75))
    kept = open_cuttable(CNN, AnalysedAs("channel,head"), Dims())
    curves = (
        weight_curves(load(CNN))
        if granularity == "element"
        else group_curves(replace(kept.file, ir=kept.work), kept.units)
    )
    assert (
        found.metric is None
        and found.ranking is None
        and found.samples == 0
        and {row.layer.name for row in found.rows} == set(curves)
    )
    for row in found.rows:
        assert [p.damage for p in row.points] == [
            curves[row.layer.name].at(np.array([1 - p.fraction]))[0] for p in row.points
        ]
    assert found.to_json()["proxy"] == {"correlation": None, "checked": 0, "by": "predicted"}
    with pytest.raises(PruneError, match="ConvTranspose"):
        prunecli.sensitivity(transposed(tmp_path), predicted=True)
    with pytest.raises(PruneError, match="fisher needs data"):
        prunecli.sensitivity(CNN, predicted=True, criterion="fisher")


@pytest.mark.slow
def test_the_search_needs_fewer_trials(tmp_path: Path) -> None:
    data = ROOT / "sample_models" / "digits-test.npz"
    how = {"data": data, "max_drop": 0.05, "jobs": 1, "dry_run": True, "criterion": "l1", "rounds": 1}
    slow, fast = (prunecli.adaptive(CNN, strategy=name, **how) for name in ("search", "predicted"))
    assert fast.reached and fast.measured < slow.measured
