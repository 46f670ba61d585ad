"""Small quantised models, one per way of storing a weight: operator, types, where scales lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunecli.arrays import Array

MICROSOFT = "com.microsoft"


@dataclass
class Net:
    """Nodes and constants by name; `x` is the input, the last node's first output `y` the output."""

    opset: int = 21
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array | onnx.TensorProto] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> Net:
        """Names are separated by spaces; `_` is an absent input."""
        names = ["" if name == "_" else name for name in inputs.split()]
        self.nodes.append(helper.make_node(op, names, outputs.split(), outputs.split()[0], domain=domain, **attributes))
        return self

    def hold(self, **arrays: Any) -> Net:
        self.constants.update({name: value if isinstance(value, onnx.TensorProto) else np.asarray(value)
                               for name, value in arrays.items()})  # fmt: skip
        return self

    def integers(self, name: str, shape: tuple[int, ...], dtype: Any = np.int8) -> Net:
        """Of signed ones half the range: two products with bytes then fit into 16 bits, in which processors without VNNI add
        them up, and saturate."""
        kind = np.iinfo(dtype)
        low, high = (kind.min // 2, kind.max // 2) if kind.min else (kind.min, kind.max)
        return self.hold(**{name: self.rng.integers(low, high, shape, dtype, endpoint=True)})

    def model(self, shape: tuple[int, ...]) -> onnx.ModelProto:
        stored = []
        for name, value in self.constants.items():
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
            tensor.name = name
            stored.append(tensor)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], stored)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


F = np.float32
U = np.uint8
FINE = F(0.03)


def _q(net: Net, source: str, name: str, scale: float = 0.03, zero: int = 128, dtype: Any = U) -> Net:
    """`name` = QuantizeLinear of a value."""
    net.hold(**{f"{name}_s": F(scale), f"{name}_z": np.array(zero, dtype)})
    return net.add("QuantizeLinear", f"{source} {name}_s {name}_z", name)


def _dq(net: Net, name: str, out: str, **attributes: Any) -> Net:
    return net.add("DequantizeLinear", f"{name} {name}_s {name}_z", out, **attributes)


def qdq(dtype: Any = np.int8, zero: Any = 0, scale: Any = 0.02, axis: int | None = None, opset: int = 13) -> Net:
    """Conv 3 -> 4 with its weight behind DequantizeLinear, then a second by 1x1 to 2 channels."""
    net = _dq(_q(Net(opset), "x", "xq"), "xq", "xf")
    net.integers("w", (4, 3, 3, 3), dtype).hold(w_s=np.asarray(scale, F), w_z=np.asarray(zero, dtype))
    _dq(net, "w", "wf", **({} if axis is None else {"axis": axis}))
    net.add("Conv", "xf wf", "c", pads=[1, 1, 1, 1])
    _dq(_q(net, "c", "cq", 0.4, 0), "cq", "cf")
    net.integers("v", (2, 4, 1, 1)).hold(v_s=F(0.01), v_z=np.int8(0))
    return _dq(net, "v", "vf").add("Conv", "cf vf", "y")


def qlinear_conv() -> Net:
    net = _q(Net(13), "x", "xq")
    net.integers("w", (4, 3, 3, 3)).hold(w_s=np.array([0.01, 0.02, 0.03, 0.02], F), w_z=np.zeros(4, np.int8))
    net.hold(b=np.array([500, -300, 20, 0], np.int32), y_s=F(0.1), y_z=U(0))
    net.add("QLinearConv", "xq xq_s xq_z w w_s w_z y_s y_z b", "cq")
    net.integers("v", (2, 4, 1, 1), U).hold(v_s=F(0.01), v_z=U(120), q_s=F(0.2), q_z=U(100))
    net.add("QLinearConv", "cq y_s y_z v v_s v_z q_s q_z", "yq")
    return net.add("DequantizeLinear", "yq q_s q_z", "y")


