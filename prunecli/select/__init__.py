"""Deciding what goes: units -> scores -> pools -> keep. Imports numpy only.

recipe = Recipe(pattern="element", scope="global", sparsity=0.5)
for target, decision in zip(targets, decide(targets, recipe)):
    pruned = decision.apply(target.load())
"""

from prunecli.select.criteria import CRITERIA, Block, Criterion, criterion
from prunecli.select.decide import Recipe, decide
from prunecli.select.decisions import Decision, zeroed
from prunecli.select.keep import keep_top
from prunecli.select.patterns import PATTERNS, parse_pattern
from prunecli.select.scopes import SCOPES
from prunecli.select.units import Target

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
