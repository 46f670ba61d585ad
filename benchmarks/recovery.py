"""Accuracy of the CIFAR-10 ResNets cut to half of their work and then trained, beside Torch-Pruning and PyTorch.

Everything trains on the same 6,000 images, a tenth of them held out to choose the best epoch, at the same batch size,
with mirrored images; the accuracy is of the 3,000 test images, which nothing is chosen by. Ours takes the defaults of
`prune structured --macs 0.5 --finetune-epochs N`; the peer the better of two learning rates on the held-out images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import SHARED, parser, peer, show
from quality import accuracy

from prunecli import structured
from prunecli.pipeline.evaluate import DataOptions
from prunecli.pipeline.gradual import Retrain

TRAIN, MODELS = SHARED / "data" / "cifar10-train.npz", SHARED / "models" / "real"
EPOCHS = (1, 5)
PEERS = (("taylor", ()), ("l2", ("--local",)))


def ours(model: str, epochs: int, teacher: bool, folder: Path, steps: int, threads: int) -> tuple[float, float]:
    """(accuracy, seconds of an epoch)."""
    out = folder / "ours.onnx"
    retrain = Retrain.of(steps, teacher, data=TRAIN, epochs=epochs // steps, augment="flip", threads=threads)
    found = structured(MODELS / f"{model}.onnx", macs=0.5, data=DataOptions(str(TRAIN), limit=512), output=out,
                       retrain=retrain, force=True)  # fmt: skip
    assert found.training is not None
    seconds = [epoch.seconds for one in found.training.rounds for epoch in one.trained.epochs]
    return accuracy(out), sum(seconds) / len(seconds)


def theirs(python: str, model: str, importance: str, extra: tuple[str, ...], epochs: int, teacher: bool,
           folder: Path, threads: int) -> tuple[object, object]:  # fmt: skip
    out = folder / "theirs.onnx"
    done = peer(python, "torch_finetune.py", MODELS / f"{model}-bn.onnx", 0.5, importance, out, "--data", TRAIN,
                "--epochs", epochs, "--threads", threads, *extra, *(["--teacher"] if teacher else []),
                timeout=3600)  # fmt: skip
    return (done, "") if isinstance(done, str) else (accuracy(out), done["seconds"])


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=["resnet20-cifar10", "resnet56-cifar10"])
    options.add_argument("--skip-ours", action="store_true")
    options.add_argument("--steps", type=int, default=1, help="cuts, the epochs divided among them")
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        for model in args.models:
            rows.append([model, "unpruned", "", "", accuracy(MODELS / f"{model}.onnx"), ""])
            for epochs in [e for e in EPOCHS if e >= args.steps]:
                for teacher in (True, False):
                    told = "teacher" if teacher else "labels"
                    for form, title in (("", "folded"), ("-bn", "BatchNorm")) if not args.skip_ours else ():
                        found = ours(model + form, epochs, teacher, Path(name), args.steps, args.threads)
                        rows.append([model, f"prune, {title}", epochs, told, *found])
                        print(rows[-1], flush=True)
                    for importance, extra in PEERS if args.peer_python else ():
                        found = theirs(args.peer_python, model, importance, extra, epochs, teacher, Path(name),
                                       args.threads)  # fmt: skip
                        rows.append([model, f"Torch-Pruning {' '.join((importance, *extra))}", epochs, told, *found])
                        print(rows[-1], flush=True)
    show("Recovery", ("model", "by", "epochs", "from", "accuracy", "s per epoch"), rows)


if __name__ == "__main__":
    main()