def depthwise(op: str) -> Net:
    """Every channel by a kernel of its own."""
    if op == "ConvInteger":
        net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z").integers("w", (3, 1, 3, 3))
        net.hold(w_s=F(0.02), w_z=np.int8(0)).add(op, "xq w z w_z", "i", group=3).add("Cast", "i", "f", to=1)
        return net.add("Mul", "s w_s", "t").add("Mul", "f t", "y")
    net = _q(Net(13), "x", "xq").integers("w", (3, 1, 3, 3))
    net.hold(w_s=F(0.02), w_z=np.int8(0), y_s=F(0.2), y_z=U(128))
    net.add(op, "xq xq_s xq_z w w_s w_z y_s y_z", "yq", group=3)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def qlinear_matmul() -> Net:
    net = _q(Net(13), "x", "xq")
    net.integers("w", (6, 4), U).hold(w_s=F(0.01), w_z=U(128), y_s=F(0.05), y_z=U(128))
    net.add("QLinearMatMul", "xq xq_s xq_z w w_s w_z y_s y_z", "yq")
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def qgemm(rounded: bool) -> Net:
    net = _q(Net(13), "x", "xq")
    net.integers("w", (4, 6)).hold(w_s=np.array([0.01, 0.02, 0.03, 0.02], F), w_z=np.zeros(4, np.int8))
    net.hold(c=np.array([500, -300, 20, 0], np.int32), y_s=F(0.1), y_z=U(128))
    if not rounded:
        return net.add("QGemm", "xq xq_s xq_z w w_s w_z c", "y", MICROSOFT, transB=1, alpha=1.0)
    net.add("QGemm", "xq xq_s xq_z w w_s w_z c y_s y_z", "yq", MICROSOFT, transB=1, alpha=1.0)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def conv_integer(computed: bool = False) -> Net:
    """As quantize_dynamic writes it; `computed`: the weight is stored in floating point and quantised while it runs."""
    net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z")
    if computed:
        net.hold(w=net.rng.normal(size=(4, 3, 3, 3)).astype(F)).add("DynamicQuantizeLinear", "w", "wq w_s w_z")
        net.add("ConvInteger", "xq wq z w_z", "i", pads=[1, 1, 1, 1])
    else:
        net.integers("w", (4, 3, 3, 3)).hold(w_s=F(0.02), w_z=np.int8(0))
        net.add("ConvInteger", "xq w z w_z", "i", pads=[1, 1, 1, 1])
    net.add("Cast", "i", "f", to=TensorProto.FLOAT).add("Mul", "s w_s", "t").add("Mul", "f t", "m")
    return net.hold(b=np.ones((1, 4, 1, 1), F)).add("Add", "m b", "y")


def matmul_integer() -> Net:
    net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z")
    net.integers("w", (6, 4)).hold(w_s=np.array([0.01, 0.02, 0.03, 0.02], F), w_z=np.zeros(4, np.int8))
    net.add("MatMulInteger", "xq w z w_z", "i").add("Cast", "i", "f", to=TensorProto.FLOAT)
    return net.add("Mul", "s w_s", "t").add("Mul", "f t", "y")


def dynamic_matmul(zero: int | None = 3) -> Net:
    net = Net(13).integers("w", (6, 4)).hold(w_s=F(0.02), w_z=np.int8(zero or 0), b=np.ones(4, F))
    return net.add("DynamicQuantizeMatMul", f"x w w_s {'_' if zero is None else 'w_z'} b", "y", MICROSOFT)


def integer_to_float() -> Net:
    net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z")
    net.integers("w", (6, 4)).hold(w_s=F(0.02), w_z=np.int8(0), b=np.ones(4, F))
    return net.add("MatMulIntegerToFloat", "xq w s w_s z w_z b", "y", MICROSOFT)


