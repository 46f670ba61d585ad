"""Proof of a shrunk model: it gives what the original gives, on the inputs given and on random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from prunecli.data import Dataset
from prunecli.data.columns import free_memory
from prunecli.errors import UnprovedError
from prunecli.model import Model, concrete_shapes
from prunecli.model.copies import plain_path
from prunecli.model.external_data import read_whole
from prunecli.runtime import Session
from prunecli.shrinking.interface import InterfaceChange
from prunecli.shrinking.options import ShrinkOptions
from prunecli.shrinking.vocabulary import VocabularyCut
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.inputs import Case, InputShapes, random_case, sizes_to_try
from prunecli.verify.prove import Claim, Proof, open_original, open_result, prove
from prunecli.verify.tolerance import Feed, OfLargest, Outputs, Rounding, Runs, Tolerance, nudged, relative_of

HINT = "nothing was written; please report the model"
SEEDS = 3
PROOF_BATCH = 8
COPIES = 3
"""How often a proof holds the weights: of the original in two sessions, and of the result."""


@dataclass(frozen=True)
class Expected:
    """The original, with the changes that were asked for made to its inputs and outputs."""

    original: Runs
    changes: Sequence[InterfaceChange]

    def run(self, feed: Feed) -> Outputs:
        for change in self.changes:
            feed = change.asked(feed)
        outputs: Outputs = self.original.run(feed)
        for change in self.changes:
            outputs = change.outputs(outputs)
        return outputs


@dataclass(frozen=True)
class Adapted:
    """The changed model, which is given inputs of the original."""

    changed: Runs
    changes: Sequence[InterfaceChange]

    def run(self, feed: Feed) -> Outputs:
        for change in self.changes:
            feed = change.feed(feed)
        return self.changed.run(feed)


@dataclass(frozen=True)
class ShrinkProof:
    """What to prove of a staged file: that it is the model of `file`, with the `changes` that were asked for.

    `promise`: units went that are constant on the data only, so that nothing is claimed of other inputs. `reason`: why
    the outputs may differ by rounding.
    """

    file: Model
    options: ShrinkOptions
    changes: Sequence[InterfaceChange]
    vocabulary: VocabularyCut | None
    data: Dataset | None
    promise: bool
    reason: str
    progress: Progress = no_progress

    def __call__(self, staged: Path) -> Verification:
        """Compare both.

        Raises:
            UnprovedError: the original cannot be run, or there is no room for both.
            PruneError: they differ.
        """
        self._check_room()
        path = plain_path(self.file)
        start = partial(self.options.execution.open, path)
        session = open_original(start)
        shrunk = open_result(partial(self.options.execution.open, staged), start, "shrunk model", hint=HINT)
        claim = Claim(reference=Expected(session, self.changes), result=Adapted(shrunk, self.changes),
                      tolerance=self._tolerance(path), names=("shrunk model", "original"), hint=HINT)  # fmt: skip
        return self._verdict(prove(claim, self._cases(session), self.progress))

    def _check_room(self) -> None:
        size = sum(path.stat().st_size for path in (self.file.path, *self.file.data_files))
        if COPIES * size > free_memory():
            raise UnprovedError(f"{size / 2**30:.1f} GiB of weights cannot be run twice in the memory that is free")

    def _tolerance(self, path: Path) -> Tolerance:
        if self.promise and self.options.tolerance:
            return OfLargest(float("inf"), "units that hardly fire went, so that outputs are measured, not judged")

        open_ = self.options.execution.open

        def moved() -> list[Expected]:
            whole = bytes(read_whole(path).SerializeToString())
            return [Expected(open_(nudged(whole, seed), mode="plain"), self.changes) for seed in range(2)]

        return Rounding(relative_of(path), lambda: Expected(open_(path, mode="plain"), self.changes), moved)

    def _cases(self, session: Session) -> Iterator[Case]:
        """Given inputs first, then random ones, unless what went was dead on the data only."""
        for number, batch in enumerate(self.data.batches(PROOF_BATCH) if self.data is not None else ()):
            feed = batch.feed if self.vocabulary is None else self._sayable(batch.feed)
            if feed is not None and self.data is not None:
                yield Case(f"batch {number} of {self.data.source}", partial(dict, feed), required=True)
        if self.promise:
            return
        shapes = concrete_shapes(self.file, self.options.dims).inputs
        for seed in range(self.options.seed, self.options.seed + SEEDS):
            yield self._random(session, shapes, seed)
        for sizes in sizes_to_try(self.file, shapes, self.options.dims):
            yield self._random(session, sizes, self.options.seed, spare=True)

    def _random(self, session: Session, shapes: InputShapes, seed: int, spare: bool = False) -> Case:
        case, cut = random_case(session, shapes, seed, spare=spare), self.vocabulary
        if cut is None:
            return case
        return Case(case.label, lambda: cut.random(case.feed(), np.random.default_rng(seed)), spare=spare)

    def _sayable(self, feed: Feed) -> Feed | None:
        """The samples whose tokens are all kept, unless others count as the unknown one."""
        assert self.vocabulary is not None
        if self.vocabulary.any_ids:
            return feed
        ids = np.asarray(feed[self.vocabulary.input])
        good = np.isin(ids, self.vocabulary.kept).reshape(len(ids), -1).all(1)
        if good.all():
            return feed
        return {name: np.asarray(v)[good] for name, v in feed.items()} if good.any() else None

    def _verdict(self, found: Proof) -> Verification:
        where = f" on all {len(self.data)} samples" if self.promise and self.data is not None else ""
        more = "; a promise about these inputs only" if self.promise else ""
        if all(one.error == 0 for one in found.differences):
            return found.verification(f"equal to the bit{where}{more}")
        if self.promise and self.options.tolerance:
            return found.verification(f"compared{where}: units that hardly fire there went{more}", "approximate")
        return found.verification(f"equal to rounding{where}, since {self.reason}{more}")
