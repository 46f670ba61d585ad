"""`prune gradient`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.magnitude import Also, Pattern, Scope
from prunecli.cli.options import DATA, SELECT
from prunecli.cli.shared import Calibration, Reporting, Running, reports
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import Zeroed, zeroes

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


class LossName(StrEnum):
    auto = "auto"
    output = "output"
    labels = "labels"


@takes(inputs=Calibration)
@zeroes
@reports
@reads_images
@trains
def gradient(
    model: options.ModelPath,
    *,
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
            metavar="taylor|fisher|snip|synflow",
            help="the score; default taylor; synflow needs no data",
            rich_help_panel=SELECT,
        ),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: Also = None,
    steps: Steps = None,
    inputs: Calibration,
    loss: Annotated[
        LossName,
        typer.Option(
            "--loss",
            metavar="auto|output|labels",
            help="what is differentiated: the outputs in random directions (auto), or the loss of the labels",
            rich_help_panel=DATA,
        ),
    ] = LossName.auto,
    output_name: options.OutputName = None,
    seed: options.Seed = 0,
    saving: Zeroed,
    reporting: Reporting,
    running: Running,
    training: Given,
    images: ImageOptions,
) -> None:
    """Zero the weights that the outputs would miss least, by gradients measured on data. No labels needed.

    In --steps (taylor, fisher and snip: 6, synflow: 30), gradients taken anew at the weights as they are by then.
    Without --limit 256 samples drawn from --data are used.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    from prunecli.pipeline.gradient import gradient as run
    from prunecli.pipeline.gradient_source import GradientOptions
    from prunecli.pipeline.gradual import raise_if_all_harmful

    recipe = saving.recipe(
        pattern, scope.value if scope else None, criterion, sparsity, None, seed, include, exclude, also
    )
    source = inputs.source(images, training.train_data)
    retrain = training.retrain(source, steps, running.execution(), seed, images=images, **saving.rewriting())
    wanted = saving.magnitude_options(reporting, running, recipe, retrain, include, exclude, also)
    measured = GradientOptions(source, steps if retrain is None else None, loss.value, output_name)
    result = run(model, wanted, measured, reporting.progress())
    reporting.emit(result)
    raise_if_all_harmful(result.training)
