"""Criteria for structures against plain loops over the units."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.masks.criteria import UnitGroup, WeightPart, of_structures

UNITS = 5
DAMAGE = np.linspace(1.0, 2.0, UNITS)


def group(*roles: str, seed: int = 0, moments: bool = True) -> UnitGroup:
    rng = np.random.default_rng(seed)
    parts = []
    for number, role in enumerate(roles):
        matrix = rng.standard_normal((UNITS, 1 if role in ("norm", "bias") else 2 + number))
        evidence = {"moments": rng.random(matrix.shape)} if moments and role == "in" else {}
        if moments and role != "norm":
            evidence["gates"] = rng.standard_normal((UNITS, 7))
        parts.append(WeightPart(f"w{number}", role, partial(np.copy, matrix), role == "norm", evidence))
    measured = DAMAGE if moments else None
    return UnitGroup("g", UNITS, parts, np.random.default_rng(7), measured, importance=measured)


FULL = ("out", "in", "in", "bias", "norm")


def plain(parts: list[WeightPart], function: Callable[[list[float]], float]) -> list[list[float]]:
    return [[function(part.matrix[u].tolist()) for u in range(UNITS)] for part in parts]


def square(x: list[float]) -> float:
    return sum(v * v for v in x)


def lamp(parts: list[WeightPart]) -> list[list[float]]:
    return [[s / sum(t for t in row if t >= s) for s in row] for row in plain(parts, square)]


def fpgm(parts: list[WeightPart]) -> list[list[float]]:
    x = next(part.matrix for part in parts if part.role == "out")
    return [[sum(math.dist(x[u], x[v]) for v in range(UNITS)) for u in range(UNITS)]]


def activation(parts: list[WeightPart]) -> list[list[float]]:
    reading = [p for p in parts if p.role == "in"]
    return [
        [sum(m * v * v for m, v in zip(p.evidence["moments"][u], p.matrix[u], strict=True)) for u in range(UNITS)]
        for p in reading
    ]


def gates(parts: list[WeightPart], term: Callable[[float], float]) -> list[list[float]]:
    """Readers are summed before the term, samples after."""
    reading = [p.evidence["gates"] for p in parts if p.role == "in"]
    return [[sum(term(sum(g[u][n] for g in reading)) for n in range(7)) / 7 for u in range(UNITS)]]


def matrices(parts: list[WeightPart], *roles: str) -> list[WeightPart]:
    return [part for part in parts if part.role in (roles or ("out", "in"))]


FORMULAS: dict[str, Callable[[list[WeightPart]], list[list[float]]]] = {
    "l1": lambda parts: plain(matrices(parts), lambda x: sum(map(abs, x))),
    "l2": lambda parts: plain(matrices(parts), square),
    "l2-in": lambda parts: plain(matrices(parts, "in"), square),
    "lamp": lambda parts: lamp(matrices(parts)),
    "fpgm": fpgm,
    "bn-scale": lambda parts: plain(matrices(parts, "norm"), lambda x: sum(map(abs, x))),
    "random": lambda parts: [np.random.default_rng(7).random(UNITS).tolist()],
    "activation": activation,
    "taylor": lambda parts: gates(parts, abs),
    "fisher": lambda parts: gates(parts, lambda v: v * v),
    "obs": lambda parts: [DAMAGE.tolist()],
    "pagerank": lambda parts: [DAMAGE.tolist()],
}


def test_every_criterion_has_its_formula_here() -> None:
    assert set(of_structures()) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_criteria_follow_their_formula(name: str) -> None:
    given = group(*FULL)
    rows = of_structures()[name].score(given)
    # float64 against float64; fpgm takes distances from squares, which loses half of the digits near zero
    assert np.allclose(rows, FORMULAS[name](list(given.parts)), rtol=1e-7, atol=1e-7)


def test_units_without_matrices_are_scored_by_what_they_have() -> None:
    only = group("bias", "norm")
    for name in ("l1", "l2", "l2-in", "lamp"):
        assert len(of_structures()[name].score(only)) == 2


@pytest.mark.parametrize("name", [name for name, found in of_structures().items() if found.evidence])
def test_what_was_not_measured_stays(name: str) -> None:
    (row,) = of_structures()[name].score(group("out", "in", moments=False))
    assert np.isinf(row).all()


def test_what_nothing_reads_is_scored_by_what_computes_it() -> None:
    given = group("out", "bias")
    wanted = np.abs(given.parts[0].evidence["gates"] + given.parts[1].evidence["gates"]).mean(axis=1)
    assert np.allclose(of_structures()["taylor"].score(given), [wanted])


def test_bn_scale_needs_a_batch_norm() -> None:
    with pytest.raises(PruneError, match="have no BatchNormalization"):
        of_structures()["bn-scale"].score(group("out", "in"))
