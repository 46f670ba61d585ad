"""`--pack` of the commands that write zeros: `prune pack` stores their result before the file appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.loading import file_sha256
from prunecli.model.saving import SaveOptions, save
from prunecli.options.groups import Written
from prunecli.packing.options import PackOptions
from prunecli.packing.pack import NothingSmaller, PackResult, pack
from prunecli.types import FileRef, Progress

Made = TypeVar("Made")
Pruned = TypeVar("Pruned")


def pack_options(options: Written) -> PackOptions:
    """Return the options of `--pack`: those of `prune pack` by default."""
    own = {one.name for one in fields(options)} - {"format", "include", "exclude", "report"}
    known = {one.name for one in fields(PackOptions)} & own
    return PackOptions(**{name: getattr(options, name) for name in known})


@dataclass(frozen=True)
class Small:
    """The packed file. `packed`: None where nothing would be smaller; then it is stored as it is."""

    packed: PackResult | None = None
    output: FileRef | None = None
    notes: Sequence[str] = ()


def packed_after(
    target: Path, options: PackOptions, make: Callable[[Path], Made], progress: Progress
) -> tuple[Made, Small]:
    """Pack what `make(place)` wrote to `target`. `options.output` is ignored."""
    with Scratch() as folder:
        place = folder / target.name
        made = make(place)
        try:
            found = pack(place, replace(options, output=target), progress)
            return made, Small(found, found.output, found.notes)
        except NothingSmaller as error:
            why = error.message.replace(str(place), "it")
            if not options.dry_run:
                save(load(place), target, SaveOptions(options.external_data, options.force))
    output = None if options.dry_run else FileRef(str(target), file_sha256(target))
    return made, Small(None, output, (f"not packed, it is stored as it is: {why}",))


def with_packed(done: Pruned, small: Small, dry_run: bool) -> Pruned:
    """Return the result of a pruning command with the packed file in place of its own."""
    found: Any = done
    after = found.after if small.packed is None else replace(small.packed.after, macs=found.after.macs)
    told = replace(found, output=small.output, after=after, packed=small.packed, notes=[*found.notes, *small.notes],
                   dry_run=dry_run)  # fmt: skip
    return cast("Pruned", told)
