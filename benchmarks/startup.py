"""CPU time of starting `prune`: medians over fresh processes, beside an empty Python.

    python benchmarks/startup.py [--runs N]

Targets: `prune --help` at most 0.20 s of CPU time, `prune magnitude --help` at most 0.25 s. Processes of the
different commands take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "python -c 'import typer'": (["-c", "import typer"], None),
    "prune --help": (["-m", "prunecli", "--help"], 0.20),
    "prune magnitude --help": (["-m", "prunecli", "magnitude", "--help"], 0.25),
    "prune inspect SAMPLE": (
        ["-m", "prunecli", "inspect", str(ROOT / "sample_models/digits-mlp.onnx")],
        None,
    ),
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one child process."""
    before = os.times()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of starting prune")
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # the first round warms the file cache and is dropped below
        for name, (arguments, _) in COMMANDS.items():
            times[name].append(cpu_seconds(arguments))
    print(f"{'command':28} {'median':>8} {'least':>8} {'target':>8}   CPU seconds, {runs} runs each")
    for name, (_, target) in COMMANDS.items():
        kept = times[name][1:]
        limit = f"{target:8.2f}" if target else f"{'–':>8}"
        print(f"{name:28} {statistics.median(kept):8.3f} {min(kept):8.3f} {limit}")


if __name__ == "__main__":
    main()
