"""How far a model's outputs move when a weight does: the diagonal of J^T J, J = dz / dw, estimated without labels.

Directions r of random signs are drawn for every sample; (r^T J)^2 has the diagonal as its expectation (Hutchinson
1989). With z the logits this is the generalised Gauss-Newton matrix of a squared error between the outputs of the
pruned and the unpruned model, so that w^2 diag / 2 is the damage of removing w alone (Optimal Brain Damage, LeCun et
al. 1990). Unlike the squared gradient of a loss it does not vanish where the model is sure of its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.autodiff import Options, differentiate
from prunecli.autodiff.losses import Projection
from prunecli.errors import PruneError
from prunecli.model import Model
from prunecli.runtime import Session

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
_DIRECTION = "prunecli.direction"


@dataclass
class Sensitivity:
    """A gradient model of some weights, which are its inputs: it is built once and run at any values of them."""

    session: Session
    weights: dict[str, Array]
    gradients: Mapping[str, str]
    unreached: tuple[str, ...]
    direction: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, weights: Sequence[str], output: str | None, feed: Feed, threads: int = 0) -> Sensitivity:
        """Args:
            output: whose movement counts; None: the first.
            feed: one batch; all others have its shapes.
        Raises:
            PruneError: an operator on the way has no gradient, or the output depends on none of the weights.
        """
        loss, options = Projection(output, _DIRECTION), Options(weights_as_inputs=True)
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        graph = differentiate(model.ir, weights, loss, shapes=shapes, options=options)
        reached = [name for name in weights if name in graph.gradients]
        if not reached:
            raise PruneError("the output depends on none of the chosen weights", "choose another with --output-name")
        if graph.unreached:  # they would be inputs that nobody reads
            graph = differentiate(model.ir, reached, loss, shapes=shapes, options=options)
        values = {name: np.ascontiguousarray(t.numpy(), dtype=np.float32) for name, t in graph.weights.items()}
        unreached = tuple(name for name in weights if name not in reached)
        session = Session.open(graph.to_bytes(), threads=threads, training=True)
        return cls(session, values, graph.gradients, unreached, graph.loss_inputs[_DIRECTION][1])

    def measure(self, feeds: Iterable[Feed], seed: int = 0) -> dict[str, Array]:
        """The diagonal of J^T J at the present `weights`, a mean over feeds: weight -> array of its shape, float64.

        A feed of several samples is summed over before squaring; their directions are independent, so the
        expectation is that of single samples times their number, and only the spread is larger.

        Raises:
            PruneError: onnxruntime fails, or a gradient is not finite.
        """
        rng, names = np.random.default_rng(seed), list(self.gradients.values())
        sums = {name: np.zeros(array.shape) for name, array in self.weights.items()}
        count = 0
        for feed in feeds:
            count += 1
            signs = rng.choice(np.array([-1, 1], np.float32), self.direction)
            found = self.session.run({**feed, **self.weights, _DIRECTION: signs}, names)
            for name, output in self.gradients.items():
                sums[name] += np.square(found[output], dtype=np.float64)
        for name, total in sums.items():
            total /= max(count, 1)
            if not np.isfinite(total).all():
                raise PruneError(f"the gradient of {name} is not finite", "look for NaN or huge values in the data")
        return sums
