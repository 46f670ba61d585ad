"""`prune finetune`: train a pruned model, its zeros and its structure kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.autodiff import DifferentiationOptions as GradientOptions
from prunecli.autodiff import differentiate
from prunecli.data import Dataset
from prunecli.data.dataset import hold_out
from prunecli.data.options import DataOptions
from prunecli.errors import GateFailed
from prunecli.evaluation.passes import common_specs, data_dims, pair
from prunecli.evaluation.speed import MeasuredSpeed, measure_speed
from prunecli.model import Dims, Model, concrete_shapes, count_macs, find_weights, load, totals
from prunecli.model.constants import INTERFACE, name_inputs
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.model.shapes import input_specs
from prunecli.options.training import FinetuneOptions
from prunecli.packing.after import Small, pack_options, packed_after
from prunecli.packing.pack import PackResult
from prunecli.report.result import ModelResult
from prunecli.runtime import Session
from prunecli.shrinking.after import shrunk_after
from prunecli.shrinking.result import ShrinkResult
from prunecli.training.checkpoint import Keeper, Log
from prunecli.training.optimizers import OptimizerSettings
from prunecli.training.parameters import reset_head
from prunecli.training.session import Training, objective_options, prepare_training
from prunecli.training.trainer import DivergedError, Epoch, Trainer, lower_rate
from prunecli.types import FileRef, Json, LayerRow, Progress, Skipped, Totals, Verification, no_progress
from prunecli.verify.compare import check_tensors, placed
from prunecli.verify.inputs import Case
from prunecli.verify.prove import Agreement, Claim, prove
from prunecli.verify.tolerance import Feed, OfLargest

TOLERANCE = 1e-3  # of the largest output: float32 rounding of two differently ordered graphs is some 1e-5


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(ModelResult):
    """What training did. `score`: of the validation part, named `score_name`, higher is better; before training, and of
    the kept weights (`best_epoch`, 0: the start). `harmful`: no epoch was better than the start on held-out data.
    `course`: decisions during the run, among the notes. `speed`: relative to the teacher, of sizes `teacher`, where the
    model is a cut of it."""

    layers: list[LayerRow]
    skipped: list[Skipped]
    epochs: list[Epoch]
    best_epoch: int
    score_name: str
    score_before: float | None
    score_after: float | None
    trained: int
    samples: int
    validation_samples: int
    recipe: Json
    packed: PackResult | None = None
    shrunk: ShrinkResult | None = None
    harmful: bool = False
    course: Sequence[str] = ()
    speed: MeasuredSpeed | None = None
    teacher: Totals | None = None

    def raise_if_failed(self) -> None:
        """Raise GateFailed where training improved nothing at any step."""
        raise_if_harmful(self)


def finetune(
    model: str | Path, options: FinetuneOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> FinetuneResult:
    """Train a model on data and save it, with the same inputs and outputs; what is zero stays zero.

    `changes` override fields of `options`:
    `finetune("pruned.onnx", data="train.npz", epochs=3, teacher="original.onnx")`. Where no epoch was better than the
    start on held-out data nothing is written (`output` is None, `harmful` true). With `keep_start` the start is written
    where one was `equal`, which is not harmful then, or `always`.

    Raises:
        PruneError: the model, the data or an option is unusable; an operator without a gradient; training diverged
            (`DivergedError`, which says where the best weights are, if any were better).
    """
    start, path, options = time.perf_counter(), Path(model), FinetuneOptions.of(options, **changes)
    target = options.output or path.with_name(f"{path.stem}.pruned.onnx")
    options.execution.check()
    file = load(path)
    check_target(file, target, options)
    training, data, held = _prepare(file, options)
    dims = data_dims(data, {}, input_specs(file.ir))
    original = load(path)  # preparing may have replaced the last layer
    before = totals(original, concrete_shapes(original, dims))
    keeper = Keeper(training.trainer, options, _fingerprint(file, options, data))
    keeper.resume() if options.resume else training.tune(progress)
    score_before = training.trainer.at.first_score
    diverged = _run(training, keeper, options, progress=progress)
    training.store()
    proof = _Proof(training, next(data.batches(training.trainer.supply.run_size)).feed, options)
    at, course = training.trainer.at, [*training.notes, *training.trainer.notes()]
    saved = _saved(file, target, options, proving=proof, progress=progress)
    if diverged is not None:
        raise _salvaged(diverged, at.best_epoch, target)
    after_file = file if saved.output is None else load(target)
    return FinetuneResult(
        model=file.ref,
        output=saved.output,
        before=before,
        after=totals(after_file, concrete_shapes(after_file, dims)),
        layers=_layers(after_file),
        skipped=_skipped(file, training),
        epochs=at.history,
        best_epoch=at.best_epoch if held else len(at.history),
        score_name=training.score_name,
        score_before=score_before,
        score_after=at.best_score,
        trained=training.trainer.parameters.count,
        samples=len(data),
        validation_samples=held,
        recipe=_recipe(options) | _used(training.trainer),
        verification=proof.verification,
        notes=[*file.notes, *data.notes, *course, *saved.small.notes],
        packed=saved.small.packed,
        shrunk=saved.shrunk,
        harmful=at.harmful(ties=options.keep_start == "never"),
        course=course,
        **_beside_teacher(options, saved.output, after_file, dims=dims, progress=progress),
        seconds=time.perf_counter() - start,
    )


def _salvaged(error: DivergedError, epoch: int, target: Path) -> DivergedError:
    return type(error)(f"{error.message}; the best weights, of epoch {epoch}, are in {target}", error.hint)


@dataclass(frozen=True)
class _Written:
    """What was written, None where training improved nothing, and the results of the steps before it."""

    output: FileRef | None = None
    small: Small = field(default_factory=Small)
    shrunk: ShrinkResult | None = None


def _saved(file: Model, target: Path, options: FinetuneOptions, proving: _Proof, progress: Progress) -> _Written:
    never = options.keep_start == "never"
    if proving.training.trainer.at.harmful(ties=never) and options.keep_start != "always":
        proving.verification = Verification("none", detail="nothing was written")
        return _Written()
    proof = partial(proving, file) if options.verify else None
    made = Provenance("finetune", _recipe(options))
    shrunk: list[ShrinkResult] = []

    def trained(place: Path) -> FileRef:
        last = place == target
        return save(file, place, SaveOptions(options.external_data, last and options.force, made), verify=proof)

    def make(place: Path) -> FileRef:
        if not options.shrink:
            return trained(place)
        written, found, output = shrunk_after(place, options, trained, progress=progress)
        shrunk.append(found)
        return output or written

    if not options.pack:
        return _Written(make(target), shrunk=next(iter(shrunk), None))
    _, small = packed_after(target, pack_options(options), make, progress=progress)
    return _Written(small.output, small, next(iter(shrunk), None))


def _beside_teacher(
    options: FinetuneOptions, saved: FileRef | None, after: Model, dims: Dims, progress: Progress
) -> dict[str, Any]:
    """Return the teacher's sizes and the speedup over it, where the model has less work than the teacher."""
    if options.teacher_path is None or saved is None or not options.timing:
        return {}
    file = load(options.teacher_path)
    work = [count_macs(each, concrete_shapes(each, dims)).total for each in (file, after)]
    if not work[0] or not work[1] or work[1] >= work[0]:
        return {}
    speed = measure_speed(Path(saved.path), options.teacher_path, options, progress=progress)
    return {"speed": speed, "teacher": totals(file, concrete_shapes(file, dims))}


