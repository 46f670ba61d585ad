"""Choosing blocks: greedy by measured damage, exact amounts, nested blocks; divergence against formulas by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prunecli.dependency.analysis import analyse
from prunecli.dependency.blocks import drop_blocks, find_blocks
from prunecli.dependency.catalogue import catalogue
from prunecli.dependency.costs import costs
from prunecli.dependency.cut import remove
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.runtime import Session
from prunecli.structures.blocks import BlockCosts, Damage, decide_blocks, divergence, gated
from prunecli.structures.budget import BlockPools, WidthProblem, exchange
from prunecli.structures.choose import UnitRecipe
from tests.dependency.net import Net
from tests.structures.recipes import unit_recipe

INNER = (4, 8, 16, 32)


def _chain(n: Net, nested: bool = False) -> Net:
    """Blocks with 4, 8, 16 and 32 hidden channels; or one that contains the last two."""
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8)
    outer = h
    for number, width in enumerate(INNER):
        if nested and number == 2:
            outer, h = h, n.conv(h, 8, 8)
        h = n("Add", h, n.conv(n("Relu", n.conv(h, 8, width)), width, 8))
    return n.out(n.conv(n("Add", outer, n.conv(h, 8, 8)) if nested else h, 8, 4))


def _costs(n: Net) -> tuple[BlockCosts, Any]:
    work = prepare(ir.from_proto(n.model()))
    analysis = analyse(work, n.shapes, n.other)
    blocks = find_blocks(work, analysis.geometry)
    macs = {node: float(np.prod(node.inputs[1].shape.numpy())) for node in work.graph if node.op_type == "Conv"}  # type: ignore[union-attr]
    return BlockCosts(work, blocks, {"macs": macs}), analysis.facts


def _additive(*damages: float) -> Any:
    return lambda mask: float(np.array(damages) @ mask)


ALL = np.ones(4, bool)


@pytest.mark.parametrize(
    "recipe, damages, allowed, dropped",
    [
        (unit_recipe("ratio", 0.5), (4, 1, 3, 2), ALL, [1, 3]),
        (unit_recipe("ratio", 0.25), (4, 1, 3, 2), ALL, [1]),
        (unit_recipe("ratio", 0.9, max_ratio=0.5), (4, 1, 3, 2), ALL, [1, 3]),
        (unit_recipe("ratio", 0.5), (4, 1, 3, 2), ~np.eye(4, dtype=bool)[1], [2, 3]),
        # per amount saved 32 is the cheapest: it alone is enough, and what is not needed stays
        (unit_recipe("params", 0.6), (1, 1, 1, 1), ALL, [3]),
        (unit_recipe("macs", 0.6), (1, 1, 1, 1), ALL, [3]),
        (unit_recipe("params", 0.75), (1, 1, 1, 1), ~np.eye(4, dtype=bool)[3], [2]),
        # the smallest goes first at such prices, and comes back once the largest is gone
        (unit_recipe("params", 0.5), (0.001, 1, 1.5, 2), ALL, [0, 3]),
        (unit_recipe("params", 0.55), (0.001, 1, 1.5, 2), ALL, [3]),
    ],
)  # fmt: skip
def test_which_blocks_go(recipe: UnitRecipe, damages: tuple[float, ...], allowed: Any, dropped: list[int]) -> None:
    priced, _ = _costs(_chain(Net()))
    found = decide_blocks(priced, _additive(*damages), recipe, allowed)
    assert np.flatnonzero(found.removed).tolist() == dropped
    assert found.damage == pytest.approx(sum(damages[i] for i in dropped))
    if recipe.budget.kind != "ratio":
        left = 1 - priced.saved(recipe.budget.kind, found.removed) / priced.whole(recipe.budget.kind)
        assert left <= recipe.budget.target


def test_damage_is_measured_anew_when_blocks_are_gone() -> None:
    """Block 1 is cheap alone but dear once block 0 is gone."""
    priced, _ = _costs(_chain(Net()))

    def damage(mask: Any) -> float:
        return float(np.array([1, 2, 3, 4]) @ mask + 10 * (mask[0] and mask[1]))

    assert np.flatnonzero(decide_blocks(priced, damage, unit_recipe("ratio", 0.5), ALL).removed).tolist() == [0, 2]


@pytest.mark.parametrize("nested", [False, True])
def test_amounts_without_blocks_and_channels_are_exact(nested: bool) -> None:
    """What remains by formula is what the cut model has; channels inside a dropped block count once."""
    n = _chain(Net(), nested)
    units = catalogue(analyse(prepare(ir.from_proto(n.model())), n.shapes, n.other), ("channel", "block"))
    priced, rng = costs(units), np.random.default_rng(0)
    for _ in range(8):
        mask = np.zeros(units.count, bool)
        for group in units.groups:
            mask[group.units] = rng.random(group.count) < 0.4
            mask[group.first] &= group.kind == "block"
        mask = units.closed(mask)
        cut = ir.from_proto(n.model())
        cut = prepare(cut)
        joins = dict(zip(units.analysis.model.graph, cut.graph, strict=True))
        remove(
            cut, units.removed(units.outside(mask) & (units.group_of < len(units.groups) - len(units.blocks))), n.shapes
        )
        blocks = [block for block, gone in zip(units.blocks, units.dropped(mask), strict=True) if gone]
        drop_blocks(cut, [replace(block, join=joins[block.join]) for block in blocks])
        left = sum(value.const_value.size for value in cut.graph.initializers.values())  # type: ignore[union-attr]
        assert priced.of(units.kept(mask))["params"] == left


@pytest.mark.parametrize("seed", range(6))
def test_blocks_trade_with_the_channels_of_others(seed: int) -> None:
    """Against all choices of three blocks with a group of channels in each, which goes for nothing with its block."""
    rng = np.random.default_rng(seed)
    steps = [np.append(0.0, np.cumsum(rng.random(4))) for _ in range(3)]
    alone, work = rng.random(3) * 2, rng.integers(2, 6, 3)
    within = np.hstack([np.eye(3, dtype=bool), np.eye(3, dtype=bool)])
    pools = BlockPools(np.arange(3, 6), within, lambda gone: float(alone @ gone))

    def cost(state: Any) -> float:
        return float((work * (5 - state[:3]) * (1 - state[3:])).sum())

    damage = [*steps, *(np.array([0.0, one]) for one in alone)]
    whole = WidthProblem(damage, np.zeros(6, int), cost, cost, 0.5 * cost(np.zeros(6, int)), 0.0, pools)
    start = np.array([4, 4, 4, 0, 0, 0])
    found = exchange(whole, start)
    every = (np.array(state) for state in itertools.product(*[range(5)] * 3, *[range(2)] * 3))
    good = [state for state in every if cost(state) <= whole.target and whole.short(state) == 0]
    best = min((whole.total(state) for state in good), default=np.inf)
    assert cost(found) <= whole.target and whole.total(found) <= max(best, whole.total(start)) * 1.5
    assert whole.total(np.array([3, 1, 0, 1, 0, 0])) == pytest.approx(steps[1][1] + alone[0])


def test_blocks_inside_a_dropped_one_go_with_it_and_count() -> None:
    priced, _ = _costs(_chain(Net(), nested=True))
    damage = _additive(5, 5, 5, 5, 0.1)
    found = decide_blocks(priced, damage, unit_recipe("ratio", 0.6), np.ones(5, bool))
    assert np.flatnonzero(found.removed).tolist() == [2, 3, 4]
    few = decide_blocks(priced, damage, unit_recipe("ratio", 0.4), np.ones(5, bool))
    assert few.removed.sum() == 2 and not few.removed[4]


def test_a_budget_out_of_reach_is_refused() -> None:
    priced, _ = _costs(_chain(Net()))
    with pytest.raises(PruneError, match=r"--params 0\.01 cannot be reached with blocks: 0\.\d+ must remain"):
        decide_blocks(priced, _additive(1, 1, 1, 1), unit_recipe("params", 0.01), ALL)
    with pytest.raises(PruneError, match="leaves nothing to choose"):
        decide_blocks(priced, _additive(1, 1, 1, 1), unit_recipe("params", 1.0), ALL)


@pytest.mark.parametrize("opset, dtype", [(18, np.float32), (8, np.float32), (18, np.float16)])
def test_a_closed_gate_is_a_branch_of_zeros(opset: int, dtype: Any) -> None:
    """Without Where (opset 8), and without its kernel (float16), a product does it."""
    n = Net(opset, dtype=dtype)
    h = n("Relu", n("MatMul", n.x(2, 4), n.w(4, 4)))
    n.out(n("Add", h, n("MatMul", h, n.w(4, 4))))
    priced, facts = _costs(n)
    session = Session.open(gated(priced.model, priced.blocks, facts))
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(dtype)
    whole = Session.open(n.model().SerializeToString()).run({"x0": x})
    stream = np.maximum(x @ _array(n, 0), 0)
    feed = {"x0": x}
    assert np.array_equal(session.run({**feed, "prunecli.gate.0": np.array(True)})[n.outputs[0]], whole[n.outputs[0]])
    closed = session.run({**feed, "prunecli.gate.0": np.array(False)})[n.outputs[0]]
    assert np.allclose(closed, stream, rtol=1e-2 if dtype == np.float16 else 1e-6)
    damage = Damage(session, [feed], 1)
    assert damage(np.array([False])) == 0
    assert damage(np.array([True])) == pytest.approx(divergence(whole[n.outputs[0]], closed))


def _array(n: Net, number: int) -> Any:
    return numpy_helper.to_array(n.initializers[number])


P, Q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.9, 0.1], [0.5, 0.5]])
KL = (0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1) + 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)) / 2
BIG = np.arange(24.0).reshape(1, 2, 3, 4)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        (P, Q, KL),  # probabilities
        (np.log(P) + 3, np.log(Q) - 5, KL),  # logits: shifts say nothing
        (P[None], Q[None], KL),  # probabilities per position
        (BIG, BIG + 1, 24 / np.square(BIG).sum()),  # an image
        (np.array([[2.0], [0.0]]), np.array([[1.0], [1.0]]), 0.5),  # a number per sample
        (np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0]), 0.5),  # classes
        (P, P, 0.0),
        (P, np.full((2, 2), np.nan), np.inf),
        (np.array([[1.0, -np.inf]]), np.array([[1.0, -np.inf]]), 0.0),  # masked positions
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
    ],
)  # fmt: skip
def test_divergence(a: Any, b: Any, expected: float) -> None:
    """Formulas by hand; rounding of float64."""
    assert divergence(a, b) == pytest.approx(expected, abs=1e-12)
