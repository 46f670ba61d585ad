"""What happens to a cut model between being written and appearing: checked, proved, measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx

from prunecli.apply.cut_proof import CutProof, Trial
from prunecli.apply.cut_reference import Forced
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.model import Dims, concrete_shapes, load, totals
from prunecli.model.facts import Shape
from prunecli.model.plain import plain_path
from prunecli.pipeline.structured_plan import layer_rows
from prunecli.pipeline.structured_subject import Cuttable
from prunecli.pipeline.subject import Execution
from prunecli.runtime import Session
from prunecli.types import LayerRow, Progress, Totals, Verification, no_progress

REAL_BATCHES = 4
REAL_BATCH = 8
LONGER = (512, 1536, 4096)
"""Tried where the original runs at none of the other sizes."""
LARGEST_INPUT = 1 << 22


@dataclass
class Inspector:
    """Takes the staged file of a cut: `save` calls it before the file appears.

    `shapes`: the input shapes that the report counts work at. Afterwards `after` are the sizes of the file,
    and `layers` its weights beside the original's.
    """

    subject: Cuttable
    forced: Forced
    shapes: dict[str, Shape]
    data: DataOptions | None = None
    batch_size: int = REAL_BATCH
    seed: int = 0
    execution: Execution = field(default_factory=Execution)
    verify: bool = True
    progress: Progress = no_progress
    verification: Verification = field(default_factory=lambda: Verification("none", detail="left out by --no-verify"))
    after: Totals | None = None
    layers: list[LayerRow] = field(default_factory=list)

    def __call__(self, staged: Path) -> None:
        original = plain_path(self.subject.file)
        if self.verify:
            start = partial(Session.open, provider=self.execution.provider, threads=self.execution.thread_count)
            proof = CutProof(original, self.forced, self.trials, start, self.progress)
            self.verification = proof(staged)
        self.measure(staged)

    def measure(self, staged: Path) -> None:
        """What is not the proof: the file is valid, and how large it is."""
        strict_check(plain_path(self.subject.file), staged)
        saved = load(staged)
        self.after = totals(saved, concrete_shapes(saved, Dims(shapes=self.shapes)))
        self.layers = layer_rows(self.subject, self.forced.positions, saved)

    def trials(self, original: Session) -> Iterator[Trial]:
        """Real samples first, then random inputs at each choice of the dynamic dimensions."""
        if self.data is not None:
            size = min(self.batch_size, REAL_BATCH)
            samples = self.data.open(original.inputs)
            few = samples.take(REAL_BATCHES * size)
            for number, batch in enumerate(few.batches(size)):
                yield Trial(f"batch {number} of {samples.source}", batch.feed, True)
        sizes = [self.subject.inputs, self.subject.inputs, self.shapes, self.subject.other_inputs]
        for number, shapes in enumerate(sizes):
            if shapes is not None and (number < 2 or shapes not in sizes[:number]):
                feed = original.random_inputs(seed=self.seed + number, shapes=shapes)
                yield Trial(f"random inputs, seed {self.seed + number}", feed)
        for length in LONGER:  # sound models pad by more than the default length
            shapes = _at_length(original, self.subject.inputs, length)
            if sum(map(math.prod, shapes.values())) <= LARGEST_INPUT:
                feed = original.random_inputs(seed=self.seed, shapes=shapes)
                yield Trial(f"random inputs of length {length}", feed, spare=True)


def _at_length(session: Session, shapes: Mapping[str, Shape], length: int) -> dict[str, Shape]:
    """The shapes with every free size but the batch changed."""
    specs = {spec.name: spec for spec in session.inputs}
    return {
        name: tuple(
            size if axis == 0 or isinstance(specs[name].shape[axis], int) else length for axis, size in enumerate(shape)
        )
        for name, shape in shapes.items()
    }


def strict_check(original: Path, staged: Path) -> None:
    """Strict shape inference must accept the result where it accepts the original.

    Raises:
        PruneError: it does not.
    """
    problem = _objection(staged)
    if problem and not _objection(original):
        raise PruneError(f"the cut model is invalid: {problem}", "nothing was written; please report this")


def _objection(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        lines = str(error).strip().splitlines()
        return lines[0][:300] if lines else type(error).__name__
    return ""
