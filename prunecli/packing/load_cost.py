"""Time and memory that onnxruntime needs to load a model, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import PruneError
from prunecli.runtime import Session, providers

QUICK = 0.5
"""Seconds below which loading is repeated twice and the least time is taken."""


@dataclass(frozen=True)
class LoadCost:
    """`seconds`: until the session is open. `cpu_seconds`: processor time, which other programs on the machine affect
    less. `peak_bytes`: most memory in use minus that before loading (None where the system does not report it)."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


def measure_load(path: Path, provider: str = "cpu", threads: int = 1) -> LoadCost:
    """Load the model in a new process.

    Raises:
        PruneError: it cannot be loaded, or the process was killed, as it is where memory runs out.
    """
    command = [sys.executable, "-m", "prunecli.packing.load_cost", str(path), provider, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise PruneError(f"loading {path} could not be measured: {why[0][:300]}", "pass --no-verify to leave it out")
    return LoadCost(**json.loads(done.stdout))


def _memory(key: str) -> int | None:
    """VmRSS or VmHWM of this process in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def _measured(path: Path, provider: str, threads: int) -> LoadCost:
    providers()  # the library itself is loaded before the clock starts
    before, first = _memory("VmRSS"), _timed(path, provider, threads)
    peak = _memory("VmHWM")
    times = [first, *(_timed(path, provider, threads) for _ in range(2))] if first[0] < QUICK else [first]
    seconds, cpu = (min(column) for column in zip(*times, strict=True))
    return LoadCost(seconds, cpu, None if before is None or peak is None else max(0, peak - before))


def _timed(path: Path, provider: str, threads: int) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    Session.open(path, provider=provider, threads=threads)
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    found = _measured(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    print(json.dumps(vars(found)))
