"""Gates: `NAME OP NUMBER`, failing when it holds: `accuracy.drop>1%`, `latency.speedup<1.5`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunecli.errors import GateFailed, PruneError, did_you_mean
from prunecli.evaluation.fidelity import MEASURES
from prunecli.quantity import Kind, Quantity, did_you_mean_percent, parse_quantity
from prunecli.types import Json

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
LONG_FORMS = {"delta.": "", "fidelity.": "", "metrics.": "", "latency_ms.": "latency."}
"""Prefixes of a figure's place in the JSON, which may be written, and what the short name has instead."""
ALIASES = {"top1": "accuracy"}
"""Other names of figures, for one part of a dotted name."""
ROUNDING = 1e-12
Span = tuple[float, float]
_GATE = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """One condition that must not hold. `expr` is as the user wrote it."""

    expr: str
    name: str
    op: str
    limit: float

    def check(self, values: Mapping[str, float], reason: str = "") -> GateResult:
        """Return the outcome for `values[name]`. A NaN fails whatever the operator, and so does a value that is
        undecided for a `reason`.

        A value within rounding of the limit equals it: a drop from 0.95 to 0.94 is a little over 0.01 in floating
        point, and is not more than 1 %.
        """
        value = values[self.name]
        near = abs(value - self.limit) <= min(ROUNDING, 1e-9 * abs(self.limit))
        holds = math.isnan(value) or bool(reason) or OPERATORS[self.op](self.limit if near else value, self.limit)
        return GateResult(self, value, not holds, reason=reason)


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate. `reason`: why the value decides nothing, or empty."""

    gate: Gate
    value: float
    passed: bool
    reason: str = ""

    @property
    def found(self) -> str:
        """The value in words."""
        return f"is not measurable now: {self.reason}" if self.reason else f"is {_number(self.value)}"

    def to_json(self) -> Json:
        told = {"expr": self.gate.expr, "value": self.value, "passed": self.passed}
        return {**told, "reason": self.reason} if self.reason else told


def parse_gate(text: str, known: Mapping[str, Span] | None = None) -> Gate:
    """Read one gate. Percentages are divided by 100, KB and MB are multiples of 1000.

    Args:
        known: the names there can be, with the least and the most that each can be; None: any.

    Raises:
        PruneError: not NAME OP NUMBER, an unknown name, with close ones in the hint, or a gate that is decided before
            anything is measured.
    """
    match = _GATE.fullmatch(text)
    if match is None:
        raise PruneError(f"--fail-if {text!r} is not NAME OP NUMBER", "write for example 'accuracy.drop>1%'")
    name, op, number = match[1], match[2], match[3]
    try:
        limit = parse_quantity(number)
    except PruneError as error:
        raise PruneError(f"--fail-if {text!r}: {error.message}", error.hint) from error
    if known is not None:
        name = name if name in known else _short(name)
        name = name if name in known else ".".join(ALIASES.get(part, part) for part in name.split("."))
        if name not in known:
            hint = did_you_mean(name, known, f"names are {', '.join(sorted(known))}")
            raise PruneError(f"--fail-if: there is no figure named {name}", hint)
    gate = Gate(text.strip(), name, op, limit=limit.value)
    if known is not None:
        _check_unit(gate, limit)
        check_span(gate, known[name], limit)
    return gate


SIZE_UNITS: Mapping[str, Kind] = {
    "params": "count", "nonzero": "count", "macs": "count", "file_bytes": "bytes", "gzip_bytes": "bytes",
    "latency.median": "ms", "latency.p10": "ms", "latency.p90": "ms",
}  # fmt: skip
"""Units of figures that have one. All others are plain numbers (`IN_THEIR_UNITS`), or fractions, which may be written
in percent."""
IN_THEIR_UNITS = frozenset({"mae", "rmse", "log_loss", "perplexity", "psnr", "snr_db", "max_abs"})
"""Figures in units of the labels or outputs, in nats or in dB. A limit of 5 % would be read as a share of the
baseline's figure, but mean 0.05 of the unit."""


def _unit(name: str) -> Kind:
    """Return the unit of a figure, or of its change; "plain" for a number without a unit that is no fraction."""
    plain = name.removeprefix("baseline.")
    known = not IN_THEIR_UNITS.isdisjoint((plain.split(".")[0], plain.split(".")[-1]))
    return "plain" if known else SIZE_UNITS.get(plain, "percent")


