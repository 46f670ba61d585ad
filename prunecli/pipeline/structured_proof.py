"""What happens to a cut model between being written and appearing: checked, proved, measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from prunecli.apply.cut_proof import CutProof, Trial
from prunecli.apply.cut_reference import Forced
from prunecli.apply.proof_inputs import InputShapes, sizes_to_try
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
    dims: Dims = field(default_factory=Dims)
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
        first = [self.subject.inputs, self.subject.inputs, self.shapes, self.subject.other_inputs]
        wanted = [s for n, s in enumerate(first) if s is not None and (n < 2 or s not in first[:n])]
        for number, shapes in enumerate(wanted):
            seed = self.seed + number
            yield Trial(f"random inputs, seed {seed}", _made(original, seed, shapes))
        for sizes in sizes_to_try(self.subject.file, self.subject.inputs, self.dims):
            yield Trial(f"random inputs {_told(sizes)}", _made(original, self.seed, sizes), spare=True)


def _made(session: Session, seed: int, shapes: InputShapes) -> Mapping[str, Any] | PruneError:
    """Random inputs, or why there are none."""
    try:
        return session.random_inputs(seed=seed, shapes=shapes)
    except PruneError as error:
        return error


def _told(shapes: InputShapes) -> str:
    return ", ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())


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
