"""Accuracy of the CIFAR-10 ResNets cut to half of their work and then trained, beside Torch-Pruning and PyTorch.

Everything trains on the same 6,000 images, a tenth of them held out to choose the best epoch, at the same batch size,
with mirrored images; the accuracy is of the 3,000 test images, which nothing is chosen by. Ours takes the defaults of
`prune structured --macs 0.5 --data TRAIN --limit 512 --finetune-epochs N --augment flip`, also in five steps;
the peer the better of two learning rates on the held-out images.
"""

from __future__ import annotations

import itertools
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from common import SHARED, parser, peer, show
from quality import accuracy

from prunecli import structured
from prunecli.data.options import DataOptions

TRAIN, MODELS = SHARED / "data" / "cifar10-train.npz", SHARED / "models" / "real"
PEERS: dict[str, tuple[str, ...]] = {"taylor": ("taylor",), "l2-local": ("l2", "--local")}
FORMS = {"folded": "", "BatchNorm": "-bn"}


def ours(model: str, epochs: int, teacher: bool, folder: Path, steps: int, args: Namespace) -> tuple[float, float]:
    """(accuracy, seconds of an epoch)."""
    out = folder / "ours.onnx"
    retrain = {"steps": steps, "teacher": None if teacher else "none", "train_data": TRAIN, "augment": "flip",
               "finetune_epochs": epochs // steps, "threads": args.threads}  # fmt: skip
    found = structured(MODELS / f"{model}.onnx", macs=0.5, data=DataOptions(str(TRAIN), limit=512), output=out,
                       **retrain, force=True, criterion=args.criterion)  # fmt: skip
    assert found.training is not None
    seconds = [epoch.seconds for one in found.training.rounds for epoch in one.trained.epochs]
    return accuracy(out), sum(seconds) / len(seconds)


def theirs(model: str, name: str, epochs: int, teacher: bool, folder: Path, args: Namespace) -> tuple[object, object]:
    out, (importance, *extra) = folder / "theirs.onnx", PEERS[name]
    done = peer(args.peer_python, "torch_finetune.py", MODELS / f"{model}-bn.onnx", 0.5, importance, out, "--data",
                TRAIN, "--epochs", epochs, "--threads", args.threads, *extra, *(["--teacher"] if teacher else []),
                timeout=7200)  # fmt: skip
    return (done, "") if isinstance(done, str) else (accuracy(out), done["seconds"])


def rows_of(model: str, epochs: int, teacher: bool, folder: Path, args: Namespace) -> Iterator[list[object]]:
    told = "teacher" if teacher else "labels"
    for form in args.forms if not args.skip_ours else ():
        for steps in [s for s in args.steps if epochs % s == 0]:
            found = ours(model + FORMS[form], epochs, teacher, folder, steps, args)
            yield [model, f"prune, {form}", steps, epochs, told, *found]
    for name in args.peers if args.peer_python else ():
        yield [model, f"Torch-Pruning, {name}", 1, epochs, told, *theirs(model, name, epochs, teacher, folder, args)]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=["resnet20-cifar10", "resnet56-cifar10"])
    options.add_argument("--skip-ours", action="store_true")
    options.add_argument("--steps", type=int, nargs="+", default=[1, 5], help="cuts; the epochs are divided among them")
    options.add_argument("--criterion", default="auto")
    options.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    options.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    options.add_argument("--epochs", type=int, nargs="+", default=[1, 5])
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        for model in args.models:
            rows.append([model, "unpruned", "", "", "", accuracy(MODELS / f"{model}.onnx"), ""])
            for epochs, teacher in itertools.product(args.epochs, (True, False)):
                for row in rows_of(model, epochs, teacher, Path(name), args):
                    print(row, flush=True)
                    rows.append(row)
    show("Recovery", ("model", "by", "cuts", "epochs", "from", "accuracy", "s per epoch"), rows)


if __name__ == "__main__":
    main()
