"""Small models to cut, and one cut carried out by hand, so that it can be spoilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from prunecli.dependency.catalogue import Orders
from prunecli.dependency.cut import remove
from prunecli.model import Dims, save
from prunecli.runtime import Session
from prunecli.structures.cut_proof import CutProof
from prunecli.structures.prunable import AnalysedAs, Cuttable, open_cuttable
from prunecli.types import Verification
from prunecli.verify.inputs import Case, random_case
from tests.dependency.net import Net
from tests.structures.mixtures import mixed

Spoil = Callable[[ir.Model], None]
NO_ORDERS: Orders = MappingProxyType({})


def conv_net(n: Net) -> Net:
    """Two convolutions with a residual addition between."""
    a = n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 8, 3, pads=[1, 1, 1, 1]))
    b = n("Add", a, n("Relu", n.conv(a, 8, 8, 3, pads=[1, 1, 1, 1])))
    return n.out(n.conv(b, 8, 4))


def dense(n: Net) -> Net:
    """Without convolution: onnxruntime has none of float64."""
    h = n("Relu", n("Gemm", n.x("N", 4), n.w(4, 8), n.w(8)))
    return n.out(n("Gemm", h, n.w(8, 3), n.w(3)))


def mixture(n: Net) -> Net:
    """Six experts, of which each token goes through two."""
    return mixed(n)


def grouped(n: Net) -> Net:
    h = n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 8, 3, pads=[1, 1, 1, 1]))
    return n.out(n.conv(n("Relu", n.conv(h, 8, 8, 3, group=4, pads=[1, 1, 1, 1])), 8, 4))


def norm_net(n: Net) -> Net:
    """Linear, LayerNorm with parameters, linear: the width goes through the normalisation."""
    h = n.linear(n.x("N", "T", 4), 4, 8)
    return n.out(n.linear(n("LayerNormalization", h, n.positive(8), n.w(8), axis=-1), 8, 3))


def written_norm(n: Net) -> Net:
    """RMS normalisation in single operators."""
    h = n.linear(n.x("N", "T", 4), 4, 8)
    mean = n("ReduceMean", n("Mul", h, h), n.c([-1]), keepdims=1)
    scale = n("Sqrt", n("Add", mean, n.c(np.array(1e-5, n.dtype))))
    return n.out(n.linear(n("Mul", n("Div", h, scale), n.positive(8)), 8, 3))


def group_norm(n: Net) -> Net:
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8, 3)
    return n.out(n.conv(n("GroupNormalization", h, n.positive(8), n.w(8), num_groups=2), 8, 4))


def _group_norm_written(n: Net, groups: int, mean: bool = False) -> Net:
    """As exporters write it: channels, height and width of a group are one axis, as long as the image is large."""
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8, 3)
    flat = n("Reshape", h, n.c([0, groups, -1]))
    if mean:
        centred = n("Sub", flat, n("ReduceMean", flat, n.c([2])))
        deviation = n(
            "Sqrt", n("Add", n("ReduceMean", n("Mul", centred, centred), n.c([2])), n.c(np.array(1e-5, n.dtype)))
        )
        unit = n("Div", centred, deviation)
    else:
        ones, zeros = (n.c(np.full(groups, k, n.dtype)) for k in (1, 0))
        unit = n("InstanceNormalization", flat, ones, zeros)
    scaled = n("Mul", n("Reshape", unit, n("Shape", h)), n.positive(8, 1, 1))
    return n.out(n.conv(n("Relu", n("Add", scaled, n.w(8, 1, 1))), 8, 4))


def one_group(n: Net) -> Net:
    return _group_norm_written(n, 1)


def two_groups(n: Net) -> Net:
    return _group_norm_written(n, 2)


def two_groups_by_means(n: Net) -> Net:
    return _group_norm_written(n, 2, mean=True)


def rms_net(n: Net) -> Net:
    """The width goes through a normalisation without a mean, whose scale is stored and of another operator computed."""
    x = n.x("N", "T", 4)
    h = n.linear(x, 4, 8)
    computed = n("Mul", n.positive(8), n("ReduceMax", x, keepdims=0))
    first = n("SimplifiedLayerNormalization", h, computed, axis=-1, epsilon=0.1)
    second = n.ms("SkipSimplifiedLayerNormalization", first, h, n.positive(8), epsilon=0.3)
    return n.out(n.linear(second, 8, 3))


SCALED = (written_norm, rms_net)
"""Networks whose normalisations average over what `all` cuts, and are scaled."""
WIDTH = (norm_net, group_norm, one_group, two_groups, two_groups_by_means)
"""Networks whose normalisations average over what `all` cuts."""


def tiny_output(n: Net) -> Net:
    """Outputs of 1e-8: no absolute tolerance may hide a mistake."""
    conv_net(n)
    n.outputs = [n("Mul", n.outputs[0], n.c(np.array(1e-8, n.dtype)))]
    return n


def cancelling(n: Net) -> Net:
    """(x + 1e4) - 1e4: what is left of a large sum is mostly rounding."""
    conv_net(n)
    large = n.c(np.array(1e4, n.dtype))
    n.outputs = [n("Sub", n("Add", n.outputs[0], large), large)]
    return n


def saturated(n: Net) -> Net:
    """Sigmoid of -20: what is left of a difference there is mostly rounding."""
    conv_net(n)
    n.outputs = [n("Sigmoid", n("Sub", n.outputs[0], n.c(np.array(20, n.dtype))))]
    return n


def faint(n: Net) -> Net:
    """Two branches, of which the first hardly reaches the output: what is wrong in it is less than rounding there."""
    x = n.x("N", 4)
    one, other = (n.linear(n("Relu", n.linear(x, 4, 8)), 8, 3) for _ in range(2))
    return n.out(n("Add", n("Mul", one, n.c(np.array(1e-8, n.dtype))), other))


def chooses(n: Net) -> Net:
    """An index as output."""
    conv_net(n)
    return n.out(n("ArgMax", n.outputs[0], axis=1))


def rolls_dice(n: Net) -> Net:
    conv_net(n)
    n.outputs = [n("Cast", n("Multinomial", n("Flatten", n.outputs[0]), sample_size=64), to=1)]
    return n


def net_file(
    folder: Path, build: Callable[[Net], Any], dtype: Any = np.float32, opset: int = 21, seed: int = 0
) -> Path:
    net = Net(opset, seed, dtype)
    build(net)
    path = folder / f"{build.__name__}.onnx"
    onnx.save(net.model(), path)
    return path


@dataclass
class Carried:
    """A cut of a model file, written to `cut`."""

    subject: Cuttable
    removed: np.ndarray
    cut: Path

    def prove(self, cases: Any = None) -> Verification:
        forced = self.subject.forced(self.subject.units.removed(self.removed), self.removed)
        return CutProof(self.subject.file.path, forced, cases or self.cases)(self.cut)

    def cases(self, session: Session) -> list[Case]:
        return [random_case(session, self.subject.inputs, seed) for seed in (0, 1)]


def carry_out(
    path: Path,
    granularity: str = "channel,head",
    spoil: Spoil | None = None,
    every: int = 2,
    orders: Orders = NO_ORDERS,
) -> Carried:
    """Remove every second unit (the first of each group stays), spoil the result, and write it."""
    subject = open_cuttable(path, AnalysedAs(granularity, orders=orders), Dims())
    removed = np.zeros(subject.units.count, bool)
    for group in subject.units.groups:
        removed[group.first + 1 : group.units.stop : every] = True
    cut = subject.work.clone()
    remove(cut, subject.units.removed(removed), subject.inputs, subject.other_inputs)
    if spoil is not None:
        spoil(cut)
    target = path.with_name(f"{path.stem}.cut.onnx")
    save(replace(subject.file, ir=cut), target)
    return Carried(subject, removed, target)


# -- ways to get it wrong ---------------------------------------------------------------------------


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """Change a stored tensor of the cut model."""

    def spoil(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(change(np.array(value.const_value.numpy())), name=name)

    return spoil


def swap_rows(array: np.ndarray) -> np.ndarray:
    """What a wrong order of kept positions does."""
    array[[0, 1]] = array[[1, 0]]
    return array


def swap_columns(array: np.ndarray) -> np.ndarray:
    """Another order of what a matrix yields."""
    array[:, [0, 1]] = array[:, [1, 0]]
    return array


def shift_one(array: np.ndarray) -> np.ndarray:
    """One element, by a thousandth of the largest."""
    array.flat[0] += 1e-3 * np.abs(array).max()
    return array
