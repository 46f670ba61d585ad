"""More operators for `torch_interpreter`: reductions, comparisons, scatters, norms, the rarer activations."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch_interpreter import OPS, ints, op, simple

for _name, _function in {
    "Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round, "Sign": torch.sign, "Abs": torch.abs,
    "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Atan": torch.atan, "Log": torch.log,
    "Not": torch.logical_not,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Greater": torch.gt, "Less": torch.lt,
    "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "IsInf": torch.isinf, "Softplus": F.softplus, "Mish": F.mish,
    "HardSwish": F.hardswish, "Softsign": F.softsign, "Size": lambda x: torch.tensor(x.numel()),
    "Range": lambda a, b, c: torch.from_numpy(np.arange(a.item(), b.item(), c.item())).to(a.dtype),
    "Tile": lambda x, n: x.repeat(ints(n)), "NonZero": lambda x: torch.nonzero(x).T,
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True), "CastLike": lambda x, y: x.to(y.dtype),
}.items():  # fmt: skip
    simple(_name, _function)


def _folded(name: str, function) -> None:  # type: ignore[no-untyped-def]
    def apply(*x, _opset, _outputs):  # type: ignore[no-untyped-def]
        y = x[0]
        for other in x[1:]:
            y = function(y, other)
        return y

    OPS[name] = apply


_folded("Max", torch.maximum)
_folded("Min", torch.minimum)
_folded("Sum", torch.add)
_folded("Mean", lambda a, b: (a + b) / 2)


@op("Gelu")
def _gelu(x, *, approximate="none", **_):  # type: ignore[no-untyped-def]
    return F.gelu(x, approximate=approximate)


@op("Elu")
def _elu(x, *, alpha=1.0, **_):  # type: ignore[no-untyped-def]
    return F.elu(x, alpha)


@op("Selu")
def _selu(x, **_):  # type: ignore[no-untyped-def]
    return F.selu(x)


@op("Swish")
def _swish(x, *, alpha=1.0, **_):  # type: ignore[no-untyped-def]
    return x * torch.sigmoid(alpha * x)


@op("LogSoftmax")
def _log_softmax(x, *, axis=-1, **_):  # type: ignore[no-untyped-def]
    return torch.log_softmax(x, axis)


@op("CumSum")
def _cumsum(x, axis, **given):  # type: ignore[no-untyped-def]
    assert not given.get("exclusive") and not given.get("reverse")
    return torch.cumsum(x, int(axis))


@op("Trilu")
def _trilu(x, k=None, *, upper=1, **_):  # type: ignore[no-untyped-def]
    return (torch.triu if upper else torch.tril)(x, 0 if k is None else int(k))


@op("Einsum")
def _einsum(*x, equation, **_):  # type: ignore[no-untyped-def]
    return torch.einsum(equation, *x)


def _axes(x, axes, given):  # type: ignore[no-untyped-def]
    found = given.get("axes", axes)
    if found is None or len(ints(found)) == 0:
        return [] if given.get("noop_with_empty_axes") else list(range(x.ndim))
    return [a % x.ndim for a in ints(found)]


def _reduction(name: str, function) -> None:  # type: ignore[no-untyped-def]
    def apply(x, axes=None, *, keepdims=1, **given):  # type: ignore[no-untyped-def]
        over = _axes(x, axes, given)
        return function(x, over, bool(keepdims)) if over else x

    OPS[name] = apply


_reduction("ReduceSum", lambda x, a, k: torch.sum(x, a, k))
_reduction("ReduceMean", lambda x, a, k: torch.mean(x, a, k))
_reduction("ReduceMax", lambda x, a, k: torch.amax(x, a, k))
_reduction("ReduceMin", lambda x, a, k: torch.amin(x, a, k))
_reduction("ReduceL2", lambda x, a, k: torch.linalg.vector_norm(x, 2, a, k))
_reduction("ReduceL1", lambda x, a, k: torch.abs(x).sum(a, k))
_reduction("ReduceSumSquare", lambda x, a, k: torch.square(x).sum(a, k))
_reduction("ReduceLogSumExp", lambda x, a, k: torch.logsumexp(x, a, k))


@op("ReduceProd")
def _prod(x, axes=None, *, keepdims=1, **given):  # type: ignore[no-untyped-def]
    for axis in sorted(_axes(x, axes, given), reverse=True):
        x = torch.prod(x, axis, bool(keepdims))
    return x


@op("ArgMax")
def _argmax(x, *, axis=0, keepdims=1, **_):  # type: ignore[no-untyped-def]
    return torch.argmax(x, axis, bool(keepdims))


@op("TopK")
def _top_k(x, k, *, axis=-1, largest=1, **_):  # type: ignore[no-untyped-def]
    return torch.topk(x, int(k), axis, bool(largest))


@op("OneHot")
def _one_hot(index, depth, values, *, axis=-1, **_):  # type: ignore[no-untyped-def]
    hot = F.one_hot(index.long() % int(depth), int(depth)).movedim(-1, axis)
    return torch.where(hot > 0, values[1], values[0])


@op("GatherND")
def _gather_nd(x, index, *, batch_dims=0, **_):  # type: ignore[no-untyped-def]
    grids = torch.meshgrid(*(torch.arange(n) for n in x.shape[:batch_dims]), indexing="ij") if batch_dims else ()
    rest = index.ndim - 1 - batch_dims
    lead = [g.reshape(*g.shape, *[1] * rest) for g in grids]
    return x[(*lead, *(index[..., i] for i in range(index.shape[-1])))]


@op("ScatterND")
def _scatter_nd(x, index, updates, *, reduction="none", **_):  # type: ignore[no-untyped-def]
    where = tuple(index[..., i] for i in range(index.shape[-1]))
    return x.index_put(where, updates.to(x.dtype), accumulate=reduction == "add")


@op("ScatterElements")
def _scatter_elements(x, index, updates, *, axis=0, reduction="none", **_):  # type: ignore[no-untyped-def]
    index = index % x.shape[axis]
    return x.scatter_add(axis, index, updates) if reduction == "add" else x.scatter(axis, index, updates)


@op("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(x, scale, *, axis=-1, epsilon=1e-5, **_):  # type: ignore[no-untyped-def]
    return F.rms_norm(x, x.shape[axis:], scale, epsilon)


@op("GroupNormalization")
def _group_norm(x, scale, bias, *, num_groups, epsilon=1e-5, **_):  # type: ignore[no-untyped-def]
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@op("LpNormalization")
def _lp_norm(x, *, axis=-1, p=2, **_):  # type: ignore[no-untyped-def]
    return x / torch.linalg.vector_norm(x, p, axis, True)


@op("DepthToSpace")
def _depth_to_space(x, *, blocksize, mode="DCR", **_):  # type: ignore[no-untyped-def]
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    y = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, -1, h * blocksize, w * blocksize)


@op("SpaceToDepth")
def _space_to_depth(x, *, blocksize, **_):  # type: ignore[no-untyped-def]
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, -1, h // blocksize, w // blocksize)


@op("ConvTranspose")
def _conv_transpose(x, w, b=None, **given):  # type: ignore[no-untyped-def]
    n = w.ndim - 2
    pads, strides = given.get("pads", [0] * (2 * n)), given.get("strides", [1] * n)
    dilations, extra = given.get("dilations", [1] * n), given.get("output_padding", [0] * n)
    assert given.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in given
    function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][n - 1]
    y = function(x, w, None, strides, 0, 0, given.get("group", 1), dilations)
    cut = [p for i in reversed(range(n)) for p in (-pads[i], extra[i] - pads[n + i])]
    y = F.pad(y, cut)
    return y if b is None else y + b.reshape(-1, *[1] * n)


def _windows(x, given, fill):  # type: ignore[no-untyped-def]
    """Padded, also for windows that begin inside and end outside (ceil_mode)."""
    n = x.ndim - 2
    kernel, strides = given["kernel_shape"], given.get("strides", [1] * n)
    dilations, pads = given.get("dilations", [1] * n), list(given.get("pads", [0] * (2 * n)))
    assert given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    over = [0] * n
    if given.get("ceil_mode"):
        for i in range(n):
            length = x.shape[2 + i] + pads[i] + pads[n + i]
            span = dilations[i] * (kernel[i] - 1) + 1
            count = -(-(length - span) // strides[i]) + 1
            count -= (count - 1) * strides[i] >= x.shape[2 + i] + pads[i]
            over[i] = max(0, (count - 1) * strides[i] + span - length)
    around = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i] + over[i])]
    counted = [p for i in reversed(range(n)) for p in (0, over[i])]
    return F.pad(x, around, value=fill), around, counted


@op("MaxPool")
def _max_pool(x, **given):  # type: ignore[no-untyped-def]
    n = x.ndim - 2
    wide, *_ = _windows(x, given, float("-inf"))
    function = [F.max_pool1d, F.max_pool2d, F.max_pool3d][n - 1]
    return function(wide, given["kernel_shape"], given.get("strides", [1] * n), 0, given.get("dilations", 1))


@op("AveragePool")
def _average_pool(x, **given):  # type: ignore[no-untyped-def]
    n = x.ndim - 2
    wide, around, over = _windows(x, given, 0.0)
    inside = torch.ones_like(x)
    if given.get("count_include_pad"):
        inside = F.pad(inside, [a - o for a, o in zip(around, over, strict=True)], value=1.0)
        inside = F.pad(inside, over)
    else:
        inside = F.pad(inside, around)
    function = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][n - 1]
    strides = given.get("strides", [1] * n)
    return function(wide, given["kernel_shape"], strides) / function(inside, given["kernel_shape"], strides)
