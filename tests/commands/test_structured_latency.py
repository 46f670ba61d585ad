"""`--latency`: the search aims by what was measured, keeps what is fast enough, and says so where nothing is.

Clocks are replaced: what a model "takes" is a function of the work that is left in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation import profile
from prunecli.evaluation.latency import Latency, Speedup, TimingOptions
from prunecli.model import Dims
from prunecli.structures import latency as module
from prunecli.structures.choose import OutOfReachError
from prunecli.structures.latency import ROUNDS, CutTimer, Measured, TimedChoice, fastest_enough, search
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.structures.structured import structured
from prunecli.types import no_progress
from tests.dependency.net import Net
from tests.structures.cuts import net_file
from tests.structures.outside import TOLERANCE, compare


def wide(n: Net) -> Net:
    h = n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 64, 3, pads=[1] * 4))
    for _ in range(2):
        h = n("Relu", n.conv(h, 64, 64, 3, pads=[1] * 4))
    return n.out(n.conv(h, 64, 4))


def residual(n: Net) -> Net:
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8)
    for _ in range(4):
        h = n("Add", h, n.conv(n("Relu", n.conv(h, 8, 32)), 32, 8))
    return n.out(n.conv(h, 8, 4))


def gain(share: float, spread: float = 0.02) -> Speedup:
    return Speedup(1 / share, 1 / (share * (1 + spread)), 1 / (share * (1 - spread)))


class Ideal:
    """Chooses any of 100 units; predicts `slope` of the truth at first, and the truth once it has learnt."""

    def __init__(self, slope: float = 1.0, least: float = 0.1) -> None:
        self.slope, self.least, self.learnt = slope, least, 0

    def choose(self, aim: float) -> TimedChoice:
        if aim < self.least:
            raise OutOfReachError("out of reach", "", self.least)
        removed = np.arange(100) < round(100 * (1 - aim))
        return TimedChoice(removed, np.zeros(100), 1 - removed.mean(), [])

    def learn(self, choice: TimedChoice) -> float:
        self.learnt += 1
        return choice.predicted


def truth(slope: float) -> Callable[[bytes], Speedup]:
    """The clock: `slope` times the fraction of units that is left."""
    return lambda model: gain(slope * (1 - np.frombuffer(model, bool).mean()))


@pytest.mark.parametrize("slope", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.65])
def test_wrong_predictions_are_corrected_by_what_was_measured(slope: float, target: float) -> None:
    tried = search(Ideal(), lambda mask: mask.tobytes(), truth(slope), target)
    assert len(tried) <= 3
    assert 0.93 * target <= fastest_enough(tried, target).share <= target


def test_the_least_that_is_predicted_is_measured_before_anything_is_refused() -> None:
    tried = search(Ideal(least=0.6), lambda mask: mask.tobytes(), truth(0.5), 0.4)
    assert tried[0].choice.predicted == 0.6 and tried[0].share == pytest.approx(0.3)
    assert fastest_enough(tried, 0.4).share == pytest.approx(0.39)


def test_the_search_ends() -> None:
    """A clock that says anything: no more rounds than allowed, no model twice."""
    rng = np.random.default_rng(0)
    tried = search(Ideal(least=0.01), lambda mask: mask.tobytes(), lambda _: gain(rng.uniform(0.6, 1.4)), 0.5)
    assert len(tried) <= ROUNDS
    assert len({m.choice.removed.tobytes() for m in tried}) == len(tried)


def measured(*shares: float) -> list[Measured]:
    return [Measured(TimedChoice(np.zeros(1, bool), np.zeros(1), share, []), gain(share)) for share in shares]


@pytest.mark.parametrize(("shares", "chosen"), [((0.3, 0.45, 0.7), 0.45), ((0.505, 0.4), 0.4), ((0.505, 0.9), 0.505)])
def test_what_keeps_most_within_the_target_is_chosen(shares: tuple[float, ...], chosen: float) -> None:
    assert fastest_enough(measured(*shares), 0.5).share == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.7, 0.8), r"--latency 0\.5 is out of reach: the fastest .* takes 0\.7 of the time .* 0\.69 to 0\.71"),
        ((0.99, 1.2), "no faster model exists within these limits"),
        ((), "no faster model exists within these limits"),
    ],
)
def test_where_nothing_is_fast_enough_a_gate_fails(shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(GateFailed, match=message):
        fastest_enough(measured(*shares), 0.5)


def test_nothing_is_promised_where_the_machine_is_too_busy() -> None:
    busy = Speedup(9.6, 9.0, 10.0, "other processes took 70 % of the CPU time")
    with pytest.raises(GateFailed, match="not measurable now: other processes took 70 %"):
        search(Ideal(), lambda mask: mask.tobytes(), lambda _: busy, 0.5)


# -- whole runs -------------------------------------------------------------------------------------


def work_of(model: onnx.ModelProto) -> float:
    """Elements of all kernels."""
    return float(sum(np.prod(t.dims) for t in model.graph.initializer if len(t.dims) > 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock of the comparison: `floor` is what a model without any work would take."""

    def start(floor: float) -> None:
        def run(self: CutTimer, model: ir.Model) -> Speedup:
            whole = work_of(onnx.load(self.cuttable.file.path))
            return gain(floor + (1 - floor) * work_of(ir.to_proto(model)) / whole)

        def layer_times(self: CutTimer, removed: Any) -> list[dict[str, float]]:
            return [self_times(ir.to_proto(self.build(mask))) for mask in removed]

        monkeypatch.setattr(CutTimer, "compare", run)
        monkeypatch.setattr(CutTimer, "layer_times", layer_times)

    return start


