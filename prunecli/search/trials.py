"""Trials: the input of a worker, its work, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import onnx

from prunecli.arrays import Array
from prunecli.data import Batch, Dataset
from prunecli.errors import PruneError
from prunecli.files import Scratch
from prunecli.runtime import Session
from prunecli.search.metric import Outputs, Records, TrialMetric, choose_metric
from prunecli.search.options import TrialOptions
from prunecli.search.pruner import Allocation, Space, digest, normal
from prunecli.search.suffix import beyond, border, prefix, shared, suffix

Feed = dict[str, Array]
OUTPUT_LIMIT = 1 << 30
"""Most bytes of the original's outputs that are kept."""


@dataclass(frozen=True)
class TrialGroup:
    """Allocations that are measured together: where they differ late in the network, the computation before that is run
    once.

    probe: measure the damage only, on the first samples only.
    """

    allocations: tuple[dict[str, float], ...]
    probe: bool = False

    @classmethod
    def of(cls, *allocations: Allocation, probe: bool = False) -> TrialGroup:
        return cls(tuple(normal(allocation) for allocation in allocations), probe)

    @cached_property
    def key(self) -> str:
        return digest([list(allocation.items()) for allocation in self.allocations], self.probe)


@dataclass(frozen=True)
class Outcome:
    """Measurements of an allocation. `damage`: mean over samples; `error`: its standard error; `records`: what the
    metric is computed from, None for a probe."""

    damage: float
    error: float
    records: Records | None = None


@dataclass(frozen=True)
class TrialSamples:
    """Samples in batches, the original's outputs on them, and the metric of trials."""

    batches: Sequence[Batch]
    reference: Sequence[Outputs]
    metric: TrialMetric

    @classmethod
    def of(
        cls, data: Dataset, session: Session, options: TrialOptions, heads: Mapping[str, bool],
        labels: Array | None = None,
    ) -> TrialSamples:  # fmt: skip
        """`labels`: all labels, if `data` is a part; `heads`: of the graph; see `choose_metric`."""
        batches = list(data.batches(options.batch_size))
        reference = list(outputs_of(session, batches, OUTPUT_LIMIT))
        known = data.labels if labels is None else labels
        metric = choose_metric(
            options.metric,
            options.asked,
            known,
            batches=batches,
            reference=reference,
            classes=data.classes,
            heads=heads,
        )
        return cls(batches, reference, metric)

    def probes(self, samples: int) -> int:
        """Return how many batches hold this many samples."""
        held = np.cumsum([batch.count for batch in self.batches])
        return min(int(np.searchsorted(held, samples)) + 1, len(self.batches))


@dataclass(frozen=True, eq=False)
class Workspace:
    """All that trials need, to be sent to a worker once.

    files: the model's file, which comes first, and its external data, by name. at: opens the space of a file. probes:
    how many of the batches a probe runs.
    """

    name: str
    files: Mapping[str, Array]
    at: Callable[[Path], Space]
    samples: TrialSamples
    probes: int
    provider: str = "cpu"


