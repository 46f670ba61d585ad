"""A small model and data of every kind that a guide speaks of, under the names that the guide uses.

Weights are random but for the two trained sample models: guides are run, not judged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from prunecli.arrays import Array
from tests.dependency.net import Net

SAMPLES = Path(__file__).parents[2] / "sample_models"
WORDS = 40
"""Tokens of the text models' vocabulary."""


def classifier(folder: Path) -> None:
    shutil.copy(SAMPLES / "digits-cnn.onnx", folder / "classifier.onnx")
    for split in ("calib", "train", "test"):
        shutil.copy(SAMPLES / f"digits-{split}.npz", folder / f"{split}.npz")


def tables(folder: Path) -> None:
    shutil.copy(SAMPLES / "cancer-mlp.onnx", folder / "table.onnx")
    for split in ("calib", "train"):
        shutil.copy(SAMPLES / f"cancer-{split}.npz", folder / f"{split}.npz")
    shutil.copy(SAMPLES / "cancer-test.csv", folder / "test.csv")


def _conv(n: Net, x: str, cin: int, cout: int, stride: int = 1) -> str:
    return str(n("Relu", n.conv(x, cin, cout, 3, strides=[stride] * 2, pads=[1] * 4)))


def _backbone(n: Net, x: str) -> tuple[str, str]:
    fine = _conv(n, _conv(n, x, 3, 16), 16, 32, 2)
    return fine, n("Add", fine, _conv(n, _conv(n, fine, 32, 32), 32, 32))


def detector(folder: Path) -> None:
    """(N, 3, 32, 32) -> (N, 4 + 3, 256): boxes in pixels and scores of three classes, as in the YOLO family."""
    n = Net(18, seed=1)
    _, h = _backbone(n, n.x("N", 3, 32, 32, name="images"))
    boxes = n("Reshape", n("Mul", n("Sigmoid", n.conv(h, 32, 4)), n.c(np.float32(32))), n.c([0, 4, -1]))
    scores = n("Reshape", n("Sigmoid", n.conv(h, 32, 3)), n.c([0, 3, -1]))
    _save(n.out(n("Concat", boxes, scores, axis=1)), folder / "detector.onnx", "predictions")
    _images(folder, "images")
    corners = np.random.default_rng(9).uniform(0, 16, (48, 2, 2))
    box = np.concatenate([np.ones((48, 2, 1)), corners, corners + 12], axis=2)
    np.savez(folder / "test.npz", images=np.load(folder / "test.npz")["images"], labels=box)


def segmentation(folder: Path) -> None:
    """(N, 3, 32, 32) -> (N, 4, 32, 32), scores of four classes per pixel; labels (N, 32, 32) as the model itself says,
    a tenth of them wrong."""
    n = Net(18, seed=2)
    fine, h = _backbone(n, n.x("N", 3, 32, 32, name="image"))
    up = n("Resize", n("Concat", h, fine, axis=1), "", n.c(np.float32([1, 1, 2, 2])))
    _save(n.out(n.conv(_conv(n, up, 64, 16), 16, 4)), folder / "segmentation.onnx", "classes")
    _images(folder, "image")
    rng = np.random.default_rng(8)
    for split in ("train", "test"):
        images = np.load(folder / f"{split}.npz")["image"]
        labels = _run(folder / "segmentation.onnx", {"image": images}).argmax(1)
        wrong = rng.random(labels.shape) < 0.1
        np.savez(
            folder / f"{split}.npz", image=images, labels=np.where(wrong, rng.integers(0, 4, labels.shape), labels)
        )


