"""`prune unpack`."""

from __future__ import annotations

from prunecli.cli import options
from prunecli.cli.options import ExternalData, Format


def unpack(
    model: options.ModelPath,
    output: options.OutputPath = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    external_data: options.ExternalDataOption = ExternalData.auto,
    no_verify: options.NoVerify = False,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Store the weights of a packed file densely again, bit for bit what was packed."""
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.model import Dims
    from prunecli.pipeline.pack import PackOptions
    from prunecli.pipeline.pack import unpack as run
    from prunecli.pipeline.subject import Execution

    wanted = PackOptions(
        output=output,
        force=force,
        dry_run=dry_run,
        verify=not no_verify,
        external_data=external_data.value,
        dims=Dims.parse(dim or (), input_shape or ()),
        execution=Execution(provider or "cpu", threads),
    )
    emit(run(model, wanted, progress_for(no_progress)), format, report)
