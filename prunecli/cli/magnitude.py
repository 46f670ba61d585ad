"""`prune magnitude`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.options import SELECT
from prunecli.cli.shared import Reporting, Running, Samples, reports
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import Zeroed, zeroes

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


class Scope(StrEnum):
    layer = "layer"
    row = "row"
    global_ = "global"
    lamp = "lamp"
    erk = "erk"


Pattern = Annotated[
    str,
    typer.Option(
        "--pattern",
        metavar="element|N:M|RxC|row|column",
        help="what goes together; N:M keeps N of each M neighbours along the reduction axis (input channels), "
        "as TensorRT and cuSPARSELt want",
        rich_help_panel=SELECT,
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        metavar="bias|norm|embedding",
        help="prune these too, which are left alone by default; repeatable",
        rich_help_panel=SELECT,
    ),
]


@takes(inputs=Samples)
@zeroes
@reports
@reads_images
@trains
def magnitude(
    model: options.ModelPath,
    *,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="T", help="zero every weight with |w| < T", rich_help_panel=SELECT),
    ] = None,
    sparsity: options.Sparsity = None,
    pattern: Pattern = "element",
    scope: Annotated[
        Scope | None,
        typer.Option(
            "--scope",
            metavar="layer|row|global|lamp|erk",
            help="who competes with whom; default layer",
            rich_help_panel=SELECT,
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option("--criterion", metavar="l1|l2|random", help="the score; default l1", rich_help_panel=SELECT),
    ] = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: Also = None,
    steps: Steps = None,
    inputs: Samples,
    seed: options.Seed = 0,
    saving: Zeroed,
    reporting: Reporting,
    running: Running,
    training: Given,
    images: ImageOptions,
) -> None:
    """Zero the smallest weights: below a threshold, to an exact sparsity, or to a pattern.

    round(S * n) of the n weights of each pool go, never more; of equal ones the later go first. Biases,
    normalisation parameters and embeddings are left alone. Weights of any size stream through.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    from prunecli.errors import PruneError
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.magnitude import magnitude as run

    recipe = saving.recipe(
        pattern, scope.value if scope else None, criterion, sparsity, threshold, seed, include, exclude, also
    )
    source = inputs.source(images, training.train_data)
    retrain = training.retrain(source, steps, running.execution(), seed, images=images, **saving.rewriting())
    if retrain is None and (inputs.data is not None or steps is not None):
        raise PruneError("--data and --steps are of training, which was not asked for", "add --finetune-epochs 5")
    wanted = saving.magnitude_options(reporting, running, recipe, retrain, include, exclude, also)
    result = run(model, wanted, reporting.progress())
    reporting.emit(result)
    raise_if_all_harmful(result.training)
