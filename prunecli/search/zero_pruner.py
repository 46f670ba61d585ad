"""Zeros in weights: one layer per weight, the fraction is its sparsity; saved as by `prune magnitude`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.arrays import Array, content_digest
from prunecli.calibration.gradients import GradientSamples, open_source
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.masks.allocations import LossCurve
from prunecli.masks.criteria import SQUARED, Evidence, of_elements
from prunecli.masks.decide import ByBits, ByUnits, Decision, Recipe, Target, Units, decide
from prunecli.masks.patterns import Tiles, parse_pattern
from prunecli.model import Model, Weight, concrete_shapes, count_macs, find_weights, load
from prunecli.model.constants import holders
from prunecli.model.floating import as_stored, floats_of, requantise
from prunecli.model.sizes import macs_by_weight
from prunecli.predicted.predict import weight_curves
from prunecli.search.options import PrunedFile, TrialOptions
from prunecli.search.pruner import Allocation, Layer, Proxy, digest, normal
from prunecli.types import Json, Progress, Skipped
from prunecli.zeros.magnitude import zeroed
from prunecli.zeros.oneshot import Oneshot, measured_scores
from prunecli.zeros.options import Fitting, MagnitudeOptions
from prunecli.zeros.result import MagnitudeResult
from prunecli.zeros.select import Selection, Selector, WeightChoice, choose
from prunecli.zeros.zero import target_of

AUTO = "auto"


@dataclass(frozen=True)
class WeightRanking:
    """The weights of a model that are pruned, by name, with the work of the operators that read them, and the ranking
    of their elements. evidence: by weight, what the criterion needs, in the stored shape."""

    weights: Mapping[str, int | None]
    criterion: str = "l1"
    pattern: str = "element"
    seed: int = 0
    evidence: Mapping[str, Array] = field(default_factory=dict)

    def at(self, path: Path) -> WeightSpace:
        return WeightSpace(load(path), self)

    def target(self, weight: Weight) -> Target:
        """A weight with its evidence."""
        return target_of(weight, self.evidence[weight.name] if of_elements(self.criterion).evidence else None)

    def recipe(self, scope: str, sparsity: float) -> Recipe:
        return Recipe(self.pattern, scope, self.criterion, sparsity=sparsity, seed=self.seed)

    def decisions(self, targets: Mapping[str, Target], allocation: Allocation) -> dict[str, Decision]:
        """Return a decision for each weight that is cut."""
        return {
            name: decide([targets[name]], self.recipe("layer", min(share, 1.0)))[0]
            for name, share in allocation.items()
            if share > 0 and targets[name].size
        }

    def scores(self, target: Target, array: Array) -> Array:
        """Return, for each element, the score of the unit that it belongs to."""
        form = parse_pattern(self.pattern)
        assert isinstance(form, Tiles)
        units = Units(form, of_elements(self.criterion), self.seed)
        if units.by_bits:
            return np.abs(array.astype(np.float64))
        tiling = units.tiling(target, array)
        return target.restore(tiling.expand(tiling.flat(units.scores(target, array, tiling))))


class WeightSpace:
    """The weights of a loaded model, whose tensors are held in memory; of a quantised model, those of its
    floating-point form. Models that it builds are quantised as the original."""

    def __init__(self, model: Model, ranking: WeightRanking) -> None:
        self.model, self.ranking = model, ranking
        for holder in holders(model.ir):
            if isinstance(holder.tensor, ir.ExternalTensor):
                holder.put(ir.Tensor(np.array(holder.tensor.numpy()), dtype=holder.tensor.dtype, name=holder.name))
        self.stored = [(holder, holder.tensor) for holder in holders(model.ir)]
        self.floats = floats_of(model)
        self.weights = {w.name: w for w in find_weights(self.floats).all() if w.name in ranking.weights}
        self.originals = {name: weight.tensor for name, weight in self.weights.items()}
        self.targets = {name: ranking.target(weight) for name, weight in self.weights.items()}
        self.zeros = {name: w.size - int(np.count_nonzero(w.array())) for name, w in self.weights.items()}

    @property
    def layers(self) -> Sequence[Layer]:
        return [Layer(name, "element", count=w.size, params=w.size, macs=self.ranking.weights[name], touches=(name,))
                for name, w in self.weights.items()]  # fmt: skip

    def build(self, allocation: Allocation) -> onnx.ModelProto:
        try:
            for name, decision in self.ranking.decisions(self.targets, allocation).items():
                original = self.originals[name]
                array = decision.apply(np.asarray(original.numpy()))
                self.weights[name].holder.put(ir.Tensor(array, dtype=original.dtype, name=original.name))
            requantise(self.floats.ir, self.model.ir)
            return ir.to_proto(self.model.ir)
        finally:
            for name, weight in self.weights.items():
                weight.holder.put(self.originals[name])
            for holder, tensor in self.stored:
                holder.put(tensor)

    def cost(self, allocation: Allocation) -> Mapping[str, float]:
        params = macs = bytes_ = 0.0
        for name, weight in self.weights.items():
            work, size, stored = self.ranking.weights[name] or 0, weight.size, as_stored(weight.tensor).nbytes
            left = size - max(round(allocation.get(name, 0.0) * size), self.zeros[name])
            params, macs = params + left, macs + work * left / max(size, 1)
            bytes_ += min(stored, left * stored / max(size, 1) + size / 8)
        return {"params": params, "macs": macs, "file_bytes": bytes_}

    def by_threshold(self, share: float) -> Allocation:
        found = decide(list(self.targets.values()), self.ranking.recipe("global", share))
        return {t.name: _dropped(one) / max(t.size, 1) for t, one in zip(self.targets.values(), found, strict=True)}

    def thresholds(self, allocation: Allocation) -> Mapping[str, float]:
        found = {}
        for name, decision in self.ranking.decisions(self.targets, allocation).items():
            array = np.asarray(self.originals[name].numpy())
            scores, drop = self.ranking.scores(self.targets[name], array), decision.drop(array)
            found[name] = float(scores[drop].max()) if drop.any() else 0.0
        return found


def _dropped(decision: Decision) -> int:
    assert isinstance(decision, ByBits | ByUnits)
    return decision.cut.dropped


class ZeroPruner(WeightSpace):
    """A space of zeros that saves what it builds. `file`, `choice`: the model as given, in floating point, and its
    weights as `prune magnitude` chooses them."""

    goals = ("params", "file_bytes", "macs")

    def __init__(self, path: Path, options: TrialOptions, samples: DataOptions | None, progress: Progress) -> None:
        form = parse_pattern(options.pattern)
        self.options, self.samples, self.file = options, samples, floats_of(load(path))
        self.choice = choose(find_weights(self.file), options.include, options.exclude, also=options.also)
        self.criterion, evidence, self.notes = self._ranked(progress)
        needs = of_elements(self.criterion).evidence
        chosen = [w for w in self.choice.chosen if w.size and (not needs or w.name in evidence)]
        macs = macs_by_weight(chosen, count_macs(self.file, concrete_shapes(self.file, options.dims)))
        work = {w.name: macs.get(w.name) for w in chosen}
        super().__init__(
            load(path), WeightRanking(work, self.criterion, form.text, seed=options.seed, evidence=evidence)
        )

    def _ranked(self, progress: Progress) -> tuple[str, dict[str, Array], tuple[str, ...]]:
        """Return the criterion and its evidence. `auto` is smoothed where the model has gradients, else l1 with a note;
        l1 without data."""
        o = self.options
        automatic = o.criterion in (None, AUTO)
        criterion = str(o.criterion) if not automatic else "l1" if self.samples is None else "smoothed"
        wanted = of_elements(criterion).evidence
        if wanted is None:
            return criterion, {}, ()
        assert self.samples is not None
        if not wanted.differentiates:
            how = o.part(Fitting, data=self.samples, threads=1)
            found, left = measured_scores(
                self.file, self.choice.chosen, criterion, pattern=o.pattern, options=how, progress=progress
            )
            return criterion, found, tuple(f"{skip.name} is left alone: {skip.reason}" for skip in left)
        try:
            return criterion, self._gradients(wanted, progress), ()
        except PruneError as error:
            if not automatic:
                raise
            return "l1", {}, (f"weights are ranked by l1, because gradients failed: {error.message}",)

    def _gradients(self, wanted: Evidence, progress: Progress) -> dict[str, Array]:
        """Return gradients by weight, for the weights that have one."""
        o, chosen = self.options, self.choice.chosen
        names = {w.name: w.holder.name for w in chosen if w.holder.graph is self.file.ir.graph}
        one_thread = replace(o.execution, threads=1)  # sums in one order, whatever the machine's cores
        given = GradientSamples(self.samples, seed=o.seed, dims=o.dims, execution=one_thread)
        source = open_source(self.file, wanted, list(names.values()), options=given)
        reached = [w for w in chosen if names.get(w.name) and names[w.name] not in source.gradients.unreached]
        alive = {w.name: np.ones(w.shape, np.bool_) for w in reached}
        return source.measure(reached, alive, "measuring gradients", progress=progress)

    @property
    def at(self) -> Callable[[Path], WeightSpace]:
        return self.ranking.at

    @property
    def skipped(self) -> list[Skipped]:
        return self.choice.skipped

    @property
    def identity(self) -> str:
        ranking = self.ranking
        made = content_digest(ranking.evidence)
        return digest("element", [self.criterion, ranking.pattern, ranking.seed], list(ranking.weights), made)

    def proxy(self, progress: Progress) -> Proxy:
        found = self._gradients(SQUARED, progress)

        def predicted(layer: str, fraction: float) -> float:
            array = np.asarray(self.originals[layer].numpy())
            drop = self.ranking.decisions(self.targets, {layer: fraction})[layer].drop(array)
            return float((np.square(array, dtype=np.float64) * found.get(layer, 0.0))[drop].sum() / 2)

        return predicted

    def predicted(self) -> Mapping[str, LossCurve]:
        return weight_curves(self.file, list(self.ranking.weights))

    def save(self, allocation: Allocation, saving: PrunedFile, said: Json, progress: Progress) -> MagnitudeResult:
        return self._save(self.file.path, self.ranking, allocation, saving=saving, said=said, progress=progress)

    def cut_further(
        self, trained: Path, gone: Allocation, allocation: Allocation, saving: PrunedFile, progress: Progress
    ) -> MagnitudeResult:
        by_value = replace(self.ranking, criterion="l1", evidence={})  # zeros are the least there, and stay
        return self._save(trained, by_value, allocation, saving=saving, said={}, progress=progress)

    def _save(
        self, path: Path, ranking: WeightRanking, allocation: Allocation, *, saving: PrunedFile, said: Json,
        progress: Progress,
    ) -> MagnitudeResult:  # fmt: skip
        o, total = self.options, sum(layer.count for layer in self.layers)
        share = sum(allocation.get(layer.name, 0.0) * layer.count for layer in self.layers) / max(total, 1)
        wanted = saving.part(
            MagnitudeOptions,
            pattern=ranking.pattern, scope="layer", criterion=ranking.criterion, sparsity=round(share, 6),
            seed=ranking.seed, include=o.include, exclude=o.exclude, also=o.also, dim=o.dim,
            input_shape=o.input_shape, provider=o.provider, threads=1 if o.recovers else o.execution.threads,
        )  # fmt: skip
        decided = partial(_decided, ranking, allocation, said)
        return zeroed(
            path, wanted, Selector("adaptive", self._fitted(decided) if o.recovers else decided), progress=progress
        )

    def _fitted(self, decided: Callable[..., Selection]) -> Callable[..., Selection]:
        """Refit the remaining weights to the original's outputs, as `prune oneshot` does for a plan."""
        o = self.options
        fits = Oneshot(o.part(Fitting, data=self.samples, recover=o.recovery, threads=1))

        def select(file: Model, choice: WeightChoice, recipe: Recipe, progress: Progress) -> Selection:
            return fits.refit(file, decided(file, choice, recipe, progress), progress)

        return select


def _decided(
    ranking: WeightRanking, allocation: Allocation, said: Json, file: Model, choice: WeightChoice, recipe: Recipe,
    progress: Progress,
) -> Selection:  # fmt: skip
    """Return the selection for a sparsity per weight."""
    known = [w for w in choice.chosen if w.name in ranking.weights]
    found = ranking.decisions({w.name: ranking.target(w) for w in known}, allocation)
    whole = Recipe("element", "layer", "l1", sparsity=0.0)
    decisions = [found[w.name] if w.name in found else decide([target_of(w)], whole)[0] for w in known]
    gone = [w for w in choice.chosen if w.name not in ranking.weights]
    reasons = [Skipped(w.name, "no output that is looked at depends on it") for w in gone]
    chosen = WeightChoice(known, [*choice.left, *gone], [*choice.skipped, *reasons])
    return Selection(chosen, decisions, {"scope": "adaptive", "sparsities": normal(allocation), **said})
