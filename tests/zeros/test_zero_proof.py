"""The proof accepts the masked model and refuses every other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.errors import PruneError, UnprovedError
from prunecli.masks.decide import Recipe, decide
from prunecli.model import Dims, Model, concrete_shapes, find_weights, load, save
from prunecli.runtime import Session
from prunecli.types import Verification
from prunecli.verify.compare import same_outputs
from prunecli.verify.inputs import sizes_to_try
from prunecli.zeros import zero_proof
from prunecli.zeros.zero import Zeroed, target_of, zero
from prunecli.zeros.zero_proof import ZeroProof, is_masked
from tests.model.build import floats, node, proto, save_proto


def net() -> onnx.ModelProto:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"),
        node("Relu", ["h"], ["r"], "act"),
        node("MatMul", ["r", "w2"], ["m"], "fc2"),
        node("ReduceSum", ["m", "axes"], ["y"], "sum"),
    ]
    weights = {"w1": floats(3, 8), "b1": floats(8), "w2": floats(8, 4), "axes": np.array([0])}
    return proto(nodes, {"x": ("batch", 3)}, weights=weights)


def pruned(model: onnx.ModelProto, folder: Path, sparsity: float = 0.5) -> tuple[Model, list[Zeroed], Path]:
    """The loaded original, what was zeroed, and the file saved from it."""
    file = load(save_proto(model, folder))
    weights = find_weights(file).prunable
    decisions = decide([target_of(w) for w in weights], Recipe(sparsity=sparsity))
    zeroed = [Zeroed(w, d, w.tensor) for w, d in zip(weights, decisions, strict=True)]
    zero(zeroed)
    save(file, folder / "out.onnx")
    return file, zeroed, folder / "out.onnx"


def prove(file: Model, zeroed: list[Zeroed], path: Path, **options: Any) -> Verification:
    tries = sizes_to_try(file, concrete_shapes(file, Dims()).inputs, Dims())
    return ZeroProof(file, file.ir, zeroed, tries, **options)(path)


def test_the_masked_model_is_proved_by_running_it(tmp_path: Path) -> None:
    found = prove(*pruned(net(), tmp_path))
    assert (found.kind, found.max_abs_error, found.max_rel_error, found.samples) == ("exact", 0.0, 0.0, 1)
    assert "bit for bit" in found.detail


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def poke(name: str, change: Callable[[np.ndarray[Any, Any]], object]) -> Callable[[onnx.ModelProto], object]:
    """Change the values of one initializer in place."""

    def apply(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(tensor(model, name)).copy()
        change(array)
        tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))

    return apply


def first(array: np.ndarray[Any, Any], zero: bool) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere((array == 0) == zero)[0])


TAMPERED: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a kept weight moved by one bit": poke("w1", lambda a: a.view(np.uint32).__ixor__((a != 0).astype(np.uint32))),
    "a kept weight is zero": poke("w1", lambda a: a.__setitem__(first(a, zero=False), 0)),
    "a dropped weight is there": poke("w2", lambda a: a.__setitem__(first(a, zero=True), 1e-30)),
    "a zero is negative": poke("w2", lambda a: a.__setitem__(first(a, zero=True), -0.0)),
    "another tensor changed": poke("b1", lambda a: a.__setitem__(0, 7)),
    "an integer tensor changed": poke("axes", lambda a: a.__setitem__(0, 1)),
    "a type changed": lambda m: tensor(m, "axes").CopyFrom(numpy_helper.from_array(np.array([0], np.int32), "axes")),
    "a tensor renamed": lambda m: (setattr(tensor(m, "b1"), "name", "c"), m.graph.node[0].input.__setitem__(2, "c")),
    "a tensor dropped": lambda m: (m.graph.initializer.remove(tensor(m, "b1")), m.graph.node[0].input.pop()),
    "an operator changed": lambda m: setattr(m.graph.node[1], "op_type", "Elu"),
    "an attribute added": lambda m: m.graph.node[0].attribute.append(helper.make_attribute("alpha", 2.0)),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_file_that_is_anything_else_is_refused(case: str, tmp_path: Path) -> None:
    file, zeroed, path = pruned(net(), tmp_path)
    model = onnx.load(path)
    TAMPERED[case](model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PruneError, match="internal") as caught:
        prove(file, zeroed, path)
    assert "nothing was written" in caught.value.hint


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run alone notices a difference that the comparison of tensors would have missed."""
    file, zeroed, path = pruned(net(), tmp_path)
    model = onnx.load(path)
    TAMPERED["a kept weight is zero"](model)
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(ZeroProof, "_check_stored", lambda self, staged: None)
    with pytest.raises(PruneError, match="does not compute what the masked one does"):
        prove(file, zeroed, path)


