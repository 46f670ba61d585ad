"""Numbers that were fitted in the floating-point form, stored in the quantised model by scales of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.model.floating import FloatingForm, RealTensor
from prunecli.model.graphs import add_constant, free_name, refill, taken_names
from prunecli.model.quantised import Quantised
from prunecli.operators import operator_of
from prunecli.operators.attributes import number
from prunecli.storage.stored import stored


def requantised(form: FloatingForm, model: ir.Model, seen: Mapping[str, Array] | None = None) -> ir.Model:
    """A copy of a quantised model that holds the numbers of its floating-point form, in which weights and biases were
    changed, or biases added. Weights get new scales, where a scale is theirs alone; biases the product of the scales
    that integer kernels take for granted.

    Args:
        form: of a copy of `model`, changed since it was made.
        seen: by the name of a value of the form, numbers that it takes; activations of which there are some get new
            scales, too, zero points staying.
    """
    writer = _Writer(form, model.clone(), seen or {})
    writer.write()
    return writer.model


@dataclass
class _Writer:
    form: FloatingForm
    model: ir.Model
    seen: Mapping[str, Array]

    def write(self) -> None:
        theirs, ours = self.form.model.graph.initializers, self.model.graph.initializers
        owners = Counter(_name(one.parameters[0]) for one in self.form.sources.values())
        fresh = self._activations(owners.keys())
        least = self._least(fresh)
        for name, source in self.form.sources.items():
            value = theirs.get(name)
            tensor = value.const_value if value is not None else None
            if tensor is None or isinstance(tensor, RealTensor) or source.product or name not in ours:
                continue
            scale = _name(source.parameters[0])
            if scale in ours and owners[scale] == 1 and not source.grouped:
                source = source.rescaled(tensor.numpy(), least.get(scale))
                fresh[scale] = self._put(scale, source.scale)
            refill(ours[name], source.write(tensor.numpy()))
        self._biases(fresh)
        for name, value in list(theirs.items()):
            if name in ours and name not in self.form.sources and value.const_value is not None:
                if value.const_value is not ours[name].const_value:
                    refill(ours[name], np.asarray(value.const_value.numpy()))
            elif name not in ours and not name.startswith("prunecli.constant"):
                self._add(value)

    def _activations(self, weights: Collection[str]) -> dict[str, Array]:
        """New scales of what is rounded, by the name of the scale. Scales that are equal now stay so: values that are
        moved without being computed with have one."""
        ours, tied = self.model.graph.initializers, dict[tuple[bytes, bytes], tuple[Quantised, set[str], list[Array]]]()
        for name, parameters in self.form.rounded.items():
            scale, zero = (stored(ours.get(parameter)) for parameter in parameters)
            if scale is None or zero is None or scale.size != 1 or parameters[0] in weights:
                continue
            step, point = (np.asarray(one.numpy()).reshape(()) for one in (scale, zero))
            grid = Quantised(ir.Tensor(point, dtype=zero.dtype), step, point.astype(np.int32), dtype=scale.dtype)
            _, names, values = tied.setdefault((scale.tobytes(), zero.tobytes()), (grid, set(), []))
            names.add(parameters[0])
            values.append(self.seen.get(self.form.value_of(name), np.zeros(0)).reshape(-1))
        fresh = dict[str, Array]()
        for grid, names, values in tied.values():
            if any(each.size for each in values):
                new = grid.rescaled(np.concatenate(values)).scale
                fresh |= {name: self._put(name, new) for name in names}
        return fresh

    def _least(self, fresh: Mapping[str, Array]) -> dict[str, Array]:
        """By the name of a weight's scale, the least by which the bias of its layer is an int32."""
        theirs, ours, out = self.form.model.graph.initializers, self.model.graph.initializers, dict[str, Array]()
        held = [
            (theirs[name], one.product) for name, one in self.form.sources.items() if one.product and name in theirs
        ]
        for name, value in theirs.items():
            layers = [self._layer(node) for node, index in value.uses() if index == 2] if name not in ours else []
            held += [(value, _bias_scales(made)) for made in layers if made is not None and not _is_float(made)]
        for value, scales in held:
            if len(scales) != 2 or value.const_value is None:
                continue
            data, weight = (fresh.get(_name(one), _held(one)) for one in scales)
            need = np.abs(value.const_value.numpy()).reshape(-1) / (np.where(data > 0, data, np.inf) * LARGEST)
            need = need if weight.size > 1 else need.max(initial=0)
            out[_name(scales[1])] = np.maximum(out.get(_name(scales[1]), 0), need)
        return out

    def _layer(self, node: ir.Node) -> ir.Node | None:
        """The one of the quantised model that a layer of the form stands for."""
        return next((one for one in self.model.graph if one.outputs[0].name == node.outputs[0].name), None)

    def _put(self, scale: str, array: Array) -> Array:
        value = self.model.graph.initializers[scale]
        assert value.const_value is not None
        shape = tuple(value.const_value.shape.numpy())
        refill(value, array.reshape(shape))
        return array.reshape(-1)

    def _biases(self, fresh: Mapping[str, Array]) -> None:
        """Those that were fitted, and those of layers whose weight has new scales."""
        theirs, ours = self.form.model.graph.initializers, self.model.graph.initializers
        for name, source in self.form.sources.items():
            value = theirs.get(name)
            if not source.product or value is None or value.const_value is None or name not in ours:
                continue
            moved = any(_name(one) in fresh for one in source.product)
            if not moved and isinstance(value.const_value, RealTensor):
                continue
            if moved:
                ways = (
                    [_held(one) for one in source.product],
                    [fresh.get(_name(one), _held(one)) for one in source.product],
                )
                before, after = (np.prod(np.broadcast_arrays(*factors), axis=0) for factors in ways)
                alpha = np.divide(source.scale.reshape(-1), before, where=before != 0, out=np.ones_like(before))
                source = self._rescaled(source, after * alpha)
            refill(ours[name], source.write(value.const_value.numpy()))

    def _rescaled(self, source: Quantised, scale: Array) -> Quantised:
        stated = _name(source.parameters[0])
        if stated in self.model.graph.initializers:
            self._put(stated, scale.astype(source.scale.dtype))
        return replace(source, scale=scale.astype(source.scale.dtype) if scale.size > 1 else scale.reshape(()))

    def _add(self, value: ir.Value) -> None:
        """A bias where the quantised layer has none: in integers where its operator takes such, else added to what it
        gives, before that is rounded."""
        assert value.const_value is not None
        array = np.asarray(value.const_value.numpy())
        makers = {node.outputs[0].name: node for node in self.model.graph if node.outputs}
        for node, index in value.uses():
            name = node.outputs[0].name or ""
            made, layer = makers.get(name), makers.get(self.form.results.get(name, name))
            if layer is None or made is None or index != 2:
                continue
            if _is_float(made):
                made.resize_inputs(3)
                made.replace_input_with(2, add_constant(self.model.graph, f"{made.outputs[0].name}.bias", array))
            elif (scale := _bias_scale(made)) is not None:
                self._integer_bias(made, array, scale)
            else:
                rank = 1 if node.op_type == "Gemm" else len(_of(self.form.model, node.inputs[1]).shape) - 1
                _add_behind(self.model.graph, layer.outputs[0], array.reshape(-1, *(1,) * (rank - 1)))

    def _integer_bias(self, node: ir.Node, array: Array, scale: Array) -> None:
        """As int32 by the product of the scales, which integer kernels take for granted."""
        graph, name = self.model.graph, f"{node.outputs[0].name}.bias"
        integers = add_constant(graph, name, np.rint(array / scale).clip(-(2**31), 2**31 - 1).astype(np.int32))
        known = operator_of(node)
        if known.quantised and known.bias is not None:
            node.resize_inputs(max(len(node.inputs), known.bias + 1))
            node.replace_input_with(known.bias, integers)
            return
        scale = scale.astype(np.float32) if scale.size > 1 else scale.astype(np.float32).reshape(())
        read = ir.node("DequantizeLinear", [integers, add_constant(graph, f"{name}_scale", scale)], {"axis": 0})
        if not scale.ndim:
            del read.attributes["axis"]
        taken = taken_names(graph)
        read.name, read.outputs[0].name = free_name(f"{name}.node", taken), free_name(f"{name}.numbers", taken)
        graph.insert_before(node, read)
        node.resize_inputs(3)
        node.replace_input_with(2, read.outputs[0])


