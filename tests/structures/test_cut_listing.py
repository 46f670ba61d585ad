"""What a plan lists is enough, also for a checker that multiplies by zero, and no more than that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.structures.cut_plan import positions_json
from tests.dependency.net import Net
from tests.structures.cuts import carry_out, net_file
from tests.structures.outside import TOLERANCE, compare


def chain(n: Net) -> Net:
    """Only the end of an element-wise chain makes a difference."""
    h = n("Relu", n("Mul", n("MatMul", n.x("N", 4), n.w(4, 8)), n.w(8)))
    return n.out(n("MatMul", h, n.w(8, 3)))


def fused(n: Net) -> Net:
    """An operator of onnxruntime's own works element by element, too; so does one that is seldom met."""
    h = n("Atan", n.ms("QuickGelu", n("MatMul", n.x("N", 4), n.w(4, 8))))
    return n.out(n("MatMul", h, n.w(8, 3)))


def flattened(n: Net) -> Net:
    """Masked before it is flattened, not behind."""
    h = n("Flatten", n("Relu", n.conv(n.x("N", 3, 6, 6), 3, 8, 3)))
    return n.out(n("MatMul", h, n.w(128, 3)))


def batch_norm_in_parts(n: Net) -> Net:
    """A variance of zero behind its epsilon would be divided by."""
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8, 3)
    mean = n("ReduceMean", h, n.c([2, 3]), keepdims=1)
    d = n("Sub", h, mean)
    var = n("ReduceMean", n("Mul", d, d), n.c([2, 3]), keepdims=1)
    scale = n("Reciprocal", n("Sqrt", n("Add", var, n.c(np.float32(1e-5)))))
    return n.out(n.conv(n("Mul", d, scale), 8, 4))


def unit_length(n: Net) -> Net:
    """A norm that is clipped and expanded is divided by, as `torch.nn.functional.normalize` is written."""
    h = n("Transpose", n.linear(n.x("N", "T", 4), 4, 8), perm=[0, 2, 1])
    norm = n("Clip", n("ReduceL2", h, n.c([2])), n.c(np.float32(1e-12)))
    h = n("Transpose", n("Div", h, n("Expand", norm, n("Shape", h))), perm=[0, 2, 1])
    return n.out(n.linear(h, 8, 3))


def masked_attention(n: Net) -> Net:
    """Scores of minus infinity do not become zero by a multiplication."""
    x = n.x("N", 5, 8)

    def heads(y: str) -> str:
        split = n("Reshape", n("MatMul", y, n.w(8, 8)), n.c([0, 5, 4, 2]))
        return str(n("Transpose", split, perm=[0, 2, 1, 3]))

    q, k, v = heads(x), n("Transpose", heads(x), perm=[0, 1, 3, 2]), heads(x)
    bias = np.where(np.tri(5, dtype=bool), 0, -np.inf).astype(np.float32)
    p = n("Softmax", n("Add", n("MatMul", q, k), n.c(bias)), axis=-1)
    y = n("Reshape", n("Transpose", n("MatMul", p, v), perm=[0, 2, 1, 3]), n.c([0, 5, 8]))
    return n.out(n("MatMul", y, n.w(8, 3)))


def captured(n: Net) -> Net:
    """A value that the body of an If reads as well is a barrier: nothing of it is cut."""
    h = n("Relu", n("MatMul", n.x("N", 4), n.w(4, 8)))
    g = n("Relu", n("MatMul", h, n.w(8, 6)))
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", [g], ["inner"])],
        "b",
        [],
        [onnx.helper.make_tensor_value_info("inner", 1, ["n", 6])],
    )
    y = n("If", n.c(np.array(True)), then_branch=branch, else_branch=branch)
    return n.out(n("MatMul", y, n.w(6, 3)))


def functional(n: Net) -> Net:
    """Values inside a local function have no name in the file."""
    body = [onnx.helper.make_node("Relu", ["a"], ["b"]), onnx.helper.make_node("Mul", ["b", "b"], ["c"])]
    imports = [onnx.helper.make_opsetid("", 18)]
    n.functions.append(onnx.helper.make_function("my", "Square", ["a"], ["c"], body, imports))
    n.domains["my"] = 1
    h = n("Square", n("MatMul", n.x("N", 4), n.w(4, 8)), domain="my")
    n.ranks["y"] = 2
    return n.out(n("MatMul", h, n.w(8, 3)))


def constants(n: Net) -> Net:
    """Weights in Constant nodes, one of them shared."""
    w = n.node(value=onnx.numpy_helper.from_array(n.rng.standard_normal((4, 8)).astype(np.float32)))
    b = n.node(value_floats=[0.1 * k for k in range(8)])
    h = n("Relu", n("Add", n("MatMul", n.x("N", 4), w), b))
    g = n("Relu", n("Add", n("MatMul", h, n.w(8, 8)), b))
    return n.out(n("MatMul", g, n.w(8, 3)))


LISTED: list[tuple[Callable[[Net], Any], set[str] | None]] = [
    (chain, {"w0", "w1", "w2", "relu3"}),
    (fused, {"w0", "w1", "atan3"}),
    (flattened, {"w0", "w1", "w2", "relu2"}),
    (batch_norm_in_parts, None),
    (unit_length, None),
    (masked_attention, None),
    (captured, {"w0", "w1", "relu2"}),
    (functional, None),
    (constants, None),
]


@pytest.mark.parametrize(("build", "listed"), LISTED, ids=lambda v: getattr(v, "__name__", ""))
def test_a_checker_that_multiplies_by_zero_agrees(tmp_path: Path, build: Any, listed: set[str] | None) -> None:
    path = net_file(tmp_path, build, opset=18)
    done = carry_out(path)
    assert done.prove().kind == "exact"
    names = done.subject.listed(done.subject.units.removed(done.removed))
    if listed is not None:
        assert set(names) == listed
    stored = positions_json({n: a for n, a in names.items() if done.subject.is_stored(n)})
    plan = {"weights": stored, "tensors": positions_json({n: a for n, a in names.items() if n not in stored})}
    assert compare(path, plan, done.cut) < TOLERANCE


def test_everything_named_makes_a_difference_somewhere(tmp_path: Path) -> None:
    """Without the forced zeros the outside checker sees that the models differ."""
    path = net_file(tmp_path, chain, opset=18)
    done = carry_out(path)
    assert compare(path, {"weights": {}, "tensors": {}}, done.cut) > TOLERANCE
