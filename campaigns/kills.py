"""Runs that are killed at random moments, over every command that writes: what is there is whole, and the next run of
any command leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from random import Random

import onnx

from campaigns.driver import Campaign, command
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
DATA = ("--data", "d.npz", "--limit", "64")
LINES: tuple[tuple[str, ...], ...] = (
    ("magnitude", "--sparsity", ".5", "--save-plan", "p.json", "--report", "r.html"),
    ("magnitude", "--sparsity", ".9", "--pack", "--external-data", "always"),
    ("structured", "--ratio", ".5", "--external-data", "always", "--save-plan", "p.json"),
    ("structured", "--ratio", ".5", *DATA, "--report", "r.json"),
    ("structured", "--ratio", ".5", *DATA, "--finetune-epochs", "1", "--steps", "2"),
    ("gradient", "--sparsity", ".5", *DATA),
    ("oneshot", "--sparsity", ".5", *DATA, "--external-data", "always"),
    ("adaptive", *DATA, "--max-drop", "30%", "--state", "s", "--save-front", "front", "-j", "2"),
    ("sensitivity", *DATA, "--state", "s", "-j", "2", "--report", "r.md"),
    ("finetune", *DATA, "--epochs", "2", "--checkpoint", "c", "--log", "l.csv"),
    ("pack", "--external-data", "always"),
)
FILES = {"m.onnx", "z.onnx", "d.npz", "o.onnx", "p.json", "r.html", "r.json", "r.md", "s", "front", "c", "l.csv"}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def words(line: tuple[str, ...]) -> list[str]:
    """The whole command line: `pack` packs a sparse model."""
    writes = () if line[0] == "sensitivity" else ("-o", "o.onnx", "--force")
    model = "z.onnx" if line[0] == "pack" else "m.onnx"
    return [sys.executable, "-m", "prunecli", line[0], model, *line[1:], *writes]


def _start(line: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        words(line), cwd=folder, env=own,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def set_out(folder: Path) -> None:
    (folder / "tmp").mkdir()
    for name, source in {"m.onnx": "digits-mlp.onnx", "d.npz": "digits-train.npz", "o.onnx": "digits-cnn.onnx"}.items():
        (folder / name).write_bytes((SAMPLES / source).read_bytes())
    (folder / "z.onnx").write_bytes(_sparse())


@cache
def _sparse() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command("magnitude", SAMPLES / "digits-mlp.onnx", "--sparsity", ".9", "-o", f"{folder}/z.onnx")
        return Path(folder, "z.onnx").read_bytes()


@cache
def _usual(number: int) -> float:
    """Seconds that the command takes when nobody kills it."""
    with tempfile.TemporaryDirectory() as folder:
        set_out(Path(folder))
        start = time.monotonic()
        process = _start(LINES[number], Path(folder))
        said = process.communicate()[1].decode()
        assert process.returncode == 0 or "improved nothing" in said, said
        return time.monotonic() - start


def case(seed: int, number: int, folder: Path) -> str:
    chance, which = Random(f"{seed} {number}"), number % len(LINES)
    usual = _usual(which)
    (place := folder / "killed").mkdir()
    set_out(place)
    process, sent = _start(LINES[which], place), chance.choice(SIGNALS)
    try:
        process.communicate(timeout=usual * chance.uniform(0.2, 1.05))
    except subprocess.TimeoutExpired:
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        if sent != signal.SIGKILL and b"Traceback" in said:
            print(said.decode(), flush=True)
            return f"{LINES[which][0]}: a traceback after {sent.name}"
    time.sleep(1.5)  # in which its children end
    os.environ["TMPDIR"] = str(place / "tmp")
    fault = left(place)
    return fault and f"{' '.join(LINES[which][:1])}: {fault} after {sent.name}"


def left(place: Path) -> str:
    """What is wrong with the files: of the models each is whole, before the next command and after it."""
    for model in [place / "o.onnx", *place.glob("front/*.onnx")]:
        seen = command("inspect", model)
        if seen.code:
            return f"{model.parent.name}/{model.name} is broken: {seen.err.splitlines()[-2][:60]}"
    subprocess.run(
        [sys.executable, "-m", "prunecli", "inspect", "m.onnx"], cwd=place, check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "tmp")},
    )  # fmt: skip
    kept = {info.value for t in onnx.load(place / "o.onnx", load_external_data=False).graph.initializer
            for info in t.external_data if info.key == "location"}  # fmt: skip
    litter = sorted(p.name for p in place.iterdir() if p.name not in FILES | kept | {"tmp"})
    litter += sorted(f"tmp/{p.name}" for p in (place / "tmp").iterdir() if p.name != ".ses")  # of onnxruntime
    return f"left behind: {litter[0][:40]}" if litter else ""


if __name__ == "__main__":
    Campaign("killed runs", "none broken and nothing left behind of 200", case, 55, 300).main()
