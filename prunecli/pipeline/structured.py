"""`prune structured`: remove channels, neurons and heads, rewrite the graph, and prove that nothing else changed."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from prunecli.apply.cut_plan import (
    ANEW,
    check_plan_path,
    check_positions,
    chosen_units,
    load_cut_plan,
    read_positions,
    save_cut_plan,
)
from prunecli.channels.catalogue import Frozen
from prunecli.channels.cut import Removed, remove
from prunecli.errors import PruneError
from prunecli.evidence.moments import second_moments
from prunecli.model import Dims, concrete_shapes, load, totals
from prunecli.model.provenance import Provenance
from prunecli.model.saving import SaveOptions, check_target, save
from prunecli.model.shapes import input_specs
from prunecli.pipeline.evaluate import DataOptions
from prunecli.pipeline.structured_budget import KINDS as BUDGETS
from prunecli.pipeline.structured_budget import Budget
from prunecli.pipeline.structured_plan import Decided, GroupRow, group_rows, plan_json, recipe_shapes
from prunecli.pipeline.structured_proof import Inspector
from prunecli.pipeline.structured_report import to_document, to_json
from prunecli.pipeline.structured_subject import Cuttable, choose_groups, open_cuttable
from prunecli.pipeline.subject import Execution
from prunecli.report.document import Document
from prunecli.runtime import Session
from prunecli.search.units import Evidence, UnitRecipe, decide_units, resolve_criterion
from prunecli.select.structures import UNIT_CRITERIA
from prunecli.types import FileRef, Json, LayerRow, Progress, Skipped, Totals, Verification, no_progress


@dataclass(frozen=True)
class StructuredOptions:
    """What to cut, and how to choose it.

    `budget`: see `Budget`; None only with `plan`. `granularity`: `channel,head`, or `all`. `criterion`,
    `normalize`, `scope`, `max_ratio`, `round_to`, `steps`: see `prunecli.search.units`. `output` None:
    STEM.pruned.onnx beside the model. `verify`: the proof in onnxruntime.
    """

    budget: Budget | None = None
    granularity: str = "channel,head"
    criterion: str = UnitRecipe.criterion
    normalize: str = UnitRecipe.normalize
    scope: Literal["auto", "layer", "global"] = UnitRecipe.scope
    max_ratio: float = UnitRecipe.max_ratio
    round_to: int = UnitRecipe.round_to
    steps: int = UnitRecipe.steps
    seed: int = 0
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    data: DataOptions | None = None
    batch_size: int = 32
    dims: Dims = field(default_factory=Dims)
    execution: Execution = field(default_factory=Execution)
    output: Path | None = None
    force: bool = False
    dry_run: bool = False
    verify: bool = True
    plan: Path | None = None
    save_plan: Path | None = None
    external_data: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True)
class StructuredResult:
    """What was cut, and the proof. `groups`: units of like structure; `frozen`: axes of weights that cannot be
    cut; `left`: groups that --include or --exclude leave alone."""

    model: FileRef
    output: FileRef | None
    recipe: Json
    before: Totals
    after: Totals
    groups: list[GroupRow]
    layers: list[LayerRow]
    frozen: list[Frozen]
    left: list[Skipped]
    verification: Verification
    notes: list[str] = field(default_factory=list)
    plan: str | None = None
    dry_run: bool = False
    seconds: float = 0.0

    def to_json(self) -> Json:
        return to_json(self)

    def to_document(self) -> Document:
        return to_document(self)


def structured(
    model: str | Path, options: StructuredOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> StructuredResult:
    """Cut a model by structure and save it with proof. `changes` override fields of `options`.

    A number, or a text such as `"50%"`, may be given as `ratio=`, `macs=` or `params=` instead of `budget`.

    Raises:
        PruneError: the file or an option is unusable, nothing can be cut, or the cut cannot be proved; then
            nothing is written.
    """
    start, options = time.perf_counter(), _with(options or StructuredOptions(), changes)
    path = Path(model)
    target = options.output or default_output(path)
    subject, decided = decide(path, target, options, progress)
    positions = subject.units.removed(decided.removed)
    cut = carve(subject, positions)
    shapes = concrete_shapes(subject.file, options.dims)
    inspector = Inspector(
        subject, subject.forced(positions, decided.removed), shapes.inputs, options.data, options.batch_size,
        options.seed, options.execution, options.verify, progress,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as elsewhere:  # a dry run does everything, but there
        place = Path(elsewhere) / target.name if options.dry_run else target
        saving = SaveOptions(options.external_data, options.force, Provenance("structured", decided.recipe))
        saved = save(replace(subject.file, ir=cut), place, saving, inspector)
    if options.save_plan is not None:
        save_cut_plan(options.save_plan, plan_json(subject, decided, positions))
    return _result(subject, decided, inspector, totals(subject.file, shapes), None if options.dry_run else saved,
                   options, time.perf_counter() - start)  # fmt: skip


def carve(subject: Cuttable, positions: Removed) -> ir.Model:
    """The model without the positions; the subject's own working form stays as it is."""
    cut = subject.work.clone()
    remove(cut, positions, subject.inputs, subject.other_inputs)
    return cut


