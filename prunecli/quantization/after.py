"""`--quantize` of pruning commands: the pruned model is quantised before the file appears; zeros stay zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prunecli.errors import PruneError
from prunecli.evaluation.latency import Speedup
from prunecli.evaluation.speed import int8_alone, measure_speed
from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.copies import plain_path
from prunecli.model.floating import is_quantised
from prunecli.model.sizes import file_sizes
from prunecli.options.groups import QuantizedLast
from prunecli.quantization.options import QuantizeOptions
from prunecli.quantization.quality import labelled_samples, measured_quality
from prunecli.quantization.quantize import quantize
from prunecli.quantization.result import QuantizeResult, StageFigures
from prunecli.types import Progress

OWN = {"format", "report", "include", "exclude", "output", "timing", "weights", "activations", "keep_float"}
"""Options that have another meaning in the pruning command."""
STAGES = ("float", "pruned", "quantised", "both")
ADVICE = "--granularity auto --target cpu-int8 chooses widths, and whole blocks that go, by times of quantised layers"
Made = TypeVar("Made")
Pruned = TypeVar("Pruned")


def quantized_after(
    model: Path, target: Path, options: QuantizedLast, make: Callable[[Path], Made], progress: Progress
) -> tuple[Made, QuantizeResult]:
    """Quantise what `make(place)` wrote, and write it to `target`. `model`: the original.

    Raises:
        PruneError: it is quantised already; as `quantize`.
    """
    if is_quantised(load(model).ir):
        raise PruneError(f"{model} is quantised already", "leave out --quantize: what is written stays quantised")
    known = {one.name for one in fields(QuantizeOptions)} & {one.name for one in fields(options)} - OWN
    taken: dict[str, Any] = {name: getattr(options, name) for name in known}
    asked = QuantizeOptions(**taken, output=target, weights=options.quantize or "int8", timing=False)
    with Scratch() as folder:
        place = folder / target.name
        made = make(place)
        found = quantize(place, asked, progress)
        if found.output is None or not (getattr(options, "timing", False) or asked.test is not None):
            return made, found
        original = plain_path(load(model))
        timing = replace(asked, timing=bool(getattr(options, "timing", False)))
        timed = (getattr(options, "target", None), getattr(options, "granularity", None)) == ("cpu-int8", "auto")
        advice = "" if timed else f"; {ADVICE}"
        stages, notes = _stages(original, {"pruned": place, "both": target}, timing, progress=progress, advice=advice)
        return made, replace(found, stages=stages, notes=[*found.notes, *notes])


def _stages(
    original: Path, made: Mapping[str, Path], options: QuantizeOptions, progress: Progress, advice: str
) -> tuple[dict[str, StageFigures], list[str]]:
    """Return the original, the pruned model, and the original quantised by onnxruntime's tool, for comparison; and
    notes on missing ones."""
    test = labelled_samples(load(original), options)
    with Scratch() as folder:
        paths = {"float": original, **made}
        try:
            paths["quantised"], notes = int8_alone(original, options, folder), list[str]()
        except PruneError as reason:
            notes = [f"the original alone is not quantised: {reason.message}"]
        found = dict[str, StageFigures]()
        for name in STAGES:
            if name not in paths:
                continue
            path, other = paths[name], name != "float"
            speed = measure_speed(path, original, options, progress=progress) if options.timing and other else None
            quality = None if test is None else measured_quality(original, path, test, options=options).after
            found[name] = StageFigures(file_sizes(load(path))["file_bytes"], quality or {}, speed)
        gains = {name: one.speed.pair.gain for name, one in found.items() if one.speed is not None and one.speed.pair}
        return found, [*notes, *slow(gains, advice)]


def slow(gains: Mapping[str, Speedup], advice: str) -> list[str]:
    """Say which stages the quantised pruned model is no faster than, beyond noise, and why. `advice`: what else to
    try."""
    if "both" not in gains or gains["both"].reason:
        return []
    others = {"pruned": "in floating point", "quantised": "in integers without pruning"}
    equal = [told for name, told in others.items() if name in gains and gains["both"].low <= gains[name].high]
    if not equal:
        return []
    return [f"pruned and in integers the model is not faster on this machine than {' or '.join(equal)}, only smaller:"
            f" narrow layers save no time in integers{advice}"]  # fmt: skip


def with_quantized(done: Pruned, found: QuantizeResult) -> Pruned:
    """Return the result of a pruning command with the quantised file in place of its own."""
    made: Any = done
    proof = replace(
        found.verification,
        detail=f"before it was quantised, {made.verification.detail}; as integers, {found.verification.detail}",
    )
    told = {"output": found.output, "after": found.after, "verification": proof, "quantised": found,
            "dry_run": found.dry_run, "notes": [*made.notes, *found.notes]}  # fmt: skip
    return cast("Pruned", replace(made, **told))


def with_packed_size(found: QuantizeResult | None, size: int) -> QuantizeResult | None:
    """Return the same for a file of `size` bytes that was packed afterwards."""
    if found is None or "both" not in found.stages:
        return found
    return replace(found, stages={**found.stages, "both": replace(found.stages["both"], file_bytes=size)})
