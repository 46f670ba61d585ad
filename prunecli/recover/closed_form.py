"""Recovery without training: every layer of a cut model is fitted, in order, to what the original computes.

Both models run side by side, piece by piece. When a layer's turn comes, all before it are done: it is fitted on what it
really receives, towards what the original has at the positions that are left, errors of the residual stream included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.evidence.pieces import OpenSession, Pieces
from prunecli.recover.fits import Sums, choose
from prunecli.recover.sites import Site, find_sites
from prunecli.runtime import Session
from prunecli.types import Progress, Skipped, no_progress

Array = np.ndarray[Any, Any]
Positions = Mapping[str, Mapping[int, Array]]
METHODS = ("none", "bias", "bn", "lstsq", "auto")
CHUNK = 1 << 24
"""Elements of X that are laid out at a time."""
WIDEST = 8192
"""Inputs of one output; beyond that the Gram matrix would take more than half a gigabyte."""
SAME = 1e-4
"""Of the largest element: inputs no further apart than rounding are those of the original."""


@dataclass(frozen=True)
class Calibration:
    """Batches of feeds: the first `fitted` are for fitting, the others judge."""

    feeds: Sequence[Mapping[str, Array]]
    fitted: int
    start: OpenSession = Session.open

    @property
    def held(self) -> int:
        return len(self.feeds) - self.fitted


@dataclass(frozen=True)
class LayerFit:
    """What was done to one layer. Errors are of its aim, on held-out data if there are any: sum of squared
    differences over that of the aim from its mean."""

    name: str
    weight: str
    method: str
    ridge: float | None
    error_before: float
    error_after: float


@dataclass
class Refit:
    """`layers` that were fitted; `left`, those that need it and were not, with the reason."""

    layers: list[LayerFit] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)


def refit(
    original: ir.Model, cut: ir.Model, removed: Positions, data: Calibration, method: str = "auto",
    progress: Progress = no_progress,
) -> Refit:  # fmt: skip
    """Fit the layers of `cut`, in place.

    Args:
        original: the prepared model.
        cut: a copy of it without the positions `removed` (of every value, by its name).
        method: see `prunecli.recover.fits`; `auto` lets held-out data choose layer by layer.
    Raises:
        PruneError: an unknown method, or onnxruntime cannot run a piece of the model.
    """
    if method not in METHODS:
        raise PruneError(f"--recover {method!r} is unknown", f"choose from {', '.join(METHODS)}")
    out, sites = Refit(), find_sites(cut)
    if method == "none":
        return out
    pair = _Pair(Pieces(original, data.feeds, data.start), Pieces(cut, data.feeds, data.start), removed, data.fitted)
    for site in progress(sites.found, "refitting", len(sites.found)):
        _visit(site, pair, method, out)
        pair.release()
    out.left += sites.left
    return out


@dataclass
class _Pair:
    original: Pieces
    cut: Pieces
    removed: Positions
    fitted: int

    def kept(self, name: str, batch: int) -> Array:
        """A value of the original without the removed positions."""
        array = self.original.get(name)[batch]
        for axis, gone in self.removed.get(name, {}).items():
            if len(gone) and gone[-1] >= array.shape[axis]:
                raise _UnlikeError
            array = np.delete(array, gone, axis)
        return array

    def is_same(self, name: str) -> bool:
        """Whether a value of the cut model is, to rounding, what the original has."""
        kept, now = self.kept(name, 0), self.cut.get(name)[0]
        if kept.shape != now.shape:
            return False
        wide = np.abs(kept.astype(np.float64)).max(initial=0.0)
        return bool(np.abs(kept.astype(np.float64) - now).max(initial=0.0) <= SAME * wide)

    def release(self) -> None:
        self.original.release()
        self.cut.release()


class _UnlikeError(Exception):
    """The two models' values do not correspond, position by position."""


def _visit(site: Site, pair: _Pair, method: str, out: Refit) -> None:
    """Fit one layer, unless nothing before it changed."""
    try:
        carried_same = site.carried is None or pair.is_same(site.carried)
        if carried_same and not _reads_less(site, pair) and pair.is_same(site.data):
            return
        sums = _sums(site, pair)
    except _UnlikeError:
        out.left.append(Skipped(site.name, "its values do not correspond to the original's"))
        return
    fitted, held = sums
    if not fitted.finite():
        out.left.append(Skipped(site.name, "what it reads or should yield is not finite"))
        return
    present = _present(site)
    fit, after, before = choose(method, fitted, held, present, site.offset is not None)
    scale = max((held or fitted).spread(), np.finfo(float).tiny)
    out.layers.append(LayerFit(site.name, site.weight, fit.method, fit.ridge, before / scale, after / scale))
    if fit.method != "none":
        _apply(site, fit.matrix, pair.cut.model.graph)


