"""Where trials run changes nothing, and a worker that dies takes nothing with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.passes import ReadingOptions
from prunecli.runtime import Session
from prunecli.search.metric import choose_metric
from prunecli.search.runner import Dask, InProcess, LocalProcesses, WorkerPool
from prunecli.search.trials import Outcome, TrialGroup, TrialSamples, Workspace, outputs_of
from prunecli.search.zero_pruner import WeightRanking, WeightSpace
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
MLP = SAMPLES / "digits-mlp.onnx"
WEIGHTS = {"fc1.weight": None, "fc2.weight": None, "fc3.weight": None}
JOBS = [TrialGroup.of({"fc1.weight": 0.3 + 0.05 * i}, {"fc1.weight": 0.9}, probe=i % 2 == 0) for i in range(12)]


@dataclass(frozen=True)
class Deadly(WeightRanking):
    """The first process that opens it (there is one `flag`) is killed at its third build."""

    flag: str = ""

    def at(self, path: Path) -> WeightSpace:
        space = super().at(path)
        try:
            Path(self.flag).touch(exist_ok=False)
        except FileExistsError:
            return space
        build, left = space.build, [3]

        def deadly(allocation: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return build(allocation)

        space.build = deadly  # type: ignore[method-assign]
        return space


def workspace(ranking: WeightRanking) -> Workspace:
    session = Session.open(MLP, threads=1)
    data = DataOptions(str(SAMPLES / "digits-test.npz")).open(session.inputs)
    batches = list(data.batches(64))
    reference = list(outputs_of(session, batches, 1 << 20))
    metric = choose_metric(None, ReadingOptions(), data.labels, batches, reference)
    content = np.frombuffer(MLP.read_bytes(), np.uint8)
    return Workspace(os.urandom(8).hex(), {"m.onnx": content}, ranking.at, TrialSamples(batches, reference, metric), 3)


def results(pool: WorkerPool, made: Workspace) -> list[list[Outcome]]:
    found = dict(pool.run(made, JOBS))
    assert sorted(found) == list(range(len(JOBS)))
    return [found[n] for n in range(len(JOBS))]


def plain(found: list[list[Outcome]]) -> list[Any]:
    return [(o.damage, o.error, None if o.records is None else {k: v.tolist() for k, v in o.records.items()})
            for outcomes in found for o in outcomes]  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    return plain(results(InProcess(), workspace(WeightRanking(WEIGHTS))))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_local_processes(workers: int, expected: list[Any]) -> None:
    assert plain(results(LocalProcesses(workers), workspace(WeightRanking(WEIGHTS)))) == expected


@pytest.mark.slow
def test_a_local_process_that_is_killed_is_replaced(tmp_path: Path, expected: list[Any]) -> None:
    made = workspace(Deadly(WEIGHTS, flag=str(tmp_path / "flag")))
    assert plain(results(LocalProcesses(2), made)) == expected and (tmp_path / "flag").exists()


def test_what_goes_wrong_in_a_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nothing"):
        list(LocalProcesses(2).run(workspace(WeightRanking(WEIGHTS)), [TrialGroup.of({"nothing": 0.5})]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made.scheduler_address


@pytest.mark.slow
def test_a_cluster(cluster: str, expected: list[Any]) -> None:
    made = workspace(WeightRanking(WEIGHTS))
    with closing(Dask(cluster)) as pool:
        assert plain(results(pool, made)) == expected
        assert plain(results(pool, made)) == expected  # the workspace is there already


@pytest.mark.slow
def test_a_worker_of_the_cluster_is_killed(cluster: str, tmp_path: Path, expected: list[Any]) -> None:
    made = workspace(Deadly(WEIGHTS, flag=str(tmp_path / "flag")))
    with closing(Dask(cluster)) as pool:
        assert plain(results(pool, made)) == expected and (tmp_path / "flag").exists()


@pytest.mark.slow
def test_the_same_file_from_the_cluster(cluster: str, tmp_path: Path) -> None:
    from prunecli.search.adaptive import adaptive

    given: dict[str, Any] = {"data": SAMPLES / "digits-test.npz", "max_drop": 0.03, "seed": 1}
    adaptive(MLP, output=tmp_path / "local.onnx", jobs=1, **given)
    adaptive(MLP, output=tmp_path / "dask.onnx", backend="dask", address=cluster, **given)
    assert (tmp_path / "dask.onnx").read_bytes() == (tmp_path / "local.onnx").read_bytes()


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")

    def nobody(address: str, timeout: float) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", nobody)
    with pytest.raises(PruneError, match="no Dask scheduler answers at tcp://nowhere:1"):
        Dask("tcp://nowhere:1")


ORPHANS = """
import os, time
from joblib import Parallel, delayed
from prunecli.workers import end_with_parent
def job(number):
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)
Parallel(2)(delayed(job)(number) for number in range(2))
"""


def test_children_end_with_their_parent_however_it_dies() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    assert len({parent.stdout.readline() for _ in range(2)}) == 2
    parent.kill()
    assert parent.stdout.read() == "", "the pipe ends when the last of them has ended"
    parent.wait()
