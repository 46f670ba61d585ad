"""`prune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.images import reads_images
from prunecli.cli.shared import Reporting, Running, Samples, reports

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


@takes(inputs=Samples)
@reports
@reads_images
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="the reference", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="the other model", show_default=False)],
    *,
    inputs: Samples,
    batch_size: options.BatchSize = 32,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="random inputs, without --data")] = 8,
    seed: options.Seed = 0,
    fail_if: options.FailIf = None,
    reporting: Reporting,
    running: Running,
    images: ImageOptions,
) -> None:
    """How far the outputs of two models lie apart on the same inputs.

    Without --data, on seeded random inputs. Inputs and outputs are matched by name, or by position where the
    names differ. Figures for --fail-if: max_abs, max_rel (largest difference over largest magnitude), cosine,
    snr_db, top1_agreement, each the worst over the outputs; OUTPUT.max_abs and so on for one output.
    """
    from prunecli.evaluation.gates import raise_if_failed
    from prunecli.pipeline.compare import CompareOptions
    from prunecli.pipeline.compare import compare as run

    wanted = CompareOptions(
        data=inputs.source(images),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        dims=running.dims(),
        execution=running.execution(),
        gates=fail_if or (),
    )
    result = run(first, second, wanted, reporting.progress())
    reporting.emit(result)
    raise_if_failed(result.gates)
