"""Means and covariances of a model's channels without data: Gaussians are carried through the layers.

The channels of a value are described by one mean and covariance, the same at all places. Inputs have mean 0, variance 1
and the correlation ALIKE. A layer maps moments linearly; what the taps of a kernel read correlates by `rho`, and so do
the places that a Flatten puts beside each other. Where a BatchNormalization has stored moments, means and variances are
these, and `rho` is the one that fits them best. Operators that compute each element from one value and constants are
taken together as one function f of it; f maps a Gaussian by its Hermite coefficients
c_n = E[f(m + s z) He_n(z)] / sqrt(n!):
E[f] = c_0, Cov[f_i, f_j] = sum over n >= 1 of c_n(i) c_n(j) r_ij^n, r the correlations. Summands count as independent,
and so do the parts of a concatenation. Nothing is known behind other operators (products, attention, ...) up to the
next BatchNormalization, whose layer is then taken to read independent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.layers import LinearLayer, refittable
from prunecli.model.constants import behind
from prunecli.operators import operator_of

Function = Callable[..., Array]
ALIKE = 0.8
"""The correlation of the channels of an input, about that of colours."""
RHO = 0.5
"""The correlation of neighbouring places, where nothing tells it."""
TERMS = 12
FLAT = 2048
"""Columns of a layer that reads channels and places on one axis; of more nothing is known."""
_TINY = 1e-20


@dataclass(frozen=True)
class ChannelMoments:
    """`mean` (channels,), `covariance` (channels, channels), `axis`: where the channels lie, from the end."""

    mean: Array
    covariance: Array
    axis: int = -1

    @property
    def variance(self) -> Array:
        return np.asarray(np.maximum(np.diag(self.covariance), 0))

    @classmethod
    def independent(cls, count: int) -> ChannelMoments:
        return cls(np.zeros(count), np.eye(count))

    @classmethod
    def alike(cls, count: int, axis: int) -> ChannelMoments:
        """Of an input."""
        return cls(np.zeros(count), (1 - ALIKE) * np.eye(count) + ALIKE, axis)


@dataclass(frozen=True)
class _Carried:
    """A value: a function of each channel of a Gaussian, None for the Gaussian itself."""

    base: ChannelMoments
    function: Function | None = None

    @cached_property
    def moments(self) -> ChannelMoments:
        return self.base if self.function is None else mapped(self.base, self.function)

    def of(self, x: Array) -> Array:
        """The value where the Gaussian is x, (channels, points)."""
        return x if self.function is None else self.function(x)


_Values = Mapping[str, _Carried]


def channel_moments(work: ir.Model) -> dict[str, ChannelMoments]:
    """Of what layers read, and of every Gaussian that linear layers, BatchNormalizations and sums make, by its name.

    Args:
        work: in working form.
    """
    layers = {
        layer.node: layer
        for layer in refittable(work)[0]
        if layer.shape[0] == 1 or operator_of(layer.node).kernel == "sliding"
    }
    found: dict[str, _Carried] = {}
    for value in work.graph.inputs:
        if value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[1], int):
            found[value.name or ""] = _Carried(ChannelMoments.alike(value.shape[1], 1 - len(value.shape)))
    inputs = {value.name for value in work.graph.inputs}
    for layer in layers.values():
        if layer.found.data in inputs:
            count = layer.shape[0] * layer.shape[3]
            found[layer.found.data] = _Carried(ChannelMoments.alike(count, layer.found.channel))
    for node in work.graph:
        made = _through_layer(layers[node], found) if node in layers else _through(node, found)
        if made is not None and node.outputs:
            found[node.outputs[0].name or ""] = made
    read = {layer.found.data for layer in layers.values()}
    return {name: one.moments for name, one in found.items() if one.function is None or name in read}


def read_moments(layer: LinearLayer, moments: ChannelMoments | None) -> ChannelMoments | None:
    """Return the moments of each column that a layer reads, group after group; None if they are not known.

    Args:
        moments: of its data, None if they are not known.
    """
    count = layer.shape[0] * layer.shape[3]
    if moments is None or moments.axis != layer.found.channel:
        return None
    places, rest = divmod(count, len(moments.mean))
    if places == 1 and not rest:
        return moments
    if rest or moments.axis != -1 or layer.shape[0] > 1 or count > FLAT:
        return None
    near = (1 - RHO) * np.eye(places) + RHO
    return ChannelMoments(np.repeat(moments.mean, places), np.kron(moments.covariance, near))


def _through_layer(layer: LinearLayer, found: _Values) -> _Carried | None:
    given = found.get(layer.found.data)
    moments = read_moments(layer, None if given is None else given.moments)
    if moments is None and layer.norm is None:
        return None
    groups, _, _, cols = layer.shape
    moments = moments or ChannelMoments.independent(groups * cols)
    kernel = taps_of(layer)
    apart, together = (_covariance(kernel, moments, one) for one in (0.0, 1.0))
    rho = _fitting(layer, np.diag(apart), np.diag(together))
    mean = (kernel.sum(axis=2) @ moments.mean.reshape(groups, cols, 1))[:, :, 0] + layer.bias()
    covariance = (1 - rho) * apart + rho * together
    return _Carried(ChannelMoments(mean.reshape(-1), covariance, layer.found.channel))


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


def _through(node: ir.Node, found: _Values) -> _Carried | None:
    given = [found.get(value.name or "") if value is not None else None for value in node.inputs]
    known = [one for one in given if one is not None]
    if not known:
        return None
    if (function := _function(node)) is not None and all(one.base is known[0].base for one in known):
        return _computed(node, function, given, known=known[0])
    rule = _RULES.get(node.op_type) if not node.domain else None
    made = (
        None
        if rule is None or given[0] is None
        else rule(node, [None if one is None else one.moments for one in given])
    )
    return None if made is None else _Carried(made)


def _computed(node: ir.Node, function: Function, given: Sequence[_Carried | None], known: _Carried) -> _Carried | None:
    """A function of one Gaussian and of constants, which are single numbers or one per channel."""
    constants = dict[int, Array]()
    for place, (value, one) in enumerate(zip(node.inputs, given, strict=True)):
        if value is None or one is not None:
            continue
        held, rank = behind(value), len(value.shape or ())
        if held is None or held.size not in (1, len(known.base.mean)):
            return None
        if held.size > 1 and any(n != 1 and k - rank != known.base.axis for k, n in enumerate(held.shape)):
            return None
        constants[place] = held.array().astype(np.float64).reshape(-1, 1)

    def composed(x: Array) -> Array:
        return function(*(one.of(x) if one is not None else constants.get(place) for place, one in enumerate(given)))

    return _Carried(known.base, composed)


Moments = ChannelMoments
_Given = list[Moments | None]


def _first(given: _Given) -> Moments:
    assert given[0] is not None
    return given[0]


def _alike_elsewhere(node: ir.Node, given: _Given) -> Moments:
    """The same moments, of other places: no function of the value that was read."""
    return replace(_first(given))


def _summed(node: ir.Node, given: _Given) -> Moments | None:
    first, second = _first(given), given[1]
    if second is None or len(second.mean) != len(first.mean) or second.axis != first.axis:
        return None
    return Moments(first.mean + second.mean, first.covariance + second.covariance, first.axis)


def _batch_normalised(node: ir.Node, given: _Given) -> Moments | None:
    moments = _first(given)
    stored = [behind(value) for value in node.inputs[1:5]]
    if any(one is None or one.size != len(moments.mean) for one in stored):
        return None
    scale, shift, _, variance = (one.array().reshape(-1).astype(np.float64) for one in stored if one is not None)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _scaled(moments, factor * np.sqrt(np.maximum(variance, 0)), shift)


def _instance_normalised(node: ir.Node, given: _Given) -> Moments | None:
    scale, shift = (behind(value) for value in node.inputs[1:3])
    if scale is None or shift is None or scale.size != len(_first(given).mean):
        return None
    return _scaled(_first(given), *(one.array().reshape(-1).astype(np.float64) for one in (scale, shift)))


def _scaled(moments: Moments, deviation: Array, mean: Array) -> Moments:
    """The same correlations."""
    grown = deviation / np.sqrt(np.maximum(moments.variance, _TINY))
    return Moments(mean, moments.covariance * grown[:, None] * grown[None, :], moments.axis)


def _rank(node: ir.Node, moments: Moments) -> int | None:
    """Of what a node reads first. Where no shape is known, channels that are not last are on axis 1; of others nothing
    says how many axes are before them."""
    value = node.inputs[0]
    if value is not None and value.shape is not None:
        return len(value.shape)
    return 1 - moments.axis if moments.axis < -1 else None


def _stored(node: ir.Node, name: str, place: int) -> list[int] | None:
    """Numbers that are an attribute or a constant input."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    held = behind(node.inputs[place]) if place < len(node.inputs) else None
    return None if held is None else held.array().astype(int).reshape(-1).tolist()


