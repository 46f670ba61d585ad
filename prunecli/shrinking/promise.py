"""What a shrunk model owes to its original: for which inputs, and which part of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Feed = Mapping[str, Any]
Outputs = Mapping[str, Any]


class Runnable(Protocol):
    """A model that can be run."""

    def run(self, feed: Feed) -> Outputs: ...


@dataclass(frozen=True)
class InterfaceChange:
    """One change of what a model takes or gives.

    `feed`: the changed model's inputs for those of the original. `outputs`: what it gives, from what the original does.
    `asked`: what the original is asked instead, where the changed model takes several inputs for one (ids that went).
    """

    feed: Callable[[Feed], Feed] = lambda feed: feed
    outputs: Callable[[Outputs], Outputs] = lambda outputs: outputs
    asked: Callable[[Feed], Feed] = lambda feed: feed


@dataclass(frozen=True)
class Expected:
    """The original, with the changes that were asked for made to its inputs and outputs."""

    original: Runnable
    changes: Sequence[InterfaceChange] = field(default_factory=list)

    def run(self, feed: Feed) -> Outputs:
        for change in self.changes:
            feed = change.asked(feed)
        outputs: Outputs = self.original.run(feed)
        for change in self.changes:
            outputs = change.outputs(outputs)
        return outputs


@dataclass(frozen=True)
class Adapted:
    """The changed model, which is given inputs of the original."""

    changed: Runnable
    changes: Sequence[InterfaceChange] = field(default_factory=list)

    def run(self, feed: Feed) -> Outputs:
        for change in self.changes:
            feed = change.feed(feed)
        return self.changed.run(feed)
