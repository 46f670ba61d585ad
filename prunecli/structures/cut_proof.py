"""Proof of a structural cut: the saved file against the original with the removed positions forced to zero.

Both run in onnxruntime on the same inputs, and must agree to rounding. Where the cut runs through the axis of
a normalisation, zero is not the same as absent: there the reference normalises over the kept positions, and
the distance to the original as it was is told as the cost of the approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from prunecli.data.columns import free_memory
from prunecli.errors import PruneError
from prunecli.model.external_data import read_whole
from prunecli.runtime import Session, TimedOutError
from prunecli.structures.cut_reference import FLOATS, Forced, masked_original, stored_bytes
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.inputs import NoNumbersError, UnprovedError, cannot_open, never_ran
from prunecli.verify.outline import graphs
from prunecli.verify.tolerance import RELATIVE, Difference, differences, tells

RUN_UP_TO = 1 << 30
"""Bytes of weights up to which reference and sessions are held in memory, however much is free."""
LARGEST = (1 << 31) - (1 << 26)
"""Bytes that a reference in one piece may have; protobuf ends at 2 GiB."""
COPIES = 8
"""How often a proof holds the weights: reference (serialised, two sessions), original, cut, copies on the way."""
SMALL = 16
"""Vectors up to so many elements may be geometry rather than weights."""
Outputs = Mapping[str, Any]
HINT = "nothing was written; leave the layer out with --exclude, and please report the model"
_NAMES = {
    TensorProto.DOUBLE: "float64", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """Inputs to compare on, or why there are none. `required`: the original must run on them (real data); `spare`: only
    used where it ran on none before."""

    label: str
    feed: Outputs | PruneError
    required: bool = False
    spare: bool = False


@dataclass
class CutProof:
    """What to prove about a staged file: that it is the original at `path` less what `forced` lists."""

    path: Path
    forced: Forced
    trials: Callable[[Session], Iterable[Trial]]
    open: Callable[..., Session] = Session.open
    progress: Progress = no_progress
    worst: list[Difference] = field(default_factory=list)
    effects: list[Difference] = field(default_factory=list)
    effective: bool = False
    inside: bool = False

    def __call__(self, staged: Path) -> Verification:
        """Compare.

        Raises:
            UnprovedError: the original cannot be run, or not beside its reference.
            PruneError: naming the first tensor that differs.
        """
        check_room(self.path)
        try:
            original = self.open(self.path)
        except PruneError as error:
            raise cannot_open(error) from error
        sides = _Sides(self.path, staged, self.forced, self.open)
        ran, problem = 0, None
        for trial in self.progress(self.trials(original), "proving"):
            if trial.spare and ran:
                break
            try:
                if isinstance(trial.feed, PruneError):
                    raise _OriginalFailsError(trial.feed.message, trial.feed.hint)
                ran += self._agrees(sides, trial, trial.feed, original)
            except (_OriginalFailsError, NoNumbersError) as error:
                problem = problem or error
                if trial.required:
                    raise PruneError(error.message, error.hint) from error
        if not ran:
            raise never_ran(problem)
        return self._verdict(sides, ran)

    def _agrees(self, sides: _Sides, trial: Trial, feed: Outputs, original: Session) -> int:
        wanted = _run_or(sides.reference, feed, original)
        if not any(np.size(value) for value in wanted.values()):
            raise _OriginalFailsError("its outputs have no elements, which proves nothing", "")
        if not tells(wanted):
            raise NoNumbersError
        got = _run_cut(sides.cut, trial.label, feed)
        others = [sides.reference.run(feed), sides.plain_reference.run(feed)]
        if any(d.hopeless for d in differences(wanted, wanted, others[:1], sides.relative)):
            raise _OriginalFailsError("its outputs are random and cannot be compared", "")
        found = differences(got, wanted, others, sides.relative)
        if not all(d.agrees for d in found):
            others += [s.run(feed) for s in sides.nudged]
            found = differences(got, wanted, others, sides.relative)
        wrong = next((d for d in found if not d.agrees), None)
        if wrong is not None:
            raise self._disagreement(sides, trial.label, feed, wrong)
        telling = not all(d.hopeless for d in found) and self._has_effect(original, feed, wanted, sides)
        self._agrees_inside(sides, trial.label, feed, telling)
        self.worst += found
        if sides.restricted:
            self.effects += differences(got, sides.zeroed.run(feed))
        return 1

    def _has_effect(self, original: Session, feed: Outputs, masked: Outputs, sides: _Sides) -> bool:
        """Whether the outputs depend on what was removed; if not (a saturated Sigmoid), they cannot tell."""
        if not self.effective:
            found = differences(masked, original.run(feed), relative=sides.relative)
            self.effective = not all(d.agrees for d in found)
        return self.effective

    def _agrees_inside(self, sides: _Sides, label: str, feed: Outputs, telling: bool) -> None:
        """Every value before the outputs must agree, too: outputs may hardly depend on one. Looked at once, and always
        where they depend on nothing of the cut (`telling`)."""
        if self.inside:
            return
        first = sides.first_difference(feed)
        if first is None and telling:
            return
        if first is None:
            raise _OriginalFailsError("its outputs tell nothing, and its inner values cannot be compared", "")
        if first:
            raise PruneError(f"the cut model does not compute what the masked original does ({label}): "
                             f"the first tensor that differs is {first}", HINT)  # fmt: skip
        self.inside = True

    def _disagreement(self, sides: _Sides, label: str, feed: Outputs, wrong: Difference) -> PruneError:
        first = sides.first_difference(feed)
        where = f"the first tensor that differs is {first}" if first else f"the output {wrong.name!r} differs"
        amount = wrong.problem or f"by {wrong.error:.2g} at a scale of {wrong.scale:.2g}"
        return PruneError(f"the cut model does not compute what the masked original does ({label}): {where}; "
                          f"output {wrong.name!r}: {amount}", HINT)  # fmt: skip

    def _verdict(self, sides: _Sides, ran: int) -> Verification:
        largest = max((d.error for d in self.worst), default=0.0)
        relative = max((d.relative for d in self.worst), default=0.0)
        if not sides.restricted:
            detail = "equals, to rounding, the original with the removed positions forced to zero"
            return Verification("exact", largest, relative, ran, detail)
        effect = max((d.relative for d in self.effects), default=0.0)
        detail = (
            "equals, to rounding, the original whose normalisations see the kept positions only; with the removed"
            f" ones forced to zero instead, outputs would differ by {effect:.2g} of their largest element"
        )
        return Verification("approximate", largest, relative, ran, detail)


class _OriginalFailsError(PruneError):
    """The original cannot be run on these inputs, so nothing is proved or refuted by them."""


@dataclass
class _Sides:
    """The sessions of one proof, opened when they are needed. Models are kept serialised: they may be large."""

    path: Path
    staged: Path
    forced: Forced
    open: Callable[..., Session]

    @cached_property
    def restricted(self) -> bool:
        """Whether the cut runs through the axis of a normalisation."""
        return self.forced.restricts

    @cached_property
    def masked(self) -> bytes:
        return bytes(masked_original(read_whole(self.path), self.forced, self.restricted).SerializeToString())

    @cached_property
    def reference(self) -> Session:
        return self.open(self.masked)

    @cached_property
    def plain_reference(self) -> Session:
        return self.open(self.masked, optimise=False)

    @cached_property
    def zeroed(self) -> Session:
        return self.open(masked_original(read_whole(self.path), self.forced))

    @cached_property
    def cut(self) -> Session:
        return self.open(self.staged)

    @cached_property
    def nudged(self) -> Sequence[Session]:
        """The reference with every weight moved by one unit in the last place: what rounding does to it."""
        return [self.open(_nudged(self.masked, seed), optimise=False) for seed in range(2)]

    def first_difference(self, feed: Outputs) -> str | None:
        def nudged() -> Iterator[bytes]:
            yield from (_nudged(self.masked, seed) for seed in range(2))

        return first_difference(self.staged, self.masked, nudged, self.forced, feed, self.relative)

    @cached_property
    def relative(self) -> float:
        """The allowance for the coarsest type that the model stores or takes."""
        model = onnx.load(str(self.path), load_external_data=False, format="protobuf")
        stored = {t.data_type for graph in graphs(model) for t in graph.initializer}
        stored |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        stored |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
        return max((RELATIVE[_NAMES[code]] for code in stored if code in _NAMES), default=RELATIVE["float32"])


def _nudged(model: bytes, seed: int) -> bytes:
    """Every weight one unit up or down; not exponents, or the scales of a Resize."""
    out, rng = onnx.load_from_string(model), np.random.default_rng(seed)
    constants = (n.attribute[0].t for n in out.graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t"))
    for tensor in (*out.graph.initializer, *constants):
        if tensor.data_type not in FLOATS[:2]:
            continue
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1 or array.size > SMALL:
            moved = array * (1 + np.finfo(array.dtype).eps * rng.choice([-1, 1], array.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved, array.dtype), tensor.name))
    return bytes(out.SerializeToString())


def _run_or(reference: Session, feed: Outputs, original: Session) -> Outputs:
    """The reference's outputs; where it fails, the original must fail, too."""
    try:
        return reference.run(feed)
    except TimedOutError:
        raise
    except PruneError as error:
        try:
            original.run(feed)
        except PruneError as cause:
            raise _OriginalFailsError(cause.message, cause.hint) from cause
        raise PruneError(f"internal: the reference cannot be run: {error.message}", HINT) from error


