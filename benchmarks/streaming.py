"""Magnitude pruning of a model far larger than the memory it may take: time and peak memory, against `cp`.

    python benchmarks/streaming.py [--rounds N] [--tensors 24] [--mebibytes 128] [--folder F] [--peer-python PYTHON]

Makes a 3 GiB model (twice that must be free in the folder), then lets the competitors take turns: copying its
files, `prune magnitude` global and per layer, with its proof and without. Every one starts with the file cache
warm and no unwritten data, and is timed until its output is on the disk. Peak memory is the resident set of the
process as the kernel accounts for it, mapped files included. With --peer-python, a Python that has onnxsim,
`apply_magnitude_pruning` runs once.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import parser, show

ROOT = Path(__file__).parents[1]
MAKE = Path(__file__).parent / "make_big_model.py"
PEER = Path(__file__).parent / "peers" / "onnxsim_magnitude.py"
TIMES_CP, MEGABYTES = 3.0, 800
"""The targets: time against `cp`, peak resident megabytes."""


@dataclass
class Results:
    """Wall seconds and peak megabytes of every run."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def measured(command: list[str], output: Path) -> tuple[float, float]:
    """Seconds until the files of `output` are on the disk, and the peak resident megabytes of the process."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        assert process.stderr is not None
        sys.exit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()[-2000:]}")
    for path in output.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def warm(folder: Path) -> None:
    """Bring the input into the file cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass


def competitors(model: Path, output: Path) -> dict[str, list[str]]:
    prune = [sys.executable, "-m", "prunecli", "-q", "magnitude", str(model), "--sparsity", "0.5",
             "-o", str(output / "out.onnx")]  # fmt: skip
    return {
        "cp": ["cp", str(model), f"{model}.data", str(output)],
        "prune --scope global": [*prune, "--scope", "global"],
        "prune --scope layer": [*prune, "--scope", "layer"],
        "prune --scope global --no-verify": [*prune, "--scope", "global", "--no-verify"],
    }


def run(folder: Path, args: argparse.Namespace) -> dict[str, Results]:
    model, output = folder / "in" / "big.onnx", folder / "out"
    model.parent.mkdir()
    sizes = ["--tensors", str(args.tensors), "--mebibytes", str(args.mebibytes)]
    subprocess.run([sys.executable, MAKE, model, *sizes], check=True)  # a child's memory counts from its parent's
    results: dict[str, Results] = {}
    for _ in range(args.rounds):
        for name, command in competitors(model, output).items():
            warm(model.parent)
            record(results, name, command, output)
    if args.peer_python:
        command = [args.peer_python, str(PEER), str(model), str(output / "peer.onnx")]
        record(results, "onnxsim 0.8.1 global", command, output)
    return results


def record(results: dict[str, Results], name: str, command: list[str], output: Path) -> None:
    seconds, megabytes = measured(command, output)
    print(f"  {name:34} {seconds:7.1f} s {megabytes:7.0f} MB", flush=True)
    found = results.setdefault(name, Results())
    found.seconds.append(seconds)
    found.megabytes.append(megabytes)


def report(results: dict[str, Results]) -> None:
    copy = statistics.median(results["cp"].seconds)
    rows = []
    for name, found in results.items():
        middle = statistics.median(found.seconds)
        rows.append([name, middle, min(found.seconds), middle / copy, max(found.megabytes)])
    title = f"targets: at most {TIMES_CP:g} x cp, at most {MEGABYTES} MB; {os.cpu_count()} cores, {platform.machine()}"
    show(title, ["", "median s", "least s", "x cp", "peak MB"], rows)


def main() -> None:
    options = parser("magnitude pruning of a 3 GiB model: time and peak memory")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tensors", type=int, default=24)
    options.add_argument("--mebibytes", type=int, default=128)
    options.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report(run(Path(folder), args))


if __name__ == "__main__":
    main()
