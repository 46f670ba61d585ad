"""The index relations of operators, by family. Importing the package fills the registry."""

from __future__ import annotations

from prunecli.dependency.rules import (  # noqa: F401
    attention,
    barriers,
    elementwise,
    indexing,
    linear,
    norms,
    quantised,
    recurrent,
    reductions,
    shaping,
    windows,
)
