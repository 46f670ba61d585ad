"""What training is told: the options of `prune finetune` as one value, and keywords that change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prunecli.data.options import DataOptions
from prunecli.errors import PruneError, keywords
from prunecli.pipeline.pack import Packing
from prunecli.pipeline.subject import Execution
from prunecli.recover.augment import parse_augments
from prunecli.recover.objective import ObjectiveOptions
from prunecli.recover.optimizers import Knobs
from prunecli.recover.session import Setup
from prunecli.recover.trainer import TrainOptions


@dataclass(frozen=True)
class FinetuneOptions:
    """How to train and what to keep.

    `validation`: data that chooses the best weights; None: the fraction `val_split` of the training data, and
    with 0 none, then the last weights stay. `reset_head`: number of classes of a new last layer.
    `checkpoint`: a folder; `resume` continues from it. `salvage`: where training diverges after it improved, save
    the best weights before the error is raised. `keep_start`: where every epoch is worse than the start, save that.
    `include`: patterns; initializers that are graph inputs too are trained only if one matches their name.
    `pack`: store the zeros small.
    """

    data: DataOptions
    setup: Setup = field(default_factory=Setup)
    validation: DataOptions | None = None
    val_split: float = 0.1
    teacher: Path | None = None
    reset_head: int | None = None
    include: tuple[str, ...] = ()
    checkpoint: Path | None = None
    checkpoint_every: float = 60.0
    resume: bool = False
    log: Path | None = None
    execution: Execution = field(default_factory=Execution)
    output: Path | None = None
    force: bool = False
    verify: bool = True
    external_data: Literal["auto", "always", "never"] = "auto"
    salvage: bool = True
    keep_start: bool = False
    pack: Packing | bool | None = None


@keywords(FinetuneOptions, Setup, TrainOptions, ObjectiveOptions, Knobs, data=DataOptions)
def finetune_options(options: FinetuneOptions | None = None, **changes: Any) -> FinetuneOptions:
    """`options` with fields replaced, its own or those of `Setup`, `TrainOptions`, `ObjectiveOptions` and `Knobs`.

    Paths and data may be given as text, `augment` and `freeze` as text or a sequence; `mixup` makes labels soft.

    Raises:
        PruneError: no data.
    """
    given = {name: value(changes.pop(name)) for name, value in _READ.items() if changes.get(name) is not None}
    changes |= given
    if options is None:
        if changes.get("data") is None:
            raise PruneError("training needs data", "give data")
        options = FinetuneOptions(changes["data"])
    setup = changes.pop("setup", options.setup)
    train, objective = changes.pop("train", setup.train), changes.pop("objective", setup.objective)
    if changes.get("mixup"):
        changes.setdefault("soft", True)
    knobs = replace(changes.pop("knobs", train.knobs), **_taken(Knobs, changes))
    train = replace(train, knobs=knobs, **_taken(TrainOptions, changes))
    objective = replace(objective, **_taken(ObjectiveOptions, changes))
    setup = replace(setup, train=train, objective=objective, **_taken(Setup, changes))
    return replace(options, setup=setup, **_taken(FinetuneOptions, changes))


def _taken(kind: Any, changes: dict[str, Any]) -> dict[str, Any]:
    return {name: changes.pop(name) for name in kind.__dataclass_fields__ if name in changes}


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


_READ: dict[str, Callable[[Any], Any]] = {
    "data": DataOptions.given, "validation": DataOptions.given,
    "teacher": Path, "output": Path, "checkpoint": Path, "log": Path,
    "freeze": _names, "include": _names, "augment": lambda given: parse_augments(",".join(_names(given))),
}  # fmt: skip