def _encoder(n: Net, tokens: str, seen: str, width: int = 32, heads: int = 4) -> str:
    """A transformer block over embedded tokens; `seen` is added to the logits of attention."""
    h = n("Gather", n.w(WORDS, width, name="embedding.weight"), tokens)
    q, k, v = (
        n("Transpose", n("Reshape", n.linear(h, width, width), n.c([0, 0, heads, width // heads])), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    weights = n("Softmax", n("Add", n("MatMul", q, n("Transpose", k, perm=[0, 1, 3, 2])), seen))
    mixed = n("Reshape", n("Transpose", n("MatMul", weights, v), perm=[0, 2, 1, 3]), n.c([0, 0, width]))
    h = n("Add", h, n.linear(mixed, width, width))
    return str(n("Add", h, n.linear(n("Relu", n.linear(h, width, 4 * width)), 4 * width, width)))


def embedding(folder: Path) -> None:
    """Token ids and a mask (N, T) -> (N, 32), the mean over the tokens, of length 1."""
    n = Net(18, seed=3)
    tokens, mask = n.x("N", "T", name="input_ids", limit=WORDS), n.x("N", "T", name="attention_mask", limit=2)
    kept = n("Cast", mask, to=1)
    unseen = n("Mul", n("Sub", kept, n.c(np.float32(1))), n.c(np.float32(1e4)))
    h = _encoder(n, tokens, n("Unsqueeze", unseen, n.c([1, 2])))
    total = n("ReduceSum", n("Mul", h, n("Unsqueeze", kept, n.c([2]))), n.c([1]), keepdims=0)
    _save(n.out(n("LpNormalization", total, axis=1, p=2)), folder / "encoder.onnx", "embedding")
    for split, seed in (("calib", 0), ("test", 1), ("train", 2)):
        ids, seen = _sentences(seed)
        np.savez(folder / f"{split}.npz", input_ids=ids, attention_mask=seen)
    alike = np.random.default_rng(9).random(32).repeat(2)
    np.savez(folder / "pairs.npz", **np.load(folder / "test.npz"), labels=np.stack([np.arange(64) // 2, alike], axis=1))
    np.save(folder / "used-tokens.npy", np.arange(WORDS - 10))


def language_model(folder: Path) -> None:
    """Token ids (N, T) -> logits (N, T, vocabulary)."""
    n = Net(18, seed=4)
    tokens = n.x("N", "T", name="input_ids", limit=WORDS)
    steps = n(
        "Range", n.c(np.int64(0)), n("Squeeze", n("Slice", n("Shape", tokens), n.c([1]), n.c([2]))), n.c(np.int64(1))
    )
    later = n("Less", n("Unsqueeze", steps, n.c([1])), n("Unsqueeze", steps, n.c([0])))
    h = _encoder(n, tokens, n("Mul", n("Cast", later, to=1), n.c(np.float32(-1e4))))
    _save(n.out(n("MatMul", h, n.w(32, WORDS, name="head.weight"))), folder / "lm.onnx", "logits")
    for split, seed in (("calib", 0), ("test", 1), ("train", 2)):
        ids, _ = _sentences(seed, whole=True)
        np.savez(folder / f"{split}.npz", input_ids=ids, labels=np.roll(ids, -1, axis=1))


def speech(folder: Path) -> None:
    """A window of sound (batch, 64) and a state (1, batch, 24) -> (batch, 1), whether somebody speaks, and the next state."""
    n = Net(18, seed=5)
    sound, state = n.x("batch", 64, name="sound"), n.x(1, "batch", 24, name="state")
    h = n("Relu", n.conv(n("Unsqueeze", sound, n.c([1])), 1, 16, 8, rank=1, strides=[8]))
    frames = n("Transpose", h, perm=[2, 0, 1])
    weights = n.w(1, 72, 16), n.w(1, 72, 24), n.w(1, 144)
    _, after = n("GRU", frames, *weights, "", state, outputs=2, hidden_size=24)
    score = n("Sigmoid", n.linear(n("Relu", n.linear(n("Squeeze", after, n.c([0])), 24, 32)), 32, 1))
    following = n("Identity", after)
    n.ranks[following] = 3
    _save(n.out(score, following), folder / "speech.onnx", "speech", "next_state")
    for split, seed in (("calib", 0), ("test", 1), ("train", 2)):
        rng = np.random.default_rng(seed)
        draw = rng.standard_normal((96, 64)).astype(np.float32), rng.standard_normal((1, 96, 24)).astype(np.float32)
        labels = {"labels": rng.integers(0, 2, 96)} if split == "test" else {}
        np.savez(folder / f"{split}.npz", sound=draw[0], state=np.tanh(draw[1]), **labels)


def _images(folder: Path, name: str) -> None:
    for split, seed in (("calib", 0), ("test", 1), ("train", 2)):
        rng = np.random.default_rng(seed)
        coarse = rng.random((48, 3, 8, 8)).astype(np.float32)
        np.savez(folder / f"{split}.npz", **{name: coarse.repeat(4, 2).repeat(4, 3)})


def _sentences(seed: int, whole: bool = False) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, WORDS - 10, (64, 12))
    seen = np.arange(12) < rng.integers(6, 13, (64, 1))
    return (ids if whole else ids * seen), seen.astype(np.int64)


def _save(n: Net, path: Path, *names: str) -> None:
    model = n.model()
    for given, info in zip(names, model.graph.output, strict=True):
        for node in model.graph.node:
            node.output[:] = [given if output == info.name else output for output in node.output]
            node.input[:] = [given if value == info.name else value for value in node.input]
        info.name = given
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run(path: Path, feed: dict[str, Array]) -> Array:
    import onnxruntime

    found: Array = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return found


KINDS: dict[str, Callable[[Path], None]] = {
    "classifier": classifier, "detector": detector, "segmentation": segmentation, "embedding": embedding,
    "speech": speech, "tabular": tables, "language-model": language_model,
}  # fmt: skip
"""By the name of the guide."""
