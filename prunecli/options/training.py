"""The options of training: those of `prune finetune`, and the group that pruning commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prunecli.errors import PruneError
from prunecli.inputs import SYNTHETIC
from prunecli.options.declare import DATA, SELECT, Option, Options
from prunecli.options.groups import (
    INCLUDE,
    Batched,
    OutputNamed,
    Reporting,
    Running,
    Samples,
    Seeded,
    Shrinking,
    StoredPacked,
    Timing,
    Written,
)

if TYPE_CHECKING:
    from prunecli.data.options import DataOptions

TRAIN, TEACH, LONG = "Training", "Loss and teacher", "Long runs"
NONE = "none"
"""As `teacher`: labels alone."""
AUGMENTS = ("flip", "shift", "cutout")


def parse_augments(text: str) -> tuple[str, ...]:
    """Parse `flip,shift`, or `none`."""
    found = tuple(part.strip() for part in text.split(",") if part.strip() not in ("", "none"))
    for name in found:
        if name not in AUGMENTS:
            raise PruneError(f"no augmentation {name!r}", f"choose from {', '.join(AUGMENTS)}, or none")
    return found


@dataclass(frozen=True, kw_only=True)
class Learning(Options):
    """How weights are trained, and on what loss. `rate` None: the optimizer's own."""

    validation: Annotated[Any, Option("data that chooses the best weights", DATA, "D", name="val-data")] = None
    val_split: Annotated[
        float,
        Option("fraction of the training data held out for that instead; 0: keep the last weights", DATA, "F", least=0,
               most=0.9),
    ] = 0.1  # fmt: skip
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Option("sgd has Nesterov momentum", TRAIN)] = "sgd"
    rate: Annotated[
        float | None,
        Option("learning rate; default 0.05 for sgd, 0.001 for adam and adamw", TRAIN, "RATE", name="lr", least=0),
    ] = None
    weight_decay: Annotated[float, Option("of matrices and kernels", TRAIN, "F", least=0)] = 5e-4
    schedule: Annotated[
        Literal["cosine", "onecycle", "step", "constant"], Option("learning rate over the run", TRAIN)
    ] = "cosine"
    warmup: Annotated[float, Option("fraction of the steps that the rate rises", TRAIN, "F", least=0, most=1)] = 0.05
    clip: Annotated[float, Option("largest norm of the gradient; 0: any", TRAIN, "NORM", least=0)] = 1.0
    bn: Annotated[Literal["auto", "update", "frozen"], Option("BatchNormalization statistics", TRAIN)] = "auto"
    augment: Annotated[
        tuple[str, ...], Option("flip, shift, cutout of image-like input", TRAIN, "LIST", read=parse_augments)
    ] = ()
    teacher: Annotated[
        str | None,
        Option("learn from this model's outputs, with or without labels; with --finetune-epochs by default the unpruned"
               " model, `none`: labels alone", TEACH, "ORIGINAL|none"),
    ] = None  # fmt: skip
    temperature: Annotated[float, Option("softens the teacher's scores", TEACH, "T", least=0.1)] = 4.0
    alpha: Annotated[float, Option("share of the teacher's loss beside the labels'", TEACH, "F", least=0, most=1)] = 0.9


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(
    OutputNamed, Learning, Samples, Batched, Seeded, Written, Shrinking, StoredPacked, Reporting, Timing
):
    """Train a model, its zeros and its structure kept, with labels, a teacher, or both.

    Gradients run in onnxruntime; the result is an ordinary model with the same inputs and outputs. Without
    labels give --teacher ORIGINAL.onnx: its outputs are what is learned.
    """

    # bn: `update` normalises by each batch and updates the stored statistics, `frozen` leaves both; `auto` updates where
    # the model has BatchNormalization and batches are large enough
    epochs: Annotated[int, Option("passes over the data", TRAIN, "N", least=1)] = 5
    batch_size: Annotated[int, Option("samples per run", DATA, "N", least=1)] = 64
    momentum: Annotated[float, Option("of sgd; beta1 of adam", TRAIN, "F", least=0, most=0.9999)] = 0.9
    mixup: Annotated[float, Option("mix samples, shares from Beta(ALPHA, ALPHA)", TRAIN, "ALPHA", least=0)] = 0.0
    regularize: Annotated[
        Literal["l1", "group-lasso", "bn-l1"] | None, Option("push weights towards zero, for pruning later", TRAIN)
    ] = None
    strength: Annotated[float, Option("of --regularize", TRAIN, "F", least=0)] = 1e-4
    freeze: Annotated[tuple[str, ...], Option("tensors to leave alone; repeatable", TRAIN, "GLOB")] = ()
    include: Annotated[
        tuple[str, ...],
        Option(INCLUDE, TRAIN, "GLOB"),
    ] = ()
    reset_head: Annotated[int | None, Option("new last layer for N classes", TRAIN, "N", least=2)] = None
    patience: Annotated[int, Option("stop after N epochs without a better score; 0: never", TRAIN, "N", least=0)] = 0
    smoothing: Annotated[float, Option("of class labels", TEACH, "F", name="label-smoothing", least=0, most=0.9)] = 0.0
    checkpoint: Annotated[Path | None, Option("save the state here every minute", LONG, "DIR")] = None
    resume: Annotated[bool, Option("continue from --checkpoint", LONG)] = False
    log: Annotated[Path | None, Option("loss and score over time: .csv, or JSON lines", LONG, "PATH")] = None
    checkpoint_every: float = 60.0
    # where training diverges after it improved, save the best weights before the error is raised
    salvage: bool = True
    # where every epoch is worse than the start, save that
    keep_start: bool = False

    def check(self) -> None:
        super().check()
        if self.data is None:
            raise PruneError("training needs data", "give --data")

    @property
    def teacher_path(self) -> Path | None:
        return None if self.teacher in (None, NONE) else Path(str(self.teacher))

    @property
    def soft_labels(self) -> bool:
        """Whether labels are distributions over the classes: mixing samples makes them so."""
        return self.mixup > 0