def _run_cut(cut: Session, label: str, feed: Outputs) -> Outputs:
    try:
        return cut.run(feed)
    except PruneError as error:
        raise PruneError(f"the original runs on {label}, the cut model does not: {error.message}", HINT) from error


def check_room(path: Path) -> None:
    """Whether a model of that size can be run beside its reference.

    Raises:
        UnprovedError: protobuf holds no such reference in one piece, or memory may not suffice for it.
    """
    size = stored_bytes(path)
    most = min(LARGEST, max(RUN_UP_TO, free_memory() // COPIES))
    if size > most:
        raise UnprovedError(
            f"nothing is proved, since {size / 2**30:.1f} GiB of weights cannot be run beside their reference:"
            f" {most / 2**30:.1f} GiB can, in the memory that is free"
        )


PORTION = 1 << 28
"""Bytes of intermediate values that are held at once, of each side."""
LOOSER = 10.0
"""An intermediate value is told as different beyond so many times what an output is allowed."""


def first_difference(
    staged: Path,
    reference: bytes,
    nudged: Callable[[], Iterable[bytes]],
    forced: Forced,
    feed: Mapping[str, Any],
    relative: float,
) -> str | None:
    """`'VALUE' (OP NODE): what differs` for the first such value in the order of the graph; "" if there is none, None
    if they cannot be compared.

    Values that only one side has (bodies of functions, what a rewrite inserted) are not compared, nor those computed
    from shapes alone, which differ until they meet data.

    Args:
        reference: serialised, as are `nudged`, versions of it that differ by rounding, which show its noise.
    """
    cut = onnx.load(str(staged), load_external_data=False, format="protobuf")
    theirs = {name for node in onnx.load_from_string(reference).graph.node for name in node.output if name}
    shapes = _of_shapes(cut.graph)
    producers = {n: node for node in cut.graph.node for n in node.output if n in theirs and n not in shapes}

    def run(model: Path | bytes, names: list[str]) -> Mapping[str, Any]:
        found = Session.open(model, outputs=names, optimise=False).run(feed, names)
        return found if model is staged else {name: _less(found[name], forced, name) for name in names}

    for names in _portions([name for name in producers if _is_float(name, forced)], forced, feed):
        try:
            got, wanted = run(staged, names), run(reference, names)
            unsure = [name for name in names if _differs(got[name], wanted[name], (), relative * LOOSER)]
            others = [run(model, unsure) for model in nudged()] if unsure else []
        except PruneError:
            return None
        for name in unsure:
            problem = _differs(got[name], wanted[name], [other[name] for other in others], relative * LOOSER)
            if problem:
                node = producers[name]
                return f"{name!r} ({node.op_type} {node.name or 'without a name'}): {problem}"
    return ""


def _of_shapes(graph: onnx.GraphProto) -> set[str]:
    """Values computed from shapes and constants alone."""
    fixed, found = {tensor.name for tensor in graph.initializer}, set[str]()
    for node in graph.node:
        read = {name for name in node.input if name}
        if node.op_type in ("Shape", "Size") or (read & found and read <= found | fixed):
            found.update(node.output)
        elif read <= fixed:
            fixed.update(node.output)
    return found


def _portions(names: Sequence[str], forced: Forced, feed: Mapping[str, Any]) -> Iterator[list[str]]:
    """The values in their order, so many at a time as fit into the memory that one look may take."""
    usual = sum(math.prod(forced.shapes.get(name, ())) for name in feed)
    times = max(sum(np.size(value) for value in feed.values()) / max(usual, 1), 1.0)
    portion, held = list[str](), 0.0
    for name in names:
        size = 4 * math.prod(forced.shapes[name]) * times
        if portion and held + size > PORTION:
            yield portion
            portion, held = [], 0.0
        portion.append(name)
        held += size
    if portion:
        yield portion


def _is_float(name: str, forced: Forced) -> bool:
    return name in forced.shapes and forced.dtypes.get(name) in FLOATS


def _less(value: Any, forced: Forced, name: str) -> Any:
    for axis, gone in forced.positions.get(name, {}).items():
        value = np.delete(value, gone, axis)
    return value


def _differs(got: Any, wanted: Any, others: Sequence[Any], relative: float) -> str:
    """Where shapes differ an axis was cut that a plan cannot list: its length depends on dynamic dimensions."""
    arrays = isinstance(got, np.ndarray) and isinstance(wanted, np.ndarray)
    if not arrays or got.shape != wanted.shape:
        return ""
    (found,) = differences({"": got}, {"": wanted}, [{"": other} for other in others], relative)
    return "" if found.agrees else f"by {found.error:.2g} at a scale of {found.scale:.2g}"
