"""Whole residual blocks as units of a structural cut. With `--granularity block` alone they are chosen greedily, by the
measured change of the outputs, measured anew as blocks go; beside channels and heads (`choose.py`) by what they add to
the same damage as those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, Mask
from prunecli.calibration.gradients import looked_at, relative_error
from prunecli.data.columns import is_float
from prunecli.dependency.blocks import Dead, ResidualBlock, dead_without
from prunecli.errors import PruneError, advice
from prunecli.model.shape_inference import Facts
from prunecli.model.sizes import parameters
from prunecli.runtime import Session
from prunecli.structures.choose import OutOfReachError, UnitRecipe
from prunecli.structures.decision import Decided
from prunecli.structures.options import CutOptions, StructuredOptions
from prunecli.structures.prunable import Cuttable, LeftOut
from prunecli.structures.target import Budget
from prunecli.types import Json, Progress, no_progress

SAMPLES = 256
"""Most samples of the data: enough to rank blocks, few enough for one run per block and step."""
RANDOM_BATCHES = 2
_FOREIGN = ("criterion", "normalize", "scope", "round_to", "target", "steps")


def choose_blocks(
    cuttable: Cuttable, options: StructuredOptions, allowed: Array, left: Mapping[str, LeftOut], recipe: Json,
    progress: Progress,
) -> Decided:  # fmt: skip
    """Measure the blocks and choose.

    Raises:
        PruneError: an option that means nothing for blocks, a model that does not run, or a budget out of reach.
    """
    budget = options.budget
    assert budget is not None
    check_block_options(options)
    damage, notes = block_damage(cuttable, options)
    macs = {work.node: work.macs for work in cuttable.units.analysis.work}
    costs = BlockCosts(cuttable.work, cuttable.units.blocks, {"macs": macs})
    target = cuttable.fraction(budget, 0 if budget.kind == "ratio" else costs.whole(budget.kind))
    wanted = UnitRecipe(Budget(budget.kind, target), options)
    found = decide_blocks(costs, damage, wanted, allowed=allowed, progress=progress)
    if not found.removed.any():
        raise PruneError("at this budget no block is dropped",
                         advice(("ask for more", True), ("raise --max-ratio", options.largest_ratio < 1)))  # fmt: skip
    notes.append(f"without the dropped blocks the outputs diverge by {found.damage:.3g} in all")
    return Decided(found.removed, found.scores, {**recipe, "criterion": "divergence"}, left=left, notes=notes)


def check_block_options(options: CutOptions) -> None:
    """Refuse options that have no meaning for blocks."""
    for name in _FOREIGN:
        if getattr(options, name, None) != getattr(type(options), name, None):
            raise PruneError(
                f"--{name.replace('_', '-')} means nothing for blocks",
                "leave it out: blocks are chosen by how far the outputs change without them",
            )


def block_damage(cuttable: Cuttable, options: CutOptions) -> tuple[Damage, list[str]]:
    """Return the measure of damage of blocks, and notes about it."""
    start = options.execution.open
    session = start(gated(cuttable.work, cuttable.units.blocks, cuttable.units.analysis.facts))
    if options.source is None:
        seeds = range(options.seed, options.seed + RANDOM_BATCHES)
        plain = start(cuttable.file.path)
        feeds = [plain.random_inputs(seed=seed, shapes=cuttable.inputs) for seed in seeds]
        said = "the blocks were measured on random inputs, which tell less than real ones: give --data"
        return Damage(session, feeds, len(cuttable.units.blocks)), [said]
    data = cuttable.samples(options)
    samples = data.shuffled(options.seed).take(SAMPLES) if len(data) > SAMPLES else data
    feeds = [batch.feed for batch in samples.batches(options.batch_size)]
    return Damage(session, feeds, len(cuttable.units.blocks)), [f"the blocks were measured on {len(samples)} samples"]


# -- which blocks go --------------------------------------------------------------------------------

REMEASURED = 8
"""Number of blocks, those with the least damage so far, that are measured again after each removal."""


@dataclass(frozen=True)
class BlockCosts:
    """Exact amounts of a model without some of its blocks. `work`: by budget, the cost of each node; parameters are
    counted from the initializers that nothing reads any more."""

    model: ir.Model
    blocks: Sequence[ResidualBlock]
    work: Mapping[str, Mapping[ir.Node, float]] = field(default_factory=dict)
    _known: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def dead(self, removed: Mask) -> Dead:
        return dead_without([b for b, gone in zip(self.blocks, removed, strict=True) if gone])

    def whole(self, kind: str) -> float:
        if kind == "params":
            return float(sum(holder.tensor.size for holder in parameters(self.model)))
        return sum(self.work[kind].values())

    def saved(self, kind: str, removed: Mask) -> float:
        """Return what the masked blocks cost; with `ratio`, the number of blocks (those inside others included)."""
        key = kind, removed.tobytes()
        if key not in self._known:
            dead = self.dead(removed)
            if kind == "params":
                self._known[key] = dead.params
            elif kind == "ratio":
                self._known[key] = float(self.closed(removed, dead).sum())
            else:
                self._known[key] = sum(self.work[kind].get(node, 0) for node in dead.nodes)
        return self._known[key]

    def closed(self, removed: Mask, dead: Dead | None = None) -> Mask:
        """Return the mask with the blocks added that lie inside removed ones."""
        nodes = (dead or self.dead(removed)).nodes
        inside: Mask = np.array([block.join in nodes for block in self.blocks], bool)
        return removed | inside


@dataclass(frozen=True)
class BlockDecision:
    """`scores`: the damage of removing each block alone, NaN for those that must stay. `damage`: of all removed blocks
    together."""

    removed: Mask
    scores: Array
    damage: float


def decide_blocks(
    costs: BlockCosts, damage: Measure, recipe: UnitRecipe, allowed: Mask, progress: Progress = no_progress
) -> BlockDecision:
    """Choose blocks to drop: of the recipe its budget and the largest fraction of the blocks.

    With `ratio` the least damaging goes next; with a budget that which does least damage per amount saved, and what
    the budget turns out not to need comes back, the most damaging first.

    Args:
        damage: of a set of blocks (`Damage`).
        allowed: mask of blocks that may go.
    Raises:
        PruneError: the target is no fraction, or cannot be reached (with the closest that can).
    """
    budget = recipe.budget
    if not 0 < budget.target < 1 or not 0 < recipe.options.largest_ratio <= 1:
        raise PruneError(f"a {budget.kind} of {budget.target:g} leaves nothing to choose", "give a fraction in (0, 1)")
    search = _Greedy(costs, damage, recipe, allowed=allowed)
    search.measure_alone(progress)
    for _ in progress(search.steps(), "choosing blocks", search.limit):
        pass
    search.give_back()
    removed = costs.closed(search.mask)
    return BlockDecision(removed, search.alone, damage(removed) if removed.any() else 0.0)


class _Greedy:
    def __init__(self, costs: BlockCosts, damage: Measure, recipe: UnitRecipe, allowed: Mask) -> None:
        self.costs, self.damage, self.allowed = costs, damage, allowed
        self.budget, self.most = recipe.budget, recipe.options.largest_ratio
        count = len(costs.blocks)
        self.mask = np.zeros(count, bool)
        self.alone = np.full(count, np.nan)
        self.latest = np.full(count, np.inf)
        self.order: list[int] = []
        self.now = 0.0
        self.limit = int(np.floor(self.most * count + 1e-9))
        kind, target = self.budget.kind, self.budget.target
        self.whole = float(count) if kind == "ratio" else costs.whole(kind)
        share = target if kind == "ratio" else 1 - target
        self.wanted = float(np.floor(share * count + 0.5)) if kind == "ratio" else share * self.whole

    def measure_alone(self, progress: Progress) -> None:
        places = np.flatnonzero(self.allowed)
        for number in progress(places, "measuring blocks", len(places)):
            self.alone[number] = self.damage(self._with(int(number)))
        self.latest = np.where(np.isnan(self.alone), np.inf, self.alone)

    def steps(self) -> Iterator[int]:
        """One block after the other, until enough is saved."""
        while not self.enough(self.mask):
            chosen = self._next()
            if chosen is None:
                self._refuse()
                return
            self.mask[chosen] = True
            self.now = self.latest[chosen]
            self.order.append(chosen)
            yield chosen

    def enough(self, removed: Mask) -> bool:
        return self.costs.saved(self.budget.kind, removed) >= self.wanted - 1e-9 * self.whole

    def _next(self) -> int | None:
        """Return the best of the few blocks with the least damage so far, measured with the removed blocks gone."""
        gone = self.costs.closed(self.mask)
        free = [int(n) for n in np.flatnonzero(self.allowed & ~gone) if self._fits(int(n))]
        for number in sorted(free, key=self._price)[:REMEASURED]:
            self.latest[number] = self.damage(self._with(number)) if self.mask.any() else self.alone[number]
        few = sorted(free, key=self._price)
        return few[0] if few else None

    def _fits(self, number: int) -> bool:
        """Return whether the limit and, for a number of blocks, the target allow it and the blocks inside it."""
        count = self.costs.saved("ratio", self._with(number))
        return count <= (min(self.limit, self.wanted) if self.budget.kind == "ratio" else self.limit)

    def _price(self, number: int) -> float:
        """Return the damage added per amount saved."""
        added = self.latest[number] - self.now if np.isfinite(self.latest[number]) else np.inf
        more = self.costs.saved(self.budget.kind, self._with(number))
        saved = max(more - self.costs.saved(self.budget.kind, self.mask), 1e-12 * self.whole) / self.whole
        return float(added if added <= 0 else added / saved)

    def _with(self, number: int) -> Mask:
        out = self.mask.copy()
        out[number] = True
        return out

    def _refuse(self) -> None:
        if self.budget.kind == "ratio":
            return
        left = 1 - self.costs.saved(self.budget.kind, self.mask) / max(self.whole, 1e-12)
        raise OutOfReachError(
            f"--{self.budget.kind} {self.budget.target:.3g} cannot be reached with blocks: {left:.3g} must remain",
            advice(
                ("raise --max-ratio", self.most < 1),
                ("leave fewer blocks out", not self.allowed.all()),
                ("cut channels as well", True),
            ),
            left,
        )

    def give_back(self) -> None:
        """Remove from the choice the blocks that the budget does not need, the last chosen first."""
        for number in [] if self.budget.kind == "ratio" else self.order[-2::-1]:
            fewer = self.mask.copy()
            fewer[number] = False
            if self.enough(fewer):
                self.mask = fewer
                self.order.remove(number)


Distance = Callable[[Array, Array], float]
Outputs = Mapping[str, Any]
Feeds = Sequence[Mapping[str, Any]]
_GATE = "prunecli.gate."
_WHERE_SINCE = 9
_WITH_WHERE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SUMS_TO_ONE = 1e-3


def gated(
    model: ir.Model, blocks: Sequence[ResidualBlock], facts: Facts, instead: Sequence[Array] | None = None
) -> ir.Model:
    """Return the model with one boolean scalar input per block. A gate keeps the branch's value or replaces it by
    `instead`: zero by default, and where there is no Where."""
    kinds = [ir.DataType(facts.dtypes[block.value]) for block in blocks]
    names = [block.value.name for block in blocks]
    copy = model.clone()
    made = {out.name: out for node in copy.graph for out in node.outputs}
    others = [np.zeros(())] * len(blocks) if instead is None else instead
    for number, (name, kind, other) in enumerate(zip(names, kinds, others, strict=True)):
        gate = ir.Value(name=f"{_GATE}{number}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        copy.graph.inputs.append(gate)
        _insert(copy, made[name], gate, other=ir.tensor(np.asarray(other, kind.numpy()), name=f"{gate.name}.other"))
    return copy


def _insert(model: ir.Model, value: ir.Value, gate: ir.Value, other: ir.TensorProtocol) -> None:
    """Insert value -> Where(gate, value, other), or value * gate where Where does not exist or has no kernel."""
    uses, stem, kind = list(value.uses()), gate.name, other.dtype
    if kind in _WITH_WHERE and model.opset_imports.get("", 0) >= _WHERE_SINCE:
        constant = ir.Value(name=other.name, const_value=other)
        model.graph.register_initializer(constant)
        steps = [ir.Node("", "Where", [gate, value, constant], num_outputs=1)]
    else:
        cast = ir.Node("", "Cast", [gate], [ir.AttrInt64("to", kind)], num_outputs=1)
        steps = [cast, ir.Node("", "Mul", [value, cast.outputs[0]], num_outputs=1)]
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, steps)
    for number, step in enumerate(steps):
        step.name = step.outputs[0].name = f"{stem}.step.{number}"
    for node, index in uses:
        node.replace_input_with(index, steps[-1].outputs[0])


def refitted_damage(cuttable: Cuttable, fit: Feeds, held: Feeds, start: Callable[..., Session]) -> Damage:
    """Return the relative error of the outputs without blocks, on held-out samples, comparable with that of other units
    (`damage.py`): a dropped branch yields its means, which a refit of the layers behind the sum would restore."""
    work, blocks, facts = cuttable.work, cuttable.units.blocks, cuttable.units.analysis.facts
    gates = gated(work, blocks, facts, instead=_means(work, blocks, fit, start=start))
    names, made = looked_at(gates.graph.outputs), {v.name: v for node in gates.graph for v in node.outputs}
    gates.graph.outputs[:] = [made[name] for name in names]
    return Damage(start(gates), held, len(blocks), distance=relative_error)


def _means(
    model: ir.Model, blocks: Sequence[ResidualBlock], feeds: Feeds, start: Callable[..., Session]
) -> list[Array]:
    """Return the mean of what every branch yields, per position of the block's axis, in a shape that broadcasts."""
    copy = model.clone()
    made = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [made[block.value.name] for block in blocks]
    session, sums = start(copy), [np.zeros(())] * len(blocks)
    for feed in feeds:
        found = session.run(feed)
        for number, block in enumerate(blocks):
            value = np.asarray(found[block.value.name or ""], np.float64)
            others = tuple(axis for axis in range(value.ndim) if axis != block.axis)
            sums[number] = sums[number] + value.mean(axis=others, keepdims=True) / len(feeds)
    return sums


