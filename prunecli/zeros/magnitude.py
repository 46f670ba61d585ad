"""`prune magnitude`: zero the smallest weights, by threshold, to an exact sparsity, or to a pattern.

`zeroed` is the way of every command that writes zeros; what differs is the selector.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from prunecli.errors import some
from prunecli.files import written_to
from prunecli.masks.decide import Recipe
from prunecli.masks.patterns import Windows, parse_pattern
from prunecli.model import Model, Shapes, Weight, concrete_shapes, count_macs, find_weights, load, totals
from prunecli.model.constants import release
from prunecli.model.floating import floats_of, requantise
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.model.sizes import file_sizes, macs_by_weight
from prunecli.options.groups import QuantizedLast
from prunecli.options.sizes import at_data
from prunecli.packing.after import pack_options, packed_after, with_packed
from prunecli.quantization.after import quantized_after, with_packed_size, with_quantized
from prunecli.shrinking.after import shrunk_after, with_shrunk
from prunecli.training.gradual import (
    at_share,
    left_out,
    proof_of,
    prune_and_train,
    retrained,
    share_after,
)
from prunecli.types import UNVERIFIED, Json, Progress, Skipped, Totals, Verification, no_progress
from prunecli.verify.inputs import sizes_to_try
from prunecli.zeros.options import MagnitudeOptions, OtherKinds, ZeroingOptions
from prunecli.zeros.plans import load_plan, save_plan
from prunecli.zeros.result import MagnitudeResult, ZeroedLayer
from prunecli.zeros.select import Selection, Selector, WeightChoice, by_value, choose
from prunecli.zeros.spread import zeroed_spreads
from prunecli.zeros.zero import Zeroed, zero
from prunecli.zeros.zero_proof import ZeroProof


def magnitude(
    model: str | Path, options: MagnitudeOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Zero the smallest weights of a model and save it with proof. `changes` override fields of `options`:
    `magnitude("model.onnx", sparsity=0.5)`.

    Raises:
        PruneError: the file or an option is unusable, a weight holds NaN or infinity, or the saved file is not
            the original with masked weights; then nothing is written.
    """
    return zeroed(
        Path(model), MagnitudeOptions.of(options, **changes), Selector("magnitude", by_value), progress=progress
    )


def zeroed(path: Path, options: ZeroingOptions, selector: Selector, progress: Progress) -> MagnitudeResult:
    """Zero what `selector` decides, train and pack as `options` say, and save the model with proof.

    Raises:
        PruneError: as `magnitude`.
    """
    start = time.perf_counter()
    target = options.output or path.with_name(f"{path.stem}.pruned.onnx")
    if options.plan is None:
        options = at_data(path, options)
    last: LastStep = "pack" if options.pack else "quantize" if _quantizes(options) else "shrink"
    if last != "shrink" or options.shrink:
        found = _finished(path, target, options, selector=selector, last=last, progress=progress)
    elif options.trains:
        found = _retrained(path, target, options, selector=selector, progress=progress)
    else:
        found = _pruned(path, target, options, recipe=options.recipe, selector=selector, progress=progress)
    return replace(found, seconds=time.perf_counter() - start)


LastStep = Literal["pack", "quantize", "shrink"]


def _quantizes(options: ZeroingOptions) -> bool:
    return isinstance(options, QuantizedLast) and options.quantize is not None


def _finished(
    path: Path, target: Path, options: ZeroingOptions, selector: Selector, *, last: LastStep,
    progress: Progress,
) -> MagnitudeResult:  # fmt: skip
    """Prune, and train if asked, into a file elsewhere; what is written is that file packed, quantised, or without its
    empty units."""
    off: dict[str, Any] = {"quantize": None, "test": None} if last == "quantize" else {last: False}
    once = replace(options, **off)
    if options.dry_run and options.trains:
        found = zeroed(path, once, selector, progress=progress)
        return replace(found, notes=[*found.notes, f"a dry run does not train, and so cannot {last}"])
    check_target(load(path), target, options)

    def make(place: Path) -> MagnitudeResult:
        return zeroed(path, replace(once, output=place, dry_run=False), selector, progress=progress)

    if last == "shrink":
        return with_shrunk(*shrunk_after(target, options, make, progress=progress))
    if last == "quantize":
        assert isinstance(options, QuantizedLast)
        return with_quantized(*quantized_after(path, target, options, make=make, progress=progress))
    done = with_packed(*packed_after(target, pack_options(options), make, progress=progress), options.dry_run)
    return replace(done, quantised=with_packed_size(done.quantised, done.after.file_bytes))


