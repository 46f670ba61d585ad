"""Experts of a mixture, measured on data: what each adds to its mixture's output, and mixtures without some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.calibration.layerwise import Opener, Store, Walk
from prunecli.dependency.atoms import Absence
from prunecli.dependency.catalogue import Catalogue, Group
from prunecli.dependency.neutral import lowest
from prunecli.model.constants import Constant, behind
from prunecli.model.graphs import add_constant
from prunecli.operators import MICROSOFT
from prunecli.operators.operator import input_of
from prunecli.runtime import Session
from prunecli.types import Progress, no_progress

Feeds = Sequence[Mapping[str, Array]]
WEIGHTS = range(2, 8)
"""Inputs of MoE that hold something of every expert."""


def energies(
    catalogue: Catalogue, model: ir.Model, feeds: Feeds, start: Opener = Session.open, progress: Progress = no_progress
) -> dict[str, Array]:
    """Return, by group of experts, E[(g |y|)^2] per token and expert: y is what the expert makes of the token, g the
    weight that the router gives it, 0 for the tokens that go through others. It is what the mixture's output loses of
    its power without the expert, were its tokens not sent elsewhere (the mean of g |y| over the tokens of an expert is
    the criterion of Lasby et al. 2025, REAP).

    Args:
        model: the catalogue's.
    Raises:
        PruneError: onnxruntime cannot run a piece of the model.
    """
    groups = [group for group in catalogue.groups if group.kind == "expert"]
    told = [(group, absence) for group in groups for absence in _routers(catalogue, group)]
    order = {node: number for number, node in enumerate(model.graph)}
    told.sort(key=lambda pair: order[pair[1].reader])
    out: dict[str, Array] = {}
    with Store() as store:
        walk = Walk(model, feeds, store, open_session=start, keep=()) if told else None
        for group, absence in progress(told, "measuring experts", len(told)):
            assert walk is not None
            found = _of_node(absence.reader, walk, start)
            mine = found[_places(catalogue, group, absence.axis)].sum(axis=1)
            out[group.name] = out.get(group.name, 0.0) + mine
        if walk is not None:
            walk.close()
    return out


def _routers(catalogue: Catalogue, group: Group) -> list[Absence]:
    """The mixtures whose experts a group has, by what they choose by; without those whose weights are computed."""
    table = catalogue.analysis.components.table
    mine = (each for each in table.absences if table.find(each.axis) in group.axes and each.reader.op_type == "MoE")
    return [each for each in mine if all(v is None or behind(v) for v in each.reader.inputs[2:8])]


def _places(catalogue: Catalogue, group: Group, axis: int) -> Array:
    """(units, positions of each on an axis)."""
    solved = catalogue.analysis.components
    root, low, high = solved.table.find(axis), catalogue.start[group.first], catalogue.start[group.units.stop]
    atoms = catalogue.atoms[low:high]
    mine: Array = atoms[catalogue.axis_of_atom[atoms] == root] - int(solved.offset[root])
    return np.asarray(mine.reshape(group.count, -1))


def _of_node(node: ir.Node, walk: Walk, start: Opener) -> Array:
    """Return E[(g |y|)^2] of every expert of one mixture."""
    data, router = (value.name or "" for value in node.inputs[:2] if value is not None)
    walk.reach([data, router])
    weights = {index: _content(held) for index in WEIGHTS if (held := behind(input_of(node, index))) is not None}
    count, kind = len(weights[2]), walk.read(data, 0).dtype
    gates, experts = start(_gates(node, kind, count)), dict[int, Session]()
    sums, tokens = np.zeros(count), 0
    for batch in range(walk.batches):
        x, logits = walk.read(data, batch), walk.read(router, batch)
        x, tokens = x.reshape(-1, x.shape[-1]), tokens + len(logits)
        shares = gates.run({"x": np.zeros((len(logits), count), x.dtype), "router": logits})["y"].astype(np.float64)
        for expert in np.flatnonzero((shares > 0).any(axis=0)).tolist():
            if expert not in experts:
                own = {index: weight[expert : expert + 1].astype(kind) for index, weight in weights.items()}
                experts[expert] = start(_alone(node, own))
            mine = np.flatnonzero(shares[:, expert])
            y = experts[expert].run({"x": x[mine], "router": np.zeros((len(mine), 1), x.dtype)})["y"]
            sums[expert] += np.square(shares[mine, expert] * np.linalg.norm(y.astype(np.float64), axis=1)).sum()
    walk.release(data)
    walk.release(router)
    return np.asarray(sums / max(tokens, 1))


def _content(held: Constant) -> Array:
    """Return a weight; one that is stored as it is read stays where it is mapped."""
    return held.array() if held.steps else np.asarray(held.tensor.numpy())


def _alone(node: ir.Node, weights: Mapping[int, Array]) -> ir.Model:
    """Return the mixture of one expert, through which all tokens go."""
    settings = {name: attribute for name, attribute in node.attributes.items() if name != "use_sparse_mixer"}
    changed = {"k": ir.AttrInt64("k", 1), "normalize_routing_weights": ir.AttrInt64("normalize_routing_weights", 1)}
    return _mixture({**settings, **changed}, weights)


def _gates(node: ir.Node, dtype: np.dtype[Any], count: int) -> ir.Model:
    """Return a mixture that yields the weights of the experts: expert e makes 1 at e of every token."""
    weights = {2: np.zeros((count, 1, count), dtype), 3: np.ones((count, 1), dtype),
               4: np.eye(count, dtype=dtype)[:, :, None]}  # fmt: skip
    kept = ("k", "normalize_routing_weights", "use_sparse_mixer")
    settings = {name: node.attributes[name] for name in kept if name in node.attributes}
    return _mixture({**settings, "activation_type": ir.AttrString("activation_type", "identity")}, weights)


def _mixture(attributes: Mapping[str, ir.Attr], weights: Mapping[int, Array]) -> ir.Model:
    """y = MoE(x, router), with these weights by input."""
    kind = ir.TensorType(ir.DataType.from_numpy(weights[2].dtype))
    x, router = (ir.Value(name=name, type=kind, shape=ir.Shape([None, None])) for name in ("x", "router"))
    graph = ir.Graph([x, router], [], nodes=[], opset_imports={"": 17, MICROSOFT: 1}, name="mixture")
    held = [add_constant(graph, f"w{k}", weights[k]) if k in weights else None for k in range(2, max(weights) + 1)]
    made = ir.node("MoE", [x, router, *held], dict(attributes), domain=MICROSOFT, name="mixture")
    made.outputs[0].name, made.outputs[0].type = "y", kind
    graph.append(made)
    graph.outputs.append(made.outputs[0])
    return ir.Model(graph, ir_version=9)


@dataclass(frozen=True)
class Closable:
    """A copy of a model, which computes the same as long as its `doors`, vectors of zeros, are: by the value that a
    choice goes by and its axis, the name of what is added to that. A very low number closes a position."""

    model: ir.Model
    doors: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def closed(self, removed: Mapping[str, Mapping[int, Array]]) -> Iterator[tuple[str, Array]]:
        """Yield the vectors that close the removed positions, by name."""
        for (name, axis), door in self.doors.items():
            tensor = self.model.graph.initializers[door].const_value
            if axis in removed.get(name, {}) and tensor is not None:
                vector = np.array(tensor.numpy())
                vector[removed[name][axis]] = lowest(vector.dtype) / 2  # whatever is added to it, it stays finite
                yield door, vector


def closable(model: ir.Model, chosen_by: Mapping[str, Mapping[int, str]], shapes: Mapping[str, tuple[int, ...]]
             ) -> Closable:  # fmt: skip
    """Return the model with doors at the axes of values that choices go by."""
    if not chosen_by:
        return Closable(model)
    model, doors = model.clone(), dict[tuple[str, int], str]()
    for node in list(model.graph):
        for value in node.outputs:
            for axis in chosen_by.get(value.name or "", ()):
                shape, kind = shapes[value.name or ""], value.dtype
                behind_it = [shape[axis], *[1] * (len(shape) - axis - 1)]
                zeros = np.zeros(behind_it, np.float32 if kind is None else kind.numpy())
                door = add_constant(model.graph, f"{value.name}.door", zeros)
                added = ir.node("Add", [value, door], name=f"{value.name}.open")
                added.outputs[0].name, added.outputs[0].type = f"{value.name}.through", value.type
                for user, index in [use for use in value.uses() if use.node is not added]:
                    user.replace_input_with(index, added.outputs[0])
                model.graph.insert_after(node, added)
                doors[value.name or "", axis] = door.name or ""
    return Closable(model, doors)
