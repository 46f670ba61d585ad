"""What is searched over: a space of settings, and how the chosen one is saved with proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from prunecli.search.space import Proxy, Setting, Space, SpaceRecipe
from prunecli.structures.carry_out import StructuredResult
from prunecli.types import Json, Progress, Skipped
from prunecli.zeros.result import MagnitudeResult

Result = MagnitudeResult | StructuredResult


@dataclass(frozen=True)
class PrunerOutput:
    """How the final model is written; see `MagnitudeOptions`."""

    target: Path
    force: bool = False
    dry_run: bool = False
    verify: bool = True
    external_data: Literal["auto", "always", "never"] = "auto"
    save_plan: Path | None = None
    spreads: bool = False


class Pruner(Protocol):
    """A space with a name, and a way to save its settings. `identity`: of all that decides what a setting means.
    `goals`: what can be minimised, the default first."""

    @property
    def recipe(self) -> SpaceRecipe: ...
    @property
    def space(self) -> Space: ...
    @property
    def identity(self) -> str: ...
    @property
    def goals(self) -> tuple[str, ...]: ...
    @property
    def skipped(self) -> list[Skipped]: ...
    @property
    def criterion(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def proxy(self, progress: Progress) -> Proxy:
        """Damage predicted from gradients.

        Raises:
            PruneError: an operator has no gradient.
        """
        ...

    def finish(self, setting: Setting, said: Json, saving: PrunerOutput, progress: Progress) -> Result:
        """Prune the user's file by a setting and save it with proof. `said`: recorded in it."""
        ...

    def cut_further(
        self, trained: Path, gone: Setting, setting: Setting, saving: PrunerOutput, progress: Progress
    ) -> Result:
        """As `finish`, of what training made of a cut by the gentler setting `gone`, which stays gone."""
        ...
