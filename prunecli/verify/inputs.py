"""Inputs on which two models are compared, whatever sizes were assumed before.

Sizes that nobody stated are tried in turn: those assumed, common ones, and those that the model's own tables and shape
constants allow (77 positions; 197, which is 14 x 14 patches of 16 pixels and one token more: 224 pixels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Protocol

import numpy as np

from prunecli.inputs import (
    MASK,
    InputSpec,
    counts_past,
    evaluate,
    index_limits,
    is_past,
    random_inputs,
    resolve_shapes,
)
from prunecli.model import Dims, Model
from prunecli.model.constants import holders
from prunecli.model.graphs import all_graphs
from prunecli.model.shapes import input_specs
from prunecli.operators import operator_of
from prunecli.operators.attributes import integers
from prunecli.verify.tolerance import Feed

InputShapes = Mapping[str, tuple[int, ...]]
Key = str | tuple[str, int]
"""A free size: the name of its dimension, or its input and axis."""

COMMON = (64, 8, 224, 128, 32, 512, 4, 2, 1, 256, 384, 1024, 1536, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
LONGEST = 4096
SHAPE_CONSTANT = 16
"""Most elements of an integer vector that may be a target shape."""
MOST_TRIES = 200
LARGEST_INPUT = 1 << 22
"""Most elements of all inputs together, for sizes that nobody asked for."""


@dataclass(frozen=True)
class Case:
    """Inputs to compare two models on; `feed` makes them, or raises PruneError where there are none.

    `required`: the original must run on them (real data). `spare`: used only where no case before it proved anything.
    """

    label: str
    feed: Callable[[], Feed]
    required: bool = False
    spare: bool = False


class TakesInputs(Protocol):
    """A model that random inputs are made for: a session, or the description of a model that is too large to open."""

    def random_inputs(self, *, seed: int, shapes: InputShapes) -> Feed: ...


@dataclass(frozen=True)
class Described:
    """The inputs of a model file, without a session of it."""

    model: Model

    def random_inputs(self, *, seed: int, shapes: InputShapes) -> Feed:
        limits = index_limits(self.model.path)
        return random_inputs(input_specs(self.model.ir), None, seed, limits=limits, shapes=shapes)


def random_case(session: TakesInputs, shapes: InputShapes, seed: int = 0, spare: bool = False) -> Case:
    """Random inputs of these shapes, as `session` takes them."""
    sizes = ", ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
    return Case(
        f"random inputs {sizes}, seed {seed}", partial(session.random_inputs, seed=seed, shapes=shapes), spare=spare
    )


def spare_cases(session: TakesInputs, sizes: Iterable[InputShapes], seed: int = 0) -> Iterator[Case]:
    """Yield random inputs of each of the sizes, which are tried until the model runs."""
    return (random_case(session, shapes, seed, spare=True) for shapes in sizes)


WITH_PAST = ((1, 4, 3), (2, 1, 3), (2, 4, 0))
"""(samples, tokens, positions of the past): GroupQueryAttention takes several tokens behind a past for one sample
only."""


def sizes_with_past(model: Model, shapes: InputShapes, dims: Dims) -> Iterator[InputShapes]:
    """Yield the sizes WITH_PAST of a model that takes keys and values of what came before, with masks over past and
    tokens. Sizes stated by `dims` do not change."""
    specs = input_specs(model.ir)
    if not any(map(is_past, specs)):
        return
    roles = {(spec.name, axis): _role(spec, axis) for spec in specs for axis in range(len(spec.shape))}
    base = resolve_shapes(specs, dims.sizes, dims.shapes)
    stated = {role: base[spec.name][axis] for spec in specs for axis, dim in enumerate(spec.shape)
              if (role := roles[spec.name, axis]) and (spec.name in dims.shapes or dim in dims.sizes)}  # fmt: skip
    for batch, tokens, past in WITH_PAST:
        lengths = {"batch": batch, "tokens": tokens, "past": past} | stated
        lengths["all"] = lengths["tokens"] + lengths["past"]
        free = {(spec.name, axis) if dim is None else dim: lengths[role] for spec in specs
                for axis, dim in enumerate(spec.shape)
                if not isinstance(dim, int) and (role := roles[spec.name, axis]) in lengths}  # fmt: skip
        computed = _computed(specs)
        yield _at(specs, shapes, dims, sizes={key: size for key, size in free.items() if key not in computed})


def _role(spec: InputSpec, axis: int) -> str:
    """Return what an axis of an input of a language model counts; nothing where that is not known."""
    if axis == 0:
        return "batch"
    if counts_past(spec.shape[axis]) and is_past(spec):
        return "past"
    if is_past(spec):
        return ""
    return "all" if spec.name == MASK else "tokens"


def sizes_to_try(model: Model, shapes: InputShapes, dims: Dims) -> Iterator[InputShapes]:
    """Yield `shapes`, then others: every free size but the batch alike, other batches, each free size by itself. Sizes
    stated by `dims` do not change."""
    return islice(_distinct(_variants(model, shapes, dims)), MOST_TRIES)


def _distinct(tries: Iterable[InputShapes]) -> Iterator[InputShapes]:
    seen: list[InputShapes] = []
    for number, shapes in enumerate(tries):
        if shapes not in seen and (number == 0 or sum(map(math.prod, shapes.values())) <= LARGEST_INPUT):
            seen.append(shapes)
            yield shapes


def _variants(model: Model, shapes: InputShapes, dims: Dims) -> Iterator[InputShapes]:
    specs = [spec for spec in input_specs(model.ir) if spec.name in shapes]  # not those of unknown rank
    batch, free = _free(specs, dims)
    yield shapes
    lengths = list(dict.fromkeys([*COMMON, *_fitting(model)])) if free else []
    for length in lengths:
        yield _at(specs, shapes, dims, sizes=dict.fromkeys(free, length))
    for size in BATCHES if batch else ():
        yield _at(specs, shapes, dims, sizes=dict.fromkeys(batch, size))
    for chosen in product(lengths, repeat=len(free)) if len(free) > 1 else ():
        yield _at(specs, shapes, dims, sizes=dict(zip(free, chosen, strict=True)))


def _free(specs: Sequence[InputSpec], dims: Dims) -> tuple[list[Key], list[Key]]:
    """Return the sizes that nobody stated: batches, and others."""
    found: dict[Key, bool] = {}
    computed = _computed(specs)
    for spec in specs:
        for axis, dim in enumerate(spec.shape):
            stated = spec.name in dims.shapes or isinstance(dim, int) or dim in dims.sizes or dim in computed
            if not stated and spec.asked_of(axis) is None:
                found.setdefault(
                    (spec.name, axis) if dim is None else str(dim), axis == 0 or "batch" in str(dim).lower()
                )
    return [key for key, batch in found.items() if batch], [key for key, batch in found.items() if not batch]


def _computed(specs: Iterable[InputSpec]) -> set[str]:
    """Return dimensions that are expressions of others, and so not free."""
    names = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    return {name for name in names if evaluate(name, dict.fromkeys(names - {name}, 1)) is not None}


def _at(specs: Sequence[InputSpec], base: InputShapes, dims: Dims, sizes: Mapping[Key, int]) -> InputShapes:
    """Return `base` with some free sizes changed, and the expressions of them recomputed."""
    computed = _computed(specs)
    known = {
        dim: size
        for spec in specs
        for dim, size in zip(spec.shape, base[spec.name], strict=False)
        if isinstance(dim, str) and dim not in computed
    }
    known |= {key: size for key, size in sizes.items() if isinstance(key, str)} | dict(dims.sizes)
    found = resolve_shapes(specs, known, {name: base[name] for name in dims.shapes})
    return {
        spec.name: tuple(
            sizes.get((spec.name, axis), base[spec.name][axis]) if dim is None else found[spec.name][axis]
            for axis, dim in enumerate(spec.shape)
        )
        if spec.shape and spec.name not in dims.shapes
        else tuple(base[spec.name])
        for spec in specs
    }


def _fitting(model: Model) -> Iterator[int]:
    """Return sizes that tables and target shapes suggest: their own lengths, and the pixels of that many patches, with
    or without one more token."""
    strides = {max(integers(node, "strides") or (1,)) for graph in all_graphs(model.ir) for node in graph
               if operator_of(node).kernel == "sliding"}  # fmt: skip
    sizes: dict[int, None] = {}
    for holder in holders(model.ir):
        shape = list(holder.tensor.shape.numpy())
        if holder.tensor.dtype.is_integer() and len(shape) <= 1 and math.prod(shape) <= SHAPE_CONSTANT:
            shape = [abs(int(value)) for value in np.ravel(holder.tensor.numpy())]
        sizes |= dict.fromkeys(shape)
    for size in sizes:
        for tokens in (size, size - 1, size - 2):
            side = math.isqrt(max(tokens, 0))
            if side > 1 and side * side == tokens:
                yield from (side * stride for stride in sorted(strides) if stride > 1 and side * stride <= LONGEST)
    yield from (size for size in sizes if 1 < size <= LONGEST)
