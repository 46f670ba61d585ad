"""Measured damage: what can be made up for is worth nothing, and what counts twice counts twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunecli.model import Dims
from prunecli.structures.calibrate import measure, most_held
from prunecli.structures.choose import Measurements
from prunecli.structures.damage import DamageSource, UnitCurve, curves
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import AnalysedAs, Cuttable, open_cuttable
from prunecli.types import no_progress
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
    return open_cuttable(
        save_proto(proto(nodes, {"x": ("n", 4)}, weights=weights), folder), AnalysedAs("channel,head"), Dims()
    )


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


def twins(folder: Path) -> tuple[Cuttable, Measurements]:
    """Two equal hidden layers side by side, whose units are added: what one lost the other can make up for."""
    weights = {"w1": np.hstack([np.eye(4), -np.eye(4)]).astype(np.float32), "w2": floats(SIZE, 3, seed=3)}
    nodes = [
        *(node("MatMul", ["x", f"{side}1"], [f"{side}m"]) for side in "uv"),
        *(node("Relu", [f"{side}m"], [f"{side}r"]) for side in "uv"),
        *(node("MatMul", [f"{side}r", f"{side}2"], [f"{side}y"]) for side in "uv"),
        node("Add", ["uy", "vy"], ["y"]),
    ]
    both = {f"{side}{name[1]}": array for name, array in weights.items() for side in "uv"}
    path = save_proto(proto(nodes, {"x": ("n", 4)}, weights=both), folder)
    np.savez(folder / "data.npz", x=floats(128, 4, seed=5))
    subject = open_cuttable(path, AnalysedAs("channel,head"), Dims())
    options = StructuredOptions(macs=0.5, data=str(folder / "data.npz"), criterion="obs")
    find = measure(subject, options, no_progress)
    assert find is not None
    return subject, find({})


def test_sums_mislead_where_the_whole_tells(tmp_path: Path) -> None:
    """A unit and its twin score less in sum than the unit and another one, and do more damage together."""
    subject, found = twins(tmp_path)
    one, two = subject.units.groups
    assert found.joint is not None
    orders = [np.argsort(found.damage[group.name]) for group in (one, two)]
    for number in range(3):
        sums, joint = [], []
        for second in (orders[0][number], orders[1][number + 1]):
            removed = np.zeros(subject.units.count, bool)
            removed[[one.first + orders[0][number], two.first + second]] = True
            sums.append(found.damage[one.name][orders[0][number]] + found.damage[two.name][second])
            joint.append(found.joint(removed))
        assert sums[0] <= sums[1] and joint[0] > 1.5 * joint[1]


@pytest.mark.parametrize(
    ("shapes", "count"),
    [
        ({"y": (1, 10)}, 96),
        ({"y": (1, 20)}, 48),
        ({"y": (1, 1000)}, 32),
        ({"y": (1, 2), "z": (1, 14)}, 60),
        ({"y": (8, 4, 4)}, 60),
        ({}, 96),
    ],
)
def test_few_samples_judge_where_each_has_many_outputs(shapes: dict[str, tuple[int, ...]], count: int) -> None:
    assert most_held([*shapes, "unknown"], shapes) == count
