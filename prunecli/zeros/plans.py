"""Plan files of element-wise pruning: the exact masks, to be replayed or checked by anyone.

    {"schema": "prunecli-plan/1", "model": {"sha256": "...", "data_sha256": ["..."]}, "recipe": {...},
     "weights": {}, "tensors": {}, "units": [], "frozen": [],
     "masks": {"INITIALIZER": {"shape": [64, 32], "bits": "base64"}}}

A mask has one bit per element in row-major order, packed from the most significant bit of each byte
(`numpy.packbits`); 1 means that the element becomes zero. `data_sha256` are those of the external data files.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from prunecli.errors import PruneError
from prunecli.files import written
from prunecli.masks.decide import Masked
from prunecli.model import Model, Weight
from prunecli.model.plan_file import SCHEMA, identity, read_plan
from prunecli.types import Json, Progress, no_progress
from prunecli.zeros.zero import Zeroed


def save_plan(
    path: Path,
    model: Model,
    recipe: Json,
    found: Sequence[Zeroed],
    progress: Progress = no_progress,
    force: bool = False,
) -> None:
    """Write the plan, one mask in memory at a time; the file appears complete or not at all.

    Raises:
        PruneError: it cannot be written.
    """
    head: Json = {
        "schema": SCHEMA,
        "model": identity(model),
        "recipe": recipe,
        "weights": {},
        "tensors": {},
        "units": [],
        "frozen": [],
    }
    with written(path, "plan", force) as file:
        _write(file, head, progress(found, "writing the plan", len(found)))


def _write(file: TextIO, head: Json, found: Any) -> None:
    file.write(json.dumps(head)[:-1] + ', "masks": {')
    separator = ""
    for one in found:
        bits = np.packbits(one.decision.drop(one.values()).reshape(-1))
        one.release()
        text = base64.b64encode(bits.tobytes()).decode("ascii")
        entry = json.dumps({"shape": list(one.weight.shape), "bits": text})
        file.write(f"{separator}\n{json.dumps(one.weight.name)}: {entry}")
        separator = ","
    file.write("}}\n")


def load_plan(path: Path, model: Model, weights: Sequence[Weight]) -> tuple[Json, dict[str, Masked]]:
    """The recipe of a plan, and a decision for each weight that it names; checked that it belongs to this very model.

    Raises:
        PruneError: not a plan, of another command or another model, or its masks do not fit the weights.
    """
    plan = read_plan(path, model)
    if plan.get("weights") or plan.get("tensors"):
        raise PruneError(f"{path} cuts channels, it does not zero weights", "replay it with `prune structured`")
    masks = plan.get("masks")
    if not isinstance(masks, dict) or not masks:
        raise PruneError(f"{path} holds no masks", "make a plan with --save-plan")
    known = {weight.name: weight for weight in weights}
    unknown = [name for name in masks if name not in known]
    if unknown:
        raise PruneError(f"{path} names {unknown[0]}, which is no weight here", "make the plan anew")
    recipe = plan.get("recipe")
    decisions = {name: _masked(path, known[name], entry) for name, entry in masks.items()}
    return recipe if isinstance(recipe, dict) else {}, decisions


def _masked(path: Path, weight: Weight, entry: object) -> Masked:
    broken = PruneError(f"{path}: the mask of {weight.name} does not fit it", "make the plan anew")
    if not isinstance(entry, dict) or entry.get("shape") != list(weight.shape):
        raise broken
    try:
        raw = base64.b64decode(entry.get("bits", ""), validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise broken from error
    if len(raw) != -(-weight.size // 8):
        raise broken
    return Masked(np.frombuffer(raw, np.uint8))
