"""How far the results of two computations may differ, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prunecli.arrays import Array
from prunecli.errors import PruneError, UnprovedError
from prunecli.model.protos import graphs
from prunecli.verify.compare import same_outputs

Feed = Mapping[str, Any]
Outputs = Mapping[str, Any]
RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Relative to the largest element, by the coarsest type that a model computes in: about 80 units in the last place of
float32, 4 of float16 (onnxruntime computes most of it in float32)."""
OF_NOISE = 8.0
"""Factor on the measured rounding noise: a few runs do not show the largest."""
HOPELESS = 0.1
"""Noise, relative to the scale, from which a result proves nothing."""


@dataclass(frozen=True)
class Difference:
    """The difference of one result. `error`: largest absolute difference, infinite where the kinds differ (shape, type,
    not a number). `scale`: largest element. `allowed`: what the tolerance explains. `hopeless`: too much noise for
    agreement to mean anything. `mismatch`: shape, type or number of elements differ."""

    name: str
    error: float
    scale: float
    allowed: float
    problem: str = ""
    hopeless: bool = False
    mismatch: bool = False

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed

    @property
    def relative(self) -> float:
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else float("inf"))


class Runs(Protocol):
    """One side of a comparison: a session, or an equivalent."""

    def run(self, feed: Feed) -> Outputs: ...


class InconclusiveError(PruneError):
    """The case neither proves nor refutes anything."""


class NoNumbersError(InconclusiveError):
    """All outputs are NaN or infinite: equal or not, they prove nothing."""

    def __init__(self) -> None:
        super().__init__("all that it yields is NaN or infinite")


class RandomOutputsError(UnprovedError):
    """The reference yields different outputs each time it is run."""

    def __init__(self) -> None:
        super().__init__("its outputs are random and cannot be compared")


class Tolerance(Protocol):
    """When the outputs of two models count as equal. `reason`: why they may differ that far, and no further."""

    @property
    def reason(self) -> str: ...

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        """Return the difference of every output. `reference` yielded `wanted` for `feed` and can be run again.

        Raises:
            RandomOutputsError: it yields something else then.
            InconclusiveError: equal or not, the outputs would prove nothing.
        """
        ...


@dataclass(frozen=True)
class SameBits:
    """Nothing may differ: both sides run the same operators on the same numbers. Without `signed_zeros` 0 and -0 are
    the same, for results whose negative zeros became zeros."""

    signed_zeros: bool = True
    reason: str = "nothing, since both sides run the same operators on the same numbers"

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        found = [self._difference(name, got.get(name), value) for name, value in wanted.items()]
        if not all(one.agrees for one in found) and not same_outputs(wanted, reference.run(feed)):
            raise RandomOutputsError
        return found

    def _difference(self, name: str, got: Any, wanted: Any) -> Difference:
        same = same_outputs(self._plain(got), self._plain(wanted))
        return Difference(
            name, 0.0 if same else float("inf"), 0.0, allowed=0.0, problem="" if same else "not the same bits"
        )

    def _plain(self, value: Any) -> Any:
        rounded = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value if self.signed_zeros or not rounded else value + 0


@dataclass(frozen=True)
class Rounding:
    """What the order of sums may change: removing terms that are zero changes nothing else.

    What that amounts to depends on the model: a chain that cancels or divides enlarges it. So it is measured: the
    reference run without optimisation (`plain`), and with all its numbers moved by one unit in the last place
    (`nudged`), shows how much rounding can do. `relative` of the largest element is allowed in any case.
    """

    relative: float
    plain: Callable[[], Runs]
    nudged: Callable[[], Sequence[Runs]]
    reason: str = "what rounding explains, since the order of sums is all that may differ"

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        if not any(np.size(value) for value in wanted.values()):
            raise InconclusiveError("its outputs have no elements, which proves nothing")
        others = [reference.run(feed)]
        if any(one.hopeless for one in differences(wanted, wanted, others, relative=self.relative)):
            raise RandomOutputsError
        others.append(self.plain().run(feed))
        found = differences(got, wanted, others, relative=self.relative)
        if all(one.agrees for one in found):
            return found
        return differences(got, wanted, [*others, *(one.run(feed) for one in self.nudged())], relative=self.relative)


