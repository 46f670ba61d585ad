"""What files for language models leave out: masks, positions and empty pasts, and where a sample of a long row of
tokens ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunecli.data.columns import InputColumn
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

Array = np.ndarray[Any, Any]
WINDOW = 512
"""Tokens of a sample, where the model does not say."""

_SAME_SHAPE: Mapping[str, tuple[Callable[[int, int], Array], str]] = {
    "attention_mask": (lambda rows, length: np.ones((rows, length), np.int64), "ones: no token is padding"),
    "position_ids": (lambda rows, length: np.tile(np.arange(length), (rows, 1)), "0, 1, 2, ... in every sample"),
    "token_type_ids": (lambda rows, length: np.zeros((rows, length), np.int64), "zeros: one segment"),
}
"""By name of an input beside the tokens: what it is for samples without padding, and how that is told."""


def tokens_of(specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input of a language model that takes its tokens: integers (samples, tokens), beside which all other inputs
    can be made."""
    plain = [s for s in specs if not (s.name in _SAME_SHAPE or _is_past(s))]
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
        elif _is_past(other):
            shape = [0 if _counts_past(dim) else dim for dim in other.shape[1:]]
            if all(isinstance(size, int) for size in shape):
                empty = np.zeros((rows, *map(int, shape)), np.float32)  # type: ignore[arg-type]
                columns[other.name] = _column(other.name, empty, "past keys and values were made: there are none")
    return columns


def windows(column: InputColumn, specs: Sequence[InputSpec]) -> InputColumn:
    """One long row of tokens as samples (N, tokens), which do not overlap; what is left at the end is no sample.
    Anything else as it is.

    Raises:
        PruneError: there are fewer tokens than one sample has.
    """
    spec = tokens_of(specs)
    if spec is None or len(column.shape) != 1 or np.dtype(column.dtype).kind not in "iu":
        return column
    size = spec.shape[1] if isinstance(spec.shape[1], int) else min(WINDOW, column.shape[0])
    count = column.shape[0] // size if size else 0
    if not count:
        raise PruneError(f"{column.name} has {column.shape[0]} tokens, a sample of the model has {size}", "give more")
    made = f"{column.name} was read as {count:,} samples of {size} tokens"
    read = column.array
    return InputColumn(
        column.name, (count, size), column.dtype, lambda: read()[: count * size].reshape(count, size), made=made
    )


def _column(name: str, array: Array, made: str) -> InputColumn:
    return InputColumn(name, array.shape, array.dtype, lambda: array, made=made)


def _is_past(spec: InputSpec) -> bool:
    """Keys or values of what came before, of any length."""
    return spec.name.startswith("past") and len(spec.shape) > 2 and any(map(_counts_past, spec.shape[1:]))


def _counts_past(dim: int | str | None) -> bool:
    return isinstance(dim, str) and "past" in dim and "+" not in dim
