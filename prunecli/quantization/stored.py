"""The weights of a quantised graph as onnxruntime's tool stores them: read as floats, and written again.

    qdq      W_quantized, W_scale, W_zero_point behind DequantizeLinear; a bias as int32 at the scale of the product
    dynamic  W_quantized, W_scale, W_zero_point, read by MatMulInteger and its like
    nbits    W_Q4, W_scales, W_zero_points: two values to the byte, for each output its blocks of inputs

The float stand-in of such a graph (`stand_in`) has floats where integers are, so that it can be run layer by layer
and its weights changed on the way; what quantises activations is left as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from prunecli.arrays import Array
from prunecli.calibration.layers import LinearLayer, layers_of
from prunecli.calibration.layerwise import working_form
from prunecli.model import Model, find_weights
from prunecli.model.graphs import add_constant, free_name, taken_names
from prunecli.model.quantised import nbits, packed, quantised
from prunecli.reconstruct.rounding import INTEGERS, IntegerGrid, IntegerType

Form = Literal["qdq", "dynamic", "nbits"]
BIAS = float(2**30)
"""Largest integer of a bias: half of the int32 range, so that sums of products do not overflow."""


@dataclass(frozen=True)
class GridForm:
    """The form of a weight's grid. `block`: columns that share a scale, 0: all; `shared`: all rows share one."""

    kind: IntegerType
    block: int = 0
    shared: bool = False


@dataclass(frozen=True)
class StoredWeight:
    """The tensors that hold one weight. `axis`: along which scales differ, None if there is one scale. `size`: inputs
    of an output, where they are stored in blocks of bytes; 0 elsewhere."""

    name: str
    integers: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None = None
    size: int = 0

    def floats(self) -> Array:
        """The float32 tensor that is meant, as the operator that reads it computes it."""
        if self.size:
            inputs = [None, self.integers, self.scale, self.zero]
            found = nbits(
                self.integers.const_value, inputs, 4, block=content(self.integers).shape[2] * 2, width=self.size
            )
            assert found is not None
            return np.ascontiguousarray(found.array().reshape(found.shape[0], -1).T)
        found = quantised(self.integers, self.scale, self.zero, axis=self.axis or 0)
        assert found is not None
        return found.array()


