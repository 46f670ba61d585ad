"""Means and covariances of a model's channels without data: Gaussians are carried through the layers.

The channels of a value are described by one mean and covariance, the same at all places. Inputs have mean 0, variance 1
and the correlation ALIKE. A layer maps moments linearly; what the taps of a kernel read correlates by `rho`. Where a
BatchNormalization has stored moments, means and variances are these, and `rho` is the one that fits them best. An
element-wise function f maps a Gaussian by its Hermite coefficients c_n = E[f(m + s z) He_n(z)] / sqrt(n!):
E[f] = c_0, Cov[f_i, f_j] = sum over n >= 1 of c_n(i) c_n(j) r_ij^n, r the correlations. Summands count as independent,
and so do the parts of a concatenation. Nothing is known behind other operators (products, attention, ...) up to the
next BatchNormalization, whose layer is then taken to read independent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.model.constants import behind

Array = np.ndarray[Any, Any]
ALIKE = 0.8
"""The correlation of the channels of an input, about that of colours."""
RHO = 0.5
"""The correlation of neighbouring places, where nothing tells it."""
TERMS = 12
_TINY = 1e-20
_SAME = ("Identity", "Cast", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")


@dataclass(frozen=True)
class ChannelMoments:
    """`mean` (channels,), `covariance` (channels, channels)."""

    mean: Array
    covariance: Array

    @property
    def variance(self) -> Array:
        return np.asarray(np.maximum(np.diag(self.covariance), 0))

    @classmethod
    def independent(cls, count: int) -> ChannelMoments:
        return cls(np.zeros(count), np.eye(count))


def channel_moments(work: ir.Model) -> dict[str, ChannelMoments]:
    """Of every value that linear layers, BatchNormalizations, sums and element-wise functions make, by its name.

    Args:
        work: in working form.
    """
    layers = {layer.node: layer for layer in refittable(work)[0] if layer.shape[0] == 1 or layer.node.op_type == "Conv"}
    found: dict[str, ChannelMoments] = {}
    for value in work.graph.inputs:
        if value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[1], int):
            count = value.shape[1]
            covariance = (1 - ALIKE) * np.eye(count) + ALIKE
            found[value.name or ""] = ChannelMoments(np.zeros(count), covariance)
    for node in work.graph:
        made = _through_layer(layers[node], found) if node in layers else _through(node, found)
        if made is not None and node.outputs:
            found[node.outputs[0].name or ""] = made
    return found


def read_moments(layer: LinearLayer, found: dict[str, ChannelMoments]) -> ChannelMoments | None:
    """Of what a layer reads, one per column, group after group; None where they are not known."""
    moments = found.get(layer.found.data)
    return None if moments is None or len(moments.mean) != layer.shape[0] * layer.shape[3] else moments


def _through_layer(layer: LinearLayer, found: dict[str, ChannelMoments]) -> ChannelMoments | None:
    moments = read_moments(layer, found)
    if moments is None and layer.norm is None:
        return None
    groups, _, _, cols = layer.shape
    moments = moments or ChannelMoments.independent(groups * cols)
    kernel = taps_of(layer)
    apart, together = (_covariance(kernel, moments, one) for one in (0.0, 1.0))
    rho = _fitting(layer, np.diag(apart), np.diag(together))
    mean = (kernel.sum(axis=2) @ moments.mean.reshape(groups, cols, 1))[:, :, 0] + layer.bias()
    return ChannelMoments(mean.reshape(-1), (1 - rho) * apart + rho * together)


def taps_of(layer: LinearLayer) -> Array:
    """The weight as (groups, rows, taps, cols), float64."""
    return layer.matrices().reshape(layer.shape)


def variance_of(kernel: Array, moments: ChannelMoments) -> Array:
    """The variance of every output of a kernel (rows, taps, cols)."""
    return np.asarray(np.diag(_covariance(kernel[None], moments, RHO)))


def _covariance(kernel: Array, moments: ChannelMoments, rho: float) -> Array:
    """Of the outputs of a kernel (groups, rows, taps, cols), all groups after each other."""
    out = rho * _both_sides(kernel.sum(axis=2), moments.covariance)
    if rho < 1:
        for tap in range(kernel.shape[2]):
            out = out + (1 - rho) * _both_sides(kernel[:, :, tap], moments.covariance)
    return np.asarray(out)


def _both_sides(blocks: Array, inner: Array) -> Array:
    """K M K^T, K the block-diagonal matrix of blocks (groups, rows, cols), M symmetric."""
    groups, rows, cols = blocks.shape
    left = (blocks @ inner.reshape(groups, cols, -1)).reshape(groups * rows, -1)
    return np.asarray((blocks @ left.T.reshape(groups, cols, -1)).reshape(groups * rows, -1))


def _fitting(layer: LinearLayer, apart: Array, together: Array) -> float:
    """The rho under which variances come nearest to those that the layer's BatchNormalization stores."""
    stored = behind(layer.norm.inputs[4]) if layer.norm is not None else None
    if stored is None or stored.size != len(apart):
        return RHO
    wanted = np.log(stored.array().reshape(-1).astype(np.float64) + _TINY)
    grid = np.linspace(0, 0.95, 20)
    off = [np.abs(np.log((1 - rho) * apart + rho * together + _TINY) - wanted).mean() for rho in grid]
    return float(grid[int(np.argmin(off))])


