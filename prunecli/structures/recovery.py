"""Closed-form recovery as a step of `prune structured`: after the proof of the cut, before it is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import onnx_ir as ir

from prunecli._version import __version__
from prunecli.arrays import Array
from prunecli.calibration.batches import CalibrationBatches
from prunecli.calibration.fitted import LayerJournal, identity_of
from prunecli.calibration.samples import run_size
from prunecli.data import Dataset
from prunecli.data.synthetic import image_like
from prunecli.dependency.cut import Removed
from prunecli.errors import OutOfMemoryError, PruneError
from prunecli.model.floating import floating
from prunecli.model.requantise import requantised
from prunecli.model.shapes import input_specs
from prunecli.quantization.ranges import observe
from prunecli.reconstruct.refit import LayerFit, output_error, refit
from prunecli.reconstruct.turning import Turned
from prunecli.report.document import Column, Section, Table, Text
from prunecli.runtime import version
from prunecli.structures.fold import fold
from prunecli.structures.options import CutOptions
from prunecli.structures.prunable import Cuttable
from prunecli.types import Json, Progress, Skipped

HELD = 8
"""One of so many samples is held out; with fewer samples all are used for both."""
MOST = 1024
"""Most samples that recovery uses; more do not change a layer's fit."""
TOP = 24
FOLD = "fold"
"""The recovery that needs no data."""


@dataclass(frozen=True)
class Recovery:
    """What recovery did. Errors: squared difference of the outputs (the inputs of a final Softmax) from the original's
    over their spread, on the held-out samples. `asked`: `fold` for the default without data. `method`: `none` where
    recovery was undone because it did not lower the error; for `fold` without samples, errors are shares of the
    variance of the layers' outputs, by propagated moments. `tried`: number of layers that a fit was tried for. `left`:
    layers that could not be measured. `rescaled`: activations of a quantised model have new scales. `turned`: attention
    heads whose dimensions were rotated before some were removed."""

    asked: str
    method: str
    samples: int
    held: int
    error_before: float
    error_after: float
    layers: list[LayerFit] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
    tried: int = 0
    rescaled: bool = False
    turned: list[Turned] = field(default_factory=list)


def recovery_method(options: CutOptions) -> str:
    """Return the method of `--recover`; the default is `auto` with data and `fold` without."""
    default = "auto" if options.source is not None else FOLD
    return default if options.closed_form is None else options.closed_form


def recover(
    cuttable: Cuttable, cut: ir.Model, removed: Removed, options: CutOptions, progress: Progress
) -> tuple[ir.Model, Recovery | None]:
    """Return the cut model after recovery, and what was done. With `none`, or where nothing can be folded, return the
    cut itself and None.

    Without data, a folded model is then refitted on synthetic images if the model takes images.

    Raises:
        PruneError: the data cannot be read, or a piece of the model does not run.
    """
    method = recovery_method(options)
    if method == "none":
        return cut, None
    job = _Job(cuttable, cut, removed, options=options, progress=progress)
    if method != FOLD:
        return job.refitted(cuttable.samples(options, progress), method)
    layers = fold(cuttable.work, job.form.model, removed)
    folded = job.stored()
    if refits_on_pictures(cuttable, options):
        try:
            pictures = cuttable.pictures(options, progress)
            return job.refitted(pictures, FOLD, folded, layers=layers)
        except OutOfMemoryError:
            raise
        except PruneError as error:  # such as an operator that onnxruntime does not have: the cut stands without it
            cuttable.sample_notes = (f"not refitted on made pictures: {error.message}",)
    return (folded, _fold_recovery(layers)) if layers else (cut, None)


