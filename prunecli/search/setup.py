"""From a model, data and options to a runner on which allocations can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx

from prunecli._version import __version__
from prunecli.arrays import Array, content_digest
from prunecli.data import Batch, Dataset
from prunecli.data.dataset import shared
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, are_boxes, is_single
from prunecli.evaluation.gates import IN_THEIR_UNITS
from prunecli.evaluation.sample_metrics import SampleMetric, find_metrics
from prunecli.inputs import InputSpec
from prunecli.model import Model, load
from prunecli.model.external_data import portable
from prunecli.quantity import Quantity, did_you_mean_percent
from prunecli.runtime import Session, version
from prunecli.search.options import AdaptiveOptions, TrialOptions
from prunecli.search.pruner import Pruner, digest
from prunecli.search.runner import Journal, TrialRunner, pool_of
from prunecli.search.structure_pruner import StructurePruner
from prunecli.search.trials import Outcome, TrialSamples, Workspace, outcome_on
from prunecli.search.zero_pruner import ZeroPruner
from prunecli.types import Progress
from prunecli.zeros.select import check_numbers


@dataclass(frozen=True)
class SampleSubset(DataOptions):
    """Some samples of the user's data, in the form that commands take data in."""

    dataset: Dataset | None = None

    @classmethod
    def of_data(cls, given: DataOptions, dataset: Dataset) -> SampleSubset:
        own = {one.name: getattr(given, one.name) for one in fields(DataOptions)}
        return cls(**own, dataset=dataset)

    def open(self, specs: Sequence[InputSpec], outputs: Sequence[InputSpec] = ()) -> Dataset:
        assert self.dataset is not None
        return self.dataset


@dataclass(frozen=True)
class TrialSetup:
    """A runner on the samples of the search, and the pruner whose allocations it measures."""

    file: Model
    pruner: Pruner
    runner: TrialRunner
    data: DataOptions

    @property
    def samples(self) -> TrialSamples:
        """The samples of the search."""
        return self.runner.workspace.samples

    def open(self, model: Path | onnx.ModelProto) -> Session:
        """Open a model as trials run it."""
        return Session.open(model, provider=self.runner.workspace.provider, threads=1)

    def outcome(self, model: Path) -> Outcome:
        """Return the outcome of a model file on all samples of the search."""
        return outcome_on(self.open(model), self.samples)


def open_model(path: Path, options: TrialOptions) -> tuple[Model, Session]:
    """Open the unchanged model as trials run it, on one thread."""
    file = load(path)
    check_numbers(file)
    return file, Session.open(path, provider=options.execution.provider, threads=1)


def set_up(file: Model, data: Dataset, samples: TrialSamples, options: TrialOptions, progress: Progress) -> TrialSetup:
    """Measure what the criterion and the goal need on the data, and get ready to try allocations on its `samples`.

    Raises:
        PruneError: an option is unusable, there is nothing to prune, or the state file is of something else.
    """
    given = SampleSubset.of_data(options.tried, data)
    pruner = open_pruner(file.path, options, given, progress=progress)
    files = {name: np.frombuffer(content, np.uint8) for name, content in portable(file.path).items()}
    metric, provider = samples.metric, options.execution.provider
    identity = digest(
        content_digest(files), pruner.identity, _content(samples.batches),
        [metric.identity, metric.output, options.probes, provider], [__version__, version()],
    )  # fmt: skip
    workspace = Workspace(
        identity, files, pruner.at, samples=samples, probes=samples.probes(options.probes), provider=provider
    )
    return TrialSetup(
        file,
        pruner,
        TrialRunner(workspace, pool_of(options), Journal(options.state, identity), progress=progress),
        data=given,
    )


def open_pruner(path: Path, options: TrialOptions, samples: DataOptions | None, progress: Progress) -> Pruner:
    """Return the pruner of the granularity. What its criterion and goal need is measured on `samples`; without them it
    scores by the weights alone.

    Raises:
        PruneError: an unknown name, or nothing can be pruned.
    """
    return (ZeroPruner if options.elements else StructurePruner)(path, options, samples, progress)


def _content(batches: Sequence[Batch]) -> list[str]:
    """Digests of the inputs and labels of each batch."""
    labels = [{} if batch.labels is None else {"labels": batch.labels} for batch in batches]
    return [content_digest(arrays) for arrays in (*(batch.feed for batch in batches), *labels)]


