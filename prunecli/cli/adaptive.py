"""`prune adaptive`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.options import DATA, OUTPUT, RecoverName, as_option
from prunecli.cli.shared import Reporting, Running, Samples, Saving, reports
from prunecli.cli.training import Given, trains
from prunecli.cli.trials import Recover, Trials
from prunecli.quantity import parse_quantity

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions

GOAL = "Goal"


def _amount(text: str) -> float:
    from prunecli.errors import PruneError

    found = parse_quantity(text)
    if found.kind not in ("plain", "percent"):
        raise PruneError(f"{text!r} is no amount of a metric", "write it as 0.01 or 1%")
    return found.value


class StrategyName(StrEnum):
    search = "search"
    feedback = "feedback"


class Amount(StrEnum):
    params = "params"
    macs = "macs"
    latency = "latency"
    file_bytes = "file_bytes"


@takes(inputs=Samples, trials=Trials, saving=Saving)
@reports
@reads_images
@trains
def adaptive(
    model: options.ModelPath,
    *,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="D",
            parser=as_option(_amount),
            help="what may be lost of --metric on data that the search does not see, as 1% or 0.01",
            rich_help_panel=GOAL,
        ),
    ] = None,
    minimize: Annotated[
        Amount | None,
        typer.Option(
            "--minimize",
            metavar="params|macs|latency|file_bytes",
            help="what is to become small; default params of elements, macs of structures",
            rich_help_panel=GOAL,
        ),
    ] = None,
    strategy: Annotated[
        StrategyName,
        typer.Option(
            "--strategy",
            metavar="search|feedback",
            help="search: per layer, from measured sensitivity; feedback: one threshold, up while the error allows",
            rich_help_panel=GOAL,
        ),
    ] = StrategyName.search,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            metavar="N",
            min=1,
            help="of the search, at most; each measures every layer anew",
            rich_help_panel=GOAL,
        ),
    ] = 4,
    inputs: Samples,
    confirm_data: Annotated[
        str | None,
        typer.Option(
            "--confirm-data",
            metavar="D",
            help="data that only confirm, instead of a part of --data",
            rich_help_panel=DATA,
        ),
    ] = None,
    confirm_split: Annotated[
        float,
        typer.Option(
            "--confirm-split",
            metavar="F",
            min=0,
            max=1,
            help="fraction of --data that only confirms",
            rich_help_panel=DATA,
        ),
    ] = 0.5,
    recover: Recover = RecoverName.none,
    trials: Trials,
    saving: Saving,
    pack: options.Pack = False,
    save_plan: options.SavePlan = None,
    save_front: Annotated[
        Path | None,
        typer.Option(
            "--save-front", metavar="DIR", help="keep the models of the Pareto front in DIR", rich_help_panel=OUTPUT
        ),
    ] = None,
    reporting: Reporting,
    running: Running,
    training: Given,
    images: ImageOptions,
) -> None:
    """The smallest model that loses no more than --max-drop, confirmed on data that nothing was chosen by.

    How much goes from each layer follows from what it costs, measured. Half of --data is searched on, the other half
    only confirms. A margin for the noise of both is kept, so more data give a smaller model. Exit code 1 and no file if
    the limit cannot be kept. Ctrl-C ends the search with the best so far.

    With --finetune-epochs it goes on from there: a little is cut, trained on --train-data, judged, and backed out if it
    costs too much.
    """
    from prunecli.cli.output import draws
    from prunecli.data.options import DataOptions
    from prunecli.errors import PruneError
    from prunecli.pipeline.adaptive import AdaptiveOptions, raise_if_missed
    from prunecli.pipeline.adaptive import adaptive as run
    from prunecli.pipeline.pack import Packing

    if max_drop is None:
        raise PruneError("what may be lost is not given", "give --max-drop 1%")
    tried = trials.trial_options(inputs.source(images), running.dims(), running.execution(), recover.value)
    confirming = (
        DataOptions.of(confirm_data, None, inputs.label_column, None, images, batch_axes=inputs.batch_axis)
        if confirm_data
        else None
    )
    retrain = training.retrain(
        tried.data, None, tried.execution, trials.seed, images=images, verify=not saving.no_verify
    )
    wanted = AdaptiveOptions(
        tried, max_drop, confirming, confirm_split, minimize.value if minimize else None, strategy.value, rounds,
        save_plan=save_plan, save_front=save_front, retrain=retrain, spreads=draws(reporting.report),
        pack=Packing() if pack else None, **saving.fields(),
    )  # fmt: skip
    result = run(model, wanted, reporting.progress())
    reporting.emit(result)
    if result.interrupted:
        raise KeyboardInterrupt
    raise_if_missed(result)
