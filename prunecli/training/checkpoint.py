"""What training writes while it runs: a log, and checkpoints. A checkpoint is one .npz file, replaced atomically, from
which a run continues to the same result."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from prunecli.arrays import Array, content_digest
from prunecli.errors import PruneError
from prunecli.files import appeared
from prunecli.training.trainer import Epoch, Progressed, Trainer
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.options.training import FinetuneOptions


NAME = "checkpoint.npz"
_HEAD, _DIGEST = "state", "digest"


@dataclass(frozen=True)
class Checkpoint:
    """`arrays` by name; `state`: JSON of counters and history; `fingerprint`: what it belongs to."""

    arrays: Mapping[str, Array]
    state: Json
    fingerprint: Json


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write beside the file, then rename: an interruption leaves the last complete one.

    Raises:
        PruneError: the folder cannot be written.
    """
    path, partial = folder / NAME, folder / f".{NAME}.{os.getpid()}"
    head = json.dumps({"state": checkpoint.state, "fingerprint": checkpoint.fingerprint}, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            own = {_HEAD: np.array(head), _DIGEST: np.array(content_digest(checkpoint.arrays, head))}
            np.savez(file, allow_pickle=False, **own, **checkpoint.arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PruneError(
            f"cannot write the checkpoint {path}: {error.strerror}", "choose another --checkpoint"
        ) from error
    return path


def load_checkpoint(folder: Path, fingerprint: Json, like: Mapping[str, Array]) -> Checkpoint:
    """Read it back.

    Args:
        fingerprint: of the present run; every entry must agree.
        like: arrays whose shapes and types those of the checkpoint must have.
    Raises:
        PruneError: missing, damaged, or of another model, data or options (which, by name).
    """
    path = folder / NAME
    try:
        with np.load(path, allow_pickle=False) as file:
            head = str(file[_HEAD])
            arrays = {name: file[name] for name in file.files if name not in (_HEAD, _DIGEST)}
            if str(file[_DIGEST]) != content_digest(arrays, head):
                raise ValueError("the content is not what was saved")
        state, found = (dict(json.loads(head)[part]) for part in ("state", "fingerprint"))
    except FileNotFoundError as error:
        raise PruneError(f"there is no checkpoint in {folder}", "start without --resume") from error
    except Exception as error:  # of numpy, zipfile, zlib and json: a damaged file may raise anything
        raise PruneError(f"{path} is not a checkpoint, or damaged", "start without --resume") from error
    for key in sorted(set(fingerprint) | set(found)):
        if fingerprint.get(key) != found.get(key):
            raise PruneError(
                f"{path} was made with {key} {found.get(key)!r}, this run has {fingerprint.get(key)!r}",
                "repeat the command that made it, with --resume",
            )
    for name, array in like.items():
        if name not in arrays or arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
            raise PruneError(f"{path} does not fit the model: {name}", "start without --resume")
    return Checkpoint(arrays, state, found)


COLUMNS = ("epoch", "step", "loss", "score", "rate", "samples_per_second", "seconds")


class Keeper:
    """Saves a checkpoint at intervals, and when interrupted."""

    def __init__(self, trainer: Trainer, options: FinetuneOptions, fingerprint: Json) -> None:
        self.trainer, self.folder, self.every = trainer, options.checkpoint, options.checkpoint_every
        self.fingerprint: Json = json.loads(json.dumps(fingerprint))
        self.last = time.monotonic()
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
        """Save a checkpoint and say how to continue.

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
        """Refuse an existing file that is not a log: only logs are continued."""
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
