"""What the commands that write zeros (magnitude, gradient, oneshot) take alike, as the options of the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunecli.pipeline.gradual import Retrain
    from prunecli.pipeline.magnitude import MagnitudeOptions
    from prunecli.pipeline.subject import Execution
    from prunecli.select import Recipe


def zeroing(
    given: Mapping[str, Any], recipe: Recipe | None, execution: Execution, retrain: Retrain | None
) -> MagnitudeOptions:
    """From a command's arguments by name, which are those of `options.py`; `also` is not every command's."""
    from prunecli.cli.output import draws
    from prunecli.model import Dims
    from prunecli.pipeline.magnitude import MagnitudeOptions
    from prunecli.pipeline.pack import Packing

    return MagnitudeOptions(
        recipe=recipe,
        include=tuple(given["include"] or ()),
        exclude=tuple(given["exclude"] or ()),
        also=tuple(given.get("also") or ()),
        dims=Dims.parse(given["dim"] or (), given["input_shape"] or ()),
        execution=execution,
        output=given["output"],
        force=given["force"],
        dry_run=given["dry_run"],
        verify=not given["no_verify"],
        plan=given["plan"],
        save_plan=given["save_plan"],
        external_data=given["external_data"].value,
        retrain=retrain,
        spreads=draws(given["report"]),
        pack=Packing() if given["pack"] else None,
    )
