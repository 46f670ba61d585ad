"""`prune structured` from end to end: cut, proved, saved whole, replayed; and refused where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import prunecli
from prunecli.data.options import DataOptions
from prunecli.data.synthetic import random_data
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.model.shapes import input_specs
from prunecli.quantity import Quantity, parse_quantity
from prunecli.search.options import TrialOptions
from prunecli.search.setup import SampleSubset, open_pruner
from prunecli.structures import prunable as module
from prunecli.structures.carry_out import StructuredResult
from prunecli.structures.structured import structured
from prunecli.structures.target import Budget
from prunecli.types import Totals, no_progress
from tests.dependency.net import Net
from tests.model.build import node as built_node
from tests.model.build import proto, save_proto
from tests.structures import cuts
from tests.structures.cuts import net_file
from tests.structures.outside import TOLERANCE, compare
from tests.tiny import SHARED

MODELS = SHARED / "models"
QUICK = (
    "arch/hf_bert.onnx", "arch/hf_llama.dynamo.onnx", "arch/hm_shufflenet.onnx", "arch/hm_lstm.onnx",
    "arch/hm_densenet.dynamo.onnx", "arch/hm_yolo.onnx", "arch/hm_pixelsr.onnx", "real/resnet20-cifar10-bn.onnx",
    "real/ch_ppocr_mobile_v2.0_cls_infer.onnx",
)  # fmt: skip


def shared_models() -> list[Any]:
    found = sorted(str(p.relative_to(MODELS)) for p in MODELS.rglob("*.onnx")) or ["absent"]
    return [pytest.param(name, marks=() if name in QUICK or name == "absent" else pytest.mark.slow) for name in found]


def cut(path: Path, folder: Path, **changes: Any) -> StructuredResult:
    """The cut alone, unless there are data to recover with."""
    recover = {} if "data" in changes else {"recover": "none"}
    asked = {"ratio": 0.5, **recover, **changes}
    return structured(path, output=folder / "cut.onnx", save_plan=folder / "plan.json", **asked)


def tiny(tmp_path: Path, build: Callable[[Net], Any] = cuts.conv_net) -> Path:
    return net_file(tmp_path, build, opset=18)


@pytest.mark.slow
@pytest.mark.parametrize("name", shared_models())
def test_a_real_model_is_cut_and_agrees_with_a_check_from_outside(name: str, tmp_path: Path) -> None:
    path = MODELS / name
    if not path.exists():
        pytest.skip("the shared models are not here")
    found = cut(path, tmp_path)
    assert found.verification.kind == "exact"
    assert found.after.params < 0.8 * found.before.params
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    _same_interface(onnx.load(path), onnx.load(tmp_path / "cut.onnx"))
    onnx.checker.check_model(str(tmp_path / "cut.onnx"), full_check=True)


def _same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    fixed = {t.name for t in before.graph.initializer}

    def inputs(model: onnx.ModelProto) -> list[bytes]:
        return [v.SerializeToString(deterministic=True) for v in model.graph.input if v.name not in fixed]

    assert inputs(before) == inputs(after)
    assert [v.SerializeToString(deterministic=True) for v in before.graph.output] == [
        v.SerializeToString(deterministic=True) for v in after.graph.output
    ]
    kept = {(p.key, p.value) for p in after.metadata_props}
    assert {(p.key, p.value) for p in before.metadata_props} <= kept


def test_the_saved_file_says_how_it_was_made(tmp_path: Path) -> None:
    found = cut(tiny(tmp_path), tmp_path, seed=5)
    notes = {p.key: p.value for p in onnx.load(tmp_path / "cut.onnx").metadata_props}
    assert notes["prunecli.command"] == "structured"
    assert notes["prunecli.input_sha256"] == found.model.sha256
    recipe = json.loads(notes["prunecli.recipe"])
    assert (recipe["ratio"], recipe["seed"], recipe["granularity"]) == (0.5, 5, "channel,head")


def test_the_report_and_the_plan_say_the_same_as_the_file(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    found = cut(path, tmp_path)
    stored = {t.name: tuple(t.dims) for t in onnx.load(tmp_path / "cut.onnx").graph.initializer}
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {row.weight for row in found.layers} == set(stored) - {"w5"}  # a bias of the frozen output
    for row in found.layers:
        assert row.shape_after == stored[row.weight]
        gone = {int(a): len(p) for a, p in plan["weights"].get(row.weight, {}).items()}
        assert row.shape_after == tuple(n - gone.get(a, 0) for a, n in enumerate(row.shape_before))
    assert found.after.params == sum(int(np.prod(s)) for s in stored.values())
    for group in found.groups:
        mine = [u for u in plan["units"] if u["group"] == group.name]
        assert (len(mine), sum(not u["removed"] for u in mine)) == (group.before, group.after)
        assert {(u["params"], u["macs"]) for u in mine} == {(group.params, group.macs)}


def learned_queries(n: Net) -> Net:
    """Six learned rows meet the rows of a batch: the layer that makes queries of them runs once, whatever the batch."""
    keys = n("Transpose", n("MatMul", n.x("N", 5, 4), n.w(4, 8)), perm=[0, 2, 1])
    return n.out(n("MatMul", n("MatMul", n.w(6, 3), n.w(3, 8)), keys))


COSTS = {
    # Conv 3 to 8 (3x3), plus Conv 8 to 8 (3x3) of it, then Conv 1x1 to 4, 64x64 where nothing is said
    "convolutions": (cuts.conv_net, {}, "channel", 3 * 9 + 1 + 15 * 9 + 1 + 4, (27 + 15 * 9 + 4) * 64 * 64),
    "a batch of 3": (cuts.conv_net, {"N": 3, "H": 8, "W": 5}, "channel", 168, 3 * (27 + 15 * 9 + 4) * 8 * 5),
    "a whole block": (cuts.conv_net, {"H": 6, "W": 5}, "block", 8 * 8 * 9 + 8, 8 * 8 * 9 * 30),
    "learned queries": (learned_queries, {"N": 2}, "channel", 3 + 4, 6 * 3 + 2 * (5 * 4 + 6 * 5)),
}


@pytest.mark.parametrize(("build", "sizes", "granularity", "params", "macs"), COSTS.values(), ids=COSTS)
def test_the_cost_of_a_unit_is_what_its_removal_saves(
    tmp_path: Path, build: Any, sizes: dict[str, int], granularity: str, params: int, macs: int
) -> None:
    """Counted by hand, at the sizes that the report's totals are counted at."""
    one = {"ratio": 0.9, "max_ratio": 1.0} if granularity == "block" else {"ratio": 1 / 8}
    found = cut(
        tiny(tmp_path, build),
        tmp_path,
        dim=[f"{name}={size}" for name, size in sizes.items()],
        granularity=granularity,
        **one,
    )
    (group,) = [g for g in found.groups if g.after < g.before]
    assert (group.params, group.macs) == (params, macs)
    assert found.before.params - found.after.params == params
    assert found.before.macs - found.after.macs == macs  # type: ignore[operator]


