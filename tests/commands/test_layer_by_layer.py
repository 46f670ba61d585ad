"""One-shot pruning of what does not fit into memory: layers that are kept as they are done, parts of the samples that
are run apart, sums in float32, stretches of a model."""

from __future__ import annotations

import errno
import os
import runpy
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper, numpy_helper

import prunecli
from prunecli.calibration import fitted, grams, importance, layerwise
from prunecli.errors import PruneError
from prunecli.masks.patterns import parse_pattern
from prunecli.model.external_data import portable, read_whole
from prunecli.reconstruct import fit
from prunecli.reconstruct.sparsegpt import Quota
from prunecli.runtime import Session
from prunecli.structures import cut_proof
from prunecli.verify import pieces
from prunecli.workers import InProcesses, OnCluster
from prunecli.zeros import calibrated, shards
from prunecli.zeros import oneshot as module
from tests.tiny import few

WIDTH, LAYERS, SAMPLES = 24, 4, 40


def gate(read: str) -> list[onnx.NodeProto]:
    """Of what the second block gives, by what it reads."""
    return [
        helper.make_node("MatMul", [read, "gate"], ["open"]),
        helper.make_node("Sigmoid", ["open"], ["opened"]),
        helper.make_node("Mul", ["t1", "opened"], ["gated"]),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Residual blocks with a bias that moves, the second with a gate, the last of which shares its matrix with the
    first."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("model") / "m.onnx"
    stored, nodes, last = [], [], "x"
    for k in range(LAYERS):
        name = f"w{k % (LAYERS - 1)}"
        if k < LAYERS - 1:
            stored.append(numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 5, name))
        stored.append(numpy_helper.from_array(rng.normal(size=WIDTH).astype(np.float32), f"b{k}"))
        nodes += [
            helper.make_node("MatMul", [last, name], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"]),
            helper.make_node("Tanh", [f"a{k}"], [f"t{k}"]),
            *(gate(last) if k == 1 else []),
            helper.make_node("Add", [last, "gated" if k == 1 else f"t{k}"], [f"s{k}"]),
        ]
        last = f"s{k}"
    stored.append(numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 5, "gate"))
    x = helper.make_tensor_value_info("x", 1, ["n", 6, WIDTH])
    y = helper.make_tensor_value_info(last, 1, ["n", 6, WIDTH])
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.save(path.parent / "x.npy", rng.normal(size=(SAMPLES, 6, WIDTH)).astype(np.float32))
    return path


def pruned(model: Path, name: str, **options: Any) -> bytes:
    target = model.parent / name
    given = {"sparsity": 0.5, "method": "sparsegpt", "allocate": "uniform", "force": True} | options
    prunecli.oneshot(model, data=str(model.parent / "x.npy"), output=target, **given)
    return target.read_bytes()


def differs_by(model: Path, one: bytes) -> float:
    """From the original, on the samples."""
    feed = {"x": np.load(model.parent / "x.npy")}
    (wanted,), (got,) = (Session.open(each).run(feed).values() for each in (model, one))
    return float(np.square(wanted - got).mean())


class Stops:
    """Interrupts a run where it keeps its n-th layer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, put = after, fitted.LayerJournal.put

        def counted(journal: Any, *args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return put(journal, *args, **named)

        monkeypatch.setattr(fitted.LayerJournal, "put", counted)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_run_that_was_cut_short_continues(model: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = model.parent / f"state{after}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stops(patch, after)
        pruned(model, "stopped.onnx", state=state)
    assert not (model.parent / "stopped.onnx").exists()
    with state.open("ab") as file:
        file.write(b'{"layer": "w')  # as a kill leaves it
    Stops(monkeypatch, LAYERS - after)  # no more than these are fitted
    assert pruned(model, "b.onnx", state=state) == pruned(model, "a.onnx", state=state)
    monkeypatch.undo()
    assert (model.parent / "b.onnx").read_bytes() == pruned(model, "c.onnx")


def test_a_recovery_that_was_cut_short_continues(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Path(__file__).parents[2] / "sample_models"

    def cut(name: str, **options: Any) -> bytes:
        target = model.parent / name
        given: dict[str, Any] = {"ratio": 0.4, "data": digits / "digits-calib.npz", "limit": 64, "force": True}
        prunecli.structured(digits / "digits-mlp.onnx", output=target, criterion="l2", **given, **options)
        return target.read_bytes()

    whole, state = cut("a.onnx"), model.parent / "recovery"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stops(patch, 2)
        cut("b.onnx", state=state)
    assert cut("b.onnx", state=state) == whole
    monkeypatch.setattr("prunecli.reconstruct.refit._visit", None)  # nothing is left to do
    assert cut("b.onnx", state=state) == whole


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder as the benchmark makes it: float16, grouped query attention with a cache, external data."""
    path = tmp_path_factory.mktemp("language") / "lm.onnx"
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "make_language_model.py"))
    script["make"](path, script["Size"](vocabulary=50, width=64, layers=4, heads=4, groups=2, inner=96))
    np.save(path.parent / "tokens.npy", np.random.default_rng(0).integers(0, 50, 24 * 16))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("late", [None, "3.down", "3.gate"])
