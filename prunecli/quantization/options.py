"""The options of `prune quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from prunecli.errors import PruneError
from prunecli.options.declare import Option, Options
from prunecli.options.groups import (
    Batched,
    CalibrationSamples,
    Chosen,
    Reporting,
    Saving,
    Seeded,
    Sized,
    Tested,
    Timing,
)
from prunecli.quantity import parse_fraction
from prunecli.types import Json

QUANTIZATION = "Quantization"
FORMS = ("qdq", "dynamic", "nbits")
BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Quantizing(Options):
    """The types of weights and activations."""

    weights: Annotated[
        Literal["int8", "uint8", "int4-block32"],
        Option("what weights are stored in; int4-block32: a scale for every 32 inputs", QUANTIZATION),
    ] = "int8"  # fmt: skip
    activations: Annotated[
        Literal["int8", "uint8", "none"] | None,
        Option(
            "what goes between operators; none: they stay float; default uint8, none with int4-block32", QUANTIZATION
        ),
    ] = None
    keep_float: Annotated[
        float,
        Option("share of the parameters that may stay float, for the layers that hurt most, which is measured; default 0",
               QUANTIZATION, "S", read=parse_fraction, show_default=False),
    ] = 0.0  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(
    Quantizing, Chosen, Tested, CalibrationSamples, Batched, Seeded, Saving, Reporting, Sized, Timing
):
    """Store weights and activations as small integers, fitted on a few hundred unlabelled samples.

    onnxruntime's own tool builds the graph. Its weights are then fitted layer by layer to what the float model computes:
    what each is rounded by is made up for by the others, and biases take out what is wrong on average, on what the layers
    before, quantised by now, really give. Of the fitted model, the same rounded to the nearest, and the tool's own, the
    one whose outputs are nearest to the float model's on held-out samples is written. Without --limit 512 samples drawn
    from --data are used.
    """

    printed = frozenset({"report"})
    format: Annotated[
        tuple[Literal["qdq", "dynamic", "nbits", "table", "json", "markdown"], ...],
        Option("qdq: QuantizeLinear and DequantizeLinear around operators, the default; dynamic: activations are measured"
               " as the model runs; nbits: MatMulNBits, that of int4-block32; others: what stdout carries; repeatable",
               QUANTIZATION),
    ] = ()  # type: ignore[assignment] # fmt: skip

    def check(self) -> None:
        super().check()
        if self.data is None:
            raise PruneError(
                "quantisation is fitted on data",
                "give --data; a few hundred unlabelled samples will do, or --data synthetic where there are none",
            )
        forms = [name for name in self.format if name in FORMS]
        if len(forms) > 1:
            raise PruneError(f"--format {forms[0]} and {forms[1]} are two forms of one model", "choose one of them")
        if (self.form == "nbits") != (self.weights == "int4-block32"):
            raise PruneError(f"--format {self.form} does not store --weights {self.weights}",
                             "--weights int4-block32 goes with --format nbits, int8 and uint8 with qdq and dynamic")  # fmt: skip
        wanted = {"qdq": ("int8", "uint8", "none"), "dynamic": ("uint8",), "nbits": ("none",)}[self.form]
        if self.activations is not None and self.activations not in wanted:
            raise PruneError(f"--format {self.form} has no --activations {self.activations}",
                             f"it has {', '.join(wanted)}")  # fmt: skip
        if self.activations == "int8" and self.weights == "uint8":
            raise PruneError("onnxruntime has no kernels for uint8 weights with int8 activations",
                             "use --weights int8, or --activations uint8")  # fmt: skip

    @property
    def form(self) -> Literal["qdq", "dynamic", "nbits"]:
        """The form of graph that is built."""
        given = [name for name in self.format if name in FORMS]
        if given:
            return given[0]  # type: ignore[return-value]
        return "nbits" if self.weights == "int4-block32" else "qdq"

    @property
    def activation_type(self) -> str:
        return self.activations or ("none" if self.form == "nbits" else "uint8")

    @property
    def shown(self) -> str:
        return next((name for name in reversed(self.format) if name not in FORMS), "table")

    def quantization_json(self) -> Json:
        return {"format": self.form, "weights": self.weights, "activations": self.activation_type,
                "keep_float": self.keep_float}  # fmt: skip


def default_output(path: Path) -> Path:
    """Return where the result goes by default."""
    return path.with_name(f"{path.stem}.quantized.onnx")