def _check_unit(gate: Gate, limit: Quantity) -> None:
    """Refuse a limit in a unit that its figure does not have, such as 50 % of bytes."""
    unit = _unit(gate.name)
    taken = {"plain", unit} | ({"count"} if unit == "bytes" else set())
    if limit.kind in taken:
        return
    relative = "latency.speedup" if unit == "ms" else f"{gate.name.removeprefix('baseline.')}.ratio"
    hint = (f"of the baseline's: {relative}" if limit.kind == "percent" and unit != "plain"
            else f"write a number{_EXAMPLES.get(unit, '')}")  # fmt: skip
    raise PruneError(f"--fail-if {gate.expr!r}: {gate.name} is no figure in {_UNIT_WORDS[limit.kind]}", hint)


_EXAMPLES: Mapping[Kind, str] = {
    "count": ", as 120M", "bytes": ", as 2MB", "ms": ", as 3.5ms", "plain": " in the figure's own unit",
}  # fmt: skip
_UNIT_WORDS: Mapping[Kind, str] = {"percent": "percent", "count": "thousands", "bytes": "bytes", "ms": "milliseconds"}


def check_span(gate: Gate, span: Span, limit: Quantity | None = None) -> None:
    """Refuse a gate that cannot fail, or whose limit is outside the range of its figure. `limit`: as written."""
    low, high = span
    if low <= gate.limit <= high and (gate.op, gate.limit) not in (("<", low), (">", high)):
        return
    lies = f"is at least {low:g}" if high == math.inf else f"is at most {high:g}" if low == -math.inf else ""
    lies = lies or f"lies between {low:g} and {high:g}"
    raise PruneError(
        f"--fail-if {gate.expr!r} is decided before anything is measured: {gate.name} {lies}",
        did_you_mean_percent(limit or Quantity(gate.limit), "a gate fails when its condition holds: give one that can"),
    )


def _short(name: str) -> str:
    for long, short in LONG_FORMS.items():
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def check_gates(
    gates: Sequence[Gate],
    values: Mapping[str, float],
    why_missing: str,
    undecided: Callable[[Gate], str] = lambda gate: "",
) -> list[GateResult]:
    """Check every gate. `undecided`: why nothing follows from a gate's figure, empty where something does.

    Raises:
        PruneError: a figure was not measured; `why_missing` says what would have it measured.
    """
    for gate in gates:
        if gate.name not in values:
            undefined = gate.name.split(".")[-1] in MEASURES
            what = "is not defined for this output" if undefined else "was not measured"
            raise PruneError(f"--fail-if {gate.expr!r}: {gate.name} {what}", why_missing)
    return [gate.check(values, undecided(gate)) for gate in gates]


def raise_if_failed(results: Sequence[GateResult]) -> None:
    """Raise GateFailed for gates that failed; called after the report is printed.

    Raises:
        GateFailed: naming each failed gate, its value and its limit.
    """
    failed = [r for r in results if not r.passed]
    if failed:
        listed = "; ".join(f"{r.gate.expr} ({r.gate.name} {r.found})" for r in failed)
        raise GateFailed(f"{len(failed)} of {len(results)} gates failed: {listed}",
                         _hint(failed))  # fmt: skip


GAINS = frozenset({"latency", "params", "nonzero", "sparsity", "macs", "file_bytes", "gzip_bytes"})
"""First parts of the names of figures that more pruning improves."""


def _hint(failed: Sequence[GateResult]) -> str:
    """Return what may help: less pruning for quality, more for speed and size, a new measurement for what was not
    measurable."""
    names = {gate.gate.name.split(".")[0] for gate in failed if not gate.reason}
    hints = []
    if names and names <= GAINS:
        hints = ["prune more (for speed, structures: `prune structured`), or relax the limit"]
    elif names & GAINS:
        hints = ["recover quality by fine-tuning, or relax a limit: quality asks for less pruning, speed for more"]
    elif names:
        hints = ["prune less, recover the model by fine-tuning, or relax the limit"]
    if any(gate.reason for gate in failed):
        again = "measure again when the machine is idle, or with --threads 1, by CPU time"
        hints.append(f"for what is not measurable now, {again}" if hints else again)
    return "; ".join(hints)


def _number(value: float) -> str:
    if value == int(value) if math.isfinite(value) else False:
        return str(int(value))
    return f"{value:.6g}"
