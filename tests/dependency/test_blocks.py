"""Residual blocks: found where they are and nowhere else, and dropped exactly (the branch's value forced to zero)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prunecli.dependency.analysis import analyse
from prunecli.dependency.blocks import ResidualBlock, dead_without, drop_blocks, find_blocks
from prunecli.dependency.prepare import plan_names, prepare
from tests.dependency.cases_whole import _if
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, distance, masked_original, problems_of, random_feeds, run


def _stem(n: Net) -> str:
    return str(n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 8, 3, pads=[1] * 4)))


def _branch(n: Net, x: str, c: int = 8, inner: int = 6) -> str:
    return n.conv(n("Relu", n.conv(x, c, inner, 3, pads=[1] * 4)), inner, c)


def _resnet(n: Net) -> Net:
    """Post-activation: the stream is the Relu of a sum."""
    h = _stem(n)
    for _ in range(3):
        h = n("Relu", n("Add", _branch(n, h), h))
    return n.out(n.conv(h, 8, 4))


def _batch_norm(n: Net) -> Net:
    """The branch ends in a shift: what is zero is its value, not its weights."""
    h = _stem(n)
    for _ in range(2):
        b = n("BatchNormalization", _branch(n, h), n.positive(8), n.w(8), n.w(8), n.positive(8))
        h = n("Add", h, b)
    return n.out(n.conv(h, 8, 4))


def _downsampling(n: Net) -> Net:
    """Both sides have weights and neither is the other's stream: no block. The next one is."""
    h = _stem(n)
    h = n("Add", n.conv(h, 8, 12, 3, strides=[2, 2]), n.conv(h, 8, 12, 3, strides=[2, 2]))
    return n.out(n.conv(n("Add", h, _branch(n, h, 12)), 12, 4))


def _broadcast(n: Net) -> Net:
    """A branch of another shape than the stream (squeezed) is no block; gating is none, either."""
    h = _stem(n)
    squeezed = n.conv(n("GlobalAveragePool", h), 8, 8)
    return n.out(n.conv(n("Mul", n("Add", h, squeezed), n("Sigmoid", squeezed)), 8, 4))


def _gelu(n: Net) -> Net:
    """x + 0.04 x^3 has no weights."""
    h = n.linear(n.x("N", "T", 4), 4, 8)
    cubed = n("Mul", n("Mul", n("Mul", h, h), h), n.c(np.float32(0.04)))
    return n.out(n.linear(n("Tanh", n("Add", h, cubed)), 8, 3))


def _attention(n: Net, x: str) -> str:
    q, k, v = (n.linear(x, 8, 8) for _ in range(3))
    scores = n("Softmax", n("MatMul", q, n("Transpose", k, perm=[0, 2, 1])), axis=-1)
    return n.linear(n("MatMul", scores, v), 8, 8)


def _norm(n: Net, x: str) -> str:
    return str(n("LayerNormalization", x, n.positive(8), n.w(8), axis=-1))


def _mlp(n: Net, x: str) -> str:
    return n.linear(n("Relu", n.linear(x, 8, 12)), 12, 8)


def _pre_norm(n: Net) -> Net:
    h = n.linear(n.x("N", "T", 4), 4, 8)
    for _ in range(2):
        h = n("Add", h, _attention(n, _norm(n, h)))
        h = n("Add", _mlp(n, _norm(n, h)), h)
    return n.out(n.linear(_norm(n, h), 8, 3))


def _post_norm(n: Net) -> Net:
    h = n.linear(n.x("N", "T", 4), 4, 8)
    for _ in range(2):
        h = _norm(n, n("Add", h, _attention(n, h)))
        h = _norm(n, n("Add", h, _mlp(n, h)))
    return n.out(n.linear(h, 8, 3))


def _layer_scale(n: Net) -> Net:
    """The branch ends in a learned scale, behind a drop path that does nothing."""
    h = n.linear(n.x("N", "T", 4), 4, 8)
    for _ in range(2):
        h = n("Add", h, n("Identity", n("Mul", _mlp(n, _norm(n, h)), n.w(8))))
    return n.out(n.linear(h, 8, 3))


