"""The measured speed in reports: where it stands, why it may be missing, and `--no-timing`, which leaves it out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.evaluation import speed
from prunecli.evaluation.latency import Latency, Speedup, TimedPair, TimingOptions
from tests.cli.conftest import SAMPLES, Prune

CNN, TRAIN, TEST = (SAMPLES / name for name in ("digits-cnn.onnx", "digits-train.npz", "digits-test.npz"))
CUT = ["structured", CNN, "--ratio", "0.5", "--max-ratio", "0.6"]
Fake = Callable[[Speedup], list[TimingOptions]]
TWICE = Speedup(2.0, 1.9, 2.1)
BUSY = "other processes took 70 % of the CPU time"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Every pair of models is timed as is said; returned: how each was to be timed."""

    def fake(gain: Speedup) -> list[TimingOptions]:
        asked: list[TimingOptions] = []

        def measure_pair(model: Any, baseline: Any, how: TimingOptions, **named: Any) -> TimedPair:
            asked.append(how)
            return TimedPair(Latency(np.full(9, 2.0), how), Latency(np.full(9, 4.0), how), gain)

        for module in ("speed", "evaluate"):
            monkeypatch.setattr(f"prunecli.evaluation.{module}.measure_pair", measure_pair)
        return asked

    return fake


# what writes a cut of the CNN, its options
COMMANDS = {
    "structured": CUT,
    "dry run": [*CUT, "--dry-run"],
    "recovered": [*CUT, "--data", TRAIN, "--limit", "64"],
    "trained": [*CUT, "--data", TRAIN, "--limit", "64", "--finetune-epochs", "1", "--steps", "2"],
    "adaptive": ["adaptive", CNN, "--data", TEST, "--max-drop", "30%", "--granularity", "channel", "--rounds", "1",
                 "--jobs", "1", "--limit", "64"],
}  # fmt: skip


LONG = ("recovered", "trained", "adaptive")


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in COMMANDS]
)
def test_the_report_of_a_cut_says_how_much_faster_it_is_once(
    command: str, prune: Prune, clock: Fake, tmp_path: Path
) -> None:
    asked = clock(TWICE)
    words = [*COMMANDS[command], "--threads", "1", "-o", tmp_path / "cut.onnx", "--format", "json"]
    done = prune(*words, "--report", tmp_path / "report.md")
    assert done.code == 0, done.err
    found = done.json
    assert [(how.threads, how.batch) for how in asked] == [(1, 1)]  # not of steps and trials
    assert found["delta"] == {"latency": {"speedup": 2.0, "low": 1.9, "high": 2.1}}
    assert (found["before"]["latency_ms"]["median"], found["after"]["latency_ms"]["median"]) == (4.0, 2.0)
    assert found["after"]["latency_ms"].keys() >= {"median", "p10", "p90", "runs", "batch", "threads"}
    report = (tmp_path / "report.md").read_text()
    assert "| latency, CPU time | 4 ms | 2 ms | 50.0 % |" in report
    assert "2.00 times faster than the original (95 % interval 1.90 to 2.10); CPU time of a run at" in report
    assert report.count("1.90 to 2.10") == 1
    quiet = prune(*words, "--no-timing", "--force", "--report", tmp_path / "report.md")
    assert quiet.code == 0 and len(asked) == 1
    assert "delta" not in quiet.json and "latency_ms" not in quiet.json["before"] | quiet.json["after"]
    assert "times faster" not in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_training_is_timed_beside_a_larger_teacher_alone(prune: Prune, clock: Fake, tmp_path: Path) -> None:
    asked, cut = clock(TWICE), tmp_path / "cut.onnx"
    assert prune(*CUT, "--no-timing", "-o", cut).code == 0
    train = ["--data", TRAIN, "--limit", "64", "--epochs", "1", "--format", "json"]
    taught = prune("finetune", cut, *train, "--teacher", CNN, "-o", tmp_path / "a.onnx").json
    assert len(asked) == 1
    assert taught["delta"]["latency"]["speedup"] == 2.0
    assert (taught["teacher"]["latency_ms"]["median"], taught["after"]["latency_ms"]["median"]) == (4.0, 2.0)
    assert taught["teacher"]["macs"] > taught["after"]["macs"]
    for more in (["--no-timing", "--teacher", CNN], ["--teacher", cut], []):
        found = prune("finetune", cut, *train, *more, "-o", tmp_path / "b.onnx", "--force").json
        assert len(asked) == 1 and not found.keys() & {"delta", "teacher"}


