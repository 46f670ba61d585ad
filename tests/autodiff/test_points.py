"""Gradients at kinks, ties and bounds, where differences say nothing: the choices that PyTorch makes as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from prunecli.autodiff import differentiate
from tests.autodiff.checker import OutputProduct, models, run_gradients

F = np.float32
# operator, attributes, x, further constant inputs -> dx of the sum of the results
POINTS: list[tuple[str, dict[str, Any], list[Any], list[Any], list[float]]] = [
    ("Relu", {}, [-1, 0, 2], [], [0, 0, 1]),
    ("Relu", {}, [1e-38, 1e-30, -1e-38], [], [1, 1, 0]),
    ("Abs", {}, [-1, 0, 2], [], [-1, 0, 1]),
    ("LeakyRelu", {"alpha": 0.5}, [-1, 0, 2], [], [0.5, 0.5, 1]),
    ("Clip", {}, [-1, 0, 0.5, 1, 2], [F(0), F(1)], [0, 1, 1, 1, 0]),
    ("Max", {}, [1, 2, 3], [np.array([2, 2, 2], F)], [0, 0.5, 1]),
    ("Min", {}, [1, 2, 3], [np.array([2, 2, 2], F)], [1, 0.5, 0]),
    ("ReduceL2", {}, [0, 0], [], [0, 0]),
    ("ReduceL2", {}, [3, 4], [], [0.6, 0.8]),
    ("ReduceMax", {}, [1, 3, 3], [], [0, 0.5, 0.5]),
    ("ReduceMin", {}, [1, 1, 3], [], [0.5, 0.5, 0]),
    ("ReduceProd", {}, [0, 2, 3], [], [6, 0, 0]),
    ("ReduceProd", {}, [0, 0, 3], [], [0, 0, 0]),
    ("Pow", {}, [0, 2], [F(2)], [0, 4]),
    ("Pow", {}, [0, -2], [F(3)], [0, 12]),
    ("Pow", {}, [0, -2, 0], [np.array([0, 0, 1], F)], [0, 0, 1]),
    ("Pow", {}, [0, 5], [F(1)], [1, 1]),
    ("Pow", {}, [0, 5], [F(0)], []),
    ("Where", {}, [1, 2], [], [1, 1]),
    ("HardSigmoid", {"alpha": 0.5, "beta": 0.5}, [-1, 0, 1], [], [0, 0.5, 0]),
    ("Erf", {}, [0, 30], [], [2 / np.sqrt(np.pi), 0]),
    ("Softplus", {}, [-200, 0, 200], [], [0, 0.5, 1]),
    ("Sigmoid", {}, [-200, 0, 200], [], [0, 0.25, 0]),
    ("Gelu", {}, [-50, 0, 50], [], [0, 0.5, 1]),
    ("Tanh", {}, [-50, 0, 50], [], [0, 1, 0]),
    ("Sign", {}, [-1, 0, 2], [], []),
]


@pytest.mark.parametrize(("op", "attributes", "x", "more", "wanted"), POINTS, ids=lambda v: str(v)[:40])
def test_gradient_at_a_point(
    op: str, attributes: dict[str, Any], x: list[Any], more: list[Any], wanted: list[float]
) -> None:
    constants = {f"c{i}": np.asarray(c) for i, c in enumerate(more)}
    names = ["x", *constants]
    if op == "Where":
        constants, names = {"c": np.array([True, True]), "nan": np.array([np.nan, np.nan], F)}, ["c", "x", "nan"]
    node = helper.make_node(op, names, ["y"], **attributes)
    model = models([node], {"x": [len(x)]}, ["y"], constants)
    built = differentiate(model, ["x"], OutputProduct(vector=None), shapes={"x": (len(x),)})
    _, found = run_gradients(built, {"x": np.array(x, F)})
    if not wanted:
        assert built.unreached == ("x",)
        return
    # one rounding per operation: 1e-6 of numbers of size 1
    np.testing.assert_allclose(found["x"], np.array(wanted, F), atol=1e-6)
