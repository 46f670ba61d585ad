"""Penalties that push weights towards removable structures, added to the gradient: s dR/dw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.recover.parameters import Parameter, Parameters

Array = np.ndarray[Any, Any]
Penalty = Callable[[Parameter, Array], "Array | None"]
PENALTIES: dict[str, Penalty] = {}
_TINY = 1e-12


def penalty(name: str) -> Callable[[Penalty], Penalty]:
    """Register dR/dw: `function(parameter, array)` returns an array of its shape, or None if it does not apply."""

    def add(function: Penalty) -> Penalty:
        PENALTIES[name] = function
        return function

    return add


@penalty("l1")
def l1(parameter: Parameter, w: Array) -> Array | None:
    """R = sum |w| over matrices and kernels; dR/dw = sign(w) (Tibshirani 1996)."""
    return np.sign(w) if parameter.kind == "weight" else None


@penalty("group-lasso")
def group_lasso(parameter: Parameter, w: Array) -> Array | None:
    """R = sum over output rows of sqrt(d) |w_row|_2, d elements a row; dR/dw = sqrt(d) w / |w_row|
    (Yuan and Lin 2006; Wen et al. 2016)."""
    if parameter.kind != "weight":
        return None
    layout = parameter.weight.layout
    rows = layout.canonical(w)  # (batch, rows, taps, columns)
    norm = np.sqrt(np.square(rows).sum(axis=(2, 3), keepdims=True))
    scaled = rows * (np.sqrt(rows.shape[2] * rows.shape[3]) / np.maximum(norm, _TINY))
    return np.asarray(layout.restore(scaled))


@penalty("bn-l1")
def bn_l1(parameter: Parameter, w: Array) -> Array | None:
    """R = sum |gamma| over the scales of BatchNormalization; dR/dw = sign(gamma) (Liu et al. 2017)."""
    return np.sign(w) if parameter.is_batch_norm_scale else None


def add_penalty(name: str, strength: float, parameters: Parameters) -> None:
    """Add s dR/dw to the gradients.

    Raises:
        PruneError: the penalty applies to no trained tensor.
    """
    applied = False
    for parameter in parameters.items:
        slope = PENALTIES[name](parameter, parameters.value(parameter))
        if slope is not None:
            gradient = parameters.gradient(parameter)
            gradient += np.float32(strength) * slope
            applied = True
    if not applied:
        raise PruneError(f"--regularize {name} applies to no trained tensor", "bn-l1 needs BatchNormalization nodes")
