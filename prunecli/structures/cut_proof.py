"""Proof of a structural cut: the saved file against the original with the removed positions set to zero.

Both run in onnxruntime on the same inputs, and must agree to rounding. Where the cut affects an axis that a
normalisation averages over, zero differs from absent: there the reference normalises over the kept positions, and the
distance to the original is reported as the cost of the approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from prunecli.errors import OutOfMemoryError, PruneError, UnprovedError
from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.external_data import read_whole
from prunecli.model.tensors import FLOATS
from prunecli.runtime import Session
from prunecli.structures.cut_reference import Forced, masked_original, stored_bytes
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.inner_values import InnerValues
from prunecli.verify.inputs import Case, Described, TakesInputs
from prunecli.verify.pieces import Handed, ModelPiece, ModelPieces, Outlined, ValueTypes, divide, own
from prunecli.verify.prove import (
    Agreement,
    Claim,
    NothingRanError,
    Proof,
    open_original,
    open_result,
    prove,
)
from prunecli.verify.tolerance import (
    Difference,
    Feed,
    InconclusiveError,
    Outputs,
    Rounding,
    Runs,
    Tolerance,
    differences,
    nudged,
    relative_of,
)

T = TypeVar("T")
WHOLE_UP_TO = 128 << 20
"""Bytes of a model that is proved as one piece: original, reference and result take twelve times as much."""
FEW = 20
"""Sizes that are tried on a model in pieces."""
HINT = "nothing was written; leave the layer out with --exclude, and please report the model"


@dataclass
class CutProof:
    """What to prove about a staged file: that it is the original at `path` less what `forced` lists.

    `cases` makes the inputs, given a session of the original, or its description. A model of more than WHOLE_UP_TO
    bytes, or one for which there is too little memory, is proved in pieces, one at a time in memory: each runs on what
    the reference yields before it.
    """

    path: Path
    forced: Forced
    cases: Callable[[TakesInputs], Iterable[Case]]
    open: Callable[..., Session] = Session.open
    progress: Progress = no_progress

    def __call__(self, staged: Path) -> Verification:
        """Compare.

        Raises:
            UnprovedError: the original cannot be run, or not beside its reference.
            OutOfMemoryError: there is no room for a piece.
            PruneError: naming the first tensor that differs.
        """
        if stored_bytes(self.path) <= WHOLE_UP_TO:
            with suppress(MemoryError, OutOfMemoryError):
                return self._whole(staged)
        with Scratch() as folder:
            return self._in_pieces(staged, folder)

    def _whole(self, staged: Path) -> Verification:
        both = _Sides(self.path, staged, self.forced, open=self.open)
        found = both.prove(list(self.cases(both.original)), self.progress)
        return self._verdict(found, both.effects, as_written=both.as_written)

    def _in_pieces(self, staged: Path, folder: Path) -> Verification:
        """All cases together; where the original runs on none of them, others in turn."""
        models = Outlined.read(self.path), Outlined.read(staged)
        types = ValueTypes(self.forced.dtypes, self.forced.shapes)
        pieces = ModelPieces(*models, types, divide(*models, types))
        cases = list(islice(self.cases(Described(load(self.path))), FEW))
        first = [case for case in cases if not case.spare]
        attempts = [first, *([case] for case in cases if case.spare)]
        problem: NothingRanError | None = None
        for attempt in filter(None, attempts):
            try:
                return self._through(pieces, attempt, folder)
            except NothingRanError as error:
                problem = problem or error
        raise problem or UnprovedError("there are no inputs to run the original on")

    def _through(self, pieces: ModelPieces, cases: Sequence[Case], folder: Path) -> Verification:
        """Compare every piece on what the reference yields for each case; cases on which the original fails are left
        out."""
        runs = [Handed(case.feed(), case.label, case.required) for case in cases]
        found, effects, as_written = list[Difference](), list[Difference](), False
        for piece in self.progress(list(pieces), "proving"):
            both = _Sides(*piece.write(folder), self.forced, self.open, piece)
            found += both.prove([run.case(piece) for run in runs], no_progress).differences
            effects += both.effects or []
            as_written |= both.as_written
            runs = [
                run.after(piece, *both.results[run.label], self.forced.less)
                for run in runs
                if run.label in both.results
            ]
        effects_told = effects if self.forced.restricts else None
        return self._verdict(Proof(len(runs), found), effects_told, len(pieces), as_written=as_written)

    def _verdict(
        self, found: Proof, effects: Sequence[Difference] | None, pieces: int = 1, as_written: bool = False
    ) -> Verification:
        """Return the verification. `effects`: the error of plain zeros where the reference normalises over the kept
        positions. `as_written`: both were run without integer kernels."""
        how = f"; proved in {pieces} pieces, each on what the reference yields before it" if pieces > 1 else ""
        if as_written:
            how += (
                "; both run as they are written, without kernels of integers, which zeros in between keep it from using"
            )
        to = "zero, and what a choice goes by to the lowest number" if self.forced.chooses else "zero"
        if effects is None:
            return found.verification(
                f"equals, to rounding, the original with the removed positions forced to {to}{how}"
            )
        effect = max((one.relative for one in effects), default=0.0)
        return found.verification(
            "equals, to rounding, the original whose normalisations see the kept positions only; with the removed"
            f" ones forced to {to} instead, outputs would differ by {effect:.2g} of their largest element{how}",
            "approximate",
        )


def _constant(value: T) -> Callable[[], T]:
    return lambda: value


@dataclass
class _Reference:
    """A session of the original, opened on its first run. Its outputs are returned without the removed positions;
    `latest` are the full ones."""

    session: Callable[[], Session]
    forced: Forced
    compared: Callable[[str], bool]
    latest: Outputs = field(default_factory=dict)

    def run(self, feed: Feed) -> Outputs:
        self.latest = self.session().run(feed)
        return {name: self.forced.less(name, v) for name, v in self.latest.items() if self.compared(name)}


@dataclass
class _Result:
    """The session of the cut model."""

    session: Session

    def run(self, feed: Feed) -> Outputs:
        return self.session.run(own(feed))


@dataclass
class _Sides:
    """One proof, of a whole model or of a piece. Sessions are opened when needed. Models are kept serialised: they may
    be large, and are freed with this object. `results`: by case, the outputs of the reference and of the cut."""

    path: Path
    staged: Path
    forced: Forced
    open: Callable[..., Session]
    piece: ModelPiece | None = None
    results: dict[str, tuple[Outputs, Outputs]] = field(default_factory=dict)
    effects: list[Difference] | None = None
    effective: bool = False
    inside: bool = False
    as_written: bool = False

    @cached_property
    def original(self) -> Session:
        return open_original(partial(self.open, self.path))

    def prove(self, cases: Iterable[Case], progress: Progress) -> Proof:
        original = self._side(lambda: self.original)
        cut = open_result(partial(self.open, self.staged), partial(self.open, self.path), "cut model", hint=HINT)
        if self.forced.restricts:
            self.effects = []
        claim = Claim(reference=self.reference, result=_Result(cut), original=original, tolerance=self.tolerance,
                      names=("cut model", "masked original"), hint=HINT, locate=self.inner.first_difference,
                      demand=self.demand)  # fmt: skip
        return prove(claim, cases, progress)

    def _side(self, session: Callable[[], Session]) -> _Reference:
        return _Reference(session, self.forced, (lambda name: True) if self.piece is None else self.piece.is_compared)

    @cached_property
    def masked(self) -> bytes:
        return bytes(masked_original(read_whole(self.path), self.forced, self.forced.restricts).SerializeToString())

    @cached_property
    def reference(self) -> _Reference:
        return self._side(_constant(self.open(self.masked)))

    @cached_property
    def plain_reference(self) -> _Reference:
        return self._side(_constant(self.open(self.masked, mode="plain")))

    @cached_property
    def fused_original(self) -> _Reference:
        return self._side(lambda: self.original)

    @cached_property
    def plain_original(self) -> _Reference:
        return self._side(_constant(self.open(self.path, mode="plain")))

    @cached_property
    def plain_cut(self) -> _Result:
        return _Result(self.open(self.staged, mode="plain"))

    @cached_property
    def zeroed(self) -> _Reference:
        return self._side(_constant(self.open(masked_original(read_whole(self.path), self.forced))))

    @cached_property
    def nudged(self) -> Sequence[_Reference]:
        return [self._side(_constant(self.open(model, mode="plain"))) for model in self._moved()]

    def _moved(self) -> Iterator[bytes]:
        """Return the reference with every weight moved by one unit in the last place, to measure the effect of
        rounding."""
        return (nudged(self.masked, seed) for seed in range(2))

    @property
    def tolerance(self) -> Tolerance:
        found: Tolerance = Rounding(self.relative, lambda: self.plain_reference, lambda: self.nudged)
        if self.forced.zeros or self.forced.zero_points:
            found = _AsWritten(found, self)
        return found if self.piece is None else _WhereAlike(found, self.piece.outputs)

    @property
    def inner(self) -> InnerValues:
        forced = self.forced
        floats = {name for name in forced.shapes if forced.dtypes.get(name) in FLOATS}
        return InnerValues(self.staged, self.masked, nudged=self._moved, aligned=forced.less, shapes=forced.shapes,
                           floats=floats, relative=self.relative, given=own)  # fmt: skip

    @cached_property
    def relative(self) -> float:
        return relative_of(self.path)

    def demand(self, agreed: Agreement) -> None:
        """Require that the outputs depend on the removed positions, or else that inner values agree.

        Inner values are compared once in any case, because outputs may depend little on one of them.
        """
        self.results[agreed.label] = self.reference.latest, agreed.got
        if not self.inside:
            self._look_inside(agreed)
        if self.effects is not None:
            self.effects += differences(agreed.got, self.zeroed.run(agreed.feed))

    def _has_effect(self, agreed: Agreement) -> bool:
        """Return whether the outputs depend on the removed positions. If not (a saturated Sigmoid), they prove
        nothing."""
        if not self.effective:
            plain = self._side(lambda: self.original).run(agreed.feed)
            found = differences(agreed.wanted, plain, relative=self.relative)
            self.effective = not all(one.agrees for one in found)
        return self.effective

    def _is_cut(self, piece: ModelPiece) -> bool:
        """Return whether anything is removed of what a piece stores, reads or computes."""
        graph = piece.parts[0].graph
        names = {each.name for each in (*graph.initializer, *graph.input)} | {
            n for node in graph.node for n in node.output
        }
        gone = {name for name, axes in self.forced.positions.items() if any(map(len, axes.values()))}
        return not names.isdisjoint(gone | self.forced.merged.keys())

    def _look_inside(self, agreed: Agreement) -> None:
        """Compare inner values. In a quantised model only where the outputs do not suffice: computed one by one, its
        inner values are floating-point sums, which another order may round to another step."""
        hopeless = all(one.hopeless for one in agreed.differences)
        if not hopeless and self.piece is not None and not self._is_cut(self.piece):
            return  # the values at its ends were compared
        if self.forced.zeros and not hopeless and self._has_effect(agreed):
            return
        first = self.inner.first_difference(agreed.feed)
        if first:
            raise PruneError(f"the cut model does not compute what the masked original does ({agreed.label}): "
                             f"the first tensor that differs is {first}", HINT)  # fmt: skip
        if first is None and (hopeless or not self._has_effect(agreed)):
            raise InconclusiveError("its outputs tell nothing, and its inner values cannot be compared")
        self.inside = first is not None


STEPS = 1 / 16
"""Allowed difference, as a fraction of an output's largest element: a few roundings to the next step of 8 bits."""


