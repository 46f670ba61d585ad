"""`prune inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.options import Format


def inspect(
    model: options.ModelPath,
    histogram: Annotated[
        bool,
        typer.Option("--histogram", help="draw |w| per weight, with the thresholds that zero 50, 70 and 90 %"),
    ] = False,
    nm: Annotated[
        str | None,
        typer.Option("--nm", metavar="N:M", help="say which weights already follow N:M, e.g. 2:4"),
    ] = None,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
) -> None:
    """What is in a model, what can be pruned, what cannot and why.

    Dynamic dimensions that --dim and --input-shape leave open are assumed: 1 for the batch, otherwise the
    sizes stated in the output.
    """
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.model import Dims
    from prunecli.pipeline.distribution import parse_nm
    from prunecli.pipeline.inspect import InspectOptions
    from prunecli.pipeline.inspect import inspect as run

    dims = Dims.parse(dim or (), input_shape or ())
    wanted = InspectOptions(dims, histogram, parse_nm(nm) if nm else None)
    emit(run(model, wanted, progress_for(no_progress)), format, report)
