"""From a graph to its units: apply every node's rule, solve the ties, follow the factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx_ir as ir

import prunecli.dependency.rules  # noqa: F401 - fills the registry
from prunecli.dependency.atoms import AtomTable, Components, LengthError, solve
from prunecli.dependency.neutral import freeze_contradictions
from prunecli.dependency.registry import BARRIERS, RULES, RuleContext, Work, is_named, is_shape_computation
from prunecli.dependency.units import Family, find_families
from prunecli.dependency.views import Geometry, view_geometry
from prunecli.errors import PruneError, some
from prunecli.inputs import is_past
from prunecli.model import Dims, Model, concrete_shapes
from prunecli.model.constants import INTERFACE, overridable
from prunecli.model.floating import FloatingForm
from prunecli.model.graphs import node_name, subgraphs
from prunecli.model.shape_inference import Facts, Shape
from prunecli.model.shapes import Shapes, input_specs
from prunecli.operators import operator_of


@dataclass
class Analysis:
    """What can be cut from a model.

    `families` hold the units (see `units.py`); `components` maps them to atoms; `work` lists the multiply-accumulates
    and the axes they are proportional to; `written` the elements that every node writes, where they were counted.
    `other_inputs`: the other shapes by which constants were told from what depends on dynamic dimensions: give them to
    `remove`; None if all are static.
    """

    model: ir.Model
    inputs: dict[str, Shape]
    geometry: Geometry
    components: Components
    families: list[Family]
    work: list[Work]
    other_inputs: dict[str, Shape] | None = None
    written: list[Work] = field(default_factory=list)

    @property
    def facts(self) -> Facts:
        """Shapes and known contents at the analysed dimensions."""
        return self.geometry.facts


ANALYSED_BATCH = 2
"""A batch of one would hide which axes are the batch."""
NONSENSE = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
OLDEST_OPSET = 7  # before it, broadcasting was stated by attributes


Whole = Mapping[tuple[str, int], str]
"""(value, axis) -> why no position of it may be removed."""
NONE: Whole = MappingProxyType({})
NO_BLOCKS: Mapping[tuple[str, int], int] = MappingProxyType({})
BLOCK = "a block of a quantised weight shares a scale"
GROUPED = "inputs of a quantised weight belong to scales by a table (g_idx)"


def kept_together(form: FloatingForm) -> tuple[Whole, Mapping[tuple[str, int], int]]:
    """Return the axes of quantised weights that stay whole, and those whose positions are removed in blocks, for
    `analyse`."""
    whole, blocks = dict[tuple[str, int], str](), dict[tuple[str, int], int]()
    for name, one in form.sources.items():
        if one.together:
            last = len(one.shape) - 1
            if one.shape[last] % one.together:
                whole[name, last] = BLOCK
            elif one.together > 1:
                blocks[name, last] = one.together
            continue
        if one.bits and not one.width:
            rank = len(one.shape)
            whole |= dict.fromkeys(((name, axis) for axis in ((2,) if rank == 3 else range(rank))), BLOCK)
        if one.grouped:
            whole[name, 1] = GROUPED
        elif one.block and one.shape[one.axis] % one.block:
            whole[name, one.axis] = BLOCK
        elif one.block:
            blocks[name, one.axis] = one.block
    return whole, blocks


def analyse(
    model: ir.Model, inputs: Mapping[str, Shape], other_inputs: Mapping[str, Shape] | None = None, whole: Whole = NONE,
    blocks: Mapping[tuple[str, int], int] = NO_BLOCKS,
) -> Analysis:  # fmt: skip
    """State the relations of every operator and find all units.

    Args:
        model: nodes in topological order, local functions inlined (`prepare`). Not changed.
        inputs: concrete shape of every graph input (`gather_facts`). A batch of at least 2 sees more.
        other_inputs: the same at other sizes of the dynamic dimensions; chosen where it is not given.
        whole: axes that stay whole, apart from what the rules say (`cut.UnfollowedError`).
        blocks: axes of which so many neighbours go together.
    """
    geometry, other = view_geometry(model, inputs, other_inputs)
    table, work = AtomTable(), list[Work]()
    _freeze_interface(model, geometry.facts, table)
    for value, shape in geometry.facts.shapes.items():
        for index, size in enumerate(shape):
            if (value.name or "", index) in whole:
                table.freeze(table.axis(value, index, size), whole[value.name or "", index])
            if (block := blocks.get((value.name or "", index), 1)) > 1:
                parts = table.virtual(size // block), table.virtual(block)
                table.freeze(parts[1], BLOCK)
                table.product(table.axis(value, index, size), parts)
    for node in model.graph:
        imported = model.opset_imports.get(node.domain)
        _apply_rule(RuleContext(node, geometry, table, work=work, opset=node.version or imported or 0))
    freeze_contradictions(table)
    _freeze_dynamic(table, geometry)
    components = solve(table)
    return Analysis(
        model,
        dict(inputs),
        geometry,
        components=components,
        families=find_families(components),
        work=work,
        other_inputs=other,
    )


def _freeze_interface(model: ir.Model, facts: Facts, table: AtomTable) -> None:
    inputs = [(value, INTERFACE if value.is_initializer() else "graph input")
              for value in model.graph.inputs if not value.is_initializer() or overridable(value)]  # fmt: skip
    cache = _cache_reasons(model)
    for value, reason in [*inputs, *((value, "graph output") for value in model.graph.outputs)]:
        for index, size in enumerate(facts.shapes.get(value, ())):
            table.freeze(table.axis(value, index, size), cache.get(value.name or "", reason))


def _cache_reasons(model: ir.Model) -> dict[str, str]:
    """Return, for the inputs that hold keys and values of the past, and for the outputs that hold the next ones, why
    they keep their shapes."""
    past = [spec.name for spec in input_specs(model) if is_past(spec)]
    present = [value.name or "" for value in model.graph.outputs if (value.name or "").startswith("present")]
    if not past:
        return {}
    told = f"heads of keys and values, and their size, are axes of the cache: {some(past, 1)} would change in shape"
    return dict.fromkeys([*past, *present], told)


def _freeze_dynamic(table: AtomTable, geometry: Geometry) -> None:
    """Freeze axes as long as a dynamic dimension, which have no fixed positions, unless fixed factors make them up."""
    shown: dict[int, bool] = {}
    for number, axis in enumerate(table.axes):
        if axis.value is not None:
            root = table.find(number)
            shown[root] = shown.get(root, True) and geometry.is_dynamic(axis.value, axis.index)
    wholes = {table.find(whole) for whole, _ in table.products}
    for root, dynamic in shown.items():
        if dynamic and root not in wholes:
            table.freeze(root, "dynamic dimension")


def _apply_rule(ctx: RuleContext) -> None:
    node = ctx.node
    captured = list(_captured(node))
    if captured:
        for value in captured:
            ctx.freeze(value, f"used inside the body of {node.op_type}")
        return
    if node.outputs and all(is_shape_computation(v, ctx.facts) for v in node.outputs if v.name):
        for read in node.inputs if not operator_of(node).of_shape else ():
            ctx.freeze(read, f"{node.op_type} computes shapes or indices from it")
        return
    problem = _obstacle(ctx)
    if problem:
        ctx.freeze_node(problem)
    else:
        try:
            RULES[node.domain, node.op_type](ctx)
        except LengthError as error:
            hint = "state the sizes of the inputs with --input-shape or --dim"
            raise PruneError(f"{node.op_type} {node_name(node)!r} does not fit what it reads: {error}", hint) from error
        except NONSENSE as error:  # no such node can run
            ctx.freeze_node(f"{node.op_type} makes no sense as it stands: {type(error).__name__}: {error}"[:160])
        ctx.freeze_unspoken()


def _obstacle(ctx: RuleContext) -> str | None:
    """Return why the rule of a node cannot be applied."""
    node = ctx.node
    if (node.domain, node.op_type) in BARRIERS:
        return f"{node.op_type}: {BARRIERS[node.domain, node.op_type]}"
    if (node.domain, node.op_type) not in RULES:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        return f"no rule for operator {name}"
    if node.domain == "" and ctx.opset < OLDEST_OPSET:
        return f"opset {ctx.opset} is too old to be analysed ({OLDEST_OPSET} is the oldest)"
    for value in (*node.inputs, *filter(is_named, node.outputs)):
        if value is not None and value.name and value not in ctx.facts.shapes:
            return f"shape of {value.name!r} depends on data or is unknown"
    return None


def _captured(node: ir.Node) -> Iterator[ir.Value | None]:
    """Return all values that a node with bodies (If, Loop, Scan) reads or yields, and those of nodes inside its
    bodies."""
    bodies = list(subgraphs(node))
    if bodies:
        yield from (*node.inputs, *node.outputs)
    while bodies:
        graph = bodies.pop()
        yield from graph.outputs
        for inner in graph:
            yield from inner.inputs
            bodies.extend(subgraphs(inner))


def analysed_shapes(model: Model, dims: Dims, first: Shapes) -> dict[str, Shape]:
    """Return input shapes with a batch of two where the batch is free and the model accepts it. `first`: the shapes by
    `dims`."""
    sizes, shapes = dict(dims.sizes), dict(dims.shapes)
    specs = input_specs(model.ir)
    inner = {dim for spec in specs for dim in spec.shape[1:]}
    for spec in specs:
        lead = spec.shape[0] if spec.shape else 0
        if spec.name in dims.shapes or isinstance(lead, int) or lead in dims.sizes:
            continue
        if lead is None or lead in inner:
            shapes[spec.name] = (ANALYSED_BATCH, *first.inputs[spec.name][1:])
        elif not set(lead) & set("+-*/() "):  # an expression follows from its names
            sizes[lead] = ANALYSED_BATCH
    if (sizes, shapes) == (dict(dims.sizes), dict(dims.shapes)):
        return first.inputs
    second = concrete_shapes(model, Dims(sizes, shapes))
    return second.inputs if len(second.facts.problems) <= len(first.facts.problems) else first.inputs
