"""`--granularity block`, alone and beside channels, from end to end: chosen, dropped, proved, saved, replayed; and refused
where it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.structures.carry_out import StructuredResult
from prunecli.structures.structured import structured
from tests.dependency.net import Net
from tests.structures.cuts import dense, net_file
from tests.structures.outside import TOLERANCE, compare
from tests.tiny import SHARED

MODELS = SHARED / "models"
QUICK = ("arch/hf_llama.dynamo.onnx", "arch/hm_torchmha.onnx", "arch/hm_yolo.onnx", "real/resnet20-cifar10-bn.onnx")
SLOW = (
    "arch/hf_bert.dynamo.onnx", "arch/hf_bert.onnx", "arch/hf_convnext.onnx", "arch/hf_gpt2.dynamo.onnx",
    "arch/hf_mobilenetv2.onnx", "arch/hf_resnet.onnx", "arch/hf_vit.dynamo.onnx", "arch/hf_vit.onnx",
    "arch/hm_torchmha.dynamo.onnx", "arch/hm_yolo.dynamo.onnx", "real/ch_PP-OCRv4_det_infer.onnx",
    "real/ch_PP-OCRv4_rec_infer.onnx", "real/ch_ppocr_mobile_v2.0_cls_infer.onnx", "real/resnet56-cifar10.onnx",
)  # fmt: skip


def residual(n: Net) -> Net:
    """Three blocks; the second hardly changes anything."""
    h = n.conv(n.x("N", 3, "H", "W"), 3, 8)
    for size in (1.0, 1e-4, 1.0):
        branch = n.conv(n("Relu", n.conv(h, 8, 12)), 12, 8)
        h = n("Add", h, n("Mul", branch, n.c(np.full((8, 1, 1), size, np.float32))))
    return n.out(n.conv(h, 8, 4))


def drop(path: Path, folder: Path, **changes: Any) -> StructuredResult:
    options = {"granularity": "block", "ratio": 0.34, "recover": None if "data" in changes else "none", **changes}
    return structured(path, output=folder / "cut.onnx", save_plan=folder / "plan.json", force=True, **options)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_blocks_of_a_real_model_agree_with_a_check_from_outside(name: str, tmp_path: Path) -> None:
    path = MODELS / name
    if not path.exists():
        pytest.skip("the shared models are not here")
    found = drop(path, tmp_path, ratio=0.5)
    assert found.verification.kind == "exact"
    assert found.after.params < found.before.params
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    onnx.checker.check_model(str(tmp_path / "cut.onnx"), full_check=True)


def test_the_least_damaging_block_goes(tmp_path: Path) -> None:
    path = net_file(tmp_path, residual)
    found = drop(path, tmp_path)
    assert [(g.kind, g.after) for g in found.groups] == [("block", 1), ("block", 0), ("block", 1)]
    scores = [g.lowest for g in found.groups]
    assert all(s is not None and scores[1] is not None and s >= scores[1] for s in scores)
    assert found.before.params - found.after.params == 8 * 12 + 12 + 12 * 8 + 8 + 8
    assert any("random inputs" in note for note in found.notes)
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE


def test_with_data_no_word_of_random_inputs(tmp_path: Path) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x0=np.random.default_rng(0).standard_normal((20, 3, 6, 6)).astype(np.float32))
    found = drop(net_file(tmp_path, residual), tmp_path, data=DataOptions(str(data)), ratio=None, macs=0.8)
    assert found.after.macs is not None and found.before.macs is not None
    assert found.after.macs <= 0.8 * found.before.macs
    assert any("20 samples" in note for note in found.notes) and not any("random" in note for note in found.notes)


@pytest.mark.parametrize("granularity, taken", [("channel,head,block", True), ("channel,head", False)])
def test_blocks_and_channels_share_one_budget(granularity: str, taken: bool, tmp_path: Path) -> None:
    """The block that changes nothing goes, with the channels inside it; of the others channels do, and all is proved from
    outside, counted exactly, and replayed."""
    path, data = net_file(tmp_path, residual), tmp_path / "x.npz"
    np.savez(data, x0=np.random.default_rng(0).standard_normal((48, 3, 6, 6)).astype(np.float32))
    asked = {"ratio": None, "macs": 0.5, "data": str(data), "granularity": granularity, "timing": False}
    found = drop(path, tmp_path, recover="lstsq", **asked)
    groups = {(group.kind, number): group.after for number, group in enumerate(found.groups)}
    blocks = [after for (kind, _), after in groups.items() if kind == "block"]
    assert blocks == ([1, 0, 1] if taken else []) and (min(groups.values()) == 0) is taken
    assert found.verification.kind == "exact" and found.after.macs is not None and found.before.macs is not None
    assert 0.45 * found.before.macs < found.after.macs <= 0.5 * found.before.macs
    bare = drop(path, tmp_path, recover="none", criterion="obs", **asked)
    assert bare.verification.kind == "exact"
    assert compare(path, tmp_path / "plan.json", tmp_path / "cut.onnx") < TOLERANCE
    structured(path, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx", recover="none", timing=False)
    assert onnx.load(tmp_path / "again.onnx").graph == onnx.load(tmp_path / "cut.onnx").graph


def test_a_plan_is_replayed(tmp_path: Path) -> None:
    path = net_file(tmp_path, residual)
    drop(path, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    structured(path, plan=tmp_path / "plan.json", output=again / "cut.onnx", recover="none")
    first, second = (onnx.load(p / "cut.onnx").graph for p in (tmp_path, again))
    assert first == second


def test_a_plan_that_lists_part_of_a_block_is_refused(tmp_path: Path) -> None:
    path = net_file(tmp_path, residual)
    drop(path, tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["weights"] == {} and len(plan["tensors"]) == 1
    (axes,) = plan["tensors"].values()
    (axis,) = axes
    axes[axis] = axes[axis][1:]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PruneError, match="do not follow from the removed units"):
        structured(path, plan=tmp_path / "plan.json", output=tmp_path / "again.onnx")


def test_left_out_blocks_stay(tmp_path: Path) -> None:
    path = net_file(tmp_path, residual)
    weight = onnx.load(path).graph.node[4].input[1]
    names = [g.name for g in drop(path, tmp_path).groups]
    found = drop(path, tmp_path, exclude=[names[1]])
    assert found.groups[1].after == 1 and sum(g.after for g in found.groups) == 2
    assert names[1] in {left.name for left in found.left}
    first = drop(path, tmp_path, include=[weight])
    assert sum(g.after for g in first.groups) == 2 and len(first.left) == 2


@pytest.mark.parametrize(
    "build, changes, message",
    [
        (dense, {}, "has no residual blocks"),
        (residual, {"criterion": "l2"}, "--criterion means nothing for blocks"),
        (residual, {"round_to": 8}, "--round-to means nothing for blocks"),
        (residual, {"granularity": "block,channel"}, "--ratio counts units"),
        (
            residual,
            {"granularity": "block,channel", "ratio": None, "macs": 0.5},
            "blocks compete .* by measured damage",
        ),
        (residual, {"ratio": 0.1}, "no block is dropped"),
        (residual, {"ratio": None, "params": 0.01}, "cannot be reached with blocks"),
    ],
)
def test_refusals(build: Any, changes: Any, message: str, tmp_path: Path) -> None:
    options = {key: value for key, value in {"ratio": 0.34, **changes}.items() if value is not None}
    path, target = net_file(tmp_path, build), tmp_path / "cut.onnx"
    with pytest.raises(PruneError, match=message):
        structured(path, output=target, **{"granularity": "block", **options})
    assert not target.exists()
