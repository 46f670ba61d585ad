"""Quality after one-shot pruning on at most 512 unlabelled samples, no training; beside onnxsim's, in the same run.

    python benchmarks/oneshot.py [--models NAME ...] [--amounts AMOUNT ...] [--methods NAME ...] [--peer-python PYTHON]

Quality is the accuracy of the test data; of the sentence encoder the mean cosine with the original's embeddings.
"zeros" is measured on the saved file, over the weights that our command prunes. Seconds, CPU seconds and peak memory
are of the whole command in a process of its own, proof included (of the peer: seconds of its function alone).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from common import SHARED, parser, peer, show
from onnx import numpy_helper

from prunecli import magnitude
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
PIXELS = {"classes": DATA / "imagenet-classes.txt", "mean": "127", "std": "128", "scale": "1"}


@dataclass(frozen=True)
class Case:
    """`fed`: how images become inputs."""

    calibration: Path
    test: Path
    fed: dict[str, object] | None = None


CIFAR = Case(DATA / "cifar10-train.npz", DATA / "cifar10-test.npz")
CASES = {
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "ch_ppocr_mobile_v2.0_cls_infer": Case(DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz"),
    "efficientnet-lite0": Case(DATA / "imagenet-calib", DATA / "imagenet-test", PIXELS),
    "minilm-l6": Case(DATA / "sick-calib.npz", DATA / "sick-pairs.npz"),
}
AMOUNTS = ("0.5", "0.7", "0.8", "0.9", "2:4")
OURS = ("auto",)
PEERS = ("sparsegpt", "wanda")


def quality(path: Path, original: Path, case: Case) -> float:
    if case.test.name == "sick-pairs.npz":
        one, other = (embeddings(model, case.test) for model in (path, original))
        return float((one * other).sum(axis=1).mean())
    options = EvaluateOptions(data=str(case.test), latency=False, **(case.fed or {}))
    return float(evaluate(path, options=options).to_json()["models"][0]["metrics"]["accuracy"])


def embeddings(path: Path, pairs: Path, limit: int = 600) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(pairs) as data:
        given = {i.name: data[f"a_{i.name}"][:limit].astype(np.int64) for i in session.get_inputs()}
    parts = ({name: rows[at : at + 100] for name, rows in given.items()} for at in range(0, limit, 100))
    return np.concatenate([session.run(None, part)[0] for part in parts])


def zeros(path: Path, names: set[str]) -> float:
    model = onnx.load(str(path))
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    arrays |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node
               if n.op_type == "Constant" and n.attribute[0].HasField("t")}  # fmt: skip
    chosen = [arrays[name] for name in names if name in arrays]
    return 1 - sum(np.count_nonzero(a) for a in chosen) / max(sum(a.size for a in chosen), 1)


def ours(command: list[object]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and gigabytes at most of `prune`."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "prunecli", *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"prune {' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def asked(amount: str) -> list[object]:
    return ["--pattern", amount] if ":" in amount else ["--sparsity", amount]


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--amounts", nargs="+", default=list(AMOUNTS))
    made.add_argument("--methods", nargs="*", default=list(OURS))
    made.add_argument("--peers", nargs="*", default=list(PEERS))
    args = made.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            case, model = CASES[name], MODELS / f"{name}.onnx"
            fed = [text for key, value in (case.fed or {}).items() for text in (f"--{key}", value)]
            rows.append([name, "unpruned", "", quality(model, model, case), *[""] * 4])
            for amount in args.amounts:
                recipe = {"pattern": amount} if ":" in amount else {"sparsity": float(amount)}
                plain = magnitude(model, output=out, force=True, verify=False, **recipe)
                names = {layer.weight for layer in plain.layers}
                rows.append([name, "magnitude", amount, quality(out, model, case), zeros(out, names), *[""] * 3])
                for method in args.methods:
                    wanted = [*fed, *asked(amount), "--method", method, "-o", out, "--force"]
                    spent = ours(["oneshot", model, "--data", case.calibration, *wanted])
                    rows.append([name, method, amount, quality(out, model, case), zeros(out, names), *spent])
                    print(rows[-1], flush=True)
                for method in args.peers if args.peer_python and case.fed is None else ():
                    told = peer(
                        args.peer_python, "onnxsim_oneshot.py", method, model, case.calibration, 512, amount, out
                    )
                    failed = isinstance(told, str)
                    figures = [told, ""] if failed else [quality(out, model, case), zeros(out, names)]
                    rows.append(
                        [name, f"onnxsim {method}", amount, *figures, "" if failed else told["seconds"], "", ""]
                    )
                    print(rows[-1], flush=True)
    head = ("model", "method", "asked", "quality", "zeros", "s", "CPU s", "GB")
    show("One-shot pruning", head, rows)


if __name__ == "__main__":
    main()
