"""`--pack` of commands that zero weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.pipeline.pack import PackOptions
from prunecli.pipeline.pack_after import packed_after, packing, told
from prunecli.types import Progress

if TYPE_CHECKING:
    from prunecli.pipeline.magnitude import MagnitudeOptions, MagnitudeResult


def packed(
    run: Callable[..., MagnitudeResult], path: Path, target: Path, options: MagnitudeOptions, progress: Progress
) -> MagnitudeResult:
    """Prune, and train if asked, into a file elsewhere; what is written is that file packed."""
    assert options.pack
    once = replace(options, pack=None)
    if options.dry_run and options.retrain is not None:
        found = run(path, once, progress)
        return replace(found, notes=[*found.notes, "a dry run does not train, and so cannot pack"])
    check_target(load(path), None if options.dry_run else target, options.force, options)
    wanted = PackOptions(packing(options.pack), force=options.force, dry_run=options.dry_run, verify=options.verify,
                         external_data=options.external_data, dims=options.dims,
                         execution=options.execution)  # fmt: skip

    def make(place: Path) -> MagnitudeResult:
        return run(path, replace(once, output=place, dry_run=False), progress)

    found, small = packed_after(target, wanted, make, progress)
    return told(found, small, options.dry_run)
