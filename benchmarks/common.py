"""What several benchmarks need: the shared models and data, running a peer, and a table on stdout."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("PRUNE_SHARED", HERE.parents[1] / "shared"))


def parser(text: str) -> argparse.ArgumentParser:
    """Every benchmark that compares takes --peer-python."""
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--peer-python", help="a Python that has the `benchmark` extra; without it no peers")
    return made


def peer(python: str | None, script: str, *args: object, timeout: float = 900) -> dict[str, float] | str:
    """What a script of `peers/` printed, or why it did not."""
    if python is None:
        return "not run"
    command = [python, str(HERE / "peers" / script), *map(str, args)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "too slow"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return "failed: " + (done.stderr.strip().splitlines() or ["no output"])[-1][:80]
    return dict(json.loads(lines[-1]))


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row) + " |")
