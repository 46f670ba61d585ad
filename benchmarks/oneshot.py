"""Quality after one-shot pruning on at most 512 unlabelled samples, no training; beside onnxsim's, in the same run.

    python benchmarks/oneshot.py [--models NAME ...] [--amounts AMOUNT ...] [--methods NAME ...] [--recover NAME ...]
                                 [--peer-python PYTHON]

Quality is the accuracy of the test data; of the sentence encoder the mean cosine with the original's embeddings of
sentences that are not among the calibration data, and Spearman's correlation (`sentence_encoder.py`). "zeros" is
measured on the saved file, over the weights that our command prunes. Seconds, CPU seconds and peak memory are of the
whole command in a process of its own, proof included (of the peer: seconds of its function alone). `--recover distill`
trains on the same samples.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from common import SHARED, line, parser, peer, show
from onnx import numpy_helper
from sentence_encoder import embeddings, held_out, relatedness

from prunecli import magnitude
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions
from prunecli.runtime import Session

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
PIXELS = {"classes": DATA / "imagenet-classes.txt", "mean": "127", "std": "128", "scale": "1"}


@dataclass(frozen=True)
class Case:
    """`amounts`: zeros that are asked for. `fed`: how images become inputs."""

    calibration: Path
    test: Path
    amounts: tuple[str, ...]
    fed: dict[str, str] = field(default_factory=dict)


CIFAR = Case(DATA / "cifar10-train.npz", DATA / "cifar10-test.npz", ("0.9",))
CASES = {
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "ch_ppocr_mobile_v2.0_cls_infer": Case(
        DATA / "ocr-cls-calib.npz", DATA / "ocr-cls-test.npz", ("0.7", "0.8", "0.9", "2:4")
    ),
    "efficientnet-lite0": Case(DATA / "imagenet-calib", DATA / "imagenet-test", ("0.5", "0.7"), PIXELS),
    "minilm-l6": Case(DATA / "sick-calib.npz", DATA / "sick-pairs.npz", ("0.5", "0.7", "2:4")),
}
SAMPLES = 512
PEERS = ("sparsegpt", "wanda")


def quality(path: Path, original: Path, case: Case) -> str:
    if case.test.name == "sick-pairs.npz":
        pairs = held_out()
        one, other = (np.concatenate([embeddings(model, pairs, side) for side in "ab"]) for model in (path, original))
        return f"{(one * other).sum(axis=1).mean():.3f}; {relatedness(path):.3f}"
    options = EvaluateOptions(data=str(case.test), latency=False, **case.fed)
    return f"{evaluate(path, options=options).to_json()['models'][0]['metrics']['accuracy']:.3f}"


def given(case: Case) -> list[object]:
    """The options that name the calibration data."""
    fed = [text for key, value in case.fed.items() for text in (f"--{key}", value)]
    return ["--data", case.calibration, *fed, "--limit", SAMPLES]


def as_arrays(model: Path, case: Case, out: Path) -> Path:
    """The calibration data as the model takes them, for peers that read no images."""
    specs = Session.open(model).inputs
    options = EvaluateOptions(data=str(case.calibration), limit=SAMPLES, **case.fed)
    data = options.source.open(specs)
    feeds = [batch.feed for batch in data.batches(1)]
    np.savez(out, **{spec.name: np.concatenate([feed[spec.name] for feed in feeds]) for spec in specs})
    return out


def zeros(path: Path, names: set[str]) -> float:
    model = onnx.load(str(path))
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    arrays |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node
               if n.op_type == "Constant" and n.attribute[0].HasField("t")}  # fmt: skip
    chosen = [arrays[name] for name in names if name in arrays]
    return 1 - sum(np.count_nonzero(a) for a in chosen) / max(sum(a.size for a in chosen), 1)


def ours(command: list[object]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and gigabytes at most of `prune`."""
    start, most = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, "-m", "prunecli", *map(str, command)], stdout=subprocess.DEVNULL)
    while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
        most = max(most, peak(child.pid))  # ru_maxrss counts what this process had when it started the other
        time.sleep(0.02)
    _, status, usage = ended
    if status:
        raise SystemExit(f"prune {' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, most / 1e6


def peak(process: int) -> int:
    """Kilobytes that a process has had in memory at most so far; 0 where it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(one.split()[1]) for one in lines if one.startswith("VmHWM")), 0)


def asked(amount: str) -> list[object]:
    return ["--pattern", amount] if ":" in amount else ["--sparsity", amount]


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--amounts", nargs="+")
    made.add_argument("--methods", nargs="*", default=["auto"])
    made.add_argument("--recover", nargs="*", default=["auto"])
    made.add_argument("--peers", nargs="*", default=list(PEERS))
    args = made.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in args.models:
            case, model = CASES[name], MODELS / f"{name}.onnx"
            rows.append([name, "unpruned", "", quality(model, model, case), *[""] * 4])
            arrays = as_arrays(model, case, Path(folder) / "given.npz") if args.peer_python else model
            for amount in args.amounts or case.amounts:
                recipe = {"pattern": amount} if ":" in amount else {"sparsity": float(amount)}
                plain = magnitude(model, output=out, force=True, verify=False, **recipe)
                names = {layer.weight for layer in plain.layers}
                rows.append([name, "magnitude", amount, quality(out, model, case), zeros(out, names), *[""] * 3])
                for method, recover in product(args.methods, args.recover):
                    wanted = [*asked(amount), "--method", method, "--recover", recover, "-o", out, "--force"]
                    spent = ours(["oneshot", model, *given(case), *wanted])
                    row = [name, f"{method}, {recover}", amount, quality(out, model, case), zeros(out, names)]
                    rows.append([*row, *spent])
                    print(line(rows[-1]), flush=True)
                for method in args.peers if args.peer_python else ():
                    told = peer(args.peer_python, "onnxsim_oneshot.py", method, model, arrays, SAMPLES, amount, out)
                    failed = isinstance(told, str)
                    figures = [told, ""] if failed else [quality(out, model, case), zeros(out, names)]
                    seconds = "" if failed else told["seconds"]
                    rows.append([name, f"onnxsim {method}", amount, *figures, seconds, "", ""])
                    print(line(rows[-1]), flush=True)
    head = ("model", "method", "asked", "quality", "zeros", "s", "CPU s", "GB")
    show("One-shot pruning", head, rows)


if __name__ == "__main__":
    main()
