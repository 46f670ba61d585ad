"""The index relations of operators, by family. Importing the package fills the registry."""

from prunecli.dependency.rules import (  # noqa: F401
    attention,
    barriers,
    einsum,
    elementwise,
    fills,
    fused_attention,
    joints,
    linear,
    norms,
    picks,
    recurrent,
    reductions,
    reshape,
    sampling,
    scatter,
    signal,
    windows,
)
