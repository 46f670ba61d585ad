"""`--latency`: choose by a table of latencies measured per layer and width, then confirm by measuring the result.

The model is cut evenly to a few widths, and at each of them every layer is timed where it stands: fused, in its
real layout, on the threads that will run it. What a layer takes at other widths is interpolated over the share of
its work that remains, which is the product of the kept fractions of the axes it depends on. Widths are those that
`prunecli.structures.widths` allows, because those in between save nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, Mask
from prunecli.dependency.catalogue import Catalogue
from prunecli.dependency.costs import Costs, axes_of_blocks, axes_of_outputs, costs
from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.latency import QUARTILE, Latency, Speedup, TimingOptions, measure, measure_pair
from prunecli.evaluation.profile import REST, Attribution, key, net_of_timing, profiles
from prunecli.files import Scratch
from prunecli.model import concrete_shapes
from prunecli.model.saving import SaveOptions, save
from prunecli.model.shape_inference import Shape
from prunecli.runtime import PreparedRun, Session, quantise
from prunecli.structures.blocks import (
    BlockCosts,
    block_damage,
    check_block_options,
    decide_blocks,
)
from prunecli.structures.calibrate import measure as measure_evidence
from prunecli.structures.choose import OutOfReachError, UnitRecipe, decide_units
from prunecli.structures.decision import Decided
from prunecli.structures.options import CutOptions, StructuredOptions, Widths
from prunecli.structures.prunable import Cuttable, LeftOut, less
from prunecli.structures.target import Budget
from prunecli.structures.widths import Alignment, cpu_block
from prunecli.types import Json, Progress

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Fractions of every group at which layers are timed."""
NANOSECONDS = 1e6


@dataclass
class LatencyTable:
    """Implements `Costing` of `prunecli.structures.choose`, with the amount `latency` in nanoseconds.

    `points`: by layer (`latency_profile.key`), (share of its work that remains, milliseconds). `axes`: by layer, the
    axes (representatives in the atom table) to which its work is proportional.
    """

    catalogue: Catalogue
    base: Costs = field(init=False)
    axes: dict[str, tuple[int, ...]] = field(init=False)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _curves: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = costs(self.catalogue)
        self.axes = _axes_of_layers(self.catalogue)

    def learn(self, times: Mapping[str, float], kept: Array) -> None:
        """Add times measured with `kept` positions left on each axis. A layer without a time was fused into another
        one: its time is 0."""
        for name in {*times, *self.points}:
            point = self.share(name, kept), times.get(name, 0.0)
            self.points.setdefault(name, []).append(point)
        self._curves = {name: _curve(points) for name, points in self.points.items()}

    def share(self, name: str, kept: Array) -> float:
        """Return the remaining share of a layer's work: the product of the kept fractions; for the rest, the share of
        all work."""
        fraction = self.base.fraction(kept)
        if name == REST or name not in self.axes:
            whole = self.base.of(self.base.sizes)["macs"]
            return self.base.of(kept)["macs"] / whole if whole else 1.0
        return float(fraction[list(self.axes[name])].prod())

    def of(self, kept: Array) -> dict[str, int]:
        """Parameters, multiply-accumulates, and the predicted latency in nanoseconds."""
        total = sum(float(np.interp(self.share(name, kept), *curve)) for name, curve in self._curves.items())
        return {**self.base.of(kept), "latency": round(total * NANOSECONDS)}

    def amount(self, kind: str, kept: Array) -> int:
        """Return one of the amounts."""
        return self.of(kept)[kind] if kind == "latency" else self.base.amount(kind, kept)

    def time(self, kept: Array) -> float:
        """The predicted latency in nanoseconds."""
        return self.of(kept)["latency"]


def _axes_of_layers(units: Catalogue) -> dict[str, tuple[int, ...]]:
    """Return the axes that the work of each layer depends on: of contractions those of the work, of other operators
    those of their first output; and those of blocks."""
    table = units.analysis.components.table
    out = axes_of_outputs(units.analysis)
    out |= {work.node: tuple(table.find(axis) for axis in work.axes) for work in units.analysis.work}
    return {key(node): (*axes, *axes_of_blocks(units, node)) for node, axes in out.items()}


