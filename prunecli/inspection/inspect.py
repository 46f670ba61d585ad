"""`prune inspect`: what is in a model, what can be pruned, what cannot and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from prunecli.dependency.unit_graph import unit_graph
from prunecli.inputs import InputSpec
from prunecli.inspection.cuttable import CuttableUnits, cuttable_units
from prunecli.inspection.distribution import Distribution, PatternFit, distribution, pattern_fit
from prunecli.inspection.graph import GraphView, write_graph
from prunecli.inspection.options import InspectOptions
from prunecli.model import Macs, Model, Shapes, Weight, Weights, concrete_shapes, count_macs, find_weights, load, totals
from prunecli.model.floating import as_stored, floats_of, stored_as
from prunecli.model.graphs import all_graphs
from prunecli.model.shape_inference import UNKNOWN_INPUT
from prunecli.model.shapes import input_specs, output_specs
from prunecli.model.sizes import census_of, macs_by_weight
from prunecli.report.result import ModelResult
from prunecli.types import Progress, Skipped, Totals, Verification, no_progress

CLASH = "ShapeInferenceError"
"""The name of the error in messages of onnx about shapes that contradict each other."""
PROBLEMS = 5
"""The number of operators without a shape that are listed."""


@dataclass(frozen=True)
class InspectedLayer:
    """One weight, or one operator that multiplies but has no prunable weight (`weight` is then "").

    kind: weight, bias, norm or embedding; "none" without a weight. stored: the element type of the weight, and how its
    integers are scaled. macs: the work of all operators that read the weight; None if a shape is unknown.
    """

    name: str
    op: str
    macs: int | None
    weight: str = ""
    kind: str = "none"
    shape: tuple[int, ...] = ()
    dtype: str = ""
    stored: str = ""
    params: int = 0
    nonzero: int = 0
    bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return (self.params - self.nonzero) / self.params if self.params else 0.0


@dataclass(frozen=True, kw_only=True)
class Inspection(ModelResult):
    """The result of `inspect`. `patterns`: by weight; `interface`: inputs and outputs as the file states them."""

    about: Mapping[str, str]
    inputs: Mapping[str, tuple[int, ...]]
    assumed: tuple[str, ...]
    layers: list[InspectedLayer]
    skipped: list[Skipped]
    nm: tuple[int, int] | None = None
    patterns: Mapping[str, PatternFit] = field(default_factory=dict)
    distribution: Distribution | None = None
    interface: Mapping[str, Sequence[InputSpec]] = field(default_factory=dict)
    cuttable: CuttableUnits = field(default_factory=CuttableUnits)
    graph: GraphView | None = None

    @property
    def totals(self) -> Totals:
        """The sizes of the model; nothing changes them."""
        return self.before

    @property
    def prunable(self) -> list[InspectedLayer]:
        return [layer for layer in self.layers if layer.kind == "weight"]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the prunable weights."""
        params = sum(layer.params for layer in self.prunable)
        return sum(layer.params - layer.nonzero for layer in self.prunable) / params if params else 0.0


