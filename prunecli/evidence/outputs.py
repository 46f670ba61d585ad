"""How far the outputs of a changed model lie from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.evidence.walk import Walk

Array = np.ndarray[Any, Any]
_TINY = float(np.finfo(float).tiny)


def logits(outputs: Sequence[ir.Value]) -> list[str]:
    """The floating-point outputs; of a final Softmax or Sigmoid what it reads, which does not saturate."""
    names = []
    for value in outputs:
        node = value.producer()
        seen = node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and node.inputs[0] is not None
        inner = node.inputs[0] if seen and node is not None else value
        if value.dtype is None or value.dtype.is_floating_point():
            names.append((inner.name if inner is not None else value.name) or "")
    return list(dict.fromkeys(names))


def outputs_ahead(walk: Walk, names: Sequence[str], contents: Mapping[str, Array] | None = None) -> list[Array]:
    """Each value over all batches as one float64 vector; see `Walk.ahead`."""
    runs = list(walk.ahead(names, contents or {}))
    return [np.concatenate([np.asarray(run[name], np.float64).reshape(-1) for run in runs]) for name in names]


def relative_error(reference: Sequence[Array], outputs: Sequence[Array]) -> float:
    """The mean over outputs of sum (y' - y)^2 / sum (y - mean y)^2, or / sum y^2 where y does not vary; 1e6 at most."""
    ratios = []
    for y, other in zip(reference, outputs, strict=True):
        spread, energy = float(np.square(y - y.mean()).sum()), float(np.square(y).sum())
        scale = spread if spread > 1e-9 * energy else energy
        wrong = float(np.square(other - y).sum())
        ratios.append(min(wrong / scale, 1e6) if np.isfinite(wrong) and scale > _TINY else 1e6 * (wrong != 0))
    return float(np.mean(ratios)) if ratios else 0.0
