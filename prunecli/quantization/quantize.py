"""`prune quantize`: weights and activations as small integers, fitted on unlabelled samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.samples import about, calibration_samples, cautions
from prunecli.data import Dataset
from prunecli.errors import PruneError, some
from prunecli.evaluation.speed import MeasuredSpeed, measure_speed
from prunecli.files import Scratch, written_to
from prunecli.model import Model, Use, Weight, concrete_shapes, find_weights, load, totals
from prunecli.model.copies import plain_path
from prunecli.model.floating import is_quantised
from prunecli.model.graphs import all_graphs
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.operators.operator import named
from prunecli.options.sizes import at_data
from prunecli.quantization.candidates import TOOL, Candidate, CandidateEvaluator, GraphBuilder, made_small
from prunecli.quantization.fitting import FITTED, NEAREST, QuantisedLayer, fit_graph, round_graph
from prunecli.quantization.options import QuantizeOptions, default_output
from prunecli.quantization.preparing import prepared
from prunecli.quantization.proof import check_stored
from prunecli.quantization.quality import labelled_samples, measured_quality
from prunecli.quantization.ranges import RUNS, Range, fitted_ranges, observe
from prunecli.quantization.result import QuantizeResult
from prunecli.quantization.stored import Form, IntegerGraph
from prunecli.runtime import saturates
from prunecli.types import UNVERIFIED, Json, Progress, Skipped, Totals, Verification, no_progress
from prunecli.verify.compare import Place, placed

SAMPLES = 512
HELD = 4
"""One of so many samples is held out."""
FEWEST = 16
"""Number of samples below which all are used both for fitting and for evaluation."""
UNFIT = "onnxruntime has no kernel of integers that reads it there"
RUINED = 0.1
"""Error above which the result comes with a warning."""
ACTIVATIONS = {"uint8": (0, 255), "int8": (-128, 127)}


def quantize(
    model: str | Path, options: QuantizeOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> QuantizeResult:
    """Quantise a model, fit its weights on unlabelled data, and save it. `changes` override fields of `options`:
    `quantize("model.onnx", data="calib.npz")`.

    Raises:
        PruneError: the file or an option is unusable, nothing in it can be quantised, its opset is too old and cannot
            be raised, or onnxruntime does not run the result.
    """
    start, options = time.perf_counter(), QuantizeOptions.of(options, **changes)
    path = Path(model)
    options = at_data(path, options)
    if options.verify:
        options.execution.check()
    file, target = load(path), options.output or default_output(path)
    check_target(file, target, options)
    with Scratch() as folder:
        work = Quantisation.of(file, options, folder, progress=progress)
        candidates, layers, left = work.candidates(progress)
        best = min(reversed(candidates), key=lambda one: one.error)  # of equal ones the fitted
        return replace(
            _saved(work, best, candidates, layers=_with_result(layers, best), target=target),
            left=left,
            seconds=time.perf_counter() - start,
        )


def _with_result(layers: Sequence[QuantisedLayer], best: Candidate) -> list[QuantisedLayer]:
    """Return the layers with what the written candidate, which may not be the fitted one, stores."""
    return [layer if best.name == FITTED else replace(layer, method=best.name, errors={}) for layer in layers]


@dataclass(frozen=True)
class Quantisation:
    """What is decided before a graph is built. `exclude`: nodes that stay float. `unfit`: weights that no integer
    kernel takes. `feeds`: calibration samples, RUNS at a time, for the ranges. `test`: labelled samples, if any.
    `notes`: on preparing."""

    file: Model
    options: QuantizeOptions
    builder: GraphBuilder
    batches: CalibrationBatches
    data: Dataset
    evaluator: CandidateEvaluator
    exclude: Sequence[str]
    feeds: Sequence[Mapping[str, Array]]
    test: Dataset | None
    notes: Sequence[str]
    unfit: Sequence[Skipped] = ()

    @classmethod
    def of(cls, file: Model, options: QuantizeOptions, folder: Path, progress: Progress) -> Quantisation:
        """Read the data, and prepare the model for onnxruntime's tool.

        Raises:
            PruneError: as `quantize`.
        """
        _check_float(file, options)
        assert options.source is not None
        execution = options.execution
        data = calibration_samples(
            file, options.source, SAMPLES, seed=options.seed, dims=options.dims, execution=execution, progress=progress
        )
        test = labelled_samples(file, options)
        start = execution.open
        batches, held, feeds = _divided(data, options)
        place, notes = prepared(file, options.form, folder)
        builder = GraphBuilder.of(place, options.form, options.weights, activations=options.activation_type)
        evaluator = CandidateEvaluator.of(plain_path(file), held, start)
        unfit = [] if builder.weights_alone else _unfit(builder.model, options.form)
        nodes = [use.node.name or "" for weight in unfit for use in weight.uses]
        exclude = list(dict.fromkeys([*_excluded(builder.model, options), *nodes]))
        left = [Skipped(weight.name, UNFIT) for weight in unfit]
        return cls(file=file, options=options, builder=builder, batches=batches, data=data, evaluator=evaluator,
                   exclude=exclude, feeds=feeds, test=test, notes=notes, unfit=left)  # fmt: skip

    def candidates(self, progress: Progress) -> tuple[list[Candidate], list[QuantisedLayer], list[Skipped]]:
        """onnxruntime's own graph, the same with weights rounded to the nearest on better grids, and the fitted one."""
        ranges = self._ranges(progress)
        tool = self.builder.built(ranges[0], self.exclude, open_ends=False)
        if not is_quantised(tool.model):
            why = "".join(f": {one.name}: {one.reason}" for one in self.unfit[:1])
            raise PruneError(f"nothing in {self.file.path} can be quantised as {self.options.form}{why}",
                             "`prune inspect` lists its weights; --format chooses another form")  # fmt: skip
        found = [] if self.builder.weights_alone else [self.evaluator(TOOL, tool)]
        rounded = [self.evaluator(NEAREST, self._rounded(one, self.exclude)) for one in ranges]
        best = min(rounded, key=lambda one: one.error)
        chosen = ranges[rounded.index(best)]
        exclude = [*self.exclude, *self._hurting(chosen, best.error, progress)]
        if len(exclude) > len(self.exclude):
            best = self.evaluator(NEAREST, self._rounded(chosen, exclude))
        graph = self.builder.built(chosen, exclude)
        layers, left = fit_graph(self.builder.model.ir, graph, self.batches, progress=progress)
        return [*found, best, self.evaluator(FITTED, graph)], layers, [*self.unfit, *left]

    def _rounded(self, ranges: Mapping[str, Range], exclude: Sequence[str]) -> IntegerGraph:
        graph = self.builder.built(ranges, exclude)
        round_graph(self.builder.model.ir, graph)
        return graph

    def _ranges(self, progress: Progress) -> list[dict[str, Range]]:
        """Return the ranges of activations: all observed values, and the parts of least error; empty where none are
        needed."""
        if self.options.activation_type not in ACTIVATIONS or self.options.form != "qdq":
            return [{}]
        seen = observe(self.batches.start, self.builder.prepared, self.feeds, total=len(self.feeds), progress=progress)
        whole = {name: one.whole for name, one in seen.items()}
        return [whole, fitted_ranges(seen, *ACTIVATIONS[self.options.activation_type])]

    def _hurting(self, ranges: Mapping[str, Range], error: float, progress: Progress) -> list[str]:
        """Return the nodes that stay float: those whose quantisation costs most per parameter, within the budget."""
        weights = [w for w in find_weights(self.builder.model).prunable if w.node.name not in self.exclude]
        budget = self.options.keep_float * sum(w.size for w in weights)
        gains: list[tuple[float, Weight]] = []
        for weight in progress([w for w in weights if w.size <= budget], "measuring layers"):
            names = [use.node.name or "" for use in weight.uses]
            alone = self.evaluator(weight.name, self._rounded(ranges, [*self.exclude, *names]))
            gains.append(((error - alone.error) / weight.size, weight))
        chosen: list[str] = []
        for gain, weight in sorted(gains, key=lambda pair: -pair[0]):
            if gain > 0 and weight.size <= budget:
                budget -= weight.size
                chosen += [use.node.name or "" for use in weight.uses]
        return chosen


