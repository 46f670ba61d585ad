"""The training loop: fine-tuning and distillation of a pruned model, its zeros and its structure kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from prunecli.arrays import Array
from prunecli.autodiff import GradientModel
from prunecli.errors import PruneError, advice
from prunecli.options.training import FinetuneOptions
from prunecli.registry import into
from prunecli.runtime import Session
from prunecli.training.exchange import TIMES, UNTIL, MovingMasks
from prunecli.training.hyperparameters import TRIAL, Hyperparameters
from prunecli.training.optimizers import OPTIMIZERS, SCHEDULES, Optimizer, OptimizerSettings, clip_norm, warmed
from prunecli.training.parameters import Parameter, Parameters
from prunecli.training.supply import Supply
from prunecli.types import Json

RUNNING = 0.9  # share of the old BatchNormalization statistics at each step, the ONNX operator's default momentum
_SETTLED = 20  # steps of an epoch before a rising loss counts as divergence
_DIVERGED = 10.0  # times the loss it started from
_MOST_LOWERED = 3  # tenths of the learning rate that are tried where it is not given
FIXED = 2 / 3  # of the run, before masks begin to move, from the best weights by then
GRACE = 0.1  # of the epochs, that may end worse than the start before the learning rate is lowered
SLOPES = 0.9  # share of the older gradients in the running mean that moving masks go by


def lower_rate(optimizer: str, rate: float) -> float:
    """Return the rate to try after a rate was too high: a tenth, and at most the optimizer's default."""
    return min(rate / 10, OPTIMIZERS[optimizer].rate)


@dataclass(frozen=True)
class Epoch:
    """loss: mean over the steps. score: on the validation part, higher is better; None without one."""

    number: int
    loss: float
    score: float | None
    rate: float
    seconds: float
    samples_per_second: float