def _reduced(node: ir.Node, given: _Given) -> Moments | None:
    """Means over places, and Squeeze."""
    moments, axes = _first(given), _stored(node, "axes", 1)
    rank = _rank(node, moments)
    if axes is None or rank is None:
        return None
    gone = {axis % rank - rank for axis in axes}
    kept = node.op_type != "Squeeze" and bool(node.attributes.get_int("keepdims", 1))
    behind_it = 0 if kept else sum(axis > moments.axis for axis in gone)
    return None if moments.axis in gone else replace(moments, axis=moments.axis + behind_it)


def _flattened(node: ir.Node, given: _Given) -> Moments | None:
    """Of channels on axis 1: followed by their places on the last axis."""
    moments, rank = _first(given), _rank(node, _first(given))
    plain = node.attributes.get_int("axis", 1) == 1 and rank is not None and moments.axis == 1 - rank
    return replace(moments, axis=-1) if plain else None


def _reshaped(node: ir.Node, given: _Given) -> Moments | None:
    """As Flatten does it, or places put on one axis, before channels or behind them."""
    moments, shape = _first(given), _stored(node, "shape", 1)
    rank, count = _rank(node, moments), len(moments.mean)
    first = rank is not None and moments.axis == 1 - rank
    if shape is None or len(shape) < 2:
        return None
    if moments.axis == -1 and shape[-1] == count:
        return moments
    if first and len(shape) == 2 and (shape[1] == -1 or shape[1] % count == 0):
        return replace(moments, axis=-1)
    return replace(moments, axis=1 - len(shape)) if first and shape[1] in (0, count) else None


