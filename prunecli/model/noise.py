"""Random numbers in graphs, fixed: what is compared, measured and fitted must see the same noise each time."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    import onnx_ir as ir

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_MARKS = (b"RandomNormal", b"RandomUniform", b"Bernoulli", b"Multinomial")
_PRIME = (1 << 31) - 1
LEAST_OPSET = 9
"""Of NonZero, by which positions are numbered."""


def may_have_noise(source: bytes | Path) -> bool:
    """Whether a model file, or its bytes, names an operator of random numbers; data in other files are not read."""
    if isinstance(source, bytes):
        return any(mark in source for mark in _MARKS)
    try:
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(mark) >= 0 for mark in _MARKS)
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return False


def has_noise(model: onnx.ModelProto | ir.Model) -> bool:
    """Whether a model in memory has an operator of random numbers, as its nodes say."""
    if isinstance(model, onnx.ModelProto):
        return any(_kinds(each.node) for each in (model.graph, *model.functions))
    return any(
        node.op_type in RANDOM and node.domain in ("", "ai.onnx")
        for each in (model.graph, *model.functions.values())
        for node in each.all_nodes()
    )


def fix_noise(proto: onnx.ModelProto) -> bool:
    """Replace operators of random numbers by numbers that follow from the position and the name of the value alone, or
    from the seed where a node has one, of the same distribution and shape, in place, in bodies of If and Loop too.
    Where functions of the model hold some, functions take the place of their calls first, with the names that they have
    in a cut model, so that it sees the same noise. Return whether there were any."""
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < LEAST_OPSET:
        return False
    if any(_kinds(function.node) for function in proto.functions):
        import onnx_ir as ir

        from prunecli.model.graphs import inline_functions

        work = ir.from_proto(proto)
        inline_functions(work)
        proto.CopyFrom(ir.to_proto(work))
    return _fix(proto.graph, opset)


def noise_notes(proto: onnx.ModelProto) -> list[str]:
    """Say that noise is fixed while a model is looked at, where its graph has some."""
    kinds = sorted(set[str]().union(*(_kinds(each.node) for each in (proto.graph, *proto.functions))))
    if not kinds:
        return []
    what = "proved, measured and fitted with the noise fixed; the file stays random"
    return [f"outputs are random ({', '.join(kinds)}): {what}"]


def _kinds(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Types of the random operators among nodes and in their bodies."""
    found = set[str]()
    for node in nodes:
        found |= {node.op_type} & set(RANDOM) if node.domain in ("", "ai.onnx") else set()
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                found |= _kinds(body.node)
    return found


def _fix(graph: onnx.GraphProto, opset: int) -> bool:
    found, nodes = False, list[onnx.NodeProto]()
    for node in graph.node:
        bodies = [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs) if body.node]
        found |= sum(_fix(body, opset) for body in bodies) > 0
        if node.domain in ("", "ai.onnx") and node.op_type in RANDOM:
            nodes += _Numbers(node, opset).nodes()
            found = True
        else:
            nodes.append(node)
    if found:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return found


