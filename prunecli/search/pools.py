"""What trials run on: where, and on which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.data import Dataset
from prunecli.data.options import DataOptions
from prunecli.inputs import InputSpec
from prunecli.runtime import Execution
from prunecli.search.options import TrialOptions
from prunecli.search.runner import Dask, InProcess, LocalProcesses, WorkerPool


def pool_of(options: TrialOptions) -> WorkerPool:
    """Where trials run.

    Raises:
        PruneError: the cluster cannot be reached.
    """
    if options.backend == "dask":
        return Dask(str(options.address))
    workers = options.jobs or Execution(options.execution.provider).thread_count
    return LocalProcesses(workers) if workers > 1 else InProcess()


@dataclass(frozen=True)
class SampleSubset(DataOptions):
    """Some samples of the user's data, for what reads data itself."""

    dataset: Dataset | None = None

    @classmethod
    def of_data(cls, given: DataOptions, dataset: Dataset) -> SampleSubset:
        return cls(given.text, given.labels, given.label_column, given.limit, given.images, given.batch_axes, dataset)

    def open(self, specs: Sequence[InputSpec], outputs: Sequence[InputSpec] = ()) -> Dataset:
        assert self.dataset is not None
        return self.dataset
