"""Which units go: budgets on real graphs, normalisation, steps, rounding, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.arrays import Array
from prunecli.dependency.analysis import analyse
from prunecli.dependency.catalogue import KINDS, Catalogue, catalogue
from prunecli.dependency.costs import costs
from prunecli.dependency.cut import remove
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.masks.criteria import of_structures
from prunecli.model.shape_inference import gather_facts
from prunecli.structures import choose
from prunecli.structures.choose import Measurements, decide_units
from prunecli.structures.normalisers import NORMALISERS
from prunecli.structures.widths import Alignment
from tests.dependency.net import Net
from tests.structures.recipes import unit_recipe


def residual_net(n: Net) -> Net:
    """Convolutions of several widths, one residual stream, a linear end."""
    x = n("Relu", n.conv(n.x("N", 3, 8, 8), 3, 24, 3, pads=[1] * 4))
    for width in (16, 40):
        h = n("Relu", n.conv(x, 24, width, 3, pads=[1] * 4))
        x = n("Add", x, n.conv(h, width, 24, 3, pads=[1] * 4))
    h = n("Relu", n.conv(x, 24, 32, 1))
    return n.out(n.linear(n("Flatten", n("GlobalAveragePool", h)), 32, 10))


def found(n: Net | None = None) -> Catalogue:
    net = n or residual_net(Net())
    model = ir.from_proto(net.model())
    prepare(model)
    return catalogue(analyse(model, net.shapes), KINDS[:2])


CUTTABLE = found()
RATIOS = (0.3, 0.5, 0.7)


def recount(cat: Catalogue, removed: Array) -> dict[str, int]:
    """Parameters and Conv and MatMul work of the model as really cut, counted from its shapes."""
    model = cat.analysis.model.clone()
    remove(model, cat.removed(removed), cat.analysis.inputs, cat.analysis.other_inputs)
    facts = gather_facts(model, cat.analysis.inputs)
    params = sum(
        v.const_value.size for v in model.graph.initializers.values() if v.const_value.dtype.is_floating_point()
    )
    macs = 0
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul"):
            out, weight = (int(np.prod(facts.shapes[v])) for v in (node.outputs[0], node.inputs[1]))
            last = facts.shapes[node.inputs[1]][0 if node.op_type == "Conv" else -1]
            macs += out * weight // last
    return {"params": params, "macs": macs}


@pytest.mark.parametrize("scope", ["layer", "global", "auto"])
@pytest.mark.parametrize("target", RATIOS)
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_budgets_are_hit_from_below_by_the_model_as_cut(budget: Any, target: float, scope: Any) -> None:
    decision = decide_units(CUTTABLE, unit_recipe(budget, target, scope=scope))
    whole, left = recount(CUTTABLE, np.zeros(CUTTABLE.count, bool)), recount(CUTTABLE, decision.removed)
    assert decision.before == whole and decision.after == left
    assert 0.98 * target <= left[budget] / whole[budget] <= target  # one unit of this small net is up to 2 %


def test_absolute_budgets_mean_the_same() -> None:
    whole = costs(CUTTABLE).of(CUTTABLE.sizes)["macs"]
    share = decide_units(CUTTABLE, unit_recipe("macs", 0.5))
    absolute = decide_units(CUTTABLE, unit_recipe("macs", 0.5 * whole))
    assert (share.removed == absolute.removed).all()


@pytest.mark.parametrize("target", RATIOS)
def test_ratio_takes_its_share_of_every_group(target: float) -> None:
    decision = decide_units(CUTTABLE, unit_recipe("ratio", target))
    for group in CUTTABLE.groups:
        assert decision.removed[group.units].sum() == np.floor(target * group.count + 0.5)


def test_ratio_over_all_units_together() -> None:
    decision = decide_units(CUTTABLE, unit_recipe("ratio", 0.5, scope="global"))
    assert decision.removed.sum() == np.floor(0.5 * CUTTABLE.count + 0.5)
    assert len({round(float(decision.removed[g.units].mean()), 3) for g in CUTTABLE.groups}) > 1


@pytest.mark.parametrize("normalize", NORMALISERS)
@pytest.mark.parametrize("criterion", [n for n, c in of_structures().items() if c.evidence is None and n != "bn-scale"])
def test_in_every_group_the_lowest_scores_go(criterion: str, normalize: str) -> None:
    recipe = unit_recipe("macs", 0.5, criterion=criterion, normalize=normalize)
    decision = decide_units(CUTTABLE, recipe)
    for group in CUTTABLE.groups:
        scores, gone = decision.scores[group.units], decision.removed[group.units]
        assert gone.sum() < group.count
        assert not gone.any() or scores[gone].max() <= scores[~gone].min()


@pytest.mark.parametrize("round_to", [2, 8])
def test_kept_counts_are_rounded(round_to: int) -> None:
    decision = decide_units(CUTTABLE, unit_recipe("macs", 0.5, widths=Alignment(round_to)))
    kept = [int((~decision.removed[g.units]).sum()) for g in CUTTABLE.groups]
    assert all(k % round_to == 0 for k in kept) and decision.removed.any()


def test_no_group_loses_more_than_allowed() -> None:
    decision = decide_units(CUTTABLE, unit_recipe("macs", 0.7, max_ratio=0.25))
    assert all(decision.removed[g.units].mean() <= 0.25 for g in CUTTABLE.groups)


def test_groups_that_are_not_allowed_stay_whole() -> None:
    allowed = np.arange(len(CUTTABLE.groups)) % 2 == 0
    decision = decide_units(CUTTABLE, unit_recipe("ratio", 0.5), allowed)
    cut = [bool(decision.removed[g.units].any()) for g in CUTTABLE.groups]
    assert cut == allowed.tolist()


def test_steps_add_up_and_never_bring_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone before each of three steps, and after the last."""
    seen: list[Array] = []
    scored = choose._Chooser.scores
    monkeypatch.setattr(choose._Chooser, "scores", lambda self, gone: seen.append(gone.copy()) or scored(self, gone))
    decision = decide_units(CUTTABLE, unit_recipe("macs", 0.4, steps=3))
    for step, removed in enumerate([*seen, decision.removed]):
        left = costs(CUTTABLE).of(CUTTABLE.kept(removed))["macs"] / decision.before["macs"]
        assert 0.95 * 0.4 ** (step / 3) <= left <= 0.4 ** (step / 3) + 1e-9
        assert not step or (seen[step - 1] <= removed).all()


