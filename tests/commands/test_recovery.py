"""`prune structured --recover`: from end to end on a trained model, and refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.reconstruct.refit import METHODS
from prunecli.report.render import to_markdown
from prunecli.runtime import Session
from prunecli.structures.carry_out import StructuredResult
from prunecli.structures.inspect_cut import CutInspector
from prunecli.structures.structured import structured
from prunecli.zeros.magnitude import magnitude
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
MODEL, CALIB, TEST = (SAMPLES / f"digits-{name}" for name in ("cnn.onnx", "calib.npz", "test.npz"))

DATA = DataOptions(str(CALIB), limit=96)


def accuracy(path: Path) -> float:
    session = Session.open(path)
    with np.load(TEST) as file:
        labels = file["labels"]
        images = file[next(name for name in file.files if name != "labels")].astype(np.float32)
    found = session.run({session.inputs[0].name: images})
    return float((next(iter(found.values())).argmax(1) == labels).mean())


def cut(folder: Path, **changes: Any) -> StructuredResult:
    options = {"macs": 0.5, "data": DATA, "output": folder / "cut.onnx", "force": True, **changes}
    return structured(MODEL, **options)


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> StructuredResult:
    return cut(tmp_path_factory.mktemp("recovered"))


def test_with_data_the_default_recovers(recovered: StructuredResult, tmp_path: Path) -> None:
    assert recovered.output is not None and recovered.recovery is not None
    plain = cut(tmp_path, recover="none", criterion="activation")
    assert plain.recovery is None
    assert accuracy(Path(recovered.output.path)) > 0.9 > accuracy(tmp_path / "cut.onnx") + 0.2
    assert recovered.recovery.error_after < 0.5 * recovered.recovery.error_before


def test_the_proof_is_of_the_cut(recovered: StructuredResult) -> None:
    assert recovered.verification.kind == "exact" and "before it was refitted" in recovered.verification.detail


def test_rows_of_a_table_that_no_run_reads_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, names = np.random.default_rng(0), ("table", "first", "second")
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((50_000, 8), (8, 16), (16, 4))]
    steps = ("Gather", ["table", "ids"], "a"), ("MatMul", ["a", "first"], "b"), ("Relu", ["b"], "c")
    nodes = [helper.make_node(op, reads, [made]) for op, reads, made in (*steps, ("MatMul", ["c", "second"], "y"))]
    ends = [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4])]  # fmt: skip
    stored = [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    check, damage = CutInspector.__call__, [0]

    def damaged(self: CutInspector, staged: Path, cut: ir.Model | None = None) -> None:
        model = onnx.load(staged)
        table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
        table.raw_data = table.raw_data[:-1] + bytes([table.raw_data[-1] ^ damage[0]])
        onnx.save(model, staged)
        check(self, staged, cut)

    monkeypatch.setattr(CutInspector, "__call__", damaged)
    options = {"ratio": 0.5, "include": ["first"], "output": tmp_path / "cut.onnx"}
    assert structured(tmp_path / "m.onnx", **options).verification.kind != "none"
    damage[0] = 1
    with pytest.raises(PruneError, match="table of the cut is not"):
        structured(tmp_path / "m.onnx", **{**options, "output": tmp_path / "other.onnx"})
    assert not (tmp_path / "other.onnx").exists()


def test_what_was_refitted_is_stored_as_it_was_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is of the cut before: a writer that errs after it is found, too."""
    check = CutInspector.measure

    def damaged(self: CutInspector, staged: Path, cut: ir.Model | None = None) -> None:
        if cut is not None:  # it is not while the cut is proved, before the refit
            model = onnx.load(staged)
            last = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            last.raw_data = bytes([last.raw_data[0] ^ 1]) + last.raw_data[1:]
            onnx.save(model, staged)
        check(self, staged, cut)

    monkeypatch.setattr(CutInspector, "measure", damaged)
    with pytest.raises(PruneError, match="was not stored as it should be"):
        cut(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_budget_is_that_of_the_file(recovered: StructuredResult) -> None:
    assert 0.47 < recovered.after.macs / recovered.before.macs <= 0.5  # type: ignore[operator]


def test_what_was_done_is_reported(recovered: StructuredResult) -> None:
    found = json.loads(json.dumps(recovered.to_json()))["recovery"]
    assert found["method"] == "auto" and found["held"] == found["samples"] // 8
    for layer in found["layers"]:
        assert layer["method"] in METHODS and layer["error_after"] <= layer["error_before"]
    titles = [getattr(section, "title", "") for section in recovered.to_document().sections]
    assert "Refitted layers" in titles


def test_inputs_outputs_and_names_stay(recovered: StructuredResult) -> None:
    assert recovered.output is not None
    before, after = onnx.load(MODEL), onnx.load(recovered.output.path)
    for part in ("input", "output"):
        assert [v.name for v in getattr(before.graph, part)] == [v.name for v in getattr(after.graph, part)]
    types = {i.name: i.data_type for i in before.graph.initializer}
    assert all(types.get(i.name, i.data_type) == i.data_type for i in after.graph.initializer)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("none", "auto")])
