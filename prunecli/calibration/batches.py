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
    """Batches of feeds: layers are fitted on the first `fitted` of them, the others are held out. `spare`: batches that
    are fitted on as well where the held-out ones show a gain. `lanes`: batches that are worked on side by side.
    `influence`: at which positions layers are fitted."""

    feeds: Sequence[Mapping[str, Array]]
    fitted: int
    start: Opener = Session.open
    lanes: int = 1
    spare: Sequence[Mapping[str, Array]] = ()
    influence: Influence = EVERYWHERE

    @property
    def held(self) -> bool:
        return self.fitted < len(self.feeds)

    def places(self, use: Contraction, number: int, shape: Sequence[int]) -> Array:
        """The positions that count of a layer's output of that shape in a batch; spare ones come last."""
        feed = self.feeds[number] if number < len(self.feeds) else self.spare[number - len(self.feeds)]
        return self.influence.places(use.output, feed, use.positions(tuple(shape)))
