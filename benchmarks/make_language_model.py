"""Make a large decoder of language with external data, as the exporters for onnxruntime write it: RMS normalisation,
grouped query attention with rotary positions and past keys and values, gated MLPs. Weights are random.

    python benchmarks/make_language_model.py llm.onnx [--shape 1b|7b-layers|moe|bert-large] [--layers N] [--dtype NAME]

`1b` has 1.2 B parameters (24 layers of width 2048); `7b-layers` two layers of the width of a model of 7 B; `moe` 8
layers of 1024 with 8 experts, of which each token goes through two; `bert-large` is an encoder of 24 layers of 1024 in
float32. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
INLINE = 1024
"""Bytes from which on a tensor lies in the data file, as exporters have it."""
LENGTH = 2048
"""Positions that the rotary tables hold."""


@dataclass(frozen=True)
class Size:
    """`groups`: of key and value heads. `causal`: a decoder. `experts`: in place of the gated MLP, so many of them."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    groups: int
    inner: int
    causal: bool = True
    experts: int = 0


SIZES = {
    "1b": Size(32000, 2048, 24, 32, 8, 5632),
    "7b-layers": Size(32000, 4096, 2, 32, 8, 11008),
    "moe": Size(32000, 1024, 8, 16, 4, 2816, experts=8),
    "bert-large": Size(30522, 1024, 24, 16, 16, 4096, causal=False),
}


