"""Concrete shapes of every value, at stated or assumed sizes of the dynamic dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.inputs import InputSpec, resolve_shapes
from prunecli.model.loading import Model
from prunecli.model.shape_inference import Facts, gather_facts
from prunecli.operators import NO_DEMAND, Demand, DemandReading, demand_of, operator_of
from prunecli.operators.layout import Shape

SPATIAL_TRIES = (64, 224, 32, 128)
"""Sizes tried for the unknown axes of image inputs: the first at which every shape can be inferred."""
LARGEST_SIZE = 2**31 - 1
"""Of an axis of an input: sums and products of larger ones leave 64 bits."""


@dataclass(frozen=True)
class Dims:
    """Sizes of named dimensions (`--dim batch=1`) and whole input shapes (`--input-shape x:1,3,224,224`)."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def parse(cls, dim_options: Sequence[str] = (), shape_options: Sequence[str] = ()) -> Dims:
        """From the texts of the command line.

        Raises:
            PruneError: not NAME=SIZE or NAME:D,D,...; sizes must be at least 1.
        """
        sizes = dict(_named(text, "=", "--dim", example="batch=1") for text in dim_options)
        shapes = dict(_named(text, ":", "--input-shape", example="x:1,3,224,224") for text in shape_options)
        for name, size in sizes.items():
            if len(size) != 1:
                raise PruneError(f"--dim {name}: one number is needed", "write --dim batch=1")
        return cls({name: size[0] for name, size in sizes.items()}, shapes)


def _named(text: str, separator: str, option: str, example: str) -> tuple[str, Shape]:
    name, found, numbers = text.rpartition(separator)
    parts = [part.strip() for part in numbers.split(",")]
    if not found or not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise PruneError(f"{option} {text}: not understood", f"write {option} {example}; sizes are at least 1")
    return name, tuple(int(part) for part in parts)


@dataclass
class Shapes:
    """What is known at one choice of sizes.

    `inputs`: the concrete shape of every graph input. `assumed`: sentences on sizes nobody stated, such as
    "batch of x = 1". `facts`: shapes and small values; its `problems` say where inference stopped, and why.
    """

    inputs: dict[str, Shape]
    assumed: tuple[str, ...]
    facts: Facts


def concrete_shapes(model: Model, dims: Dims | None = None) -> Shapes:
    """Infer all shapes; sizes that `dims` leaves open are assumed and recorded.

    Raises:
        PruneError: `dims` names an unknown input or dimension, or contradicts a fixed one; a size makes no sense.
    """
    dims = dims or Dims()
    specs = input_specs(model.ir)
    _refuse_unknown(dims, specs)
    unknown = set(_without_rank(model.ir, specs, dims))
    best: Shapes | None = None
    for size in SPATIAL_TRIES:
        inputs = {name: shape for name, shape in _inputs(specs, dims, size).items() if name not in unknown}
        shapes = Shapes(inputs, _assumed(specs, dims, inputs), gather_facts(model.ir, inputs))
        if best is None or len(shapes.facts.problems) < len(best.facts.problems):
            best = shapes
        if not best.facts.problems or not _has_open_image(specs, dims):
            break
    assert best is not None
    return best


def require_ranks(model: Model, dims: Dims) -> None:
    """
    Raises:
        PruneError: neither the file nor its operators nor `dims` say how many dimensions an input has.
    """
    for name in _without_rank(model.ir, input_specs(model.ir), dims):
        raise PruneError(
            f"the model does not say how many dimensions the input {name} has", f"give --input-shape {name}:1,3,224,224"
        )


def _without_rank(model: ir.Model, specs: list[InputSpec], dims: Dims) -> list[str]:
    unstated = {value.name for value in model.graph.inputs if value.shape is None}
    return [s.name for s in specs if s.name in unstated and not s.shape and s.name not in dims.shapes]


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs a caller must feed: graph inputs that are no initializers, with what operators ask of them."""
    values = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return with_demands(model, [InputSpec(value.name or "", _dtype(value), _dims(value)) for value in values])


def output_specs(model: ir.Model) -> list[InputSpec]:
    """The outputs, with the shapes that the file states."""
    return [InputSpec(value.name or "", _dtype(value), _dims(value)) for value in model.graph.outputs]


def with_demands(model: ir.Model, specs: Sequence[InputSpec]) -> list[InputSpec]:
    """The model's inputs with the sizes that operators ask for; a rank that the file leaves open is theirs, too."""
    if all(s.shape and all(isinstance(dim, int) for dim in s.shape[1:]) for s in specs):
        return list(specs)
    asked, unstated = demands(model), {value.name for value in model.graph.inputs if value.shape is None}
    out = []
    for spec in specs:
        demand = asked.get(spec.name, NO_DEMAND)
        shape = (None,) * len(demand.sizes) if demand.whole and spec.name in unstated else spec.shape
        fits = not demand.whole or len(demand.sizes) == len(shape)
        sizes = (Demand((None,) * len(shape), True) | demand).sizes if fits else ()
        out.append(replace(spec, shape=shape, asked=sizes))
    return out