class _Numbers:
    """The nodes that take the place of one random node. Numbers are hashes of their positions: x -> x^2 + c modulo a
    prime, in int64; normal ones by Box and Muller, Annals of Mathematical Statistics 29 (1958), classes by the largest
    of their scores plus Gumbel noise (Gumbel, Statistical Theory of Extreme Values, 1954)."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self.node, self.opset, self.made = node, opset, list[onnx.NodeProto]()
        self.given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        own = "seed" in self.given  # nodes of one seed see the same noise, others do not
        self.seed = zlib.crc32(repr(self.given["seed"]).encode() if own else node.output[0].encode())

    def nodes(self) -> Iterator[onnx.NodeProto]:
        if self.node.op_type == "Multinomial":
            classes = self._classes(int(self.given.get("sample_size", 1)))
            dtype = self.given.get("dtype", onnx.TensorProto.INT32)
            self.made.append(helper.make_node("Cast", [classes], [self.node.output[0]], to=dtype))
            yield from self.made
            return
        like = bool(self.node.input)
        fixed = np.array(self.given.get("shape", ()), np.int64)
        shape = self._add("Shape", self.node.input[0]) if like else self._constant(fixed)
        place = self._positions(shape)
        if "Normal" in self.node.op_type:
            length = self._add("Sqrt", self._add("Mul", self._add("Log", self._uniform(place, 1)), self._number(-2.0)))
            angle = self._add("Mul", self._uniform(place, 2), self._number(2 * np.pi))
            value = self._scaled(self._add("Mul", length, self._add("Cos", angle)), "scale", "mean")
        elif self.node.op_type == "Bernoulli":
            value = self._add("Less", self._uniform(place, 1), self._add("Reshape", self._add(
                "Cast", self.node.input[0], to=onnx.TensorProto.FLOAT), self._constant(np.array([-1]))))  # fmt: skip
        else:
            low, high = (float(self.given.get(name, default)) for name, default in (("low", 0.0), ("high", 1.0)))
            spread = self._add("Mul", self._uniform(place, 1), self._number(high - low))
            value = self._add("Add", spread, self._number(low))
        self._as_typed(self._add("Reshape", value, shape), like)
        yield from self.made

    def _classes(self, samples: int) -> str:
        """Classes (N, samples), drawn by logarithms of probabilities (N, classes)."""
        sizes = self._add("Shape", self.node.input[0])
        count, classes = (self._add("Gather", sizes, self._constant(np.array([axis]))) for axis in (0, 1))
        each, one = (self._add("Concat", count, self._constant(np.array([n])), classes, axis=0) for n in (samples, 1))
        unit = self._add("Reshape", self._uniform(self._positions(each), 1), each)
        noise = self._add("Log", self._add("Neg", self._add("Log", unit)))
        scores = self._add("Reshape", self._add("Cast", self.node.input[0], to=onnx.TensorProto.FLOAT), one)
        return self._add("ArgMax", self._add("Sub", scores, noise), axis=2, keepdims=0)

    def _as_typed(self, value: str, like: bool) -> None:
        """Give the numbers the node's type and the name of its output."""
        dtype = self.given.get("dtype")
        out = self.node.output[0]
        if dtype is None and like and self.opset >= 15:
            self.made.append(helper.make_node("CastLike", [value, self.node.input[0]], [out]))
        else:
            self.made.append(helper.make_node("Cast", [value], [out], to=dtype or onnx.TensorProto.FLOAT))

    def _positions(self, shape: str) -> str:
        """0, 1, ... for all elements, as int64."""
        count = self._add("Reshape", self._add("ReduceProd", shape, keepdims=1), self._constant(np.array([1])))
        ones = self._add("ConstantOfShape", count, value=numpy_helper.from_array(np.array([1], np.float32)))
        return self._add("Reshape", self._add("NonZero", ones), self._constant(np.array([-1])))

    def _uniform(self, place: str, stream: int) -> str:
        """Between 0 and 1, without 0."""
        value = self._hashed(place, 2_654_435_761 * stream % _PRIME)
        for more in (self.seed % _PRIME, stream):
            value = self._hashed(self._add("Add", self._add("Mul", value, value), place), more)
        half = self._add("Add", self._add("Cast", value, to=onnx.TensorProto.DOUBLE), self._constant(np.array(0.5)))
        unit = self._add("Mul", half, self._constant(np.array(1 / (_PRIME + 1))))
        return self._add("Cast", unit, to=onnx.TensorProto.FLOAT)

    def _hashed(self, value: str, more: int) -> str:
        """(value + more) modulo the prime, of values so large that their square is no overflow."""
        added = self._add("Add", value, self._constant(np.array(more, np.int64)))
        whole = self._add("Div", added, self._constant(np.array(_PRIME, np.int64)))
        return self._add("Sub", added, self._add("Mul", whole, self._constant(np.array(_PRIME, np.int64))))

    def _scaled(self, value: str, scale: str, mean: str) -> str:
        wide = self._add("Mul", value, self._number(float(self.given.get(scale, 1.0))))
        return self._add("Add", wide, self._number(float(self.given.get(mean, 0.0))))

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, value: np.ndarray) -> str:
        return self._add("Constant", value=numpy_helper.from_array(value))

    def _add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{self.node.output[0]}/fixed/{len(self.made)}"
        self.made.append(helper.make_node(op, inputs, [name], **attributes))  # type: ignore[arg-type]
        return name
