"""`prune sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.options import SELECT, as_option
from prunecli.cli.shared import Reporting, Samples
from prunecli.cli.trials import Trials
from prunecli.quantity import parse_fraction

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


def _levels(text: str) -> list[float]:
    return [parse_fraction(part) for part in text.split(",")]


@takes(inputs=Samples, trials=Trials, reporting=Reporting)
@reads_images
def sensitivity(
    model: options.ModelPath,
    *,
    inputs: Samples,
    trials: Trials,
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
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="predict from gradients instead of measuring; the rank correlation with a few measurements is told",
            rich_help_panel=SELECT,
        ),
    ] = False,
    reporting: Reporting,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    images: ImageOptions,
) -> None:
    """What each layer costs when it alone is cut: quality, or fidelity without labels, by the fraction removed.

    What comes before a layer is computed once for all of its fractions. Without --limit 512 samples drawn from --data
    are used. With --state a second run continues where the first one stopped.
    """
    from prunecli.model import Dims
    from prunecli.pipeline.sensitivity import SensitivityOptions
    from prunecli.pipeline.sensitivity import sensitivity as run
    from prunecli.pipeline.subject import Execution

    dims, execution = Dims.parse(dim or (), input_shape or ()), Execution(provider or "cpu")
    wanted = SensitivityOptions(trials.trial_options(inputs.source(images), dims, execution), levels, fast)
    reporting.emit(run(model, wanted, reporting.progress()))
