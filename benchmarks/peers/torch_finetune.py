"""Run by the peers' Python: a CIFAR ResNet cut by Torch-Pruning and fine-tuned by PyTorch, saved as ONNX.

    python torch_finetune.py MODEL-bn.onnx MACS IMPORTANCE OUTPUT.onnx --data TRAIN.npz --epochs N [--teacher]

As `prune finetune` does by default: a tenth of the data chooses the best epoch, SGD with Nesterov momentum 0.9,
weight decay 5e-4, cosine after a warm-up. The learning rate is the best of --rates on the held-out tenth. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch_pruning_resnet import IMPORTANCES, macs_of, prune, twin

Tensors = tuple[torch.Tensor, torch.Tensor]


def cut(args: argparse.Namespace) -> tuple[nn.Module, nn.Module, float]:
    """(original, cut to the share of MACs, that share): the ratio is found by bisection."""
    original = twin(args.model)
    whole, low, high, best = macs_of(original), 0.0, 1.0, (9.0, original, 1.0)
    for _ in range(9):
        ratio = (low + high) / 2
        model = prune(original, ratio, args)
        share = macs_of(model) / whole
        best = min(best, (abs(share - args.macs), model, share), key=lambda b: b[0])
        low, high = (ratio, high) if share > args.macs else (low, ratio)
    return original, best[1], best[2]


def split(path: str) -> tuple[Tensors, Tensors]:
    with np.load(path) as file:
        images, labels = file["image"].astype(np.float32), file["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    held = len(images) // 10
    parts = order[held:], order[:held]
    first, second = ((torch.tensor(images[p]), torch.tensor(labels[p])) for p in parts)
    return first, second


def accuracy(model: nn.Module, data: Tensors) -> float:
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in data[0].split(250)])
    return float((found == data[1]).float().mean())


def loss_of(logits: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy; with a teacher half of it, and half of T^2 KL at T = 4."""
    hard = functional.cross_entropy(logits, labels)
    if told is None:
        return hard
    soft = functional.kl_div(
        (logits / 4).log_softmax(1), (told / 4).log_softmax(1), reduction="batchmean", log_target=True
    )
    return 0.5 * hard + 0.5 * 16 * soft


def train(model: nn.Module, teacher: nn.Module | None, data: Tensors, held: Tensors, rate: float,
          args: argparse.Namespace) -> tuple[float, nn.Module]:  # fmt: skip
    """(held-out accuracy, model) of the best epoch."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    steps = len(data[0]) // args.batch_size
    total, best = steps * args.epochs, (accuracy(model, held), copy.deepcopy(model))
    warm = round(0.05 * total)
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(data[0]), generator=generator)
        for step in range(steps):
            now = epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * now / total)) * min((now + 1) / (warm + 1), 1.0)
            rows = order[step * args.batch_size : (step + 1) * args.batch_size]
            images = data[0][rows]
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            with torch.no_grad():
                told = None if teacher is None else teacher(images)
            optimizer.zero_grad()
            loss_of(model(images), data[1][rows], told).backward()
            optimizer.step()
        best = max(best, (accuracy(model, held), copy.deepcopy(model)), key=lambda b: b[0])
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("macs", type=float)
    parser.add_argument("importance", choices=IMPORTANCES)
    parser.add_argument("output")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.calib = args.data
    original, model, share = cut(args)
    data, held = split(args.data)
    start = time.perf_counter()
    teacher = original.eval() if args.teacher else None
    found = [(*train(model, teacher, data, held, rate, args), rate) for rate in args.rates]
    seconds = (time.perf_counter() - start) / len(args.rates) / args.epochs
    score, tuned, rate = max(found, key=lambda f: f[0])
    torch.onnx.export(
        tuned.eval(), (torch.randn(1, 3, 32, 32),), args.output, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    print(json.dumps({"macs": share, "held": score, "rate": rate, "seconds": seconds}))


if __name__ == "__main__":
    main()
