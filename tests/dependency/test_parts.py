"""Units whose parts may be exchanged: as many query heads of every key head, whichever."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.dependency.analysis import analyse
from prunecli.dependency.catalogue import Catalogue, catalogue
from prunecli.dependency.cut import remove
from prunecli.dependency.prepare import plan_names, prepare
from prunecli.errors import PruneError
from tests.dependency.cases_parts import GROUPS, SIZE, WITH_CACHE, grouped_cache
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, distance, masked_original, random_feeds, run

FREE = [how for how in WITH_CACHE if how != "five axes"]


def opened(how: str) -> tuple[Net, ir.Model, Catalogue]:
    net = Net(23)
    grouped_cache(net, how)
    work = prepare(ir.from_proto(net.model()))
    return net, work, catalogue(analyse(work, net.shapes, net.other))


@pytest.mark.parametrize("how", WITH_CACHE)
def test_units_fall_apart_where_slots_are_only_counted(how: str) -> None:
    """With queries of five axes, a tensor has an axis of slots: the same one goes from all groups."""
    _, _, found = opened(how)
    assert [group.parts for group in found.groups] == [GROUPS if how in FREE else 0]
    assert [group.count for group in found.apart().groups] == ([3 * GROUPS] if how in FREE else [])


@pytest.mark.parametrize("how", FREE)
@pytest.mark.parametrize("seed", range(3))
def test_any_choice_of_as_many_heads_agrees_with_zeros(how: str, seed: int) -> None:
    """Removal changes the order of sums only, as in `proving`."""
    net, work, found = opened(how)
    rng, group = np.random.default_rng(seed), found.groups[0]
    found = found.regrouped({group.name: [rng.permutation(group.count).tolist() for _ in range(GROUPS)]})
    gone = np.zeros(found.count, bool)
    gone[rng.permutation(group.count)[: 1 + seed % 2]] = True
    removed, geometry = found.removed(gone), found.analysis.geometry
    plan = found.telling(plan_names(work, removed, geometry))
    heads = plan[group.name][group.weights[0][1]][::SIZE] // SIZE
    assert np.bincount(heads // group.count, minlength=GROUPS).tolist() == [gone.sum()] * GROUPS
    lengths = {value.name: shape for value, shape in geometry.facts.shapes.items()}
    masked = masked_original(net.model(), plan, lengths)
    remove(work, removed, net.shapes, net.other)
    cut = ir.to_proto(work)
    for shapes in (net.shapes, net.other):
        fed = random_feeds(net.model(), shapes, seed)
        pairs = zip(run(masked, fed), run(cut, fed), strict=True)
        assert max(distance(want, got) for want, got in pairs) <= TOLERANCE["float32"]


def test_parts_as_units_are_those_of_the_units() -> None:
    _, _, found = opened("Attention")
    apart, group = found.apart(), found.groups[0]
    rows, own = found.rows(group)[0], apart.rows(apart.groups[0])[0].reshape(GROUPS, group.count, -1)
    counting = found.rows(group)[1] < 0
    for unit in range(group.count):
        assert sorted([*own[:, unit].ravel(), *rows[unit][counting[unit]]]) == rows[unit].tolist()


@pytest.mark.parametrize("orders", [{"other": [[0, 1, 2]] * 2}, {"": [[0, 1, 2]]}, {"": [[0, 1]] * 2}])
def test_orders_of_another_model_are_refused(orders: dict[str, list[list[int]]]) -> None:
    _, _, found = opened("Attention")
    with pytest.raises(PruneError, match="no such parts"):
        found.regrouped({name or found.groups[0].name: order for name, order in orders.items()})