# -- forms of files ---------------------------------------------------------------------------------


def old_ir(model: onnx.ModelProto) -> None:
    """Before IR version 4 every initializer was a graph input."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def in_constants(model: onnx.ModelProto) -> None:
    """As PaddlePaddle exports: weights in Constant nodes."""
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def free_as_minus_one(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_value = -1


def unnamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def with_shapes(model: onnx.ModelProto) -> None:
    model.CopyFrom(onnx.shape_inference.infer_shapes(model))
    assert model.graph.value_info


@pytest.mark.parametrize("change", [old_ir, in_constants, old_opset, free_as_minus_one, unnamed, with_shapes])
def test_forms_of_files(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    path = tiny(tmp_path)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    found = cut(path, tmp_path)
    assert found.verification.kind == "exact"
    assert found.verification.samples == 4
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {"w0", "w1", "w2", "w3", "w4"} == set(plan["weights"])
    _same_interface(model, onnx.load(tmp_path / "cut.onnx"))
    onnx.checker.check_model(str(tmp_path / "cut.onnx"), full_check=True)


def test_external_data_is_cut_and_replayed(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    cut(path, tmp_path)
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(PruneError, match="another model"):
        structured(path, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx", recover="none")


# -- plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [cuts.conv_net, cuts.grouped, cuts.norm_net])
def test_a_plan_gives_the_same_file_again(tmp_path: Path, build: Any) -> None:
    path = tiny(tmp_path, build)
    first = cut(path, tmp_path, granularity="all")
    again = structured(
        path, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx", save_plan=tmp_path / "2.json", recover="none"
    )
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "cut.onnx").read_bytes()
    assert (tmp_path / "2.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert again.output is not None
    assert first.output is not None
    assert again.output.sha256 == first.output.sha256
    assert again.groups == first.groups


def rows_by_a_width(n: Net) -> Net:
    """As many rows of a table as batch and width together: no vector of the graph can follow a cut of that width."""
    h = n.linear(n.x("N", 4), 4, 8)
    count = n("ReduceSum", n("Shape", h), keepdims=0)
    rows = n("ReduceSum", n("Gather", n.w(99, 6), n("Range", n.c(0), count, n.c(1))), n.c([0]))
    return n.out(n.linear(n("Relu", n("Add", n.linear(n("Relu", h), 8, 6), rows)), 6, 3))


def test_what_cannot_follow_stays_whole_and_the_rest_is_cut(tmp_path: Path) -> None:
    path = tiny(tmp_path, rows_by_a_width)
    found = cut(path, tmp_path, round_to=1)
    assert [(g.before, g.after) for g in found.groups] == [(6, 3)]
    stuck = {(f.tensor, f.axis): f.reason for f in found.frozen if f.size == 8}
    assert stuck.keys() == {("w0", 1), ("w1", 0), ("w6", 0)}
    assert all("of which one is cut and another is dynamic" in reason for reason in stuck.values())
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    structured(path, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx", recover="none")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "cut.onnx").read_bytes()


def test_what_cannot_follow_ends_no_search(tmp_path: Path) -> None:
    path = tiny(tmp_path, rows_by_a_width)
    options, data = (
        TrialOptions(data=DataOptions("random"), granularity="channel", round_to=1),
        random_data(input_specs(load(path).ir), 8, 0),
    )
    pruner = open_pruner(path, options, SampleSubset.of_data(options.tried, data), no_progress)
    (layer,) = pruner.layers
    assert layer.count == 6
    tried = pruner.at(path).build({layer.name: 0.5})
    assert {tuple(t.dims) for t in tried.graph.initializer} >= {(4, 8), (8, 3), (99, 3), (3, 3)}


HOSTILE = [
    (lambda p: p["recipe"].update(whole=[["x", "0", "why"]]), "which axes stay whole"),
    (lambda p: p["recipe"].update(granularity=5), "the recipe has no granularity"),
    (lambda p: p["recipe"].update(granularity="row"), "no granularity 'row'"),
    (lambda p: p["recipe"].pop("inputs"), "at which input shapes"),
    (lambda p: p["recipe"].update(inputs={"x0": [2, 3, -1, 6]}), "at which input shapes"),
    (lambda p: p["recipe"].update(inputs={"x0": [2, 3, 1e9, 6]}), "at which input shapes"),
    (lambda p: p["recipe"].update(inputs={"x0": [2, 3]}), "do not fit"),
    (lambda p: p["recipe"].update(inputs={"y": [2, 3, 6, 6]}), "do not fit"),
    (lambda p: p["recipe"].update(inputs={"x0": [2, 4, 6, 6]}), "do not fit"),
    (lambda p: p["recipe"].update(inputs={"x0": [1 << 20, 3, 1 << 20, 1 << 20]}), "do not fit"),
    (lambda p: p["units"][0].update(removed=not p["units"][0]["removed"]), "do not follow from the removed units"),
    (lambda p: [u.update(removed=True) for u in p["units"]], "nothing would remain"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[m for _, m in HOSTILE])
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tiny(tmp_path)
    cut(path, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    change(plan)
    (tmp_path / "bad.json").write_text(json.dumps(plan))
    with pytest.raises(PruneError, match=message):
        structured(path, plan=tmp_path / "bad.json", output=tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    cut(tiny(tmp_path), tmp_path)
    other = net_file(tmp_path, cuts.conv_net, opset=18, seed=1)
    with pytest.raises(PruneError, match="another model"):
        structured(other, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx", recover="none")


# -- what is left alone -----------------------------------------------------------------------------

CHOICES = [
    # include, exclude, groups that are cut
    ((), (), {"w0", "w2"}),
    (("w0",), (), {"w0"}),
    (("w1",), (), {"w0"}),
    (("w2",), (), {"w0", "w2"}),  # rows of the one, columns of the other
    (("node3",), (), {"w0", "w2"}),
    (("node2",), (), {"w0"}),
    (("w3", "node2"), (), {"w0", "w2"}),
    ((), ("w4",), {"w0"}),
    ((), ("node1",), {"w2"}),
    ((), ("node[23]",), None),
    ((), ("node4",), {"w0"}),
    (("node*",), ("w0",), {"w2"}),
]


def two_groups(n: Net) -> Net:
    """node1 Conv(w0, w1), node2 Relu, node3 Conv(w2, w3), node4 Relu, node5 Conv(w4, w5)."""
    a = n("Relu", n.conv(n.x("N", 3, 8, 8), 3, 8))
    b = n("Relu", n.conv(a, 8, 6))
    return n.out(n.conv(b, 6, 4))


@pytest.mark.parametrize(("include", "exclude", "groups"), CHOICES)
def test_include_and_exclude(tmp_path: Path, include: Any, exclude: Any, groups: set[str] | None) -> None:
    path = tiny(tmp_path, two_groups)
    if groups is None:
        with pytest.raises(PruneError, match=r"leaves? nothing to cut"):
            cut(path, tmp_path, include=include, exclude=exclude)
        return
    found = cut(path, tmp_path, include=include, exclude=exclude)
    assert {g.name for g in found.groups if g.after < g.before} == groups
    assert {item.name for item in found.left} == {"w0", "w2"} - groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": ("nothing*",)}, "--include 'nothing\\*' matches nothing"),
        ({"exclude": ("w9",)}, "--exclude 'w9' matches nothing"),
        ({"exclude": ("*",)}, "--exclude leaves nothing to cut"),
        ({"granularity": "row"}, "no granularity 'row'"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": None}, "how much is to be cut"),
        ({"output": "cut.txt/none.onnx"}, "does not exist"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tiny(tmp_path)
    if "output" in changes:
        changes = {**changes, "output": tmp_path / changes["output"]}
    with pytest.raises(PruneError, match=message):
        structured(path, **{"ratio": 0.5, "output": tmp_path / "cut.onnx", "save_plan": tmp_path / "p.json", **changes})
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def test_a_model_with_nothing_to_cut_says_why(tmp_path: Path) -> None:
    def only_inputs_and_outputs(n: Net) -> Net:
        return n.out(n("MatMul", n.x("N", 4), n.w(4, 3)))

    with pytest.raises(PruneError, match=r"nothing can be cut .*graph input .*graph output|graph output .*graph input"):
        cut(tiny(tmp_path, only_inputs_and_outputs), tmp_path)


# -- proof ------------------------------------------------------------------------------------------


def test_a_wrong_cut_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.remove

    def wrong(model: ir.Model, *args: Any, **named: Any) -> None:
        right(model, *args, **named)
        value = model.graph.initializers["w2"]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.flip(value.const_value.numpy(), 0).copy(), name="w2")

    path = tiny(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(b"as it was")
    monkeypatch.setattr(module, "remove", wrong)
    with pytest.raises(PruneError, match="the first tensor that differs is 'conv3'"):
        cut(path, tmp_path, force=True)
    assert (tmp_path / "cut.onnx").read_bytes() == b"as it was"
    assert not (tmp_path / "plan.json").exists()
    cut(path, tmp_path, force=True, verify=False)  # only because nobody looked
    assert (tmp_path / "cut.onnx").read_bytes() != b"as it was"


def test_real_inputs_take_part_in_the_proof(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    np.savez(tmp_path / "data.npz", x0=np.random.default_rng(0).standard_normal((20, 3, 9, 9)).astype(np.float32))
    without = cut(path, tmp_path, force=True).verification.samples
    data = DataOptions(str(tmp_path / "data.npz"))
    found = cut(path, tmp_path, force=True, data=data, batch_size=8)
    assert found.verification.samples == without + 3


def test_activations_find_channels_that_never_fire(tmp_path: Path) -> None:
    """Channels 0 and 3 have the largest weights and a bias that keeps their Relu at zero."""

    def silent(n: Net) -> Net:
        w, b = n.rng.standard_normal((6, 4)).astype(np.float32), np.zeros(6, np.float32)
        w[[0, 3]] *= 5
        b[[0, 3]] = -1000
        h = n("Relu", n("Gemm", n.x("N", 4), n.c(w), n.c(b), transB=1))
        return n.out(n("Gemm", h, n.w(6, 3), n.w(3)))

    path = tiny(tmp_path, silent)
    np.savez(tmp_path / "data.npz", x0=np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    data = DataOptions(str(tmp_path / "data.npz"))
    with pytest.raises(PruneError, match="needs data"):
        cut(path, tmp_path, criterion="activation", ratio=0.34)
    for criterion, expected in (("activation", [0, 3]), ("l2", None)):
        cut(path, tmp_path, criterion=criterion, ratio=0.34, data=data, batch_size=7, force=True)
        gone = json.loads((tmp_path / "plan.json").read_text())["weights"]["w0"]["0"]
        assert (gone == [0, 3]) == (expected is not None)


def test_dynamic_dimensions_are_proved_at_several_sizes(tmp_path: Path) -> None:
    """Two seeds at the analysed sizes, one at batch 1, one at twice the sizes."""
    assert cut(tiny(tmp_path), tmp_path).verification.samples == 4


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    dry = structured(path, ratio=0.5, dry_run=True, recover="none")
    assert {p.name for p in tmp_path.iterdir()} == {path.name}
    real = structured(path, ratio=0.5, recover="none")
    assert real.output is not None
    assert Path(real.output.path) == path.with_name("conv_net.pruned.onnx")
    assert dry.output is None
    same = {"output": None, "dry_run": True, "seconds": 0.0, "speed": None}
    assert replace(dry, **same) == replace(real, **same)


def test_width_is_cut_only_where_asked_and_said_to_be_approximate(tmp_path: Path) -> None:
    path = tiny(tmp_path, cuts.norm_net)
    with pytest.raises(PruneError, match="nothing can be cut") as caught:
        cut(path, tmp_path)
    assert "--granularity all" in f"{caught.value.message} {caught.value.hint}"
    assert cut(path, tmp_path, granularity="all").verification.kind == "approximate"


@pytest.mark.parametrize("build", cuts.WIDTH)
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_a_plan_of_width_names_what_a_check_from_outside_needs(tmp_path: Path, build: Any, ratio: float) -> None:
    path = net_file(tmp_path, build)
    found = cut(path, tmp_path, granularity="all", ratio=ratio)
    assert found.verification.kind == "approximate"
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    plan = json.loads((tmp_path / "plan.json").read_text())
    forgotten = plan | {"averaged": [], "merged": {}}
    assert compare(path, forgotten, tmp_path / "cut.onnx") > 100 * TOLERANCE


def norm_in_a_function(n: Net) -> Net:
    """LayerNormalization inside a local function, with a layer behind it that it does not average over."""
    body = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], axis=-1)]
    imports = [helper.make_opsetid("", n.opset)]
    n.functions.append(helper.make_function("local", "Norm", ["x", "g", "b"], ["y"], body, imports))
    n.domains["local"] = 1
    h = n("Norm", n.linear(n.x("N", "T", 4), 4, 8), n.positive(8), n.w(8), domain="local")
    return n.out(n.linear(n("Relu", n.linear(h, 8, 6)), 6, 3))


def test_width_that_a_plan_could_not_name_stays_whole(tmp_path: Path) -> None:
    path = tiny(tmp_path, norm_in_a_function)
    found = cut(path, tmp_path, granularity="all", round_to=1)
    assert [(g.before, g.after) for g in found.groups] == [(6, 3)]
    assert {f.reason for f in found.frozen if f.size == 8} == {
        "averaged over inside a local function, where a plan can name nothing"
    }
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE


# -- budgets ----------------------------------------------------------------------------------------

BUDGETS = [
    ({"ratio": 0.5}, Budget("ratio", 0.5)),
    ({"ratio": "30%"}, Budget("ratio", 0.3)),
    ({"macs": 0.25, "ratio": None}, Budget("macs", 0.25)),
    ({"macs": "120M"}, Budget("macs", 120e6, True)),
    ({"params": 1000}, Budget("params", 1000, True)),
    ({"params": parse_quantity("1.5k")}, Budget("params", 1500, True)),
    ({"macs": Quantity(0.5, "percent")}, Budget("macs", 0.5)),
    ({"latency": "50%"}, Budget("latency", 0.5)),
    ({"latency": "3.5ms"}, Budget("latency", 3.5, True)),
    ({"latency": "2s"}, Budget("latency", 2000, True)),
]


@pytest.mark.parametrize(("given", "budget"), BUDGETS)
def test_budgets_are_read(given: dict[str, Any], budget: Budget) -> None:
    assert Budget.parse(given) == budget


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "how much"),
        ({"ratio": 0.5, "macs": 0.5}, "only one"),
        ({"ratio": 2}, "between 0 and 1"),
        ({"ratio": "120M"}, "between 0 and 1"),
        ({"macs": "0.0001K"}, "between 0 and 1"),
        ({"macs": "-5M"}, "between 0 and 1"),
        ({"ratio": 0}, "between 0 and 1"),
        ({"macs": 1}, "between 0 and 1"),
        ({"macs": -1}, "between 0 and 1"),
        ({"macs": "3ms"}, "not ms"),
        ({"params": "2MB"}, "not bytes"),
        ({"params": "150%"}, "between 0 and 1"),
        ({"memory": 0.5}, "no budget 'memory'"),
        ({"latency": 1}, "fraction of the time"),
        ({"latency": "2MB"}, "fraction of the time"),
        ({"latency": "0ms"}, "fraction of the time"),
        ({"ratio": "half"}, "not a number"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        Budget.parse(given)


@pytest.mark.parametrize("kind", ["ratio", "macs", "params", "latency"])
@pytest.mark.parametrize("value", [1, 1.5, 50, "50", 90.0, 100])
def test_a_percent_sign_that_was_forgotten(kind: str, value: float | str) -> None:
    with pytest.raises(PruneError) as caught:
        Budget.parse({kind: value})
    assert caught.value.hint == f"did you mean {float(value):g}%?"


def test_absolute_budgets_are_fractions_of_the_model() -> None:
    before = Totals(1000, 1000, 4000, 0, 0)
    assert Budget("macs", 1000, True).fraction(before) == 0.25
    assert Budget("params", 500, True).fraction(before) == 0.5
    with pytest.raises(PruneError, match="has 4,000 macs already"):
        Budget("macs", 4000, True).fraction(before)
    with pytest.raises(PruneError, match="not known"):
        Budget("macs", 10, True).fraction(replace(before, macs=None))


# -- library ----------------------------------------------------------------------------------------


def test_the_library_has_both(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    found = prunecli.analyse(path)
    assert [(g.name, g.count) for g in found.groups] == [("w0", 8)]
    assert {axis.reason for axis in found.frozen} == {"graph input", "graph output"}
    assert prunecli.structured(path, dry_run=True, macs=0.5).verification.kind == "exact"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prunecli.nothing


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
@pytest.mark.parametrize("steps", [1, 2])
def test_gradients_choose_units_that_matter_little(tmp_path: Path, criterion: str, steps: int) -> None:
    """Half of the hidden units are read by tiny weights: those go, however large the weights that compute them."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(6, 8)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
    second[::2] *= 1e-3
    first[:, ::2] *= 50
    nodes = [
        built_node("MatMul", ["x", "w1"], ["h"], "fc1"),
        built_node("Relu", ["h"], ["r"]),
        built_node("MatMul", ["r", "w2"], ["y"], "fc2"),
    ]
    path = save_proto(proto(nodes, {"x": ("batch", 6)}, weights={"w1": first, "w2": second}), tmp_path)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(40, 6)).astype(np.float32))
    found = structured(path, ratio=0.5, criterion=criterion, steps=steps, recover="none",
                       data=DataOptions(str(tmp_path / "d.npz")),
                       output=tmp_path / "out.onnx")  # fmt: skip
    left = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(found.output.path).graph.initializer}
    assert np.array_equal(left["w2"], second[1::2])