def _pruned(
    path: Path, target: Path, options: ZeroingOptions, *, recipe: Recipe | None, selector: Selector, progress: Progress
) -> MagnitudeResult:
    work = prepare(path, target, options, recipe=recipe, selector=selector, progress=progress)
    found = work.selection
    zero(work.changed)
    requantise(work.floats.ir, work.file.ir)
    inspector = ZeroInspector(work, options, progress)
    with written_to(target, options.dry_run) as place:
        saving = SaveOptions(options.external_data, options.force, Provenance(work.command, found.recipe))
        saved = save(work.file, place, saving, verify=inspector)
    if options.save_plan is not None:
        save_plan(options.save_plan, work.file, found.recipe, found=work.zeroed, progress=progress, force=options.force)
    assert inspector.after is not None
    return MagnitudeResult(
        model=work.file.ref,
        output=None if options.dry_run else saved,
        recipe=found.recipe,
        before=work.before,
        after=inspector.after,
        layers=_layers(work),
        left=_left(found.choice),
        skipped=found.choice.skipped,
        verification=inspector.verification,
        notes=[*work.file.notes, *found.notes, *_emptied(work)],
        plan=None if options.save_plan is None else str(options.save_plan),
        dry_run=options.dry_run,
        command=work.command,
        spreads=zeroed_spreads(work.zeroed, progress) if options.spreads else {},
    )


def _retrained(
    path: Path, target: Path, options: ZeroingOptions, selector: Selector, progress: Progress
) -> MagnitudeResult:
    """Zero some, train, zero more: what is zero scores lowest and stays zero in training, so it is never revived."""
    whole = options.recipe
    if whole is not None:
        at_share(whole, share_after(1, options.step_count))
    if options.dry_run:
        found = _pruned(path, target, options, recipe=whole, selector=selector, progress=progress)
        return replace(found, notes=[*found.notes, left_out(options)])

    def cut(source: Path, place: Path, share: float) -> MagnitudeResult:
        recipe = None if whole is None else at_share(whole, share)
        return _pruned(source, place, options, recipe=recipe, selector=selector, progress=progress)

    rounds = prune_and_train(path, target, options, cut=cut, progress=progress)
    first, last, training = rounds[0].cut, rounds[-1].cut, retrained(path, options, rounds)
    late, before = training.layers(), {layer.weight: layer.nonzero_before for layer in first.layers}
    layers = [replace(layer, nonzero_before=before[layer.weight],
                      nonzero=late[layer.weight].nonzero if layer.weight in late else layer.nonzero)
              for layer in last.layers]  # fmt: skip
    return replace(last, model=first.model, output=training.output, recipe=last.recipe | {"steps": options.step_count},
                   before=first.before, after=training.totals(), layers=layers, verification=proof_of(rounds),
                   training=training)  # fmt: skip


def _layers(work: Zeroing) -> list[ZeroedLayer]:
    macs = macs_by_weight(work.selection.choice.chosen, count_macs(work.floats, work.shapes))
    return [
        ZeroedLayer(
            name=one.weight.node.name or one.weight.node.outputs[0].name or "",
            op=one.weight.op,
            weight=one.weight.name,
            kind=one.weight.kind,
            shape=one.weight.shape,
            dtype=one.stored.dtype.name.lower(),
            params=one.size,
            nonzero_before=one.nonzero_before,
            nonzero=one.nonzero_after,
            macs=macs.get(one.weight.name),
            notes=(*one.weight.notes, *_remainder(one.weight, work.selection.recipe)),
            details=work.selection.details.get(one.weight.name, {}),
        )
        for one in work.zeroed
    ]


