"""Every kind of pruner as a space: what it builds is what the command would save, and what it says of it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import prunecli
from prunecli.data import random_data
from prunecli.data.options import DataOptions
from prunecli.model import concrete_shapes, load, totals
from prunecli.model.shapes import Dims
from prunecli.runtime import Session
from prunecli.search.options import PrunedFile, TrialOptions
from prunecli.search.pruner import Allocation, Layer, Pruner, normal, snapped
from prunecli.search.setup import SampleSubset, open_pruner
from prunecli.search.suffix import shared
from prunecli.structures.widths import multiples
from prunecli.types import no_progress
from tests.tiny import ROOT

SAMPLE = ROOT / "sample_models" / "digits-cnn.onnx"
KINDS: list[dict[str, Any]] = [
    {}, {"criterion": "taylor"}, {"pattern": "4x1"}, {"criterion": "random"},
    {"granularity": "channel,head"}, {"granularity": "all", "criterion": "l2"},
    {"granularity": "channel", "round_to": 8, "max_ratio": 0.5},
]  # fmt: skip


def opened(**changes: Any) -> Pruner:
    session = Session.open(SAMPLE)
    options = TrialOptions(data=DataOptions("random"), **changes)
    data = random_data(session.inputs, 32, 0)
    return open_pruner(SAMPLE, options, SampleSubset.of_data(options.tried, data), no_progress)


def middle(pruner: Pruner) -> Allocation:
    return snapped(pruner.layers, {layer.name: 0.1 + 0.1 * i for i, layer in enumerate(pruner.layers)})


def stored(proto: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_tried_is_what_is_saved(kind: dict[str, Any], tmp_path: Path) -> None:
    pruner = opened(**kind)
    allocation = middle(pruner)
    tried = pruner.build(allocation)
    done = pruner.save(allocation, PrunedFile(output=tmp_path / "out.onnx"), {}, no_progress)
    assert done.verification.kind == "exact"
    ours, saved = stored(tried), stored(onnx.load(tmp_path / "out.onnx"))
    assert ours.keys() == saved.keys() and all(np.array_equal(ours[n], saved[n]) for n in ours)
    model = load(tmp_path / "out.onnx")
    found = totals(model, concrete_shapes(model, Dims()))
    remains = pruner.cost(allocation)
    if kind.get("granularity"):
        assert remains["params"] == found.params
        assert abs(remains["file_bytes"] - found.file_bytes) < 0.05 * found.file_bytes
    else:
        whole = pruner.cost({})["params"]
        units = 4 * len(pruner.layers) if kind.get("pattern") else 0  # the last unit of a weight may not fit
        assert abs(found.params - found.nonzero - (whole - remains["params"])) <= units  # nothing else of it is zero


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_building_leaves_no_trace(kind: dict[str, Any]) -> None:
    pruner = opened(**kind)
    before = pruner.build({}).SerializeToString()
    pruner.build(middle(pruner))
    assert pruner.build({}).SerializeToString() == before


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_comes_before_a_layer_is_shared(kind: dict[str, Any]) -> None:
    """Equal nodes of equal inputs, up to the first that the layer changes."""
    space = opened(**kind)
    for layer in space.layers[1:3]:
        one, other = space.build({}), space.build({layer.name: min(0.5, layer.limit)})
        before, after = stored(one), stored(other)
        moved = {n for n in before if n not in after or not np.array_equal(before[n], after[n])}
        made = shared([one, other])
        assert made and moved
        assert all(moved.isdisjoint(n.input) for n in one.graph.node if n.output[0] in made)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_threshold_removes_the_lowest_scores(kind: dict[str, Any]) -> None:
    pruner = opened(**kind)
    space = pruner
    allocation = snapped(space.layers, space.by_threshold(0.3))
    gone = sum(allocation.get(k.name, 0.0) * k.count for k in space.layers) / sum(k.count for k in space.layers)
    # digits-cnn has 16 to 32 channels: what is left of them are blocks of channels, and halves of those
    assert gone == pytest.approx(0.3, abs=0.25 if "granularity" in kind else 0.02)
    assert 0 < max(space.thresholds(allocation).values()) < np.inf
    assert snapped(space.layers, allocation) == allocation


def test_a_threshold_of_magnitude_is_the_one_of_the_command(tmp_path: Path) -> None:
    pruner = opened(criterion="l1")
    name = pruner.layers[1].name
    threshold = pruner.thresholds({name: 0.4})[name]
    prunecli.magnitude(
        SAMPLE,
        threshold=float(np.nextafter(np.float32(threshold), np.float32(1))),
        include=[name],
        output=tmp_path / "o.onnx",
    )
    saved = stored(onnx.load(tmp_path / "o.onnx"))[name]
    assert (saved == 0).sum() == round(0.4 * saved.size)


@pytest.mark.parametrize(
    ("fraction", "count", "limit", "multiple", "gone"),
    [(0.5, 10, 1, 1, 5), (0.94, 10, 0.9, 1, 9), (1.0, 10, 0.9, 1, 9), (0.5, 24, 1, 8, 8), (0.3, 24, 1, 8, 0),
     (0.67, 24, 1, 8, 16), (1.0, 24, 23 / 24, 8, 16), (0.0, 5, 1, 1, 0), (0.9, 3, 2 / 3, 4, 0)],
)  # fmt: skip
def test_whole_units_go(fraction: float, count: int, limit: float, multiple: int, gone: int) -> None:
    widths = tuple(multiples(count, multiple)) if multiple > 1 else ()
    assert Layer("k", "channel", count, 0, 0, (), limit, widths).gone(fraction) == gone


def test_settings_that_do_the_same_are_equal() -> None:
    assert normal({"b": 0.30000000001, "a": 0.0}) == {"b": 0.3}
