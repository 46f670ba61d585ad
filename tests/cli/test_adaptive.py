"""`prune adaptive` and `prune sensitivity` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, SAMPLES, Prune

MLP, TEST = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-test.npz"
KEYS = {
    "schema",
    "command",
    "version",
    "seconds",
    "model",
    "output",
    "before",
    "after",
    "sparsity",
    "layers",
    "skipped",
}
KEYS |= {"verification", "goal", "confirmation", "path", "front", "thresholds", "reached", "closest"}


def test_the_json_has_the_contract_and_the_search(prune: Prune, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    done = prune("adaptive", MLP, "--data", TEST, "--max-drop", "3%", "-o", out, "-j", 1, "--format", "json")
    assert done.code == 0, done.err
    found = done.json
    assert set(found) >= KEYS and found["command"] == "adaptive" and found["goal"]["max_drop"] == 0.03
    assert found["output"]["path"] == str(out) and found["confirmation"][-1]["holds"]
    assert found["after"]["nonzero"] < found["before"]["nonzero"] and found["path"][0]["setting"]


def test_a_limit_that_cannot_be_kept_is_exit_code_1(prune: Prune, tmp_path: Path) -> None:
    done = prune("adaptive", MLP, "--data", TEST, "--max-drop", "0.001%", "-o", tmp_path / "o.onnx", "-j", 1)
    assert done.code == 1 and "The closest is step" in done.out and "Path" in done.out
    assert done.err.splitlines()[-2].startswith("error: no model within a drop of 1e-05 in accuracy")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("suffix", ["md", "html", "json"])
def test_reports(prune: Prune, tmp_path: Path, suffix: str) -> None:
    report = tmp_path / f"r.{suffix}"
    done = prune("sensitivity", MLP, "--data", TEST, "--levels", "0.5,90%", "-j", 1, "--report", report)
    assert done.code == 0, done.err
    assert "90%" in done.out and "fc1" in done.out and report.stat().st_size > 200


def test_the_report_draws_the_search_and_what_went(prune: Prune, tmp_path: Path) -> None:
    report = tmp_path / "r.md"
    done = prune("adaptive", MLP, "--data", TEST, "--max-drop", "3%", "-j", 1, "--dry-run", "--report", report)
    assert done.code == 0, done.err
    text = report.read_text("utf-8")
    for title in ("Damage by each layer alone", "Steps", "Path", "Pareto front", "Thresholds", "What was zeroed"):
        assert f"# {title}" in text, title
    assert "threshold: the same for all layers; curves: each layer by what it costs" in text


REFUSED = [
    (["adaptive", MLP, "--data", TEST], "what may be lost"),
    (["adaptive", MLP, "--max-drop", "1%"], "judged on data"),
    (["adaptive", MLP, "--data", TEST, "--max-drop", "much"], "not a number"),
    (["adaptive", MLP, "--data", TEST, "--max-drop", "5ms"], "no amount of a metric"),
    (["adaptive", MLP, "--data", TEST, "--max-drop", "1%", "--minimize", "latency"], "no latency"),
    (["sensitivity", MLP, "--data", TEST, "--levels", "2"], "outside 0 to 1"),
    (["sensitivity", MLP, "--data", TEST, "--backend", "dask"], "--address"),
    (["sensitivity", MLP, "--data", TEST, "--fast", "--predicted"], "are two predictions"),
    (["adaptive", MLP, "--data", TEST, "--max-drop", "1%", "--save-front", TEST], "is not a folder"),
    (["oneshot", MLP, "--data", TEST, "--sparsity", "0.5", "--steps", 2], "--steps is of training between cuts"),
    (
        [
            "oneshot",
            MLP,
            "--data",
            TEST,
            "--sparsity",
            "0.5",
            "--steps",
            2,
            "--finetune-epochs",
            1,
            "--train-data",
            TEST,
            "--state",
            "s",
        ],
        "--state is of one fit",
    ),
    (["oneshot", MLP, "--data", TEST, "--sparsity", "0.5", "--memory", "3%"], "not a number of bytes"),
    (["finetune", MLP, "--data", TEST, "--epochs", 1, "--resume"], "--resume needs --checkpoint"),
]


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_usage_is_one_line_and_a_hint(args: list[str], message: str, prune: Prune) -> None:
    done = prune(*args)
    assert done.code == 2 and done.out == ""
    assert message in done.err.splitlines()[0] and done.err.splitlines()[1].startswith("hint: ")


@pytest.mark.slow
def test_a_signal_ends_the_search_with_the_best_so_far(tmp_path: Path) -> None:
    """A real Ctrl-C, to the whole process group, once the first trials are in the state file."""
    state, out = tmp_path / "state", tmp_path / "o.onnx"
    args = ["adaptive", SAMPLES / "digits-cnn.onnx", "--data", TEST, "--max-drop", "5%", "-o", out, "--state", state]
    args += ["--seed", 1, "--criterion", "l1", "-j", 2, "--format", "json"]
    code = "import sys; from prunecli.cli.app import main; sys.argv = ['prune', *sys.argv[1:]]; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)  # fmt: skip
    end = time.monotonic() + 100
    while time.monotonic() < end and running.poll() is None and _lines(state) < 12:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    output, errors = running.communicate(timeout=100)
    found = json.loads(output)
    assert running.returncode == 130, errors
    assert found["interrupted"] and "Traceback" not in errors
    assert found["reached"] == out.exists() and len(found["path"]) >= 1


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
