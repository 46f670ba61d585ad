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
    print(f"\n{title}\n\n{line(head)}\n|" + "---|" * len(head))
    for row in rows:
        print(line(row))


def line(row: Sequence[object]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row) + " |"


def record(page: Path, head: Sequence[str], row: Sequence[object], keys: int) -> None:
    """Put a row into the table of a page that has this head: in the place of the row with the same first `keys` cells,
    or at its end."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = lines.index(line(head)) + 2
    end = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    beginning = line(row[:keys])[:-1]
    places = [number for number in range(first, end) if lines[number].startswith(beginning)]
    lines[places[0] if places else end : places[0] + 1 if places else end] = [line(row)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