def _nested(n: Net) -> Net:
    """A block whose branch holds two blocks, and a residual output."""
    h = _stem(n)
    inner = n.conv(h, 8, 8)
    for _ in range(2):
        inner = n("Add", inner, _branch(n, inner))
    return n.out(n("Add", n.conv(inner, 8, 8), h))


def _sum_of_three(n: Net) -> Net:
    """Two branches into one Sum: one of them at a time is a block."""
    h = _stem(n)
    return n.out(n.conv(n("Sum", _branch(n, h), h, n("Neg", h)), 8, 4))


def _shared(n: Net) -> Net:
    """Two blocks with the same weights: they go with the second one."""
    h, w, v, bias = n.linear(n.x("N", "T", 4), 4, 8), n.w(8, 12), n.w(12, 8), n.w(8)
    for _ in range(2):
        h = n("Add", h, n("Add", n("MatMul", n("Relu", n("MatMul", h, w)), v), bias))
    return n.out(n.linear(h, 8, 3))


def _control_flow(n: Net) -> Net:
    """The bodies of an If read what the branch computed before it."""
    h = _stem(n)
    return n.out(n.conv(n("Add", h, _if(n, _branch(n, h))), 8, 4))


def _used_twice(n: Net) -> Net:
    """A branch that something else reads, too, stays."""
    h = _stem(n)
    b = _branch(n, h)
    return n.out(n.conv(n("Concat", n("Add", h, b), b, axis=1), 16, 4))


def _fused(op: str, bias: bool, summed: bool) -> Callable[[Net], Net]:
    """SkipLayerNormalization: post-norm, or pre-norm where the sum goes on."""

    def build(n: Net) -> Net:
        stream = n.linear(n.x("N", "T", 4), 4, 8)
        h = stream
        for _ in range(2):
            shift = ("",) if op == "SkipLayerNormalization" and not bias else ()
            shift = (n.w(8),) if op == "SkipLayerNormalization" else shift
            tail = (*shift, n.w(8)) if bias else shift
            inputs = (stream, _mlp(n, h), n.positive(8), *tail)
            found = n.ms(op, *inputs, outputs=4 if summed else 1, skip=(1, 2), epsilon=1e-3)
            h, stream = (found[0], found[3]) if summed else (found, found)
        return n.out(n.linear(h, 8, 3), *([stream] if summed else []))

    return build


@dataclass(frozen=True)
class Found:
    build: Callable[[Net], Net]
    blocks: int


SKIP, RMS = "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"
CASES = {
    "resnet": Found(_resnet, 3),
    "batch norm": Found(_batch_norm, 2),
    "downsampling": Found(_downsampling, 1),
    "broadcast": Found(_broadcast, 0),
    "gelu": Found(_gelu, 0),
    "pre-norm": Found(_pre_norm, 4),
    "post-norm": Found(_post_norm, 4),
    "layer scale": Found(_layer_scale, 2),
    "nested": Found(_nested, 3),
    "sum of three": Found(_sum_of_three, 1),
    "shared weights": Found(_shared, 2),
    "control flow": Found(_control_flow, 1),
    "used twice": Found(_used_twice, 0),
    "fused post-norm": Found(_fused(SKIP, False, False), 2),
    "fused with bias": Found(_fused(SKIP, True, False), 2),
    "fused pre-norm": Found(_fused(SKIP, True, True), 2),
    "fused rms": Found(_fused(RMS, False, False), 2),
    "fused rms with bias": Found(_fused(RMS, True, True), 2),
}


def _blocks(n: Net) -> tuple[ir.Model, Any, list[ResidualBlock]]:
    work = prepare(ir.from_proto(n.model()))
    analysis = analyse(work, n.shapes, n.other)
    return work, analysis, find_blocks(work, analysis.geometry)


def _net(name: str, opset: int = 18) -> Net:
    return CASES[name].build(Net(opset))


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_found(name: str) -> None:
    _, _, blocks = _blocks(_net(name))
    assert len(blocks) == CASES[name].blocks
    assert len({b.name for b in blocks}) == len(blocks)


