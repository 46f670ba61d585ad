"""Which positions count: rules that gradients show, and what fits make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import prunecli
from prunecli.calibration import importance
from prunecli.calibration.influence import ALL_POSITIONS, AtPlaces, AtValue, Influence, Rule
from prunecli.calibration.layers import layers_of
from prunecli.calibration.layerwise import working_form
from prunecli.model import Model, find_weights, load
from prunecli.runtime import Session

T, WORDS, WIDTH = 6, 11, 8
RNG = np.random.default_rng(3)
HEAD = '<ir_version: 8, opset_import: ["": 17]> g '
BODY = "h = Gather (e, ids)  a = MatMul (h, v)  b = Relu (a)  c = MatMul (b, w)"
IDS, MASK = "int64[N, 6] ids", "int64[N, 6] mask"
MEAN = (
    "m = Cast <to = 1> (mask)  one = Constant <value_ints = [-1]> ()  k = Unsqueeze (m, one)  p = Mul (c, k)  "
    "axis = Constant <value_ints = [1]> ()  s = ReduceSum <keepdims = 0> (p, axis)  n = ReduceSum (m, axis)  z = Div (s, n)"
)
OWN_MASK = (
    "pad = Constant <value_int = 0> ()  same = Equal (ids, pad)  other = Not (same)  mask = Cast <to = 7> (other) "
)
ALL = "z = ReduceMean <axes = [1], keepdims = 0> (c)"
FIRST = "first = Constant <value_int = 0> ()  z = Gather <axis = 1> (c, first)"
FLAT = (
    "h0 = Gather (e, ids)  flat = Constant <value_ints = [-1, 8]> ()  h = Reshape (h0, flat)  a = MatMul (h, v)  b = Relu (a)"
    "  c0 = MatMul (b, w)  rows = Constant <value_ints = [-1, 6, 8]> ()  c = Reshape (c0, rows)"
)
MASKED, PADDED = AtValue("mask", 0), AtValue("ids", 0)
ONE = AtPlaces(((True, *[False] * 5),))
CASES: dict[str, tuple[str, str, str, Rule | None]] = {
    "a mask says it": (f"{IDS}, {MASK}", BODY, MEAN, MASKED),
    "the model makes the mask of its tokens": (IDS, BODY, OWN_MASK + MEAN, PADDED),
    "tokens in one row": (f"{IDS}, {MASK}", FLAT, MEAN, MASKED),
    "the first token is read": (IDS, BODY, FIRST, ONE),
    "all are read": (IDS, BODY, ALL, None),
}


def made(folder: Path, inputs: str, body: str, end: str, width: int = WIDTH) -> Model:
    made = parser.parse_model(HEAD + f"({inputs}) => (float[N, 8] z) {{ {body}  {end} }}")
    drawn = {"e": (WORDS, WIDTH), "v": (WIDTH, width), "w": (width, WIDTH)}
    for name, shape in drawn.items():
        array = np.random.default_rng(len(name) + shape[1]).normal(size=shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(made, folder / "m.onnx")
    return load(folder / "m.onnx")


def sentences(count: int, longest: int = T, seed: int = 0, *, full: bool = False) -> dict[str, np.ndarray]:
    """Tokens from 1 on, then padding with 0; the first two sentences have other lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.where(np.arange(count) == 0, 2, rng.integers(2, longest + 1, count))
    mask = (np.arange(longest) < (longest if full else lengths[:, None])) * np.ones((count, 1), np.int64)
    return {"ids": rng.integers(1, WORDS, (count, longest)) * mask, "mask": mask.astype(np.int64)}


def influence(model: Model, feeds: list[dict[str, np.ndarray]]) -> Influence:
    work = working_form(model.ir)
    layers, _ = layers_of(work, find_weights(Model(work, model.path, "")).prunable)
    names = {value.name for value in work.graph.inputs}
    return Influence.of(work, layers, [{k: v for k, v in f.items() if k in names} for f in feeds], start=Session.open)


@pytest.mark.parametrize(("inputs", "body", "end", "rule"), CASES.values(), ids=CASES)
def test_the_rule_is_found(tmp_path: Path, inputs: str, body: str, end: str, rule: Rule | None) -> None:
    found = influence(made(tmp_path, inputs, body, end), [sentences(5), sentences(5, seed=1)])
    assert found.unknown is None
    assert set(found.rules.values()) == ({rule} if rule else set()) and len(found.rules) == (2 if rule else 0)


def test_sentences_without_padding_leave_nothing_out(tmp_path: Path) -> None:
    found = influence(made(tmp_path, f"{IDS}, {MASK}", BODY, MEAN), [sentences(5, full=True)])
    assert not found.rules


def test_what_a_relu_closes_is_not_left_out(tmp_path: Path) -> None:
    """Of two channels both are closed at many tokens: the gradient is zero there, but no rule of the inputs says so."""
    found = influence(made(tmp_path, f"{IDS}, {MASK}", BODY, MEAN, width=2), [sentences(8), sentences(8, seed=1)])
    assert set(found.rules) == {"c"}


