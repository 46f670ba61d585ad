"""How far errors at each place of hidden values move a model's outputs: what a fit of few weights should get right.

An error e of a hidden value moves the outputs z by J e. With r of random signs E[(r^T J)^2] = diag(J^T J) (Hutchinson
1989), so one backward pass per batch tells what each element counts. Of a layer's output that is taken as a factor of
the channel times a factor of the position, as in K-FAC (Martens and Grosse 2015): least squares weighed so stay one
problem for all channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array, evenly_spread
from prunecli.autodiff import DifferentiationOptions, GradientModel, differentiate
from prunecli.calibration.gradients import MOST_SHAPES, OutputTask, looked_at, single
from prunecli.calibration.layers import LinearLayer
from prunecli.calibration.layerwise import Store
from prunecli.data import Batch
from prunecli.data.columns import is_float
from prunecli.errors import PruneError
from prunecli.operators import Contraction
from prunecli.runtime import Session

Feed = Mapping[str, Any]
LARGEST = 1 << 30
"""Bytes of weights, and of what a batch's run forwards and backwards holds."""
ORTHOGONAL = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
FEW_OUTPUTS = 16
"""Outputs of a sample, at most, of which the four directions, whose signs are orthogonal, tell enough of each position:
of 1,000 what so few tell is a matter of chance, and did harm. Of channels the mean over samples tells enough all the
same, where they lie along the last axis. Those of images may fire for a few of all classes, and seem to count for
nothing: so weighed, EfficientNet-Lite0 with 50 % of zeros has an error of the logits of 0.227 in place of 0.195."""
WIDE_BATCHES, WIDE_SAMPLES = 16, 2
"""Of models of more outputs: batches, evenly spread, and samples of each that are looked at."""
HELD = 4
"""Of a layer's output, about as much is held between the two directions: it, what follows it, and their gradients."""
MOST = 20.0
"""Times the mean that one position may count."""
LEAST = 0.01
"""Of the largest factor of a channel, that the others have at least."""


@dataclass(frozen=True)
class Importance:
    """By value: `channels` (C,), the root of E[g^2] over samples, summed over positions. In the store, by batch: g^2
    summed over channels, at each position; it counts over its mean in the sample, for of samples of which little is
    certain gradients are far larger, and these alone would be fitted. `by_position`: whether that is measured; of
    models of many outputs it is not."""

    channels: Mapping[str, Array]
    store: Store
    by_position: bool = True

    @classmethod
    def of(
        cls, model: ir.Model, layers: Sequence[LinearLayer], feeds: Sequence[Feed], store: Store, *,
        start: Callable[..., Session], seed: int = 0,
    ) -> Importance:  # fmt: skip
        """Of the outputs of layers of a model in working form, over all batches.

        Raises:
            PruneError: an operator on the way to the outputs has no gradient, they depend on none of the layers,
                batches have too many shapes, or the model is too large.
        """
        axes = {use.output: use.channel for layer in layers for use in layer.uses}
        few = some_of(model, feeds, WIDE_BATCHES, samples=WIDE_SAMPLES)
        all_positions = outputs_of(model, few[0], start) <= FEW_OUTPUTS if few else True
        if not all_positions:
            axes = {name: axis for name, axis in axes.items() if axis == -1}
        gradients = OutputGradients(model, axes, start)
        powers: dict[str, Array] = {}
        for number, feed in enumerate(feeds if all_positions else few if axes else ()):
            for name, (by_channel, by_position) in gradients.of(feed, np.random.default_rng([seed, number])).items():
                if all_positions:
                    store.put((_KEY, name, number), by_position)
                powers[name] = powers.get(name, 0.0) + by_channel.astype(np.float64)
        fine = [name for name, total in powers.items() if np.isfinite(total).all() and total.any()]
        return cls({name: np.sqrt(powers[name]) for name in fine}, store, all_positions)

    def of_part(
        self, model: ir.Model, layers: Sequence[LinearLayer], feeds: Sequence[Feed], store: Store, *,
        start: Callable[..., Session], seed: int, first: int,
    ) -> Importance:  # fmt: skip
        """The same of the batches from `first` on, which are in another process."""
        if not self.by_position:
            return self
        axes = {use.output: use.channel for layer in layers for use in layer.uses}
        gradients = OutputGradients(model, axes, start)
        for number, feed in enumerate(feeds):
            for name, (_, found) in gradients.of(feed, np.random.default_rng([seed, first + number])).items():
                store.put((_KEY, name, number), found)
        return replace(self, store=store)

    def of_rows(self, layer: LinearLayer) -> Array | None:
        """(batch, rows) what an error of each output of a layer counts; None where it is not known."""
        found = [self.channels[use.output] for use in layer.uses if use.output in self.channels]
        shape = layer.shape[:2]
        if not found or found[0].size not in (shape[1], math.prod(shape)):
            return None
        total = np.sqrt(np.sum(np.square(found), axis=0)).reshape(-1, shape[1])
        return np.broadcast_to(np.maximum(total, LEAST * total.max()), shape)

    def of_positions(self, use: Contraction, number: int, count: int, places: Array) -> Array | None:
        """(count,) what an error at each position of a batch counts, 1 on average over those of a sample that are among
        `places`: half of it for its mere being there, half by how far it moves the outputs. None where it is not
        known."""
        if (_KEY, use.output, number) not in self.store or use.output not in self.channels:
            return None
        powers = self.store.get((_KEY, use.output, number))
        if powers.size != count:
            return None
        kept = np.zeros(count, np.bool_)
        kept[places] = True
        return 0.5 + 0.5 * np.minimum(_in_sample(powers, kept.reshape(powers.shape)).reshape(-1), MOST)


