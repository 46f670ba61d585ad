"""`prune structured`: remove channels, neurons and heads, rewrite the graph, and prove that nothing else changed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.options.sizes import at_data
from prunecli.quantization.after import quantized_after, with_quantized
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
    if options.quantize is not None:
        found = _quantised(path, target, options, progress=progress)
        return replace(found, seconds=time.perf_counter() - start)
    if options.trains:
        return structured_and_trained(path, target, options, progress=progress, start=start)
    return decided_and_cut(path, target, options, progress=progress, start=start)


def _quantised(path: Path, target: Path, options: StructuredOptions, progress: Progress) -> StructuredResult:
    """Cut, and train if asked, into a temporary file; write that file quantised."""
    check_target(load(path), target, options)
    once = replace(options, quantize=None, test=None, timing=False, dry_run=False)

    def make(place: Path) -> StructuredResult:
        return structured(path, replace(once, output=place), progress)

    return with_quantized(*quantized_after(path, target, options, make=make, progress=progress))