def _emptied(work: Zeroing) -> list[str]:
    """A layer whose weight is nothing but zeros is cut off from what comes before it."""
    names = [one.weight.name for one in work.zeroed if one.nonzero_before and not one.nonzero_after]
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


# -- what is settled before, and the look at the file that comes of it ------------------------------


@dataclass(frozen=True)
class Zeroing:
    """What is settled before a weight changes. `floats`: the file in floating point, which is the file itself unless it
    is quantised; its weights are decided on. `zeroed`: the pruned ones; `moved`: what moves with them."""

    file: Model
    floats: Model
    shapes: Shapes
    before: Totals
    selection: Selection
    command: str
    zeroed: Sequence[Zeroed]
    moved: Sequence[Zeroed]

    @property
    def changed(self) -> list[Zeroed]:
        """Every tensor that the saved file has in another form."""
        return [*self.zeroed, *self.moved]


def prepare(
    path: Path, target: Path, options: ZeroingOptions, *, recipe: Recipe | None, selector: Selector, progress: Progress
) -> Zeroing:
    """Raises PruneError: what `magnitude` refuses before it writes."""
    if options.verify:
        options.execution.check()
    file = load(path)
    check_target(file, target, options)
    floats = floats_of(file)
    shapes = concrete_shapes(floats, options.dims)
    found = _selected(floats, options, recipe, selector=selector, progress=progress)
    zeroed = [Zeroed(w, one, w.tensor) for w, one in zip(found.choice.chosen, found.decisions, strict=True)]
    counted = {id(one.original): one.counts[0] for one in zeroed if one.counts is not None}
    return Zeroing(
        file=file, floats=floats, shapes=shapes, before=totals(floats, shapes, counted), selection=found,
        command=selector.command,
        zeroed=zeroed, moved=[Zeroed(w, one, w.tensor) for w, one in found.moved],
    )  # fmt: skip


def _selected(
    file: Model, options: ZeroingOptions, recipe: Recipe | None, selector: Selector, progress: Progress
) -> Selection:
    """Which weights, what becomes of each, and the recipe as it is recorded."""
    found = find_weights(file)
    if options.plan is not None:
        asked, masks = load_plan(options.plan, file, found.all())
        chosen = [weight for weight in found.all() if weight.name in masks]
        for weight in chosen:
            release(weight.holder.value)
        left = [weight for weight in found.all() if weight.name not in masks]
        choice = WeightChoice(chosen, left, [Skipped(w.name, "not in the plan") for w in left] + found.skipped)
        planned = Selection(choice, [masks[weight.name] for weight in chosen], asked)
        return planned if selector.refit is None else selector.refit(file, planned, progress)
    assert recipe is not None
    also = options.also if isinstance(options, OtherKinds) else ()
    choice = choose(found, options.include, options.exclude, also=also)
    said = selector.select(file, choice, recipe, progress=progress)
    patterns = {"include": options.include, "exclude": options.exclude, "also": also}
    asked = {**recipe.to_json(), **{name: list(given) for name, given in patterns.items()}}
    return replace(said, recipe=asked | said.recipe)


@dataclass
class ZeroInspector:
    """Takes the staged file: `save` calls it before the file appears. Afterwards `after` are its sizes."""

    work: Zeroing
    options: ZeroingOptions
    progress: Progress
    verification: Verification = UNVERIFIED
    after: Totals | None = None

    def __call__(self, staged: Path) -> None:
        if self.options.verify:
            self.verification = self._proof()(staged)
        dropped = sum(one.nonzero_before - one.nonzero_after for one in self.work.changed)
        before = self.work.before
        self.after = replace(before, nonzero=before.nonzero - dropped, **file_sizes(load(staged)))

    def _proof(self) -> ZeroProof:
        work = self.work
        sizes = sizes_to_try(work.file, work.shapes.inputs, self.options.dims)
        return ZeroProof(work.file, work.floats.ir, work.changed, sizes=sizes, open=self.options.execution.open,
                         progress=self.progress, given=work.selection.feed)  # fmt: skip
