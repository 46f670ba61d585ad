"""Bitwise comparison: the outputs of two models, and the tensors that two files store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.float_keys import CHUNK_BYTES
from prunecli.model.constants import Holder, holders
from prunecli.model.graphs import all_graphs
from prunecli.storage.stored import unmap
from prunecli.types import Progress

Place = tuple[int, str]
"""The number of a graph, and the name of a tensor in it."""
Holds = Callable[[Array, Array], bool]
"""holds(original, found): whether `found` is what `original` was to become."""


def pieces_of(array: Array, itemsize: int = 0) -> Iterator[Array]:
    """Yield cache-sized slices of an array with elements of `itemsize` bytes."""
    flat, step = array.reshape(-1), CHUNK_BYTES // (itemsize or array.itemsize)
    return (flat[start : start + step] for start in range(0, flat.size, step))


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays of one shape and type hold the same bytes; in pieces, so that nothing is copied."""
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    return one.size == other.size and all(map(np.array_equal, pieces_of(one), pieces_of(other)))


def same_outputs(left: Any, right: Any) -> bool:
    """Return whether two results of a run are bitwise the same: arrays, sequences or maps of them, or nothing."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        alike = left.dtype == right.dtype and left.shape == right.shape
        if not alike or left.dtype == object:
            return alike and bool(left.tolist() == right.tolist())
        return same_bits(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_outputs(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_outputs, left, right))
    return type(left) is type(right) and bool(left == right)


def placed(model: ir.Model) -> dict[Place, Holder]:
    """Every stored tensor by its place."""
    numbers = {id(graph): number for number, graph in enumerate(all_graphs(model))}
    return {(numbers[id(holder.graph)], holder.name): holder for holder in holders(model)}


def check_tensors(
    before: Mapping[Place, ir.TensorProtocol],
    saved: ir.Model,
    expected: Mapping[Place, Holds],
    hint: str,
    progress: Progress,
) -> None:
    """Compare every stored tensor of a saved model with that of the original. `expected`: the changed tensors; all
    others must have the same bits. One tensor of each side is in memory at a time.

    Raises:
        PruneError: a tensor is missing, new, or not what it must be.
    """
    found = placed(saved)
    if found.keys() != before.keys():
        raise PruneError(f"internal: other tensors were stored than the model has: {len(found)} of {len(before)}", hint)
    for place, source in progress(list(before.items()), "verifying", len(before)):
        theirs = found[place].tensor
        if not same_tensor(source, theirs, expected.get(place, same_bits)):
            raise PruneError(f"internal: {place[1]} was not stored as it should be", hint)
        unmap(source)
        unmap(theirs)


def same_tensor(source: ir.TensorProtocol, saved: ir.TensorProtocol, holds: Holds = same_bits) -> bool:
    """Return whether `saved` has the type and shape of `source`, and values for which `holds` is true."""
    if source.dtype != saved.dtype or source.shape != saved.shape:
        return False
    if source.dtype == ir.DataType.STRING:
        return bool(source.numpy().tolist() == saved.numpy().tolist())
    if source.dtype.bitwidth < 8 and holds is same_bits:
        return bool(source.tobytes() == saved.tobytes())
    return holds(np.asarray(source.numpy()), np.asarray(saved.numpy()))
