"""`--granularity block`: whole residual blocks as units of a structural cut, chosen by what they do to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.dependency.analysis import NONE, Whole
from prunecli.dependency.blocks import ResidualBlock, dead_without, drop_blocks, find_blocks
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.cut import Removed
from prunecli.dependency.prepare import plan_names
from prunecli.errors import PruneError, advice
from prunecli.model import Dims, count_macs
from prunecli.model.shape_inference import Shape
from prunecli.model.shapes import input_specs
from prunecli.runtime import Session
from prunecli.structures.decision import Decided
from prunecli.structures.options import CutOptions, StructuredOptions
from prunecli.structures.prunable import Cuttable, node_name, open_cuttable
from prunecli.structures.residual_blocks import BlockCosts, BlockRecipe, Damage, decide_blocks, gated
from prunecli.types import Json, Progress

Array = np.ndarray[Any, Any]
SAMPLES = 256
"""Of the data: enough to rank blocks by, and few enough to run once per block and step."""
RANDOM_BATCHES = 2
_FOREIGN = ("criterion", "normalize", "scope", "round_to", "target", "steps")


class BlockCatalogue(Catalogue):
    """Blocks in the form of other units: each is a group of its own."""

    def __init__(self, base: Catalogue, blocks: Sequence[ResidualBlock]) -> None:
        work, empty = base.analysis.model, np.zeros(0, np.int64)
        groups = [
            Group(block.name, "block", number, 1, (), (), tuple((name, 0) for name in _stored(work, block)))
            for number, block in enumerate(blocks)
        ]
        super().__init__(base.analysis, groups, np.zeros(len(blocks) + 1, np.int64), empty, [], base.axis_of_atom)
        self.blocks = blocks

    def removed(self, units: Array) -> Removed:
        """All positions of the branches' values."""
        chosen = [block for block, gone in zip(self.blocks, units, strict=True) if gone]
        return {name: axes for block in chosen for name, axes in block.positions.items()}


def _stored(work: ir.Model, block: ResidualBlock) -> list[str]:
    """Weights that go with a block alone, in the order of the graph."""
    dead = dead_without([block]).initializers
    return [name for name, value in work.graph.initializers.items() if value in dead]


@dataclass
class BlockCuttable(Cuttable):
    """A model whose units are its residual blocks."""

    @property
    def blocks(self) -> Sequence[ResidualBlock]:
        assert isinstance(self.units, BlockCatalogue)
        return self.units.blocks

    def without(self, units: Array, positions: Removed) -> ir.Model:
        cut = self.work.clone()
        places = {node: number for number, node in enumerate(self.work.graph)}
        nodes = list(cut.graph)
        chosen = [block for block, gone in zip(self.blocks, units, strict=True) if gone]
        drop_blocks(cut, [replace(block, join=nodes[places[block.join]]) for block in chosen])
        return cut

    @cached_property
    def macs(self) -> dict[ir.Node, int | None]:
        """Of every node that multiplies."""
        return count_macs(replace(self.file, ir=self.work), self.counted).nodes

    @cached_property
    def prices(self) -> list[tuple[int, int]]:
        dead = [dead_without([block]) for block in self.blocks]
        return [(one.params, sum(self.macs.get(node) or 0 for node in one.nodes)) for one in dead]

    def members(self) -> list[list[str]]:
        """Per block: its name, its nodes, and its weights."""
        dead = [dead_without([block]) for block in self.blocks]
        return [
            [block.name, *(node_name(n) for n in one.nodes), *(v.name or "" for v in one.initializers)]
            for block, one in zip(self.blocks, dead, strict=True)
        ]


def open_blocks(
    path: Path, granularity: str, dims: Dims, inputs: Mapping[str, Shape] | None = None, whole: Whole = NONE,
    include: Sequence[str] = (),
) -> BlockCuttable:  # fmt: skip
    """Load, prepare and analyse a model, and find its residual blocks.

    Blocks whose value the user's file does not name (those inside local functions) are no units: nobody could
    check what a plan says of them.

    Raises:
        PruneError: the file is not a valid model, or has no residual blocks.
    """
    base = open_cuttable(path, "channel", dims, inputs, whole, include)
    geometry = base.units.analysis.geometry
    blocks = [b for b in find_blocks(base.work, geometry) if plan_names(base.work, b.positions, geometry)]
    if not blocks:
        raise PruneError(
            f"{path} has no residual blocks (y = x + f(x)) that could be dropped", "cut channels and heads instead"
        )
    own = {field.name: getattr(base, field.name) for field in fields(base)}
    return BlockCuttable(**{**own, "units": BlockCatalogue(base.units, blocks), "granularity": granularity})


def choose_blocks(
    subject: Cuttable, options: StructuredOptions, allowed: Array, left: Mapping[str, str], recipe: Json,
    progress: Progress,
) -> Decided:  # fmt: skip
    """Measure the blocks and choose.

    Raises:
        PruneError: an option that means nothing for blocks, a model that does not run, or a budget out of reach.
    """
    budget = options.budget
    assert isinstance(subject, BlockCuttable) and budget is not None
    check_block_options(options)
    damage, notes = block_damage(subject, options)
    costs = BlockCosts(subject.work, subject.blocks, {"macs": {node: n or 0 for node, n in subject.macs.items()}})
    target = subject.fraction(budget, 0 if budget.kind == "ratio" else costs.whole(budget.kind))
    wanted = BlockRecipe(budget.kind, target, options.largest_ratio)
    found = decide_blocks(costs, damage, wanted, allowed, progress)
    if not found.removed.any():
        raise PruneError("at this budget no block is dropped",
                         advice(("ask for more", True), ("raise --max-ratio", options.largest_ratio < 1)))  # fmt: skip
    notes.append(f"without the dropped blocks the outputs diverge by {found.damage:.3g} in all")
    return Decided(found.removed, found.scores, {**recipe, "criterion": "divergence"}, left, notes)


def check_block_options(options: CutOptions) -> None:
    """Refuse what says nothing of blocks."""
    for name in _FOREIGN:
        if getattr(options, name, None) != getattr(type(options), name, None):
            raise PruneError(
                f"--{name.replace('_', '-')} means nothing for blocks",
                "leave it out: blocks are chosen by how far the outputs change without them",
            )


def block_damage(subject: BlockCuttable, options: CutOptions) -> tuple[Damage, list[str]]:
    """How blocks are measured, and what is to be said of it."""
    start = partial(Session.open, provider=options.execution.provider, threads=options.execution.thread_count)
    session = start(gated(subject.work, subject.blocks, subject.units.analysis.facts))
    if options.source is None:
        seeds = range(options.seed, options.seed + RANDOM_BATCHES)
        plain = start(subject.file.path)
        feeds = [plain.random_inputs(seed=seed, shapes=subject.inputs) for seed in seeds]
        said = "the blocks were measured on random inputs, which tell less than real ones: give --data"
        return Damage(session, feeds, len(subject.blocks)), [said]
    data = options.source.open(input_specs(subject.file.ir))
    samples = data.shuffled(options.seed).take(SAMPLES) if len(data) > SAMPLES else data
    feeds = [batch.feed for batch in samples.batches(options.batch_size)]
    return Damage(session, feeds, len(subject.blocks)), [f"the blocks were measured on {len(samples)} samples"]
