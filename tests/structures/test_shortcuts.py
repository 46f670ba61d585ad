"""Slice and Pad between convolutions: one operator of the same values takes their place, and nothing else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from prunecli import structured
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.model import Dims
from prunecli.structures.prunable import AnalysedAs, open_cuttable
from prunecli.structures.shortcuts import replace_shortcuts
from tests.dependency.net import Net
from tests.dependency.proving import random_feeds, run
from tests.structures.outside import compare

WIDE, EVEN = 12, {"starts": [0, 0], "ends": [1 << 40] * 2, "steps": [2, 2], "axes": [2, 3]}
Build = Callable[[Net, str], str]


def sliced(n: Net, x: str, starts: list[int], ends: list[int], steps: list[int], axes: list[int]) -> str:
    return str(n("Slice", x, n.c(starts), n.c(ends), n.c(axes), n.c(steps)))


def padded(n: Net, x: str, low: int, high: int, value: float = 0.0, mode: str = "constant") -> str:
    return str(n("Pad", x, n.c([0, low, 0, 0, 0, high, 0, 0]), n.c(np.float32(value)), mode=mode))


def option_a(n: Net, x: str) -> str:
    """As the residual networks for CIFAR-10 have it."""
    return padded(n, sliced(n, x, **EVEN), 2, 2)


def net(shortcut: Build, channels: int, last: str = "Relu", stride: int | None = 2) -> Net:
    """Without a stride nothing is added to the shortcut."""
    n = Net()
    h = n(last, n.conv(n.x("N", 3, "H", "W"), 3, 8, 3, pads=[1] * 4))
    y = shortcut(n, h)
    if stride is not None:
        y = n("Relu", n("Add", n.conv(h, 8, channels, 3, pads=[1] * 4, strides=[stride] * 2), y))
    return n.out(n.conv(y, channels, 4))


CASES: dict[str, tuple[Net, str]] = {
    "strides and channels": (net(option_a, WIDE), "Conv"),
    "channels alone": (net(lambda n, x: padded(n, x, 4, 0), WIDE, stride=1), "Conv"),
    "channels first": (net(lambda n, x: sliced(n, padded(n, x, 0, 4), **EVEN), WIDE), "Conv"),
    "strides alone": (net(lambda n, x: sliced(n, x, **EVEN), 8), "MaxPool"),
    "the later rows": (net(lambda n, x: sliced(n, x, **{**EVEN, "starts": [1, 1]}), 8), ""),
    "rows up to a constant": (net(lambda n, x: sliced(n, x, **{**EVEN, "ends": [6, 6]}), 8, stride=None), ""),
    "channels that are only taken": (net(lambda n, x: sliced(n, x, [0], [6], [1], [1]), 6, stride=1), ""),
    "ones": (net(lambda n, x: padded(n, x, 2, 2, value=1.0), WIDE, stride=1), ""),
    "mirrored": (net(lambda n, x: padded(n, x, 2, 2, mode="reflect"), WIDE, stride=1), ""),
    "no convolution before": (net(option_a, WIDE, last="Softmax"), ""),
}


@pytest.mark.parametrize(("case", "expected"), CASES.values(), ids=list(CASES))
def test_the_operator_yields_the_same_bits(case: Net, expected: str) -> None:
    before = case.model()
    work = prepare(ir.from_proto(before))
    found = replace_shortcuts(work, case.shapes)
    made = [node.op_type for node in work.graph if node.outputs[0].name in found]
    assert made == ([expected] if expected else [])
    assert expected == "" or not [node for node in work.graph if node.op_type in ("Slice", "Pad")]
    for shapes in (case.shapes, case.other):
        feed = random_feeds(before, shapes, 0)
        for wanted, got in zip(run(before, feed), run(ir.to_proto(work), feed), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_what_costs_more_stays() -> None:
    """A convolution of many channels on few pixels."""
    wide = net(option_a, WIDE)
    n = Net()
    h = n("Relu", n.conv(n.x("N", 3, "H", "W"), 3, 256, 3, pads=[1] * 4))
    n.out(n("Add", n.conv(h, 256, 512, 3, pads=[1] * 4), padded(n, h, 128, 128)))
    assert replace_shortcuts(prepare(ir.from_proto(n.model())), n.shapes) == ()
    assert replace_shortcuts(prepare(ir.from_proto(wide.model())), wide.shapes)


def test_channels_on_both_sides_go_independently(tmp_path: Path) -> None:
    """The proof, a check from outside and a replay hold; any width means that nothing is exchanged."""
    path, place, plan = tmp_path / "m.onnx", tmp_path / "cut.onnx", tmp_path / "plan.json"
    onnx.save(net(option_a, WIDE).model(), path)
    coupled, free = (open_cuttable(path, AnalysedAs("channel", convolved=how), Dims()).units for how in ((), None))
    assert max(map(len, (g.axes for g in coupled.groups))) > max(map(len, (g.axes for g in free.groups)))
    found = structured(path, ratio=0.5, round_to=1, output=place, timing=False)
    assert "convolved" not in found.recipe
    found = structured(path, ratio=0.5, output=place, save_plan=plan, recover="none", timing=False, force=True)
    assert found.verification.kind == "exact" and found.recipe["convolved"] == ["pad4"]
    assert compare(path, plan, place) < 1e-4
    structured(path, plan=plan, output=tmp_path / "again.onnx", recover="none", timing=False)
    assert json.loads(plan.read_text())["recipe"]["convolved"] == ["pad4"]
    first, second = (onnx.load(file).graph for file in (place, tmp_path / "again.onnx"))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_what_cannot_be_met_is_told_of_the_file(tmp_path: Path) -> None:
    """The operator in the place of a shortcut adds work to what is analysed, and not to what the user asked for."""
    path = tmp_path / "m.onnx"
    onnx.save(net(option_a, WIDE).model(), path)
    with pytest.raises(PruneError, match=r"^--macs 0\.02 \("):
        structured(path, macs=0.02, max_ratio=0.5, dry_run=True, recover="none")
