"""How far the outputs of a changed model lie from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.evidence.walk import Walk
from prunecli.model.preserve import is_tensor

Array = np.ndarray[Any, Any]
RUINED = 1e9
"""The error of outputs that are no longer finite, or have another size."""
_TINY = float(np.finfo(float).tiny)
_HIDING = ("Softmax", "LogSoftmax", "Sigmoid", "Identity")


def looked_at(outputs: Sequence[ir.Value]) -> list[str]:
    """The values whose change counts: computed floats. Of outputs that are none (classes, indices, maps), the floats
    they are made from; before a Softmax or Sigmoid, which would hide a change."""
    names: dict[str, None] = {}
    stack, seen = list(reversed(outputs)), set()
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type in _HIDING or not _is_float(value):
            stack.extend(v for v in reversed(node.inputs) if v is not None)
        elif value.name:
            names[value.name] = None
    return list(names)


def _is_float(value: ir.Value) -> bool:
    return is_tensor(value) and (value.dtype is None or value.dtype.is_floating_point())


def outputs_ahead(walk: Walk, names: Sequence[str], contents: Mapping[str, Array] | None = None) -> list[Array]:
    """Each value over all batches as one float64 vector; see `Walk.ahead`."""
    runs = [run for (run,) in walk.ahead(names, [contents or {}])]
    return [np.concatenate([np.asarray(run[name], np.float64).reshape(-1) for run in runs]) for name in names]


def relative_error(wanted: Array, found: Array) -> float:
    """sum (y' - y)^2 / sum (y - mean y)^2 where the wanted y is finite, or / sum y^2 where it does not vary; `RUINED`
    at most."""
    if found.shape != wanted.shape:
        return RUINED
    y = np.asarray(wanted, np.float64)
    finite = np.isfinite(y)
    y, other = y[finite], np.asarray(found, np.float64)[finite]
    if not y.size:
        return 0.0
    spread, energy = float(np.square(y - y.mean()).sum()), float(np.square(y).sum())
    scale = spread if spread > 1e-9 * energy else energy
    wrong = float(np.square(other - y).sum())
    return min(wrong / scale, RUINED) if np.isfinite(wrong) and scale > _TINY else RUINED * (wrong != 0)


def mean_error(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """`relative_error` averaged over the outputs."""
    return float(np.mean([relative_error(*pair) for pair in zip(wanted, found, strict=True)])) if wanted else 0.0
