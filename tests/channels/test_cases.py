"""Every case of the tables is analysed, cut at random and proved in onnxruntime, at two choices of dimensions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.channels.analysis import analyse
from prunecli.channels.prepare import prepare
from tests.channels.cases import ELEMENTWISE, LINEAR, NORMS, Case
from tests.channels.cases_shapes import MOVES
from tests.channels.proving import TOLERANCE, free_units, prove

TABLES = {"elementwise": ELEMENTWISE, "linear": LINEAR, "norms": NORMS, "moves": MOVES}
ALL = {f"{table}/{name}": case for table, cases in TABLES.items() for name, case in cases.items()}
SEEDS = (0, 1)


@pytest.mark.parametrize("name", ALL)
def test_free_units_are_exactly_those_expected(name: str) -> None:
    net = ALL[name].net()
    model = net.model()
    free = free_units(analyse(prepare(ir.from_proto(model)), net.shapes, _other(ALL[name], net)))
    assert free == ALL[name].units


@pytest.mark.parametrize("name", ALL)
def test_cut_agrees_with_the_masked_original(name: str) -> None:
    case = ALL[name]
    for seed in SEEDS:
        net = case.net(seed)
        proof = prove(net.model(), net.shapes, _other(case, net), seed)
        assert case.options.get("random") or proof.error <= TOLERANCE[np.dtype(case.dtype).name], (seed, proof.removed)
        assert bool(proof.removed) == bool(case.units)


def _other(case: Case, net: object) -> dict[str, tuple[int, ...]] | None:
    return None if case.options.get("static") else net.other  # type: ignore[attr-defined]
