"""Small graphs with random weights, one line per operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from prunecli.model.shape_inference import gather_facts

SIZES = {"N": 2, "T": 5, "H": 6, "W": 6, "past": 4, "past + T": 9}
OTHER_SIZES = {"N": 3, "T": 7, "H": 8, "W": 10, "past": 6, "past + T": 13}


class Net:
    """`net("Relu", x)` adds a node and returns the name of its output (a tuple of names if it has several)."""

    def __init__(self, opset: int = 18, seed: int = 0, dtype: Any = np.float32, **domains: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.opset = opset
        self.domains = {"com.microsoft": 1, **domains}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.other: dict[str, tuple[int, ...]] = {}
        self.outputs: list[str] = []
        self.functions: list[onnx.FunctionProto] = []
        self.ranks: dict[str, int] = {}
        self.ir_version = 10
        self._count = 0

    def x(self, *dims: int | str, name: str = "", dtype: Any = None, limit: int = 0) -> str:
        """A graph input; letters are dynamic dimensions. `limit` makes it integer, below the limit."""
        name = name or f"x{len(self.inputs)}"
        kind = np.dtype(np.int64) if limit else np.dtype(dtype or self.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), list(dims)))
        self.shapes[name] = tuple(SIZES.get(d, d) for d in dims)  # type: ignore[misc,call-overload]
        self.other[name] = tuple(OTHER_SIZES.get(d, d) for d in dims)  # type: ignore[misc,call-overload]
        return name

    def w(self, *shape: int, name: str = "") -> str:
        """A random weight."""
        fan = max(int(np.prod(shape[1:])), 1) if len(shape) > 1 else 1
        return self.c((self.rng.standard_normal(shape) / np.sqrt(fan)).astype(self.dtype), name)

    def positive(self, *shape: int) -> str:
        return self.c((self.rng.random(shape) + 0.5).astype(self.dtype))

    def c(self, array: Any, name: str = "") -> str:
        """A constant; Python ints make int64."""
        name = name or f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, **attributes: Any) -> str:
        """A Constant node with any of its attributes."""
        return str(self("Constant", **attributes))

    def __call__(
        self, op: str, *inputs: str, outputs: int = 1, domain: str = "", skip: tuple[int, ...] = (), **attributes: Any
    ) -> Any:
        """Outputs in `skip` have no name: nobody wants them. A domain that is not imported yet is, in version 1."""
        self._count += 1
        if domain:
            self.domains.setdefault(domain, 1)
        names = ["" if k in skip else f"{op.lower()}{self._count}" + (f".{k}" if k else "") for k in range(outputs)]
        node = helper.make_node(op, list(inputs), names, name=f"node{self._count}", domain=domain, **attributes)
        self.nodes.append(node)
        return names[0] if outputs == 1 else tuple(names)

    def ms(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        return self(op, *inputs, outputs=outputs, domain="com.microsoft", **attributes)

    def conv(self, x: str, cin: int, cout: int, k: int = 1, group: int = 1, **attributes: Any) -> str:
        w = self.w(cout, cin // group, *[k] * attributes.pop("rank", 2))
        return str(self("Conv", x, w, self.w(cout), group=group, **attributes))

    def linear(self, x: str, cin: int, cout: int) -> str:
        return str(self("Add", self("MatMul", x, self.w(cin, cout)), self.w(cout)))

    def out(self, *names: str) -> Net:
        self.outputs += names
        return self

    def model(self) -> onnx.ModelProto:
        """The outputs' types and ranks are inferred; their dimensions stay symbolic."""
        model = self._with([])
        facts = gather_facts(ir.from_proto(model), self.shapes)
        known = {value.name: (facts.dtypes[value], len(shape)) for value, shape in facts.shapes.items()}
        default = helper.np_dtype_to_tensor_dtype(self.dtype)
        infos = []
        for name in self.outputs:
            kind, rank = known.get(name, (default, self.ranks.get(name, 2)))
            infos.append(helper.make_tensor_value_info(name, kind, [f"{name}.{k}" for k in range(rank)]))
        return self._with(infos)

    def _with(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, v) for domain, v in self.domains.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
        model.functions.extend(self.functions)
        return model
