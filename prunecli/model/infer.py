"""Shapes of a whole graph: every node's rule in turn. Importing this fills the registry of rules."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

import prunecli.model.scopes as scopes  # noqa: F401 - registers itself
from prunecli.model.shape_inference import Facts, Shape, know_constant, visit


def gather_facts(model: ir.Model, inputs: Mapping[str, Shape], patience: int | None = None) -> Facts:
    """Walk the graph at the given input shapes, subgraphs and function calls included.

    Args:
        model: the graph; nodes in topological order.
        inputs: concrete shape per graph input that is not an initializer.
        patience: the walk ends early once more nodes than this have problems.
    Returns:
        Facts; a value whose shape cannot be inferred is absent, its node is in `problems`.
    """
    facts = Facts()
    for value in model.graph.initializers.values():
        know_constant(facts, value)
    for value in model.graph.inputs:
        if value not in facts.shapes and (value.name or "") in inputs:
            facts.learn(value, tuple(inputs[value.name or ""]), int(value.dtype or ir.DataType.FLOAT))
    for node in model.graph:
        visit(node, facts, model)
        if patience is not None and len(facts.problems) > patience:
            break
    return facts
