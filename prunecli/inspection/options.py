"""The options of `prune inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prunecli.errors import PruneError
from prunecli.options.declare import OUTPUT, Option
from prunecli.options.groups import Reporting, Sized

GRAPHS = (".graphml", ".json")


def parse_nm(text: str) -> tuple[int, int]:
    """`2:4` -> (2, 4): at most N of M consecutive weights are not zero.

    Raises:
        PruneError: not N:M with 0 < N < M.
    """
    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise PruneError(f"{text!r} is not an N:M pattern", "write N:M with N smaller than M, for example 2:4")
    return int(n), int(m)


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Sized, Reporting):
    """What is in a model, what can be pruned, what cannot and why.

    Dynamic dimensions that --dim and --input-shape leave open are assumed: 1 for the batch, otherwise the
    sizes stated in the output.
    """

    histogram: Annotated[bool, Option("draw |w| per weight, with the thresholds that zero 50, 70 and 90 %")] = False
    nm: Annotated[
        tuple[int, int] | None,
        Option("say which weights already follow N:M, e.g. 2:4", metavar="N:M", read=parse_nm, separator=":"),
    ] = None
    graph: Annotated[
        Path | None,
        Option(
            "write the graph of the units that can be cut, with their importance: .graphml or .json", OUTPUT, "PATH"
        ),
    ] = None

    def check(self) -> None:
        super().check()
        if self.graph is not None and self.graph.suffix.lower() not in GRAPHS:
            raise PruneError(f"cannot tell the graph's format from {self.graph.name!r}", "end it in .graphml or .json")
