"""Proof of a structural cut: the saved file against the original with the removed positions forced to zero.

Both run in onnxruntime on the same inputs, and must agree to rounding. Where the cut runs through the axis of
a normalisation, zero is not the same as absent: there the reference normalises over the kept positions, and
the distance to the original as it was is told as the cost of the approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from prunecli.data.columns import free_memory
from prunecli.errors import PruneError, UnprovedError
from prunecli.model.external_data import read_whole
from prunecli.runtime import Session
from prunecli.structures.cut_reference import FLOATS, Forced, masked_original, stored_bytes
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.inner_values import InnerValues
from prunecli.verify.inputs import Case
from prunecli.verify.prove import Agreement, Claim, Proof, open_original, open_result, prove
from prunecli.verify.rounding import nudged, relative_of
from prunecli.verify.tolerance import Difference, InconclusiveError, Rounding, differences

RUN_UP_TO = 1 << 30
"""Bytes of weights up to which reference and sessions are held in memory, however much is free."""
LARGEST = (1 << 31) - (1 << 26)
"""Bytes that a reference in one piece may have; protobuf ends at 2 GiB."""
COPIES = 8
"""How often a proof holds the weights: reference (serialised, two sessions), original, cut, copies on the way."""
HINT = "nothing was written; leave the layer out with --exclude, and please report the model"


@dataclass
class CutProof:
    """What to prove about a staged file: that it is the original at `path` less what `forced` lists.

    `cases` makes the inputs, given a session of the original.
    """

    path: Path
    forced: Forced
    cases: Callable[[Session], Iterable[Case]]
    open: Callable[..., Session] = Session.open
    progress: Progress = no_progress

    def __call__(self, staged: Path) -> Verification:
        """Compare.

        Raises:
            UnprovedError: the original cannot be run, or not beside its reference.
            PruneError: naming the first tensor that differs.
        """
        check_room(self.path)
        start = partial(self.open, self.path)
        original = open_original(start)
        sides = _Sides(self.path, self.forced, self.open, original)
        cut = open_result(partial(self.open, staged), start, "cut model", HINT)
        inner = sides.inner_values(staged)
        demand = _Demand(sides, inner)
        claim = Claim(reference=sides.reference, result=cut, original=original, names=("cut model", "masked original"),
                      tolerance=sides.tolerance, hint=HINT, locate=inner.first_difference, demand=demand)  # fmt: skip
        found = prove(claim, self.cases(original), self.progress)
        return _verdict(found, demand.effects if sides.restricted else None)


def _verdict(found: Proof, effects: Sequence[Difference] | None) -> Verification:
    """`effects`: how far plain zeros would be off, where the reference normalises over what is kept."""
    if effects is None:
        return found.verification("equals, to rounding, the original with the removed positions forced to zero")
    effect = max((one.relative for one in effects), default=0.0)
    return found.verification(
        "equals, to rounding, the original whose normalisations see the kept positions only; with the removed"
        f" ones forced to zero instead, outputs would differ by {effect:.2g} of their largest element",
        "approximate",
    )


@dataclass
class _Demand:
    """What must hold beside agreement: outputs that depend on what was removed, or else inner values that agree.

    Inner values are looked at once in any case: outputs may hardly depend on one.
    """

    sides: _Sides
    inner: InnerValues
    effects: list[Difference] = field(default_factory=list)
    effective: bool = False
    inside: bool = False

    def __call__(self, agreed: Agreement) -> None:
        telling = not all(one.hopeless for one in agreed.differences) and self._has_effect(agreed)
        if not self.inside:
            self._look_inside(agreed, telling)
        if self.sides.restricted:
            self.effects += differences(agreed.got, self.sides.zeroed.run(agreed.feed))

    def _has_effect(self, agreed: Agreement) -> bool:
        """Whether the outputs depend on what was removed; if not (a saturated Sigmoid), they cannot tell."""
        if not self.effective:
            plain = self.sides.original.run(agreed.feed)
            found = differences(agreed.wanted, plain, relative=self.sides.relative)
            self.effective = not all(one.agrees for one in found)
        return self.effective

    def _look_inside(self, agreed: Agreement, telling: bool) -> None:
        first = self.inner.first_difference(agreed.feed)
        if first:
            raise PruneError(f"the cut model does not compute what the masked original does ({agreed.label}): "
                             f"the first tensor that differs is {first}", HINT)  # fmt: skip
        if first is None and not telling:
            raise InconclusiveError("its outputs tell nothing, and its inner values cannot be compared")
        self.inside = first is not None


@dataclass
class _Sides:
    """The sessions of one proof, opened when they are needed. Models are kept serialised: they may be large."""

    path: Path
    forced: Forced
    open: Callable[..., Session]
    original: Session

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
        return self.open(self.masked, mode="plain")

    @cached_property
    def zeroed(self) -> Session:
        return self.open(masked_original(read_whole(self.path), self.forced))

    @cached_property
    def nudged(self) -> Sequence[Session]:
        return [self.open(model, mode="plain") for model in self.moved()]

    def moved(self) -> Iterator[bytes]:
        """The reference with every weight moved by one unit in the last place: what rounding does to it."""
        return (nudged(self.masked, seed) for seed in range(2))

    @property
    def tolerance(self) -> Rounding:
        return Rounding(self.relative, lambda: self.plain_reference, lambda: self.nudged)

    def inner_values(self, staged: Path) -> InnerValues:
        forced = self.forced
        floats = {name for name in forced.shapes if forced.dtypes.get(name) in FLOATS}
        return InnerValues(staged, self.masked, nudged=self.moved, aligned=forced.less, shapes=forced.shapes,
                           floats=floats, relative=self.relative)  # fmt: skip

    @cached_property
    def relative(self) -> float:
        return relative_of(self.path)


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
