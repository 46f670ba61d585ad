"""`prune pack`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.options import PACK, ExternalData, Format
from prunecli.quantity import parse_fraction


class PackFormat(StrEnum):
    table = "table"
    json = "json"
    markdown = "markdown"
    coo = "coo"


class ValueType(StrEnum):
    exact = "exact"
    float16 = "float16"
    int8 = "int8"


def pack(
    model: options.ModelPath,
    values: Annotated[
        ValueType,
        typer.Option(
            "--values",
            metavar="exact|float16|int8",
            help="how what is not zero is stored; the narrow ones are lossy and measured",
            rich_help_panel=PACK,
        ),
    ] = ValueType.exact,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="E",
            parser=options.as_option(parse_fraction),
            help="with narrow values: exit 1, writing nothing, if an output on random inputs differs by more, as a "
            "fraction of its largest element",
            rich_help_panel=PACK,
        ),
    ] = None,
    min_saving: Annotated[
        float,
        typer.Option(
            "--min-saving",
            metavar="S",
            parser=options.as_option(parse_fraction),
            help="a tensor that would save less stays dense; default 10%",
            rich_help_panel=PACK,
            show_default=False,
        ),
    ] = 0.1,
    plain_zeros: Annotated[
        bool,
        typer.Option(
            "--plain-zeros",
            help="turn negative zeros, which masks leave behind, into zeros; else they are kept, as values",
            rich_help_panel=PACK,
        ),
    ] = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    output: options.OutputPath = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    external_data: options.ExternalDataOption = ExternalData.auto,
    no_verify: options.NoVerify = False,
    format: Annotated[
        list[PackFormat] | None,
        typer.Option(
            "--format",
            metavar="coo|table|json|markdown",
            help="coo: store as sparse_initializer (8 more bytes per value) instead of what is smallest; "
            "others: what stdout carries; repeatable",
            rich_help_panel=PACK,
        ),
    ] = None,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    dim: options.Dim = None,
    input_shape: options.InputShape = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Store sparse weights small, in a file that any onnxruntime opens.

    Zeros leave the file; standard operators put them back while the model is loaded, and onnxruntime folds those
    away: what runs is the dense model, as fast as before. Loading takes longer and more memory, which is measured.
    `prune unpack` gives the dense file back, and every command reads packed files as if they were dense.
    """
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.model import Dims
    from prunecli.pipeline.pack import Packing, PackOptions
    from prunecli.pipeline.pack import pack as run
    from prunecli.pipeline.subject import Execution

    coo = PackFormat.coo in (format or ())
    shown = [Format(each.value) for each in format or () if each is not PackFormat.coo]
    wanted = PackOptions(
        packing=Packing("coo" if coo else "auto", values.value, max_error, min_saving, plain_zeros),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        output=output,
        force=force,
        dry_run=dry_run,
        verify=not no_verify,
        external_data=external_data.value,
        dims=Dims.parse(dim or (), input_shape or ()),
        execution=Execution(provider or "cpu", threads),
    )
    emit(run(model, wanted, progress_for(no_progress)), shown[-1] if shown else Format.table, report)