def test_each_method_lowers_the_error(method: str, tmp_path: Path) -> None:
    found = cut(tmp_path, recover=method, criterion="activation").recovery
    assert found is not None and found.error_after < found.error_before
    assert {layer.method for layer in found.layers} <= {method, "none"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"macs": None, "ratio": 0.4}, {"macs": 0.7, "granularity": "block"}, {"steps": 2}])
def test_other_ways_to_choose(changes: dict[str, Any], tmp_path: Path) -> None:
    given = {key: value for key, value in changes.items() if value is not None}
    base = {"data": DATA, "output": tmp_path / "cut.onnx"}
    try:
        found = structured(MODEL, **({} if "ratio" in given else {"macs": 0.5}), **base, **given) if "macs" not in given \
            else structured(MODEL, **base, **given)  # fmt: skip
    except PruneError as error:
        assert changes.get("granularity") == "block" and "block" in str(error.message)  # the model may have none
        return
    assert found.verification.kind == "exact" and found.recovery is not None


def test_a_plan_replays_with_recovery(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    first = cut(tmp_path, save_plan=plan)
    again = structured(MODEL, plan=plan, data=DATA, output=tmp_path / "again.onnx")
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes() or (
        first.recovery is not None and again.recovery is not None
        and again.recovery.error_after == pytest.approx(first.recovery.error_after)
    )  # fmt: skip


@pytest.mark.parametrize(("more", "left_alone"), [({}, False), ({"save_plan": "p"}, True), ({"plan": "p"}, True)])
def test_without_data_a_plan_is_of_the_cut_alone(more: dict[str, str], left_alone: bool, tmp_path: Path) -> None:
    """As anyone can check it, by zeros in the original; without a plan the cut is folded and refitted."""
    amount = {} if "plan" in more else {"ratio": 0.3}
    if "plan" in more:
        structured(MODEL, ratio=0.3, save_plan=tmp_path / "p", dry_run=True)
    paths = {key: tmp_path / name for key, name in more.items()}
    found = structured(MODEL, output=tmp_path / "o.onnx", **amount, **paths)
    assert (found.recovery is None) == left_alone
    told = to_markdown(found.to_document())
    assert ("which zeros in the original check" in told) == ("save_plan" in more)


@pytest.mark.parametrize(("recover", "told"), [("auto", True), ("none", False)])
def test_zeros_that_a_refit_fills_are_told(recover: str, told: bool, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.onnx"
    magnitude(MODEL, sparsity=0.8, output=sparse, verify=False)
    found = structured(sparse, ratio=0.3, data=DATA, recover=recover, output=tmp_path / "o.onnx")
    assert told == any("filled" in note for note in found.notes)


def test_one_sample(tmp_path: Path) -> None:
    found = cut(tmp_path, data=DataOptions(str(CALIB), limit=1))
    assert found.recovery is not None and found.recovery.held == 0
    assert found.recovery.error_after <= found.recovery.error_before


def test_a_dry_run_writes_nothing_and_tells_the_same(recovered: StructuredResult, tmp_path: Path) -> None:
    found = cut(tmp_path, dry_run=True)
    assert not list(tmp_path.iterdir())
    assert found.recovery is not None and recovered.recovery is not None
    assert found.recovery.error_after == pytest.approx(recovered.recovery.error_after)


def test_training_follows(tmp_path: Path) -> None:
    data = DataOptions(str(SAMPLES / "digits-train.npz"), limit=200)
    found = cut(tmp_path, data=data, recover="auto", train_data=data.text, finetune_epochs=1)
    assert found.training is not None and found.recovery is not None and accuracy(tmp_path / "cut.onnx") > 0.9


def wrong_shape(folder: Path) -> dict[str, Any]:
    np.save(folder / "wrong.npy", np.zeros((4, 3, 5, 5), np.float32))
    return {"data": DataOptions(str(folder / "wrong.npy"))}


REFUSED = {
    "unknown": (lambda _: {"recover": "magic"}, "unknown"),
    "no data": (lambda _: {"recover": "lstsq", "data": None}, "needs data"),
    "wrong shape": (wrong_shape, "shape|size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    build, words = REFUSED[case]
    changes = build(tmp_path)
    with pytest.raises(PruneError, match=words):
        cut(tmp_path, **changes)
    assert not (tmp_path / "cut.onnx").exists()
