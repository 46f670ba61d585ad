"""What files for language models leave out: masks, positions and empty pasts, and where a sample of a long row of
tokens ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from prunecli.arrays import Array
from prunecli.data.columns import InputColumn
from prunecli.errors import PruneError
from prunecli.inputs import MASK, InputSpec, counts_past, is_past

WINDOW = 512
"""Tokens of a sample, where the model does not say."""
NOT_COUNTED = -100
"""The label of a place that metrics leave out."""

_SAME_SHAPE: Mapping[str, tuple[Callable[[int, int], Array], str]] = {
    MASK: (lambda rows, length: np.ones((rows, length), np.int64), "ones: no token is padding"),
    "position_ids": (lambda rows, length: np.tile(np.arange(length), (rows, 1)), "0, 1, 2, ... in every sample"),
    "token_type_ids": (lambda rows, length: np.zeros((rows, length), np.int64), "zeros: one segment"),
}
"""By name of an input beside the tokens: what it is for samples without padding, and how that is told."""


def tokens_of(specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input of a language model that takes its tokens: integers (samples, tokens), beside which all other inputs
    can be made."""
    plain = [s for s in specs if not (s.name in _SAME_SHAPE or is_past(s))]
    one = plain[0] if len(plain) == 1 else None
    return one if one is not None and one.dtype in ("int64", "int32") and len(one.shape) == 2 else None


def made_beside(specs: Sequence[InputSpec], found: Mapping[str, InputColumn]) -> dict[str, InputColumn]:
    """Columns for inputs of a language model that no array was given for; `made` of each says what they are."""
    spec = tokens_of(specs)
    tokens = None if spec is None else found.get(spec.name)
    if spec is None or tokens is None or len(tokens.shape) != 2:
        return {}
    rows, length = tokens.shape
    columns = {}
    for other in (s for s in specs if s.name not in found):
        if other.name in _SAME_SHAPE and len(other.shape) == 2:
            make, what = _SAME_SHAPE[other.name]
            columns[other.name] = _column(other.name, make(rows, length), f"{other.name} was made: {what}")
        elif is_past(other):
            shape = [0 if counts_past(dim) else dim for dim in other.shape[1:]]
            if all(isinstance(size, int) for size in shape):
                empty = np.zeros((rows, *map(int, shape)), np.float32)  # type: ignore[arg-type]
                columns[other.name] = _column(other.name, empty, "past keys and values were made: there are none")
    return columns


@dataclass(frozen=True)
class TokenWindows:
    """How one long row of tokens becomes samples.

    Attributes:
        length: tokens of a sample; None: as many as the model asks for, else `WINDOW`.
        stride: by how many tokens a sample begins after the one before; None: by its length, so that none overlap.
    """

    length: int | None = None
    stride: int | None = None


def windows(
    column: InputColumn, specs: Sequence[InputSpec], asked: TokenWindows
) -> tuple[InputColumn, InputColumn | None]:
    """One long row of tokens as samples (N, tokens); what is left at the end is no sample. Anything else as it is.

    Where samples overlap there are labels, too: the next tokens, of which each is counted in one sample alone, with as
    many tokens before it as that has.

    Raises:
        PruneError: there are fewer tokens than one sample has, or samples of another length than the model takes.
    """
    spec = tokens_of(specs)
    if spec is None or len(column.shape) != 1 or np.dtype(column.dtype).kind not in "iu":
        if asked != TokenWindows():
            problem = f"{column.name} is no row of tokens, or the model takes more than one"
            raise PruneError(f"{problem}: there are no windows", "leave out --window and --stride")
        return column, None
    fixed, total = spec.shape[1], column.shape[0]
    if isinstance(fixed, int) and asked.length not in (None, fixed):
        raise PruneError(f"--window {asked.length}: the model takes {fixed} tokens", f"leave it out, or write {fixed}")
    size = fixed if isinstance(fixed, int) else asked.length or min(WINDOW, total)
    step = asked.stride or size
    if not 0 < step <= size:
        raise PruneError(f"--stride {step} leaves tokens out between samples of {size}", f"give at most {size}")
    count = (total - size) // step + 1 if 0 < size <= total else 0
    if not count:
        raise PruneError(f"{column.name} has {total} tokens, a sample of the model has {size}", "give more")
    read, overlap = column.array, step < size
    made = f"{column.name} was read as {count:,} samples of {size} tokens"
    made += f", {step} apart: of each but the first the last {step} count" if overlap else ""

    def samples() -> Array:
        return np.ascontiguousarray(sliding_window_view(read(), size)[::step][:count])

    found = InputColumn(column.name, (count, size), column.dtype, read=samples, made=made)
    return found, _column("labels", _next(samples(), step), "") if overlap else None


def _next(samples: Array, step: int) -> Array:
    """The token after each place; `NOT_COUNTED` at the last one, and in all but the first sample where an earlier one
    has it."""
    found = np.full(samples.shape, NOT_COUNTED, np.int64)
    found[:, :-1] = samples[:, 1:]
    found[1:, : samples.shape[1] - step - 1] = NOT_COUNTED
    return found


def _column(name: str, array: Array, made: str) -> InputColumn:
    return InputColumn(name, array.shape, array.dtype, read=lambda: array, made=made)
