"""`--quantize` of the commands that prune: what they make is quantised before it appears, zeros staying zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prunecli.evaluation.speed import measure_int8_alone, measure_speed
from prunecli.files import Scratch
from prunecli.model import load
from prunecli.model.copies import plain_path
from prunecli.options.groups import QuantizedLast
from prunecli.quantization.options import QuantizeOptions
from prunecli.quantization.quantize import quantize
from prunecli.quantization.result import QuantizeResult
from prunecli.types import Progress

OWN = {"format", "report", "include", "exclude", "output", "timing", "weights", "activations", "keep_float"}
"""Options that mean something else to the command before."""
Made = TypeVar("Made")
Pruned = TypeVar("Pruned")


def quantized_after(
    model: Path, target: Path, options: QuantizedLast, make: Callable[[Path], Made], progress: Progress
) -> tuple[Made, QuantizeResult]:
    """What `make(place)` wrote, quantised to `target`. `model`: the original."""
    known = {one.name for one in fields(QuantizeOptions)} & {one.name for one in fields(options)} - OWN
    taken: dict[str, Any] = {name: getattr(options, name) for name in known}
    asked = QuantizeOptions(**taken, output=target, weights=options.quantize or "int8", timing=False)
    with Scratch() as folder:
        place = folder / target.name
        made = make(place)
        found = quantize(place, asked, progress)
        if not getattr(options, "timing", False) or found.output is None:
            return made, found
        original = plain_path(load(model))
        speeds = {
            "pruned": measure_speed(place, original, asked, progress),
            "quantised": measure_int8_alone(original, asked, progress),
            "both": measure_speed(target, original, asked, progress),
        }
        return made, replace(found, speeds=speeds)


def told_quantized(done: Pruned, found: QuantizeResult) -> Pruned:
    """The result of a command that prunes, of the file that it became."""
    made: Any = done
    proof = replace(
        found.verification,
        detail=f"before it was quantised, {made.verification.detail}; as integers, {found.verification.detail}",
    )
    told = {"output": found.output, "after": found.after, "verification": proof, "quantised": found,
            "dry_run": found.dry_run, "notes": [*made.notes, *found.notes]}  # fmt: skip
    return cast("Pruned", replace(made, **told))
