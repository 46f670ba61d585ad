"""How far two computations of the same thing may lie apart.

Removing terms that are zero changes the order of sums, nothing else. What that amounts to depends on the model:
a chain that cancels or divides enlarges it. So the allowance is measured: the reference run without
optimisation, and with all its numbers moved by one unit in the last place, shows how much rounding can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Of the largest element, by the coarsest type a model computes in: some 80 units in the last place of float32,
4 of float16 (onnxruntime computes most of it in float32)."""
OF_NOISE = 8.0
"""Times the measured rounding noise: a sample of a few runs does not show the largest there is."""
HOPELESS = 0.1
"""A result of which rounding alone changes such a part of its scale proves nothing."""


@dataclass(frozen=True)
class Difference:
    """One result of two runs. `error`: largest absolute difference, infinite where the kinds differ (shape,
    type, not a number); `scale`: largest element; `allowed`: what rounding explains; `hopeless`: that is too
    much for agreement to mean anything."""

    name: str
    error: float
    scale: float
    allowed: float
    problem: str = ""
    hopeless: bool = False

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else float("inf"))


def differences(
    got: Mapping[str, Any], wanted: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = (), relative: float = 1e-5
) -> list[Difference]:
    """Compare every result; `others` are more runs of the reference, which show its noise. `relative`: of the
    largest element, what is allowed in any case."""
    out = []
    for name, value in wanted.items():
        pairs = zip(_leaves(got.get(name)), _leaves(value), *(_leaves(o.get(name)) for o in others), strict=False)
        if len(list(_leaves(got.get(name)))) != len(list(_leaves(value))):
            out.append(Difference(name, float("inf"), 0.0, 0.0, "another number of elements"))
        out += [_compare(name, a, b, rest, relative) for a, b, *rest in pairs]
    return out


def tells(outputs: Mapping[str, Any]) -> bool:
    """Whether outputs can prove anything: of those that are floating-point, some element is a finite number."""
    floats = [leaf for value in outputs.values() for leaf in _leaves(value) if is_float(leaf) and leaf.size]
    return not floats or any(bool(np.isfinite(leaf.astype(np.float64)).any()) for leaf in floats)


def _leaves(value: Any) -> Iterator[Array]:
    """The arrays in a result: tensors, sequences and maps of them."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield np.asarray(value)


def _compare(name: str, got: Array, wanted: Array, others: Sequence[Array], relative: float) -> Difference:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return Difference(name, float("inf"), 0.0, 0.0, f"{got.dtype} {got.shape}, not {wanted.dtype} {wanted.shape}")
    if not is_float(wanted):
        same = bool(np.array_equal(got, wanted))
        unsure = any(o.shape != wanted.shape or not np.array_equal(o, wanted) for o in others)
        error, problem = (0.0, "") if same else (1.0, "other values, of a type that is not rounded")
        return Difference(name, error, 1.0, 1.0 if unsure else 0.0, problem, unsure)
    error, scale = distance(got, wanted), magnitude(wanted)
    noise = max((d for o in others if o.shape == wanted.shape and np.isfinite(d := distance(o, wanted))), default=0.0)
    allowed = max(relative * scale, OF_NOISE * noise)
    problem = "" if np.isfinite(error) else "other elements are not numbers"
    return Difference(name, error, scale, allowed, problem, OF_NOISE * noise > HOPELESS * scale)


def is_float(array: Array) -> bool:
    """Whether elements can be rounded; numpy does not count bfloat16 among its own."""
    return array.dtype.kind == "f" or "float" in array.dtype.name


def magnitude(array: Array) -> float:
    """The largest finite absolute value."""
    values = np.abs(array.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def distance(got: Array, wanted: Array) -> float:
    """The largest absolute difference; infinite where one side alone is not finite, or the infinities differ."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))
