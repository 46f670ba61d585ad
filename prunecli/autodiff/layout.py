"""onnxruntime's blocked image layout (NCHWc): whether this CPU's kernels have it, and the size of a block."""

from __future__ import annotations


def block_size() -> int | None:
    """Channels per block of onnxruntime's NCHWc kernels on this CPU; None where it has none."""
    return None
