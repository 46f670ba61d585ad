"""What units do on data: which positions, where units meet, never change there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.data import Dataset
from prunecli.model import Model
from prunecli.shrinking.numbering import Measured
from prunecli.shrinking.options import ShrinkOptions
from prunecli.shrinking.surplus import Finder
from prunecli.types import Progress, no_progress

PORTION = 1 << 27
"""Bytes of values that are looked at in one run over the data."""


def constant_on(
    data: Dataset, file: Model, finder: Finder, options: ShrinkOptions, progress: Progress = no_progress
) -> Measured:
    """(value, axis) -> positions that stay within `--tolerance` of one number over all data, and that number.

    Of a range that holds zero the number is zero, so that what never fires is silent.
    """
    tolerance, batch_size, execution = options.tolerance or 0.0, options.batch_size, options.execution
    wanted: dict[ir.Value, list[int]] = defaultdict(list)
    for end in finder.ends:
        if end.value.producer() is not None and end.axis not in wanted[end.value]:
            wanted[end.value].append(end.axis)
    names = [value.name or "" for value, axes in wanted.items() if axes]
    facts = finder.numbering.facts
    sizes = {value.name or "": 4 * int(np.prod(facts.shapes[value])) for value in wanted}
    ranges: dict[tuple[str, int], tuple[Array, Array]] = {}
    axes = {value.name or "": places for value, places in wanted.items() if places}
    for number, portion in enumerate(portions := _portions(names, sizes)):
        session = execution.open(file.ir, outputs=portion)
        told = f"looking at the data, {number + 1} of {len(portions)}"
        for batch in progress(data.batches(batch_size), told, data.batch_count(batch_size)):
            found = session.run(batch.feed, portion)
            for name in portion:
                _widen(ranges, name, axes[name], value=np.asarray(found[name]))
    return {key: _level(low, high, tolerance) for key, (low, high) in ranges.items()}


def _portions(names: list[str], sizes: Mapping[str, int]) -> list[list[str]]:
    out, held = list[list[str]](), PORTION
    for name in names:
        if held + sizes[name] > PORTION or not out:
            out.append([])
            held = 0
        out[-1].append(name)
        held += sizes[name]
    return out


def _widen(ranges: dict[tuple[str, int], tuple[Array, Array]], name: str, axes: list[int], value: Array) -> None:
    for axis in axes:
        others = tuple(place for place in range(value.ndim) if place != axis)
        low, high = value.min(others).astype(np.float64), value.max(others).astype(np.float64)
        before = ranges.get((name, axis))
        if before is not None:
            low, high = np.minimum(low, before[0]), np.maximum(high, before[1])
        ranges[name, axis] = low, high


def _level(low: Array, high: Array, tolerance: float) -> tuple[Array, Array]:
    silent = (low >= -tolerance) & (high <= tolerance)
    level = high - low <= 2 * tolerance
    positions = np.flatnonzero(silent | level)
    middle = np.where(silent, 0.0, (low + high) / 2)
    return positions, middle[positions]
