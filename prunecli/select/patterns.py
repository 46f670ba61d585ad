"""Patterns: what is dropped together. Written `element`, `row`, `column`, `RxC` or `N:M`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prunecli.errors import PruneError
from prunecli.select.registry import Registry
from prunecli.select.tiles import Shape4


@dataclass(frozen=True)
class Tiles:
    """Units are boxes of the tensor as (batch, rows, taps, cols); `tile` sizes them from its shape."""

    text: str
    tile: Callable[[Shape4], Shape4]
    rows_compete: bool
    """Whether several units lie in one row, so that `--scope row` makes sense."""

    @property
    def single(self) -> bool:
        """Whether every unit is one weight."""
        return self.text == "element"


@dataclass(frozen=True)
class Windows:
    """Of every `window` neighbours along the reduction axis, `keep` are kept."""

    text: str
    keep: int
    window: int


Pattern = Tiles | Windows


@dataclass(frozen=True)
class PatternForm:
    """A way of writing patterns: `syntax` must match all of the text; `build` gets the numbers in it."""

    name: str
    help: str
    syntax: str
    build: Callable[..., Pattern]


PATTERNS: Registry[PatternForm] = Registry("pattern")
Builder = TypeVar("Builder", bound=Callable[..., Pattern])


def pattern_form(name: str, help: str, syntax: str | None = None) -> Callable[[Builder], Builder]:
    """Register the builder of a pattern; `syntax` is a regular expression whose groups are its integers."""

    def register(build: Builder) -> Builder:
        PATTERNS.add(PatternForm(name, help, syntax or name, build))
        return build

    return register


def parse_pattern(text: str) -> Pattern:
    """Read a pattern.

    Raises:
        PruneError: it is none of the known forms, or its numbers make no sense.
    """
    for form in PATTERNS:
        match = re.fullmatch(form.syntax, text.strip().lower())
        if match:
            return form.build(*(int(number) for number in match.groups()))
    raise PruneError(
        f"{text!r} is not a pattern", f"write {', '.join(form.name for form in PATTERNS)}, such as 2:4 or 4x1"
    )


@pattern_form("element", "single weights")
def element() -> Tiles:
    return Tiles("element", lambda shape: (1, 1, 1, 1), rows_compete=True)


@pattern_form("N:M", "keeps the N largest of every M along the reduction axis", r"(\d{1,9}):(\d{1,9})")
def n_of_m(keep: int, window: int) -> Pattern:
    if not 0 < keep < window:
        raise PruneError(f"the pattern {keep}:{window} does not keep some and drop some", "write N:M with 0 < N < M")
    return Windows(f"{keep}:{window}", keep, window)


@pattern_form("RxC", "blocks of R outputs by C inputs", r"(\d{1,9})x(\d{1,9})")
def block(rows: int, cols: int) -> Pattern:
    if rows < 1 or cols < 1:
        raise PruneError(f"a block of {rows}x{cols} holds nothing", "write RxC with both at least 1")
    if rows == cols == 1:
        return element()

    def tile(shape: Shape4) -> Shape4:
        return 1, max(1, min(rows, shape[1])), 1, max(1, min(cols, shape[3]))

    return Tiles(f"{rows}x{cols}", tile, rows_compete=True)


@pattern_form("row", "all weights of one output (neuron, filter)")
def row() -> Pattern:
    return Tiles("row", lambda shape: (1, 1, max(1, shape[2]), max(1, shape[3])), rows_compete=False)


@pattern_form("column", "all weights of one input")
def column() -> Pattern:
    return Tiles("column", lambda shape: (1, max(1, shape[1]), max(1, shape[2]), 1), rows_compete=False)
