"""Accuracy with `--recover auto` and with `--recover distill`: at most 512 unlabelled samples, zeros and cut networks.

    python benchmarks/distill.py [--models NAME ...] [--amounts 0.9 half ...] [--options KEY=VALUE ...]

`half`: half of the multiply-accumulates (`structured`, any width); other amounts are zeros (`oneshot`). `--options` go
to the command, as `epochs=40 rate=0.002`. Seconds of CPU are of the whole command on one thread, training included.
"""

from __future__ import annotations

import ast
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, parser, show
from oneshot import Case, quality

from prunecli import oneshot, structured
from prunecli.data.options import DataOptions

DATA, MODELS, SAMPLES = SHARED / "data", SHARED / "models" / "real", 512
CIFAR = (DATA / "cifar10-train.npz", DATA / "cifar10-test.npz")
CASES = {
    "resnet20-cifar10": (*CIFAR, ("half", "0.9")),
    "resnet56-cifar10": (*CIFAR, ("half", "0.9")),
    "ch_ppocr_mobile_v2.0_cls_infer": (
        DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz", ("0.7", "0.8", "0.9", "2:4"),
    ),
}  # fmt: skip


def pruned(model: Path, amount: str, **asked: Any) -> Any:
    """The result of the command that the amount asks for."""
    if amount == "half":
        return structured(model, macs=0.5, round_to=1, timing=False, **asked)
    return oneshot(model, **({"pattern": amount} if ":" in amount else {"sparsity": float(amount)}), **asked)


def held_out(found: Any) -> str:
    """The score of held-out samples before and after training."""
    last = None if found.training is None else found.training.last
    return "" if last is None else f"{last.score_before:.2f} to {last.score_after:.2f}"


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--amounts", nargs="+")
    made.add_argument("--recover", nargs="+", default=["auto", "distill"])
    made.add_argument("--options", nargs="*", default=[])
    args = made.parse_args()
    options = {key: ast.literal_eval(value) for key, value in (text.split("=", 1) for text in args.options)}
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            calibration, test, amounts = CASES[name]
            for amount in args.amounts or amounts:
                for recover in args.recover:
                    start = time.process_time()
                    more = options if recover == "distill" else {}
                    found = pruned(MODELS / f"{name}.onnx", amount, recover=recover, output=out, force=True, threads=1,
                                   data=DataOptions(str(calibration), limit=SAMPLES), **more)  # fmt: skip
                    seconds = time.process_time() - start
                    reached = quality(out, MODELS / f"{name}.onnx", Case(calibration, test, ()))
                    rows.append([name, amount, recover, reached, held_out(found), f"{seconds:.0f}"])
                    print(rows[-1], flush=True)
    show(
        "Distillation on the calibration samples",
        ("model", "amount", "recover", "accuracy", "held out, dB", "CPU s"),
        rows,
    )


if __name__ == "__main__":
    main()
