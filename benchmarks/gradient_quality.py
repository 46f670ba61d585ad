"""Accuracy after zeroing weights by gradients and by magnitude, at equal sparsity, without any recovery.

256 unlabelled samples of the calibration data; the accuracy is of the test data. Magnitude at its better scope.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import SHARED, parser, show

from prunecli import gradient, magnitude
from prunecli.data.options import DataOptions
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions
from prunecli.masks.criteria import element_names

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
CIFAR = (DATA / "cifar10-train.npz", DATA / "cifar10-test.npz")
CASES = {
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "ch_ppocr_mobile_v2.0_cls_infer": (DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz"),
}
SPARSITIES = (0.5, 0.7, 0.8, 0.9)


def accuracy(path: Path, test: Path) -> float:
    found = evaluate(path, options=EvaluateOptions(data=DataOptions(str(test)), latency=False))
    return float(found.to_json()["models"][0]["metrics"]["accuracy"])


def by_magnitude(model: Path, sparsity: float, test: Path, out: Path) -> float:
    found = []
    for scope in ("layer", "global"):
        magnitude(model, sparsity=sparsity, scope=scope, output=out, force=True, verify=False)
        found.append(accuracy(out, test))
    return max(found)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument(
        "--criteria",
        nargs="+",
        default=element_names(lambda evidence: evidence is not None and evidence.differentiates),
    )
    args = made.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            calibration, test = CASES[name]
            model = MODELS / f"{name}.onnx"
            rows.append([name, "magnitude", *(by_magnitude(model, s, test, out) for s in SPARSITIES), ""])
            print(rows[-1], flush=True)
            for criterion in args.criteria:
                start, figures = time.perf_counter(), []
                for sparsity in SPARSITIES:
                    gradient(model, data=calibration, sparsity=sparsity, criterion=criterion, output=out, force=True)
                    figures.append(accuracy(out, test))
                rows.append([name, criterion, *figures, (time.perf_counter() - start) / len(SPARSITIES)])
                print(rows[-1], flush=True)
    show("Zeros by gradients", ("model", "criterion", *(f"{s:.0%}" for s in SPARSITIES), "s"), rows)


if __name__ == "__main__":
    main()