def _result(
    subject: Cuttable, decided: Decided, inspector: Inspector, before: Totals, output: FileRef | None,
    options: StructuredOptions, seconds: float,
) -> StructuredResult:  # fmt: skip
    assert inspector.after is not None
    return StructuredResult(
        model=subject.file.ref,
        output=output,
        recipe=decided.recipe,
        before=before,
        after=inspector.after,
        groups=group_rows(subject, decided),
        layers=inspector.layers,
        frozen=subject.units.frozen,
        left=[Skipped(name, reason) for name, reason in decided.left.items()],
        verification=inspector.verification,
        notes=[*subject.file.notes, *decided.notes],
        plan=None if options.save_plan is None else str(options.save_plan),
        dry_run=options.dry_run,
        seconds=seconds,
    )


def default_output(path: Path) -> Path:
    """STEM.pruned.onnx beside the model."""
    return path.with_name(f"{path.stem}.pruned.onnx")


def options_for(amounts: Mapping[str, Any], **chosen: Any) -> StructuredOptions:
    """Options as a command line gives them: what is None keeps its default.

    Raises:
        PruneError: no budget and no plan, or both.
    """
    budget = None
    if chosen.get("plan") is None:
        budget = Budget.parse(amounts)
    elif any(value is not None for value in amounts.values()):
        raise PruneError("--plan fixes what is removed", "leave out --ratio, --macs and --params")
    return StructuredOptions(budget=budget, **{name: value for name, value in chosen.items() if value is not None})


def _with(options: StructuredOptions, changes: Mapping[str, Any]) -> StructuredOptions:
    given = {str(kind): changes[kind] for kind in BUDGETS if kind in changes}
    rest = {name: value for name, value in changes.items() if name not in given}
    if given:
        rest["budget"] = Budget.parse(given)
    if rest.get("output") is not None:
        rest["output"] = Path(rest["output"])
    return replace(options, **rest)


def decide(path: Path, target: Path, options: StructuredOptions, progress: Progress) -> tuple[Cuttable, Decided]:
    """Open the model and choose its units, or take them from a plan.

    Raises:
        PruneError: the model or the plan is unusable, the output cannot be written, or nothing can be cut.
    """
    if options.save_plan is not None:
        check_plan_path(options.save_plan, options.force)
    if options.plan is not None:
        return _replay(path, target, options.plan, options)
    if options.budget is None:
        raise Budget.missing()
    subject = open_cuttable(path, options.granularity, options.dims)
    if not options.dry_run:
        check_target(subject.file, target, options.force)
    allowed, left = choose_groups(subject, options.include, options.exclude)
    if not allowed.any():
        raise nothing_to_cut(subject, left)
    recipe = _unit_recipe(options, options.budget, subject)
    evidence = measure(subject, options, progress) if options.data is not None else None
    decision = decide_units(subject.units, recipe, allowed, evidence, progress)
    if not decision.removed.any():
        raise PruneError("at this budget nothing is removed", "ask for more, or raise --max-ratio")
    return subject, Decided(decision.removed, decision.scores, _recipe(options, subject), left, decision.notes)


