"""`prune structured`: remove channels, neurons and heads, rewrite the graph, and prove that nothing else changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prunecli.evaluation.passes import at_data
from prunecli.structures.carry_out import StructuredResult, decided_and_cut, default_output
from prunecli.structures.gradual import structured_and_trained
from prunecli.structures.options import StructuredOptions
from prunecli.types import Progress, no_progress


def structured(
    model: str | Path, options: StructuredOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> StructuredResult:
    """Cut a model by structure and save it with proof. `changes` override fields of `options`:
    `structured("model.onnx", macs="50%", data="calib.npz")`.

    Raises:
        GateFailed: no model within the limits is as fast as asked.
        PruneError: the file or an option is unusable, nothing can be cut, or the cut cannot be proved; then
            nothing is written.
    """
    start, options = time.perf_counter(), StructuredOptions.of(options, **changes)
    path = Path(model)
    target = options.output or default_output(path)
    if options.plan is None:
        options = at_data(path, options)
    if options.trains:
        return structured_and_trained(path, target, options, progress, start)
    return decided_and_cut(path, target, options, progress, start)
