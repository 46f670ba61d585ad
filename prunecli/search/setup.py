"""From a model, data and options to a bench on which settings can be measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunecli._version import __version__
from prunecli.data import Batch, Dataset
from prunecli.model import Model, load
from prunecli.model.external_data import external, located, read_proto, refer
from prunecli.runtime import Session, version
from prunecli.search.group_pruner import open_units
from prunecli.search.metric import Outputs, Yardstick, choose_yardstick
from prunecli.search.options import TrialOptions
from prunecli.search.pools import SampleSubset, pool_of
from prunecli.search.pruner import Pruner
from prunecli.search.runner import Journal, TrialRunner
from prunecli.search.space import digest
from prunecli.search.trials import Outcome, Workspace, outcome_on, outputs_of
from prunecli.search.weight_pruner import open_elements
from prunecli.types import Progress
from prunecli.zeros.selector import check_numbers

Array = np.ndarray[Any, Any]
OUTPUT_LIMIT = 1 << 30
"""Bytes of the original's outputs that are held."""


@dataclass(frozen=True)
class JudgedSamples:
    """Samples with the original's outputs on them, and what trials are judged by there."""

    data: Dataset
    batches: Sequence[Batch]
    reference: Sequence[Outputs]
    yardstick: Yardstick

    @classmethod
    def of(cls, data: Dataset, session: Session, options: TrialOptions, labels: Array | None = None) -> JudgedSamples:
        """`labels`: all that there are, if `data` is a part; see `choose_yardstick`."""
        batches = list(data.batches(options.batch_size))
        reference = list(outputs_of(session, batches, OUTPUT_LIMIT))
        found = choose_yardstick(
            options.metric, options.asked, data.labels if labels is None else labels, batches, reference, data.classes
        )
        return cls(data, batches, reference, found)


@dataclass(frozen=True)
class TrialSetup:
    """A bench on the samples to choose by, and the pruner whose settings it measures."""

    file: Model
    session: Session
    pruner: Pruner
    bench: TrialRunner

    def open(self, model: Path | onnx.ModelProto) -> Session:
        """A model as trials run it."""
        return Session.open(model, provider=self.bench.workspace.provider, threads=1)

    def outcome(self, model: Path) -> Outcome:
        """Of a file, on all samples to choose by."""
        workspace = self.bench.workspace
        return outcome_on(self.open(model), workspace.batches, workspace.reference, workspace.yardstick)


def open_model(path: Path, options: TrialOptions) -> tuple[Model, Session]:
    """The model as it is, on one thread, as trials run it."""
    file = load(path)
    check_numbers(file)
    return file, Session.open(path, provider=options.execution.provider, threads=1)


def set_up(
    file: Model,
    session: Session,
    judged: JudgedSamples,
    options: TrialOptions,
    progress: Progress,
    minimize: str | None = None,
) -> TrialSetup:
    """Measure what the criterion and the goal need on the data, and get ready to try settings on it.

    Raises:
        PruneError: an option is unusable, there is nothing to prune, or the state file is of something else.
    """
    pruner = open_pruner(file.path, options, SampleSubset.of_data(options.tried, judged.data), progress, minimize)
    files = _files(file)
    identity = digest(
        [hashlib.sha256(content).hexdigest() for content in files.values()], pruner.identity, _content(judged.batches),
        [judged.yardstick.metric, judged.yardstick.output, options.probes, options.execution.provider],
        [__version__, version()],
    )  # fmt: skip
    workspace = Workspace(
        identity, files, pruner.recipe, judged.batches, judged.reference, judged.yardstick,
        _probes(judged.batches, options.probes), options.execution.provider,
    )  # fmt: skip
    return TrialSetup(
        file, session, pruner, TrialRunner(workspace, pool_of(options), Journal(options.state, identity), progress)
    )


def open_pruner(
    path: Path, options: TrialOptions, data: SampleSubset, progress: Progress, minimize: str | None = None
) -> Pruner:
    """The pruner of the granularity; what its criterion needs is measured on `data`, and what the goal needs.

    Raises:
        PruneError: an unknown name, or nothing can be pruned.
    """
    return (open_elements if options.elements else open_units)(path, options, data, progress, minimize)


def _files(file: Model) -> dict[str, Any]:
    """The model's file, which refers to its data by the names that those have here, and its data."""
    names = {str(path): f"{file.path.name}.{number}" for number, path in enumerate(file.data_files)}
    proto = read_proto(file.path)
    for tensor in external(proto):
        place, offset, _ = located(tensor)
        refer(tensor, names[place], offset)
    found = {file.path.name: proto.SerializeToString(deterministic=True)}
    found |= {name: Path(path).read_bytes() for path, name in names.items()}
    return {name: np.frombuffer(content, np.uint8) for name, content in found.items()}


def _probes(batches: Sequence[Batch], samples: int) -> int:
    """Batches that hold so many samples."""
    total = 0
    for number, batch in enumerate(batches, 1):
        total += batch.count
        if total >= samples:
            return number
    return len(batches)


def _content(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for name, array in sorted(batch.feed.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(
                np.ascontiguousarray(array).tobytes() if array.dtype.kind not in "OU" else repr(array).encode()
            )
        found.update(b"" if batch.labels is None else repr(batch.labels.tolist()).encode())
    return found.hexdigest()
