"""The solver: connected components, closed sets, and random graphs of many operators proved in onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.dependency.analysis import Analysis, analyse
from prunecli.dependency.atoms import AtomTable, connected_components, solve
from prunecli.dependency.prepare import prepare
from prunecli.dependency.registry import reshape_groups
from prunecli.dependency.units import find_families
from prunecli.errors import PruneError
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, prove
from tests.dependency.tables import ALL


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_components_are_those_of_a_plain_search(case: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = case
    label = list(range(n))
    for _ in range(n):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    left, right = (np.array([e[k] for e in edges], np.int64) for k in (0, 1))
    found, count = connected_components(n, left, right)
    assert count == len(set(label))
    assert all((found[i] == found[j]) == (label[i] == label[j]) for i, j in itertools.combinations(range(n), 2))


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.data())
def test_reshape_groups_hold_the_same_elements_on_both_sides(source: list[int], data: st.DataObject) -> None:
    total = int(np.prod(source))
    target: list[int] = []
    while total > 1:
        target.append(data.draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0])))
        total //= target[-1]
    for group in reshape_groups(tuple(source), tuple(target)):
        assert np.prod([source[i] for i in group.source]) == np.prod([target[i] for i in group.target])
        if group.factors is not None:
            for axes, spans in ((source, group.source_spans), (target, group.target_spans)):
                assert all(np.prod(group.factors[a:b]) == axes[i] for i, (a, b) in spans.items())


@pytest.mark.parametrize("name", [n for n in ALL if "attention" in n or "grouped" in n or n.startswith("whole/")])
def test_units_are_closed(name: str) -> None:
    """A unit that touches one coordinate of a product holds exactly the slabs of its coordinates."""
    net = ALL[name].net()
    analysis = analyse(prepare(ir.from_proto(net.model())), net.shapes, net.other)
    for family in analysis.families:
        for unit in np.flatnonzero(family.frozen < 0):
            _assert_closed(analysis, family.components[family.labels == unit])


def _assert_closed(analysis: Analysis, components: np.ndarray) -> None:
    gone = np.zeros(analysis.components.count, bool)
    gone[components] = True
    for product in analysis.components.products:
        slabs = np.zeros(product.whole.shape, bool)
        for axis, factor in enumerate(product.factors):
            slabs |= gone[factor].reshape([-1 if i == axis else 1 for i in range(slabs.ndim)])
        assert np.array_equal(gone[product.whole], slabs)


def test_a_factor_is_followed_beside_one_that_is_frozen() -> None:
    """(batch * heads) is split again as (batch, heads): the frozen batch does not hide the heads."""
    table = AtomTable()
    batch, heads, again, size = (table.virtual(n) for n in (2, 4, 4, 3))
    merged, whole, other = table.virtual(8), table.virtual(12), table.virtual(2)
    table.product(whole, (heads, size))
    table.product(merged, (batch, heads))
    table.product(merged, (other, again))
    for axis in (batch, other):
        table.freeze(axis, "batch")
    solved = solve(table)
    free = [int((f.frozen < 0).sum()) for f in find_families(solved)]
    assert sorted(free)[-2:] == [3, 4]


def test_more_positions_than_fit_are_refused() -> None:
    table = AtomTable()
    table.virtual(2**62)
    with pytest.raises(PruneError, match="positions along their axes"):
        solve(table)


STEPS = (
    "conv",
    "grouped",
    "add",
    "norm",
    "concat",
    "split",
    "chunk",
    "flip",
    "shuffle",
    "gate",
    "pad",
    "excite",
    "pixel",
)


def _grow(n: Net, rng: np.random.Generator, h: str, width: int) -> tuple[str, int]:
    """One more step on a map of `width` channels (always a multiple of 4) and 4 x 4 pixels."""
    step = STEPS[rng.integers(len(STEPS))]
    if step == "conv":
        return str(n("Relu", n.conv(h, width, 8, 3, pads=[1] * 4))), 8
    if step == "grouped":
        return n.conv(h, width, 2 * width, group=int(rng.choice([2, 4, width]))), 2 * width
    if step == "add":
        return str(n("Add", h, n.conv(n("Relu", h), width, width))), width
    if step == "norm":
        return str(n("BatchNormalization", h, n.w(width), n.w(width), n.w(width), n.positive(width))), width
    if step == "concat":
        return str(n("Concat", h, n("Neg", n.conv(h, width, 4)), axis=1)), width + 4
    if step == "split":
        a, b = n("Split", h, n.c([4, width - 4]), axis=1, outputs=2) if width > 4 else (h, h)
        return str(n("Concat", b, a, axis=1)), width if width > 4 else 2 * width
    if step == "chunk":
        return str(n("Slice", h, n.c([0]), n.c([4]), n.c([1]))), 4
    if step == "flip":
        return str(n("Add", h, n("Gather", h, n.c(np.arange(width)[::-1].copy()), axis=1))), width
    if step == "shuffle":
        parts = n("Transpose", n("Reshape", h, n.c([0, 2, width // 2, 4, 4])), perm=[0, 2, 1, 3, 4])
        return str(n("Reshape", parts, n.c([0, -1, 4, 4]))), width
    if step == "gate":
        both = n.conv(h, width, 2 * width)
        a, b = (n("Slice", both, n.c([s]), n.c([e]), n.c([1])) for s, e in ((0, width), (width, 2 * width)))
        return str(n("Mul", a, n("Sigmoid", b))), width
    if step == "pad":
        return str(n("Pad", h, n.c([0, 2, 0, 0, 0, 2, 0, 0]))), width + 4
    if step == "excite":
        return str(n("Mul", h, n("Sigmoid", n.conv(n("GlobalAveragePool", h), width, width)))), width
    deep = n("DepthToSpace", n.conv(h, width, 16), blocksize=2)
    return str(n("SpaceToDepth", n("Relu", deep), blocksize=2)), 16


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_random_graphs_are_cut_exactly(seed: int, steps: int) -> None:
    rng, net = np.random.default_rng(seed), Net(18, seed)
    h, width = net.conv(net.x("N", 3, 4, 4), 3, 8, 3, pads=[1] * 4), 8
    skips: dict[int, str] = {}
    for _ in range(steps):
        skips[width] = h
        h, width = _grow(net, rng, h, width)
        if width in skips and rng.random() < 0.4:
            h = net("Add", h, skips[width])
    net.out(net("Gemm", net("Flatten", h), net.w(width * 16, 3), net.w(3)))
    proof = prove(net.model(), net.shapes, net.other, seed)
    assert proof.error <= TOLERANCE["float32"], proof.removed


def test_a_node_without_a_name_is_told_by_its_output() -> None:
    net = Net()
    net.out(net("Conv", net.x("N", 3, "H", "W"), net.w(8, 3, 3, 3), net.w(7)))
    model = net.model()
    model.graph.node[0].name = ""
    with pytest.raises(PruneError, match=r"Conv 'conv1' does not fit .* axes of 7 and 8 positions"):
        analyse(ir.from_proto(model), net.shapes)
