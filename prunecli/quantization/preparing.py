"""Prepare a model for onnxruntime's tool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from prunecli.calibration.layerwise import working_form
from prunecli.errors import PruneError
from prunecli.model import Model
from prunecli.model.constants import Constant, behind, holders
from prunecli.model.copies import plain_path, raised
from prunecli.model.graphs import add_constant, free_name, refill, taken_names
from prunecli.model.saving import SaveOptions, save
from prunecli.quantization.stored import Form
from prunecli.runtime import PER_CHANNEL_SINCE, prepare_to_quantise

LARGEST = 1_900_000_000
"""Most bytes of weights that fit into one file with everything else."""
SUFFIXES = ("_quantized", "_scale", "_zero_point", "_Q4", "_scales", "_zero_points")
"""Suffixes of the names that the tool gives to what it stores for a weight."""
DYNAMIC_SINCE = 11
"""The first opset with DynamicQuantizeLinear."""


def prepared(file: Model, form: Form, folder: Path) -> tuple[Path, list[str]]:
    """A copy of a model in `folder`, every node named: for `qdq` of an opset with scales per channel and optimised by
    the tool; else with its constants as initializers and its products of matrices as MatMul. Also notes on that.

    Raises:
        PruneError: the opset is too old and cannot be raised; the tool refuses the model.
    """
    place = folder / "model.onnx"
    if form == "qdq":
        newer = raised(file, PER_CHANNEL_SINCE, "a scale per output channel")
        scaled = any(_is_scaled(node) for node in newer.ir.graph)
        if newer is file and not file.data_files and not scaled and not _mistakable(file.ir.graph):
            return prepare_to_quantise(plain_path(file), folder), []
        work = _with_products_unscaled(newer.ir) if scaled else newer.ir.clone()
        _rename(work.graph)
        _save_whole(replace(newer, ir=work), place)
        return prepare_to_quantise(place, folder), newer.notes[len(file.notes) :]
    newer = raised(file, DYNAMIC_SINCE, "dynamic quantisation") if form == "dynamic" else file
    work = working_form(newer.ir)
    _rename(work.graph)
    for node in list(work.graph):
        _as_product(work.graph, node)
    RemoveUnusedNodesPass()(work)
    taken = {node.name for node in work.graph if node.name}
    for number, node in enumerate(work.graph):
        if not node.name:
            node.name = free_name(f"{node.op_type}_{number}", taken)
            taken.add(node.name)
    _save_whole(replace(file, ir=work), place)
    return place, newer.notes[len(file.notes) :]


def _mistakable(graph: ir.Graph) -> list[ir.Value]:
    """Return values whose name the tool would give to a part of another value, and so confuse with it."""
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    names = {value.name for value in values if value.name}

    def base(name: str) -> str:
        return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), "")

    inner = [value for value in values if not value.is_graph_input() and not value.is_graph_output()]
    return [value for value in inner if base(value.name or "") in names]


def _rename(graph: ir.Graph) -> None:
    """Rename values that the tool would confuse."""
    taken = taken_names(graph)
    for value in _mistakable(graph):
        name = free_name(f"{value.name}.float", taken)
        taken.add(name)
        if value.is_initializer():
            del graph.initializers[value.name or ""]
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
            graph.register_initializer(value)


def _save_whole(model: Model, place: Path) -> None:
    """Save in one file: the tool does not find external data."""
    if sum(holder.tensor.nbytes for holder in holders(model.ir)) > LARGEST:
        raise PruneError(f"{model.path} is too large for onnxruntime's quantiser, which takes models up to 2 GB",
                         "prune it first, or quantise its parts")  # fmt: skip
    save(model, place, SaveOptions("never"))


def _is_scaled(node: ir.Node) -> bool:
    """Whether a Gemm has an alpha or beta. onnxruntime's tool forgets the beta of a bias that it stores in integers."""
    factors = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return node.op_type == "Gemm" and not node.domain and any(factor != 1 for factor in factors)


def _with_products_unscaled(model: ir.Model) -> ir.Model:
    """Return a copy in which the matrices and biases of Gemm include its alpha and beta."""
    work = working_form(model)
    for node in [node for node in work.graph if _is_scaled(node)]:
        for index, name in ((1, "alpha"), (2, "beta")):
            factor, value = node.attributes.get_float(name, 1.0), [*node.inputs, None, None][index]
            if factor == 1 or value is None:
                continue
            held = behind(value)
            if held is not None and held.is_own and len(held.way) == 1 and value.is_initializer():
                refill(value, (held.read() * factor).astype(held.dtype.numpy()))
                continue
            taken = taken_names(work.graph)
            by = add_constant(work.graph, f"{node.name}.{name}", np.array(factor, np.float32), taken=taken)
            product = ir.Node("", "Mul", [value, by], num_outputs=1, name=free_name(f"{node.name}.{name}.Mul", taken))
            product.outputs[0].name = free_name(f"{node.name}.{name}.product", taken)
            work.graph.insert_before(node, [product])
            node.replace_input_with(index, product.outputs[0])
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)
    return work


def _as_product(graph: ir.Graph, node: ir.Node) -> None:
    """Return a MatMul with the matrix itself for a Gemm, and for a MatMul that reads a transposed stored matrix."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain:
        return
    matrix = behind(node.inputs[1])
    if matrix is None or matrix.is_overridable or len(matrix.shape) != 2 or not matrix.dtype.is_floating_point():
        return
    if node.op_type == "MatMul":
        if len(matrix.way) > 1:
            node.replace_input_with(1, _stored(graph, matrix, transposed=False))
        return
    attributes = node.attributes
    if attributes.get_int("transA", 0) or any(attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return
    value = _stored(graph, matrix, transposed=bool(attributes.get_int("transB", 0)))
    added, output = [*node.inputs, None][2], node.outputs[0]
    product = ir.Node("", "MatMul", [node.inputs[0], value], num_outputs=1, name=node.name)
    made = [product]
    if added is not None:
        product.outputs[0].name = free_name(f"{output.name}.product", taken_names(graph))
        made.append(ir.Node("", "Add", [product.outputs[0], added], num_outputs=1))
    last, name, kind, shape = made[-1].outputs[0], output.name, output.type, output.shape
    graph.insert_before(node, made)
    output.replace_all_uses_with(last, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    last.name, last.type, last.shape = name, kind, shape


def _stored(graph: ir.Graph, matrix: Constant, transposed: bool) -> ir.Value:
    """Return the matrix as it is read, as an initializer, under its own name if only one node reads it."""
    value = matrix.way[0]
    if len(matrix.way) == 1 and not transposed:
        return value
    array = matrix.read().T if transposed else matrix.read()
    if matrix.is_own and matrix.dtype == matrix.tensor.dtype and value.is_initializer():
        refill(value, array)
        return value
    return add_constant(graph, matrix.name, array)
