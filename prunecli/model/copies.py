"""A model in another form: a packed file as a dense one, and an opset no higher than needed."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from prunecli.errors import OutOfMemoryError, PruneError, short_of_memory
from prunecli.files import Scratch
from prunecli.model.external_data import read_whole
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


def opset(model: ir.Model) -> int:
    """The lowest opset of the standard domain that the model or one of its functions imports; 0 if none does."""
    stated = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    return min((imports[""] for imports in stated if "" in imports), default=0)


def raised(model: Model, needed: int, why: str) -> Model:
    """`model` itself if its opset suffices, else a converted one, held in memory.

    Raises:
        PruneError: ONNX's converter cannot do it: local functions, models over 2 GB, operators that changed meaning.
    """
    present = opset(model.ir)
    if present >= needed:
        model.ir.graph.opset_imports.setdefault("", present)  # the graph itself may do nothing but call functions
        return model
    if not present and not model.ir.functions:
        model.ir.graph.opset_imports[""] = needed
        return model
    what = f"{model.path} uses opset {present}; {why} needs {needed}"
    if model.ir.functions:
        raise PruneError(f"{what}, and models with functions cannot be converted", "export it with a newer opset")
    with Scratch() as folder:
        place = folder / model.path.name
        try:
            proto = read_whole(plain_path(model))
            onnx.save(onnx.version_converter.convert_version(proto, needed), str(place), format="protobuf")
            converted = load(place)
        except Exception as error:  # the converter raises whatever its C++ parts throw
            if short_of_memory(error):
                raise OutOfMemoryError(f"{what}, and ONNX cannot convert it") from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise PruneError(f"{what}, and ONNX cannot convert it: {reason}", "export it with a newer opset") from error
    note = f"the opset was raised from {present} to {needed}: {why} needs it"
    return replace(model, ir=converted.ir, notes=[*model.notes, note], plain=None, sparse={})
