"""Whole experts of a mixture: cut with what the router has of them, proved, scored, and never fewer than a token needs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.dependency.analysis import analyse
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.model import Dims
from prunecli.structures import prunable
from prunecli.structures.calibrate import _added
from prunecli.structures.cut_reference import Forced
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.types import no_progress
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, prove, run
from tests.structures.mixtures import MoE, mixed, packed_mixture
from tests.structures.outside import TOLERANCE as OUTSIDE
from tests.structures.outside import compare

FORMS = ("interleaved", "halves", "apart")


def saved(path: Path, net: Net) -> Path:
    onnx.save(net.model(), path)
    return path


def cut(path: Path, **options: Any) -> Any:
    chosen = {} if "plan" in options else {"granularity": "expert", "ratio": 0.5}
    given = {**chosen, "timing": False, "force": True, **options}
    return prunecli.structured(path, output=path.with_name("cut.onnx"), **given)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}


def contents(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


# -- what is cut ------------------------------------------------------------------------------------


def test_the_reference_is_what_onnxruntime_computes() -> None:
    """The numpy form of MoE, by which the forms without a kernel are proved; both are right to rounding of float32."""
    model = mixed(Net()).model()
    feed = {"x0": np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)}
    wanted = onnx.reference.ReferenceEvaluator(model, new_ops=[MoE]).run(None, feed)
    np.testing.assert_allclose(run(model, feed)[0], wanted[0], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_gate_and_value_in_every_form(form: str, seed: int) -> None:
    """Experts and what they have inside, cut together."""
    net = mixed(Net(seed=seed), form=form)
    found = prove(net.model(), net.shapes, net.other, seed, reference=True, operators=[MoE])
    assert found.error <= TOLERANCE["float32"]
    assert found.effect > 0.01
    names = {
        "up",
        "down",
        "up bias",
        "down bias",
        "router",
        "offers",
        *(("third", "third bias") if form == "apart" else ()),
    }
    gone = {name: found.removed[name] for name in names}
    axis = {"router": 1}
    experts = {tuple(axes[axis.get(name, 0)].tolist()) for name, axes in gone.items()}
    assert len(experts) == 1 and 0 < len(experts.pop()) <= 4
    assert set(gone["down"]) == {0, 1, 2} and set(gone["up"]) == {0, 1, 2}  # experts, inner width, hidden width


@pytest.mark.parametrize(("layers", "dtype"), [(1, np.float32), (2, np.float32), (1, np.float16), (2, np.float16)])
def test_experts_go_whole_and_are_proved(tmp_path: Path, layers: int, dtype: Any) -> None:
    path = saved(tmp_path / "m.onnx", mixed(Net(dtype=dtype), layers=layers))
    found = cut(path, save_plan=tmp_path / "plan.json")
    assert found.verification.kind == "exact" and "to the lowest number" in found.verification.detail
    after = shapes(tmp_path / "cut.onnx")
    for end in ["", ".1"][:layers]:
        assert {after[f"{name}{end}"][0] for name in ("up", "up bias", "down", "down bias", "offers")} == {3}
        assert after[f"router{end}"] == (8, 3)
    assert [(g.kind, g.before, g.after) for g in found.groups] == [("expert", 6, 3)] * layers
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["neutral"]) == layers and all(axes == {"1": "lowest"} for axes in plan["neutral"].values())
    if dtype == np.float32:
        assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") <= OUTSIDE


def test_work_does_not_depend_on_the_number_of_experts(tmp_path: Path) -> None:
    """Each token goes through k of them: what goes is parameters, and the router's columns."""
    path = saved(tmp_path / "m.onnx", mixed(Net()))
    found = cut(path)
    tokens = 16
    assert found.before.macs - found.after.macs == tokens * 8 * 3
    assert found.after.params < 0.6 * found.before.params


def test_experts_are_cut_where_they_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", mixed(Net()))
    assert {g.kind for g in cut(path, granularity="channel,head").groups} == {"channel"}
    assert any("--granularity expert" in axis.reason for axis in prunecli.analyse(path).frozen)
    assert {g.kind for g in cut(path, granularity="all").groups} == {"channel", "expert"}


