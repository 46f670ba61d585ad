"""Accuracy after one-shot pruning on at most 512 unlabelled samples, no training; beside onnxsim's, in the same run.

The accuracy is of the test data; "zeros" is measured on the saved file, over the weights that our command prunes.
Seconds are of the whole command, proof included (of the peer: of its function alone).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from common import SHARED, parser, peer, show
from onnx import numpy_helper

from prunecli import magnitude, oneshot
from prunecli.data.options import DataOptions
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
CIFAR = (DATA / "cifar10-train.npz", DATA / "cifar10-test.npz")
CASES = {
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "ch_ppocr_mobile_v2.0_cls_infer": (DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz"),
}
AMOUNTS = ("0.7", "0.8", "0.9", "2:4")
OURS = ("obs", "sparsegpt", "wanda")
PEERS = ("sparsegpt", "wanda")


def accuracy(path: Path, test: Path) -> float:
    found = evaluate(path, options=EvaluateOptions(data=DataOptions(str(test)), latency=False))
    return float(found.to_json()["models"][0]["metrics"]["accuracy"])


def zeros(path: Path, names: set[str]) -> float:
    model = onnx.load(str(path))
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    arrays |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node
               if n.op_type == "Constant" and n.attribute[0].HasField("t")}  # fmt: skip
    chosen = [arrays[name] for name in names if name in arrays]
    return 1 - sum(np.count_nonzero(a) for a in chosen) / max(sum(a.size for a in chosen), 1)


def recipe(amount: str) -> dict[str, object]:
    return {"pattern": amount} if ":" in amount else {"sparsity": float(amount)}


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--amounts", nargs="+", default=list(AMOUNTS))
    made.add_argument("--methods", nargs="*", default=list(OURS))
    made.add_argument("--peers", nargs="*", default=list(PEERS))
    made.add_argument("--samples", type=int, default=512)
    args = made.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            calibration, test = CASES[name]
            model = MODELS / f"{name}.onnx"
            rows.append([name, "unpruned", "", accuracy(model, test), 0.0, ""])
            for amount in args.amounts:
                plain = magnitude(model, output=out, force=True, verify=False, **recipe(amount))
                names = {layer.weight for layer in plain.layers}
                rows.append([name, "magnitude", amount, accuracy(out, test), zeros(out, names), ""])
                for method in args.methods:
                    start = time.perf_counter()
                    oneshot(model, data=calibration, method=method, samples=args.samples, output=out, force=True,
                            **recipe(amount))  # fmt: skip
                    seconds = time.perf_counter() - start
                    rows.append([name, method, amount, accuracy(out, test), zeros(out, names), seconds])
                    print(rows[-1], flush=True)
                for method in args.peers if args.peer_python else ():
                    told = peer(
                        args.peer_python, "onnxsim_oneshot.py", method, model, calibration, args.samples, amount, out
                    )
                    figures = (
                        [told, "", ""]
                        if isinstance(told, str)
                        else [accuracy(out, test), zeros(out, names), told["seconds"]]
                    )
                    rows.append([name, f"onnxsim {method}", amount, *figures])
                    print(rows[-1], flush=True)
    show("One-shot pruning", ("model", "method", "asked", "accuracy", "zeros", "s"), rows)


if __name__ == "__main__":
    main()
