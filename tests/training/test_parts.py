"""Optimizers, schedules, augmentation, penalties: each registered entry against its formula in plain float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunecli.arrays import Array
from prunecli.data.columns import InputColumn
from prunecli.data.dataset import build
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.options.training import AUGMENTS as NAMES
from prunecli.options.training import parse_augments
from prunecli.training.optimizers import OPTIMIZERS, SCHEDULES, OptimizerSettings, clip_norm, warmed
from prunecli.training.parameters import Parameters, reset_head, trainable
from prunecli.training.supply import AUGMENTS, apply_augments, check_trainable, crop, mixup
from prunecli.training.trainer import PENALTIES, add_penalty
from tests import tiny
from tests.tiny import spec

STEPS, RATE = 4, 0.1


def sgd(w: Array, grads: list[Array], k: OptimizerSettings) -> Array:
    v = np.zeros_like(w)
    for g in grads:
        g = g + k.weight_decay * w
        v = k.momentum * v + g
        w = w - RATE * (g + k.momentum * v)
    return w


def adam(w: Array, grads: list[Array], k: OptimizerSettings, decoupled: bool = False) -> Array:
    m = v = np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        g = g if decoupled else g + k.weight_decay * w
        m = k.momentum * m + (1 - k.momentum) * g
        v = k.beta2 * v + (1 - k.beta2) * g**2
        move = (m / (1 - k.momentum**t)) / (np.sqrt(v / (1 - k.beta2**t)) + k.epsilon)
        w = w - RATE * (move + (k.weight_decay * w if decoupled else 0))
    return w


FORMULAS: dict[str, Callable[..., Array]] = {"sgd": sgd, "adam": adam, "adamw": lambda w, g, k: adam(w, g, k, True)}


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_follow_their_formula(name: str, decay: float) -> None:
    rng = np.random.default_rng(0)
    size = 70_000  # more than one chunk
    start = rng.standard_normal(size)
    grads = [rng.standard_normal(size) for _ in range(STEPS)]
    settings = OptimizerSettings(weight_decay=decay)
    weights = start.astype(np.float32)
    optimizer = OPTIMIZERS[name].make(size, settings)
    for step, g in enumerate(grads, 1):
        optimizer.update(weights, g.astype(np.float32), np.ones(size, np.float32), np.full(size, RATE), step)
    # float32 keeps some 1e-7 of each of four steps' terms, of size up to about 5
    assert np.abs(weights - FORMULAS[name](start, grads, settings)).max() < 1e-5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_only_where_it_is_wanted(name: str) -> None:
    weights, still = np.ones(4, np.float32), np.zeros(4, np.float32)
    decays = np.array([1, 0, 1, 0], np.float32)
    OPTIMIZERS[name].make(4, OptimizerSettings(weight_decay=0.5)).update(weights, still, decays, np.full(4, RATE), 1)
    assert (weights[decays == 0] == 1).all() and (weights[decays == 1] < 1).all()


def test_clipping_keeps_the_direction() -> None:
    gradients = np.array([3.0, 4.0], np.float32)
    assert clip_norm(gradients, 1.0) == 5
    assert gradients == pytest.approx([0.6, 0.8])
    assert clip_norm(gradients, 2.0) == pytest.approx(1)
    assert gradients == pytest.approx([0.6, 0.8])
    huge = np.array([3e30, 4e30], np.float32)  # their squares are beyond float32
    assert clip_norm(huge, 1.0) == pytest.approx(5e30) and huge == pytest.approx([0.6, 0.8])


CURVES = {
    "constant": {0: 1, 50: 1, 99: 1},
    "cosine": {0: 1, 50: 0.5, 100: 0},
    "step": {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01},
    "onecycle": {0: 1 / 25, 30: 1, 100: 1e-4},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_pass_through_their_points(name: str) -> None:
    fraction = SCHEDULES[name](100)
    assert {step: fraction(step) for step in CURVES[name]} == pytest.approx(CURVES[name])
    assert all(0 <= fraction(step) <= 1 for step in range(101))


def test_warmup_rises_in_a_line() -> None:
    fraction = warmed(SCHEDULES["constant"](10), 3)
    assert [fraction(i) for i in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


IMAGES = np.random.default_rng(0).standard_normal((200, 2, 16, 24)).astype(np.float32) + 5


def _rows_kept(name: str, out: Array) -> None:
    if name == "flip":
        same = (out == IMAGES).all(axis=(1, 2, 3))
        mirrored = (out == IMAGES[..., ::-1]).all(axis=(1, 2, 3))
        assert (same | mirrored).all() and 60 < same.sum() < 140  # 200 fair coins: 6 sigma
    elif name == "shift":
        inside = out != 0
        assert (inside.sum(axis=(1, 2, 3)) >= 2 * 14 * 21).all()  # at most an eighth of each side is lost
        assert len({tuple(np.argwhere(i[0])[0]) for i in inside}) > 5
        assert (out[5][inside[5]].sum() <= IMAGES[5].sum()) and np.isin(out[inside], IMAGES).all()
    elif name == "crop":
        assert out.min() >= IMAGES.min() and out.max() <= IMAGES.max() and (out != IMAGES).any(axis=(1, 2, 3)).all()
    else:
        gone = out == 0
        assert (gone.sum(axis=(1, 2, 3)) <= 2 * 5 * 5).all() and gone.any(axis=(1, 2, 3)).all()
        assert (out[~gone] == IMAGES[~gone]).all()


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_only_move_enlarge_or_hide(name: str) -> None:
    before = IMAGES.copy()
    out = AUGMENTS[name](IMAGES, np.random.default_rng(1))
    assert out.shape == IMAGES.shape and out.dtype == IMAGES.dtype and (before == IMAGES).all()
    _rows_kept(name, out)


def test_a_crop_is_a_window_enlarged() -> None:
    """Of an image that rises evenly along both sides: every crop does, from no less than half to all of the way."""
    ramp = np.add.outer(np.arange(20.0), 100 * np.arange(30.0)).astype(np.float32)
    for found in crop(np.broadcast_to(ramp, (50, 1, 20, 30)), np.random.default_rng(0))[:, 0]:
        for axis, unit in ((0, 1.0), (1, 100.0)):
            steps = np.diff(found, axis=axis) / unit
            assert np.allclose(steps, steps.flat[0], atol=1e-3) and 0.5 <= steps.flat[0] <= 1.0001
        assert found.min() >= -1e-2 and found.max() <= ramp.max() + 1e-2


def test_the_options_name_what_there_is() -> None:
    assert set(NAMES) == set(AUGMENTS)


def test_augmentation_leaves_other_inputs_alone() -> None:
    feed = {"x": IMAGES[:4], "ids": np.arange(4), "table": np.ones((4, 3), np.float32)}
    out = apply_augments(feed, ("flip", "cutout"), np.random.default_rng(0))
    assert (out["ids"] == feed["ids"]).all() and (out["table"] == 1).all() and (out["x"] != feed["x"]).any()
    with pytest.raises(PruneError, match="no augmentation 'flop'"):
        parse_augments("flip,flop")


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentation_of_channels_last_is_that_of_channels_first(name: str) -> None:
    first = np.arange(2 * 3 * 8 * 9, dtype=np.float32).reshape(2, 3, 8, 9)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    changed = apply_augments({"x": last}, (name,), np.random.default_rng(3))["x"]
    same = apply_augments({"x": first}, (name,), np.random.default_rng(3))["x"]
    assert changed.shape == last.shape
    assert np.array_equal(changed.transpose(0, 3, 1, 2), same)


def test_mixup_mixes_labels_as_it_mixes_samples() -> None:
    labels = np.eye(4, dtype=np.float32)[np.arange(8) % 4]
    mixed = mixup({"x": labels * 3, "labels": labels}, 1.0, np.random.default_rng(0))
    assert mixed["x"] == pytest.approx(mixed["labels"] * 3) and mixed["labels"].sum(axis=1) == pytest.approx(np.ones(8))
    assert ((mixed["labels"] > 0) & (mixed["labels"] < 1)).any()


PENALISED: dict[str, tuple[Callable[[Array, Array], float], str]] = {
    # R of the matrix and of the scale of a BatchNormalization, and which of them it is of
    "l1": (lambda w, s: float(np.abs(w).sum()), "w"),
    "group-lasso": (lambda w, s: float(np.sqrt(3) * np.linalg.norm(w, axis=0).sum()), "w"),
    "bn-l1": (lambda w, s: float(np.abs(s).sum()), "s"),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_the_slopes_of_their_formula(name: str, tmp_path: Path) -> None:
    """Rows of outputs are columns of w: of three elements each. By central differences in float64."""
    text = """g (float[N,3] x) => (float[N,4] y)
        <float[3,4] w = {1,2,3,4,-1,5,3,2,1,2,7,-8}, float[4] s = {3,-3,2,1}, float[4] b = {1,1,1,1}, float[4] m = {0,0,0,0},
         float[4] v = {1,1,1,1}> { a = MatMul(x, w) y = BatchNormalization(a, s, b, m, v) }"""
    found = Parameters(trainable(load(tiny.write(tmp_path / "m.onnx", text))))
    penalty, of = PENALISED[name]
    add_penalty(name, 0.5, found)
    at = {item.name: np.float64(item.weight.array()) for item in found.items}
    for item in found.items:
        slope = np.zeros(item.weight.shape)
        for place in np.ndindex(slope.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {key: array.copy() for key, array in at.items()}
                moved[item.name][place] += step
                ends.append(penalty(moved["w"], moved["s"]))
            slope[place] = 0.5 * (ends[0] - ends[1]) / 2e-5
        assert bool(slope.any()) == (item.name == of)
        assert found.gradient(item) == pytest.approx(slope, abs=1e-4)


NO_HEAD = [
    # nodes up to y, classes, message
    ("y = MatMul(x, w)", 1, "at least two classes"),
    ("y = Relu(x)", 2, "does not end in a Gemm or MatMul"),
    ("a = MatMul(x, w) y = MatMul(a, w)", 2, "no matrix of its own"),
    ("t = Transpose(x) a = MatMul(w, t) y = Identity(a)", 2, "not its second operand"),
    ("r = Reshape(w, s) a = MatMul(x, r) y = Softmax(a)", 2, "reshaped before it is used"),
]


@pytest.mark.parametrize(("nodes", "classes", "message"), NO_HEAD, ids=[each[-1] for each in NO_HEAD])
def test_heads_that_cannot_be_made_anew(nodes: str, classes: int, message: str, tmp_path: Path) -> None:
    text = (
        f"g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {{1,2,3,4,5,6,7,8,9}}, int64[2] s = {{3,3}}> {{ {nodes} }}"
    )
    with pytest.raises(PruneError, match=message):
        reset_head(load(tiny.write(tmp_path / "m.onnx", text)), classes)


def test_a_new_head_has_the_bias_that_is_added_behind_it(tmp_path: Path) -> None:
    text = """g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[3] b = {1,2,3}>
        { a = MatMul(x, w) c = Add(a, b) y = Softmax(c) }"""
    file = load(tiny.write(tmp_path / "m.onnx", text))
    assert reset_head(file, 5) == "w"
    stored = {name: value.const_value.numpy() for name, value in file.ir.graph.initializers.items()}
    assert stored["w"].shape == (3, 5) and np.abs(stored["w"]).max() <= 1 / np.sqrt(3) and not stored["b"].any()
    assert stored["b"].shape == (5,) and file.ir.graph.outputs[0].shape[1] == 5


def test_steps_follow_the_size_of_the_weights(tmp_path: Path) -> None:
    """Rows of a matrix each by their own, what is pruned not counted; other tensors as a whole; nothing below a tenth."""
    text = """g (float[N,3] x) => (float[N,4] y)
        <float[3,4] w = {1,2,3,0.01,-1,0,3,0,1,2,0,0}, float[4] b = {3,-3,3,3}, float[4] c = {0,0,0,0}> {
        a = MatMul(x, w) d = Add(a, b) y = Add(d, c) }"""
    found = Parameters(trainable(load(tiny.write(tmp_path / "m.onnx", text))))
    sizes = {item.name: found.sizes[item.start : item.stop].reshape(item.weight.shape) for item in found.items}
    rows = sizes["w"][0] / sizes["w"][0, 0]
    assert rows[:3] == pytest.approx([1, 2, 3]) and 0.1 < rows[3] < 1 and (sizes["w"] == sizes["w"][0]).all()
    assert sizes["b"] / sizes["w"][0, 0] == pytest.approx(np.full(4, 3.0)) and (sizes["c"] == 1).all()
    stored = {item.name: item.weight.array() for item in found.items}
    assert np.concatenate([sizes[name][stored[name] != 0] for name in "wb"]).mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("samples", "fixed", "asked", "size"),
    [(100, "N", 16, 16), (10, "N", 16, 10), (100, "8", 20, 16), (100, "8", 16, 16), (100, "64", 16, 64)],
)
def test_a_step_takes_whole_batches_of_the_model(samples: int, fixed: str, asked: int, size: int) -> None:
    columns = {"x": InputColumn.of("x", np.zeros((samples, 2), np.float32))}
    assert check_trainable(build([spec(f"x: float32 ({fixed}, 2)")], columns, None, "data"), asked) == size


def test_samples_that_do_not_fill_a_batch_are_refused() -> None:
    columns = {"x": InputColumn.of("x", np.zeros((63, 2), np.float32))}
    with pytest.raises(PruneError, match="63 samples do not fill the model's batch of 64"):
        check_trainable(build([spec("x: float32 (64, 2)")], columns, None, "data"), 16)
