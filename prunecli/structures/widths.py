"""Which widths a group of units may keep: those that a target computes fast.

onnxruntime computes convolutions on blocks of channels (16 with AVX-512, 8 else): a width in between costs as much as
the next multiple, or more. Below one block a dense kernel of several taps still gains, since the layer that reads it
skips the missing inputs; one of a single tap, a depthwise one and everything in int8 is slower there than at the whole
block (`docs/benchmarks.md` has the table).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd, lcm, prod
from typing import TYPE_CHECKING, Literal

from prunecli.errors import PruneError

if TYPE_CHECKING:
    import onnx_ir as ir

    from prunecli.dependency.atoms import Ints
    from prunecli.dependency.catalogue import Catalogue, Group

Target = Literal["cpu", "cpu-int8", "tensorrt", "qnn", "npu"]
AUTO = "auto"
UNBLOCKED = 8
"""Block of channels on a CPU for which onnxruntime has no blocked layout."""
DEVICE_BLOCKS = {"tensorrt": 16, "qnn": 32, "npu": 16}
"""Channels that these targets compute at once: Tensor Cores require multiples of 8 in float16 and of 16 in int8
(NVIDIA, Deep Learning Performance), Hexagon tensors are padded to 32 channels (Qualcomm AI Engine Direct), most NPUs to
16."""
QUARTER = 4
"""A layer keeps at least this part of a block."""
LEAST = 4
"""The finest multiples that replace blocks: onnxruntime reads channels of its blocked layout by fours."""


@dataclass(frozen=True)
class Alignment:
    """The widths that groups may keep are multiples of `block`. `below`: which layers may keep a half or a quarter of a
    block: none, those that run faster there, or all. `padded`: the multiple to which the target rounds a width up; 1
    where unknown, and then no cut is preferred for its speed. `partial`: whether a part of a block takes less time than
    a block. `given`: the block is the user's and is not replaced. `mended`: estimated share of the damage of dropped
    residual blocks that is left after a refit; None: no block may be dropped."""

    block: int = 1
    below: Literal["never", "dense", "all"] = "never"
    padded: int = 1
    partial: bool = False
    given: bool = True
    mended: float | None = 1.0

    @property
    def words(self) -> str:
        """The alignment in words."""
        if self.block == 1:
            return "any width"
        parts = [f"{part}" for part in (self.block // 2, self.block // QUARTER) if part >= self.padded // QUARTER]
        if self.below == "never" or not parts:
            return f"multiples of {self.block}"
        where = "where they are faster" if self.below == "dense" else "in every layer"
        return f"multiples of {self.block} (or {' and '.join(parts)} {where})"

    def finer(self) -> Iterator[Alignment]:
        """Return smaller multiples, the coarser first: a half and a quarter of a block. They gain less, in int8 little,
        and replace blocks where these damage the network too much."""
        for part in (2, QUARTER):
            if not self.given and self.block >= part * LEAST:
                yield replace(self, block=self.block // part)

    def looser(self) -> Iterator[Alignment]:
        """Return the alignments to try, in order, where these widths cannot meet a budget."""
        if not self.given:
            if self.below != "all":
                yield replace(self, below="all")
            yield replace(self, block=1)

    def within(self, block: int) -> Alignment:
        """Multiples of another block, too."""
        return replace(self, block=lcm(self.block, block))

    def multiple(self, catalogue: Catalogue, group: Group) -> int:
        """Return the number of units removed at a time, such that every axis that is computed keeps a multiple of the
        block. A unit may have several positions on an axis: those of a flattened image, or one in every group."""
        if group.kind not in ("channel", "width"):
            return 1
        positions = [n for axis, n in zip(group.axes, group.per_unit, strict=True) if axis in catalogue.computed]
        return self.block // gcd(self.block, *(positions or [max(group.per_unit)]))

    def widths(self, catalogue: Catalogue, group: Group, limit: int | None = None) -> tuple[int, ...]:
        """Return the numbers of units that may stay, from all of them down; at most `limit` (default: all but those
        that have to stay) are removed."""
        if group.kind == "block":
            return (1, 0) if self.mended is not None and limit != 0 else (1,)
        step = self.multiple(catalogue, group)
        least = max(group.least, group.count - (group.count if limit is None else limit))
        found = multiples(group.count, step)
        if self.below == "all" or (self.below == "dense" and step > 1 and gains_below(catalogue, group)):
            least_part = max(step * self.padded // (self.block * QUARTER), 1)
            found += [part for part in (step // 2, step // QUARTER) if least_part <= part < min(found)]
        return tuple(width for width in found if width >= least)

    def effective(self, kept: Ints) -> Ints:
        """Return the positions that the target computes for the kept ones: whole blocks; for a part of one, where that
        takes less time, half of the missing ones, since writers compute a whole block and readers only the kept
        positions."""
        import numpy as np

        block = self.padded
        whole = -(-kept // block) * block
        return np.where(kept < block, (kept + block) / 2, whole) if self.partial and block > 1 else whole


def alignment(round_to: int | str, target: str) -> Alignment:
    """Return the alignment of `--round-to` and `--target`.

    Raises:
        PruneError: onnxruntime cannot be probed.
    """
    block, partial = cpu_block() if target.startswith("cpu") else DEVICE_BLOCKS[target], target == "cpu"
    if isinstance(round_to, int):
        return Alignment(round_to, padded=block if round_to > 1 else 1, partial=partial)
    return Alignment(block, "dense" if partial else "never", block, partial=partial, given=False)


def cpu_block() -> int:
    """Channels that onnxruntime computes at once on this machine."""
    from prunecli.runtime import channel_block

    return max(channel_block(), UNBLOCKED)


def read_multiple(text: str) -> int | str:
    """`auto`, or a number of at least 1."""
    if text == AUTO:
        return text
    if text.isascii() and text.isdigit() and int(text):
        return int(text)
    raise PruneError(f"{text!r} is no number of channels", "write auto, or for example 8")


def gains_below(catalogue: Catalogue, group: Group) -> bool:
    """Return whether a group saves time below one block: everything that holds its weights is a matrix product, or a
    dense convolution of several taps."""
    initializers = catalogue.analysis.model.graph.initializers
    nodes = [(use.node, name) for name, _ in group.weights for use in initializers[name].uses()]
    return all(_is_dense(node, initializers[name]) for node, name in nodes)


def _is_dense(node: ir.Node, weight: ir.Value) -> bool:
    from prunecli.operators import operator_of

    shape = weight.const_value.shape.numpy() if weight.const_value is not None else ()
    if not operator_of(node).blocked or len(shape) < 3:
        return True
    return node.attributes.get_int("group", 1) == 1 and prod(shape[2:]) > 1


def multiples(count: int, step: int) -> list[int]:
    """Numbers up to `count`, of which all but the first are multiples of `step`, from the largest down."""
    return [count, *range((count - 1) // step * step, 0, -step)]