def _transposed(node: ir.Node, given: _Given) -> Moments | None:
    moments, perm = _first(given), _stored(node, "perm", 1)
    return None if perm is None else replace(moments, axis=perm.index(moments.axis + len(perm)) - len(perm))


def _joined(node: ir.Node, parts: _Given) -> Moments | None:
    """Channels of several values after each other."""
    from scipy.linalg import block_diag

    known, first = [part for part in parts if part is not None], _first(parts)
    rank, axis = _rank(node, first), node.attributes.get_int("axis", 0)
    if len(known) < len(parts) or rank is None or any(part.axis != axis % rank - rank for part in known):
        return None
    mean = np.concatenate([part.mean for part in known])
    return Moments(mean, block_diag(*(part.covariance for part in known)), first.axis)


def _padded(node: ir.Node, given: _Given) -> Moments | None:
    """Channels of zeros before and behind, as in shortcuts without weights. Zeros at the borders are not looked at."""
    moments, pads = _first(given), behind(node.inputs[1]) if len(node.inputs) == 2 else None
    if pads is None or pads.size < 4:
        return None
    sides = pads.array().astype(int).reshape(2, -1)[:, moments.axis].tolist()
    if min(sides) < 0:
        return None
    return Moments(np.pad(moments.mean, sides), np.pad(moments.covariance, sides), moments.axis)


def _sliced(node: ir.Node, given: _Given) -> Moments | None:
    moments, axes = _first(given), _stored(node, "axes", 3)
    rank = _rank(node, moments)
    if axes is None or rank is None:
        return None
    return None if moments.axis in {axis % rank - rank for axis in axes} else replace(moments)


_RULES: dict[str, Callable[[ir.Node, _Given], Moments | None]] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"), _alike_elsewhere),
    "Upsample": _alike_elsewhere, "BatchNormalization": _batch_normalised,
    "InstanceNormalization": _instance_normalised, "Add": _summed, "ReduceMean": _reduced, "Squeeze": _reduced,
    "Flatten": _flattened, "Reshape": _reshaped, "Transpose": _transposed, "Concat": _joined, "Pad": _padded,
    "Slice": _sliced,
}  # fmt: skip


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _gelu(x: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(x * ndtr(x))


def _erf(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(x))


def _clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


_FUNCTIONS: dict[str, Function] = {
    "Abs": np.abs, "Add": np.add, "Cast": lambda x: x, "Clip": _clip, "Div": np.divide, "Dropout": lambda x, *_: x,
    "Erf": _erf, "Exp": np.exp, "Gelu": _gelu, "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x, "Max": np.maximum, "Min": np.minimum,
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)), "Mul": np.multiply, "Neg": np.negative,
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x), "Relu": lambda x: np.maximum(x, 0), "Sigmoid": _sigmoid,
    "Softplus": lambda x: np.logaddexp(0, x), "Softsign": lambda x: x / (1 + np.abs(x)), "Sub": np.subtract,
    "Tanh": np.tanh,
}  # fmt: skip


def _function(node: ir.Node) -> Function | None:
    """What a node computes of every element of its inputs, None if it is none that is known."""
    number = node.attributes.get_float
    if node.domain or (node.op_type in ("Max", "Min") and len(node.inputs) != 2):
        return None
    if node.op_type == "LeakyRelu":
        return lambda x: np.where(x < 0, number("alpha", 0.01) * x, x)
    if node.op_type == "Elu":
        return lambda x: _elu(x, number("alpha", 1.0))
    if node.op_type == "Selu":
        return lambda x: number("gamma", 1.0507009873554805) * _elu(x, number("alpha", 1.6732632423543772))
    if node.op_type == "HardSigmoid":
        return lambda x: np.clip(number("alpha", 0.2) * x + number("beta", 0.5), 0, 1)
    return _FUNCTIONS.get(node.op_type)


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
    return ChannelMoments(mean, covariance + rest[:, None] * rest[None, :] * power, moments.axis)
