"""Which positions of hidden values a model's outputs depend on: fits of layers leave the others out.

Sentences of different lengths are padded to one, and a mask keeps the padding out of attention and of the mean; a
classifier may read the first token of the last layer alone. At such positions the gradient of the outputs is exactly
zero. Where most tokens are padding, least squares over all positions would fit mostly what nobody reads.

Gradients of a few samples tell which rule holds, and the rule alone is asked afterwards: it costs nothing on the other
samples, and does not depend on how they are divided into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.importance import OutputGradients, some_of
from prunecli.calibration.layers import LinearLayer
from prunecli.errors import OutOfMemoryError, PruneError
from prunecli.runtime import Session

Feed = Mapping[str, Array]
BATCHES, SAMPLES = 4, 8
"""Batches, evenly spread, and samples of each, whose gradients are taken."""
ALL_POSITIONS = "layers are fitted at all positions, padding too"
"""What a note begins with where it is not known which positions count."""
PLUS = ((1,),)
"""One direction: that a random one is orthogonal to a gradient that is not zero does not happen."""


@dataclass(frozen=True)
class AtValue:
    """No output depends on the positions at which an integer input holds a value, such as 0 in a mask of attention."""

    input: str
    value: int

    def kept(self, feed: Feed, count: int) -> Array | None:
        """(count,) which positions of a batch count; None where the rule does not say."""
        given = np.asarray(feed[self.input])
        return given.reshape(-1) != self.value if given.size == count else None


@dataclass(frozen=True)
class AtPlaces:
    """Of every sample the same positions count: by `rows`, one for each number of positions that samples have."""

    rows: tuple[tuple[bool, ...], ...]

    def kept(self, feed: Feed, count: int) -> Array | None:
        """(count,) which positions of a batch count; None where the rule does not say."""
        samples = _samples(feed)
        row = next((row for row in self.rows if len(row) * samples == count), None)
        return None if row is None else np.tile(np.array(row), samples)


Rule = AtValue | AtPlaces


@dataclass(frozen=True)
class Influence:
    """`rules`: by the output of a layer, where some of its positions do not count. `unknown`: why it could not be found
    out."""

    rules: Mapping[str, Rule] = field(default_factory=dict)
    unknown: str | None = None

    @classmethod
    def of(
        cls, model: ir.Model, layers: Sequence[LinearLayer], feeds: Sequence[Feed], start: Callable[..., Session], *,
        seed: int = 0,
    ) -> Influence:  # fmt: skip
        """Of the outputs of layers of a model in working form whose channels lie along the last axis, so that positions
        are tokens. Of images and features that lie otherwise none is left out: a Relu may close all channels of a
        place, whose gradient is zero then though a fit could open it."""
        axes = {use.result: use.channel for layer in layers for use in layer.uses if use.channel == -1}
        if not axes or not feeds:
            return cls()
        some = some_of(model, feeds, BATCHES, samples=SAMPLES)
        gradients = OutputGradients(model, axes, start, signs=PLUS)
        found: dict[str, list[Array]] = {}
        try:
            for number, feed in enumerate(some):
                for name, (_, powers) in gradients.of(feed, np.random.default_rng([seed, number])).items():
                    found.setdefault(name, []).append(powers.reshape(-1) != 0)
        except OutOfMemoryError:
            raise
        except PruneError as error:
            return cls(unknown=error.message)
        rules = {name: _rule(kept, some) for name, kept in found.items()}
        return cls({name: rule for name, rule in rules.items() if rule is not None})

    @property
    def notes(self) -> list[str]:
        """Notes for the report."""
        return [f"{ALL_POSITIONS}: {self.unknown}"] if self.unknown else []

    def places(self, output: str, feed: Feed, count: int) -> Array:
        """Of so many positions of a layer's output in a batch, those that count, in ascending order."""
        rule = self.rules.get(output)
        kept = None if rule is None else rule.kept(feed, count)
        return np.arange(count) if kept is None else np.flatnonzero(kept)


EVERYWHERE = Influence()
"""All positions count."""


def _samples(feed: Feed) -> int:
    """Samples of a batch, which lie along the first axis of the first input that has one."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def _rule(kept: Sequence[Array], feeds: Sequence[Feed]) -> Rule | None:
    """The rule by which a gradient is not zero at the positions that are `kept`, and only there, in every batch."""
    if all(one.all() for one in kept) or not any(one.any() for one in kept):
        return None
    return _at_value(kept, feeds) or _at_places(kept, feeds)


def _at_value(kept: Sequence[Array], feeds: Sequence[Feed]) -> Rule | None:
    """Of several inputs that would do, the one of fewest values: that is a mask, the others may hold the value
    elsewhere, too."""
    rules: list[tuple[int, Rule]] = []
    for name, first in feeds[0].items():
        arrays = [np.asarray(feed[name]) for feed in feeds]
        if first.dtype.kind not in "iub" or any(a.size != one.size for a, one in zip(arrays, kept, strict=True)):
            continue
        left_out = np.concatenate([a.reshape(-1)[~one] for a, one in zip(arrays, kept, strict=True)])
        rule = AtValue(name, int(left_out[0]))
        if all(np.array_equal(a.reshape(-1) != rule.value, one) for a, one in zip(arrays, kept, strict=True)):
            rules.append((len(np.unique(np.concatenate([a.reshape(-1) for a in arrays]))), rule))
    return min(rules, key=lambda pair: pair[0])[1] if rules else None


def _at_places(kept: Sequence[Array], feeds: Sequence[Feed]) -> Rule | None:
    found: dict[int, list[Array]] = {}
    for one, samples in zip(kept, map(_samples, feeds), strict=True):
        if not samples or one.size % samples:
            return None
        found.setdefault(one.size // samples, []).extend(one.reshape(samples, -1))
    if found.keys() == {1}:  # one position of each sample: a sample whose features are all closed
        return None
    if any(len(rows) < 2 or not all((row == rows[0]).all() for row in rows) for rows in found.values()):
        return None
    return AtPlaces(tuple(tuple(map(bool, rows[0])) for rows in found.values()))