_KEY = "importance"


def some_of(model: ir.Model, feeds: Sequence[Feed], batches: int, samples: int) -> list[Feed]:
    """The first samples of some batches, evenly spread; whole ones where the model takes no other number of them, or
    not all inputs have them along the first axis."""
    free = all(value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int)
               for value in model.graph.inputs)  # fmt: skip
    some: list[Feed] = []
    for number in evenly_spread(len(feeds), batches):
        feed = dict(feeds[number])  # made once
        alike = free and len({len(array) for array in feed.values()}) == 1
        some.append({name: array[:samples] for name, array in feed.items()} if alike else feed)
    return some


def _in_sample(powers: Array, kept: Array) -> Array:
    """Each over the mean of those of its sample that are kept; samples lie along the first axis."""
    axes = tuple(range(1, powers.ndim))
    total = powers.sum(axis=axes, keepdims=True, where=kept)
    mean = total / np.maximum(kept.sum(axis=axes, keepdims=True), 1)
    return np.asarray(np.divide(powers, mean, out=np.ones_like(powers), where=mean > 0))


class OutputGradients:
    """The squares of the gradients by some values, summed over all axes but the channel's, and over that alone. Of the
    outputs in random directions, whose `signs` turn, in the mean."""

    def __init__(
        self, model: ir.Model, axes: Mapping[str, int], start: Callable[..., Session], *,
        signs: Sequence[Sequence[int]] = ORTHOGONAL,
    ) -> None:  # fmt: skip
        self.model, self.axes, self.start = model, axes, start
        self.signs = signs
        self.ends = looked_at(model.graph.outputs)
        self.task: OutputTask | None = None
        self.built: dict[tuple[Any, ...], tuple[GradientModel, Session]] = {}

    def of(self, feed: Feed, rng: np.random.Generator) -> dict[str, tuple[Array, Array]]:
        feed = dict(feed)  # made once
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        key = tuple(sorted(shapes.items()))
        if key not in self.built:
            if len(self.built) == MOST_SHAPES:
                raise PruneError(f"the samples have more than {MOST_SHAPES} different shapes", "use fewer with --limit")
            self.built[key] = self._build(feed, shapes)
        graph, session = self.built[key]
        asked = {name: shape for name, (_, shape) in graph.loss_inputs.items()}
        assert self.task is not None
        drawn = self.task.inputs(Batch(dict(feed), 1), asked, rng)
        runs = [session.run({**single(feed), **_turned(drawn, signs)}) for signs in self.signs]
        names = {name: (_by(out, "channel"), _by(out, "position")) for name, out in graph.gradients.items()}
        return {name: (_mean(runs, channel), _mean(runs, place)) for name, (channel, place) in names.items()}

    def _build(self, feed: Feed, shapes: Mapping[str, tuple[int, ...]]) -> tuple[GradientModel, Session]:
        stored = _stored(self.model)
        _check_size(stored)
        found = self.start(self.model, outputs=[*self.ends, *self.axes]).run(feed, [*self.ends, *self.axes])
        _check_size(stored + HELD * sum(found[name].nbytes for name in self.axes))
        floats = [name for name in self.ends if is_float(np.asarray(found[name]).dtype)]
        self.task = self.task or OutputTask.of(found, floats)
        how = DifferentiationOptions(weights_as_inputs=False)
        graph = differentiate(self.model, list(self.axes), self.task.loss, shapes=shapes, options=how)
        if not graph.gradients:
            raise PruneError("the outputs depend on none of the layers", "check the model")
        _sum_squares(graph, self.axes)
        return graph, self.start(graph.model, mode="training")


