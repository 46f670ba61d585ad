"""Samples of tokens in parts, each run with the keys and values of those before it, as a model that writes runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.language import MASK, is_past, tokens_of
from prunecli.errors import PruneError
from prunecli.runtime import Session

_NAMES = re.compile(r"(?:past|present)(?:_key_values)?[._]?(.*)")
"""Of inputs and outputs for keys and values, which exporters name alike but for how they begin."""


@dataclass(frozen=True)
class KeyValueCache:
    """The cache of a model: `tokens` is the input of its tokens, `presents` the output that holds what a later part
    reads of this one, by input. `length`: tokens of a part. `alone`: samples are run one at a time, since
    GroupQueryAttention takes several tokens behind others of one sample only."""

    tokens: str
    presents: Mapping[str, str]
    length: int
    alone: bool

    @classmethod
    def of(cls, session: Session, length: int) -> KeyValueCache:
        """Of a model in onnxruntime.

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
        """All outputs as of one run: those per token of all parts, keys and values behind the last.

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
        """What is there per token, of these tokens; the mask of all up to them."""
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
    """An input or output of the cache without how its name begins."""
    found = _NAMES.fullmatch(name)
    return found[1] if found else name
