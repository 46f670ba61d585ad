"""`prune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.images import reads_images
from prunecli.cli.options import Format

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions


@reads_images
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="the reference", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="the other model", show_default=False)],
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    batch_size: options.BatchSize = 32,
    limit: options.Limit = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="random inputs, without --data")] = 8,
    seed: options.Seed = 0,
    fail_if: options.FailIf = None,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    *,
    images: ImageOptions,
) -> None:
    """How far the outputs of two models lie apart on the same inputs.

    Without --data, on seeded random inputs. Inputs and outputs are matched by name, or by position where the
    names differ. Figures for --fail-if: max_abs, max_rel (largest difference over largest magnitude), cosine,
    snr_db, top1_agreement, each the worst over the outputs; OUTPUT.max_abs and so on for one output.
    """
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.evaluate.gates import raise_if_failed
    from prunecli.model import Dims
    from prunecli.pipeline.compare import CompareOptions
    from prunecli.pipeline.compare import compare as run
    from prunecli.pipeline.evaluate import DataOptions
    from prunecli.pipeline.subject import Execution

    wanted = CompareOptions(
        data=DataOptions.of(data, labels, label_column, limit, images),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        dims=Dims.parse(dim or (), input_shape or ()),
        execution=Execution(provider or "cpu", threads),
        gates=fail_if or (),
    )
    result = run(first, second, wanted, progress_for(no_progress))
    emit(result, format, report)
    raise_if_failed(result.gates)