def measure(subject: Cuttable, options: StructuredOptions, progress: Progress) -> Evidence | None:
    """What the criterion needs to know of the data; None where the weights suffice."""
    criterion = UNIT_CRITERIA.get(resolve_criterion(options.criterion, options.data is not None))
    if criterion is None or criterion.evidence != "moments" or options.data is None:
        return None
    data = options.data.open(input_specs(subject.file.ir))
    feeds = (batch.feed for batch in progress(data.batches(options.batch_size), "measuring activations"))
    ranks = {name: len(shape) for name, shape in subject.shapes.items()}
    start = partial(Session.open, provider=options.execution.provider, threads=options.execution.thread_count)
    return Evidence(moments=second_moments(subject.work, ranks, feeds, start))


def _unit_recipe(options: StructuredOptions, budget: Budget, subject: Cuttable) -> UnitRecipe:
    target = budget.target
    if budget.absolute:
        target = budget.fraction(totals(subject.file, concrete_shapes(subject.file, options.dims)))
    return UnitRecipe(
        budget=budget.kind, target=target, absolute=False, criterion=options.criterion, scope=options.scope,
        normalize=options.normalize, max_ratio=options.max_ratio, round_to=options.round_to, steps=options.steps,
        seed=options.seed,
    )  # fmt: skip


def _recipe(options: StructuredOptions, subject: Cuttable) -> Json:
    """The choice in full, as provenance and plans record it."""
    assert options.budget is not None
    names = ("granularity", "criterion", "normalize", "scope", "max_ratio", "round_to", "steps", "seed")
    return {
        options.budget.kind: options.budget.target,
        **{name: getattr(options, name) for name in names},
        "include": list(options.include),
        "exclude": list(options.exclude),
        **({"data": options.data.text} if options.data else {}),
        "inputs": {name: list(shape) for name, shape in subject.inputs.items()},
    }


def _replay(path: Path, target: Path, plan_path: Path, options: StructuredOptions) -> tuple[Cuttable, Decided]:
    file = load(path)
    plan = load_cut_plan(plan_path, file)
    recipe = plan["recipe"]
    granularity = recipe.get("granularity")
    if not isinstance(granularity, str):
        raise PruneError(f"{plan_path}: the recipe has no granularity", ANEW)
    subject = open_cuttable(path, granularity, options.dims, recipe_shapes(recipe, input_specs(file.ir)))
    if not options.dry_run:
        check_target(subject.file, target, options.force)
    groups = [subject.units.groups[g].name for g in subject.units.group_of]
    removed, scores = chosen_units(plan_path, plan, groups)
    emptied = subject.units.kept(removed) < np.minimum(subject.units.sizes, 1)
    if emptied.any():
        raise PruneError(f"{plan_path} removes a whole axis: nothing would remain", ANEW)
    follows = subject.listed(subject.units.removed(removed))
    check_positions(plan_path, read_positions(plan_path, plan, subject.shapes), follows)
    return subject, Decided(removed, scores, recipe, {})


def nothing_to_cut(subject: Cuttable, left: Mapping[str, str]) -> PruneError:
    """Why there is nothing: the most frequent reasons."""
    if left:
        return PruneError(
            "--include and --exclude leave nothing to cut", f"{len(left)} groups could be cut without them"
        )
    reasons = Counter(axis.reason for axis in subject.units.frozen)
    told = "; ".join(f"{reason} ({count} axes)" for reason, count in reasons.most_common(3))
    return PruneError(
        f"nothing can be cut from {subject.file.path}: {told or 'it has no weights'}",
        "`prune inspect` lists what is in it; --granularity all also cuts what is approximate",
    )
