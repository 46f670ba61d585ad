"""onnxruntime's fused operators in numpy, float64, written from their documentation (ContribOperators.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_grid_sample

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _layer_norm(x: Any, scale: Any, bias: Any, epsilon: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + (0.0 if bias is None else bias)


class _Microsoft(OpRun):
    op_domain = "com.microsoft"


class Gelu(_Microsoft):
    def _run(self, x, approximate=None):  # type: ignore[no-untyped-def]
        return (_gelu(x),)


class BiasGelu(_Microsoft):
    def _run(self, x, bias):  # type: ignore[no-untyped-def]
        return (_gelu(x + bias),)


class FastGelu(_Microsoft):
    def _run(self, x, bias=None):  # type: ignore[no-untyped-def]
        x = x if bias is None else x + bias
        return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)


class QuickGelu(_Microsoft):
    def _run(self, x, alpha=1.702):  # type: ignore[no-untyped-def]
        return (x / (1.0 + np.exp(-alpha * x)),)


class FusedMatMul(_Microsoft):
    def _run(self, a, b, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):  # type: ignore[no-untyped-def]  # noqa: N803
        a, b = np.moveaxis(a, 0, -2) if transBatchA else a, np.moveaxis(b, 0, -2) if transBatchB else b
        a, b = np.swapaxes(a, -1, -2) if transA else a, np.swapaxes(b, -1, -2) if transB else b
        return (alpha * (a @ b),)


class FusedGemm(_Microsoft):
    def _run(self, a, b, c=None, **given):  # type: ignore[no-untyped-def]
        a = a.T if given.get("transA") else a
        b = b.T if given.get("transB") else b
        y = given.get("alpha", 1.0) * (a @ b) + (0.0 if c is None else given.get("beta", 1.0) * c)
        assert given["activation"] == "LeakyRelu"
        return (np.where(y > 0, y, given["activation_alpha"] * y),)


class FusedConv(_Microsoft):
    """1x1 kernels only."""

    def _run(self, x, w, b=None, z=None, **given):  # type: ignore[no-untyped-def]
        y = np.einsum("nchw,mc->nmhw", x, w[:, :, 0, 0])
        y = y + (0.0 if b is None else b[None, :, None, None]) + (0.0 if z is None else z)
        name, numbers = given["activation"], given.get("activation_params")
        if name == "Relu":
            return (np.maximum(y, 0),)
        if name == "Clip":
            return (np.clip(y, numbers[0], numbers[1]),)
        assert name == "HardSigmoid"
        return (np.clip(numbers[0] * y + numbers[1], 0, 1),)


class SkipLayerNormalization(_Microsoft):
    def _run(self, x, skip, gamma, beta=None, bias=None, epsilon=1e-12):  # type: ignore[no-untyped-def]
        total = x + skip + (0.0 if bias is None else bias)
        return (_layer_norm(total, gamma, beta, epsilon),)


class SkipSimplifiedLayerNormalization(_Microsoft):
    def _run(self, x, skip, gamma, bias=None, epsilon=1e-12):  # type: ignore[no-untyped-def]
        total = x + skip + (0.0 if bias is None else bias)
        return (total / np.sqrt((total**2).mean(-1, keepdims=True) + epsilon) * gamma,)


class EmbedLayerNormalization(_Microsoft):
    def _run(self, ids, segments, words, positions, kinds, gamma, beta, mask=None, epsilon=1e-12, **_):  # type: ignore[no-untyped-def]
        total = words[ids] + positions[np.arange(ids.shape[1])][None] + kinds[segments]
        return (_layer_norm(total, gamma, beta, epsilon), np.zeros(len(ids), np.int32))


def _attend(q, k, v, heads, penalty, causal):  # type: ignore[no-untyped-def]
    def split(x):  # type: ignore[no-untyped-def]
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]) + penalty
    if causal:
        scores = scores + np.triu(np.full(scores.shape[-2:], -10000.0), 1)
    mixed = (_softmax(scores) @ v).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


class Attention(_Microsoft):
    def _run(self, x, w, b, mask=None, num_heads=1, unidirectional=0, **_):  # type: ignore[no-untyped-def]
        q, k, v = np.split(x @ w + b, 3, axis=-1)
        penalty = 0.0 if mask is None else ((1.0 - mask) * -10000.0)[:, None, None, :]
        return (_attend(q, k, v, num_heads, penalty, unidirectional),)


class MultiHeadAttention(_Microsoft):
    def _run(self, q, k, v, bias=None, num_heads=1, **_):  # type: ignore[no-untyped-def]
        if bias is not None:
            parts = np.split(bias, 3)
            q, k, v = q + parts[0], k + parts[1], v + parts[2]
        return (_attend(q, k, v, num_heads, 0.0, 0),)


def _turn(x, cos, sin, positions, interleaved):  # type: ignore[no-untyped-def]
    """x (batch, heads, length, width) as complex numbers times those of the angles."""
    half = cos.shape[1]
    positions = positions if positions.ndim == 2 else positions + np.arange(x.shape[2])[None]
    turn = (cos + 1j * sin)[positions][:, None]
    part, y = x[..., : 2 * half], x.copy()
    real, imaginary = (part[..., ::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    z = (real + 1j * imaginary) * turn
    pairs = np.stack([z.real, z.imag], -1 if interleaved else -2)
    y[..., : 2 * half] = pairs.reshape(part.shape)
    return y


def _split(x, heads):  # type: ignore[no-untyped-def]
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _merge(x):  # type: ignore[no-untyped-def]
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class RotaryEmbedding(_Microsoft):
    def _run(self, x, positions, cos, sin, interleaved=0, num_heads=0, rotary_embedding_dim=0, **_):  # type: ignore[no-untyped-def]
        if x.ndim == 4:
            return (_turn(x, cos, sin, positions, interleaved),)
        heads = num_heads or x.shape[2] // (2 * cos.shape[1])
        return (_merge(_turn(_split(x, heads), cos, sin, positions, interleaved)),)


class GroupQueryAttention(_Microsoft):
    def _run(self, q, k=None, v=None, past_k=None, past_v=None, lengths=None, total=None, cos=None, sin=None,  # type: ignore[no-untyped-def]
             positions=None, bias=None, num_heads=1, kv_num_heads=1, do_rotary=0, rotary_interleaved=0, scale=0.0, softcap=0.0,
             local_window_size=-1, **_):  # fmt: skip
        if k is None:
            whole = _split(q, num_heads + 2 * kv_num_heads)
            q, k, v = np.split(whole, [num_heads, num_heads + kv_num_heads], axis=1)
        else:
            q, k, v = _split(q, num_heads), _split(k, kv_num_heads), _split(v, kv_num_heads)
        if do_rotary:
            at = np.zeros(1, np.int64) if positions is None else positions[0, :1]  # as onnxruntime does without a past
            q, k = (_turn(part, cos, sin, at, rotary_interleaved) for part in (q, k))
        size = q.shape[2]
        y = np.empty_like(q)
        for head in range(num_heads):
            own = head // (num_heads // kv_num_heads)
            scores = q[:, head] @ k[:, own].transpose(0, 2, 1) * (scale or q.shape[3] ** -0.5)
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            scores = (
                scores if bias is None else scores + np.broadcast_to(bias, (len(q), num_heads, size, size))[:, head]
            )
            for row in range(size):
                since = 0 if local_window_size < 0 else max(0, row + 1 - local_window_size)
                seen = slice(since, row + 1)
                y[:, head, row] = (_softmax(scores[:, row, seen])[:, None] @ v[:, own, seen])[:, 0]
        return _merge(y), k, v


class GridSample(op_grid_sample.GridSample):
    """ONNX's own, but in float64 throughout, with the modes' names before opset 20, and with the elements clamped at
    the border, not the position, as onnxruntime and PyTorch do: it matters for cubic ones."""

    op_domain = ""

    def _run(self, X, grid, mode=None, padding_mode=None, align_corners=None):  # type: ignore[no-untyped-def]  # noqa: N803
        mode, self.free = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode), padding_mode == "border"
        return super()._run(X, grid, mode, padding_mode, align_corners)

    def _prepare_border(self, dims, align_corners):  # type: ignore[no-untyped-def]
        return np.repeat([-np.inf, np.inf], len(dims)) if self.free else super()._prepare_border(dims, align_corners)

    def _gs_denormalize_coordinates(self, n, dims, align_corners):  # type: ignore[no-untyped-def]
        return np.array([self._gs_denormalize(a, d, align_corners) for a, d in zip(n, dims, strict=True)])


class SimplifiedLayerNormalization(OpRun):
    op_domain = ""

    def _run(self, x, scale, axis=-1, epsilon=1e-5, stash_type=1):  # type: ignore[no-untyped-def]
        return (x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale,)


REFERENCE_OPS = [
    Gelu, BiasGelu, FastGelu, QuickGelu, FusedMatMul, FusedGemm, FusedConv, SkipLayerNormalization,
    SkipSimplifiedLayerNormalization, EmbedLayerNormalization, Attention, MultiHeadAttention,
    SimplifiedLayerNormalization, RotaryEmbedding, GroupQueryAttention, GridSample,
]  # fmt: skip
