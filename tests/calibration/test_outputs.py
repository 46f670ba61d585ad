"""Which values tell how far a model moved, and how far that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.calibration.gradients import RUINED, looked_at, mean_error, relative_error
from tests.model.build import node, proto

N = node
LOOKED_AT: list[tuple[str, list[Any], list[str]]] = [
    ("the output", [N("Relu", ["x"], ["y"])], ["y"]),
    ("before a Softmax", [N("Relu", ["x"], ["h"]), N("Softmax", ["h"], ["y"])], ["h"]),
    ("before a LogSoftmax", [N("Relu", ["x"], ["h"]), N("LogSoftmax", ["h"], ["y"])], ["h"]),
    ("through an Identity", [N("Relu", ["x"], ["h"]), N("Sigmoid", ["h"], ["s"]), N("Identity", ["s"], ["y"])], ["h"]),
    ("what a class is the largest of", [N("Relu", ["x"], ["h"]), N("ArgMax", ["h"], ["y"], axis=1)], ["h"]),
    ("nothing but the input", [N("ArgMax", ["x"], ["y"], axis=1)], []),
]


@pytest.mark.parametrize("case", LOOKED_AT, ids=lambda case: case[0])
def test_what_is_looked_at(case: tuple[str, list[Any], list[str]]) -> None:
    _, nodes, names = case
    model = ir.from_proto(proto(nodes, {"x": ("n", 4)}, weights={}))
    model.graph.outputs[0].dtype = ir.DataType.INT64 if nodes[-1].op_type == "ArgMax" else ir.DataType.FLOAT
    assert looked_at(model.graph.outputs) == names


INF, NAN = np.inf, np.nan
ERRORS: list[tuple[str, list[float], list[float], float]] = [
    # case, wanted, found, error: by hand
    ("none", [1, 3], [1, 3], 0),
    ("of the spread", [1, 3], [1, 4], 0.5),
    ("of the energy, without spread", [2, 2], [2, 4], 0.5),
    ("nothing wanted", [0, 0], [0, 1], RUINED),
    ("nothing wanted or found", [0, 0], [0, 0], 0),
    ("where it is finite", [1, 3, -INF], [1, 4, 7], 0.5),
    ("nowhere finite", [NAN], [1], 0),
    ("no longer finite", [1, 3], [1, NAN], RUINED),
    ("another size", [1, 3], [1], RUINED),
    ("at most", [1e-12, 2e-12], [1e6, 0], RUINED),
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case[0])
def test_relative_error(case: tuple[str, list[float], list[float], float]) -> None:
    _, wanted, found, error = case
    assert relative_error(np.array(wanted), np.array(found)) == pytest.approx(error, rel=1e-12)


def test_mean_error() -> None:
    one, two = np.array([1.0, 3.0]), np.array([1.0, 4.0])
    assert mean_error([one, one], [two, one]) == 0.25 and mean_error([], []) == 0
