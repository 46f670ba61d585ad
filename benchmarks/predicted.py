"""Predicted damage beside measured damage, beside simple formulas, and what follows from it.

    python benchmarks/predicted.py correlation [--names ...]   rank correlation with measured damage
    python benchmarks/predicted.py zeros [--names ...]         accuracy at 70 % zeros, by allocation
    python benchmarks/predicted.py trials [--names ...]        trials until `adaptive` is within 2 % of its end
    python benchmarks/predicted.py left-out --work FOLDER      each architecture of the zoo predicted by the others

What is correlated are layers and fractions of one network, together. fraction: the fraction alone; norm: the share of
w^2 that goes; formula: that of the layer's power, times its reach (what the network begins with); fisher: w^2 E[g^2],
summed, on the same data. Networks of ../shared; the graph neural network has seen none of them.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, SHARED, parser, show

import prunecli
from prunecli.errors import PruneError
from prunecli.evaluation.library_metrics import rank_correlation
from prunecli.masks.allocations import LossCurve
from prunecli.model import Dims, load
from prunecli.predicted.features import (
    ELEMENT_LEVELS,
    PLAIN,
    UNIT_LEVELS,
    DescribedGraph,
    describe_groups,
    describe_weights,
)
from prunecli.predicted.predict import group_curves, weight_curves
from prunecli.search.options import SensitivityOptions
from prunecli.search.setup import open_pruner
from prunecli.search.strategy import Search
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.types import no_progress

MODELS, DATA = SHARED / "models" / "real", SHARED / "data"
GRANULARITIES = {"element": ("l1", (0.5, 0.8, 0.95)), "channel,head": ("l2-in", (0.2, 0.45, 0.75))}


@dataclass(frozen=True)
class Case:
    model: Path
    data: Path
    samples: int
    images: dict[str, Any] = field(default_factory=dict)
    calibration: Path | None = None

    @property
    def measured_on(self) -> Path:
        """What damage is measured on."""
        return self.calibration or self.data


CASES = {
    "resnet20": Case(MODELS / "resnet20-cifar10.onnx", DATA / "cifar10-test.npz", 128),
    "resnet20-bn": Case(MODELS / "resnet20-cifar10-bn.onnx", DATA / "cifar10-test.npz", 128),
    "resnet56": Case(MODELS / "resnet56-cifar10.onnx", DATA / "cifar10-test.npz", 64),
    "ocr classifier": Case(MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx", DATA / "ocr-cls-test.npz", 48,
                           calibration=DATA / "ocr-cls-calib.npz"),
    "efficientnet-lite0": Case(
        MODELS / "efficientnet-lite0.onnx", DATA / "imagenet-calib", 24,
        {"classes": DATA / "imagenet-classes.txt", "mean": "127", "std": "128", "scale": "1"},
    ),
    "minilm": Case(MODELS / "minilm-l6.onnx", DATA / "sick-calib.npz", 24),
}  # fmt: skip


def correlation(names: list[str], cache: Path | None) -> None:
    rows: list[list[object]] = []
    for granularity in GRANULARITIES:
        for name in names:
            case = CASES[name]
            measured = measure(case, granularity, cache and cache / f"{name}.{granularity[:7]}.npz")
            described, curves = predictions(case.model, granularity)
            rows.append([name, granularity, *compared(measured, described, curves, case, granularity)])
            print(rows[-1], flush=True)
    show("Rank correlation with measured damage", ("model", "of", "layers", "fraction", "norm", "formula", "fisher",
         "network"), rows)  # fmt: skip


def measure(case: Case, granularity: str, kept: Path | None) -> dict[str, np.ndarray]:
    """By layer, (fraction, damage)."""
    criterion, levels = GRANULARITIES[granularity]
    if kept is None or not kept.exists():
        widths = {} if granularity == "element" else {"round_to": 1}
        found = prunecli.sensitivity(
            case.model, data=case.measured_on, limit=case.samples, granularity=granularity, jobs=1,
            criterion=criterion, levels=levels, **case.images, **widths,
        )  # fmt: skip
        curves = {r.layer.name: np.array([(p.fraction, p.damage) for p in r.points]) for r in found.rows}
        if kept is None:
            return curves
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **curves)
    with np.load(kept) as loaded:
        return {name: loaded[name] for name in loaded.files}


def predictions(path: Path, granularity: str) -> tuple[DescribedGraph, dict[str, LossCurve]]:
    if granularity == "element":
        return describe_weights(load(path)), weight_curves(load(path))
    found = open_cuttable(path, AnalysedAs(granularity), Dims())
    work = replace(found.file, ir=found.work)
    return describe_groups(work, found.units), group_curves(work, found.units)


def compared(
    measured: dict[str, np.ndarray], graph: DescribedGraph, curves: dict[str, LossCurve], case: Case, granularity: str
) -> list[object]:
    levels = ELEMENT_LEVELS if granularity == "element" else UNIT_LEVELS
    place, known = {name: k for k, name in enumerate(graph.names)}, [name for name in measured if name in curves]
    reach = 3 * graph.features[:, PLAIN.index("reach")]
    proxy = fisher(case, granularity)
    columns: list[list[float]] = [[] for _ in range(6)]
    for name in known:
        k = place[name]
        for fraction, damage in measured[name]:
            formula = float(np.interp(fraction, levels, graph.gone[k]))
            predicted = float(curves[name].at(np.array([1 - fraction]))[0])
            row = (damage, fraction, formula - reach[k], formula, proxy(name, float(fraction)), predicted)
            for column, value in zip(columns, row, strict=True):
                column.append(float(value))
    return [len(known), *(rank_correlation(columns[0], column) for column in columns[1:])]


def fisher(case: Case, granularity: str) -> Any:
    """Damage predicted from gradients on the same samples; NaN where there are none."""
    criterion = GRANULARITIES[granularity][0]
    options = SensitivityOptions(
        data=case.measured_on, limit=case.samples, granularity=granularity, criterion=criterion, **case.images
    )
    try:
        return open_pruner(case.model, options, options.tried, no_progress).proxy(no_progress)
    except PruneError as error:
        print(f"{case.model.name}: {error.message}")
        return lambda name, fraction: float("nan")


def zeros(names: list[str], sparsity: float, cache: Path | None) -> None:
    """Magnitude pruning, nothing fitted after it. measured: the curves of `correlation`."""
    import prunecli.zeros.select as select

    ways: dict[str, dict[str, Any]] = {name: {"scope": name} for name in ("layer", "erk", "lamp")}
    ways |= {"formula": {"allocate": "predicted"}, "network": {"allocate": "predicted"},
             "measured": {"allocate": "predicted"}}  # fmt: skip
    original, rows = select.weight_curves, []
    for name in names:
        case, row, place = CASES[name], [name], cache and cache / f"{name}.element.npz"
        for way, how in ways.items():
            if way in ("formula", "measured"):
                curves = formula if way == "formula" else measured_curves(case, place)
                select.weight_curves = curves  # type: ignore[assignment]
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out.onnx"
                prunecli.magnitude(case.model, sparsity=sparsity, output=out, verify=False, **how)
                found = prunecli.evaluate(out, data=case.data, latency=False, limit=1000, **case.images)
            select.weight_curves = original
            row.append(found.model.metrics["accuracy"])
        rows.append(row)
        print(row, flush=True)
    show(f"Accuracy at {sparsity:.0%} zeros", ("model", *ways), rows)


def formula(file: Any, only: Any = None) -> dict[str, LossCurve]:
    graph = describe_weights(file)
    return {name: LossCurve([1 - level for level in ELEMENT_LEVELS], np.exp(gone).tolist())
            for name, gone in zip(graph.names, graph.gone, strict=True)}  # fmt: skip


def measured_curves(case: Case, kept: Path | None) -> Any:
    """Curves as `correlation` measures them."""
    curves = {name: LossCurve((1 - points[:, 0]).tolist(), points[:, 1].tolist())
              for name, points in measure(case, "element", kept).items()}  # fmt: skip
    return lambda file, only=None: curves


def trials(names: list[str], drop: float) -> None:
    """Allocations run on the model (a probe runs 256 samples) until the best is within 2 % of the last."""
    rows = []
    cases = {"digits-cnn": Case(HERE.parent / "sample_models" / "digits-cnn.onnx",
                                HERE.parent / "sample_models" / "digits-test.npz", 547)} | CASES  # fmt: skip
    for name in names:
        case = cases[name]
        for strategy in ("search", "predicted"):
            counts = Counted()
            with counts:
                found = prunecli.adaptive(case.model, data=case.data, max_drop=drop, strategy=strategy, dry_run=True,
                                          verify=False, jobs=1, limit=1000, **case.images)  # fmt: skip
            best, when = np.inf, 0
            allowed = [(n, s) for n, s in zip(counts.at, found.steps, strict=True) if s.allowed]
            end = min((step.remains for _, step in allowed), default=np.nan)
            for number, step in allowed:
                best = min(best, step.remains)
                if best <= 1.02 * end:
                    when = number
                    break
            rows.append([name, strategy, end, len(found.steps), counts.total, when])
            print(rows[-1], flush=True)
    show("Trials", ("model", "strategy", "remains", "settings", "trials", "trials until within 2 %"), rows)


class Counted:
    """Counts allocations as the runner measures them, and how many there were at each step of the search."""

    def __init__(self) -> None:
        self.total = 0
        self.at: list[int] = []

    def __enter__(self) -> None:
        from prunecli.search.runner import TrialRunner

        self.measure, self.step = TrialRunner.measure, Search._step
        counts = self

        def measure(runner: Any, groups: Any, label: str = "measuring") -> Any:
            counts.total += sum(len(group.allocations) for group in groups)
            return counts.measure(runner, groups, label)

        def step(run: Any, *args: Any) -> Any:
            counts.at.append(counts.total)
            return counts.step(run, *args)

        TrialRunner.measure, Search._step = measure, step  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        from prunecli.search.runner import TrialRunner

        TrialRunner.measure, Search._step = self.measure, self.step  # type: ignore[method-assign]


def left_out(work: Path) -> None:
    """Of what `sample_models/damage.py` keeps in a folder: each architecture by a network fitted to the others."""
    sys.path.insert(0, str(HERE.parent / "sample_models"))
    from damage import MEMBERS, ensemble, examples, fit

    from prunecli.runtime import Session

    found = list(examples(path for path in sorted(work.glob("*.onnx"))))
    rows = []
    for kind in sorted({one.kind for one in found}):
        others = [one for one in found if one.kind != kind]
        fitted = ensemble([fit(others, 15, seed) for seed in range(MEMBERS)])
        model = Session.open(fitted.SerializeToString(), threads=1)
        scores: list[tuple[float, float]] = []
        for one in (one for one in found if one.kind == kind):
            known = ~np.isnan(one.damage).any(axis=1)
            present = np.ones((1, len(known), 1), np.float32)
            said = model.run({**one.graph.feed, "present": present})["log_damage"][0]
            truth = one.damage[known].reshape(-1).tolist()
            scores.append((rank_correlation(truth, one.graph.gone[known].reshape(-1).tolist()),
                           rank_correlation(truth, said[known].reshape(-1).tolist())))  # fmt: skip
        rows.append([kind, len(scores), *np.mean(scores, axis=0).tolist(), min(score for _, score in scores)])
        print(rows[-1], flush=True)
    show("One architecture left out", ("architecture", "graphs", "formula", "network", "worst of the network"), rows)


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("what", choices=("correlation", "zeros", "trials", "left-out"))
    options.add_argument("--names", nargs="+")
    options.add_argument("--cache", type=Path, help="folder that keeps measured damage")
    options.add_argument("--work", type=Path, default=Path("damage"))
    options.add_argument("--sparsity", type=float, default=0.7)
    options.add_argument("--drop", type=float, default=0.03)
    given = options.parse_args()
    if given.what == "correlation":
        correlation(given.names or list(CASES), given.cache)
    elif given.what == "zeros":
        zeros(given.names or ["resnet20", "resnet56", "ocr classifier"], given.sparsity, given.cache)
    elif given.what == "trials":
        trials(given.names or ["digits-cnn", "resnet20"], given.drop)
    else:
        left_out(given.work)


if __name__ == "__main__":
    main()
