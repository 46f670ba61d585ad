"""Which weights a command works on: kinds, --also, --include and --exclude."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from prunecli.errors import PruneError
from prunecli.model import Weights, find_weights
from prunecli.zeros.select import choose
from tests.model.build import floats, info, loaded, node, proto


def net() -> onnx.ModelProto:
    """An embedding, a dense layer with a bias, a normalisation, an unnamed dense layer, a quantised one."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], "embed"),
        node("Gemm", ["e", "fc.w", "fc.b"], ["f"], "fc"),
        node("LayerNormalization", ["f", "ln.w", "ln.b"], ["n"], "ln"),
        node("MatMul", ["n", "head.w"], ["out"]),
        node("MatMul", ["out", "deep.w"], ["y"], "deep"),
    ]
    weights = {
        "table": floats(10, 4), "fc.w": floats(4, 6), "fc.b": floats(6), "ln.w": floats(6), "ln.b": floats(6),
        "head.w": floats(6, 3), "deep.w": floats(3, 2),
    }  # fmt: skip
    model = proto(nodes, {}, ["y"], weights)
    model.graph.input.append(info("ids", [5], onnx.TensorProto.INT64))
    return model


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return find_weights(loaded(net(), tmp_path))


# include, exclude, also -> chosen
CHOSEN = [
    ([], [], [], "fc.w head.w deep.w"),
    (["fc.w"], [], [], "fc.w"),
    (["fc"], [], [], "fc.w"),
    (["out"], [], [], "head.w"),
    (["*.w"], [], [], "fc.w head.w deep.w"),
    (["*.w"], ["deep*"], [], "fc.w head.w"),
    ([], ["fc", "deep"], [], "head.w"),
    (["[fd]*"], [], [], "fc.w deep.w"),
    ([], [], ["bias"], "fc.w head.w deep.w fc.b"),
    ([], [], ["norm"], "fc.w head.w deep.w ln.w ln.b"),
    ([], [], ["embedding"], "fc.w head.w deep.w table"),
    (["table"], [], ["embedding"], "table"),
    (["embed"], [], ["embedding", "bias"], "table"),
    ([], ["ln"], ["bias", "norm"], "fc.w head.w deep.w fc.b"),
]


@pytest.mark.parametrize(("include", "exclude", "also", "chosen"), CHOSEN)
def test_choice(include: list[str], exclude: list[str], also: list[str], chosen: str, weights: Weights) -> None:
    found = choose(weights, include, exclude, also)
    assert {w.name for w in found.chosen} == set(chosen.split())
    everything = {w.name for w in weights.all()}
    assert {w.name for w in found.left} == everything - set(chosen.split())
    assert {item.name for item in found.skipped} >= {w.name for w in found.left}
    assert all(item.reason for item in found.skipped)


def test_reasons(weights: Weights) -> None:
    found = choose(weights, ["*c.w", "head.w"], ["fc"])
    reasons = {item.name: item.reason for item in found.skipped}
    assert reasons["fc.b"] == "biases are left alone unless --also bias is given"
    assert reasons["ln.w"] == "normalisation parameters are left alone unless --also norm is given"
    assert reasons["table"] == "embeddings are left alone unless --also embedding is given"
    assert reasons["deep.w"] == "not matched by --include"
    assert reasons["fc.w"] == "left out by --exclude"


# include, exclude, also -> a piece of the message, a piece of the hint
REFUSED = [
    (["zzz"], [], [], "--include 'zzz' matches nothing", "prune inspect"),
    (["fc.v"], [], [], "--include 'fc.v' matches nothing", "did you mean fc.w"),
    (["hea"], [], [], "--include 'hea' matches nothing", "head.w"),
    (["table"], [], [], "--include 'table' matches table, and embeddings are left alone", "--also embedding"),
    (["fc.b"], [], [], "biases are left alone", "--also bias"),
    ([], ["fc.v"], [], "--exclude 'fc.v' matches nothing", "did you mean fc.w"),
    ([], ["*"], [], "--exclude leaves no weight", "exclude less"),
    (["fc"], ["fc"], [], "--include and --exclude leave no weight", "widen --include"),
]


@pytest.mark.parametrize(("include", "exclude", "also", "message", "hint"), REFUSED)
def test_refusals(
    include: list[str], exclude: list[str], also: list[str], message: str, hint: str, weights: Weights
) -> None:
    with pytest.raises(PruneError) as caught:
        choose(weights, include, exclude, also)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_cannot_be_pruned_is_named(tmp_path: Path) -> None:
    model = proto([node("MatMulInteger", ["q", "w"], ["y"])], {}, ["y"])
    model.graph.input.append(info("q", [2, 3], onnx.TensorProto.UINT8))
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.UINT8, [3, 2], [1] * 6))
    weights = find_weights(loaded(model, tmp_path))
    with pytest.raises(PruneError, match="no prunable weights: w: "):
        choose(weights)
    with pytest.raises(PruneError, match="--include 'w' matches w, which cannot be pruned: "):
        choose(weights, ["w"])
    with pytest.raises(PruneError, match="no prunable weights"):
        choose(weights, exclude=["w"])


def test_a_model_without_weights(tmp_path: Path) -> None:
    weights = find_weights(loaded(proto([node("Relu", ["x"], ["y"])]), tmp_path))
    with pytest.raises(PruneError, match="the model has no prunable weights"):
        choose(weights)
