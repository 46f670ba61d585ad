"""What calibration without data costs: accuracy on the test data.

    python benchmarks/synthetic.py [--models ...] [--amounts ...] [--kinds ...]    `prune oneshot`
    python benchmarks/synthetic.py structured [--models ...] [--limit N]           `prune structured --macs 0.5`

Of zeros, inputs are real, synthetic or random: the same number of samples, seed and method; "random" is white noise of
mean 0 and variance 1, what there would be without any care for the inputs. Of structures, there are none, in the ways
of WAYS.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, parser, show

from prunecli import oneshot, structured
from prunecli.data.options import DataOptions
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions
from prunecli.runtime import Session

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
CIFAR = (DATA / "cifar10-train.npz", DATA / "cifar10-test.npz")
CASES = {
    "resnet20-cifar10-bn": CIFAR,
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "ch_ppocr_mobile_v2.0_cls_infer": (DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz"),
}
KINDS = ("real", "synthetic", "random")
WAYS: dict[str, dict[str, Any]] = {
    "--recover none": {"recover": "none"},
    "--recover none --round-to 1": {"recover": "none", "round_to": 1},
    "--recover fold": {"recover": "fold"},
    "--recover fold --round-to 1": {"recover": "fold", "round_to": 1},
    "nothing": {},
    "--round-to 1": {"round_to": 1},
    "--criterion l2-in": {"criterion": "l2-in"},
    "--data synthetic": {"data": "synthetic"},
}


def accuracy(path: Path, test: Path, limit: int | None = None) -> float:
    found = evaluate(path, options=EvaluateOptions(data=DataOptions(str(test), limit=limit), latency=False))
    return float(found.to_json()["models"][0]["metrics"]["accuracy"])


def random_file(model: Path, like: Path, samples: int, folder: Path) -> Path:
    """White noise of the shape of the real data."""
    spec = Session.open(model).inputs[0]
    with np.load(like) as archive:
        shape = archive[spec.name].shape[1:]
    noise = np.random.default_rng(0).standard_normal((samples, *shape), np.float32)
    np.savez(folder / "random.npz", **{spec.name: noise})
    return folder / "random.npz"


def halves(models: list[str], limit: int | None) -> None:
    """Half of the multiply-accumulates without data."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            for way, options in WAYS.items():
                start, out = time.process_time(), Path(folder) / "out.onnx"
                structured(
                    MODELS / f"{name}.onnx", macs=0.5, output=out, force=True, timing=False, threads=1, **options
                )
                spent = time.process_time() - start
                rows.append([name, way, accuracy(out, CASES[name][1], limit), spent])
                print(rows[-1], flush=True)
    show("Half of the multiply-accumulates without data", ("model", "options", "accuracy", "CPU s"), rows)


def main() -> None:
    made = parser((__doc__ or "").splitlines()[0])
    made.add_argument("what", nargs="?", choices=("oneshot", "structured"), default="oneshot")
    made.add_argument("--limit", type=int, help="test samples, of structures")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--amounts", nargs="+", type=float, default=[0.5, 0.7, 0.8])
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    made.add_argument("--samples", type=int, default=256)
    args = made.parse_args()
    if args.what == "structured":
        halves(args.models, args.limit)
        return
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            real, test = CASES[name]
            model = MODELS / f"{name}.onnx"
            rows.append([name, "", "unpruned", accuracy(model, test), ""])
            for amount in args.amounts:
                for kind in args.kinds:
                    data = {"real": str(real), "synthetic": "synthetic"}.get(kind)
                    data = data or str(random_file(model, real, args.samples, Path(folder)))
                    start = time.perf_counter()
                    oneshot(model, data=data, samples=args.samples, sparsity=amount, output=out, force=True)
                    rows.append([name, amount, kind, accuracy(out, test), time.perf_counter() - start])
                    print(rows[-1], flush=True)
    show("Calibration without data", ("model", "zeros", "data", "accuracy", "s"), rows)


if __name__ == "__main__":
    main()
