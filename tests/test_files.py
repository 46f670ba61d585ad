"""What a command may write to, and what is left when it ends early."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prunecli import files
from prunecli.errors import PruneError
from tests.cli.conftest import ROOT, SAMPLES, Prune, prune  # noqa: F401 - a fixture


@dataclass(frozen=True)
class Inner:
    text: str = ""
    labels: Path | None = None


@dataclass(frozen=True)
class ReadingOptions:
    data: Inner = field(default_factory=Inner)
    save_plan: Path | None = None
    log: Path | None = None
    checkpoint: Path | None = None
    plan: Path | None = None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, a folder of images, links of all kinds, a pipe and a link to a device."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("m.onnx", "d.npz", "images/1.jpg", "loader.py", "old.json"):
        (tmp_path / name).write_bytes(b"precious")
    os.link("d.npz", "hard.npz")
    for name, target in {"soft.npz": "d.npz", "null": "/dev/null", "linked": "images", "dangling": "new.json"}.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo("pipe")
    return tmp_path


# options (output is given apart), a piece of the refusal or nothing, with force
PATHS = [
    (ReadingOptions(save_plan=Path("p.json"), log=Path("l.csv")), "o.onnx", "", False),
    (ReadingOptions(save_plan=Path("o.onnx")), "o.onnx", "--output and --save-plan both write o.onnx", True),
    (ReadingOptions(save_plan=Path("./images/../o.onnx")), "o.onnx", "both write", True),
    (ReadingOptions(save_plan=Path("new.json"), log=Path("dangling")), None, "both write", True),
    (ReadingOptions(log=Path("l.csv"), checkpoint=Path("l.csv")), None, "both write", True),
    (ReadingOptions(Inner("d.npz")), "d.npz", "is the input itself", True),
    (ReadingOptions(Inner("hard.npz")), "d.npz", "is the input itself", True),
    (ReadingOptions(Inner("soft.npz")), "d.npz", "is the input itself", True),
    (ReadingOptions(Inner("d.npz")), "soft.npz", "is the input itself", True),
    (ReadingOptions(Inner("loader.py:batches"), log=Path("loader.py")), None, "is the input itself", True),
    (ReadingOptions(Inner("x.npy", Path("d.npz")), save_plan=Path("d.npz")), None, "is the input itself", True),
    (ReadingOptions(log=Path("m.onnx")), None, "is the input itself", True),
    (ReadingOptions(plan=Path("old.json"), save_plan=Path("old.json")), None, "is the input itself", True),
    (ReadingOptions(Inner("images")), "images/1.jpg", "part of the input", True),
    (ReadingOptions(Inner("linked")), "images/1.jpg", "part of the input", True),
    (ReadingOptions(Inner("images")), "images/new.onnx", "", False),
    (ReadingOptions(), "null", "not a regular file", True),
    (ReadingOptions(), "pipe", "not a regular file", True),
    (ReadingOptions(log=Path("pipe")), None, "not a regular file", True),
    (ReadingOptions(), "images", "is a folder", True),
    (ReadingOptions(checkpoint=Path("d.npz")), None, "is not a folder", True),
    (ReadingOptions(checkpoint=Path("new/deep")), None, "", False),
    (ReadingOptions(), "no/o.onnx", "does not exist", True),
    (ReadingOptions(save_plan=Path("no/p.json")), None, "does not exist", True),
    (ReadingOptions(save_plan=Path("old.json")), None, "already exists", False),
    (ReadingOptions(save_plan=Path("old.json")), None, "", True),
    (ReadingOptions(), "dangling", "already exists", False),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "output", "words", "force"), PATHS)
def test_paths_that_are_refused(asked: ReadingOptions, output: str | None, words: str, force: bool, here: Path) -> None:
    given = {"output": Path(output) if output else None, "": asked}
    if not words:
        files.check_paths(given, [Path("m.onnx")], force)
        return
    with pytest.raises(PruneError, match=words) as caught:
        files.check_paths(given, [Path("m.onnx")], force)
    assert caught.value.hint


# of the command line; {m}: a copy of a model, {d}: its data, {x}: text that is no report
LINES = [
    ("magnitude {m} --sparsity .5 -o x.json --report ./x.json", "both write x.json"),
    ("magnitude {m} --sparsity .5 --save-plan out.onnx -o out.onnx --force", "both write out.onnx"),
    ("magnitude {m} --sparsity .5 --save-plan {m} --dry-run --force", "is the input itself"),
    ("finetune {m} --data {d} --log {m}", "is the input itself"),
    ("finetune {m} --data {d} --log {x} -o y.onnx --limit 64", "no log of training"),
    ("oneshot {m} --data {d} --sparsity .5 -o {d} --force", "is the input itself"),
    ("finetune {m} --data {d} --teacher {t} -o {t} --force", "is the input itself"),
    ("evaluate {m} --no-latency --report {x}", "no report of prune"),
    ("sensitivity {m} --data {d} --state {d}", "is the input itself"),
    ("pack {m} --force -o /dev/null", "not a regular file"),
]


@pytest.mark.parametrize(("line", "words"), LINES)
def test_command_lines_that_are_refused(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: Prune  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model, data = (SAMPLES / name for name in ("digits-mlp.onnx", "digits-calib.npz"))
    names = {"m": "m.onnx", "d": "d.npz", "t": "teacher.onnx", "x": "text.md"}
    for key, content in {"m": model, "d": data, "t": model}.items():
        Path(names[key]).write_bytes(content.read_bytes())
    Path("text.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = prune(*line.format(**names).split())
    assert done.code == 2
    assert words in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["m.json", "m.textproto", "m"])
def test_a_model_may_have_any_name(name: str, tmp_path: Path, prune: Prune) -> None:  # noqa: F811
    """onnx itself takes the format of a file from its suffix, where it is not told."""
    cut, zeros = tmp_path / name, tmp_path / f"zeros-{name}"
    assert prune("structured", SAMPLES / "digits-mlp.onnx", "--ratio", ".5", "-o", cut).code == 0
    assert prune("magnitude", cut, "--sparsity", ".9", "-o", zeros).code == 0
    assert prune("pack", zeros, "-o", tmp_path / f"packed-{name}").code == 0


def test_reports_replace_reports(tmp_path: Path, prune: Prune) -> None:  # noqa: F811
    model, data = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-calib.npz"
    for name in ("r.json", "r.md", "r.html"):
        for line in (["inspect", model], ["sensitivity", model, "--data", data, "--fast", "--limit", 16, "-j", 1]):
            assert prune(*line, "--report", tmp_path / name).code == 0


def _commit(target: Path, start: float) -> None:
    with files.staging(target) as stage:
        stage.file.write_text(str(os.getpid()))
        time.sleep(max(start - time.time(), 0))
        try:
            stage.commit()
        except PruneError:
            sys.exit(2)


def test_of_runs_that_race_for_a_new_name_one_wins(tmp_path: Path) -> None:
    children = [multiprocessing.Process(target=_commit, args=(tmp_path / "o", time.time() + 0.5)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(child.exitcode or 0 for child in children) == [0, 2, 2, 2]
    winner = next(child for child in children if child.exitcode == 0)
    assert [p.name for p in tmp_path.iterdir()] == ["o"]
    assert (tmp_path / "o").read_text() == str(winner.pid)


# --- what is left ---

PAUSED = """
import sys, time
from prunecli.cli import app
from prunecli.model import saving
def stop(*args):
    print("ready", flush=True)
    time.sleep(60)
