"""A packed file as a dense one, for what reads model files by other means than `load`."""

from __future__ import annotations

import weakref
from pathlib import Path

from prunecli.files import Scratch
from prunecli.model.loading import Model, load
from prunecli.model.saving import save


def plain_path(model: Model) -> Path:
    """The model's own file, or a dense copy of a packed one, which lasts as long as `model` does."""
    if not model.packed:
        return model.path
    if model.plain is None:
        folder = Scratch()
        weakref.finalize(model, folder.__exit__)  # which keeps the folder until then
        place = folder.path / f"{model.path.stem}.onnx"
        save(load(model.path), place)
        model.plain = place
    return model.plain