@dataclass
class Progressed:
    """The state of a run, which a checkpoint holds besides the arrays. `worse`: epochs since the best or the last
    restart; `stale`: those of them that patience counts; `lowered`: how often the rate was cut to a tenth; `since`: the
    step at which the optimizer started; `moves`: whether masks move now; `hyper`: hyperparameters, `tuned` by short
    runs, which took `spent` seconds; `used`: seconds of the epochs that are over, with what follows each."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    first_loss: float | None = None
    best_epoch: int = 0
    best_score: float | None = None
    best_finer: float | None = None
    first_score: float | None = None
    stale: int = 0
    worse: int = 0
    lowered: int = 0
    since: int = 0
    moves: bool = False
    tuned: bool = False
    spent: float = 0.0
    used: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    hyper: Json = field(default_factory=dict)

    def harmful(self, ties: bool = False) -> bool:
        """Whether every epoch was worse than the start on held-out data, which could have been bettered; with `ties`
        whether none was better."""
        start = self.first_score
        if start is None or start == math.inf or not self.history or self.best_epoch > 0:
            return False
        return ties or all(e.score is None or e.score < start for e in self.history)


class Score(float):
    """A score that moves in steps, such as a fraction of samples, with a `finer` one that orders equals."""

    finer: float

    @classmethod
    def of(cls, value: float, finer: float) -> Score:
        made = cls(value)
        made.finer = finer
        return made


def finer_of(score: float) -> float | None:
    """What decides between this score and an equal one; None where nothing does."""
    return score.finer if isinstance(score, Score) else None


class DivergedError(PruneError):
    """Training diverged; the parameters are the best seen."""


@dataclass(frozen=True)
class Steppers:
    """Two losses of the same parameters: of the `whole` model, and of each block `alone`, where that is asked for."""

    whole: Stepper
    alone: Stepper | None = None


class Trainer:
    """Trains the parameters of `steppers` on `supply`.

    score: scores the present parameters, given BatchNormalization's statistics, higher is better; None: no validation,
    and the last weights stay. Where the learning rate is neither given nor tuned, and a tenth of the epochs ended worse
    than the start without a better one, they are undone, and the rate is cut to a tenth.
    """

    def __init__(
        self,
        steppers: Steppers,
        supply: Supply,
        options: FinetuneOptions,
        hyper: Hyperparameters,
        *,
        score: Callable[[Mapping[str, Array]], float] | None = None,
        moving: MovingMasks | None = None,
    ) -> None:
        if not 0 < hyper.rate < math.inf:
            raise PruneError(f"a learning rate of {hyper.rate} is no positive number", "try --lr 0.01")
        self.steppers, self.supply, self.options, self.score = steppers, supply, options, score
        self.parameters, self.moving = steppers.whole.parameters, moving
        self.at = Progressed(hyper=asdict(hyper))
        settings = OptimizerSettings(options.momentum, weight_decay=options.weight_decay)
        self.optimizer: Optimizer = OPTIMIZERS[options.optimizer].make(len(self.parameters.values), settings)
        self.slopes = np.zeros_like(self.parameters.values) if moving else np.zeros(0, np.float32)
        self.statistics: dict[str, Array] = {}
        self.best: dict[str, Array] = {}
        self._started: float | None = None  # when the epoch began that is not over

    @property
    def hyper(self) -> Hyperparameters:
        """The hyperparameters of the run."""
        return Hyperparameters(**self.at.hyper | {"augment": tuple(self.at.hyper["augment"])})

    def short(self, hyper: Hyperparameters, on_step: Callable[[Trainer], object]) -> float:
        """Return the score after a short run with these hyperparameters, and undo it."""
        started, minutes = time.perf_counter(), self.options.minutes
        options = replace(self.options, minutes=None if minutes is None else TRIAL * minutes)
        one = Trainer(self.steppers, self.supply, options, hyper=hyper.trial(), score=self.score)
        one.begin(self.statistics)
        one.at.tuned = True  # a rate that is lowered during the run would not be the one under test
        try:
            one.run(on_step)
        except DivergedError:
            return -math.inf
        finally:
            self.use_best()
            self.at.spent += time.perf_counter() - started
        found = one.at.history[-1].score
        return -math.inf if found is None else found

    # -- state ------------------------------------------------------------------------------------

    def begin(self, statistics: Mapping[str, Array]) -> None:
        """Start from the model as it is; `statistics`: BatchNormalization's stored ones, by name."""
        self.statistics = {name: array.copy() for name, array in statistics.items()}
        if self.score is not None:
            first = self.score(self.statistics)
            self.at.first_score, self.at.best_score, self.at.best_finer = float(first), float(first), finer_of(first)
        self._keep_best()

    def arrays(self) -> dict[str, Array]:
        """All arrays that the rest of the run depends on."""
        own = {"values": self.parameters.values, "keep": self.parameters.keep, "slopes": self.slopes}
        own |= {f"optimizer/{k}": v for k, v in self.optimizer.state.items()}
        own |= {f"statistics/{k}": v for k, v in self.statistics.items()}
        return own | {f"best/{k}": v for k, v in self.best.items()}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])

    def _keep_best(self) -> None:
        own = {"values": self.parameters.values, "keep": self.parameters.keep, **self.statistics}
        self.best = {name: array.copy() for name, array in own.items()}

    def use_best(self) -> None:
        """Go back to the best weights seen (the last ones without validation)."""
        if self.score is None and self.at.history:
            return
        self.parameters.values[:], self.parameters.keep[:] = self.best["values"], self.best["keep"]
        for name, array in self.statistics.items():
            array[...] = self.best[name]

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, on_step: Callable[[Trainer], object] = lambda trainer: None) -> None:
        """Train until the epochs are over or patience ends; the best weights are left in place.

        Raises:
            PruneError: the loss is not finite before anything was trained.
            DivergedError: it is not finite later or grew tenfold; names step and learning rate.
        """
        while self.at.epoch < self.hyper.epochs and not self._stopped():
            self._epoch(on_step)
        self.use_best()

    def _stopped(self) -> str:
        """The reason why training ends before its last epoch, or nothing."""
        if self.at.lowered > _MOST_LOWERED:
            return "no learning rate made it better"
        if 0 < self.hyper.patience <= self.at.stale:
            return f"no better score for {self.at.stale} epochs"
        if self.options.minutes is not None and self.done >= 1:
            return f"the {self.options.minutes:g} minutes of --budget are over"
        return ""

    def notes(self) -> list[str]:
        """Sentences for the report: lowered rates, an early stop, a perfect start."""
        at, rate, epochs = self.at, self.hyper.rate, self.hyper.epochs
        tried = [f"{rate * 0.1**k:.2g}" for k in range(min(at.lowered, _MOST_LOWERED) + 1)]
        lowered = [
            f"epochs that ended worse than the start were undone and the learning rate lowered: {', '.join(tried)}"
        ]
        stopped = [f"stopped after epoch {at.epoch} of {epochs}: {self._stopped()}"]
        changes = [*self.hyper.augment, *(["mixup"] if self.hyper.mixup else [])]
        varied = f"augmentation by {', '.join(changes)}" if changes else "no augmentation"
        chosen = f"short runs chose a learning rate of {rate:.2g} and {varied}"
        perfect = ["the start answers as the teacher does: nothing was left to learn"]
        return [
            *(perfect if at.first_score == math.inf else []),
            *([chosen] if at.tuned else []),
            *(lowered if at.lowered else []),
            *(stopped if at.epoch < epochs and self._stopped() else []),
        ]

    def _epoch(self, on_step: Callable[[Trainer], object]) -> None:
        self._started = started = time.perf_counter()
        first = self.at.step
        for number in range(self.at.step, self.supply.steps):
            loss = self._step(number)
            self.at.loss_sum += loss
            self.at.step = number + 1
            self._check(loss)
            on_step(self)
            if self.done >= 1:
                break
        seconds = time.perf_counter() - started
        done = (self.at.step - first) * self.supply.batch_size
        self._end_epoch(seconds, done / max(seconds, 1e-9))
        self.at.used += time.perf_counter() - started
        self._started = None

    def _step(self, number: int) -> float:
        o, p, hyper = self.options, self.parameters, self.hyper
        if self.moving is not None and not self.at.moves and self.done >= FIXED:
            self.at.moves = True
            self._restart()
        stepper = self.steppers.alone if self.done < hyper.blocks else None
        stepper = stepper or self.steppers.whole
        rng = np.random.default_rng([o.seed, self.at.epoch, number])
        loss = stepper.run_many(self.supply.feeds(self.at.epoch, number, rng, hyper=hyper))
        if not math.isfinite(loss):
            return loss
        if o.regularize:
            add_penalty(o.regularize, o.strength, p)
        if self.moving is not None:
            self.slopes *= SLOPES
            self.slopes += p.gradients
        p.mask_gradients()
        if o.clip:
            clip_norm(p.gradients, o.clip)
        with np.errstate(over="ignore", invalid="ignore"):  # the loss of the next step, or the score, tells
            self.optimizer.update(
                p.values, p.gradients, p.decays, rates=self._rates(), step=self.total_steps + 1 - self.at.since
            )
        p.values *= p.keep
        self._update_statistics(stepper)
        self._move_masks()
        return loss

    def _move_masks(self) -> None:
        """Exchange masks at intervals, until restored weights could no longer learn."""
        along = self._along(self.done)
        if self.moving is None or not self.at.moves or along >= UNTIL:
            return
        every = max(math.ceil((1 - FIXED) * UNTIL * self.hyper.epochs * self.supply.steps / TIMES), 1)
        if (self.total_steps + 1) % every == 0:
            changed = self.moving.exchange(self.parameters, self.slopes, along)
            for state in self.optimizer.state.values():
                state[changed] = 0

    @property
    def done(self) -> float:
        """The fraction of the run that is over: of its steps, or of its time limit."""
        steps = self.total_steps / max(self.hyper.epochs * self.supply.steps, 1)
        if self.options.minutes is None:
            return steps
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return max(steps, (self.at.used + running) / max(60 * self.options.minutes - self.at.spent, 1e-9))

    @property
    def total_steps(self) -> int:
        """Steps done since the start."""
        return self.at.epoch * self.supply.steps + self.at.step

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self._rate_at(self.done)

    def _rates(self) -> Array:
        """Return the learning rate of each weight: proportional to its size with a teacher alone, where the weights
        start near the optimum."""
        sizes, taught = self.parameters.sizes, self.supply.objective.reading is None
        return np.float32(self.rate) * (sizes if self.optimizer.relative and taught else np.ones_like(sizes))

    def _along(self, done: float) -> float:
        """Return the fraction of the present part that is over at `done` of the run; with moving masks, of the part
        before or after they move."""
        if self.moving is None:
            return done
        return (done - FIXED) / (1 - FIXED) if self.at.moves else min(done / FIXED, 1.0)

    def _rate_at(self, done: float) -> float:
        o, hyper = self.options, self.hyper
        steps = hyper.epochs * self.supply.steps
        base = SCHEDULES[o.schedule](steps)
        schedule = warmed(base, round(o.warmup * steps)) if o.warmup else base
        return hyper.rate * 0.1**self.at.lowered * schedule(round(self._along(done) * steps))

    def _update_statistics(self, stepper: Stepper) -> None:
        for name, batch in stepper.statistics.items():
            self.statistics[name] *= RUNNING
            self.statistics[name] += (1 - RUNNING) * batch

    def _check(self, loss: float) -> None:
        if self.at.first_loss is None and math.isfinite(loss):
            self.at.first_loss = loss
        first = self.at.first_loss or 0.0
        settled = self.at.step >= min(_SETTLED, self.supply.steps)
        grown = settled and self.at.loss_sum / self.at.step > _DIVERGED * (abs(first) + 1.0)
        if math.isfinite(loss) and not grown:
            return
        if self.at.first_loss is None:
            raise PruneError(
                f"the loss is {loss} before anything was trained",
                "look for NaN, infinite or huge values in the data, or in what the model makes of them",
            )
        step, o, rate = self.total_steps, self.options, self.rate
        self.use_best()
        raise DivergedError(
            f"training diverged at step {step:,}: the loss, which was {first:.3g} at first, is {loss:.3g}"
            f" at a learning rate of {rate:.3g} (--lr {self.hyper.rate:g})",
            advice(
                (f"try --lr {lower_rate(o.optimizer, self.hyper.rate):.2g}", True),
                ("a longer --warmup", o.warmup < 1),
                ("--clip 1", not 0 < o.clip <= 1),
            ),
        )

    def _end_epoch(self, seconds: float, speed: float) -> None:
        at = self.at
        reached = self.score(self.statistics) if self.score is not None else None
        score = None if reached is None else float(reached)
        loss = at.loss_sum / at.step
        at.history.append(Epoch(at.epoch + 1, loss, score, rate=self.rate, seconds=seconds, samples_per_second=speed))
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        if reached is None or score is None:
            return
        finer, best = finer_of(reached), at.best_finer
        tied = score == at.best_score and finer is not None and best is not None and finer > best
        if at.best_score is None or score > at.best_score or tied:
            at.best_score, at.best_finer = score, finer
            at.best_epoch, at.stale, at.worse = at.epoch, 0, 0
            self._keep_best()
            return
        at.worse += 1
        at.stale += self.done > self.hyper.patient
        harmed = at.best_epoch == 0 and at.first_score is not None and score < at.first_score
        free = self.options.rate is None and not at.tuned
        if free and harmed and at.worse >= math.ceil(GRACE * self.hyper.epochs):
            self._lower()

    def _lower(self) -> None:
        """Restore the best weights, and continue at a tenth of the rate."""
        self.at.lowered += 1
        self._restart()

    def _restart(self) -> None:
        """Continue from the best weights with a new optimizer."""
        self.use_best()
        for state in self.optimizer.state.values():
            state[:] = 0
        self.at.since, self.at.stale, self.at.worse = self.total_steps, 0, 0