def test_an_error_in_a_late_layer_of_a_large_model_is_caught(
    language: Path, late: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_proof, "WHOLE_UP_TO", 0)
    monkeypatch.setattr(pieces, "PIECE", 1 << 14)
    in_pieces, target = cut_proof.CutProof._in_pieces, language.parent / "cut.onnx"

    def planted(proof: cut_proof.CutProof, staged: Path, folder: Path) -> Any:
        model = onnx.load(str(staged))
        for tensor in (one for one in model.graph.initializer if one.name == late):
            array = numpy_helper.to_array(tensor).copy()
            array[3, 5] += 0.5
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, str(staged))
        return in_pieces(proof, staged, folder)

    monkeypatch.setattr(cut_proof.CutProof, "_in_pieces", planted)
    options: dict[str, Any] = {"ratio": 0.25, "timing": False, "force": True}
    if late is None:
        found = prunecli.structured(language, output=target, **options)
        assert "proved in" in found.verification.detail and found.verification.kind == "exact"
        target.unlink()
        return
    with pytest.raises(PruneError, match="does not compute what the masked original does"):
        prunecli.structured(language, output=target, **options)
    assert not target.exists()


def test_experts_of_a_mixture_are_cut_inside(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "make_language_model.py"))
    script["make"](
        tmp_path / "moe.onnx",
        script["Size"](vocabulary=50, width=64, layers=1, heads=4, groups=2, inner=48, experts=8),
    )
    found = prunecli.structured(tmp_path / "moe.onnx", output=tmp_path / "cut.onnx", ratio=0.2, timing=False)
    assert found.verification.kind == "exact"
    shapes = {each.name: tuple(each.dims) for each in onnx.load(str(tmp_path / "cut.onnx")).graph.initializer}
    inner = shapes["0.experts.down"][2]
    assert 0 < inner < 48 and shapes["0.experts.up"] == (8, 2 * inner, 64) and shapes["0.router"] == (64, 8)
    assert any("--granularity expert" in each.reason for each in prunecli.analyse(tmp_path / "moe.onnx").frozen)


def test_layers_that_read_the_same_share_its_sums(language: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "APART", 1)
    monkeypatch.setattr(importance, "LARGEST", 0)  # as of a large model: else each weighs what it reads in its own way
    target, taken = language.parent / "zeros.onnx", list[tuple[int, ...]]()
    products = grams.products
    monkeypatch.setattr(grams, "products", lambda a, b: taken.append((len(a), len(b))) or products(a, b))
    results = []
    for apart in (1 << 20, 1):  # nothing is shared, and whatever can be
        taken.clear()
        monkeypatch.setattr(calibrated, "APART", apart)
        prunecli.oneshot(language, data=str(language.parent / "tokens.npy"), sparsity=0.5, method="sparsegpt",
                         allocate="uniform", output=target, force=True)  # fmt: skip
        results.append((target.read_bytes(), sum(a == b == 64 for a, b in taken)))
    assert results[0][0] == results[1][0] and results[0][1] > results[1][1]


@pytest.mark.parametrize("method", few(["sparsegpt", "wanda"], [0]))
def test_a_language_model_is_pruned_in_float16(language: Path, method: str) -> None:
    target = language.parent / "zeros.onnx"
    found = prunecli.oneshot(
        language, data=str(language.parent / "tokens.npy"), limit=1, sparsity=0.5, method=method, allocate="uniform",
        output=target, force=True,
    )  # fmt: skip
    assert found.verification.kind == "exact" and "fitted" in found.verification.detail
    for tensor in onnx.load(str(target)).graph.initializer:
        if tensor.name.endswith((".q", ".k", ".v", ".o", ".gate", ".up", ".down")):
            array = numpy_helper.to_array(tensor)
            assert array.dtype == np.float16 and (array == 0).mean() == pytest.approx(0.5, abs=0.01)


