"""`prune adaptive` and `prune sensitivity` on a trained network: promises, resumption, interruption, workers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import prunecli
from prunecli.data.options import DataOptions
from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.latency import Latency, Speedup, TimedPair, TimingOptions
from prunecli.evaluation.options import EvaluateOptions
from prunecli.masks.criteria import element_names
from prunecli.quantity import Quantity
from prunecli.report.document import Document, Text
from prunecli.report.render_html import to_html
from prunecli.runtime import Session
from prunecli.search.adaptive import AdaptiveResult, adaptive
from prunecli.search.adaptive_report import path_chart, to_document
from prunecli.search.pruner import Layer
from prunecli.search.runner import InProcess
from prunecli.search.sensitivity import Point, SensitivityRow, sensitivity
from prunecli.search.trials import Outcome, TrialGroup, TrialSamples, Workspace
from tests.tiny import ROOT, few

SAMPLES = ROOT / "sample_models"
CNN, TEST = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-test.npz"
MLP = SAMPLES / "digits-mlp.onnx"


def found(tmp_path: Path, name: str = "out.onnx", model: Path = MLP, **options: Any) -> AdaptiveResult:
    given = {"data": TEST, "max_drop": 0.03, "jobs": 1, "seed": 1, **options}
    return adaptive(model, output=tmp_path / name, force=True, **given)


@pytest.fixture(scope="module")
def by_feedback(tmp_path_factory: pytest.TempPathFactory) -> AdaptiveResult:
    """The result of which tests of reports change a part."""
    return found(tmp_path_factory.mktemp("feedback"), strategy="feedback")


def accuracy(path: Path, **options: Any) -> Any:
    return evaluate(path, options=EvaluateOptions(data=DataOptions(str(TEST)), latency=False, **options)).model.metrics


GOALS: list[dict[str, Any]] = [
    {}, {"metric": "f1", "strategy": "feedback"}, {"metric": "log_loss", "max_drop": 0.2}, {"metric": "cosine", "max_drop": 0.01},
    {"strategy": "feedback"}, {"minimize": "file_bytes"}, {"criterion": "l1"}, {"pattern": "4x1"},
    {"granularity": "channel,head", "max_drop": 0.1}, {"granularity": "channel", "minimize": "params", "max_drop": 0.1},
    {"criterion": "obs", "strategy": "feedback"}, {"criterion": "wanda", "strategy": "feedback"},
    {"recover": "lstsq", "strategy": "feedback"}, {"criterion": "obs", "recover": "bias", "strategy": "feedback"},
    {"granularity": "channel", "recover": "auto", "strategy": "feedback", "max_drop": 0.1},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("goal", few(GOALS, (0, 1, 3, 5, 8, 10, 12)), ids=str)
def test_the_file_keeps_what_was_promised_and_is_proved(goal: dict[str, Any], tmp_path: Path) -> None:
    done = found(tmp_path, **goal)
    assert done.reached and done.result is not None and done.result.verification.kind == "exact"
    last = done.confirmations[-1]
    assert last.holds and last.drop.value <= done.goal.max_drop and last.low < last.drop.value < last.high
    assert last.step.remains < 0.97 and last.step.bound <= done.goal.max_drop
    assert last.drop.samples == done.samples[1] and sum(done.samples) == 547
    saved = onnx.load(tmp_path / "out.onnx")
    said = json.loads(next(p.value for p in saved.metadata_props if p.key == "prunecli.recipe"))
    assert said["max_drop"] == done.goal.max_drop and said["metric"] == done.metric


CONFIRMED: list[dict[str, Any]] = [
    {}, {"recover": "lstsq", "strategy": "feedback"},
    {"granularity": "channel", "recover": "lstsq", "strategy": "feedback", "max_drop": 0.1},
    {"granularity": "channel", "strategy": "feedback", "max_drop": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", few(CONFIRMED, (1, 3)), ids=str)
def test_the_confirmed_figures_are_those_of_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    """The held-out half, taken by the same seed, evaluated by `evaluate` on the saved file: what is judged is what is
    written, recovered or not."""
    done = found(tmp_path, seed=5, **options)
    with np.load(TEST) as data:
        order = np.sort(np.random.default_rng(5).permutation(547)[:274])
        np.savez(tmp_path / "held.npz", **{name: data[name][order] for name in data.files})
    held = EvaluateOptions(data=DataOptions(str(tmp_path / "held.npz")), latency=False)
    both = evaluate(tmp_path / "out.onnx", MLP, held)
    last = done.confirmations[-1]
    assert both.model.metrics["accuracy"] == pytest.approx(last.metric)
    assert both.baseline is not None and both.baseline.metrics["accuracy"] == pytest.approx(last.baseline)


def test_without_labels_it_is_fidelity(tmp_path: Path) -> None:
    with np.load(TEST) as data:
        np.savez(tmp_path / "x.npz", **{n: data[n] for n in data.files if n != "labels"})
    done = found(tmp_path, data=tmp_path / "x.npz", max_drop=0.05)
    assert done.metric == "top1_agreement" and done.baseline == 1.0 and done.reached


@pytest.mark.slow
def test_recovery_brings_a_smaller_model_at_the_same_promise(tmp_path: Path) -> None:
    kinds = {"granularity": "channel", "strategy": "feedback", "max_drop": 0.1}
    plain, fitted = found(tmp_path, **kinds), found(tmp_path, "fitted.onnx", recover="lstsq", **kinds)
    assert fitted.confirmations[-1].step.remains < plain.confirmations[-1].step.remains
    assert any(step.stage.startswith("recovered") for step in fitted.steps)


@pytest.mark.slow
def test_search_is_smaller_than_feedback_and_than_every_layer_alike(tmp_path: Path) -> None:
    ours, theirs = found(tmp_path, seed=3), found(tmp_path, "other.onnx", seed=3, strategy="feedback")
    assert ours.confirmations[-1].step.remains < theirs.confirmations[-1].step.remains
    space_share = 1 - ours.confirmations[-1].step.remains
    prunecli.magnitude(MLP, sparsity=space_share, output=tmp_path / "uniform.onnx")
    assert accuracy(tmp_path / "uniform.onnx")["log_loss"] > accuracy(tmp_path / "out.onnx")["log_loss"]


def test_what_cannot_be_kept_writes_nothing_and_tells_the_closest(tmp_path: Path) -> None:
    done = found(tmp_path, max_drop=0.0001, save_front=tmp_path / "front")
    assert not done.reached and not (tmp_path / "out.onnx").exists() and done.closest is not None
    with pytest.raises(GateFailed, match="no model within a drop"):
        done.raise_if_failed()
    assert done.to_json()["output"] is None and done.to_json()["closest"]["bound"] > 0.0001


@pytest.mark.slow
@pytest.mark.parametrize("changes, told, untold", [
    ({}, ["--recover auto or --finetune-epochs"], []),
    ({"recover": "bias"}, ["--finetune-epochs"], ["--recover"]),
])  # fmt: skip
def test_what_to_do_about_a_missed_goal_names_what_was_not_tried(
    tmp_path: Path, changes: dict[str, Any], told: list[str], untold: list[str]
) -> None:
    with pytest.raises(GateFailed) as caught:
        found(tmp_path, max_drop=0.0001, strategy="feedback", **changes).raise_if_failed()
    hint = caught.value.hint or ""
    assert all(t in hint for t in ["allow more", "more data", *told]) and not any(t in hint for t in untold)


# whether held-out samples refuted what was allowed -> what is said of the closest step, which is allowed
UNREACHED = [(True, "the held-out samples confirmed no step that is"), (False, "no step that is removes anything")]


@pytest.mark.parametrize(("refuted", "told"), UNREACHED)
def test_a_missed_goal_says_why_an_allowed_step_was_not_taken(
    refuted: bool, told: str, by_feedback: AdaptiveResult
) -> None:
    allowed = next(step for step in by_feedback.steps if step.allowed)
    confirmations = by_feedback.confirmations if refuted else ()
    missed = replace(by_feedback, result=None, closest=allowed, confirmations=confirmations)
    texts = [section.body for section in to_document(missed).sections if isinstance(section, Text)]
    assert [text.endswith(f"That is allowed, but {told}.") for text in texts if "The closest is" in text] == [True]


def test_a_limit_above_one_is_one_where_the_metric_is_no_fraction(tmp_path: Path) -> None:
    assert found(tmp_path, metric="log_loss", max_drop=1.5, strategy="feedback").reached


@pytest.mark.parametrize(
    "high, told", [(0.05, "reaches beyond 0.03"), (0.02, "on other data of this kind is within 0.03")]
)
def test_the_promise_says_whether_the_interval_keeps_it(high: float, told: str, by_feedback: AdaptiveResult) -> None:
    last = replace(by_feedback.confirmations[-1], high=high)
    promise = to_document(replace(by_feedback, confirmations=[last])).sections[0]
    assert isinstance(promise, Text) and told in promise.body


@pytest.mark.parametrize("kept", [lambda s: s.allowed, lambda s: not s.allowed, lambda s: False], ids="ynx")
def test_colours_of_the_steps_keep_their_meaning_where_one_kind_is_missing(
    kept: Any, by_feedback: AdaptiveResult
) -> None:
    done = replace(by_feedback, steps=[s for s in by_feedback.steps if kept(s)], front=[], confirmations=[])
    chart = path_chart(done, "parameters")
    assert [series.name for series in chart.panels[0].series][:2] == ["allowed", "not allowed"]
    page = to_html(Document("t", [chart]))
    assert page.count("<svg") == 1 or not done.steps  # without steps the chart may be left out, but not fail


def test_where_time_was_to_be_saved_the_steps_are_drawn_as_the_metric_over_milliseconds(
    by_feedback: AdaptiveResult,
) -> None:
    done = by_feedback
    how = TimingOptions(1, "CPUExecutionProvider")
    whole, small = (Latency(np.full(9, ms), how) for ms in (4.0, 3.0))
    timed = SimpleNamespace(speed=SimpleNamespace(pair=TimedPair(small, whole, Speedup(4 / 3, 1.3, 1.4))))
    fast: Any = replace(done, goal=replace(done.goal, minimize="latency"), result=timed)
    chart, step = path_chart(fast, "time"), next(s for s in done.steps if s.allowed)
    series = {one.name: one for one in chart.panels[0].series}
    assert (chart.x.title, chart.y.title) == ("milliseconds of a run", "accuracy")
    assert (series["allowed"].x[0], series["allowed"].y[0]) == (4 * step.remains, done.baseline - step.drop.value)
    assert series["on held-out samples"].x == [3.0] and series["on held-out samples"].low[0] <= done.baseline
    assert chart.panels[0].marks[0].at == pytest.approx(done.baseline - done.goal.max_drop)
    assert path_chart(done, "time").x.form == "percent"


@pytest.mark.slow
def test_the_front_is_kept_and_is_one(tmp_path: Path) -> None:
    done = found(tmp_path, save_front=tmp_path / "front")
    drops = [m.step.drop.value for m in done.front]
    remains = [m.step.remains for m in done.front]
    assert remains == sorted(remains) and drops == sorted(drops, reverse=True)
    files = [m for m in done.front if m.path]
    assert len(files) >= 2 and all(onnx.load(m.path) for m in files)
    assert len(list((tmp_path / "front").iterdir())) == len(files)


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["none", "lstsq"])
def test_the_models_of_the_front_are_what_its_table_says(recover: str, tmp_path: Path) -> None:
    """Each file, evaluated on the half that was searched on."""
    done = found(tmp_path, seed=5, strategy="feedback", recover=recover, save_front=tmp_path / "front", criterion="l1")
    with np.load(TEST) as data:
        order = np.sort(np.random.default_rng(5).permutation(547)[274:])
        np.savez(tmp_path / "tuned.npz", **{name: data[name][order] for name in data.files})
    tuned = EvaluateOptions(data=DataOptions(str(tmp_path / "tuned.npz")), latency=False)
    saved = [model for model in done.front if model.path]
    assert saved
    for model in saved:
        measured = evaluate(Path(str(model.path)), options=tuned).model.metrics["accuracy"]
        assert measured == pytest.approx(model.step.metric)
    with pytest.raises(PruneError, match="holds models already"):
        adaptive(MLP, data=TEST, max_drop=0.03, save_front=tmp_path / "front", output=tmp_path / "more.onnx")


def test_samples_that_were_searched_on_confirm_nothing(tmp_path: Path) -> None:
    """The same samples under another name; a few of them are told."""
    with np.load(TEST) as data:
        np.savez(tmp_path / "copy.npz", **data)
        with np.load(SAMPLES / "digits-calib.npz") as other:
            few = {n: np.concatenate([other[n][:200], data[n][:9]]) for n in data.files if n != "labels"}
        np.savez(tmp_path / "bare.npz", **{n: data[n] for n in few})
    np.savez(tmp_path / "few.npz", **few)
    with pytest.raises(PruneError, match="547 of the 547 samples that are to confirm are in --data too"):
        found(tmp_path, confirm_data=tmp_path / "copy.npz")
    kinds = {"strategy": "feedback", "criterion": "l1", "max_drop": 0.1}
    done = found(tmp_path, data=tmp_path / "bare.npz", confirm_data=tmp_path / "few.npz", **kinds)
    assert any("9 of the 209 samples" in note for note in done.to_json()["notes"])


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same(tmp_path: Path) -> None:
    one, two = found(tmp_path, "one.onnx", jobs=1), found(tmp_path, "two.onnx", jobs=2)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert one.steps == two.steps


class Stops:
    """A pool that is interrupted after some results."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, workspace: Workspace, jobs: Sequence[TrialGroup]) -> Iterator[tuple[int, list[Outcome]]]:
        for result in InProcess().run(workspace, jobs):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield result

    def close(self) -> None:
        InProcess().close()


