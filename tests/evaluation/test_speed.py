"""Why a model is less faster than its work is less: read off made-up times, by what takes the time that should be gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from prunecli.evaluation import speed
from prunecli.evaluation.latency import Latency, Speedup, TimedPair, TimingOptions
from prunecli.evaluation.report import speed_rows
from prunecli.evaluation.speed import _cause, _TimeByNode
from prunecli.files import Scratch
from prunecli.runtime import quantise
from prunecli.structures.options import StructuredOptions
from tests.tiny import ROOT

Times = dict[str, tuple[str, float, tuple[int, ...] | None]]
"""By node: its operator, milliseconds, the shape of its weight."""


def by_node(times: Times) -> _TimeByNode:
    return _TimeByNode(
        {name: ms for name, (_, ms, _) in times.items()},
        {name: op for name, (op, _, _) in times.items() if op},
        {name: (shape,) for name, (_, _, shape) in times.items() if shape is not None},
        {op or "reordering": ms for name, (op, ms, _) in times.items() if not name},
    )


BEFORE: Times = {
    "a": ("Conv", 4.0, (64, 3, 3, 3)),
    "b": ("Conv", 4.0, (64, 64, 3, 3)),
    "fc": ("Gemm", 1.0, (10, 64)),
    "softmax": ("Softmax", 1.0, None),
    "": ("", 0.5, None),
}
# what becomes of the nodes -> the sentence
CAUSES: list[tuple[Times, str]] = [
    ({"a": ("Conv", 2.0, (32, 3, 3, 3)), "b": ("Conv", 1.0, (32, 32, 3, 3)), "fc": ("Gemm", 0.4, (10, 32)),
      "softmax": ("Softmax", 0.4, None), "": ("", 0.2, None)}, ""),
    ({"a": ("Conv", 3.0, (13, 3, 3, 3)), "b": ("Conv", 4.0, (27, 13, 3, 3))},
     "widths such as 13, 27 are no multiples of 16, the channels that onnxruntime computes together on this CPU"),
    ({"a": ("QLinearConv", 3.0, (13, 3, 3, 3)), "b": ("QLinearConv", 3.0, (27, 13, 3, 3))},
     "the layers that were cut take 71 % of its time: narrow layers use the processor less well"),
    ({"a": ("Conv", 3.0, (32, 3, 3, 3)), "b": ("Conv", 3.0, (32, 32, 3, 3))},
     "the layers that were cut take 71 % of its time: narrow layers use the processor less well"),
    ({"fc": ("Gemm", 3.0, (10, 13)), "a": ("Conv", 1.0, (32, 3, 3, 3)), "b": ("Conv", 1.0, (32, 32, 3, 3))},
     "the layers that were cut take 77 % of its time: narrow layers use the processor less well"),
    ({"a": ("Conv", 1.0, (32, 3, 3, 3)), "b": ("Conv", 4.0, (64, 64, 3, 3))},
     "layers that were not cut take 67 % of its time (b, fc)"),
    ({"a": ("Conv", 1.0, (32, 3, 3, 3)), "b": ("Conv", 1.0, (32, 32, 3, 3)), "fc": ("Gemm", 0.5, (10, 32)),
      "softmax": ("Softmax", 1.4, None), "": ("", 1.1, None)},
     "operators without weights take 50 % of its time (Softmax, reordering)"),
    ({"softmax": ("Softmax", 1.4, None), "": ("FusedGemm", 4.0, None)}, ""),  # of a node without a name
]  # fmt: skip


@pytest.mark.parametrize(("changed", "told"), CAUSES)
def test_the_largest_part_of_what_should_be_gone_is_the_cause(
    changed: Times, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "channel_block", lambda: 16)
    assert _cause(by_node(BEFORE), by_node(BEFORE | changed), 4.0 if told or changed[""][0] else 2.0) == told


def test_what_remains_of_the_time_is_the_inverse_of_the_speed_up() -> None:
    """The table and the sentence below it tell the same; the ratio of the medians is 2 here."""
    baseline, model = (
        Latency(np.array(times), TimingOptions(1, "CPU")) for times in ([2.0, 1.8, 3.0], [1.0, 1.0, 1.0])
    )
    pair = TimedPair(model, baseline, Speedup(1.8, 1.7, 1.9))
    (row,) = speed_rows(speed.MeasuredSpeed(pair, {}))
    assert row[-1] == pytest.approx(1 / 1.8)


def test_int8_is_the_speed_of_both_quantised(tmp_path: Path) -> None:
    model = ROOT / "sample_models" / "digits-cnn.onnx"
    found = speed.measure_int8(model, model, StructuredOptions(macs=0.5, threads=1))
    assert found.int8 and found.pair is not None and found.to_json()["quantised"] == "int8"
    assert "quantised to int8" in found.words("original") or found.pair.gain.reason
    with Scratch() as folder:
        feeds = [{"image": np.zeros((1, 1, 8, 8), np.float32)}, {"image": np.ones((1, 1, 8, 8), np.float32)}]
        path = quantise(model, feeds, folder, "q")
        ops = {node.op_type for node in onnx.load(path).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= ops
        assert path.stat().st_size < 0.6 * model.stat().st_size


def test_what_cannot_be_quantised_says_why(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    found = speed.measure_int8(tmp_path / "no.onnx", tmp_path / "no.onnx", StructuredOptions(macs=0.5, threads=1))
    assert found.pair is None and found.reason and found.words("original").startswith("the speed of int8 was not")
