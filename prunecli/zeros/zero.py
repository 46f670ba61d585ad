"""Zeroing weights of a model while it is saved, tensor by tensor: no mask outlives its tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.float_keys import count_nonzero
from prunecli.masks.decide import ByBits, Decision, Target
from prunecli.model import Weight
from prunecli.model.floating import as_stored, stored_as
from prunecli.storage.stored import unmap


@dataclass
class Zeroed:
    """A weight, what becomes of it, and how many of its elements are not zero before and after.

    `original` is of the model's floating-point form: `stored` is what the file stores of it, which may be integers.
    The counts are those that choosing has taken, else taken from the values when the decision is first applied
    (when they are asked for, or while saving).
    """

    weight: Weight
    decision: Decision
    original: ir.TensorProtocol
    counts: tuple[int, int] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.counts is None:
            self.counts = _known(self.decision, self.original.size)

    @property
    def nonzero_before(self) -> int:
        return self._counted()[0]

    @property
    def nonzero_after(self) -> int:
        return self._counted()[1]

    @property
    def size(self) -> int:
        return self.original.size

    def _counted(self) -> tuple[int, int]:
        if self.counts is None:
            self.measure()
        assert self.counts is not None
        return self.counts

    def values(self) -> Array:
        """The stored values before zeroing; call `release` when done with a large tensor."""
        return np.asarray(self.original.numpy())

    def release(self) -> None:
        unmap(self.original)

    @property
    def stored(self) -> ir.TensorProtocol:
        """The original as the file stores it."""
        return as_stored(self.original)

    def expected(self, array: Array) -> Array:
        """What `array`, as it is stored, must have become, by `numpy.where` alone: integers are zero at the zero point
        and stand for fitted values by the scales that are there."""
        source = stored_as(self.original)
        if source is None:
            return self._expected(array)
        if self.decision.values is not None:
            return source.write(self._expected(source.array()))
        return source.zeroed(self.decision.drop(source.array()))

    def _expected(self, array: Array) -> Array:
        """The same of floating-point values."""
        values = self.decision.values
        kept = array if values is None else values
        return np.where(self.decision.drop(array), np.zeros((), array.dtype), kept)

    def pruned(self, array: Array) -> Array:
        """`array`, the stored values, with the chosen elements zero."""
        result = self.decision.apply(array)
        if self.counts is None:
            self.counts = count_nonzero(array), count_nonzero(result)
        return result

    def measure(self) -> None:
        """Take the counts without keeping the result."""
        self.pruned(self.values())
        self.release()


def _known(decision: Decision, size: int) -> tuple[int, int] | None:
    """Elements that are not zero before and after, where the cut already says so."""
    if not isinstance(decision, ByBits):
        return None
    cut = decision.cut
    return cut.nonzero, size - cut.dropped if cut.key else cut.nonzero  # below key 0 there is nothing


def target_of(weight: Weight, evidence: Array | None = None) -> Target:
    """A weight as `decide` sees it: its stored values now, whatever later replaces them. `evidence`: of its shape."""
    tensor = weight.tensor
    return Target(
        name=weight.name,
        shape=weight.shape,
        dtype=tensor.dtype.numpy(),
        load=lambda: np.asarray(tensor.numpy()),
        release=lambda: unmap(tensor),
        canonical=weight.layout.canonical,
        restore=weight.layout.restore,
        evidence=None if evidence is None else lambda: weight.layout.canonical(evidence),
    )


def zero(zeroed: Sequence[Zeroed]) -> None:
    """Put the zeroed weights in the model's place of the old ones, to be computed when they are read.

    Every consumer of a shared weight sees it zeroed. Nothing is computed here.
    """
    for one in zeroed:
        one.weight.replace(one.pruned)
