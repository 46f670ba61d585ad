"""Recovery without data: the weights that read a removed unit are added to those of the kept unit that predicts it best
(model folding).

From the covariances that `calibration/gaussian.py` propagates through the model, x_r is approximately s x_k + t: k is
the kept unit that explains most of the variance of r, s = Cov[r, k] / Var[k], t = E[r] - s E[k]. The weights that read
r are added to those of k, times s; constants go into the offset; outputs with less variance than before are scaled up,
by MOST at most. Layers that read values of unknown moments are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, without
from prunecli.calibration.gaussian import ChannelMoments, channel_moments, read_moments, taps_of, variance_of
from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.reconstruct.refit import LayerFit

MOST = 1.5
_TINY = 1e-20


def fold(original: ir.Model, cut: ir.Model, removed: Mapping[str, Mapping[int, Array]]) -> list[LayerFit]:
    """Fold the layers of `cut`, in place. The errors of the result are shares of the variance of a layer's outputs, as
    the model of the data has it.

    Args:
        original: in working form.
        cut: a copy of it without the positions `removed` (of every value, by its name).
    """
    moments, done = channel_moments(original), list[LayerFit]()
    before = {layer.output: layer for layer in refittable(original)[0]}
    for layer in refittable(cut)[0]:
        old = before.get(layer.output)
        if old is None or old.shape[0] != 1 or layer.shape[0] != 1 or old.shape[3] == layer.shape[3]:
            continue
        rows, cols = (_kept(old, layer, removed, axis=axis) for axis in (1, 3))
        if (read := read_moments(old, moments.get(old.found.data))) is not None:
            done.append(_fold_layer(layer, cut.graph, taps_of(old)[0, rows], cols=cols, moments=read))
    return done


def _kept(old: LinearLayer, layer: LinearLayer, removed: Mapping[str, Mapping[int, Array]], axis: int) -> Array:
    """Return the kept rows (axis 1) or columns (3) of a layer."""
    shape = [1, 1, 1, 1]
    shape[axis] = old.shape[axis]
    labels = np.broadcast_to(np.arange(old.shape[axis]).reshape(shape), old.shape)
    stored = old.weight.layout.restore(np.ascontiguousarray(labels))
    found = layer.weight.layout.canonical(without(stored, removed.get(old.weight.holder.name, {})))
    return np.asarray(found[0, :, 0, 0] if axis == 1 else found[0, 0, 0, :])


def _fold_layer(layer: LinearLayer, graph: ir.Graph, whole: Array, cols: Array, moments: ChannelMoments) -> LayerFit:
    gone = np.setdiff1d(np.arange(whole.shape[2]), cols)
    stays = ChannelMoments(moments.mean[cols], moments.covariance[np.ix_(cols, cols)])
    shared = moments.covariance[np.ix_(gone, cols)]
    best = np.argmax(shared**2 / np.maximum(stays.variance, _TINY), axis=1)
    places = np.arange(len(gone)), best
    scale = np.zeros_like(shared)
    scale[places] = shared[places] / np.maximum(stays.variance[best], _TINY)
    folded = whole[:, :, cols] + whole[:, :, gone] @ scale
    wanted, left = variance_of(whole, moments), variance_of(folded, stays)
    free = layer.offset is not None
    factor = np.clip(np.sqrt(wanted / np.maximum(left, _TINY)), 1, MOST) if free else np.ones(len(folded))
    new = folded * factor[:, None, None]
    constant = whole.sum(axis=1) @ moments.mean - new.sum(axis=1) @ stays.mean
    layer.put(graph, new.reshape(1, len(new), -1), layer.constant() + constant[None])
    errors = [_error(whole, cols, weights, moments=moments) for weights in (whole[:, :, cols], folded)]
    name = layer.node.name or layer.output
    return LayerFit(name, layer.name, "fold", ridge=None, error_before=errors[0], error_after=errors[1])


def _error(whole: Array, cols: Array, weights: Array, moments: ChannelMoments) -> float:
    """Return the changed share of the variance of all outputs."""
    off = whole.copy()
    off[:, :, cols] -= weights
    return float(variance_of(off, moments).sum() / max(variance_of(whole, moments).sum(), _TINY))
