"""`prune gradient`: zero the weights that the outputs, or a loss, would miss least.

In steps: gradients are measured at the weights as they are by then, so that of two weights that stand in for each
other one stays. Everything else (proof, plan, report) is that of `prune magnitude`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.calibration.gradients import GradientSamples, GradientSource, open_source
from prunecli.errors import PruneError
from prunecli.masks.criteria import of_elements
from prunecli.masks.decide import Decision, Recipe, Target, Units, decide
from prunecli.masks.patterns import Windows, element, parse_pattern
from prunecli.masks.stream import not_finite
from prunecli.model import Model, Weight
from prunecli.training.gradual import at_share, share_after
from prunecli.types import Json, Progress, Skipped, no_progress
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.options import GradientOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.select import Selection, Selector, WeightChoice, allocated
from prunecli.zeros.zero import target_of

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of a weight's units whose highest score is reported, so that a threshold can be chosen."""


def gradient(
    model: str | Path, options: GradientOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Zero the weights with the lowest gradient scores and save the model with proof.

    `changes` override fields of `options`: `gradient("model.onnx", data="calib.npz", sparsity=0.8)`. The default
    criterion is `smoothed`, scope `global`.

    Raises:
        PruneError: as `magnitude`; no data, an operator without a gradient, labels that fit no output.
    """
    options = GradientOptions.of(options, **changes)
    samples = GradientSamples(
        options.source, options.loss, options.output_name, seed=options.seed, dims=options.dims,
        execution=options.execution,
    )  # fmt: skip
    selector = Selector("gradient", partial(by_gradient, samples, options.measured_steps))
    return zeroed(Path(model), options, selector, progress=progress)


def by_gradient(
    samples: GradientSamples, asked_steps: int | None, file: Model, choice: WeightChoice, recipe: Recipe,
    progress: Progress,
) -> Selection:  # fmt: skip
    """The selection of `prune gradient`. `asked_steps`: None is what the criterion's evidence says."""
    evidence = of_elements(recipe.criterion or "smoothed").evidence
    assert evidence is not None
    once = recipe.sparsity == 1 or recipe.threshold is not None  # with 1 nothing is left to measure
    steps = 1 if once else asked_steps or evidence.steps
    _check_finite(choice.chosen)
    names = {w.name: w.holder.name for w in choice.chosen if w.holder.graph is file.ir.graph}
    if not names:
        raise PruneError("no chosen weight lies in the main graph", "those inside sub-graphs have no gradient")
    source = open_source(file, evidence, list(names.values()), options=samples, progress=progress)
    choice = _reachable(choice, names, source.gradients.unreached)
    recipe, notes = allocated(file, choice, recipe)
    decisions, scores = _in_steps(choice.chosen, source, recipe, steps=steps, progress=progress)
    details = {name: {"scores": quantiles} for name, quantiles in scores.items()}
    said = {"steps": steps, **source.asked, **({"allocate": recipe.allocate} if recipe.allocate else {})}
    return Selection(choice, decisions, said, notes=[*source.notes, *notes], details=details, feed=source.feed)


def _check_finite(weights: Sequence[Weight]) -> None:
    for weight in weights:
        array = np.asarray(weight.tensor.numpy())
        if not np.isfinite(array.astype(np.float32) if array.dtype.itemsize < 4 else array).all():
            raise not_finite(weight.name, array)


def _reachable(choice: WeightChoice, names: Mapping[str, str], unreached: Sequence[str]) -> WeightChoice:
    """The choice without what has no gradient, which is told."""
    reasons = {
        w.name: "no output that is looked at depends on it" for w in choice.chosen if names.get(w.name) in unreached
    }
    reasons |= {w.name: "inside a sub-graph: it has no gradient" for w in choice.chosen if w.name not in names}
    gone = [w for w in choice.chosen if w.name in reasons]
    return WeightChoice(
        [w for w in choice.chosen if w.name not in reasons],
        [*choice.left, *gone],
        [*choice.skipped, *(Skipped(w.name, reasons[w.name]) for w in gone)],
    )


def _in_steps(
    weights: Sequence[Weight],
    source: GradientSource,
    recipe: Recipe,
    steps: int,
    progress: Progress,
) -> tuple[Sequence[Decision], Mapping[str, Json]]:
    """Decide, `steps` times, each time on gradients of the model with the weights decided on so far at zero; and the
    quantiles of the first scores, by weight."""
    originals = {w.name: np.asarray(w.tensor.numpy()) for w in weights}
    alive = {w.name: np.ones(w.shape, np.bool_) for w in weights}
    decisions: Sequence[Decision] = []
    scores: Mapping[str, Json] = {}
    for step in range(1, steps + 1):
        evidence = source.measure(weights, alive, f"measuring gradients ({step}/{steps})", progress=progress)
        targets = [target_of(w, evidence[w.name]) for w in weights]
        scores = scores or _quantiles(targets, recipe)
        decisions = decide(targets, at_share(recipe, share_after(step, steps)))
        if step < steps:
            alive = {w.name: ~d.drop(originals[w.name]) for w, d in zip(weights, decisions, strict=True)}
            _gone_to_zero(source, weights, originals, alive=alive)
    return decisions, scores


def _quantiles(targets: Sequence[Target], recipe: Recipe) -> dict[str, Json]:
    """By weight: below which score each of QUANTILES of its units lies, and the largest."""
    form = parse_pattern(recipe.pattern)
    units = Units(
        element() if isinstance(form, Windows) else form, of_elements(recipe.criterion or "smoothed"), recipe.seed
    )
    found: dict[str, Json] = {}
    for target in targets:
        scores = units.keys(target, target.load())
        if scores.size:
            values = np.quantile(scores, [*QUANTILES, 1.0], method="higher")
            found[target.name] = dict(zip([*map(str, QUANTILES), "max"], values.tolist(), strict=True))
        target.release()
    return found


def _gone_to_zero(
    source: GradientSource, weights: Sequence[Weight], originals: Mapping[str, Array], alive: Mapping[str, Array]
) -> None:
    for weight in weights:
        values = np.where(alive[weight.name], originals[weight.name], 0).astype(np.float32)
        source.gradients.values[weight.holder.name] = values
