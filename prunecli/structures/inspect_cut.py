"""Checks of a cut model between writing and committing its file: validity, proof, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from prunecli.arrays import without
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.model.copies import plain_path
from prunecli.model.saving import objection
from prunecli.storage.stored import unmap
from prunecli.structures.cut_proof import HINT, CutProof
from prunecli.structures.cut_reference import Forced, Positions
from prunecli.structures.decision import layer_rows
from prunecli.structures.prunable import Cuttable, less
from prunecli.types import UNVERIFIED, LayerRow, Progress, Totals, Verification, no_progress
from prunecli.verify.compare import check_tensors, placed, same_bits
from prunecli.verify.inputs import Case, TakesInputs, random_case, sizes_to_try, sizes_with_past, spare_cases

if TYPE_CHECKING:
    from prunecli.structures.options import CutOptions

REAL_BATCHES = 4
REAL_BATCH = 8


@dataclass
class CutInspector:
    """Takes the staged file of a cut: `save` calls it before the file appears.

    Afterwards `after` are the sizes of the file, `layers` its weights beside the original's, and `warnings` what has to
    be said first: a budget missed by little, a larger file.
    """

    cuttable: Cuttable
    forced: Forced
    options: CutOptions
    progress: Progress = no_progress
    verification: Verification = UNVERIFIED
    after: Totals | None = None
    layers: list[LayerRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __call__(self, staged: Path, cut: ir.Model | None = None) -> None:
        """Prove the cut, then `measure`."""
        original = plain_path(self.cuttable.file)
        if self.options.verify:
            proof = CutProof(
                original, self.forced, self.cases, open=self.options.execution.open, progress=self.progress
            )
            self.verification = proof(staged)
            check_slices(self.cuttable.file.ir, load(staged).ir, removed=self.forced.positions, progress=self.progress)
        self.measure(staged, cut)

    def measure(self, staged: Path, cut: ir.Model | None = None) -> None:
        """Check what is not part of the proof: the file is valid, meets the budget, and stores what `cut` does, since
        no run reads every row of a table, and weights may have been refitted after the proof. Record its sizes.

        Raises:
            PruneError: it is invalid, misses the budget, or stores something else.
        """
        strict_check(plain_path(self.cuttable.file), staged)
        saved, unfitted = load(staged), self.after
        if cut is not None and self.options.verify:
            stored = {place: holder.tensor for place, holder in placed(cut).items()}
            check_tensors(stored, saved.ir, {}, hint=HINT, progress=self.progress)
        self.after = self.cuttable.totals_of(saved)
        self.layers = layer_rows(self.cuttable, self.forced.positions, saved)
        missed = (
            ""
            if self.options.budget is None
            else self.options.budget.missed(self.cuttable.before, self.after, less(self.options, self.cuttable))
        )
        self.warnings = [
            *([missed] if missed else []), *larger(self.cuttable.before, self.after), *filled(unfitted, self.after)
        ]  # fmt: skip

    def cases(self, original: TakesInputs) -> Iterator[Case]:
        """Real samples first, then random inputs at each choice of the dynamic dimensions; of a model with a cache also
        with a short past and with none."""
        if self.options.source is not None:
            size = min(self.options.batch_size, REAL_BATCH)
            samples = self.cuttable.samples(self.options, self.progress)
            few = samples.take(REAL_BATCHES * size)
            for number, batch in enumerate(few.batches(size)):
                yield Case(f"batch {number} of {samples.source}", partial(dict, batch.feed), required=True)
        cuttable, seed = self.cuttable, self.options.seed
        first = [cuttable.inputs, cuttable.inputs, cuttable.counted.inputs, cuttable.other_inputs]
        wanted = [s for n, s in enumerate(first) if s is not None and (n < 2 or s not in first[:n])]
        wanted += sizes_with_past(cuttable.file, cuttable.inputs, self.options.dims)
        for number, shapes in enumerate(wanted, seed):
            yield random_case(original, shapes, number)
        yield from spare_cases(original, sizes_to_try(cuttable.file, cuttable.inputs, self.options.dims), seed)


def check_slices(original: ir.Model, saved: ir.Model, removed: Positions, progress: Progress = no_progress) -> None:
    """Compare every matrix that lost positions with the original's without them, bit for bit: no run reaches every
    expert of a mixture, nor reads every row of a table. Along an axis on which several numbers are packed into one, the
    runs alone tell.

    Raises:
        PruneError: naming the first that differs.
    """
    before, after = (
        {one.name: one for one in placed(model).values() if one.graph is model.graph} for model in (original, saved)
    )
    names = [name for name in removed if name in before and name in after and len(before[name].tensor.shape) > 1]
    for name in progress(names, "comparing", len(names)):
        ours, theirs = before[name].tensor, after[name].tensor
        gone = {axis: places for axis, places in removed[name].items() if len(places)}
        left = [size - len(gone.get(axis, ())) for axis, size in enumerate(ours.shape.numpy())]
        if not ours.dtype.is_floating_point() and left != list(theirs.shape.numpy()):
            continue  # several numbers are packed into one that is stored
        wanted, found = without(np.asarray(ours.numpy()), gone), np.asarray(theirs.numpy())
        if found.shape != wanted.shape or not same_bits(wanted, found):
            raise PruneError(f"{name} of the cut is not the original's without what was removed", HINT)
        unmap(ours)
        unmap(theirs)


FILLED = 0.05
"""Share of the parameters from which a refit that filled zeros is reported."""


def filled(unfitted: Totals | None, fitted: Totals) -> Iterator[str]:
    """Return a note if the refit, which moves every weight, filled many zeros of the cut."""
    count = 0 if unfitted is None else fitted.nonzero - unfitted.nonzero
    if count > FILLED * fitted.params:
        yield (f"the refit filled {count:,} weights that were zero: zero weights after the cut (`prune oneshot` of the "
               "result), or keep them with --recover none")  # fmt: skip


def larger(before: Totals, after: Totals) -> Iterator[str]:
    """Return what has grown."""
    for name, title in (
        ("params", "parameters"),
        ("macs", "multiply-accumulates"),
        ("file_bytes", "bytes of the file"),
    ):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None and new is not None and new > old:
            yield f"the result is larger than its input: {old:,} {title} became {new:,}"


def strict_check(original: Path, staged: Path) -> None:
    """Strict shape inference must accept the result where it accepts the original.

    Raises:
        PruneError: it does not.
    """
    problem = objection(staged, strict=True)
    if problem and not objection(original, strict=True):
        raise PruneError(f"the cut model is invalid: {problem}", "nothing was written; please report this")
