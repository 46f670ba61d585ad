"""`prune sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli import options
from prunecli.cli.images import reads_images
from prunecli.cli.magnitude import Also, Pattern
from prunecli.cli.options import SELECT, Format, as_option
from prunecli.cli.trials import (
    Address,
    BackendOption,
    Criterion,
    Granularity,
    Jobs,
    MaxRatio,
    Metric,
    Probes,
    RoundTo,
    State,
    Where,
)
from prunecli.quantity import parse_fraction

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


def _levels(text: str) -> list[float]:
    return [parse_fraction(part) for part in text.split(",")]


@reads_images
def sensitivity(
    model: options.ModelPath,
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    metric: Metric = None,
    output_name: options.OutputName = None,
    levels: Annotated[
        Any,
        typer.Option(
            "--levels",
            metavar="LIST",
            parser=as_option(_levels),
            help="fractions removed, as 0.5,0.9; default 30% to 98% of elements, 10% to 90% of units",
            rich_help_panel=SELECT,
        ),
    ] = None,
    granularity: Granularity = "element",
    criterion: Criterion = None,
    pattern: Pattern = "element",
    max_ratio: MaxRatio = None,
    round_to: RoundTo = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: Also = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="predict from gradients instead of measuring; the rank correlation with a few measurements is told",
            rich_help_panel=SELECT,
        ),
    ] = False,
    probes: Probes = 256,
    jobs: Jobs = None,
    backend: BackendOption = Where.local,
    address: Address = None,
    state: State = None,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    *,
    images: ImageOptions,
) -> None:
    """What each layer costs when it alone is cut: quality, or fidelity without labels, by the fraction removed.

    What comes before a layer is computed once for all of its fractions. Without --limit 512 samples drawn from --data
    are used. With --state a second run continues where the first one stopped.
    """
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.cli.trials import trial_options
    from prunecli.pipeline.sensitivity import SensitivityOptions
    from prunecli.pipeline.sensitivity import sensitivity as run

    wanted = trial_options(
        data, labels, label_column, limit, images, granularity=granularity, criterion=criterion, pattern=pattern,
        max_ratio=max_ratio, round_to=round_to, include=include, exclude=exclude, also=also, metric=metric,
        output_name=output_name, probes=probes, batch_size=batch_size, seed=seed, dim=dim, input_shape=input_shape,
        provider=provider, jobs=jobs, backend=backend, address=address, state=state,
    )  # fmt: skip
    result = run(model, SensitivityOptions(wanted, levels, fast), progress_for(no_progress))
    emit(result, format, report)
