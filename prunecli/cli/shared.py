"""The options that come together in many commands, each a group that `takes` spreads out; and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.cli.options import ExternalData, Format

if TYPE_CHECKING:
    from prunecli.cli.output import Result
    from prunecli.data.images.options import ImageOptions
    from prunecli.data.options import DataOptions
    from prunecli.model import Dims
    from prunecli.pipeline.subject import Execution
    from prunecli.types import Progress


@dataclass(frozen=True)
class Samples:
    """The data of a command."""

    data: options.Data = None
    labels: options.Labels = None
    label_column: options.LabelColumn = None
    limit: options.Limit = None
    batch_axis: options.BatchAxis = None

    def source(
        self, images: ImageOptions, train_data: str | None = None, synthetic: bool = False
    ) -> DataOptions | None:
        from prunecli.data.options import DataOptions

        return DataOptions.of(
            self.data, self.labels, self.label_column, self.limit, images, train_data, synthetic, self.batch_axis
        )


@dataclass(frozen=True)
class Calibration(Samples):
    """Data that may be made up."""

    data: options.CalibrationData = None

    def source(self, images: ImageOptions, train_data: str | None = None, synthetic: bool = True) -> DataOptions | None:
        return super().source(images, train_data, synthetic)


@dataclass(frozen=True)
class Saving:
    """The file that is written."""

    output: options.OutputPath = None
    force: options.Force = False
    dry_run: options.DryRun = False
    external_data: options.ExternalDataOption = ExternalData.auto
    no_verify: options.NoVerify = False

    def fields(self) -> dict[str, Any]:
        """As the options of every command's work name them."""
        return {"output": self.output, "force": self.force, "dry_run": self.dry_run} | self.rewriting()

    def rewriting(self) -> dict[str, Any]:
        """What holds for files that are written on the way, too."""
        return {"verify": not self.no_verify, "external_data": self.external_data.value}


@dataclass(frozen=True)
class Reporting:
    """What is told of the result, and of the way there."""

    format: options.FormatOption = Format.table
    report: options.ReportPath = None
    no_progress: options.NoProgress = False

    def progress(self) -> Progress:
        from prunecli.cli.progress import progress_for

        return progress_for(self.no_progress)

    def emit(self, result: Result) -> None:
        from prunecli.cli.output import emit

        emit(result, self.format, self.report)


@dataclass(frozen=True)
class Running:
    """How onnxruntime runs the model."""

    dim: options.Dim = None
    input_shape: options.InputShape = None
    provider: options.Provider = None
    threads: options.Threads = None

    def dims(self) -> Dims:
        from prunecli.model import Dims

        return Dims.parse(self.dim or (), self.input_shape or ())

    def execution(self) -> Execution:
        from prunecli.pipeline.subject import Execution

        return Execution(self.provider or "cpu", self.threads)


reports = takes(reporting=Reporting, running=Running)
"""Gives a command what nearly all have: `reporting: Reporting` and `running: Running`."""
