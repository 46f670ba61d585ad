"""Proof that a saved model is the original with its weights masked, and nothing else.

Always: every stored tensor of the saved file is compared with the original (masked where it should be), and
the graphs are compared. Where onnxruntime runs the model and its size allows, both the saved file and a
reference that the plain onnx package builds are run on the same random inputs: the outputs must agree bit for
bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.apply.outline import outline
from prunecli.apply.reference import masked_reference
from prunecli.apply.zero import Zeroed, release_tensor
from prunecli.errors import PruneError
from prunecli.model import Model, load
from prunecli.model.holders import holders
from prunecli.runtime import Session
from prunecli.select.keys import CHUNK_BYTES
from prunecli.types import Progress, Verification, no_progress

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]

RUN_UP_TO = 512 << 20
"""Bytes of weights up to which two sessions and a reference are held in memory."""
_STORED = "every stored tensor equals the original, masked by numpy"
_RAN = "onnxruntime's outputs on random inputs equal, bit for bit, those of the original with masked weights"
_REPORT = "nothing was written; please report this"


@dataclass(frozen=True)
class Proof:
    """What to prove: that the file differs from `model` by `zeroed` alone."""

    model: Model
    zeroed: Sequence[Zeroed]
    shapes: Mapping[str, tuple[int, ...]]
    """Concrete input shapes for the run."""
    progress: Progress = no_progress

    def __call__(self, staged: Path) -> Verification:
        """Check the file at `staged`.

        Raises:
            PruneError: it differs, or no longer loads although the original does.
        """
        self._same_tensors(staged)
        self._same_graph(staged)
        large = sum(one.weight.nbytes for one in self.zeroed) > RUN_UP_TO
        return self._opens(staged) if large else self._runs(staged)

    def _same_tensors(self, staged: Path) -> None:
        saved = load(staged)
        pairs = list(zip(holders(self.model.ir), holders(saved.ir), strict=True))
        expected = {id(one.weight.holder.value): one for one in self.zeroed}
        for ours, theirs in self.progress(pairs, "verifying", len(pairs)):
            one = expected.get(id(ours.value))
            source = ours.tensor if one is None else one.original
            if ours.name != theirs.name or not _same_values(source, theirs.tensor, one):
                raise PruneError(f"internal: {theirs.name} was not stored as it should be", _REPORT)
            release_tensor(source)
            release_tensor(theirs.tensor)

    def _same_graph(self, staged: Path) -> None:
        if outline(self.model.path) != outline(staged):
            raise PruneError("internal: saving changed more than weights", _REPORT)

    def _opens(self, staged: Path) -> Verification:
        """Open one session that maps the weights instead of copying them."""
        try:
            Session.open(staged, low_memory=True, threads=1)
        except PruneError as error:
            return self._as_before(error, "open", low_memory=True)
        return Verification("exact", 0.0, 0.0, 0, f"{_STORED}; too large to be run on both sides")

    def _runs(self, staged: Path) -> Verification:
        """Run the saved file and the reference on the same random inputs."""
        try:
            session = Session.open(staged)
        except PruneError as error:
            return self._as_before(error, "open")
        try:
            feed = session.random_inputs(shapes=self.shapes)
        except PruneError as error:
            return Verification("exact", 0.0, 0.0, 0, f"{_STORED}; it was not run: {error.message}")
        try:
            outputs = session.run(feed)
        except PruneError as error:
            return self._as_before(error, "run", feed)
        return self._compared(outputs, feed)

    def _compared(self, outputs: Outputs, feed: Outputs) -> Verification:
        reference = Session.open(masked_reference(self.model.path, self.zeroed))
        wanted = reference.run(feed)
        if same_outputs(outputs, wanted):
            return Verification("exact", 0.0, 0.0, 1, f"{_RAN}; {_STORED}")
        if same_outputs(wanted, reference.run(feed)):
            raise PruneError("internal: the pruned model does not compute what the masked one does", _REPORT)
        return Verification("exact", 0.0, 0.0, 0, f"{_STORED}; its outputs are random and were not compared")

    def _as_before(
        self, error: PruneError, what: str, feed: Outputs | None = None, low_memory: bool = False
    ) -> Verification:
        """A file that onnxruntime cannot open or run is kept if that holds for the original, too."""
        try:
            original = Session.open(self.model.path, low_memory=low_memory)
            if feed is not None:
                original.run(feed)
        except PruneError:
            reason = f"onnxruntime cannot {what} the original either: {error.message}"
            return Verification("none", detail=f"{reason}; {_STORED}")
        raise PruneError(f"onnxruntime can {what} the original, not the pruned model: {error.message}", _REPORT)


def _same_values(source: ir.TensorProtocol, saved: ir.TensorProtocol, one: Zeroed | None) -> bool:
    """Whether `saved` has the type, shape and bits of `source`, or of what `one` makes of it."""
    if source.dtype != saved.dtype or source.shape != saved.shape:
        return False
    if source.dtype == ir.DataType.STRING:
        return bool(source.numpy().tolist() == saved.numpy().tolist())
    if source.dtype.bitwidth < 8:
        return bool(source.tobytes() == saved.tobytes())
    wanted = np.asarray(source.numpy())
    return same_bits(wanted if one is None else one.pruned(wanted), np.asarray(saved.numpy()))


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays of one shape and type hold the same bytes; in pieces, so that nothing is copied."""
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    starts = range(0, one.size, CHUNK_BYTES)
    return one.size == other.size and all(
        np.array_equal(one[start : start + CHUNK_BYTES], other[start : start + CHUNK_BYTES]) for start in starts
    )


def same_outputs(left: Any, right: Any) -> bool:
    """Whether two results of a run are the same to the bit: arrays, sequences or maps of them, or nothing."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        alike = left.dtype == right.dtype and left.shape == right.shape
        if not alike or left.dtype == object:
            return alike and bool(left.tolist() == right.tolist())
        return same_bits(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_outputs(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_outputs, left, right))
    return type(left) is type(right) and bool(left == right)
