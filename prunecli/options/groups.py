"""The options that several commands share, each group a base class of theirs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prunecli.errors import PruneError
from prunecli.inputs import SYNTHETIC
from prunecli.options.declare import DATA, OUTPUT, REPORT, RUN, SELECT, Option, Options, declared_of

if TYPE_CHECKING:
    from prunecli.data import ImageOptions
    from prunecli.data.options import DataOptions
    from prunecli.model import Dims
    from prunecli.runtime import Execution

IMAGES = "Image folders"
INCLUDE = "only nodes or initializers whose name matches; initializers that are graph inputs too are changed only so; repeatable"


def check_report_path(path: Path) -> None:
    """Refuse a report that could not be written, before any work is done."""
    from prunecli.report.document import MARKS

    if path.suffix.lower() not in MARKS:
        raise PruneError(f"cannot tell the report's format from {path.name!r}", "end it in .json, .md or .html")
    if path.is_dir() or not path.parent.is_dir():
        raise PruneError(f"cannot write the report {path}", "name a file in an existing folder")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if MARKS[path.suffix.lower()].encode() not in file.read(400):
                raise PruneError(f"{path} exists and is no report of prune", "remove it, or name another file")


def _check_gate(text: str) -> None:
    from prunecli.evaluation.gates import parse_gate

    parse_gate(text)


@dataclass(frozen=True, kw_only=True)
class Reporting(Options):
    """The report of a command."""

    printed = frozenset({"format", "report"})
    format: Annotated[
        Literal["table", "json", "markdown"], Option("what stdout carries; messages go to stderr", REPORT)
    ] = "table"
    report: Annotated[
        tuple[Path, ...],
        Option("the same report as a file: .json, .md or .html; repeatable", REPORT, "PATH", check=check_report_path),
    ] = ()
    progress: Annotated[
        bool, Option("no progress bars; also implied off a terminal", REPORT, name="no-progress", off=True)
    ] = True


@dataclass(frozen=True, kw_only=True)
class Sized(Options):
    """Sizes of dynamic dimensions."""

    dim: Annotated[
        tuple[str, ...], Option("value of a dynamic dimension, e.g. batch=1; repeatable", RUN, "NAME=SIZE")
    ] = ()
    input_shape: Annotated[
        tuple[str, ...], Option("shape of an input, e.g. x:1,3,224,224; repeatable", RUN, "NAME:SIZES")
    ] = ()

    def check(self) -> None:
        super().check()
        if self.dim or self.input_shape:
            assert self.dims

    @property
    def dims(self) -> Dims:
        from prunecli.model import Dims

        return Dims.parse(self.dim, self.input_shape)


@dataclass(frozen=True, kw_only=True)
class Running(Options):
    """How onnxruntime runs models."""

    provider: Annotated[str | None, Option("onnxruntime execution provider", RUN, "NAME")] = None
    threads: Annotated[int | None, Option("onnxruntime threads", RUN, "N", least=1)] = None

    def check(self) -> None:
        super().check()
        assert self.execution  # whose threads are checked

    @property
    def execution(self) -> Execution:
        from prunecli.runtime import Execution

        return Execution(self.provider or "cpu", self.threads)


@dataclass(frozen=True, kw_only=True)
class Timing(Running):
    """The measured speed in a report."""

    timing: Annotated[
        bool, Option("leave the measured speed out of the report: a few seconds", REPORT, name="no-timing", off=True)
    ] = True
    # the threads that are timed, where the work itself is done on others
    timed_threads: int | None = None

    @property
    def timed_execution(self) -> Execution:
        from dataclasses import replace

        return replace(self.execution, threads=self.timed_threads or self.threads)

    @property
    def stated_dims(self) -> Dims:
        """Sizes of dynamic dimensions, where the command takes some."""
        from prunecli.model import Dims

        return self.dims if isinstance(self, Sized) else Dims()


@dataclass(frozen=True, kw_only=True)
class Resumed(Options):
    """What a run that was cut short continues from."""

    state: Annotated[
        Path | None, Option("keep what is done in PATH; a later run with the same PATH continues", RUN, "PATH")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Distributed(Options):
    """Where work that falls into parts is done."""

    jobs: Annotated[
        int | None,
        Option("processes that run trials, or parts of the samples; default for trials one per core, or as --threads says,"
               " else one", RUN, "N", short="j", least=1),
    ] = None  # fmt: skip
    backend: Annotated[
        Literal["local", "dask"],
        Option("where trials, or parts of the samples, run; dask: on the cluster at --address", RUN),
    ] = "local"
    address: Annotated[str | None, Option("the scheduler of a Dask cluster", RUN, "tcp://HOST:PORT")] = None

    def check(self) -> None:
        from prunecli.runtime import check_parallel

        super().check()
        check_parallel("--jobs", self.jobs)
        if (self.backend == "dask") != (self.address is not None):
            raise PruneError("--backend dask and --address go together", "--backend dask --address tcp://HOST:8786")
        if self.backend == "dask" and find_spec("distributed") is None:
            raise PruneError("--backend dask needs the package distributed", "pip install 'prunecli[distributed]'")


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """Random choices."""

    seed: Annotated[int, Option("seed of every random choice", DATA, "N", least=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Images(Options):
    """How the images of a folder become inputs; None: as the preset says."""

    preset: Annotated[
        str | None,
        Option("resize, centre crop, scale, mean, std and order of channels as in those models; options below override it",
               IMAGES, "imagenet|inception|caffe|clip"),
    ] = None  # fmt: skip
    resize: Annotated[
        str | None, Option("shorter side to N, or to HxW exactly; default: as the images are", IMAGES, "N|HxW")
    ] = None
    crop: Annotated[str | None, Option("the centre, after --resize", IMAGES, "N|HxW")] = None
    interpolation: Annotated[
        str | None, Option("of --resize; default bilinear", IMAGES, "nearest|bilinear|bicubic|lanczos")
    ] = None
    scale: Annotated[
        str | None, Option("(F * x - mean) / std of pixels 0 to 255; default 1/255, of integers 1", IMAGES, "F")
    ] = None
    mean: Annotated[str | None, Option("one number or one per channel; default 0", IMAGES, "LIST")] = None
    std: Annotated[str | None, Option("one number or one per channel; default 1", IMAGES, "LIST")] = None
    channel_order: Annotated[str | None, Option("default rgb", IMAGES, "rgb|bgr")] = None
    layout: Annotated[
        str | None, Option("axes of the input; default: by the model's shape", IMAGES, "nchw|nhwc|chw|hwc|nhw")
    ] = None
    classes: Annotated[
        str | None,
        Option("class numbers of the sub-folders: by order of names (default), the names themselves, or from a .txt with"
               " a name per line or a .json", IMAGES, "sorted|numbers|FILE"),
    ] = None  # fmt: skip

    def check(self) -> None:
        super().check()
        if Images.given(vars(self)):
            assert self.images is not None

    @property
    def images(self) -> ImageOptions:
        from prunecli.data import ImageOptions

        return ImageOptions.parse(
            preset=self.preset, resize=self.resize, crop=self.crop, interpolation=self.interpolation,
            scale=self.scale, mean=self.mean, std=self.std, order=self.channel_order, layout=self.layout,
            classes=self.classes,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Samples(Images):
    """Data: a text as on the command line, a path, or `DataOptions` with all that belongs to them. `sources`: fields that
    name data; `of_data`: those that mean nothing without."""

    allow_synthetic: ClassVar[bool] = False
    sources: ClassVar[tuple[str, ...]] = ("data",)
    of_data: ClassVar[tuple[str, ...]] = (*(one.field for one in declared_of(Images)), "batch_axis", "limit")
    data: Annotated[
        Any,
        Option(".npz, .npy, .csv, a folder of images or of test_data_set_*, or module.py:function", DATA, "D"),
    ] = None
    labels: Annotated[Path | None, Option("labels as .npy, for .npy and .npz data", DATA, "PATH")] = None
    label_column: Annotated[str | None, Option("the label column of a .csv", DATA, "NAME")] = None
    limit: Annotated[int | None, Option("use only the first N samples", DATA, "N", least=1)] = None
    batch_axis: Annotated[
        tuple[str, ...],
        Option("the axis of an input that counts the samples, where it is not the first and no dimension's name says so,"
               " as state=1; repeatable", DATA, "NAME=N"),
    ] = ()  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.data is not None:
            if self.data == SYNTHETIC and self.source is not None:
                self.source.check_synthetic(self.allow_synthetic)
        elif self.labels is not None or self.label_column is not None:
            raise PruneError("labels were given without data", "add --data")
        elif all(getattr(self, name) is None for name in self.sources):
            others = {one.field for one in declared_of(type(self))}.difference(self.of_data)
            if named := self.given(vars(self), *others):
                raise PruneError(f"{named[0]} was given without data", "add --data")

    @classmethod
    def idle(cls, given: Collection[str]) -> frozenset[str]:
        """Without data nothing is read."""
        return super().idle(given) | (frozenset(cls.of_data) if {*cls.sources}.isdisjoint(given) else frozenset())

    @property
    def source(self) -> DataOptions | None:
        """Return where the data are and how they are read; None without data."""
        from prunecli.data.options import DataOptions

        if self.data is None or isinstance(self.data, DataOptions):
            return self.data
        return self._read_as(str(self.data))

    def _read_as(self, text: str) -> DataOptions:
        from prunecli.data.axes import parse_axes
        from prunecli.data.options import DataOptions

        return DataOptions(
            text,
            self.labels,
            self.label_column,
            limit=self.limit,
            images=self.images,
            batch_axes=parse_axes(self.batch_axis),
        )

    def like(self, other: Any) -> DataOptions:
        """Return options for other data (training or validation data) that are read as `data` are."""
        from prunecli.data.options import DataOptions

        if isinstance(other, DataOptions):
            return other
        return (self.source or self._read_as("")).like(str(other))


@dataclass(frozen=True, kw_only=True)
class CalibrationSamples(Samples):
    """Data that may be synthetic."""

    allow_synthetic = True
    data: Annotated[
        Any,
        Option(".npz, .npy, .csv, a folder of images or of test_data_set_*, or module.py:function; synthetic: inputs made"
               " from the model alone, a stand-in where there is no data", DATA, "D|synthetic"),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Batched(Options):
    """How many samples are run together."""

    batch_size: Annotated[int, Option("samples per run", DATA, "N", least=1)] = 32


@dataclass(frozen=True, kw_only=True)
class Gated(Options):
    """Gates on figures of the report."""

    gates: Annotated[
        tuple[str, ...],
        Option("exit 1 when it holds, e.g. 'accuracy.drop>1%'; repeatable", REPORT, "'NAME OP NUMBER'", name="fail-if", check=_check_gate),
    ] = ()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Written(Options):
    """The file that a command writes."""

    output: Annotated[
        Path | None,
        Option("where to write; default STEM.pruned.onnx beside the model (quantize: .quantized, shrink: .shrunk, pack:"
               " .packed, unpack: .dense)", OUTPUT, "PATH", short="o"),
    ] = None  # fmt: skip
    force: Annotated[bool, Option("replace an existing output", OUTPUT)] = False
    external_data: Annotated[
        Literal["auto", "always", "never"],
        Option("weights in a file beside; auto: as the input did, and always above 2 GB", OUTPUT),
    ] = "auto"
    verify: Annotated[
        bool, Option("skip the onnxruntime proof that otherwise follows every write", OUTPUT, name="no-verify", off=True)
    ] = True  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Saving(Written):
    """The file that a command writes, or would write."""

    dry_run: Annotated[bool, Option("the whole plan and report, nothing written", OUTPUT)] = False


@dataclass(frozen=True, kw_only=True)
class StoredPacked(Options):
    """Zeros that are stored small."""

    pack: Annotated[
        bool, Option("store the zeros small, as `prune pack` does: any onnxruntime opens the file", OUTPUT)
    ] = False


@dataclass(frozen=True, kw_only=True)
class Tested(Options):
    """Labelled data that nothing is fitted to."""

    test: Annotated[
        Any,
        Option("labelled data on which the float model and what quantising makes of it are measured, read as --data is",
               DATA, "D"),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QuantizedLast(Tested):
    """Integers in place of floats, of what was pruned."""

    quantize: Annotated[
        Literal["int8", "uint8"] | None,
        Option("after pruning, weights and activations become integers, as with `prune quantize`: fitted on --data, zeros stay",
               OUTPUT),
    ] = None  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.test is not None and self.quantize is None:
            raise PruneError("--test goes with --quantize", "`prune evaluate` measures models on labelled data")
        if self.quantize is not None and getattr(self, "data", None) is None:
            raise PruneError("--quantize is fitted on data", "give --data; a few hundred unlabelled samples will do")


@dataclass(frozen=True, kw_only=True)
class Shrinking(Options):
    """Zeros of which whole units consist."""

    shrink: Annotated[
        bool, Option("units that are empty then leave the graph, exactly, as with `prune shrink`", OUTPUT)
    ] = False


ERK = "erk: by shapes, small layers keep more"
LOSS = "loss: by the damage that is measured"
ALLOCATE = (
    "how the cut spreads over the layers; predicted: more where a graph neural network says, from the file alone, that it"
    " hurts less"
)


@dataclass(frozen=True, kw_only=True)
class Chosen(Options):
    """Which layers are pruned."""

    include: Annotated[tuple[str, ...], Option(INCLUDE, SELECT, "GLOB")] = ()
    exclude: Annotated[
        tuple[str, ...], Option("leave nodes or initializers whose name matches alone; repeatable", SELECT, "GLOB")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class OutputNamed(Options):
    """The output that is measured."""

    output_name: Annotated[
        str | None,
        Option("the output that counts; default the first that fits the labels, where labels matter, else all", DATA,
               "NAME"),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replayed(Options):
    """A decision that was made before. `apart`: fields of the selection that say how it is carried out."""

    apart: ClassVar[tuple[str, ...]] = ()

    plan: Annotated[Path | None, Option("replay the decision kept in PATH", OUTPUT, "PATH")] = None

    @classmethod
    def idle(cls, given: Collection[str]) -> frozenset[str]:
        """With a plan nothing is selected."""
        return super().idle(given) | (cls.fields_in(SELECT).difference(cls.apart) if "plan" in given else frozenset())

    def check(self) -> None:
        super().check()
        others = {one.field for one in declared_of(type(self))} - self.fields_in(SELECT)
        if self.plan is not None and (given := self.given(vars(self), *others, *self.apart)):
            raise PruneError("--plan fixes what is pruned", f"leave out {', '.join(given)}")
