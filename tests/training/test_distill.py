"""`--recover distill`: the pruned model learns from the original, block by block and whole; masks move, patterns stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import prunecli
from prunecli.autodiff import DifferentiationOptions, differentiate
from prunecli.autodiff.losses import MeanSquaredError, Weighted
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.model import find_weights, load
from prunecli.options.training import FinetuneOptions
from prunecli.runtime import Session
from prunecli.training.blocks import block_ends
from prunecli.training.checkpoint import Keeper
from prunecli.training.exchange import moved
from prunecli.training.finetune import finetune
from prunecli.training.hyperparameters import settle, tuned
from prunecli.training.session import _Validation
from prunecli.training.trainer import Trainer
from tests import tiny

SAMPLES = Path(__file__).parents[2] / "sample_models"
CNN, MLP, TRAIN = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-train.npz"
FIT = DataOptions(str(TRAIN), limit=200, held_out=(0.1, 0))
"""What closed forms may see."""
COMMANDS = {"magnitude": prunecli.magnitude, "gradient": prunecli.gradient, "oneshot": prunecli.oneshot}
QUICK = {"recover": "distill", "data": TRAIN, "limit": 200, "epochs": 3, "rate": 2e-3, "augment": (), "threads": 1}


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def run(command: str, output: Path, model: Path = MLP, **changes: Any) -> Any:
    return COMMANDS[command](model, output=output, **QUICK | changes)


# -- blocks -------------------------------------------------------------------------------------------

W = "float[4,4] w = {%s}, float[4,4] v = {%s}, float[4,4] u = {%s}" % ((", ".join("1" * 16),) * 3)
ENDS = [
    ("plain", "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Tanh(c)", ["b"]),
    (
        "residual",
        "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Add(c, b) e = Relu(d) y = MatMul(e, u)",
        ["b", "e"],
    ),
    ("two branches", "a = MatMul(x, w) b = MatMul(x, v) c = Add(a, b) y = MatMul(c, u)", ["a", "c"]),
    ("past every branch", "a = MatMul(x, w) b = MatMul(a, v) y = Add(a, b)", ["a"]),
    ("one layer", "a = MatMul(x, w) y = Relu(a)", []),
    ("a turned weight", "t = Transpose(v) a = MatMul(x, w) y = MatMul(a, t)", ["a"]),
    ("data besides", "s = Relu(x) a = MatMul(x, w) b = Mul(a, s) y = MatMul(b, v)", ["b"]),
]


@pytest.mark.parametrize(("body", "ends"), [case[1:] for case in ENDS], ids=[case[0] for case in ENDS])
def test_blocks_end_where_one_value_is_all_that_goes_on(body: str, ends: list[str]) -> None:
    model = ir.from_proto(onnx.load_from_string(tiny.model(f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ {body} }}")))
    assert block_ends(model, ["w", "v", "u"]) == ends


def test_a_block_learns_from_its_own_end_alone() -> None:
    """Past a detached value the gradient is that of what comes after; before it, of its own loss."""
    rng = np.random.default_rng(0)
    body = f"g (float[2,4] x) => (float[2,4] y) <{W}> {{ a = MatMul(x, w) b = Tanh(a) c = MatMul(b, v) y = Tanh(c) }}"
    model = ir.from_proto(onnx.load_from_string(tiny.model(body)))
    feed = {name: rng.standard_normal((2, 4)).astype(np.float32) for name in ("x", "tb", "ty")}
    feed |= {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("w", "v")}
    both = Weighted(((1.0, MeanSquaredError("b", "tb")), (1.0, MeanSquaredError("y", "ty"))))

    def slopes(loss: Any, detached: tuple[str, ...] = ()) -> dict[str, Any]:
        built = differentiate(model, ["w", "v"], loss, shapes={"x": (2, 4)},
                              options=DifferentiationOptions(detached=detached))  # fmt: skip
        session = Session.open(built.model, threads=1)
        found = session.run({spec.name: feed[spec.name] for spec in session.inputs})
        return {name: found[out] for name, out in built.gradients.items()}

    alone, whole = slopes(both, ("b",)), slopes(both)
    assert np.allclose(alone["w"], slopes(MeanSquaredError("b", "tb"))["w"], atol=1e-6)
    assert np.allclose(alone["v"], whole["v"], atol=1e-6) and not np.allclose(alone["w"], whole["w"], atol=1e-3)


# -- masks that move ----------------------------------------------------------------------------------

SHAPE = (2, 6, 3, 10)
MOVES = [("element", (1, 1, 1, 1)), ("2:4", None), ("1:4", None), ("2x5", (1, 2, 1, 5)), ("4x1", (1, 4, 1, 1)),
         ("row", (1, 1, 3, 10)), ("column", (1, 6, 3, 1))]  # fmt: skip


def kept(pattern: str, tile: tuple[int, ...] | None, rng: np.random.Generator) -> Any:
    """A mask of about half of the units."""
    if tile is not None:
        grid = [-(-size // part) for size, part in zip(SHAPE, tile, strict=True)]
        mask = rng.random(grid) < 0.5
        for axis, (size, part) in enumerate(zip(SHAPE, tile, strict=True)):
            mask = np.take(np.repeat(mask, part, axis), np.arange(size), axis)
        return mask
    keep, window = map(int, pattern.split(":"))
    order = rng.random((*SHAPE[:3], 3, window)).argsort(-1) < keep
    return order.reshape(*SHAPE[:3], 3 * window)[..., : SHAPE[3]]


@pytest.mark.parametrize(("pattern", "tile"), MOVES, ids=[name for name, _ in MOVES])
def test_as_many_come_back_as_go_and_the_pattern_stays(pattern: str, tile: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(1)
    mask, sizes, slopes = kept(pattern, tile, rng), rng.random(SHAPE), rng.random(SHAPE)
    goes, comes = moved(sizes, slopes, mask, pattern, 0.4)
    after = (mask & ~goes) | comes
    assert goes.sum() == comes.sum() > 0 and mask[goes].all() and not mask[comes].any()
    if tile is None:
        keep, window = map(int, pattern.split(":"))
        whole = after[..., :8].reshape(*SHAPE[:3], 2, window)
        assert (whole.sum(-1) == keep).all() and (after[..., 8:] == mask[..., 8:]).all()
        return
    for box in np.ndindex(*[-(-size // part) for size, part in zip(SHAPE, tile, strict=True)]):
        place = tuple(slice(i * part, (i + 1) * part) for i, part in zip(box, tile, strict=True))
        assert after[place].all() or not after[place].any()


def test_the_smallest_go_and_the_steepest_come_back() -> None:
    sizes, slopes = np.array([5.0, 1.0, 3.0, 0, 0, 0]), np.array([9.0, 9, 9, 1, 7, 2])
    four = (1, 1, 1, 6)
    goes, comes = moved(sizes.reshape(four), slopes.reshape(four), sizes.reshape(four) > 0, "element", 0.34)
    assert np.flatnonzero(goes).tolist() == [1] and np.flatnonzero(comes).tolist() == [4]


ZEROS = [("magnitude", {"sparsity": 0.8}), ("magnitude", {"sparsity": 0.5, "pattern": "4x1"}),
         pytest.param("oneshot", {"sparsity": 0.8}, marks=pytest.mark.slow), ("oneshot", {"pattern": "2:4"}),
         ("gradient", {"sparsity": 0.8, "scope": "layer"})]  # fmt: skip


@pytest.mark.parametrize(("command", "asked"), ZEROS, ids=str)
def test_zeros_are_exact_after_masks_have_moved(
    command: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last weights count as the best, so that it is masks that have moved that are kept."""
    fit = {} if command == "magnitude" else {"data": FIT}
    plain = COMMANDS[command](MLP, output=tmp_path / "plain.onnx", threads=1, **fit, **asked)
    scores = iter(range(100))
    monkeypatch.setattr(_Validation, "score", lambda self, statistics: float(next(scores)))
    found = run(command, tmp_path / "out.onnx", exchange=0.3, **asked)
    before, after = tensors(tmp_path / "plain.onnx"), tensors(tmp_path / "out.onnx")
    names = [layer.weight for layer in found.layers]
    assert [layer.nonzero for layer in found.layers] == [layer.nonzero for layer in plain.layers]
    assert [(after[n] != 0).sum() for n in names] == [(before[n] != 0).sum() for n in names]
    assert any(((after[n] != 0) != (before[n] != 0)).any() for n in names)
    if asked.get("pattern") == "2:4":
        layouts = {weight.name: weight.layout for weight in find_weights(load(MLP)).prunable}
        for name in names:
            kept = layouts[name].canonical(after[name]) != 0
            whole = kept[..., : kept.shape[3] // 4 * 4]
            assert (whole.reshape(*kept.shape[:3], -1, 4).sum(-1) <= 2).all()


# -- the command --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_structures_keep_their_shapes_and_gain(tmp_path: Path) -> None:
    asked = {"timing": False, "threads": 1, "data": TRAIN, "limit": 200}
    plan = tmp_path / "plan.json"
    plain = prunecli.structured(CNN, macs=0.3, save_plan=plan, output=tmp_path / "plain.onnx", **asked)
    found = prunecli.structured(CNN, plan=plan, output=tmp_path / "out.onnx", **asked | QUICK)
    assert found.training is not None and found.training.distilled and found.removed and found.recovery is not None
    shapes = [{name: array.shape for name, array in tensors(tmp_path / f"{n}.onnx").items()} for n in ("plain", "out")]
    assert shapes[0] == shapes[1] and plain.after.macs == found.after.macs


@pytest.mark.parametrize(
    "training", [{"finetune_epochs": 1}, {"recover": "distill", "epochs": 1, "rate": 2e-3}], ids=str
)
def test_a_plan_is_replayed_and_trained(tmp_path: Path, training: dict[str, Any]) -> None:
    """What training sets by itself is no choice beside the plan."""
    plan, asked = tmp_path / "plan.json", {"timing": False, "threads": 1, "data": TRAIN, "limit": 64}
    plain = prunecli.structured(MLP, ratio=0.5, save_plan=plan, output=tmp_path / "plain.onnx", **asked)
    found = prunecli.structured(MLP, plan=plan, output=tmp_path / "out.onnx", **asked | training)
    assert found.training is not None and plain.after.macs == found.after.macs


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("oneshot", tmp_path / f"{name}.onnx", sparsity=0.8, rate=None)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_labels_are_not_read(tmp_path: Path) -> None:
    with np.load(TRAIN) as file:
        wrong = {name: file[name] for name in file.files} | {"labels": np.zeros_like(file["labels"])}
        np.savez(tmp_path / "wrong.npz", **wrong)
    for name, data in (("a", TRAIN), ("b", tmp_path / "wrong.npz")):
        run("magnitude", tmp_path / f"{name}.onnx", sparsity=0.8, data=data)
    one, other = tensors(tmp_path / "a.onnx"), tensors(tmp_path / "b.onnx")
    assert all((one[name] == other[name]).all() for name in one)


def test_what_judges_is_held_out_from_the_closed_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("oneshot", tmp_path / "o.onnx", sparsity=0.8)
    assert found.recipe["samples"] == 180 and found.training.last.samples == 180
    assert found.training.last.validation_samples == 20


def test_where_nothing_is_gained_the_closed_forms_stay_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([10.0, *[5.0] * 50])
    monkeypatch.setattr(_Validation, "score", lambda self, statistics: next(scores))
    found = run("oneshot", tmp_path / "o.onnx", sparsity=0.8)
    monkeypatch.undo()
    prunecli.oneshot(MLP, output=tmp_path / "closed.onnx", data=FIT, sparsity=0.8, threads=1)
    one, other = tensors(tmp_path / "o.onnx"), tensors(tmp_path / "closed.onnx")
    assert found.output is not None and all((one[name] == other[name]).all() for name in other)
    assert "no epoch of the last step improved it" in str(found.to_document())
    found.raise_if_failed()


def test_minutes_end_the_run(tmp_path: Path) -> None:
    found = run("magnitude", tmp_path / "o.onnx", sparsity=0.8, epochs=500, minutes=0.01)
    assert len(found.training.last.epochs) < 500
    assert any("minutes of --budget are over" in note for note in found.training.last.notes)


def test_all_minutes_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which nothing but a step takes time: 1 s. What short runs take is taken off once, and no epoch is
    counted twice, so that the run ends with the step that ends its 10 minutes."""
    now, step = [0.0], Trainer._step

    def slow(self: Trainer, number: int) -> float:
        now[0] += 1
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", slow)
    monkeypatch.setattr("prunecli.training.trainer.time.perf_counter", lambda: now[0])
    found = run("magnitude", tmp_path / "o.onnx", sparsity=0.8, epochs=5000, patience=0, minutes=10, rate=None)
    assert any("minutes of --budget are over" in note for note in found.training.last.notes)
    assert 599 <= now[0] <= 601


REFUSED = [
    ({"finetune_epochs": 2}, "trains by itself"), ({"teacher": "none"}, "learns from the unpruned model"),
    ({"data": "synthetic"}, "synthetic"), ({"data": None}, "needs data"),
    ({"recover": "none"}, "of training, which was not asked for"),
    ({"recover": "none", "finetune_epochs": 1}, "--epochs is of --recover distill"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=message):
        run("magnitude", tmp_path / "o.onnx", sparsity=0.5, **{"limit": None} | changes)


def test_moving_masks_resume_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = prunecli.magnitude(MLP, sparsity=0.8, output=tmp_path / "cut.onnx")
    options = FinetuneOptions(
        data=str(TRAIN), limit=200, teacher=str(MLP), unlabelled=True, epochs=4, rate=2e-3, augment=(), threads=1,
        exchange=0.3, masked=cut.masked, output=tmp_path / "whole.onnx",
    )  # fmt: skip
    finetune(tmp_path / "cut.onnx", options)
    original, steps = Keeper.step, 0

    def interrupt(self: Keeper) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Keeper, "step", interrupt)
    parts = replace(options, checkpoint=tmp_path / "state", output=tmp_path / "parts.onnx")
    with pytest.raises(PruneError, match="interrupted at step 5"):
        finetune(tmp_path / "cut.onnx", parts)
    monkeypatch.undo()
    finetune(tmp_path / "cut.onnx", replace(parts, resume=True))
    one, other = tensors(tmp_path / "whole.onnx"), tensors(tmp_path / "parts.onnx")
    assert all((one[name] == other[name]).all() for name in one)


# -- what is chosen -----------------------------------------------------------------------------------

BASE = settle(FinetuneOptions(data="x.npz"), 7, True)
SMALL, LARGE = (("flip", "shift"), 1.0), (("flip", "crop"), 0.0)
CHOICES = [
    ("images that a long run needs", {}, True, lambda h: -0.2 * bool(h.augment) - abs(np.log(h.rate / 3e-4)),
     (*SMALL, 3e-4)),
    ("images that help", {}, True, lambda h: bool(h.mixup) - abs(np.log(h.rate / 3e-5)), (*SMALL, 3e-4 / 9)),
    ("large images", {}, True, lambda h: ("crop" in h.augment) - abs(np.log(h.rate / 3e-4)), (*LARGE, 3e-4)),
    ("images that harm", {}, True, lambda h: -bool(h.augment) - abs(np.log(h.rate / 3e-4)), ((), 0.0, 3e-4)),
    ("a high rate", {}, False, lambda h: 1e3 * h.rate, ((), 0.0, 3e-4 * 3**5)),
    ("a low rate", {}, False, lambda h: -1e6 * h.rate, ((), 0.0, 3e-4 / 3**4)),
    ("all is given", {"rate": 0.1, "augment": ()}, True, None, ((), 0.0, 0.1)),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "alone", "work", "epochs"), [
    ({}, True, 0, 100), ({}, True, 5 * 10**10, 30), ({}, True, 10**13, 5), ({}, False, 10**13, 100),
    ({"epochs": 50}, True, 10**13, 50),
])  # fmt: skip
def test_runs_are_as_long_as_work_allows(asked: dict[str, Any], alone: bool, work: int, epochs: int) -> None:
    assert settle(FinetuneOptions(data="x.npz", **asked), 7, alone, work).epochs == epochs


@pytest.mark.parametrize(("asked", "images", "score", "wanted"), [case[1:] for case in CHOICES],
                         ids=[case[0] for case in CHOICES])  # fmt: skip
def test_short_runs_choose(asked: dict[str, Any], images: bool, score: Any, wanted: tuple[Any, ...]) -> None:
    options = FinetuneOptions(data="x.npz", **asked)
    best = tuned(settle(options, 7, True), options, images, score)
    assert (best.augment, best.mixup) == wanted[:2] and best.rate == pytest.approx(wanted[2])
