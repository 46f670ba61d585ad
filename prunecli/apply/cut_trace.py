"""Where two models part: the first intermediate value of a cut model that differs from its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunecli.apply.cut_reference import FLOATS, Forced
from prunecli.apply.tolerance import differences
from prunecli.errors import PruneError
from prunecli.runtime import Session

LOOSER = 10.0
"""An intermediate value is told as different beyond so many times what an output is allowed."""


def first_difference(
    staged: Path, references: Sequence[bytes], forced: Forced, feed: Mapping[str, Any], relative: float
) -> str | None:
    """`'VALUE' (OP NODE): what differs` for the first such value in the order of the graph; "" if there is none, None
    if they cannot be compared.

    Values that only one side has (bodies of functions, what a rewrite inserted) are not compared.

    Args:
        references: the reference, serialised, and versions of it that differ by rounding, which show its noise.
    """
    cut = onnx.load(str(staged), load_external_data=False)
    theirs = {name for node in onnx.load_from_string(references[0]).graph.node for name in node.output if name}
    names = [n for node in cut.graph.node for n in node.output if n in theirs and _is_float(n, forced)]
    try:
        got = Session.open(staged, outputs=names, optimise=False).run(feed, names)
        wanted, *others = (Session.open(model, outputs=names, optimise=False).run(feed, names) for model in references)
    except PruneError:
        return None
    producers = {name: node for node in cut.graph.node for name in node.output}
    for name in names:
        values = [_less(run[name], forced, name) for run in (wanted, *others)]
        problem = _differs(got[name], values[0], values[1:], relative * LOOSER)
        if problem:
            node = producers[name]
            return f"{name!r} ({node.op_type} {node.name or 'without a name'}): {problem}"
    return ""


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
