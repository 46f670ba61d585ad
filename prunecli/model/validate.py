"""What an ONNX file claims, checked before anything is made of it: whether tensors hold what they say, without
allocating it; whether names resolve, nothing depends on itself and functions can be expanded, in linear time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.external_data import DataFolder, locate
from prunecli.model.protos import Body, bodies, tensors, value_infos
from prunecli.model.tensors import byte_count
from prunecli.operators import MICROSOFT

MAX_ELEMENTS = 1 << 48
"""More than any file system holds; keeps all later arithmetic far from overflow."""
DAMAGED = "the model is damaged; export or download it again"
_INTEGERS = ("INT32", "INT16", "INT8", "INT4", "INT2", "UINT16", "UINT8", "UINT4", "UINT2", "BOOL")
_SMALL_FLOATS = ("FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
_TINY_FLOATS = ("FLOAT8E8M0", "FLOAT6E2M3", "FLOAT6E3M2", "FLOAT4E2M1")
FIELDS = {
    "FLOAT": ("float_data", 1),
    "COMPLEX64": ("float_data", 2),
    "DOUBLE": ("double_data", 1),
    "COMPLEX128": ("double_data", 2),
    "INT64": ("int64_data", 1),
    "UINT32": ("uint64_data", 1),
    "UINT64": ("uint64_data", 1),
    "STRING": ("string_data", 1),
    **dict.fromkeys(_INTEGERS + _SMALL_FLOATS + _TINY_FLOATS, ("int32_data", 1)),
}
"""Field and entries per element for each element type (TensorProto in onnx.proto)."""


def check_tensors(model: onnx.ModelProto, path: Path, allow_outside: bool) -> DataFolder:
    """Check every tensor; external ones are then marked with the absolute path and offset of their bytes.

    Raises:
        PruneError: unknown type, negative or absurd dimensions, a byte count that does not fit the shape, or
            external data that is missing, too short or outside the model's folder.
    """
    folder = DataFolder(path, allow_outside)
    for tensor in tensors(model):
        check_tensor(tensor, path)
    locate(model, folder)
    return folder


def check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """Type, dimensions and, for inline data, its amount."""
    where = f"{path}: tensor '{tensor.name}'"
    known = {dtype.value for dtype in ir.DataType} - {ir.DataType.UNDEFINED.value}
    if tensor.data_type not in known:
        raise PruneError(f"{where} has the unknown element type {tensor.data_type}", DAMAGED)
    if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > MAX_ELEMENTS or len(tensor.dims) > 64:
        raise PruneError(f"{where} has the impossible shape {list(tensor.dims)[:8]}", DAMAGED)
    if tensor.HasField("segment"):
        raise PruneError(f"{where} is stored in segments, which no runtime reads", DAMAGED)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        _check_amount(tensor, where)
    elif tensor.data_type == ir.DataType.STRING:
        raise PruneError(f"{where} holds strings in an external file", DAMAGED)


def _check_amount(tensor: onnx.TensorProto, where: str) -> None:
    dtype, dims = ir.DataType(tensor.data_type), tuple(tensor.dims)
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        found, needed, unit = len(tensor.raw_data), byte_count(dtype, dims), "bytes"
    else:
        name, per_element = FIELDS[dtype.name]
        found, unit = len(getattr(tensor, name)), "values"
        needed = math.prod(dims) * per_element
        if dtype.name.endswith(("INT2", "INT4", "E2M1")):  # packed into the low byte of each int32
            needed = byte_count(dtype, dims)
    if found != needed:
        raise PruneError(f"{where} of shape {list(dims)} needs {needed} {unit} and has {found}", DAMAGED)


BROKEN = "export the model again; onnxruntime would not open it either"
MAX_EXPANDED = 10_000_000
"""Nodes after expanding all function calls: nested calls must not explode."""
MAX_DEPTH = 100
"""Functions that call each other and graphs in graphs: what walks them calls itself so often."""
CONSTANTS = {
    "value": onnx.AttributeProto.TENSOR,
    "sparse_value": onnx.AttributeProto.SPARSE_TENSOR,
    "value_float": onnx.AttributeProto.FLOAT,
    "value_floats": onnx.AttributeProto.FLOATS,
    "value_int": onnx.AttributeProto.INT,
    "value_ints": onnx.AttributeProto.INTS,
    "value_string": onnx.AttributeProto.STRING,
    "value_strings": onnx.AttributeProto.STRINGS,
}
"""Attributes of the Constant operator, and their types."""
Function = tuple[str, str, str]
MAIN: Function = ("", "", "")
"""Stands for the graph itself: no operator has an empty name."""


def check_graph(model: onnx.ModelProto, path: Path) -> None:
    """Raises PruneError on the first thing that no runtime could resolve."""
    _check_opsets(model, path)
    _check_text(model, path)
    _check_scope(model.graph, [], path)
    for function in model.functions:
        _check_scope(function, [], path)
    _check_functions(model, path)


def _check_opsets(model: onnx.ModelProto, path: Path) -> None:
    if not any(entry.domain == "" for entry in model.opset_import) and _uses_standard_operators(model.graph):
        raise PruneError(f"{path}: the model does not say which opset of ONNX it uses", BROKEN)


def _check_text(model: onnx.ModelProto, path: Path) -> None:
    """Names are text: the protobuf library gives bytes that are no UTF-8 as they are, and nothing can use those."""
    about = (model.producer_name, model.producer_version, model.domain, model.doc_string)
    entries: list[Iterable[str]] = [[e.domain for e in model.opset_import]]
    entries += [(e.key, e.value) for e in model.metadata_props]
    for body in bodies(model):
        described = (text for info in value_infos(body) for text in (info.name, *_dimensions(info)))
        entries += [(body.name, body.doc_string), described, _inputs(body), _outputs(body)]
        if isinstance(body, onnx.GraphProto):
            entries.append(t.name for t in body.initializer)
        for node in body.node:
            entries.append((node.name, node.op_type, node.domain, *node.output, *(a.name for a in node.attribute)))
    for text in chain(about, *entries):
        if not isinstance(text, str):
            raise PruneError(f"{path}: {text[:40]!r} is not UTF-8 text", BROKEN)


def _dimensions(info: onnx.ValueInfoProto) -> Iterator[str]:
    return (dim.dim_param for dim in info.type.tensor_type.shape.dim)


def _uses_standard_operators(graph: onnx.GraphProto) -> bool:
    return any(node.domain == "" for node in graph.node)


def _check_scope(body: Body, outer: list[set[str]], path: Path) -> None:
    """Names of one graph or function, given those of the graphs around it; then of the graphs inside."""
    known = _defined(body, path)
    scopes = [*outer, known]
    for node in body.node:
        if not node.op_type:
            raise PruneError(f"{path}: node '{node.name}' has no operator", BROKEN)
        if not node.output and node.domain in ("", MICROSOFT):
            raise PruneError(f"{path}: {_label(node)} has no outputs", BROKEN)
        if node.op_type == "Split" and "" in node.output:  # there onnxruntime ends without an error
            raise PruneError(f"{path}: {_label(node)} has an output without a name", "name all parts that it makes")
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                raise PruneError(f"{path}: {_label(node)} reads '{name}', which nothing produces", BROKEN)
        if node.op_type == "Constant" and not node.domain:
            _check_constant(node, path)
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                _check_scope(graph, scopes, path)
    for name in _outputs(body):
        if name not in known:
            raise PruneError(f"{path}: nothing produces the output '{name}' of '{body.name}'", BROKEN)


def _check_constant(node: onnx.NodeProto, path: Path) -> None:
    for attribute in node.attribute:
        kind = CONSTANTS.get(attribute.name, attribute.type)
        if attribute.type not in (kind, onnx.AttributeProto.UNDEFINED) and not attribute.ref_attr_name:
            raise PruneError(f"{path}: '{attribute.name}' of {_label(node)} has another type than that", BROKEN)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _inputs(body: Body) -> list[str]:
    return list(body.input) if isinstance(body, onnx.FunctionProto) else [info.name for info in body.input]


def _outputs(body: Body) -> list[str]:
    return list(body.output) if isinstance(body, onnx.FunctionProto) else [info.name for info in body.output]


def _defined(body: Body, path: Path) -> set[str]:
    """Every name the body defines, each once; an initializer may also be an input."""
    inputs, made = _inputs(body), [name for node in body.node for name in node.output if name]
    stored = [t.name for t in body.initializer] if isinstance(body, onnx.GraphProto) else []
    for names in (inputs, stored, [*{*inputs, *stored}, *made]):
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise PruneError(f"{path}: the name '{twice}' is defined twice in '{body.name}'", BROKEN)
    return {*inputs, *stored, *made}


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node '{node.name or (node.output[0] if node.output else '')}'"


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Functions are unique, do not call themselves, and expand to a sane number of nodes, not too deep."""
    calls, below = {MAIN: Counter(_called(model.graph.node))}, {MAIN: _levels(model.graph.node)}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in calls:
            raise PruneError(f"{path}: the function '{function.name}' is defined twice", BROKEN)
        calls[key], below[key] = Counter(_called(function.node)), _levels(function.node)
    sizes: dict[Function, int] = {}
    for key in calls:
        _expand(key, calls, sizes, path=path)
    depths: dict[Function, int] = {}
    for key in sizes:  # what is called comes before what calls it
        depths[key] = 1 + below[key] + max((depths.get(called, 0) for called in calls[key]), default=0)
    if max(depths.values()) > MAX_DEPTH:
        raise PruneError(f"{path}: its functions and graphs are nested more than {MAX_DEPTH} deep", BROKEN)
    if sizes[MAIN] > MAX_EXPANDED:
        raise PruneError(f"{path}: its functions expand to more than {MAX_EXPANDED} nodes", BROKEN)


