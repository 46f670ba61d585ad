"""Synthetic inputs: their shapes, kinds and spectrum, and how near they come to the statistics a model has stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunecli.calibration.layerwise import working_form
from prunecli.calibration.samples import WARNING, stored_moments, synthetic_data
from prunecli.data.synthetic import as_dataset, dead_leaves, rows_and_runs, synthetic_feed
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec
from prunecli.model import concrete_shapes, load
from prunecli.runtime import Execution, Session

N = helper.make_node
RNG = np.random.default_rng(0)
MEAN, VARIANCE = np.array([3.0, -2.0, 0.5, 0.0], np.float32), np.array([4.0, 0.25, 1.0, 9.0], np.float32)


def model(folder: Path, batch: Any = "n", kind: int = 1, folded: bool = False, after: str = "") -> Path:
    """Conv, `after` if given, BatchNormalization with the statistics above unless folded, and an end."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "w": RNG.standard_normal((4, 3, 3, 3)), "g": np.ones(4), "b": np.zeros(4), "m": MEAN, "v": VARIANCE,
    }  # fmt: skip
    nodes = [
        N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        N(after or "Identity", ["c"], ["h"]),
        *([] if folded else [N("BatchNormalization", ["h", "g", "b", "m", "v"], ["s"])]),
        N("Relu", ["h" if folded else "s"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])
    y = helper.make_tensor_value_info("y", kind, None)
    tensors = [numpy_helper.from_array(value.astype(dtype), name) for name, value in constants.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


def data(path: Path, count: int = 16, **options: Any) -> Any:
    file = load(path)
    return synthetic_data(file, concrete_shapes(file).inputs, count, execution=Execution(threads=1), **options)


def moments(path: Path, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel of what the BatchNormalization reads, by onnxruntime and numpy alone."""
    read = Session.open(path, outputs=["h"], threads=1, mode="plain").run(feed, ["h"])["h"].astype(np.float64)
    return read.mean((0, 2, 3)), read.std((0, 2, 3))


def off(path: Path, feed: dict[str, np.ndarray]) -> float:
    mean, deviation = moments(path, feed)
    stored = np.sqrt(VARIANCE)
    return float(np.sqrt(np.mean(((mean - MEAN) / stored) ** 2 + ((deviation - stored) / stored) ** 2) / 2))


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16])
def test_inputs_are_drawn_to_the_stored_statistics(tmp_path: Path, kind: int) -> None:
    """What the report says of before and after is what onnxruntime measures on the inputs, to its two digits."""
    path = model(tmp_path, kind=kind)
    before, after = (next(data(path, steps=steps).batches(64)).feed for steps in (0, 60))
    assert off(path, after) < 0.5 * off(path, before)
    note = data(path, steps=60).notes[1]
    assert f"{off(path, after):.2f} stored deviations" in note and f"by {off(path, before):.2f}" in note
    assert after["x"].dtype == (np.float32 if kind == onnx.TensorProto.FLOAT else np.float16)


REASONS: list[tuple[dict[str, Any], str]] = [
    ({"folded": True}, "no BatchNormalization"),
    ({"after": "Round"}, "no BatchNormalization depends"),
    ({"batch": 1}, "fewer than 8 samples"),
]


@pytest.mark.parametrize(("form", "reason"), REASONS, ids=lambda value: str(value))
def test_what_cannot_be_fitted_is_noise_and_says_so(tmp_path: Path, form: dict[str, Any], reason: str) -> None:
    made = data(model(tmp_path, **form), 12)
    assert made.notes[0] == WARNING and reason in made.notes[1]
    assert len(made) == 12 and made.source == "synthetic"


def test_stored_statistics_are_found(tmp_path: Path) -> None:
    (found,) = stored_moments(working_form(load(model(tmp_path)).ir))
    assert found.value == "h" and (found.mean == MEAN).all() and (found.variance == VARIANCE).all()


def test_the_seed_decides(tmp_path: Path) -> None:
    path = model(tmp_path)
    first, again, other = (next(data(path, seed=seed, steps=3).batches(64)).feed["x"] for seed in (1, 1, 2))
    assert (first == again).all() and not np.isclose(first, other).any(axis=(1, 2, 3)).all()


SPECS: list[tuple[InputSpec, tuple[int, ...], Any]] = [
    # what, its shape, what its values must fulfil
    (InputSpec("x", "float32", ("n", 3, 16, 16)), (4, 3, 16, 16), lambda a: 0.3 < a.std() < 2),
    (InputSpec("x", "float16", ("n", 3, 16, 16)), (4, 3, 16, 16), lambda a: a.dtype == np.float16),
    (InputSpec("x", "uint8", ("n", 16, 16, 3)), (4, 16, 16, 3), lambda a: a.std() > 20 and a.min() >= 0),
    (InputSpec("ids", "int64", ("n", "length")), (4, 16), lambda a: a.min() >= 0 and 2 < a.max() < 50),
    (InputSpec("attention_mask", "int64", ("n", "length")), (4, 16), lambda a: (a == 1).all()),
    (InputSpec("features", "float32", ("n", 7)), (4, 7), lambda a: 0.3 < a.std() < 2),
]


@pytest.mark.parametrize(("spec", "shape", "holds"), SPECS, ids=[f"{spec.name}-{spec.dtype}" for spec, _, _ in SPECS])
def test_every_kind_of_input(spec: InputSpec, shape: tuple[int, ...], holds: Any) -> None:
    value = synthetic_feed([spec], {spec.name: shape}, 0, {"ids": 50})[spec.name]
    assert value.shape == shape and value.dtype == spec.dtype and holds(value)


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (6, 32, 32, 3)])
def test_noise_is_smooth_in_space(shape: tuple[int, ...]) -> None:
    """Neighbours of white noise correlate by 0 +- 0.02 at this size, those of 1/f noise by far more."""
    noise = dead_leaves(shape, np.random.default_rng(0))
    planes = noise if shape[1] == 3 else np.moveaxis(noise, -1, 1)
    planes = planes - planes.mean((2, 3), keepdims=True)
    for one, other in ((planes[..., 1:], planes[..., :-1]), (planes[:, :, 1:], planes[:, :, :-1])):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.5
    assert len({round(float(sample.std()), 4) for sample in planes}) == len(planes), "every sample has its own contrast"


LAYOUTS: list[tuple[list[InputSpec], int, tuple[int, int, bool]]] = [
    # inputs, wanted; samples of a run, runs, whether the first axis counts samples
    ([InputSpec("x", "float32", ("n", 3, 8, 8))], 512, (64, 8, True)),
    ([InputSpec("x", "float32", ("n", 3, 8, 8))], 10, (10, 1, True)),
    ([InputSpec("x", "float32", ("n", 3, 8, 8))], 65, (33, 2, True)),
    ([InputSpec("x", "float32", (1, 3, 8, 8))], 5, (1, 5, True)),
    ([InputSpec("x", "float32", (4, 3, 8, 8))], 6, (4, 2, True)),
    ([InputSpec("x", "float32", ("n", "n"))], 5, (1, 5, False)),
    ([InputSpec("x", "float32", ("n", 3)), InputSpec("h", "float32", (1, "n", 3))], 5, (1, 5, False)),
]


@pytest.mark.parametrize(("specs", "count", "wanted"), LAYOUTS)
def test_runs_have_one_size(specs: list[InputSpec], count: int, wanted: tuple[int, int, bool]) -> None:
    assert rows_and_runs(specs, count, 64) == wanted


def test_runs_that_cannot_be_cut_stay_whole() -> None:
    specs = [InputSpec("x", "float32", ("n", "n"))]
    feeds = [synthetic_feed(specs, {"x": (5, 5)}, seed, {}) for seed in range(3)]
    assert [batch.feed["x"].shape for batch in as_dataset(specs, feeds, False, []).batches(2)] == [(5, 5)] * 3


def test_what_is_no_tensor_cannot_be_made() -> None:
    with pytest.raises(PruneError, match="cannot make random values"):
        synthetic_feed([InputSpec("x", "seq(tensor(float))", ())], {"x": ()}, 0, {})
