"""Charts say what the results say: counts add up, cuts are where they were, and nothing is drawn that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli.data.options import DataOptions
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions
from prunecli.inspection.inspect import inspect
from prunecli.inspection.options import InspectOptions
from prunecli.model import find_weights, load
from prunecli.report.document import Bars, Chart, Document
from prunecli.report.sections import layer_bars, size_bars
from prunecli.structures.decision import GroupRow
from prunecli.structures.report import score_charts
from prunecli.structures.structured import structured
from prunecli.training.report import training_charts
from prunecli.training.trainer import Epoch
from prunecli.types import Totals
from prunecli.zeros.magnitude import magnitude
from prunecli.zeros.zero import Zeroed
from tests.cli.conftest import SAMPLES

CNN = SAMPLES / "digits-cnn.onnx"


def bars(document: Document, title: str) -> Bars:
    return next(s for s in document.sections if isinstance(s, Bars) and s.title == title)


def chart(document: Document, title: str) -> Chart:
    return next(s for s in document.sections if isinstance(s, Chart) and s.title == title)


def stored(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("pattern", "scope", "sharp"), [("element", "global", True), ("2:4", None, False)])
def test_spreads_are_those_of_the_files(pattern: str, scope: str | None, sharp: bool, tmp_path: Path) -> None:
    sparsity = {} if ":" in pattern else {"sparsity": 0.6}
    found = magnitude(CNN, output=tmp_path / "out.onnx", spreads=True, pattern=pattern, scope=scope, **sparsity)
    before, after = stored(CNN), stored(tmp_path / "out.onnx")
    document = found.to_document()
    panels = {p.title: p for p in chart(document, "What was zeroed: |w| in each weight").panels}
    assert set(panels) == {layer.weight for layer in found.layers}
    for name, panel in panels.items():
        kept, zeroed = panel.series
        gone = np.abs(before[name][(after[name] == 0) & (before[name] != 0)])
        assert sum(int(n) for n in kept.y if n) == np.count_nonzero(after[name])
        assert sum(int(n) for n in zeroed.y if n) == gone.size
        inside = np.histogram(gone, kept.x)[0]  # the lowest bin also holds what is smaller still
        assert list(zeroed.y)[1:] == inside.tolist()[1:]
        assert [mark.at for mark in panel.marks] == ([pytest.approx(float(gone.max()))] if gone.size else [])
    (total,) = chart(document, "What was zeroed: |w| over all weights").panels
    assert total.marks[0].name.startswith("cut" if sharp else "largest zeroed")
    summed = np.sum([[n or 0 for n in p.series[1].y] for p in panels.values()], axis=0)
    assert list(total.series[1].y) == summed.tolist()


def test_nothing_is_measured_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = magnitude(CNN, output=tmp_path / "out.onnx", sparsity=0.5)
    assert found.spreads == {}
    assert not any("What was zeroed" in getattr(s, "title", "") for s in found.to_document().sections)


def test_a_weight_of_zeros_has_no_spread(tmp_path: Path) -> None:
    from prunecli.masks.decide import Recipe, decide
    from prunecli.types import no_progress
    from prunecli.zeros.spread import zeroed_spreads
    from prunecli.zeros.zero import target_of
    from tests.tiny import write

    path = write(
        tmp_path / "m.onnx", "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {0, 0, 0, 0}> { y = MatMul(x, w) }"
    )
    weights = find_weights(load(path)).prunable
    decisions = decide([target_of(w) for w in weights], Recipe(sparsity=0.5))
    assert zeroed_spreads([Zeroed(w, d, w.tensor) for w, d in zip(weights, decisions, strict=True)], no_progress) == {}


def test_layers_and_sizes_of_a_cut(tmp_path: Path) -> None:
    found = structured(CNN, output=tmp_path / "out.onnx", ratio=0.3)
    document = found.to_document()
    drawn = bars(document, "Parameters by layer")
    (_, kept), (_, removed) = drawn.series
    rows = {row.weight: row for row in found.layers}
    assert {n: (k, k + r) for n, k, r in zip(drawn.labels, kept, removed, strict=True)} == {  # type: ignore[operator]
        n: (rows[n].params_after, rows[n].params_before) for n in drawn.labels
    }
    assert list(drawn.labels) == sorted(drawn.labels, key=lambda name: -rows[name].params_before)
    scores = chart(document, "Scores of units, by group")
    for panel, group in zip(scores.panels, [g for g in found.groups if g.before > 1], strict=True):
        counts = [sum(n or 0 for n in series.y) for series in panel.series]
        assert counts == [group.after, group.before - group.after]
    remains = bars(document, "What remains of the original")
    assert (
        dict(zip(remains.labels, remains.series[0][1], strict=True))["parameters"]
        == found.after.params / found.before.params
    )


def group(kept: list[float], removed: list[float]) -> GroupRow:
    total = len(kept) + len(removed)
    return GroupRow("g", "channel", total, len(kept), 1, 1, None, None, (), "", kept, removed)


SCORES = [
    # kept, removed, log axis, where the cut is marked
    ([3.0, 2.0], [1.0], False, 1.0),
    ([300.0, 2.0], [1.0], True, 1.0),
    ([1.0, 3.0], [2.0], False, None),
    ([1.0, 1.0], [], False, None),
    ([0.0, 0.0], [0.0], False, 0.0),
    ([-1.0, 500.0], [-2.0], False, -2.0),
]


@pytest.mark.parametrize(("kept", "removed", "log", "cut"), SCORES)
def test_scores(kept: list[float], removed: list[float], log: bool, cut: float | None) -> None:
    (made,) = score_charts([group(kept, removed)])
    assert isinstance(made, Chart)
    (panel,) = made.panels
    assert [sum(n or 0 for n in series.y) for series in panel.series] == [len(kept), len(removed)]
    assert panel.x is not None
    assert panel.x.log == log
    assert [mark.at for mark in panel.marks] == ([] if cut is None else [cut])


def test_groups_without_scores_have_no_chart() -> None:
    assert list(score_charts([group([], [])])) == []
    assert list(layer_bars([], "removed")) == []


def test_sizes_that_are_unknown_are_left_out() -> None:
    made = size_bars(Totals(10, 10, None, 100, 90), Totals(5, 4, None, 50, 45))
    assert isinstance(made, Bars)
    assert list(made.labels) == ["parameters", "not zero", "file", "file, gzipped"]
    assert list(made.series[0][1]) == [0.5, 0.4, 0.5, 0.5]
    assert made.full == 1.0


def epoch(number: int, loss: float, score: float | None) -> Epoch:
    return Epoch(number, loss, score, 0.1, 1.0, 10.0)


def test_training_of_several_cuts_is_one_curve() -> None:
    runs = [[epoch(1, 3.0, 0.5), epoch(2, 2.0, 0.6)], [epoch(1, 1.0, 0.7)]]
    (made,) = training_charts(runs, "accuracy", [0.4, None])
    assert isinstance(made, Chart)
    loss, score = made.panels
    assert (loss.series[0].x, loss.series[0].y) == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert [(mark.at, mark.name) for mark in loss.marks] == [(2.5, "cut 2")]
    assert list(score.series[0].y) == [0.5, 0.6, 0.7]
    assert (score.series[1].x, score.series[1].y) == ([0.5], [0.4])
    (alone,) = training_charts([[epoch(1, 3.0, None)]], "accuracy", [None])
    assert isinstance(alone, Chart)
    assert len(alone.panels) == 1
    assert list(training_charts([], "accuracy", [])) == []


def test_an_evaluation_is_drawn_as_measured() -> None:
    data = DataOptions(str(SAMPLES / "digits-test.npz"), limit=64)
    found = evaluate(CNN, CNN, EvaluateOptions(data=data, robustness=True, per_class=True, latency_runs=5))
    document = found.to_document()
    quality = bars(document, "Quality side by side")
    assert [name for name, _ in quality.series] == ["baseline", "model"]
    assert dict(zip(quality.labels, quality.series[1][1], strict=True))["accuracy"] == found.model.metrics["accuracy"]
    assert "log loss" not in quality.labels
    latency = chart(document, "Latency of single runs").panels[0]
    assert [len(series.x) for series in latency.series] == [5, 5]
    assert found.model.latency is not None
    assert latency.marks[1].at == found.model.latency.median
    assert found.stress is not None
    drawn = {
        (p.title, s.name): dict(zip(s.x, s.y, strict=True))
        for p in chart(document, "Robustness curves").panels
        for s in p.series
    }
    for row in found.stress.rows:
        for role, value in row.values.items():
            assert drawn[row.corruption.replace("_", " "), role][row.severity] == value
            assert drawn[row.corruption.replace("_", " "), role][0.0] == found.stress.clean[role]
    assert len(bars(document, "F1 of each class").labels) == 10


def test_an_inspection_is_drawn_as_measured() -> None:
    found = inspect(CNN, InspectOptions(histogram=True))
    document = found.to_document()
    share = bars(document, "Share of the model")
    assert found.totals.macs is not None
    assert sum(v or 0 for v in share.series[1][1]) == pytest.approx(1, abs=1e-9)  # sums of eight shares
    assert found.distribution is not None
    curve = chart(document, "Zeros by threshold").panels[0].series[0]
    assert list(curve.y)[-1] == found.distribution.steps[-1].sparsity
    for panel in chart(document, "|w| in each weight").panels:
        assert tuple(panel.series[0].y) == found.distribution.spreads[panel.title].picture
