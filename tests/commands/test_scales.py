"""Weights and data of any size: a result or a refusal, and no warning of the arithmetic, which nobody would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunecli
from prunecli.errors import PruneError
from tests.dependency.net import Net

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def stored(folder: Path, scales: tuple[float, float, float], data: float, count: int) -> tuple[str, str]:
    """Three convolutions whose weights are scaled, and samples that are, half of whose channels are equal."""
    n = Net()
    h = n.x("N", 8, "H", "W")
    for a, b, scale in zip((8, 16, 12), (16, 12, 4), scales, strict=True):
        h = n("Conv", h, n.c((scale * n.rng.standard_normal((b, a, 3, 3))).astype(np.float32)), pads=[1] * 4)
        h = n("Relu", h) if b > 4 else h
    n.out(h)
    (folder / "m.onnx").write_bytes(n.model().SerializeToString())
    x = (data * np.random.default_rng(0).standard_normal((count, 8, 5, 5))).astype(np.float32)
    x[:, 4:] = x[:, :4]
    np.savez(folder / "x.npz", x0=x)
    return str(folder / "m.onnx"), str(folder / "x.npz")


# scales of the weights, of the data, samples
SCALES: list[tuple[tuple[float, float, float], float, int]] = [
    ((1, 1, 1), 1, 1),
    ((1e10, 1e10, 1e10), 1e8, 4),
    ((1e-12, 1e-12, 1e-12), 1e-8, 4),
    ((1e10, 1e-12, 1e10), 1e12, 8),
    ((1e-6, 1e6, 1e10), 1e-15, 2),
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("oneshot", {"sparsity": 0.7}),
    ("oneshot", {"sparsity": 0.9, "method": "wanda", "recover": "bn"}),
    ("oneshot", {"pattern": "2:4"}),
    ("oneshot", {"sparsity": 0.5, "pattern": "4x1"}),
    ("structured", {"ratio": 0.5}),
    ("gradient", {"sparsity": 0.5, "criterion": "fisher"}),
]


@pytest.mark.parametrize(("name", "options"), CALLS, ids=[f"{name} {options}" for name, options in CALLS])
@pytest.mark.parametrize(("scales", "data", "count"), SCALES)
def test_any_scale(
    scales: tuple[float, float, float], data: float, count: int, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, samples = stored(tmp_path, scales, data, count)
    try:
        found = getattr(prunecli, name)(model, data=samples, dry_run=True, **options)
    except PruneError as error:
        assert data != 1, error
    else:
        assert found.verification is not None
