"""The sample networks as ONNX graphs with random initial weights: each layer appends its nodes to a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT
Layer = Callable[["Graph", str], str]
"""layer(graph, x) appends nodes that read the value x, and returns the name of what they compute."""


@dataclass
class Graph:
    """ONNX nodes and initializers in the making; `rng` draws the initial weights."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def store(self, name: str, value: Array) -> str:
        self.initializers.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def normal(self, shape: tuple[int, ...], inputs: int) -> Array:
        """He et al. (2015): variance 2 / inputs."""
        return self.rng.standard_normal(shape) * np.sqrt(2 / inputs)


def dense(name: str, inputs: int, outputs: int, scale: float = 1.0) -> Layer:
    """y = x W^T + b, W of shape (outputs, inputs)."""

    def emit(graph: Graph, x: str) -> str:
        weight = graph.store(f"{name}.weight", scale * graph.normal((outputs, inputs), inputs))
        return graph.add("Gemm", [x, weight, graph.store(f"{name}.bias", np.zeros(outputs))], name, transB=1)

    return emit


def conv(name: str, inputs: int, outputs: int, stride: int = 1, size: int = 3, groups: int = 1) -> Layer:
    """size x size, padded so that it keeps height and width, and no bias: BatchNormalization follows."""

    def emit(graph: Graph, x: str) -> str:
        columns = inputs // groups
        weight = graph.store(f"{name}.weight", graph.normal((outputs, columns, size, size), size * size * columns))
        shape = {"kernel_shape": [size, size], "pads": [size // 2] * 4, "strides": [stride] * 2}
        grouped = {"group": groups} if groups > 1 else {}
        return graph.add("Conv", [x, weight], name, **shape, **grouped)

    return emit


def batch_norm(name: str, channels: int) -> Layer:
    start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}

    def emit(graph: Graph, x: str) -> str:
        names = [graph.store(f"{name}.{key}", np.full(channels, value)) for key, value in start.items()]
        return graph.add("BatchNormalization", [x, *names], name, epsilon=1e-5)

    return emit


def relu(name: str) -> Layer:
    return lambda graph, x: graph.add("Relu", [x], name)


def flatten() -> Layer:
    return lambda graph, x: graph.add("Flatten", [x], "flatten")


def pool() -> Layer:
    """Mean over height and width, flattened to (N, C)."""
    return lambda graph, x: graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "pool")], "flatten")


def standardise(table: Array) -> Layer:
    """(x - mean) / deviation with fixed numbers: the model takes the table's own units."""

    def emit(graph: Graph, x: str) -> str:
        centred = graph.add("Sub", [x, graph.store("features.mean", table.mean(0))], "centre")
        return graph.add("Mul", [centred, graph.store("features.factor", 1 / table.std(0))], "standardise")

    return emit


def sequence(*layers: Layer) -> Layer:
    def emit(graph: Graph, x: str) -> str:
        for layer in layers:
            x = layer(graph, x)
        return x

    return emit


def residual(name: str, *layers: Layer) -> Layer:
    """x + f(x)."""
    return lambda graph, x: graph.add("Add", [x, sequence(*layers)(graph, x)], name)


def build(network: Layer, seed: int, name: str, x: str, shape: tuple[int, ...], y: str, width: int) -> onnx.ModelProto:
    """The network as a model with a dynamic batch; opset 17 is read by every current runtime."""
    graph = Graph(np.random.default_rng(seed))
    network(graph, x)
    graph.nodes[-1].output[0] = y
    proto = onnx.helper.make_graph(
        graph.nodes,
        name,
        [onnx.helper.make_tensor_value_info(x, FLOAT, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info(y, FLOAT, ["batch", width])],
        graph.initializers,
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(proto, opset_imports=[opset], ir_version=8, producer_name="sample_models")
    onnx.checker.check_model(model, full_check=True)
    return model