class Damage:
    """How far the outputs are from the whole model's without the masked blocks: the mean of a `distance` over
    batches and outputs; infinite where they are not finite.

    Args:
        session: of `gated`.
        feeds: a few batches; the whole model's outputs on them are held.
    Raises:
        PruneError: the model does not run on them, or yields nothing that can be compared.
    """

    def __init__(
        self, session: Session, feeds: Sequence[Mapping[str, Any]], count: int, distance: Distance | None = None
    ) -> None:
        self._session, self._feeds, self._count = session, feeds, count
        self._distance = distance or divergence
        self._known: dict[bytes, float] = {}
        nothing = np.zeros(count, bool)
        self._whole = [self._run(feed, nothing) for feed in feeds]
        self._names = [n for n, v in self._whole[0].items() if isinstance(v, np.ndarray) and v.dtype.kind != "O"]
        if not self._names:
            raise PruneError("the model has no output that can be compared", "blocks are chosen by what they change")

    def __call__(self, removed: Mask) -> float:
        name = removed.tobytes()
        if name not in self._known:
            self._known[name] = self._measure(removed)
        return self._known[name]

    def _measure(self, removed: Mask) -> float:
        total = 0.0
        for feed, whole in zip(self._feeds, self._whole, strict=True):
            got = self._run(feed, removed)
            total += sum(self._distance(whole[name], got[name]) for name in self._names) / len(self._names)
        return total / len(self._feeds)

    def _run(self, feed: Mapping[str, Any], removed: Mask) -> Outputs:
        gates = {f"{_GATE}{number}": np.array(not removed[number]) for number in range(self._count)}
        return self._session.run({**feed, **gates})


