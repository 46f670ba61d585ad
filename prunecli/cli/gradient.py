"""`prune gradient`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.images import reads_images
from prunecli.cli.magnitude import Also, Pattern, Scope
from prunecli.cli.options import DATA, SELECT, ExternalData, Format
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import zeroing

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


class LossName(StrEnum):
    auto = "auto"
    output = "output"
    labels = "labels"


@reads_images
@trains
def gradient(
    model: options.ModelPath,
    sparsity: options.Sparsity = None,
    pattern: Pattern = "element",
    scope: Annotated[
        Scope | None,
        typer.Option(
            "--scope",
            metavar="layer|row|global|lamp|erk",
            help="who competes with whom; default global",
            rich_help_panel=SELECT,
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            metavar="taylor|fisher|snip|grasp|synflow",
            help="the score; default taylor; synflow needs no data",
            rich_help_panel=SELECT,
        ),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: Also = None,
    steps: Steps = None,
    data: options.CalibrationData = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    limit: options.Limit = None,
    loss: Annotated[
        LossName,
        typer.Option(
            "--loss",
            metavar="auto|output|labels",
            help="what is differentiated: the outputs in random directions, or the loss of the labels; auto: labels"
            " for snip and grasp where there are any, else the outputs",
            rich_help_panel=DATA,
        ),
    ] = LossName.auto,
    output_name: options.OutputName = None,
    seed: options.Seed = 0,
    output: options.OutputPath = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    external_data: options.ExternalDataOption = ExternalData.auto,
    no_verify: options.NoVerify = False,
    pack: options.Pack = False,
    plan: options.Plan = None,
    save_plan: options.SavePlan = None,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    *,
    training: Given,
    images: ImageOptions,
) -> None:
    """Zero the weights that the outputs would miss least, by gradients measured on data. No labels needed.

    In --steps (taylor, fisher and snip: 6, synflow: 30), gradients taken anew at the weights as they are by then.
    Without --limit 256 samples drawn from --data are used.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    arguments = locals()
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.errors import PruneError
    from prunecli.pipeline.evaluate import DataOptions
    from prunecli.pipeline.gradient import gradient as run
    from prunecli.pipeline.gradient_source import GradientOptions
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.subject import Execution
    from prunecli.select import Recipe

    recipe = None
    if plan is None:
        recipe = Recipe(pattern, scope.value if scope else None, criterion, sparsity, None, seed)
    elif any(v is not None for v in (sparsity, scope, criterion)) or pattern != "element" or include or exclude or also:
        raise PruneError("--plan fixes what is zeroed", "leave out the options under Selection")
    execution, source = (
        Execution(provider or "cpu", threads),
        DataOptions.of(data, labels, label_column, limit, images, training.train_data, synthetic=True),
    )
    retrain = training.retrain(
        source, steps, execution, seed, images=images, verify=not no_verify, external_data=external_data.value
    )  # fmt: skip
    wanted = zeroing(arguments, recipe, execution, retrain)
    measured = GradientOptions(source, steps if retrain is None else None, loss.value, output_name)
    result = run(model, wanted, measured, progress_for(no_progress))
    emit(result, format, report)
    raise_if_all_harmful(result.training)
