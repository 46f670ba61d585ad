"""The verifier: what it takes for a proof, what it refuses, and where it says that nothing is proved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError, UnprovedError
from prunecli.verify.inputs import Case
from prunecli.verify.prove import Claim, open_original, open_result, prove
from prunecli.verify.tolerance import (
    Feed,
    InconclusiveError,
    OfLargest,
    RandomOutputsError,
    Rounding,
    SameBits,
    Tolerance,
)

ONE = {"y": np.array([1.0, -2.0, 0.0], np.float32)}


class Side:
    """A model that yields what it is told to, whatever it is fed."""

    def __init__(self, *outputs: Mapping[str, Any] | PruneError) -> None:
        self.outputs, self.runs = outputs, 0

    def run(self, feed: Feed) -> Mapping[str, Any]:
        found = self.outputs[min(self.runs, len(self.outputs) - 1)]
        self.runs += 1
        if isinstance(found, PruneError):
            raise found
        return found


def claim(got: Any, tolerance: Tolerance, wanted: Any = ONE, **more: Any) -> Claim:
    result, reference = (one if isinstance(one, Side) else Side(one) for one in (got, wanted))
    return Claim(
        reference=reference, result=result, tolerance=tolerance, names=("result", "reference"), hint="h", **more
    )


def fails(text: str) -> Callable[[], Feed]:
    def feed() -> Feed:
        raise PruneError(text)

    return feed


def rounding(*nudged: Mapping[str, Any]) -> Rounding:
    return Rounding(1e-5, lambda: Side(ONE), lambda: [Side(one) for one in nudged])


def y(*values: float, dtype: Any = np.float32) -> dict[str, Any]:
    return {"y": np.array(values, dtype)}


CASE = Case("a case", dict)
ANY = OfLargest(math.inf, "any")
TOLERANCES: list[tuple[Tolerance, dict[str, Any], bool]] = [
    # tolerance, what the result yields beside 1, -2, 0, whether that is right
    (SameBits(), y(1, -2, 0), True),
    (SameBits(), y(1, -2, -0.0), False),
    (SameBits(signed_zeros=False), y(1, -2, -0.0), True),
    (SameBits(signed_zeros=False), y(1, np.nextafter(np.float32(-2), np.float32(0)), 0), False),
    (SameBits(), y(1, -2, 0, dtype=np.float64), False),
    (SameBits(), {}, False),
    (rounding(), y(1 + 1e-5, -2, 0), True),
    (rounding(), y(1 + 1e-4, -2, 0), False),
    (rounding(y(1 + 1e-4, -2, 0)), y(1 + 1e-4, -2, 0), True),
    (rounding(), y(1, -2), False),
    (rounding(), y(1, math.nan, 0), False),
    (OfLargest(0.1, "a tenth"), y(1.19, -2, 0), True),
    (OfLargest(0.1, "a tenth"), y(1.21, -2, 0), False),
    (OfLargest(0.1, "a tenth"), y(1, math.inf, 0), False),
    (OfLargest(0.1, "a tenth"), {}, False),
    (ANY, y(5, 5, 5), True),
    (ANY, y(1, -2), False),
    (ANY, y(1, -2, 0, dtype=np.float64), False),
]


@pytest.mark.parametrize(("tolerance", "got", "right"), TOLERANCES)
def test_what_each_tolerance_takes_and_refuses(tolerance: Tolerance, got: dict[str, Any], right: bool) -> None:
    if right:
        assert prove(claim(got, tolerance), [CASE, CASE]).runs == 2
        return
    with pytest.raises(PruneError, match="the result does not compute what the reference does") as caught:
        prove(claim(got, tolerance), [CASE])
    assert "a case" in caught.value.message
    assert tolerance.reason in caught.value.message
    assert caught.value.hint == "h"


def test_a_proof_tells_the_largest_differences() -> None:
    got = Side(y(1, -2, 0.1), y(1, -2.4, 0))
    found = prove(claim(got, OfLargest(0.5, "half")), [CASE, CASE]).verification("told")
    assert (found.kind, found.samples, found.detail) == ("exact", 2, "told")
    assert found.max_abs_error == pytest.approx(0.4)
    assert found.max_rel_error == pytest.approx(0.2)


NAN = y(math.nan, math.inf)
NOTHING: list[tuple[list[Case], Any, str]] = [
    # cases, what the reference yields, what is said
    ([], ONE, "there are no inputs to run it on"),
    ([Case("a", fails("no sizes"))], ONE, "does not run: no sizes"),
    ([CASE, CASE], PruneError("cannot run"), "does not run: cannot run"),
    ([CASE], NAN, "makes no sense: all that it yields is NaN or infinite"),
]


@pytest.mark.parametrize(("cases", "wanted", "said"), NOTHING)
def test_where_nothing_is_proved(cases: list[Case], wanted: Any, said: str) -> None:
    with pytest.raises(UnprovedError, match=said) as caught:
        prove(claim(ONE, SameBits(), wanted, given="what was given"), cases)
    assert "what was given" in caught.value.message
    assert "--no-verify" in caught.value.hint


@pytest.mark.parametrize("tolerance", [SameBits(), rounding()])
def test_random_outputs_are_told(tolerance: Tolerance) -> None:
    with pytest.raises(RandomOutputsError):
        prove(claim(y(3, 3, 3), tolerance, Side(ONE, y(2, 2, 2))), [CASE])


def test_outputs_without_elements_prove_nothing_where_they_are_all_there_is() -> None:
    with pytest.raises(UnprovedError, match="no elements"):
        prove(claim(y(), rounding(), y()), [CASE])


def test_a_required_case_must_prove_something() -> None:
    with pytest.raises(PruneError, match=r"^cannot read$"):
        prove(claim(ONE, SameBits()), [CASE, Case("data", fails("cannot read"), required=True)])


def test_spare_cases_are_used_until_one_proves_something() -> None:
    result, spare = Side(ONE), Case("spare", dict, spare=True)
    assert prove(claim(result, SameBits()), [Case("a", fails("no"), spare=True), spare, spare, CASE]).runs == 2
    assert result.runs == 2


def test_a_result_that_fails_where_the_original_runs_is_refused() -> None:
    with pytest.raises(PruneError, match="the original runs on a case, the result does not: broken"):
        prove(claim(Side(PruneError("broken")), SameBits()), [CASE])


def test_a_reference_that_fails_alone_is_a_mistake_of_its_own() -> None:
    broken = Side(PruneError("broken"))
    with pytest.raises(PruneError, match="internal: the reference cannot be run: broken"):
        prove(claim(ONE, SameBits(), broken, original=Side(ONE)), [CASE])
    with pytest.raises(UnprovedError, match="does not run: nor this"):
        prove(claim(ONE, SameBits(), broken, original=Side(PruneError("nor this"))), [CASE])


def test_what_is_demanded_beside_agreement() -> None:
    def refuse(agreed: Any) -> None:
        raise PruneError(f"refused {agreed.label}")

    def doubt(agreed: Any) -> None:
        raise InconclusiveError("means nothing")

    with pytest.raises(PruneError, match="refused a case"):
        prove(claim(ONE, SameBits(), demand=refuse), [CASE])
    with pytest.raises(UnprovedError, match="means nothing"):
        prove(claim(ONE, SameBits(), demand=doubt), [CASE])


def test_the_place_of_a_difference_is_told() -> None:
    with pytest.raises(PruneError, match="the first tensor that differs is 'h'"):
        prove(claim(y(9, 9, 9), SameBits(), locate=lambda feed: "'h'"), [CASE])


def test_who_cannot_be_opened() -> None:
    def broken() -> Side:
        raise PruneError("refused")

    side = Side(ONE)
    assert open_original(lambda: side) is open_result(lambda: side, broken, "cut model", "h") is side
    with pytest.raises(UnprovedError, match="the original itself cannot be opened: refused"):
        open_original(broken)
    with pytest.raises(UnprovedError, match="the original itself cannot be opened"):
        open_result(broken, broken, "cut model", "h")
    with pytest.raises(PruneError, match="onnxruntime opens the original, not the cut model: refused"):
        open_result(broken, lambda: side, "cut model", "h")
