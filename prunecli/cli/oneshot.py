"""`prune oneshot`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.images import reads_images
from prunecli.cli.magnitude import Pattern
from prunecli.cli.options import RUN, SELECT, ExternalData, Format
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import zeroing
from prunecli.quantity import Quantity, parse_quantity

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


class MethodName(StrEnum):
    obs = "obs"
    sparsegpt = "sparsegpt"
    wanda = "wanda"


class Within(StrEnum):
    layer = "layer"
    row = "row"
    global_ = "global"
    erk = "erk"


class Allocation(StrEnum):
    uniform = "uniform"
    erk = "erk"
    loss = "loss"


@reads_images
@trains
def oneshot(
    model: options.ModelPath,
    sparsity: options.Sparsity = None,
    pattern: Pattern = "element",
    method: Annotated[
        MethodName,
        typer.Option(
            "--method",
            metavar="obs|sparsegpt|wanda",
            help="obs: exact, least loss; sparsegpt: one sweep, for wide layers; wanda: |w| times its input's norm",
            rich_help_panel=SELECT,
        ),
    ] = MethodName.obs,
    allocate: Annotated[
        Allocation | None,
        typer.Option(
            "--allocate",
            metavar="uniform|erk|loss",
            help="how sparsity spreads over the layers; loss, the default: where it is measured to hurt least",
            rich_help_panel=SELECT,
        ),
    ] = None,
    scope: Annotated[
        Within | None,
        typer.Option(
            "--scope",
            metavar="layer|row|global|erk",
            help="who competes inside a layer; global and erk mean --allocate loss and erk",
            rich_help_panel=SELECT,
        ),
    ] = None,
    recover: options.RecoverZeros = None,
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="zero weights that cannot be measured by magnitude", rich_help_panel=SELECT),
    ] = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    steps: Steps = None,
    data: options.CalibrationData = None,
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
    memory: Annotated[
        Quantity | None,
        typer.Option(
            "--memory",
            metavar="BYTES",
            parser=options.as_option(parse_quantity),
            help="activations held in memory, the rest in temporary files; default 4GiB",
            rich_help_panel=RUN,
        ),
    ] = None,
    *,
    training: Given,
    images: ImageOptions,
) -> None:
    """Zero weights and fit the others on a few hundred unlabelled samples. No labels, no training.

    Layer by layer: what goes is chosen by its effect on the layer's output, and what stays makes up for it, on what
    the layers before, pruned by now, really give. Without --limit 512 samples drawn from --data are used.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    arguments = locals()
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.errors import PruneError
    from prunecli.pipeline.evaluate import DataOptions
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.oneshot import MEMORY, OneshotOptions
    from prunecli.pipeline.oneshot import oneshot as run
    from prunecli.pipeline.subject import Execution
    from prunecli.select import Recipe

    recipe = None
    if plan is None:
        recipe = Recipe(pattern, scope.value if scope else None, None, sparsity, None, seed)
    elif any(v is not None for v in (sparsity, scope, allocate)) or pattern != "element" or include or exclude:
        raise PruneError("--plan fixes what is zeroed", "leave out the options under Selection")
    if memory is not None and memory.kind not in ("bytes", "plain"):
        raise PruneError("--memory takes a number of bytes", "write it as 2GB or 500MB")
    execution = Execution(provider or "cpu", threads)
    source = DataOptions.of(data, labels, label_column, limit, images, training.train_data, synthetic=True)
    retrain = training.retrain(
        source, steps, execution, seed, images=images, verify=not no_verify, external_data=external_data.value
    )  # fmt: skip
    if steps is not None and retrain is None:
        raise PruneError("--steps is of training between cuts", "add --finetune-epochs, or leave --steps out")
    wanted = zeroing(arguments, recipe, execution, retrain)
    measured = OneshotOptions(
        data=source,
        method=method.value,
        allocate=allocate.value if allocate else None,
        recover=recover.value if recover else "auto",
        fallback=fallback,
        memory=MEMORY if memory is None else int(memory.value),
    )
    result = run(model, wanted, measured, progress_for(no_progress))
    emit(result, format, report)
    raise_if_all_harmful(result.training)