def _check_float(file: Model, options: QuantizeOptions) -> None:
    """Raises PruneError: weights are integers already, no finite numbers, or of a type that is not quantised."""
    if is_quantised(file.ir):
        raise PruneError(f"{file.path} is quantised already", "quantise the floating-point model that it was made from")
    weights = find_weights(file)
    if options.form != "nbits" and not any(w.dtype == ir.DataType.FLOAT for w in weights.prunable) and weights.prunable:
        kind = weights.prunable[0].dtype.name.lower()
        raise PruneError(f"the weights of {file.path} are {kind}, which onnxruntime's quantiser does not take",
                         "export the model in float32, or use --weights int4-block32")  # fmt: skip
    for weight in weights.all():
        array = weight.array()
        if weight.kind == "weight" and not np.isfinite(array).all():
            raise PruneError(f"the weight {weight.name} holds NaN or infinity",
                             "repair the model or export it again: what it computes are no numbers")  # fmt: skip
        weight.release()


def _divided(
    data: Dataset, options: QuantizeOptions
) -> tuple[CalibrationBatches, Sequence[Mapping[str, Array]], Sequence[Mapping[str, Array]]]:
    """Return batches for fitting followed by those held out, the held-out ones, and the fitting ones in small runs. One
    sample in HELD is held out; few samples are used for both."""
    order = np.random.default_rng(options.seed).permutation(len(data))
    held = len(order) // HELD if len(order) >= FEWEST else 0
    fit, held_out = data.select(np.sort(order[held:])), data.select(np.sort(order[:held]))
    batches = [batch.feed for batch in fit.batches(options.batch_size)]
    held_batches = [batch.feed for batch in held_out.batches(options.batch_size)] if held else batches
    feeds = [batch.feed for batch in fit.batches(RUNS)]
    how, every = options.execution, [*batches, *(held_batches if held else [])]
    return CalibrationBatches(every, len(batches), how.open, lanes=how.lanes), held_batches, feeds


