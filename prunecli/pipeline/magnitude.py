"""`prune magnitude`: zero the smallest weights, by threshold, to an exact sparsity, or to a pattern."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prunecli.apply.plans import check_plan_path, load_plan, save_plan
from prunecli.apply.zero import Zeroed, zero
from prunecli.apply.zero_proof import Proof, shapes_to_try
from prunecli.errors import PruneError
from prunecli.model import Dims, Model, Shapes, Weight, concrete_shapes, count_macs, find_weights, load, totals
from prunecli.model.provenance import Provenance
from prunecli.model.saving import SaveOptions, check_target, save
from prunecli.model.sizes import EXACT_UP_TO, gzip_bytes
from prunecli.pipeline.choice import Choice, choose
from prunecli.pipeline.gradual import (
    Retrain,
    Retrained,
    at_share,
    check_plans,
    left_out,
    proof_of,
    prune_and_train,
    retrained,
    share_after,
)
from prunecli.pipeline.inspect import macs_by_weight
from prunecli.pipeline.judge import ByValue, Fits, Judge, Judged
from prunecli.pipeline.magnitude_pack import packed
from prunecli.pipeline.magnitude_report import to_document, to_json
from prunecli.pipeline.pack import Packing, PackResult
from prunecli.pipeline.subject import Execution
from prunecli.pipeline.zeroed_spread import ZeroedSpread, zeroed_spreads
from prunecli.report.document import Document
from prunecli.runtime import Session
from prunecli.select import Recipe, parse_pattern
from prunecli.select.patterns import Windows
from prunecli.types import FileRef, Json, Progress, Skipped, Totals, Verification, no_progress


@dataclass(frozen=True)
class MagnitudeOptions:
    """`recipe` None only with `plan`. `also`: kinds of tensors besides matrices and kernels (bias, norm,
    embedding). `output` None: STEM.pruned.onnx beside the model. `verify`: the proof after saving. `retrain`: train
    after each of its steps. `judge`: decides in place of the weights' own values. `pack`: store the zeros small.
    `spreads`: measure the distributions that a report draws."""

    recipe: Recipe | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    also: Sequence[str] = ()
    dims: Dims = field(default_factory=Dims)
    execution: Execution = field(default_factory=Execution)
    output: Path | None = None
    force: bool = False
    dry_run: bool = False
    verify: bool = True
    plan: Path | None = None
    save_plan: Path | None = None
    external_data: Literal["auto", "always", "never"] = "auto"
    retrain: Retrain | None = None
    judge: Judge | None = None
    spreads: bool = False
    pack: Packing | None = None


@dataclass(frozen=True)
class Layer:
    """One pruned weight. `macs`: of the operators that read it, None where a shape is unknown."""

    name: str
    op: str
    weight: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    params: int
    nonzero_before: int
    nonzero: int
    macs: int | None
    notes: tuple[str, ...] = ()
    details: Json = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros afterwards."""
        return 1 - self.nonzero / self.params if self.params else 0.0