def nbits(
    bits: int = 4, k: int = 32, zero: bool = False, bias: bool = False, order: Any = None, points: Any = None
) -> Net:
    """x (.., k) to 4 outputs in blocks of 16. order: which block's scale an input has; points: the type of zero
    points that are not packed."""
    net, blocks = Net(21), -(-k // 16)
    net.integers("w", (4, blocks, 16 * bits // 8), U).hold(w_s=net.rng.uniform(0.01, 0.1, 4 * blocks).astype(F))
    if zero:
        net.integers("w_z", (4 * -(-blocks * bits // 8),), U)
        if points is not None:
            net.hold(w_z=net.rng.integers(0, 1 << bits, (4, blocks)).astype(points))
    net.hold(b=np.ones(4, F))
    names = f"x w w_s {'w_z' if zero else '_'} _ {'b' if bias else ''}" if zero or bias else "x w w_s"
    if order is not None:
        net.hold(g=np.asarray(order, np.int32))
        names = "x w w_s _ g b"
    return net.add("MatMulNBits", names, "y", MICROSOFT, K=k, N=4, bits=bits, block_size=16)


def experts(bits: int = 4, block: int = 0, zero: bool = False) -> Net:
    """x (.., 32) through two of four experts of 32 inside, which are stored in so many bits."""
    net = Net(21).integers("w", (4, 32, 32 * bits // 8), U).integers("v", (4, 32, 32 * bits // 8), U)
    scales = (4, 32, 32 // block) if block else (4, 32)
    for name in "wv":
        net.hold(**{f"{name}_s": net.rng.uniform(0.2, 1, scales).astype(F) / F(2**bits)})
        if zero:
            net.integers(f"{name}_z", (*scales[:-1], -(-scales[-1] * bits // 8)), U)
    net.hold(router=net.rng.normal(size=(32, 4)).astype(F), b=np.ones((4, 32), F)).add("MatMul", "x router", "r")
    names = f"x r w w_s b v v_s _ _ _ _ {'w_z v_z' if zero else ''}"
    sizes = {"expert_weight_bits": bits, **({"block_size": block} if block else {})}
    return net.add("QMoE", names, "y", MICROSOFT, k=2, activation_type="relu", **sizes)


def blocked(axis: int = 0, zero: bool = True) -> Net:
    """A weight (8, 6) with a scale per block of neighbours along an axis."""
    shape = (2, 6) if axis == 0 else (8, 2)
    net = Net(21).integers("w", (8, 6)).hold(w_s=Net().rng.uniform(0.01, 0.1, shape).astype(F))
    net.hold(w_z=np.full(shape, 3, np.int8))
    size, names = 4 if axis == 0 else 3, "w w_s w_z" if zero else "w w_s"
    return net.add("DequantizeLinear", names, "wf", axis=axis, block_size=size).add("MatMul", "x wf", "y")


def blocked_in_part() -> Net:
    """A weight (8, 6) in blocks of 3 inputs: the last has two."""
    net = Net(21).integers("w", (8, 6)).hold(w_s=Net().rng.uniform(0.01, 0.1, (3, 6)).astype(F))
    net.hold(w_z=np.full((3, 6), -5, np.int8))
    return net.add("DequantizeLinear", "w w_s w_z", "wf", axis=0, block_size=3).add("MatMul", "x wf", "y")


def nbits_twice() -> Net:
    """Two operators read one packed weight."""
    net = nbits(8, 40, zero=True)
    net.nodes[-1].output[0] = net.nodes[-1].name = "p"
    net.add("Relu", "x", "r").add("MatMulNBits", "r w w_s w_z", "q", MICROSOFT, K=40, N=4, bits=8, block_size=16)
    return net.add("Add", "p q", "y")


def scaled() -> Net:
    """What a layer gives times a number that is stored as an integer, too."""
    net = matmul_integer()
    net.nodes[-1].output[0] = net.nodes[-1].name = "p"
    net.hold(k=np.int8(50), k_s=F(0.02), k_z=np.int8(0))
    return net.add("DequantizeLinear", "k k_s k_z", "kf").add("Mul", "p kf", "y")


def int4() -> Net:
    array = Net().rng.integers(-8, 8, (6, 4), endpoint=False)
    net = Net(21).hold(w=helper.make_tensor("w", TensorProto.INT4, (6, 4), array.reshape(-1)))
    net.hold(w_s=np.array([0.1, 0.2, 0.3, 0.2], F))
    return net.add("DequantizeLinear", "w w_s", "wf", axis=1).add("MatMul", "x wf", "y")


def narrow() -> Net:
    """Floating-point numbers of 8 bits in place of integers."""
    array = Net().rng.normal(size=(6, 4)) * 50
    net = Net(21).hold(w=helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, (6, 4), array.reshape(-1)), w_s=F(0.02))
    return net.add("DequantizeLinear", "w w_s", "wf").add("MatMul", "x wf", "y")


def unfolded(scale: Any = 0.02, zero: Any = 0, dtype: Any = np.int8, axis: int | None = None) -> Net:
    """A floating-point weight that is quantised and dequantised while the model runs."""
    net = Net(13).hold(w=Net().rng.normal(size=(6, 4)).astype(F), q_s=np.asarray(scale, F), q_z=np.asarray(zero, dtype))
    along = {} if axis is None else {"axis": axis}
    net.add("QuantizeLinear", "w q_s q_z", "q", **along).add("DequantizeLinear", "q q_s q_z", "wf", **along)
    return net.add("MatMul", "x wf", "y")


def transposed(scale: Any = 0.02) -> Net:
    """The integers are transposed before they become numbers."""
    net = Net(13).integers("w", (4, 6)).hold(w_s=np.asarray(scale, F), w_z=np.zeros(np.shape(scale), np.int8))
    net.add("Transpose", "w", "wt", perm=[1, 0]).add("DequantizeLinear", "wt w_s w_z", "wf", axis=1)
    return net.add("MatMul", "x wf", "y")


def rounded_data(zero: int | None = 128, kind: int = TensorProto.UINT8, scale: Any = 0.03, axis: int = 1) -> Net:
    """Data that is rounded, by an optional zero point, times a weight; along an axis data and weight are images."""
    along = {} if np.ndim(scale) == 0 else {"axis": axis}
    net, names = Net(21).hold(q_s=np.asarray(scale, F)), "q_s" if zero is None else "q_s q_z"
    net.hold(q_z=helper.make_tensor("q_z", kind, np.shape(scale), [zero or 0] * np.size(scale)))
    net.add("QuantizeLinear", f"x {names}", "q", **along).add("DequantizeLinear", f"q {names}", "xf", **along)
    net.integers("w", (4, 3, 3, 3) if along else (6, 4)).hold(w_s=F(0.02), w_z=np.int8(0))
    return _dq(net, "w", "wf").add("Conv" if along else "MatMul", "xf wf", "y")


def padded(value: int = 128) -> Net:
    """Integers are padded before they become numbers."""
    net = _q(Net(13), "x", "xq").hold(p=np.array([0, 1, 0, 1]), k=U(value)).add("Pad", "xq p k", "pq")
    net.nodes[-1].input[2] = "xq_z" if value == 128 else "k"
    return net.add("DequantizeLinear", "pq xq_s xq_z", "y")


def in_a_branch(net: Net, after: int) -> Net:
    """The nodes from that number on run in a branch of an If that is always taken."""
    nodes, result = net.nodes[after:], helper.make_tensor_value_info("in", TensorProto.FLOAT, None)
    nodes[-1].output[0] = "in"
    branch = helper.make_graph(nodes, "then", [], [result])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["in"])], "else", [], [result])
    net.nodes = net.nodes[:after]
    return net.hold(yes=np.array(True)).add("If", "yes", "y", then_branch=branch, else_branch=other)


def embedding() -> Net:
    """Rows of a table of integers, looked up by rounded data."""
    net = Net(13).integers("w", (7, 4), U).hold(w_s=F(0.02), w_z=U(100), low=F(0), high=F(6))
    net.add("Clip", "x low high", "xc").add("Cast", "xc", "i", to=TensorProto.INT64).add("Gather", "w i", "r")
    return net.add("DequantizeLinear", "r w_s w_z", "y")


def rows_of_integers(op: str) -> Net:
    """Rows of a table of integers that an operator reads as integers."""
    net = embedding().integers("v", (4, 3)).hold(v_s=F(0.03), v_z=np.int8(0))
    del net.nodes[-1]
    if op == "MatMulInteger":
        net.add(op, "r v w_z v_z", "j").add("Cast", "j", "f", to=TensorProto.FLOAT).add("Mul", "w_s v_s", "t")
        return net.add("Mul", "f t", "y")
    net.hold(y_s=F(0.5), y_z=U(128)).add(op, "r w_s w_z v v_s v_z y_s y_z", "yq")
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def stored_data() -> Net:
    """MatMulInteger of two stored matrices beside one of data."""
    net = matmul_integer().integers("k", (1, 3), U).hold(k_s=F(0.05), k_z=U(99)).integers("u", (3, 4))
    net.nodes[-1].output[0] = net.nodes[-1].name = "p"
    net.hold(u_s=F(0.01), u_z=np.int8(0)).add("MatMulInteger", "k u k_z u_z", "j")
    net.add("Cast", "j", "g", to=TensorProto.FLOAT).add("Mul", "k_s u_s", "r").add("Mul", "g r", "q")
    return net.add("Add", "p q", "y")


def unread_layer() -> Net:
    """A layer of which nothing reads what it gives."""
    net = qdq()
    net.integers("u", (3, 4, 1, 1)).hold(u_s=F(0.02), u_z=np.int8(0), e_s=F(0.1), e_z=U(9))
    net.add("DequantizeLinear", "u u_s u_z", "uf").add("Conv", "cf uf", "e").add("QuantizeLinear", "e e_s e_z", "eq")
    net.add("DequantizeLinear", "eq e_s e_z", "ef")
    net.nodes[:] = [*net.nodes[:-6], *net.nodes[-4:], *net.nodes[-6:-4]]
    return net


def two_readers(scale: Any, zero: int, own: Any = 0.02) -> Net:
    """One stored weight behind two DequantizeLinear."""
    net = Net(13).integers("w", (6, 4)).hold(w_s=np.asarray(own, F), w_z=np.zeros(np.shape(own), np.int8))
    net.hold(o_s=np.asarray(scale, F), o_z=np.full(np.shape(scale), zero, np.int8))
    net.add("DequantizeLinear", "w w_s w_z", "wf").add("MatMul", "x wf", "a")
    return net.add("DequantizeLinear", "w o_s o_z", "vf").add("MatMul", "x vf", "b").add("Add", "a b", "y")


def transposed_twice(second: bool, early: bool = False) -> Net:
    """Integers that are transposed, once or each time anew (`early`: both times at once), become numbers by two
    scales."""
    net = transposed()
    del net.nodes[-1]
    net.hold(o_s=F(0.05), o_z=np.int8(5)).add("MatMul", "x wf", "a")
    if second:
        net.add("Transpose", "w", "wu", perm=[1, 0])
    net.add("DequantizeLinear", f"{'wu' if second else 'wt'} o_s o_z", "vf").add("MatMul", "x vf", "b")
    net.nodes.sort(key=lambda made: made.op_type != "Transpose" if early else 0)
    return net.add("Add", "a b", "y")


def block_embedding(bits: int, zero: bool = False) -> Net:
    """Rows of a table (7, 32) in blocks of 16."""
    net = Net(21).integers("w", (7, 32 * bits // 8), U).hold(w_s=Net().rng.uniform(0.01, 0.1, (7, 2)).astype(F))
    net.integers("w_z", (7, 2 * bits // 8), U).hold(low=F(0), high=F(6))
    net.add("Clip", "x low high", "xc").add("Cast", "xc", "i", to=TensorProto.INT64)
    names = f"w i w_s{' w_z' if zero else ''}"
    return net.add("GatherBlockQuantized", names, "y", MICROSOFT, bits=bits, block_size=16)


def typed_block_embedding() -> Net:
    """Rows of a table (7, 32) of a 4-bit type in blocks of 16."""
    array = Net().rng.integers(-8, 8, (7, 32), endpoint=False)
    net = block_embedding(8).hold(w=helper.make_tensor("w", TensorProto.INT4, (7, 32), array.reshape(-1)))
    net.nodes[-1].attribute.remove(next(each for each in net.nodes[-1].attribute if each.name == "bits"))
    return net


def embedding_twice() -> Net:
    """Rows that become numbers by two scales."""
    net = embedding().hold(o_s=F(0.07), o_z=U(3))
    net.nodes[-1].name = net.nodes[-1].output[0] = "p"
    return net.add("DequantizeLinear", "r o_s o_z", "q").add("Add", "p q", "y")


def signed_without_zero_point() -> Net:
    """QuantizeLinear of opset 21 names its integers where it has no zero point."""
    net = Net(21).hold(q_s=F(0.03), w_s=F(0.01)).add("QuantizeLinear", "x q_s", "xq", output_dtype=TensorProto.INT8)
    net.add("DequantizeLinear", "xq q_s", "xf").integers("w", (6, 4)).add("DequantizeLinear", "w w_s", "wf")
    return net.add("MatMul", "xf wf", "y")


def lstm() -> Net:
    net = Net(13).integers("w", (1, 3, 16)).integers("r", (1, 4, 16)).hold(w_s=F([0.01]), w_z=np.zeros(1, np.int8))
    names = "x w r _ _ _ _ _ w_s w_z r_s w_z"
    net.hold(r_s=F([0.01]))
    return net.add("DynamicQuantizeLSTM", names, "y h c", MICROSOFT, hidden_size=4)


def attention() -> Net:
    net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z")
    net.integers("w", (8, 24)).hold(w_s=F(0.01), w_z=np.int8(0), b=np.zeros(24, F))
    return net.add("QAttention", "xq w b s w_s _ z w_z", "y", MICROSOFT, num_heads=2)


def unary(op: str, **attributes: Any) -> Net:
    net = _q(Net(13), "x", "xq").hold(y_s=F(0.02), y_z=U(128))
    net.add(op, "xq xq_s xq_z y_s y_z", "yq", MICROSOFT, **attributes)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def binary(op: str, zero: int = 128) -> Net:
    net = _q(_q(Net(13), "x", "xq"), "x", "zq", 0.02).hold(y_s=F(0.1), y_z=U(zero))
    net.add(op, "xq xq_s xq_z zq zq_s zq_z y_s y_z", "yq", MICROSOFT)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def concat() -> Net:
    net = _q(_q(Net(13), "x", "xq"), "x", "zq", 0.02).hold(y_s=F(0.03), y_z=U(128))
    net.add("QLinearConcat", "y_s y_z xq xq_s xq_z zq zq_s zq_z", "yq", MICROSOFT, axis=1)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


def where() -> Net:
    net = _q(_q(Net(13), "x", "xq"), "x", "zq", 0.02).hold(y_s=F(0.03), y_z=U(128), k=np.array([True, False] * 4))
    net.add("QLinearWhere", "k xq xq_s xq_z zq zq_s zq_z y_s y_z", "yq", MICROSOFT)
    return net.add("DequantizeLinear", "yq y_s y_z", "y")


IMAGE, ROWS, WIDE = (2, 3, 6, 6), (5, 6), (3, 8)
PER_CHANNEL = np.array([0.01, 0.02, 0.03, 0.02])
CASES: list[tuple[str, Callable[[], Net], tuple[int, ...], str]] = [
    # name, model, shape of x, the stored weight ("": none)
    ("int8", qdq, IMAGE, "w"),
    ("uint8, zero point in the middle", lambda: qdq(U, 128), IMAGE, "w"),
    ("uint8, zero point at the border", lambda: qdq(U, 0), IMAGE, "w"),
    ("int8, zero point at the border", lambda: qdq(np.int8, -128), IMAGE, "w"),
    ("per channel", lambda: qdq(scale=PER_CHANNEL, zero=[0] * 4, axis=0), IMAGE, "w"),
    ("per channel, asymmetric", lambda: qdq(scale=PER_CHANNEL, zero=[3, -7, 127, -128], axis=0), IMAGE, "w"),
    ("per input channel", lambda: qdq(scale=PER_CHANNEL[:3], zero=[1, 2, 3], axis=1), IMAGE, "w"),
    ("opset 10", lambda: qdq(opset=10), IMAGE, "w"),
    ("opset 19", lambda: qdq(opset=19), IMAGE, "w"),
    ("opset 21", lambda: qdq(opset=21), IMAGE, "w"),
    ("QLinearConv", qlinear_conv, IMAGE, "w"),
    ("QLinearConv, uint8", qlinear_conv, IMAGE, "v"),
    ("bias of QLinearConv", qlinear_conv, IMAGE, "b"),
    ("QLinearConv, depthwise", lambda: depthwise("QLinearConv"), IMAGE, "w"),
    ("ConvInteger, depthwise", lambda: depthwise("ConvInteger"), IMAGE, "w"),
    ("QLinearMatMul", qlinear_matmul, ROWS, "w"),
    ("QGemm", lambda: qgemm(True), ROWS, "w"),
    ("QGemm to floating point", lambda: qgemm(False), ROWS, "w"),
    ("bias of QGemm", lambda: qgemm(True), ROWS, "c"),
    ("ConvInteger", conv_integer, IMAGE, "w"),
    ("ConvInteger of a computed weight", lambda: conv_integer(True), IMAGE, ""),
    ("MatMulInteger", matmul_integer, ROWS, "w"),
    ("DynamicQuantizeMatMul", dynamic_matmul, ROWS, "w"),
    ("DynamicQuantizeMatMul without zero point", lambda: dynamic_matmul(None), ROWS, "w"),
    ("MatMulIntegerToFloat", integer_to_float, ROWS, "w"),
    ("MatMulNBits, 4 bits", nbits, (3, 32), "w"),
    ("MatMulNBits, 8 bits", lambda: nbits(8), (3, 32), "w"),
    ("MatMulNBits, zero points", lambda: nbits(zero=True), (3, 32), "w"),
    ("MatMulNBits, zero points in floating point", lambda: nbits(zero=True, points=F), (3, 32), "w"),
    ("MatMulNBits, an odd number of blocks", lambda: nbits(k=48, zero=True, bias=True), (3, 48), "w"),
    ("MatMulNBits, the last block not full", lambda: nbits(k=40), (3, 40), "w"),
    ("MatMulNBits, 8 bits, the last block not full", lambda: nbits(8, k=40, zero=True), (3, 40), "w"),
    ("MatMulNBits, one weight read twice", nbits_twice, (3, 40), "w"),
    ("MatMulNBits, inputs by groups", lambda: nbits(order=np.arange(32) * 7 % 32 // 16), (3, 32), "w"),
    ("MatMulNBits, groups in order", lambda: nbits(order=np.arange(32) // 16), (3, 32), "w"),
    ("QMoE, 4 bits", experts, (3, 32), "w"),
    ("QMoE, 8 bits, zero points", lambda: experts(8, zero=True), (3, 32), "v"),
    ("QMoE, blocks and zero points", lambda: experts(block=16, zero=True), (3, 32), "v"),
    ("blocks along the inputs", blocked, WIDE, "w"),
    ("blocks along the outputs", lambda: blocked(1), WIDE, "w"),
    ("blocks along the inputs, the last not full", blocked_in_part, WIDE, "w"),
    ("a number beside the weight", scaled, ROWS, "w"),
    ("int4", int4, ROWS, "w"),
    ("float8", narrow, ROWS, "w"),
    ("floating point, quantised while it runs", unfolded, ROWS, "w"),
    ("the same, per channel, clipped at both ends", lambda: unfolded(PER_CHANNEL / 4, [0] * 4, axis=1), ROWS, "w"),
    ("the same, clipped to one sign", lambda: unfolded(0.01, 0, U), ROWS, "w"),
    ("a table of rows", embedding, (5, 6), "w"),
    ("GatherBlockQuantized, bytes", lambda: block_embedding(8), (5, 6), "w"),
    ("GatherBlockQuantized, 4-bit type", typed_block_embedding, (5, 6), "w"),
    ("GatherBlockQuantized, 4 bits, zero points", lambda: block_embedding(4, True), (5, 6), "w"),
    ("blocks without zero points", lambda: blocked(zero=False), WIDE, "w"),
    ("transposed integers", transposed, ROWS, "w"),
    ("transposed integers, per channel", lambda: transposed(PER_CHANNEL), ROWS, "w"),
    ("one weight by two scales", lambda: two_readers(0.05, 0), ROWS, "w"),
    ("one weight by two zero points", lambda: two_readers(0.05, 7), ROWS, "w"),
    ("one weight by two scales per channel", lambda: two_readers(2 * PER_CHANNEL, 0, PER_CHANNEL), ROWS, "w"),
    ("one weight by two zero points and one scale", lambda: two_readers(0.02, 7), ROWS, "w"),
    ("integers transposed twice at once by two scales", lambda: transposed_twice(True, early=True), ROWS, "w"),
    ("transposed integers by two scales", lambda: transposed_twice(False), ROWS, "w"),
    ("integers transposed twice by two scales", lambda: transposed_twice(True), ROWS, "w"),
    ("rows that QLinearMatMul reads", lambda: rows_of_integers("QLinearMatMul"), (5, 6), "w"),
    ("rows that MatMulInteger reads", lambda: rows_of_integers("MatMulInteger"), (5, 6), "w"),
    ("MatMulInteger of two stored matrices", stored_data, ROWS, "w"),
    ("a layer that nothing reads", unread_layer, IMAGE, "w"),
    ("a table of rows by two scales", embedding_twice, (5, 6), ""),
    ("int8 without zero point", signed_without_zero_point, ROWS, "w"),
    ("DynamicQuantizeLSTM", lstm, (5, 2, 3), "w"),
    ("QAttention", attention, (2, 5, 8), "w"),
    ("data of one sign, 4 bits", lambda: rounded_data(0, TensorProto.UINT4, 0.2), ROWS, ""),
    ("data of the other sign", lambda: rounded_data(255), ROWS, ""),
    ("data of one sign, no zero point", lambda: rounded_data(None), ROWS, ""),
    ("data by scales per channel", lambda: rounded_data(scale=[0.03, 0.04, 0.05]), IMAGE, ""),
    ("padded integers", padded, ROWS, ""),
    ("a branch that reads integers from outside", lambda: in_a_branch(qdq(), 1), IMAGE, ""),
    ("a branch that needs constants", lambda: in_a_branch(rounded_data(255), 0), ROWS, ""),
    ("QLinearAdd of one sign", lambda: binary("QLinearAdd", 255), ROWS, ""),
    ("QLinearAdd", lambda: binary("QLinearAdd"), ROWS, ""),
    ("QLinearMul", lambda: binary("QLinearMul"), ROWS, ""),
    ("QLinearConcat", concat, ROWS, ""),
    ("QLinearWhere", where, WIDE, ""),
    ("QLinearAveragePool", lambda: unary("QLinearAveragePool", kernel_shape=[2, 2]), IMAGE, ""),
    ("QLinearGlobalAveragePool", lambda: unary("QLinearGlobalAveragePool"), IMAGE, ""),
    ("QLinearLeakyRelu", lambda: unary("QLinearLeakyRelu", alpha=0.1), ROWS, ""),
    ("QLinearSigmoid", lambda: unary("QLinearSigmoid"), ROWS, ""),
    ("QLinearSoftmax", lambda: unary("QLinearSoftmax", axis=-1, opset=13), ROWS, ""),
]
