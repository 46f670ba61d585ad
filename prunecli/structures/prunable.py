"""The model of a structural cut, analysed: its working form, its units, and which of them may be cut."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.influence import Influence
from prunecli.calibration.layers import refittable
from prunecli.calibration.samples import calibration_samples, cautions, synthetic_data
from prunecli.data import Dataset
from prunecli.dependency.analysis import Analysis, Whole, analysed_shapes, kept_together
from prunecli.dependency.analysis import analyse as solve
from prunecli.dependency.atoms import Neutral
from prunecli.dependency.blocks import drop_blocks
from prunecli.dependency.catalogue import ALL, Catalogue, Orders, catalogue, parse_granularity, split_of
from prunecli.dependency.costs import axes_of_outputs, costs
from prunecli.dependency.cut import Removed, remove
from prunecli.dependency.neutral import neutral_of
from prunecli.dependency.prepare import plan_names, prepare
from prunecli.dependency.registry import Work
from prunecli.errors import PruneError, advice, did_you_mean, keywords, some
from prunecli.model import Dims, Model, concrete_shapes, count_macs, load
from prunecli.model.constants import name_inputs
from prunecli.model.floating import FloatingForm, floating, floats_of
from prunecli.model.graphs import node_name
from prunecli.model.shape_inference import Shape, gather_facts
from prunecli.model.shapes import Shapes, input_specs, require_ranks
from prunecli.model.sizes import totals
from prunecli.model.tensors import FLOATS
from prunecli.structures.cut_plan import needed
from prunecli.structures.cut_reference import NORMS, Forced, Merged
from prunecli.structures.options import CutOptions
from prunecli.structures.shortcuts import replace_shortcuts
from prunecli.structures.silent import silent
from prunecli.structures.target import Budget
from prunecli.types import Json, Progress, Totals, no_progress
from prunecli.zeros.select import check_numbers

MADE = 256
"""Synthetic inputs that are made where there are no data."""
UNASKED, FEWEST_UNASKED, STEPS_UNASKED = 1 << 24, 16, 8
"""Elements of all synthetic inputs where nobody asked for any (111 images of 3 x 224 x 224), the least number of
inputs, and the steps of their descent."""


@dataclass(frozen=True)
class AnalysedAs:
    """How a model is analysed: all that is needed to find the same units again, from a plan or in a worker.

    inputs: exact shapes to analyse at; none: chosen by the dimensions. whole: axes that stay whole, and why. include:
    patterns; initializers that are graph inputs too are cut only if one matches their name. convolved: results of
    shortcuts that an equal operator computes (`replace_shortcuts`); None: where that is faster. orders: how parts of
    units are combined, where they may be exchanged (`ranking.py`).
    """

    granularity: str
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    whole: Whole = field(default_factory=dict)
    include: tuple[str, ...] = ()
    convolved: tuple[str, ...] | None = ()
    orders: Orders = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return what a recipe records besides `granularity` and `include`; read by `read_analysed_as`."""
        whole = [[name, axis, why] for (name, axis), why in self.whole.items()]
        inputs = {name: list(shape) for name, shape in self.inputs.items()}
        convolved = {"convolved": list(self.convolved)} if self.convolved else {}
        orders = {"orders": {name: [list(order) for order in own] for name, own in self.orders.items()}}
        return {"inputs": inputs, **({"whole": whole} if whole else {}), **convolved, **(orders if self.orders else {})}


