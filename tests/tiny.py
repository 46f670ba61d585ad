"""Tiny models for tests, written in ONNX's own text syntax."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from prunecli.inputs import InputSpec

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PRUNE_SHARED", ROOT.parent / "shared"))
MODELS = sorted(SHARED.glob("models/*/*.onnx"))
_QUICK = 1_200_000
REAL_MODELS = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stat().st_size > _QUICK else [], id=path.stem)
    for path in MODELS
] or [pytest.param(None, marks=pytest.mark.skip("no shared models: set PRUNE_SHARED"))]
"""Parameters: the real models, of which `make test` runs those up to `_QUICK` bytes and `make test-slow` the others."""


def model(body: str, opset: int = 17) -> bytes:
    """Serialised; `body` is a graph, e.g. `g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }`."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3]> {body}')
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def write(path: Path, body: str) -> Path:
    path.write_bytes(model(body))
    return path


def spec(text: str) -> InputSpec:
    """`x: float32 (N, 3, ?)` -> InputSpec."""
    name, _, rest = text.partition(": ")
    dtype, _, dims = rest.partition(" ")
    parts = [part.strip() for part in dims.strip("()").split(",") if part.strip()]
    shape = tuple(int(p) if p.isdigit() else None if p == "?" else p for p in parts)
    return InputSpec(name, dtype, shape)


def few(cases: Sequence[Any], fast: Collection[int]) -> list[Any]:
    """Parameters of which those at the given places are run by `make test`, the others by `make test-slow`."""
    return [case if place in fast else pytest.param(case, marks=pytest.mark.slow) for place, case in enumerate(cases)]