def _reads_less(site: Site, pair: _Pair) -> bool:
    """Whether the layer lost inputs; one whose groups went with their outputs did not."""
    node = next(n for n in pair.original.model.graph if n.outputs[0].name == site.layer.node.outputs[0].name)
    value = node.inputs[site.layer.weight]
    assert value is not None and value.const_value is not None
    from prunecli.evidence.design import linear

    before = linear(node)
    return before is None or before.layout.canonical_shape[3] != _weight_layout(site)[3]


def _weight_layout(site: Site) -> tuple[int, int, int, int]:
    return site.layer.layout.canonical_shape


def _sums(site: Site, pair: _Pair) -> tuple[Sums, Sums | None]:
    groups, rows, taps, cols = _weight_layout(site)
    if taps * cols > WIDEST:
        raise _UnlikeError
    scale, shift = site.affine(groups * rows)
    usable = np.abs(scale) > 1e-6 * max(np.abs(scale).max(initial=0.0), np.finfo(float).tiny)
    fitted, held = (Sums.zeros(groups, taps * cols, rows) for _ in range(2))
    for batch, data in enumerate(pair.cut.get(site.data)):
        aim = pair.kept(site.target, batch).astype(np.float32)
        if site.carried is not None:
            aim = aim - pair.cut.get(site.carried)[batch]
        for part, y in _chunks(site, data, aim, groups):
            x = site.layer.x(part)
            wanted = ((site.layer.y(y, groups) - _by_group(shift, groups)) / _by_group(np.where(usable, scale, 1), groups))
            (fitted if batch < pair.fitted else held).add(x, wanted.astype(np.float32))
    return fitted, held if held.count else None


def _by_group(vector: Array, groups: int) -> Array:
    return vector.reshape(groups, 1, -1)


def _chunks(site: Site, data: Array, aim: Array, groups: int) -> Iterator[tuple[Array, Array]]:
    """Some samples at a time, so that X stays small."""
    if data.ndim < 2 or len(data) != len(aim) or site.layer.node.op_type not in ("Conv", "ConvTranspose"):
        yield data, aim
        return
    _, _, taps, cols = _weight_layout(site)
    each = max(int(np.prod(aim.shape[2:])) * taps * cols * groups, 1)
    step = max(CHUNK // each, 1)
    for start in range(0, len(data), step):
        yield data[start : start + step], aim[start : start + step]


def _present(site: Site) -> Array:
    value = site.layer.node.inputs[site.layer.weight]
    assert value is not None and value.const_value is not None
    matrix = site.layer.matrix(value.const_value.numpy())
    groups, _, rows = matrix.shape
    offset = np.zeros(groups * rows) if site.offset is None else site.offset.read(groups * rows)
    return np.concatenate([matrix, offset.reshape(groups, 1, rows)], axis=1)


def _apply(site: Site, matrix: Array, graph: ir.Graph) -> None:
    value = site.layer.node.inputs[site.layer.weight]
    assert value is not None and value.const_value is not None
    tensor = value.const_value
    stored = site.layer.stored(matrix[:, :-1], tuple(tensor.shape.numpy())).astype(tensor.dtype.numpy())
    value.const_value = ir.Tensor(np.ascontiguousarray(stored), dtype=tensor.dtype, name=value.name)
    if site.offset is not None:
        site.offset.write(graph, matrix[:, -1].reshape(-1), tensor, f"{site.weight}.bias")


def output_error(original: Pieces, other: Pieces, names: Sequence[str], first: int = 0) -> float:
    """sum (y' - y)^2 / sum y^2 over the outputs of all batches from `first` on; the mean of the outputs' ratios."""
    ratios = []
    for name in names:
        wrong = size = 0.0
        for a, b in list(zip(original.get(name), other.get(name), strict=True))[first:]:
            wrong += float(np.square(np.asarray(a, np.float64) - b).sum())
            size += float(np.square(np.asarray(a, np.float64)).sum())
        ratios.append(wrong / max(size, np.finfo(float).tiny))
    return float(np.mean(ratios)) if ratios else 0.0