@dataclass
class _Job:
    cuttable: Cuttable
    cut: ir.Model
    removed: Removed
    options: CutOptions
    progress: Progress

    def __post_init__(self) -> None:
        self.form = floating(self.cut.clone())

    def stored(self) -> ir.Model:
        """A copy of the form as it is now, as the file stores it."""
        return requantised(self.form, self.cut) if self.cuttable.is_quantised else self.form.model.clone()

    def refitted(
        self, samples: Dataset, method: str, folded: ir.Model | None = None, layers: Sequence[LayerFit] = ()
    ) -> tuple[ir.Model, Recovery]:
        """The form refitted, or folded, or the cut as it is: what errs least, of equal ones the first of the cut, the
        folded and the refitted.

        Args:
            folded: what the form is at first; `layers`, what was done to it.
        """
        data, held = calibration(self.cuttable, samples, self.options)
        form = "auto" if method == FOLD else method
        tries = [_Try("none", self.cut)]
        if folded is not None and layers:
            tries.append(_Try(FOLD, folded, layers))
        with self._journal(data, form) as journal:
            done = refit(
                self.cuttable.work,
                self.form.model,
                self.removed,
                data=data,
                method=form,
                journal=journal,
                progress=self.progress,
            )
        tries.append(_Try(form, self.stored(), done.layers, turned=done.turned))
        if self.options.rescale_activations:
            rescaled = requantised(self.form, self.cut, _activations(self.form.model, data))
            tries.append(_Try(form, rescaled, done.layers, rescaled=True, turned=done.turned))
        errors = output_error(self.cuttable.stored, [one.model for one in tries], data)
        best = int(np.argmin(np.nan_to_num(errors, nan=np.inf)))
        return tries[best].model, Recovery(
            method, tries[best].method, samples=min(len(samples), MOST), held=held, error_before=errors[0],
            error_after=errors[best], layers=list(tries[best].layers), left=done.left, tried=len(done.layers),
            rescaled=tries[best].rescaled, turned=list(tries[best].turned),
        )  # fmt: skip

    def _journal(self, data: CalibrationBatches, method: str) -> LayerJournal:
        """The file of `--state`, which keeps the layers that are refitted."""
        state = self.options.state
        if state is None:
            return LayerJournal(None, "")
        gone = {
            name: {axis: positions.tolist() for axis, positions in sorted(axes.items())}
            for name, axes in sorted(self.removed.items())
        }
        how = self.cuttable.how.convolved
        decisive = (gone, method, data.fitted, how, self.options.execution, __version__, version())
        return LayerJournal(state, identity_of(self.cuttable.file, data.feeds, *decisive))


@dataclass(frozen=True)
class _Try:
    """A model that may be the result, and what was done to it."""

    method: str
    model: ir.Model
    layers: Sequence[LayerFit] = ()
    rescaled: bool = False
    turned: Sequence[Turned] = ()


def refits_on_pictures(cuttable: Cuttable, options: CutOptions) -> bool:
    """Return whether synthetic images are made for the refit: no data and no recovery are given, and all inputs look
    like images."""
    if options.source is not None or options.closed_form is not None:
        return False
    specs = input_specs(cuttable.file.ir)
    return bool(specs) and all(image_like(spec, cuttable.counted.inputs.get(spec.name, ())) for spec in specs)


def _activations(model: ir.Model, data: CalibrationBatches) -> dict[str, Array]:
    """Return a sample of the numbers that each value takes on the fitting data."""
    feeds = data.feeds[: data.fitted]
    seen = observe(data.start, ir.to_proto(model), feeds, total=len(feeds))
    return {name: np.concatenate(one.some) for name, one in seen.items()}


def joint_damage(cuttable: Cuttable, options: CutOptions, units: Array, data: CalibrationBatches) -> float:
    """Return the error of the outputs without the masked units, after the recovery that is asked for, in floating
    point.

    Raises:
        PruneError: an operator cannot follow the cut, or a piece of the model does not run.
    """
    removed, method = cuttable.units.removed(units), recovery_method(options)
    form = floating(cuttable.without(units, removed))
    refit(cuttable.work, form.model, removed, data=data, method="none" if method == FOLD else method)
    return output_error(cuttable.work, [form.model], data)[0]


def _fold_recovery(layers: list[LayerFit]) -> Recovery:
    before, after = (float(np.mean([getattr(fit, name) for fit in layers])) for name in ("error_before", "error_after"))
    return Recovery(
        FOLD, FOLD, samples=0, held=0, error_before=before, error_after=after, layers=layers, tried=len(layers)
    )


