"""Zeroing weights as a space to search: one knob per weight, its sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.masks.criteria import of_elements
from prunecli.masks.decide import ByBits, ByUnits, Decision, Recipe, Target, Units, decide
from prunecli.masks.patterns import Tiles, parse_pattern
from prunecli.model import Model, Weight, find_weights, load
from prunecli.model.stored_tensors import holders
from prunecli.search.space import Knob, Setting
from prunecli.zeros.zero import target_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ElementRecipe:
    """Which weights of the model, by name, with the work of the operators that read them; and how they are ranked.

    evidence: by weight, what the criterion needs, of the stored shape.
    """

    weights: Mapping[str, int | None]
    criterion: str = "l1"
    pattern: str = "element"
    seed: int = 0
    evidence: Mapping[str, Array] = field(default_factory=dict)

    def open(self, path: Path) -> ElementSpace:
        return ElementSpace(load(path), self)


class ElementSpace:
    """The weights of a loaded model, whose tensors are held in memory."""

    def __init__(self, model: Model, recipe: ElementRecipe) -> None:
        self.model, self.recipe = model, recipe
        for holder in holders(model.ir):
            if isinstance(holder.tensor, ir.ExternalTensor):
                holder.put(ir.Tensor(np.array(holder.tensor.numpy()), dtype=holder.tensor.dtype, name=holder.name))
        self.weights = {w.name: w for w in find_weights(model).all() if w.name in recipe.weights}
        self.originals = {name: weight.tensor for name, weight in self.weights.items()}
        self.targets = {name: target(weight, recipe) for name, weight in self.weights.items()}
        self.zeros = {name: w.size - int(np.count_nonzero(w.array())) for name, w in self.weights.items()}

    @property
    def knobs(self) -> Sequence[Knob]:
        return [Knob(name, "element", w.size, w.size, self.recipe.weights[name], (name,))
                for name, w in self.weights.items()]  # fmt: skip

    def build(self, setting: Setting) -> onnx.ModelProto:
        try:
            for name, decision in decisions(self.targets, setting, self.recipe).items():
                original = self.originals[name]
                array = decision.apply(np.asarray(original.numpy()))
                self.weights[name].holder.put(ir.Tensor(array, dtype=original.dtype, name=original.name))
            return ir.to_proto(self.model.ir)
        finally:
            for name, weight in self.weights.items():
                weight.holder.put(self.originals[name])

    def cost(self, setting: Setting) -> Mapping[str, float]:
        params = macs = bytes_ = 0.0
        for name, weight in self.weights.items():
            work, size = self.recipe.weights[name] or 0, weight.size
            left = size - max(round(setting.get(name, 0.0) * size), self.zeros[name])
            params, macs = params + left, macs + work * left / max(size, 1)
            bytes_ += min(weight.nbytes, left * weight.nbytes / max(size, 1) + size / 8)
        return {"params": params, "macs": macs, "file_bytes": bytes_}

    def by_threshold(self, share: float) -> Setting:
        recipe = Recipe(self.recipe.pattern, "global", self.recipe.criterion, share, None, self.recipe.seed)
        found = zip(self.targets.values(), decide(list(self.targets.values()), recipe), strict=True)
        return {t.name: _dropped(decision) / max(t.size, 1) for t, decision in found}

    def thresholds(self, setting: Setting) -> Mapping[str, float]:
        found = {}
        for name, decision in decisions(self.targets, setting, self.recipe).items():
            array = np.asarray(self.originals[name].numpy())
            scores, drop = element_scores(self.targets[name], array, self.recipe), decision.drop(array)
            found[name] = float(scores[drop].max()) if drop.any() else 0.0
        return found


def target(weight: Weight, recipe: ElementRecipe) -> Target:
    """A weight with its evidence."""
    return target_of(weight, recipe.evidence[weight.name] if of_elements(recipe.criterion).evidence else None)


def decisions(targets: Mapping[str, Target], setting: Setting, recipe: ElementRecipe) -> dict[str, Decision]:
    """What becomes of each weight that is cut."""
    found: dict[str, Decision] = {}
    for name, share in setting.items():
        if share > 0 and targets[name].size:
            wanted = Recipe(recipe.pattern, "layer", recipe.criterion, min(share, 1.0), None, recipe.seed)
            found[name] = decide([targets[name]], wanted)[0]
    return found


def element_scores(found: Target, array: Array, recipe: ElementRecipe) -> Array:
    """The score of the unit that each element belongs to."""
    form = parse_pattern(recipe.pattern)
    assert isinstance(form, Tiles)
    units = Units(form, of_elements(recipe.criterion), recipe.seed)
    if units.by_bits:
        return np.abs(array.astype(np.float64))
    tiling = units.tiling(found, array)
    return found.restore(tiling.expand(tiling.flat(units.scores(found, array, tiling))))


def _dropped(decision: Decision) -> int:
    assert isinstance(decision, ByBits | ByUnits)
    return decision.cut.dropped
