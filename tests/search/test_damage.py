"""Measured damage: what can be made up for is worth nothing, and what counts twice counts twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunecli.model import Dims
from prunecli.structures.damage import DamageSource, UnitCurve, curves
from prunecli.structures.prunable import Cuttable, open_cuttable
from tests.model.build import floats, node, proto, save_proto

SIZE = 8


def mlp(folder: Path, reader: str = "MatMul") -> Cuttable:
    """Of the eight hidden units 5 equals 1, and 6 is dead."""
    w, b = floats(4, SIZE, seed=1), floats(SIZE, seed=2)
    w[:, 5], b[5], w[:, 6], b[6] = w[:, 1], b[1], 0, -1
    weights = {"w1": w, "b1": b, "w2": floats(SIZE, 3, seed=3), "s": floats(SIZE, seed=4)}
    nodes = [node("MatMul", ["x", "w1"], ["m"]), node("Add", ["m", "b1"], ["a"]), node("Relu", ["a"], ["r"]),
             node("MatMul", ["r", "w2"], ["y"])]  # fmt: skip
    if reader == "none":  # nothing multiplies the units with a matrix
        nodes[3] = node("ReduceSum", ["p"], ["y"])
        nodes.insert(3, node("Mul", ["r", "s"], ["p"]))
        del weights["w2"]
    else:
        del weights["s"]
    return open_cuttable(save_proto(proto(nodes, {"x": ("n", 4)}, weights=weights), folder), "channel,head", Dims())


def measured(subject: Cuttable, most: int = SIZE - 1) -> UnitCurve:
    fit, held = ([{"x": floats(64, 4, seed=seed)}] for seed in (5, 6))
    source = DamageSource(subject.work, subject.units, fit, held)
    (group,) = subject.units.groups
    (curve,) = curves(source, [(group, most, range(group.count, 0, -1))])
    return curve


def test_equal_and_dead_units_go_for_nothing(tmp_path: Path) -> None:
    curve = measured(mlp(tmp_path))
    assert set(curve.order[:2]) in ({6, 5}, {6, 1})
    assert curve.damage[0] == 0 and curve.damage[2] < 1e-3 < curve.damage[3]
    twin = 5 if 1 in curve.order[:2] else 1
    assert curve.scores()[twin] > 100 * max(curve.scores()[curve.order[0]], curve.scores()[curve.order[1]])


def test_scores_keep_the_order_and_what_stays_is_infinite(tmp_path: Path) -> None:
    curve = measured(mlp(tmp_path), most=5)
    scores = curve.scores()
    assert (np.diff(scores[curve.order]) > 0).all()
    assert np.isinf(np.delete(scores, curve.order)).all() and len(curve.order) == 5


def test_the_damage_is_that_of_the_outputs(tmp_path: Path) -> None:
    """All but one unit: what is left is an affine map of that unit, which explains little of three random outputs."""
    curve = measured(mlp(tmp_path))
    assert 0.2 < curve.damage[-1] < 1.1


def test_units_that_no_matrix_reads_are_measured_too(tmp_path: Path) -> None:
    subject = mlp(tmp_path, reader="none")
    if not subject.units.groups:
        pytest.skip("a sum over the units freezes them")
    curve = measured(subject)
    assert np.isfinite(curve.damage).all() and len(set(curve.order)) == SIZE - 1
