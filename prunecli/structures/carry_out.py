"""Carry out a decided cut: cut, recover, prove, save, measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import onnx_ir as ir

from prunecli.dependency.analysis import Whole
from prunecli.dependency.catalogue import Frozen
from prunecli.dependency.cut import Removed, following
from prunecli.evaluation.speed import MeasuredSpeed, TimedOptions, measure_int8, measure_speed
from prunecli.files import Scratch, written_to
from prunecli.model import load
from prunecli.model.floating import is_quantised
from prunecli.model.saving import Provenance, SaveOptions, save
from prunecli.packing.pack import PackResult
from prunecli.quantization.result import QuantizeResult
from prunecli.report.result import ModelResult
from prunecli.structures.cut_plan import save_cut_plan
from prunecli.structures.decide import decide
from prunecli.structures.decision import Decided, GroupRow, group_rows, plan_json
from prunecli.structures.inspect_cut import CutInspector
from prunecli.structures.options import CutOptions, StructuredOptions
from prunecli.structures.prunable import Cuttable
from prunecli.training.gradual import Retrained, raise_if_all_harmful
from prunecli.types import FileRef, Json, LayerRow, Progress, Skipped

if TYPE_CHECKING:
    from prunecli.structures.recovery import Recovery


class TargetOptions(TimedOptions, Protocol):
    """Options of timing, and the target."""

    @property
    def target(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class StructuredResult(ModelResult):
    """What was cut, and the proof. `groups`: groups of units. `frozen`: axes of weights that cannot be cut. `left`:
    groups excluded by --include or --exclude. `latency`: measurements for that budget. `speed`: of the result relative
    to the original. `packed`: with `--pack` of adaptive pruning. `removed`: removed positions by value and axis."""

    recipe: Json
    groups: list[GroupRow]
    layers: list[LayerRow]
    frozen: list[Frozen]
    left: list[Skipped]
    latency: Json | None = None
    training: Retrained | None = None
    recovery: Recovery | None = None
    speed: MeasuredSpeed | None = None
    packed: PackResult | None = None
    quantised: QuantizeResult | None = None
    removed: Removed = field(default_factory=dict, compare=False)
    masked: ClassVar[tuple[str, ...]] = ()
    pattern: ClassVar[str] = "element"

    def raise_if_failed(self) -> None:
        """Raise GateFailed where training improved nothing at any step."""
        raise_if_all_harmful(self.training)


def decided_and_cut(
    path: Path, target: Path, options: StructuredOptions, progress: Progress, start: float
) -> StructuredResult:
    """Decide what is removed and carry it out. If an operator cannot follow the cut, keep its axis whole and decide
    again."""

    def attempt(whole: Whole) -> StructuredResult:
        cuttable, decided = decide(path, target, options, progress=progress, whole=whole)
        return carry_out(cuttable, decided, target, options=options, progress=progress, start=start)

    return following(attempt)


def carry_out(
    cuttable: Cuttable, decided: Decided, target: Path, options: CutOptions, progress: Progress, start: float
) -> StructuredResult:
    """Cut what is decided, and save it with proof. `start`: when the work began, as `time.perf_counter` has it."""
    positions = cuttable.units.removed(decided.removed)
    cut = cuttable.without(decided.removed, positions)
    inspector = CutInspector(cuttable, cuttable.forced(positions, decided.removed), options, progress=progress)
    with written_to(target, options.dry_run) as place:
        saving = SaveOptions(options.external_data, options.force, Provenance("structured", decided.recipe))
        cut, recovery = _recovered(inspector, cut, positions)
        check = partial(inspector if recovery is None else inspector.measure, cut=cut)
        saved = save(replace(cuttable.file, ir=cut), place, saving, verify=check)
        speed = measured(place, cuttable.file.path, options, progress=progress) if options.timing else None
    if options.save_plan is not None:
        save_cut_plan(options.save_plan, plan_json(cuttable, decided, positions), options.force)
    found = _result(cuttable, decided, inspector, output=None if options.dry_run else saved, options=options)
    return replace(found, recovery=recovery, speed=speed, removed=positions, seconds=time.perf_counter() - start)


def measured(cut: Path, original: Path, options: TargetOptions, progress: Progress) -> MeasuredSpeed:
    """Return the speedup of a cut over its original, in the form that the target runs; quantised models are run as they
    are."""
    floats = options.target == "cpu-int8" and not is_quantised(load(original).ir)
    measure = measure_int8 if floats else measure_speed
    return measure(cut, original, options, progress=progress)


def _recovered(inspector: CutInspector, cut: ir.Model, positions: Removed) -> tuple[ir.Model, Recovery | None]:
    """Return the cut model after recovery. The proof is of the cut before recovery, because a refitted model no longer
    equals the original."""
    from prunecli.structures.recovery import recover

    cuttable, options = inspector.cuttable, inspector.options
    fitted, recovery = recover(cuttable, cut, positions, options=options, progress=inspector.progress)
    if recovery is None:
        return cut, None
    with Scratch() as folder:
        save(replace(cuttable.file, ir=cut), folder / "cut.onnx", SaveOptions(options.external_data), verify=inspector)
    proof = inspector.verification
    if proof.kind != "none":
        inspector.verification = replace(proof, detail=f"{proof.detail} (the cut before it was refitted)")
    return fitted, recovery


def _result(
    cuttable: Cuttable, decided: Decided, inspector: CutInspector, output: FileRef | None, options: CutOptions
) -> StructuredResult:
    assert inspector.after is not None
    return StructuredResult(
        model=cuttable.file.ref,
        output=output,
        recipe=decided.recipe,
        before=cuttable.before,
        after=inspector.after,
        groups=group_rows(cuttable, decided),
        layers=inspector.layers,
        frozen=cuttable.units.frozen,
        left=[Skipped(name, one.reason) for name, one in decided.left.items()],
        verification=inspector.verification,
        notes=[*inspector.warnings, *cuttable.file.notes, *decided.notes, *cuttable.notes],
        latency=decided.latency,
        plan=None if options.save_plan is None else str(options.save_plan),
        dry_run=options.dry_run,
    )


def default_output(path: Path) -> Path:
    """STEM.pruned.onnx beside the model."""
    return path.with_name(f"{path.stem}.pruned.onnx")
