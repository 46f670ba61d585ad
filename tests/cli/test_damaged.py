"""Models that campaigns of damaged files found wanting: one clear error, never an internal one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Prune
from tests.dependency.cases import image, rows
from tests.dependency.net import Net


def _two_convolutions(n: Net) -> Net:
    return image(n, lambda n, h: n.conv(h, 8, 8, group=4))


def _parts(n: Net) -> Net:
    x = n.x("N", 4)
    parts = n("SplitToSequence", n.w(4, 8), axis=1, keepdims=0)
    return n.out(n("MatMul", n("MatMul", x, n("ConcatFromSequence", parts, axis=1, new_axis=1)), n.w(8, 3)))


def _layers(n: Net) -> Net:
    return rows(n, lambda n, h: n("Relu", h))


def _sums(n: Net) -> Net:
    h = n("Einsum", n.x("N", 4), n.w(4, 8), equation="nf,fg->ng")
    return n.out(n("Einsum", h, n.w(8, 3), equation="nf,fg->ng"))


def _set(node: int, name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(a for a in model.graph.node[node].attribute if a.name == name).i = value

    return change


def _drop(node: int, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        attributes = model.graph.node[node].attribute
        attributes.remove(next(a for a in attributes if a.name == name))

    return change


def _scalar(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _passes_input_on(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = model.graph.input[0].name


@pytest.mark.parametrize("change", [_twice, _passes_input_on])
@pytest.mark.parametrize("line", ["magnitude --sparsity .5", "structured --ratio .5"])
def test_what_onnxruntime_takes_is_taken(change: Callable[..., None], line: str, tmp_path: Path, prune: Prune) -> None:
    model, (command, *options) = _layers(Net()).model(), line.split()
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    done = prune(command, tmp_path / "m.onnx", *options)
    assert (done.code, done.err) == (0, "")


STRUCTURED = ["structured", "--ratio", ".5", "--granularity", "all"]
# network, what is wrong with it, the command, a piece of the error
CASES: list[tuple[str, Callable[[Net], Net], Callable[[onnx.ModelProto], None], list[str], str]] = [
    ("no group", _two_convolutions, _set(1, "group", 0), STRUCTURED, "Conv makes no sense as it stands"),
    ("no axis", _parts, _drop(1, "axis"), STRUCTURED, "the model is damaged: onnxruntime cannot open"),
    ("no rank", _sums, _scalar, ["oneshot", "--sparsity", ".5", "--data", "synthetic"], "is not known"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_what_is_wrong_is_said(case: tuple[str, Any, Any, list[str], str], tmp_path: Path, prune: Prune) -> None:
    _, build, damage, (command, *options), words = case
    model = build(Net()).model()
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    done = prune(command, tmp_path / "m.onnx", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err.splitlines()[0]
    assert "internal" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_state_file_with_records_that_are_no_archive(tmp_path: Path, prune: Prune) -> None:
    (tmp_path / "m.onnx").write_bytes(_layers(Net()).model().SerializeToString())
    chance, state = np.random.default_rng(0), tmp_path / "state"
    np.savez(tmp_path / "d.npz", x0=chance.standard_normal((16, 4)).astype(np.float32), labels=np.arange(16) % 3)
    line = ("sensitivity", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "--levels", ".5", "-j", "1")
    assert prune(*line, "--state", state).code == 0
    whole, broken = state.read_text(), 0
    start = whole.index('"records": "') + 200
    for place in range(start, start + 400, 40):  # inside the compressed arrays
        state.write_text(whole[:place] + "AAAAAAAA" + whole[place + 8 :])
        done = prune(*line, "--state", state)
        assert done.code in (0, 2)
        assert "internal" not in done.err
        broken += "is damaged" in done.err
    assert broken
