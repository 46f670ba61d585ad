"""Resize and Pad: linear maps along single axes, undone by their transposed matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import Gradient, GradientContext, rule
from prunecli.autodiff.rules.matmul import contract
from prunecli.model.shape_inference import Shape

Value = ir.Value
_KEPT = (
    "mode",
    "coordinate_transformation_mode",
    "nearest_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "antialias",
)


@rule("Resize")
def resize(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Nearest by a whole factor: sums over blocks. Else per axis a product with the operator's own matrix."""
    ops, shape, out = g.ops, g.shape(), g.ops.shape(dy)
    if g.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise g.refuse("tf_crop_and_resize is not supported")
    if g.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise g.refuse("keep_aspect_ratio_policy is not supported")
    changed = [i for i in range(len(shape)) if shape[i] != out[i] or _scale(g, i) != 1.0]
    if _repeats(g, shape, out):
        return [_block_sums(ops, dy, shape)]
    for axis in changed:
        matrix = _axis_matrix(g, axis, shape[axis], out[axis])
        dy = contract(ops, dy, axis, matrix)
    return [dy]


def _axes(g: GradientContext) -> tuple[int, ...]:
    rank = g.ops.rank(g.x())
    return tuple(a % rank for a in g.ints("axes", range(rank)))


def _scale(g: GradientContext, axis: int) -> float | None:
    """The stated scale of an axis; None where sizes are given instead."""
    if g.input(2) is None or g.ops.size(g.x(2)) == 0:
        return 1.0 if axis not in _axes(g) else None
    scales = g.ops.value(g.x(2))
    if scales is None:
        raise g.refuse("its scales depend on data")
    return float(scales.reshape(-1)[_axes(g).index(axis)]) if axis in _axes(g) else 1.0


def _repeats(g: GradientContext, shape: Shape, out: Shape) -> bool:
    """Whether every element is simply repeated a whole number of times."""
    whole = all(
        o % i == 0 and (_scale(g, k) or o / i) == o / i for k, (i, o) in enumerate(zip(shape, out, strict=True))
    )
    if g.text("mode", "nearest") != "nearest" or not whole:
        return False
    coordinates = g.text("coordinate_transformation_mode", "half_pixel")
    rounding = g.text("nearest_mode", "round_prefer_floor")
    return (coordinates, rounding) == ("asymmetric", "floor") or (
        coordinates in ("half_pixel", "half_pixel_symmetric") and rounding.startswith("round")
    )


def _block_sums(ops: Ops, dy: Value, shape: Shape) -> Value:
    split: list[int] = []
    axes: list[int] = []
    for have, want in zip(ops.shape(dy), shape, strict=True):
        split.append(want)
        if have != want:
            axes.append(len(split))
            split.append(have // want)
    return ops.sum(ops.reshape(dy, split), axes)


def _axis_matrix(g: GradientContext, axis: int, small: int, large: int) -> Value:
    """(large, small): the operator applied to the unit vectors of the axis; constant, so folded before running."""
    ops = g.ops
    eye = ops.const(np.eye(small, dtype=np.float32).reshape(1, 1, small, small))
    attributes = {k: g.node.attributes[k].value for k in _KEPT if k in g.node.attributes}
    scale = _scale(g, axis)
    if scale is None:
        matrix = ops.op("Resize", eye, None, None, ops.ints([1, 1, large, small]), **attributes)
    else:
        scales = ops.const(np.array([1, 1, scale, 1], np.float32))
        matrix = ops.op("Resize", eye, None, scales, **attributes)
    return ops.reshape(matrix, (large, small))


@rule("Pad")
def pad(g: GradientContext, node: ir.Node, dy: Value) -> list[Gradient]:
    """Constant padding is cropped away; the other modes repeat elements, whose gradients are summed."""
    ops, shape, mode = g.ops, g.shape(), g.text("mode", "constant")
    before, after = _amounts(g)
    if mode == "constant":
        inner = ops.pad(dy, [-b for b in before], [-a for a in after])
        return [inner, None, _fill_gradient(g, dy, inner) if g.needs(2) else None]
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            taken = np.pad(np.arange(shape[axis]), (max(low, 0), max(high, 0)), mode=_NUMPY_MODE[mode])  # type: ignore[call-overload]
            taken = taken[max(-low, 0) : len(taken) - max(-high, 0)]
            matrix = np.eye(shape[axis], dtype=np.float32)[taken]
            dy = contract(ops, dy, axis, ops.const(matrix))
    return [dy]


def _fill_gradient(g: GradientContext, dy: Value, inner: Value) -> Value:
    """What arrived outside of the data: all of dy but the part that goes to the data (cropped places got nothing)."""
    everywhere, inside = (g.ops.sum(v, list(range(g.ops.rank(v)))) for v in (dy, inner))
    return g.ops.reshape(g.ops.sub(everywhere, inside), g.shape(2))


_NUMPY_MODE = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _amounts(g: GradientContext) -> tuple[list[int], list[int]]:
    rank = g.ops.rank(g.x())
    pads, axes = g.known(1) or (), g.known(3)
    axes = tuple(range(rank)) if axes is None else tuple(a % rank for a in axes)
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    return before, after
