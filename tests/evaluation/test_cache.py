"""Samples of tokens in parts, with keys and values carried from one to the next, have the figures of whole ones."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import prunecli
from prunecli.errors import PruneError
from tests.model.build import floats, node, proto

VOCABULARY, WIDTH, HEADS = 50, 16, 2
TOKENS = 60


def grouped(path: Path) -> None:
    """Grouped query attention and rotary positions, which count from the length of the mask."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "make_language_model.py"))
    script["make"](
        path, script["Size"](vocabulary=VOCABULARY, width=64, layers=2, heads=4, groups=2, inner=96), "float32"
    )


def written_out(path: Path, lost: bool = False) -> None:
    """Standard operators: keys and values are joined to those before, and a token sees those up to its position. `lost`:
    what goes on to the next part lacks what came before."""
    head = WIDTH // HEADS
    weights: dict[str, Any] = {
        "embedding": floats(VOCABULARY, WIDTH), "places": floats(TOKENS, WIDTH, seed=1),
        **{name: floats(WIDTH, WIDTH, seed=k) for k, name in enumerate("qkv", 2)},
        "head": floats(WIDTH, VOCABULARY, seed=5), "split": np.array([0, 0, HEADS, head]), "one": np.array([1]),
        "joined": np.array([0, 0, WIDTH]), "low": np.array(-1e9, np.float32), "none": np.array(0, np.float32),
        "axes": np.array([1, 3]), "zero": np.array(0), "step": np.array(1), "scalar": np.array(1),
    }  # fmt: skip
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["e"]),
        node("Gather", ["places", "position_ids"], ["p"]),
        node("Add", ["e", "p"], ["x"]),
    ]
    for name in "qkv":
        nodes += [node("MatMul", ["x", name], [f"{name}1"]), node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
                  node("Transpose", [f"{name}2"], [f"{name}3"], perm=[0, 2, 1, 3])]  # fmt: skip
    for name, whole in (("k", "key"), ("v", "value")):
        nodes += [node("Concat", [f"past_key_values.0.{whole}", f"{name}3"], [f"{name}4"], axis=2),
                  node("Identity", [f"{name}{3 if lost else 4}"], [f"present.0.{whole}"])]  # fmt: skip
    nodes += [
        node("Transpose", ["k4"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q3", "kt"], ["scores"]),
        node("Shape", ["attention_mask"], ["size"]),
        node("Gather", ["size", "scalar"], ["total"], axis=0),
        node("Range", ["zero", "total", "step"], ["keys"]),
        node("Unsqueeze", ["position_ids", "axes"], ["own"]),
        node("LessOrEqual", ["keys", "own"], ["seen"]),
        node("Where", ["seen", "none", "low"], ["mask"]),
        node("Add", ["scores", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v4"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "joined"], ["flat"]),
        node("Add", ["flat", "x"], ["y"]),
        node("MatMul", ["y", "head"], ["logits"]),
    ]
    model = proto(nodes, {}, ["logits"], weights)
    integers = [("input_ids", "n"), ("attention_mask", "total"), ("position_ids", "n")]
    shape = ["b", HEADS, "past_sequence", head]
    pasts = [f"past_key_values.0.{kind}" for kind in ("key", "value")]
    model.graph.input.extend(helper.make_tensor_value_info(name, 7, ["b", size]) for name, size in integers)
    model.graph.input.extend(helper.make_tensor_value_info(name, 1, shape) for name in pasts)
    present = ["b", HEADS, "all", head]
    names = [f"present.0.{kind}" for kind in ("key", "value")]
    model.graph.output.extend(helper.make_tensor_value_info(name, 1, present) for name in names)
    onnx.save(model, path)


def perplexity(path: Path, tokens: Path, **options: Any) -> float:
    found = prunecli.evaluate(path, data=str(tokens), metric="perplexity", timing=False, **options)
    return found.models[0].metrics["perplexity"]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, VOCABULARY, TOKENS))
    return tmp_path / "tokens.npy"


WINDOWS = [
    # tokens of a part, of a sample, between samples
    (1, 12, None),
    (5, 12, None),
    (12, 12, 4),
    (20, None, None),
    (7, 20, 5),
]


@pytest.mark.parametrize("make", [grouped, written_out])
@pytest.mark.parametrize(("chunk", "window", "stride"), WINDOWS)
def test_parts_with_a_cache_have_the_figure_of_the_whole(
    make: Callable[[Path], None], chunk: int, window: int | None, stride: int | None, tokens: Path
) -> None:
    path = tokens.parent / "m.onnx"
    make(path)
    whole = perplexity(path, tokens, window=window, stride=stride)
    # float32 throughout: sums over keys in another order, about 1e-6 of logits of a few units
    assert perplexity(path, tokens, window=window, stride=stride, chunk=chunk) == pytest.approx(whole, rel=1e-4)


def test_a_cache_that_loses_something_shows(tokens: Path) -> None:
    path = tokens.parent / "m.onnx"
    written_out(path, lost=True)
    whole = perplexity(path, tokens, window=12)
    with pytest.raises(PruneError):
        perplexity(path, tokens, window=12, chunk=4)
    assert perplexity(path, tokens, window=12, chunk=12) == whole


def test_two_models_are_compared_in_parts(tokens: Path) -> None:
    path = tokens.parent / "m.onnx"
    written_out(path)
    found = prunecli.evaluate(path, path, data=str(tokens), metric="perplexity", timing=False, window=12, chunk=5)
    assert found.fidelity is not None
    assert found.models[0].metrics == found.models[1].metrics


def without_cache(path: Path) -> None:
    nodes = [node("Gather", ["w", "input_ids"], ["logits"])]
    model = proto(nodes, {}, ["logits"], {"w": floats(VOCABULARY, VOCABULARY)})
    model.graph.input.append(helper.make_tensor_value_info("input_ids", 7, ["b", "n"]))
    onnx.save(model, path)


def without_present(path: Path) -> None:
    written_out(path)
    model = onnx.load(path)
    del model.graph.output[-1]
    onnx.save(model, path)


REFUSED = [
    (without_cache, "takes no past keys and values"),
    (without_present, "no output holds what past_key_values.0.value reads"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_a_model_without_a_cache_is_refused(make: Callable[[Path], None], said: str, tokens: Path) -> None:
    make(tokens.parent / "m.onnx")
    with pytest.raises(PruneError, match=said):
        perplexity(tokens.parent / "m.onnx", tokens, window=12, chunk=4)
