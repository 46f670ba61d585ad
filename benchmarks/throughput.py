"""How fast weights are scored and selected: GB/s per scope and pattern, and in passes of `numpy.abs(w).max()`.

    python benchmarks/throughput.py [--mebibytes 256] [--tensors 8] [--rounds 5]

Selecting is `decide` and then every mask; nothing is written. What is compared takes turns with numpy's pass over
the same arrays, so that a busy machine slows both. Targets: 6 passes for global, 3 for layer (single weights).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from common import show

from prunecli.masks.decide import Recipe, Target, decide

WIDTH = 2048
TARGETS = {("global", "element"): 6, ("layer", "element"): 3}
RECIPES = [
    *(Recipe(scope=scope, sparsity=0.5) for scope in ("global", "layer", "row", "lamp", "erk")),
    Recipe(threshold=0.5),
    Recipe(pattern="2:4"),
    *(Recipe(pattern=pattern, scope="global", sparsity=0.5) for pattern in ("4x1", "16x16", "row", "column")),
    Recipe(scope="global", sparsity=0.5, criterion="l2"),
]


def weights(count: int, mebibytes: int) -> list[Target]:
    """Dense layers of (outputs, 2048) in float32, normal, each a little wider than the last."""
    rows = mebibytes * (1 << 20) // (4 * WIDTH * count)
    rng = np.random.default_rng(0)
    return [
        target(f"w{i}", rng.standard_normal((rows, WIDTH), np.float32) * np.float32(0.8 + 0.4 * i / count))
        for i in range(count)
    ]


def target(name: str, array: np.ndarray) -> Target:
    return Target(name, array.shape, array.dtype, lambda: array, lambda a: a[None, :, None, :], lambda a: a[0, :, 0, :])


def select(targets: Sequence[Target], recipe: Recipe) -> None:
    for one, decision in zip(targets, decide(targets, recipe), strict=True):
        decision.drop(one.load())


def read(targets: Sequence[Target]) -> None:
    for one in targets:
        np.abs(one.load()).max()


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description="GB/s of scoring and selecting")
    options.add_argument("--mebibytes", type=int, default=256)
    options.add_argument("--tensors", type=int, default=8)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    targets = weights(args.tensors, args.mebibytes)
    size = sum(one.load().nbytes for one in targets) / 1e9
    read(targets)
    rows = []
    for recipe in RECIPES:
        pairs = [
            (seconds(lambda: read(targets)), seconds(lambda recipe=recipe: select(targets, recipe)))
            for _ in range(args.rounds)
        ]
        taken = statistics.median(own for _, own in pairs)
        passes = statistics.median(own / numpy for numpy, own in pairs)
        scope = recipe.to_json().get("scope") or ("threshold" if recipe.threshold else "window")
        goal = TARGETS.get((scope, recipe.pattern)) if recipe.criterion is None else None
        rows.append([scope, recipe.pattern, recipe.criterion or "l1", size / taken, passes, goal or ""])
    show(f"{size:.2f} GB of float32", ["scope", "pattern", "criterion", "GB/s", "passes", "target"], rows)


if __name__ == "__main__":
    main()
