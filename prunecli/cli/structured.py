"""`prune structured`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.options import SELECT, as_option
from prunecli.cli.shared import Reporting, Running, Samples, Saving, reports
from prunecli.cli.training import Given, Steps, trains
from prunecli.quantity import Quantity, parse_quantity

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions

CRITERIA = (
    "auto (default: obs with --data and least squares after, l2-in without data or with training after, else"
    " activation), l1, l2, l2-in, lamp, fpgm, bn-scale, random, and on --data: obs, activation, taylor, fisher"
)
NORMALISERS = "auto (default: what suits the criterion), none, share, mean, max, isomorphic"


def _amount(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(  # type: ignore[no-any-return]
        name, metavar="R", parser=as_option(parse_quantity), help=text, rich_help_panel=SELECT
    )


@takes(inputs=Samples, saving=Saving)
@reports
@reads_images
@trains
def structured(
    model: options.ModelPath,
    *,
    ratio: Annotated[Quantity | None, _amount("--ratio", "fraction of the units to remove, as 0.5 or 50%")] = None,
    macs: Annotated[
        Quantity | None, _amount("--macs", "what remains of the multiply-accumulates: 0.5, 50% or 120M")
    ] = None,
    params: Annotated[Quantity | None, _amount("--params", "what remains of the parameters: 0.5, 50% or 1.2M")] = None,
    latency: Annotated[
        Quantity | None,
        _amount("--latency", "what remains of the time of a run, as measured here: 0.5, 50% or 3.5ms"),
    ] = None,
    granularity: Annotated[
        str,
        typer.Option(
            "--granularity",
            metavar="channel|head|block|all",
            help="which structures may be cut: channel,head; block: whole residual blocks;"
            " all: also inside heads and the hidden size",
            rich_help_panel=SELECT,
        ),
    ] = "channel,head",
    criterion: Annotated[
        str | None,
        typer.Option("--criterion", metavar="NAME", help=f"the score of a unit: {CRITERIA}", rich_help_panel=SELECT),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            "--normalize", metavar="NAME", help=f"how layers' scores compare: {NORMALISERS}", rich_help_panel=SELECT
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope", metavar="layer|global", help="who competes with whom; default global", rich_help_panel=SELECT
        ),
    ] = None,
    max_ratio: options.MaxRatio = None,
    round_to: options.RoundTo = None,
    steps: Steps = None,
    recover: options.Recover = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    inputs: Samples,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    saving: Saving,
    plan: options.Plan = None,
    save_plan: options.SavePlan = None,
    reporting: Reporting,
    running: Running,
    training: Given,
    images: ImageOptions,
) -> None:
    """Remove channels, neurons and attention heads and rewrite the graph: smaller and faster as it is.

    Positions that are coupled go together, in every tensor they appear in. The result is proved in onnxruntime
    against the original with the removed positions forced to zero; a cut that cannot be proved is not written.

    With --data every layer that is left is then fitted, in closed form, to what the original computes (--recover); the
    proof is of the cut before that.

    With --finetune-epochs the result is trained, the uncut model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of what is to go is gone. Without it --steps only takes the scores anew.
    """
    from prunecli.pipeline.gradual import raise_if_all_harmful
    from prunecli.pipeline.structured import options_for
    from prunecli.pipeline.structured import structured as run

    source = inputs.source(images, training.train_data)
    execution = running.execution()
    retrain = training.retrain(source, steps, execution, seed, images=images, **saving.rewriting())
    wanted = options_for(
        {"ratio": ratio, "macs": macs, "params": params, "latency": latency},
        plan=plan,
        granularity=granularity,
        criterion=criterion,
        normalize=normalize,
        scope=scope,
        max_ratio=max_ratio,
        round_to=round_to,
        steps=steps,
        recover=recover.value if recover else None,
        seed=seed,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        data=source,
        batch_size=batch_size,
        dims=running.dims(),
        execution=execution,
        save_plan=save_plan,
        retrain=retrain,
        **saving.fields(),
    )
    result = run(model, wanted, reporting.progress())
    reporting.emit(result)
    raise_if_all_harmful(result.training)
