"""Gates and quality through the command line: exit codes 0, 1 and 2, what stdout and stderr carry, reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunecli.evaluation.latency import Speedup
from tests.cli.conftest import SAMPLES, Prune

MLP, CNN = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-cnn.onnx"
EVALUATE = [
    "evaluate",
    MLP,
    "--baseline",
    CNN,
    "--data",
    SAMPLES / "digits-test.npz",
    "--latency-runs",
    "3",
    "--threads",
    "1",
]
COMPARE = ["compare", MLP, CNN]

# command, gate -> exit code; the contract's own examples first (the MLP is less accurate, smaller and faster)
GATES = [
    (EVALUATE, "accuracy<0.95", 0),
    (EVALUATE, "accuracy.drop>0.01", 1),
    (EVALUATE, "f1.drop>1%", 1),
    (EVALUATE, "latency.speedup<0.001", 0),
    (EVALUATE, "cosine<0.99", 1),
    (EVALUATE, "file_bytes>2MB", 0),
    (EVALUATE, "accuracy.drop>2%", 0),
    (EVALUATE, "delta.accuracy.drop>1%", 1),
    (EVALUATE, "file_bytes.ratio<1", 1),
    (EVALUATE, "accuracy.drop>", 2),
    (EVALUATE, "acuracy<1", 2),
    (EVALUATE, "accuracy.drop>1", 2),
    (COMPARE, "cosine<0.99", 1),
    (COMPARE, "logits.max_abs<1e-9", 0),
    (COMPARE, "logits.cosine<-1", 2),
    (COMPARE, "snr_db<x", 2),
]


@pytest.mark.parametrize(("command", "gate", "code"), GATES)
def test_exit_codes(command: list[object], gate: str, code: int, prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Speedup(2.0, 1.9, 2.1)  # on a busy machine nothing could be said
    monkeypatch.setattr("prunecli.evaluation.latency.speedup", lambda *_, **named: measured)
    done = prune(*command, "--fail-if", gate, "--format", "json")
    assert done.code == code
    if code == 2:
        assert done.out == ""
    else:
        assert [(g["expr"], g["passed"]) for g in done.json["gates"]] == [(gate, code == 0)]
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ([] if code == 0 else ["error", "hint"])
    if code == 1:
        assert f"1 of 1 gates failed: {gate} (" in lines[0]


def test_every_failed_gate_is_named(prune: Prune) -> None:
    gates = ["accuracy<0.5", "accuracy<0.999", "params>1k"]
    done = prune(*EVALUATE, *(word for gate in gates for word in ("--fail-if", gate)))
    assert done.code == 1
    error = done.err.splitlines()[0]
    assert error.startswith("error: 2 of 3 gates failed: accuracy<0.999 (accuracy is 0.976")
    assert "params>1k (params is 50826)" in error
    assert "FAILED" in done.out


@pytest.mark.parametrize("suffix", ["json", "md", "html"])
@pytest.mark.parametrize("command", [EVALUATE, COMPARE], ids=["evaluate", "compare"])
def test_a_failed_gate_still_leaves_the_report(
    command: list[object], suffix: str, tmp_path: Path, prune: Prune
) -> None:
    report = tmp_path / f"r.{suffix}"
    done = prune(*command, "--fail-if", "cosine<0.99", "--report", report, "--format", "markdown")
    assert done.code == 1
    assert done.out.startswith("## ")
    text = report.read_text()
    if suffix == "json":
        assert json.loads(text)["gates"][0]["passed"] is False
    else:
        assert "FAILED" in text
        assert ("<table" in text) is (suffix == "html")


def test_labels_in_a_table(prune: Prune) -> None:
    table = ["--data", SAMPLES / "cancer-test.csv", "--label-column", "benign", "--no-latency", "--format", "json"]
    arrays = ["--data", SAMPLES / "cancer-test.npz", "--no-latency", "--format", "json"]
    found = [prune("evaluate", SAMPLES / "cancer-mlp.onnx", *data).json["models"][0] for data in (table, arrays)]
    assert found[0]["metrics"] == found[1]["metrics"]


# options after `evaluate MODEL` -> a piece of the error, a piece of the hint
BAD_DATA = [
    ("--data no.npz", "no.npz does not exist", "--data"),
    ("--data {samples}/cancer-test.npz", "cancer-test.npz:features", "the model's"),
    ("--data {samples}", "not a readable data source", "npz"),
    ("--labels y.npy", "labels were given without data", "--data"),
    ("--data {samples}/digits-test.npz --label-column y", "--label-column does not go with", "csv"),
    ("--data {samples}/digits-test.npz --labels no.npy", "no.npy does not exist", "--labels"),
    ("--data {samples}/digits-test.npz --output-name probs", "no output named probs", "logits"),
    ("--data {samples}/digits-test.npz --batch-size 0", "--batch-size", "at least 1"),
    ("--data {samples}/digits-test.npz --task guess", "'guess' is unknown", "choose from auto"),
    ("--baseline {samples}/cancer-mlp.onnx", "different inputs", "same inputs"),
    ("--baseline no.onnx", "no.onnx", ""),
    ("--provider warp", "warp is not available", "cpu"),
    ("--robustness", "--robustness needs data", "--data"),
    ("--per-class", "--per-class was given without data", "--data"),
    ("--average macro", "--average was given without data", "--data"),
    ("--task regression", "--task was given without data", "--data"),
    ("--stride 4", "--stride was given without data", "--data"),
    ("--window 4", "--window was given without data", "--data"),
    ("--batch-axis x=0", "--batch-axis was given without data", "--data"),
    ("--limit 8", "--limit was given without data", "--data"),
    ("--train-data {samples}/digits-train.npz", "--train-data is compared with test data", "--data"),
]


@pytest.mark.parametrize(("options", "error", "hint"), BAD_DATA)
def test_bad_data_is_two_lines_and_exit_2(options: str, error: str, hint: str, prune: Prune) -> None:
    done = prune("evaluate", MLP, *options.format(samples=SAMPLES).split())
    first, second = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second


def test_random_inputs_are_not_counted_beside_data(prune: Prune) -> None:
    assert prune(*COMPARE, "--samples", 3, "--format", "json").json["data"]["samples"] == 3
    done = prune(*COMPARE, "--samples", 3, "--data", SAMPLES / "digits-test.npz")
    assert (done.code, done.out) == (2, "") and "--samples counts random inputs" in done.err


@pytest.mark.parametrize("gate", ["latency.speedup<1.5", "latency.low<0.001", "latency.speedup>99"])
def test_what_is_not_measurable_now_fails_its_gate(gate: str, prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = "other processes took 70 % of the CPU time"
    monkeypatch.setattr("prunecli.evaluation.latency.speedup", lambda *_, **named: Speedup(9.57, 9.0, 10.0, busy))
    done = prune(*EVALUATE, "--fail-if", gate, "--format", "json")
    assert done.code == 1
    assert f"{gate} ({gate.split('<')[0].split('>')[0]} is not measurable now: {busy})" in done.err
    assert done.json["delta"]["latency"] == {"speedup": None, "low": None, "high": None, "reason": busy}
    assert done.json["gates"] == [{"expr": gate, "value": None, "passed": False, "reason": busy}]
    assert prune(*EVALUATE, "--fail-if", "params<1").code == 0


def test_metrics_of_the_user_are_figures_of_gates(prune: Prune, tmp_path: Path) -> None:
    """A function as metric, with its name in the table, in JSON and in gates; its error has no traceback."""
    (tmp_path / "own.py").write_text(
        "def right(predictions, labels):\n    return (predictions.argmax(1) == labels).mean()\n"
        "def wrong(predictions, labels):\n    return predictions.argmax(1) != labels\n"
        "def fails(predictions):\n    return [][1]\n"
    )
    base = [
        "evaluate",
        MLP,
        "--baseline",
        CNN,
        "--data",
        SAMPLES / "digits-test.npz",
        "--no-latency",
        "--format",
        "json",
    ]
    own = tmp_path / "own.py"
    run = prune(*base, "--metric", f"{own}:right", "--metric", f"lower:{own}:wrong", "--metric", "accuracy",
                "--fail-if", "wrong.rise>1%", "--fail-if", "right<50%")  # fmt: skip
    assert run.code == 1
    model, baseline = (m["metrics"] for m in run.json["models"])
    assert list(model) == ["right", "wrong", "accuracy"]
    assert model["right"] == model["accuracy"] == pytest.approx(1 - model["wrong"])
    delta = run.json["delta"]
    assert delta["wrong"] == {"rise": pytest.approx(model["wrong"] - baseline["wrong"])}
    failed = prune(*base, "--metric", f"{own}:fails")
    assert failed.code == 2 and "own.py line 6" in failed.err and "Traceback" not in failed.err
