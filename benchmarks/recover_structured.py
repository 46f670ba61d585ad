"""Accuracy after a structured cut to half of the MACs and recovery without labels or training; beside the peers.

    python benchmarks/recover_structured.py [--models NAME ...] [--criteria NAME ...] [--peer-python PYTHON]

At most 512 unlabelled calibration samples, accuracy of the test data. Each criterion decides once; its plan is then
replayed with every `--recover`. Torch-Pruning's BatchNorms are re-estimated on the same images.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from common import SHARED, parser, peer, show

from prunecli import structured
from prunecli.data.options import DataOptions

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
SAMPLES, HALF = 512, 0.5
METHODS = ("none", "bias", "bn", "lstsq", "auto")


@dataclass(frozen=True)
class Subject:
    """`twin`: the file from which the peer builds its network."""

    name: str
    path: Path
    calibration: Path
    test: Path
    twin: Path | None = None


SUBJECTS = [
    *(Subject(f"ResNet-{n}", MODELS / f"resnet{n}-cifar10.onnx", DATA / "cifar10-train.npz", DATA / "cifar10-test.npz",
              MODELS / f"resnet{n}-cifar10-bn.onnx") for n in (20, 56)),
    Subject("OCR classifier", MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx", DATA / "ocr-cls-calib.npz",
            DATA / "ocr-cls-test.npz"),
]  # fmt: skip


def accuracy(path: Path, test: Path) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(test) as file:
        images, labels = file[name], file["labels"]
    parts = (images[i : i + 200].astype(np.float32) for i in range(0, len(images), 200))
    return float((np.concatenate([session.run(None, {name: x})[0].argmax(1) for x in parts]) == labels).mean())


def ours(subject: Subject, criterion: str, folder: Path) -> list[list[object]]:
    """A row per method: accuracy, seconds of deciding and of recovery."""
    data, plan, out = DataOptions(str(subject.calibration), limit=SAMPLES), folder / "plan.json", folder / "cut.onnx"
    start = time.perf_counter()
    structured(subject.path, macs=HALF, data=data, criterion=criterion, recover="none", output=out, force=True,
               save_plan=plan)  # fmt: skip
    decided, rows = time.perf_counter() - start, []
    for method in METHODS:
        start = time.perf_counter()
        found = structured(subject.path, plan=plan, data=data, recover=method, output=out, force=True)
        error = found.recovery.error_after if found.recovery is not None else float("nan")
        row = [subject.name, criterion, method, f"{accuracy(out, subject.test):.3f}", error,
               f"{decided:.0f} + {time.perf_counter() - start:.0f}"]  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def peers(python: str, subject: Subject, folder: Path) -> list[list[object]]:
    if subject.twin is None:
        return []
    rows = []
    for importance in ("l2", "lamp", "taylor"):
        for recalibrated in (False, True):
            out = folder / "peer.onnx"
            more = ["--recalibrate"] if recalibrated else []
            done = peer(python, "torch_pruning_resnet.py", subject.twin, HALF, importance, out, "--calib",
                        subject.calibration, "--samples", SAMPLES, *more)  # fmt: skip
            found = done if isinstance(done, str) else f"{accuracy(out, subject.test):.3f}"
            rows.append([subject.name, f"Torch-Pruning, {importance}", "BatchNorm" if recalibrated else "none", found])
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="*", default=[subject.name for subject in SUBJECTS])
    options.add_argument("--criteria", nargs="*", default=["obs", "activation"])
    args = options.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        for subject in (s for s in SUBJECTS if s.name in args.models):
            rows.append([subject.name, "not cut", "", f"{accuracy(subject.path, subject.test):.3f}"])
            for criterion in args.criteria:
                rows += ours(subject, criterion, Path(name))
            if args.peer_python:
                rows += peers(args.peer_python, subject, Path(name))
    head = ("model", "criterion", "recovery", "accuracy", "error of the outputs (held out)", "seconds")
    show("Half the MACs, no labels, no training", head, [[*row, *[""] * (len(head) - len(row))] for row in rows])


if __name__ == "__main__":
    main()