# -- the two parts of adaptive pruning: to choose by, and to confirm --------------------------------


def split(options: AdaptiveOptions, session: Session) -> tuple[Dataset, Dataset]:
    """Return the samples of the search, and those for confirmation."""
    data = options.tried.open(session.inputs, session.outputs)
    if options.confirming is not None:
        held = options.confirming.open(session.inputs, session.outputs)
        if held.has_labels != data.has_labels:
            raise PruneError("--data and --confirm-data must both have labels, or neither", "give labels for both")
        return data, held
    confirming, choosing = data.split(options.confirm_split, options.seed, groups_of(data, options))
    if not len(confirming) or not len(choosing):
        raise PruneError(f"{data.source} cannot be split: its samples have too many shapes", "give --confirm-data")
    return choosing, confirming


def groups_of(data: Dataset, options: TrialOptions) -> Array | None:
    """Return the group numbers of samples that the metric reads together, such as pairs; None where it reads each
    alone."""
    if options.metric is None or options.metric in MEASURES or data.labels is None:
        return None
    (metric,) = find_metrics([options.metric]).values()
    return metric.groups(data.labels) if isinstance(metric, SampleMetric) else None


def check_apart(tune: Dataset, held: Dataset, session: Session, options: AdaptiveOptions) -> list[str]:
    """Return notes on held-out samples that occur elsewhere too.

    Raises:
        PruneError: most of them are: nothing would be confirmed.
    """
    others = {"--data": tune} if options.confirm_data is not None else {}
    if options.trains and options.train_data is not None:
        others["--train-data"] = options.like(options.train_data).open(session.inputs, session.outputs)
    notes = []
    for name, other in others.items():
        again = shared(held, other)
        if 2 * again > len(held):
            raise PruneError(f"{again:,} of the {len(held):,} samples that are to confirm are in {name} too",
                             "give samples that nothing was chosen by or trained on")  # fmt: skip
        if again:
            notes.append(f"{again:,} of the {len(held):,} samples that confirm are in {name} too")
    return notes


def both_parts(
    tune: Dataset, held: Dataset, session: Session, options: AdaptiveOptions, heads: Mapping[str, bool]
) -> tuple[TrialSamples, TrialSamples]:
    """Return both parts with one reading of the labels.

    Raises:
        PruneError: the promise would be kept by any model.
    """
    parts = [part.labels for part in (tune, held)]
    if len({None if labels is None else labels.shape[1:] for labels in parts}) > 1:
        raise PruneError("the labels of --data and --confirm-data differ in shape", "give labels alike for both")
    labels = None if parts[0] is None else np.concatenate([part for part in parts if part is not None])
    first = TrialSamples.of(tune, session, options, heads=heads, labels=labels)
    same = options if labels is not None else replace(options, metric=first.metric.name)
    second = TrialSamples.of(held, session, same, heads=heads, labels=labels)
    for samples in (first, second):
        _check_promise(samples, options.allowed)
    return first, second


def _check_promise(samples: TrialSamples, allowed: Quantity) -> None:
    """Raise PruneError where a model that knows nothing would keep the promise, or where its limit is a percentage of
    zero."""
    max_drop = allowed.value
    metric, output = samples.metric, samples.reference[0][samples.metric.output]
    single = metric.name == "cosine" and is_single(output)
    if single or (metric.name in MEASURES and are_boxes(output)):
        what = "one number per sample, whose cosine is only its sign" if single else "boxes, which always agree so far"
        raise PruneError(f"the output {metric.output} is {what}", "give labels: the original's own outputs will do")
    if allowed.kind == "percent" and metric.name in IN_THEIR_UNITS:
        raise PruneError(
            f"--max-drop {100 * max_drop:g}%: {metric.name} is no figure in percent",
            f"write a number in its own unit; the original's {metric.name} is {metric.baseline:.4g}",
        )
    if metric.from_zero and max_drop >= metric.baseline:
        raise PruneError(
            f"any model keeps --max-drop {max_drop:g}: the original's {metric.name} is {metric.baseline:.4g}",
            did_you_mean_percent(allowed, "allow less, and check the labels"),
        )
