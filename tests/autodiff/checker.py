"""The checker: gradients run by onnxruntime in float32 against central differences of the operator in float64.

The forward pass of the differences is the ONNX reference evaluator (or, for onnxruntime's own operators, a few lines
of numpy), so a gradient rule never checks itself. A random direction sees an error in any element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper
from onnx.reference import ReferenceEvaluator

from prunecli.autodiff import GradientModel, Loss, differentiate
from prunecli.autodiff.losses import LossScope, Weighted
from tests.autodiff.microsoft_reference import REFERENCE_OPS

STEP = 1e-5  # float64: truncation ~1e-10, cancellation ~1e-11
# float32 keeps 6e-8 per operation; sums of some hundred terms stay below 2e-5 of the sum of magnitudes
TOLERANCE = 2e-5
LATEST = 20


@dataclass(frozen=True)
class Case:
    """One node. Inputs: a shape (random, differentiated), an array (constant), None (absent), or a `Drawn`.

    `skip_outputs`: no outputs of the graph; `unnamed`: left out by the node. `reference`: the operator in numpy, where
    the reference evaluator lacks it or leaves float64.
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = LATEST
    outputs: int = 1
    domain: str = ""
    label: str = ""
    skip_outputs: tuple[int, ...] = ()
    unnamed: tuple[int, ...] = ()
    reference: Callable[..., Any] | None = None

    @property
    def id(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


@dataclass(frozen=True)
class Drawn:
    """Random numbers of a shape, mapped by a function (to stay in a domain), differentiated unless `fixed`."""

    shape: tuple[int, ...]
    map: Any
    fixed: bool = False


def positive(*shape: int) -> Drawn:
    return Drawn(shape, lambda x: np.abs(x) + 0.5)


def unit(*shape: int) -> Drawn:
    return Drawn(shape, lambda x: np.tanh(x) * 0.9)


def case(op: str, *inputs: Any, label: str = "", opset: int = LATEST, outputs: int = 1, domain: str = "",
         skip_outputs: tuple[int, ...] = (), unnamed: tuple[int, ...] = (),
         reference: Callable[..., Any] | None = None, **attributes: Any) -> Case:  # fmt: skip
    return Case(op, inputs, attributes, opset, outputs, domain, label, skip_outputs, unnamed, reference)


@dataclass(frozen=True)
class Drawing:
    """The arrays of a case: float64, by input name; `wrt` are differentiated, the rest are stored constants."""

    wrt: dict[str, np.ndarray]
    stored: dict[str, np.ndarray]
    names: tuple[str, ...]


def draw(c: Case, seed: int = 0) -> Drawing:
    rng = np.random.default_rng(seed + sum(map(ord, c.id)))
    wrt: dict[str, np.ndarray] = {}
    stored: dict[str, np.ndarray] = {}
    names = []
    for i, spec in enumerate(c.inputs):
        name = "" if spec is None else f"in{i}"
        names.append(name)
        if isinstance(spec, Drawn):
            (stored if spec.fixed else wrt)[name] = np.asarray(spec.map(rng.standard_normal(spec.shape)))
        elif isinstance(spec, tuple):
            wrt[name] = np.asarray(rng.standard_normal(spec))
        elif spec is not None:
            stored[name] = np.asarray(spec)
    return Drawing(wrt, stored, tuple(names))


@dataclass(frozen=True)
class OutputProduct:
    """A loss of the tests: sum(y v) with v an input of the output's shape, or sum(y) without `vector`."""

    output: str | None = None
    vector: str | None = "vector"

    def build(self, scope: LossScope) -> ir.Value:
        y = scope.output(self.output)
        return scope.ops.sum(y if self.vector is None else scope.ops.mul(y, scope.target(self.vector, y)))


def build(c: Case, drawing: Drawing, dtype: Any) -> onnx.ModelProto:
    """The one-node model with its inputs as initializers."""
    outs = ["" if i in c.unnamed else f"out{i}" for i in range(c.outputs)]
    node = helper.make_node(c.op, list(drawing.names), outs, name="node", domain=c.domain, **c.attributes)
    tensors = [
        onnx.numpy_helper.from_array(np.asarray(v.astype(dtype) if v.dtype.kind == "f" else v, order="C"), k)
        for k, v in (*drawing.wrt.items(), *drawing.stored.items())
    ]
    infos = [onnx.ValueInfoProto(name=o) for i, o in enumerate(outs) if o and i not in c.skip_outputs]
    graph = helper.make_graph([node], "case", [], infos, tensors)
    imports = [
        helper.make_opsetid("", c.opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def session(model: GradientModel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        ir.to_proto(model.model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_gradients(model: GradientModel, feed: Mapping[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the gradient per tensor; what the loss does not reach has none."""
    names = [model.loss, *model.gradients.values()]
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    opened = session(model)
    cast = {i.name: np.asarray(feed[i.name]).astype(types.get(i.type, np.asarray(feed[i.name]).dtype))
            for i in opened.get_inputs()}  # fmt: skip
    loss, *values = opened.run(names, cast)
    return float(loss), dict(zip(model.gradients, values, strict=True))


def reference_forward(c: Case, drawing: Drawing) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The outputs in float64 as a function of replaced inputs."""
    constants = {**drawing.wrt, **drawing.stored}
    if c.reference is not None:
        function = c.reference
        return lambda point: {"out0": np.asarray(function(*({**constants, **point}[n] for n in drawing.names if n)))}
    evaluator = ReferenceEvaluator(build(c, drawing, np.float64), new_ops=REFERENCE_OPS)
    names = list(evaluator.output_names)
    return lambda point: {
        n: np.asarray(v) for n, v in zip(names, evaluator.run(names, {**constants, **point}), strict=True)
    }


def check_case(c: Case, seed: int = 0) -> None:
    """Raises AssertionError where the gradient of sum(outputs * random) disagrees with differences."""
    drawing = draw(c, seed)
    forward = reference_forward(c, drawing)
    rng = np.random.default_rng(seed + 1)
    vectors = {n: rng.standard_normal(v.shape) for n, v in forward({}).items() if v.dtype.kind == "f"}
    loss: Loss = Weighted(tuple((1.0, OutputProduct(n, f"v_{n}")) for n in vectors))
    model = differentiate(ir.from_proto(build(c, drawing, np.float32)), list(drawing.wrt), loss, shapes={})
    feed = {**drawing.wrt, **{f"v_{n}": v for n, v in vectors.items()}}
    value, gradients = run_gradients(model, feed)

    def evaluate(point: Mapping[str, np.ndarray]) -> float:
        results = forward(point)
        return float(sum((results[n] * v).sum() for n, v in vectors.items()))

    exact = evaluate({})
    assert abs(value - exact) <= TOLERANCE * max(1.0, abs(exact)) * 10, (value, exact)
    assert set(gradients) == set(drawing.wrt), "an input got no gradient"
    compare_directions(evaluate, drawing.wrt, gradients, rng)


def compare_directions(
    evaluate: Any, point: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray],
    rng: np.random.Generator, tolerance: float = TOLERANCE, directions: int = 2,
) -> None:  # fmt: skip
    """For each tensor, the derivative along random directions against (f(x + hd) - f(x - hd)) / 2h."""
    for name, x in point.items():
        assert gradients[name].shape == x.shape, (name, gradients[name].shape, x.shape)
        for _ in range(directions):
            d = rng.standard_normal(x.shape)
            slope = (evaluate({name: x + STEP * d}) - evaluate({name: x - STEP * d})) / (2 * STEP)
            products = gradients[name].astype(np.float64) * d
            limit = tolerance * (np.abs(products).sum() + np.abs(slope)) + 1e-8
            assert abs(products.sum() - slope) <= limit, (name, products.sum(), slope, limit)


def models(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int]], outputs: Sequence[str],
           tensors: Mapping[str, np.ndarray], opset: int = LATEST) -> ir.Model:  # fmt: skip
    """A small model of several nodes, float32 inputs."""
    infos = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, list(v)) for k, v in inputs.items()]
    stored = [onnx.numpy_helper.from_array(v, k) for k, v in tensors.items()]
    outs = [onnx.ValueInfoProto(name=o) for o in outputs]
    graph = helper.make_graph(list(nodes), "small", infos, outs, stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
