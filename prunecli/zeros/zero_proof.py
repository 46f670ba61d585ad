"""Proof that a saved model is the original with its weights masked, and nothing else.

Always: every stored tensor of the saved file is compared with the original, masked as `numpy.where` does where
it should be, and the graphs are compared. Where onnxruntime runs the model and its size allows, both the saved file
and a reference that the plain onnx package builds are run on the same random inputs: the outputs must agree bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.float_keys import words
from prunecli.model import Model, load
from prunecli.model.copies import plain_path
from prunecli.model.graphs import all_graphs
from prunecli.runtime import Session
from prunecli.types import Progress, Verification, no_progress
from prunecli.verify.compare import Place, check_tensors, pieces_of, placed, same_bits
from prunecli.verify.inputs import Case, InputShapes, spare_cases
from prunecli.verify.outline import outline
from prunecli.verify.prove import RUN_UP_TO, Claim, Proof, open_result, prove
from prunecli.verify.tolerance import Feed, RandomOutputsError, SameBits
from prunecli.zeros.reference import masked_reference
from prunecli.zeros.zero import Zeroed

_STORED = "every stored tensor equals the original, {how} by numpy, and the graph is the same"
_RAN = "onnxruntime's outputs on random inputs equal, bit for bit, those of the original with {how} weights"
_REPORT = "nothing was written; please report this"


@dataclass(frozen=True)
class ZeroProof:
    """What to prove: that the file differs from `model` by `zeroed` alone: zeros, and what was fitted around them."""

    model: Model
    floats: ir.Model
    """The model's floating-point form, whose weights `zeroed` names."""
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
        self._check_stored(staged)
        size = sum(path.stat().st_size for path in (self.model.path, *self.model.data_files))
        if size > RUN_UP_TO:
            self._session(staged, mode="low memory")  # it maps the weights instead of copying them
            return self._by_storage("onnxruntime opens it; it is too large to be run on both sides")
        try:
            found = self._run(staged)
        except RandomOutputsError:
            return self._by_storage("its outputs are random and were not compared")
        return found.verification(f"{_RAN}; {_STORED}".format(how=self.how))

    @property
    def how(self) -> str:
        fitted = any(one.decision.values is not None for one in self.zeroed)
        return "masked and fitted" if fitted else "masked"

    def _by_storage(self, why: str) -> Verification:
        return Verification("exact", 0.0, 0.0, samples=0, detail=f"{_STORED.format(how=self.how)}; {why}")

    def _check_stored(self, staged: Path) -> None:
        """Every tensor has the bits that numpy gives it, and the rest of the file is the same."""
        before, changed = dict[Place, Any](), dict[Place, Any]()
        numbers = {id(graph): number for number, graph in enumerate(all_graphs(self.floats))}
        expected = {(numbers[id(one.weight.holder.graph)], one.weight.holder.name): one for one in self.zeroed}
        for place, holder in placed(self.model.ir).items():
            one = expected.get(place)
            before[place] = holder.tensor if one is None else one.stored
            if one is not None:
                changed[place] = partial(_holds, one)
        check_tensors(before, load(staged).ir, changed, hint=_REPORT, progress=self.progress)
        if outline(plain_path(self.model)) != outline(staged):
            raise PruneError("internal: saving changed more than weights", _REPORT)

    def _run(self, staged: Path) -> Proof:
        result = self._session(staged)
        reference = self.open(masked_reference(plain_path(self.model), self.zeroed))
        given = [] if self.given is None else [Case("the data", partial(dict, self.given), spare=True)]
        claim = Claim(reference=reference, result=result, tolerance=SameBits(), names=("pruned model", "masked one"),
                      hint=_REPORT)  # fmt: skip
        return prove(claim, chain(given, spare_cases(reference, self.sizes)))

    def _session(self, staged: Path, **options: Any) -> Session:
        original = partial(self.open, plain_path(self.model), **options)
        return open_result(partial(self.open, staged, **options), original, "pruned model", hint=_REPORT)


def _holds(one: Zeroed, original: Array, found: Array) -> bool:
    """Whether `found` is what numpy makes of the original's values by the decision."""
    if one.decision.values is not None or one.stored is not one.original:
        return same_bits(one.expected(original), found)
    return is_masked(original, one.decision.drop(original), found)


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
