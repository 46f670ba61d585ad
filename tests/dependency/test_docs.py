"""The worked example of docs/rules.md: the documented code is run, and its cuts are proved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference.op_run import OpRun

from prunecli.dependency import registry
from prunecli.dependency.analysis import analyse
from prunecli.dependency.prepare import prepare
from prunecli.operators import OPERATORS
from tests.dependency.net import Net
from tests.dependency.proving import TOLERANCE, free_units, prove

DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"
DOMAIN = "example.audio"


class BandGain(OpRun):  # type: ignore[misc]
    """Y[n, b * L + l, t] = X[n, b * L + l, t] * gain[b]."""

    op_domain = DOMAIN

    def _run(self, x: np.ndarray, gain: np.ndarray, bands: int) -> tuple[np.ndarray]:
        assert len(gain) == bands and x.shape[1] % bands == 0
        return ((x.reshape(x.shape[0], bands, -1) * gain[:, None]).reshape(x.shape).astype(x.dtype),)


@pytest.fixture
def documented() -> Iterator[None]:
    """Runs every Python block of the document; what it registers is forgotten afterwards."""
    tables: list[dict[Any, Any]] = [registry.RULES, registry.REWRITES, registry.BARRIERS, OPERATORS]
    before = [dict(table) for table in tables]
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        exec(block, {})
    yield
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)


def _net(seed: int = 0) -> Net:
    net = Net(18, seed, **{DOMAIN: 1})
    h = net("BandGain", net.conv(net.x("N", 3, "T"), 3, 12, rank=1), net.w(4), domain=DOMAIN, bands=4)
    return net.out(net.conv(h, 12, 2, rank=1))


@pytest.mark.usefixtures("documented")
def test_the_documented_rule_finds_bands_and_places() -> None:
    net = _net()
    analysis = analyse(prepare(ir.from_proto(net.model())), net.shapes, net.other)
    assert free_units(analysis) == 4 + 3


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize("seed", range(4))
def test_the_documented_rule_cuts_exactly(seed: int) -> None:
    net = _net(seed)
    proof = prove(net.model(), net.shapes, net.other, seed, reference=True, operators=[BandGain])
    assert proof.removed
    assert proof.error <= TOLERANCE["float32"]


@pytest.mark.usefixtures("documented")
def test_the_documented_barrier_gives_its_reason() -> None:
    assert registry.BARRIERS[DOMAIN, "Tournament"] == "it compares all channels with each other"


def test_without_the_rule_everything_is_frozen() -> None:
    net = Net(18, **{DOMAIN: 1})
    h = net("BandGain", net.conv(net.x("N", 3, "T"), 3, 12, rank=1), net.w(4), domain=DOMAIN, bands=4)
    net.ranks[net.out(net.conv(h, 12, 2, rank=1)).outputs[0]] = 3
    analysis = analyse(prepare(ir.from_proto(net.model())), net.shapes, net.other)
    assert free_units(analysis) == 0
    assert f"no rule for operator {DOMAIN}:BandGain" in analysis.components.reasons


def test_every_statement_of_the_table_exists() -> None:
    """The document names no method that the program does not have."""
    from prunecli.dependency.atoms import AtomTable
    from prunecli.dependency.edit import NodeCut
    from prunecli.dependency.registry import RuleContext

    owners: dict[str, Any] = {"ctx.table": AtomTable, "ctx": RuleContext, "cut": NodeCut}
    text = DOCUMENT.read_text()
    for owner, name in re.findall(r"\b(ctx\.table|ctx|cut)\.([a-z_]+)\b(?=\()", text):
        assert hasattr(owners[owner], name), f"{owner}.{name}"
