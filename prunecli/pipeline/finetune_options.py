"""What training is told, in the terms of its parts."""

from __future__ import annotations

from prunecli.options.training import FinetuneOptions
from prunecli.recover.objective import ObjectiveOptions
from prunecli.recover.optimizers import Knobs
from prunecli.recover.session import Setup
from prunecli.recover.trainer import TrainOptions


def setup_of(options: FinetuneOptions) -> Setup:
    """The training loop, its objective and its sessions as the options say."""
    o = options
    train = TrainOptions(
        epochs=o.epochs, batch_size=o.batch_size, optimizer=o.optimizer, rate=o.rate,
        knobs=Knobs(o.momentum, weight_decay=o.weight_decay), schedule=o.schedule, warmup=o.warmup,
        clip=o.clip, mixup=o.mixup, augment=o.augment, regularize=o.regularize, strength=o.strength,
        patience=o.patience, seed=o.seed,
    )  # fmt: skip
    objective = ObjectiveOptions(o.smoothing, o.soft_labels, o.temperature, o.alpha, o.output_name)
    return Setup(train, objective, o.freeze, o.bn, o.execution.thread_count)
