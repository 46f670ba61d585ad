"""Numbers as people write them: `0.5`, `50%`, `120M`, `3.5ms`, `2MB`. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from prunecli.errors import PruneError

Kind = Literal["plain", "percent", "count", "bytes", "ms"]

PERCENT = 100
"""Above this a plain number is no percentage whose sign was forgotten."""
# Decimal multiples for counts and bytes (as disks and networks are sold), KiB etc. for powers of two.
_COUNT = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "bytes": 1.0}
_TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([%a-zA-Z]*)", re.ASCII)


@dataclass(frozen=True)
class Quantity:
    """A number and what its suffix made it. `value` is in units: a percentage is already divided by 100,
    a count has its multiple applied, bytes are bytes, times are milliseconds."""

    value: float
    kind: Kind = "plain"


def parse_quantity(text: str) -> Quantity:
    """Read one number with an optional suffix: `%`; K M G B T (counts, B = 1e9); KB MB GB KiB MiB GiB
    (bytes); us ms s (times). Case does not matter.

    Raises:
        PruneError: not a finite number, or an unknown suffix.
    """
    match = _NUMBER.fullmatch(text.strip())
    value = float(match[1]) if match else math.nan
    if not match or not math.isfinite(value):
        raise PruneError(f"{text!r} is not a number", "write 0.5, 50%, 120M, 3.5ms or 2MB")
    suffix = match[2].lower()
    if suffix in ("", "%"):
        return Quantity(value / 100, "percent") if suffix else Quantity(value)
    tables: tuple[tuple[Kind, dict[str, float]], ...] = (("count", _COUNT), ("bytes", _BYTES), ("ms", _TIME))
    for kind, table in tables:
        if suffix in table:
            return Quantity(value * table[suffix], kind)
    raise PruneError(f"{text!r} has an unknown suffix {match[2]!r}", "use %, K, M, G, KB, MB, GB, us, ms or s")


def did_you_mean_percent(quantity: Quantity, otherwise: str) -> str:
    """A hint where a fraction is wanted: plain numbers from 1 to 100 are often meant as percentages."""
    plain = quantity.kind == "plain" and 1 <= quantity.value <= PERCENT
    return f"did you mean {quantity.value:g}%?" if plain else otherwise


def parse_fraction(text: str) -> float:
    """Read a fraction in [0, 1], as `0.5` or `50%`.

    Raises:
        PruneError: not a plain number or percentage, or outside [0, 1].
    """
    quantity = parse_quantity(text)
    if quantity.kind not in ("plain", "percent"):
        raise PruneError(f"{text!r} is not a fraction", "write it as 0.5 or 50%")
    if not 0 <= quantity.value <= 1:
        raise PruneError(f"{text!r} is outside 0 to 1", did_you_mean_percent(quantity, "write it as 0.5 or 50%"))
    return quantity.value
