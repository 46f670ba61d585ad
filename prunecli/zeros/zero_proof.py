"""Proof that a saved model is the original with its weights masked, and nothing else.

Always: every stored tensor of the saved file is compared with the original, masked as `numpy.where` does where
it should be, and the graphs are compared. Where onnxruntime runs the model and its size allows, both the saved file
and a reference that the plain onnx package builds are run on the same random inputs: the outputs must agree bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.masks.decide import Rewritten
from prunecli.masks.keys import words
from prunecli.model import Model, load
from prunecli.model.plain import plain_path
from prunecli.model.stored_tensors import holders
from prunecli.runtime import Session
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.compare import RUN_UP_TO, pieces_of, release_tensor, same_bits, same_outputs
from prunecli.verify.inputs import Feed, InputShapes, cannot_open, first_run
from prunecli.verify.outline import outline
from prunecli.zeros.reference import masked_reference
from prunecli.zeros.zero import Zeroed

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]

_STORED = "every stored tensor equals the original, {how} by numpy, and the graph is the same"
_RAN = "onnxruntime's outputs on random inputs equal, bit for bit, those of the original with {how} weights"
_REPORT = "nothing was written; please report this"


@dataclass(frozen=True)
class ZeroProof:
    """What to prove: that the file differs from `model` by `zeroed` alone: zeros, and what was fitted around them."""

    model: Model
    zeroed: Sequence[Zeroed]
    sizes: Iterable[InputShapes]
    """Input shapes for the run, to be tried in this order."""
    open: Callable[..., Session] = Session.open
    """As `Session.open`, with a provider and threads."""
    progress: Progress = no_progress
    given: Feed | None = None
    """Inputs that are known to fit, to be tried first."""

    def __call__(self, staged: Path) -> Verification:
        """Check the file at `staged`.

        Raises:
            PruneError: it differs, or no longer opens or runs although the original does.
            UnprovedError: nor does the original.
        """
        self._same_tensors(staged)
        if outline(plain_path(self.model)) != outline(staged):
            raise PruneError("internal: saving changed more than weights", _REPORT)
        size = sum(path.stat().st_size for path in (self.model.path, *self.model.data_files))
        return self._opens(staged) if size > RUN_UP_TO else self._runs(staged)

    @property
    def how(self) -> str:
        fitted = any(isinstance(one.decision, Rewritten) for one in self.zeroed)
        return "masked and fitted" if fitted else "masked"

    def _by_storage(self, why: str) -> Verification:
        return Verification("exact", 0.0, 0.0, 0, f"{_STORED.format(how=self.how)}; {why}")

    def _same_tensors(self, staged: Path) -> None:
        saved = load(staged)
        before, after = list(holders(self.model.ir)), list(holders(saved.ir))
        if len(before) != len(after):
            raise PruneError(f"internal: {len(after)} tensors were stored of {len(before)}", _REPORT)
        expected = {id(one.weight.holder.value): one for one in self.zeroed}
        for ours, theirs in self.progress(list(zip(before, after, strict=True)), "verifying", len(before)):
            one = expected.get(id(ours.value))
            source = ours.tensor if one is None else one.original
            if ours.name != theirs.name or not _same_values(source, theirs.tensor, one):
                raise PruneError(f"internal: {theirs.name} was not stored as it should be", _REPORT)
            release_tensor(source)
            release_tensor(theirs.tensor)

    def _opens(self, staged: Path) -> Verification:
        """Open one session that maps the weights instead of copying them."""
        self._session(staged, low_memory=True)
        return self._by_storage("onnxruntime opens it; it is too large to be run on both sides")

    def _runs(self, staged: Path) -> Verification:
        """Run the saved file and the reference on the same inputs."""
        session = self._session(staged)
        reference = self.open(masked_reference(plain_path(self.model), self.zeroed))
        feed, wanted = first_run(reference, self.sizes, given=self.given)
        try:
            outputs = session.run(feed)
        except PruneError as error:
            raise PruneError(
                f"onnxruntime runs the original, not the pruned model: {error.message}", _REPORT
            ) from error
        if same_outputs(outputs, wanted):
            return Verification("exact", 0.0, 0.0, 1, f"{_RAN}; {_STORED}".format(how=self.how))
        if same_outputs(wanted, reference.run(feed)):
            raise PruneError("internal: the pruned model does not compute what the masked one does", _REPORT)
        return self._by_storage("its outputs are random and were not compared")

    def _session(self, staged: Path, **options: Any) -> Session:
        """The saved file, opened; if it cannot be, the original must."""
        try:
            return self.open(staged, **options)
        except PruneError as error:
            try:
                self.open(plain_path(self.model), **options)
            except PruneError as own:
                raise cannot_open(own) from own
            raise PruneError(
                f"onnxruntime opens the original, not the pruned model: {error.message}", _REPORT
            ) from error


def _same_values(source: ir.TensorProtocol, saved: ir.TensorProtocol, one: Zeroed | None) -> bool:
    """Whether `saved` has the type, shape and bits of `source`, or of what numpy makes of it by `one`."""
    if source.dtype != saved.dtype or source.shape != saved.shape:
        return False
    if source.dtype == ir.DataType.STRING:
        return bool(source.numpy().tolist() == saved.numpy().tolist())
    if source.dtype.bitwidth < 8:
        return bool(source.tobytes() == saved.tobytes())
    wanted, found = np.asarray(source.numpy()), np.asarray(saved.numpy())
    if one is None:
        return same_bits(wanted, found)
    if isinstance(one.decision, Rewritten):
        return same_bits(one.expected(wanted), found)
    return is_masked(wanted, one.decision.drop(wanted), found)


def is_masked(source: Array, drop: Array, found: Array) -> bool:
    """Whether `found` is `numpy.where(drop, 0, source)` bit for bit: what goes is zero, the rest as it was.

    Without branches, and so several times as fast as `numpy.where` where the mask is random.
    """
    pieces = zip(pieces_of(words(source)), pieces_of(drop, source.itemsize), pieces_of(words(found)), strict=True)
    for bits, gone, ours in pieces:
        right = (ours == bits) & ~gone
        right |= (ours == 0) & gone
        if not right.all():
            return False
    return True
