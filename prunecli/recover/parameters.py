"""The trained tensors of a model in one flat float32 buffer, with their gradients, and what must stay zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model import Model, Weight, find_weights
from prunecli.recover.optimizers import Flat

Array = np.ndarray[Any, Any]
ALIGN = 16  # elements: onnxruntime's kernels like 64-byte boundaries


@dataclass(frozen=True)
class Parameter:
    """One trained tensor: elements start .. stop of the buffers."""

    weight: Weight
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def kind(self) -> str:
        return self.weight.kind

    @property
    def is_batch_norm_scale(self) -> bool:
        return any(use.op == "BatchNormalization" and use.index == 1 for use in self.weight.uses)


class Parameters:
    """`values` and `gradients` are flat; `value(p)` and `gradient(p)` are views of a tensor's shape.

    A zero that is stored in a matrix, a kernel or an embedding was pruned and stays zero. So do the zeros of a
    bias or normalisation parameter that is not zero throughout (which is how training usually starts them).
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.items: list[Parameter] = []
        end = 0
        for weight in weights:
            self.items.append(Parameter(weight, end, end + weight.size))
            end = -(-(end + weight.size) // ALIGN) * ALIGN
        self.values: Flat = np.zeros(end, np.float32)
        self.gradients: Flat = np.zeros(end, np.float32)
        self.decays: Flat = np.zeros(end, np.float32)
        self.keep: Flat = np.ones(end, np.float32)
        for item in self.items:
            self._read(item)

    def _read(self, item: Parameter) -> None:
        array = item.weight.array().astype(np.float32)
        if not np.isfinite(array).all():
            raise PruneError(f"{item.name} holds NaN or infinity", "leave it out with --freeze")
        self.value(item)[...] = array
        matrix = item.kind in ("weight", "embedding")
        self.decays[item.start : item.stop] = float(matrix)
        if matrix or array.any():
            self.keep[item.start : item.stop] = (array != 0).reshape(-1)

    @property
    def count(self) -> int:
        """Trained elements, pruned ones not counted."""
        return sum(int(self.keep[i.start : i.stop].sum()) for i in self.items)

    def value(self, item: Parameter) -> Array:
        return self.values[item.start : item.stop].reshape(item.weight.shape)

    def gradient(self, item: Parameter) -> Array:
        return self.gradients[item.start : item.stop].reshape(item.weight.shape)

    def mask_gradients(self) -> None:
        """Nothing pulls at what was pruned."""
        self.gradients *= self.keep

    def store(self) -> None:
        """Put the values into the model, in the tensors' own types."""
        for item in self.items:
            self._store(item)

    def _store(self, item: Parameter) -> None:
        tensor = item.weight.tensor
        array = self.value(item).astype(tensor.dtype.numpy())
        item.weight.holder.put(ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string))


def trainable(model: Model, freeze: Sequence[str] = ()) -> list[Weight]:
    """Every stored floating-point parameter of the main graph that an operator uses as one, less what
    `freeze` (patterns over tensor names) names, less BatchNormalization's running statistics and what a caller may
    override.

    Raises:
        PruneError: a pattern that matches nothing, or nothing is left.
    """
    weights = find_weights(model)
    every = [*weights.all(), *weights.single]
    found = [w for w in every if w.holder.graph is model.ir.graph and not _is_statistic(w)]
    for pattern in freeze:
        if not any(fnmatchcase(w.name, pattern) for w in found):
            raise PruneError(f"--freeze {pattern!r} matches nothing", "`prune inspect` lists the names")
    kept = [w for w in found if not any(fnmatchcase(w.name, pattern) for pattern in freeze)]
    if kept and all(w.holder.overridable for w in kept):
        raise PruneError(
            "everything that could be trained is also a graph input, so that a caller may feed other values",
            "--include '*' trains it all the same",
        )
    kept = [w for w in kept if not w.holder.overridable]
    if not kept:
        raise PruneError("the model has nothing to train", "`prune inspect` says what is in it")
    return kept


def _is_statistic(weight: Weight) -> bool:
    return any(use.op == "BatchNormalization" and use.index in (3, 4) for use in weight.uses)