def test_a_large_model_is_opened_and_compared_by_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_proof, "RUN_UP_TO", 10)
    found = prove(*pruned(net(), tmp_path))
    assert (found.kind, found.samples) == ("exact", 0)
    assert "too large" in found.detail
    (tmp_path / "out.onnx").unlink()
    file, zeroed, path = pruned(net(), tmp_path)
    broken = onnx.load(path)
    TAMPERED["a zero is negative"](broken)
    path.write_bytes(broken.SerializeToString())
    with pytest.raises(PruneError, match="was not stored as it should be"):
        prove(file, zeroed, path)


def custom_net() -> onnx.ModelProto:
    nodes = [*net().graph.node, node("Unheard", ["y"], ["z"], domain="custom")]
    weights = {t.name: numpy_helper.to_array(t) for t in net().graph.initializer}
    return proto(nodes, {"x": ("batch", 3)}, ["z"], weights, domains=["custom"])


def hungry_net(width: int) -> onnx.ModelProto:
    """Runs where length times 8 is a multiple of the width of a Reshape."""
    weights = {"w1": floats(4, 8), "shape": np.array([-1, width])}
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Reshape", ["h", "shape"], ["y"])]
    return proto(nodes, {"x": (1, "time", 4)}, weights=weights)


def table_net(rows: int) -> onnx.ModelProto:
    """Adds a table of positions: it runs at that length only."""
    weights = {"w1": floats(4, 8), "position": floats(1, rows, 8)}
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Add", ["h", "position"], ["y"])]
    return proto(nodes, {"x": ("batch", "time", 4)}, weights=weights)


def patch_net() -> onnx.ModelProto:
    """Patches of 9 pixels and a table of 7 x 7 of them."""
    weights = {"w1": floats(8, 3, 9, 9), "shape": np.array([0, 8, -1]), "position": floats(1, 8, 49)}
    nodes = [node("Conv", ["x", "w1"], ["h"], strides=[9, 9]), node("Reshape", ["h", "shape"], ["r"]),
             node("Add", ["r", "position"], ["y"])]  # fmt: skip
    return proto(nodes, {"x": ("batch", 3, "height", "width")}, weights=weights)


def sound_net() -> onnx.ModelProto:
    """Reflects 100 samples at the ends: 64 are too few."""
    nodes = [node("Pad", ["x", "pads"], ["p"], mode="reflect"), node("Conv", ["p", "w"], ["y"])]
    weights = {"pads": np.array([0, 0, 100, 0, 0, 100]), "w": floats(2, 1, 5)}
    return proto(nodes, {"x": (1, 1, "time")}, weights=weights)


def oblong_net() -> onnx.ModelProto:
    """4 x 32 pixels only."""
    weights = {
        "w1": floats(8, 3, 1, 1),
        "a": floats(1, 8, 4, 1),
        "b": floats(1, 1, 1, 32),
        "shape": np.array([-1, 1024]),
    }
    nodes = [node("Conv", ["x", "w1"], ["h"]), node("Add", ["h", "a"], ["s"]), node("Add", ["s", "b"], ["t"]),
             node("Reshape", ["t", "shape"], ["y"])]  # fmt: skip
    return proto(nodes, {"x": (1, 3, "height", "width")}, weights=weights)


def baked_batch_net() -> onnx.ModelProto:
    """Exported with a batch of 4 in a Reshape."""
    weights = {"w1": floats(6, 8), "shape": np.array([4, 4, 2])}
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Reshape", ["h", "shape"], ["y"])]
    return proto(nodes, {"x": ("batch", 6)}, weights=weights)


