"""Pruning with training: cut a little, train, repeat, and never revive what was cut. One mechanism for every command.

A command gives a function that cuts a file to a share of what was asked, and gets back the rounds that were done.
The share after step t of K is 1 - (1 - t/K)^3: much at first, little when little is left (Zhu and Gupta 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from prunecli.errors import PruneError
from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.saving import check_target
from prunecli.pipeline.finetune import FinetuneResult, finetune, raise_if_harmful
from prunecli.pipeline.finetune_options import FinetuneOptions, finetune_options
from prunecli.select import Recipe, parse_pattern
from prunecli.select.patterns import Windows
from prunecli.types import FileRef, LayerRow, Progress, Totals, Verification, no_progress


class Pruned(Protocol):
    """What a pruning command returns, as far as this module looks."""

    @property
    def verification(self) -> Verification: ...


R = TypeVar("R", bound=Pruned)
Cut = Callable[[Path, Path, float], R]
"""cut(source, target, share): prune the file `source` to `share` of what was asked, save it with proof."""


@dataclass(frozen=True)
class Retrain:
    """Training after each cut. `options`: as `finetune` takes them; its epochs follow every step. `by_original`:
    where it names no teacher, the unpruned model is one."""

    options: FinetuneOptions
    steps: int = 1
    by_original: bool = True

    @classmethod
    def of(cls, steps: int = 1, by_original: bool = True, **chosen: Any) -> Retrain:
        """`Retrain.of(data="train.npz", epochs=5)`; `chosen` as the keywords of `prunecli.finetune`."""
        return cls(finetune_options(**chosen), steps, by_original)


@dataclass(frozen=True)
class Round(Generic[R]):
    """One step. `share`: of what was asked, reached after it; `cut`: the pruning, proved; `trained`: what
    training made of it."""

    share: float
    cut: R
    trained: FinetuneResult


@dataclass(frozen=True)
class Retrained:
    """The training part of a result: every step's, and the model that the last one left."""

    rounds: list[Round[Any]] = field(default_factory=list)
    teacher: str | None = None

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
    """An element-wise recipe on its way: its sparsity times `share`; of N:M, so many of the M - N zeros (at least
    one).

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
    path: Path, target: Path, retrain: Retrain, cut: Cut[R], force: bool = False, progress: Progress = no_progress,
    include: Sequence[str] = (),
) -> list[Round[R]]:  # fmt: skip
    """Cut and train in `retrain.steps` rounds; the last one's model is saved as `target`, unless no round improved
    on what it started from.

    Args:
        cut: called once per round with the file that the round before left (the first time `path`).
    Raises:
        PruneError: the target cannot be written, a cut is refused, or training cannot be done or diverges; then
            nothing is written.
    """
    if retrain.steps < 1:
        raise PruneError(f"--steps {retrain.steps}: at least one step is needed", "leave it out, or give 1 or more")
    check_target(load(path), target, force, retrain)
    rounds: list[Round[R]] = []
    with Scratch() as folder:
        source = path
        for step in range(1, retrain.steps + 1):
            share, place = share_after(step, retrain.steps), folder / str(step)
            place.mkdir()
            done = cut(source, place / "cut.onnx", share)
            final = step == retrain.steps
            source = target if final else place / "trained.onnx"
            needed = not final or any(not one.trained.harmful for one in rounds)
            options = replace(_training(path, source, retrain, final, force, needed), include=tuple(include))
            trained = finetune(place / "cut.onnx", options, progress)
            rounds.append(Round(share, done, trained))
    return rounds


def _training(path: Path, target: Path, retrain: Retrain, final: bool, force: bool, needed: bool) -> FinetuneOptions:
    options = retrain.options
    if options.reset_head is not None or options.checkpoint is not None:
        raise PruneError("training between cuts has no new head and no checkpoints", "cut first, then `prune finetune`")
    teacher = options.teacher or (path if retrain.by_original else None)
    return replace(options, teacher=teacher, output=target, force=force and final, salvage=final, keep_start=needed)


def retrained(path: Path, retrain: Retrain, rounds: list[Round[Any]]) -> Retrained:
    """The rounds as a part of a result."""
    given = retrain.options.teacher
    teacher = str(given) if given is not None else str(path) if retrain.by_original else None
    return Retrained(list(rounds), teacher)


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
        sum(proof.samples for proof in proofs),
        f"{weakest.detail} ({cuts})",
    )


def _largest(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def check_plans(retrain: Retrain, plan: Path | None, save_plan: Path | None) -> None:
    """Raises PruneError: a plan is one cut of one model, and each of several steps cuts a model trained by then."""
    if retrain.steps > 1 and (plan is not None or save_plan is not None):
        raise PruneError(
            "a plan holds one cut, and --steps with training makes several", "leave --steps or the plan out"
        )


def left_out(retrain: Retrain) -> str:
    """What a dry run says of training."""
    epochs = retrain.options.setup.train.epochs
    told = f"a dry run trains nothing: {epochs} epochs are left out"
    return told if retrain.steps == 1 else f"{told}, and the {retrain.steps} cuts between them are shown as one"


def raise_if_all_harmful(found: Retrained | None) -> None:
    """For command lines, once the result is out.

    Raises:
        GateFailed: training improved nothing at any step.
    """
    if found is not None and all(one.trained.harmful for one in found.rounds):
        raise_if_harmful(found.last)
