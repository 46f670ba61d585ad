"""Just enough of a network library to train the sample models: numpy forward, backward, and ONNX export.

Every layer has `forward(x, training)`, `backward(dy)` (which leaves gradients in its parameters) and
`emit(graph, x)`, which appends its ONNX nodes and returns the name of its output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray[Any, np.dtype[np.float32]]


class Parameter:
    """A trained array, its gradient, and Adam's two moments."""

    def __init__(self, value: Array, decay: bool = True) -> None:
        self.value = value.astype(np.float32)
        self.grad = np.zeros_like(self.value)
        self.moments = (np.zeros_like(self.value), np.zeros_like(self.value))
        self.decay = decay


@dataclass
class Graph:
    """ONNX nodes and initializers in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(onnx.helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def store(self, name: str, value: Array) -> str:
        self.initializers.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        return name


class Layer:
    name = ""

    def parameters(self) -> list[Parameter]:
        return [value for value in vars(self).values() if isinstance(value, Parameter)]


class Dense(Layer):
    """y = x W^T + b, W of shape (outputs, inputs), He initialisation."""

    def __init__(self, name: str, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        self.name = name
        self.weight = Parameter(rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs))
        self.bias = Parameter(np.zeros(outputs), decay=False)

    def forward(self, x: Array, training: bool) -> Array:
        self.x = x
        return x @ self.weight.value.T + self.bias.value

    def backward(self, dy: Array) -> Array:
        self.weight.grad, self.bias.grad = dy.T @ self.x, dy.sum(0)
        return dy @ self.weight.value

    def emit(self, graph: Graph, x: str) -> str:
        weight = graph.store(f"{self.name}.weight", self.weight.value)
        bias = graph.store(f"{self.name}.bias", self.bias.value)
        return graph.add("Gemm", [x, weight, bias], self.name, transB=1)


class Conv(Layer):
    """3 x 3 convolution with padding 1 and no bias (a BatchNorm follows), as one matrix product."""

    def __init__(self, name: str, inputs: int, outputs: int, rng: np.random.Generator, stride: int = 1) -> None:
        self.name, self.stride = name, stride
        self.weight = Parameter(rng.standard_normal((outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs)))

    def forward(self, x: Array, training: bool) -> Array:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, :: self.stride, :: self.stride]
        n, c, h, w = windows.shape[:4]
        self.x_shape, self.y_shape = padded.shape, (n, h, w)
        self.columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)
        y = self.columns @ self.weight.value.reshape(len(self.weight.value), -1).T
        return y.reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, dy: Array) -> Array:
        rows = dy.transpose(0, 2, 3, 1).reshape(-1, dy.shape[1])
        kernel = self.weight.value.reshape(dy.shape[1], -1)
        self.weight.grad = (rows.T @ self.columns).reshape(self.weight.value.shape)
        n, h, w = self.y_shape
        taps = (rows @ kernel).reshape(n, h, w, -1, 3, 3).transpose(4, 5, 0, 3, 1, 2)
        dx = np.zeros(self.x_shape, np.float32)
        s = self.stride
        for i in range(3):
            for j in range(3):
                dx[:, :, i : i + s * h : s, j : j + s * w : s] += taps[i, j]
        return dx[:, :, 1:-1, 1:-1]

    def emit(self, graph: Graph, x: str) -> str:
        weight = graph.store(f"{self.name}.weight", self.weight.value)
        shape = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [self.stride] * 2}
        return graph.add("Conv", [x, weight], self.name, **shape)


class BatchNorm(Layer):
    """Per-channel normalisation of (N, C, H, W), with running statistics for inference."""

    def __init__(self, name: str, channels: int) -> None:
        self.name = name
        self.scale = Parameter(np.ones(channels), decay=False)
        self.shift = Parameter(np.zeros(channels), decay=False)
        self.mean, self.variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x: Array, training: bool) -> Array:
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.mean += 0.1 * (mean - self.mean)
            self.variance += 0.1 * (variance - self.variance)
        else:
            mean, variance = self.mean, self.variance
        self.deviation = np.sqrt(variance + 1e-5)[:, None, None]
        self.normal = (x - mean[:, None, None]) / self.deviation
        return self.normal * self.scale.value[:, None, None] + self.shift.value[:, None, None]

    def backward(self, dy: Array) -> Array:
        self.scale.grad, self.shift.grad = (dy * self.normal).sum((0, 2, 3)), dy.sum((0, 2, 3))
        count = dy.shape[0] * dy.shape[2] * dy.shape[3]
        centred = dy - (self.shift.grad[:, None, None] + self.normal * self.scale.grad[:, None, None]) / count
        return centred * self.scale.value[:, None, None] / self.deviation

    def emit(self, graph: Graph, x: str) -> str:
        values = {
            "weight": self.scale.value,
            "bias": self.shift.value,
            "running_mean": self.mean,
            "running_var": self.variance,
        }
        names = [graph.store(f"{self.name}.{key}", value) for key, value in values.items()]
        return graph.add("BatchNormalization", [x, *names], self.name, epsilon=1e-5)


class Relu(Layer):
    def __init__(self, name: str) -> None:
        self.name = name

    def forward(self, x: Array, training: bool) -> Array:
        self.mask = x > 0
        return x * self.mask

    def backward(self, dy: Array) -> Array:
        return dy * self.mask

    def emit(self, graph: Graph, x: str) -> str:
        return graph.add("Relu", [x], self.name)


class Pool(Layer):
    """Mean over height and width, flattened to (N, C)."""

    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        return x.mean((2, 3))

    def backward(self, dy: Array) -> Array:
        size = self.shape[2] * self.shape[3]
        return np.broadcast_to(dy[:, :, None, None] / np.float32(size), self.shape).copy()

    def emit(self, graph: Graph, x: str) -> str:
        return graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "pool")], "flatten")


class Flatten(Layer):
    def forward(self, x: Array, training: bool) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)

    def emit(self, graph: Graph, x: str) -> str:
        return graph.add("Flatten", [x], "flatten")


class Standardise(Layer):
    """(x - mean) / deviation with fixed numbers: the model takes the table's own units."""

    def __init__(self, x: Array) -> None:
        self.mean, self.factor = x.mean(0), 1 / x.std(0)

    def forward(self, x: Array, training: bool) -> Array:
        return (x - self.mean) * self.factor

    def backward(self, dy: Array) -> Array:
        return dy * self.factor

    def emit(self, graph: Graph, x: str) -> str:
        centred = graph.add("Sub", [x, graph.store("features.mean", self.mean)], "centre")
        return graph.add("Mul", [centred, graph.store("features.factor", self.factor)], "standardise")


class Sequence(Layer):
    def __init__(self, *layers: Any) -> None:
        self.layers = layers

    def parameters(self) -> list[Parameter]:
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def forward(self, x: Array, training: bool) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def emit(self, graph: Graph, x: str) -> str:
        for layer in self.layers:
            x = layer.emit(graph, x)
        return x


class Residual(Sequence):
    """x + f(x)."""

    def __init__(self, name: str, *layers: Any) -> None:
        super().__init__(*layers)
        self.name = name

    def forward(self, x: Array, training: bool) -> Array:
        return x + super().forward(x, training)

    def backward(self, dy: Array) -> Array:
        return dy + super().backward(dy)

    def emit(self, graph: Graph, x: str) -> str:
        return graph.add("Add", [x, super().emit(graph, x)], self.name)