@pytest.mark.slow
@pytest.mark.parametrize("after", few([2, 9], [1]))
def test_an_interrupted_run_keeps_the_best_and_a_second_one_goes_on(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(tmp_path, "whole.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("prunecli.search.runner.InProcess", lambda: Stops(after))
        cut = found(tmp_path, "cut.onnx", state=tmp_path / "state")
    assert cut.interrupted and cut.reached == bool(cut.steps) == (tmp_path / "cut.onnx").exists()
    again = found(tmp_path, "again.onnx", state=tmp_path / "state")
    assert again.reused >= after and again.steps == whole.steps  # what confirmed the best so far is not measured again
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_the_state_of_other_data_is_refused(tmp_path: Path) -> None:
    found(tmp_path, state=tmp_path / "state", rounds=1)
    with pytest.raises(PruneError, match="another model, other data"):
        found(tmp_path, state=tmp_path / "state", seed=2)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = adaptive(MLP, data=TEST, max_drop=0.03, dry_run=True, jobs=1, output=tmp_path / "o.onnx",
                    save_front=tmp_path / "front")  # fmt: skip
    assert done.reached and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_failed_confirmation_looks_for_a_stricter_one(tmp_path: Path) -> None:
    """Held-out data picked to hold nearly all that the first model loses, and little else; a little darker, since equal
    samples would be refused."""
    with np.load(TEST) as data:
        arrays = {n: data[n] for n in data.files}
    name = Session.open(MLP).inputs[0].name
    feed = {name: arrays[name].astype(np.float32)}
    found(tmp_path)
    answers = [next(iter(Session.open(p).run(feed).values())).argmax(1) for p in (MLP, tmp_path / "out.onnx")]
    keep = (answers[0] != answers[1]) | (np.arange(547) % 4 == 0)
    np.savez(tmp_path / "hard.npz", **{name: arrays[name][keep] * 0.999, "labels": answers[0][keep]})
    strict = found(tmp_path, "strict.onnx", confirm_data=tmp_path / "hard.npz")
    tried = strict.confirmations
    assert not tried[0].holds and [c.attempt for c in tried] == list(range(1, len(tried) + 1))
    assert all(a.step.bound > b.step.bound and a.level < b.level for a, b in pairwise(tried))
    assert strict.reached == tried[-1].holds == (tmp_path / "strict.onnx").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_drop": 0.0}, "allows nothing"), ({"strategy": "guess"}, "'--strategy': 'guess' is unknown"),
    ({"minimize": "latency"}, "no latency to"), ({"minimize": "macs!"}, "'--minimize': 'macs!' is unknown"),
    ({"granularity": "block"}, "blocks"), ({"granularity": "fun"}, "no granularity"),
    ({"pattern": "2:4"}, "fixes how many"), ({"round_to": 8}, "of structures"),
    ({"granularity": "channel", "pattern": "4x1"}, "of single weights"), ({"criterion": "fun"}, "fun"),
    ({"metric": "snr_db"}, "no mean"), ({"confirm_split": 1.0}, "between 0 and 1"), ({"backend": "dask"}, "--address"),
    ({"max_drop": 1.0}, "any model keeps"), ({"model": SAMPLES / "diabetes-mlp.onnx", "data": "DIABETES"}, "its sign"),
    ({"metric": "log_loss", "max_drop": Quantity(0.05, "percent")}, "5%: log_loss is no figure in percent"),
    ({"include": ["nothing"]}, "matches nothing"), ({"recover": "all"}, "is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("data") == "DIABETES":
        options = {**options, "data": tmp_path / "x.npz"}
        with np.load(SAMPLES / "diabetes-test.npz") as data:
            np.savez(tmp_path / "x.npz", **{n: data[n] for n in data.files if n != "labels"})
    with pytest.raises(PruneError, match=message):
        found(tmp_path, **options)
    assert not (tmp_path / "out.onnx").exists()


# -- sensitivity ---------------------------------------------------------------------------------------


def test_sensitivity_is_what_cutting_the_layer_alone_does(tmp_path: Path) -> None:
    done = sensitivity(CNN, data=TEST, levels=[0.5, 0.9], jobs=1, criterion="l1")
    assert done.samples == 512 and done.baseline > 0.98
    row = next(r for r in done.rows if r.layer.name == "down.conv.weight")
    prunecli.magnitude(CNN, sparsity=0.9, include=[row.layer.name], output=tmp_path / "one.onnx")
    whole = accuracy(CNN)["accuracy"] - accuracy(tmp_path / "one.onnx")["accuracy"]
    assert row.points[1].drop == pytest.approx(whole, abs=0.05)  # 512 of 547 samples
    assert [r.mean_damage for r in done.rows] == sorted((r.mean_damage for r in done.rows), reverse=True)
    assert all(p.error and p.error > 0 for r in done.rows for p in r.points)


@pytest.mark.parametrize(
    ("drops", "spare"),
    [
        ((0.0, 0.019, 0.3), 0.8),  # two standard errors are 0.02
        ((-0.1, 0.021, 0.0), 0.3),  # what passes after a loss is luck
        ((0.05, 0.0, 0.0), 0.0),
        ((0.0, None, 0.0), None),  # predicted
    ],
)
def test_what_a_layer_can_spare_ends_at_the_first_loss(drops: tuple[float | None, ...], spare: float | None) -> None:
    points = [Point(share, 0.0, None, drop, 0.01) for share, drop in zip((0.3, 0.8, 0.9), drops, strict=True)]
    assert SensitivityRow(Layer("w", "element", 10, 10, 10, ()), points).spare == spare


def test_sensitivity_of_groups(tmp_path: Path) -> None:
    done = sensitivity(CNN, data=TEST, granularity="channel,head", jobs=1, levels=[0.25, 0.5])
    assert {row.layer.kind for row in done.rows} == {"channel"} and done.criterion == "activation"
    assert all(row.points[0].damage <= row.points[-1].damage * 1.5 for row in done.rows)


@pytest.mark.parametrize("labels", ["pairs", "none"])
def test_samples_are_drawn_with_what_they_are_judged_by(
    labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 samples 20 are drawn: of pairs, ten whole ones."""
    monkeypatch.setattr("prunecli.search.sensitivity.SAMPLES", 20)
    with np.load(TEST) as given:
        arrays = {name: given[name][:60] for name in given.files}
    arrays["labels"] = np.stack([np.tile(np.arange(30), 2), np.linspace(0, 1, 60)], 1)
    if labels == "none":
        del arrays["labels"]
    np.savez(tmp_path / "d.npz", **arrays)
    drawn: list[Any] = []
    of = TrialSamples.of
    monkeypatch.setattr(
        TrialSamples, "of", lambda data, *given, **named: (drawn.append(data), of(data, *given, **named))[1]
    )
    metric = "spearman" if labels == "pairs" else None
    sensitivity(MLP, data=tmp_path / "d.npz", metric=metric, levels=[0.5], jobs=1, include=["fc1*"])
    (data,) = drawn
    assert len(data) == 20
    if labels == "pairs":
        assert np.unique(data.labels[:, 0], return_counts=True)[1].tolist() == [2] * 10


@pytest.mark.slow
@pytest.mark.parametrize("granularity", few(["element", "channel,head"], [1]))
def test_the_proxy_ranks_nearly_as_the_measurement(granularity: str) -> None:
    widths = {} if granularity == "element" else {"round_to": 1}
    fast = sensitivity(CNN, data=TEST, granularity=granularity, fast=True, jobs=1, **widths)
    assert fast.ranking is not None and fast.ranking.correlation > 0.7 and fast.ranking.checked == 12
    assert fast.measured == 12 and all(p.metric is None for r in fast.rows for p in r.points)
    assert fast.to_json()["proxy"]["correlation"] == fast.ranking.correlation


@pytest.mark.slow
def test_sensitivity_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"data": TEST, "levels": [0.5], "jobs": 1, "state": tmp_path / "state"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("prunecli.search.runner.InProcess", lambda: Stops(3))
        sensitivity(CNN, **options)
    again = sensitivity(CNN, **options)
    assert (again.reused, again.measured) == (3, 4)
    assert again.rows == sensitivity(CNN, **{**options, "state": None}).rows


@pytest.mark.parametrize("criterion", element_names())
def test_every_criterion_ranks(criterion: str) -> None:
    given: dict[str, Any] = {"data": DataOptions(str(TEST), limit=64), "levels": [0.5], "jobs": 1}
    done = sensitivity(MLP, criterion=criterion, **given)
    assert done.criterion == criterion and len(done.rows) == 3 and all(r.points[0].damage > 0 for r in done.rows)


@pytest.mark.parametrize("criterion", ["l1", "l2", "activation", "fisher", "fpgm"])
def test_structures_by_any_criterion(criterion: str) -> None:
    data = DataOptions(str(TEST), limit=64)
    done = sensitivity(MLP, data=data, levels=[0.5], jobs=1, criterion=criterion, granularity="channel")
    assert done.criterion == criterion and all(r.points[0].damage > 0 for r in done.rows)


@pytest.mark.parametrize("levels", [[], [0.0, 0.5], [1.2]])
def test_levels_are_fractions(levels: list[float]) -> None:
    with pytest.raises(PruneError, match="--levels"):
        sensitivity(CNN, data=TEST, levels=levels)