@dataclass(frozen=True, kw_only=True)
class Retraining(Learning, Samples, Seeded, Running):
    """Training after pruning, the unpruned model its teacher."""

    finetune_epochs: Annotated[
        int | None,
        Option("train the result for N passes over the data, after each of --steps; see `prune finetune`", TRAIN, "N",
               least=1),
    ] = None  # fmt: skip
    train_data: Annotated[
        Any,
        Option("the training data, to train on instead of --data", DATA, "D"),
    ] = None
    train_batch_size: Annotated[int, Option("samples per step of training", TRAIN, "N", least=1)] = 64

    @property
    def other_data(self) -> bool:
        return self.train_data is not None

    def check(self) -> None:
        super().check()
        if self.finetune_epochs is None:
            given = [*Learning.given(vars(self)), *Retraining.given(vars(self), *UNTRAINED)]
            if given:
                raise PruneError(f"{given[0]} is of training, which was not asked for", "add --finetune-epochs 5")
        elif self.train_data is None and self.data is None:
            raise PruneError("--finetune-epochs needs data", "give --data or --train-data")
        elif self.train_data is None and self.data == SYNTHETIC:
            raise PruneError("training needs real data", "add --train-data, or leave --finetune-epochs out")

    @property
    def trains(self) -> bool:
        return self.finetune_epochs is not None

    @property
    def training_data(self) -> DataOptions | None:
        return self.source if self.train_data is None else self.like(self.train_data)

    @property
    def retraining(self) -> FinetuneOptions:
        """Training as `prune finetune` does it, of whatever file; the teacher only if one was named."""
        assert self.finetune_epochs is not None
        return FinetuneOptions(
            **{name: getattr(self, name) for name in LEARNING},
            data=self.training_data,
            validation=None if self.validation is None else self.like(self.validation),
            epochs=self.finetune_epochs,
            batch_size=self.train_batch_size,
            seed=self.seed,
            provider=self.provider,
            threads=self.threads,
            include=getattr(self, "include", ()),
            verify=getattr(self, "verify", True),
            timing=False,
            external_data=getattr(self, "external_data", "auto"),
        )


@dataclass(frozen=True, kw_only=True)
class Stepwise(Retraining):
    """Pruning in steps."""

    steps: Annotated[
        int | None,
        Option("remove in N steps, scored anew; with --finetune-epochs trained after each, more at first (cubic)", SELECT,
               "N", least=1),
    ] = None  # fmt: skip

    @property
    def step_count(self) -> int:
        return self.steps or 1


LEARNING = tuple(name for name in Learning.__dataclass_fields__ if name != "validation")
UNTRAINED = (*Seeded.__dataclass_fields__, *Samples.__dataclass_fields__, *Running.__dataclass_fields__)
"""Options of the group that mean something without training."""
