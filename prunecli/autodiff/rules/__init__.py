"""Gradient rules by operator family. Importing the package registers them."""

from __future__ import annotations

from prunecli.autodiff.rules import (  # noqa: F401
    conv,
    elementwise,
    matmul,
    norms,
    recurrent,
    reduce,
    shaping,
)
