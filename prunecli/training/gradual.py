"""Pruning with training: cut a little, train, repeat, and never revive what was cut. One mechanism for every command.

A command gives a function that cuts a file to a share of what was asked, and gets back the rounds that were done.
The share after step t of K is 1 - (1 - t/K)^3: much at first, little when little is left (Zhu and Gupta 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from prunecli.errors import PruneError
from prunecli.files import Scratch
from prunecli.masks.decide import Recipe
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.options.groups import Written
from prunecli.options.training import NONE, FinetuneOptions, Retraining, Stepwise
from prunecli.training.finetune import FinetuneResult, finetune, raise_if_harmful
from prunecli.types import FileRef, LayerRow, Progress, Totals, Verification, no_progress


class Pruned(Protocol):
    """The fields of a pruning command's result that this module reads."""

    @property
    def verification(self) -> Verification: ...
    @property
    def masked(self) -> tuple[str, ...]: ...
    @property
    def pattern(self) -> str: ...
    @property
    def removed(self) -> Mapping[str, Mapping[int, Any]]: ...


R = TypeVar("R", bound=Pruned)
EXCHANGED = 0.05
"""Initial fraction of the kept weights that moves at a time."""
Cut = Callable[[Path, Path, float], R]
"""cut(source, target, share): prune the file `source` to `share` of what was asked, save it with proof."""


@dataclass(frozen=True)
class Round(Generic[R]):
    """One step. `share`: of what was asked, reached after it. `cut`: the proved pruning. `trained`: the result of the
    training."""

    share: float
    cut: R
    trained: FinetuneResult


@dataclass(frozen=True)
class Retrained:
    """The training part of a result: every step's, and the last model."""

    rounds: list[Round[Any]] = field(default_factory=list)
    teacher: str | None = None
    distilled: bool = False

    @property
    def last(self) -> FinetuneResult:
        return self.rounds[-1].trained

    @property
    def output(self) -> FileRef | None:
        return self.last.output

    def layers(self) -> dict[str, LayerRow]:
        """The weights of the trained file by name."""
        return {row.weight: row for row in self.last.layers}

    def totals(self) -> Totals:
        return self.last.after


def share_after(step: int, steps: int) -> float:
    """1 - (1 - step / steps)^3, for step 1 .. steps: the cubic schedule of Zhu and Gupta (2017)."""
    return 1.0 - (1.0 - step / steps) ** 3


def at_share(recipe: Recipe, share: float) -> Recipe:
    """Return an element-wise recipe for a step: its sparsity times `share`; for N:M, that share of the M - N zeros (at
    least one).

    Raises:
        PruneError: a threshold, which has no way.
    """
    if share >= 1:
        return recipe
    form = parse_pattern(recipe.pattern)
    if isinstance(form, Windows):
        dropped = max(round((form.window - form.keep) * share), 1)
        return replace(recipe, pattern=f"{form.window - dropped}:{form.window}", sparsity=None)
    if recipe.sparsity is None:
        raise PruneError("--threshold cannot be reached in steps", "use --sparsity, or leave --steps out")
    return replace(recipe, sparsity=recipe.sparsity * share)


def prune_and_train(
    path: Path, target: Path, options: Retraining, cut: Cut[R], progress: Progress = no_progress
) -> list[Round[R]]:
    """Cut and train in as many rounds as the options have steps; the last one's model is saved as `target`, unless no
    round improved on what it started from.

    Args:
        cut: called once per round with the file that the round before left (the first time `path`).
    Raises:
        PruneError: the target cannot be written, a cut is refused, or training cannot be done or diverges; then
            nothing is written.
    """
    steps = step_count(options)
    check_target(load(path), target, options)
    rounds: list[Round[R]] = []
    with Scratch() as folder:
        source = path
        for step in range(1, steps + 1):
            share, place = share_after(step, steps), folder / str(step)
            place.mkdir()
            done = cut(source, place / "cut.onnx", share)
            final = step == steps
            source = target if final else place / "trained.onnx"
            needed = not final or any(not one.trained.harmful for one in rounds)
            training = training_of(
                options, path, source, cut=done, force=final and forced(options), salvage=final, keep_start=needed
            )
            trained = finetune(place / "cut.onnx", training, progress)
            rounds.append(Round(share, done, trained))
    return rounds


def step_count(options: Retraining) -> int:
    return options.step_count if isinstance(options, Stepwise) else 1


def forced(options: Retraining) -> bool:
    return isinstance(options, Written) and options.force


def training_of(
    options: Retraining, original: Path, output: Path, cut: Pruned, *, force: bool = False, salvage: bool = False,
    keep_start: bool,
) -> FinetuneOptions:  # fmt: skip
    """Return the options of the training that the options of a pruning command ask for. The original is the teacher
    where none is named. Distillation without a gain leaves the cut as it is."""
    teacher = str(original) if options.teacher is None else options.teacher
    kept: Literal["equal", "always"] = "always" if keep_start or options.distills else "equal"
    training = replace(options.retraining, teacher=teacher, output=output, force=force, salvage=salvage,
                       keep_start=kept, removed=cut.removed)  # fmt: skip
    if not options.distills:
        return training
    fraction = EXCHANGED if options.exchange is None else options.exchange
    return replace(training, exchange=fraction, pattern=cut.pattern, masked=cut.masked)


def retrained(path: Path, options: Retraining, rounds: list[Round[Any]]) -> Retrained:
    """Return the rounds as a part of a result."""
    teacher = str(path) if options.teacher is None else None if options.teacher == NONE else options.teacher
    return Retrained(list(rounds), teacher, options.distills)


def proof_of(rounds: list[Round[Any]]) -> Verification:
    """The proofs of all cuts as one: the weakest kind, the largest errors. It is of the cuts, before training."""
    proofs: list[Verification] = [one.cut.verification for one in rounds]
    kinds = [proof.kind for proof in proofs]
    weakest = next((proof for name in ("none", "approximate") for proof in proofs if proof.kind == name), proofs[-1])
    if "none" in kinds:
        return weakest
    cuts = "the cut before training" if len(proofs) == 1 else f"each of {len(proofs)} cuts before its training"
    return Verification(
        weakest.kind,
        _largest(proof.max_abs_error for proof in proofs),
        _largest(proof.max_rel_error for proof in proofs),
        samples=sum(proof.samples for proof in proofs),
        detail=f"{weakest.detail} ({cuts})",
    )


def _largest(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def left_out(options: Retraining) -> str:
    """Return the sentence of a dry run about the training."""
    length = "--recover distill is" if options.distills else f"{options.finetune_epochs} epochs are"
    steps, told = step_count(options), f"a dry run trains nothing: {length} left out"
    return told if steps == 1 else f"{told}, and the {steps} cuts between them are shown as one"


def raise_if_all_harmful(found: Retrained | None) -> None:
    """Raise GateFailed for command lines, after the result is printed.

    Raises:
        GateFailed: training improved nothing at any step.
    """
    if found is not None and not found.distilled and all(one.trained.harmful for one in found.rounds):
        raise_if_harmful(found.last)
