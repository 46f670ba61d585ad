"""Which axis of each input and output counts the samples: the first, unless names or the user say otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

Axes = Mapping[str, int]
"""By the name of an input or output, where that is not the first."""
_SHORT = ("n", "b", "bs")
"""Names of batch dimensions, besides those that say "batch"."""


def parse_axes(texts: Sequence[str]) -> dict[str, int]:
    """Parse the texts of `--batch-axis`.

    Raises:
        PruneError: not NAME=N with N from 0.
    """
    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or not name or not (number.isascii() and number.isdigit()):
            raise PruneError(f"--batch-axis {text}: not understood", "write --batch-axis state=1; the first axis is 0")
        found[name] = int(number)
    return found


def batch_axes(inputs: Sequence[InputSpec], outputs: Sequence[InputSpec], given: Axes) -> dict[str, int]:
    """Return the batch axis of every input and output that has axes.

    It is the axis that is given; else the one whose name contains batch or is the name of another input's batch; else
    the first. Where the first axis of an input is fixed and all inputs share a dimension named n, b or bs, it is that:
    (S, N, 5), (1, N, 8).

    Raises:
        PruneError: an input or output that the model does not have, or an axis that it does not have.
    """
    _check(given, [*inputs, *outputs])
    found = {spec.name: given[spec.name] for spec in inputs if spec.name in given}
    for spec in inputs:
        said = next((axis for axis, dim in enumerate(spec.shape) if "batch" in str(dim).lower()), None)
        if spec.name not in found and said is not None:
            found[spec.name] = said
    first = dict.fromkeys((spec.name for spec in inputs if spec.shape), 0)
    names = _names(inputs, found) or _shared(inputs) or _names(inputs, first)
    found |= {spec.name: _axis(spec, names) for spec in inputs if spec.shape and spec.name not in found}
    names = _names(inputs, found)
    found |= {spec.name: given.get(spec.name, _axis(spec, names)) for spec in outputs if spec.shape}
    return found


def _axis(spec: InputSpec, names: set[str]) -> int:
    """Return the first axis with one of the names, or, where the first axis is fixed, one named n, b or bs; else 0."""
    named = next((axis for axis, dim in enumerate(spec.shape) if dim in names), None)
    if named is None and isinstance(spec.shape[0], int):
        named = next((axis for axis, dim in enumerate(spec.shape) if str(dim).lower() in _SHORT), None)
    return named or 0


def _shared(specs: Sequence[InputSpec]) -> set[str]:
    """Return the names among n, b and bs that all inputs with axes share, if the first axis of one is fixed (a
    state)."""
    shapes = [spec.shape for spec in specs if spec.shape]
    if not any(isinstance(shape[0], int) for shape in shapes):
        return set()
    shared = set(shapes[0]).intersection(*shapes[1:])
    return {dim for dim in shared if isinstance(dim, str) and dim.lower() in _SHORT}


def _names(specs: Sequence[InputSpec], axes: Axes) -> set[str]:
    dims = (spec.shape[axes[spec.name]] for spec in specs if spec.name in axes)
    return {dim for dim in dims if isinstance(dim, str)}


def _check(given: Axes, specs: Sequence[InputSpec]) -> None:
    known = {spec.name: spec for spec in specs}
    for name, axis in given.items():
        if name not in known:
            raise PruneError(f"--batch-axis: the model has no input named {name}", f"it has {', '.join(known)}")
        if known[name].shape and axis >= len(known[name].shape):
            raise PruneError(f"--batch-axis {name}={axis}: {known[name].describe()} has no such axis",
                             "the first axis is 0")  # fmt: skip


def samples_first(spec: InputSpec, axis: int) -> InputSpec:
    """The spec of the same values with the samples on the first axis."""
    if not axis:
        return spec
    return replace(spec, shape=(spec.shape[axis], *spec.shape[:axis], *spec.shape[axis + 1 :]))
