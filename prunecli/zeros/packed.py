"""`--pack` of commands that zero weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.packing.after import pack_options, packed_after, told
from prunecli.types import Progress
from prunecli.zeros.options import ZeroingOptions

if TYPE_CHECKING:
    from prunecli.zeros.result import MagnitudeResult


def packed(
    run: Callable[[Path, ZeroingOptions], MagnitudeResult], path: Path, target: Path, options: ZeroingOptions,
    progress: Progress,
) -> MagnitudeResult:  # fmt: skip
    """Prune, and train if asked, into a file elsewhere; what is written is that file packed."""
    once = replace(options, pack=False)
    if options.dry_run and options.trains:
        found = run(path, once)
        return replace(found, notes=[*found.notes, "a dry run does not train, and so cannot pack"])
    check_target(load(path), None if options.dry_run else target, options.force, options)

    def make(place: Path) -> MagnitudeResult:
        return run(path, replace(once, output=place, dry_run=False))

    found, small = packed_after(target, pack_options(options), make, progress)
    return told(found, small, options.dry_run)
