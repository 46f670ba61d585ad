"""`prune unpack`."""

from __future__ import annotations

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.shared import Reporting, Running, Saving, reports


@takes(saving=Saving)
@reports
def unpack(
    model: options.ModelPath,
    *,
    saving: Saving,
    reporting: Reporting,
    running: Running,
) -> None:
    """Store the weights of a packed file densely again, bit for bit what was packed."""
    from prunecli.pipeline.pack import PackOptions
    from prunecli.pipeline.pack import unpack as run

    wanted = PackOptions(dims=running.dims(), execution=running.execution(), **saving.fields())
    reporting.emit(run(model, wanted, reporting.progress()))
