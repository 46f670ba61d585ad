"""The options of commands that try many prunings: what is tried, how it is judged, and where trials run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.magnitude import Also, Pattern
from prunecli.cli.options import DATA, RUN, SELECT, RecoverName
from prunecli.errors import PruneError

if TYPE_CHECKING:
    from prunecli.data.options import DataOptions
    from prunecli.model import Dims
    from prunecli.pipeline.subject import Execution
    from prunecli.pipeline.trial_options import TrialOptions


class Where(StrEnum):
    local = "local"
    dask = "dask"


Granularity = Annotated[
    str,
    typer.Option(
        "--granularity",
        metavar="element|channel|head|all",
        help="element: zeros in weights; else structures that leave the graph, as `prune structured` cuts them",
        rich_help_panel=SELECT,
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME",
        help="the score: of elements those of magnitude and gradient, default taylor, or l1 without gradients,"
        " and obs and wanda of oneshot; of structures those of structured",
        rich_help_panel=SELECT,
    ),
]
Recover = Annotated[
    RecoverName,
    typer.Option(
        "--recover",
        metavar="none|bias|bn|lstsq|auto",
        help="fit what is left to the original's outputs, without labels, on the samples of the search, and cut further"
        " for it; judged after that",
        rich_help_panel=SELECT,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="any of `prune evaluate`; default accuracy or r2, without labels top1_agreement or cosine",
        rich_help_panel=DATA,
    ),
]
Probes = Annotated[
    int,
    typer.Option(
        "--probes", metavar="N", min=1, help="samples on which the damage by each layer is measured",
        rich_help_panel=DATA,
    ),
]  # fmt: skip
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", metavar="N", min=1, help="processes that run trials; default one per core",
        rich_help_panel=RUN,
    ),
]  # fmt: skip
BackendOption = Annotated[
    Where,
    typer.Option(
        "--backend", metavar="local|dask", help="where trials run; dask: on the cluster at --address",
        rich_help_panel=RUN,
    ),
]  # fmt: skip
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="tcp://HOST:PORT", help="the scheduler of a Dask cluster", rich_help_panel=RUN),
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="PATH",
        help="keep what was measured in PATH; a later run with the same PATH continues",
        rich_help_panel=RUN,
    ),
]


@dataclass(frozen=True)
class Trials:
    """What is tried, how it is judged, and where."""

    metric: Metric = None
    output_name: options.OutputName = None
    batch_size: options.BatchSize = 32
    seed: options.Seed = 0
    probes: Probes = 256
    granularity: Granularity = "element"
    criterion: Criterion = None
    pattern: Pattern = "element"
    max_ratio: options.MaxRatio = None
    round_to: options.RoundTo = None
    include: options.Include = None
    exclude: options.Exclude = None
    also: Also = None
    jobs: Jobs = None
    backend: BackendOption = Where.local
    address: Address = None
    state: State = None

    def trial_options(
        self, source: DataOptions | None, dims: Dims, execution: Execution, recover: str = "none"
    ) -> TrialOptions:
        """Raises PruneError if there are no data."""
        from prunecli.evaluation.passes import Asked
        from prunecli.pipeline.trial_options import TrialOptions

        if source is None:
            raise PruneError("trials are judged on data", "give --data")
        return TrialOptions(
            source, self.granularity, self.criterion, recover, self.pattern, self.max_ratio, self.round_to or 1,
            tuple(self.include or ()), tuple(self.exclude or ()), tuple(self.also or ()), self.metric,
            Asked(output_name=self.output_name), self.probes, self.batch_size, self.seed, dims, execution, self.jobs,
            self.backend.value, self.address, self.state,
        )  # fmt: skip
