"""`prune evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.shared import Reporting, Running, Samples, reports

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions

QUALITY = "Measurements"


class Average(StrEnum):
    weighted = "weighted"
    macro = "macro"
    micro = "micro"


class TaskOption(StrEnum):
    auto = "auto"
    classification = "classification"
    regression = "regression"


@takes(inputs=Samples)
@reports
@reads_images
def evaluate(
    model: options.ModelPath,
    *,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="ORIGINAL", help="the model to compare with", rich_help_panel=QUALITY),
    ] = None,
    inputs: Samples,
    train_data: options.TrainData = None,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    task: Annotated[
        TaskOption,
        typer.Option(
            "--task",
            metavar="auto|classification|regression",
            help="what the labels mean",
            rich_help_panel=QUALITY,
        ),
    ] = TaskOption.auto,
    output_name: options.OutputName = None,
    average: Annotated[
        Average,
        typer.Option(
            "--average",
            metavar="weighted|macro|micro",
            help="of precision, recall and F1 over the classes",
            rich_help_panel=QUALITY,
        ),
    ] = Average.weighted,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="precision, recall and F1 of each class", rich_help_panel=QUALITY),
    ] = False,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="quality under noise, outliers, blur, contrast", rich_help_panel=QUALITY),
    ] = False,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="do not measure time", rich_help_panel=QUALITY)
    ] = False,
    latency_runs: Annotated[
        int | None,
        typer.Option(
            "--latency-runs",
            metavar="N",
            min=2,
            help="timed runs of each model; default a few seconds' worth",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    latency_batch: Annotated[
        int,
        typer.Option("--latency-batch", metavar="N", min=1, help="samples per timed run", rich_help_panel=QUALITY),
    ] = 1,
    fail_if: options.FailIf = None,
    reporting: Reporting,
    running: Running,
    images: ImageOptions,
) -> None:
    """Quality, size and latency of a model, alone or beside its original.

    With labels: accuracy, precision, recall, F1, top-5, or MAE, RMSE and R2. With --baseline also fidelity,
    what changed, and whether that is beyond chance; latency is measured in turns. Figures for --fail-if:
    accuracy, accuracy.drop, f1.drop, latency.median, latency.speedup, cosine, snr_db, top1_agreement,
    file_bytes, params, macs, sparsity, params.ratio, accuracy.gap, robustness.drop, baseline.accuracy, ...
    """
    from prunecli.data.options import DataOptions
    from prunecli.evaluation.gates import raise_if_failed
    from prunecli.evaluation.passes import Asked
    from prunecli.pipeline.evaluate import EvaluateOptions
    from prunecli.pipeline.evaluate import evaluate as run

    wanted = EvaluateOptions(
        data=inputs.source(images),
        train_data=DataOptions.of(
            train_data,
            None,
            inputs.label_column if train_data else None,
            inputs.limit,
            images if train_data else None,
            batch_axes=inputs.batch_axis,
        ),
        asked=Asked(task.value, output_name),
        average=average.value,
        per_class=per_class,
        robustness=robustness,
        latency=not no_latency,
        latency_runs=latency_runs,
        latency_batch=latency_batch,
        batch_size=batch_size,
        seed=seed,
        dims=running.dims(),
        execution=running.execution(),
        gates=fail_if or (),
    )
    result = run(model, baseline, wanted, reporting.progress())
    reporting.emit(result)
    raise_if_failed(result.gates)
