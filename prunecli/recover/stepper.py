"""One training step in onnxruntime: batch in, loss and gradients out, all in memory that numpy owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunecli.autodiff import GradientModel
from prunecli.recover.parameters import Parameters
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]


class Stepper:
    """Runs a gradient model on bound buffers. After `run`, the gradients lie in `parameters.gradients`."""

    def __init__(self, graph: GradientModel, parameters: Parameters, threads: int = 0) -> None:
        self.parameters = parameters
        self.session = Session.open(graph.model, threads=threads, training=True)
        by_name = {item.name: item for item in parameters.items}
        self.feed: dict[str, Array] = {}
        for spec in self.session.inputs:
            item = by_name.get(spec.name)
            size = tuple(int(d) for d in spec.shape if isinstance(d, int))
            self.feed[spec.name] = parameters.value(item) if item else np.zeros(size, spec.dtype)
        self.loss = np.zeros((), np.float32)
        results: dict[str, Array] = {graph.loss: self.loss}
        for name, output in graph.gradients.items():
            results[output] = parameters.gradient(by_name[name])
        shapes = {s.name: tuple(int(d) for d in s.shape if isinstance(d, int)) for s in self.session.outputs}
        self.statistics = {name: np.zeros(shapes[out], np.float32) for name, out in graph.statistics.items()}
        results |= {out: self.statistics[name] for name, out in graph.statistics.items()}
        self._call = self.session.bind(self.feed, results)

    def run(self, feed: Mapping[str, Array]) -> float:
        """The loss of a batch: the model's inputs and the loss's. Their shapes are those it was built for."""
        for name, array in feed.items():
            if name in self.feed:
                np.copyto(self.feed[name], array, casting="same_kind")
        self._call()
        return float(self.loss)

    def run_many(self, feeds: list[Mapping[str, Array]]) -> float:
        """Mean loss and mean gradient over several equal batches (a model of fixed batch size)."""
        if len(feeds) == 1:
            return self.run(feeds[0])
        total, loss = np.zeros_like(self.parameters.gradients), 0.0
        for feed in feeds:
            loss += self.run(feed)
            total += self.parameters.gradients
        np.divide(total, len(feeds), out=self.parameters.gradients)
        return loss / len(feeds)