def _through(node: ir.Node, found: dict[str, ChannelMoments]) -> ChannelMoments | None:
    given = [found.get(value.name or "") if value is not None else None for value in node.inputs]
    first = given[0] if given else None
    if node.domain or first is None:
        return None
    if node.op_type == "BatchNormalization":
        return _normalised(node, first)
    if node.op_type == "Add" and len(given) == 2:
        second = given[1]
        if second is None or len(second.mean) != len(first.mean):
            return None
        return ChannelMoments(first.mean + second.mean, first.covariance + second.covariance)
    if node.op_type == "Concat":
        return _joined(node, given)
    if node.op_type in _SAME:
        return first
    if node.op_type == "Pad":
        return _padded(node, first)
    if node.op_type == "Slice":
        axes = behind(node.inputs[3]) if len(node.inputs) > 3 else None
        return None if axes is None or 1 in axes.array().tolist() else first
    function = _function(node)
    return None if function is None else mapped(first, function)


def _normalised(node: ir.Node, moments: ChannelMoments) -> ChannelMoments | None:
    stored = [behind(value) for value in node.inputs[1:5]]
    if any(one is None or one.size != len(moments.mean) for one in stored):
        return None
    scale, shift, _, variance = (one.array().reshape(-1).astype(np.float64) for one in stored if one is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    grown = factor * np.sqrt(np.maximum(variance, 0) / np.maximum(moments.variance, _TINY))
    return ChannelMoments(shift, moments.covariance * grown[:, None] * grown[None, :])


def _joined(node: ir.Node, parts: list[ChannelMoments | None]) -> ChannelMoments | None:
    """Channels of several values after each other."""
    from scipy.linalg import block_diag

    known = [part for part in parts if part is not None]
    if node.attributes.get_int("axis", 0) != 1 or len(known) < len(parts):
        return None
    mean = np.concatenate([part.mean for part in known])
    return ChannelMoments(mean, block_diag(*(part.covariance for part in known)))


def _padded(node: ir.Node, moments: ChannelMoments) -> ChannelMoments | None:
    """Channels of zeros before and behind, as in shortcuts without weights. Zeros at the borders are not looked at."""
    pads = behind(node.inputs[1]) if len(node.inputs) == 2 else None
    if pads is None or pads.size < 4:
        return None
    sides = pads.array().astype(int).reshape(2, -1)[:, 1].tolist()
    if min(sides) < 0:
        return None
    return ChannelMoments(np.pad(moments.mean, sides), np.pad(moments.covariance, sides))


def _function(node: ir.Node) -> Callable[[Array], Array] | None:
    """The element-wise function of a node, None if it is none that is known."""
    if node.op_type == "LeakyRelu":
        slope = node.attributes.get_float("alpha", 0.01)
        return lambda x: np.where(x < 0, slope * x, x)
    if node.op_type == "Clip":
        low, high = (behind(node.inputs[k]) if k < len(node.inputs) else None for k in (1, 2))
        ends = (-np.inf if low is None else float(low.array()), np.inf if high is None else float(high.array()))
        return lambda x: np.clip(x, *ends)
    return _FUNCTIONS.get(node.op_type)


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}


def mapped(moments: ChannelMoments, function: Callable[[Array], Array]) -> ChannelMoments:
    """The moments of f(x), x Gaussian; the variances are exact, covariances those of the first TERMS coefficients."""
    z, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    spread = np.sqrt(np.maximum(moments.variance, _TINY))
    values = function(moments.mean[:, None] + spread[:, None] * z)
    correlation = np.clip(moments.covariance / spread[:, None] / spread[None, :], -1, 1)
    mean = values @ weights
    variance = np.maximum(np.square(values) @ weights - mean**2, 0)
    known, covariance = np.zeros(len(mean)), np.zeros_like(correlation)
    before, now, power = np.zeros_like(z), np.ones_like(z), np.ones_like(correlation)
    for n in range(1, TERMS + 1):  # normalised Hermite polynomials: He_n / sqrt(n!)
        before, now = now, (z * now - np.sqrt(n - 1) * before) / np.sqrt(n)
        power = power * correlation
        coefficient = values @ (now * weights)
        known += coefficient**2
        covariance += coefficient[:, None] * coefficient[None, :] * power
    rest = np.sqrt(np.maximum(variance - known, 0))  # what is left follows the highest power
    return ChannelMoments(mean, covariance + rest[:, None] * rest[None, :] * power)