@dataclass(frozen=True)
class OfLargest:
    """A fraction of the largest element of each output (at least of `least`), for the `reason` given."""

    fraction: float
    reason: str
    least: float = 1e-6

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        return [one if one.mismatch else self._allowing(one) for one in differences(got, wanted)]

    def _allowing(self, one: Difference) -> Difference:
        scale = max(one.scale, self.least)
        return replace(one, scale=scale, allowed=self.fraction * scale)


def differences(
    got: Mapping[str, Any], wanted: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = (), relative: float = 1e-5
) -> list[Difference]:
    """Compare every result; `others` are more runs of the reference, which show its noise. `relative`: of the
    largest element, what is allowed in any case."""
    out = []
    for name, value in wanted.items():
        pairs = zip(_leaves(got.get(name)), _leaves(value), *(_leaves(o.get(name)) for o in others), strict=False)
        if len(list(_leaves(got.get(name)))) != len(list(_leaves(value))):
            out.append(
                Difference(name, float("inf"), 0.0, allowed=0.0, problem="another number of elements", mismatch=True)
            )
        out += [_compare(name, a, b, others=rest, relative=relative) for a, b, *rest in pairs]
    return out


def tells(outputs: Mapping[str, Any]) -> bool:
    """Return whether outputs can prove anything: if some are floating-point, one of their elements is finite."""
    floats = [leaf for value in outputs.values() for leaf in _leaves(value) if is_float(leaf) and leaf.size]
    return not floats or any(bool(np.isfinite(leaf.astype(np.float64)).any()) for leaf in floats)


def _leaves(value: Any) -> Iterator[Array]:
    """Yield the arrays in a result: tensors, and those in sequences and maps."""
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
        problem = f"{got.dtype} {got.shape}, not {wanted.dtype} {wanted.shape}"
        return Difference(name, float("inf"), 0.0, allowed=0.0, problem=problem, mismatch=True)
    if not is_float(wanted):
        same = bool(np.array_equal(got, wanted))
        unsure = any(o.shape != wanted.shape or not np.array_equal(o, wanted) for o in others)
        error, problem = (0.0, "") if same else (1.0, "other values, of a type that is not rounded")
        return Difference(name, error, 1.0, allowed=1.0 if unsure else 0.0, problem=problem, hopeless=unsure)
    error, scale = distance(got, wanted), magnitude(wanted)
    noise = max((d for o in others if o.shape == wanted.shape and np.isfinite(d := distance(o, wanted))), default=0.0)
    allowed = max(relative * scale, OF_NOISE * noise)
    problem = "" if np.isfinite(error) else "other elements are not numbers"
    return Difference(
        name, error, scale, allowed=allowed, problem=problem, hopeless=OF_NOISE * noise > HOPELESS * scale
    )


def is_float(array: Array) -> bool:
    """Return whether elements are floating-point; numpy does not count bfloat16 as such."""
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


# -- how much rounding a model computes with --------------------------------------------------------------

SMALL = 16
"""Most elements of a vector that may be geometry rather than weights."""
_NAMES = {
    TensorProto.DOUBLE: "float64", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


def relative_of(path: Path) -> float:
    """Return the tolerance for the coarsest type that a model stores or takes."""
    model = onnx.load(str(path), load_external_data=False, format="protobuf")
    stored = {t.data_type for graph in graphs(model) for t in graph.initializer}
    stored |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    stored |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return max((RELATIVE[_NAMES[code]] for code in stored if code in _NAMES), default=RELATIVE["float32"])


def nudged(model: bytes, seed: int) -> bytes:
    """Return the model with every weight moved one unit up or down; not exponents, or the scales of a Resize."""
    out, rng = onnx.load_from_string(model), np.random.default_rng(seed)
    constants = (n.attribute[0].t for n in out.graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t"))
    for tensor in (*out.graph.initializer, *constants):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 or array.size > SMALL:
            moved = array * (1 + np.finfo(array.dtype).eps * rng.choice([-1, 1], array.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved, array.dtype), tensor.name))
    return bytes(out.SerializeToString())
