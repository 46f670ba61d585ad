"""A packed file as a dense one, for what reads model files by other means than `load`."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from prunecli.model.loading import Model, load
from prunecli.model.saving import save

_MADE: weakref.WeakKeyDictionary[Model, Path] = weakref.WeakKeyDictionary()


def plain_path(model: Model) -> Path:
    """The model's own file, or a dense copy of a packed one, which lasts as long as `model` does."""
    if not model.packed:
        return model.path
    if model not in _MADE:
        folder = Path(tempfile.mkdtemp(prefix="prune-"))
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        place = folder / f"{model.path.stem}.onnx"
        save(load(model.path), place)
        _MADE[model] = place
    return _MADE[model]
