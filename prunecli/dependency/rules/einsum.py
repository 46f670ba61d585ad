"""Einsum: equal letters are one axis; a letter that is not in the output is contracted."""

from __future__ import annotations

import math

from prunecli.dependency.context import RuleContext
from prunecli.dependency.registry import rule
from prunecli.model.constants import behind


@rule("Einsum")
def einsum(ctx: RuleContext) -> None:
    """Axes of one position are skipped: they broadcast."""
    values = [*ctx.inputs, ctx.outputs[0]]
    labels = subscripts(ctx.string("equation"), [ctx.rank(v) for v in values if v is not None])
    first: dict[str, int] = {}
    for term, value in zip(labels, values, strict=True):
        assert value is not None
        for index, letter in enumerate(term):
            axis = ctx.axis(value, index)
            if ctx.table.size(axis) == 1:
                continue
            if letter in first:
                ctx.table.tie(first[letter], axis)
            first.setdefault(letter, axis)
    ctx.count(math.prod(ctx.table.size(a) for a in first.values()), *first.values())
    _mark_heads(ctx, labels, first)


def subscripts(equation: str, ranks: list[int]) -> list[list[str]]:
    """The label of every axis of every operand and of the result.

    An ellipsis stands for axes labelled by their distance from its end (they broadcast from the right).
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - {",", "."})
        right = ("..." if "." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    out = []
    for term, rank in zip([*terms, right], ranks, strict=True):
        before, dots, after = term.partition("...")
        hidden = rank - len(before) - len(after) if dots else 0
        out.append([*before, *(f"...{k}" for k in range(hidden, 0, -1)), *after])
    return out


def _mark_heads(ctx: RuleContext, labels: list[list[str]], first: dict[str, int]) -> None:
    """A batch letter of a product of two computed operands is what attention calls heads."""
    if any(behind(v) is not None for v in ctx.inputs):
        return
    *terms, right = (set(term) for term in labels)
    for letter in right.intersection(*terms):
        if letter in first:
            ctx.table.mark(first[letter], "head")
