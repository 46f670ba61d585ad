"""All tables of cases."""

from __future__ import annotations

from tests.dependency.cases import ELEMENTWISE, LINEAR, NORMS
from tests.dependency.cases_parts import ATTENTION, NEWEST, RECURRENT
from tests.dependency.cases_shapes import MOVES
from tests.dependency.cases_whole import WHOLE

TABLES = {
    "elementwise": ELEMENTWISE,
    "linear": LINEAR,
    "norms": NORMS,
    "moves": MOVES,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
    "newest": NEWEST,
    "whole": WHOLE,
}
ALL = {f"{table}/{name}": case for table, cases in TABLES.items() for name, case in cases.items()}
