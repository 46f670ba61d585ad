"""docs/autodiff.md is current, and its example works."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from prunecli.autodiff import differentiate, registry
from prunecli.autodiff.rewrites import REWRITES
from prunecli.errors import PruneError
from tests.autodiff.checker import OutputProduct, run_gradients
from tests.autodiff.document import DOCUMENT, current


def test_the_generated_parts_are_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == current(), "run python -m tests.autodiff.document"


def _model(op: str) -> ir.Model:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain="own")], "g", [x], [onnx_output()])
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("own", 1), helper.make_opsetid("", 20)])
    )


def onnx_output():  # type: ignore[no-untyped-def]
    return helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])


def test_the_documented_rules_work() -> None:
    """The rewrite's model is run; the rule's operator is asked for by name."""
    before = dict(registry.RULES), dict(REWRITES)
    point = np.array([-2.0, 0.5, 3.0], np.float32)
    try:
        with pytest.raises(PruneError, match=r"own\.SquareRelu"):
            differentiate(_model("SquareRelu"), ["x"], OutputProduct(vector=None), shapes={"x": (3,)})
        for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
            exec(block, {})
        built = differentiate(_model("SquareRelu"), ["x"], OutputProduct(vector=None), shapes={"x": (3,)})
        _, found = run_gradients(built, {"x": point})
        np.testing.assert_allclose(found["x"], 2 * np.maximum(point, 0), rtol=1e-6)
        assert ("own", "Cube") in registry.RULES
    finally:
        for table, saved in zip((registry.RULES, REWRITES), before, strict=True):
            table.clear()
            table.update(saved)