def raise_if_harmful(found: FinetuneResult) -> None:
    """For command lines, once the result is out.

    Raises:
        GateFailed: no epoch was better than the start, so nothing was written.
    """
    if not found.harmful:
        return
    rate, given = float(found.recipe["learning_rate"]), found.recipe["rate"] is not None
    lower = lower_rate(found.recipe["optimizer"], rate)
    best = max(epoch.score for epoch in found.epochs if epoch.score is not None)
    went = f"fell from {found.score_before:.4f} to" if best != found.score_before else "stayed at"
    raise GateFailed(
        f"training improved nothing: at a learning rate of {rate:.3g}{'' if given else ' and below'} the"
        f" {found.score_name} {went} {best:.4f} at best; nothing was written",
        f"{f'try --lr {lower:.2g}' if given else 'give more data'}, or see whether data and labels are the model's",
    )


def _prepare(file: Model, options: FinetuneOptions) -> tuple[Training, Dataset, int]:
    if options.reset_head is not None:
        reset_head(file, options.reset_head, options.seed)
    name_inputs(file.ir, options.include)
    changed, threads = options.reset_head is not None, options.execution.thread_count
    session = Session.open(file.ir, threads=threads) if changed else options.execution.open(file.path)
    specs, teacher = session.inputs, None
    if options.teacher_path is not None:
        load(options.teacher_path)
        other = options.execution.open(options.teacher_path)
        teacher = pair(session, other)
        specs = common_specs(specs, teacher)
    data = _data(options).open(specs, session.outputs)
    data, held = _split(data.without_labels() if options.unlabelled else data, options, specs)
    return (
        prepare_training(file, data, held, options=options, teacher=teacher),
        data,
        len(held) if held is not None else 0,
    )


def _data(options: FinetuneOptions) -> DataOptions:
    found = options.source
    assert found is not None
    return found


def _split(data: Dataset, options: FinetuneOptions, specs: Any) -> tuple[Dataset, Dataset | None]:
    if options.validation is not None:
        held = options.like(options.validation).open(specs)
        return data, held.without_labels() if options.unlabelled else held
    return hold_out(data, options.val_split, options.seed)


def _run(training: Training, keeper: Keeper, options: FinetuneOptions, progress: Progress) -> DivergedError | None:
    """Train; on divergence return the error if an epoch improved on the start, else raise it."""
    trainer = training.trainer
    log = Log(options.log)
    remaining = trainer.hyper.epochs * trainer.supply.steps - trainer.total_steps
    bar: Iterator[int] = progress(iter(range(remaining)), "training", remaining)

    def on_step(_: Any) -> None:
        next(bar, None)
        keeper.step()
        log.write(trainer)

    try:
        trainer.run(on_step)
    except KeyboardInterrupt:
        keeper.interrupted()
        raise
    except DivergedError as error:
        if trainer.at.best_epoch == 0 or not options.salvage:
            raise
        return error
    finally:
        for _ in bar:
            pass
        log.close(trainer)
    return None


