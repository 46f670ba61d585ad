"""What sensitivity and adaptive pruning are told alike: what is tried, on which data, and where the trials run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from prunecli.data import Dataset
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.passes import Asked
from prunecli.inputs import InputSpec
from prunecli.model import Dims
from prunecli.pipeline.subject import Execution, check_parallel
from prunecli.search.pool import Dask, InProcess, LocalProcesses, Pool

ELEMENT = "element"
Backend = Literal["local", "dask"]
RECOVERIES = ("none", "bias", "bn", "lstsq", "auto")


@dataclass(frozen=True)
class TrialOptions:
    """`granularity`: `element`, or what `prune structured` takes but `block`. `criterion` None: the default of each.
    `recover`: closed-form recovery of what is left, see `RECOVERIES`.
    `pattern`: of elements. `max_ratio`, `round_to`: of structures. `metric` None: see `choose_yardstick`. `probes`:
    samples on which damage is measured. `jobs` None: one process per core. `state`: the file that keeps what was
    measured."""

    data: DataOptions
    granularity: str = ELEMENT
    criterion: str | None = None
    recover: str = "none"
    pattern: str = "element"
    max_ratio: float | None = None
    round_to: int = 1
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    also: Sequence[str] = ()
    metric: str | None = None
    asked: Asked = field(default_factory=Asked)
    probes: int = 256
    batch_size: int = 32
    seed: int = 0
    dims: Dims = field(default_factory=Dims)
    execution: Execution = field(default_factory=Execution)
    jobs: int | None = None
    backend: Backend = "local"
    address: str | None = None
    state: Path | None = None

    @property
    def elements(self) -> bool:
        return self.granularity == ELEMENT

    @property
    def recovers(self) -> bool:
        return self.recover != "none"

    @property
    def one_thread(self) -> Execution:
        """Sums in one order, so that what is decided does not depend on the machine's cores."""
        return replace(self.execution, threads=1)

    def check(self) -> None:
        """Raises PruneError where options contradict each other."""
        if "block" in self.granularity.split(","):
            raise PruneError("blocks are chosen by `prune structured --granularity block`, not by trials",
                             "use --granularity element, channel,head or all")  # fmt: skip
        if self.recover not in RECOVERIES:
            raise PruneError(f"--recover {self.recover!r} is unknown", f"choose from {', '.join(RECOVERIES)}")
        if self.elements and (self.round_to > 1 or self.max_ratio is not None):
            raise PruneError("--round-to and --max-ratio are of structures", "add --granularity channel,head")
        if not self.elements and (self.pattern != "element" or self.also):
            raise PruneError("--pattern and --also are of single weights", "leave out --granularity")
        check_parallel("--jobs", self.jobs)
        if (self.backend == "dask") != (self.address is not None):
            raise PruneError("--backend dask and --address go together", "--backend dask --address tcp://HOST:8786")

    def pool(self) -> Pool:
        """Where trials run.

        Raises:
            PruneError: the cluster cannot be reached.
        """
        if self.backend == "dask":
            return Dask(str(self.address))
        workers = self.jobs or Execution(self.execution.provider).thread_count
        return LocalProcesses(workers) if workers > 1 else InProcess()


@dataclass(frozen=True)
class Part(DataOptions):
    """Some samples of the user's data, for what reads data itself."""

    dataset: Dataset | None = None

    @classmethod
    def of_data(cls, given: DataOptions, dataset: Dataset) -> Part:
        return cls(given.text, given.labels, given.label_column, given.limit, given.images, given.batch_axes, dataset)

    def open(self, specs: Sequence[InputSpec], outputs: Sequence[InputSpec] = ()) -> Dataset:
        assert self.dataset is not None
        return self.dataset
