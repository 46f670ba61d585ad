"""Makes everything in this folder: data splits and small trained models, from scikit-learn's own data sets.

    python sample_models/train.py [--output FOLDER]

The same machine makes the same bytes. Other machines sum in another order, so their weights differ in the
last digits, and their accuracies by a sample or two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from layers import Array, BatchNorm, Conv, Dense, Flatten, Graph, Pool, Relu, Residual, Sequence, Standardise
from sklearn import datasets

SEED = 20240607
Loss = Callable[[Array, Any], Array]


@dataclass(frozen=True)
class Split:
    x: Array
    labels: np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)

    digits = datasets.load_digits()
    images = (digits.data.reshape(-1, 1, 8, 8) / 16).astype(np.float16)  # sixteenths: exact in float16
    data = write_splits(folder, "digits", "image", images, digits.target, (1000, 250))
    for name, network, epochs in (("mlp", digits_mlp(), 60), ("cnn", digits_cnn(), 30)):
        train(network, data["train"], cross_entropy_gradient, epochs)
        export(folder / f"digits-{name}.onnx", network, "image", (1, 8, 8), "logits", 10)

    cancer = datasets.load_breast_cancer()
    data = write_splits(folder, "cancer", "features", cancer.data, cancer.target, (300, 100))
    write_csv(folder / "cancer-test.csv", data["test"], cancer.feature_names)
    network = table_mlp(data["train"].x, 64, 32, 2)
    train(network, data["train"], cross_entropy_gradient, 60)
    export(folder / "cancer-mlp.onnx", network, "features", (30,), "logits", 2)

    diabetes = datasets.load_diabetes(scaled=False)
    data = write_splits(folder, "diabetes", "features", diabetes.data, diabetes.target, (250, 60))
    network = table_mlp(data["train"].x, 32, 16, 1)
    train_regression(network, data["train"], 40)
    export(folder / "diabetes-mlp.onnx", network, "features", (10,), "progression", 1)


def write_splits(folder: Path, name: str, key: str, x: Any, labels: Any, sizes: tuple[int, int]) -> dict[str, Split]:
    """Shuffle once, cut into train, calib and test (the rest), and write each as FOLDER/NAME-SPLIT.npz."""
    order = np.random.default_rng(SEED).permutation(len(x))
    parts = dict(zip(("train", "calib", "test"), np.split(order, np.cumsum(sizes)), strict=True))
    stored = x if x.dtype == np.float16 else x.astype(np.float32)
    stored_labels = labels.astype(np.int64 if np.issubdtype(labels.dtype, np.integer) else np.float32)
    for part, rows in parts.items():
        arrays = {key: stored[rows], "labels": stored_labels[rows]}
        np.savez_compressed(folder / f"{name}-{part}.npz", **arrays)
    return {part: Split(stored[rows].astype(np.float32), stored_labels[rows]) for part, rows in parts.items()}


def write_csv(path: Path, split: Split, names: Any) -> None:
    lines = [",".join([*(str(name).replace(" ", "_") for name in names), "benign"])]
    lines += [
        ",".join([*(f"{value:.9g}" for value in row), str(label)])
        for row, label in zip(split.x, split.labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


def digits_mlp() -> Sequence:
    rng = np.random.default_rng(SEED)
    return Sequence(
        Flatten(),
        Dense("fc1", 64, 256, rng),
        Relu("relu1"),
        Dense("fc2", 256, 128, rng),
        Relu("relu2"),
        Dense("fc3", 128, 10, rng),
    )


def digits_cnn() -> Sequence:
    rng = np.random.default_rng(SEED)

    def block(name: str, channels: int) -> Residual:
        return Residual(
            f"{name}.add",
            Conv(f"{name}.conv1", channels, channels, rng),
            BatchNorm(f"{name}.bn1", channels),
            Relu(f"{name}.relu1"),
            Conv(f"{name}.conv2", channels, channels, rng),
            BatchNorm(f"{name}.bn2", channels),
        )

    return Sequence(
        Conv("stem.conv", 1, 24, rng),
        BatchNorm("stem.bn", 24),
        Relu("stem.relu"),
        block("block1", 24),
        Relu("block1.relu2"),
        Conv("down.conv", 24, 48, rng, stride=2),
        BatchNorm("down.bn", 48),
        Relu("down.relu"),
        block("block2", 48),
        Relu("block2.relu2"),
        Pool(),
        Dense("fc", 48, 10, rng),
    )


def table_mlp(x: Array, first: int, second: int, outputs: int) -> Sequence:
    rng = np.random.default_rng(SEED)
    return Sequence(
        Standardise(x),
        Dense("fc1", x.shape[1], first, rng),
        Relu("relu1"),
        Dense("fc2", first, second, rng),
        Relu("relu2"),
        Dense("fc3", second, outputs, rng),
    )


def cross_entropy_gradient(logits: Array, labels: Any) -> Array:
    """d/dlogits of the mean of -log softmax(logits)[label]."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    weights[np.arange(len(labels)), labels] -= 1
    return weights / np.float32(len(labels))


def squared_error_gradient(y: Array, targets: Any) -> Array:
    """d/dy of half the mean squared error."""
    return (y - targets[:, None]) / np.float32(len(targets))


def train_regression(network: Sequence, data: Split, epochs: int) -> None:
    """Train on standardised targets, then fold their scale and mean into the last layer.

    The last layer starts small: so little data cannot unlearn a random function of its size.
    """
    network.layers[-1].weight.value *= np.float32(0.1)
    mean, scale = data.labels.mean(), data.labels.std()
    train(network, Split(data.x, (data.labels - mean) / scale), squared_error_gradient, epochs)
    last = network.layers[-1]
    last.weight.value *= scale
    last.bias.value[:] = last.bias.value * scale + mean


def train(network: Sequence, data: Split, loss_gradient: Loss, epochs: int, batch: int = 50) -> None:
    """Adam with decoupled weight decay and a cosine schedule."""
    rng = np.random.default_rng(SEED)
    steps = epochs * (len(data.x) // batch)
    for step in range(steps):
        if step % (len(data.x) // batch) == 0:
            order = rng.permutation(len(data.x))
        rows = order[(step * batch) % len(order) :][:batch]
        network.backward(loss_gradient(network.forward(data.x[rows], True), data.labels[rows]))
        adam(network, step + 1, 2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps)))


def adam(network: Sequence, step: int, rate: float, decay: float = 0.05) -> None:
    """One step with Adam's usual constants: 0.9, 0.999, 1e-8."""
    for parameter in network.parameters():
        first, second = parameter.moments
        first += 0.1 * (parameter.grad - first)
        second += 0.001 * (parameter.grad**2 - second)
        update = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        shrink = decay * parameter.value if parameter.decay else 0
        parameter.value -= np.float32(rate) * (update + shrink)


def export(path: Path, network: Sequence, x: str, shape: tuple[int, ...], y: str, width: int) -> None:
    """Write the network as ONNX with a dynamic batch; opset 17 is read by every current runtime."""
    graph = Graph()
    network.emit(graph, x)
    graph.nodes[-1].output[0] = y
    float32 = onnx.TensorProto.FLOAT
    proto = onnx.helper.make_graph(
        graph.nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info(x, float32, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info(y, float32, ["batch", width])],
        graph.initializers,
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(proto, opset_imports=[opset], ir_version=8, producer_name="sample_models")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