def test_later_steps_score_what_is_left() -> None:
    """A producer whose only large weights read a unit that went must rank lower the next time."""
    net = Net()
    x = net.x("N", 4)
    first, second, third = (np.ones(s, np.float32) for s in ((4, 8), (8, 6), (6, 3)))
    second[0, 0] = 9  # unit 0 of the first layer is read strongly by unit 0 of the second alone
    third[0] = 1e-3
    h = net("Relu", net("MatMul", x, net.c(first)))
    h = net("Relu", net("MatMul", h, net.c(second)))
    cat = found(net.out(net("MatMul", h, net.c(third))))
    how = {"criterion": "l2-in", "normalize": "none", "scope": "global"}
    once, twice = (decide_units(cat, unit_recipe("ratio", 0.5, steps=n, **how)) for n in (1, 2))
    weakest = cat.groups[1].first
    assert twice.removed[weakest]
    assert once.removed.sum() == twice.removed.sum()
    mine = cat.groups[0].units
    assert once.scores[mine][0] == once.scores[mine].max() and not once.removed[mine][0]


def test_activation_decides_by_what_flows() -> None:
    width = {g.name: g.count for g in CUTTABLE.groups}
    moments = {}
    for name, axis in {w for g in CUTTABLE.groups for w in g.weights}:
        value = CUTTABLE.analysis.model.graph.initializers[name].const_value
        if len(value.shape) > 1 and axis == (0 if len(value.shape) == 2 else 1):
            moments[name] = np.linspace(1e-6, 1, int(value.shape[axis])) ** 4
    recipe = unit_recipe("ratio", 0.5, criterion="activation", data="x.npz")
    decision = decide_units(CUTTABLE, recipe, None, Measurements(moments=moments))
    for group in CUTTABLE.groups:
        gone = np.flatnonzero(decision.removed[group.units])
        assert gone.mean() < 0.4 * width[group.name]  # the quiet ones come first


def test_evidence_that_changes_is_measured_anew_on_what_is_left() -> None:
    """Called once per step with the positions that are gone by then; what is measured once is asked for once."""
    seen: list[int] = []

    def measure(gone: Mapping[str, Mapping[int, np.ndarray]]) -> Measurements:
        seen.append(sum(len(p) for axes in gone.values() for p in axes.values()))
        values = CUTTABLE.analysis.model.graph.initializers
        touched = {w for g in CUTTABLE.groups for w in g.weights}
        rng = np.random.default_rng(0)
        return Measurements(gates={(n, a): rng.normal(size=(3, int(values[n].shape[a]))) for n, a in touched})

    decide_units(CUTTABLE, unit_recipe("macs", 0.5, criterion="fisher", steps=3, data="x.npz"), None, measure)
    assert len(seen) == 3 and seen[0] == 0 and seen == sorted(set(seen))
    seen.clear()
    decide_units(CUTTABLE, unit_recipe("macs", 0.5, criterion="activation", steps=3, data="x.npz"), None, measure)
    assert len(seen) == 1


def test_auto_means_activation_with_evidence_and_weights_without() -> None:
    plain = decide_units(CUTTABLE, unit_recipe("macs", 0.5))
    assert (plain.removed == decide_units(CUTTABLE, unit_recipe("macs", 0.5, criterion="l2-in")).removed).all()


REFUSED: dict[str, tuple[Any, float, dict[str, Any], str]] = {
    "unknown criterion": ("macs", 0.5, {"criterion": "l7"}, "--criterion 'l7' is unknown"),
    "unknown normalisation": ("macs", 0.5, {"normalize": "x"}, "--normalize 'x' is unknown"),
    "no data": ("macs", 0.5, {"criterion": "activation", "data": None}, "needs data"),
    "everything": ("macs", 0.0, {}, "leaves nothing to choose"),
    "nothing": ("ratio", 1.0, {}, "leaves nothing to choose"),
    "a limit of nothing": ("macs", 0.5, {"max_ratio": 0.0}, "nothing may be removed"),
    "unreachable": ("macs", 0.01, {}, "cannot be reached"),
    "more than there is": ("macs", 1e12, {}, "has only"),
    "no norms": ("macs", 0.5, {"criterion": "bn-scale"}, "have no BatchNormalization"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    kind, target, options, message = REFUSED[case]
    with pytest.raises(PruneError, match=message):
        decide_units(CUTTABLE, unit_recipe(kind, target, **options))


def test_nan_weights_are_named() -> None:
    net = residual_net(Net())
    array = np.full((40, 24, 3, 3), np.nan, np.float32)
    net.initializers[6].CopyFrom(__import__("onnx").numpy_helper.from_array(array, net.initializers[6].name))
    with pytest.raises(PruneError, match="holds NaN"):
        decide_units(found(net), unit_recipe("ratio", 0.5))
