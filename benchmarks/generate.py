"""Writes models of the size of ResNet-50 and BERT-base, with random weights, as an exporter would spell them.

python benchmarks/generate.py DIRECTORY        writes resnet50.onnx (102 MB) and bert_base.onnx (438 MB)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Builder:
    """Collects nodes and weights; every method returns the name of a value."""

    def __init__(self, seed: int = 0, width: int = 768) -> None:
        self.width = width
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"node_{out}", **attributes))
        return out

    def weight(self, name: str, *shape: int) -> str:
        """Normal with variance 2 / fan-in, so that activations keep their size."""
        fan = max(int(np.prod(shape[1:])), 1)
        array = self.rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan))
        return self.constant(name, array)

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def save(self, path: Path, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> Path:
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.save(model, path)
        return path


def resnet50(path: str | Path, seed: int = 0) -> Path:
    """ResNet-50 (He et al., 2015): 25.6 M parameters, 4.1 G multiply-accumulates at 224 x 224, BatchNormalization."""
    b = Builder(seed)
    h = b.op("Relu", _conv(b, "stem", "x", 3, 64, 7, 2))
    h = b.op("MaxPool", h, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, (blocks, inner) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            h = _bottleneck(b, f"layer{stage + 1}.{block}", h, width, inner, 2 if stage and not block else 1)
            width = 4 * inner
    h = b.op("Flatten", b.op("GlobalAveragePool", h))
    b.op("Gemm", h, b.weight("fc.weight", 1000, width), b.weight("fc.bias", 1000), transB=1, name="logits")
    return b.save(Path(path), [_info("x", "batch", 3, 224, 224)], [_info("logits", "batch", 1000)])


def _conv(b: Builder, name: str, x: str, cin: int, cout: int, size: int, stride: int = 1) -> str:
    h = b.op("Conv", x, b.weight(f"{name}.weight", cout, cin, size, size), pads=[size // 2] * 4, strides=[stride] * 2)
    scale, shift, mean = (b.weight(f"{name}.bn.{part}", cout) for part in ("weight", "bias", "mean"))
    spread = b.constant(f"{name}.bn.var", b.rng.random(cout, np.float32) + np.float32(0.5))
    return b.op("BatchNormalization", h, scale, shift, mean, spread)


def _bottleneck(b: Builder, name: str, x: str, width: int, inner: int, stride: int) -> str:
    h = b.op("Relu", _conv(b, f"{name}.conv1", x, width, inner, 1))
    h = b.op("Relu", _conv(b, f"{name}.conv2", h, inner, inner, 3, stride))
    h = _conv(b, f"{name}.conv3", h, inner, 4 * inner, 1)
    short = x if width == 4 * inner else _conv(b, f"{name}.downsample", x, width, 4 * inner, 1, stride)
    return b.op("Relu", b.op("Add", h, short))


def bert_base(path: str | Path, seed: int = 0, vocabulary: int = 30522) -> Path:
    """BERT-base (Devlin et al., 2018): 12 layers of 12 heads, hidden size 768, 109 M parameters, dynamic length."""
    return _bert(path, seed, vocabulary, 768, 12)


def mini_lm(path: str | Path, seed: int = 0, vocabulary: int = 30522) -> Path:
    """The size of MiniLM-L6 (Wang et al., 2020): 6 layers of 12 heads, hidden size 384, 23 M parameters."""
    return _bert(path, seed, vocabulary, 384, 6)


def _bert(path: str | Path, seed: int, vocabulary: int, width: int, layers: int) -> Path:
    b = Builder(seed, width)
    b.constant("heads", np.array([0, 0, 12, width // 12]))
    b.constant("hidden", np.array([0, 0, width]))
    b.constant("scale", np.float32(0.125))
    words = b.op("Gather", b.weight("embeddings.word", vocabulary, width), "ids")
    length = b.op("Gather", b.op("Shape", "ids"), b.constant("one", np.array(1)))
    places = b.op("Range", b.constant("zero", np.array(0)), length, "one")
    h = _norm(b, "embeddings", b.op("Add", words, b.op("Gather", b.weight("embeddings.position", 512, width), places)))
    for layer in range(layers):
        h = _encoder(b, f"layer.{layer}", h)
    first = b.op("Gather", h, "zero", axis=1)
    pooled = b.op("Tanh", _linear(b, "pooler", first, width, width))
    b.op("Identity", _linear(b, "classifier", pooled, width, 2), name="logits")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    return b.save(Path(path), [ids], [_info("logits", "batch", 2)])


def _encoder(b: Builder, name: str, x: str) -> str:
    q, k, v = (
        b.op("Reshape", _linear(b, f"{name}.{part}", x, b.width, b.width), "heads")
        for part in ("query", "key", "value")
    )
    q, v = (b.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1])), "scale")
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    merged = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), "hidden")
    x = _norm(b, f"{name}.attention", b.op("Add", x, _linear(b, f"{name}.output", merged, b.width, b.width)))
    inner = _gelu(b, _linear(b, f"{name}.intermediate", x, b.width, 4 * b.width))
    return _norm(b, f"{name}.feed_forward", b.op("Add", x, _linear(b, f"{name}.down", inner, 4 * b.width, b.width)))


def _linear(b: Builder, name: str, x: str, cin: int, cout: int) -> str:
    weight = b.constant(f"{name}.weight", b.rng.standard_normal((cin, cout), np.float32) * np.float32(0.02))
    return b.op("Add", b.op("MatMul", x, weight), b.weight(f"{name}.bias", cout))


def _norm(b: Builder, name: str, x: str) -> str:
    scale = b.constant(f"{name}.norm.weight", np.ones(b.width, np.float32))
    shift = b.constant(f"{name}.norm.bias", np.zeros(b.width, np.float32))
    return b.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)


def _gelu(b: Builder, x: str) -> str:
    """x / 2 * (1 + erf(x / sqrt 2)), as exporters before opset 20 write it."""
    name = f"gelu_{len(b.nodes)}"
    root, one, half = (b.constant(f"{name}.{k}", np.float32(v)) for k, v in enumerate((2**0.5, 1.0, 0.5)))
    return b.op("Mul", b.op("Mul", x, b.op("Add", b.op("Erf", b.op("Div", x, root)), one)), half)


def _info(name: str, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def main() -> None:
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else nowhere)
        folder.mkdir(parents=True, exist_ok=True)
        for make, name in ((resnet50, "resnet50.onnx"), (bert_base, "bert_base.onnx")):
            path = make(folder / name)
            print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