def test_as_many_stay_as_a_token_goes_through(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", mixed(Net(), k=4))
    found = cut(path, ratio=0.9)
    assert [(g.before, g.after) for g in found.groups] == [(6, 4)]
    told = "4 of 6 experts stay, and no fewer can: each token goes through 4 experts"
    assert any(told in note for note in found.notes)
    with pytest.raises(PruneError, match="cannot be reached"):
        cut(path, ratio=None, params=0.3)
    path = saved(tmp_path / "all.onnx", mixed(Net(), k=6))
    with pytest.raises(PruneError, match="each token goes through 6 experts, and there are no more"):
        cut(path)


def test_a_plan_is_replayed_and_keeps_enough(tmp_path: Path) -> None:
    path, plan = saved(tmp_path / "m.onnx", mixed(Net())), tmp_path / "plan.json"
    cut(path, save_plan=plan)
    once = shapes(tmp_path / "cut.onnx")
    cut(path, plan=plan)
    assert shapes(tmp_path / "cut.onnx") == once
    told = json.loads(plan.read_text())
    for unit in told["units"][:5]:
        unit["removed"] = True
    plan.write_text(json.dumps(told))
    with pytest.raises(PruneError, match="more of one than may go"):
        cut(path, plan=plan)


# -- the proof --------------------------------------------------------------------------------------


def test_a_logit_of_zero_is_no_absent_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the reference forces zeros alone, so tokens still choose what is gone."""
    path, forced = saved(tmp_path / "m.onnx", mixed(Net())), Forced.__init__

    def zeros_alone(self: Forced, *given: Any, **named: Any) -> None:
        forced(self, *given, **{**named, "neutral": {}})

    monkeypatch.setattr(Forced, "__init__", zeros_alone)
    with pytest.raises(PruneError, match="differs"):
        cut(path)


def summed(n: Net) -> str:
    """A sum of the logits goes to the output, too."""
    return str(n("ReduceSum", n.nodes[3].output[0], n.c([1]), keepdims=0))


def test_logits_that_another_takes_zero_for_absent_in(tmp_path: Path) -> None:
    net = mixed(Net())
    net.out(summed(net))
    path = saved(tmp_path / "m.onnx", net)
    reasons = {axis.reason for axis in prunecli.analyse(path, granularity="expert").frozen if axis.tensor == "router"}
    assert "an absent position is the lowest number to MoE, and zero to ReduceSum" in reasons


def test_logits_that_are_rounded_to_integers(tmp_path: Path) -> None:
    """The lowest number would become the lowest integer, which is an offer like any other."""
    model = mixed(Net()).model()
    at = next(k for k, node in enumerate(model.graph.node) if node.op_type == "MoE")
    logits = model.graph.node[at].input[1]
    for name, array in (("step", np.float32(0.05)), ("middle", np.uint8(128))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    model.graph.node[at].input[1] = "again"
    for op, source, target in (("DequantizeLinear", "rounded", "again"), ("QuantizeLinear", logits, "rounded")):
        model.graph.node.insert(at, helper.make_node(op, [source, "step", "middle"], [target]))
    onnx.save(model, tmp_path / "m.onnx")
    frozen = open_cuttable(tmp_path / "m.onnx", AnalysedAs("expert"), Dims()).units.frozen
    assert "what MoE chooses by is rounded to integers" in {axis.reason for axis in frozen if axis.tensor == "router"}


def test_logits_inside_a_local_function(tmp_path: Path) -> None:
    """A plan cannot name them, and zeros before them are no zeros there."""
    model = mixed(Net()).model()
    first, *inner, last = model.graph.node
    given = [
        first.output[0],
        *(name for node in inner for name in node.input if name in {t.name for t in model.graph.initializer}),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_function("local", "Mixture", given, [inner[-1].output[0]], inner, imports)
    call = helper.make_node("Mixture", given, [inner[-1].output[0]], domain="local")
    del model.graph.node[:]
    model.graph.node.extend([first, call, last])
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, tmp_path / "m.onnx")
    cuttable = open_cuttable(tmp_path / "m.onnx", AnalysedAs("channel,expert"), Dims())
    assert {group.kind for group in cuttable.units.groups} == {"channel"}
    reasons = {axis.reason for axis in cuttable.units.frozen if axis.tensor == "router"}
    assert "MoE chooses inside a local function, where a plan can name nothing" in reasons
    cut(tmp_path / "m.onnx", granularity="channel")


def test_fewer_experts_than_the_router_knows(tmp_path: Path) -> None:
    """One of several machines: the others have the rest."""
    net = Net()
    h = net("MatMul", net.x("N", 4), net.w(4, 8))
    held = net.w(2, 6, 8), "", net.w(2, 8, 6)
    y = net.ms("MoE", h, net("MatMul", h, net.w(8, 4)), *held, k=2, activation_type="relu")
    found = analyse(prepare(ir.from_proto(net.out(net("MatMul", y, net.w(8, 3))).model())), net.shapes)
    assert "experts of which the router knows more than are here" in found.components.reasons


# -- scores -----------------------------------------------------------------------------------------


def data(path: Path, tokens: int = 40) -> tuple[Path, Any]:
    x = np.random.default_rng(2).normal(size=(tokens, 1, 4)).astype(np.float32)
    np.savez(path, x0=x)
    return path, x


@pytest.mark.parametrize("normalise", [0, 1])
def test_what_an_expert_adds_is_its_output_by_its_weight(tmp_path: Path, normalise: int) -> None:
    """E[(g |y|)^2] in plain loops. float32 inside: a sum of 40 tokens is right to 1e-5."""
    net = mixed(Net())
    for attribute in net.nodes[-2].attribute:
        if attribute.name == "normalize_routing_weights":
            attribute.i = normalise
    path, (samples, x) = saved(tmp_path / "m.onnx", net), data(tmp_path / "x.npz")
    held = contents(path)
    wanted = np.zeros(6)
    for token in x.reshape(-1, 4) @ held["first"]:
        logits = token @ held["router"] + held["offers"]
        weights = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(logits)[-2:]
        for expert in chosen:
            rows = held["up"][expert] @ token + held["up bias"][expert]
            inner = rows[::2] / (1 + np.exp(-rows[::2])) * rows[1::2]
            y = held["down"][expert] @ inner + held["down bias"][expert]
            weight = weights[expert] / (weights[chosen].sum() if normalise else 1)
            wanted[expert] += (weight * np.linalg.norm(y)) ** 2 / len(x)
    options = StructuredOptions.of(data=samples, ratio=0.5, granularity="expert")
    cuttable = open_cuttable(path, AnalysedAs("expert"), Dims())
    np.testing.assert_allclose(_added(cuttable, options, no_progress)["router"], wanted, rtol=1e-4)


@pytest.mark.parametrize("criterion", ["activation", "obs"])
def test_experts_that_no_token_goes_through_go_first(tmp_path: Path, criterion: str) -> None:
    """And nothing changes without them: that is measured with tokens sent elsewhere, not with experts of zeros."""
    net = mixed(Net())
    offers = next(t for t in net.initializers if t.name == "offers")
    low = numpy_helper.to_array(offers).copy()
    low[[1, 3, 4]] = -50
    offers.CopyFrom(numpy_helper.from_array(low, "offers"))
    path, (samples, x) = saved(tmp_path / "m.onnx", net), data(tmp_path / "x.npz")
    found = cut(path, data=samples, criterion=criterion, recover="none")
    assert found.groups[0].after == 3
    np.testing.assert_array_equal(contents(tmp_path / "cut.onnx")["offers"], low[[0, 2, 5]])
    assert max(found.groups[0].removed) == pytest.approx(0, abs=1e-6)
    got, wanted = (run(onnx.load(p), {"x0": x})[0] for p in (tmp_path / "cut.onnx", path))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_shrink_leaves_experts_that_make_nothing(tmp_path: Path) -> None:
    """Tokens that go through an expert of zeros would go through another without it."""
    net = Net()
    h = net("MatMul", net.x("N", 4), net.w(4, 8))
    up, down, router = (net.rng.normal(size=shape).astype(np.float32) for shape in ((4, 6, 8), (4, 8, 6), (8, 4)))
    up[1], down[1], router[:, 1] = 0, 0, 0
    held = net.c(up, "up"), "", net.c(down)
    y = net.ms("MoE", h, net("MatMul", h, net.c(router)), *held, k=2, activation_type="relu")
    path = saved(tmp_path / "m.onnx", net.out(net("MatMul", y, net.w(8, 3))))
    found = prunecli.shrink(path, output=tmp_path / "small.onnx")
    assert found.output is None and not (tmp_path / "small.onnx").exists()


# -- packed integers --------------------------------------------------------------------------------

PACKED = [
    # bits, block, zero points, biases, type, inner width: how many go together
    (4, 0, False, True, np.float32, 2),
    (4, 0, True, True, np.float32, 2),
    (8, 0, False, True, np.float32, 1),
    (8, 0, True, False, np.float32, 1),
    (2, 0, False, True, np.float32, 4),
    (4, 16, False, True, np.float32, 16),
    (4, 16, True, True, np.float32, 16),
    (8, 16, True, True, np.float32, 16),
    (4, 0, True, True, np.float16, 2),
]


@pytest.mark.parametrize(("bits", "block", "zero", "bias", "dtype", "together"), PACKED)
def test_packed_experts_are_cut_and_proved(
    tmp_path: Path, bits: int, block: int, zero: bool, bias: bool, dtype: Any, together: int
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(packed_mixture(bits, block, zero, bias, dtype=dtype), path)
    found = cut(path, granularity="channel,expert", round_to=1)
    assert found.verification.kind == "exact"
    assert {g.name: (g.kind, g.before, g.after) for g in found.groups} == {
        "router": ("expert", 6, 3),
        "first": ("channel", 32 // together, 16 // together),
        "up": ("channel", 32 // together, 16 // together),
    }
    after = shapes(tmp_path / "cut.onnx")
    assert after["up"] == (3, 32, 16 * bits // 8) and after["down"] == (3, 16, 16 * bits // 8)
    assert after["router"] == (16, 3)
    scales = {(3, 32), (3, 16)} if not block else {(3, 32, 16 // block), (3, 16, 16 // block)}
    assert scales <= set(after.values())


def test_scales_of_packed_experts_that_are_not_cut_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: an expert's scales are another's."""
    from prunecli.dependency.rules import quantised

    monkeypatch.setattr(quantised, "unpacked", lambda table, bits: np.roll(table, 1, axis=0).repeat(8 // bits, axis=-1))
    path = tmp_path / "m.onnx"
    onnx.save(packed_mixture(zero=True), path)
    with pytest.raises(PruneError):
        cut(path)


UNREAD = [
    ({"quant_type": "fp8"}, "has another layout of weights"),
    ({"weights_prepacked": 1}, "has another layout of weights"),
    ({"fc2_expert_weight_bits": 3}, "how QMoE 'mixture' stores the experts' weights is not known"),
]


@pytest.mark.parametrize(("settings", "why"), UNREAD)
def test_packed_experts_of_another_layout_stay(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(packed_mixture(**settings), path)
    cuttable = open_cuttable(path, AnalysedAs("channel,expert"), Dims())
    assert not cuttable.units.groups and any(why in note for note in cuttable.notes)


def test_packed_experts_that_other_numbers_weigh_stay(tmp_path: Path) -> None:
    model = packed_mixture()
    node = model.graph.node[3]
    node.input.extend([""] * (14 - len(node.input)) + ["logits"])
    onnx.save(model, tmp_path / "m.onnx")
    cuttable = open_cuttable(tmp_path / "m.onnx", AnalysedAs("channel,expert"), Dims())
    assert not cuttable.units.groups and any("weighs experts by router_weights" in note for note in cuttable.notes)


@pytest.mark.parametrize("name", ["up", "down", "up bias", "down bias"])
def test_what_no_token_of_the_proof_reaches_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of 64 experts, one per token, the tokens of the proof reach some: any other may be wrong unseen by runs."""
    path, real = saved(tmp_path / "m.onnx", mixed(Net(), k=1, experts=64)), prunable.remove

    def planted(expert: int, model: ir.Model, *args: Any, **more: Any) -> Any:
        out, value = real(model, *args, **more), model.graph.initializers[name]
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        array[expert] += 1
        value.const_value = ir.tensor(array, name=name)
        return out

    for expert in range(8):
        monkeypatch.setattr(prunable, "remove", partial(planted, expert))
        with pytest.raises(PruneError):
            cut(path)
    assert not path.with_name("cut.onnx").exists()
