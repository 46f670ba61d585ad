"""What the commands that write zeros (magnitude, gradient, oneshot) take alike, as the options of the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.shared import Reporting, Running, Saving
from prunecli.errors import PruneError

if TYPE_CHECKING:
    from prunecli.pipeline.gradual import Retrain
    from prunecli.pipeline.magnitude import MagnitudeOptions
    from prunecli.select import Recipe


@dataclass(frozen=True)
class Zeroed(Saving):
    """A file with zeros, and the plan of what they are."""

    pack: options.Pack = False
    plan: options.Plan = None
    save_plan: options.SavePlan = None

    def recipe(
        self, pattern: str, scope: str | None, criterion: str | None, sparsity: float | None, threshold: float | None,
        seed: int, *others: Any,
    ) -> Recipe | None:  # fmt: skip
        """None with --plan.

        Raises:
            PruneError: something is asked for besides a plan (`others`: what else would be).
        """
        from prunecli.select import Recipe

        if self.plan is None:
            return Recipe(pattern, scope, criterion, sparsity, threshold, seed)
        if pattern != "element" or any(v not in (None, []) for v in (scope, criterion, sparsity, threshold, *others)):
            raise PruneError("--plan fixes what is zeroed", "leave out the options under Selection")
        return None

    def magnitude_options(
        self, reporting: Reporting, running: Running, recipe: Recipe | None, retrain: Retrain | None,
        include: Sequence[str] | None, exclude: Sequence[str] | None, also: Sequence[str] | None = None,
    ) -> MagnitudeOptions:  # fmt: skip
        from prunecli.cli.output import draws
        from prunecli.pipeline.magnitude import MagnitudeOptions
        from prunecli.pipeline.pack import Packing

        return MagnitudeOptions(
            recipe=recipe,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            also=tuple(also or ()),
            dims=running.dims(),
            execution=running.execution(),
            plan=self.plan,
            save_plan=self.save_plan,
            retrain=retrain,
            spreads=draws(reporting.report),
            pack=Packing() if self.pack else None,
            **self.fields(),
        )


zeroes = takes(saving=Zeroed)
"""Gives a command that writes zeros its `saving: Zeroed`."""
