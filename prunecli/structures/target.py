"""The amount to remove from a model: a fraction of its units, or what is to remain of its work or parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prunecli.errors import PruneError
from prunecli.quantity import PERCENT, Quantity, did_you_mean_percent, parse_quantity
from prunecli.types import Totals

Kind = Literal["ratio", "macs", "params", "latency"]
NEAR = 0.01
"""Relative excess over the target that is accepted with a warning."""
KINDS: tuple[Kind, ...] = ("ratio", "macs", "params", "latency")


@dataclass(frozen=True)
class Budget:
    """`ratio`: the fraction of every layer's (or the model's) units removed. `macs`, `params`, `latency`: what
    remains, as a fraction or, with `absolute`, as a number of multiply-accumulates, parameters or milliseconds."""

    kind: Kind
    target: float
    absolute: bool = False

    @classmethod
    def parse(cls, given: Mapping[str, Quantity | str | float | None]) -> Budget:
        """From the options `ratio`, `macs`, `params`, `latency`, of which exactly one must be given.

        Raises:
            PruneError: none or several are, or the number means nothing there.
        """
        present = {kind: value for kind, value in given.items() if value is not None}
        if not present:
            raise cls.missing()
        if len(present) > 1:
            raise PruneError("give only one of --ratio, --macs, --params and --latency", "for example --macs 0.5")
        ((kind, value),) = present.items()
        if kind not in KINDS:
            raise PruneError(f"there is no budget {kind!r}", f"choose from {', '.join(KINDS)}")
        quantity = value if isinstance(value, Quantity) else parse_quantity(str(value))
        return cls._of(kind, quantity)

    @staticmethod
    def missing() -> PruneError:
        return PruneError(
            "how much is to be cut? give --ratio, --macs, --params or --latency",
            "for example --macs 0.5, or --ratio 50%",
        )

    @classmethod
    def _of(cls, kind: Kind, quantity: Quantity) -> Budget:
        value = quantity.value
        if kind == "latency":
            return cls._of_time(quantity)
        if quantity.kind in ("bytes", "ms"):
            raise PruneError(f"--{kind} takes a fraction or a count, not {quantity.kind}", f"write --{kind} 0.5")
        count = quantity.kind == "count" or (quantity.kind == "plain" and value > PERCENT)
        if count and kind != "ratio" and value >= 1:
            return cls(kind, value, True)
        if count or not 0 < value < 1:
            meaning = "removed" if kind == "ratio" else "that remains"
            hint = did_you_mean_percent(quantity, f"write --{kind} 0.5 or 50%")
            raise PruneError(f"--{kind} {value:g}: the fraction {meaning} lies between 0 and 1", hint)
        return cls(kind, value)

    @classmethod
    def _of_time(cls, quantity: Quantity) -> Budget:
        if quantity.kind == "ms" and quantity.value > 0:
            return cls("latency", quantity.value, True)
        if quantity.kind not in ("plain", "percent") or not 0 < quantity.value < 1:
            raise PruneError(
                "--latency takes the fraction of the time that remains, or a time",
                did_you_mean_percent(quantity, "write --latency 0.5, 50% or 3.5ms"),
            )
        return cls("latency", quantity.value)

    def fraction(self, before: Totals) -> float:
        """The target as a fraction: removed for `ratio`, remaining for the others. A time needs measuring, which
        is done elsewhere.

        Raises:
            PruneError: an absolute target that the model already meets, or whose whole is unknown.
        """
        if not self.absolute:
            return self.target
        whole = before.macs if self.kind == "macs" else before.params
        if not whole:
            raise PruneError("the model's work is not known at these dimensions", "write --macs 0.5, or set --dim")
        if self.target >= whole:
            raise PruneError(f"the model has {whole:,} {self.kind} already", f"ask for fewer than {whole:,}")
        return self.target / whole

    def missed(self, before: Totals, after: Totals, hint: str = "ask for less") -> str:
        """Return a warning about a file that exceeds its target; "" if it does not.

        Raises:
            PruneError: it has over a hundredth more.
        """
        if self.kind not in ("macs", "params"):
            return ""
        whole, left = (getattr(side, self.kind) for side in (before, after))
        wanted = self.target if self.absolute else self.target * (whole or 0)
        if not whole or left is None or left <= wanted + 0.5:
            return ""
        told = f"--{self.kind} {wanted / whole:.4g} is missed: {left / whole:.4g} remains, {left:,} of {whole:,}"
        if left > wanted * (1 + NEAR):
            raise PruneError(told, hint)
        return told