def _fingerprint(file: Model, options: FinetuneOptions, data: Dataset) -> Json:
    return {"model": file.sha256, "samples": len(data), **_recipe(options)}


def _recipe(options: FinetuneOptions) -> Json:
    """The options that decide the result."""
    o = options
    return {
        **o.recorded(["epochs", "batch_size", "optimizer", "rate"]),
        "knobs": asdict(OptimizerSettings(o.momentum, weight_decay=o.weight_decay)),
        **o.recorded(["schedule", "warmup", "clip", "mixup", "augment", "regularize", "strength", "patience", "seed"]),
        **o.recorded(["features", "blocks", "minutes", "exchange", "pattern"]),
        **asdict(objective_options(o)),
        **o.recorded(["freeze", "bn"]),
        "data": _data(options).text,
        "val_split": options.val_split,
        "teacher": None if options.teacher_path is None else options.teacher,
        "reset_head": options.reset_head,
        **({"images": _data(options).images.to_json()} if _data(options).images.given else {}),
    }


def _used(trainer: Trainer) -> Json:
    """Return the values chosen for options that were left open."""
    hyper = trainer.hyper
    found = asdict(hyper) | {"learning_rate": hyper.rate, "augment": list(hyper.augment)}
    del found["rate"]
    return found | {"batch_size": trainer.supply.batch_size}


def _layers(file: Model) -> list[LayerRow]:
    return [
        LayerRow.of(name=weight.node.name or weight.name, op=weight.op, weight=weight.name, shape=weight.shape,
                    nonzero=int(np.count_nonzero(weight.array())))
        for weight in find_weights(file).prunable
    ]  # fmt: skip


def _skipped(file: Model, training: Training) -> list[Skipped]:
    trained = {item.name for item in training.trainer.parameters.items}
    weights = find_weights(file)
    left = [w for w in [*weights.all(), *weights.single] if w.name not in trained | training.graph.statistics.keys()]
    why = "not trained: frozen, not reached by the loss, or inside a body"
    return [Skipped(w.name, INTERFACE if w.holder.overridable else why) for w in left]


class _Proof:
    """The saved file against the trained model, tensor by tensor, and against the training graph's own forward pass on
    the same batch: what was trained is what was saved."""

    def __init__(self, training: Training, feed: Feed, options: FinetuneOptions) -> None:
        self.training, self.feed, self.options = training, feed, options
        self.verification = Verification("none", detail="--no-verify")

    def __call__(self, trained: Model, path: Path) -> None:
        made = {place: held.tensor for place, held in placed(trained.ir).items()}
        check_tensors(made, load(path).ir, {}, hint="please report this", progress=no_progress)
        session, sizes = self.options.execution.open(path), list[int]()
        coarse = any(a.dtype.itemsize < 4 and a.dtype.kind == "f" for a in self.feed.values())
        tolerance = OfLargest(50 * TOLERANCE if coarse else TOLERANCE, "what sums in another order explain")
        claim = Claim(reference=_Trained(self.training, session, self.options.execution.thread_count), result=session,
                      tolerance=tolerance, names=("saved model", "trained one"), given="the trained model",
                      hint="please report this", demand=lambda agreed: sizes.append(_samples(agreed)))  # fmt: skip
        found = prove(claim, [Case("a batch of the training data", partial(dict, self.feed))])
        self.verification = replace(found.verification("the saved file computes what was trained"), samples=sum(sizes))


def _samples(agreed: Agreement) -> int:
    first = np.asarray(next(iter(agreed.wanted.values())))
    return len(first) if first.ndim else 1


class _Trained:
    """The forward pass of the training graph: the outputs that the loss reads, under the names of `saved`."""

    def __init__(self, training: Training, saved: Session, threads: int) -> None:
        objective = training.trainer.supply.objective
        names = objective.outputs
        items = [item.name for item in training.trainer.parameters.items[:1]]
        graph = differentiate(training.model.ir, items, objective.loss, shapes=training.shapes,
                              options=GradientOptions(weights_as_inputs=False, outputs=tuple(names)))  # fmt: skip
        self.own = {name: graph.outputs[name] for name in names}
        self.dtypes = {output.name: output.dtype for output in saved.outputs if output.is_tensor}
        self.session = Session.open(graph.model, threads=threads)

    def run(self, feed: Feed) -> dict[str, Any]:
        """The targets of the loss are inputs, too; what they hold changes no output."""
        inputs = self.session.inputs
        targets = {s.name: np.zeros([d for d in s.shape if isinstance(d, int)], s.dtype)
                   for s in inputs if s.name not in feed}  # fmt: skip
        given = {s.name: np.asarray(feed[s.name], s.dtype) for s in inputs if s.name in feed}
        found = self.session.run(given | targets, list(self.own.values()))
        return {name: np.asarray(found[own], self.dtypes.get(name)) for name, own in self.own.items()}
