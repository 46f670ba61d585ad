"""Magnitude pruning from end to end, against masks computed by numpy from the files alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.masks.patterns import PATTERNS
from prunecli.masks.scopes import SCOPES
from prunecli.model import SaveOptions, load, save
from prunecli.report.document import Level
from prunecli.report.render import to_terminal
from prunecli.zeros.magnitude import MagnitudeOptions, magnitude
from tests.model.build import floats, node, proto, run, save_proto
from tests.tiny import MODELS, SHARED

Arrays = dict[str, np.ndarray[Any, Any]]
SAMPLES = Path(__file__).parents[2] / "sample_models"
CONV, FC, OUT = "conv.w", "fc.w", "out.w"


def net(change: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """Convolution, dense layer, and a MatMul; odd sizes, so that nothing divides."""
    nodes = [
        node("Conv", ["x", CONV, "conv.b"], ["c"], "conv"),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", FC, "fc.b"], ["g"], "fc", transB=1),
        node("MatMul", ["g", OUT], ["y"], "out"),
    ]
    shapes = {CONV: (7, 3, 3, 3), "conv.b": (7,), FC: (9, 7), "fc.b": (9,), OUT: (9, 5)}
    weights = {name: floats(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    return proto(nodes, {"x": (1, 3, 6, 6)}, weights={**weights, **(change or {})})


def stored(path: Path) -> Arrays:
    """Every initializer and Constant tensor of a file, subgraphs aside, by the plain onnx package."""
    model = onnx.load(path)
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "Constant" and n.attribute[0].name == "value":
            found[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
    return found


def zeros(array: np.ndarray[Any, Any]) -> int:
    return int(np.count_nonzero(array == 0))


def pruned(path: Path, **options: Any) -> tuple[Any, Arrays]:
    found = magnitude(path, output=path.with_name("out.onnx"), force=True, **options)
    return found, stored(path.with_name("out.onnx"))


DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("threshold", [0.0, 1e-8, 0.3, 0.5, 1.0, 1e30])
def test_a_threshold_is_numpys_where_bit_for_bit(dtype: Any, threshold: float, tmp_path: Path) -> None:
    values = floats(6, 8).astype(dtype)
    near = min(threshold, 6e4)  # what float16 can hold
    values[0, :6] = [near, -near, 0.0, -0.0, 1e-7, 0.5]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Cast", ["x"], ["c"], to=element), node("MatMul", ["c", "w"], ["h"]),
             node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    path = save_proto(proto(nodes, {"x": (2, 6)}, weights={"w": values}), tmp_path)
    runs = dtype != ml_dtypes.bfloat16  # for which onnxruntime has no MatMul
    found, after = pruned(path, threshold=threshold, verify=runs)
    with np.errstate(over="ignore"):
        wanted = np.where(np.abs(values) < threshold, np.zeros((), dtype), values)
    assert after["w"].tobytes() == wanted.tobytes()
    assert found.layers[0].nonzero == wanted.size - zeros(wanted)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 1 / 3, 0.999, 1.0])
def test_a_layer_loses_exactly_its_share(sparsity: float, tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    before = stored(path)
    found, after = pruned(path, sparsity=sparsity)
    for name in (CONV, FC, OUT):
        budget = round(sparsity * before[name].size)
        order = np.argsort(np.abs(before[name]).reshape(-1), kind="stable")  # all values differ
        wanted = before[name].copy().reshape(-1)
        wanted[order[:budget]] = 0
        assert after[name].tobytes() == wanted.tobytes(), name
    assert {name: after[name].tobytes() for name in ("conv.b", "fc.b")} == {
        name: before[name].tobytes() for name in ("conv.b", "fc.b")
    }
    assert (found.verification.kind, found.verification.samples) == ("exact", 1)


def test_a_global_budget_is_exact_over_all_weights(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    before = stored(path)
    _, after = pruned(path, sparsity=0.6, scope="global")
    names = (CONV, FC, OUT)
    old, new = (np.concatenate([a[n].reshape(-1) for n in names]) for a in (before, after))
    assert zeros(new) == round(0.6 * old.size)
    assert np.abs(old[new == 0]).max() < np.abs(old[new != 0]).min()


FORMS = {"element": "element", "N:M": "2:4", "RxC": "2x3", "row": "row", "column": "column"}
SENSELESS = {("row", "row"), ("row", "column"), *((scope.name, "N:M") for scope in SCOPES if scope.name != "layer")}
COMBINATIONS = list(itertools.product([scope.name for scope in SCOPES], FORMS))


def test_every_pattern_is_tested() -> None:
    assert set(FORMS) == {form.name for form in PATTERNS}


@pytest.mark.parametrize(("scope", "form"), COMBINATIONS)
def test_every_scope_with_every_pattern(scope: str, form: str, tmp_path: Path) -> None:
    """What comes out is right in number, reported as it is, and proved; or the combination is refused."""
    path = save_proto(net(), tmp_path)
    options = {"pattern": FORMS[form], "scope": scope, "sparsity": 0.5}
    if (scope, form) in SENSELESS:
        with pytest.raises(PruneError, match="makes no sense"):
            magnitude(path, **options)
        return
    found, after = pruned(path, **options)
    assert found.verification.kind == "exact"
    sizes = {layer.weight: layer.params for layer in found.layers}
    total = sum(zeros(after[name]) for name in sizes)
    for layer in found.layers:
        assert layer.params - layer.nonzero == zeros(after[layer.weight]), layer.weight
    assert found.sparsity == pytest.approx(total / sum(sizes.values()), abs=1e-12)
    if form == "element" and scope != "row":
        budget = round(0.5 * sum(sizes.values()))
        per_layer = sum(round(0.5 * size) for size in sizes.values())
        assert total == (per_layer if scope == "layer" else budget)
    if form != "N:M":  # whose rest of a row is a smaller window, not a pool with a budget
        assert total <= sum(sizes.values()) / 2 + len(sizes) * 9


def test_two_of_four_along_the_inputs(tmp_path: Path) -> None:
    """Of every four neighbouring inputs of one output two stay, the larger ones; 7 and 9 leave a rest."""
    path = save_proto(net(), tmp_path)
    before = stored(path)
    found, after = pruned(path, pattern="2:4")
    rows = {FC: (before[FC], after[FC]), OUT: (before[OUT].T, after[OUT].T)}
    rows[CONV] = tuple(a[CONV].transpose(0, 2, 3, 1).reshape(-1, 3) for a in (before, after))  # type: ignore[assignment]
    for old, new in rows.values():
        for start in range(0, old.shape[1] - 3, 4):
            window, kept = np.abs(old[:, start : start + 4]), new[:, start : start + 4] != 0
            assert (kept.sum(axis=1) == 2).all()
            assert (np.where(kept, window, np.inf).min(axis=1) > np.where(kept, 0, window).max(axis=1)).all()

    told = {layer.weight: "; ".join(layer.notes) for layer in found.layers}
    assert told[CONV] == "3 inputs do not divide by 4: the rest keeps up to 2"
    assert not any(layer.notes for layer in pruned(path, pattern="1:3", include=["conv", "out"])[0].layers)


def test_zeros_that_are_there_already_count(tmp_path: Path) -> None:
    sparse = floats(9, 7)
    sparse[:, :3] = 0
    path = save_proto(net({FC: sparse}), tmp_path)
    for target in (0.2, 0.5):
        found, after = pruned(path, sparsity=target, include=["fc"])
        assert zeros(after[FC]) == max(27, round(target * 63))
        assert found.layers[0].nonzero_before == 63 - 27
        assert found.layers[0].nonzero == 63 - zeros(after[FC])
    assert found.before.nonzero - found.after.nonzero == round(0.5 * 63) - 27


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [{"threshold": 0.1}, {"pattern": "2:4"}, *({"sparsity": 0.5, "scope": scope.name} for scope in SCOPES),
     {"sparsity": 0.5, "pattern": "row"}, {"sparsity": 0.5, "criterion": "l2"}, {"sparsity": 0.0}],
)  # fmt: skip
def test_values_that_are_no_numbers_are_refused_by_name(bad: float, options: Any, tmp_path: Path) -> None:
    broken = floats(9, 7)
    broken[4, 2] = bad
    path = save_proto(net({FC: broken}), tmp_path)
    with pytest.raises(PruneError, match=r"fc\.w") as caught:
        magnitude(path, **options)
    assert "--exclude" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    found, after = pruned(path, **options, exclude=["fc"], verify=False)  # its outputs are NaN, which proves nothing
    assert after[FC].tobytes() == broken.tobytes()
    assert "fc.w" not in {layer.weight for layer in found.layers}


@pytest.mark.parametrize("small", [False, True])
def test_a_weight_that_is_emptied_is_named(small: bool, tmp_path: Path) -> None:
    """Scores of the whole model may take all of one layer, whose outputs are constant from then on."""
    path = save_proto(net({OUT: floats(9, 5, seed=2) * 1e-3} if small else {}), tmp_path)
    found, _ = pruned(path, sparsity=0.5, scope="global")
    assert any(note.startswith(f"nothing is left of {OUT}: ") for note in found.notes) == small


def test_what_is_left_alone_and_what_is_not(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    found, _ = pruned(path, sparsity=0.5)
    assert found.left == {"bias": (2, 16)}
    reason = "biases are left alone unless --also bias is given"
    assert [(s.name, s.reason) for s in found.skipped] == [("conv.b", reason), ("fc.b", reason)]
    found, after = pruned(path, sparsity=0.5, also=["bias"], include=["*.b"])
    assert [layer.weight for layer in found.layers] == ["conv.b", "fc.b"]
    assert (zeros(after["conv.b"]), zeros(after["fc.b"])) == (round(3.5), round(4.5))


def test_totals(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    found, after = pruned(path, sparsity=0.5, scope="global")
    out = tmp_path / "out.onnx"
    assert found.before.params == found.after.params == sum(a.size for a in after.values())
    assert found.before.nonzero == found.before.params
    assert found.after.nonzero == sum(a.size - zeros(a) for a in after.values())
    assert found.after.file_bytes == out.stat().st_size
    assert found.after.gzip_bytes < found.before.gzip_bytes
    assert found.before.macs == found.after.macs == 16 * 189 + 63 + 45
    assert {layer.weight: layer.macs for layer in found.layers} == {CONV: 16 * 189, FC: 63, OUT: 45}
    assert found.params == 189 + 63 + 45


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    for criterion in ("l1", "random"):
        files = []
        for name in ("a.onnx", "b.onnx"):
            magnitude(path, sparsity=0.5, criterion=criterion, seed=3, output=tmp_path / name, force=True)
            files.append((tmp_path / name).read_bytes())
        assert files[0] == files[1]


def test_what_the_file_says_about_itself(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    pruned(path, sparsity=0.5, scope="erk", exclude=["out"])
    told = {p.key: p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert told["prunecli.command"] == "magnitude"
    recipe = json.loads(told["prunecli.recipe"])
    assert recipe == {"pattern": "element", "scope": "erk", "criterion": "l1", "sparsity": 0.5, "seed": 0,
                      "include": [], "exclude": ["out"], "also": []}  # fmt: skip
    assert told["prunecli.input_sha256"] == load(path).sha256


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
def test_a_dry_run_tells_all_and_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    dry = magnitude(path, dry_run=True, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    wet = magnitude(path, **options)
    assert dry.output is None
    assert wet.output is not None
    assert wet.output.path == str(tmp_path / "m.pruned.onnx")
    assert (dry.layers, dry.before, dry.after) == (wet.layers, wet.before, wet.after)
    assert dry.verification == wet.verification


@pytest.mark.parametrize("recipe", [{"sparsity": 0.4, "scope": "lamp"}, {"pattern": "1:4"}, {"threshold": 0.7}])
def test_a_plan_is_replayed_exactly(recipe: Any, tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    plan = tmp_path / "plan.json"
    first, once = pruned(path, **recipe, exclude=["out"], save_plan=plan)
    assert first.plan == str(plan)
    second, again = pruned(path, plan=plan)
    assert {n: a.tobytes() for n, a in once.items()} == {n: a.tobytes() for n, a in again.items()}
    assert second.layers == first.layers
    assert second.recipe == first.recipe
    assert {"out.w": "not in the plan"}.items() <= {s.name: s.reason for s in second.skipped}.items()


def test_a_plan_of_a_dry_run_can_be_carried_out(tmp_path: Path) -> None:
    path, plan = save_proto(net(), tmp_path), tmp_path / "plan.json"
    dry = magnitude(path, sparsity=0.5, dry_run=True, save_plan=plan)
    found, after = pruned(path, plan=plan)
    assert found.layers == dry.layers
    assert zeros(after[FC]) == round(0.5 * 63)


@pytest.mark.parametrize("given", [{}, {"sparsity": 0.5, "plan": Path("plan.json")}])
def test_how_much_is_given_exactly_once(given: Any, tmp_path: Path) -> None:
    with pytest.raises(PruneError) as caught:
        magnitude(save_proto(net(), tmp_path), **given)
    assert "--sparsity" in caught.value.hint


@pytest.mark.parametrize("external", ["auto", "always", "never"])
@pytest.mark.parametrize("was", ["always", "never"])
def test_external_data(external: Any, was: Any, tmp_path: Path) -> None:
    weights = {"w": floats(64, 64)}
    inline = save_proto(proto([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 64)}, weights=weights), tmp_path)
    path = tmp_path / "in.onnx"
    save(load(inline), path, SaveOptions(was))
    found, after = pruned(path, sparsity=0.5, external_data=external)
    outside = external == "always" or (external == "auto" and was == "always")
    assert bool(load(tmp_path / "out.onnx").data_files) == outside
    assert zeros(after["w"]) == 2048
    assert found.after.file_bytes == sum(p.stat().st_size for p in tmp_path.glob("out.onnx*"))
    assert found.verification.samples == 1


def test_a_shared_weight_is_pruned_once_for_all(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    path = save_proto(proto(nodes, {"x": (2, 4)}, weights={"w": floats(4, 4)}), tmp_path)
    found, after = pruned(path, sparsity=0.5)
    assert zeros(after["w"]) == 8
    assert [layer.weight for layer in found.layers] == ["w"]
    assert "shared by 2 inputs" in found.layers[0].notes[0]


def test_an_empty_weight_is_no_problem(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["x", "none"], ["z"])]
    weights = {"w": floats(4, 4), "none": np.empty((4, 0), np.float32)}
    path = save_proto(proto(nodes, {"x": (2, 4)}, ["y", "z"], weights), tmp_path)
    found, after = pruned(path, sparsity=0.5, scope="global")
    assert zeros(after["w"]) == 8
    assert [layer.weight for layer in found.layers] == ["w"]


def test_nothing_is_written_when_the_proof_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = save_proto(net(), tmp_path), tmp_path / "plan.json"
    monkeypatch.setattr("prunecli.zeros.zero_proof.is_masked", lambda *_: False)
    with pytest.raises(PruneError, match="was not stored as it should be"):
        magnitude(path, sparsity=0.5, save_plan=plan)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert magnitude(path, sparsity=0.5, verify=False).verification.kind == "none"


def test_the_public_function_and_what_people_read(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    found = prunecli.magnitude(path, sparsity=0.5)
    text = to_terminal(found.to_document(), width=100, level=Level.DETAIL)
    for part in ("conv.w", "49.7 %", "not zeroed: biases (2 tensors, 16 elements)", "proved: ", "m.pruned.onnx",
                 "Zeros make no model faster in onnxruntime", "prune structured"):  # fmt: skip
        assert part in " ".join(text.split())


def test_options_and_changes_combine(tmp_path: Path) -> None:
    path = save_proto(net(), tmp_path)
    options = MagnitudeOptions(sparsity=0.5, exclude=("out",), verify=False)
    found = magnitude(path, options, scope="global", dry_run=True)
    assert found.recipe["scope"] == "global"
    assert found.recipe["sparsity"] == 0.5
    assert {layer.weight for layer in found.layers} == {CONV, FC}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ch_ppocr_mobile_v2.0_cls_infer", "resnet20-cifar10-bn", "hf_gpt2.dynamo"])
def test_real_models_lose_half_and_match_numpy(name: str, tmp_path: Path) -> None:
    """The classifier keeps its weights in Constant nodes; the reference is built here, from the file alone."""
    path = next((p for p in MODELS if p.stem == name), None)
    if path is None:
        pytest.skip(f"{SHARED} has no {name}.onnx")
    found = magnitude(path, sparsity=0.5, output=tmp_path / "out.onnx")
    before, after = stored(path), stored(tmp_path / "out.onnx")
    changed = {n for n in before if before[n].tobytes() != after[n].tobytes()}
    assert changed == {layer.weight for layer in found.layers}
    for name in changed:
        array = before[name]
        assert zeros(after[name]) == round(0.5 * array.size)
        kept = np.abs(array[after[name] != 0])
        assert np.abs(array[after[name] == 0]).max() <= kept.min()
        np.testing.assert_array_equal(after[name][after[name] != 0], array[after[name] != 0])
    assert found.verification.samples == 1


def test_accuracy_survives_on_real_data(tmp_path: Path) -> None:
    """Half of the digits network's weights can go: above 90 % of the test images, where chance is 10 %."""
    magnitude(SAMPLES / "digits-cnn.onnx", sparsity=0.5, scope="global", output=tmp_path / "out.onnx")
    with np.load(SAMPLES / "digits-test.npz") as data:
        names = [n for n in data.files if n != "labels"]
        scores = run(tmp_path / "out.onnx", {"image": data[names[0]].astype(np.float32)})[0]
        assert (scores.argmax(axis=1) == data["labels"]).mean() > 0.9
