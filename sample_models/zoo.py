"""Small networks of many architectures at the size of the digits (1 x 8 x 8), for what is to be learned of networks.

An architecture is a function of a random generator, which draws depth and widths, to a layer. All end in 10 scores.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
from layers import Array, Graph, Layer, batch_norm, conv, dense, flatten, pool, relu, residual, sequence
from onnx import numpy_helper

Rng = np.random.Generator
ZOO: dict[str, Callable[[Rng], Layer]] = {}
CLASSES, SIDE = 10, 8


def architecture(make: Callable[[Rng], Layer]) -> Callable[[Rng], Layer]:
    ZOO[make.__name__] = make
    return make


def identity(graph: Graph, x: str) -> str:
    return x


def unit(name: str, inputs: int, outputs: int, *, last: str = "Relu", **kind: int) -> Layer:
    """Conv, BatchNormalization, and what follows: an activation, or nothing."""
    after = activation(f"{name}.act", last) if last else identity
    return sequence(conv(f"{name}.conv", inputs, outputs, **kind), batch_norm(f"{name}.bn", outputs), after)


def activation(name: str, op: str) -> Layer:
    """Relu, Clip to [0, 6], HardSwish, ..."""
    if op != "Clip":
        return lambda graph, x: graph.add(op, [x], name)
    return lambda graph, x: graph.add("Clip", [x, *(graph.store(f"{name}.{v}", np.array(v)) for v in (0, 6))], name)


def drawn(rng: Rng, *among: int) -> int:
    return int(rng.choice(among))


@architecture
def plain(rng: Rng) -> Layer:
    width, depth = drawn(rng, 8, 12, 16), drawn(rng, 3, 5, 7)
    layers, inputs = [], 1
    for i in range(depth):
        outputs = width * (1 if i < depth // 2 else 2)
        layers.append(unit(f"c{i}", inputs, outputs, stride=2 if i == depth // 2 else 1))
        inputs = outputs
    return sequence(*layers, pool(), dense("fc", inputs, CLASSES))


@architecture
def plain_flat(rng: Rng) -> Layer:
    """Convolutions without normalisation, then two dense layers, as in LeNet and VGG."""
    a, b, hidden = drawn(rng, 8, 12), drawn(rng, 16, 24), drawn(rng, 32, 64)
    return sequence(
        conv("c0", 1, a), relu("r0"), conv("c1", a, b, stride=2), relu("r1"), conv("c2", b, b, stride=2), relu("r2"),
        flatten(), dense("fc0", 4 * b, hidden), relu("r3"), dense("fc1", hidden, CLASSES),
    )  # fmt: skip


def stages(rng: Rng, block: Callable[[str, int, int, int], Layer], blocks: tuple[int, ...]) -> Layer:
    """A stem, two stages of blocks, the second at half the size and twice the width, and a classifier."""
    width, count = drawn(rng, 8, 12, 16), drawn(rng, *blocks)
    layers, inputs = [unit("stem", 1, width)], width
    for stage in range(2):
        for i in range(count):
            outputs = width * (1 + stage)
            layers.append(block(f"s{stage}b{i}", inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    return sequence(*layers, pool(), dense("fc", inputs, CLASSES))


def joined(name: str, shortcut: Layer, *branch: Layer) -> Layer:
    return lambda graph, x: graph.add("Add", [sequence(*branch)(graph, x), shortcut(graph, x)], f"{name}.add")


def shortcut(name: str, inputs: int, outputs: int, stride: int) -> Layer:
    if (inputs, stride) == (outputs, 1):
        return identity
    return unit(f"{name}.short", inputs, outputs, stride=stride, size=1, last="")


@architecture
def residual_basic(rng: Rng) -> Layer:
    def block(name: str, inputs: int, outputs: int, stride: int) -> Layer:
        first = unit(f"{name}.0", inputs, outputs, stride=stride)
        second = unit(f"{name}.1", outputs, outputs, last="")
        return sequence(joined(name, shortcut(name, inputs, outputs, stride), first, second), relu(f"{name}.relu"))

    return stages(rng, block, (2, 3, 5))


@architecture
def residual_bottleneck(rng: Rng) -> Layer:
    def block(name: str, inputs: int, outputs: int, stride: int) -> Layer:
        inner = max(outputs // 2, 4)
        parts = (
            unit(f"{name}.0", inputs, inner, size=1),
            unit(f"{name}.1", inner, inner, stride=stride),
            unit(f"{name}.2", inner, outputs, size=1, last=""),
        )
        return sequence(joined(name, shortcut(name, inputs, outputs, stride), *parts), relu(f"{name}.relu"))

    return stages(rng, block, (2, 3, 4))


@architecture
def inverted(rng: Rng) -> Layer:
    """Inverted residuals with depthwise convolutions, as in MobileNetV2."""
    factor, op = drawn(rng, 2, 4), str(rng.choice(["Clip", "Relu", "HardSwish"]))

    def block(name: str, inputs: int, outputs: int, stride: int) -> Layer:
        inner = inputs * factor
        parts = (
            unit(f"{name}.0", inputs, inner, size=1, last=op),
            unit(f"{name}.1", inner, inner, stride=stride, groups=inner, last=op),
            unit(f"{name}.2", inner, outputs, size=1, last=""),
        )
        if (inputs, stride) == (outputs, 1):
            return joined(name, identity, *parts)
        return sequence(*parts)

    return stages(rng, block, (2, 3, 4))


@architecture
def squeezed(rng: Rng) -> Layer:
    """Inverted residuals whose channels are gated by what a small network makes of their means, as in MobileNetV3."""

    def gate(name: str, channels: int) -> Layer:
        down, up = conv(f"{name}.down", channels, 4, size=1), conv(f"{name}.up", 4, channels, size=1)
        parts = sequence(down, relu(f"{name}.relu"), up, activation(f"{name}.sigmoid", "HardSigmoid"))
        return lambda graph, x: graph.add(
            "Mul", [x, parts(graph, graph.add("GlobalAveragePool", [x], f"{name}.mean"))], f"{name}.gate"
        )

    def block(name: str, inputs: int, outputs: int, stride: int) -> Layer:
        inner = inputs * 2
        depthwise = unit(f"{name}.1", inner, inner, stride=stride, groups=inner, last="HardSwish")
        last = unit(f"{name}.2", inner, outputs, size=1, last="")
        parts = (unit(f"{name}.0", inputs, inner, size=1, last="HardSwish"), depthwise, gate(f"{name}.se", inner), last)
        return joined(name, identity, *parts) if (inputs, stride) == (outputs, 1) else sequence(*parts)

    return stages(rng, block, (1, 2, 3))


@architecture
def separable(rng: Rng) -> Layer:
    """Depthwise, then pointwise, as in MobileNetV1."""

    def block(name: str, inputs: int, outputs: int, stride: int) -> Layer:
        depthwise = unit(f"{name}.0", inputs, inputs, stride=stride, groups=inputs)
        return sequence(depthwise, unit(f"{name}.1", inputs, outputs, size=1))

    return stages(rng, block, (2, 3))


@architecture
def concatenated(rng: Rng) -> Layer:
    """Every layer reads all before it, as in DenseNet."""
    growth, count = drawn(rng, 6, 8), drawn(rng, 3, 5)

    def block(name: str, inputs: int, layers: int) -> Layer:
        def emit(graph: Graph, x: str) -> str:
            for i in range(layers):
                y = unit(f"{name}l{i}", inputs + i * growth, growth)(graph, x)
                x = graph.add("Concat", [x, y], f"{name}l{i}.concat", axis=1)
            return x

        return emit

    width = 12
    grown = width + count * growth
    return sequence(
        unit("stem", 1, width), block("a", width, count), unit("mid", grown, grown // 2, size=1, stride=2),
        block("b", grown // 2, count), pool(), dense("fc", grown // 2 + count * growth, CLASSES),
    )  # fmt: skip


@architecture
def mlp(rng: Rng) -> Layer:
    widths = [SIDE * SIDE, *(drawn(rng, 32, 64, 128) for _ in range(drawn(rng, 1, 2, 4)))]
    hidden = [layer for i, (a, b) in enumerate(pairwise(widths))
              for layer in (dense(f"fc{i}", a, b), relu(f"r{i}"))]  # fmt: skip
    return sequence(flatten(), *hidden, dense("last", widths[-1], CLASSES))


@architecture
def mlp_residual(rng: Rng) -> Layer:
    width, inner = drawn(rng, 32, 48), drawn(rng, 32, 64)
    blocks = [residual(f"b{i}.add", dense(f"b{i}.0", width, inner), relu(f"b{i}.relu"),
                       dense(f"b{i}.1", inner, width, 0.5))
              for i in range(drawn(rng, 2, 4))]  # fmt: skip
    return sequence(flatten(), dense("in", 64, width), *blocks, relu("r"), dense("out", width, CLASSES))


def matmul(name: str, inputs: int, outputs: int, scale: float = 0.7) -> Layer:
    """x W + b over the last axis, as transformers are exported."""

    def emit(graph: Graph, x: str) -> str:
        weight = graph.store(f"{name}.weight", scale * graph.normal((inputs, outputs), inputs))
        y = graph.add("MatMul", [x, weight], f"{name}.matmul")
        return graph.add("Add", [y, graph.store(f"{name}.bias", np.zeros(outputs))], name)

    return emit


def layer_norm(name: str, width: int) -> Layer:
    def emit(graph: Graph, x: str) -> str:
        stored = [graph.store(f"{name}.{k}", np.full(width, v)) for k, v in (("weight", 1), ("bias", 0))]
        return graph.add("LayerNormalization", [x, *stored], name, axis=-1, epsilon=1e-5)

    return emit


def heads(name: str, width: int, count: int) -> Layer:
    """Self-attention over the rows of the image."""

    def emit(graph: Graph, x: str) -> str:
        def split(key: str, order: list[int]) -> str:
            y = matmul(f"{name}.{key}", width, width)(graph, x)
            shape = numpy_helper.from_array(np.array([0, SIDE, count, width // count]), f"{name}.{key}.shape")
            graph.initializers.append(shape)
            y = graph.add("Reshape", [y, shape.name], f"{name}.{key}.split")
            return graph.add("Transpose", [y], f"{name}.{key}.turned", perm=order)

        q, k, v = split("q", [0, 2, 1, 3]), split("k", [0, 2, 3, 1]), split("v", [0, 2, 1, 3])
        scores = graph.add("MatMul", [q, k], f"{name}.scores")
        scale = graph.store(f"{name}.scale", np.array((width // count) ** -0.5))
        weights = graph.add(
            "Softmax", [graph.add("Mul", [scores, scale], f"{name}.scaled")], f"{name}.softmax", axis=-1
        )
        mixed = graph.add(
            "Transpose", [graph.add("MatMul", [weights, v], f"{name}.mix")], f"{name}.back", perm=[0, 2, 1, 3]
        )
        shape = numpy_helper.from_array(np.array([0, SIDE, width]), f"{name}.shape")
        graph.initializers.append(shape)
        return matmul(f"{name}.o", width, width)(graph, graph.add("Reshape", [mixed, shape.name], f"{name}.merged"))

    return emit


def transformer(rng: Rng, after: bool) -> Layer:
    width, count, wide = drawn(rng, 24, 32), drawn(rng, 2, 4), drawn(rng, 2, 3)

    def wrapped(name: str, *inner: Layer) -> Layer:
        norm = layer_norm(f"{name}.norm", width)
        if after:
            return sequence(residual(f"{name}.add", *inner), norm)
        return residual(f"{name}.add", norm, *inner)

    def block(i: int) -> Layer:
        up, down = matmul(f"b{i}.up", width, wide * width), matmul(f"b{i}.down", wide * width, width)
        feed = wrapped(f"b{i}.ffn", up, relu(f"b{i}.relu"), down)
        return sequence(wrapped(f"b{i}.att", heads(f"b{i}", width, count)), feed)

    def tokens(graph: Graph, x: str) -> str:
        shape = numpy_helper.from_array(np.array([0, SIDE, SIDE]), "rows.shape")
        graph.initializers.append(shape)
        x = matmul("embed", SIDE, width)(graph, graph.add("Reshape", [x, shape.name], "rows"))
        place = graph.store("place", 0.5 * graph.rng.standard_normal((SIDE, width)))
        return graph.add("Add", [x, place], "placed")

    def mean(graph: Graph, x: str) -> str:
        return graph.add("ReduceMean", [x], "mean", axes=[1], keepdims=0)

    return sequence(tokens, *(block(i) for i in range(drawn(rng, 1, 2, 3))), mean, dense("fc", width, CLASSES))


@architecture
def attention_first(rng: Rng) -> Layer:
    """LayerNormalization before each branch, as in GPT."""
    return transformer(rng, after=False)


@architecture
def attention_last(rng: Rng) -> Layer:
    """LayerNormalization after each sum, as in BERT."""
    return transformer(rng, after=True)


def folded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with every BatchNormalization in the convolution before it, as exporters write it; None without one."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    stored: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in out.graph.initializer}
    made = {node.output[0]: node for node in out.graph.node}
    norms = [node for node in out.graph.node if node.op_type == "BatchNormalization"]
    for norm in norms:
        before = made[norm.input[0]]
        scale, bias, mean, var = (stored.pop(name) for name in norm.input[1:])
        factor = scale / np.sqrt(var + 1e-5)
        stored[before.input[1]] = stored[before.input[1]] * factor[:, None, None, None]
        stored[f"{before.name}.bias"] = bias - mean * factor
        before.input.append(f"{before.name}.bias")
        before.output[0] = norm.output[0]
        out.graph.node.remove(norm)
    del out.graph.initializer[:]
    out.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return out if norms else None
