"""The table of latencies: what it predicts from what was measured, and whose time a kernel is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.dependency.analysis import analyse
from prunecli.dependency.catalogue import Catalogue, catalogue, parse_granularity
from prunecli.dependency.prepare import prepare
from prunecli.evaluation import profile
from prunecli.evaluation.profile import (
    LEAST,
    REST,
    Attribution,
    Kernel,
    _summary,
    key,
    net_of_timing,
    profiles,
)
from prunecli.runtime import Session, channel_block
from prunecli.structures.latency import WIDTHS, LatencyTable, even_cut
from prunecli.structures.widths import Alignment
from tests.dependency.net import Net

BLOCKS = Alignment(16, "dense", 16, True, given=False)


def _net(n: Net) -> Net:
    """Groups of 64, 32 and 6 channels."""
    h = n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 64, 3, pads=[1] * 4))
    h = n("Relu", n.conv(h, 64, 32, 3, pads=[1] * 4))
    return n.out(n.conv(n("Relu", n.conv(h, 32, 6)), 6, 4))


def _catalogue(n: Net) -> Catalogue:
    work = prepare(ir.from_proto(n.model()))
    return catalogue(analyse(work, n.shapes, n.other), parse_granularity("channel,head"))


@pytest.fixture(scope="module")
def units() -> Catalogue:
    return _catalogue(_net(Net()))


def _allowed(units: Catalogue) -> Any:
    return np.ones(len(units.groups), bool)


def _convs(units: Catalogue) -> list[str]:
    return [key(node) for node in units.analysis.model.graph if node.op_type == "Conv"]


def _times(units: Catalogue, removed: Any) -> dict[str, float]:
    """A machine on which a layer takes 1 ms and 4 ms times its work, and nothing else takes any. A layer's work is the
    product of its kept inputs and outputs; the first reads the image, the last yields the result."""
    a, b, c = (1 - removed[g.units].mean() for g in units.groups)
    return {name: 1 + 4 * work for name, work in zip(_convs(units), (a, a * b, b * c, c), strict=True)}


def _learnt(units: Catalogue) -> LatencyTable:
    table = LatencyTable(units)
    for share in WIDTHS:
        mask = even_cut(units, BLOCKS, _allowed(units), share)
        table.learn(_times(units, mask), units.kept(mask))
    return table


@pytest.mark.parametrize(
    ("share", "left"), [(1.0, [64, 32, 6]), (0.75, [48, 32, 6]), (0.5, [32, 16, 6]), (0.1, [8, 16, 6])]
)
def test_an_even_cut_leaves_whole_steps(units: Catalogue, share: float, left: list[int]) -> None:
    removed = even_cut(units, BLOCKS, _allowed(units), share)
    assert [int((~removed[g.units]).sum()) for g in units.groups] == left


def test_groups_that_may_not_be_cut_stay(units: Catalogue) -> None:
    allowed = np.array([True, False, False])
    removed = even_cut(units, BLOCKS, allowed, 0.5)
    assert [int(removed[g.units].sum()) for g in units.groups] == [32, 0, 0]


def test_layers_between_two_groups_are_predicted_by_their_work(units: Catalogue) -> None:
    """The machine of `_times` is linear in the work: interpolation is exact at widths that were never
    measured, to the nanosecond."""
    table = _learnt(units)
    removed = np.zeros(units.count, bool)
    removed[units.groups[0].first : units.groups[0].first + 20] = True
    removed[units.groups[1].first : units.groups[1].first + 9] = True
    want = sum(_times(units, removed).values())
    assert table.of(units.kept(removed))["latency"] == pytest.approx(want * 1e6, abs=1)
    whole = table.of(units.sizes)
    assert whole["latency"] == pytest.approx(20e6)
    assert {k: v for k, v in whole.items() if k != "latency"} == table.base.of(units.sizes)


def test_what_belongs_to_no_layer_follows_the_work_of_all(units: Catalogue) -> None:
    table = LatencyTable(units)
    half = even_cut(units, BLOCKS, _allowed(units), 0.5)
    table.learn({REST: 8.0}, units.sizes)
    macs = table.base.of(units.kept(half))["macs"] / table.base.of(units.sizes)["macs"]
    assert table.of(units.kept(half))["latency"] == pytest.approx(8e6 * macs, rel=1e-6)


def test_a_layer_that_is_swallowed_takes_no_time_there(units: Catalogue) -> None:
    table = LatencyTable(units)
    name, half = _convs(units)[0], even_cut(units, BLOCKS, _allowed(units), 0.5)
    table.learn({name: 4.0}, units.sizes)
    table.learn({}, units.kept(half))
    assert table.of(units.kept(half))["latency"] == 0
    assert table.of(units.sizes)["latency"] == 4e6


@settings(max_examples=40)
@given(st.lists(st.floats(0, 10), min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_a_smaller_model_is_never_predicted_to_be_slower(units: Catalogue, noise: list[float], seed: int) -> None:
    """Whatever was measured: the search for a budget relies on it."""
    table, rng = LatencyTable(units), np.random.default_rng(seed)
    for share, ms in zip(WIDTHS, noise, strict=False):
        mask = even_cut(units, BLOCKS, _allowed(units), share)
        table.learn(dict.fromkeys([*_convs(units), REST], ms), units.kept(mask))
    order = rng.permutation(units.count)
    removed, last = np.zeros(units.count, bool), np.inf
    for part in np.array_split(order[:-3], 6):
        now = table.of(units.kept(removed))["latency"]
        assert now <= last
        removed[part], last = True, now


# -- profiles ---------------------------------------------------------------------------------------


def _dense(n: Net) -> Net:
    h = n("Relu", n.linear(n.x("N", 32), 32, 48))
    return n.out(n("Gemm", h, n.w(8, 48), n.w(8), transB=1))


@pytest.mark.parametrize(("build", "op", "count"), [(_net, "Conv", 4), (_dense, "MatMul", 1), (_dense, "Gemm", 1)])
def test_fused_kernels_are_told_by_the_contraction_that_began_them(
    build: Any, op: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conv + Relu, MatMul + Add (which becomes a Gemm) + Relu: the time is that of the Conv and of the MatMul."""
    net = build(Net())
    work = prepare(ir.from_proto(net.model()))
    x = np.random.default_rng(0).standard_normal(net.shapes["x0"]).astype(np.float32)
    monkeypatch.setattr(profile, "PROFILE_SECONDS", 0.1)
    (kernels,) = profiles([net.model().SerializeToString()], {"x0": x})
    attribution = Attribution(work.graph)
    found = [node for k in kernels if (node := attribution.node(k)) is not None and node.op_type == op]
    assert len({key(node) for node in found}) == count
    times = attribution.times(kernels)
    assert sum(times.values()) == pytest.approx(sum(k.ms for k in kernels))
    lost = [k for k in kernels if attribution.node(k) is None]
    assert all(k.op.startswith("Reorder") for k in lost)


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        (Kernel("conv", "Conv", 1), "c"),
        (Kernel("r_nchwc", "Conv", 1), "c"),  # named after the value, suffix of the layout
        (Kernel("r", "Relu", 1), "r"),
        (Kernel("conv/Fusion/x_1", "FusedConv", 1), "c"),
        (Kernel("ReorderOutput_token_3", "ReorderOutput", 1), None),
        (Kernel("c_reorder", "ReorderInput", 1), None),
        (Kernel("unheard", "Add", 1), None),
        (Kernel("InsertedPrecisionFreeCast_r_nchwc", "Conv", 1), "c"),  # float16 computed in float32
        (Kernel("InsertedPrecisionFreeCast_x0", "Cast", 1), None),
        (Kernel("Relu_1", "Relu", 1), "r"),  # a node without a name
        (Kernel("Relu_7", "Relu", 1), None),
    ],
)
def test_names_of_kernels(kernel: Kernel, node: str | None) -> None:
    n = Net()
    h = n("Conv", n.x("N", 3, "H", "W"), n.w(4, 3, 1, 1))
    n.out(n("Relu", h))
    n.nodes[0].name, n.nodes[0].output[0] = "conv", "c"
    n.nodes[1].input[0], n.nodes[1].output[0], n.outputs[0] = "c", "r", "r"
    found = Attribution(ir.from_proto(n.model()).graph).node(kernel)
    assert (None if found is None else key(found)) == node


