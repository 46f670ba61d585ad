"""Compare the inner values of two models in the order of the graph, to find where a difference begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunecli.errors import PruneError
from prunecli.runtime import Session
from prunecli.verify.outline import of_shapes
from prunecli.verify.tolerance import Feed, Outputs, differences

PORTION = 1 << 28
"""Most bytes of intermediate values that are held at once, of each side."""
LOOSER = 10.0
"""Factor between the tolerance of an intermediate value and that of an output."""


@dataclass(frozen=True)
class InnerValues:
    """The inner values of a result at `staged` and of its reference.

    `reference` is serialised, as are the models that `nudged` makes: versions that differ by rounding, which measure
    its noise. `aligned(name, value)`: a value of the reference as the result should have it. `shapes`: of all values of
    the reference, at the usual sizes of its inputs. `floats`: names of the values to compare. `relative`: tolerance of
    outputs. `given`: the result's feed for a feed of the reference.
    """

    staged: Path
    reference: bytes
    nudged: Callable[[], Iterable[bytes]]
    aligned: Callable[[str, Any], Any]
    shapes: Mapping[str, tuple[int, ...]]
    floats: Collection[str]
    relative: float
    given: Callable[[Feed], Feed] = lambda feed: feed

    def first_difference(self, feed: Feed) -> str | None:
        """`'VALUE' (OP NODE): what differs` for the first such value in the order of the graph; "" if there is none,
        None if they cannot be compared.

        Values that only one side has (bodies of functions, what a rewrite inserted) are not compared, nor those
        computed from shapes alone, which differ until they meet data.
        """
        producers = self._producers()
        for names in self._portions([name for name in producers if name in self.floats], feed):
            try:
                problems = self._problems(names, feed)
            except PruneError:
                return None
            for name, problem in problems.items():
                node = producers[name]
                return f"{name!r} ({node.op_type} {node.name or 'without a name'}): {problem}"
        return ""

    def _producers(self) -> dict[str, onnx.NodeProto]:
        """The node of the result behind each value that both sides have."""
        graph = onnx.load(str(self.staged), load_external_data=False, format="protobuf").graph
        theirs = {name for node in onnx.load_from_string(self.reference).graph.node for name in node.output if name}
        shapes = of_shapes(graph.node, (tensor.name for tensor in graph.initializer))
        return {n: node for node in graph.node for n in node.output if n in theirs and n not in shapes}

    def _problems(self, names: Sequence[str], feed: Feed) -> dict[str, str]:
        """Return the differences by value, in the order of `names`. The noise of the reference is measured where a
        value differs."""
        got = _values(self.staged, names, self.given(feed))
        wanted = self._wanted(self.reference, names, feed)
        unsure = [name for name in names if self._differs(got[name], wanted[name], ())]
        others = [self._wanted(model, unsure, feed) for model in self.nudged()] if unsure else []
        found = {name: self._differs(got[name], wanted[name], [other[name] for other in others]) for name in unsure}
        return {name: problem for name, problem in found.items() if problem}

    def _wanted(self, model: bytes, names: Sequence[str], feed: Feed) -> Outputs:
        return {name: self.aligned(name, value) for name, value in _values(model, names, feed).items()}

    def _differs(self, got: Any, wanted: Any, others: Sequence[Any]) -> str:
        """Return how two values differ. Where shapes differ, an axis of dynamic length was cut, which a plan cannot
        list."""
        arrays = isinstance(got, np.ndarray) and isinstance(wanted, np.ndarray)
        if not arrays or got.shape != wanted.shape:
            return ""
        (found,) = differences(
            {"": got}, {"": wanted}, [{"": other} for other in others], relative=self.relative * LOOSER
        )
        return "" if found.agrees else f"by {found.error:.2g} at a scale of {found.scale:.2g}"

    def _portions(self, names: Sequence[str], feed: Feed) -> Iterator[list[str]]:
        """Yield the values in their order, as many at a time as fit into PORTION."""
        usual = sum(math.prod(self.shapes.get(name, ())) for name in feed)
        times = max(sum(np.size(value) for value in feed.values()) / max(usual, 1), 1.0)
        portion, held = list[str](), 0.0
        for name in names:
            size = 4 * math.prod(self.shapes[name]) * times
            if portion and held + size > PORTION:
                yield portion
                portion, held = [], 0.0
            portion.append(name)
            held += size
        if portion:
            yield portion


def _values(model: Path | bytes, names: Sequence[str], feed: Feed) -> Outputs:
    return Session.open(model, outputs=names, mode="plain").run(feed, names)
