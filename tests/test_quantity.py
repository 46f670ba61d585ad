"""Numbers as people write them."""

from __future__ import annotations

import pytest

from prunecli.errors import PruneError
from prunecli.quantity import Quantity, parse_fraction, parse_quantity

QUANTITIES = [
    ("0.5", 0.5, "plain"),
    (".5", 0.5, "plain"),
    ("-3", -3, "plain"),
    ("1e-3", 1e-3, "plain"),
    (" 7 ", 7, "plain"),
    ("50%", 0.5, "percent"),
    ("0.1 %", 0.001, "percent"),
    ("120M", 120e6, "count"),
    ("1.5k", 1500, "count"),
    ("2G", 2e9, "count"),
    ("2B", 2e9, "count"),
    ("1e3K", 1e6, "count"),
    ("2MB", 2e6, "bytes"),
    ("2MiB", 2 * 2**20, "bytes"),
    ("1 gb", 1e9, "bytes"),
    ("512bytes", 512, "bytes"),
    ("3.5ms", 3.5, "ms"),
    ("250us", 0.25, "ms"),
    ("2s", 2000, "ms"),
]


@pytest.mark.parametrize(("text", "value", "kind"), QUANTITIES)
def test_quantity(text: str, value: float, kind: str) -> None:
    # one rounding of a decimal number times a power of ten: at most an ulp or two
    found = parse_quantity(text)
    assert found == Quantity(pytest.approx(value, rel=1e-15), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e999", "5 5", "5xB", "%", "0x10", "1_000", "１２"])
def test_what_is_not_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(PruneError) as raised:
        parse_quantity(text)
    assert raised.value.hint


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", 1), ("0.3", 0.3), ("30%", 0.3), ("100%", 1)])
def test_fraction(text: str, value: float) -> None:
    assert parse_fraction(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "hint"), [("50", "50%"), ("-0.1", "0.5"), ("101%", "0.5"), ("5M", "0.5"), ("2ms", "0.5")]
)
def test_what_is_not_a_fraction_is_refused(text: str, hint: str) -> None:
    with pytest.raises(PruneError) as raised:
        parse_fraction(text)
    assert hint in raised.value.hint
