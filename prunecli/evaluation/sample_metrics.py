"""Metrics of any kind of output: the user's own functions, and those that `@sample_metric` registers.

A metric keeps one entry per sample, batch by batch; its value is computed from the entries. So data streams through,
intervals can be computed by resampling, and memory holds the entries only: a few numbers per sample for most, whole
outputs for the user's functions, at most half of the machine's memory.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from prunecli.arrays import Array
from prunecli.data import Batch
from prunecli.data.columns import memory_budget
from prunecli.data.user_code import UserFunction, names_function
from prunecli.errors import PruneError, did_you_mean
from prunecli.evaluation.fidelity import MEASURES
from prunecli.evaluation.quality import METRICS, Merit, Significance, paired_t
from prunecli.evaluation.reading import float_outputs
from prunecli.types import Progress, no_progress

Entry = Any
"""What a metric keeps of one sample: numbers, arrays, or tuples and dictionaries of them."""
Figure = float | Array
"""One number, or one per sample, of which the mean counts."""
BLOCKS = 40
"""Number of blocks that are left out in turn for metrics that are no mean over samples (Quenouille's jackknife)."""
LOWER = "lower:"


@dataclass(frozen=True)
class LabelFacts:
    """Facts about all labels, so that every batch is read alike. For numeric labels, `top`: the largest; `zero`:
    whether 0 occurs."""

    top: float = math.nan
    zero: bool = False

    @classmethod
    def of(cls, labels: Array | None) -> LabelFacts:
        if labels is None or not labels.size or labels.dtype.kind not in "biuf":
            return cls()
        return cls(float(labels.max()), bool((labels == 0).any()))


@dataclass(frozen=True)
class SampleBatch:
    """One batch for a metric: `outputs` and `inputs` by name, one row per sample. `main`: the output that counts.
    `known`: facts about the labels of all batches."""

    outputs: Mapping[str, Any]
    main: str
    labels: Array | None
    inputs: Mapping[str, Array]
    count: int
    known: LabelFacts = LabelFacts()

    @property
    def predictions(self) -> Array:
        return np.asarray(self.outputs[self.main])


@dataclass(frozen=True)
class SampleMetric(Merit, ABC):
    """A metric by its `name`."""

    name: str

    @property
    def identity(self) -> str:
        """A text that differs for metrics of the same name."""
        return self.name

    def groups(self, labels: Array) -> Array | None:
        """Return a group number per sample where samples only make a value together; None where each one does."""
        return None

    @abstractmethod
    def entries(self, batch: SampleBatch) -> Sequence[Entry]:
        """Return one entry per sample.

        Raises:
            PruneError: the metric has no meaning for these outputs and labels.
        """

    @abstractmethod
    def figure(self, entries: Sequence[Entry]) -> Figure:
        """Return the value of the metric for these entries."""

    def value(self, entries: Sequence[Entry]) -> float:
        return float(np.mean(self.figure(entries)))

    def parts(
        self, entries: Sequence[Entry], labels: Array | None, progress: Progress = no_progress
    ) -> dict[str, Array]:
        """Return what the value and its noise are computed from: "each": one number per sample; or "parts": the value
        of all samples, then without each of at most `BLOCKS` blocks, and "samples": their number. Samples of a group
        are in one block."""
        whole = self.figure(entries)
        if isinstance(whole, np.ndarray):
            return {"each": whole.astype(np.float64)}
        groups = None if labels is None else self.groups(labels)
        rank = np.arange(len(entries)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
        count = int(rank.max()) + 1
        owner = (np.random.default_rng(0).permutation(count) % min(BLOCKS, count))[rank]
        without = []
        for block in progress(np.unique(owner), f"{self.name} without parts of the samples"):
            some = [each for each, mine in zip(entries, owner, strict=True) if mine != block]
            without.append(self.value(some) if some else math.nan)
        return {"parts": np.array([whole, *without]), "samples": np.array(len(entries))}

    def compare(self, model: Mapping[str, Array], baseline: Mapping[str, Array]) -> Significance | None:
        """The paired t test on the `parts` of two models on the same samples; None where the figures are not finite. Of
        a metric that is no mean over samples it is on the jackknife's pseudo-values, b f - (b - 1) f_i with f of all
        samples and f_i without block i of b (Tukey, 1958), and the interval is about the difference itself."""
        if "each" in model:
            found = paired_t(self.sign * model["each"], self.sign * baseline["each"])
            return replace(found, metric=self.name) if found.interval else None
        whole, *without = self.sign * (model["parts"] - baseline["parts"])
        if not np.isfinite([whole, *without]).all() or len(without) < 2:
            return None
        blocks = len(without)
        pseudo = blocks * whole - (blocks - 1) * np.array(without)
        found = paired_t(pseudo + (whole - pseudo.mean()), np.zeros(blocks))
        detail = f"{int(model['samples']):,} samples in {blocks} blocks"
        return replace(found, test="paired t test of the jackknife", metric=self.name, detail=detail)


Entries = Callable[[SampleBatch], Sequence[Entry]]


@dataclass(frozen=True)
class Registered(SampleMetric):
    """A metric of the registry. `extra`: the extra of the package that installs `library`; "" where it is there."""

    keep: Entries = field(repr=False)
    summarise: Callable[[Sequence[Entry]], Figure] = field(repr=False)
    library: str = ""
    extra: str = ""
    needs_labels: bool = True

    def groups(self, labels: Array) -> Array | None:
        return labels[:, 0] if self.name in PAIRED and labels.ndim == 2 and labels.shape[1] == 2 else None

    def check_installed(self) -> None:
        """Raise PruneError where the library is missing."""
        try:
            import_module(self.library or "numpy")
        except ImportError as error:
            hint = f"pip install 'prunecli[{self.extra}]'"
            raise PruneError(f"--metric {self.name} needs {self.library.split('.')[0]}", hint) from error

    def entries(self, batch: SampleBatch) -> Sequence[Entry]:
        if batch.labels is None and self.needs_labels:
            raise PruneError(f"--metric {self.name} needs labels", "give data with labels")
        return self.keep(batch)

    def figure(self, entries: Sequence[Entry]) -> Figure:
        return self.summarise(entries)


PAIRED = ("spearman",)
"""Metrics whose labels (N, 2) begin with the number of a pair of samples."""
SAMPLE_METRICS: dict[str, Registered] = {}
_MODULES = ("prunecli.evaluation.library_metrics", "prunecli.evaluation.detection")
"""Where the metrics of the registry are."""


def sample_metric(
    name: str,
    summarise: Callable[[Sequence[Entry]], Figure],
    *,
    higher: bool = True,
    span: tuple[float, float] = (0, 1),
    library: str = "",
    extra: str = "",
    needs_labels: bool = True,
) -> Callable[[Entries], Entries]:
    """Register a metric: the decorated function makes the entries of a batch, `summarise` the figure of entries."""

    def add(keep: Entries) -> Entries:
        SAMPLE_METRICS[name] = Registered(
            higher, span == (0, 1), span, name=name,
            keep=keep, summarise=summarise, library=library, extra=extra, needs_labels=needs_labels,
        )  # fmt: skip
        return keep

    return add


def registered() -> Mapping[str, Registered]:
    """Return the metrics of the registry by name."""
    for module in _MODULES:
        import_module(module)
    return SAMPLE_METRICS


@dataclass(frozen=True)
class UserMetric(SampleMetric):
    """The user's function of what its parameters name: `predictions` (the output that counts), `outputs` (all, by
    name), `labels`, `inputs` (by name). An array has one row per sample; where samples differ in size it is a list. It
    returns one number, or one per sample."""

    text: str

    ROLES: ClassVar[Mapping[str, str]] = {
        "predictions": "predictions", "predicted": "predictions", "y_pred": "predictions", "y_score": "predictions",
        "outputs": "outputs",
        "labels": "labels", "y_true": "labels", "truth": "labels", "targets": "labels",
        "inputs": "inputs", "samples": "inputs",
    }  # fmt: skip

    @property
    def _user(self) -> UserFunction:
        return UserFunction(self.text, "--metric")

    @property
    def identity(self) -> str:
        """The name and the content of the file."""
        path = self._user.path
        return self.text if path is None else f"{self.text} {hashlib.sha256(path.read_bytes()).hexdigest()}"

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return self._user.load()

    @cached_property
    def _roles(self) -> dict[str, str]:
        """What each parameter is given."""
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError) as error:
            raise PruneError(f"{self.text} does not say what it takes", "name its parameters") from error
        wanted = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        unknown = [p.name for p in wanted if p.name not in self.ROLES and p.default is p.empty]
        found = {p.name: self.ROLES[p.name] for p in wanted if p.name in self.ROLES}
        if unknown or not found:
            raise PruneError(
                f"{self.text} has the parameter {unknown[0]}" if unknown else f"{self.text} takes no samples",
                "parameters are named predictions, outputs, labels and inputs, as far as they are wanted",
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the function: another process imports its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_function", "_roles")}

    def check(self) -> None:
        """Raise PruneError where the function cannot be called."""
        assert self._roles

    def entries(self, batch: SampleBatch) -> Sequence[Entry]:
        wanted = set(self._roles.values())
        if "labels" in wanted and batch.labels is None:
            raise PruneError(f"{self.text} takes labels, and the data has none", "give data with labels")
        given = {"predictions": batch.predictions, "outputs": batch.outputs, "labels": batch.labels,
                 "inputs": batch.inputs}  # fmt: skip
        return [{role: _row(given[role], i, batch.count) for role in wanted} for i in range(batch.count)]

    def figure(self, entries: Sequence[Entry]) -> Figure:
        given = {name: _joined([each[role] for each in entries]) for name, role in self._roles.items()}
        with self._user.guarded():
            found = np.asarray(self._function(**given))
        if found.dtype.kind not in "biuf" or found.shape not in ((), (1,), (len(entries),)):
            what = f"{found.dtype} of shape {found.shape}" if found.dtype.kind in "biuf" else "no number"
            raise PruneError(f"{self.text} returned {what}", "return one number, or one per sample")
        one = found.size == 1
        return float(found.reshape(())) if one else found.astype(np.float64)


def _row(value: Any, i: int, count: int) -> Any:
    """Return the part of an array, or of arrays by name, that belongs to sample `i`. For a single sample it is the
    whole array where there is no row per sample, as for detected boxes."""
    if isinstance(value, Mapping):
        return {name: _row(each, i, count) for name, each in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim and len(value) == count:
        return value[i]
    if count > 1:
        raise PruneError(f"an output of shape {value.shape} has no row for each of {count} samples",
                         "run one sample at a time with --batch-size 1")  # fmt: skip
    return value


def _joined(rows: Sequence[Any]) -> Any:
    """Rows as one array, as a list where their shapes differ; dictionaries entry by entry."""
    if isinstance(rows[0], dict):
        return {name: _joined([row[name] for row in rows]) for name in rows[0]}
    alike = all(isinstance(row, np.ndarray | np.generic) for row in rows) and len({row.shape for row in rows}) == 1
    # copies, which the user's code may write to
    return np.stack(rows) if alike else [row.copy() if isinstance(row, np.ndarray) else row for row in rows]


FIGURES = frozenset(
    {*MEASURES, "params", "nonzero", "sparsity", "macs", "file_bytes", "gzip_bytes", "latency", "significance"}
    | {"robustness", "baseline"}
)
"""First parts of the names of figures that are not metrics."""


def find_metrics(texts: Sequence[str]) -> dict[str, Merit]:
    """Return the metrics that --metric names, by their short names: those of `METRICS`, of the registry, and the user's
    functions, with `lower:` before them where less is better.

    Raises:
        PruneError: there is no such metric, its library or function is missing, or a function has the name of another
            figure.
    """
    found: dict[str, Merit] = {}
    for text in texts:
        name, metric = _find(text)
        if name in found:
            raise PruneError(f"--metric names {name} twice", "leave one out, or rename a function")
        found[name] = metric
    return found


def _find(text: str) -> tuple[str, Merit]:
    lower = text.startswith(LOWER)
    place = text.removeprefix(LOWER)
    if names_function(place):
        metric = UserMetric(
            not lower, False, (-math.inf, math.inf), name=UserFunction(place, "--metric").name, text=place
        )
        if metric.name in METRICS or metric.name in registered() or metric.name in FIGURES:
            raise PruneError(f"{metric.name} is the name of a figure of `prune evaluate`, too", "rename the function")
        metric.check()
        return metric.name, metric
    known: dict[str, Merit] = {**METRICS, **registered()}
    if lower or place not in known:
        hint = "`lower:` is for functions; metrics know what is better" if lower else did_you_mean(
            place, known, f"choose from {', '.join(known)}, or give FILE.py:FUNCTION")  # fmt: skip
        raise PruneError(f"there is no metric {text}", hint)
    if isinstance(chosen := known[place], Registered):
        chosen.check_installed()
    return place, known[place]


@dataclass
class MetricCollector:
    """Takes a model's outputs batch by batch, and keeps the entries of each metric. `main`: the output that counts;
    None: the first floating-point output of the first batch, else the first. `known`: facts about all labels."""

    metrics: Mapping[str, SampleMetric]
    main: str | None = None
    known: LabelFacts = LabelFacts()
    found: dict[str, list[Entry]] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        """One batch with its trimmed outputs.

        Raises:
            PruneError: a metric has no meaning for it, or the entries take too much memory.
        """
        inputs = {name: batch.trim(name, value) for name, value in batch.feed.items()}
        self.main = self.main or next(iter([*float_outputs(outputs), *outputs]))
        seen = SampleBatch(outputs, self.main, batch.labels, inputs=inputs, count=batch.count, known=self.known)
        for name, metric in self.metrics.items():
            rows = metric.entries(seen)
            self._bytes += sum(_size(row) for row in rows)
            self.found.setdefault(name, []).extend(rows)
        if self._bytes > memory_budget():
            raise PruneError(f"what --metric keeps of the samples takes over {self._bytes / 1e9:.1f} GB",
                             "use fewer samples with --limit, or take only `predictions` and `labels`")  # fmt: skip


def _size(entry: Entry) -> int:
    if isinstance(entry, dict):
        return sum(map(_size, entry.values()))
    if isinstance(entry, tuple | list):
        return sum(map(_size, entry))
    return int(entry.nbytes) if isinstance(entry, np.ndarray) else 8
