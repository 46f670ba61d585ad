"""Deciding what goes: units -> scores -> pools -> keep. Imports numpy only.

recipe = Recipe(pattern="element", scope="global", sparsity=0.5)
for target, decision in zip(targets, decide(targets, recipe)):
    pruned = decision.apply(target.load())
"""

from prunecli.masks.criteria import CRITERIA, Block, Criterion, criterion
from prunecli.masks.decide import Recipe, decide
from prunecli.masks.decisions import Decision, zeroed
from prunecli.masks.patterns import PATTERNS, keep_top, parse_pattern
from prunecli.masks.scopes import SCOPES
from prunecli.masks.units import Target

__all__ = [
    "CRITERIA",
    "PATTERNS",
    "SCOPES",
    "Block",
    "Criterion",
    "Decision",
    "Recipe",
    "Target",
    "criterion",
    "decide",
    "keep_top",
    "parse_pattern",
    "zeroed",
]
