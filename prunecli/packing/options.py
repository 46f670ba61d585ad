"""The options of `prune pack` and `prune unpack`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from prunecli.errors import PruneError
from prunecli.options.declare import Option
from prunecli.options.groups import Chosen, Reporting, Running, Saving, Sized
from prunecli.quantity import parse_fraction
from prunecli.types import Json

PACK = "Packing"


@dataclass(frozen=True, kw_only=True)
class UnpackOptions(Saving, Reporting, Sized, Running):
    """Store the weights of a packed file densely again, bit for bit what was packed."""


@dataclass(frozen=True, kw_only=True)
class PackOptions(Chosen, UnpackOptions):
    """Store sparse weights small, in a file that any onnxruntime opens.

    Zeros leave the file; standard operators put them back while the model is loaded, and onnxruntime folds those
    away: what runs is the dense model, as fast as before. Loading takes longer and more memory, which is measured.
    `prune unpack` gives the dense file back, and every command reads packed files as if they were dense.
    """

    values: Annotated[
        Literal["exact", "float16", "int8"],
        Option("how what is not zero is stored; the narrow ones are lossy and measured", PACK),
    ] = "exact"
    max_error: Annotated[
        float | None,
        Option("with narrow values: exit 1, writing nothing, if an output on random inputs differs by more, as a fraction"
               " of its largest element", PACK, "E", read=parse_fraction),
    ] = None  # fmt: skip
    min_saving: Annotated[
        float,
        Option("a tensor that would save less stays dense; default 10%", PACK, "S", read=parse_fraction,
               show_default=False),
    ] = 0.1  # fmt: skip
    plain_zeros: Annotated[
        bool,
        Option("turn negative zeros, which masks leave behind, into zeros; else they are kept, as values", PACK),
    ] = False
    printed = frozenset({"report"})
    format: Annotated[
        tuple[Literal["coo", "table", "json", "markdown"], ...],
        Option("coo: store as sparse_initializer (8 more bytes per value) instead of what is smallest; others: what"
               " stdout carries; repeatable", PACK),
    ] = ()  # type: ignore[assignment] # fmt: skip

    def check(self) -> None:
        super().check()
        if not 0 <= self.min_saving < 1:
            raise PruneError(f"--min-saving {self.min_saving} is no fraction below 1", "give one, as 10%")
        if self.coo and self.values != "exact":
            raise PruneError("--format coo stores values as they are", "leave --values out")
        if self.max_error is not None and self.values == "exact":
            raise PruneError("--max-error is of --values float16 or int8", "leave it out: exact values change nothing")
        if self.max_error is not None and not self.verify:
            raise PruneError("--max-error is judged by the proof that --no-verify skips", "leave one of them out")

    @property
    def coo(self) -> bool:
        """Whether sparse tensors are stored as sparse_initializer."""
        return "coo" in self.format

    @property
    def shown(self) -> str:
        return next((name for name in reversed(self.format) if name != "coo"), "table")

    def packing_json(self) -> Json:
        form = "coo" if self.coo else "auto"
        return {"format": form, **self.recorded(["values", "max_error", "min_saving", "plain_zeros"])}
