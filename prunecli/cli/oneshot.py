"""`prune oneshot`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.magnitude import Pattern
from prunecli.cli.options import RUN, SELECT
from prunecli.cli.shared import Calibration, Reporting, Running, reports
from prunecli.cli.training import Given, Steps, trains
from prunecli.cli.zeroing import Zeroed, zeroes
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


@takes(inputs=Calibration)
@zeroes
@reports
@reads_images
@trains
def oneshot(
    model: options.ModelPath,
    *,
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
    inputs: Calibration,
    seed: options.Seed = 0,
    saving: Zeroed,
    reporting: Reporting,
    running: Running,
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
    training: Given,
    images: ImageOptions,
) -> None:
    """Zero weights and fit the others on a few hundred unlabelled samples. No labels, no training.

    Layer by layer: what goes is chosen by its effect on the layer's output, and what stays makes up for it, on what
    the layers before, pruned by now, really give. Without --limit 512 samples drawn from --data are used.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """
    from prunecli.errors import PruneError
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.oneshot import MEMORY, OneshotOptions
    from prunecli.pipeline.oneshot import oneshot as run

    recipe = saving.recipe(
        pattern, scope.value if scope else None, None, sparsity, None, seed, include, exclude, allocate
    )
    if memory is not None and memory.kind not in ("bytes", "plain"):
        raise PruneError("--memory takes a number of bytes", "write it as 2GB or 500MB")
    source = inputs.source(images, training.train_data)
    retrain = training.retrain(source, steps, running.execution(), seed, images=images, **saving.rewriting())
    if steps is not None and retrain is None:
        raise PruneError("--steps is of training between cuts", "add --finetune-epochs, or leave --steps out")
    wanted = saving.magnitude_options(reporting, running, recipe, retrain, include, exclude)
    measured = OneshotOptions(
        data=source,
        method=method.value,
        allocate=allocate.value if allocate else None,
        recover=recover.value if recover else "auto",
        fallback=fallback,
        memory=MEMORY if memory is None else int(memory.value),
    )
    result = run(model, wanted, measured, reporting.progress())
    reporting.emit(result)
    raise_if_all_harmful(result.training)