def _expand(start: Function, calls: dict[Function, Counter[Function]], sizes: dict[Function, int], path: Path) -> None:
    """Fill `sizes` for `start` and what it calls, without recursion: chains of calls may be long."""
    stack, open_calls = [start], set()
    while stack:
        key = stack[-1]
        waiting = [c for c in calls[key] if c in calls and c not in sizes] if key not in sizes else []
        if not waiting:
            open_calls.discard(key)
            size = 1 + sum(sizes.get(c, 1) * n for c, n in calls[key].items())
            sizes[stack.pop()] = min(size, MAX_EXPANDED + 1)
            continue
        open_calls.add(key)
        if any(c in open_calls for c in waiting):
            raise PruneError(f"{path}: the function '{key[1]}' calls itself", BROKEN)
        stack += waiting


def _levels(nodes: Iterable[onnx.NodeProto]) -> int:
    """How deep graphs are nested in the attributes of these nodes."""
    inner = (graph for node in nodes for attribute in node.attribute for graph in _graphs(attribute))
    return max((1 + _levels(graph.node) for graph in inner), default=0)


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[Function]:
    for node in nodes:
        yield (node.domain, node.op_type, node.overload)
        for attribute in node.attribute:
            for graph in _graphs(attribute):
                yield from _called(graph.node)