@dataclass(frozen=True)
class MagnitudeResult:
    """What was pruned, and the proof. `left`: kinds of weights left alone, with tensors and parameters."""

    model: FileRef
    output: FileRef | None
    recipe: Json
    before: Totals
    after: Totals
    layers: list[Layer]
    left: dict[str, tuple[int, int]]
    skipped: list[Skipped]
    verification: Verification
    notes: list[str] = field(default_factory=list)
    plan: str | None = None
    dry_run: bool = False
    training: Retrained | None = None
    seconds: float = 0.0
    command: str = "magnitude"
    spreads: Mapping[str, ZeroedSpread] = field(default_factory=dict)
    packed: PackResult | None = None

    @property
    def params(self) -> int:
        """Elements of the weights that were pruned."""
        return sum(layer.params for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the weights that were pruned."""
        return 1 - sum(layer.nonzero for layer in self.layers) / self.params if self.params else 0.0

    def to_json(self) -> Json:
        return to_json(self)

    def to_document(self) -> Document:
        return to_document(self)


def magnitude(
    model: str | Path, options: MagnitudeOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> MagnitudeResult:
    """Zero the smallest weights of a model and save it with proof. `changes` override fields of `options`, and
    `threshold=`, `sparsity=`, `pattern=`, `scope=`, `criterion=`, `seed=` those of its recipe.

    Raises:
        PruneError: the file or an option is unusable, a weight holds NaN or infinity, or the saved file is not
            the original with masked weights; then nothing is written.
    """
    start, options = time.perf_counter(), magnitude_options(options, **changes)
    path = Path(model)
    target = options.output or path.with_name(f"{path.stem}.pruned.onnx")
    if options.pack is not None:
        return replace(packed(magnitude, path, target, options, progress), seconds=time.perf_counter() - start)
    if options.retrain is not None:
        return replace(_retrained(path, target, options, progress), seconds=time.perf_counter() - start)
    job = _prepare(path, target, options, progress)
    zero(job.changed)
    inspector = _Inspector(job, options, progress)
    with tempfile.TemporaryDirectory() as elsewhere:  # a dry run does everything, but there
        place = Path(elsewhere) / target.name if options.dry_run else target
        saving = SaveOptions(options.external_data, options.force, Provenance(job.command, job.recipe))
        saved = save(job.file, place, saving, inspector)
    if options.save_plan is not None:
        save_plan(options.save_plan, job.file, job.recipe, job.zeroed, progress)
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
        notes=[*job.file.notes, *job.notes],
        plan=None if options.save_plan is None else str(options.save_plan),
        dry_run=options.dry_run,
        seconds=time.perf_counter() - start,
        command=job.command,
        spreads=zeroed_spreads(job.zeroed, progress) if options.spreads else {},
    )


def _retrained(path: Path, target: Path, options: MagnitudeOptions, progress: Progress) -> MagnitudeResult:
    """Zero some, train, zero more: what is zero scores lowest and stays zero in training, so it is never revived."""
    retrain, once = options.retrain, replace(options, retrain=None)
    assert retrain is not None
    check_plans(retrain, options.plan, options.save_plan)
    if options.recipe is not None:
        at_share(options.recipe, share_after(1, retrain.steps))
    if options.dry_run:
        found = magnitude(path, once, progress)
        return replace(found, notes=[*found.notes, left_out(retrain)])

    def cut(source: Path, place: Path, share: float) -> MagnitudeResult:
        recipe = None if options.recipe is None else at_share(options.recipe, share)
        return magnitude(source, replace(once, recipe=recipe, output=place), progress)

    rounds = prune_and_train(path, target, retrain, cut, options.force, progress)
    first, last, training = rounds[0].cut, rounds[-1].cut, retrained(path, retrain, rounds)
    late, before = training.layers(), {layer.weight: layer.nonzero_before for layer in first.layers}
    layers = [replace(layer, nonzero_before=before[layer.weight],
                      nonzero=late[layer.weight].nonzero if layer.weight in late else layer.nonzero)
              for layer in last.layers]  # fmt: skip
    return replace(last, model=first.model, output=training.output, recipe=last.recipe | {"steps": retrain.steps},
                   before=first.before, after=training.totals(), layers=layers, verification=proof_of(rounds),
                   training=training)  # fmt: skip


def magnitude_options(options: MagnitudeOptions | None = None, **changes: Any) -> MagnitudeOptions:
    """Options with changes, which may also name fields of the recipe."""
    options = options or MagnitudeOptions()
    asked = {name: changes.pop(name) for name in list(changes) if name in Recipe.__dataclass_fields__}
    if asked:
        changes["recipe"] = Recipe(**asked) if options.recipe is None else replace(options.recipe, **asked)
    if changes.get("output") is not None:
        changes["output"] = Path(changes["output"])
    return replace(options, **changes)


@dataclass(frozen=True)
class _Job:
    """Everything that is settled before a weight changes."""

    file: Model
    shapes: Shapes
    before: Totals
    choice: Choice
    zeroed: list[Zeroed]
    recipe: Json
    command: str
    notes: Sequence[str]
    moved: list[Zeroed]
    details: Mapping[str, Json]

    @property
    def changed(self) -> list[Zeroed]:
        """Every tensor that the saved file has in another form: the pruned ones, and what moves with them."""
        return [*self.zeroed, *self.moved]


def _prepare(path: Path, target: Path, options: MagnitudeOptions, progress: Progress) -> _Job:
    if (options.recipe is None) == (options.plan is None):
        problem = "how much to prune is not given" if options.plan is None else "--plan fixes what is zeroed"
        raise PruneError(problem, "give one of --sparsity, --threshold, --pattern N:M, or --plan")
    if options.save_plan is not None:
        check_plan_path(options.save_plan, options.force)
    if options.verify:
        options.execution.check()
    file = load(path)
    if not options.dry_run:
        check_target(file, target, options.force)
    shapes = concrete_shapes(file, options.dims)
    judge = options.judge or ByValue()
    found = _judged(file, options, judge, progress)
    zeroed = [Zeroed(w, one, w.tensor) for w, one in zip(found.choice.chosen, found.decisions, strict=True)]
    counted = {id(one.original): one.counts[0] for one in zeroed if one.counts is not None}
    before = totals(file, shapes, counted)
    moved = [Zeroed(w, one, w.tensor) for w, one in found.moved]
    return _Job(
        file, shapes, before, found.choice, zeroed, found.recipe, judge.command, found.notes, moved, found.details
    )


def _judged(file: Model, options: MagnitudeOptions, judge: Judge, progress: Progress) -> Judged:
    """Which weights, what becomes of each, and the recipe as it is recorded."""
    found = find_weights(file)
    if options.plan is not None:
        plan = load_plan(options.plan, file, found.all())
        chosen = [weight for weight in found.all() if weight.name in plan.decisions]
        left = [weight for weight in found.all() if weight.name not in plan.decisions]
        choice = Choice(chosen, left, [Skipped(w.name, "not in the plan") for w in left] + found.skipped)
        planned = Judged(choice, [plan.decisions[weight.name] for weight in chosen], plan.recipe)
        return judge.fitted(file, planned, progress) if isinstance(judge, Fits) else planned
    assert options.recipe is not None
    choice = choose(found, options.include, options.exclude, options.also)
    said = judge(file, choice, options.recipe, progress)
    patterns = {"include": options.include, "exclude": options.exclude, "also": options.also}
    asked = {**options.recipe.to_json(), **{name: list(given) for name, given in patterns.items()}}
    return replace(said, recipe=asked | said.recipe)


@dataclass
class _Inspector:
    """Takes the staged file: `save` calls it before the file appears. Afterwards `after` are its sizes."""

    job: _Job
    options: MagnitudeOptions
    progress: Progress
    verification: Verification = field(default_factory=lambda: Verification("none", detail="left out by --no-verify"))
    after: Totals | None = None

    def __call__(self, staged: Path) -> None:
        if self.options.verify:
            self.verification = self._proof()(staged)
        files = [staged, *load(staged).data_files]
        dropped = sum(one.nonzero_before - one.nonzero_after for one in self.job.changed)
        self.after = replace(
            self.job.before,
            nonzero=self.job.before.nonzero - dropped,
            file_bytes=sum(file.stat().st_size for file in files),
            gzip_bytes=sum(gzip_bytes(file) for file in files),
            gzip_estimated=any(file.stat().st_size > EXACT_UP_TO for file in files),
        )

    def _proof(self) -> Proof:
        job, execution = self.job, self.options.execution
        opener = partial(Session.open, provider=execution.provider, threads=execution.thread_count)
        return Proof(
            job.file, job.changed, shapes_to_try(job.file, job.shapes, self.options.dims), opener, self.progress
        )


def _layers(job: _Job) -> list[Layer]:
    work = macs_by_weight(job.choice.chosen, count_macs(job.file, job.shapes))
    return [
        Layer(
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


def _remainder(weight: Weight, recipe: Json) -> list[str]:
    """Where an N:M pattern does not come out even, hardware that wants it cannot use the weight."""
    form, cols = parse_pattern(str(recipe.get("pattern", "element"))), weight.layout.canonical_shape[3]
    if not isinstance(form, Windows) or cols % form.window == 0:
        return []
    return [f"{cols} inputs do not divide by {form.window}: the rest keeps up to {form.keep}"]


def _left(choice: Choice) -> dict[str, tuple[int, int]]:
    tensors, params = Counter[str](), Counter[str]()
    for weight in choice.left:
        tensors[weight.kind] += 1
        params[weight.kind] += weight.size
    return {kind: (tensors[kind], params[kind]) for kind in tensors}
