"""`prune finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options, training
from prunecli.cli.images import reads_images
from prunecli.cli.options import ExternalData, Format
from prunecli.cli.training import NONE, TEACH, TRAIN, BatchNorm, Optimizer, Regularize, ScheduleName

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions

LONG = "Long runs"


@reads_images
def finetune(
    model: options.ModelPath,
    data: options.Data = None,
    labels: options.Labels = None,
    label_column: options.LabelColumn = None,
    limit: options.Limit = None,
    batch_axis: options.BatchAxis = None,
    val_data: training.ValData = None,
    val_split: training.ValSplit = 0.1,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="N", min=1, help="passes over the data", rich_help_panel=TRAIN)
    ] = 5,
    batch_size: options.BatchSize = 64,
    optimizer: training.OptimizerOption = Optimizer.sgd,
    lr: training.Rate = None,
    momentum: Annotated[
        float,
        typer.Option("--momentum", metavar="F", min=0, max=0.9999, help="of sgd; beta1 of adam", rich_help_panel=TRAIN),
    ] = 0.9,
    weight_decay: training.WeightDecay = 5e-4,
    schedule: training.Schedule = ScheduleName.cosine,
    warmup: training.Warmup = 0.05,
    clip: training.Clip = 1.0,
    bn: training.Bn = BatchNorm.auto,
    augment: training.Augment = "none",
    mixup: Annotated[
        float,
        typer.Option(
            "--mixup", metavar="ALPHA", min=0, help="mix samples, shares from Beta(ALPHA, ALPHA)", rich_help_panel=TRAIN
        ),
    ] = 0.0,
    regularize: Annotated[
        Regularize | None,
        typer.Option(
            "--regularize",
            metavar="l1|group-lasso|bn-l1",
            help="push weights towards zero, for pruning later",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", metavar="F", min=0, help="of --regularize", rich_help_panel=TRAIN)
    ] = 1e-4,
    freeze: Annotated[
        list[str] | None,
        typer.Option("--freeze", metavar="GLOB", help="tensors to leave alone; repeatable", rich_help_panel=TRAIN),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="graph inputs that may be trained: initializers that are inputs too; repeatable",
            rich_help_panel=TRAIN,
        ),
    ] = None,
    reset_head: Annotated[
        int | None,
        typer.Option("--reset-head", metavar="N", min=2, help="new last layer for N classes", rich_help_panel=TRAIN),
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            "--patience",
            metavar="N",
            min=0,
            help="stop after N epochs without a better score; 0: never",
            rich_help_panel=TRAIN,
        ),
    ] = 0,
    seed: options.Seed = 0,
    teacher: training.Teacher = None,
    temperature: training.Temperature = 4.0,
    alpha: training.Alpha = 0.9,
    smoothing: Annotated[
        float,
        typer.Option("--label-smoothing", metavar="F", min=0, max=0.9, help="of class labels", rich_help_panel=TEACH),
    ] = 0.0,
    output_name: options.OutputName = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="save the state here every minute", rich_help_panel=LONG),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from --checkpoint", rich_help_panel=LONG)] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="PATH", help="loss and score over time: .csv, or JSON lines", rich_help_panel=LONG
        ),
    ] = None,
    pack: options.Pack = False,
    output: options.OutputPath = None,
    force: options.Force = False,
    external_data: options.ExternalDataOption = ExternalData.auto,
    no_verify: options.NoVerify = False,
    format: options.FormatOption = Format.table,
    report: options.ReportPath = None,
    no_progress: options.NoProgress = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
    *,
    images: ImageOptions,
) -> None:
    """Train a model, its zeros and its structure kept, with labels, a teacher, or both.

    Gradients run in onnxruntime; the result is an ordinary model with the same inputs and outputs. Without
    labels give --teacher ORIGINAL.onnx: its outputs are what is learned.
    """
    from prunecli.cli.output import emit
    from prunecli.cli.progress import progress_for
    from prunecli.data.options import DataOptions
    from prunecli.errors import PruneError
    from prunecli.pipeline.finetune import finetune as run
    from prunecli.pipeline.finetune import raise_if_harmful
    from prunecli.pipeline.finetune_options import FinetuneOptions
    from prunecli.pipeline.pack import Packing
    from prunecli.pipeline.subject import Execution
    from prunecli.recover.augment import parse_augments
    from prunecli.recover.objective import ObjectiveOptions
    from prunecli.recover.optimizers import Knobs
    from prunecli.recover.session import Setup
    from prunecli.recover.trainer import TrainOptions

    source = DataOptions.of(data, labels, label_column, limit, images, batch_axes=batch_axis)
    if source is None:
        raise PruneError("training needs data", "give --data")
    train = TrainOptions(
        epochs=epochs, batch_size=batch_size, optimizer=optimizer.value, rate=lr,
        knobs=Knobs(momentum, weight_decay=weight_decay), schedule=schedule.value, warmup=warmup, clip=clip,
        mixup=mixup, augment=parse_augments(augment), regularize=regularize.value if regularize else None,
        strength=strength, patience=patience, seed=seed,
    )  # fmt: skip
    execution = Execution(provider or "cpu", threads)
    objective = ObjectiveOptions(smoothing, mixup > 0, temperature, alpha, output_name)
    wanted = FinetuneOptions(
        source,
        Setup(train, objective, tuple(freeze or ()), bn.value, execution.thread_count),
        validation=None if val_data is None else source.like(val_data),
        val_split=val_split, teacher=None if teacher in (None, NONE) else Path(str(teacher)), reset_head=reset_head,
        checkpoint=checkpoint, resume=resume, log=log,
        execution=execution, output=output, force=force, verify=not no_verify, external_data=external_data.value,
        pack=Packing() if pack else None, include=tuple(include or ()),
    )  # fmt: skip
    result = run(model, wanted, progress_for(no_progress))
    emit(result, format, report)
    raise_if_harmful(result)