@dataclass
class Writer:
    """Nodes, and weights that go to the data file as they are made."""

    data: BinaryIO
    name: str
    dtype: Any
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[TensorProto] = field(default_factory=list)

    def __call__(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}.{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def weight(self, label: str, *shape: int, scale: float | None = None) -> str:
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(shape[0] ** -0.5 if scale is None else scale)
        return self.store(label, values.astype(self.dtype))

    def ones(self, label: str, size: int) -> str:
        return self.store(label, (1 + 0.1 * self.rng.standard_normal(size)).astype(self.dtype))

    def store(self, label: str, values: np.ndarray[Any, Any]) -> str:
        if values.nbytes < INLINE:
            self.stored.append(numpy_helper.from_array(values, label))
            return label
        tensor = TensorProto(name=label, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", self.data.tell()), ("length", values.nbytes)):
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
        self.data.write(values.tobytes())
        self.stored.append(tensor)
        return label


def make(path: Path, size: Size, dtype: str = "float16", seed: int = 0) -> None:
    """Write `path` and `path`.data."""
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = helper.make_tensor_value_info
    with Path(f"{path}.data").open("wb") as data:
        w = Writer(data, f"{path.name}.data", np.dtype(dtype), np.random.default_rng(seed))
        ids = [info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
        mask = info("attention_mask", TensorProto.INT64, ["batch", "total" if size.causal else "sequence"])
        states = decoder(w, size) if size.causal else encoder(w, size)
        head = size.width // size.heads
        past = [f"{kind}.{k}" for k in range(size.layers) for kind in ("key", "value")] if size.causal else []
        inputs = [*ids, mask, *(info(f"past_{n}", code, ["batch", size.groups, "past", head]) for n in past)]
        outputs = [info(states, code, ["batch", "sequence", size.vocabulary if size.causal else size.width])]
        outputs += [info(f"present_{n}", code, ["batch", size.groups, "total", head]) for n in past]
        graph = helper.make_graph(w.nodes, "language", inputs, outputs, w.stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def decoder(w: Writer, size: Size) -> str:
    """LLaMA-like; gives the logits."""
    head = size.width // size.heads
    one = w.store("one", np.array([1], np.int64))
    lengths = w("Sub", w("ReduceSum", "attention_mask", one, keepdims=0), w.store("1", np.array(1, np.int64)))
    lengths = w("Cast", lengths, to=TensorProto.INT32)
    shape = w("Shape", "attention_mask")
    total = w("Cast", w("Gather", shape, one, axis=0), to=TensorProto.INT32)
    total = w("Squeeze", total, w.store("zero", np.array([0], np.int64)))
    angles = np.outer(np.arange(LENGTH), 10000.0 ** (-np.arange(0, head, 2) / head))
    tables = [w.store(name, f(angles).astype(w.dtype)) for name, f in (("cos", np.cos), ("sin", np.sin))]
    x = w("Gather", w.weight("embedding", size.vocabulary, size.width, scale=0.02), "input_ids")
    for k in range(size.layers):
        y = rms(w, x, f"{k}.attention_norm", size.width)
        q, key, value = (
            w("MatMul", y, w.weight(f"{k}.{name}", size.width, n * head))
            for name, n in (("q", size.heads), ("k", size.groups), ("v", size.groups))
        )
        y = w("GroupQueryAttention", q, key, value, f"past_key.{k}", f"past_value.{k}", lengths, total, *tables,
              domain=MICROSOFT, outputs=3, num_heads=size.heads, kv_num_heads=size.groups, do_rotary=1)  # fmt: skip
        w.nodes[-1].output[1:] = [f"present_key.{k}", f"present_value.{k}"]
        x = w("Add", x, w("MatMul", y, w.weight(f"{k}.o", size.width, size.width)))
        y = rms(w, x, f"{k}.mlp_norm", size.width)
        x = w("Add", x, mixture(w, y, k, size) if size.experts else gated(w, y, k, size))
    return w("MatMul", rms(w, x, "norm", size.width), w.weight("lm_head", size.width, size.vocabulary))


def gated(w: Writer, y: str, k: int, size: Size) -> str:
    """SwiGLU."""
    gate, up = (w("MatMul", y, w.weight(f"{k}.{name}", size.width, size.inner)) for name in ("gate", "up"))
    y = w("Mul", w("Mul", gate, w("Sigmoid", gate)), up)
    return w("MatMul", y, w.weight(f"{k}.down", size.inner, size.width))


def mixture(w: Writer, y: str, k: int, size: Size) -> str:
    """Two experts for each token; gates and values of an expert lie in turns."""
    scores = w("MatMul", y, w.weight(f"{k}.router", size.width, size.experts))
    scores = w("Reshape", scores, w.store(f"{k}.rows", np.array([-1, size.experts], np.int64)))
    first = w.weight(f"{k}.experts.up", size.experts, 2 * size.inner, size.width, scale=size.width**-0.5)
    second = w.weight(f"{k}.experts.down", size.experts, size.width, size.inner, scale=size.inner**-0.5)
    return w("MoE", y, scores, first, "", second, domain=MICROSOFT, k=2, activation_type="swiglu", swiglu_fusion=1,
             activation_alpha=1.0, normalize_routing_weights=1)  # fmt: skip


def rms(w: Writer, x: str, label: str, width: int) -> str:
    return w("SimplifiedLayerNormalization", x, w.ones(label, width), epsilon=1e-5, axis=-1)


def encoder(w: Writer, size: Size) -> str:
    """BERT-like, attention written out; gives the hidden states."""
    head, width = size.width // size.heads, size.width
    shape = w.store("split", np.array([0, 0, size.heads, head], np.int64))
    joined = w.store("join", np.array([0, 0, width], np.int64))
    scale = w.store("scale", np.array(head**-0.5, w.dtype))
    axes = w.store("axes", np.array([1, 2], np.int64))
    mask = w("Cast", w("Unsqueeze", "attention_mask", axes), to=helper.np_dtype_to_tensor_dtype(w.dtype))
    mask = w("Mul", w("Sub", w.store("1", np.array(1, w.dtype)), mask), w.store("low", np.array(-1e4, w.dtype)))
    x = w("Gather", w.weight("embedding", size.vocabulary, width, scale=0.5), "input_ids")
    for k in range(size.layers):
        q, key, value = (linear(w, x, f"{k}.{name}", width, width) for name in "qkv")
        q, value = (w("Transpose", w("Reshape", one, shape), perm=[0, 2, 1, 3]) for one in (q, value))
        key = w("Transpose", w("Reshape", key, shape), perm=[0, 2, 3, 1])
        scores = w("Softmax", w("Add", w("Mul", w("MatMul", q, key), scale), mask), axis=-1)
        y = w("Reshape", w("Transpose", w("MatMul", scores, value), perm=[0, 2, 1, 3]), joined)
        x = layer_norm(w, w("Add", x, linear(w, y, f"{k}.o", width, width)), f"{k}.attention_norm", width)
        y = linear(w, x, f"{k}.up", width, size.inner)
        half, root = (w.store(f"{k}.{v}", np.array(v, w.dtype)) for v in (0.5, 2**0.5))
        y = w("Mul", w("Mul", y, half), w("Add", w("Erf", w("Div", y, root)), "1"))
        x = layer_norm(w, w("Add", x, linear(w, y, f"{k}.down", size.inner, width)), f"{k}.mlp_norm", width)
    return x


def linear(w: Writer, x: str, label: str, rows: int, cols: int) -> str:
    return w("Add", w("MatMul", x, w.weight(label, rows, cols)), w.weight(f"{label}.bias", cols, scale=0.02))


def layer_norm(w: Writer, x: str, label: str, width: int) -> str:
    return w("LayerNormalization", x, w.ones(label, width), w.weight(f"{label}.bias", width, scale=0.02), axis=-1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=SIZES, default="1b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.path.parent.mkdir(parents=True, exist_ok=True)
    chosen = SIZES[given.shape] if given.layers is None else replace(SIZES[given.shape], layers=given.layers)
    make(given.path, chosen, given.dtype or ("float16" if chosen.causal else "float32"), given.seed)
    print(given.path, Path(f"{given.path}.data").stat().st_size, "bytes of data")