@dataclass(frozen=True)
class _AsWritten:
    """A tolerance for quantised models. Masks between operators keep onnxruntime from fusing these into integer
    kernels, which may compute other results (a softmax by a table). So where outputs differ, both sides are run as
    written, without such kernels; the kernels may change the cut model little, or at most twice as much as the
    original."""

    inner: Tolerance
    sides: _Sides

    @property
    def reason(self) -> str:
        return self.inner.reason

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        found = self.inner.differences(got, wanted, reference, feed=feed)
        if all(one.agrees for one in found) or any(one.mismatch for one in found):
            return found
        sides = self.sides
        written, plain = sides.plain_cut.run(feed), sides.plain_reference
        again = self.inner.differences(written, plain.run(feed), plain, feed=feed)
        own = differences(got, written)
        kernels = differences(sides.fused_original.run(feed), sides.plain_original.run(feed))
        pairs = zip(own, kernels, strict=True)
        usual = all(one.error <= max(2 * other.error, STEPS * one.scale) for one, other in pairs)
        if not usual or not all(one.agrees for one in again):
            return found
        sides.as_written = True
        return again


@dataclass(frozen=True)
class _WhereAlike:
    """A tolerance for values between pieces. Values of an unplanned shape had an axis cut that a plan cannot list,
    because its length depends on dynamic dimensions; the values that are computed from them are compared instead. All
    `outputs` of the model are compared."""

    inner: Tolerance
    outputs: Collection[str]

    @property
    def reason(self) -> str:
        return self.inner.reason

    def differences(self, got: Outputs, wanted: Outputs, reference: Runs, feed: Feed) -> list[Difference]:
        alike = {n: v for n, v in wanted.items() if n in self.outputs or (n in got and np.shape(got[n]) == np.shape(v))}
        return self.inner.differences(got, alike, reference, feed=feed) if alike else []