def _curve(points: Sequence[tuple[float, float]]) -> tuple[Array, Array]:
    """Return milliseconds over shares, never falling: times at one share are averaged, times out of order are pooled
    half way, and a share of 0 takes no time."""
    shares = np.array(sorted({share for share, _ in points}))
    times = np.array([np.mean([ms for other, ms in points if other == share]) for share in shares])
    up = np.maximum.accumulate(times)
    down = np.minimum.accumulate(times[::-1])[::-1]
    return np.append(0.0, shares), np.append(0.0, (up + down) / 2)


def even_cut(catalogue: Catalogue, alignment: Alignment, allowed: Mask, share: float) -> Mask:
    """Return a mask that leaves about `share` of every allowed group, at an allowed width. Which units stay does not
    affect the time."""
    removed = np.zeros(catalogue.count, bool)
    for group in (g for g, wanted in zip(catalogue.groups, allowed, strict=True) if wanted and g.least):
        widths = alignment.widths(catalogue, group)
        stay = min((width for width in widths if width >= round(share * group.count)), default=group.count)
        removed[group.first + stay : group.units.stop] = True
    return removed


# -- choosing, measuring, correcting ---------------------------------------------------------------

ROUNDS = 5
"""Most models that are built and measured."""
CLOSE = 0.93
"""Relative distance below the target at which a result is not improved any further."""
MARGIN = 0.98
"""Factor of the target that is aimed at, so that noise rarely costs a round."""
COMPARE_SECONDS = 6.0
"""Seconds of a measurement of one model and the original."""
ABOVE = 1.02
"""Factor by which sessions of the same model differ."""


@dataclass(frozen=True)
class TimedChoice:
    """Units to remove, and the predicted share of the latency that remains."""

    removed: Array
    scores: Array
    predicted: float
    notes: list[str]


@dataclass(frozen=True)
class Measured:
    """A choice carried out and timed against the original."""

    choice: TimedChoice
    gain: Speedup

    @property
    def share(self) -> float:
        """The remaining share of the original's time."""
        return 1 / self.gain.speedup


class Chooser(Protocol):
    """Chooses units for a predicted fraction of the latency, and learns from measurements."""

    def choose(self, aim: float) -> TimedChoice: ...

    def learn(self, choice: TimedChoice) -> float:
        """What is predicted for the choice now."""
        ...


@dataclass
class CutTimer:
    """Times cuts against the original on the same inputs; `start` opens sessions as the target runs them, quantised for
    `cpu-int8`."""

    cuttable: Cuttable
    options: CutOptions
    progress: Progress
    folder: Scratch = field(default_factory=Scratch)
    quantised: int = 0

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        return concrete_shapes(self.cuttable.file, self.options.dims).inputs

    @cached_property
    def original(self) -> Session:
        return self.start(self.runnable(self.cuttable.file.path))

    @cached_property
    def feed(self) -> dict[str, Any]:
        return self.options.execution.open(self.cuttable.file.path).random_inputs(
            seed=self.options.seed, shapes=self.shapes
        )

    def runnable(self, model: ir.Model | Path) -> ir.Model | Path:
        """Return the model as the target runs it: as it is, or quantised by onnxruntime on random inputs, since its
        time does not depend on the ranges."""
        if self.options.target != "cpu-int8" or self.cuttable.is_quantised:
            return model
        place = model if isinstance(model, Path) else self.folder.path / "float.onnx"
        if isinstance(model, ir.Model):
            save(replace(self.cuttable.file, ir=model), place, SaveOptions(force=True))
        self.quantised += 1
        return quantise(place, [self.feed], self.folder.path, name=f"int8.{self.quantised}")

    @property
    def start(self) -> Callable[..., Session]:
        return self.options.execution.open

    def build(self, removed: Array) -> ir.Model:
        """Return the model without the units. Every node gets a name, since node numbers differ from the original's."""
        model = self.cuttable.without(removed, self.cuttable.units.removed(removed))
        taken = {node.name for node in model.graph}
        for node in model.graph:
            if not node.name and key(node) not in taken:
                node.name = key(node)
        return model

    def compare(self, model: ir.Model) -> Speedup:
        """Time the model and the original in alternation."""
        cut, whole = self.start(self.runnable(model)).prepared(self.feed), self.original.prepared(self.feed)
        return measure_pair(cut, whole, self.timing, progress=self.progress).gain

    def measure(self, run: PreparedRun) -> Latency:
        return measure({"": run}, self.timing, self.progress)[""]

    @property
    def timing(self) -> TimingOptions:
        execution, provider = self.options.execution, self.original.provider
        return TimingOptions(execution.thread_count, provider, seconds=COMPARE_SECONDS, seed=self.options.seed)

    def fraction(self, budget: Budget) -> float:
        """Return the target as the fraction of the time that is to remain.

        Raises:
            PruneError: the model is as fast already.
        """
        if not budget.absolute:
            return budget.target
        whole = self.measure(self.original.prepared(self.feed)).median
        if budget.target >= whole:
            raise PruneError(f"the model takes {whole:.3g} ms already", "ask for less")
        return budget.target / whole

    def layer_times(self, removed: Sequence[Array]) -> list[dict[str, float]]:
        """Return milliseconds by layer without each set of units.

        The first set is also run without timing its operators, which gives the cost of the timing.
        """
        models = [self.runnable(self.build(mask)) for mask in removed]
        found = profiles(models, self.feed, self.start, progress=self.progress)
        plain = self.measure(self.start(models[0]).prepared(self.feed)).times
        layers = Attribution(self.cuttable.work.graph)
        return [layers.times(own) for own in net_of_timing(found, float(np.quantile(plain, QUARTILE)))]


