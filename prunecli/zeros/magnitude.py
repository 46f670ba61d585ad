"""`prune magnitude`: zero the smallest weights, by threshold, to an exact sparsity, or to a pattern."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecli.errors import some
from prunecli.files import Scratch
from prunecli.masks.decide import Recipe
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import Weight, count_macs
from prunecli.model.provenance import Provenance
from prunecli.model.saving import SaveOptions, save
from prunecli.model.sizes import macs_by_weight
from prunecli.training.gradual import (
    at_share,
    check_plans,
    left_out,
    proof_of,
    prune_and_train,
    retrained,
    share_after,
)
from prunecli.types import Json, Progress, no_progress
from prunecli.zeros.job import ZeroingJob, ZeroInspector, prepare
from prunecli.zeros.options import MagnitudeOptions, ZeroingOptions
from prunecli.zeros.packed import packed
from prunecli.zeros.plans import save_plan
from prunecli.zeros.result import MagnitudeResult, ZeroedLayer
from prunecli.zeros.selector import ByValue, Selector, WeightChoice
from prunecli.zeros.spread import zeroed_spreads
from prunecli.zeros.zero import zero


def magnitude(
    model: str | Path, options: MagnitudeOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Zero the smallest weights of a model and save it with proof. `changes` override fields of `options`:
    `magnitude("model.onnx", sparsity=0.5)`.

    Raises:
        PruneError: the file or an option is unusable, a weight holds NaN or infinity, or the saved file is not
            the original with masked weights; then nothing is written.
    """
    return zeroed(Path(model), MagnitudeOptions.of(options, **changes), ByValue(), progress)


def zeroed(path: Path, options: ZeroingOptions, judge: Selector, progress: Progress) -> MagnitudeResult:
    """Zero what `judge` decides, train and pack as `options` say, and save the model with proof.

    Raises:
        PruneError: as `magnitude`.
    """
    start = time.perf_counter()
    target = options.output or path.with_name(f"{path.stem}.pruned.onnx")
    if options.pack:
        found = packed(lambda at, once: zeroed(at, once, judge, progress), path, target, options, progress)
    elif options.trains:
        found = _retrained(path, target, options, judge, progress)
    else:
        found = _pruned(path, target, options, options.recipe, judge, progress)
    return replace(found, seconds=time.perf_counter() - start)


def _pruned(
    path: Path, target: Path, options: ZeroingOptions, recipe: Recipe | None, judge: Selector, progress: Progress
) -> MagnitudeResult:
    job = prepare(path, target, options, recipe, judge, progress)
    zero(job.changed)
    inspector = ZeroInspector(job, options, progress)
    with Scratch() as elsewhere:  # a dry run does everything, but there
        place = elsewhere / target.name if options.dry_run else target
        saving = SaveOptions(options.external_data, options.force, Provenance(job.command, job.recipe))
        saved = save(job.file, place, saving, inspector)
    if options.save_plan is not None:
        save_plan(options.save_plan, job.file, job.recipe, job.zeroed, progress, options.force)
    assert inspector.after is not None
    return MagnitudeResult(
        model=job.file.ref,
        output=None if options.dry_run else saved,
        recipe=job.recipe,
        before=job.before,
        after=inspector.after,
        layers=_layers(job),
        left=_left(job.choice),
        skipped=job.choice.skipped,
        verification=inspector.verification,
        notes=[*job.file.notes, *job.notes, *_emptied(job)],
        plan=None if options.save_plan is None else str(options.save_plan),
        dry_run=options.dry_run,
        command=job.command,
        spreads=zeroed_spreads(job.zeroed, progress) if options.spreads else {},
    )


def _retrained(
    path: Path, target: Path, options: ZeroingOptions, judge: Selector, progress: Progress
) -> MagnitudeResult:
    """Zero some, train, zero more: what is zero scores lowest and stays zero in training, so it is never revived."""
    check_plans(options)
    whole = options.recipe
    if whole is not None:
        at_share(whole, share_after(1, options.step_count))
    if options.dry_run:
        found = _pruned(path, target, options, whole, judge, progress)
        return replace(found, notes=[*found.notes, left_out(options)])

    def cut(source: Path, place: Path, share: float) -> MagnitudeResult:
        recipe = None if whole is None else at_share(whole, share)
        return _pruned(source, place, options, recipe, judge, progress)

    rounds = prune_and_train(path, target, options, cut, progress)
    first, last, training = rounds[0].cut, rounds[-1].cut, retrained(path, options, rounds)
    late, before = training.layers(), {layer.weight: layer.nonzero_before for layer in first.layers}
    layers = [replace(layer, nonzero_before=before[layer.weight],
                      nonzero=late[layer.weight].nonzero if layer.weight in late else layer.nonzero)
              for layer in last.layers]  # fmt: skip
    return replace(last, model=first.model, output=training.output, recipe=last.recipe | {"steps": options.step_count},
                   before=first.before, after=training.totals(), layers=layers, verification=proof_of(rounds),
                   training=training)  # fmt: skip


def _layers(job: ZeroingJob) -> list[ZeroedLayer]:
    work = macs_by_weight(job.choice.chosen, count_macs(job.file, job.shapes))
    return [
        ZeroedLayer(
            name=one.weight.node.name or one.weight.node.outputs[0].name or "",
            op=one.weight.op,
            weight=one.weight.name,
            kind=one.weight.kind,
            shape=one.weight.shape,
            dtype=one.weight.dtype.name.lower(),
            params=one.size,
            nonzero_before=one.nonzero_before,
            nonzero=one.nonzero_after,
            macs=work.get(one.weight.name),
            notes=(*one.weight.notes, *_remainder(one.weight, job.recipe)),
            details=job.details.get(one.weight.name, {}),
        )
        for one in job.zeroed
    ]


def _emptied(job: ZeroingJob) -> list[str]:
    """A layer whose weight is nothing but zeros is cut off from what comes before it."""
    names = [one.weight.name for one in job.zeroed if one.nonzero_before and not one.nonzero_after]
    return [f"nothing is left of {some(names)}: what it multiplies reaches no output through it"] if names else []


def _remainder(weight: Weight, recipe: Json) -> list[str]:
    """Where an N:M pattern does not come out even, hardware that wants it cannot use the weight."""
    form, cols = parse_pattern(str(recipe.get("pattern", "element"))), weight.layout.canonical_shape[3]
    if not isinstance(form, Windows) or cols % form.window == 0:
        return []
    return [f"{cols} inputs do not divide by {form.window}: the rest keeps up to {form.keep}"]


def _left(choice: WeightChoice) -> dict[str, tuple[int, int]]:
    tensors, params = Counter[str](), Counter[str]()
    for weight in choice.left:
        tensors[weight.kind] += 1
        params[weight.kind] += weight.size
    return {kind: (tensors[kind], params[kind]) for kind in tensors}
