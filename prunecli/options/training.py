"""The options of training: those of `prune finetune`, and the group that pruning commands share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prunecli.errors import PruneError
from prunecli.inputs import SYNTHETIC
from prunecli.options.declare import DATA, SELECT, Option, Options
from prunecli.options.groups import (
    INCLUDE,
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
DISTILL = "distill"
"""As `recover`: closed forms, then training on what the unpruned model answers."""
DISTILLED = (
    "train on what the original answers, without labels, as long as samples that are held out gain by it; weights stay as"
    " they are where they do not"
)
NONE = "none"
"""As `teacher`: labels alone."""
BATCH, SMALL_BATCH, TAUGHT_BATCH, FEW = 64, 32, 16, 2048
BATCHES = f"default {BATCH}, of fewer than {FEW} {SMALL_BATCH}, with a teacher alone {TAUGHT_BATCH}"
AUGMENTS = ("flip", "shift", "crop", "cutout")


def parse_augments(text: str) -> tuple[str, ...]:
    """Parse `flip,shift`, or `none`."""
    found = tuple(part.strip() for part in text.split(",") if part.strip() not in ("", "none"))
    for name in found:
        if name not in AUGMENTS:
            raise PruneError(f"no augmentation {name!r}", f"choose from {', '.join(AUGMENTS)}, or none")
    return found


EPOCHS = "passes over the data, at most; default: by how many samples there are"


@dataclass(frozen=True, kw_only=True)
class Learning(Options):
    """How weights are trained, and on what loss. None: `resolved` decides by the data."""

    validation: Annotated[Any, Option("data that chooses the best weights", DATA, "D", name="val-data")] = None
    val_split: Annotated[
        float,
        Option("fraction of the training data held out for that instead; 0: keep the last weights", DATA, "F", least=0,
               most=0.9),
    ] = 0.1  # fmt: skip
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Option("sgd has Nesterov momentum", TRAIN)] = "adamw"
    rate: Annotated[
        float | None,
        Option("learning rate; default 0.05 for sgd, 0.001 for adam and adamw, lowered where it harms on held-out samples;"
               " with a teacher alone what short runs find", TRAIN, "RATE", name="lr", least=0),
    ] = None  # fmt: skip
    weight_decay: Annotated[float, Option("of matrices and kernels", TRAIN, "F", least=0)] = 5e-4
    schedule: Annotated[
        Literal["cosine", "onecycle", "step", "constant"], Option("learning rate over the run", TRAIN)
    ] = "cosine"
    warmup: Annotated[float, Option("fraction of the steps that the rate rises", TRAIN, "F", least=0, most=1)] = 0.05
    clip: Annotated[float, Option("largest norm of the gradient; 0: any", TRAIN, "NORM", least=0)] = 1.0
    bn: Annotated[
        Literal["auto", "update", "frozen"],
        Option("BatchNormalization statistics; auto: update with labels, frozen with a teacher alone", TRAIN),
    ] = "auto"
    augment: Annotated[
        tuple[str, ...] | None,
        Option("flip, shift, crop, cutout of image-like input, or none; default with a teacher alone what helps on held-out"
               " samples, else none", TRAIN, "LIST", read=parse_augments),
    ] = None  # fmt: skip
    mixup: Annotated[
        float | None,
        Option("mix samples, shares from Beta(ALPHA, ALPHA); default as --augment", TRAIN, "ALPHA", least=0),
    ] = None
    patience: Annotated[
        int | None,
        Option("stop after N epochs without a better score; 0: never; default a third of them", TRAIN, "N", least=0),
    ] = None  # fmt: skip
    minutes: Annotated[
        float | None,
        Option("end training after so many minutes, the learning rate falling in time", TRAIN, "MINUTES", name="budget",
               least=0),
    ] = None  # fmt: skip
    teacher: Annotated[
        str | None,
        Option("learn from this model's outputs, with or without labels; with --finetune-epochs by default the unpruned"
               " model, `none`: labels alone", TEACH, "ORIGINAL|none"),
    ] = None  # fmt: skip
    temperature: Annotated[float, Option("softens the teacher's scores", TEACH, "T", least=0.1)] = 4.0
    alpha: Annotated[float, Option("share of the teacher's loss beside the labels'", TEACH, "F", least=0, most=1)] = 0.9
    features: Annotated[
        float | None,
        Option("weight of the values between the teacher's blocks beside its outputs; default 1 with a teacher alone, else 0",
               TEACH, "F", least=0),
    ] = None  # fmt: skip
    blocks: Annotated[
        float | None,
        Option("fraction of the epochs that come first, in which each block learns from the teacher's same block alone;"
               " default as --features", TEACH, "F", least=0, most=1),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(OutputNamed, Learning, Samples, Seeded, Written, Shrinking, StoredPacked, Reporting, Timing):
    """Train a model, its zeros and its structure kept, with labels, a teacher, or both.

    Gradients run in onnxruntime; the result is an ordinary model with the same inputs and outputs. Without
    labels give --teacher ORIGINAL.onnx: its outputs are what is learned.
    """

    # bn: `update` normalises by each batch and updates the stored statistics, `frozen` leaves both; `auto` updates where
    # the model has BatchNormalization and batches are large enough
    epochs: Annotated[int | None, Option(EPOCHS, TRAIN, "N", least=1)] = None
    batch_size: Annotated[int | None, Option(f"samples per step; {BATCHES}", DATA, "N", least=1)] = None
    momentum: Annotated[float, Option("of sgd; beta1 of adam", TRAIN, "F", least=0, most=0.9999)] = 0.9
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
    smoothing: Annotated[float, Option("of class labels", TEACH, "F", name="label-smoothing", least=0, most=0.9)] = 0.0
    checkpoint: Annotated[Path | None, Option("save the state here every minute", LONG, "DIR")] = None
    resume: Annotated[bool, Option("continue from --checkpoint", LONG)] = False
    log: Annotated[Path | None, Option("loss and score over time: .csv, or JSON lines", LONG, "PATH")] = None
    checkpoint_every: float = 60.0
    # where training diverges after it improved, save the best weights before the error is raised
    salvage: bool = True
    # where every epoch is worse than the start, save that
    keep_start: Literal["never", "equal", "always"] = "never"
    # learn from the teacher alone, whatever labels there are
    unlabelled: bool = False
    # positions along axes of the teacher's hidden values that the model no longer has
    removed: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    # the fraction of the masks of these tensors that is exchanged while they are trained, in their pattern
    exchange: float = 0.0
    pattern: str = "element"
    masked: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        if self.data is None:
            raise PruneError("training needs data", "give --data")
        if self.resume and self.checkpoint is None:
            raise PruneError("--resume needs --checkpoint", "name the folder that the first run wrote to")

    @property
    def teacher_path(self) -> Path | None:
        return None if self.teacher in (None, NONE) else Path(str(self.teacher))

    @property
    def soft_labels(self) -> bool:
        """Whether labels are distributions over the classes: mixing samples makes them so."""
        return bool(self.mixup)


@dataclass(frozen=True, kw_only=True)
class Retraining(Learning, Samples, Seeded, Running):
    """Training after pruning, the unpruned model its teacher."""

    sources = ("data", "train_data")
    finetune_epochs: Annotated[
        int | None,
        Option("train the result for N passes over the data, after each of --steps; see `prune finetune`", TRAIN, "N",
               least=1),
    ] = None  # fmt: skip
    epochs: Annotated[
        int | None,
        Option(EPOCHS, TRAIN, "N", least=1),
    ] = None  # fmt: skip
    exchange: Annotated[
        float | None,
        Option("fraction of the kept weights whose place --recover distill exchanges at a time for zeroed ones, at the same"
               " sparsity and in the same pattern; 0: zeros stay where they are", TRAIN, "F", least=0, most=0.5),
    ] = None  # fmt: skip
    train_data: Annotated[
        Any,
        Option("the training data, to train on instead of --data", DATA, "D"),
    ] = None
    train_batch_size: Annotated[int | None, Option(f"samples per step of training; {BATCHES}", TRAIN, "N", least=1)] = (
        None
    )

    @classmethod
    def idle(cls, given: Collection[str]) -> frozenset[str]:
        """Without training, or a recovery that may be by training, none of its options is of use."""
        trained = {*Learning.__dataclass_fields__, *Retraining.__dataclass_fields__} - {*UNTRAINED}
        return super().idle(given) | (frozenset() if {"finetune_epochs", "recover"} & {*given} else frozenset(trained))

    def check(self) -> None:
        super().check()
        asked = "--recover distill" if self.distills else "--finetune-epochs"
        if self.distills and self.finetune_epochs is not None:
            raise PruneError("--recover distill trains by itself, for as long as helps on held-out samples",
                             "leave --finetune-epochs out; --epochs and --budget say how long at most")  # fmt: skip
        if self.distills and self.teacher == NONE:
            raise PruneError("--recover distill learns from the unpruned model", "leave --teacher out")
        if not self.trains:
            given = [*Learning.given(vars(self)), *Retraining.given(vars(self), *UNTRAINED)]
            if given:
                raise PruneError(f"{given[0]} is of training, which was not asked for",
                                 "add --finetune-epochs 5, or --recover distill")  # fmt: skip
        elif not self.distills and (self.epochs is not None or self.exchange is not None):
            name = "--epochs" if self.epochs is not None else "--exchange"
            raise PruneError(f"{name} is of --recover distill", "add it, or see --finetune-epochs")
        elif self.train_data is None and self.data is None:
            raise PruneError(f"{asked} needs data", "give --data or --train-data")
        elif self.train_data is None and self.data == SYNTHETIC:
            raise PruneError("training needs real data", f"add --train-data, or leave {asked} out")

    @property
    def distills(self) -> bool:
        """Whether the pruned model learns from the unpruned one, without labels, where that helps."""
        return getattr(self, "recover", None) == DISTILL

    @property
    def trains(self) -> bool:
        return self.finetune_epochs is not None or self.distills

    @property
    def source(self) -> DataOptions | None:
        """Return where the data are. What judges distillation later is held out from the cut and its closed forms."""
        found = super().source
        shared = self.distills and self.train_data is None and self.validation is None
        return replace(found, held_out=(self.val_split, self.seed)) if shared and found is not None else found

    @property
    def training_data(self) -> DataOptions | None:
        return super().source if self.train_data is None else self.like(self.train_data)

    @property
    def retraining(self) -> FinetuneOptions:
        """Training as `prune finetune` does it, of whatever file; the teacher only if one was named."""
        return FinetuneOptions(
            **{name: getattr(self, name) for name in LEARNING},
            data=self.training_data,
            validation=None if self.validation is None else self.like(self.validation),
            epochs=self.epochs if self.distills else self.finetune_epochs,
            batch_size=self.train_batch_size,
            unlabelled=self.distills,
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

    def check(self) -> None:
        super().check()
        planned = any(getattr(self, name, None) is not None for name in ("plan", "save_plan"))
        if self.trains and self.step_count > 1 and planned:
            raise PruneError("a plan holds one cut, and --steps with training makes several",
                             "leave --steps or the plan out")  # fmt: skip


LEARNING = tuple(one.name for one in fields(Learning) if one.name != "validation")
UNTRAINED = (*Seeded.__dataclass_fields__, *Samples.__dataclass_fields__, *Running.__dataclass_fields__)
"""Options of the group that mean something without training."""
