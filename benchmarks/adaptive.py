"""Adaptive pruning: how small each strategy gets at the same promise, whether promises hold, what is saved on the way.

strategies: same data, split and margin for `search`, `feedback`, and `uniform`: every layer by the same fraction, the
largest that the same rule allows. promises: seeded runs on a sample network; how often the first allocation holds on
the held-out half, and the final one on a third part that no run ever sees. prefix: seconds for one layer's levels with
what comes before it computed once, and with each level run whole.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, SHARED, parser, show

from prunecli.data.options import DataOptions
from prunecli.search.adaptive import adaptive
from prunecli.search.options import TrialOptions
from prunecli.search.setup import open_model, set_up
from prunecli.search.strategy import FIRST_STEP, LAST_STEP, STRATEGIES, Search, curve_trials, levels_of
from prunecli.search.trials import TrialGroup, TrialSamples
from prunecli.types import no_progress

DATA, MODELS, SAMPLES = SHARED / "data", SHARED / "models" / "real", HERE.parent / "sample_models"
CASES: dict[str, tuple[Path, Path, float]] = {
    "digits-cnn": (SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-test.npz", 0.03),
    "resnet20-cifar10": (MODELS / "resnet20-cifar10.onnx", DATA / "cifar10-test.npz", 0.03),
    "ocr classifier": (MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx", DATA / "ocr-cls-test.npz", 0.03),
}
SEEDS = 20


def uniform(run: Search) -> None:
    """Every layer by the same fraction, raised and lowered as `feedback` does with its threshold."""
    share, step = 0.0, FIRST_STEP
    while step >= LAST_STEP:
        [tried] = run.try_all([{layer.name: share + step for layer in run.space.layers}], "uniform")
        if tried.allowed:
            share += step
        else:
            step /= 2


def strategies(names: list[str], ways: list[str], seed: int) -> None:
    STRATEGIES["uniform"] = uniform
    rows: list[list[object]] = []
    for name in names:
        model, data, drop = CASES[name]
        for way in ways:
            strategy, criterion, granularity = (*way.split(":"), "", "")[:3]
            options: dict[str, Any] = {"criterion": criterion or None, "granularity": granularity or "element"}
            start = time.perf_counter()
            found = adaptive(model, data=data, max_drop=drop, strategy=strategy, seed=seed, dry_run=True, verify=False,
                             **options)  # fmt: skip
            last = found.confirmations[-1] if found.reached else None
            rows.append([name, way, "" if last is None else last.step.remains, "" if last is None else last.drop.value,
                         len(found.steps), time.perf_counter() - start])  # fmt: skip
            print(rows[-1], flush=True)
    show("Strategies", ("model", "strategy", "remains", "drop, held out", "settings", "s"), rows)


def promises(strategy: str) -> None:
    """On the digits MLP: 347 samples for the search and its confirmation, 200 that nobody sees."""
    model, rows = SAMPLES / "digits-mlp.onnx", []
    with np.load(SAMPLES / "digits-test.npz") as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    for drop in (0.02, 0.03, 0.05):
        first = confirmed = outside = reached = 0
        remains = []
        for seed in range(SEEDS):
            order = np.random.default_rng(1000 + seed).permutation(len(arrays["labels"]))
            with tempfile.TemporaryDirectory() as folder:
                parts = {"mine": order[:347], "other": order[347:]}
                for name, rows_of in parts.items():
                    np.savez(Path(folder) / f"{name}.npz", **{k: v[rows_of] for k, v in arrays.items()})
                out = Path(folder) / "out.onnx"
                found = adaptive(model, data=Path(folder) / "mine.npz", max_drop=drop, seed=seed, jobs=1, output=out,
                                 strategy=strategy)  # fmt: skip
                if found.reached:
                    reached += 1
                    remains.append(found.confirmations[-1].step.remains)
                    first += found.confirmations[0].holds
                    confirmed += found.confirmations[-1].holds
                    outside += _drop(model, out, Path(folder) / "other.npz") <= drop + 1e-9
        rows.append([strategy, drop, reached, first, confirmed, outside, float(np.mean(remains)) if remains else ""])
        print(rows[-1], flush=True)
    show(
        "Promises",
        ("strategy", "max drop", f"reached of {SEEDS}", "first held", "held", "held outside", "remains"),
        rows,
    )


def _drop(original: Path, pruned: Path, data: Path) -> float:
    from prunecli.evaluation.evaluate import evaluate
    from prunecli.evaluation.options import EvaluateOptions

    found = evaluate(pruned, original, EvaluateOptions(data=DataOptions(str(data)), latency=False))
    assert found.baseline is not None
    return found.baseline.metrics["accuracy"] - found.model.metrics["accuracy"]


def prefix(names: list[str]) -> None:
    rows: list[list[object]] = []
    for name in names:
        model, data, _ = CASES[name]
        options = TrialOptions(data=DataOptions(str(data), limit=256), jobs=1)
        file, session = open_model(model, options)
        found = options.data.open(session.inputs)
        setup = set_up(file, found, TrialSamples.of(found, session, options), options, no_progress)
        layers = list(setup.pruner.layers)
        whole = [TrialGroup.of({k.name: level}, probe=True) for k in layers for level in levels_of(k)]
        seconds = []
        for jobs in (curve_trials(layers), whole):
            start = time.perf_counter()
            for _ in setup.runner.pool.run(setup.runner.workspace, jobs):
                pass
            seconds.append(time.perf_counter() - start)
        rows.append([name, len(layers), len(whole), *seconds, seconds[1] / seconds[0]])
        print(rows[-1], flush=True)
    show("What comes before, run once", ("model", "layers", "settings", "shared s", "whole s", "ratio"), rows)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--parts", nargs="+", default=["strategies", "promises", "prefix"])
    made.add_argument("--models", nargs="+", default=list(CASES))
    ways = ["search:smoothed", "feedback:smoothed", "search:l1", "feedback:l1", "uniform:l1"]
    made.add_argument("--ways", nargs="+", default=ways, help="STRATEGY[:CRITERION[:GRANULARITY]]")
    made.add_argument("--seed", type=int, default=0)
    args = made.parse_args()
    if "strategies" in args.parts:
        strategies(args.models, args.ways, args.seed)
    if "promises" in args.parts:
        for strategy in ("search", "feedback"):
            promises(strategy)
    if "prefix" in args.parts:
        prefix(args.models)


if __name__ == "__main__":
    main()
