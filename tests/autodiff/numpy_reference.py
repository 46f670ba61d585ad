"""Operators in numpy, float64, for the cases that the ONNX reference evaluator cannot give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from prunecli.arrays import Array

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def softmax_from(axis: int, log: bool = False) -> Callable[[Array], Array]:
    """Before opset 13: all axes from `axis` on together."""

    def run(x: Array) -> Array:
        flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
        logs = flat - flat.max(1, keepdims=True)
        logs = logs - np.log(np.exp(logs).sum(1, keepdims=True))
        return (logs if log else np.exp(logs)).reshape(x.shape)

    return run


def conv_transpose(stride: int, before: int, after: int, groups: int) -> Callable[[Array, Array], Array]:
    """Every input element adds its multiple of the kernel to the output; pads are cut off."""

    def run(x: Array, w: Array) -> Array:
        n, c, height, width = x.shape
        per, (kh, kw) = w.shape[1], w.shape[2:]
        y = np.zeros((n, per * groups, (height - 1) * stride + kh, (width - 1) * stride + kw))
        for i, j, k in itertools.product(range(height), range(width), range(c)):
            group = k // (c // groups)
            part = x[:, k, i, j][:, None, None, None] * w[k]
            y[:, group * per : (group + 1) * per, i * stride : i * stride + kh, j * stride : j * stride + kw] += part
        return y[:, :, before : y.shape[2] - after, before : y.shape[3] - after]

    return run


def batch_norm(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


def group_norm(groups: int) -> Callable[[Array, Array, Array], Array]:
    def run(x: Array, scale: Array, bias: Array) -> Array:
        n, c = x.shape[:2]
        flat = x.reshape(n, groups, -1)
        centred = flat - flat.mean(2, keepdims=True)
        xhat = (centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)).reshape(x.shape)
        per = (1, c, 1, 1)
        times = c // len(scale)
        return xhat * np.repeat(scale, times).reshape(per) + np.repeat(bias, times).reshape(per)

    return run


def mean_variance(x: Array) -> Array:
    centred = x - x.mean((0, 2, 3), keepdims=True)
    return centred / (np.sqrt((centred**2).mean((0, 2, 3), keepdims=True)) + 1e-9)


def linear_axis(x: Array, axis: int, factor: int) -> Array:
    """Asymmetric linear interpolation: output i reads position i / factor."""
    n = x.shape[axis]
    at = np.minimum(np.arange(n * factor) / factor, n - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    t = (at - low).reshape(shape)
    return np.take(x, low, axis) * (1 - t) + np.take(x, high, axis) * t


def upsample_linear(x: Array, scales: Array) -> Array:
    return linear_axis(linear_axis(x, 2, int(scales[2])), 3, int(scales[3]))


def upsample_nearest(x: Array, scales: Array) -> Array:
    return x.repeat(int(scales[2]), 2).repeat(int(scales[3]), 3)


def scatter_rows(data: Array, places: Array, updates: Array) -> Array:
    result = data.copy()
    for (i, j), row in np.ndenumerate(places):
        result[row, j] = updates[i, j]
    return result


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "Tanh": np.tanh,
    "Relu": lambda z: np.maximum(z, 0),
    "HardSigmoid": lambda z: np.clip(0.2 * z + 0.5, 0, 1),
    "HardSigmoid 0.3 0.4": lambda z: np.clip(0.3 * z + 0.4, 0, 1),
}


def recurrent(op: str, *names: str, clip: float = np.inf, after: bool = False) -> Callable[..., Array]:
    """Y of an LSTM, GRU or RNN by the formulas of the ONNX operators; `names`: its activations, of one direction or of
    two, the second of which runs backwards. What a gate reads is clipped, as onnxruntime does; the cell state is not."""

    def run(x: Array, w: Array, r: Array, b: Array) -> Array:
        count = len(names) // len(w)
        ys = []
        for k in range(len(w)):
            own = [_FUNCTIONS[name] for name in names[k * count : (k + 1) * count]]
            given = [*(_clipped(f, clip) for f in own[:2]), *own[2:]]
            order = -1 if k else 1
            ys.append(_CELLS[op](given, x[::order], w[k], r[k], b[k], after)[::order])
        return np.stack(ys, 1)

    return run


def _clipped(function: Callable[[Array], Array], limit: float) -> Callable[[Array], Array]:
    return lambda z: function(np.clip(z, -limit, limit))


def _rnn(f: Any, x: Array, w: Array, r: Array, b: Array, after: bool) -> Array:
    h, ys = np.zeros((x.shape[1], r.shape[1])), []
    for step in x:
        h = f[0](step @ w.T + h @ r.T + b[: len(w)] + b[len(w) :])
        ys.append(h)
    return np.stack(ys)


def _gru(f: Any, x: Array, w: Array, r: Array, b: Array, after: bool) -> Array:
    h, ys = np.zeros((x.shape[1], r.shape[1])), []
    wb, rb = b[: len(w)], np.split(b[len(w) :], 3)
    rz, rr, rn = np.split(r, 3)
    for step in x:
        xz, xr, xn = np.split(step @ w.T + wb, 3, 1)
        z, reset = f[0](xz + h @ rz.T + rb[0]), f[0](xr + h @ rr.T + rb[1])
        new = f[1](xn + (reset * (h @ rn.T + rb[2]) if after else (reset * h) @ rn.T + rb[2]))
        h = (1 - z) * new + z * h
        ys.append(h)
    return np.stack(ys)


def _lstm(f: Any, x: Array, w: Array, r: Array, b: Array, after: bool) -> Array:
    h = c = np.zeros((x.shape[1], r.shape[1]))
    ys = []
    for step in x:
        i, o, forget, g = np.split(step @ w.T + h @ r.T + b[: len(w)] + b[len(w) :], 4, 1)
        c = f[0](forget) * c + f[0](i) * f[1](g)
        h = f[0](o) * f[2](c)
        ys.append(h)
    return np.stack(ys)


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
