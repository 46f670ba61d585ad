"""`--shrink` of the commands that make zeros: what they write goes through `prune shrink` before it appears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.loading import file_sha256
from prunecli.model.saving import SaveOptions, save
from prunecli.options.groups import Written
from prunecli.shrinking.options import ShrinkOptions
from prunecli.shrinking.result import ShrinkResult
from prunecli.shrinking.shrink import shrink
from prunecli.types import FileRef, Progress

TAKEN = ("dry_run", "external_data", "verify", "dim", "input_shape", "provider", "threads", "seed")
"""Options of a command that its last step has, too."""
Made = TypeVar("Made")
Pruned = TypeVar("Pruned")


def shrunk_after(
    target: Path, options: Written, make: Callable[[Path], Made], progress: Progress
) -> tuple[Made, ShrinkResult, FileRef | None]:
    """Shrink the file that `make(place)` writes to `target`; move it there as it is where nothing can go."""
    own = {one.name for one in fields(options)}
    taken = {name: getattr(options, name) for name in TAKEN if name in own}
    with Scratch() as folder:
        place = folder / target.name
        made = make(place)
        found = shrink(place, ShrinkOptions(output=target, force=options.force, **taken), progress)
        if found.removed.nothing and not found.dry_run:
            save(load(place), target, SaveOptions(options.external_data, options.force))
    return made, found, None if found.dry_run else FileRef(str(target), file_sha256(target))


def with_shrunk(done: Pruned, found: ShrinkResult, output: FileRef | None) -> Pruned:
    """The result of a command that prunes, of the file that it became."""
    made: Any = done
    told: dict[str, Any] = {"output": output, "shrunk": found, "dry_run": found.dry_run}
    if not found.removed.nothing:
        proof = replace(made.verification, detail=f"before empty units went, {made.verification.detail}")
        told |= {"after": found.after, "verification": proof}
    return cast("Pruned", replace(made, **told))
