"""Original and pruned model side by side: each layer is fitted on what the layers before it, pruned by now, really give
it, to what the original computes there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.evidence.grams import Equations
from prunecli.evidence.layers import Layer
from prunecli.evidence.offsets import put
from prunecli.evidence.walk import Walk, working_form
from prunecli.pipeline.oneshot_study import Study, fittable
from prunecli.recover.fit import Fitted, Task
from prunecli.recover.sparsegpt import Quota
from prunecli.select.decisions import Rewritten
from prunecli.types import Progress

Array = np.ndarray[Any, Any]


def pruned(
    study: Study, chosen: Mapping[str, int | Array], progress: Progress
) -> Iterator[tuple[Layer, Rewritten, Rewritten | None, dict[str, float]]]:
    """Prune and fit layer after layer.

    Args:
        chosen: by layer, how many weights go, or which (a mask of the stored shape).
    """
    student = working_form(study.model.ir)
    mine, _ = fittable(study.model, student, [layer.weight.holder.name for layer in study.layers], study.fixed)
    wanted = Walk(study.original, study.feeds, study.store, study.open_session)
    given = Walk(student, study.feeds, study.store, study.open_session)
    shared = _shared(study, mine)
    for layer in progress(mine, "pruning layers", len(mine)):
        # in a transformer, whose sums follow an added bias, their errors drown the small outputs of the branches
        others = layer.carried if layer.is_summed_plainly else None
        sums = shared.get(layer.name) or study.sums(layer, wanted, given, others)
        study.release(layer, wanted, given)
        tasks = list(study.tasks(layer, sums))
        picks = _picked(study, layer, tasks, chosen[layer.name])
        best = study.fitted(tasks, picks, study.way.recover)
        yield layer, *_put(study, layer, best), _report(tasks, best)
    wanted.close()
    given.close()


def _picked(study: Study, layer: Layer, tasks: Sequence[Task], amount: int | Array) -> list[Array | Quota]:
    """What goes, by losses on what the pruned layers before give, from the best weights for that."""
    if not isinstance(amount, int):
        return list(layer.matrices(amount) > 0)
    if study.way.method.updates and study.way.recover == "lstsq" and study.way.method.criterion:
        study.found.pop(layer.name, None)
        return study.choose(layer, [task.optimum() for task in tasks], amount)
    return study.choose(layer, tasks, amount)


def _shared(study: Study, layers: Sequence[Layer]) -> dict[str, Equations]:
    """Layers whose weight is read in several places are fitted on what the original gives them in all of them."""
    several = [layer for layer in layers if len(layer.uses) > 1]
    if not several:
        return {}
    walk = Walk(study.original, study.feeds, study.store, study.open_session)
    found = {layer.name: study.sums(layer, walk, walk) for layer in several}
    walk.close()
    return found


def _put(study: Study, layer: Layer, best: Sequence[Fitted]) -> tuple[Rewritten, Rewritten | None]:
    """Store the weights in the pruned model, rounded as they will be saved."""
    array = layer.weight.array()
    values, drop, shift = study.plain(layer, best)
    new = Rewritten.of(values, drop, array.dtype)
    layer.weight.holder.put(ir.Tensor(new.values, dtype=layer.weight.dtype, name=layer.weight.holder.name))
    offset, source = layer.offset, layer.offset.source if layer.offset is not None else None
    if offset is None or source is None or not shift.any():
        return new, None
    moved = offset.content(offset.read(shift.size) + shift)
    put(source, moved)
    return new, Rewritten(moved, np.packbits(np.zeros(moved.size, np.bool_)))


def _report(tasks: Sequence[Task], best: Sequence[Fitted]) -> dict[str, float]:
    error = float(np.mean([task.error(one.weights, one.shift) for task, one in zip(tasks, best, strict=True)]))
    return {"reconstruction_error": error}
