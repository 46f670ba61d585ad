"""`prune compare` end to end: against numpy on what onnxruntime gives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from prunecli.cli.output import to_json_text
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from prunecli.evaluation.compare import CompareOptions, Comparison, compare
from prunecli.report.document import Level
from prunecli.report.render import to_terminal
from prunecli.types import Json
from tests.tiny import write

SAMPLES = Path(__file__).parents[2] / "sample_models"
MLP, CNN = SAMPLES / "digits-mlp.onnx", SAMPLES / "digits-cnn.onnx"
DATA = DataOptions(str(SAMPLES / "digits-test.npz"))
MEASURES = {"top1_agreement", "cosine", "max_abs", "max_rel", "snr_db"}


def as_json(found: Comparison) -> Json:
    return json.loads(to_json_text(found))


def test_measures_are_numpy_s() -> None:
    found = as_json(compare(MLP, CNN, CompareOptions(data=DATA)))
    images = np.load(DATA.text)["image"].astype(np.float32)
    parts = [slice(i, i + 32) for i in range(0, len(images), 32)]
    a, b = (
        np.concatenate([session.run(None, {"image": images[part]})[0] for part in parts]).astype(np.float64)
        for session in (onnxruntime.InferenceSession(path) for path in (MLP, CNN))
    )
    measured = found["fidelity"]
    assert measured.keys() == MEASURES
    assert measured["top1_agreement"] == np.mean(a.argmax(axis=1) == b.argmax(axis=1))
    assert measured["max_abs"] == np.abs(a - b).max()
    assert measured["max_rel"] == np.abs(a - b).max() / np.abs(a).max()
    cosine = ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    assert measured["cosine"] == pytest.approx(cosine, rel=1e-12)  # float64 sums in another order
    snr = 10 * math.log10(np.square(a).sum() / np.square(a - b).sum())
    assert measured["snr_db"] == pytest.approx(snr, rel=1e-12)
    assert found["outputs"]["logits"] == measured
    assert (found["identical"], found["data"]["samples"]) == (False, 547)


def test_the_same_model_twice() -> None:
    found = compare(MLP, MLP)
    assert found.identical
    assert as_json(found)["fidelity"] == {
        "top1_agreement": 1, "cosine": 1, "max_abs": 0, "max_rel": 0, "snr_db": None,
    }  # fmt: skip
    assert "Every value is equal" in to_terminal(found.to_document(), width=100, color=False, level=Level.DETAIL)


def test_random_inputs_follow_the_seed() -> None:
    values = [compare(MLP, CNN, CompareOptions(seed=seed)).fidelity.short() for seed in (1, 1, 2)]
    assert values[0] == values[1]
    assert values[0] != values[2]


TWO = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Relu(x) z = Neg(x) }"
OFF = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float one = {1.0}> { y = Relu(x) n = Neg(x) z = Add(n, one) }"
OTHER_NAMES = (
    "g (float[M,2] input) => (float[M,2] first, float[M,2] second) { first = Relu(input) second = Neg(input) }"
)
ONE = "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
WIDE = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu(x) z = Neg(x) }"
LONGER = "g (float[N,2] x) => (float[N,M] y, float[N,K] z) { y = Concat<axis=1>(x, x) z = Neg(x) }"
NO_SAMPLES = "g (float[0,2] x) => (float[0,2] y) { y = Relu(x) }"
NOT_FINITE = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { r = Relu(x) y = Log(x) z = Neg(x) }"


def both(folder: Path, first: str, second: str) -> tuple[Path, Path]:
    return write(folder / "a.onnx", first), write(folder / "b.onnx", second)


def test_short_names_speak_of_the_worst_output(tmp_path: Path) -> None:
    found = compare(*both(tmp_path, TWO, OFF), CompareOptions(gates=["max_abs>0.5", "y.max_abs>0.5", "z.max_abs>0.5"]))
    assert [g.passed for g in found.gates] == [False, True, False]
    # neg(x) + 1 is rounded once, by at most half a step of float32 near 4
    assert found.fidelity.worst()["max_abs"] == pytest.approx(1, abs=2.5e-7)
    assert found.fidelity.outputs["y"]["max_abs"] == 0
    assert not found.identical


def test_other_names_are_matched_by_position_and_said(tmp_path: Path) -> None:
    found = compare(*both(tmp_path, TWO, OTHER_NAMES))
    assert found.identical
    assert [n for n in found.notes if "by position" in n] == [
        "matched by position: x = input",
        "matched by position: y = first",
        "matched by position: z = second",
    ]


def test_an_output_of_one_model_only_is_said(tmp_path: Path) -> None:
    found = compare(*both(tmp_path, ONE, TWO))
    assert found.identical
    assert found.notes == ["not compared: z is an output of the second model only"]


def test_values_that_are_not_numbers_fail_every_gate(tmp_path: Path) -> None:
    gates = ["max_abs>1e30", "cosine<-0.99", "snr_db<-1000"]
    found = compare(*both(tmp_path, TWO, NOT_FINITE), CompareOptions(gates=gates))
    assert [g.passed for g in found.gates] == [False, False, False]
    assert as_json(found)["fidelity"]["max_abs"] is None


# first, second -> what is refused
REFUSED: list[tuple[str, str, list[str], str]] = [
    (TWO, WIDE, [], "no input fits both|different inputs"),
    (TWO, LONGER, [], "the output y is"),
    (TWO, ONE, [], "different outputs"),
    (NO_SAMPLES, NO_SAMPLES, [], "random inputs hold no samples"),
    (TWO, TWO, ["accuracy<1"], "no figure named accuracy"),
    (TWO, TWO, ["w.max_abs<1"], "no figure named w.max_abs"),
    (TWO, TWO, ["max_abs"], "is not NAME OP NUMBER"),
]


@pytest.mark.parametrize(("first", "second", "gates", "message"), REFUSED)
def test_what_cannot_be_compared(first: str, second: str, gates: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=message):
        compare(*both(tmp_path, first, second), CompareOptions(gates=gates))


def test_indices_stay_inside_the_smaller_table(tmp_path: Path) -> None:
    """Random token numbers are valid in both models."""
    paths = []
    for rows in (50, 3):
        table = onnx.numpy_helper.from_array(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), "table")
        node = onnx.helper.make_node("Gather", ["table", "ids"], ["y"])
        ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N"])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])
        graph = onnx.helper.make_graph([node], "g", [ids], [out], [table])
        opset = [onnx.helper.make_opsetid("", 17)]
        paths.append(tmp_path / f"{rows}.onnx")
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), paths[-1])
    options = CompareOptions(samples=200)
    for pair in (paths, paths[::-1]):
        assert compare(pair[0], pair[1], options).identical


def test_options_of_the_data_reach_it() -> None:
    options: dict[str, Any] = {"data": DataOptions(DATA.text, limit=10)}
    assert compare(MLP, CNN, CompareOptions(**options)).fidelity.samples == 10
