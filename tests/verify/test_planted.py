"""A tensor that is changed between what was decided and the file is found by every command, whatever it does to outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.model import saving
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
MODEL, DATA = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-calib.npz"

# command, options, part of the name of the tensor that is changed; "scalar": the first of no axes
PLANTED: list[tuple[str, dict[str, Any], str]] = [
    ("magnitude", {"sparsity": 0.5}, "fc3.bias"),
    ("gradient", {"sparsity": 0.5, "data": DATA, "limit": 16}, "fc1.weight"),
    ("oneshot", {"sparsity": 0.5, "data": DATA, "limit": 32, "method": "wanda"}, "fc2.weight"),
    ("structured", {"macs": 0.5, "timing": False}, "fc3.bias"),
    ("pack", {"values": "float16"}, "fc3.bias"),
    # too small for the outputs to tell: a bias, a weight of an input that is always zero, a scale of activations
    ("finetune", {"data": DATA, "epochs": 1, "teacher": str(MODEL), "val_split": 0, "timing": False}, "fc3.bias"),
    ("finetune", {"data": DATA, "epochs": 1, "teacher": str(MODEL), "val_split": 0, "timing": False}, "fc1.weight"),
    ("quantize", {"data": DATA, "limit": 32, "timing": False}, "scalar"),
    ("quantize", {"data": DATA, "limit": 32, "timing": False, "weights": "int4-block32"}, "zero_point"),
]


@pytest.mark.parametrize(("command", "options", "name"), PLANTED, ids=[f"{row[0]} {row[2]}" for row in PLANTED])
def test_a_changed_tensor_is_found_and_nothing_is_written(
    command: str, options: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write, planted = tmp_path / "out.onnx", saving._write, []

    def changed(model: Any, stage: Any, how: Any) -> Any:
        done = write(model, stage, how)
        if stage.file.name == target.name:
            proto = onnx.load(str(stage.file))
            tensor = next(
                each for each in proto.graph.initializer if (not each.dims if name == "scalar" else name in each.name)
            )
            array = numpy_helper.to_array(tensor).copy()
            flat = array.reshape(-1)
            at = int(np.argmax(np.abs(flat.astype(np.float64))))
            flat[at] = flat[at] * 1.5 if array.dtype.kind == "f" else flat[at] + 1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            onnx.save(proto, str(stage.file))
            planted.append(tensor.name)
        return done

    monkeypatch.setattr(saving, "_write", changed)
    with pytest.raises(PruneError):
        getattr(prunecli, command)(MODEL, output=target, **options)
    assert planted and not list(tmp_path.iterdir())
