"""`prune adaptive --finetune-epochs`: further than without, judged on samples that nothing was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.errors import PruneError
from prunecli.model import find_weights, load
from prunecli.search import models
from prunecli.search import strategy as search_module
from prunecli.search.adaptive import AdaptiveResult, adaptive
from prunecli.training.finetune import finetune
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
MLP, TEST, TRAIN = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-test.npz", SAMPLES / "digits-train.npz"


def found(tmp_path: Path, data: Path = TRAIN, **options: Any) -> AdaptiveResult:
    retrain = {"train_data": data, "finetune_epochs": 2, "optimizer": "sgd", "rate": 0.02}
    given: dict[str, Any] = {"data": TEST, "max_drop": 0.04, "jobs": 1, "seed": 1, "rounds": 1, "criterion": "l1"}
    return adaptive(MLP, output=tmp_path / "o.onnx", **(given | retrain | options))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "MOST_STEPS", 3)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["element", "channel"])
def test_it_goes_further_with_training(granularity: str, tmp_path: Path) -> None:
    done = found(tmp_path, granularity=granularity, save_front=tmp_path / "front")
    plain = [step for step in done.steps if step.allowed and not step.stage.startswith("trained")]
    last = done.confirmations[-1]
    assert done.reached and last.step.stage.startswith("trained")
    assert last.step.remains < min(step.remains for step in plain)
    result = done.result
    assert result is not None and result.verification.kind == "exact" and result.training is not None
    assert result.before.params - result.before.nonzero < 20 and result.output is not None
    assert len(result.training.rounds) == int(last.step.stage.split()[1])  # no step failed in between
    after = {w.name: int(np.count_nonzero(w.array())) for w in find_weights(load(tmp_path / "o.onnx")).prunable}
    assert sum(after.values()) <= sum(layer.nonzero for layer in result.layers)
    assert any("trained" in step.stage for step in (m.step for m in done.front)) and onnx.load(tmp_path / "o.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("granularity", "drop"), [("element", 0.04), ("channel", 0.02)])
def test_training_goes_on_from_what_was_recovered(granularity: str, drop: float, tmp_path: Path) -> None:
    done = found(tmp_path, granularity=granularity, recover="lstsq", max_drop=drop, save_front=tmp_path / "front")
    fitted = [step for step in done.steps if step.stage.startswith("recovered")]
    trained = [step for step in done.steps if step.stage.startswith("trained")]
    assert done.reached and fitted and trained and fitted[-1].number < trained[0].number
    assert trained[0].remains < min(step.remains for step in fitted if step.allowed)
    assert onnx.load(tmp_path / "o.onnx")


@pytest.mark.slow
def test_distillation_learns_on_the_searched_part_and_is_judged_on_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples to search, to confirm and to judge training share none; labels are not read."""
    parts: list[set[bytes]] = []

    def watched(path: Path, options: Any, progress: Any) -> Any:
        sets = [each.open([]) for each in (options.data, options.validation)]
        parts.extend({row.tobytes() for batch in each.batches(64) for row in batch.feed["image"]} for each in sets)
        return finetune(path, options, progress)

    monkeypatch.setattr(models, "finetune", watched)
    done = adaptive(MLP, data=TEST, max_drop=0.04, jobs=1, seed=1, rounds=1, criterion="l1", recover="distill", epochs=2,
                    rate=1e-3, augment=(), output=tmp_path / "o.onnx")  # fmt: skip
    assert done.reached and parts and len(parts[0]) > 4 * len(parts[1]) and not parts[0] & parts[1]
    assert done.samples[0] == pytest.approx(len(parts[0]), abs=3)
    assert sum(done.samples) + len(parts[1]) == pytest.approx(len(np.load(TEST)["labels"]), abs=3)


def test_what_went_stays_gone(tmp_path: Path) -> None:
    done = found(tmp_path)
    allocation = done.confirmations[-1].step.allocation
    for weight in find_weights(load(tmp_path / "o.onnx")).prunable:
        zeros = 1 - np.count_nonzero(weight.array()) / weight.size
        assert zeros >= allocation.get(weight.name, 0.0) - 1e-3
    assert not list(tmp_path.glob(".*"))


def test_it_is_not_trained_on_what_judges_it(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="learns them by heart"):
        found(tmp_path, data=TEST)
    with pytest.raises(PruneError, match="do not go together"):
        found(tmp_path, external_data="always")


def test_a_dry_run_trains_nothing_and_says_so(tmp_path: Path) -> None:
    done = found(tmp_path, dry_run=True)
    assert not any(step.stage.startswith("trained") for step in done.steps) and not list(tmp_path.iterdir())
    assert any("trains nothing" in note for note in done.notes)