class Worker:
    """A workspace opened in this process. Sessions run on one thread, so that results do not depend on how many
    workers there are, nor on where they run."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self._building = workspace, Lock()
        self._folder = Scratch()
        names = list(workspace.files)
        for name in names:
            (self._folder.path / name).write_bytes(workspace.files[name].tobytes())
        self.space: Space = workspace.at(self._folder.path / names[0])

    def run(self, group: TrialGroup) -> list[Outcome]:
        """Measure each allocation of a group."""
        with self._building:  # a space changes its model while it builds; a cluster's worker may have several threads
            models = [self.space.build(allocation) for allocation in group.allocations]
        parts = _Parts.of(models, self._session) if len(models) > 1 else None
        samples = self.workspace.samples
        runs = [_ModelRun(group.probe, samples.metric) for _ in models]
        count = self.workspace.probes if group.probe else len(samples.batches)
        sessions = parts.sessions if parts else [self._session(model) for model in models]
        for batch, reference in zip(samples.batches[:count], samples.reference[:count], strict=True):
            feed = {**batch.feed, **(parts.early(batch.feed) if parts else {})}
            for run, session in zip(runs, sessions, strict=True):
                outputs = session.run({spec.name: feed[spec.name] for spec in session.inputs})
                run.add(batch, {**{n: feed[n] for n in reference if n in feed}, **outputs}, reference)
        return [run.outcome() for run in runs]

    def _session(self, model: onnx.ModelProto) -> Session:
        return Session.open(model, provider=self.workspace.provider, threads=1)


class _ModelRun:
    def __init__(self, probe: bool, metric: TrialMetric) -> None:
        self.probe, self.metric = probe, metric
        self.damages: list[Array] = []
        self.seen: list[tuple[Batch, Outputs, Outputs]] = []

    def add(self, batch: Batch, outputs: Outputs, reference: Outputs) -> None:
        mine, theirs = ({n: batch.trim(n, found[n]) for n in self.metric.scales} for found in (outputs, reference))
        self.damages.append(self.metric.damage(theirs, mine, batch.count))
        if not self.probe:
            self.seen.append((batch, self.metric.wanted(outputs), self.metric.wanted(reference)))

    def outcome(self) -> Outcome:
        each = np.concatenate(self.damages)
        mean = float(each.mean())
        error = float(each.std() / np.sqrt(len(each))) if np.isfinite(mean) else float("inf")
        return Outcome(mean, error, None if self.probe else self.metric.records(self.seen))


@dataclass(frozen=True)
class _Parts:
    """A session for what the allocations share, and one for the rest of each."""

    first: Session
    sessions: list[Session]

    @classmethod
    def of(cls, models: Sequence[onnx.ModelProto], start: Callable[[onnx.ModelProto], Session]) -> _Parts | None:
        """Return None where nothing is shared."""
        made = shared(models)
        late = [beyond(model.graph, made) for model in models]
        borders = [border(model.graph, mine) for model, mine in zip(models, late, strict=True)]
        common = list(dict.fromkeys(name for names in borders for name in names))
        if not common or not all(any(mine) for mine in late):
            return None
        first = start(prefix(models[0], late[0], common))
        kinds = {s.name: kind for s in first.outputs if (kind := _element_type(s.dtype)) is not None}
        if len(kinds) < len(common):
            return None
        rest = [suffix(model, mine, {n: kinds[n] for n in names})
                for model, mine, names in zip(models, late, borders, strict=True)]  # fmt: skip
        return cls(first, [start(model) for model in rest])

    def early(self, feed: Mapping[str, Array]) -> Feed:
        return self.first.run({spec.name: feed[spec.name] for spec in self.first.inputs})


def _element_type(dtype: str) -> int | None:
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (TypeError, ValueError, KeyError):  # what numpy has no type for, and sequences
        return None


def outcome_on(session: Session, samples: TrialSamples) -> Outcome:
    """Run a model on the samples and return its outcome."""
    run = _ModelRun(False, samples.metric)
    for batch, wanted in zip(samples.batches, samples.reference, strict=True):
        run.add(batch, session.run(batch.feed), wanted)
    return run.outcome()


_OPEN: dict[str, Worker] = {}
"""The workspace of this process: one at a time."""
_OPENING = Lock()


def forget() -> None:
    """Close the workspace that this process has open."""
    _OPEN.clear()


def run_group(workspace: Workspace, group: TrialGroup) -> list[Outcome]:
    """Run a group in this process; the workspace is opened on the first call."""
    with _OPENING:
        if workspace.name not in _OPEN:
            _OPEN.clear()
            _OPEN[workspace.name] = Worker(workspace)
        worker = _OPEN[workspace.name]
    return worker.run(group)


def outputs_of(session: Session, batches: Sequence[Batch], limit: int) -> Iterator[Outputs]:
    """Return the original's outputs, batch by batch, as the session gives them.

    Raises:
        PruneError: they would take more than `limit` bytes.
    """
    total = 0
    for batch in batches:
        outputs = session.run(batch.feed)
        total += sum(v.nbytes for v in outputs.values() if isinstance(v, np.ndarray))
        if total > limit:
            raise PruneError(f"the model's outputs on {sum(b.count for b in batches):,} samples take more than"
                             f" {limit >> 20} MB", "use fewer samples with --limit")  # fmt: skip
        yield outputs
