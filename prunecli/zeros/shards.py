"""Parts of the samples, each on its own way through the model: here, in other processes or on a cluster."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.calibration.fitted import FittedLayer, LayerJournal
from prunecli.calibration.grams import Folds
from prunecli.calibration.importance import Importance
from prunecli.calibration.influence import Influence
from prunecli.calibration.layers import LinearLayer
from prunecli.calibration.layerwise import Store
from prunecli.errors import PruneError
from prunecli.files import Scratch
from prunecli.masks.decide import Masked
from prunecli.model import load
from prunecli.model.external_data import portable
from prunecli.model.floating import floats_of
from prunecli.workers import Workers
from prunecli.zeros.calibrated import CalibratedLayers, Part, Way
from prunecli.zeros.layer_by_layer import LayerWalks, Solve, Solved, others_of
from prunecli.zeros.options import OneshotOptions

SENT = 1 << 30
"""Bytes of a model up to which it is sent to workers that do not have it."""


@dataclass(frozen=True)
class Shard:
    """A part of the samples, and all that the sums over it need. `files`: the model as `portable` has it; empty: it is
    where `path` says."""

    name: str
    path: Path
    sha256: str
    files: Mapping[str, bytes]
    names: Sequence[str]
    fixed: frozenset[str]
    way: Way
    memory: int
    feeds: Sequence[Mapping[str, Any]]
    part: Part
    importance: Importance | None
    influence: Influence

    def open(self) -> _OpenShard:
        """Raises PruneError where the model is not there."""
        path, home = self.path, None
        if self.files:
            home = Scratch()
            for name, content in self.files.items():
                (home.path / name).write_bytes(content)
            path = home.path / next(iter(self.files))
        if not path.is_file() or (file := load(path)).sha256 != self.sha256:
            raise PruneError(f"a worker has no such model at {path}", "put it into a folder that all workers have")
        store = Store(self.memory)
        layers = CalibratedLayers.of(
            floats_of(file), self.names, self.feeds, way=self.way, store=store, fixed=self.fixed
        )
        layers.part, layers.influence = self.part, self.influence
        if self.importance is not None:
            layers.importance = self.importance.of_part(
                layers.original, layers.all, self.feeds, store=store, start=self.way.start, seed=self.way.seed,
                first=self.part.first,
            )  # fmt: skip
        return _OpenShard(layers, home)


class _OpenShard(LayerWalks):
    """A shard that is on its way in some process."""

    def __init__(self, layers: CalibratedLayers, home: Scratch | None) -> None:
        super().__init__(layers)
        self._home, self._kept, self._store = home, LayerJournal(None, ""), layers.store

    def solve(self, number: int, given: Solve) -> Solved:
        """A layer fitted here, to sums over all shards."""
        return given.run(self._layers, self._mine[number])

    def put_arrays(self, values: Array, vector: Array | None) -> None:
        """As `put`, of what was sent."""
        empty = Masked(np.empty(0, np.uint8), values)
        self.put(self.placed, FittedLayer.kept(self._kept, str(self.placed), empty, vector=vector, details={}))

    def close(self) -> None:
        super().close()
        self._kept.close()
        self._store.__exit__(None, None, None)


def shards_of(layers: CalibratedLayers, count: int, options: OneshotOptions, *, sent: bool) -> list[Shard]:
    """The samples in `count` parts of whole batches. `sent`: workers may be on other machines."""
    one = replace(options.execution, threads=1)
    file, way = layers.file, replace(layers.way, start=one.open, workers=one.lanes)
    paths = [file.path, *file.data_files]
    small = sum(path.stat().st_size for path in paths) <= SENT
    files = portable(file.path) if sent and small else {}
    sha256 = hashlib.sha256(next(iter(files.values()))).hexdigest() if files else file.sha256
    known = None if layers.importance is None else replace(layers.importance, store=Store(0))
    edges = [round(number * len(layers.feeds) / count) for number in range(count + 1)]
    name = f"{file.sha256}-{os.getpid()}-{time.time_ns()}"
    return [
        Shard(
            name=f"{name}-{start}", path=file.path.resolve(), sha256=sha256, files=files, names=layers.names,
            fixed=layers.fixed, way=way, memory=layers.store.limit, part=Part(start, len(layers.feeds)),
            feeds=[dict(feed) for feed in layers.feeds[start:stop]], importance=known, influence=layers.influence,
        )
        for start, stop in pairwise(edges)
    ]  # fmt: skip


_OPEN: dict[str, _OpenShard] = {}
"""By the shard's name, in a worker."""


