"""Checkpoints of training: one .npz, replaced whole, that continues to the same result."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.types import Json

Array = np.ndarray[Any, Any]
NAME = "checkpoint.npz"
_HEAD = "state"


@dataclass(frozen=True)
class Checkpoint:
    """`arrays` by name; `state`: JSON of counters and history; `fingerprint`: what it belongs to."""

    arrays: Mapping[str, Array]
    state: Json
    fingerprint: Json


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write beside, then rename: the last complete one survives any interruption.

    Raises:
        PruneError: the folder cannot be written.
    """
    path, partial = folder / NAME, folder / f".{NAME}.{os.getpid()}"
    head = json.dumps({"state": checkpoint.state, "fingerprint": checkpoint.fingerprint}, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_HEAD: np.array(head)}, **checkpoint.arrays)
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
            head = json.loads(str(file[_HEAD]))
            arrays = {name: file[name] for name in file.files if name != _HEAD}
        state, found = dict(head["state"]), dict(head["fingerprint"])
    except FileNotFoundError as error:
        raise PruneError(f"there is no checkpoint in {folder}", "start without --resume") from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
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