def test_a_state_of_something_else_is_refused(model: Path) -> None:
    state = model.parent / "state"
    pruned(model, "a.onnx", state=state)
    with pytest.raises(PruneError, match="of another model, other data or other options"):
        pruned(model, "a.onnx", state=state, sparsity=0.6)
    content = bytearray(state.read_bytes())
    content[-10] ^= 1
    state.write_bytes(content)
    with pytest.raises(PruneError, match="is damaged"):
        pruned(model, "a.onnx", state=state)
    state.write_bytes(b"something else\n")
    with pytest.raises(PruneError, match="is not a state file"):
        pruned(model, "a.onnx", state=state)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_is_told() -> None:
    with fitted.LayerJournal(None, "") as journal, Path("/dev/full").open("wb", buffering=0) as full:
        journal._file = full  # type: ignore[assignment]
        with pytest.raises(PruneError, match="No space left"):
            journal.put("w", {}, [np.ones(8, np.float32)])


SMALL: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("stretches of a model", lambda patch: patch.setattr(layerwise, "PART", 1)),
    ("sums in float32", lambda patch: patch.setattr(grams, "LARGE", 1)),
    ("sums of inputs apart", lambda patch: (patch.setattr(grams, "APART", 1), patch.setattr(calibrated, "APART", 1))),
    ("files for activations", lambda patch: patch.setattr(layerwise, "AGAIN", 0)),
]


@pytest.mark.parametrize(("what", "change"), SMALL, ids=[what for what, _ in SMALL])
def test_little_at_a_time_is_as_good(
    model: Path, what: str, change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"memory": 1.0} if what.startswith("files") else {}
    wanted = differs_by(model, pruned(model, "a.onnx"))
    change(monkeypatch)
    assert 0 < differs_by(model, pruned(model, "b.onnx", **memory)) < 1.05 * wanted


