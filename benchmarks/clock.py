"""Whether the measured speed-up holds on a busy machine: models whose ratio is known by construction, beside processes
that burn CPU time and memory bandwidth.

    python benchmarks/clock.py [--times 20] [--seconds 1.5] [--threads 1] [--loads none,cpu,memory,both]

A model of k equal blocks that share one weight takes about k times as long as one block: a run has a constant part, so
the truth is also taken from the median of all measurements. Each measurement opens both models anew. Printed: how many
measurements were told, and how many intervals hold the truth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from busy import chain, load
from common import parser, show

from prunecli.evaluation.latency import TimedPair, TimingOptions, measure_pair

# operator, size, blocks of the model and of the baseline
CASES = [
    ("Conv", 32, 8, 8),
    ("Conv", 32, 8, 14),
    ("Conv", 32, 10, 11),
    ("MatMul", 1024, 4, 7),
    ("MatMul", 4096, 2, 4),
]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--seconds", type=float, default=1.5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--loads", default="none,cpu,memory,both")
    options.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    asked = options.parse_args()
    found: dict[tuple[str, int, float], dict[str, list[TimedPair]]] = {}
    for kind in asked.loads.split(","):
        with load(kind, asked.processes):
            for op, size, fewer, more in CASES:
                how = TimingOptions(asked.threads, "CPUExecutionProvider", seconds=asked.seconds)
                pairs = [
                    measure_pair(chain(op, fewer, size, asked.threads), chain(op, more, size, asked.threads), how)
                    for _ in range(asked.times)
                ]
                found.setdefault((op, size, more / fewer), {})[kind] = pairs
                print(kind, op, size, more / fewer, [round(pair.gain.speedup, 3) for pair in pairs], flush=True)
    rows = [row for case, kinds in found.items() for row in described(case, kinds)]
    head = ("model", "built", "measured", "load", "ratios", "high/low", "told", "built inside", "measured inside")
    show(f"{asked.times} measurements of {asked.seconds:g} s each on {asked.threads} threads; load average at the end"
         f" {os.getloadavg()[0]:.1f}", head, rows)  # fmt: skip


def described(case: tuple[str, int, float], kinds: dict[str, list[TimedPair]]) -> Iterator[list[object]]:
    """One row per load. The truth as built, and as measured: the median over all measurements, whatever the load."""
    op, size, built = case
    measured = float(np.median([pair.gain.speedup for pairs in kinds.values() for pair in pairs]))
    for kind, pairs in kinds.items():
        gains = [pair.gain for pair in pairs]
        inside = [sum(gain.low <= truth <= gain.high for gain in gains) for truth in (built, measured)]
        ratios = [gain.speedup for gain in gains]
        yield [f"{op} {size}", built, measured, kind, f"{min(ratios):.3f} to {max(ratios):.3f}",
               float(np.median([gain.high / gain.low for gain in gains])), sum(not gain.reason for gain in gains),
               *inside]  # fmt: skip


if __name__ == "__main__":
    main()
