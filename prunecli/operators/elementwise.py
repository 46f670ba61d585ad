"""Operators that work element by element: arithmetic with constants, activations, casts, quantisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.operators.attributes import integer
from prunecli.operators.layout import Shape
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    ONNX_ML,
    Demand,
    DemandReading,
    Operator,
    Role,
    amend,
    at,
    bias,
    is_vector,
    like_first,
    norm,
    register,
    same_size,
)


def _shift_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """A constant along one axis is a bias; any other is a table, such as position embeddings."""
    return bias(shape) if is_vector(shape) else None


def _scale_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """A constant along one axis scales channels, as the rest of an unfused normalisation does."""
    return norm(shape) if is_vector(shape) else None


def _divide_role(node: ir.Node, index: int, shape: Shape) -> Role | None:
    """As that of Mul; what is divided is no scale."""
    return _scale_role(node, index, shape) if index else None


def _broadcast(asked: DemandReading) -> Demand:
    """What meets constants alone is as large as they are, and as the result."""
    constant = [asked.shape(k) for k in range(len(asked.node.inputs)) if k != asked.index]
    if None in constant:
        return NO_DEMAND
    found = asked.after
    for shape in constant:
        found = found | Demand(tuple(n if n > 1 else None for n in shape or ()))
    return found if found.sizes else NO_DEMAND


SAME = Operator(demand=same_size)
BROADCAST = Operator(demand=_broadcast)
LIKE_FIRST = Operator(shapes=like_first)
BIASED = Operator(role=at(bias=(1,)))

EACH = replace(SAME, elementwise="first")

register(
    EACH,
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    """,
)
register(SAME, "Dropout LRN LogSoftmax LpNormalization QuantizeLinear Softmax")
register(BROADCAST, "Max Mean Min Pow Sum Where")
register(replace(BROADCAST, role=_shift_role), "Add Sub")
register(replace(BROADCAST, role=_scale_role), "Mul")
register(replace(BROADCAST, role=_divide_role), "Div")
register(replace(BROADCAST, role=at(norm=(1,))), "PRelu")

register(replace(EACH, shapes=like_first), "Gelu QuickGelu", domain=MICROSOFT)
register(replace(EACH, shapes=like_first, role=at(bias=(1,))), "BiasGelu FastGelu", domain=MICROSOFT)
register(BIASED, "BiasDropout", domain=MICROSOFT)
register(replace(BIASED, on_cpu=False), "BiasAdd", domain=MICROSOFT)
register(
    replace(BIASED, shapes=lambda node, shapes: [(*shapes[0][:-1], shapes[0][-1] // 2)], on_cpu=False),
    "BiasSplitGelu",
    domain=MICROSOFT,
)
register(LIKE_FIRST, "RotaryEmbedding", domain=MICROSOFT)

amend(
    """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum SwiGLU Where Xor
    """,
    elementwise="all",
)
amend("Clip Elu Erf Gelu HardSwish LeakyRelu Mish PRelu Relu Selu Softplus Swish Tanh", activation="rectifier")
amend("BiasGelu FastGelu Gelu", MICROSOFT, activation="rectifier")
amend("HardSigmoid Sigmoid Softmax", activation="gate")

register(Operator(demand=same_size, quantised=True), "DequantizeLinear")
register(Operator(shapes=like_first, type_of=1, quantised=True), "DequantizeLinear", domain=MICROSOFT)
register(replace(LIKE_FIRST, type_of=2), "QuantizeLinear", domain=MICROSOFT)
register(LIKE_FIRST, "QLinearSigmoid QLinearLeakyRelu QLinearSoftmax", domain=MICROSOFT)
register(
    Operator(shapes=lambda node, shapes: [np.broadcast_shapes(shapes[0], shapes[3])]),
    "QLinearAdd QLinearMul",
    domain=MICROSOFT,
)


# -- ai.onnx.ml: columns of tables --------------------------------------------------------------


def _columns(*attributes: str) -> Operator:
    """One number per column in the first of these attributes that is there."""

    def demand(asked: DemandReading) -> Demand:
        given = next((asked.node.attributes[name] for name in attributes if name in asked.node.attributes), None)
        count = len(given.as_floats()) if given is not None else 1
        return asked.after | Demand((count,)) if count > 1 else asked.after

    return Operator(demand=demand, shapes=like_first)


def _rows(shapes: list[Any]) -> int:
    """Of (C) or (N, C)."""
    return int(shapes[0][0]) if len(shapes[0]) > 1 else 1


def _joined_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    """Rows side by side, each as long as `inputdimensions` says."""
    return [(_rows(shapes), sum(node.attributes["inputdimensions"].as_ints()))]


def _target_shapes(node: ir.Node, shapes: list[Any]) -> list[Shape | None]:
    return [(_rows(shapes), integer(node, "targets", 1))]


register(SAME, "Binarizer", domain=ONNX_ML)
register(replace(SAME, shapes=like_first, type_of=None), "Normalizer", domain=ONNX_ML)
register(replace(_columns("scale", "offset"), type_of=None), "Scaler", domain=ONNX_ML)
register(_columns("imputed_value_floats"), "Imputer", domain=ONNX_ML)
register(Operator(shapes=_joined_shapes, type_of=None), "FeatureVectorizer", domain=ONNX_ML)
register(Operator(shapes=_target_shapes, type_of=None), "LinearRegressor SVMRegressor", domain=ONNX_ML)
