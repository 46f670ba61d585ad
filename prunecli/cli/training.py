"""The options of training: those of `prune finetune`, and the group that pruning commands add by `@trains`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli import options
from prunecli.cli.groups import takes
from prunecli.errors import PruneError

if TYPE_CHECKING:
    from prunecli.data import ImageOptions
    from prunecli.data.options import DataOptions
    from prunecli.pipeline.gradual import Retrain
    from prunecli.pipeline.subject import Execution

TRAIN, TEACH = "Training", "Loss and teacher"
NONE = "none"


class Optimizer(StrEnum):
    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"


class ScheduleName(StrEnum):
    cosine = "cosine"
    onecycle = "onecycle"
    step = "step"
    constant = "constant"


class BatchNorm(StrEnum):
    auto = "auto"
    update = "update"
    frozen = "frozen"


class Regularize(StrEnum):
    l1 = "l1"
    group_lasso = "group-lasso"
    bn_l1 = "bn-l1"


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


OptimizerOption = Annotated[
    Optimizer, _option(TRAIN, "--optimizer", metavar="sgd|adam|adamw", help="sgd has Nesterov momentum")
]
Rate = Annotated[
    float | None,
    _option(TRAIN, "--lr", metavar="RATE", min=0, help="learning rate; default 0.05 for sgd, 0.001 for adam and adamw"),
]
WeightDecay = Annotated[float, _option(TRAIN, "--weight-decay", metavar="F", min=0, help="of matrices and kernels")]
Schedule = Annotated[
    ScheduleName,
    _option(TRAIN, "--schedule", metavar="cosine|onecycle|step|constant", help="learning rate over the run"),
]
Warmup = Annotated[
    float, _option(TRAIN, "--warmup", metavar="F", min=0, max=1, help="fraction of the steps that the rate rises")
]
Clip = Annotated[float, _option(TRAIN, "--clip", metavar="NORM", min=0, help="largest norm of the gradient; 0: any")]
Bn = Annotated[BatchNorm, _option(TRAIN, "--bn", metavar="auto|update|frozen", help="BatchNormalization statistics")]
Augment = Annotated[str, _option(TRAIN, "--augment", metavar="LIST", help="flip, shift, cutout of image-like input")]
Teacher = Annotated[
    str | None,
    _option(
        TEACH, "--teacher", metavar="ORIGINAL|none",
        help="learn from this model's outputs, with or without labels; with --finetune-epochs by default the unpruned"
        " model, `none`: labels alone",
    ),
]  # fmt: skip
Temperature = Annotated[
    float, _option(TEACH, "--temperature", metavar="T", min=0.1, help="softens the teacher's scores")
]
Alpha = Annotated[
    float,
    _option(TEACH, "--alpha", metavar="F", min=0, max=1, help="share of the teacher's loss beside the labels'"),
]
ValData = Annotated[
    str | None, _option(options.DATA, "--val-data", metavar="D", help="data that chooses the best weights")
]
ValSplit = Annotated[
    float,
    _option(
        options.DATA, "--val-split", metavar="F", min=0, max=0.9,
        help="fraction of the training data held out for that instead; 0: keep the last weights",
    ),
]  # fmt: skip
Steps = Annotated[
    int | None,
    _option(options.SELECT, "--steps", metavar="N", min=1, help="remove in N steps, scored anew; with --finetune-epochs"
            " trained after each, more at first (cubic)"),
]  # fmt: skip
FinetuneEpochs = Annotated[
    int | None,
    _option(
        TRAIN, "--finetune-epochs", metavar="N", min=1,
        help="train the result for N passes over the data, after each of --steps; see `prune finetune`",
    ),
]  # fmt: skip
TrainBatchSize = Annotated[
    int, _option(TRAIN, "--train-batch-size", metavar="N", min=1, help="samples per step of training")
]


@dataclass(frozen=True)
class Given:
    """What a command line says of training after pruning."""

    epochs: int | None
    train_data: str | None
    teacher: str | None
    chosen: Mapping[str, Any]

    def retrain(
        self,
        data: DataOptions | None,
        steps: int | None,
        execution: Execution,
        seed: int,
        images: ImageOptions | None = None,
        **saving: Any,
    ) -> Retrain | None:
        """None without --finetune-epochs. `data` is the command's own; `images`: what was asked of folders of images;
        `saving`: fields of FinetuneOptions.

        Raises:
            PruneError: options of training without it, or training without data.
        """
        if self.epochs is None:
            self._check_unused()
            return None
        from dataclasses import replace

        from prunecli.data.synthetic import SYNTHETIC
        from prunecli.pipeline.gradual import Retrain

        source = data if self.train_data is None else self._source(data, images)
        if source is None:
            raise PruneError("--finetune-epochs needs data", "give --data or --train-data")
        if source.text == SYNTHETIC:
            raise PruneError("training needs real data", "add --train-data, or leave --finetune-epochs out")
        named = None if self.teacher in (None, NONE) else self.teacher
        made = Retrain.of(
            steps or 1, self.teacher != NONE, data=source, epochs=self.epochs, teacher=named, seed=seed,
            execution=execution, threads=execution.thread_count, **self.chosen, **saving,
        )  # fmt: skip
        held = made.options.validation
        if held is not None:
            made = replace(made, options=replace(made.options, validation=source.like(held.text)))
        return made

    def _source(self, data: DataOptions | None, images: ImageOptions | None) -> DataOptions:
        from prunecli.data import ImageOptions
        from prunecli.data.options import DataOptions

        first = data or DataOptions("", images=images or ImageOptions())
        return first.like(str(self.train_data))

    def _check_unused(self) -> None:
        names = {"rate": "lr", "validation": "val-data", "batch_size": "train-batch-size"}
        given = {"train-data": self.train_data, "teacher": self.teacher}
        given |= {names.get(n, n.replace("_", "-")): v for n, v in self.chosen.items() if v != DEFAULTS[n]}
        used = [name for name, value in given.items() if value is not None]
        if used:
            raise PruneError(f"--{used[0]} is of training, which was not asked for", "add --finetune-epochs 5")


def _template(
    finetune_epochs: FinetuneEpochs = None,
    train_data: options.TrainData = None,
    val_data: ValData = None,
    val_split: ValSplit = 0.1,
    train_batch_size: TrainBatchSize = 64,
    optimizer: OptimizerOption = Optimizer.sgd,
    lr: Rate = None,
    weight_decay: WeightDecay = 5e-4,
    schedule: Schedule = ScheduleName.cosine,
    warmup: Warmup = 0.05,
    clip: Clip = 1.0,
    bn: Bn = BatchNorm.auto,
    augment: Augment = "none",
    teacher: Teacher = None,
    temperature: Temperature = 4.0,
    alpha: Alpha = 0.9,
) -> Given:
    """The group: its parameters are a command's, and what was given is passed on as one value."""
    chosen = {
        "validation": val_data, "val_split": val_split, "batch_size": train_batch_size, "optimizer": optimizer.value,
        "rate": lr, "weight_decay": weight_decay, "schedule": schedule.value, "warmup": warmup, "clip": clip,
        "bn": bn.value, "augment": augment, "temperature": temperature, "alpha": alpha,
    }  # fmt: skip
    return Given(finetune_epochs, train_data, teacher, chosen)


DEFAULTS = _template().chosen


trains = takes(training=_template)
"""Gives a command the options of training; it takes what was given as `training: Given`."""