def _event(name: str, ts: int, dur: float, op: str = "") -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "cat": "Node", "args": {"op_name": op}}


def test_the_fastest_runs_count_and_loops_add_up() -> None:
    """Two runs after one to warm up; `b` runs twice in each."""
    events = [_event("model_run", 10 * n, 9) for n in range(3)]
    events += [_event("a_kernel_time", 10 * n + 1, dur, "Conv") for n, dur in enumerate((1, 3000, 5000))]
    events += [_event("b_kernel_time", 10 * n + k, 1000, "Add") for n in range(3) for k in (2, 3)]
    events.append(_event("a_fence_before", 11, 7))
    assert _summary(events, 2) == [Kernel("a", "Conv", 3.0), Kernel("b", "Add", 2.0)]


def test_what_timing_adds_is_taken_off_each_alike() -> None:
    """10 kernels of 0.1 and one of 2 ms that run in 2.45 ms: 0.05 from each, also in the other model."""
    first = [Kernel(str(n), "Add", 0.1) for n in range(10)] + [Kernel("c", "Conv", 2.0)]
    other = [Kernel("c", "Conv", 1.0), Kernel("0", "Add", 0.01)]
    a, b = net_of_timing([first, other], 2.45)
    assert sum(k.ms for k in a) == pytest.approx(2.45)
    assert [k.ms for k in b] == [pytest.approx(0.95), pytest.approx(LEAST * 0.01)]
    unchanged, _ = net_of_timing([first, other], 99.0)
    assert sum(k.ms for k in unchanged) == pytest.approx(3.0)


def test_the_block_of_this_machine_is_that_of_its_weights() -> None:
    assert channel_block() in (1, 8, 16, 32)


def test_a_profile_is_written_where_it_was_asked_for(tmp_path: Any) -> None:
    session = Session.open(_dense(Net()).model().SerializeToString(), writes={"trace": tmp_path / "trace"})
    session.run(session.random_inputs())
    assert session.end_profile().parent == tmp_path
