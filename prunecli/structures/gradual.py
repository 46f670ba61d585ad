"""Structural pruning with training between cuts: every cut is decided on the original's units, with trained weights.

After a step the trained weights of the small model are put back into a copy of the original, with zeros where it
was cut. So all steps count, cost and name the same units, limits hold against the original, and nothing is revived.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.analysis import Whole
from prunecli.dependency.cut import following
from prunecli.errors import PruneError
from prunecli.files import Scratch
from prunecli.model import concrete_shapes, load, totals
from prunecli.model.constants import holders
from prunecli.model.graphs import refill
from prunecli.model.saving import SaveOptions, save
from prunecli.structures.carry_out import StructuredResult, carry_out, decided_and_cut, measured
from prunecli.structures.decide import decide
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import Cuttable
from prunecli.training.gradual import left_out, proof_of, prune_and_train, retrained
from prunecli.types import Progress

CRITERION_BEFORE_TRAINING = "l2-in"
"""The default criterion where training follows, as measured (docs/benchmarks.md)."""


def structured_and_trained(
    path: Path, target: Path, options: StructuredOptions, progress: Progress, start: float
) -> StructuredResult:
    """`structured` with `options.retrain`. Its steps decide what goes; the proof is of each cut before training.

    Raises:
        PruneError: several steps with a budget of time or with blocks, which are measured in one go; a cut or
            training that cannot be done.
    """
    once = replace(options, steps=None, criterion=_criterion(options))
    if options.dry_run:
        found = decided_and_cut(path, target, once, progress=progress, start=start)
        return replace(found, notes=[*found.notes, left_out(options)])
    with Scratch() as folder:
        cutter = _Cutter(path, replace(once, force=True, timing=False), folder, progress=progress)
        rounds = prune_and_train(path, target, options, cut=cutter, progress=progress)
    first, last, training = rounds[0].cut, rounds[-1].cut, retrained(path, options, rounds)
    late = training.layers()
    layers = [replace(row, nonzero=late[row.weight].nonzero, sparsity=late[row.weight].sparsity)
              if row.weight in late else row for row in last.layers]  # fmt: skip
    groups = [replace(row, lowest=intact.lowest, highest=intact.highest)
              for row, intact in zip(last.groups, first.groups, strict=True)]  # fmt: skip
    budget = options.budget
    asked = {str(budget.kind): budget.target} if budget is not None and budget.kind != "latency" else {}
    return replace(
        last,
        model=first.model,
        output=training.output,
        recipe=last.recipe | {"steps": options.step_count} | asked,
        before=first.before,
        after=training.totals(),
        groups=groups,
        layers=layers,
        verification=proof_of(rounds),
        training=training,
        speed=measured(target, path, options, progress=progress) if options.timing and training.output else None,
        seconds=time.perf_counter() - start,
    )


def _criterion(options: StructuredOptions) -> str:
    """Return `l2-in` for `auto` where training with labels follows: activations predict the immediate damage, but what
    remains after a cut by the norm of the weights learns better."""
    chosen = options.plan is None and options.criterion == "auto"
    automatic = chosen and not options.drops_blocks and not options.distills
    return CRITERION_BEFORE_TRAINING if automatic else options.criterion


@dataclass
class _Cutter:
    """Cuts further each time it is called. `removed`: units that are gone so far; `cuttable`: the original."""

    path: Path
    options: StructuredOptions
    folder: Path
    progress: Progress
    cuttable: Cuttable | None = None
    removed: Array | None = None
    calls: int = 0

    def __call__(self, source: Path, place: Path, share: float) -> StructuredResult:
        start, self.calls = time.perf_counter(), self.calls + 1
        base = self.path if self.cuttable is None else self._expanded(source)
        options = replace(_at_share(self.options, share, self.path), output=place)

        def attempt(whole: Whole) -> StructuredResult:
            known = {} if self.cuttable is None else self.cuttable.how.whole
            orders = None if self.cuttable is None else self.cuttable.how.orders
            cuttable, decided = decide(
                base, place, options, progress=self.progress, gone=self.removed, whole={**known, **whole}, orders=orders
            )
            if self.cuttable is not None:
                _same(self.cuttable, cuttable)
            found = carry_out(cuttable, decided, place, options=options, progress=self.progress, start=start)
            self.cuttable = cuttable if self.cuttable is None else self.cuttable
            self.removed = decided.removed
            return found

        return following(attempt)

    def _expanded(self, trained: Path) -> Path:
        assert self.cuttable is not None and self.removed is not None
        place = self.folder / f"{self.calls}.onnx"
        work = expand(self.cuttable, self.removed, trained)
        save(replace(self.cuttable.file, ir=work), place, SaveOptions(force=True))
        return place


def _at_share(options: StructuredOptions, share: float, path: Path) -> StructuredOptions:
    """Return the budget at a share of the whole cut: of the fraction that `ratio` removes, or of the amount that other
    budgets do not keep."""
    budget = options.budget
    if budget is None or budget.kind == "latency":
        return options
    if budget.kind == "ratio":
        return options.with_budget(replace(budget, target=budget.target * share))
    file = load(path)
    before = totals(file, concrete_shapes(file, options.dims))
    fraction, whole = 1 - (1 - budget.fraction(before)) * share, getattr(before, budget.kind)
    if not whole:
        return options.with_budget(replace(budget, target=fraction))
    return options.with_budget(replace(budget, target=fraction * whole, absolute=True))


def expand(cuttable: Cuttable, removed: Array, trained: Path) -> ir.Model:
    """Return the working form with the weights of a trained cut of it, and zeros where it was cut.

    Raises:
        PruneError: the trained model's weights are not those of the cut.
    """
    work, positions = cuttable.work.clone(), cuttable.units.removed(removed)
    values = {holder.name: holder.tensor.numpy() for holder in holders(load(trained).ir)}
    for name, value in work.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name not in values or not np.issubdtype(values[name].dtype, np.floating):
            continue
        array = scattered(values[name], tensor.numpy().shape, positions.get(name, {}))
        refill(value, array)
    return work


def scattered(kept: Array, shape: tuple[int, ...], removed: Mapping[int, Array]) -> Array:
    """Return an array of `shape` with `kept` at the positions that are not removed, and zeros at the others."""
    places = [np.setdiff1d(np.arange(size), removed.get(axis, ())) for axis, size in enumerate(shape)]
    if kept.shape != tuple(map(len, places)):
        raise PruneError(f"a trained weight has the shape {kept.shape} and not that of its cut", "please report this")
    out = np.zeros(shape, kept.dtype)
    out[np.ix_(*places)] = kept
    return out


def _same(one: Cuttable, other: Cuttable) -> None:
    """Require that the units of the expanded model are those of the original."""
    if [(g.name, g.count) for g in one.units.groups] != [(g.name, g.count) for g in other.units.groups]:
        raise PruneError("the trained model has other units than the original", "leave --steps out; please report this")