def calibration(
    cuttable: Cuttable, samples: Dataset, options: CutOptions, share: int = HELD, most: int = MOST
) -> tuple[CalibrationBatches, int]:
    """Return batches to fit on, followed by those held out, and the number of held-out samples: one in `share`, at most
    `most`.

    Of more than MOST samples, that many are drawn by the seed.
    """
    order = np.random.default_rng(options.seed).permutation(len(samples))[:MOST]
    held = min(len(order) // share, most)
    size = run_size(cuttable.counted, options.batch_size)
    fitted, held_out = (samples.select(np.sort(rows)).feeds(size) for rows in (order[held:], order[:held]))
    feeds, how = [*fitted, *held_out], options.execution
    influence = cuttable.influence(feeds, options)
    return CalibrationBatches(feeds, len(fitted), how.open, lanes=how.lanes, influence=influence), held


# -- reports ------------------------------------------------------------------------------------------


def recovery_json(found: Recovery | None) -> Json:
    return {} if found is None else {"recovery": asdict(found)}


def recovery_sections(found: Recovery | None) -> list[Section]:
    """The errors before and after, and each layer."""
    if found is None:
        return []
    held = f"{found.held} held-out sample{'s' * (found.held != 1)}"
    measured_on = held if found.held else f"the {found.samples} samples it was fitted on"
    if found.method == "none":
        return [Text(f"not recovered: {_why(found, measured_on)}", "warning"), *_left(found)]
    rows = [(fit.weight, fit.method, fit.ridge, fit.error_before, fit.error_after) for fit in found.layers]
    columns = (Column("weight", "name"), Column("fit"), Column("ridge", "number", drop=1),
               Column("error before", "number"), Column("after", "number"))  # fmt: skip
    fitted = Table("Refitted layers", columns, rows, top=TOP)
    return [Text(_gained(found, measured_on), "good"), fitted, *_turned(found), *_left(found)]


def _gained(found: Recovery, measured_on: str) -> str:
    """Say what recovery improved."""
    if not found.samples:
        return (
            f"folded without data into the units that say most nearly the same: {len(found.layers)} layers miss"
            f" {found.error_after:.3g} of the variance of their outputs, {found.error_before:.3g} before, as moments"
            " carried through the model have it"
        )
    how = f"without training ({found.method}, {found.samples} unlabelled samples)"
    if found.asked == FOLD:
        refitted = "" if found.method == FOLD else f", then refitted on {found.samples} made pictures"
        how = f"without data (folded into the units that say most nearly the same{refitted})"
    gain = f"the outputs differ by {found.error_after:.3g} of their spread, {found.error_before:.3g} before"
    scales = "; activations have new scales" if found.rescaled else ""
    return f"recovered {how}: {gain} (squared, on {measured_on}){scales}"


def _why(found: Recovery, measured_on: str) -> str:
    """Say why nothing was recovered."""
    if found.error_before == 0:
        return f"there is nothing to make up for, the outputs are the original's on {measured_on}"
    moved = f"the outputs differ by {found.error_before:.3g} on {measured_on}"
    if found.tried:
        return f"no closed form lowers the error of the outputs ({found.error_before:.3g} on {measured_on})"
    if not found.left:
        return f"no layer that could make up for the cut reads anything that it changed ({moved})"
    reason, count = Counter(skip.reason for skip in found.left).most_common(1)[0]
    return f"no layer could be measured, {count} of {len(found.left)} since {reason} ({moved})"


def _turned(found: Recovery) -> list[Section]:
    """List the heads, and the share of their products in the removed dimensions."""
    columns = (Column("weight", "name"), Column("with", "name"), Column("heads", "count", drop=1),
               Column("lost as they were", "percent"), Column("turned", "percent"))  # fmt: skip
    rows = [(one.left, one.right, one.heads, one.lost_before, one.lost) for one in found.turned]
    return [Table("Dimensions inside heads, turned", columns, rows, top=TOP)] if rows else []


def _left(found: Recovery) -> list[Section]:
    rows = [(skip.name, skip.reason) for skip in found.left]
    return [Table("Not refitted", (Column("weight", "name"), Column("why")), rows, top=TOP)] if rows else []