def timed_widths(options: Widths) -> Alignment:
    """Return the multiples of the CPU's block among the widths: widths between them save no time, whatever a table
    interpolates."""
    return options.alignment.within(cpu_block()) if options.alignment.given else options.alignment


def layer_table(timer: CutTimer, allowed: Array) -> LatencyTable:
    """Time every layer at a few widths of the groups that may be cut."""
    units = timer.cuttable.units
    table, alignment = LatencyTable(units), timed_widths(timer.options)
    masks = [even_cut(units, alignment, allowed, share=share) for share in WIDTHS]
    for mask, times in zip(masks, timer.layer_times(masks), strict=True):
        table.learn(times, units.kept(mask))
    return table


@dataclass
class UnitChooser:
    """Channels and heads, by a table of every layer at a few widths."""

    timer: CutTimer
    allowed: Array
    table: LatencyTable = field(init=False)

    def __post_init__(self) -> None:
        self.evidence = measure_evidence(self.timer.cuttable, self.timer.options, self.timer.progress)
        self.table = layer_table(self.timer, self.allowed)

    def choose(self, aim: float) -> TimedChoice:
        options = self.timer.options
        recipe = UnitRecipe(Budget("latency", aim), options, widths=timed_widths(options))
        units = self.timer.cuttable.units
        found = decide_units(
            units, recipe, self.allowed, evidence=self.evidence, progress=self.timer.progress, costing=self.table
        )
        return TimedChoice(found.removed, found.scores, self._predict(found.removed), notes=found.notes)

    def _predict(self, removed: Array) -> float:
        units = self.timer.cuttable.units
        return self.table.of(units.kept(removed))["latency"] / self.table.of(units.sizes)["latency"]

    def learn(self, choice: TimedChoice) -> float:
        """Add the times of the layers at the chosen widths, scaled to the speed of the machine when the table was
        made."""
        units = self.timer.cuttable.units
        whole, cut = self.timer.layer_times([np.zeros_like(choice.removed), choice.removed])
        pace = self.table.of(units.sizes)["latency"] / max(sum(whole.values()) * NANOSECONDS, 1.0)
        self.table.learn({name: ms * pace for name, ms in cut.items()}, units.kept(choice.removed))
        return self._predict(choice.removed)


@dataclass
class BlockChooser:
    """Chooses residual blocks by the time of the layers inside each."""

    timer: CutTimer
    allowed: Array

    def __post_init__(self) -> None:
        cuttable = self.timer.cuttable
        check_block_options(self.timer.options)
        self.damage, self.notes = block_damage(cuttable, self.timer.options)
        (times,) = self.timer.layer_times([np.zeros(cuttable.units.count, bool)])
        work = {node: times.get(key(node), 0.0) for node in cuttable.work.graph}
        self.costs = BlockCosts(cuttable.work, cuttable.units.blocks, {"latency": work})

    def choose(self, aim: float) -> TimedChoice:
        recipe = UnitRecipe(Budget("latency", aim), self.timer.options)
        found = decide_blocks(self.costs, self.damage, recipe, allowed=self.allowed, progress=self.timer.progress)
        left = 1 - self.costs.saved("latency", found.removed) / self.costs.whole("latency")
        said = f"without the dropped blocks the outputs diverge by {found.damage:.3g} in all"
        return TimedChoice(found.removed, found.scores, left, notes=[*self.notes, said])

    def learn(self, choice: TimedChoice) -> float:
        return choice.predicted