class Stepper:
    """Runs a gradient model on bound buffers, several pieces of a batch at a time. After `run_many`, the mean of their
    gradients lies in `parameters.gradients`, that of their statistics in `statistics`.

    Each of `replicas` reads the same weights and writes gradients of its own, on its share of the threads: pieces side
    by side take half the time on two threads, where one after the other waits for operators that use one thread. What
    comes out does not depend on how many there are.
    """

    def __init__(self, graph: GradientModel, parameters: Parameters, threads: int = 0, replicas: int = 1) -> None:
        self.parameters = parameters
        count = max(min(threads or os.cpu_count() or 1, replicas), 1)
        share = threads // count if threads else 0 if count == 1 else max((os.cpu_count() or 1) // count, 1)
        self.replicas = [_Replica(graph, parameters, share) for _ in range(count)]
        self.statistics = {name: np.zeros_like(array) for name, array in self.replicas[0].statistics.items()}
        self.pool = ThreadPoolExecutor(count) if count > 1 else None

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> float:
        """Return the mean loss over equal pieces of a batch.

        Args:
            feeds: the model's inputs and the loss's of each, in the shapes that the gradient model was built for.
        """
        total, loss = self.parameters.gradients, 0.0
        total[:] = 0
        for array in self.statistics.values():
            array[...] = 0
        for start in range(0, len(feeds), len(self.replicas)):
            some = list(zip(self.replicas, feeds[start : start + len(self.replicas)], strict=False))
            run = map if self.pool is None else self.pool.map
            losses = list(run(lambda pair: pair[0].run(pair[1]), some))
            for (replica, _), found in zip(some, losses, strict=True):
                loss += found
                total += replica.gradients
                for name, array in replica.statistics.items():
                    self.statistics[name] += array / len(feeds)
        total /= len(feeds)
        return loss / len(feeds)