@dataclass(kw_only=True)
class Cuttable:
    """A model whose units can be cut. `file`: as given. `work`: its working form in floating point. `how`: what it was
    analysed as, with the shapes and shortcuts that were chosen. `counted`: the shapes of `work` at the sizes at which
    work is reported. `made`: synthetic inputs. `sample_notes`: how other samples were obtained. `stored`: the working
    form as the file stores it, possibly quantised (never changed: copies are cut). `form`: how `work` was derived.
    `known_influence`: once it was asked for."""

    file: Model
    work: ir.Model
    units: Catalogue
    how: AnalysedAs
    counted: Shapes
    stored: ir.Model
    form: FloatingForm
    made: Dataset | None = None
    sample_notes: tuple[str, ...] = ()
    known_influence: Influence | None = None

    def regrouped(self, orders: Orders) -> Cuttable:
        """Return the model with the parts of its units combined anew."""
        return replace(self, units=self.units.regrouped(orders), how=replace(self.how, orders=orders))

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The analysed shapes."""
        return self.how.inputs

    @property
    def notes(self) -> list[str]:
        """Notes for the report: why a quantised model is cut only where it computes in floating point, how the samples
        were obtained, and which operators were exchanged."""
        why, told = self.form.problem, self.sample_notes if self.made is None else cautions(self.made)
        return [
            *([f"its integers stay as they are, and what they compute: {why}"] if why else []),
            *told,
            *self._influence_notes(),
            *([f"{some(self.how.convolved)}: computed by an equal convolution or pooling, which is faster"]
              if self.how.convolved else []),
        ]  # fmt: skip

    def _influence_notes(self) -> list[str]:
        return self.known_influence.notes if self.known_influence is not None else []

    @property
    def is_quantised(self) -> bool:
        return self.form.model is not self.stored

    def samples(self, options: CutOptions, progress: Progress = no_progress) -> Dataset:
        """The data of the options. Synthetic inputs are made once, MADE of them without a limit.

        Raises:
            PruneError: there are none, they do not fit the model, or inputs cannot be made for it.
        """
        source = options.source
        if source is None:
            raise PruneError("this is measured on data", "give --data")
        if not source.synthetic:
            found = source.open(input_specs(self.file.ir))
            self.sample_notes = tuple(cautions(found))
            return found
        if self.made is None:
            self.made = calibration_samples(
                self.file, source, MADE, seed=options.seed, dims=options.dims, execution=options.execution,
                progress=progress,
            )  # fmt: skip
        return self.made

    def influence(self, feeds: Sequence[Mapping[str, Array]], options: CutOptions) -> Influence:
        """Which positions of layers' outputs count, by the first samples it is asked for."""
        if self.known_influence is None:
            layers, _ = refittable(self.work)
            start = options.execution.open
            self.known_influence = Influence.of(self.work, layers, feeds, start=start, seed=options.seed)
        return self.known_influence

    def pictures(self, options: CutOptions, progress: Progress = no_progress) -> Dataset:
        """Return synthetic inputs where no data were given: fewer if they are large, with a shorter descent.

        Raises:
            PruneError: they cannot be made for the model.
        """
        shapes = concrete_shapes(self.file, options.dims).inputs
        size = sum(math.prod(shape[1:]) for shape in shapes.values())
        count = int(np.clip(UNASKED // max(size, 1), FEWEST_UNASKED, MADE))
        self.made = synthetic_data(
            self.file, shapes, count, seed=options.seed, execution=options.execution, progress=progress,
            steps=STEPS_UNASKED,
        )  # fmt: skip
        return self.made

    @property
    def other_inputs(self) -> dict[str, Shape] | None:
        """The second choice of dynamic dimensions, None if all are static."""
        return self.units.analysis.other_inputs

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all values at the analysed dimensions."""
        return {v.name: s for v, s in self.units.analysis.facts.shapes.items() if v.name}

    @cached_property
    def dtypes(self) -> dict[str, int]:
        return {v.name: code for v, code in self.units.analysis.facts.dtypes.items() if v.name}

    @cached_property
    def stored_dtypes(self) -> dict[str, int]:
        """The types of all values in the file."""
        if not self.is_quantised:
            return self.dtypes
        facts = gather_facts(self.stored, self.inputs)
        return {v.name: code for v, code in facts.dtypes.items() if v.name}

    def named(self, removed: Removed) -> Removed:
        """Return the floating-point positions of a cut by the names of the user's file."""
        found = plan_names(self.work, removed, self.units.analysis.geometry)
        return {name: axes for name, axes in found.items() if self.dtypes.get(name) in FLOATS}

    def listed(self, removed: Removed) -> Removed:
        """Return what a plan lists of a cut: weights, and the values at which zeros make a difference."""
        return self._needed(removed, self.named(removed))

    def _needed(self, removed: Removed, named: Removed) -> Removed:
        """`named`: what is removed, in the names of the file."""
        told = self.units.telling(named)
        found = {**needed(self.file.ir.graph, told, self.neutral), **self._branches(named)}
        if not self.is_quantised:
            return found
        still = silent(self.work.graph, removed) - self.neutral.keys()
        return {name: axes for name, axes in found.items() if name not in still}

    @cached_property
    def neutral(self) -> dict[str, dict[int, Neutral]]:
        """By value and axis, what stands for an absent position where zero does not."""
        out: dict[str, dict[int, Neutral]] = {}
        for (value, axis), neutral in neutral_of(self.units.analysis.components.table).items():
            out.setdefault(value.name or "", {})[axis] = neutral
        return out

    def _branches(self, named: Removed) -> Removed:
        """Return what a cut lists of the branches of dropped blocks, which are zero."""
        gone = ((b, named.get(b.value.name or "", {})) for b in self.units.blocks)
        return {b.value.name or "": axes for b, axes in gone if len(axes.get(b.axis, ())) == b.size}

    def without(self, units: Array, positions: Removed) -> ir.Model:
        """Return a copy of the working form, as the file stores it, without the masked units at the given positions."""
        cut, dropped = self.stored.clone(), self.units.dropped(units)
        if not dropped.any():
            remove(cut, self.form.extended(positions), self.inputs, other_inputs=self.other_inputs)
            return cut
        joins = dict(zip(self.stored.graph, cut.graph, strict=True))
        rest = self.units.outside(units)
        if rest.any():
            remove(cut, self.units.removed(rest), self.inputs, other_inputs=self.other_inputs)
        blocks = itertools.compress(self.units.blocks, dropped)
        drop_blocks(cut, [replace(block, join=joins[block.join]) for block in blocks])
        return cut

    @cached_property
    def before(self) -> Totals:
        """Sizes of the file as given."""
        return self.totals_of(self.file)

    def totals_of(self, file: Model) -> Totals:
        """Sizes of the file, or of what became of it, with its work at the reported sizes."""
        found = totals(file, concrete_shapes(file, Dims(shapes=self.counted.inputs)))
        return replace(found, assumed=self.counted.assumed)

    def fraction(self, budget: Budget, whole: float) -> float:
        """Return the fraction that a budget leaves of the working form, whose amount is `whole`; it may store constants
        that the file computes.

        Raises:
            PruneError: the working form has no more than the budget allows, or its whole is not known.
        """
        fraction, given = budget.fraction(self.before), getattr(self.before, budget.kind, None)
        if not given or not whole:
            return fraction
        left = float(fraction * given / whole)
        if left >= 1:
            raise PruneError(f"with its constants computed the model has only {whole:,.0f} {budget.kind} of {given:,}",
                             f"ask for less than {whole / given:.3g}")  # fmt: skip
        return left

    @cached_property
    def prices(self) -> list[tuple[int, int]]:
        """(parameters, multiply-accumulates) that the removal of one unit of each group saves by itself."""
        priced, sizes = costs(self.units), self.units.sizes
        whole, out = priced.of(sizes), []
        for group in self.units.groups:
            kept = sizes.copy()
            kept[list(group.axes)] -= np.array(group.per_unit)
            left = priced.of(kept)
            out.append((whole["params"] - left["params"], whole["macs"] - left["macs"]))
        return out

    def members(self) -> list[list[str]]:
        """Per group: the initializers and nodes with a value on any axis that it cuts, or all of a block."""
        table, first = self.units.analysis.components.table, len(self.units.groups) - len(self.units.blocks)
        values: dict[int, list[ir.Value]] = {}
        for number, axis in enumerate(table.axes):
            if axis.value is not None:
                values.setdefault(table.find(number), []).append(axis.value)
        initializers = self.work.graph.initializers
        out = []
        for group in self.units.groups[:first]:
            mine = [v for axis in group.axes for v in values.get(axis, ())]
            stored = [v.name or "" for v in mine if v.name in initializers]
            nodes = [n for v in mine for n in (v.producer(), *(use.node for use in v.uses())) if n is not None]
            out.append(list(dict.fromkeys([*stored, *(node_name(n) for n in nodes)])))
        for block, dead in zip(self.units.blocks, self.units.dead, strict=True):
            out.append([block.name, *map(node_name, dead.nodes), *(v.name or "" for v in dead.initializers)])
        return out

    def is_stored(self, name: str) -> bool:
        """Return whether the user's file stores a value as an initializer or in a Constant node."""
        graph = self.file.ir.graph
        return name in graph.initializers or name in self._constants

    @cached_property
    def _constants(self) -> set[str]:
        return {n.outputs[0].name or "" for n in self.file.ir.graph if n.op_type == "Constant" and n.domain == ""}

    def forced(self, removed: Removed, units: Array) -> Forced:
        """Return what the reference of the proof sets to zero."""
        groups = {int(g) for g in np.unique(self.units.group_of[units])}
        width = any(self.units.groups[g].approximation for g in groups)
        named = self.named(removed)
        averaged, merged = (self._averaged, self._merged(units)) if width else (frozenset[tuple[str, int]](), {})
        listed = frozenset(self._needed(removed, named))
        zeros = {name: one.zeros() for name, one in self.form.sources.items() if name in named}
        return Forced(named, listed, self.shapes, dtypes=self.stored_dtypes, averaged=averaged, merged=merged,
                      zeros=zeros, zero_points=self.form.zero_points,
                      neutral={name: axes for name, axes in self.neutral.items() if name in named})  # fmt: skip

    @cached_property
    def _averaged(self) -> frozenset[tuple[str, int]]:
        """Return (value, axis) that normalisations average over; factors of an axis count as the whole axis."""
        return frozenset((value.name or "", index) for value, index, _ in averaged_axes(self.units.analysis))

    def _merged(self, units: Array) -> dict[str, dict[int, Merged]]:
        """Return what normalisations lose of axes of dynamic length."""
        analysis, gone = self.units.analysis, self.units.removed_atoms(units)
        solved, out = analysis.components, dict[str, dict[int, Merged]]()
        norms = {name for node in analysis.model.graph if node.op_type in NORMS for name in _names(node)}
        for number, axis in enumerate(solved.table.axes):
            if axis.value is None or axis.value.name not in norms or not gone[solved.atoms(number)].any():
                continue
            split = (
                split_of(analysis, solved.table.find(number))
                if analysis.geometry.is_dynamic(axis.value, axis.index)
                else None
            )
            if split is not None:
                lost = {k: np.flatnonzero(gone[solved.atoms(part)]) for k, part in split[1].items()}
                one = Merged(split[0], {k: positions for k, positions in lost.items() if len(positions)})
                out.setdefault(axis.value.name, {})[axis.index] = one
        return out


def averaged_axes(analysis: Analysis) -> list[tuple[ir.Value, int, int]]:
    """(value, axis, its root in the atom table) that normalisations average over; factors stand for the whole."""
    table = analysis.components.table
    noted = {axis for axis, _ in table.approximations}
    slots = {table.find(axis) for axis in noted if table.axes[axis].value is None}
    noted |= {whole for whole, parts in table.products if slots & {table.find(part) for part in parts}}
    axes = [(table.axes[number], table.find(number)) for number in sorted(noted)]
    return [(axis.value, axis.index, root) for axis, root in axes if axis.value is not None]


def _unlisted(file: ir.Graph, analysis: Analysis) -> dict[tuple[str, int], str]:
    """Return averaged axes for which a plan cannot list what the normalisation leaves out."""
    theirs, ours = (
        Counter(name for node in graph if node.op_type in NORMS for name in _names(node))
        for graph in (file, analysis.model.graph)
    )
    solved, out = analysis.components, dict[tuple[str, int], str]()
    for value, index, root in averaged_axes(analysis):
        name = value.name or ""
        if (solved.frozen[solved.of_axis(root)] >= 0).all():
            continue
        if theirs[name] != ours[name]:
            out[name, index] = "averaged over inside a local function, where a plan can name nothing"
        elif analysis.geometry.is_dynamic(value, index) and split_of(analysis, root) is None:
            out[name, index] = "averaged over with several dynamic dimensions, which a plan cannot tell apart"
    return out


def _unnamed(stored: ir.Model, analysis: Analysis) -> dict[tuple[str, int], str]:
    """Return axes on which absent positions are no zeros, of values that a plan cannot name: inside local functions, or
    rounded to integers before they are read."""
    readers = {out.name: node for node in stored.graph for out in node.outputs}
    table, out = analysis.components.table, dict[tuple[str, int], str]()
    for each in (each for each in table.absences if each.neutral != "zero"):
        value, axis = table.axes[each.axis].value, table.axes[each.axis].index
        assert value is not None
        name, reader = value.name or "", readers.get(each.reader.outputs[0].name)
        if not plan_names(analysis.model, {name: {axis: np.zeros(1, np.int64)}}):
            out[name, axis] = f"{each.reader.op_type} chooses inside a local function, where a plan can name nothing"
        elif reader is None or all(v is None or v.name != name for v in reader.inputs):
            out[name, axis] = f"what {each.reader.op_type} chooses by is rounded to integers"
    return out


def _names(node: ir.Node) -> set[str]:
    return {v.name or "" for v in (*node.inputs, *node.outputs) if v is not None}


def open_cuttable(path: Path, how: AnalysedAs, dims: Dims) -> Cuttable:
    """Load, prepare and analyse a model.

    Args:
        dims: sizes of dynamic dimensions at which work is counted.
    Raises:
        PruneError: the file is not a valid model, or an option names what it does not have.
    """
    kinds = parse_granularity(how.granularity)
    file = load(path)
    check_numbers(floats_of(file))
    name_inputs(file.ir, how.include)
    stored = prepare(file.ir)
    form = floating(stored)
    work = form.model
    if not how.inputs:
        require_ranks(file, dims)
    counted = concrete_shapes(replace(file, ir=work), dims)
    shapes = dict(how.inputs) if how.inputs else analysed_shapes(replace(file, ir=work), dims, counted)
    convolved: Collection[str] | None = how.convolved
    if form.model is stored and (convolved is None or convolved):
        convolved = replace_shortcuts(work, shapes, convolved)
        counted = concrete_shapes(replace(file, ir=work), dims) if convolved else counted
    packed, together = kept_together(form)
    held = {**packed, **how.whole}
    analysis = solve(work, shapes, whole=held, blocks=together)
    unlisted = _unlisted(file.ir.graph, analysis) if "width" in kinds else {}
    if unlisted := {**unlisted, **_unnamed(stored, analysis)}:
        analysis = solve(work, shapes, whole={**unlisted, **held}, blocks=together)
    analysis.work[:] = _counted(replace(file, ir=work), analysis, counted)
    analysis.written[:] = _written(analysis, counted)
    units = catalogue(analysis, kinds).regrouped(how.orders)
    if not units.blocks and kinds == ("block",):
        raise PruneError(
            f"{path} has no residual blocks (y = x + f(x)) that could be dropped", "cut channels and heads instead"
        )
    how = replace(how, inputs=shapes, convolved=tuple(convolved or ()))
    return Cuttable(file=file, work=work, units=units, how=how, counted=counted, stored=stored, form=form)


def less(options: CutOptions, cuttable: Cuttable) -> str:
    """Return advice for a budget that is out of reach."""
    return advice(
        ("raise --max-ratio", options.largest_ratio < 1),
        ("leave fewer layers out", bool(options.include or options.exclude)),
        ("use --granularity all", any(ALL in axis.reason for axis in cuttable.units.frozen)),
        ("ask for less", True),
    )


def _counted(model: Model, analysis: Analysis, at: Shapes) -> Iterator[Work]:
    """Return the analysed work at other sizes of the dynamic dimensions, and the work that no cut changes: of operators
    without a rule, and inside bodies."""
    here, there = (count_macs(model, shapes).nodes for shapes in (Shapes(analysis.inputs, (), analysis.facts), at))
    for work in analysis.work:
        before, after = here.get(work.node), there.get(work.node)
        yield replace(work, macs=round(work.macs * after / before)) if before and after is not None else work
    spoken = {work.node for work in analysis.work}
    yield from (Work(node, macs, ()) for node, macs in there.items() if node not in spoken and macs)


def _written(analysis: Analysis, at: Shapes) -> Iterator[Work]:
    """Return the number of elements that every node writes, at other sizes of the dynamic dimensions."""
    for node, axes in axes_of_outputs(analysis).items():
        shape = at.facts.shapes.get(next(out for out in node.outputs if out.name))
        if shape is not None:
            yield Work(node, math.prod(shape), axes)


@keywords
def analyse(model: str | Path, granularity: str = "channel,head", dims: Dims | None = None) -> Catalogue:
    """What can be cut from a model: groups of units that may go independently of each other.

    `found.groups` are the groups, `found.frozen` the axes of weights that stay and why, `found.removed(mask)`
    the positions that a mask over units takes from every value, `found.kept(mask)` the lengths that are left.

    Raises:
        PruneError: the file is not a valid model, the granularity is unknown, or `dims` name what is not there.
    """
    return open_cuttable(Path(model), AnalysedAs(granularity), dims or Dims()).units


@dataclass(frozen=True)
class LeftOut:
    """Why a group may not be cut, and the option that says so."""

    reason: str
    option: str


def choose_groups(found: Cuttable, include: Sequence[str], exclude: Sequence[str]) -> tuple[Array, dict[str, LeftOut]]:
    """Return a mask over the groups that may be cut, and of each of the others, by name, why it may not.

    A pattern matches names of nodes and initializers; a group is left alone if any of its members is excluded,
    or if `include` is given and none of them is included.

    Raises:
        PruneError: a pattern matches nothing in the model.
    """
    groups = found.units.groups
    allowed = np.ones(len(groups), bool)
    if not include and not exclude:
        return allowed, {}
    members = found.members()
    known = {name for names in members for name in names} | _all_names(found.work)
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            _check_pattern(option, pattern, known)
    reasons: dict[str, LeftOut] = {}
    for number, (group, names) in enumerate(zip(groups, members, strict=True)):
        excluded = _first_match(names, exclude)
        if excluded:
            reasons[group.name] = LeftOut(f"{excluded} is left out by --exclude", "--exclude")
        elif include and not _first_match(names, include):
            reasons[group.name] = LeftOut("not matched by --include", "--include")
        allowed[number] = group.name not in reasons
    return allowed, reasons


def _all_names(model: ir.Model) -> set[str]:
    return {node_name(n) for n in model.graph} | {name or "" for name in model.graph.initializers}


def _first_match(names: Sequence[str], patterns: Sequence[str]) -> str:
    return next((name for pattern in patterns for name in names if fnmatchcase(name, pattern)), "")


def _check_pattern(option: str, pattern: str, known: set[str]) -> None:
    if any(fnmatchcase(name, pattern) for name in known):
        return
    hint = did_you_mean(pattern.strip("*?"), sorted(known), "`prune inspect` lists names; quote patterns as in '*fc*'")
    raise PruneError(f"{option} {pattern!r} matches nothing", hint)
