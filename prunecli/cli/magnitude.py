"""`prune magnitude`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.images import reads_images
from prunecli.cli.options import SELECT, ExternalData, Format
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import zeroing

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


@reads_images
@trains
def magnitude(
    model: options.ModelPath,
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
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    limit: options.Limit = None,
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
    """Zero the smallest weights: below a threshold, to an exact sparsity, or to a pattern.

    round(S * n) of the n weights of each pool go, never more; of equal ones the later go first. Biases,
    normalisation parameters and embeddings are left alone. Weights of any size stream through.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    arguments = locals()
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.errors import PruneError
    from prunecli.pipeline.evaluate import DataOptions
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.magnitude import magnitude as run
    from prunecli.pipeline.subject import Execution
    from prunecli.select import Recipe

    asked = (threshold, sparsity, scope, criterion)
    recipe = None
    if plan is None:
        recipe = Recipe(pattern, scope.value if scope else None, criterion, sparsity, threshold, seed)
    elif any(value is not None for value in asked) or pattern != "element" or include or exclude or also:
        raise PruneError("--plan fixes what is zeroed", "leave out the options under Selection")
    execution = Execution(provider or "cpu", threads)
    retrain = training.retrain(
        DataOptions.of(data, labels, label_column, limit, images, training.train_data), steps, execution, seed,
        images=images, verify=not no_verify, external_data=external_data.value,
    )  # fmt: skip
    if retrain is None and (data is not None or steps is not None):
        raise PruneError("--data and --steps are of training, which was not asked for", "add --finetune-epochs 5")
    wanted = zeroing(arguments, recipe, execution, retrain)
    result = run(model, wanted, progress_for(no_progress))
    emit(result, format, report)
    raise_if_all_harmful(result.training)
