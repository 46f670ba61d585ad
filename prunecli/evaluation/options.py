"""The options of `prune evaluate` and `prune compare`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prunecli.errors import PruneError
from prunecli.options.declare import DATA, Option
from prunecli.options.groups import Batched, Gated, OutputNamed, Reporting, Running, Samples, Seeded, Sized, Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunecli.data.options import DataOptions
    from prunecli.evaluation.gates import Gate
    from prunecli.evaluation.passes import ReadingOptions
    from prunecli.evaluation.quality import Merit

QUALITY = "Measurements"
NAMES = (
    "accuracy",
    "f1",
    "rmse",
    "miou",
    "psnr",
    "ssim",
    "perplexity",
    "wer",
    "spearman",
    "recall_at_5",
    "map",
    "map50",
)
"""Metrics that the help lists; the message about an unknown metric lists all."""
RANDOM = 8
"""Random inputs of `prune compare`, where nothing else is said."""
METRIC = "NAME|FILE.py:FUNCTION"
METRIC_HELP = (
    f"what quality means: {', '.join(NAMES)}, ..., or a function of your own of `predictions`, `labels`, `inputs` or"
    " `outputs`, where more is better, else lower:FILE.py:FUNCTION. Default: all that fits the labels (evaluate; repeatable"
    " there); accuracy or r2, without labels top1_agreement or cosine (trials)"
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(OutputNamed, Samples, Batched, Seeded, Gated, Reporting, Sized, Timing):
    """Quality, size and latency of a model, alone or beside its original.

    With labels: accuracy, precision, recall, F1, top-5, or MAE, RMSE and R2. With --baseline also fidelity,
    what changed, and whether that is beyond chance; latency is measured in turns. Figures for --fail-if:
    accuracy, accuracy.drop, f1.drop, latency.median, latency.speedup, cosine, snr_db, top1_agreement,
    file_bytes, params, macs, sparsity, params.ratio, accuracy.gap, robustness.drop, baseline.accuracy, ...
    """

    of_data = (*Samples.of_data, "task", "average", "per_class", "window", "stride")
    baseline: Annotated[Path | None, Option("the model to compare with", QUALITY, "ORIGINAL")] = None
    train_data: Annotated[
        Any,
        Option("the training data, for the gap between training and test data", DATA, "D"),
    ] = None
    metric: Annotated[
        tuple[str, ...],
        Option(METRIC_HELP, QUALITY, METRIC),
    ] = ()
    task: Annotated[Literal["auto", "classification", "regression"], Option("what the labels mean", QUALITY)] = "auto"
    average: Annotated[
        Literal["weighted", "macro", "micro"], Option("of precision, recall and F1 over the classes", QUALITY)
    ] = "weighted"
    per_class: Annotated[bool, Option("precision, recall and F1 of each class", QUALITY)] = False
    window: Annotated[
        int | None,
        Option("tokens of a sample, where --data is one long row of tokens; default as the model asks, else 512", DATA, "N",
               least=2),
    ] = None  # fmt: skip
    stride: Annotated[
        int | None,
        Option("tokens between the beginnings of such samples: a sliding window, in which every token is counted once, after"
               " as many others as fit; default: samples do not overlap", DATA, "N", least=1),
    ] = None  # fmt: skip
    chunk: Annotated[
        int | None,
        Option("tokens that are run at once, each such part of a sample after the keys and values of those before it, as a"
               " model that writes runs; default: the whole sample", DATA, "N", least=1),
    ] = None  # fmt: skip
    robustness: Annotated[bool, Option("quality under noise, outliers, blur, contrast", QUALITY)] = False
    latency: Annotated[bool, Option("do not measure time", QUALITY, name="no-latency", off=True)] = True
    latency_runs: Annotated[
        int | None, Option("timed runs of each model; default a few seconds' worth", QUALITY, "N", least=2)
    ] = None
    latency_batch: Annotated[int, Option("samples per timed run", QUALITY, "N", least=1)] = 1

    def check(self) -> None:
        from prunecli.evaluation.figures import known
        from prunecli.evaluation.gates import parse_gate

        super().check()
        assert self.merits is not None
        given = self.data is not None
        if self.robustness and not given:
            raise PruneError("--robustness needs data", "give --data; random inputs have no quality to lose")
        if self.train_data is not None and not given:
            raise PruneError("--train-data is compared with test data", "give --data with labels")
        self.check_gates([parse_gate(text, known(self.asked.metrics)) for text in self.gates], given, given)

    def check_gates(self, gates: Sequence[Gate], labels: bool, reference: bool) -> None:
        """Refuse gates on figures that are not measured. `labels`, `reference`: whether the data have labels, and outputs
        to compare with."""
        from prunecli.evaluation.figures import needs

        baseline, latency = "give --baseline ORIGINAL.onnx", "leave out --no-latency and --no-timing"
        have = {
            "baseline": (self.baseline is not None, "a model to compare with", baseline),
            "fidelity": (self.baseline is not None or reference, "a model to compare with", baseline),
            "labels": (labels, "labelled data", "give --data with labels"),
            "latency": (self.measures_time, "latency", latency),
            "train": (self.train_data is not None, "training data", "give --train-data"),
            "robustness": (self.robustness, "robustness", "add --robustness"),
        }
        for gate in gates:
            for there, what, hint in map(have.__getitem__, needs(gate.name, self.asked.metrics)):
                if not there:
                    raise PruneError(f"--fail-if {gate.expr!r} needs {what}", hint)

    @property
    def measures_time(self) -> bool:
        return self.latency and self.timing

    def _read_as(self, text: str) -> DataOptions:
        from dataclasses import replace

        from prunecli.data.language import TokenWindows

        return replace(super()._read_as(text), windows=TokenWindows(self.window, self.stride))

    @property
    def train_samples(self) -> DataOptions | None:
        """The training data, limited to as many samples as the test data."""
        from dataclasses import replace

        if self.train_data is None:
            return None
        given = self.like(self.train_data)
        return replace(given, limit=self.limit) if isinstance(self.train_data, str | Path) else given

    @property
    def asked(self) -> ReadingOptions:
        from prunecli.evaluation.passes import ReadingOptions

        return ReadingOptions(self.task, self.output_name, self.merits)

    @cached_property
    def merits(self) -> dict[str, Merit]:
        """The metrics of --metric by their short names."""
        from prunecli.evaluation.sample_metrics import find_metrics

        return find_metrics(self.metric) if self.metric else {}


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Samples, Batched, Seeded, Gated, Reporting, Sized, Running):
    """How far the outputs of two models lie apart on the same inputs.

    Without --data, on seeded random inputs. Inputs and outputs are matched by name, or by position where the
    names differ. Figures for --fail-if: max_abs, max_rel (largest difference over largest magnitude), cosine,
    snr_db, top1_agreement, each the worst over the outputs; OUTPUT.max_abs and so on for one output.
    """

    samples: Annotated[int | None, Option(f"random inputs, without --data; default {RANDOM}", metavar="N", least=1)] = (
        None
    )

    def check(self) -> None:
        super().check()
        if self.samples is not None and self.data is not None:
            raise PruneError(
                "--samples counts random inputs, and --data takes their place", "--limit says how many of --data"
            )
