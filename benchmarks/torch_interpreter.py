"""Runs an ONNX graph in PyTorch, operator by operator: an oracle for gradients (benchmark extra).

Only what the models of the benchmarks use, with current and old attribute forms. Shape computations stay in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import helper, numpy_helper

Ops = dict[str, Callable[..., Any]]
OPS: Ops = {}
FLOAT = [torch.float64]  # the type everything floating-point is computed in


def op(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPS[name] = function
        return function

    return add


def load_tensors(model: onnx.ModelProto, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Initializers and Constant nodes; floating-point ones in `dtype`, as leaves that require gradients."""
    FLOAT[0] = dtype
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = _constant(node)
    tensors = {}
    for name, array in found.items():
        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            tensor = tensor.to(dtype).requires_grad_()
        tensors[name] = tensor
    return tensors


def _constant(node: onnx.NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.array(numpy_helper.to_array(value))
    return np.array(value, np.float32 if "float" in attribute.name else np.int64)


def run(
    model: onnx.ModelProto, feeds: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Every value of the graph by name."""
    opset = next(o.version for o in model.opset_import if o.domain == "")
    values: dict[str, Any] = {**tensors, **feeds}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type not in OPS:
            raise NameError(f"the interpreter has no {node.op_type}")
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = {k: v.decode() if isinstance(v, bytes) else v for k, v in given.items()}
        inputs = [values[n] if n else None for n in node.input]
        results = OPS[node.op_type](*inputs, _opset=opset, _outputs=len(node.output), **given)
        results = results if isinstance(results, (tuple, list)) else (results,)
        values.update(zip(node.output, results, strict=False))
    return values


def ints(x: Any) -> list[int]:
    return [int(i) for i in (x.reshape(-1).tolist() if torch.is_tensor(x) else x)]


def simple(name: str, function: Callable[..., Any]) -> None:
    OPS[name] = lambda *x, _opset, _outputs, **given: function(*x)


for _name, _function in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Sqrt": torch.sqrt, "Erf": torch.erf, "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid, "Relu": torch.relu, "Reciprocal": torch.reciprocal, "Neg": torch.neg, "Exp": torch.exp,
    "MatMul": torch.matmul, "Where": torch.where, "Equal": torch.eq, "IsNaN": torch.isnan, "Identity": lambda x: x,
    "Expand": lambda x, s: x * torch.ones(ints(s), dtype=x.dtype),
    "Reshape": lambda x, s: x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(ints(s))]),
    "Mod": torch.remainder, "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
}.items():  # fmt: skip
    simple(_name, _function)


@op("Div")
def _div(a, b, **_):  # type: ignore[no-untyped-def]
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@op("Pow")
def _pow(a, b, **_):  # type: ignore[no-untyped-def]
    return a ** b.to(a.dtype)


@op("Cast")
def _cast(x, *, to, **_):  # type: ignore[no-untyped-def]
    kinds = {1: None, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: None, 11: None}
    return (x if x.is_floating_point() else x.to(FLOAT[0])) if kinds[to] is None else x.to(kinds[to])


@op("Clip")
def _clip(x, low=None, high=None, **given):  # type: ignore[no-untyped-def]
    low, high = given.get("min", low), given.get("max", high)
    low, high = (v if v is None or torch.is_tensor(v) else torch.tensor(v, dtype=x.dtype) for v in (low, high))
    return x if low is high is None else torch.clamp(x, low, high)


@op("LeakyRelu")
def _leaky(x, *, alpha=0.01, **_):  # type: ignore[no-untyped-def]
    return F.leaky_relu(x, alpha)


@op("PRelu")
def _prelu(x, slope, **_):  # type: ignore[no-untyped-def]
    return torch.where(x > 0, x, x * slope)


@op("HardSigmoid")
def _hard_sigmoid(x, *, alpha=0.2, beta=0.5, **_):  # type: ignore[no-untyped-def]
    return torch.clamp(alpha * x + beta, 0, 1)


@op("Softmax")
def _softmax(x, *, axis=None, _opset, **_):  # type: ignore[no-untyped-def]
    if _opset >= 13:
        return torch.softmax(x, -1 if axis is None else axis)
    axis = (1 if axis is None else axis) % x.ndim
    return torch.softmax(x.flatten(axis), -1).reshape(x.shape)


@op("Gemm")
def _gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0, **_):  # type: ignore[no-untyped-def]  # noqa: N803
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + beta * c


def _padded(x, pads, value=0.0):  # type: ignore[no-untyped-def]
    n = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])], value=value)


def _pads(x, given, kernel, fill=0.0):  # type: ignore[no-untyped-def]
    n = len(kernel)
    pads, mode = given.get("pads"), given.get("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        before, after = [], []
        for i in range(n):
            size, s = x.shape[2 + i], given.get("strides", [1] * n)[i]
            total = max(0, (-(-size // s) - 1) * s + kernel[i] - size)
            before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
            after.append(total - before[-1])
        pads = [*before, *after]
    return x if not pads or not any(pads) else _padded(x, pads, fill)


@op("Conv")
def _conv(x, w, b=None, **given):  # type: ignore[no-untyped-def]
    n = w.ndim - 2
    x = _pads(x, given, w.shape[2:])
    strides, dilations = given.get("strides", [1] * n), given.get("dilations", [1] * n)
    return [F.conv1d, F.conv2d, F.conv3d][n - 1](x, w, b, strides, 0, dilations, given.get("group", 1))


@op("Shape")
def _shape(x, *, start=0, end=None, **_):  # type: ignore[no-untyped-def]
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@op("BatchNormalization")
def _batch_norm(x, scale, bias, mean, variance, *, epsilon=1e-5, training_mode=0, **_):  # type: ignore[no-untyped-def]
    if training_mode:
        return F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    mean, variance, scale, bias = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (mean, variance, scale, bias))
    return (x - mean) / torch.sqrt(variance + epsilon) * scale + bias


@op("InstanceNormalization")
def _instance_norm(x, scale, bias, *, epsilon=1e-5, **_):  # type: ignore[no-untyped-def]
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@op("LayerNormalization")
def _layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5, **_):  # type: ignore[no-untyped-def]
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


@op("Transpose")
def _transpose(x, *, perm, **_):  # type: ignore[no-untyped-def]
    return x.permute(perm)


@op("Flatten")
def _flatten(x, *, axis=1, **_):  # type: ignore[no-untyped-def]
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@op("Squeeze")
def _squeeze(x, axes=None, **given):  # type: ignore[no-untyped-def]
    found = given.get("axes", axes)
    return x.squeeze() if found is None else x.squeeze(tuple(ints(found)))


@op("Unsqueeze")
def _unsqueeze(x, axes=None, **given):  # type: ignore[no-untyped-def]
    found = ints(given.get("axes", axes))
    rank = x.ndim + len(found)
    for axis in sorted(a % rank for a in found):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def _concat(*x, axis, **_):  # type: ignore[no-untyped-def]
    return torch.cat(x, axis)


@op("Split")
def _split(x, sizes=None, *, axis=0, _outputs, **given):  # type: ignore[no-untyped-def]
    found = given.get("split", sizes)
    return torch.split(x, x.shape[axis] // _outputs if found is None else ints(found), axis)


@op("Slice")
def _slice(x, starts, ends, axes=None, steps=None, **_):  # type: ignore[no-untyped-def]
    starts, ends = ints(starts), ints(ends)
    axes = range(len(starts)) if axes is None else ints(axes)
    steps = [1] * len(starts) if steps is None else ints(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = list(range(x.shape[axis]))[slice(start, None if step < 0 and end < -(1 << 30) else end, step)]
        x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64))
    return x


@op("Gather")
def _gather(x, index, *, axis=0, **_):  # type: ignore[no-untyped-def]
    axis %= x.ndim
    index = index % x.shape[axis]
    return x.index_select(axis, index.reshape(-1)).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


@op("GatherElements")
def _gather_elements(x, index, *, axis=0, **_):  # type: ignore[no-untyped-def]
    return torch.gather(x, axis, index % x.shape[axis])


@op("ConstantOfShape")
def _constant_of_shape(shape, *, value=None, **_):  # type: ignore[no-untyped-def]
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(numpy_helper.to_array(value)))
    fill = fill.to(FLOAT[0]) if fill.is_floating_point() else fill
    return fill.reshape(-1)[0].repeat(ints(shape)) if ints(shape) else fill.reshape(())


@op("Pad")
def _pad(x, pads, value=None, axes=None, *, mode="constant", **_):  # type: ignore[no-untyped-def]
    given, n = ints(pads), x.ndim
    over = list(range(n)) if axes is None else [a % n for a in ints(axes)]
    before, after = [0] * n, [0] * n
    for i, axis in enumerate(over):
        before[axis], after[axis] = given[i], given[i + len(over)]
    if mode == "constant":
        y = _padded(x, [*before, *after])
        return y if value is None else y + value.reshape(()) * (1 - _padded(torch.ones_like(x), [*before, *after]))
    kind = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    for axis in range(n):
        taken = np.pad(np.arange(x.shape[axis]), (before[axis], after[axis]), mode=kind)
        x = x.index_select(axis, torch.from_numpy(taken))
    return x


@op("Resize")
def _resize(x, roi=None, scales=None, sizes=None, *, mode="nearest", **given):  # type: ignore[no-untyped-def]
    size = (
        ints(sizes)[2:]
        if sizes is not None
        else [int(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)][2:]
    )
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(
        x, size=size, mode="bilinear", align_corners=given.get("coordinate_transformation_mode") == "align_corners"
    )


def _directed(x, cell, parts, y_parts):  # type: ignore[no-untyped-def]
    """Runs a cell over time for one direction: parts are (w, r, b, h0, c0?)."""
    outputs = []
    state = y_parts
    for t in range(x.shape[0]):
        state = cell(x[t], state, *parts)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _recurrent(cell, x, w, r, b, states, direction):  # type: ignore[no-untyped-def]
    results = []
    for d in range(w.shape[0]):
        backwards = direction == "reverse" or d == 1
        steps = x.flip(0) if backwards else x
        y, last = _directed(steps, cell, (w[d], r[d], b[d]), tuple(s[d] for s in states))
        results.append((y.flip(0) if backwards else y, last))
    finals = tuple(torch.stack([last[i] for _, last in results]) for i in range(len(states)))
    return (torch.stack([y for y, _ in results], 1), *finals)


@op("LSTM")
def _lstm(x, w, r, b=None, lengths=None, h=None, c=None, *, hidden_size, direction="forward", **_):  # type: ignore[no-untyped-def]
    n = hidden_size

    def cell(xt, state, w, r, b):  # type: ignore[no-untyped-def]
        z = xt @ w.T + state[0] @ r.T + b[: 4 * n] + b[4 * n :]
        i, o, f, g = z.split(n, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    zeros = torch.zeros(w.shape[0], x.shape[1], n, dtype=x.dtype)
    b = torch.zeros(w.shape[0], 8 * n, dtype=x.dtype) if b is None else b
    return _recurrent(cell, x, w, r, b, (zeros if h is None else h, zeros if c is None else c), direction)


@op("GRU")
def _gru(x, w, r, b=None, lengths=None, h=None, *, hidden_size, direction="forward", linear_before_reset=0, **_):  # type: ignore[no-untyped-def]
    n = hidden_size

    def cell(xt, state, w, r, b):  # type: ignore[no-untyped-def]
        h = state[0]
        zx, rx, nx = (xt @ w.T + b[: 3 * n]).split(n, -1)
        rz, rr, rn = r.split(n, 0)
        bz, br, bn = b[3 * n :].split(n)
        z, reset = torch.sigmoid(zx + h @ rz.T + bz), torch.sigmoid(rx + h @ rr.T + br)
        inner = reset * (h @ rn.T + bn) if linear_before_reset else (reset * h) @ rn.T + bn
        new = torch.tanh(nx + inner)
        return ((1 - z) * new + z * h,)

    zeros = torch.zeros(w.shape[0], x.shape[1], n, dtype=x.dtype)
    b = torch.zeros(w.shape[0], 6 * n, dtype=x.dtype) if b is None else b
    return _recurrent(cell, x, w, r, b, (zeros if h is None else h,), direction)
