"""Random masks: whatever is zero, the shrunk model gives what the masked one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunecli
from prunecli.model import find_weights, load
from prunecli.model.saving import SaveOptions, save
from prunecli.report.render import to_markdown
from tests.dependency.net import Net
from tests.shrinking.nets import largest_difference, saved
from tests.shrinking.test_units import attention, depthwise, joined, recurrent, residual
from tests.structures.cuts import conv_net, dense, group_norm, grouped
from tests.tiny import ROOT, SHARED

NETS = {
    "dense": dense,
    "conv": conv_net,
    "grouped": grouped,
    "group norm": group_norm,
    "heads": lambda n: attention(n, "value"),
    "depthwise": depthwise,
    "joined": joined,
    "stream": lambda n: residual(n, 1),
    "lstm": lambda n: recurrent(n, "LSTM", 4, 3),
    "gru": lambda n: recurrent(n, "GRU", 3, 2),
}


def masked(path: Path, target: Path, share: float, seed: int, biases: bool) -> Path:
    """The model with random rows, columns and (`biases`) elements of vectors at zero, as a training framework leaves it."""
    file, rng = load(path), np.random.default_rng(seed)
    found = find_weights(file)
    for weight in found.prunable:
        batch, rows, _, cols = weight.layout.canonical_shape
        gone = rng.random((batch, rows, 1, 1)) < share, rng.random((batch, 1, 1, cols)) < share / 2

        def change(array, weight=weight, gone=gone):  # type: ignore[no-untyped-def]
            view = np.array(weight.layout.canonical(array))
            view[np.broadcast_to(gone[0] | gone[1], view.shape)] = 0
            return np.ascontiguousarray(weight.layout.restore(view)).astype(array.dtype)

        weight.replace(change)
    for weight in found.others if biases else ():
        keep = rng.random(weight.shape) >= share
        weight.replace(lambda array, keep=keep: array * keep.astype(array.dtype))  # type: ignore[misc]
    save(file, target, SaveOptions(force=True))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 1 << 20), biases=st.booleans())
def test_outputs_stay_whatever_is_masked(
    name: str, share: float, seed: int, biases: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("masks")
    net = Net(seed=seed % 5)
    NETS[name](net)
    path = masked(saved(net, folder / "m.onnx"), folder / "masked.onnx", share, seed, biases)
    found = prunecli.shrink(path, output=folder / "out.onnx")
    if found.output is not None:
        assert found.after.params <= found.before.params
        assert largest_difference(path, folder / "out.onnx", net.shapes) < 1e-5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_rows_zeroed_by_magnitude_leave_as_its_last_step(share: float, tmp_path: Path) -> None:
    model, plain, small = ROOT / "sample_models" / "digits-cnn.onnx", tmp_path / "a.onnx", tmp_path / "b.onnx"
    options = {"sparsity": share, "pattern": "row"}
    prunecli.magnitude(model, output=plain, **options)
    found = prunecli.magnitude(model, output=small, shrink=True, **options)
    assert found.shrunk is not None and found.output is not None and found.output.path == str(small)
    assert found.after.params < found.before.params and found.to_json()["shrunk"]["removed"]["units"]
    assert largest_difference(plain, small, {"image": (2, 1, 8, 8)}) < 1e-5
    assert found.verification.detail.startswith("before empty units went, ")  # of the file that is written: `shrunk`
    told = to_markdown(found.to_document())
    assert "the model is smaller and faster as it is" in told and "prune structured" not in told


ARCHITECTURES = sorted((SHARED / "models" / "arch").glob("*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ARCHITECTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("share", "biases"), [(0.1, True), (0.5, False), (0.9, True)])
def test_masked_architectures(path: Path, share: float, biases: bool, tmp_path: Path) -> None:
    source = masked(path, tmp_path / "masked.onnx", share, 1, biases)
    found = prunecli.shrink(source, output=tmp_path / "out.onnx")
    assert found.removed.nothing or found.verification.kind == "exact"
