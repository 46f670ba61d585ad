"""Operators that make tensors from shapes: fills, ranges, one-hot rows."""

from __future__ import annotations

import onnx_ir as ir

from prunecli.dependency.context import RuleContext
from prunecli.dependency.edit import NodeCut
from prunecli.dependency.registry import rewrite, rule


@rule("ConstantOfShape")
def constant_of_shape(ctx: RuleContext) -> None:
    """A fill: every position is like every other, none is tied."""


@rewrite("ConstantOfShape")
def fill_shape(cut: NodeCut, node: ir.Node) -> None:
    cut.set_vector(node, 0, [list(cut.shape(node.outputs[0], v)) for v in range(len(cut.views))])


@rule("Shape", "Size")
def shape_of(ctx: RuleContext) -> None:
    """Geometry is followed by value, and then this rule is not asked; where it is not, the shape must stay."""
    ctx.freeze_node(f"{ctx.node.op_type} of a tensor, used in a way that is not followed")


@rule("OneHot")
def one_hot(ctx: RuleContext) -> None:
    """Indices (d...) -> Y with a new axis of classes."""
    indices, y = ctx.inputs[0], ctx.outputs[0]
    assert indices is not None
    new = ctx.int("axis", -1) % ctx.rank(y)
    ctx.freeze(y, "classes of OneHot", new)
    for axis in range(ctx.rank(indices)):
        ctx.tie(indices, axis, y, axis + (axis >= new))
