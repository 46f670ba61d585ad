"""The proof of a result: it computes what a reference does, on the same inputs, within a tolerance.

Zeroing, cutting, packing and training differ in the reference (masked weights, positions set to zero, the dense file,
the training graph), in the tolerance and its reason, and in what they require beside agreement. Running both sides,
deciding what counts as a proof, and the messages are the same for all, and are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from prunecli.errors import OutOfMemoryError, PruneError, UnprovedError
from prunecli.runtime import TimedOutError
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.inputs import Case
from prunecli.verify.tolerance import (
    Difference,
    Feed,
    InconclusiveError,
    NoNumbersError,
    Outputs,
    Runs,
    Tolerance,
    tells,
)

RUN_UP_TO = 512 << 20
"""Bytes of model files up to which both sides are run although comparing the stored tensors is already a proof."""
T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """One case that both sides ran and agree on."""

    feed: Feed
    label: str
    wanted: Outputs
    got: Outputs
    differences: Sequence[Difference]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is to be proved: `result` computes what `reference` does.

    `original` is the user's model, and `given` its name in messages: inputs on which it fails prove nothing, but if the
    reference alone fails, the reference is wrong. Where the reference is the original itself, `original` is None.
    `names` are those of the result and of the reference in messages; `hint` says what to do about a wrong result.
    `locate` says where a difference begins. `demand` is called with every agreement; it raises PruneError for a result
    that is wrong all the same, and InconclusiveError for an agreement that means nothing.
    """

    reference: Runs
    result: Runs
    tolerance: Tolerance
    names: tuple[str, str]
    hint: str
    given: str = "the original itself"
    original: Runs | None = None
    locate: Callable[[Feed], str | None] = lambda feed: None
    demand: Callable[[Agreement], None] = lambda agreement: None


class NothingRanError(UnprovedError):
    """No case ran on both sides."""


@dataclass(frozen=True)
class Proof:
    """What was compared: over how many cases, and how far each output was off."""

    runs: int
    differences: Sequence[Difference]

    def verification(self, detail: str, kind: Literal["exact", "approximate"] = "exact") -> Verification:
        """Return the proof as the `verification` of a result."""
        largest = max((one.error for one in self.differences), default=0.0)
        relative = max((one.relative for one in self.differences), default=0.0)
        return Verification(kind, largest, relative, samples=self.runs, detail=detail)


def prove(claim: Claim, cases: Iterable[Case], progress: Progress = no_progress) -> Proof:
    """Compare both sides on every case.

    Raises:
        PruneError: they differ, or the result or the reference does not run where the original does; also where a
            required case proves nothing.
        NothingRanError: no case proved anything.
        RandomOutputsError: the reference yields something else each time.
        TimedOutError: a run of the reference takes too long.
    """
    runs, found, problem = 0, list[Difference](), None
    total = (sum(not case.spare for case in cases) or 1) if isinstance(cases, Sequence) else None
    for case in progress((case for case in cases if not (case.spare and runs)), "proving", total):
        try:
            found += _compared(claim, case)
            runs += 1
        except InconclusiveError as error:
            problem = problem or error
            if case.required:
                raise PruneError(error.message, error.hint) from error
    if not runs:
        raise _nothing_ran(claim.given, problem)
    return Proof(runs, found)


def _nothing_ran(given: str, problem: PruneError | None) -> NothingRanError:
    """Return the error; `problem`: that of the first case."""
    if isinstance(problem, NoNumbersError):
        return NothingRanError(f"{given} makes no sense: {problem.message}",
                               "look for NaN or infinite weights with `prune inspect`")  # fmt: skip
    reason = "there are no inputs to run it on" if problem is None else problem.message
    return NothingRanError(f"{given} does not run: {reason}", "try other sizes with --dim or --input-shape")


def _compared(claim: Claim, case: Case) -> Sequence[Difference]:
    try:
        feed = case.feed()
    except PruneError as error:
        raise InconclusiveError(error.message, error.hint) from error
    wanted = _run_reference(claim, feed)
    if not tells(wanted):
        raise NoNumbersError
    try:
        got = claim.result.run(feed)
    except OutOfMemoryError:
        raise
    except PruneError as error:
        raise PruneError(
            f"the original runs on {case.label}, the {claim.names[0]} does not: {error.message}", claim.hint
        ) from error
    found = claim.tolerance.differences(got, wanted, claim.reference, feed=feed)
    wrong = next((one for one in found if not one.agrees), None)
    if wrong is not None:
        raise _refusal(claim, case.label, feed, wrong=wrong)
    claim.demand(Agreement(feed, case.label, wanted, got=got, differences=found))
    return found


def _run_reference(claim: Claim, feed: Feed) -> Outputs:
    """Return the reference's outputs; where it fails, the original must fail, too."""
    try:
        return claim.reference.run(feed)
    except (OutOfMemoryError, TimedOutError):
        raise
    except PruneError as error:
        try:
            if claim.original is None:
                raise
            claim.original.run(feed)
        except PruneError as cause:
            raise InconclusiveError(cause.message, cause.hint) from cause
        raise PruneError(f"internal: the reference cannot be run: {error.message}", claim.hint) from error


def _refusal(claim: Claim, label: str, feed: Feed, wrong: Difference) -> PruneError:
    result, reference = claim.names
    amount = wrong.problem or f"by {wrong.error:.2g} at a scale of {wrong.scale:.2g}"
    first = claim.locate(feed)
    where = f"the first tensor that differs is {first}; " if first else ""
    return PruneError(
        f"the {result} does not compute what the {reference} does ({label}): {where}the output {wrong.name!r} differs:"
        f" {amount}; allowed is {claim.tolerance.reason}",
        claim.hint,
    )


def open_original(start: Callable[[], T]) -> T:
    """Open the user's model.

    Raises:
        UnprovedError: onnxruntime refuses it.
    """
    try:
        return start()
    except OutOfMemoryError:
        raise
    except PruneError as error:
        raise UnprovedError(f"the original itself cannot be opened: {error.message}") from error


def open_result(start: Callable[[], T], original: Callable[[], object], name: str, hint: str) -> T:
    """Open the result; `original` opens what the user gave and is called where the result cannot be opened.

    Raises:
        UnprovedError: onnxruntime refuses the original, too.
        PruneError: it refuses the result alone.
    """
    try:
        return start()
    except OutOfMemoryError:
        raise
    except PruneError as error:
        open_original(original)
        raise PruneError(f"onnxruntime opens the original, not the {name}: {error.message}", hint) from error