def demands(model: ir.Model) -> dict[str, Demand]:
    """What the graph asks of the size of each of its inputs, where the file leaves it open.

    A convolution fixes the rank and the channels of what it reads, a matrix the length of the last axis. One pass from
    the outputs to the inputs carries these sizes back through operators that keep axes where they are. Uses inside the
    bodies of other nodes ask nothing.
    """
    facts, asked = gather_facts(model, {}), dict[ir.Value, Demand]()
    for node in reversed(model.graph):
        if operator_of(node).demand is None:
            continue
        after = asked.get(node.outputs[0], NO_DEMAND) if node.outputs else NO_DEMAND
        shapes, arrays = [facts.shape(v) for v in node.inputs], [facts.value(v) for v in node.inputs]
        for index, value in enumerate(node.inputs):
            if value is not None and value not in facts.shapes:
                found = demand_of(DemandReading(node, index, after, shapes=shapes, arrays=arrays))
                asked[value] = found | asked.get(value, NO_DEMAND)
    return {value.name or "": asked.get(value, NO_DEMAND) for value in model.graph.inputs}


UNKNOWN = "unknown()"
"""The dtype of what is no tensor, or of none that the file states."""


def _dtype(value: ir.Value) -> str:
    dtype = value.dtype
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return UNKNOWN
    return "str" if dtype == ir.DataType.STRING else str(dtype.numpy().name)


def _dims(value: ir.Value) -> tuple[int | str | None, ...]:
    def one(dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim if dim >= 0 else None
        return None if dim.value in (None, "", "?") else dim.value  # PaddlePaddle writes "?"

    return tuple(one(dim) for dim in value.shape or ())


def _is_open(spec: InputSpec, axis: int, dims: Dims) -> bool:
    dim = spec.shape[axis]
    return spec.name not in dims.shapes and not isinstance(dim, int) and dim not in dims.sizes


def _open_image_axes(spec: InputSpec, dims: Dims) -> list[int]:
    """Height and width: the axes from 2 on, from 1 where the channels come last."""
    if not spec.is_float or len(spec.shape) not in (4, 5):
        return []
    settled = [not _is_open(spec, axis, dims) or spec.asked_of(axis) is not None for axis in range(len(spec.shape))]
    first = 1 if settled[-1] and not settled[1] else 2
    return [axis for axis in range(first, len(spec.shape)) if not settled[axis]]


def _has_open_image(specs: list[InputSpec], dims: Dims) -> bool:
    return any(_open_image_axes(spec, dims) for spec in specs)


def _inputs(specs: list[InputSpec], dims: Dims, size: int) -> dict[str, Shape]:
    inputs = resolve_shapes(specs, dims.sizes, dims.shapes)
    for spec in specs:
        shape = list(inputs[spec.name])
        for axis in _open_image_axes(spec, dims):
            shape[axis] = size
        inputs[spec.name] = tuple(shape)
        if max(shape, default=0) > LARGEST_SIZE:
            raise PruneError(
                f"the input {spec.name} would be of shape {inputs[spec.name]}",
                f"sizes up to {LARGEST_SIZE} are understood; --dim and --input-shape state them",
            )
    return inputs


def _assumed(specs: list[InputSpec], dims: Dims, inputs: dict[str, Shape]) -> tuple[str, ...]:
    """Return a text per size. A name that several inputs have at one size is told once, without them."""
    of: dict[tuple[str, int], list[str]] = {}
    for spec in specs:
        for axis, name in enumerate(spec.shape):
            if _is_open(spec, axis, dims):
                of.setdefault((str(name or f"axis {axis}"), inputs[spec.name][axis]), []).append(spec.name)
    found: list[str] = []
    for (name, size), owners in of.items():
        shared = len(set(owners)) > 1 and not name.startswith("axis ")
        found += [f"{name} = {size}"] if shared else [f"{name} of {owner} = {size}" for owner in owners]
    return tuple(found)


def _refuse_unknown(dims: Dims, specs: list[InputSpec]) -> None:
    names = sorted({dim for spec in specs for dim in spec.shape if isinstance(dim, str)})
    for name in dims.sizes:
        if not any(name in dim for dim in names):
            raise PruneError(
                f"--dim {name}: the model has no dimension of that name",
                f"its dimensions are {', '.join(names)}" if names else "use --input-shape",
            )