def self_times(model: onnx.ModelProto) -> dict[str, float]:
    sizes = {t.name: float(np.prod(t.dims)) for t in model.graph.initializer}
    return {node.output[0]: sizes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "granularity"), [(wide, "channel,head"), (residual, "block"), (residual, "channel,head,block")]
)
def test_a_model_is_cut_until_it_is_fast_enough(
    build: Any, granularity: str, clock: Callable[[float], None], tmp_path: Path
) -> None:
    clock(0.05)
    path, measured = net_file(tmp_path, build), {}
    plan, cut = tmp_path / "plan.json", tmp_path / "cut.onnx"
    if "," in granularity and build is residual:  # blocks beside channels are measured on data
        np.savez(tmp_path / "x.npz", x0=np.random.default_rng(0).standard_normal((32, 3, 6, 6)).astype(np.float32))
        measured = {"data": str(tmp_path / "x.npz"), "criterion": "obs"}
    found = structured(
        path, latency=0.6, granularity=granularity, output=cut, save_plan=plan, recover="none", **measured
    )
    assert found.verification.kind == "exact"
    left = work_of(onnx.load(cut)) / work_of(onnx.load(path))
    assert 0.3 < 0.05 + 0.95 * left <= 0.6
    assert found.latency is not None and found.latency["remains"] == pytest.approx(0.05 + 0.95 * left)
    assert found.to_json()["latency"]["speedup"]["speedup"] == pytest.approx(1 / found.latency["remains"])
    assert any("times faster than the baseline" in note for note in found.notes)
    assert json.loads(plan.read_text())["recipe"]["latency"] == 0.6
    assert compare(path, plan, cut) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["channel,head", "block"])
def test_nothing_is_written_where_nothing_is_fast_enough(
    granularity: str, clock: Callable[[float], None], tmp_path: Path
) -> None:
    clock(0.9)
    with pytest.raises(GateFailed, match=r"--latency 0\.3 is out of reach: the fastest .* takes 0\.9"):
        structured(net_file(tmp_path, residual), latency=0.3, granularity=granularity, output=tmp_path / "cut.onnx")
    assert not (tmp_path / "cut.onnx").exists()


def test_a_time_in_milliseconds_is_a_fraction_of_the_measured_one(
    clock: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(0.05)
    taken = Latency(np.full(9, 8.0), TimingOptions(1, "CPUExecutionProvider"))
    monkeypatch.setattr(module, "measure", lambda runs, *_, **__: dict.fromkeys(runs, taken))
    found = structured(net_file(tmp_path, wide), latency="4ms", recover="none", output=tmp_path / "cut.onnx")
    assert found.latency is not None and found.latency["target"] == 0.5
    assert found.recipe["latency_ms"] == 4
    with pytest.raises(PruneError, match="takes 8 ms already"):
        structured(net_file(tmp_path, wide), latency="9ms", output=tmp_path / "other.onnx")


@pytest.mark.parametrize("target", ["cpu", "cpu-int8"])
def test_the_real_clock_times_every_layer(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No assertion on how long anything takes, only that the table holds the convolutions and the parts add up; in int8
    it is the quantised model that runs."""
    monkeypatch.setattr(module, "COMPARE_SECONDS", 0.1)
    monkeypatch.setattr(profile, "PROFILE_SECONDS", 0.1)
    subject = open_cuttable(net_file(tmp_path, wide), AnalysedAs("channel,head"), Dims())
    bench = CutTimer(subject, CutOptions(target=target), no_progress)
    run = bench.runnable(subject.file.path)
    kinds = {node.op_type for node in onnx.load(run).graph.node} if isinstance(run, Path) else set()
    assert ("QuantizeLinear" in kinds) is (target == "cpu-int8")
    (times,) = bench.layer_times([np.zeros(subject.units.count, bool)])
    convs = [n.outputs[0].name for n in subject.work.graph if n.op_type == "Conv"]
    assert all(times.get(name or "", 0) > 0 for name in convs)
    assert bench.compare(bench.build(np.zeros(subject.units.count, bool))).speedup > 0
