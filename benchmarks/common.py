"""What several benchmarks need: the shared models and data, running a peer, and a table on stdout."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from prunecli.autodiff.losses import LossScope
from prunecli.model import Dims, concrete_shapes, count_macs, load

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("PRUNE_SHARED", HERE.parents[1] / "shared"))


class OutputProduct:
    """The loss sum(y v), y the first output and v the input `vector`: its gradient is a vector-Jacobian product."""

    def build(self, scope: LossScope) -> ir.Value:
        y = scope.output(None)
        return scope.ops.sum(scope.ops.mul(y, scope.target("vector", y)))


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


def macs(path: Path, dims: Dims) -> float:
    """Multiply-accumulates of a run."""
    model = load(path)
    return float(count_macs(model, concrete_shapes(model, dims)).total or 0)


STEP, STEPS = 0.05, 18


def onnxsim_cut(
    python: str | None, model: Path, target: float, out: Path, dims: Dims | None = None, wanda: Path | None = None
) -> float | str:
    """Let onnxsim cut `model` to `target` of its MACs, at the sparsity (of steps of 0.05) that comes closest. What
    remains, or why nothing was made."""
    dims = dims or Dims(sizes={"batch": 1})
    whole, shares = macs(model, dims), dict[int, float]()
    low, high = 0, STEPS  # 0 removes nothing; the last one is not tried
    more = ["--wanda", wanda] if wanda else []
    files: Mapping[int, Path] = {step: out.with_suffix(f".{step}.onnx") for step in range(1, STEPS)}
    while high - low > 1:
        step = (low + high) // 2
        done = peer(python, "onnxsim_prune.py", model, round(step * STEP, 2), files[step], *more)
        if isinstance(done, str):
            return done
        shares[step] = macs(files[step], dims) / whole
        low, high = (step, high) if shares[step] > target else (low, step)
    best = min(shares, key=lambda step: abs(shares[step] - target))
    files[best].replace(out)
    return shares[best]


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