LARGEST = 2.0**30
"""Of an int32 bias: half of what there is, so that a sum of products has room beside it."""


def _is_float(node: ir.Node) -> bool:
    """Whether a layer reads its weight in floating point, as it is stored."""
    return operator_of(node).bias == 2 and stored(node.inputs[1]) is not None


def _bias_scales(node: ir.Node) -> tuple[ir.Value, ...]:
    """The scales of the data and the weight of a layer that takes an int32 bias by their product; none of others."""
    known = operator_of(node)
    if known.quantised and known.bias is not None:
        found = [node.inputs[1], node.inputs[4]]
    else:
        makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
        readers = [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
        found = [reader.inputs[1] for reader in readers] if known.kernel == "sliding" else []
    return tuple(value for value in found if value is not None and stored(value) is not None)


def _bias_scale(node: ir.Node) -> Array | None:
    """Of the int32 bias of a layer: the product of both scales, and QGemm's alpha; None for layers that take none."""
    scales = _bias_scales(node)
    if len(scales) != 2:
        return None
    alpha = number(node, "alpha", 1.0) if node.op_type == "QGemm" else 1.0
    return np.asarray(_held(scales[0]) * _held(scales[1]) * np.float32(alpha))


def _of(model: ir.Model, value: ir.Value | None) -> ir.TensorProtocol:
    tensor = model.graph.initializers[_name(value)].const_value
    assert tensor is not None
    return tensor


def _add_behind(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """Let whoever reads a value, an output of the model included, get it with something added."""
    uses, name = list(value.uses()), value.name or ""
    taken = taken_names(graph)
    node = ir.node(
        "Add", [value, add_constant(graph, f"{name}.bias", array, taken=taken)], name=free_name(f"{name}.add", taken)
    )
    made = node.outputs[0]
    made.name = free_name(f"{name}.biased", taken)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    for user, index in uses:
        user.replace_input_with(index, made)
    for position, output in enumerate(list(graph.outputs)):
        if output is value:
            graph.outputs[position] = made
            made.type, made.shape = value.type, value.shape
            value.name, made.name = made.name, name


def _name(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _held(value: ir.Value) -> Array:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy()).reshape(-1)
