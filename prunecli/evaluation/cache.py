"""Run long samples of tokens in parts: each part gets the keys and values of the parts before it, as in generation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.language import tokens_of
from prunecli.errors import PruneError
from prunecli.inputs import MASK, is_past
from prunecli.runtime import Session

_NAMES = re.compile(r"(?:past|present)(?:_key_values)?[._]?(.*)")
"""Names of inputs and outputs that hold keys and values. Exporters differ in the prefix only."""


@dataclass(frozen=True)
class KeyValueCache:
    """The cache of a model. `tokens`: the input of tokens; `presents`: for each cache input, the output that holds its
    next value; `length`: tokens per part; `alone`: run one sample at a time, because GroupQueryAttention takes several
    tokens behind a cache for one sample only."""

    tokens: str
    presents: Mapping[str, str]
    length: int
    alone: bool

    @classmethod
    def of(cls, session: Session, length: int) -> KeyValueCache:
        """Return the cache of an open model.

        Raises:
            PruneError: it takes no keys and values of what came before, or does not give them.
        """
        tokens, outputs = tokens_of(session.inputs), {_named(spec.name): spec.name for spec in session.outputs
                                                      if spec.name.startswith("present")}  # fmt: skip
        pasts = [spec.name for spec in session.inputs if is_past(spec)]
        lacking = [name for name in pasts if _named(name) not in outputs]
        if tokens is None or not pasts or lacking:
            what = f"no output holds what {lacking[0]} reads" if lacking else "the model takes no past keys and values"
            raise PruneError(f"--chunk: {what}", "leave it out: each sample is run at once then")
        alone = length > 1 and not isinstance(tokens.shape[0], int)
        return cls(tokens.name, {name: outputs[_named(name)] for name in pasts}, length, alone=alone)

    def run(self, session: Session, feed: Mapping[str, Array]) -> dict[str, Any]:
        """Run all parts and return the outputs of one long run: outputs per token are joined, keys and values are those
        after the last part.

        Raises:
            PruneError: an output has no row per token.
        """
        if not self.alone:
            return self._together(session, feed)
        count = len(feed[self.tokens])
        found = [self._together(session, {n: v[k : k + 1] for n, v in feed.items()}) for k in range(count)]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _together(self, session: Session, feed: Mapping[str, Array]) -> dict[str, Any]:
        rows, total = feed[self.tokens].shape
        held = {name: feed[name] for name in self.presents}
        parts: dict[str, list[Array]] = {}
        for start in range(0, total, self.length):
            end = min(start + self.length, total)
            found = session.run({**self._part(feed, start, end), **held})
            held = {name: found.pop(output) for name, output in self.presents.items()}
            for name, value in found.items():
                if np.shape(value)[:2] != (rows, end - start):
                    raise PruneError(f"--chunk: the output {name} of shape {np.shape(value)} has no row per token",
                                     "leave it out: each sample is run at once then")  # fmt: skip
                parts.setdefault(name, []).append(value)
        joined = {name: np.concatenate(values, axis=1) for name, values in parts.items()}
        return joined | {output: held[name] for name, output in self.presents.items()}

    def _part(self, feed: Mapping[str, Array], start: int, end: int) -> dict[str, Array]:
        """Return the inputs per token of these tokens, and the attention mask of all tokens up to the last of them."""
        total, found = feed[self.tokens].shape[1], {}
        for name, value in feed.items():
            if name in self.presents:
                continue
            before = value.shape[1] - total if value.ndim == 2 else -1
            if name == MASK and before >= 0:
                found[name] = value[:, : before + end]
            else:
                found[name] = value[:, start:end] if before == 0 else value
        return found


def _named(name: str) -> str:
    """Return the name of a cache input or output without its prefix."""
    found = _NAMES.fullmatch(name)
    return found[1] if found else name
