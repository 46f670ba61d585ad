"""The samples that layers are fitted on, and those that judge the fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunecli.arrays import Array
from prunecli.calibration.influence import EVERYWHERE, Influence
from prunecli.calibration.layerwise import Opener
from prunecli.operators import Contraction
from prunecli.runtime import Session


@dataclass(frozen=True)
class CalibrationBatches:
    """Batches of feeds: layers are fitted on the first `fitted` of them, the others are held out. `lanes`: batches that
    are worked on side by side. `influence`: at which positions layers are fitted."""

    feeds: Sequence[Mapping[str, Array]]
    fitted: int
    start: Opener = Session.open
    lanes: int = 1
    influence: Influence = EVERYWHERE

    @property
    def held(self) -> bool:
        return self.fitted < len(self.feeds)

    def places(self, use: Contraction, number: int, shape: Sequence[int]) -> Array:
        """The positions that count of a layer's output of that shape in a batch."""
        return self.influence.places(use.output, self.feeds[number], use.positions(tuple(shape)))
