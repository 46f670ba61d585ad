"""Pruning with training between cuts: the schedule, exact counts, nothing revived, both parts reported."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import prunecli
from prunecli.data.options import DataOptions
from prunecli.errors import GateFailed, PruneError
from prunecli.masks.decide import Recipe
from prunecli.model import Dims, load
from prunecli.structures.gradual import expand, scattered
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.training import gradual
from prunecli.training.gradual import at_share, raise_if_all_harmful, share_after
from prunecli.training.trainer import DivergedError
from tests.tiny import few

SAMPLES = Path(__file__).parents[2] / "sample_models"
CNN, MLP, TRAIN = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-train.npz"


def weights(path: str | Path) -> dict[str, Any]:
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {name: array for name, array in found.items() if array.ndim > 1}


def retrain(steps: int = 1, **changes: Any) -> dict[str, Any]:
    return {"steps": steps, "train_data": TRAIN, "finetune_epochs": 1, "rate": 0.03, "threads": 1, **changes}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The weights after each cut and after its training, as the rounds go by."""
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    original = gradual.finetune

    def watched(model: Path, options: Any, progress: Any) -> Any:
        before = weights(model)
        result = original(model, options, progress)
        seen.append((before, weights(options.output)))
        return result

    monkeypatch.setattr(gradual, "finetune", watched)
    return seen


# -- the schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "shares"),
    [(1, [1.0]), (2, [0.875, 1.0]), (4, [1 - 27 / 64, 0.875, 1 - 1 / 64, 1.0])],
)
def test_the_schedule_is_cubic(steps: int, shares: list[float]) -> None:
    assert [share_after(step, steps) for step in range(1, steps + 1)] == pytest.approx(shares)


@given(st.integers(1, 50))
def test_the_schedule_rises_to_exactly_one_and_ever_more_slowly(steps: int) -> None:
    shares = [0.0, *(share_after(step, steps) for step in range(1, steps + 1))]
    rises = np.diff(shares)
    assert shares[-1] == 1.0 and (rises > 0).all() and (np.diff(rises) <= 1e-12).all()


PARTS = [
    (Recipe(sparsity=0.8), 0.5, 0.4, "element"),
    (Recipe(sparsity=0.8, pattern="4x1"), 0.5, 0.4, "4x1"),
    (Recipe(sparsity=0.8), 1.0, 0.8, "element"),
    (Recipe(pattern="2:4"), 0.1, None, "3:4"),
    (Recipe(pattern="2:4"), 0.875, None, "2:4"),
    (Recipe(pattern="1:8"), 0.5, None, "4:8"),
    (Recipe(threshold=0.1), 1.0, None, "element"),
]


@pytest.mark.parametrize(("recipe", "share", "sparsity", "pattern"), PARTS)
def test_a_part_of_a_recipe(recipe: Recipe, share: float, sparsity: float | None, pattern: str) -> None:
    part = at_share(recipe, share)
    assert part.sparsity == (None if sparsity is None else pytest.approx(sparsity)) and part.pattern == pattern


def test_a_threshold_has_no_parts() -> None:
    with pytest.raises(PruneError, match="cannot be reached in steps"):
        at_share(Recipe(threshold=0.1), 0.5)


# -- element-wise -----------------------------------------------------------------------------------

ELEMENTWISE = [
    {"sparsity": 0.9},
    {"sparsity": 0.8, "scope": "global"},
    {"sparsity": 0.7, "scope": "erk"},
    {"sparsity": 0.6, "criterion": "random"},
    {"sparsity": 0.5, "pattern": "row"},
    {"pattern": "1:4"},
]


