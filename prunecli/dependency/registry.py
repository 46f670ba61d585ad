"""How an operator takes part: a rule says what its positions have to do with each other, a rewrite follows a cut.

    @rule("MyNorm", domain="my.domain")
    def my_norm(ctx):
        ctx.elementwise(ctx.inputs[0], ctx.outputs[0])

    @rewrite("MyNorm", domain="my.domain")
    def my_norm_attributes(cut, node):
        cut.set_int(node, "channels", cut.size(node.inputs[0], 1))

    @shapes("MyNorm", domain="my.domain")
    def my_norm_shapes(node, inputs):
        return [inputs[0]]

An operator without a rule is a barrier: everything it touches is frozen, with the reason. A `barrier` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunecli.model.contrib_shapes import CONTRIB_SHAPES, ShapeRule

if TYPE_CHECKING:
    import onnx_ir as ir

    from prunecli.dependency.context import RuleContext
    from prunecli.dependency.edit import NodeCut

Rule = Callable[["RuleContext"], None]
Rewrite = Callable[["NodeCut", "ir.Node"], None]
RULES: dict[tuple[str, str], Rule] = {}
REWRITES: dict[tuple[str, str], Rewrite] = {}
BARRIERS: dict[tuple[str, str], str] = {}


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function that states the index relations of operators; a later registration wins."""

    def add(function: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = function
            BARRIERS.pop((domain, op), None)
        return function

    return add


def rewrite(*ops: str, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    """Register a function that adapts attributes and shape constants of a node to a cut."""

    def add(function: Rewrite) -> Rewrite:
        for op in ops:
            REWRITES[domain, op] = function
        return function

    return add


def shapes(*ops: str, domain: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register how operators that ONNX does not know make shapes: (node, input shapes) -> output shapes.

    A shape is a tuple of ints, None for an input that is absent and for an output that is not known. The element
    type of the outputs is that of the first input.
    """

    def add(function: ShapeRule) -> ShapeRule:
        for op in ops:
            CONTRIB_SHAPES[domain, op] = function
        return function

    return add


def barrier(reason: str, *ops: str, domain: str = "") -> None:
    """Freeze everything these operators touch, for a reason that the report tells."""
    for op in ops:
        BARRIERS[domain, op] = reason
