"""Mixtures of experts to cut, and what MoE computes, in numpy, for the forms that onnxruntime has no kernel for on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference.op_run import OpRun

from tests.dependency.net import Net

MICROSOFT = "com.microsoft"


def mixed(n: Net, k: int = 2, experts: int = 6, form: str = "interleaved", layers: int = 1) -> Net:
    """x (N, T, 4) -> linear to 8 -> mixtures of inner width 6 -> linear to 3.

    `form`: of gate and value: interleaved, in halves, or apart (W3).
    """
    h, rows = n("MatMul", n.x("N", "T", 4), n.w(4, 8, name="first")), 6 if form == "apart" else 12
    for layer in range(layers):
        k_th = f".{layer}" if layer else ""
        logits = n("Add", n("MatMul", h, n.w(8, experts, name=f"router{k_th}")), n.w(experts, name=f"offers{k_th}"))
        held = [n.w(experts, rows, 8, name=f"up{k_th}"), n.w(experts, rows, name=f"up bias{k_th}"),
                n.w(experts, 8, 6, name=f"down{k_th}"), n.w(experts, 8, name=f"down bias{k_th}")]  # fmt: skip
        if form == "apart":
            held += [n.w(experts, 6, 8, name=f"third{k_th}"), n.w(experts, 6, name=f"third bias{k_th}")]
        settings = {"activation_type": "swiglu", "swiglu_fusion": {"apart": 0, "interleaved": 1, "halves": 2}[form]}
        flat = n("Reshape", logits, n.c([-1, experts]))
        h = n.ms("MoE", h, flat, *held, k=k, normalize_routing_weights=1, **settings)
    return n.out(n("MatMul", h, n.w(8, 3, name="last")))


class MoE(OpRun):
    """Of ContribOperators.md, with swiglu alone; float64 inside."""

    op_domain = MICROSOFT

    def _run(self, x, router, w1, b1=None, w2=None, b2=None, w3=None, b3=None, activation_alpha=None,  # type: ignore[no-untyped-def]
             activation_beta=None, activation_type=None, k=None, normalize_routing_weights=None, swiglu_fusion=None,
             swiglu_limit=None, swiglu_limit_after_activation=None, use_sparse_mixer=None):  # fmt: skip
        tokens, logits = x.reshape(-1, x.shape[-1]).astype(np.float64), router.astype(np.float64)
        out, least = np.zeros_like(tokens), np.sort(logits, axis=1)[:, -k][:, None]
        weights = np.where(logits >= least, np.exp(logits - logits.max(axis=1, keepdims=True)), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        for expert in range(len(w1)):
            rows = tokens @ w1[expert].T + (0 if b1 is None else b1[expert])
            if swiglu_fusion == 1:
                gate, value = rows[:, ::2], rows[:, 1::2]
            elif swiglu_fusion == 2:
                gate, value = np.split(rows, 2, axis=1)
            else:
                gate, value = rows, tokens @ w3[expert].T + b3[expert]
            inner = gate / (1 + np.exp(-gate)) * value
            made = inner @ w2[expert].T + (0 if b2 is None else b2[expert])
            out += weights[:, [expert]] * made
        return (out.reshape(x.shape).astype(x.dtype),)


def packed_mixture(bits: int = 4, block: int = 0, zero: bool = False, bias: bool = True, width: int = 32, dtype: Any = np.float32,
                   **settings: Any) -> onnx.ModelProto:  # fmt: skip
    """QMoE of six experts, each token through two, between linear layers of 4 and 3: both widths are `width`."""
    rng, held = np.random.default_rng(0), dict[str, Any]()
    for name, rows in (("up", 2 * width), ("down", width)):
        scales = (6, rows, width // block) if block else (6, rows)
        held[name] = rng.integers(0, 256, (6, rows, width * bits // 8)).astype(np.uint8)
        held[f"{name}_s"] = (rng.uniform(0.5, 1.5, scales) * 4 / 2**bits / np.sqrt(width)).astype(dtype)
        if zero:
            points = (*scales[:-1], -(-scales[-1] * bits // 8))
            held[f"{name}_z"] = rng.integers(0, 256, points).astype(np.uint8)
        if bias:
            held[f"{name}_b"] = (rng.normal(size=(6, rows)) / 3).astype(dtype)
    for name, shape in (("first", (4, width)), ("router", (width, 6)), ("last", (width, 3))):
        held[name] = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
    held["rows"] = np.array([-1, 6])
    names = [("up_b" if bias else ""), "down", "down_s", ("down_b" if bias else "")]
    points = ["", "", "", "up_z", "down_z"] if zero else []
    how = {"k": 2, "expert_weight_bits": bits, "activation_type": "swiglu", "swiglu_fusion": 1, **settings}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("MatMul", ["h", "router"], ["offers"]),
        helper.make_node("Reshape", ["offers", "rows"], ["logits"]),
        helper.make_node("QMoE", ["h", "logits", "up", "up_s", *names, *points], ["mixed"], "mixture", domain=MICROSOFT,
                         **how, **({"block_size": block} if block else {})),
        helper.make_node("MatMul", ["mixed", "last"], ["y"]),
    ]  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given, result = (helper.make_tensor_value_info(name, kind, ["N", size]) for name, size in (("x", 4), ("y", 3)))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph(nodes, "packed mixture", [given], [result], tensors)
    return helper.make_model(graph, opset_imports=imports, ir_version=9)
