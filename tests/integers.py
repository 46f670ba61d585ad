"""What tests of integers need of the processor."""

from __future__ import annotations

import pytest

from prunecli.runtime import saturates

needs_exact_integers = pytest.mark.skipif(
    saturates(), reason="onnxruntime's sums of products of uint8 and int8 saturate on this CPU, which has no VNNI"
)