def test_evaluate_has_it_among_the_sizes_and_leaves_it_out(
    prune: Prune, clock: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(TWICE)
    monkeypatch.setattr("prunecli.evaluation.evaluate.explain", lambda *_, **named: "Because it is so.")
    words = ["evaluate", SAMPLES / "digits-mlp.onnx", "--baseline", CNN, "--data", TEST]
    shown = prune(*words, "--format", "markdown").out
    assert "| latency | 2 ms | 4 ms | x 0.500 (0.476 to 0.526) |" in shown
    assert "Because it is so." in shown
    found = prune(*words, "--format", "json", "--fail-if", "latency.speedup<1.5").json
    assert found["delta"]["latency"] == {"speedup": 2.0, "low": 1.9, "high": 2.1, "why": "Because it is so."}
    found = prune(*words, "--no-timing", "--format", "json").json
    assert "latency" not in found["delta"] and all(each["latency_ms"] is None for each in found["models"])
    done = prune(*words, "--no-timing", "--fail-if", "latency.speedup<1.5")
    assert (done.code, done.err.count("leave out --no-latency and --no-timing")) == (2, 1)


# the interval, a gate, whether it passes, what is said
GATES = [
    (Speedup(2.0, 1.9, 2.1), "latency.speedup<1.5", True, ""),
    (Speedup(1.4, 1.38, 1.43), "latency.speedup<1.5", False, "is 1.4"),
    (Speedup(2.0, 1.2, 2.9), "latency.speedup<1.5", False, "not measurable now: the noise of this machine is 55%"),
    (Speedup(2.0, 1.2, 2.9), "latency.speedup<1.1", True, ""),
    (Speedup(2.0, 1.2, 2.9), "latency.low<1.1", True, ""),
    (Speedup(9.6, 9.5, 9.7, BUSY), "latency.speedup<1.5", False, f"not measurable now: {BUSY}"),
    (Speedup(9.6, 9.5, 9.7, BUSY), "latency.high>99", False, f"not measurable now: {BUSY}"),
]


@pytest.mark.parametrize(("gain", "gate", "passes", "said"), GATES)
def test_a_gate_passes_only_where_the_machine_tells(
    gain: Speedup, gate: str, passes: bool, said: str, prune: Prune, clock: Fake
) -> None:
    clock(gain)
    done = prune("evaluate", SAMPLES / "digits-mlp.onnx", "--baseline", CNN, "--fail-if", gate, "--format", "json")
    assert done.code == (0 if passes else 1)
    assert done.json["gates"][0]["passed"] is passes
    assert said in done.err


def test_what_is_not_measurable_is_said_in_the_report(prune: Prune, clock: Fake, tmp_path: Path) -> None:
    clock(Speedup(9.6, 9.5, 9.7, BUSY))
    done = prune(*CUT, "-o", tmp_path / "cut.onnx", "--format", "markdown")
    assert done.code == 0
    assert f"The difference in speed is not measurable now: {BUSY}" in done.out
    assert "9.6" not in done.out


def test_a_model_that_cannot_be_timed_is_written_and_says_why(
    prune: Prune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **named: Any) -> Any:
        raise PruneError("no inputs can be made", "give --data")

    monkeypatch.setattr(speed, "first_batch", refuse)
    done = prune(*CUT, "-o", tmp_path / "cut.onnx", "--format", "json", "--report", tmp_path / "report.md")
    assert done.code == 0 and (tmp_path / "cut.onnx").exists()
    assert done.json["delta"]["latency"] == {
        "speedup": None,
        "low": None,
        "high": None,
        "reason": "no inputs can be made",
    }
    assert "The speed was not measured: no inputs can be made." in (tmp_path / "report.md").read_text()


# options -> batch, as the model's only dynamic dimension
BATCHES = [
    ([], 1),
    (["--data", TRAIN, "--limit", "64"], 1),
    (["--input-shape", "pixels:4,1,8,8"], 4),
    (["--input-shape", "pixels:4,1,8,8", "--data", TRAIN, "--limit", "64"], 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "batch"), BATCHES)
def test_runs_are_of_the_size_that_is_stated(
    options: list[Any], batch: int, prune: Prune, clock: Fake, tmp_path: Path
) -> None:
    asked = clock(TWICE)
    name = next(iter(prune("inspect", CNN, "--format", "json").json["inputs"]))
    words = [str(word).replace("pixels", name) for word in options]
    done = prune(*CUT, *words, "-o", tmp_path / "cut.onnx")
    assert done.code == 0, done.err
    assert [how.batch for how in asked] == [batch]


def test_a_recipe_leaves_it_out(prune: Prune, clock: Fake, tmp_path: Path) -> None:
    asked, recipe = clock(TWICE), tmp_path / "r.toml"
    step = f'model = "{CNN}"\n[[step]]\ncommand = "structured"\nratio = 0.5\noutput = "cut.onnx"\n'
    recipe.write_text(step + "no-timing = true\n")
    done = prune("run", recipe)
    assert done.code == 0, done.err
    assert not asked
