"""The networks of `gradients.py` as PyTorch modules, the ONNX files made from them, and one training step of each."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CLASSES = 10


def conv(cin: int, cout: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    plain = nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(cout))


class Block(nn.Module):
    """Residual: relu(body(x) + short(x)), or without the last relu."""

    def __init__(self, body: nn.Module, short: nn.Module | None, last: bool = True) -> None:
        super().__init__()
        self.body, self.short, self.last = body, short, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y + x if self.short is None else y + self.short(x)
        return F.relu(y) if self.last else y


def basic(cin: int, cout: int, stride: int = 1) -> Block:
    body = nn.Sequential(conv(cin, cout, 3, stride), nn.ReLU(), conv(cout, cout))
    return Block(body, None if cin == cout and stride == 1 else conv(cin, cout, 1, stride))


def bottleneck(cin: int, inner: int, cout: int, stride: int = 1) -> Block:
    body = nn.Sequential(conv(cin, inner, 1), nn.ReLU(), conv(inner, inner, 3, stride), nn.ReLU(), conv(inner, cout, 1))
    return Block(body, None if cin == cout and stride == 1 else conv(cin, cout, 1, stride))


def inverted(cin: int, cout: int, stride: int = 1) -> nn.Module:
    wide = 6 * cin
    depthwise = conv(wide, wide, 3, stride, wide)
    body = nn.Sequential(conv(cin, wide, 1), nn.ReLU6(), depthwise, nn.ReLU6(), conv(wide, cout, 1))
    return Block(body, None, last=False) if cin == cout and stride == 1 else body


class Layer(nn.Module):
    """A transformer layer, normalised before each part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        h = self.norm1(x)
        q, k, v = (p(h).view(n, length, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def headed(width: int, *parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def resnet20() -> nn.Module:
    blocks = [basic(16, 16) for _ in range(3)]
    for width in (32, 64):
        blocks += [basic(width // 2, width, 2), basic(width, width), basic(width, width)]
    return headed(64, conv(3, 16), nn.ReLU(), *blocks)


class Classifier(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.norm, self.head = body, nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).mean(1))


# name -> (network, input shape)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (resnet20, (64, 3, 32, 32)),
    "basic blocks": (lambda: headed(64, basic(64, 64), basic(64, 64)), (8, 64, 56, 56)),
    "basic blocks, stride 2": (lambda: headed(128, basic(64, 128, 2), basic(128, 128)), (8, 64, 56, 56)),
    "bottlenecks": (lambda: headed(256, bottleneck(256, 64, 256), bottleneck(256, 64, 256)), (8, 256, 56, 56)),
    "bottlenecks, stride 2": (
        lambda: headed(512, bottleneck(256, 128, 512, 2), bottleneck(512, 128, 512)), (8, 256, 56, 56)),
    "MobileNetV2 blocks": (lambda: headed(24, inverted(24, 24), inverted(24, 24)), (8, 24, 56, 56)),
    "MobileNetV2 blocks, stride 2": (lambda: headed(64, inverted(32, 64, 2), inverted(64, 64)), (8, 32, 28, 28)),
    "transformer": (lambda: Classifier(nn.Sequential(*(Layer(256, 4) for _ in range(4))), 256), (8, 128, 256)),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, Tensor]:
    """In training mode, with an input."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    return make().train(), torch.randn(shape)


def labels(name: str) -> Tensor:
    return torch.randint(0, CLASSES, (NETS[name][1][0],), generator=torch.Generator().manual_seed(1))


def export(name: str, path: Path) -> None:
    """The network as ONNX for a batch of any size, which training takes apart, nothing folded."""
    net, x = network(name)
    training = torch.onnx.TrainingMode.TRAINING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=False, training=training, do_constant_folding=False,
                          opset_version=20, input_names=["x"], output_names=["logits"],
                          dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}})  # fmt: skip


def step(name: str) -> tuple[nn.Module, Callable[[], float]]:
    """The network, and one step: loss, and the gradient of every parameter in `.grad`."""
    net, x = network(name)
    target = labels(name)

    def run() -> float:
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x), target)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss)

    return net, run


def exact_gradients(name: str) -> dict[str, Any]:
    """The gradients in float64, as arrays."""
    net, x = network(name)
    net = net.double()
    F.cross_entropy(net(x.double()), labels(name)).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None}


def peak_kilobytes() -> int:
    """Of this program alone: what getrusage tells begins with the memory of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Prints the memory of a few steps: peak, and how much of it is over what the imports took."""
    options = argparse.ArgumentParser()
    options.add_argument("name", choices=NETS)
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    before = peak_kilobytes()
    _, run = step(args.name)
    for _ in range(5):
        run()
    peak = peak_kilobytes()
    print(json.dumps({"peak": peak / 1e3, "grown": (peak - before) / 1e3}))


if __name__ == "__main__":
    main()
