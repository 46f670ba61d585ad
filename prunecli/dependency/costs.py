"""The exact parameters and multiply-accumulates of a cut model, as functions of the kept axis lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.dependency.analysis import Analysis
from prunecli.dependency.atoms import Ints
from prunecli.dependency.catalogue import Catalogue
from prunecli.model.sizes import parameters

MACS_PER_ELEMENT = 25
"""Multiply-accumulates of a convolution that take as long as one element of an elementwise operator: 8 ps each, 0.2 ns
(one thread with AVX-512, onnxruntime 1.32)."""


@dataclass(frozen=True)
class Terms:
    """Amounts proportional to the kept fraction of some axes: row i is `amount[i]` over `axes[i]`.

    Rows are padded with a pseudo axis (the last) that is always kept whole.
    """

    amount: np.ndarray
    axes: Ints

    def total(self, fraction: np.ndarray) -> int:
        """Return the sum of amount * prod(fraction of each axis)."""
        if not len(self.amount):
            return 0
        return round(float((self.amount * fraction[self.axes].prod(axis=1)).sum()))


@dataclass(frozen=True)
class Costs:
    """Both costs of an analysed model. Axes are representatives of the atom table, and those of blocks.

    `params` counts the elements of every floating-point tensor that is stored, as `model.sizes.totals` does, `macs` the
    same operators as `model.count_macs`, at the dimensions of the analysis' `work`; `written`: the elements that
    nodes write.
    """

    sizes: Ints
    params: Terms
    macs: Terms
    written: Terms

    def fraction(self, kept: Ints) -> np.ndarray:
        """Return the kept fraction of each axis; 1 for the pseudo axis."""
        out = np.ones(len(self.sizes) + 1)
        np.divide(kept, np.maximum(self.sizes, 1), out=out[:-1])
        return out

    def amount(self, kind: str, kept: Ints) -> int:
        """One of the costs, with `kept` positions left on each axis."""
        found: int = getattr(self, kind).total(self.fraction(kept))
        return found

    def of(self, kept: Ints) -> dict[str, int]:
        """`{"params": ..., "macs": ...}` with `kept` positions left on each axis."""
        return {kind: self.amount(kind, kept) for kind in ("params", "macs")}

    def time(self, kept: Ints) -> float:
        """Return the approximate time of a run, in multiply-accumulates: `macs` + MACS_PER_ELEMENT * `written`."""
        fraction = self.fraction(kept)
        return self.macs.total(fraction) + MACS_PER_ELEMENT * self.written.total(fraction)


def costs(units: Catalogue) -> Costs:
    """Prepare the cost functions of a model."""
    analysis, sizes, table = units.analysis, units.sizes, units.analysis.components.table
    rows = [
        [(work.macs, [*(table.find(axis) for axis in work.axes), *axes_of_blocks(units, work.node)]) for work in listed]
        for listed in (analysis.work, analysis.written)
    ]
    macs, written = (_terms(own, len(sizes)) for own in rows)
    return Costs(sizes, _terms(_tensors(units), len(sizes)), macs, written=written)


def axes_of_blocks(units: Catalogue, part: ir.Node | ir.Value) -> list[int]:
    """Return the axes of the residual blocks that contain a node or an initializer."""
    first = len(units.sizes) - len(units.blocks)
    return [first + n for n, dead in enumerate(units.dead) if part in dead.nodes or part in dead.initializers]


def axes_of_outputs(analysis: Analysis) -> dict[ir.Node, tuple[int, ...]]:
    """Return, for every node, the axes (representatives) of its first named output."""
    table = analysis.components.table
    shown: dict[ir.Value, list[int]] = {}
    for number, axis in enumerate(table.axes):
        if axis.value is not None:
            shown.setdefault(axis.value, []).append(table.find(number))
    first = {node: next((out for out in node.outputs if out.name), None) for node in analysis.model.graph}
    return {node: tuple(shown.get(out, ())) for node, out in first.items() if out is not None}


def _tensors(units: Catalogue) -> list[tuple[int, list[int]]]:
    analysis, table = units.analysis, units.analysis.components.table
    main, out = analysis.model.graph, list[tuple[int, list[int]]]()
    axes = {name: axes_of_blocks(units, value) for name, value in main.initializers.items()}
    for number, axis in enumerate(table.axes):
        if axis.value is not None and axis.value.const_value is not None:
            axes.setdefault(axis.value.name or "", []).append(table.find(number))
    out.extend(
        (int(h.tensor.size), axes.get(h.name, []) if h.graph is main else []) for h in parameters(analysis.model)
    )
    return out


def _terms(rows: Sequence[tuple[int, list[int]]], pseudo: int) -> Terms:
    width = max((len(axes) for _, axes in rows), default=0)
    index = np.full((len(rows), max(width, 1)), pseudo, np.int64)
    for number, (_, axes) in enumerate(rows):
        index[number, : len(axes)] = axes
    return Terms(np.array([amount for amount, _ in rows], np.float64), index)
