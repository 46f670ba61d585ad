"""Every operator has a rule or a reason, every rule and rewrite a case that notices when it is gone or wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from prunecli.dependency.analysis import analyse
from prunecli.dependency.prepare import prepare
from prunecli.dependency.registry import BARRIERS, REWRITES, RULES, RuleContext
from prunecli.dependency.rules.linear import conv
from prunecli.dependency.rules.shaping import depth_to_space
from prunecli.model.floating import RESTATED
from tests.dependency.cases import Case
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, free_units, prove
from tests.dependency.tables import ALL

Key = tuple[str, str]
LISTED = (
    "FusedConv", "FusedMatMul", "Gelu", "BiasGelu", "FastGelu", "SkipLayerNormalization", "LayerNormalization",
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding", "QuickGelu",
)  # fmt: skip
UNSPOKEN = {
    ("", "ConstantOfShape"): "states nothing: a fill has no positions of its own",
    ("", "Shape"): "asked only where a shape is not followed",
    ("", "Size"): "asked only where a size is not followed",
}


@pytest.fixture(scope="module")
def users() -> dict[Key, list[Case]]:
    """Operator -> the cases that use it, those with fewest nodes first."""
    found: dict[Key, list[tuple[int, Case]]] = {}
    for case in ALL.values():
        nodes = case.net().model().graph.node
        for key in {(node.domain, node.op_type) for node in nodes}:
            found.setdefault(key, []).append((len(nodes), case))
    return {key: [case for _, case in sorted(cases, key=lambda pair: pair[0])] for key, cases in found.items()}


def test_every_operator_of_onnx_has_a_rule_or_a_reason() -> None:
    known = RULES.keys() | BARRIERS.keys()
    schemas = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    assert schemas - known == set()
    assert {("com.microsoft", op) for op in LISTED} <= RULES.keys()
    assert all(reason.strip() for reason in BARRIERS.values())
    assert not RULES.keys() & BARRIERS.keys()


def test_every_rewrite_belongs_to_a_rule() -> None:
    assert REWRITES.keys() <= RULES.keys() | RESTATED.keys()


@pytest.mark.parametrize("key", sorted(RULES), ids=lambda key: ".".join(key))
def test_every_rule_is_noticed_when_it_is_gone(
    key: Key, users: dict[Key, list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert users.get(key), "no case uses this operator"
    if key in UNSPOKEN:
        return
    monkeypatch.delitem(RULES, key)
    cases = [case for case in users[key] if case.units or case.options.get("wide")]
    assert any(_units(case) != case.units + case.options.get("wide", 0) for case in cases), "no case needs the rule"


def _units(case: Case) -> int:
    net = case.net()
    other = None if case.options.get("static") else net.other
    return free_units(analyse(prepare(ir.from_proto(net.model())), net.shapes, other), True)


@pytest.mark.parametrize("key", sorted(REWRITES.keys() - RESTATED.keys()), ids=lambda key: ".".join(key))
def test_every_rewrite_is_noticed_when_it_is_gone(
    key: Key, users: dict[Key, list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(REWRITES, key)
    cases = [c for c in users[key] if c.units and not c.options.get("random") and not c.options.get("unproven")]
    if not cases and all(c.options.get("unproven") for c in users[key]):
        pytest.skip("onnxruntime does not run it")
    assert any(_fails(case) for case in cases), "no case needs the rewrite"


def _fails(case: Case) -> bool:
    """Whether the proof refuses the case: an error, a shape that does not come out, or another result."""
    for seed in range(6):
        net = case.net(seed)
        other = None if case.options.get("static") else net.other
        try:
            proof = prove(net.model(), net.shapes, other, seed, reference=case.options.get("reference", False))
        except Exception:  # any refusal will do: PruneError, onnxruntime's errors, a failed comparison of shapes
            return True
        if proof.error > TOLERANCE[np.dtype(case.dtype).name]:
            return True
    return False


BARRED = sorted(set(BARRIERS) - {("", "Constant")})  # a Constant that is not followed has no input


@pytest.mark.parametrize("key", BARRED, ids=lambda key: ".".join(key))
def test_every_barrier_freezes_and_says_why(key: Key) -> None:
    domain, op = key
    net = Net(18, **{domain: 1} if domain not in ("", "com.microsoft") else {})
    h = net("MatMul", net.x("N", 4), net.w(4, 8))
    barred = net(op, h, domain=domain)
    net.out(net("MatMul", net("MatMul", h, net.w(8, 6)), net.w(6, 3)))
    outputs = [helper.make_tensor_value_info("matmul4", 1, ["N", 3]), helper.make_empty_tensor_value_info(barred)]
    graph = helper.make_graph(net.nodes, "g", net.inputs, outputs, net.initializers)
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, v) for d, v in net.domains.items())]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports))
    solved = analyse(prepare(model), net.shapes, net.other).components
    axis = next(k for k, a in enumerate(solved.table.axes) if a.value is not None and a.value.name == h and a.index)
    reasons = {solved.reasons[i] for i in solved.frozen[solved.of_axis(axis)]}
    assert reasons == {f"{op}: {BARRIERS[key]}"}


def test_an_unknown_operator_freezes_what_it_touches() -> None:
    net = Net(18, mine=1)
    h = net("MatMul", net.x("N", 4), net.w(4, 8))
    net.out(net("MatMul", net("Mystery", h, domain="mine"), net.w(8, 3)))
    net.ranks["matmul3"] = 2
    analysis = analyse(prepare(ir.from_proto(net.model())), net.shapes)
    assert free_units(analysis) == 0
    assert "no rule for operator mine:Mystery" in analysis.components.reasons


# -- wrong rules must be caught by the proof --------------------------------------------------------


def _elementwise(ctx: RuleContext) -> None:
    """What a careless tool assumes of any operator that keeps its shape."""
    ctx.elementwise(*ctx.inputs, ctx.outputs[0])


def _ungrouped(ctx: RuleContext) -> None:
    """A Conv rule that does not know groups: positions of one group only are free."""
    x, w, y = ctx.inputs[0], ctx.inputs[1], ctx.outputs[0]
    assert x is not None and w is not None
    if ctx.int("group", 1) == 1:
        conv(ctx)
        return
    ctx.tie(w, 0, y, 1)
    for axis in (1, 2, 3):
        ctx.axis(w, axis)
    ctx.axis(x, 1)


def _shifted(ctx: RuleContext) -> None:
    """A Concat rule that is off by one."""
    y, start = ctx.outputs[0], 0
    axis = ctx.int("axis", 1) % ctx.rank(y)
    for value in ctx.inputs:
        assert value is not None
        size = ctx.shape(value)[axis]
        ctx.align(value, y, skip=[axis])
        ctx.map_positions((value, axis), np.arange(size), (y, axis), (np.arange(size) + start + 1) % ctx.shape(y)[axis])
        start += size


def _transposed_blocks(ctx: RuleContext) -> None:
    """A DepthToSpace rule with its two modes exchanged."""
    mode = "DCR" if ctx.string("mode", "DCR") == "CRD" else "CRD"
    ctx.node.attributes["mode"], before = ir.AttrString("mode", mode), ctx.node.attributes.get("mode")
    depth_to_space(ctx)
    ctx.node.attributes["mode"] = before or ir.AttrString("mode", "DCR")


def _ungated(ctx: RuleContext) -> None:
    """An LSTM rule that forgets the recurrent weights' columns."""
    w, r, y = ctx.inputs[1], ctx.inputs[2], ctx.outputs[0]
    assert w is not None and r is not None
    gate = ctx.table.virtual(4)
    ctx.table.freeze(gate, "gates")
    for value in (w, r):
        ctx.table.product(ctx.axis(value, 1), (gate, ctx.axis(y, 3)))
    ctx.axis(r, 2)


WRONG: dict[str, tuple[Key, Callable[[RuleContext], None], str]] = {
    "flip as element-wise": (("", "Slice"), _elementwise, "moves/Slice flip"),
    "softmax as element-wise": (("", "Softmax"), _elementwise, "norms/Softmax"),
    "cumulative product as element-wise": (("", "CumProd"), _elementwise, "newest/CumProd"),
    "mean variance normalisation as element-wise": (("", "MeanVarianceNormalization"), _elementwise, "norms/MeanVarianceNormalization of channels"),
    "Conv without groups": (("", "Conv"), _ungrouped, "linear/Conv grouped"),
    "Concat off by one": (("", "Concat"), _shifted, "moves/Concat and Split"),
    "pixel shuffle in the other mode": (("", "DepthToSpace"), _transposed_blocks, "moves/DepthToSpace DCR"),
    "LSTM without recurrence": (("", "LSTM"), _ungated, "recurrent/LSTM"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught_by_the_proof(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, wrong, case = WRONG[name]
    assert case in ALL
    monkeypatch.setitem(RULES, key, wrong)
    assert _fails(ALL[case])
