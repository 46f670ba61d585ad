"""The blocks of a network: parts between values that everything passes through, so that a part can learn from the same
part of a teacher."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from prunecli.model.graphs import reads


def block_ends(model: ir.Model, matrices: Collection[str]) -> list[str]:
    """Return the names of the values that end a block, in the order of the graph.

    A value ends a block where it alone, of all that was made of the data with a matrix, is read by what follows: the
    output of a residual block, or of a layer of a plain network. Each block holds a matrix, and so does what follows
    the last one: no output of the model ends a block.

    Args:
        matrices: names of the stored matrices and kernels that are trained.
    """
    nodes = list(model.graph)
    last = {value: place for place, node in enumerate(nodes) for value in reads(node)}
    last |= {value: len(nodes) for value in model.graph.outputs}
    data = {value for value in model.graph.inputs if value.name not in model.graph.initializers}
    learned = {value for value in model.graph.initializers.values() if value.name in matrices}
    alive, found = set[ir.Value](), list[str]()
    end: ir.Value | None = None
    for place, node in enumerate(nodes):
        read = reads(node)
        of_data, of_matrix = any(v in data for v in read), any(v in learned for v in read)
        if end is not None and of_data and any(v in learned and v not in data for v in read):
            found.append(str(end.name))
            end = None
        data |= set(node.outputs) if of_data else set()
        learned |= {out for out in node.outputs if of_matrix or out.name in matrices}
        alive |= {out for out in node.outputs if of_data and of_matrix}
        alive = {value for value in alive if last.get(value, -1) > place}
        end = next(iter(alive)) if len(alive) == 1 else end
    return found