def outputs_of(model: ir.Model, feed: Feed, start: Callable[..., Session]) -> int:
    """Numbers that the largest output has of a sample."""
    _check_size(_stored(model))
    ends = looked_at(model.graph.outputs)
    found = start(model, outputs=ends).run(dict(feed), ends)
    return max((math.prod(np.shape(one)[1:]) for one in found.values() if is_float(np.asarray(one).dtype)), default=0)


def _stored(model: ir.Model) -> int:
    """Bytes of the weights."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def _turned(directions: Mapping[str, Array], signs: Sequence[int]) -> dict[str, Array]:
    """Directions with the signs, again and again, on the elements of each sample."""
    out = {}
    for name, array in directions.items():
        repeated = np.resize(np.array(signs, array.dtype), math.prod(array.shape[1:]))
        out[name] = array * repeated.reshape(1, *array.shape[1:]) if array.ndim else array
    return out


def _mean(runs: Sequence[Mapping[str, Array]], name: str) -> Array:
    return np.asarray(sum(run[name] for run in runs) / len(runs), np.float32)


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise PruneError(f"gradients take more than {size / 1e9:.1f} GB", "use another method, or fewer samples")


def _by(name: str, what: str) -> str:
    return f"{name}.by_{what}"


def _sum_squares(graph: GradientModel, axes: Mapping[str, int]) -> None:
    """Give out the sums of squares in place of the gradients."""
    nodes, outputs = graph.model.graph, {value.name: value for value in graph.model.graph.outputs}
    nodes.outputs.clear()
    for name, out in graph.gradients.items():
        value = outputs[out]
        assert value.shape is not None
        channel = axes[name] % len(value.shape)
        others = [axis for axis in range(len(value.shape)) if axis != channel]
        for what, over, keep in (("channel", others, 0), ("position", [channel], 1)):
            stored = ir.tensor(np.array(over, np.int64), name=f"{_by(out, what)}.axes")
            constant = ir.Value(name=stored.name, const_value=stored, shape=ir.Shape([len(over)]))
            nodes.register_initializer(constant)
            node = ir.node("ReduceSumSquare", [value, constant], {"keepdims": keep, "noop_with_empty_axes": 1})
            node.outputs[0].name = _by(out, what)
            node.outputs[0].type = value.type
            nodes.append(node)
            nodes.outputs.append(node.outputs[0])
