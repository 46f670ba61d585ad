"""Decide what a structural cut removes: choose units under a budget, or take them from a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from prunecli.arrays import Mask
from prunecli.calibration.samples import stored_moments
from prunecli.dependency.analysis import NONE, Whole
from prunecli.dependency.catalogue import ALL, Orders
from prunecli.dependency.costs import costs
from prunecli.errors import PruneError, advice
from prunecli.model import load
from prunecli.model.constants import INTERFACE
from prunecli.model.floating import is_quantised
from prunecli.model.saving import check_target
from prunecli.model.shapes import input_specs
from prunecli.predicted.predict import Curves, Undescribed, group_curves
from prunecli.structures.blocks import choose_blocks
from prunecli.structures.calibrate import measure
from prunecli.structures.choose import UnitRecipe, decide_units
from prunecli.structures.cut_plan import ANEW, check_positions, chosen_units, load_cut_plan, read_positions
from prunecli.structures.decision import Decided, read_analysed_as
from prunecli.structures.latency import CutTimer, LatencyTable, choose_for_latency, layer_table
from prunecli.structures.options import CHANNELS, StructuredOptions
from prunecli.structures.prunable import AnalysedAs, Cuttable, LeftOut, choose_groups, open_cuttable
from prunecli.structures.ranking import ranked
from prunecli.structures.recovery import recovery_method, refits_on_pictures
from prunecli.structures.target import Budget
from prunecli.structures.widths import AUTO
from prunecli.types import Json, Progress


def decide(
    path: Path,
    target: Path,
    options: StructuredOptions,
    progress: Progress,
    gone: Mask | None = None,
    whole: Whole = NONE,
    orders: Orders | None = None,
) -> tuple[Cuttable, Decided]:
    """Open the model and choose its units, or take them from a plan.

    Args:
        gone: units that count as removed already.
        orders: how parts of units are combined; by their scores if None.
        whole: axes that stay whole, and why; a plan has its own.
    Raises:
        PruneError: the model or the plan is unusable, the output cannot be written, or nothing can be cut.
    """
    if options.plan is not None:
        return _replay(path, target, options.plan, options=options)
    budget = options.budget
    assert budget is not None
    if options.granularity == AUTO and options.drops_blocks and is_quantised(load(path).ir):
        options = replace(options, granularity=CHANNELS)  # blocks are measured on the model as it runs
    cuttable = open_cuttable(path, _how(options, whole, orders), options.dims)
    if cuttable.is_quantised:
        _check_quantised(options, budget.kind)
    elif options.rescale_activations:
        raise PruneError("--rescale-activations is for quantised models, and this one computes in floating point",
                         "leave it out; `prune quantize` takes the result")  # fmt: skip
    curves, told = _predicted(cuttable, options)
    options = replace(options, criterion=_criterion(options, cuttable), allocate=_allocation(options, curves))
    if options.allocate == "uniform":
        options = replace(options, scope="layer")
    check_target(cuttable.file, target, options)
    allowed, left = choose_groups(cuttable, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(cuttable, left)
    cuttable = ranked(cuttable, options, progress) if orders is None else cuttable
    if budget.kind == "latency" or options.blocks_alone:
        choose = choose_for_latency if budget.kind == "latency" else choose_blocks
        asked = _recipe(options, cuttable.how)
        return cuttable, choose(cuttable, options, allowed, left=left, recipe=asked, progress=progress)
    stored = costs(cuttable.units).of(cuttable.units.sizes).get(budget.kind, 0)
    fraction = cuttable.fraction(budget, stored)
    stated = budget.fraction(cuttable.before) / fraction
    recipe = UnitRecipe(Budget(budget.kind, fraction), options, curves, stated=stated)
    evidence = measure(cuttable, options, progress)
    table, untimed = _int8_table(cuttable, options, allowed, progress=progress)
    told += untimed
    decision = decide_units(
        cuttable.units, recipe, allowed, evidence=evidence, progress=progress, costing=table, gone=gone
    )
    if not decision.removed.any():
        given = options.alignment.given and options.alignment.block > 1
        more = advice(
            ("ask for more", True), ("lower --round-to", given), ("raise --max-ratio", options.largest_ratio < 1)
        )
        raise PruneError("at this budget nothing is removed", more)
    return cuttable, Decided(
        decision.removed, decision.scores, _recipe(options, cuttable.how), left=left, notes=[*told, *decision.notes]
    )


def _how(options: StructuredOptions, whole: Whole, orders: Orders | None) -> AnalysedAs:
    return AnalysedAs(
        options.structures, whole=whole, include=options.include, convolved=options.convolved, orders=orders or {}
    )


def _int8_table(
    cuttable: Cuttable, options: StructuredOptions, allowed: Mask, progress: Progress
) -> tuple[LatencyTable | None, list[str]]:
    """Return the times of layers in int8 if that is the target; None and a note if they cannot be measured."""
    if options.target != "cpu-int8" or options.round_to != AUTO or cuttable.is_quantised:
        return None, []
    try:
        return layer_table(CutTimer(cuttable, options, progress), allowed), []
    except PruneError as error:
        return None, [f"the layers could not be timed in int8, so their work stands for their time: {error.message}"]


def _check_quantised(options: StructuredOptions, kind: str) -> None:
    """Raise PruneError for options that measure or train a quantised model as it runs; only its floating-point form
    allows that."""
    asked = {"--latency": kind == "latency", "--granularity block": options.drops_blocks,
             "--finetune": options.trains}  # fmt: skip
    for option, is_asked in asked.items():
        if is_asked:
            raise PruneError(f"{option} is not for quantised models",
                             "cut the floating-point model and quantise it, or give --macs or --params")  # fmt: skip


def _predicted(cuttable: Cuttable, options: StructuredOptions) -> tuple[Curves, list[str]]:
    """Return the predicted damage by group, if it is to allocate the cut; None and a note where the network does not
    know a layer.

    By default it allocates cuts whose layers are refitted on synthetic images: there the damage of a group matters more
    than the damage of its units before the refit.
    """
    unsaid = options.leaves_allocation and refits_on_pictures(cuttable, options)
    if options.allocate != "predicted" and not unsaid:
        return {}, []
    try:
        found = group_curves(replace(cuttable.file, ir=cuttable.work), cuttable.units)
        said = "the cut is spread over the layers as the damage is predicted from the file (--allocate predicted)"
        return found, [said] if unsaid else []
    except Undescribed as reason:
        return {}, [f"the cut is spread by the scores, --allocate predicted is not possible: {reason}"]


def _allocation(options: StructuredOptions, curves: Curves) -> Literal["uniform", "loss", "predicted"] | None:
    """Return the allocation; None: by scores."""
    named = None if options.allocate == "predicted" else options.allocate
    return "predicted" if curves else named


def _criterion(options: StructuredOptions, cuttable: Cuttable) -> str:
    """Return the criterion. Where the remaining layers are refitted, `auto` is the one that accounts for it. On noise
    without a refit, weights tell more than measured damage: `l2-in`."""
    refits = not options.blocks_alone and recovery_method(options) in ("lstsq", "auto")
    if options.allocate == "loss":
        return "obs"
    if options.criterion != "auto" or not refits or options.source is None:
        return options.criterion
    return "l2-in" if options.source.synthetic and not stored_moments(cuttable.work) else "obs"


def _recipe(options: StructuredOptions, how: AnalysedAs) -> Json:
    """The choice in full, as provenance and plans record it."""
    budget = options.budget
    assert budget is not None
    unit = "_ms" if budget.kind == "latency" and budget.absolute else ""
    damping = ["damping"] if options.criterion == "pagerank" else []
    allocate = ["allocate"] if options.allocate else []
    return {
        budget.kind + unit: budget.target,
        "granularity": options.structures,
        **options.recorded(["criterion", "normalize", "scope", *damping]),
        "max_ratio": options.largest_ratio,
        **options.recorded(["round_to", "target"]),
        "steps": options.step_count,
        **options.recorded(["seed", "include", "exclude", *allocate]),
        **({"data": options.source.text} if options.source else {}),
        **how.to_json(),
    }


def _replay(path: Path, target: Path, plan_path: Path, options: StructuredOptions) -> tuple[Cuttable, Decided]:
    file = load(path)
    plan = load_cut_plan(plan_path, file)
    recipe = plan["recipe"]
    cuttable = open_cuttable(path, read_analysed_as(plan_path, recipe, input_specs(file.ir)), options.dims)
    check_target(cuttable.file, target, options)
    groups = [cuttable.units.groups[g].name for g in cuttable.units.group_of]
    removed, scores = chosen_units(plan_path, plan, groups)
    if cuttable.units.empties(removed):
        raise PruneError(
            f"{plan_path} removes a whole axis, or more of one than may go: nothing would remain, or too little", ANEW
        )
    follows = cuttable.listed(cuttable.units.removed(removed))
    check_positions(plan_path, read_positions(plan_path, plan, cuttable.shapes), follows)
    return cuttable, Decided(removed, scores, recipe, left={})


def nothing_to_cut(cuttable: Cuttable, left: Mapping[str, LeftOut]) -> PruneError:
    """Return the error with the most frequent reasons why nothing can be cut."""
    if left:
        options = sorted({one.option for one in left.values()})
        said = f"{' and '.join(options)} leave{'s' if len(options) == 1 else ''} nothing to cut"
        return PruneError(said, f"{len(left)} groups could be cut without that")
    reasons = Counter(axis.reason for axis in cuttable.units.frozen)
    told = "; ".join(f"{reason} ({count} axes)" for reason, count in reasons.most_common(3))
    facts, assumed = cuttable.units.analysis.facts, cuttable.counted.assumed
    failed = next((f"{n.op_type}: {why}" for n, why in facts.problems.items() if "ShapeInferenceError" in why), "")
    if failed and assumed:
        return PruneError(
            f"nothing can be cut from {cuttable.file.path}: {failed}",
            f"--input-shape and --dim state the sizes; assumed were {', '.join(assumed)}",
        )
    return PruneError(
        f"nothing can be cut from {cuttable.file.path}: {told or 'it has no weights'}",
        advice(
            ("see what `prune inspect` lists", True),
            ("name the inputs with --include", INTERFACE in reasons),
            ("use --granularity all", any(ALL in reason for reason in reasons)),
        ),
    )