saving._check = stop
sys.argv[1:] = {line!r}
app.main()
"""


def _paused(line: list[str]) -> subprocess.Popen[str]:
    """A run that stops while it saves: when its staging folder is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED.format(line=line)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_tidily(number: int, code: int, tmp_path: Path) -> None:
    model = str(SAMPLES / "digits-mlp.onnx")
    process = _paused(["structured", model, "--ratio", ".5", "--recover", "none", "-o", str(tmp_path / "o.onnx")])
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[0]) == (code, "error: interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_of_any_command_tidies_up_after_a_killed_one(tmp_path: Path, prune: Prune) -> None:  # noqa: F811
    model = tmp_path / "m.onnx"
    model.write_bytes((SAMPLES / "digits-mlp.onnx").read_bytes())
    process = _paused(["magnitude", str(model), "--sparsity", ".5"])
    (tmp_path / "own.prune-tmp").mkdir()  # of the user
    data = tmp_path / "m.pruned.onnx.0123456789ab.data"  # moved in place, and killed before the model followed
    data.write_bytes(b"")
    assert prune("inspect", model).code == 0
    assert len(list(tmp_path.iterdir())) == 4, "of a run that goes on nothing is touched"
    process.kill()
    process.communicate()
    assert prune("inspect", model).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "own.prune-tmp"]