def text_net() -> onnx.ModelProto:
    encode = node("LabelEncoder", ["x"], ["f"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_floats=[1.0, 2.0])
    model = proto([encode, node("MatMul", ["f", "w1"], ["y"])], {"x": ("batch", 3)}, weights={"w1": floats(3, 8)},
                  domains=["ai.onnx.ml"])  # fmt: skip
    model.opset_import[1].version = 3
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


OTHER_SIZES = [
    partial(hungry_net, 7), partial(table_net, 77), partial(table_net, 10), patch_net, sound_net, oblong_net,
    baked_batch_net, text_net,
]  # fmt: skip


@pytest.mark.parametrize("build", OTHER_SIZES, ids=range(len(OTHER_SIZES)))
def test_sizes_are_tried_until_the_model_runs(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    found = prove(*pruned(build(), tmp_path))
    assert (found.kind, found.samples) == ("exact", 1)


UNPROVED = [
    (custom_net, "the original itself cannot be opened: onnxruntime cannot open"),
    (partial(hungry_net, 5003), "the original itself does not run: onnxruntime cannot run"),
]


@pytest.mark.parametrize(("build", "told"), UNPROVED, ids=range(len(UNPROVED)))
def test_what_cannot_be_run_is_refused(build: Callable[[], onnx.ModelProto], told: str, tmp_path: Path) -> None:
    with pytest.raises(UnprovedError) as caught:
        prove(*pruned(build(), tmp_path))
    assert told in caught.value.message
    assert "--no-verify" in caught.value.hint
    assert "out.onnx" not in caught.value.message  # the user knows the original


class Noisy(Session):
    """A session whose outputs are never the same twice."""

    runs = 0

    def run(self, feed: Any, outputs: Any = None) -> dict[str, Any]:
        Noisy.runs += 1
        return {name: value + Noisy.runs for name, value in super().run(feed, outputs).items()}


def test_random_outputs_are_not_compared(tmp_path: Path) -> None:
    found = prove(*pruned(net(), tmp_path), open=Noisy.open)
    assert (found.kind, found.samples) == ("exact", 0)
    assert "random and were not compared" in found.detail


def test_stated_sizes_are_not_changed(tmp_path: Path) -> None:
    model = proto([node("MatMul", ["x", "w"], ["y"])], {"x": ("time", "n", 3)}, weights={"w": floats(3, 4)})
    file = load(save_proto(model, tmp_path))

    def tries(dims: Dims) -> set[tuple[int, ...]]:
        return {shapes["x"] for shapes in sizes_to_try(file, concrete_shapes(file, dims).inputs, dims)}

    assert {(1, 16, 3), (1, 512, 3), (1, 8, 3), (2, 16, 3)} <= tries(Dims())
    assert {n for _, n, _ in tries(Dims(sizes={"n": 16}))} == {16}
    assert {t for t, _, _ in tries(Dims(sizes={"time": 5}))} == {5}
    assert tries(Dims(shapes={"x": (2, 16, 3)})) == {(2, 16, 3)}


def test_inputs_that_are_given_come_first(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watching(Session):
        def run(self, feed: Any, outputs: Any = None) -> dict[str, Any]:
            seen.append(feed["x"])
            return super().run(feed, outputs)

    given = {"x": floats(5, 3)}
    prove(*pruned(net(), tmp_path), open=Watching.open, given=given)
    assert all(each is given["x"] for each in seen)


def test_sessions_are_opened_as_asked(tmp_path: Path) -> None:
    seen = []

    def opener(model: Any, **options: Any) -> Session:
        seen.append(options)
        return Session.open(model, **options)

    prove(*pruned(net(), tmp_path), open=partial(opener, provider="cpu", threads=1))
    assert seen == [{"provider": "cpu", "threads": 1}] * 2  # the saved file and the reference


def test_masks_are_compared_bit_for_bit() -> None:
    source, drop = np.array([1, -0.0, np.nan, 2], np.float32), np.array([True, False, False, True])
    good = np.array([0, -0.0, np.nan, 0], np.float32)
    assert is_masked(source, drop, good)
    assert not is_masked(source, drop, np.abs(good))
    assert not is_masked(source, ~drop, good)
    assert not is_masked(source, drop, -good)


@pytest.mark.parametrize("size", [(1 << 17) - 1, (1 << 17) + 1, 3 << 17])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_masks_of_large_arrays(size: int, dtype: Any) -> None:
    """Sizes around the pieces in which arrays are compared; every element is looked at."""
    source, drop = floats(size).astype(dtype), floats(size, seed=1) > 0
    found = np.where(drop, np.zeros((), dtype), source)
    assert is_masked(source, drop, found)
    for place in (0, size // 2, size - 1):
        wrong = found.copy()
        wrong[place] += 1
        assert not is_masked(source, drop, wrong)


ONE = np.array([1.0, np.nan], np.float32)
# two results of a run, whether they are the same
RESULTS = [
    (ONE, ONE.copy(), True),
    (ONE, ONE.astype(np.float64), False),
    (ONE, ONE.reshape(2, 1), False),
    (np.array([0.0]), np.array([-0.0]), False),
    (np.array(["a"], object), np.array(["a"], object), True),
    (np.array(["a"], object), np.array(["b"], object), False),
    ([ONE, ONE], [ONE, ONE], True),
    ([ONE], [ONE, ONE], False),
    ({"a": [ONE]}, {"a": [ONE]}, True),
    ({"a": ONE}, {"b": ONE}, False),
    ([{1: 0.5}], [{1: 0.5}], True),
    ([{1: 0.5}], [{1: 0.25}], False),
    (None, None, True),
    (None, ONE, False),
]


@pytest.mark.parametrize(("left", "right", "same"), RESULTS)
def test_same_outputs(left: Any, right: Any, same: bool) -> None:
    assert same_outputs(left, right) is same


def test_bfloat16_is_compared_too(tmp_path: Path) -> None:
    import ml_dtypes

    model = proto([node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("MatMul", ["x", "f"], ["y"])], {"x": (2, 3)},
                  weights={"w": floats(3, 4).astype(ml_dtypes.bfloat16)})  # fmt: skip
    assert prove(*pruned(model, tmp_path)).kind == "exact"