@pytest.mark.parametrize("asked", ELEMENTWISE, ids=str)
def test_counts_are_exact_and_zeros_stay(asked: dict[str, Any], kept: list[Any], tmp_path: Path) -> None:
    result = prunecli.magnitude(MLP, output=tmp_path / "out.onnx", **retrain(3), **asked)
    once = prunecli.magnitude(MLP, output=tmp_path / "once.onnx", **asked)
    assert sum(layer.nonzero for layer in result.layers) == sum(layer.nonzero for layer in once.layers)
    assert len(kept) == 3
    gone = {name: np.zeros(array.shape, bool) for name, array in weights(MLP).items()}
    for before, after in kept:
        for name, mask in gone.items():
            assert not before[name][mask].any() and not after[name][before[name] == 0].any()
            gone[name] = before[name] == 0
    shares = [1 - one.cut.sparsity for one in result.training.rounds] if result.training else []
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_both_parts_are_told(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = prunecli.magnitude(CNN, output=out, sparsity=0.9, **retrain(2)).to_json()
    told = found["training"]
    assert [step["share"] for step in told["steps"]] == [0.875, 1.0]
    assert [len(step["epochs"]) for step in told["steps"]] == [1, 1]
    assert told["teacher"] == str(CNN) and told["score"]["name"] == "accuracy"
    assert found["verification"]["kind"] == "exact" and "before its training" in found["verification"]["detail"]
    assert found["before"]["nonzero"] > 60_000 > found["after"]["nonzero"] and found["recipe"]["steps"] == 2
    assert found["output"]["sha256"] == load(out).sha256 and found["model"]["path"] == str(CNN)
    assert found["layers"][0]["nonzero_before"] == found["layers"][0]["params_before"]


@pytest.mark.parametrize("teacher", [True, False])
def test_the_unpruned_model_teaches_unless_told_otherwise(teacher: bool, tmp_path: Path) -> None:
    wanted = retrain(teacher=None if teacher else "none")
    result = prunecli.magnitude(MLP, output=tmp_path / "out.onnx", sparsity=0.9, **wanted)
    assert result.training is not None and result.training.teacher == (str(MLP) if teacher else None)
    assert ("distillation" in str(result.training.last.recipe)) is False
    assert result.training.last.recipe["teacher"] == result.training.teacher


def test_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    for found in (
        prunecli.magnitude(MLP, output=tmp_path / "o.onnx", sparsity=0.9, dry_run=True, **retrain(3)),
        prunecli.structured(MLP, output=tmp_path / "o.onnx", ratio=0.5, dry_run=True, **retrain(3)),
    ):
        assert found.training is None and found.output is None and any("trains nothing" in n for n in found.notes)
    assert not list(tmp_path.iterdir())


# -- structures -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("budget", few([{"ratio": 0.5}, {"macs": 0.3}, {"params": 20_000}], [1]), ids=str)
def test_cuts_in_steps_hold_against_the_original(budget: dict[str, float], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    any_width: dict[str, Any] = {"round_to": 1, **budget}  # so that every step ends near its own budget
    result = prunecli.structured(CNN, output=out, **retrain(3), **any_width)
    once = prunecli.structured(CNN, output=tmp_path / "once.onnx", **any_width)
    assert result.training is not None
    kept = [{row.name: row.after for row in one.cut.groups} for one in result.training.rounds]
    for name in kept[0]:
        widths = [row[name] for row in kept]
        assert widths == sorted(widths, reverse=True)
    assert sum(kept[0].values()) > sum(kept[-1].values())
    assert result.verification.kind == "exact" and result.before == once.before
    if "ratio" in budget:
        assert [row.after for row in result.groups] == [row.after for row in once.groups]
    elif "macs" in budget:
        assert result.after.macs is not None and result.before.macs is not None
        assert 0.25 < result.after.macs / result.before.macs <= 0.3
    else:
        assert 0.8 * 20_000 < result.after.params <= 20_000
    assert sum(a.size for a in weights(out).values()) == sum(
        row.params_after for row in result.layers if len(row.shape_after) > 1
    )


@pytest.mark.slow
@pytest.mark.parametrize(("named", "used"), [({}, "l2-in"), ({"criterion": "activation"}, "activation")])
def test_what_is_trained_is_ranked_by_weights_unless_told_otherwise(
    named: dict[str, str], used: str, tmp_path: Path
) -> None:
    data = DataOptions(str(TRAIN), limit=64)
    found = prunecli.structured(CNN, output=tmp_path / "o.onnx", ratio=0.5, data=data, **retrain(), **named)
    assert found.recipe["criterion"] == used


@pytest.mark.slow
def test_what_was_cut_is_a_subset_of_what_is_cut_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.structures import gradual as module

    seen: list[Any] = []
    original = module.decide

    def watched(*args: Any, **more: Any) -> Any:
        subject, decided = original(*args, **more)
        seen.append(decided.removed)
        return subject, decided

    monkeypatch.setattr(module, "decide", watched)
    prunecli.structured(CNN, output=tmp_path / "out.onnx", macs=0.3, criterion="fpgm", **retrain(3))
    assert len(seen) == 3
    assert all(after[before].all() and after.sum() > before.sum() for before, after in itertools.pairwise(seen))


def test_units_that_are_gone_count_and_stay_gone() -> None:
    from prunecli.structures.choose import decide_units
    from tests.structures.recipes import unit_recipe

    units = open_cuttable(CNN, AnalysedAs("channel,head"), Dims()).units
    scores = decide_units(units, unit_recipe("ratio", 0.25)).scores
    gone = np.zeros(units.count, bool)
    for group in units.groups:  # the best of each, which no choice would take
        gone[group.first + int(scores[group.units].argmax())] = True
    removed = decide_units(units, unit_recipe("ratio", 0.25), gone=gone).removed
    assert removed[gone].all() and removed.sum() == units.count // 4


def test_an_expanded_model_computes_what_the_cut_one_does(tmp_path: Path) -> None:
    """Zeros where it was cut: the same outputs to the rounding of other summation orders, some 1e-6."""
    from dataclasses import replace

    from prunecli.model.saving import SaveOptions, save
    from prunecli.runtime import Session

    subject = open_cuttable(CNN, AnalysedAs("channel,head"), Dims())
    removed = np.zeros(subject.units.count, bool)
    for group in subject.units.groups:
        removed[group.first : group.first + group.count // 2] = True
    cut = subject.without(removed, subject.units.removed(removed))
    save(replace(subject.file, ir=cut), tmp_path / "cut.onnx", SaveOptions())
    save(
        replace(subject.file, ir=expand(subject, removed, tmp_path / "cut.onnx")), tmp_path / "wide.onnx", SaveOptions()
    )
    feed = {"image": np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)}
    one, other = (Session.open(tmp_path / f"{n}.onnx", threads=1).run(feed)["logits"] for n in ("cut", "wide"))
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()
    wide = weights(tmp_path / "wide.onnx")
    assert {n: a.shape for n, a in wide.items()} == {n: a.shape for n, a in weights(CNN).items()}


def test_scattering() -> None:
    kept = np.arange(1, 5, dtype=np.float32).reshape(2, 2)
    out = scattered(kept, (3, 4), {0: np.array([1]), 1: np.array([0, 3])})
    assert out.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 3, 4, 0]]
    with pytest.raises(PruneError, match="not that of its cut"):
        scattered(kept, (3, 4), {0: np.array([1])})