def inspect(
    model: str | Path, options: InspectOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> Inspection:
    """Read a model and describe it. Nothing is written. `changes` override fields of the options.

    Raises:
        PruneError: the file is not a model, or the options name what it does not have.
    """
    start, options = time.perf_counter(), InspectOptions.of(options, **changes)
    file = load(Path(model))
    floats = floats_of(file)
    weights = find_weights(floats)
    shapes = concrete_shapes(floats, options.dims)
    macs = count_macs(floats, shapes)
    everything = weights.all()
    census = {id(w.tensor): census_of(w.tensor) for w in progress(everything, "counting zeros", len(everything))}
    broken = {w.name for w in everything if not census[id(w.tensor)][1]}
    nonzero = {key: count for key, (count, _) in census.items()}
    measurable = [w for w in weights.prunable if w.name not in broken]
    patterns = {w.name: pattern_fit(w, *options.nm) for w in weights.prunable} if options.nm else {}
    size = totals(floats, shapes, nonzero)
    graph = unit_graph(file.path, dims=options.dims) if options.graph is not None else None
    if graph is not None and options.graph is not None:
        write_graph(graph, options.graph)
    return Inspection(
        model=file.ref,
        output=None,
        before=size,
        after=size,
        verification=Verification("none", detail="nothing was changed"),
        about=_about(file),
        inputs=shapes.inputs,
        assumed=shapes.assumed,
        layers=_layers(floats, weights, macs, nonzero=nonzero),
        skipped=weights.skipped,
        notes=[
            *file.notes,
            *_unfit(shapes),
            *_problems(shapes),
            *(f"weight '{name}' holds NaN or infinity" for name in sorted(broken)),
        ],
        nm=options.nm,
        patterns=patterns,
        distribution=distribution(measurable, progress) if options.histogram else None,
        interface={"inputs": input_specs(file.ir), "outputs": output_specs(file.ir)},
        cuttable=cuttable_units(file, options.dims),
        graph=None if graph is None else GraphView.of(graph, str(options.graph)),
        seconds=time.perf_counter() - start,
    )


def _unfit(shapes: Shapes) -> list[str]:
    """Return a warning if the model contradicts the sizes that were assumed."""
    clash = next((f"{n.op_type} '{_name(n)}': {why}" for n, why in shapes.facts.problems.items() if CLASH in why), "")
    if not clash or not shapes.assumed:
        return []
    return [f"the model does not run at the sizes assumed ({', '.join(shapes.assumed)}): state others with --dim or"
            f" --input-shape; {clash}"]  # fmt: skip


def _about(model: Model) -> dict[str, str]:
    producer = f"{model.ir.producer_name or 'unknown'} {model.ir.producer_version or ''}".strip()
    used = {node.domain for graph in all_graphs(model.ir) for node in graph}
    imports = [(domain, number) for domain, number in model.ir.opset_imports.items() if domain in used]
    opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in imports)
    return {"producer": producer, "opsets": opsets}


def _problems(shapes: Shapes) -> list[str]:
    """Return messages about operators without a shape: the first in the order of the graph are named, those whose
    inputs have none are counted."""
    all_of_them = shapes.facts.problems
    listed = [
        f"no shape after {n.op_type} '{_name(n)}': {why}" for n, why in all_of_them.items() if why != UNKNOWN_INPUT
    ]
    more = len(all_of_them) - len(listed[:PROBLEMS])
    return [*listed[:PROBLEMS], f"nor after {more} other operator{'s' * (more > 1)}"] if more else listed


def _layers(model: Model, weights: Weights, macs: Macs, nonzero: Mapping[int, int]) -> list[InspectedLayer]:
    """Return a row for each weight, in the order of the operators that read them, then for each operator that
    multiplies without one. `nonzero`: by `id` of a weight's tensor."""
    work = macs_by_weight(weights.prunable, macs)
    layers = [
        (weight.node, _layer(weight, nonzero[id(weight.tensor)], work.get(weight.name))) for weight in weights.all()
    ]
    owned = {use.node for weight in weights.prunable for use in weight.uses}
    layers += [
        (node, InspectedLayer(name=_name(node), op=node.op_type, macs=count))
        for node, count in macs.nodes.items()
        if node not in owned
    ]
    order = {node: place for place, node in enumerate(model.ir.graph.all_nodes())}
    return [layer for _, layer in sorted(layers, key=lambda item: order.get(item[0], len(order)))]


def _layer(weight: Weight, nonzero: int, macs: int | None) -> InspectedLayer:
    stored, source = as_stored(weight.tensor), stored_as(weight.tensor)
    return InspectedLayer(
        name=_name(weight.node),
        op=weight.op,
        weight=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        dtype=stored.dtype.name.lower(),
        stored=stored.dtype.numpy().name if source is None else source.words,
        params=weight.size,
        nonzero=nonzero,
        macs=macs if weight.kind == "weight" else 0,
        bytes=stored.nbytes,
        notes=weight.notes,
    )


def _name(node: ir.Node) -> str:
    return node.name or next((out.name for out in node.outputs if out.name), "")
