"""Checkpoints of training: one .npz, replaced whole, that continues to the same result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.errors import PruneError
from prunecli.types import Json

Array = np.ndarray[Any, Any]
NAME = "checkpoint.npz"
_HEAD, _DIGEST = "state", "digest"


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
            own = {_HEAD: np.array(head), _DIGEST: np.array(_digest(head, checkpoint.arrays))}
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


def _digest(head: str, arrays: Mapping[str, Array]) -> str:
    """SHA-256 of the state and of every array: its name, type, shape and content."""
    found = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


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
            if str(file[_DIGEST]) != _digest(head, arrays):
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
