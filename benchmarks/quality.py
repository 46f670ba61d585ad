"""Accuracy of the CIFAR-10 ResNets after a cut, without any recovery, at equal MACs; beside the peers.

Scores that need data see 512 training images, the accuracy is of the test images. onnxsim takes a sparsity, so its
figure is at the sparsity (of 0.05 steps) whose MACs come closest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from common import SHARED, onnxsim_cut, parser, peer, show

from prunecli import structured
from prunecli.data.options import DataOptions
from prunecli.structures.normalisers import NORMALISERS

TRAIN, TEST = SHARED / "data" / "cifar10-train.npz", SHARED / "data" / "cifar10-test.npz"
MODELS = SHARED / "models" / "real"
TARGETS = (0.7, 0.5)
CRITERIA = ("activation", "l2-in", "l2", "l1", "lamp", "fpgm", "random")


def accuracy(path: Path) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(TEST) as file:
        images, labels = file["image"].astype(np.float32), file["labels"]
    found = [session.run(None, {name: images[i : i + 250]})[0].argmax(1) for i in range(0, len(images), 250)]
    return float((np.concatenate(found) == labels).mean())


def ours(model: str, target: float, folder: Path, **chosen: str) -> float:
    data = DataOptions(str(TRAIN), limit=512) if chosen.get("criterion") in ("activation", None) else None
    out = folder / "ours.onnx"
    structured(MODELS / f"{model}.onnx", macs=target, data=data, output=out, force=True, recover="none", **chosen)
    return accuracy(out)


def onnxsim(python: str | None, model: str, target: float, folder: Path, wanda: bool) -> str:
    out = folder / "peer.onnx"
    share = onnxsim_cut(python, MODELS / f"{model}.onnx", target, out, wanda=TRAIN if wanda else None)
    return share if isinstance(share, str) else f"{accuracy(out):.3f} at {share:.2f}"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--normalize", action="store_true", help="every criterion with every --normalize")
    args = options.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder, peer_file = Path(name), Path(name) / "torch-pruning.onnx"
        columns = [(model, target) for model in ("resnet20-cifar10", "resnet56-cifar10") for target in TARGETS]
        for criterion in CRITERIA:
            for normalize in NORMALISERS if args.normalize else ("share",):
                chosen = {"criterion": criterion, "normalize": normalize}
                rows.append([f"{criterion}, {normalize}", *(ours(m, t, folder, **chosen) for m, t in columns)])
                print(rows[-1], flush=True)
        for importance in ("l2", "bn-scale", "lamp", "taylor") if args.peer_python else ():
            cells: list[object] = []
            for model, target in columns:
                data = ["--calib", TRAIN] if importance == "taylor" else []
                done = peer(args.peer_python, "torch_pruning_resnet.py", MODELS / f"{model}-bn.onnx", target,
                            importance, peer_file, *data)  # fmt: skip
                cells.append(done if isinstance(done, str) else f"{accuracy(peer_file):.3f} at {done['macs']:.2f}")
            rows.append([f"Torch-Pruning 1.6.1, {importance}", *cells])
            print(rows[-1], flush=True)
        for wanda in (False, True) if args.peer_python else ():
            cells = [onnxsim(args.peer_python, m, t, folder, wanda) for m, t in columns]
            rows.append([f"onnxsim 0.8.1{', Wanda' if wanda else ''}", *cells])
            print(rows[-1], flush=True)
    show("Accuracy without recovery", ("criterion", *(f"{m[:8]} at {t}" for m, t in columns)), rows)


if __name__ == "__main__":
    main()