def divergence(reference: Array, other: Array) -> float:
    """The Kullback-Leibler divergence sum p log(p / q), averaged over samples, for class scores: rows that sum to
    one, or logits (rank 2, softmax taken here). Elsewhere sum (a - b)^2 / sum a^2; what is not floating-point: the
    fraction of elements that differ."""
    if not is_float(reference.dtype):
        return float((reference != other).mean()) if reference.shape == other.shape and reference.size else 0.0
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not reference.size:
        return 0.0
    if not np.isfinite(a).all():  # masked positions of the whole model: compare the others
        a, b = a[finite := np.isfinite(a)], b[finite]
    if not np.isfinite(b).all():
        return float("inf")
    scores = log_scores(a, b)
    if scores is not None:
        p, q = scores
        return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    return float(np.square(a - b).sum() / max(np.square(a).sum(), np.finfo(np.float64).tiny))


def log_scores(a: Array, b: Array) -> tuple[Array, Array] | None:
    """Log-probabilities of class scores; None where the output is something else."""
    if a.ndim < 2 or a.shape[-1] < 2:
        return None
    if (a >= 0).all() and np.abs(a.sum(axis=-1) - 1).max() < _SUMS_TO_ONE:
        floor = np.finfo(np.float32).tiny
        return np.log(np.maximum(a, floor)), np.log(np.maximum(b, floor))
    return (_log_softmax(a), _log_softmax(b)) if a.ndim == 2 else None


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


Measure = Callable[[Mask], float]
