"""Gradient rules by operator family. Importing a module registers its rules."""

from __future__ import annotations

import importlib

MODULES = (
    "activations",
    "conv",
    "elementwise",
    "indexing",
    "matmul",
    "norms",
    "pools",
    "recurrent",
    "reduce",
    "resize",
    "shaping",
)


def load_rules() -> None:
    """Register every rule."""
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
