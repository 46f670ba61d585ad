"""The graph neural network of `damage.py` as an ONNX graph, of standard operators over dense adjacency matrices.

    features (batch, nodes, WIDTH), gone (batch, nodes, levels), reads (batch, nodes, nodes), present (batch, nodes, 1)
    -> log_damage (batch, nodes, levels)

`present` is 0 at nodes that only fill up a batch; they have no edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from layers import FLOAT, Array, Graph
from onnx import numpy_helper

HIDDEN, ROUNDS = 16, 3
USUAL = 2.5
"""Deviations from the mean beyond which a figure counts as that: nothing was learned of such."""
SHIFT, LEAST, RANGE = 3.0, 0.5, 1.5
NONE = -0.6931
"""LEAST + RANGE sigmoid(x) = 1."""


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of the network's inputs over the nodes that it was trained on."""

    mean: Array
    deviation: Array


def linear(graph: Graph, name: str, x: str, shape: tuple[int, int], scale: float = 1.0) -> str:
    """x W, W from a normal distribution of variance 2 scale^2 / inputs."""
    return graph.add("MatMul", [x, graph.store(f"{name}.weight", scale * graph.normal(shape, shape[0]))], name)


def plus(graph: Graph, name: str, x: str, size: int, start: float = 0.0) -> str:
    """x + b."""
    return graph.add("Add", [x, graph.store(f"{name}.bias", np.full(size, start))], f"{name}.plus")


def integers(graph: Graph, name: str, *values: int) -> str:
    graph.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def averaging(graph: Graph, name: str, edges: str) -> str:
    """Rows of a matrix over their sums; rows without an entry stay 0."""
    count = graph.add("ReduceSum", [edges, integers(graph, f"{name}.axis", -1)], f"{name}.count", keepdims=1)
    some = graph.add("Max", [count, graph.store(f"features.{name}.one", np.array(1.0))], f"{name}.some")
    return graph.add("Div", [edges, some], name)


def network(levels: int, width: int, scaling: Scaling, seed: int) -> onnx.ModelProto:
    """h = relu(U x), then ROUNDS times h += relu(h A + (R h) B + (R' h) C + b): R averages over what a node
    reads, R' over what reads it. See `curve` for the answer."""
    graph = Graph(np.random.default_rng(seed))
    inputs = width + levels
    both = graph.add("Concat", ["features", "gone"], "both", axis=-1)
    centred = graph.add("Sub", [both, graph.store("features.mean", scaling.mean)], "centred")
    scaled = graph.add("Mul", [centred, graph.store("features.factor", 1 / scaling.deviation)], "scaled")
    ends = [graph.store(f"features.{name}", np.array(value)) for name, value in (("low", -USUAL), ("high", USUAL))]
    x = graph.add("Clip", [scaled, *ends], "clipped")
    reads = averaging(graph, "reads_mean", "reads")
    readers = averaging(graph, "readers_mean", graph.add("Transpose", ["reads"], "turned", perm=[0, 2, 1]))
    h = graph.add("Relu", [plus(graph, "in", linear(graph, "in", x, (inputs, HIDDEN)), HIDDEN)], "in.relu")
    square = (HIDDEN, HIDDEN)
    for i in range(ROUNDS):
        sent = graph.add("Sum", [
            linear(graph, f"r{i}.own", h, square, 0.5),
            linear(graph, f"r{i}.read", graph.add("MatMul", [reads, h], f"r{i}.before"), square, 0.5),
            linear(graph, f"r{i}.reader", graph.add("MatMul", [readers, h], f"r{i}.behind"), square, 0.5),
        ], f"r{i}.sent")  # fmt: skip
        change = graph.add("Relu", [plus(graph, f"r{i}", sent, HIDDEN)], f"r{i}.relu")
        h = graph.add("Add", [h, change], f"r{i}.h")
    curve(graph, h, levels)
    return model(graph, levels, width)


def curve(graph: Graph, h: str, levels: int) -> None:
    """The logarithm of what goes, shifted at the first level by at most SHIFT, its rises from level to level stretched
    by factors from LEAST to LEAST + RANGE: it never falls, starts as what goes, and stays near it on what is unlike all
    that was learned."""

    def part(name: str, start: int, stop: int) -> str:
        places = [
            integers(graph, f"{name}.{key}", value) for key, value in (("start", start), ("stop", stop), ("axis", 2))
        ]
        return graph.add("Slice", ["gone", *places], name)

    rises = graph.add("Sub", [part("later", 1, levels), part("earlier", 0, levels - 1)], "rises")
    stretch = linear(graph, "stretch", h, (HIDDEN, levels - 1), 0.1)
    share = graph.add("Sigmoid", [plus(graph, "stretch", stretch, levels - 1, NONE)], "share")
    ranged = graph.add("Mul", [share, graph.store("features.range", np.array(RANGE))], "ranged")
    factors = graph.add("Add", [ranged, graph.store("features.least", np.array(LEAST))], "factors")
    moved = graph.add("Tanh", [plus(graph, "shift", linear(graph, "shift", h, (HIDDEN, 1), 0.1), 1)], "moved")
    shift = graph.add("Mul", [moved, graph.store("features.most", np.array(SHIFT))], "shift.most")
    first = graph.add("Add", [part("least", 0, 1), shift], "first")
    steps = graph.add("Concat", [first, graph.add("Mul", [rises, factors], "stretched")], "steps", axis=-1)
    upper = graph.store("features.cumulative", np.triu(np.ones((levels, levels))))
    graph.add("Mul", [graph.add("MatMul", [steps, upper], "curve"), "present"], "log_damage")
    graph.nodes[-1].output[0] = "log_damage"


def model(graph: Graph, levels: int, width: int) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    lengths = {"features": width, "gone": levels, "reads": "nodes", "present": 1}
    inputs = [value(name, FLOAT, ["batch", "nodes", length]) for name, length in lengths.items()]
    output = value("log_damage", FLOAT, ["batch", "nodes", levels])
    proto = onnx.helper.make_graph(graph.nodes, "damage", inputs, [output], graph.initializers)
    opset = onnx.helper.make_opsetid("", 17)
    made = onnx.helper.make_model(proto, opset_imports=[opset], ir_version=8, producer_name="sample_models")
    onnx.checker.check_model(made, full_check=True)
    return made
