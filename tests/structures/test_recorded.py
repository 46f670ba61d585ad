"""What decides which units go is recorded: in plans, reports and saved models."""

from __future__ import annotations

from typing import Any

import pytest

from prunecli.options.declare import SELECT, declared_of
from prunecli.structures.decide import _recipe
from prunecli.structures.options import StructuredOptions
from prunecli.structures.prunable import AnalysedAs

SELECTING = [one.field for one in declared_of(StructuredOptions) if one.option.section == SELECT]
# option -> two values that choose differently
VALUES: dict[str, tuple[Any, ...]] = {
    "ratio": (0.5, 0.25),
    "macs": (0.5, 0.25),
    "params": (0.5, 0.25),
    "latency": (0.5, "3ms"),
    "allocate": (None, "uniform"),
    "steps": (1, 2),
    "granularity": ("channel", "channel,head"),
    "criterion": ("l1", "l2"),
    "damping": (0.85, 0.5),
    "normalize": ("none", "mean"),
    "scope": ("global", "layer"),
    "include": ((), ("*",)),
    "exclude": ((), ("fc",)),
    "max_ratio": (0.9, 0.5),
    "round_to": ("auto", 8),
    "target": ("cpu", "qnn"),
}
ALSO: dict[str, dict[str, Any]] = {"damping": {"criterion": "pagerank"}}


def recorded(**given: Any) -> Any:
    amount = {} if given.keys() & {"ratio", "macs", "params", "latency"} else {"ratio": 0.5}
    options = StructuredOptions.of(None, **amount, **given)
    return _recipe(options, AnalysedAs(options.structures))


def test_every_option_of_the_selection_has_values_here() -> None:
    missing = [name for name in SELECTING if name not in VALUES]
    assert not missing, f"record {missing} in `_recipe` (structures/decide.py), and give two values in VALUES"


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("beside", [{}, {"round_to": 8}], ids=["auto", "round-to"])
def test_every_option_of_the_selection_is_recorded(name: str, beside: dict[str, Any]) -> None:
    first, second = (recorded(**{**beside, **ALSO.get(name, {}), name: value}) for value in VALUES[name])
    assert first != second