def _shard_sums(name: str, number: int, since: int, done: Sequence[Sent], shard: Shard | None) -> Folds | str:
    """The sums of a layer over a shard, after taking in the layers from `since` on. UNKNOWN where the shard is not open
    here, or not that far; with the `shard` itself it is opened."""
    if shard is not None:
        _close_shard(name)
        _OPEN[name] = shard.open()
    run = _OPEN.get(name)
    if run is None or run.placed != since or run.reached > number:
        return UNKNOWN
    for values, vector in done:
        run.put_arrays(values, vector)
    return run.sums(number)


def _solved(name: str, number: int, given: Solve) -> Solved | str:
    """A layer fitted where a shard is open."""
    run = _OPEN.get(name)
    return UNKNOWN if run is None else run.solve(number, given)


def _close_shard(name: str) -> None:
    if (run := _OPEN.pop(name, None)) is not None:
        run.close()


UNKNOWN = "unknown"
RESTARTS = 3
"""How often a shard is begun anew for one layer."""
Sent = tuple[Array, Array | None]
"""A layer's weight, and the vector beside it if that moved."""


class ShardedWalks:
    """Sums over shards, wherever they run, added up in the shards' order; layers that do not depend on each other are
    fitted at once, one for each shard. A shard whose worker died is begun anew, with the layers as they were put."""

    def __init__(self, layers: CalibratedLayers, shards: Sequence[Shard], workers: Workers) -> None:
        self._layers, self._shards, self._workers = layers, shards, workers
        self._mine = layers.student()[1]
        self._done: list[FittedLayer] = []
        self._since: dict[int, int] = {}  # layers that a shard has; not in it: it is not open

    def at_once(self, layers: Sequence[LinearLayer]) -> list[range]:
        """Layers that follow each other and read the same value, such as queries, keys and values."""
        most = min(self._workers.places, len(self._shards))
        starts = [0]
        for number, (before, layer) in enumerate(pairwise(layers), 1):
            plain = len(before.uses) == len(layer.uses) == 1 and others_of(layer) is None
            if not plain or layer.found.data != before.found.data or number - starts[-1] >= most:
                starts.append(number)
        return [range(*ends) for ends in pairwise([*starts, len(layers)]) if ends[0] < ends[1]]

    def solved(self, given: dict[int, Solve]) -> dict[int, Solved]:
        if len(given) < 2:
            return {number: given.pop(number).run(self._layers, self._mine[number]) for number in list(given)}
        places = dict(enumerate(given))  # shard -> layer
        calls = {shard: partial(_solved, self._shards[shard].name, n, given[n]) for shard, n in places.items()}
        results = self._workers.run(calls)
        found: dict[int, Solved] = {}
        for shard, number in places.items():
            result, here = results[shard], given.pop(number)
            if not isinstance(result, tuple):  # its worker died
                self._since.pop(shard, None)
                result = here.run(self._layers, self._mine[number])
            found[number] = result
        return found

    def sums(self, number: int) -> Folds:
        found: dict[int, Folds] = {}
        for _ in range(RESTARTS + 1):
            asked = [shard for shard in range(len(self._shards)) if shard not in found]
            for shard, result in self._workers.run({shard: self._call(shard, number) for shard in asked}).items():
                if isinstance(result, Folds):
                    found[shard], self._since[shard] = result, len(self._done)
                else:
                    self._since.pop(shard, None)
            if len(found) == len(self._shards):
                total = found[0]
                for shard in range(1, len(self._shards)):
                    total += found.pop(shard)
                return total
        raise PruneError("the workers that run parts of the samples die again and again",
                         "use fewer --jobs, or look into the cluster's logs: memory may be short")  # fmt: skip

    def _call(self, shard: int, number: int) -> Callable[[], Any]:
        known = shard in self._since
        since = self._since.get(shard, 0)
        done = [(np.asarray(one.weight.values), None if one.vector is None else np.asarray(one.vector.read()))
                for one in self._done[since:]]  # fmt: skip
        given = self._shards[shard]
        return partial(_shard_sums, given.name, number, since, done=done, shard=None if known else given)

    def put(self, number: int, done: FittedLayer) -> None:
        self._done.append(done)

    def close(self) -> None:
        self._workers.run({n: partial(_close_shard, self._shards[n].name) for n in self._since})
