"""The speed of a model relative to its baseline, and why it is below the reduction of work."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prunecli.data import Batch, Dataset
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError, some
from prunecli.evaluation.latency import QUARTILE, Speedup, TimedPair, TimingOptions, measure_pair
from prunecli.evaluation.passes import BASELINE, MODEL, OpenedModels, open_models
from prunecli.evaluation.profile import REST, Attribution, Kernel, key, multiplies, net_of_timing, profiles, readers
from prunecli.files import Scratch
from prunecli.model import Dims, Model, concrete_shapes, count_macs, find_weights
from prunecli.model.constants import holders
from prunecli.model.floating import floats_of
from prunecli.runtime import Execution, PreparedRun, channel_block, quantise
from prunecli.types import Json, Progress, no_progress

REPORT_SECONDS = 2.0
"""Length of the measurement for a report; up to three times as long on a busy machine and for slow models."""
PROFILE_SECONDS = 0.5
"""Seconds of profiled runs per model."""
SLOW_SECONDS = 0.5
"""Time of running, or of opening, both models above which no profile is taken."""
NEAR = 0.95
"""Share of the saved work from which a speedup needs no explanation."""
NAMED = 3
UNTOLD = 0.1
"""Largest share of the time in products of unknown nodes for which an explanation is given."""


class TimedOptions(Protocol):
    """Options of a command about timing. `stated_dims`: sizes of dynamic dimensions."""

    @property
    def timed_execution(self) -> Execution: ...
    @property
    def source(self) -> DataOptions | None: ...
    @property
    def stated_dims(self) -> Dims: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class MeasuredSpeed:
    """A model and its baseline, timed in alternation on the same inputs. `pair`: None where they could not be timed,
    for a `reason`. `shapes`: of the inputs. `why`: where the time goes, if the speedup is below the reduction of work.
    `int8`: both models were quantised first."""

    pair: TimedPair | None
    shapes: Mapping[str, Sequence[int]]
    reason: str = ""
    why: str = ""
    int8: bool = False

    def words(self, other: str) -> str:
        """One sentence on the difference, and how it was measured. `other`: what the baseline is called."""
        if self.pair is None:
            return f"the speed {'of int8 ' * self.int8}was not measured: {self.reason}"
        how, clock = self.pair.model.how, "CPU time" if self.pair.model.clock == "cpu" else "time"
        at = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in self.shapes.items())
        form = "both quantised to int8 by onnxruntime: " if self.int8 else ""
        threads = f"{how.threads} thread{'s' * (how.threads > 1)}"
        return f"{form}{self.pair.gain.words(other)}; {clock} of a run at {at} on {threads}"

    def to_json(self) -> Json:
        """As `delta.latency` of `evaluate`."""
        gain = Speedup(math.nan, math.nan, math.nan, reason=self.reason) if self.pair is None else self.pair.gain
        return {
            **gain.to_json(),
            **({"why": self.why} if self.why else {}),
            **({"quantised": "int8"} if self.int8 else {}),
        }


def first_batch(opened: OpenedModels, data: Dataset | None, dims: Dims, seed: int, size: int = 1) -> Batch:
    """Return the inputs of a timed run: `size` samples, or the number that the model or a stated dimension fixes; from
    the data, or random."""
    if data is None:
        return next(opened.random_data(1, seed, dims, batch=size).batches(size))
    size = size if size > 1 else _stated_batch(opened, dims) or 1
    return next(data.take(data.fixed_batch or size).batches(size))


def _stated_batch(opened: OpenedModels, dims: Dims) -> int | None:
    for spec in opened.specs:
        if spec.name in dims.shapes:
            return dims.shapes[spec.name][0]
        if spec.shape and isinstance(spec.shape[0], str) and spec.shape[0] in dims.sizes:
            return dims.sizes[spec.shape[0]]
    return None


def prepare_runs(opened: OpenedModels, batch: Batch) -> dict[str, PreparedRun]:
    """Return every model prepared to run on the batch, by role."""
    return {role: each.session.prepared(each.feed(batch.feed)) for role, each in opened.runners.items()}


def measure_speed(
    model: Path, baseline: Path, options: TimedOptions, progress: Progress = no_progress
) -> MeasuredSpeed:
    """Time a model beside its baseline for a few seconds, at the batch and the shapes of a command's options. Models
    that cannot be run say why in `reason`."""
    try:
        opened = open_models({MODEL: model, BASELINE: baseline}, options.timed_execution)
        data = _given(opened, options)
        batch = first_batch(opened, data, options.stated_dims, seed=options.seed)
        runs = prepare_runs(opened, batch)
    except PruneError as error:
        return MeasuredSpeed(None, {}, error.message)
    how = TimingOptions(
        options.timed_execution.thread_count, opened.first.provider, batch.count + batch.padded,
        seconds=REPORT_SECONDS, seed=options.seed,
    )  # fmt: skip
    pair = measure_pair(runs[MODEL], runs[BASELINE], how, progress=progress)
    shapes = {name: list(np.shape(value)) for name, value in batch.feed.items()}
    slow = sum(run.seconds for run in runs.values()) > SLOW_SECONDS
    why = "" if slow else explain(opened, batch.feed, pair, execution=options.timed_execution)
    return MeasuredSpeed(pair, shapes, why=why)


def _given(opened: OpenedModels, options: TimedOptions) -> Dataset | None:
    """The data of the options; None where it is synthetic, since times do not depend on the values."""
    if options.source is None or options.source.synthetic:
        return None
    return options.source.open(opened.specs, opened.first.outputs)


CALIBRATED = 64
"""Number of samples from which ranges of activations are taken."""


def measure_int8(model: Path, baseline: Path, options: TimedOptions, progress: Progress = no_progress) -> MeasuredSpeed:
    """As `measure_speed`, of both models quantised by onnxruntime on samples of the data, or on random inputs."""
    try:
        opened = open_models({BASELINE: baseline}, options.timed_execution)
        feeds = _calibration(opened, options)
        with Scratch() as folder:
            paths = {MODEL: model, BASELINE: baseline}
            files = {role: quantise(paths[role], feeds, folder, name=role) for role in progress(paths, "quantising")}
            return replace(measure_speed(files[MODEL], files[BASELINE], options, progress=progress), int8=True)
    except PruneError as error:
        return MeasuredSpeed(None, {}, error.message, int8=True)


def int8_alone(model: Path, options: TimedOptions, folder: Path) -> Path:
    """Return a model quantised by onnxruntime on samples of the data, written to a folder.

    Raises:
        PruneError: the tool does not take it.
    """
    return quantise(
        model, _calibration(open_models({BASELINE: model}, options.timed_execution), options), folder, name=MODEL
    )


def _calibration(opened: OpenedModels, options: TimedOptions) -> list[Mapping[str, Any]]:
    """Return the inputs of some runs: samples of the data, or random."""
    given = _given(opened, options)
    data = (
        opened.random_data(CALIBRATED, options.seed, options.stated_dims) if given is None else given.take(CALIBRATED)
    )
    return [batch.feed for batch in data.batches(data.fixed_batch or 1)]


# -- why it is less than the work that was saved ---------------------------------------------------------------------


@dataclass(frozen=True)
class _TimeByNode:
    """Milliseconds of a run by node, its operators, and the shapes of the weights of each node. `unplaced`: by
    operator, those that belong to no node."""

    times: Mapping[str, float]
    ops: Mapping[str, str]
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    unplaced: Mapping[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> float:
        """The share of the time in products whose node is unknown, because it has no name: they may have weights."""
        mine = sum(ms for op, ms in self.unplaced.items() if multiplies(op.removeprefix("Fused")))
        return mine / (sum(self.times.values()) or 1.0)

    @classmethod
    def of(cls, file: Model, kernels: Sequence[Kernel]) -> _TimeByNode:
        shapes: dict[str, list[tuple[int, ...]]] = {}
        stored = {holder.name: holder.value for holder in holders(file.ir)}
        for weight in find_weights(floats_of(file)).prunable:
            for reader in readers(stored[weight.name]):
                shapes.setdefault(key(reader), []).append(weight.shape)
        layers = Attribution(file.ir.graph)
        placed = [(layers.node(kernel), kernel) for kernel in kernels]
        ops = {key(node): kernel.op for node, kernel in placed if node is not None}
        unplaced: dict[str, float] = defaultdict(float)
        for node, kernel in placed:
            if node is None:
                unplaced["reordering" if kernel.op.startswith("Reorder") else kernel.op] += kernel.ms
        return cls(
            layers.times(kernels), ops, {name: tuple(sorted(each)) for name, each in shapes.items()}, unplaced=unplaced
        )


def explain(opened: OpenedModels, feed: Mapping[str, Any], pair: TimedPair, execution: Execution) -> str:
    """Return a sentence on where the time of the model goes; empty where the speedup matches the reduction of work, or
    where the models cannot be compared operator by operator."""
    if pair.gain.reason or opened.runners[BASELINE].renamed:
        return ""
    shapes = {name: tuple(np.shape(value)) for name, value in feed.items()}
    work = [count_macs(file, concrete_shapes(file, Dims(shapes=shapes))).total for file in opened.files.values()]
    once = (pair.model.median + pair.baseline.median) / 1e3
    if not work[0] or not work[1] or pair.gain.high >= NEAR * work[1] / work[0] or once > SLOW_SECONDS:
        return ""
    paths = [opened.files[role].path for role in (BASELINE, MODEL)]
    found = profiles(paths, feed, execution.open, seconds=PROFILE_SECONDS)
    plain = net_of_timing(found, float(np.quantile(pair.baseline.times, QUARTILE)))
    before, after = (
        _TimeByNode.of(opened.files[role], own) for role, own in zip((BASELINE, MODEL), plain, strict=True)
    )
    if work[0] >= work[1]:
        return f"The work is the same; most of the time is that of {_most(plain[1])}."
    cause = _cause(before, after, work[1] / work[0])
    return f"That is less than the work saved, {work[1] / work[0]:.2f} times: {cause}." if cause else ""


def _cause(before: _TimeByNode, after: _TimeByNode, saved: float) -> str:
    """Return which operators hold most of the time that should have gone: those without weights, uncut layers, or cut
    layers. Empty where that is unknown."""
    if max(before.lost, after.lost) > UNTOLD:
        return ""
    parts: dict[str, list[str]] = {"without": [], "whole": [], "cut": []}
    for name in dict.fromkeys([*before.times, *after.times]):
        own = after.shapes.get(name)
        parts["without" if own is None else "whole" if own == before.shapes.get(name) else "cut"].append(name)
    lost = {part: _sum(after, names) - _sum(before, names) / saved for part, names in parts.items()}
    part = max(lost, key=lambda each: lost[each])
    whole = sum(after.times.values())
    if lost[part] <= 0 or not whole:
        return ""
    names = sorted(parts[part], key=lambda name: -after.times.get(name, 0.0))
    takes = f"{100 * _sum(after, names) / whole:.0f} % of its time"
    if part == "whole":
        return f"layers that were not cut take {takes} ({some(names, NAMED)})"
    if part == "cut":
        return _cut_cause(_narrowed(before, after, names), takes)
    ops = Counter[str]()
    for name in names:
        mine = after.unplaced if name == REST else {after.ops.get(name, ""): after.times.get(name, 0.0)}
        ops.update({op: round(1e6 * ms) for op, ms in mine.items() if op})
    return f"operators without weights take {takes} ({some([op for op, _ in ops.most_common()], NAMED)})"


def _most(kernels: Sequence[Kernel]) -> str:
    """Return the operators that take most of a run, and their shares of it."""
    ops = Counter[str]()
    for kernel in kernels:
        ops[kernel.op] += round(1e6 * kernel.ms)
    whole = ops.total() or 1
    return some([f"{op} ({100 * time / whole:.0f} %)" for op, time in ops.most_common(NAMED)], NAMED)


def _sum(found: _TimeByNode, names: Sequence[str]) -> float:
    return sum(found.times.get(name, 0.0) for name in names)


def _narrowed(before: _TimeByNode, after: _TimeByNode, names: Sequence[str]) -> set[int]:
    """Return the convolutions with fewer channels than before. Convolutions of integers have no channel blocks and are
    left out."""
    return {
        new
        for name in names
        if "Conv" in (op := after.ops.get(name, "")) and not op.startswith("QLinear")
        for one, other in zip(before.shapes.get(name, ()), after.shapes.get(name, ()), strict=False)
        for old, new in zip(one[:2], other[:2], strict=False)
        if new < old
    }


def _cut_cause(channels: set[int], takes: str) -> str:
    block = channel_block()
    if odd := sorted(size for size in channels if size % block):
        return (f"widths such as {some(list(map(str, odd)), NAMED)} are no multiples of {block}, the channels that"
                " onnxruntime computes together on this CPU")  # fmt: skip
    return f"the layers that were cut take {takes}: narrow layers use the processor less well"