class _Replica:
    """A session of a gradient model with its own buffers for everything but the weights."""

    def __init__(self, graph: GradientModel, parameters: Parameters, threads: int) -> None:
        self.session = Session.open(graph.model, threads=threads, mode="training")
        self.gradients = np.zeros_like(parameters.gradients)
        by_name = {item.name: item for item in parameters.items}
        self.feed: dict[str, Array] = {}
        for spec in self.session.inputs:
            item = by_name.get(spec.name)
            size = tuple(int(d) for d in spec.shape if isinstance(d, int))
            self.feed[spec.name] = parameters.value(item) if item else np.zeros(size, spec.dtype)
        self.loss = np.zeros((), np.float32)
        results: dict[str, Array] = {graph.loss: self.loss}
        for name, output in graph.gradients.items():
            item = by_name[name]
            results[output] = self.gradients[item.start : item.stop].reshape(item.weight.shape)
        shapes = {s.name: tuple(int(d) for d in s.shape if isinstance(d, int)) for s in self.session.outputs}
        self.statistics = {name: np.zeros(shapes[out], np.float32) for name, out in graph.statistics.items()}
        results |= {out: self.statistics[name] for name, out in graph.statistics.items()}
        self._call = self.session.bind(self.feed, results)

    def run(self, feed: Mapping[str, Array]) -> float:
        """Return the loss of one piece."""
        for name, array in feed.items():
            if name in self.feed:
                np.copyto(self.feed[name], array, casting="same_kind")
        self._call()
        return float(self.loss)


