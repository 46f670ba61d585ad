"""The options of commands that try many prunings: what is tried, how it is judged, and where trials run."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli.options import DATA, RUN, SELECT, RecoverName, as_option
from prunecli.errors import PruneError
from prunecli.quantity import parse_fraction

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions
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
MaxRatio = Annotated[
    float | None,
    typer.Option(
        "--max-ratio",
        metavar="R",
        parser=as_option(parse_fraction),
        help="of structures: the largest fraction removed from any group; default 0.9",
        rich_help_panel=SELECT,
    ),
]
RoundTo = Annotated[
    int | None,
    typer.Option(
        "--round-to",
        metavar="N",
        min=1,
        help="of structures: keep widths that are multiples of N",
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


def trial_options(
    data: str | None, labels: Path | None, label_column: str | None, limit: int | None,
    images: ImageOptions, *,
    include: Sequence[str] | None, exclude: Sequence[str] | None, also: Sequence[str] | None,
    output_name: str | None, dim: Sequence[str] | None, input_shape: Sequence[str] | None, provider: str | None,
    threads: int | None = None, backend: Where, round_to: int | None, **same: Any,
) -> TrialOptions:  # fmt: skip
    """From the command line.

    Raises:
        PruneError: no data.
    """
    from prunecli.data.options import DataOptions
    from prunecli.evaluate.passes import Asked
    from prunecli.model import Dims
    from prunecli.pipeline.subject import Execution
    from prunecli.pipeline.trial_options import TrialOptions

    source = DataOptions.of(data, labels, label_column, limit, images)
    if source is None:
        raise PruneError("trials are judged on data", "give --data")
    return TrialOptions(
        source, include=tuple(include or ()), exclude=tuple(exclude or ()), also=tuple(also or ()),
        asked=Asked(output_name=output_name), dims=Dims.parse(dim or (), input_shape or ()),
        execution=Execution(provider or "cpu", threads), backend=backend.value, round_to=round_to or 1, **same,
    )  # fmt: skip
