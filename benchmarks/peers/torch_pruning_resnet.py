"""Run by the peers' Python: a CIFAR ResNet cut by Torch-Pruning to a share of its MACs, saved as ONNX.

    python torch_pruning_resnet.py MODEL-bn.onnx MACS IMPORTANCE OUTPUT.onnx [--calib DATA.npz] [--local]
        [--recalibrate]

The initializers of MODEL-bn.onnx are the state dict of the network built here. The pruning ratio that comes
closest to the MACs is found by bisection, as Torch-Pruning takes ratios only. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import warnings

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

IMPORTANCES = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "bn-scale": lambda: tp.importance.BNScaleImportance(),
    "lamp": lambda: tp.importance.LAMPImportance(p=2),
    "fpgm": lambda: tp.importance.FPGMImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
    "hessian": lambda: tp.importance.GroupHessianImportance(),
    "random": lambda: tp.importance.RandomImportance(),
}


class Shortcut(nn.Module):
    """Option A: every other pixel, zero channels on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if before == width else Shortcut(width - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        stages = [
            [Block(before if i == 0 else width, width) for i in range(blocks)]
            for before, width in itertools.pairwise(widths)
        ]
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*s) for s in stages)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def twin(path: str) -> ResNet:
    state = {t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer}
    blocks = len({k.split(".")[1] for k in state if k.startswith("layer1.")})
    model = ResNet(blocks)
    missing = model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()}, strict=False)
    absent = [k for k in missing.missing_keys if "num_batches_tracked" not in k]
    if absent:
        raise SystemExit(f"{path} has no {absent[0]}")
    return model.eval()


def accumulate(model: nn.Module, pruner: tp.BasePruner, args: argparse.Namespace) -> None:
    """Gradients for the criteria that read them, over the calibration images."""
    data = np.load(args.calib)
    images = torch.tensor(data["image"][: args.samples].astype(np.float32))
    labels = torch.tensor(data["labels"][: args.samples].astype(np.int64))
    model.zero_grad()
    for start in range(0, len(images), 100):
        logits = model(images[start : start + 100])
        target = labels[start : start + 100]
        if args.importance == "hessian":
            pruner.importance.zero_grad()
            for loss in functional.cross_entropy(logits, target, reduction="none"):
                model.zero_grad()
                loss.backward(retain_graph=True)
                pruner.importance.accumulate_grad(model)
        else:
            functional.cross_entropy(logits, target).backward()


def prune(original: ResNet, ratio: float, args: argparse.Namespace) -> ResNet:
    model = copy.deepcopy(original)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(1, 3, 32, 32), importance=IMPORTANCES[args.importance](), pruning_ratio=ratio,
        global_pruning=not args.local, ignored_layers=[model.linear],
    )  # fmt: skip
    if args.importance in ("taylor", "hessian"):
        accumulate(model, pruner, args)
    pruner.step()
    return model


def recalibrate(model: nn.Module, args: argparse.Namespace) -> None:
    """BatchNorm statistics anew, over the calibration images."""
    images = torch.tensor(np.load(args.calib)["image"][: args.samples].astype(np.float32))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
    model.train()
    with torch.no_grad():
        for start in range(0, len(images), 64):
            model(images[start : start + 64])
    model.eval()


def macs_of(model: nn.Module) -> float:
    return float(tp.utils.count_ops_and_params(model, torch.randn(1, 3, 32, 32))[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("macs", type=float)
    parser.add_argument("importance", choices=IMPORTANCES)
    parser.add_argument("output")
    parser.add_argument("--calib")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--recalibrate", action="store_true", help="re-estimate BatchNorm on --calib")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    original = twin(args.model)
    whole = macs_of(original)
    low, high, best = 0.0, 1.0, (9.0, original, 0.0)
    for _ in range(9 if args.importance != "hessian" else 6):
        ratio = (low + high) / 2
        model = prune(original, ratio, args)
        share = macs_of(model) / whole
        best = min(best, (abs(share - args.macs), model, ratio), key=lambda b: b[0])
        low, high = (ratio, high) if share > args.macs else (low, ratio)
    if args.recalibrate:
        recalibrate(best[1], args)
    torch.onnx.export(
        best[1].eval(), (torch.randn(1, 3, 32, 32),), args.output, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    print(json.dumps({"macs": macs_of(best[1]) / whole, "ratio": best[2]}))


if __name__ == "__main__":
    main()