@pytest.mark.parametrize("name", CASES)
def test_a_model_without_blocks_is_the_original_with_their_values_zero(name: str) -> None:
    """Every subset of up to three. The tolerance is that of every cut: another order of sums."""
    net = _net(name)
    model, count = net.model(), CASES[name].blocks
    for size in range(1, min(count, 3) + 1):
        for chosen in combinations(range(count), size):
            cut, masked = _dropped(net, model, chosen)
            assert problems_of(cut) <= problems_of(model)
            for at in (net.shapes, net.other):
                feeds = random_feeds(model, at, 3)
                for want, got, whole in zip(*(run(m, feeds) for m in (masked, cut, model)), strict=True):
                    assert distance(got, want) <= TOLERANCE["float32"], chosen
                    assert distance(got, whole) > 1e-3, "the block had no effect: this proves nothing"


def _dropped(net: Net, model: onnx.ModelProto, chosen: tuple[int, ...]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(the model without the blocks, the original with their values zero)."""
    work, analysis, blocks = _blocks(net)
    gone = [blocks[i] for i in chosen]
    positions = {name: axes for b in gone for name, axes in b.positions.items()}
    masked = masked_original(
        model, plan_names(work, positions, analysis.geometry),
        {v.name: shape for v, shape in analysis.facts.shapes.items()},
    )  # fmt: skip
    before = _params(ir.to_proto(work))
    dead = drop_blocks(work, gone)
    cut = ir.to_proto(work)
    assert before - _params(cut) >= dead.params
    return cut, masked


def _params(model: onnx.ModelProto) -> int:
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer]
    return sum(a.size for a in arrays if a.dtype.kind == "f")


@pytest.mark.parametrize(
    "name, chosen, params",
    [
        ("resnet", (0,), 8 * 6 * 9 + 6 + 6 * 8 + 8),
        ("resnet", (0, 2), 2 * (8 * 6 * 9 + 6 + 6 * 8 + 8)),
        ("post-norm", (1,), 8 * 12 + 12 + 12 * 8 + 8),
        ("nested", (2,), 2 * (8 * 6 * 9 + 6 + 6 * 8 + 8) + 2 * (8 * 8 + 8)),
        ("nested", (0, 2), 2 * (8 * 6 * 9 + 6 + 6 * 8 + 8) + 2 * (8 * 8 + 8)),
        ("shared weights", (0,), 8),
        ("shared weights", (0, 1), 2 * 8 * 12 + 8 + 8),
    ],
)
def test_what_dies_with_a_block(name: str, chosen: tuple[int, ...], params: int) -> None:
    """Weights that others read live on; those of blocks inside a block go with it, and are counted once. The bias
    that two layers share has one copy for each."""
    blocks = _blocks(_net(name))[2]
    dead = dead_without([blocks[i] for i in chosen])
    assert dead.params == params


def test_nothing_dead_is_left_behind() -> None:
    for name, case in CASES.items():
        if case.blocks:
            cut, _ = _dropped(_net(name), _net(name).model(), tuple(range(case.blocks)))
            read = {v for node in cut.graph.node for v in node.input} | {o.name for o in cut.graph.output}
            assert {t.name for t in cut.graph.initializer} <= read, name
            assert all(set(node.output) & read for node in cut.graph.node), name


def test_a_fused_block_whose_statistics_are_read_is_none() -> None:
    net = Net(18)
    x = net.linear(net.x("N", "T", 4), 4, 8)
    y, mean = net.ms(SKIP, x, _mlp(net, x), net.positive(8), net.w(8), outputs=2, epsilon=1e-3)
    net.ranks = {mean: 3}
    assert _blocks(net.out(y, mean))[2] == []


def test_nodes_of_one_name_make_blocks_of_their_own_names() -> None:
    net = _net("resnet")
    for node in net.nodes:
        node.name = "same"
    names = [b.name for b in _blocks(net)[2]]
    assert len(set(names)) == 3 and "same" not in names
