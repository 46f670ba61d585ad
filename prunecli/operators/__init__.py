"""What an operator is, said once: the roles and layouts of its weights, its multiply-accumulates, how it multiplies
data, what it asks of the sizes of its inputs, and what else is looked up by operator.

Coupling rules (`dependency/rules/`) and gradients (`autodiff/rules/`) are theories of their own; they ask here.
Importing this package fills the table.
"""

from __future__ import annotations

from prunecli.operators import (  # noqa: F401 - they register themselves
    attention,
    convolution,
    elementwise,
    moving,
    normalisation,
    product,
    recurrent,
)
from prunecli.operators.operator import (
    MICROSOFT,
    NO_DEMAND,
    ONNX_ML,
    OPERATORS,
    Contraction,
    Demand,
    DemandReading,
    Operator,
    PositionGate,
    Refused,
    Role,
    amend,
    contraction,
    demand_of,
    macs_of,
    named,
    operator_of,
    register,
    role_of,
)

__all__ = [
    "MICROSOFT",
    "NO_DEMAND",
    "ONNX_ML",
    "OPERATORS",
    "Contraction",
    "Demand",
    "DemandReading",
    "Operator",
    "PositionGate",
    "Refused",
    "Role",
    "amend",
    "contraction",
    "demand_of",
    "macs_of",
    "named",
    "operator_of",
    "register",
    "role_of",
]
