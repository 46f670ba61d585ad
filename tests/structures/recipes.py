"""How units are chosen, written shortly: plain widths unless the test is of widths."""

from __future__ import annotations

from typing import Any

from prunecli.structures.choose import UnitRecipe
from prunecli.structures.options import StructuredOptions
from prunecli.structures.target import Budget, Kind
from prunecli.structures.widths import Alignment


def unit_recipe(kind: Kind, target: float, widths: Alignment | None = None, **options: Any) -> UnitRecipe:
    """`options`: those of `prune structured`. A target above 1 is a count."""
    asked = StructuredOptions(ratio=0.5, **{"data": "what-was-measured.npz", **options})
    return UnitRecipe(Budget(kind, target, absolute=target > 1), asked, widths=widths or Alignment())