@pytest.mark.parametrize(
    ("rule", "samples", "count", "places"),
    [
        (MASKED, 1, 6, [0, 2]),
        (MASKED, 1, 12, range(12)),
        (ONE, 2, 12, [0, 6]),
        (ONE, 1, 7, range(7)),
        (ONE, 1, 12, range(12)),
        (AtPlaces((*ONE.rows, (False, True))), 3, 6, [1, 3, 5]),
        (None, 1, 3, range(3)),
    ],
)
def test_places_of_a_batch(rule: Rule | None, samples: int, count: int, places: list[int]) -> None:
    """A rule that does not fit the number of positions, or of those of a sample, leaves nothing out."""
    feed = {"scale": np.float32(1).reshape(()), "mask": np.array([[1, 0, 1, 0, 0, 0]] * samples)}
    found = Influence({"c": rule} if rule else {}).places("c", feed, count)
    assert found.tolist() == list(places)


READ = "first = Constant <value_int = 0> ()  z = Gather <axis = 1> (d, first)"
SCALED = f"d = Mul (c, scale)  {READ}"
WITH_STATE = (
    "m = ReduceMean <axes = [0, 2], keepdims = 0> (state)  ends = Constant <value_ints = [1, 2]> ()"
    f"  column = Unsqueeze (m, ends)  d = Add (c, column)  {READ}"
)
LONG, SHORT = sentences(5)["ids"], sentences(3, 4)["ids"]
FEEDS: dict[str, tuple[str, str, list[dict[str, np.ndarray]], Rule]] = {
    "a scalar comes first": (f"float scale, {IDS}", SCALED, [{"scale": np.ones((), np.float32), "ids": LONG}], ONE),
    "samples of a state lie along its second axis": (
        f"{IDS}, float[K, N, 3] state", WITH_STATE,
        [{"ids": sentences(9)["ids"], "state": np.ones((1, 9, 3), np.float32)}], ONE,
    ),
    "sentences of two lengths": (
        IDS.replace("6]", "L]"), FIRST, [{"ids": LONG}, {"ids": SHORT}],
        AtPlaces((*ONE.rows, (True, False, False, False))),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "end", "feeds", "rule"), FEEDS.values(), ids=FEEDS)
def test_samples_are_told_apart(
    tmp_path: Path, inputs: str, end: str, feeds: list[dict[str, np.ndarray]], rule: Rule
) -> None:
    found = influence(made(tmp_path, inputs, BODY, end), feeds)
    assert found.unknown is None
    assert set(found.rules.values()) == {rule}


def saved(folder: Path, name: str, data: dict[str, np.ndarray]) -> Path:
    np.savez(folder / name, **data)
    return folder / name


def cut(path: Path, **asked: Any) -> Any:
    return prunecli.structured(path, ratio=0.5, round_to=1, timing=False, force=True, **asked)


PRUNED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sparsegpt": (prunecli.oneshot, {"sparsity": 0.5, "method": "sparsegpt"}),
    "obs": (prunecli.oneshot, {"sparsity": 0.5, "method": "obs"}),
    "structured, units by their damage": (cut, {"criterion": "obs"}),
    "structured, by norms": (cut, {"criterion": "l2", "recover": "lstsq"}),
}


@pytest.mark.parametrize(("command", "asked"), PRUNED.values(), ids=PRUNED)
def test_padding_changes_nothing(tmp_path: Path, command: Callable[..., Any], asked: dict[str, Any]) -> None:
    """The same sentences of four tokens, alone and padded, lose the same weights, and the others are the same to the
    rounding of sums in float32. Where the padding is fitted, too, they differ by more than a tenth."""
    model = made(tmp_path, f"{IDS}, {MASK}".replace("6]", "L]"), BODY, MEAN)
    short = sentences(64, longest=4, full=True)
    padded = {name: np.pad(array, ((0, 0), (0, 2))) for name, array in short.items()}
    for number, data in enumerate((short, padded)):
        out = tmp_path / f"{number}.onnx"
        command(model.path, data=saved(tmp_path, f"{number}.npz", data), output=out, **asked)
    one, other = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / f"{n}.onnx").graph.initializer}
        for n in range(2)
    )
    for name in ("v", "w"):
        np.testing.assert_array_equal(one[name] == 0, other[name] == 0)
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_where_gradients_cannot_be_had_all_are_fitted_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = made(tmp_path, f"{IDS}, {MASK}", BODY, MEAN), saved(tmp_path, "d.npz", sentences(64))
    asked: dict[str, Any] = {"data": data, "output": tmp_path / "o.onnx"}
    runs = [lambda: prunecli.oneshot(model.path, sparsity=0.5, force=True, **asked), lambda: cut(model.path, **asked)]
    assert not any(note.startswith(ALL_POSITIONS) for run in runs for note in run().notes)
    monkeypatch.setattr(importance, "LARGEST", 10)
    for run in runs:
        assert [note for note in run().notes if note.startswith(ALL_POSITIONS)]
