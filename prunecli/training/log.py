"""What training writes while it runs: checkpoints, and a log as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prunecli.errors import PruneError
from prunecli.files import appeared
from prunecli.training.checkpoint import NAME, Checkpoint, load_checkpoint, save_checkpoint
from prunecli.training.trainer import Epoch, Progressed, Trainer
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.options.training import FinetuneOptions

COLUMNS = ("epoch", "step", "loss", "score", "rate", "samples_per_second", "seconds")


class Keeper:
    """Saves a checkpoint every so many seconds, and when interrupted."""

    def __init__(self, trainer: Trainer, options: FinetuneOptions, fingerprint: Json) -> None:
        self.trainer, self.folder, self.every = trainer, options.checkpoint, options.checkpoint_every
        self.fingerprint: Json = json.loads(json.dumps(fingerprint))
        self.last = time.monotonic()
        if options.resume and self.folder is None:
            raise PruneError("--resume needs --checkpoint", "name the folder that the first run wrote to")
        if self.folder is not None and not options.resume and (self.folder / NAME).exists():
            raise PruneError(
                f"{self.folder} holds a checkpoint already", "continue it with --resume, or choose another folder"
            )

    def resume(self) -> None:
        """Raises PruneError: no checkpoint, or one of another run."""
        assert self.folder is not None
        found = load_checkpoint(self.folder, self.fingerprint, self.trainer.arrays())
        try:
            state = dict(found.state)
            history = [Epoch(**item) for item in state.pop("history")]
            at = Progressed(**state, history=history)
        except (TypeError, KeyError) as error:
            raise PruneError(f"{self.folder / NAME} is damaged", "start without --resume") from error
        self.trainer.restore(found.arrays)
        self.trainer.at = at

    def save(self) -> None:
        if self.folder is None:
            return
        checkpoint = Checkpoint(self.trainer.arrays(), asdict(self.trainer.at), self.fingerprint)
        save_checkpoint(self.folder, checkpoint)
        self.last = time.monotonic()

    def step(self) -> None:
        if self.folder is not None and time.monotonic() - self.last >= self.every:
            self.save()

    def interrupted(self) -> None:
        """Keep what there is and say how to go on.

        Raises:
            PruneError: always, in place of the interrupt, when there is a checkpoint to continue from.
        """
        if self.folder is None:
            return
        self.save()
        raise PruneError(
            f"interrupted at step {self.trainer.total_steps:,}; the checkpoint is in {self.folder}",
            "continue with the same command and --resume",
        )


class Log:
    """One row per epoch's end and every `every` steps, flushed: .csv, or one JSON object a line otherwise."""

    def __init__(self, path: Path | None, every: int = 20) -> None:
        self.every, self.file, self.writer = every, None, None
        self.written = 0
        if path is None:
            return
        try:
            self._check(path)
            self.file = path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise PruneError(f"cannot write the log {path}: {error.strerror}", "choose another --log") from error
        appeared.append(path)
        if path.suffix == ".csv":
            self.writer = csv.DictWriter(self.file, COLUMNS)
            if path.stat().st_size == 0:
                self.writer.writeheader()

    file: IO[str] | None
    writer: Any

    @staticmethod
    def _check(path: Path) -> None:
        """Only a log is continued: what else is there stays as it is."""
        if not path.exists():
            return
        with path.open("rb") as file:
            first = file.readline(1000)
        starts = (",".join(COLUMNS).encode(),) if path.suffix == ".csv" else (b'{"epoch":',)
        if first and not first.startswith(starts):
            raise PruneError(f"{path} exists and is no log of training", "remove it, or choose another --log")

    def write(self, trainer: Trainer) -> None:
        """After a step; also writes the epochs that ended since."""
        at = trainer.at
        self._epochs(trainer)
        if self.file is not None and at.step % self.every == 0:
            self._row({"epoch": at.epoch + 1, "step": trainer.total_steps, "loss": at.loss_sum / at.step,
                       "rate": trainer.rate})  # fmt: skip

    def close(self, trainer: Trainer) -> None:
        self._epochs(trainer)
        if self.file is not None:
            self.file.close()

    def _epochs(self, trainer: Trainer) -> None:
        for epoch in trainer.at.history[self.written :]:
            row = {key: value for key, value in asdict(epoch).items() if key != "number"}
            self._row({"epoch": epoch.number, "step": epoch.number * trainer.supply.steps, **row})
        self.written = len(trainer.at.history)

    def _row(self, row: Json) -> None:
        if self.file is None:
            return
        if self.writer is not None:
            self.writer.writerow(row)
        else:
            self.file.write(json.dumps(row) + "\n")
        self.file.flush()