def content(value: ir.Value) -> Array:
    """Return the content of a stored tensor."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def put(value: ir.Value, array: Array) -> None:
    """Store an array of the same shape in the type that is there."""
    old = value.const_value
    assert old is not None
    fresh = np.ascontiguousarray(array.reshape(tuple(old.shape.numpy())).astype(old.dtype.numpy()))
    value.const_value = ir.Tensor(fresh, dtype=old.dtype, name=value.name)


def row_axis(layer: LinearLayer) -> int | None:
    """The axis of the stored weight along which its rows lie, those of all matrices in order; None where there is none
    such."""
    batch, rows, taps, cols = layer.shape
    marks = np.arange(batch * rows, dtype=np.float64).reshape(batch, rows, 1, 1)
    spread = layer.stored(np.broadcast_to(marks, layer.shape).reshape(batch, rows, taps * cols))
    for axis, size in enumerate(spread.shape):
        along = np.moveaxis(spread, axis, 0).reshape(size, -1)
        if size == batch * rows and (along == np.arange(size)[:, None]).all():
            return axis
    return None


@dataclass(frozen=True)
class IntegerGraph:
    """A quantised graph. `weights`: by the name of the float tensor they stand for; `biases` likewise, int32."""

    model: ir.Model
    form: Form
    weights: Mapping[str, StoredWeight]
    biases: Mapping[str, StoredWeight]

    @classmethod
    def of(cls, model: ir.Model, form: Form, names: Mapping[str, str] | None = None) -> IntegerGraph:
        """Find the weights of a quantised graph; its nodes are put in order.

        Args:
            names: by the name of a tensor of integers behind DequantizeLinear, that of the float tensor that it stands
                for; where it is not given it is what onnxruntime's tool has made of that.
        """
        TopologicalSortPass()(model)
        if form == "qdq":
            found = {one.name: one for node in model.graph if (one := _dequantised(node, names or {})) is not None}
            biases = {n: w for n, w in found.items() if content(w.integers).dtype == np.int32}
            return cls(model, form, {n: w for n, w in found.items() if n not in biases}, biases=biases)
        read = _named(model) if form == "dynamic" else _blocked(model)
        weights = {one.name: one for one in read}
        return cls(model, form, weights, biases={})

    def form_of(self, layer: LinearLayer) -> GridForm | None:
        """What the grid of a layer may be; None where it does not fit the way the layer reads its weight."""
        stored = self.weights.get(layer.name)
        if stored is None:
            return None
        batch, _, taps, _ = layer.shape
        if self.form == "nbits":
            return GridForm(INTEGERS["uint4"], self._block(layer.name)) if batch == taps == 1 else None
        dtype = stored.integers.const_value.dtype.name.lower()  # type: ignore[union-attr]
        if dtype not in INTEGERS or content(stored.integers).shape != layer.weight.shape:
            return None
        if content(stored.scale).size == 1:
            return GridForm(INTEGERS[dtype], shared=True) if batch == 1 else None
        return GridForm(INTEGERS[dtype]) if row_axis(layer) == stored.axis else None

    def least_scale(self, layer: LinearLayer, bias: Array) -> Array | None:
        """(batch, rows) of the scales, with which the bias is still an int32; None where there is no such bias."""
        step = self._step(layer)
        return None if step is None else np.abs(bias) / (step * BIAS)

    def put(self, layer: LinearLayer, grids: Sequence[IntegerGrid], values: Array, bias: Array | None) -> None:
        """Store a layer.

        Args:
            layer: of the stand-in. grids: one per matrix. values: (batch, rows, K), on them.
            bias: (batch, rows), None: as it is.
        """
        stored = self.weights[layer.name]
        integers = np.stack([grid.integers(one) for grid, one in zip(grids, values, strict=True)])
        scales, zeros = (np.stack([getattr(grid, name) for grid in grids]) for name in ("scale", "zero"))
        if self.form == "nbits":
            self._put_blocks(stored, grids[0], integers[0])
        else:
            put(stored.integers, layer.stored(integers))
            one = content(stored.scale).size == 1
            put(stored.scale, scales.reshape(-1)[:1] if one else scales[..., 0])
            if stored.zero is not None:
                put(stored.zero, zeros.reshape(-1)[:1] if one else zeros[..., 0])
        self._put_bias(layer, bias, scales[..., 0])

    def _put_bias(self, layer: LinearLayer, bias: Array | None, scales: Array) -> None:
        name = layer.offset.name if layer.offset is not None else ""
        step = self._step(layer)
        if step is not None:
            held = self.biases[self._bias_name(layer)]
            present = held.floats().reshape(scales.shape) if bias is None else bias
            scale = (step * scales).astype(np.float32).astype(np.float64)
            put(held.scale, scale.reshape(-1)[: content(held.scale).size])
            put(held.integers, np.clip(np.rint(present / scale), -2 * BIAS, 2 * BIAS - 1))
        elif bias is not None and name in self.model.graph.initializers:
            put(self.model.graph.initializers[name], layer.offset.content(bias.reshape(-1)))  # type: ignore[union-attr]

    def _put_blocks(self, stored: StoredWeight, grid: IntegerGrid, integers: Array) -> None:
        """(rows, K) as (rows, blocks, bytes), the earlier of two values in the lower half of a byte."""
        width = content(stored.integers).shape[2]
        padded = np.repeat(grid.zero.astype(np.int64), width * 2, axis=1)
        padded[:, : integers.shape[1]] = integers
        put(stored.integers, packed(padded, 4))
        put(stored.scale, grid.scale)
        if stored.zero is not None:
            put(stored.zero, packed(grid.zero.astype(np.int64), 4))

    def _block(self, name: str) -> int:
        return int(content(self.weights[name].integers).shape[2]) * 2

    def _bias_name(self, layer: LinearLayer) -> str:
        return layer.offset.name if layer.offset is not None and layer.offset.node is layer.node else ""

    def _step(self, layer: LinearLayer) -> float | None:
        """The scale of what the layer reads, where its bias is an int32 at the scale of the product."""
        if self._bias_name(layer) not in self.biases:
            return None
        maker = layer.node.inputs[0].producer()  # type: ignore[union-attr]
        return float(content(maker.inputs[1])) if maker is not None else None  # type: ignore[arg-type]

    def floats(self) -> dict[str, Array]:
        """What the stored weights and biases stand for now, by the name of the float tensor."""
        return {name: one.floats() for name, one in {**self.weights, **self.biases}.items()}


def _dequantised(node: ir.Node, names: Mapping[str, str]) -> StoredWeight | None:
    inputs = list(node.inputs)
    if node.op_type != "DequantizeLinear" or not all(v is None or v.const_value is not None for v in inputs):
        return None
    if inputs[0] is None or inputs[1] is None:
        return None
    axis = node.attributes.get_int("axis", 1) if content(inputs[1]).size > 1 else None
    name = inputs[0].name or ""
    name = names.get(name, name.removesuffix("_quantized"))
    return StoredWeight(name, inputs[0], inputs[1], zero=inputs[2] if len(inputs) > 2 else None, axis=axis)


def _named(model: ir.Model) -> Iterator[StoredWeight]:
    """The weights of a dynamically quantised graph, by the names that the tool gives."""
    stored = model.graph.initializers
    for node in model.graph:
        integers = node.inputs[1] if node.op_type == "MatMulInteger" else None
        base = "" if integers is None else (integers.name or "").removesuffix("_quantized")
        scale = stored.get(f"{base}_scale")
        if integers is not None and integers.const_value is not None and scale is not None:
            axis = None if content(scale).size == 1 else content(integers).ndim - 1
            yield StoredWeight(base, integers, scale, zero=stored.get(f"{base}_zero_point"), axis=axis)


def _blocked(model: ir.Model) -> Iterator[StoredWeight]:
    for node in model.graph:
        if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) == 4:
            integers, scale, zero = (*node.inputs[1:4], None)[:3]
            if integers is not None and scale is not None and integers.const_value is not None:
                base = (integers.name or "").removesuffix("_Q4")
                yield StoredWeight(base, integers, scale, zero=zero, size=node.attributes.get_int("K", 0))


def weights_alone(model: ir.Model, kind: str, exclude: Collection[str]) -> IntegerGraph:
    """A copy of a model whose weights are integers behind DequantizeLinear, a scale per row; activations stay float.

    Args:
        kind: of integers. exclude: names of nodes whose weights stay as they are.
    """
    work = working_form(model)
    graph, dtype = work.graph, np.int8 if INTEGERS[kind].symmetric else np.uint8
    names = dict[str, str]()
    for layer in layers_of(work, find_weights(Model(work, Path(), "")).prunable)[0]:
        value, axis = layer.weight.holder.value, row_axis(layer)
        if axis is None or len(list(value.uses())) != 1 or value.is_graph_output() or layer.node.name in exclude:
            continue
        reader, shape = next(iter(value.uses())).node, layer.weight.shape
        arrays: dict[str, Array] = {"quantized": np.zeros(shape, dtype), "scale": np.ones(shape[axis], np.float32)}
        arrays |= {} if INTEGERS[kind].symmetric else {"zero_point": np.zeros(shape[axis], dtype)}
        stored = [add_constant(graph, f"{value.name}_{name}", array) for name, array in arrays.items()]
        names[stored[0].name or ""] = value.name or ""
        back = ir.Node("", "DequantizeLinear", stored, [ir.AttrInt64("axis", axis)], num_outputs=1)
        back.outputs[0].name = free_name(f"{value.name}.float", taken_names(graph))
        graph.insert_before(reader, [back])
        value.replace_all_uses_with(back.outputs[0])
        del graph.initializers[value.name or ""]
    return IntegerGraph.of(work, "qdq", names)


def stand_in(graph: IntegerGraph, prepared: ir.Model) -> ir.Model:
    """A model that computes what the quantised one does, but with its weights as floats of their names.

    Args:
        prepared: the float model that the graph was made from.
    """
    if graph.form == "qdq":
        return _without_integers(graph)
    work = prepared.clone()
    if graph.form == "dynamic":
        _quantise_inputs(work, graph)
    return work


def _without_integers(graph: IntegerGraph) -> ir.Model:
    floats, work = graph.floats(), graph.model.clone()
    names = {one.integers.name or "": one.name for one in (*graph.weights.values(), *graph.biases.values())}
    for node in list(work.graph):
        stored = _dequantised(node, names)
        if stored is None or stored.name not in floats:
            continue
        fresh = add_constant(work.graph, f"{stored.name}.float", floats[stored.name])
        old = node.outputs[0]
        old.replace_all_uses_with(fresh)
        work.graph.remove(node, safe=True)
        work.graph.initializers.pop(fresh.name or "")
        fresh.name = stored.name
        work.graph.register_initializer(fresh)
    return work


def _quantise_inputs(work: ir.Model, graph: IntegerGraph) -> None:
    """DynamicQuantizeLinear and back before every operator of which the weight is an integer."""
    for node in list(work.graph):
        held = [v.name for v in node.inputs if v is not None and v.name in graph.weights]
        data = node.inputs[0]
        if not held or data is None or data.name in graph.weights or node.op_type not in ("MatMul", "Gemm"):
            continue
        quantised = ir.Node("", "DynamicQuantizeLinear", [data], num_outputs=3)
        back = ir.Node("", "DequantizeLinear", list(quantised.outputs), num_outputs=1)
        for number, value in enumerate((*quantised.outputs, *back.outputs)):
            value.name = f"{node.name}.quantised.{number}"
        work.graph.insert_before(node, [quantised, back])
        node.replace_input_with(0, back.outputs[0])