def choose_for_latency(
    cuttable: Cuttable, options: StructuredOptions, allowed: Array, left: Mapping[str, LeftOut], recipe: Json,
    progress: Progress,
) -> Decided:  # fmt: skip
    """Find units whose removal makes the model as fast as asked, as measured on this machine.

    Raises:
        GateFailed: there is none within the limits.
        PruneError: the model cannot be run or timed, or an option is unusable.
    """
    budget = options.budget
    assert budget is not None
    timer = CutTimer(cuttable, options, progress)
    target = timer.fraction(budget)
    chooser: Chooser
    if options.blocks_alone:
        chooser, recipe = BlockChooser(timer, allowed), {**recipe, "criterion": "divergence"}
    else:
        chooser = UnitChooser(timer, allowed)
    tried = search(chooser, timer.build, timer.compare, target=target)
    best = fastest_enough(tried, target, less(options, cuttable))
    where = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in timer.shapes.items())
    threads = options.execution.thread_count
    form = "in int8, " if options.target == "cpu-int8" else ""
    told = f"{form}measured on {threads} thread{'s' * (threads > 1)} at {where}: {best.gain.words()}"
    measured = {
        "target": target,
        "remains": best.share,
        "predicted": best.choice.predicted,
        "speedup": best.gain.to_json(),
        "threads": threads,
        "inputs": {name: list(shape) for name, shape in timer.shapes.items()},
    }
    notes = [*best.choice.notes, told]
    return Decided(best.choice.removed, best.choice.scores, recipe, left=left, notes=notes, latency=measured)


def search(
    chooser: Chooser, build: Callable[[Array], ir.Model], compare: Callable[[ir.Model], Speedup], target: float
) -> list[Measured]:
    """Choose, measure, and correct: each round aims by the error of the last one.

    Raises:
        GateFailed: the machine is too busy to tell how fast a model is.
    """
    aim, tried = MARGIN * target, list[Measured]()
    for _ in range(ROUNDS):
        choice = _within_reach(chooser, aim)
        if not choice.removed.any() or any(np.array_equal(choice.removed, m.choice.removed) for m in tried):
            break
        model = build(choice.removed)
        tried.append(Measured(choice, compare(model)))
        if tried[-1].gain.reason:
            raise GateFailed(f"no latency can be promised: {tried[-1].gain.words()}", "nothing is written; try again")
        share = tried[-1].share
        if CLOSE * target <= share <= target:
            break
        aim = float(np.clip(chooser.learn(choice) * MARGIN * target / share, 0.01, 0.99))
    return tried


def _within_reach(chooser: Chooser, aim: float) -> TimedChoice:
    """Return the choice for the aim, or for the least share that is predicted to be possible."""
    try:
        return chooser.choose(aim)
    except OutOfReachError as error:
        return chooser.choose(min(error.least + 1e-6, 1 - 1e-6))


def fastest_enough(tried: list[Measured], target: float, hint: str = "ask for less") -> Measured:
    """Return, of the choices that meet the target, the one that keeps most.

    Raises:
        GateFailed: none does.
    """
    good = [m for m in tried if m.share <= target] or [m for m in tried if m.share <= ABOVE * target]
    if good:
        return max(good, key=lambda m: m.share)
    best = min(tried, key=lambda m: m.share, default=None)
    if best is None or best.gain.low <= 1:
        raise GateFailed("no faster model exists within these limits", hint)
    low, high = 1 / best.gain.high, 1 / best.gain.low
    raise GateFailed(
        f"--latency {target:.3g} is out of reach: the fastest model within the limits takes {best.share:.3g} of the"
        f" time (95 % interval {low:.2f} to {high:.2f})",
        hint,
    )