def _excluded(model: Model, options: QuantizeOptions) -> list[str]:
    """Names of the nodes that --include and --exclude leave float."""

    def matched(weight: Weight, patterns: Sequence[str]) -> bool:
        names = [weight.name, *(use.node.name or "" for use in weight.uses)]
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    weights = find_weights(model).prunable
    left = [w for w in weights if (options.include and not matched(w, options.include)) or matched(w, options.exclude)]
    if weights and len(left) == len(weights):
        raise PruneError("--include and --exclude leave nothing to quantise", "`prune inspect` lists the names")
    return list(dict.fromkeys(use.node.name or "" for weight in left for use in weight.uses))


def _unfit(model: Model, form: Form) -> list[Weight]:
    """Return weights that onnxruntime's integer kernels do not take: left operands, stacks of matrices and, quantised
    dynamically, vectors."""

    def fits(use: Use) -> bool:
        if use.op not in ("MatMul", "Gemm") or form == "nbits":
            return True
        return use.index == 1 and (len(use.shape) == 2 or (len(use.shape) == 1 and form == "qdq"))

    return [weight for weight in find_weights(model).prunable if not all(map(fits, weight.uses))]


def _saved(
    work: Quantisation, best: Candidate, candidates: Sequence[Candidate], layers: list[QuantisedLayer], target: Path
) -> QuantizeResult:
    """Write the best candidate with its checks, and return the result."""
    options, file = work.options, work.file
    shapes = concrete_shapes(file, options.dims)
    before = totals(load(plain_path(file)), shapes) if file.packed else totals(file, shapes)
    decided = dict(best.graph.floats())
    if options.form == "qdq":
        taken = {name for graph in all_graphs(best.graph.model) for name in _names(graph)}
        found = find_weights(work.builder.model)
        made_small(best.graph, taken, [weight.name for weight in (*found.all(), *found.single)])
    for key, value in file.ir.metadata_props.items():
        best.graph.model.metadata_props.setdefault(key, value)
    recipe: Json = {**options.quantization_json(), **about(work.data), "chosen": best.name}
    inspector = QuantisedInspector(
        work, {place: held.tensor for place, held in placed(best.graph.model).items()}, decided
    )
    saving = SaveOptions(options.external_data, options.force, Provenance("quantize", recipe))
    with written_to(target, options.dry_run) as place:
        saved = save(replace(file, ir=best.graph.model), place, saving, verify=inspector)
        speed = measure_speed(place, plain_path(file), options) if options.timing else None
        quality = None if work.test is None else measured_quality(plain_path(file), place, work.test, options=options)
    assert inspector.after is not None
    return QuantizeResult(
        model=file.ref, output=None if options.dry_run else saved, before=before, after=inspector.after,
        verification=inspector.verification,
        notes=[*file.notes, *work.notes, *cautions(work.data), *_notes(work, best, speed)],
        dry_run=options.dry_run, recipe=recipe, layers=layers, left=[], speed=speed, quality=quality,
        errors={one.name: one.error for one in candidates}, chosen=best.name, fidelity=best.fidelity,
        tool=next((one.fidelity for one in candidates if one.name == TOOL), None),
    )  # fmt: skip


