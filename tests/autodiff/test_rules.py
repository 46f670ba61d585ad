"""Every rule against finite differences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from prunecli.autodiff import differentiate, registry
from prunecli.autodiff.losses import Weighted
from prunecli.autodiff.rewrites import REWRITES
from prunecli.errors import PruneError
from tests.autodiff.cases import CASES
from tests.autodiff.checker import Case, OutputProduct, build, case, check_case, draw, reference_forward
from tests.autodiff.odd_cases import ODD_CASES, REFUSED_CASES


@pytest.mark.parametrize("c", [*CASES, *ODD_CASES], ids=lambda c: c.id)
def test_gradient_agrees_with_differences(c: Case) -> None:
    check_case(c)


@pytest.mark.parametrize(("c", "words"), REFUSED_CASES, ids=[f"{c.id}: {words}" for c, words in REFUSED_CASES])
def test_what_a_rule_does_not_know_is_refused(c: Case, words: str) -> None:
    drawing = draw(c)
    model = ir.from_proto(build(c, drawing, np.float32))
    loss = Weighted(tuple((1.0, OutputProduct(value.name, None)) for value in model.graph.outputs))
    with pytest.raises(PruneError) as caught:
        differentiate(model, list(drawing.wrt), loss, shapes={})
    assert words in caught.value.message and f"{c.op} 'node'" in caught.value.message


def test_every_rule_and_rewrite_has_a_case() -> None:
    covered = {(c.domain, c.op) for c in CASES}
    assert {*registry.RULES, *REWRITES} - covered - {("", "Hardmax")} == set()


RESTATED = [
    c for c in CASES if (c.domain, c.op) in REWRITES and REWRITES[c.domain, c.op].before is None and c.op != "ZipMap"
]


@pytest.mark.parametrize("c", RESTATED, ids=lambda c: c.id)
def test_what_is_restated_is_what_onnxruntime_computes(c: Case) -> None:
    """The reference of a fused operator is ours, so that it is held against the kernel (ZipMap's yields no tensor)."""
    drawing = draw(c)
    wanted = reference_forward(c, drawing)({})
    options = ort.SessionOptions()
    options.log_severity_level = 3
    opened = ort.InferenceSession(
        build(c, drawing, np.float32).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for name, got in zip((o.name for o in opened.get_outputs()), opened.run(None, {}), strict=True):
        np.testing.assert_allclose(got, wanted[name], rtol=1e-4, atol=1e-5)  # float32 sums of some tens of terms


@pytest.mark.parametrize("factor", [2.0, 0.999, -1.0, 0.0])
def test_the_checker_sees_a_wrong_rule(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = registry.RULES["", "Tanh"]
    monkeypatch.setitem(registry.RULES, ("", "Tanh"), lambda g, dy: g.ops.mul(right(g, dy), factor))
    with pytest.raises(AssertionError):
        check_case(case("Tanh", (2, 3)))


def test_the_checker_sees_one_wrong_element(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(g, dy):  # type: ignore[no-untyped-def]
        return g.ops.pad(g.ops.slice(dy, [0], [1], [99]), [1, 0], [0, 0])

    monkeypatch.setitem(registry.RULES, ("", "Identity"), wrong)
    with pytest.raises(AssertionError):
        check_case(case("Identity", (4, 3)))
