"""Makes everything in this folder: data splits and small models, from scikit-learn's own data sets.

    python sample_models/train.py [--output FOLDER]

The models start from random weights and are trained by prunecli itself. The same machine makes the same bytes. Other
machines sum in another order, so their weights differ in the last digits, and their accuracies by a sample or two.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from layers import Array, Layer, batch_norm, build, conv, dense, flatten, pool, relu, residual, sequence, standardise
from onnx import numpy_helper
from sklearn import datasets

import prunecli

SEED = 20240607


@dataclass(frozen=True)
class Split:
    x: Array
    labels: Array


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)

    digits = datasets.load_digits()
    images = (digits.data.reshape(-1, 1, 8, 8) / 16).astype(np.float16)  # sixteenths: exact in float16
    data = write_splits(folder, "digits", "image", images, digits.target, (1000, 250))
    for name, network, epochs in (("digits-mlp", digits_mlp(), 60), ("digits-cnn", digits_cnn(), 30)):
        model = build(network, SEED, name, "image", (1, 8, 8), "logits", 10)
        save(folder, name, train(model, data["train"], epochs))

    cancer = datasets.load_breast_cancer()
    data = write_splits(folder, "cancer", "features", cancer.data, cancer.target, (300, 100))
    write_csv(folder / "cancer-test.csv", data["test"], cancer.feature_names)
    network = table_mlp(data["train"].x, 64, 32, 2)
    model = build(network, SEED, "cancer-mlp", "features", (30,), "logits", 2)
    save(folder, "cancer-mlp", train(model, data["train"], 60))

    diabetes = datasets.load_diabetes(scaled=False)
    data = write_splits(folder, "diabetes", "features", diabetes.data, diabetes.target, (250, 60))
    network = table_mlp(data["train"].x, 32, 16, 1, last=0.1)  # so little data cannot unlearn a random function
    model = build(network, SEED, "diabetes-mlp", "features", (10,), "progression", 1)
    save(folder, "diabetes-mlp", train_regression(model, data["train"], 40))


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


def digits_mlp() -> Layer:
    first, second = dense("fc1", 64, 256), dense("fc2", 256, 128)
    return sequence(flatten(), first, relu("relu1"), second, relu("relu2"), dense("fc3", 128, 10))


def digits_cnn() -> Layer:
    def block(name: str, channels: int) -> Layer:
        return residual(
            f"{name}.add",
            conv(f"{name}.conv1", channels, channels),
            batch_norm(f"{name}.bn1", channels),
            relu(f"{name}.relu1"),
            conv(f"{name}.conv2", channels, channels),
            batch_norm(f"{name}.bn2", channels),
        )

    return sequence(
        conv("stem.conv", 1, 24),
        batch_norm("stem.bn", 24),
        relu("stem.relu"),
        block("block1", 24),
        relu("block1.relu2"),
        conv("down.conv", 24, 48, stride=2),
        batch_norm("down.bn", 48),
        relu("down.relu"),
        block("block2", 48),
        relu("block2.relu2"),
        pool(),
        dense("fc", 48, 10),
    )


def table_mlp(x: Array, first: int, second: int, outputs: int, last: float = 1.0) -> Layer:
    return sequence(
        standardise(x),
        dense("fc1", x.shape[1], first),
        relu("relu1"),
        dense("fc2", first, second),
        relu("relu2"),
        dense("fc3", second, outputs, last),
    )


def train(model: onnx.ModelProto, data: Split, epochs: int) -> onnx.ModelProto:
    """AdamW with a cosine schedule, by `prunecli.finetune`; nothing is held out, the last weights stay."""
    frozen = [t.name for t in model.graph.initializer if t.name.startswith("features.")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(model, folder / "start.onnx")
        np.savez(folder / "data.npz", **{model.graph.input[0].name: data.x, "labels": data.labels})
        prunecli.finetune(
            folder / "start.onnx", data=folder / "data.npz", output=folder / "trained.onnx", epochs=epochs,
            batch_size=50, optimizer="adamw", rate=2e-3, weight_decay=0.05, val_split=0.0, warmup=0.0, bn="update",
            freeze=frozen, seed=SEED, threads=1,
        )  # fmt: skip
        trained = onnx.load(folder / "trained.onnx")
    model.graph.CopyFrom(trained.graph)
    return model


def train_regression(model: onnx.ModelProto, data: Split, epochs: int) -> onnx.ModelProto:
    """Train on standardised targets, then fold their scale and mean into the last layer."""
    mean, scale = data.labels.mean(), data.labels.std()
    model = train(model, Split(data.x, ((data.labels - mean) / scale)[:, None]), epochs)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("fc3."):
            value = numpy_helper.to_array(tensor) * scale + (mean if tensor.name == "fc3.bias" else 0)
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model


def save(folder: Path, name: str, model: onnx.ModelProto) -> None:
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
