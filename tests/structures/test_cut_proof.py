"""The proof accepts what is right on models where rounding plays tricks, and refuses what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from prunecli.errors import PruneError, UnprovedError
from prunecli.structures import cut_proof
from prunecli.verify import pieces
from prunecli.verify.inputs import Case
from tests.structures import cuts
from tests.structures.cuts import carry_out, edit, net_file, shift_one, swap_columns, swap_rows


@pytest.fixture(params=["whole", "in pieces"], autouse=True)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proof, and every refusal, is the same where the model counts as too large to be run as a whole."""
    if request.param == "in pieces":
        monkeypatch.setattr(cut_proof, "WHOLE_UP_TO", 0)
        monkeypatch.setattr(pieces, "PIECE", 1)


RIGHT = [
    # model, dtype, granularity, kind
    (cuts.conv_net, np.float32, "channel", "exact"),
    (cuts.dense, np.float64, "channel", "exact"),
    (cuts.conv_net, np.float16, "channel", "exact"),
    (cuts.grouped, np.float32, "channel", "exact"),
    (cuts.tiny_output, np.float32, "channel", "exact"),
    (cuts.cancelling, np.float32, "channel", "exact"),
    (cuts.chooses, np.float32, "channel", "exact"),
    (cuts.mixture, np.float32, "expert", "exact"),
    (cuts.mixture, np.float32, "all", "exact"),
    (cuts.mixture, np.float16, "expert", "exact"),
    (cuts.saturated, np.float32, "channel", "exact"),
    (cuts.faint, np.float32, "channel", "exact"),
    *((build, np.float32, "all", "approximate") for build in cuts.WIDTH),
    *((build, np.float32, "all", "exact") for build in cuts.SCALED),
]


@pytest.mark.parametrize(("build", "dtype", "granularity", "kind"), RIGHT, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_right_cut_is_proved(tmp_path: Path, build: Any, dtype: Any, granularity: str, kind: str) -> None:
    done = carry_out(net_file(tmp_path, build, dtype), granularity)
    assert done.removed.any()
    found = done.prove()
    assert (found.kind, found.samples) == (kind, 2)


WRONG = [
    # model, granularity, what is wrong, the first value that shows it
    (cuts.conv_net, "channel", edit("w0", swap_rows), "conv1"),
    (cuts.conv_net, "channel", edit("w1", shift_one), "conv1"),
    (cuts.conv_net, "channel", edit("w2", shift_one), "conv3"),
    (cuts.conv_net, "channel", edit("w4", shift_one), "conv6"),
    (cuts.grouped, "channel", edit("w2", swap_rows), "conv3"),
    (cuts.tiny_output, "channel", edit("w2", shift_one), "conv3"),
    (cuts.saturated, "channel", edit("w2", swap_rows), "conv3"),
    (cuts.faint, "channel", edit("w0", swap_rows), "matmul1"),
    (cuts.norm_net, "all", edit("w2", shift_one), "layernormalization3"),
    (cuts.norm_net, "all", edit("w0", swap_rows), "matmul1"),
    (cuts.written_norm, "all", edit("w0", shift_one), "matmul1"),
    (cuts.two_groups, "all", edit("w0", swap_rows), "conv1"),
    (cuts.mixture, "expert", edit("router", swap_columns), "matmul2"),
    (cuts.mixture, "expert", edit("offers", swap_rows), "add3"),
    (cuts.mixture, "expert", edit("up", swap_rows), "moe5"),
    (cuts.mixture, "expert", edit("down bias", shift_one), "moe5"),
    (cuts.mixture, "all", edit("down", swap_rows), "moe5"),
]


@pytest.mark.parametrize(("build", "granularity", "spoil", "first"), WRONG)
def test_a_wrong_cut_is_refused_with_the_first_tensor_that_differs(
    tmp_path: Path, build: Any, granularity: str, spoil: Any, first: str
) -> None:
    path = net_file(tmp_path, build)
    carry_out(path, granularity).prove()
    with pytest.raises(PruneError, match="the first tensor that differs is") as caught:
        carry_out_again(path, granularity, spoil).prove()
    assert f"'{first}'" in caught.value.message


def carry_out_again(path: Path, granularity: str, spoil: Any) -> Any:
    path.with_name(f"{path.stem}.cut.onnx").unlink()
    return carry_out(path, granularity, spoil)


def test_a_wrong_attribute_is_refused(tmp_path: Path) -> None:
    """A normalisation with another epsilon: shapes agree, numbers do not."""

    def spoil(model: ir.Model) -> None:
        node = next(n for n in model.graph if n.op_type == "LayerNormalization")
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)

    with pytest.raises(PruneError, match="layernormalization3"):
        carry_out(net_file(tmp_path, cuts.norm_net), "all", spoil).prove()


def test_ignoring_the_approximation_would_be_told(tmp_path: Path) -> None:
    """Against plain zeros a width cut is far off: the reference must really normalise over what is kept."""
    done = carry_out(net_file(tmp_path, cuts.norm_net), "all")
    found = done.prove()
    assert found.max_rel_error is not None
    assert found.max_rel_error < 1e-5
    effect = float(found.detail.rsplit("would differ by ", 1)[1].split()[0])
    assert effect > 0.05


def test_random_outputs_are_not_compared(tmp_path: Path) -> None:
    """Dice are held while a model is looked at, from opset 9 on."""
    assert carry_out(net_file(tmp_path, cuts.rolls_dice)).prove().samples
    (old := tmp_path / "old").mkdir()
    with pytest.raises(UnprovedError, match="random"):
        carry_out(net_file(old, cuts.rolls_dice, opset=8)).prove()


def test_inputs_the_original_refuses_prove_nothing(tmp_path: Path) -> None:
    done = carry_out(net_file(tmp_path, cuts.conv_net))
    wrong = {"x0": np.zeros((1, 5, 6, 6), np.float32)}
    with pytest.raises(UnprovedError, match="the original itself does not run"):
        done.prove(lambda session: [Case("five channels", lambda: wrong)])
    with pytest.raises(UnprovedError, match="no inputs"):
        done.prove(lambda session: [])
    with pytest.raises(PruneError, match="onnxruntime cannot run"):
        done.prove(lambda session: [Case("five channels", lambda: wrong, required=True)])


def test_spare_inputs_are_for_models_that_ran_on_nothing_else(tmp_path: Path) -> None:
    done = carry_out(net_file(tmp_path, cuts.conv_net))
    good = {"x0": np.zeros((1, 3, 6, 6), np.float32)}
    wrong = {"x0": np.zeros((1, 5, 6, 6), np.float32)}
    assert done.prove(lambda s: [Case("a", lambda: good), Case("b", lambda: good, spare=True)]).samples == 1
    assert done.prove(lambda s: [Case("a", lambda: wrong), Case("b", lambda: good, spare=True)]).samples == 1


def test_a_cut_model_that_fails_to_run_is_refused(tmp_path: Path) -> None:
    done = carry_out(net_file(tmp_path, cuts.conv_net))
    other = carry_out(net_file(tmp_path, cuts.grouped), every=3)
    done.cut = net_file(tmp_path, _wider)
    with pytest.raises(PruneError, match="the original runs on"):
        done.prove()
    assert other.prove().kind == "exact"


def _wider(n: Any) -> Any:
    return n.out(n.conv(n.x("N", 5, "H", "W"), 5, 4))