def _names(graph: ir.Graph) -> list[str]:
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return [value.name for value in values if value.name]


@dataclass
class QuantisedInspector:
    """Checks the staged file: it opens, it holds the tensors that were made, and its sizes. `made`: by their place;
    `decided`: floats by weight."""

    work: Quantisation
    made: Mapping[Place, ir.TensorProtocol]
    decided: Mapping[str, Array]
    verification: Verification = UNVERIFIED
    after: Totals | None = None

    def __call__(self, staged: Path) -> None:
        form = self.work.options.form
        if self.work.options.verify:
            self.verification = check_stored(
                staged, self.made, self.decided, form=form, evaluator=self.work.evaluator, held=self.work.batches.held
            )
        file = load(staged)
        self.after = totals(file, concrete_shapes(file, self.work.options.dims))


def _notes(work: Quantisation, best: Candidate, speed: MeasuredSpeed | None) -> list[str]:
    notes = []
    if best.name == TOOL:
        notes.append(
            "what onnxruntime's own tool makes was nearest to the float model on held-out samples, and is written"
        )
    notes += _float_weights(work, best)
    options = work.options
    if (options.weights, options.activation_type) == ("int8", "uint8") and saturates():
        notes.append(
            "sums of products of uint8 and int8 saturate in onnxruntime on this CPU, which has no VNNI: the errors here"
            " are those of such CPUs, others have less; --weights uint8 does not saturate"
        )
    if not work.batches.held:
        notes.append(
            f"of fewer than {FEWEST} samples all fit and judge: more would tell what the rounding really costs"
        )
    if best.error > RUINED:
        notes.append(f"on held-out samples {work.evaluator.words(best.error)}: integers do not suit this model as it"
                     " is; try --keep-float 5%, or another --format")  # fmt: skip
    if work.evaluator.counts:
        notes.append("no output is in floating point: candidates are judged by the elements that change, which tells"
                     " little of few samples")  # fmt: skip
    gain = None if speed is None or speed.pair is None else speed.pair.gain
    if gain is not None and not gain.reason and gain.high < 1.05:
        notes.append(_slow(work))
    return notes


def _float_weights(work: Quantisation, best: Candidate) -> list[str]:
    """Say how much of the weights stays float, and which operators read it."""
    found = find_weights(work.builder.model)
    weights = [*found.prunable, *(weight for weight in found.others if weight.kind == "embedding")]
    left = [weight for weight in weights if weight.name not in best.graph.weights]
    share = sum(weight.size for weight in left) / max(sum(weight.size for weight in weights), 1)
    if not left:
        return []
    ops = Counter(weight.op for weight in left)
    readers = some([f"{count} of {op}" for op, count in ops.most_common()])
    other = "" if work.options.form == "qdq" or ops.keys().isdisjoint(named(lambda operator: operator.kernel)) else (
        f"; --format {work.options.form} is of products of matrices, --format qdq of convolutions, too")  # fmt: skip
    names = some([weight.name for weight in left])
    return [f"{100 * share:.1f} % of the weights stay in floating point ({readers}: {names}){other}"]


def _slow(work: Quantisation) -> str:
    """Say why integers are no faster here, as far as it is known."""
    if work.options.activation_type == "none":
        return "weights alone are integers, which become floats again at every run: the file is smaller, no run faster"
    ops = sorted(
        {node.op_type for node in work.builder.model.ir.graph if node.op_type in ("Sigmoid", "Erf", "HardSwish")}
    )
    hint = f"; {some(ops)} between layers are computed in float" if ops else ""
    return (
        "integers are not faster than floats on this machine and model: the file is smaller all the same; processors"
        f" with VNNI or dot-product instructions gain more{hint}"
    )
