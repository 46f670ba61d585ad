"""A structural cut checked from outside: the original, its plan file and the cut file; onnx, numpy, onnxruntime only.

    python outside.py ORIGINAL.onnx PLAN.json CUT.onnx

Forces the listed positions of the listed values to zero in the original (or to the lowest number, where the plan says
so) and compares outputs. Nothing of the
program is imported, so that this is how anyone would check a cut.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

ort.set_default_logger_severity(4)
TOLERANCE = 1e-4
"""Of the largest element of an output: rounding of float32 over a deep model stays below a few 1e-5."""
SMALLEST = 1e-2
"""Outputs below count as that: onnxruntime's Sigmoid and Softmax are exact to some 1e-7 in absolute terms only."""


def absent(plan: dict[str, Any], name: str, axis: str, dtype: np.dtype[Any]) -> Any:
    """What stands for a removed position."""
    lowest = plan.get("neutral", {}).get(name, {}).get(axis) == "lowest"
    return np.finfo(dtype).min if lowest else 0


def masked(model: onnx.ModelProto, plan: dict[str, Any]) -> onnx.ModelProto:
    """The original with zeros in place of the listed positions, whatever it has there (infinity, too)."""
    listed = {**plan["weights"], **plan["tensors"]}
    model.ir_version = max(model.ir_version, 4)
    for tensor in model.graph.initializer:
        if tensor.name in listed:
            array = numpy_helper.to_array(tensor).copy()
            for axis, positions in listed[tensor.name].items():
                array[(slice(None),) * int(axis) + (positions,)] = absent(plan, tensor.name, axis, array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    kinds = _kinds(model, listed)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        steps = []
        for index, name in enumerate(node.output):
            if name in listed:
                source = node.output[index] = f"{name}//raw"
                dtype, sizes = kinds[name]
                chooses = all(entry.version >= 9 for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
                for number, (axis, positions) in enumerate(listed[name].items()):
                    mask = np.ones(sizes[int(axis)], np.bool_ if chooses else dtype)
                    mask[positions] = 0
                    mask = mask.reshape([-1 if i == int(axis) else 1 for i in range(len(sizes))])
                    model.graph.initializer.append(numpy_helper.from_array(mask, f"{name}//mask{number}"))
                    target = name if number == len(listed[name]) - 1 else f"{name}//{number}"
                    kept = f"{name}//mask{number}"
                    number_put = np.array(absent(plan, name, axis, np.dtype(dtype)), dtype)
                    model.graph.initializer.append(numpy_helper.from_array(number_put, f"{name}//put{number}"))
                    given = ("Where", [kept, source, f"{name}//put{number}"]) if chooses else ("Mul", [source, kept])
                    steps.append(helper.make_node(*given, [target]))
                    source = target
        model.graph.node.extend([node, *steps])
    return model


AVERAGING = (
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "InstanceNormalization", "GroupNormalization",
    "ReduceMean",
)  # fmt: skip


class Interpreter:
    """Runs the original node by node, with zeros at the listed positions behind each; normalisations that average over
    cut positions are given the kept ones only."""

    def __init__(self, model: onnx.ModelProto, plan: dict[str, Any]) -> None:
        self.model, self.plan = model, plan
        self.listed = {
            n: {int(a): p for a, p in axes.items()} for n, axes in {**plan["weights"], **plan["tensors"]}.items()
        }
        self.averaged = {(name, axis) for name, axis in plan.get("averaged", [])}
        self.merged = {n: {int(a): m for a, m in axes.items()} for n, axes in plan.get("merged", {}).items()}

    def run(self, feed: dict[str, Any]) -> list[Any]:
        values: dict[str, Any] = {"": None, **feed}
        for tensor in self.model.graph.initializer:
            values[tensor.name] = self._zeroed(tensor.name, numpy_helper.to_array(tensor))
        for node in self.model.graph.node:
            given = {name: values[name] for name in node.input if name}
            found = self._restricted(node, given) if self._averages(node) else self._evaluate(node, given)
            values.update({name: self._zeroed(name, value) for name, value in found.items()})
        return [values[out.name] for out in self.model.graph.output]

    def _averages(self, node: onnx.NodeProto) -> bool:
        return node.op_type in AVERAGING and any(name in node.input for name, _ in self.averaged)

    def _zeroed(self, name: str, value: Any) -> Any:
        axes = self.listed.get(name, {})
        if not axes or value.dtype.kind != "f":
            return value
        value = value.copy()
        for axis, gone in axes.items():
            value[(slice(None),) * axis + (gone,)] = absent(self.plan, name, str(axis), value.dtype)
        return value

    def _evaluate(self, node: onnx.NodeProto, given: dict[str, Any]) -> dict[str, Any]:
        def info(name: str, value: Any) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)

        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "one", [info(n, v) for n, v in given.items()], outputs)
        one = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return dict(zip([o.name for o in outputs], start(one).run(None, given), strict=True))

    def _kept(self, name: str, value: Any) -> tuple[list[Any], tuple[int, ...]]:
        """Kept positions per axis of the value taken apart, and the shape that takes it apart."""
        shape, kept = list[int](), list[Any]()
        for axis, size in enumerate(value.shape):
            merged = self.merged.get(name, {}).get(axis)
            split = [size] if merged is None else list(merged["split"])
            fixed = int(np.prod([n for n in split if n > 0]))
            split = [size // fixed if n < 0 else n for n in split]
            lost = {0: self.listed.get(name, {}).get(axis, [])} if merged is None else merged["positions"]
            kept += [np.setdiff1d(np.arange(n), lost.get(k, lost.get(str(k), []))) for k, n in enumerate(split)]
            shape += split
        return kept, tuple(shape)

    def _restricted(self, node: onnx.NodeProto, given: dict[str, Any]) -> dict[str, Any]:
        """Without the removed positions; then each result, zeros in their places, as long as it was."""
        few, small = {}, onnx.NodeProto()
        small.CopyFrom(node)
        for name, value in given.items():
            kept, shape = self._kept(name, value)
            part = value.reshape(shape)[np.ix_(*kept)]
            ends = np.cumsum([0, *(len(self._parts(name, axis)) for axis in range(value.ndim))])
            few[name] = part.reshape([int(np.prod(part.shape[a:b])) for a, b in itertools.pairwise(ends)])
        for attribute in small.attribute:
            if attribute.name == "num_groups":
                channels = self._kept(node.input[0], given[node.input[0]])[0][1]
                attribute.i = len(np.unique(channels // (given[node.input[0]].shape[1] // attribute.i)))
        out = {}
        whole = self._evaluate(node, given)
        data = node.input[0]
        for name, value in self._evaluate(small, few).items():
            kept, shape = self._kept(data if whole[name].shape == given[data].shape else name, whole[name])
            filled = np.zeros(shape, value.dtype)
            filled[np.ix_(*kept)] = value.reshape([len(k) for k in kept])
            out[name] = filled.reshape(whole[name].shape)
        return out

    def _parts(self, name: str, axis: int) -> Any:
        merged = self.merged.get(name, {}).get(axis)
        return [0] if merged is None else merged["split"]


def _kinds(model: onnx.ModelProto, listed: dict[str, Any]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """dtype and shape of every listed value, by running the original once."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [n for node in model.graph.node for n in node.output if n in listed]
    present = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    session = start(probe)
    for length in (16, 512, 1536):
        try:
            values = session.run(names, feed(session, model, 2, 0, length)) if names else []
            return {n: (v.dtype, v.shape) for n, v in zip(names, values, strict=True)}
        except Exception:
            continue  # the original does not take this length
    raise RuntimeError("the original does not run")


def start(model: onnx.ModelProto | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feed(
    session: ort.InferenceSession, model: onnx.ModelProto, batch: int, seed: int = 0, length: int = 16
) -> dict[str, Any]:
    """Random inputs; integers are 0 or 1, which every vocabulary has."""
    rng, out, known = np.random.default_rng(seed), {}, {}
    for value in session.get_inputs():
        shape = []
        for axis, dim in enumerate(value.shape):
            default = batch if axis == 0 else 4 * length if len(value.shape) > 3 else length
            shape.append(dim if isinstance(dim, int) else known.setdefault(dim or (value.name, axis), default))
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
                "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}[value.type]  # fmt: skip
        whole = not np.issubdtype(kind, np.floating)
        mask = np.ones(shape) if "mask" in value.name else None
        array = mask if mask is not None else rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
        out[value.name] = np.asarray(array).astype(kind)
    return out


def compare(original: str | Path, plan: str | Path | dict[str, Any], cut: str | Path) -> float:
    """The largest difference of any output, over its largest element; at two batch sizes and lengths."""
    model = onnx.load(str(original))
    listed = plan if isinstance(plan, dict) else json.loads(Path(plan).read_text())
    wanted = start(model if listed.get("averaged") else masked(model, listed))
    reference = Interpreter(model, listed).run if listed.get("averaged") else lambda feeds: wanted.run(None, feeds)
    got = start(str(cut))
    worst, ran = 0.0, 0
    for batch, seed, length in ((1, 0, 16), (2, 1, 16), (3, 2, 24), (1, 3, 512), (2, 3, 1536)):
        if ran and length > 24:
            break
        inputs = feed(wanted, model, batch, seed, length)
        try:
            right = reference(inputs)
        except Exception:
            continue  # the original does not take these sizes
        ran += 1
        for a, b in zip(got.run(None, inputs), right, strict=True):
            worst = max(worst, difference(a, b))
    if not ran:
        raise RuntimeError("the original runs at none of the sizes")
    return worst


def difference(a: Any, b: Any) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not np.issubdtype(a.dtype, np.floating):
        return float(not np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    ok = np.isfinite(b)
    scale = np.abs(b[ok]).max(initial=0.0)
    return float(np.abs(a - b)[ok].max(initial=0.0) / max(scale, SMALLEST))


if __name__ == "__main__":
    error = compare(*sys.argv[1:4])
    print(f"{error:.3g}")
    sys.exit(error > TOLERANCE)
