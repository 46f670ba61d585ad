"""Every case of the tables is analysed, cut at random and proved in onnxruntime, at two choices of dimensions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.dependency.analysis import analyse
from prunecli.dependency.catalogue import catalogue
from prunecli.dependency.prepare import prepare
from tests.dependency.cases import Case
from tests.dependency.proving import TOLERANCE, free_units, prove
from tests.dependency.tables import ALL

SEEDS = (0, 1)


@pytest.mark.parametrize("name", ALL)
def test_free_units_are_exactly_those_expected(name: str) -> None:
    net = ALL[name].net()
    model = net.model()
    analysis = analyse(prepare(ir.from_proto(model)), net.shapes, _other(ALL[name], net))
    assert free_units(analysis) == ALL[name].units
    assert free_units(analysis, True) - ALL[name].units == ALL[name].options.get("wide", 0)


@pytest.mark.parametrize("name", ALL)
def test_cut_agrees_with_the_masked_original(name: str) -> None:
    case = ALL[name]
    for seed in SEEDS:
        net = case.net(seed)
        if case.options.get("unproven"):
            return
        proof = prove(net.model(), net.shapes, _other(case, net), seed, reference=case.options.get("reference", False))
        assert case.options.get("random") or proof.error <= TOLERANCE[np.dtype(case.dtype).name], (seed, proof.removed)
        assert bool(proof.removed) == bool(case.units)


BY_ANOTHER = [name for name in ALL if "by another" in name]


@pytest.mark.parametrize("name", [n if n in BY_ANOTHER else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_every_group_can_be_cut_alone(name: str) -> None:
    """What takes its length from a tensor that is cut is not cut itself."""
    case, net = ALL[name], ALL[name].net()
    model, other, reference = net.model(), _other(case, net), case.options.get("reference", False)
    if case.options.get("unproven") or case.options.get("random"):
        return
    for group in range(len(catalogue(analyse(prepare(ir.from_proto(model)), net.shapes, other)).groups)):
        proof = prove(model, net.shapes, other, group=group, reference=reference)
        assert proof.error <= TOLERANCE[np.dtype(case.dtype).name], (group, proof.removed)


def _other(case: Case, net: object) -> dict[str, tuple[int, ...]] | None:
    return None if case.options.get("static") else net.other  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_what_was_cut_can_be_cut_again(name: str) -> None:
    """The names of what the first cut put in are taken for the second."""
    case, net = ALL[name], ALL[name].net()
    if case.options.get("unproven") or not case.units:
        return
    other, reference = _other(case, net), case.options.get("reference", False)
    again = prove(
        prove(net.model(), net.shapes, other, 0, reference=reference).model, net.shapes, other, 1, reference=reference
    )
    assert case.options.get("random") or again.error <= TOLERANCE[np.dtype(case.dtype).name], again.removed