Penalty = Callable[[Parameter, Array], "Array | None"]
PENALTIES: dict[str, Penalty] = {}
penalty = into(PENALTIES)
"""Registers dR/dw: `function(parameter, array)` returns an array of its shape, or None if it does not apply."""
_TINY = 1e-12


@penalty("l1")
def l1(parameter: Parameter, w: Array) -> Array | None:
    """R = sum |w| over matrices and kernels; dR/dw = sign(w) (Tibshirani 1996)."""
    return np.sign(w) if parameter.kind == "weight" else None


@penalty("group-lasso")
def group_lasso(parameter: Parameter, w: Array) -> Array | None:
    """R = sum over output rows of sqrt(d) |w_row|_2, d elements a row; dR/dw = sqrt(d) w / |w_row|
    (Yuan and Lin 2006; Wen et al. 2016)."""
    if parameter.kind != "weight":
        return None
    layout = parameter.weight.layout
    rows = layout.canonical(w)  # (batch, rows, taps, columns)
    norm = np.sqrt(np.square(rows).sum(axis=(2, 3), keepdims=True))
    scaled = rows * (np.sqrt(rows.shape[2] * rows.shape[3]) / np.maximum(norm, _TINY))
    return np.asarray(layout.restore(scaled))


@penalty("bn-l1")
def bn_l1(parameter: Parameter, w: Array) -> Array | None:
    """R = sum |gamma| over the scales of BatchNormalization; dR/dw = sign(gamma) (Liu et al. 2017)."""
    return np.sign(w) if parameter.is_batch_norm_scale else None


def add_penalty(name: str, strength: float, parameters: Parameters) -> None:
    """Add s dR/dw to the gradients.

    Raises:
        PruneError: the penalty applies to no trained tensor.
    """
    applied = False
    for parameter in parameters.items:
        slope = PENALTIES[name](parameter, parameters.value(parameter))
        if slope is not None:
            gradient = parameters.gradient(parameter)
            gradient += np.float32(strength) * slope
            applied = True
    if not applied:
        raise PruneError(f"--regularize {name} applies to no trained tensor", "bn-l1 needs BatchNormalization nodes")