# -- refusals ---------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"latency": 0.5}, "--latency is decided by measuring in one go"),
    ({"macs": 0.5, "granularity": "block"}, "--granularity block is decided"),
    ({"macs": 0.5, "save_plan": Path("plan.json")}, "a plan holds one cut"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_has_no_steps_is_refused(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=message):
        prunecli.structured(CNN, output=tmp_path / "out.onnx", **retrain(2), **asked)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"mine")
    with pytest.raises(PruneError, match="exists"):
        prunecli.magnitude(MLP, output=tmp_path / "out.onnx", sparsity=0.5, **retrain())
    assert (tmp_path / "out.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("rate", [1e5, 1e300])
def test_training_that_diverges_leaves_no_file(rate: float, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="at a learning rate of"):
        prunecli.structured(CNN, output=tmp_path / "out.onnx", ratio=0.5, **retrain(2, rate=rate))
    assert not list(tmp_path.iterdir())


def test_training_that_improves_nothing_is_a_failed_gate(tmp_path: Path) -> None:
    """The start is nearly perfect, and other labels are learnt instead."""
    with np.load(TRAIN) as file:
        wrong = {"image": file["image"], "labels": (file["labels"] + 1) % 10}
    np.savez(tmp_path / "wrong.npz", **wrong)
    asked = retrain(train_data=tmp_path / "wrong.npz", validation=TRAIN, teacher="none", rate=0.01, optimizer="adam")
    result = prunecli.magnitude(MLP, output=tmp_path / "out.onnx", sparsity=0.1, **asked)
    with pytest.raises(GateFailed, match=r"at a learning rate of 0.01 the accuracy fell from [\d.]+ to [\d.]+ at best"):
        raise_if_all_harmful(result.training)
    assert result.output is None and not (tmp_path / "out.onnx").exists()
    raise_if_all_harmful(None)
