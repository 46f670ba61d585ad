"""Where two models part: the first intermediate value of a cut model that differs from its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunecli.apply.cut_reference import FLOATS, Forced
from prunecli.apply.tolerance import differences
from prunecli.errors import PruneError
from prunecli.runtime import Session

PORTION = 1 << 28
"""Bytes of intermediate values that are held at once, of each side."""
LOOSER = 10.0
"""An intermediate value is told as different beyond so many times what an output is allowed."""


def first_difference(
    staged: Path,
    reference: bytes,
    nudged: Callable[[], Iterable[bytes]],
    forced: Forced,
    feed: Mapping[str, Any],
    relative: float,
) -> str | None:
    """`'VALUE' (OP NODE): what differs` for the first such value in the order of the graph; "" if there is none, None
    if they cannot be compared.

    Values that only one side has (bodies of functions, what a rewrite inserted) are not compared, nor those computed
    from shapes alone, which differ until they meet data.

    Args:
        reference: serialised, as are `nudged`, versions of it that differ by rounding, which show its noise.
    """
    cut = onnx.load(str(staged), load_external_data=False, format="protobuf")
    theirs = {name for node in onnx.load_from_string(reference).graph.node for name in node.output if name}
    shapes = _of_shapes(cut.graph)
    producers = {n: node for node in cut.graph.node for n in node.output if n in theirs and n not in shapes}

    def run(model: Path | bytes, names: list[str]) -> Mapping[str, Any]:
        found = Session.open(model, outputs=names, optimise=False).run(feed, names)
        return found if model is staged else {name: _less(found[name], forced, name) for name in names}

    for names in _portions([name for name in producers if _is_float(name, forced)], forced, feed):
        try:
            got, wanted = run(staged, names), run(reference, names)
            unsure = [name for name in names if _differs(got[name], wanted[name], (), relative * LOOSER)]
            others = [run(model, unsure) for model in nudged()] if unsure else []
        except PruneError:
            return None
        for name in unsure:
            problem = _differs(got[name], wanted[name], [other[name] for other in others], relative * LOOSER)
            if problem:
                node = producers[name]
                return f"{name!r} ({node.op_type} {node.name or 'without a name'}): {problem}"
    return ""


def _of_shapes(graph: onnx.GraphProto) -> set[str]:
    """Values computed from shapes and constants alone."""
    fixed, found = {tensor.name for tensor in graph.initializer}, set[str]()
    for node in graph.node:
        read = {name for name in node.input if name}
        if node.op_type in ("Shape", "Size") or (read & found and read <= found | fixed):
            found.update(node.output)
        elif read <= fixed:
            fixed.update(node.output)
    return found


def _portions(names: Sequence[str], forced: Forced, feed: Mapping[str, Any]) -> Iterator[list[str]]:
    """The values in their order, so many at a time as fit into the memory that one look may take."""
    usual = sum(math.prod(forced.shapes.get(name, ())) for name in feed)
    times = max(sum(np.size(value) for value in feed.values()) / max(usual, 1), 1.0)
    portion, held = list[str](), 0.0
    for name in names:
        size = 4 * math.prod(forced.shapes[name]) * times
        if portion and held + size > PORTION:
            yield portion
            portion, held = [], 0.0
        portion.append(name)
        held += size
    if portion:
        yield portion


def _is_float(name: str, forced: Forced) -> bool:
    return name in forced.shapes and forced.dtypes.get(name) in FLOATS


def _less(value: Any, forced: Forced, name: str) -> Any:
    for axis, gone in forced.positions.get(name, {}).items():
        value = np.delete(value, gone, axis)
    return value


def _differs(got: Any, wanted: Any, others: Sequence[Any], relative: float) -> str:
    """Where shapes differ an axis was cut that a plan cannot list: its length depends on dynamic dimensions."""
    arrays = isinstance(got, np.ndarray) and isinstance(wanted, np.ndarray)
    if not arrays or got.shape != wanted.shape:
        return ""
    (found,) = differences({"": got}, {"": wanted}, [{"": other} for other in others], relative)
    return "" if found.agrees else f"by {found.error:.2g} at a scale of {found.scale:.2g}"
