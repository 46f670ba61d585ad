"""The options that mean the same in every command, each written once (the names are a contract).

A command takes `output: Output = None, force: Force = False, ...`. The panels are the sections of `--help`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from prunecli.errors import PruneError
from prunecli.quantity import parse_fraction

T = TypeVar("T")

OUTPUT, REPORT, SELECT, DATA, RUN = "Output", "Report", "Selection", "Data", "Execution"
PACK = "Packing"


class Format(StrEnum):
    """What stdout carries."""

    table = "table"
    json = "json"
    markdown = "markdown"


class ExternalData(StrEnum):
    """Where weights are stored when a model is saved."""

    auto = "auto"
    always = "always"
    never = "never"


def as_option(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Wrap a parser that raises PruneError so that the message names the option it was given for."""

    def wrapped(text: str) -> T:
        if not isinstance(text, str):  # a default that is already parsed
            return text
        try:
            return parse(text)
        except PruneError as error:
            raise typer.BadParameter(error.message) from error

    wrapped.__name__ = "value"
    return wrapped


def _check_report(path: Path | None) -> Path | None:
    """Refuse a report that could not be written, before any work is done."""
    from prunecli.cli.output import check_report_path

    try:
        check_report_path(path)
    except PruneError as error:
        raise typer.BadParameter(error.message) from error
    return path


def _check_gates(texts: list[str] | None) -> list[str] | None:
    """Refuse what is not NAME OP NUMBER, before any work is done."""
    from prunecli.evaluation.gates import parse_gate

    for text in texts or ():
        parse_gate(text)
    return texts


ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="the ONNX file", show_default=False)]

OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="where to write; default STEM.pruned.onnx beside the model (pack: .packed, unpack: .dense)",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="replace an existing output", rich_help_panel=OUTPUT)]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="the whole plan and report, nothing written", rich_help_panel=OUTPUT),
]
ExternalDataOption = Annotated[
    ExternalData,
    typer.Option(
        "--external-data",
        metavar="auto|always|never",
        help="weights in a file beside; auto: as the input did, and always above 2 GB",
        rich_help_panel=OUTPUT,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="skip the onnxruntime proof that otherwise follows every write",
        rich_help_panel=OUTPUT,
    ),
]
Pack = Annotated[
    bool,
    typer.Option(
        "--pack",
        help="store the zeros small, as `prune pack` does: any onnxruntime opens the file",
        rich_help_panel=OUTPUT,
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PATH", help="replay the decision kept in PATH", rich_help_panel=OUTPUT),
]
SavePlan = Annotated[
    Path | None,
    typer.Option("--save-plan", metavar="PATH", help="keep the exact decision in PATH (JSON)", rich_help_panel=OUTPUT),
]

Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="only nodes or initializers whose name matches; repeatable",
        rich_help_panel=SELECT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="leave nodes or initializers whose name matches alone; repeatable",
        rich_help_panel=SELECT,
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        "--sparsity",
        metavar="S",
        parser=as_option(parse_fraction),
        help="fraction of the weights to zero, as 0.5 or 50%",
        rich_help_panel=SELECT,
    ),
]


class RecoverName(StrEnum):
    auto = "auto"
    none = "none"
    bias = "bias"
    bn = "bn"
    lstsq = "lstsq"


Recover = Annotated[
    RecoverName | None,
    typer.Option(
        "--recover",
        metavar="none|bias|bn|lstsq|auto",
        help="fit what is left to what the original computes, without training or labels: bias (means), bn (means and"
        " variances), lstsq (least squares), auto; default auto with --data, else none",
        rich_help_panel="Recovery",
    ),
]
RecoverZeros = Annotated[
    RecoverName | None,
    typer.Option(
        "--recover",
        metavar="none|bias|bn|lstsq|auto",
        help="fit what is left to what the original computes: bias (means), bn (means and variances), lstsq (least"
        " squares); auto, the default, is lstsq",
        rich_help_panel="Recovery",
    ),
]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D",
        help=".npz, .npy, .csv, a folder of images or of test_data_set_*, or module.py:function",
        rich_help_panel=DATA,
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D|synthetic",
        help=".npz, .npy, .csv, a folder of images or of test_data_set_*, or module.py:function; synthetic: inputs made"
        " from the model alone, a stand-in where there is no data",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="PATH", help="labels as .npy, for .npy and .npz data", rich_help_panel=DATA),
]
LabelColumn = Annotated[
    str | None,
    typer.Option("--label-column", metavar="NAME", help="the label column of a .csv", rich_help_panel=DATA),
]
TrainData = Annotated[
    str | None,
    typer.Option(
        "--train-data",
        metavar="D",
        help="the training data: to train on instead of --data, or for the train-test gap",
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="samples per run", rich_help_panel=DATA)
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="use only the first N samples", rich_help_panel=DATA),
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--batch-axis",
        metavar="NAME=N",
        help="the axis of an input that counts the samples, where it is not the first and no dimension's name says so,"
        " as state=1; repeatable",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="seed of every random choice", rich_help_panel=DATA)
]

OutputName = Annotated[
    str | None,
    typer.Option(
        "--output-name",
        metavar="NAME",
        help="the output that counts; default the first that fits the labels, where labels matter, else all",
        rich_help_panel=DATA,
    ),
]
FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        metavar="table|json|markdown",
        help="what stdout carries; messages go to stderr",
        rich_help_panel=REPORT,
    ),
]
ReportPath = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="PATH",
        callback=_check_report,
        help="the same report as a file: .json, .md or .html",
        rich_help_panel=REPORT,
    ),
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="'NAME OP NUMBER'",
        callback=_check_gates,
        help="exit 1 when it holds, e.g. 'accuracy.drop>1%'; repeatable",
        rich_help_panel=REPORT,
    ),
]
NoProgress = Annotated[
    bool,
    typer.Option("--no-progress", help="no progress bars; also implied off a terminal", rich_help_panel=REPORT),
]

Dim = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        metavar="NAME=SIZE",
        help="value of a dynamic dimension, e.g. batch=1; repeatable",
        rich_help_panel=RUN,
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:SIZES",
        help="shape of an input, e.g. x:1,3,224,224; repeatable",
        rich_help_panel=RUN,
    ),
]
Provider = Annotated[
    str | None,
    typer.Option("--provider", metavar="NAME", help="onnxruntime execution provider", rich_help_panel=RUN),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="onnxruntime threads", rich_help_panel=RUN),
]
MaxRatio = Annotated[
    float | None,
    typer.Option(
        "--max-ratio",
        metavar="R",
        parser=as_option(parse_fraction),
        help="of structures: the largest fraction removed from any group; default 0.9",
        rich_help_panel=SELECT,
    ),
]
RoundTo = Annotated[
    int | None,
    typer.Option(
        "--round-to",
        metavar="N",
        min=1,
        help="keep widths of structures multiples of N",
        rich_help_panel=SELECT,
    ),
]