@pytest.mark.parametrize("chosen", ["how many", "which"])
def test_rows_of_a_tall_matrix_are_fitted_apart(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(48, 12)), rng.normal(size=(12, 12)) @ rng.normal(size=(12, 400))
    gram = x @ x.T / 400
    task = fit.FitTask(
        weights=weights, gram=gram, cross=weights @ gram, x=np.zeros(12), y=np.zeros(48), count=400,
        variance=np.einsum("ij,ij->i", weights @ gram, weights), offset=np.zeros(48), free=False, taps=1,
    )  # fmt: skip
    goes = Quota(288) if chosen == "how many" else rng.random((48, 12)) < 0.5
    results = []
    for most in (1 << 24, 48 * 12 // 3):
        monkeypatch.setattr(fit, "AT_ONCE", most)
        results.append(fit.fit(fit.METHODS.get("sparsegpt"), "lstsq", task, parse_pattern("element"), goes))
    whole, apart = results
    assert whole.drop.sum() == pytest.approx(apart.drop.sum(), abs=3)
    assert task.error(apart.weights, apart.shift) < 1.15 * task.error(whole.weights, whole.shift)
    if chosen == "which":
        np.testing.assert_allclose(apart.weights, whole.weights, rtol=1e-6, atol=1e-9)


def test_models_too_large_to_be_measured_lose_the_same_everywhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_UP_TO", 0)
    options: dict[str, Any] = {"data": str(model.parent / "x.npy"), "sparsity": 0.5, "force": True}
    found = prunecli.oneshot(model, output=model.parent / "d.onnx", **options)
    assert found.recipe["allocate"] == "uniform" and any("--allocate uniform, since" in note for note in found.notes)
    asked = prunecli.oneshot(model, output=model.parent / "d.onnx", allocate="loss", **options)
    assert asked.recipe["allocate"] == "loss"


class FullDisk:
    """A file that can be read, but takes nothing: neither when it is written to nor, of what is left, when it is
    closed."""

    def __init__(self, file: Any) -> None:
        self.file, self.seek = file, file.seek

    def write(self, content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    journal: Any = fitted.LayerJournal(tmp_path / "state", "of a model")
    journal._file = FullDisk(journal._file)
    with pytest.raises(PruneError, match=r"cannot write fitted layers to .*: No space left"), journal:
        journal.put("w", {}, [np.zeros(3)])


def test_some_rows_stand_for_all_of_a_large_layer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves, measured = [], module.losses

    def told(*args: Any, **named: Any) -> Any:
        curves.append(measured(*args, **named))
        return curves[-1]

    monkeypatch.setattr(module, "losses", told)
    pruned(model, "a.onnx", allocate="loss")
    monkeypatch.setattr(calibrated, "LEAST_ROWS", 16)
    monkeypatch.setattr(calibrated, "ESTIMATED", 0)
    pruned(model, "b.onnx", allocate="loss")
    whole, some = (np.array([curve.losses for curve in each]) for each in curves)
    # the mean of two thirds of 24 rows, whose losses differ by about half: off by 0.5 (1/16 - 1/24)^(1/2) = 7 %; at the
    # first level a dozen weights go, whose sum of squares is another one in other rows
    np.testing.assert_allclose(some[:, 1:], whole[:, 1:], rtol=0.3)
    assert (some != whole).all()


def test_a_factor_that_is_shared_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    data, weights = rng.normal(size=(12, 200)), rng.normal(size=(8, 12))
    gram = data @ data.T / 200
    task = fit.FitTask(weights=weights, gram=gram, cross=weights @ gram, x=np.zeros(12), y=np.zeros(8),
                       variance=np.ones(8), count=200.0, offset=np.zeros(8), free=False, taps=1)  # fmt: skip
    pattern, method = parse_pattern("element"), fit.METHODS.get("sparsegpt")
    for total in (20, 60):
        one = fit.fit(method, "none", task, pattern, Quota(total))
        same = fit.fit(method, "none", task.factored(pattern), pattern, Quota(total))
        assert (one.weights == same.weights).all() and (one.drop == same.drop).all()


def test_parts_of_the_samples_add_up(model: Path) -> None:
    whole, parts = (differs_by(model, pruned(model, "a.onnx", shards=count)) for count in (1, 3))
    assert parts == pytest.approx(whole, rel=0.02)
    assert pruned(model, "a.onnx", shards=3) == pruned(model, "b.onnx", shards=3, state=model.parent / "shards")
    assert pruned(model, "a.onnx", shards=3) == pruned(model, "b.onnx", shards=3, state=model.parent / "shards")


class Dying(InProcesses):
    """Whose first process is killed before it adds up its third layer, and before it fits one of two at once."""

    runs = 0
    fits = 0

    def run(self, calls: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
        self.runs += 1
        fits = any(getattr(call, "func", None) is shards._solved for call in calls.values())
        Dying.fits += fits
        if self.runs == 3 or fits:
            os.kill(super().run({0: os.getpid})[0], signal.SIGKILL)
        return super().run(calls)


@pytest.mark.slow
def test_processes_give_the_same_though_one_is_killed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pruned(model, "a.onnx", shards=3)
    assert pruned(model, "b.onnx", shards=3, jobs=2) == wanted
    monkeypatch.setattr(module, "InProcesses", Dying)
    assert pruned(model, "b.onnx", shards=3, jobs=2) == wanted
    assert Dying.fits == 1  # the second block and its gate


@pytest.mark.slow
def test_processes_that_always_die_are_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(InProcesses):
        def run(self, calls: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
            return super().run(dict.fromkeys(calls, os.abort))

    monkeypatch.setattr(module, "InProcesses", Dead)
    with pytest.raises(PruneError, match="die again and again"):
        pruned(model, "b.onnx", shards=2, jobs=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made.scheduler_address


class DyingCluster(OnCluster):
    """One of whose workers is killed in the middle."""

    runs = 0

    def run(self, calls: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
        self.runs += 1
        if self.runs == 3:
            os.kill(next(iter(self._client.run(os.getpid).values())), signal.SIGKILL)
        return super().run(calls)


@pytest.mark.slow
def test_a_cluster_gives_the_same_though_a_worker_is_killed(
    model: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, asked = pruned(model, "a.onnx", shards=3), {"shards": 3, "backend": "dask", "address": cluster}
    assert pruned(model, "b.onnx", **asked) == wanted
    monkeypatch.setattr(module, "OnCluster", DyingCluster)
    assert pruned(model, "b.onnx", **asked) == wanted


def test_a_model_that_is_sent_has_its_data_beside_it(model: Path, tmp_path: Path) -> None:
    """Wherever they lay, though they have one name."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        folder = tmp_path / ("a" if tensor.name == "w0" else "b b")
        folder.mkdir(exist_ok=True)
        with (folder / "data").open("ab") as file:
            external_data_helper.set_external_data(tensor, f"{folder.name}/data", file.tell(), len(tensor.raw_data))
            file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    files, elsewhere = portable(tmp_path / "m.onnx"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, content in files.items():
        (elsewhere / name).write_bytes(content)
    assert list(files) == ["m.onnx", "m.onnx.0", "m.onnx.1"]
    wanted, got = ({t.name: numpy_helper.to_array(t) for t in read_whole(path).graph.initializer}
                   for path in (model, elsewhere / "m.onnx"))  # fmt: skip
    assert wanted.keys() == got.keys() and all(np.array_equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.slow
def test_a_cluster_takes_data_in_other_folders(model: Path, cluster: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    onnx.save_model(onnx.load(model), tmp_path / "data" / "m.onnx", save_as_external_data=True, size_threshold=0,
                    location="weights")  # fmt: skip
    proto = onnx.load(tmp_path / "data" / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "data/weights"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "x.npy").write_bytes((model.parent / "x.npy").read_bytes())
    target, asked = tmp_path / "m.onnx", {"shards": 3, "external_data": "never"}
    assert pruned(target, "b.onnx", **asked, backend="dask", address=cluster) == pruned(target, "a.onnx", **asked)
